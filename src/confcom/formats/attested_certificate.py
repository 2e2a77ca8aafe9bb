"""Certificates that carry evidence for their own key (attested TLS), in the formats that are in use; requests for one.

| format | extension | content |
|---|---|---|
| interoperable RA-TLS | 2.23.133.5.4.9 (DICE) | CBOR: tag 60000, array of quote and claims, byte strings both |
| Gramine before 1.8 | 0.6.9.42.840.113741.1337.6: its tag and length are part of it twice | quote |
| Intel's SDK before 2.22 | 1.2.840.113741.1.13.1, the OID of the PCK extension | quote |
| Open Enclave, EGo | 1.3.6.1.4.1.311.105.1, formerly 1.2.840.113556.10.1.1 | report |
| Azure Attestation | 1.2.840.113556.10.1.1 | quote in an OCTET STRING; a number under 1.2.840.113556.10.1.2 |
| Open Enclave | 1.3.6.1.4.1.311.105.2, formerly 1.2.840.113556.10.1.2 | evidence |

Sources: CCC-Attestation/interoperable-ra-tls; Gramine's `ra_tls.h`; Intel SDK's `sgx_ttls`; Open Enclave's
`attest_plugin` and `tls_cert`. A certification request (PKCS #10) carries interoperable RA-TLS alone, as an extension
that it asks for. Nothing is verified here: which hash binds the key is in `appraisal/peer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Self

from confcom.errors import FormatError
from confcom.formats import der
from confcom.formats.codec import Cursor
from confcom.formats.der import CertificateParts, RequestParts
from confcom.formats.evidence import EvidenceFile, EvidenceKind
from confcom.formats.pck_extension import PCK_EXTENSION_OID
from confcom.formats.quote import MAX_QUOTE, Quote

MAX_ATTESTED_CERTIFICATE = 96 * 1024
"""Bytes of DER. Gramine's take 10 kB; TLS stacks refuse extensions of more than about 100 kB."""
MAX_CLAIMS = 32
MAX_NONCE = 1024
STRUCTURE = "attested certificate"

DICE_EVIDENCE = "2.23.133.5.4.9"
GRAMINE_EVIDENCE = "0.6.9.42.840.113741.1337.6"
_RA_TLS_TAG = 60000
_HASHES = {1: ("sha256", 32), 7: ("sha384", 48), 8: ("sha512", 64)}
"""Names and sizes by the numbers of IANA's registry of named information hash algorithms."""


class CertificateFormat(StrEnum):
    """The way in which a certificate carries its evidence."""

    RA_TLS = "ra-tls"
    GRAMINE = "gramine-legacy"
    INTEL = "intel-legacy"
    OE_REPORT = "open-enclave-report"
    OE_EVIDENCE = "open-enclave-evidence"


EVIDENCE_EXTENSIONS = {
    der.oid(text): kind
    for text, kind in (
        (DICE_EVIDENCE, CertificateFormat.RA_TLS),
        (GRAMINE_EVIDENCE, CertificateFormat.GRAMINE),
        (PCK_EXTENSION_OID, CertificateFormat.INTEL),
        ("1.3.6.1.4.1.311.105.1", CertificateFormat.OE_REPORT),
        ("1.2.840.113556.10.1.1", CertificateFormat.OE_REPORT),
        ("1.3.6.1.4.1.311.105.2", CertificateFormat.OE_EVIDENCE),
        ("1.2.840.113556.10.1.2", CertificateFormat.OE_EVIDENCE),
    )
}
# Generators write these beside the DICE extension, for verifiers that know nothing newer.
_BESIDE_DICE = {CertificateFormat.GRAMINE, CertificateFormat.INTEL}


