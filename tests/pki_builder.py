"""An authority for tests, built with pyca alone: it shares no code with what it tests, and can be told to do wrong.

Keys come from small numbers and signatures are deterministic, so that every run makes the same bytes.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from confcom.appraisal.collateral import Collateral

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
END = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
ISSUE = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
NEXT = ISSUE + dt.timedelta(days=30)

ROOT, PLATFORM_CA, PCK, TCB_SIGNING, STRANGER = (ec.derive_private_key(n, ec.SECP256R1()) for n in range(11, 16))
ROOT_NAME, PLATFORM_NAME = "Intel SGX Root CA", "Intel SGX PCK Platform CA"
PROCESSOR_NAME, PCK_NAME, SIGNING_NAME = (
    "Intel SGX PCK Processor CA",
    "Intel SGX PCK Certificate",
    "Intel SGX TCB Signing",
)
SGX_OID = "1.2.840.113741.1.13.1"


def name(common_name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, common_name), x509.NameAttribute(NameOID.COUNTRY_NAME, "US")]
    )


def tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = (
        bytes((size,))
        if size < 128
        else (b"\x81" + bytes((size,)) if size < 256 else b"\x82" + size.to_bytes(2, "big"))
    )
    return bytes((tag,)) + length + content


def element(suffix: str, value: bytes) -> bytes:
    oid = x509.ObjectIdentifier(f"{SGX_OID}.{suffix}")
    arcs = [int(arc) for arc in oid.dotted_string.split(".")]
    body = bytes((arcs[0] * 40 + arcs[1],))
    for arc in arcs[2:]:
        digits = [arc & 0x7F]
        while arc := arc >> 7:
            digits.insert(0, arc & 0x7F | 0x80)
        body += bytes(digits)
    return tlv(0x30, tlv(0x06, body) + value)


def integer(value: int) -> bytes:
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def sgx_extension(
    *,
    svns: tuple[int, ...] = (11, 11, 2, 2, 255, 128, 1, *bytes(9)),
    pce_svn: int = 13,
    sgx_type: int = 1,
    platform: bool = True,
) -> bytes:
    tcb = b"".join(element(f"2.{number}", integer(svn)) for number, svn in enumerate(svns, start=1))
    tcb += element("2.17", integer(pce_svn)) + element("2.18", tlv(0x04, bytes(svns)))
    content = (
        element("1", tlv(0x04, bytes(range(16)))) + element("2", tlv(0x30, tcb)) + element("3", tlv(0x04, b"\x00\x00"))
    )
    content += element("4", tlv(0x04, bytes.fromhex("00606a000000"))) + element("5", tlv(0x0A, bytes((sgx_type,))))
    if platform:
        flags = element("7.1", b"\x01\x01\xff") + element("7.2", b"\x01\x01\x00") + element("7.3", b"\x01\x01\xff")
        content += element("6", tlv(0x04, bytes(range(16, 32)))) + element("7", tlv(0x30, flags))
    return tlv(0x30, content)


@dataclass(frozen=True)
class Certificate:
    """What a certificate says; `build` signs it."""

    subject: str
    key: Any
    issuer: str = ROOT_NAME
    signer: Any = ROOT
    issuer_key: Any = None
    serial: int = 1000
    ca: bool = False
    path_length: int | None = None
    begin: dt.datetime = START
    end: dt.datetime = END
    sgx: bytes | None = None
    without: tuple[type, ...] = ()
    critical_stranger: bool = False
    key_usage: dict[str, bool] = field(default_factory=dict)
    digest: Any = field(default_factory=hashes.SHA256)

    def build(self) -> bytes:
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        ) | {"key_cert_sign": self.ca, "crl_sign": self.ca, "encipher_only": False, "decipher_only": False}
        usage |= {"digital_signature": not self.ca, "content_commitment": not self.ca} | self.key_usage
        issuer_public = (self.issuer_key or self.signer).public_key()
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public), False),
            (_distribution_points(), False),
            (x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False),
            (x509.KeyUsage(**usage), True),
            (x509.BasicConstraints(self.ca, self.path_length), True),
        ]
        if self.sgx is not None:
            extensions.append((x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_OID), self.sgx), False))
        if self.critical_stranger:
            extensions.append((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True))
        builder = x509.CertificateBuilder(name(self.issuer), name(self.subject), self.key.public_key(), self.serial)
        builder = builder.not_valid_before(self.begin).not_valid_after(self.end)
        for extension, critical in extensions:
            if not isinstance(extension, self.without):
                builder = builder.add_extension(extension, critical)
        return builder.sign(self.signer, self.digest, ecdsa_deterministic=True).public_bytes(Encoding.DER)


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key as 04 ‖ x ‖ y."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _distribution_points() -> x509.CRLDistributionPoints:
    uri = x509.UniformResourceIdentifier("https://example.test/root.der")
    return x509.CRLDistributionPoints([x509.DistributionPoint([uri], None, None, None)])


ROOT_CERTIFICATE = Certificate(ROOT_NAME, ROOT, serial=1, ca=True, path_length=1)
PLATFORM_CERTIFICATE = Certificate(PLATFORM_NAME, PLATFORM_CA, serial=2, ca=True, path_length=0)
SIGNING_CERTIFICATE = Certificate(SIGNING_NAME, TCB_SIGNING, serial=3)
PCK_CERTIFICATE = Certificate(PCK_NAME, PCK, PLATFORM_NAME, PLATFORM_CA, serial=4, sgx=sgx_extension())

STRANGER_ROOT = replace(ROOT_CERTIFICATE, key=STRANGER, signer=STRANGER)


def pem(*certificates: Certificate | bytes) -> bytes:
    ders = [item if isinstance(item, bytes) else item.build() for item in certificates]
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders)


def crl(
    issuer: str = ROOT_NAME,
    signer: Any = ROOT,
    *,
    revoked: tuple[int, ...] = (),
    begin: dt.datetime = ISSUE,
    end: dt.datetime = NEXT,
    number: int | None = 7,
    critical: bool = False,
) -> bytes:
    builder = x509.CertificateRevocationListBuilder(name(issuer), begin, end)
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    if critical:
        builder = builder.add_extension(x509.DeltaCRLIndicator(1), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(begin)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(signer, hashes.SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)


def raw_signature(key: Any, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def date(time: dt.datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def level(status: str = "UpToDate", svn: int = 2, pce_svn: int = 13, **more: Any) -> dict[str, Any]:
    components = [{"svn": svn, "category": "BIOS", "type": "Early Microcode Update"}, *[{"svn": 0}] * 15]
    tcb = {"sgxtcbcomponents": components, "pcesvn": pce_svn}
    return {"tcb": tcb, "tcbDate": "2025-08-13T00:00:00Z", "tcbStatus": status} | more


def svn_level(svn: int, status: str = "UpToDate", **more: Any) -> dict[str, Any]:
    return {"tcb": {"isvsvn": svn}, "tcbDate": "2025-08-13T00:00:00Z", "tcbStatus": status} | more


def tcb_info(**changes: Any) -> dict[str, Any]:
    return {
        "id": "SGX",
        "version": 3,
        "issueDate": date(ISSUE),
        "nextUpdate": date(NEXT),
        "fmspc": "00606A000000",
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": 20,
        "tcbLevels": [level(), level("OutOfDate", svn=1, advisoryIDs=["INTEL-SA-00001"])],
    } | changes


def tdx_tcb_info(**changes: Any) -> dict[str, Any]:
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    levels = [level(), level("OutOfDate", svn=1)]
    for item in levels:
        item["tcb"]["tdxtcbcomponents"] = [{"svn": 5, "category": "OS/VMM", "type": "TDX Module"}, *[{"svn": 0}] * 15]
    identity = module | {"id": "TDX_01", "tcbLevels": [svn_level(2, "OutOfDate"), svn_level(11)]}
    return tcb_info(id="TDX", tdxModule=module, tdxModuleIdentities=[identity], tcbLevels=levels) | changes


def enclave_identity(**changes: Any) -> dict[str, Any]:
    return {
        "id": "QE",
        "version": 2,
        "issueDate": date(ISSUE),
        "nextUpdate": date(NEXT),
        "tcbEvaluationDataNumber": 20,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": "8C" * 32,
        "isvprodid": 1,
        "tcbLevels": [svn_level(8), svn_level(6, "OutOfDate", advisoryIDs=["INTEL-SA-00002"])],
    } | changes


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def signed(kind: str, body: bytes | dict[str, Any], signer: Any = TCB_SIGNING) -> bytes:
    raw = body if isinstance(body, bytes) else compact(body)
    return b'{"%s":%s,"signature":"%s"}' % (kind.encode(), raw, raw_signature(signer, raw).hex().encode())


def collateral(**changes: Any) -> Collateral:
    root = ROOT_CERTIFICATE.build()
    parts: dict[str, Any] = {
        "tcb_info_issuer_chain": pem(SIGNING_CERTIFICATE, root),
        "tcb_info": signed("tcbInfo", tcb_info()),
        "qe_identity_issuer_chain": pem(SIGNING_CERTIFICATE, root),
        "qe_identity": signed("enclaveIdentity", enclave_identity()),
        "root_ca_crl": crl(),
        "pck_crl": crl(PLATFORM_NAME, PLATFORM_CA),
        "pck_crl_issuer_chain": pem(PLATFORM_CERTIFICATE, root),
        "source": "tests",
    }
    return Collateral(**(parts | changes))
