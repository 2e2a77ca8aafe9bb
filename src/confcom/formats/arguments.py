"""Values from outside, read strictly: arguments of public functions, settings, addresses, text, base64, JSON.

An argument of another type is a `TypeError`, one out of range a `ConfigError`. Each says in a sentence what was
expected and what was given. Python would fail later and elsewhere, or not at all: a hexadecimal string equals no hash,
`True` is a version number, and a time without a zone is ambiguous.
"""

from __future__ import annotations

import binascii
import codecs
import json
import re
import string
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from confcom.errors import ConfigError, FormatError

T = TypeVar("T")

_HINTS: dict[type, str] = {
    str: "; bytes.fromhex(…) makes bytes of hexadecimal text",
    bytearray: "; make bytes(…) of it: it could change while it is read",
    memoryview: "; make bytes(…) of it: it could change while it is read",
}


def checked_type(value: object, kind: type[T], name: str, hint: str = "") -> T:
    """The value, which is of this type."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = "a class" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name}: expected {kind.__name__}, found {found}{hint}")
    return value


def checked_bytes(value: object, name: str, size: int | None = None) -> bytes:
    """Bytes, of exactly this size if one is given."""
    data = checked_type(value, bytes, name, _HINTS.get(type(value), ""))
    if size is not None and len(data) != size:
        raise ConfigError(f"{name}: expected {size} bytes, found {len(data)}")
    return data


def checked_values(values: Iterable[T], name: str) -> Iterable[T]:
    """Several values; one alone is a mistake, since text and bytes are collections as well."""
    if isinstance(values, (bytes, str, bytearray, memoryview)):
        raise TypeError(f"{name}: expected a collection of values, found one; write [value]")
    return checked_type(values, Iterable, name)  # type: ignore[type-abstract]


def checked_int(value: object, name: str, bits: int = 16) -> int:
    """An unsigned integer of so many bits."""
    number = checked_type(value, int, name)
    if not 0 <= number < 1 << bits:
        raise ConfigError(f"{name}: expected 0 to {(1 << bits) - 1}, found {number}")
    return number


def checked_time(value: object, name: str) -> datetime:
    """A time with its zone."""
    time = checked_type(value, datetime, name)
    if time.utcoffset() is None:
        raise ConfigError(f"{name}: {time.isoformat()} has no time zone", advice="Give one, as datetime.now(UTC) does.")
    return time


def parse_tcp_address(
    address: str, *, least: int = 0, advice: str = "Write it as 0.0.0.0:8443 or [::]:8443."
) -> tuple[str, int]:
    """Read HOST:PORT or [ADDRESS]:PORT, the port from `least` to 65535; else a `ConfigError` with this advice."""
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    known = port.isascii() and port.isdecimal() and len(port) <= 5 and least <= int(port) <= 0xFFFF
    if not (known and _is_host(bare)):
        raise ConfigError(f"{address[:80]!r} is not HOST:PORT", advice=advice)
    return bare, int(port)


def _is_host(text: str) -> bool:
    """Whether it can be a name or an address; only an IPv6 address has a colon."""
    if ":" not in text:
        return text != "" and not any(char.isspace() or char in "[]/@" for char in text)
    with suppress(ValueError):
        return ip_address(text).version == 6
    return False


def parse_http_url(url: str, what: str, *, advice: str = "Write https://HOST:PORT.") -> SplitResult:
    """Split an http or https URL; a `ConfigError` if it names no host or an impossible port."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    shown = re.sub("//[^/]*@", "//", url)  # without the user and password
    raise ConfigError(f"{shown[:200]!r} is not the URL of {what}", advice=advice)


