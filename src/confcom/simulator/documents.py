"""What the simulated authority signs: certificates and CRLs, TCB infos, enclave identities, evaluation data numbers.

All of it is state that tests change; the bytes are made from it on demand. Signatures are deterministic: equal state
gives equal bytes. Every certificate has the extensions that Intel's library demands (key identifiers, CRL distribution
point, key usage, basic constraints). The JSON is compact, as Intel's; the signature is over the exact bytes of the
inner object.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from confcom.errors import ConfigError
from confcom.formats.attestation_key_id import INTEL_QE3_MR_SIGNER
from confcom.protocols.pcs import Tee
from confcom.simulator.machine import MachineTcb, sign_raw

_SECOND = timedelta(seconds=1)

# Certificates and CRLs.

ORGANIZATION = "confcom simulated platform"
DISTRIBUTION = "https://simulated.confcom.invalid/sgx/certification/v4"
"""Where the distribution points lead: a name that no resolver knows."""

_REMEMBERED = 256
"""Certificates that a CA keeps, so that it does not sign the same again."""


@dataclass(slots=True)
class SimulatedCertificate:
    """The content of a certificate but for its issuer. `path_length` None means an end-entity certificate."""

    common_name: str
    public_key: EllipticCurvePublicKey
    not_before: datetime
    not_after: datetime
    distribution_point: str
    path_length: int | None = None
    extra: tuple[x509.UnrecognizedExtension, ...] = ()

    @property
    def serial_number(self) -> int:
        """159 bits from the public key, so that a certificate renewed for the same key keeps its number."""
        return int.from_bytes(hashlib.sha256(_point(self.public_key)).digest()[:20], "big") >> 1

    @property
    def state(self) -> Hashable:
        """All that the certificate will say, to compare."""
        return (
            self.common_name,
            self.serial_number,
            self.not_before,
            self.not_after,
            self.distribution_point,
            self.path_length,
            self.extra,
        )

    def expire(self, at: datetime) -> None:
        """End the validity one second before `at`."""
        self.not_after = at - _SECOND


@dataclass(slots=True)
class RevocationList:
    """A CRL: its window, its number, and the serial numbers on it with the time of their revocation."""

    this_update: datetime
    next_update: datetime
    number: int = 1
    revoked: dict[int, datetime] = field(default_factory=dict)

    def revoke(self, certificate: SimulatedCertificate, at: datetime) -> None:
        """Put a certificate on the list."""
        self.revoked[certificate.serial_number] = at
        self.number += 1

    def expire(self, at: datetime) -> None:
        """End the window one second before `at`."""
        self.next_update = at - _SECOND


@dataclass(slots=True)
class SimulatedCa:
    """A CA: its key, the content of its own certificate, and its CRL."""

    key: EllipticCurvePrivateKey = field(repr=False)
    own: SimulatedCertificate
    crl: RevocationList
    _issued: dict[Hashable, tuple[EllipticCurvePrivateKey, x509.Certificate]] = field(default_factory=dict, repr=False)

    def issue(self, subject: SimulatedCertificate) -> x509.Certificate:
        """The certificate for that state, signed by this CA; of its own state: the self-signed one."""
        # Platforms ask for their chain before every quote; as long as nothing changed, it need not be signed again.
        state = (self.own.common_name, self.own.serial_number, subject.state)
        key, certificate = self._issued.get(state, (None, None))
        if certificate is None or key is not self.key:
            if len(self._issued) >= _REMEMBERED:
                self._issued.clear()
            certificate = self._sign(subject)
            self._issued[state] = (self.key, certificate)
        return certificate

    def _sign(self, subject: SimulatedCertificate) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(subject.common_name))
            .issuer_name(_name(self.own.common_name))
            .public_key(subject.public_key)
            .serial_number(subject.serial_number)
            .not_valid_before(subject.not_before)
            .not_valid_after(subject.not_after)
        )
        for extension, critical in self._extensions(subject):
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, SHA256(), ecdsa_deterministic=True)

    def revocation_list(self) -> x509.CertificateRevocationList:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(_name(self.own.common_name))
            .last_update(self.crl.this_update)
            .next_update(self.crl.next_update)
            .add_extension(x509.CRLNumber(self.crl.number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.own.public_key), critical=False)
        )
        for serial_number, since in sorted(self.crl.revoked.items()):
            builder = builder.add_revoked_certificate(_entry(serial_number, since))
        return builder.sign(self.key, SHA256(), ecdsa_deterministic=True)

    def _extensions(self, subject: SimulatedCertificate) -> list[tuple[x509.ExtensionType, bool]]:
        point = x509.DistributionPoint(
            [x509.UniformResourceIdentifier(subject.distribution_point)],
            relative_name=None,
            reasons=None,
            crl_issuer=None,
        )
        authority = subject.path_length is not None
        return [
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.own.public_key), False),
            (x509.CRLDistributionPoints([point]), False),
            (x509.SubjectKeyIdentifier.from_public_key(subject.public_key), False),
            (_key_usage(authority=authority), True),
            (x509.BasicConstraints(ca=authority, path_length=subject.path_length), True),
            *((extension, False) for extension in subject.extra),
        ]


def pem(*certificates: x509.Certificate) -> bytes:
    """A PEM chain in the order given."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def der(item: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    """The DER of a certificate or CRL."""
    return item.public_bytes(Encoding.DER)


def _entry(serial_number: int, since: datetime) -> x509.RevokedCertificate:
    return (
        x509.RevokedCertificateBuilder()
        .serial_number(serial_number)
        .revocation_date(since)
        .add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
        .build()
    )


def _point(key: EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Nowhere"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "Simulated"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "XX"),
        ]
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


# Signed JSON.

ATTRIBUTES = bytes([0x11]) + bytes(15)
"""INIT and PROVISIONKEY must be set in a QE; everything else under the mask must not be."""
ATTRIBUTES_MASK = bytes.fromhex("fbffffffffffffff0000000000000000")

TDX_MODULE = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
"""Intel's modules: MRSIGNERSEAM and SEAMATTRIBUTES are zero."""


