"""The verification of chains by `cryptography` alone (`x509.verification`): what `pki.chain` is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID
from cryptography.x509.verification import Criticality, ExtensionPolicy

from confcom.errors import FormatError
from confcom.formats.pck_extension import PCK_EXTENSION_OID, PckExtension
from confcom.pki.chain import ChainKind, TrustRoots

NAMES: dict[ChainKind, tuple[str, ...]] = {
    "pck": ("SGX PCK Certificate", "CA"),
    "tcb-signing": ("SGX TCB Signing",),
    "ca": ("CA",),
}
REFUSALS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    InvalidSignature,
    FormatError,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    verification.VerificationError,
)


class Refused(ValueError):
    pass


def _refuse_if(wrong: object, why: str) -> None:
    if wrong:
        raise Refused(why)


def _leaf_constraints(_policy: object, _certificate: object, found: x509.BasicConstraints) -> None:
    _refuse_if(found.ca, "a leaf is a CA")


def _leaf_usage(_policy: object, _certificate: object, found: x509.KeyUsage) -> None:
    _refuse_if(not found.digital_signature or found.key_cert_sign or found.crl_sign, "key usage of a leaf")


def _ca_constraints(_policy: object, _certificate: object, found: x509.BasicConstraints) -> None:
    _refuse_if(not found.ca, "not a CA")


def _ca_usage(_policy: object, _certificate: object, found: x509.KeyUsage) -> None:
    _refuse_if(not found.key_cert_sign or not found.crl_sign, "key usage of a CA")


def _policy(constraints: object, usage: object) -> ExtensionPolicy:
    policy = ExtensionPolicy.permit_all()
    for extension in (x509.AuthorityKeyIdentifier, x509.SubjectKeyIdentifier, x509.CRLDistributionPoints):
        policy = policy.require_present(extension, Criticality.NON_CRITICAL, None)
    policy = policy.require_present(x509.BasicConstraints, Criticality.CRITICAL, constraints)  # type: ignore[arg-type]
    return policy.require_present(x509.KeyUsage, Criticality.CRITICAL, usage)  # type: ignore[arg-type]


CA_POLICY = _policy(_ca_constraints, _ca_usage)
LEAF_POLICY = _policy(_leaf_constraints, _leaf_usage)


def accepts(ders: Sequence[bytes], roots: TrustRoots, kind: ChainKind) -> bool:
    """Whether these certificates (DER) are a chain of that kind to one of the roots."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _verify([_load(der) for der in ders[:4]], roots, kind)
    except REFUSALS:
        return False
    return True


def _load(der: bytes) -> x509.Certificate:
    certificate = x509.load_der_x509_certificate(der)
    _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.serial_number
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.public_key()
    signature = certificate.signature
    _refuse_if(not der.endswith(bytes((3, len(signature) + 1 & 0xFF, 0)) + signature), "unused bits")
    return certificate


def _verify(found: list[x509.Certificate], roots: TrustRoots, kind: ChainKind) -> None:
    if found and found[0].subject == found[0].issuer:
        found.reverse()
    included = found.pop() if found and found[-1].subject == found[-1].issuer else None
    _refuse_if(len(found) != len(NAMES[kind]) or any(one.subject == one.issuer for one in found), "other certificates")
    for certificate, expected in zip(found, NAMES[kind], strict=True):
        _refuse_if(expected not in _common_name(certificate), "another name")
        _point(certificate)
    trusted = [x509.load_der_x509_certificate(root.certificate_der) for root in roots.roots]
    if included is not None:
        _refuse_if("SGX Root CA" not in _common_name(included), "another name")
        anchor = included
        if anchor not in trusted:
            anchor.verify_directly_issued_by(anchor)
    else:
        issuers = [one for one in trusted if one.subject == found[-1].issuer and _ids_match(found[-1], one)]
        _refuse_if(not issuers, "no root")
        anchor = issuers[0]
    _refuse_if(roots.with_public_key(_point(anchor)) is None, "another root")
    at = max(one.not_valid_before_utc for one in (*found, anchor))
    _refuse_if(at > min(one.not_valid_after_utc for one in (*found, anchor)), "never valid together")
    builder = verification.PolicyBuilder().store(verification.Store([anchor])).time(at)
    builder = builder.max_chain_depth(len(found) - 1).extension_policies(
        ca_policy=CA_POLICY, ee_policy=CA_POLICY if kind == "ca" else LEAF_POLICY
    )
    builder.build_client_verifier().verify(found[0], found[1:])
    if kind == "pck":
        oid = x509.ObjectIdentifier(PCK_EXTENSION_OID)
        PckExtension.parse(found[0].extensions.get_extension_for_oid(oid).value.public_bytes())
    if kind != "tcb-signing":
        name = _common_name(found[-1])
        _refuse_if("Processor CA" not in name and "Platform CA" not in name, "neither of the PCK CAs")


def _ids_match(top: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        authority = top.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        subject = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return False
    return authority == subject


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _point(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    _refuse_if(not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1), "not P-256")
    _refuse_if(certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256, "another algorithm")
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
