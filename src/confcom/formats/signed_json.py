"""Intel's signed JSON: `{"NAME":{…},"signature":"…"}`, where the signature is over the exact bytes of the inner object.

Inner objects are never written again: order, white space and number forms belong to the signed bytes (dcap.md §3.1).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from confcom.errors import FormatError

MAX_SIGNED_JSON = 1 << 20
"""Bytes. Real documents take 1 to 15 kB; the limit bounds what a hostile source can make us parse."""

# JSON has no bytes, so they come as hexadecimal digits of either case, which Intel mixes.
Hex2 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{4}\Z")]
Hex4 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{8}\Z")]
Hex6 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{12}\Z")]
Hex8 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{16}\Z")]
Hex16 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{32}\Z")]
Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{64}\Z")]
Hex48 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{96}\Z")]
HexSignature = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{128}\Z")]

# RFC 3339 knows many spellings of one time; Intel writes only this one, and its library takes no other.
DATE = r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z"
Date = Annotated[str, msgspec.Meta(pattern=DATE)]

U8 = Annotated[int, msgspec.Meta(ge=0, le=0xFF)]
U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]

T = TypeVar("T")


class Versioned(Protocol):
    """The content of a signed object, which states its version."""

    version: int


V = TypeVar("V", bound=Versioned)

_DECODERS: dict[type[Any], msgspec.json.Decoder[Any]] = {}
_ENCODER = msgspec.json.Encoder()


def prepare(*kinds: type[Any]) -> None:
    """Make the decoders of these types at import: msgspec 0.22 crashes when several threads make it do so at once."""
    _DECODERS.update((kind, msgspec.json.Decoder(kind)) for kind in kinds)


def decode(data: bytes, kind: type[T], structure: str) -> T:
    """Read JSON into a `msgspec.Struct` that was prepared; what is missing or of another type is named by its path."""
    if len(data) > MAX_SIGNED_JSON:
        raise FormatError(f"{len(data)} bytes are over the limit {MAX_SIGNED_JSON}", structure=structure, field="")
    try:
        # Buffers of Intel's libraries end with a NUL that is counted in their size.
        found: T = _DECODERS[kind].decode(data.removesuffix(b"\0"))
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise FormatError(_plain(message), structure=structure, field=path.strip("`.") or _missing(message)) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"not JSON: {error}", structure=structure, field="") from error
    return found


def decode_content(body: bytes, kinds: Mapping[int, type[V]], structure: str) -> V:
    """Read the content of a signed object by its version; it must have one meaning (`check_json`)."""
    found = _newest(body, kinds, structure)
    if found is None:
        version = decode(body, _Version, structure).version
        if version not in kinds:
            known = " and ".join(map(str, kinds))
            raise FormatError(f"is {version}, known is {known}", structure=structure, field="version")
        found = decode(body, kinds[version], structure)
    # What Intel writes is what `msgspec` writes of the same content: each key once, in the order of the struct.
    if _ENCODER.encode(found) != body:
        check_json(body, structure)
    return found


def _newest(body: bytes, kinds: Mapping[int, type[V]], structure: str) -> V | None:
    """The content if it is of the newest version, as it nearly always is: so it is read once."""
    newest = max(kinds)
    try:
        found = decode(body, kinds[newest], structure)
    except FormatError:
        return None
    return found if found.version == newest else None


class _Version(msgspec.Struct):
    version: int


def check_json(data: bytes, structure: str) -> Any:  # noqa: ANN401 - whatever the JSON says
    """Read JSON that has one meaning; a `FormatError` where readers differ, at whatever depth.

    A key twice in one object (some take the first, some the last), also in another case or with escapes; -0, NaN and
    numbers without bounds; text that is not Unicode. The caller bounds the length.
    """
    try:
        found = _STRICT.decode(data.removesuffix(b"\0").decode())
        if b"\\u" in data:
            json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair fails here
    except _Ambiguous as error:
        raise FormatError(error.message, structure=structure, field=error.field) from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}", structure=structure, field="") from error
    return found


class _Ambiguous(Exception):
    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.message, self.field = message, field


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(pairs) > 1 and len(set(map(str.lower, found))) != len(pairs):
        (twice, _), *_ = Counter(key.lower() for key, _ in pairs).most_common(1)
        raise _Ambiguous("stands twice in one object", next(key for key, _ in pairs if key.lower() == twice)[:100])
    return found


def _integer(text: str) -> int:
    if text == "-0":
        raise _Ambiguous("-0 is not a number here", "")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Ambiguous(f"{text[:20]} is too large", "")
    return number


def _constant(text: str) -> Any:  # noqa: ANN401 - it never returns
    raise _Ambiguous(f"{text} is not JSON", "")


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _plain(message: str) -> str:
    if "matching regex" not in message:
        return message
    digits = re.search(r"A-Fa-f\]\{(\d+)\}", message)
    return f"is not {digits[1]} hexadecimal digits" if digits else "is not a time of the form YYYY-MM-DDThh:mm:ssZ"


def _missing(message: str) -> str:
    # At the top level msgspec gives no path, but names the field that it misses.
    return message.rpartition("required field `")[2].rstrip("`") if "required field" in message else ""


class SignedDocument(Protocol):
    """The JSON around a signed object; `signature` in hexadecimal digits."""

    body: msgspec.Raw
    signature: str


def split(data: bytes, kind: type[SignedDocument], structure: str, name: str) -> tuple[bytes, bytes]:
    """The inner object, from `{` to its matching `}`, as it was transmitted; and its signature r‖s (64 bytes).

    What stands around it must have one meaning; its own content is checked when it is read (`decode_content`). With
    nothing but the signature around it, as Intel writes it, it has. `kind` was prepared, and calls the object `name`.
    """
    document = decode(data, kind, structure)
    body = bytes(document.body)
    if not body.startswith(b"{"):
        raise FormatError("is not an object", structure=structure, field=name)
    if data != b'{"%s":%s,"signature":"%s"}' % (name.encode(), body, document.signature.encode()):
        check_json(data.replace(body, b"{}", 1), structure)
    return body, bytes.fromhex(document.signature)


def join(body: bytes, signature: bytes, name: str) -> bytes:
    """The document around the exact bytes of its body."""
    return b'{"%s":%s,"signature":"%s"}' % (name.encode(), body, signature.hex().encode())


def parse_date(text: str, structure: str, field: str) -> datetime:
    """A time in UTC from `YYYY-MM-DDThh:mm:ssZ`."""
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise FormatError(f"no such time: {text}", structure=structure, field=field) from error


prepare(_Version)
