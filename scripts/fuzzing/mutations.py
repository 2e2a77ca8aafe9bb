"""Mutations of encodings: of bytes, of the lengths in them, and of the tokens of JSON and PEM."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

MAX_INPUT = 256 * 1024
"""Bytes. Mutations do not grow an input beyond it; every parser's own limit but that of CRLs lies below."""

JSON_TOKENS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"null", b"true", b"-1", b"0", b"1.5", b"1e400", b"256", b"65536",
    b"18446744073709551616", b'""', b"{}", b"[]", b'"\\u0000"', b'"\\ud800"', b"\xff", b"\xef\xbb\xbf", b"NaN",
    b"[" * 5000, b'{"a":' * 5000, b'"9999-99-99T99:99:99Z"', b'"2026-02-30T00:00:00Z"',
)  # fmt: skip
PEM_TOKENS = (
    b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n", b"-----BEGIN X509 CRL-----\n", b"\n", b"\r\n",
    b"=", b"\0", b" ", b"-----", b"MIIB", b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
)  # fmt: skip
_WORDS = re.compile(rb'"[^"\\]{1,60}"|-?\d+|-----[A-Z0-9 ]+-----|\w+|[{}\[\],:]')

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


def flip_bit(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """One bit of one byte."""
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def set_bytes(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """One to four bytes replaced."""
    at, size = rng.randrange(len(data)), rng.randint(1, 4)
    value = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80", rng.randbytes(1))) * size
    return data[:at] + value + data[at + size :]


def edit_length(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """An integer of 2, 4 or 8 bytes in either byte order: an extreme, or its neighbour."""
    size, at = rng.choice((2, 4, 8)), rng.randrange(len(data))
    order: Literal["little", "big"] = "big" if rng.random() < 0.3 else "little"
    present, end = int.from_bytes(data[at : at + size], order), 1 << 8 * size
    value = rng.choice((0, 1, end - 1, end // 2, end // 2 - 1, present + 1, present - 1, len(data))) % end
    return data[:at] + value.to_bytes(size, order) + data[at + size :]


def truncate(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Only the beginning, or now and then only the end."""
    at = rng.randrange(len(data))
    return data[at:] if rng.random() < 0.2 else data[:at]


def insert(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """A run of one byte, or random bytes, somewhere or at the end."""
    at = rng.randrange(len(data)) if rng.random() < 0.8 else len(data)
    size = rng.choice((1, 1, 2, 3, 4, 16, 64, 1000))
    return data[:at] + rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size))) + data[at:]


def delete(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """A piece taken out."""
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice((1, 1, 2, 4, 16, 64, 500)) :]


def duplicate(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """A piece repeated, or everything."""
    if rng.random() < 0.1:
        return data + data
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 20)) + data[end:]


def splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The beginning of one input and the end of another."""
    other = rng.choice(others)
    if not other:
        return data
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]


def tokens_of(data: bytes) -> list[tuple[int, int]]:
    """Where the tokens of a JSON or PEM text begin and end."""
    return [match.span() for match in _WORDS.finditer(data[:65536])]


def replace_token(alphabet: Sequence[bytes]) -> Mutation:
    """A token replaced by one of the alphabet, or one of the alphabet put before it."""

    def mutate(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
        found = tokens_of(data)
        if not found:
            return data + rng.choice(alphabet)
        start, end = rng.choice(found)
        return data[:start] + rng.choice(alphabet) + data[start if rng.random() < 0.2 else end :]

    return mutate


def swap_tokens(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Two tokens of the text change places, neighbours as often as any."""
    found = tokens_of(data)
    if len(found) < 2:
        return data
    (a, b), (c, d) = rng.choice(list(pairwise(found))) if rng.random() < 0.5 else sorted(rng.sample(found, 2))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


_BYTES: tuple[Mutation, ...] = (flip_bit, set_bytes, edit_length, truncate, insert, delete, duplicate, splice)
_TEXT: tuple[Mutation, ...] = (flip_bit, set_bytes, truncate, insert, delete, duplicate, splice)

MUTATIONS: dict[str, tuple[Mutation, ...]] = {
    "binary": (*_BYTES, edit_length, set_bytes),
    "json": (*_TEXT, *(replace_token(JSON_TOKENS), swap_tokens) * 4),
    "pem": (*_TEXT, *(replace_token(PEM_TOKENS), swap_tokens) * 3),
}
"""By the nature of a target's input."""


def mutate(rng: random.Random, pool: Sequence[bytes], nature: str) -> bytes:
    """An input of the pool after one to four mutations."""
    data = rng.choice(pool)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        if not data:
            return data
        data = rng.choice(MUTATIONS[nature])(rng, data, pool)[:MAX_INPUT]
    return data