@dataclass(frozen=True, slots=True)
class RaTlsEvidence:
    """The content of the DICE extension: `claims` as they were sent, and what stands in them.

    `key_hash` is the digest of the key (SubjectPublicKeyInfo) by `hash_name`, as hashlib calls it.
    """

    quote: bytes
    claims: bytes
    hash_name: str
    key_hash: bytes
    nonce: bytes | None
    further: Mapping[str, bytes]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the CBOR; the whole of it, definite and shortest lengths only."""
        cursor = Cursor(data, "RA-TLS evidence")
        if _head(cursor, 6, "tag") != _RA_TLS_TAG or _head(cursor, 4, "evidence") != 2:
            raise cursor.error(f"is not tag {_RA_TLS_TAG} with an array of two members", "evidence", 0)
        quote = cursor.take(_head(cursor, 2, "quote"), "quote")
        claims = cursor.take(_head(cursor, 2, "claims"), "claims")
        cursor.finish()
        found = _read_claims(claims)
        if "pubkey-hash" not in found:
            raise cursor.error("is missing: nothing binds the key", "claims.pubkey-hash")
        hash_name, key_hash = _read_key_hash(found.pop("pubkey-hash"))
        nonce = found.pop("nonce", None)
        if nonce is not None and len(nonce) > MAX_NONCE:
            raise cursor.error(f"{len(nonce)} bytes are over the limit {MAX_NONCE}", "claims.nonce")
        return cls(quote, claims, hash_name, key_hash, nonce, found)


def _read_claims(claims: bytes) -> dict[str, bytes]:
    cursor = Cursor(claims, "RA-TLS claims")
    count = _head(cursor, 5, "claims")
    if count > MAX_CLAIMS:
        raise cursor.error(f"{count} are over the limit {MAX_CLAIMS}", "claims", 0)
    found: dict[str, bytes] = {}
    for index in range(count):
        start = cursor.offset
        try:
            name = cursor.take(_head(cursor, 3, f"claims[{index}].name"), f"claims[{index}].name").decode()
        except UnicodeDecodeError as error:
            raise cursor.error("is not UTF-8", f"claims[{index}].name", start) from error
        if name in found:
            raise cursor.error(f"{name!r} stands twice", "claims", start)
        found[name] = cursor.take(_head(cursor, 2, f"claims[{index}].value"), f"claims[{index}].value")
    cursor.finish()
    return found


def _read_key_hash(value: bytes) -> tuple[str, bytes]:
    cursor = Cursor(value, "RA-TLS pubkey-hash")
    if _head(cursor, 4, "array") != 2:
        raise cursor.error("has other members than algorithm and hash", "array", 0)
    algorithm = _head(cursor, 0, "algorithm")
    if algorithm not in _HASHES:
        raise cursor.error(f"{algorithm} is not SHA-256 (1), SHA-384 (7) or SHA-512 (8)", "algorithm")
    name, size = _HASHES[algorithm]
    digest = cursor.take(_head(cursor, 2, "hash"), "hash")
    cursor.finish()
    if len(digest) != size:
        raise cursor.error(f"is {size} bytes for {name}, found {len(digest)}", "hash")
    return name, digest


def _head(cursor: Cursor, major: int, field: str) -> int:
    """The argument of a CBOR item of this major type (RFC 8949 §3), in its shortest form."""
    start = cursor.offset
    first = cursor.take(1, field)[0]
    argument = first & 0x1F
    if first >> 5 != major or argument > 27:
        raise cursor.error(f"is CBOR of another type, {first:#04x}", field, start)
    if argument < 24:
        return argument
    size = 1 << argument - 24
    value = int.from_bytes(cursor.take(size, field), "big")
    if value < (24 if size == 1 else 1 << 4 * size):
        raise cursor.error("has a length that is not in its shortest form", field, start)
    return value


def write_claims(key_hash: bytes, nonce: bytes | None = None, **further: bytes) -> bytes:
    """The claims over a key: the SHA-256 of its SubjectPublicKeyInfo, a nonce of at most 1,024 bytes, and `further`.

    A quote vouches for them by their SHA-256 in its report data.
    """
    found = {"pubkey-hash": _item(4, 2) + _item(0, 1) + _bytes(key_hash)} | further
    if nonce is not None:
        found["nonce"] = nonce
    pairs = (_item(3, len(name)) + name.encode() + _bytes(value) for name, value in found.items())
    return _item(5, len(found)) + b"".join(pairs)


def write_ra_tls(quote: bytes, claims: bytes) -> bytes:
    """The content of the DICE extension, as `RaTlsEvidence.parse` reads it."""
    return _item(6, _RA_TLS_TAG) + _item(4, 2) + _bytes(quote) + _bytes(claims)


def _bytes(data: bytes) -> bytes:
    return _item(2, len(data)) + data


def _item(major: int, argument: int) -> bytes:
    """The head of a CBOR item (RFC 8949 §3), in its shortest form; arguments below 2³²."""
    if argument < 24:
        return bytes((major << 5 | argument,))
    size = 1 if argument < 1 << 8 else 2 if argument < 1 << 16 else 4
    return bytes((major << 5 | 23 + size.bit_length(),)) + argument.to_bytes(size, "big")


@dataclass(frozen=True, slots=True)
class AttestedCertificate:
    """A certificate with its evidence. `parts.public_key` is the SubjectPublicKeyInfo as it was received.

    `ra_tls` is there for the DICE extension alone. `unused` counts evidence beside it that is not looked at.
    """

    der: bytes
    parts: CertificateParts
    format: CertificateFormat
    evidence: EvidenceFile
    ra_tls: RaTlsEvidence | None = None
    unused: int = 0
    not_before: datetime = field(init=False)
    not_after: datetime = field(init=False)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "not_before", der.time(*self.parts.not_before[:2]))
            object.__setattr__(self, "not_after", der.time(*self.parts.not_after[:2]))
        except der.DerError as error:
            raise FormatError(str(error), structure=STRUCTURE, field="validity") from error

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read DER. Exactly one evidence counts: the DICE extension where it is there, whatever is wrong with it."""
        if len(data) > MAX_ATTESTED_CERTIFICATE:
            message = f"{len(data)} bytes are over the limit {MAX_ATTESTED_CERTIFICATE}"
            raise FormatError(message, structure=STRUCTURE, field="")
        try:
            parts = der.read_certificate_parts(data)
        except der.DerError as error:
            raise FormatError(f"not an X.509 certificate: {error}", structure=STRUCTURE, field="") from error
        found = evidence_extensions(parts)
        kinds = [kind for kind, _ in found]
        if CertificateFormat.RA_TLS in kinds:
            kinds = [kind for kind in kinds if kind not in _BESIDE_DICE]
        if len(kinds) != 1:
            raise FormatError(
                f"carries evidence in {len(kinds)} ways: {', '.join(kinds)}" if kinds else "carries no evidence",
                structure=STRUCTURE,
                field="extensions",
                advice="It must hold exactly one quote for its key: an RA-TLS, Gramine, Intel SDK or Open Enclave one.",
            )
        value = next(value for kind, value in found if kind is kinds[0])
        ra_tls = RaTlsEvidence.parse(value) if kinds[0] is CertificateFormat.RA_TLS else None
        evidence = _evidence(kinds[0], value if ra_tls is None else ra_tls.quote)
        return cls(data, parts, kinds[0], evidence, ra_tls, len(found) - 1)

    @property
    def quote(self) -> Quote:
        """The quote in the evidence."""
        return self.evidence.quote

    @property
    def public_key(self) -> bytes:
        """The key: SubjectPublicKeyInfo, DER."""
        found: bytes = self.parts.public_key
        return found

    def __bytes__(self) -> bytes:
        return self.der


