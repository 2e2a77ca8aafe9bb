"""Files and values that a person names on the command line: bounded reads, errors that say which option was wrong."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from confcom.errors import ConfigError


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


def parse_hex(text: str, option: str, *, most: int) -> bytes:
    """Bytes from hexadecimal text, at most `most` of them."""
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as error:
        raise ConfigError(f"{option}: {text!r} is not hexadecimal") from error
    if not 1 <= len(value) <= most:
        raise ConfigError(f"{option}: expected 1 to {most} bytes, found {len(value)}")
    return value


def parse_time(text: str | None, option: str) -> datetime:
    """A time in RFC 3339; without one, the present."""
    if text is None:
        return datetime.now(UTC)  # noqa: TID251 - the command line is where the clock is read
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {text!r} is not a time such as 2026-03-01T12:00:00Z") from error
    if time.tzinfo is None:
        raise ConfigError(f"{option}: {text!r} has no time zone; write 2026-03-01T12:00:00Z for UTC")
    return time.astimezone(UTC)


# --- Text from files and peers, made safe for a terminal --------------------------------------------------------------


def printable(text: str) -> str:
    """The text with every character that could steer a terminal written as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