def on_this_machine(host: str) -> bool:
    """Whether a host of a URL is this machine: localhost, or an address of its loopback."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def explain_settings(error: msgspec.ValidationError, kind: type, named: Callable[[str], str] = str) -> str:
    """What is wrong with settings of this type, after its place, as in `parts[1].level: Expected …`.

    A name or value that is not known comes with those that are, and the nearest. `kind` is the msgspec structure into
    which they were read; `named` makes of a field what its writer calls it, such as an option or a variable.
    """
    import difflib  # here: settings are nearly always right

    found = re.fullmatch(r"(.*) - at `\$(?:\.(\w+))?([^`]*)`", str(error), re.DOTALL)
    message, field, rest = found.groups() if found else (str(error), None, "")
    place = (named(field) if field else "") + rest
    unknown = re.fullmatch(r"(?:Invalid enum value|Object contains unknown field) (['\"`])(.*)\1", message, re.DOTALL)
    if unknown is not None:
        path = re.findall(r"\.(\w+)|\[[^]]*\]", f".{field}{rest}" if field else rest)
        known = _known(msgspec.inspect.type_info(kind), path)
        near = difflib.get_close_matches(unknown[2], known, 1)
        if known and not (near and message.startswith("Object")):
            message += f"; known are {', '.join(known)}"
        if near:
            message += f"; did you mean {near[0]!r}?"
    return f"{place}: {message}" if place else message


def _known(found: msgspec.inspect.Type, path: list[str]) -> list[str]:
    """The fields or values of the type at a path: names of fields, empty for the element of a list or mapping."""
    if isinstance(found, msgspec.inspect.Metadata):
        return _known(found.type, path)
    if isinstance(found, msgspec.inspect.UnionType):
        return next((known for each in found.types if (known := _known(each, path))), [])
    if isinstance(found, msgspec.inspect.StructType):
        fields = {field.encode_name: field.type for field in found.fields}
        return _known(fields[path[0]], path[1:]) if path and path[0] in fields else [] if path else list(fields)
    if path and isinstance(found, msgspec.inspect.DictType):
        return _known(found.value_type, path[1:])
    if path and isinstance(found, (msgspec.inspect.ListType, msgspec.inspect.VarTupleType)):
        return _known(found.item_type, path[1:])
    if isinstance(found, msgspec.inspect.LiteralType):
        return [str(value) for value in found.values]
    return [str(each.value) for each in found.cls] if isinstance(found, msgspec.inspect.EnumType) else []


# Bytes written as text: byte order marks and UTF-16, base64 in its four spellings, members of JSON.

_DIGITS = f"{string.ascii_letters}{string.digits}+/-_"


def without_bom(data: bytes) -> bytes:
    """Text as UTF-8 without a byte order mark; UTF-16 with one is converted. Other bytes stay as they are."""
    if data.startswith(codecs.BOM_UTF8):
        return data[len(codecs.BOM_UTF8) :]
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16").encode()
        except UnicodeError:
            return data
    return data


def encode_base64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515, section 2)."""
    written = binascii.b2a_base64(data, newline=False)
    return written.replace(b"+", b"-").replace(b"/", b"_").rstrip(b"=").decode()


def decode_base64(text: str) -> bytes:
    """Base64 or base64url, padded or not: tools and clients of attestation services write all four.

    Raises:
        ValueError: other characters, or a length that no bytes have.
    """
    digits = text.rstrip("=")
    # msgspec's decoder takes exactly the padded standard form, in a third of the time of binascii's.
    standard = digits.replace("-", "+").replace("_", "/") + "=" * (-len(digits) % 4)
    try:
        if len(text) - len(digits) <= 2:
            return msgspec.convert(standard, bytes)
    except (msgspec.ValidationError, UnicodeEncodeError):
        pass
    if wrong := digits.strip(_DIGITS) or text[len(digits) + 2 :]:
        raise ValueError(f"holds characters that base64 does not have, first {wrong[0]!r}")
    raise ValueError(f"is not base64: no bytes are written with {len(digits)} digits")


def members_once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object for `json.loads(object_pairs_hook=…)`, in which no member stands twice: readers differ in which counts.

    Raises:
        ValueError: a member stands twice.
    """
    found: dict[str, Any] = {}
    for name, value in members:
        if name in found:
            raise ValueError(f"{name[:40]!r} stands twice in one object")
        found[name] = value
    return found


def check_members_once(data: bytes | str) -> None:
    """Refuse JSON in which a member stands twice: msgspec takes the last of them, other readers the first.

    Raises:
        ValueError: a member stands twice.
    """
    json.loads(data, object_pairs_hook=members_once)


def decode_json(
    data: bytes | str,
    decoder: msgspec.json.Decoder[T],
    structure: str,
    field: str = "",
    *,
    once: bool = False,
    problem: str = "not the documented JSON",
) -> T:
    """JSON as its decoder reads it; anything else is a `FormatError`. `once` refuses a member that stands twice."""
    try:
        found = decoder.decode(data)
        if once:
            check_members_once(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"{problem}: {error}", structure=structure, field=field) from error
    return found
