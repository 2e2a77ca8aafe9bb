"""Files, values and peers of the command line: bounded reads, and errors that name the option that is wrong."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from confcom.errors import ConfigError, FormatError, PlatformUnavailable

if TYPE_CHECKING:
    from confcom.pki.roots import TrustRoot, TrustRoots

MAX_ROOT = 64 * 1024
"""Bytes of a file with a root certificate."""
MAX_HELD_DATA = 16 * 1024 * 1024
"""Bytes of held data that are hashed."""
HANDSHAKE_TIMEOUT = 10.0
"""Seconds for connection and TLS handshake together, whatever the server does."""
MAX_DURATION = timedelta(days=36525)
"""The present plus or minus this is still a `datetime`."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - the command line is where the clock is read


def read_input(path: Path, limit: int, what: str) -> bytes:
    """Read a file, or standard input for `-`; never more than `limit` bytes."""
    if str(path) == "-":
        data = sys.stdin.buffer.read(limit + 1)
    else:
        try:
            with path.open("rb") as stream:
                data = stream.read(limit + 1)
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


def trust_roots(names: Iterable[str]) -> TrustRoots:
    """The roots of `--trust-root`: files in PEM, the word `intel`, or Intel's root where none is named."""
    from confcom.formats.text import without_bom
    from confcom.pki.roots import TrustRoot, TrustRoots

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