@dataclass(slots=True)
class PlatformTcbLevel:
    """One level of a TCB info: machines at least this good have this status. `tdx_components` are of TDX alone."""

    tcb: MachineTcb
    status: str
    date: datetime
    advisory_ids: tuple[str, ...] = ()
    tdx_components: tuple[int, ...] = (0,) * 16


@dataclass(slots=True)
class EnclaveTcbLevel:
    """One level of an enclave identity, or of a TDX module of major version 1 or later."""

    isv_svn: int
    status: str
    date: datetime
    advisory_ids: tuple[str, ...] = ()


@dataclass(slots=True)
class _Document:
    """What every document has: window and TCB evaluation data number."""

    issue_date: datetime
    next_update: datetime
    tcb_evaluation_data_number: int = 17

    def expire(self, at: datetime) -> None:
        """End the window one second before `at`."""
        self.next_update = at - _SECOND


@dataclass(slots=True)
class SimulatedTcbInfo(_Document):
    """TCB info for one FMSPC, version 3 or, if set so, 2 (SGX alone). `modules` are levels of TDX modules by id."""

    tee: Tee = "sgx"
    fmspc: bytes = bytes(6)
    pce_id: int = 0
    version: int = 3
    levels: list[PlatformTcbLevel] = field(default_factory=list)
    modules: dict[str, list[EnclaveTcbLevel]] = field(default_factory=dict)

    def inner(self) -> bytes:
        if self.version not in ({3} if self.tee == "tdx" else {2, 3}):
            raise ConfigError(f"there is no TCB info version {self.version}", advice="Set version to 3 or 2.")
        return _compact(
            ({"id": self.tee.upper()} if self.version == 3 else {})
            | {
                "version": self.version,
                "issueDate": _date(self.issue_date),
                "nextUpdate": _date(self.next_update),
                "fmspc": self.fmspc.hex().upper(),
                "pceId": self.pce_id.to_bytes(2, "little").hex().upper(),
                "tcbType": 0,
                "tcbEvaluationDataNumber": self.tcb_evaluation_data_number,
            }
            | (self._tdx_modules() if self.tee == "tdx" else {})
            | {
                "tcbLevels": [
                    {"tcb": self._tcb(level)} | _verdict(level.date, level.status, level.advisory_ids)
                    for level in self.levels
                ],
            }
        )

    def signed(self, key: EllipticCurvePrivateKey) -> bytes:
        return _sign("tcbInfo", self.inner(), key)

    def _tcb(self, level: PlatformTcbLevel) -> dict[str, Any]:
        tcb = level.tcb
        if self.version == 2:
            names = (f"sgxtcbcomp{number:02}svn" for number in range(1, 17))
            return dict(zip(names, tcb.sgx_components, strict=True)) | {"pcesvn": tcb.pce_svn}
        tdx = {"tdxtcbcomponents": [{"svn": svn} for svn in level.tdx_components]} if self.tee == "tdx" else {}
        return {"sgxtcbcomponents": [{"svn": svn} for svn in tcb.sgx_components], "pcesvn": tcb.pce_svn} | tdx

    def _tdx_modules(self) -> dict[str, Any]:
        return {
            "tdxModule": TDX_MODULE,
            "tdxModuleIdentities": [
                {"id": name} | TDX_MODULE | {"tcbLevels": _enclave_levels(levels)}
                for name, levels in self.modules.items()
            ],
        }


