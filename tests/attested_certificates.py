"""Attested certificates of every known format, with quotes of the simulated world, made by the formats' own rules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from confcom.formats import der
from confcom.formats.evidence import FORMAT_SGX_ECDSA, OeEvidence, OeEvidenceHeader, OeReport, OeReportHeader
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.enclaves import td_report
from confcom.simulator.world import SimulatedWorld

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
DICE, GRAMINE, INTEL = "2.23.133.5.4.9", "0.6.9.42.840.113741.1337.6", "1.2.840.113741.1.13.1"
OE_REPORT, OE_EVIDENCE = "1.3.6.1.4.1.311.105.1", "1.3.6.1.4.1.311.105.2"
OLD_OE_REPORT, OLD_OE_EVIDENCE = "1.2.840.113556.10.1.1", "1.2.840.113556.10.1.2"
ECDSA_SHA256 = bytes.fromhex("06082a8648ce3d040302")


@cache
def world() -> SimulatedWorld:
    """One machine for all tests."""
    return SimulatedWorld.from_seed(b"seed of the attested certificates", now=NOW)


@cache
def key(number: int = 1) -> ec.EllipticCurvePrivateKey:
    """A key on P-256."""
    return ec.derive_private_key(number + 1000, ec.SECP256R1())


def spki(private: Any) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def pem(private: Any) -> bytes:
    """The key as Open Enclave hashes it: PEM and a NUL."""
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) + b"\0"


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@cache
def quote(report_data: bytes, name: str = "app", *, debug: bool = False) -> bytes:
    """A quote of an enclave with these first bytes of report data, then zeros."""
    declaration = EnclaveDeclaration.from_names(name, "vendor", isv_prod_id=3, isv_svn=2, debug=debug)
    target = world().platform.init_quote().target_info
    report = world().machine.launch(declaration).create_report(target, report_data.ljust(64, b"\0"))
    return world().platform.quote(report).quote


def td_quote(report_data: bytes) -> bytes:
    """A quote of a TD."""
    return world().platform.quote_td(td_report("app", report_data.ljust(64, b"\0")))


# CBOR, by hand: what is written is not what the reader under test thinks.


def head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes((major << 5 | value,))
    for more, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if value < 1 << 8 * size:
            return bytes((major << 5 | more,)) + value.to_bytes(size, "big")
    raise ValueError(value)


def bstr(data: bytes) -> bytes:
    return head(2, len(data)) + data


def text(name: str) -> bytes:
    return head(3, len(name.encode())) + name.encode()


def key_hash(public: bytes, algorithm: int = 1) -> bytes:
    name = {1: "sha256", 7: "sha384", 8: "sha512"}.get(algorithm, "sha256")
    return head(4, 2) + head(0, algorithm) + bstr(hashlib.new(name, public).digest())


def claims(*pairs: tuple[str, bytes]) -> bytes:
    return head(5, len(pairs)) + b"".join(text(name) + bstr(value) for name, value in pairs)


def ra_tls(quote_: bytes, claims_: bytes) -> bytes:
    return head(6, 60000) + head(4, 2) + bstr(quote_) + bstr(claims_)


def oe_report(quote_: bytes) -> bytes:
    return bytes(OeReport(OeReportHeader(1, 2, len(quote_)), quote_))


def oe_evidence(quote_: bytes, buffer: bytes) -> bytes:
    data = quote_ + buffer
    return bytes(OeEvidence(OeEvidenceHeader(3, FORMAT_SGX_ECDSA.bytes, bytes(4), len(data)), data))


@dataclass(frozen=True)
class Certificate:
    """What goes into a certificate; `build` signs it."""

    extensions: tuple[tuple[str, bytes], ...]
    key: Any = field(default_factory=key)
    signer: Any = None
    subject: str = "RATLS"
    issuer: str = "RATLS"
    not_before: datetime = NOW - DAY
    not_after: datetime = NOW + DAY
    critical: bool = False
    algorithm: Any = field(default_factory=SHA256)

    def build(self) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.issuer)]))
            .public_key(self.key.public_key())
            .serial_number(7)
            .not_valid_before(self.not_before)
            .not_valid_after(self.not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=False)
        )
        for oid, value in self.extensions:
            extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
            builder = builder.add_extension(extension, critical=self.critical)
        return builder.sign(self.signer or self.key, self.algorithm).public_bytes(Encoding.DER)


def resigned(certificate: bytes, change: Callable[[list[bytes]], None], private: Any = None) -> bytes:
    """The certificate with members of tbsCertificate changed in place, signed again."""
    outer = der.read_signed(certificate)
    members = [whole for _, _, whole in outer.members]
    change(members)
    content = der.write(der.SEQUENCE, *members)
    signature = (private or key()).sign(content, ec.ECDSA(SHA256()))
    return der.write(der.SEQUENCE, content, members[2], der.write(der.BIT_STRING, b"\0", signature))


def with_null_parameters(certificate: bytes) -> bytes:
    """As mbedTLS writes the algorithm, and so Gramine."""

    def change(members: list[bytes]) -> None:
        members[2] = der.write(der.SEQUENCE, ECDSA_SHA256, b"\x05\x00")

    return resigned(certificate, change)


def standard_claims(private: Any = None, *more: tuple[str, bytes]) -> bytes:
    return claims(("pubkey-hash", key_hash(spki(private or key()))), *more)


def dice(private: Any = None, *more: tuple[str, bytes]) -> tuple[str, bytes]:
    """The extension of interoperable RA-TLS."""
    found = standard_claims(private, *more)
    return DICE, ra_tls(quote(sha256(found)), found)


def every_format() -> dict[str, tuple[bytes, str, str]]:
    """By name: a certificate of the format, the name that the reader gives it, and the rule that binds the key."""
    key_digest, pem_digest, buffer = sha256(spki(key())), sha256(pem(key())), pem(key())
    p384 = ec.derive_private_key(77, ec.SECP384R1())
    big = claims(("pubkey-hash", key_hash(spki(p384), 7)))
    td = standard_claims()

    def one(oid: str, value: bytes) -> bytes:
        return Certificate(((oid, value),)).build()

    new = Certificate((dice(),)).build()
    return {
        "ra-tls": (new, "ra-tls", "SHA-256 of the claims"),
        "ra-tls, Gramine's": (
            with_null_parameters(Certificate((dice(), (GRAMINE, quote(key_digest)))).build()),
            "ra-tls",
            "SHA-256 of the claims",
        ),
        "ra-tls, Intel's": (
            Certificate((dice(), (INTEL, quote(sha256(standard_claims()))))).build(),
            "ra-tls",
            "SHA-256 of the claims",
        ),
        "ra-tls, P-384": (
            Certificate(((DICE, ra_tls(quote(sha256(big)), big)),), key=p384, algorithm=SHA384()).build(),
            "ra-tls",
            "SHA-256 of the claims",
        ),
        "ra-tls, TD": (one(DICE, ra_tls(td_quote(sha256(td)), td)), "ra-tls", "SHA-256 of the claims"),
        "ra-tls, TD of Intel's generator": (
            one(DICE, ra_tls(td_quote(hashlib.sha384(td).digest()), td)),
            "ra-tls",
            "SHA-384 of the claims",
        ),
        "gramine": (with_null_parameters(one(GRAMINE, quote(key_digest))), "gramine-legacy", "SHA-256 of the key"),
        "intel": (one(INTEL, quote(pem_digest)), "intel-legacy", "SHA-256 of the key in PEM"),
        "oe report": (one(OE_REPORT, oe_report(quote(pem_digest))), "open-enclave-report", "SHA-256 of the key in PEM"),
        "oe report, old": (
            one(OLD_OE_REPORT, oe_report(quote(pem_digest))),
            "open-enclave-report",
            "SHA-256 of the key in PEM",
        ),
        "maa": (
            Certificate(
                ((OLD_OE_REPORT, der.write(der.OCTET_STRING, quote(pem_digest))), (OLD_OE_EVIDENCE, b"\x02\x01\x01"))
            ).build(),
            "open-enclave-report",
            "SHA-256 of the key in PEM",
        ),
        "ego": (
            year_one(one(OE_REPORT, oe_report(quote(key_digest)))),
            "open-enclave-report",
            "SHA-256 of the key",
        ),
        "oe evidence": (
            one(OE_EVIDENCE, oe_evidence(quote(sha256(buffer)), buffer)),
            "open-enclave-evidence",
            "SHA-256 of the custom claims",
        ),
        "oe evidence, old": (
            one(OLD_OE_EVIDENCE, oe_evidence(quote(sha256(buffer)), buffer)),
            "open-enclave-evidence",
            "SHA-256 of the custom claims",
        ),
    }


def year_one(certificate: bytes) -> bytes:
    """As Go writes a certificate of which no beginning was set."""

    def change(members: list[bytes]) -> None:
        begin = der.write(der.GENERALIZED_TIME, b"00010101000000Z")
        members[4] = der.write(der.SEQUENCE, begin, der.elements(der.elements(members[4])[0][1])[1][2])

    return resigned(certificate, change)
