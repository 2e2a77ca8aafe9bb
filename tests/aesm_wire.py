"""The AESM wire written by hand, so that tests do not check the codec against itself."""

from __future__ import annotations

from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID

KEY_ID = bytes(ECDSA_P256_KEY_ID)


def varint(value: int) -> bytes:
    """Base-128, least significant group first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    """One protobuf field: an integer as varint, bytes with their length."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def message(number: int, *fields: tuple[int, int | bytes]) -> bytes:
    """A request or response with one sub-message."""
    return field(number, b"".join(field(*pair) for pair in fields))


def frame(payload: bytes) -> bytes:
    """A message behind its length."""
    return len(payload).to_bytes(4, "little") + payload


def request(number: int, *fields: tuple[int, int | bytes]) -> bytes:
    """A whole request frame."""
    return frame(message(number, *fields))


def read_fields(data: bytes) -> dict[int, int | bytes]:
    """Fields of a message; a repeated one keeps its last value."""
    found: dict[int, int | bytes] = {}
    while data:
        tag, data = read_varint(data)
        value, data = read_varint(data)
        if tag & 7 == 2:
            found[tag >> 3], data = data[:value], data[value:]
        else:
            assert tag & 7 == 0, f"wire type {tag & 7}"
            found[tag >> 3] = value
    return found


def read_varint(data: bytes) -> tuple[int, bytes]:
    """A varint and what follows."""
    value = shift = 0
    for at, byte in enumerate(data):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, data[at + 1 :]
    raise AssertionError("unfinished varint")


def read_response(data: bytes, number: int) -> dict[int, int | bytes]:
    """Fields of the one response in a frame; nothing may follow it, and no other response be in it."""
    assert int.from_bytes(data[:4], "little") == len(data) - 4
    envelope = read_fields(data[4:])
    assert list(envelope) == [number]
    inner = envelope[number]
    assert isinstance(inner, bytes)
    return read_fields(inner)
