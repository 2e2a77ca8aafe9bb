"""What commands share: options, their values, the variables that they read; bounded reads of files and peers, checked
writes.

A tool reads the variables that are named here. A daemon reads `CONFCOM_<DAEMON>_<SETTING>` for each of its settings.
What Kubernetes sets for a Service that is called `confcom-…` is neither: it is left alone.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from confcom.errors import ConfcomError, ConfigError, FormatError, OutputError, PlatformUnavailable

if TYPE_CHECKING:
    from confcom.pki.chain import TrustRoot, TrustRoots


_Function = TypeVar("_Function", bound=Callable[..., Any])


class _NamedPath(click.Path):
    """A path that is not empty: an empty one, from an unset shell variable, would mean the current folder.

    `-` is standard input or output where the command has a use for it, and refused elsewhere.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        if value == "":
            self.fail("the name is empty", param, ctx)
        if value == "-" and not self.allow_dash:
            self.fail("'-' would be standard input or output, which is not used here; name a path", param, ctx)
        return super().convert(value, param, ctx)


class Number(click.FloatRange):
    """A finite number in a range; click takes `nan` for a number in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """The number; `nan` and infinity are mistakes of usage."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


FILE = _NamedPath(path_type=Path)
STREAM = _NamedPath(path_type=Path, allow_dash=True)

STORE_VARIABLE = "CONFCOM_COLLATERAL_STORE"
COLLATERAL_VARIABLE = "CONFCOM_COLLATERAL"
POLICY_VARIABLE = "CONFCOM_POLICY"
KEY_VARIABLE = "CONFCOM_PCS_KEY"
_ALL = "CONFCOM_"
_TOOLS = (STORE_VARIABLE, COLLATERAL_VARIABLE, POLICY_VARIABLE, KEY_VARIABLE)
DAEMONS = (
    "attestation-service", "certificate-signer", "collateral-service", "device-plugin", "metrics", "metrics-api",
    "quote-helper", "webhook",
)  # fmt: skip
_OF_TESTS = (
    "CONFCOM_VECTORS", "CONFCOM_INTEROP", "CONFCOM_E2E_", "CONFCOM_PCCS_ADMIN", "CONFCOM_AZURE_CLIENT", "CONFCOM_TEST_",
)  # fmt: skip
_SERVICE_LINK = re.compile(
    r"CONFCOM_[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""Variables of Services (Kubernetes, "Service environment variables")."""
_JSON = "confcom.json"
NO_MACHINE_ADVICE = "Make one with `confcom simulate machine -o FILE`, and name it with --machine FILE."


def default_store() -> Path:
    """The user's own collateral store; a `ConfigError` for a user without a home, as many containers have."""
    try:
        return Path.home() / ".local" / "share" / "confcom" / "collateral.sqlite"
    except RuntimeError as error:
        raise ConfigError(
            "this user has no home folder for a collateral store",
            advice=f"Name a store ({STORE_VARIABLE}, or an option of the command), or set HOME.",
        ) from error


def option_of(parameter: str) -> str:
    """The option that sets a parameter of the running command, such as `--trust-root`; else the parameter's name."""
    parameters = click.get_current_context().command.params
    return next((each.opts[0] for each in parameters if each.name == parameter), parameter)


@contextmanager
def given_by(place: Callable[[str], str]) -> Iterator[None]:
    """Within the block, an error about a setting names the place where it was given."""
    try:
        yield
    except ConfigError as error:
        if not error.setting:
            raise
        raise error.given_by(place(error.setting)) from error


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
store_option = click.option(
    "--store",
    metavar="PATH-OR-URL",
    default=lambda: str(default_store()),
    envvar=STORE_VARIABLE,
    help="The collateral store: a path, or postgresql://USER@HOST/DATABASE. "
    f"Default: ${STORE_VARIABLE}, else ~/.local/share/confcom/collateral.sqlite.",
)
trust_root_option = click.option(
    "--trust-root",
    metavar="PEM",
    multiple=True,
    help="Trust this root instead of Intel's (a simulated platform). Repeatable; the word 'intel' adds Intel's.",
)


def output_options(command: _Function) -> _Function:
    """`-o json` and its short form `--json`; the command gets `as_json`."""
    form = click.option(
        "-o",
        "--output",
        "as_json",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        callback=lambda context, _, value: value == "json" or context.meta.get(_JSON, False),
        help="Form of the result.",
    )
    short = click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=lambda context, _, value: context.meta.__setitem__(_JSON, value),
        help="The same as -o json.",
    )
    return form(short(command))