@dataclass(frozen=True, slots=True)
class AttestedRequest:
    """A certification request with evidence for its key, as interoperable RA-TLS."""

    parts: RequestParts
    ra_tls: RaTlsEvidence
    evidence: EvidenceFile
    format: CertificateFormat = CertificateFormat.RA_TLS

    @classmethod
    def of(cls, parts: RequestParts) -> Self | None:
        """Read the evidence among the extensions that are asked for; None if there is none."""
        _, value = parts.extensions.get(der.oid(DICE_EVIDENCE), (False, None))
        if value is None:
            return None
        ra_tls = RaTlsEvidence.parse(value)
        return cls(parts, ra_tls, _evidence(CertificateFormat.RA_TLS, ra_tls.quote))

    @property
    def quote(self) -> Quote:
        """The quote in the evidence."""
        return self.evidence.quote

    @property
    def public_key(self) -> bytes:
        """The key: SubjectPublicKeyInfo, DER."""
        found: bytes = self.parts.public_key
        return found


def evidence_extensions(parts: CertificateParts) -> list[tuple[CertificateFormat, bytes]]:
    """The extensions that carry evidence, in their order.

    Two have other content elsewhere: PCK certificates a SEQUENCE under Intel's OID, Azure Attestation's a number.
    """
    return [
        (EVIDENCE_EXTENSIONS[identifier], value)
        for identifier, (_, value) in parts.extensions.items()
        if identifier in EVIDENCE_EXTENSIONS and (EVIDENCE_EXTENSIONS[identifier], value[:1]) not in _OTHER_CONTENT
    ]


_OTHER_CONTENT = {
    (CertificateFormat.INTEL, bytes((der.SEQUENCE,))),
    (CertificateFormat.OE_EVIDENCE, bytes((der.INTEGER,))),
}


def unwrapped(content: bytes) -> bytes:
    """The content of an extension without the OCTET STRING that Azure Attestation puts around it."""
    try:
        return der.content_of(content, der.OCTET_STRING, "extension")
    except der.DerError:
        return content


def _evidence(kind: CertificateFormat, content: bytes) -> EvidenceFile:
    """The evidence of an extension; none of the formats has hexadecimal digits or base64 in it."""
    if len(content) > MAX_QUOTE:
        raise FormatError(f"{len(content)} bytes are over the limit {MAX_QUOTE}", structure=STRUCTURE, field=kind.value)
    allowed = {CertificateFormat.OE_EVIDENCE: {EvidenceKind.OE_EVIDENCE}}
    allowed[CertificateFormat.OE_REPORT] = {EvidenceKind.OE_REPORT, EvidenceKind.QUOTE}
    found = EvidenceFile.of_binary(unwrapped(content) if kind is CertificateFormat.OE_REPORT else content)
    if found.kind not in allowed.get(kind, {EvidenceKind.QUOTE}):
        raise FormatError(f"holds {found.kind} and should not", structure=STRUCTURE, field=kind.value)
    if any(found.quote.trailing):
        raise FormatError("holds other bytes than zeros after its quote", structure=STRUCTURE, field=kind.value)
    return found
