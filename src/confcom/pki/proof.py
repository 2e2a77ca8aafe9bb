"""What was proven: ECDSA signatures, good ones kept for their exact bytes; values that only a verification makes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields
from threading import Lock
from typing import Any, ClassVar, Generic, NoReturn, Self, TypeAlias, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from confcom.errors import SignatureError
from confcom.formats.der import INTEGER, SEQUENCE
from confcom.pki.der import P256, Certificate

# Values that only a verification makes, such as a verified quote.
#
# The constructor, `dataclasses.replace` and `__setstate__` refuse. A copy is the value itself. A pickle holds what was
# proven and restores it, so that results travel between the processes of one program; as with every pickle, loading one
# from an untrusted source runs its code. Nothing in Python stops code that forges: the guard is against mistakes.

PROOF = object()
"""What a verification hands to the constructor of what it proved."""


class Proof:
    """Base of `sealed` frozen dataclasses with `proof: InitVar[object] = None` last; `made_by` names their maker."""

    __slots__ = ()
    made_by: ClassVar[str]

    def __post_init__(self, proof: object) -> None:
        if proof is not PROOF:
            raise TypeError(f"a {type(self).__name__} is made by {self.made_by} alone")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.init}  # type: ignore[arg-type]
        return _restore, (type(self), values)


Kind = TypeVar("Kind", bound=type[Proof])


def sealed(kind: Kind) -> Kind:
    """Decorate a dataclass of proof: `dataclass` gives one with slots a `__setstate__` that would fill any instance."""
    kind.__getstate__ = kind.__setstate__ = _refuse  # type: ignore[method-assign,assignment,attr-defined]
    return kind


def _refuse(proof: Proof, *_: object) -> NoReturn:
    raise TypeError(f"a {type(proof).__name__} is made by {proof.made_by} alone")


def _restore(kind: Callable[..., Proof], values: dict[str, Any]) -> Proof:
    return kind(**values, proof=PROOF)


# What was found out before about exact bytes, bounded: certificates that were read, signatures that were good.

V = TypeVar("V")


class _Entry(msgspec.Struct, Generic[V]):
    value: V
    exact: bytes
    wrapping: bytes


class Memory(Generic[V]):
    """Values by what they are about; the least recently used goes first. Safe to use from several threads.

    `statement` is the digest of what was signed, without the signatures: ECDSA has two of each, so any client can make
    other bytes that verify and say the same. These replace one another, and a value is given out for its `exact`
    bytes (or their digest) alone. `wrapping` is the digest of the bytes as they came: one for each entry, the latest,
    so that the usual ones need not be decoded. So variants of one genuine document neither fill the memory nor push
    others out of it.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[bytes, _Entry[V]] = OrderedDict()
        self._by_wrapping: dict[bytes, bytes] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, statement: bytes) -> bool:
        return statement in self._entries

    def get(self, statement: bytes, exact: bytes = b"", *, wrapping: bytes = b"") -> V | None:
        """What is known of these exact bytes; from now on also in this wrapping."""
        with self._lock:
            entry = self._entries.get(statement)
            if entry is None or entry.exact != exact:
                return None
            self._entries.move_to_end(statement)
            if wrapping and wrapping != entry.wrapping:
                self._by_wrapping.pop(entry.wrapping, None)
                entry.wrapping = wrapping
                self._by_wrapping[wrapping] = statement
            return entry.value

    def get_wrapped(self, wrapping: bytes) -> V | None:
        """What is known of the content in its latest wrapping."""
        with self._lock:
            statement = self._by_wrapping.get(wrapping)
            if statement is None:
                return None
            self._entries.move_to_end(statement)
            return self._entries[statement].value

    def add(self, statement: bytes, value: V, *, exact: bytes = b"", wrapping: bytes = b"") -> None:
        """Keep a value, in the place of what was known of the same statement."""
        with self._lock:
            if statement in self._entries:
                self._forget(statement)
            self._entries[statement] = _Entry(value, exact, wrapping)
            if wrapping:
                self._by_wrapping[wrapping] = statement
            while len(self._entries) > self._size:
                self._forget(next(iter(self._entries)))

    def _forget(self, statement: bytes) -> None:
        self._by_wrapping.pop(self._entries.pop(statement).wrapping, None)


# ECDSA on P-256 with SHA-256, signatures and keys as they stand in quotes: raw big-endian r‖s and x‖y.

COORDINATE_SIZE = 32
"""Bytes of x, y, r and s."""

Known: TypeAlias = Memory[bool]
"""Remembers good signatures for their exact bytes, by key and digest of what is signed.

Who is trusted, what is revoked and what has expired is not remembered here, so it is judged each time.
"""

_SHA256 = ec.ECDSA(Prehashed(hashes.SHA256()))


def load_public_key(raw: bytes, *, step: str = "", what: str = "public key") -> ec.EllipticCurvePublicKey:
    """A P-256 key from x‖y, 64 bytes big-endian; a point off the curve is a `SignatureError`."""
    if len(raw) != 2 * COORDINATE_SIZE:
        raise SignatureError(f"{what} is not 64 bytes", step=step, expected="64 bytes", found=f"{len(raw)} bytes")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(P256, b"\x04" + raw)
    except ValueError as error:
        raise SignatureError(
            f"{what} is not a point on P-256", step=step, expected="a point on the curve", found=raw.hex()
        ) from error


def verify_ecdsa(
    key: ec.EllipticCurvePublicKey | Certificate,
    signature: bytes,
    digest: bytes,
    *,
    step: str,
    what: str,
    known: Known | None = None,
) -> None:
    """Check r‖s (64 bytes, big-endian) over the message with this SHA-256 (32 bytes); raises `SignatureError`."""
    if len(signature) != 2 * COORDINATE_SIZE:
        raise SignatureError(
            f"signature of {what} is not 64 bytes", step=step, expected="64 bytes", found=f"{len(signature)} bytes"
        )
    content = _integer(signature[:COORDINATE_SIZE]) + _integer(signature[COORDINATE_SIZE:])
    if not is_good(key, bytes((SEQUENCE, len(content))) + content, digest, known):
        raise SignatureError(
            f"signature of {what} does not match", step=step, expected="a signature by the key", found=signature.hex()
        )


def _integer(number: bytes) -> bytes:
    """The DER of an INTEGER, not negative: `encode_dss_signature` takes twice as long, with its first call 20 µs."""
    content = number.lstrip(b"\0")
    padding = b"" if content and content[0] < 0x80 else b"\0"
    return bytes((INTEGER, len(padding + content))) + padding + content


def is_good(
    key: ec.EllipticCurvePublicKey | Certificate, signature: bytes, digest: bytes, known: Known | None = None
) -> bool:
    """Whether the key, or that of the certificate, made the signature (DER) over the message with this SHA-256.

    Signatures by keys of certificates are looked up in `known`, and kept there if they are good.
    """
    statement = b""
    if isinstance(key, Certificate):
        statement, key = key.point + digest, key.public_key
    if known is not None and known.get(statement, signature):
        return True
    try:
        key.verify(signature, digest, _SHA256)
    except InvalidSignature:
        return False
    if known is not None and statement:
        known.add(statement, True, exact=signature)
    return True