def kubeconfig_options(command: _Function) -> _Function:
    """`--kubeconfig` and `--context`."""
    context = click.option("--context", metavar="NAME", help="Context of the kubeconfig.  [default: its current one]")
    file = click.option("--kubeconfig", metavar="FILE", help="Credentials.  [default: $KUBECONFIG, ~/.kube/config]")
    return file(context(command))


def identity_options(command: _Function) -> _Function:
    """`--mr-enclave`, `--mr-signer`, `--isv-prod-id` and `--min-isv-svn`."""
    number = click.IntRange(0, 0xFFFF)
    for option in (
        click.option("--min-isv-svn", metavar="N", type=number, help="The lowest security version."),
        click.option("--isv-prod-id", metavar="N", type=number, help="The signer's product id."),
        click.option("--mr-signer", metavar="HEX", multiple=True, help="Accept this signer. Repeatable."),
        click.option("--mr-enclave", metavar="HEX", multiple=True, help="Accept this build. Repeatable."),
    ):
        command = option(command)
    return command


def prefix_of(daemon: str) -> str:
    """What the variables of a daemon begin with."""
    return f"{_ALL}{daemon.upper().replace('-', '_')}_"


def check_variables(environment: Collection[str], daemon: str = "", settings: Collection[str] = ()) -> None:
    """Refuse the first misspelt variable with a `ConfigError`.

    With `daemon`, its variables must name one of its settings. Those of other daemons are not looked at.
    """
    own = prefix_of(daemon)
    known = [*_TOOLS, *(f"{own}{name.upper()}" for name in settings)]
    prefixes = [prefix_of(name) for name in DAEMONS]
    for name in sorted(environment):
        if not name.startswith(_ALL) or name in known or _SERVICE_LINK.fullmatch(name):
            continue
        prefix = max((one for one in prefixes if name.startswith(one)), key=len, default="")
        if prefix == own or not (prefix or name.startswith(_OF_TESTS)):
            import difflib  # here: settings are nearly always right

            advice = "Unset it."
            words = {one.removeprefix(_ALL): one for one in (*known, *prefixes) if one != prefix}
            for close in difflib.get_close_matches(name.removeprefix(_ALL), words, n=1):
                advice = f"Did you mean {words[close]}{'…' * close.endswith('_')}? Otherwise unset it."
            owner = f"the {daemon}" if prefix else "confcom"
            raise ConfigError(f"the environment has {name}, which is no setting of {owner}", advice=advice)


# Values of options.

MAX_DURATION = timedelta(days=36525)
"""The present plus or minus this is still a `datetime`."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - the command line is where the clock is read


def parse_hex(text: str, option: str, *, most: int) -> bytes:
    """Bytes from hexadecimal text, 1 to `most` of them."""
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as error:
        raise ConfigError(f"{option}: {text!r} is not hexadecimal") from error
    if not 1 <= len(value) <= most:
        raise ConfigError(f"{option}: expected 1 to {most} bytes, found {len(value)}")
    return value


def parse_time(text: str | None, option: str) -> datetime:
    """A time in RFC 3339; the present for None."""
    if text is None:
        return now()
    try:
        time = datetime.fromisoformat(text)
        found = time.astimezone(UTC)
    except (ValueError, OverflowError) as error:  # OverflowError: the year in UTC would be 0 or 10000
        raise ConfigError(f"{option}: {text!r} is not a time such as 2026-03-01T12:00:00Z") from error
    if time.tzinfo is None:
        raise ConfigError(f"{option}: {text!r} has no time zone; write 2026-03-01T12:00:00Z for UTC")
    return found


def parse_duration(text: str, option: str) -> timedelta:
    """A duration such as `90m`, `36h` or `7d`, of at most 100 years."""
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if match is None:
        raise ConfigError(f"{option}: {text!r} is not a duration such as 90m, 36h, 7d or 2w")
    found = timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    if found > MAX_DURATION:
        raise ConfigError(f"{option}: {text} is longer than 100 years")
    return found


def proxy_of_environment(source: str) -> str | None:
    """The proxy to a source of collateral: $HTTPS_PROXY, unless the source is on this machine or in $NO_PROXY."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    try:
        host = urlsplit(source).hostname if "://" in source else source
    except ValueError:
        return None  # opening the source reports it
    if host is None or host in {"pccs", "localhost", "127.0.0.1", "::1"} or proxy_bypass(host):
        return None
    return getproxies().get("https")


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