@dataclass(slots=True)
class SimulatedQeIdentity(_Document):
    """Identity of the QE, the TD QE or the QvE (`id`), version 2."""

    id: str = "QE"
    misc_select: bytes = bytes(4)
    misc_select_mask: bytes = b"\xff" * 4
    attributes: bytes = ATTRIBUTES
    attributes_mask: bytes = ATTRIBUTES_MASK
    mr_signer: bytes = INTEL_QE3_MR_SIGNER
    isv_prod_id: int = 1
    levels: list[EnclaveTcbLevel] = field(default_factory=list)

    def inner(self) -> bytes:
        return _compact(
            {
                "id": self.id,
                "version": 2,
                "issueDate": _date(self.issue_date),
                "nextUpdate": _date(self.next_update),
                "tcbEvaluationDataNumber": self.tcb_evaluation_data_number,
                "miscselect": self.misc_select.hex().upper(),
                "miscselectMask": self.misc_select_mask.hex().upper(),
                "attributes": self.attributes.hex().upper(),
                "attributesMask": self.attributes_mask.hex().upper(),
                "mrsigner": self.mr_signer.hex().upper(),
                "isvprodid": self.isv_prod_id,
                "tcbLevels": _enclave_levels(self.levels),
            }
        )

    def signed(self, key: EllipticCurvePrivateKey) -> bytes:
        return _sign("enclaveIdentity", self.inner(), key)


@dataclass(slots=True)
class SimulatedEvaluationDataNumbers(_Document):
    """The one set that the authority has: its number, and when the TCB recovery behind it happened."""

    tee: Tee = "sgx"
    recovery_event: datetime = datetime(2025, 1, 1, tzinfo=UTC)

    def signed(self, key: EllipticCurvePrivateKey) -> bytes:
        date = _date(self.recovery_event)
        entry = {
            "tcbEvaluationDataNumber": self.tcb_evaluation_data_number,
            "tcbRecoveryEventDate": date,
            "tcbDate": date,
        }
        inner = {
            "id": self.tee.upper(),
            "version": 1,
            "issueDate": _date(self.issue_date),
            "nextUpdate": _date(self.next_update),
            "tcbEvalNumbers": [entry],
        }
        return _sign("tcbEvaluationDataNumbers", _compact(inner), key)


def _enclave_levels(levels: list[EnclaveTcbLevel]) -> list[dict[str, Any]]:
    return [
        {"tcb": {"isvsvn": level.isv_svn}} | _verdict(level.date, level.status, level.advisory_ids) for level in levels
    ]


def _verdict(date: datetime, status: str, advisory_ids: tuple[str, ...]) -> dict[str, Any]:
    advisories = {"advisoryIDs": list(advisory_ids)} if advisory_ids else {}
    return {"tcbDate": _date(date), "tcbStatus": str(status)} | advisories


def _sign(name: str, inner: bytes, key: EllipticCurvePrivateKey) -> bytes:
    return b'{"%s":%s,"signature":"%s"}' % (name.encode(), inner, sign_raw(key, inner).hex().encode())


def _compact(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
