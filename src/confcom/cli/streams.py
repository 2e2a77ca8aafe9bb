"""What commands read and print: bounded reads of files and peers, checked writes."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from confcom.errors import ConfcomError, ConfigError, FormatError, OutputError, PlatformUnavailable

if TYPE_CHECKING:
    from confcom.pki.chain import TrustRoot, TrustRoots

MAX_ROOT = 64 * 1024
"""Bytes of a file with a root certificate."""
MAX_HELD_DATA = 16 * 1024 * 1024
"""Bytes of held data that are hashed."""
HANDSHAKE_TIMEOUT = 10.0
"""Seconds for connection and TLS handshake together, whatever the server does."""
WIDTH = 76
"""Characters per line of base64 on a terminal."""
QUIET = "confcom.quiet"
"""Key of click's context: whether notes are left out."""


class _StandardOutput(io.FileIO):
    """Descriptor 1. The first write that fails is an `OutputError`; what comes after it is dropped."""

    _failed = False

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - bytes of any kind
        if self._failed:
            return memoryview(data).nbytes
        try:
            return super().write(data) or 0
        except OSError as error:
            self._failed = True
            what, advice = f"cannot write to standard output: {error.strerror}", "Free space, or write elsewhere."
            if isinstance(error, BrokenPipeError):
                what, advice = "standard output was closed before everything was written", "Read it to its end."
            raise OutputError(what, advice=advice) from error


def check_output() -> None:
    """Have every write to standard output checked from now on: a failure is an `OutputError`.

    A standard input that is closed is an empty one.
    """
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:  # closed by the caller: no file that is opened later may take its number
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY), number)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(
            io.FileIO(2, "wb", closefd=False), "utf-8", "backslashreplace", write_through=True
        )
    encoding = "utf-8" if sys.stdout is None else sys.stdout.encoding
    raw = io.BufferedWriter(_StandardOutput(1, "wb", closefd=False))
    sys.stdout = io.TextIOWrapper(raw, encoding, errors="replace", line_buffering=os.isatty(1))


def printable(text: object) -> str:
    """The text with every character that could control a terminal written as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def complain(message: object, advice: str = "") -> None:
    """A message and its advice on standard error; of an error, its own advice."""
    if isinstance(message, ConfcomError):
        advice = advice or message.advice()
    with suppress(OSError):  # nothing is left to report it on
        click.echo(f"confcom: {printable(message)}", err=True)
        if advice:
            click.echo(f"  what to do: {printable(advice)}", err=True)


def note(message: object) -> None:
    """A remark on standard error that is no error; `--quiet` leaves it out."""
    if not is_quiet():
        complain(message)


def is_quiet() -> bool:
    """Whether `--quiet` was given."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


def print_json(document: Any) -> None:  # noqa: ANN401 - JSON
    """Print a document as indented JSON."""
    # JSON escapes every control character but this one.
    click.echo(json.dumps(document, indent=2).replace("\x7f", "\\u007f"))


def print_pieces(pieces: Iterable[str]) -> None:
    """Print what is too long to be in memory at once."""
    rest = iter(pieces)
    while some := "".join(islice(rest, 1000)):
        click.echo(some, nl=False)


def write_output(path: Path | None, data: bytes, what: str) -> None:
    """Write to a file; without one (or for `-`) to standard output, as base64 when that is a terminal."""
    if path is not None and str(path) != "-":
        write_file(path, data, what)
    elif path is None and sys.stdout.isatty():
        text = base64.b64encode(data).decode()
        for start in range(0, len(text), WIDTH):
            click.echo(text[start : start + WIDTH])
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def keep_input(path: Path) -> None:
    """Refuse, with a `ConfigError`, to write over a file that this command has read."""
    from confcom.input_file import was_opened

    if was_opened(path):
        raise ConfigError(f"{path} is an input of this command and would be overwritten", advice="Name another file.")


def write_file(path: Path, data: bytes, what: str, *, exclusive: bool = False) -> None:
    """Write a file, whole or not at all; with `exclusive`, an existing one is a `ConfigError` and stays.

    What is no ordinary file (a pipe, a device) is written as it is.
    """
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:
                stream.write(data)
            return
        keep_input(path)
        draft = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        try:
            with draft.open("xb") as file:
                file.write(data)
            if exclusive:
                os.link(draft, path)
            else:
                draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already", advice="Name another file, or remove it first.") from error
    except OSError as error:
        raise OutputError(f"cannot write the {what} to {path}: {error.strerror}", advice="Check the path.") from error


def read_input(path: Path, limit: int, what: str) -> bytes:
    """Read a file, or standard input for `-`; never more than `limit` bytes."""
    from confcom.input_file import read_bounded, remember

    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(limit + 1)
            remember(0)
        else:
            data = read_bounded(path, limit)
    except OSError as error:
        raise ConfigError(
            f"cannot read the {what} file {path}: {error.strerror}", advice="Check the path and its permissions."
        ) from error
    if len(data) > limit:
        raise ConfigError(f"the {what} file {path} is larger than {limit} bytes", advice="Name the right file.")
    return data


def read_peer_certificate(address: str) -> bytes:
    """The DER of the certificate that a TLS server at HOST:PORT shows. Nothing is sent but the handshake.

    It is not verified here: the evidence in it will be.
    """
    import asyncio
    import ssl

    from confcom.formats.arguments import parse_tcp_address

    async def shown() -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(*place, ssl=context)
        try:
            der: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        finally:
            writer.transport.abort()
        return der

    place = parse_tcp_address(address, least=1, advice="Write --connect server.example.org:8443.")
    advice = "Check the address, and that the server speaks TLS there."
    try:
        return asyncio.run(asyncio.wait_for(shown(), HANDSHAKE_TIMEOUT))
    except TimeoutError as error:
        message = f"{address} did not finish a TLS handshake in {HANDSHAKE_TIMEOUT:g} s"
        raise PlatformUnavailable(message, advice=advice) from error
    except (OSError, UnicodeError) as error:  # the latter for a name that cannot be one
        reason = getattr(error, "strerror", None) or str(error)
        raise PlatformUnavailable(f"no TLS connection to {address}: {reason}", advice=advice) from error


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Within the block, a `FormatError` names the input at fault, one of several."""
    try:
        yield
    except FormatError as error:
        raise FormatError(error.message, structure=place, field="", advice=error.advice()) from error


def trust_roots(names: Iterable[str]) -> TrustRoots:
    """The roots of `--trust-root`: files in PEM, the word `intel`, or Intel's root where none is named."""
    from confcom.formats.arguments import without_bom
    from confcom.pki.chain import TrustRoot, TrustRoots

    roots: list[TrustRoot] = []
    for name in names:
        if name == "intel":
            roots += TrustRoots.intel().roots
            continue
        data = without_bom(read_input(Path(name), MAX_ROOT, "root certificate"))
        try:
            roots.append(TrustRoot.from_pem(data))
        except FormatError as error:
            raise ConfigError(
                f"--trust-root {name}: {error.message}", advice="Name a file with one root certificate in PEM."
            ) from error
    return TrustRoots(tuple(roots)) if roots else TrustRoots.intel()
