"""Certificate chains of Intel's PKI (dcap.md §2): signatures, constraints and names, apart from the present time.

Whether a chain is genuine does not depend on the day; whether it is still valid does. So the path is checked at a
time that lies in the validity of all its certificates, and each validity is handed out as a `Window`, for the caller
to judge: stale is not forged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.verification import Criticality, ExtensionPolicy

from confcom.errors import CertificateError, SignatureError, UntrustedRootError
from confcom.formats.pck_extension import PCK_EXTENSION_OID, PckExtension, der_reason
from confcom.pki.certificate import common_name, load_certificate, p256_key, parse_certificates, uncompressed_point
from confcom.pki.proof import PROOF, Proof
from confcom.pki.roots import TrustRoot, TrustRoots

# --- What X.509 extensions the certificates of Intel's PKI must have (dcap.md §2); they are no web certificates -------
#
# Every certificate carries authority and subject key identifier, CRL distribution points, key usage and basic
# constraints. A critical extension beyond these is refused by the path building itself.


if TYPE_CHECKING:
    from cryptography.x509.verification import Policy


def _leaf_constraints(_policy: Policy, _certificate: x509.Certificate, found: x509.BasicConstraints) -> None:
    if found.ca:
        raise ValueError("a leaf must not be a CA")


def _leaf_key_usage(_policy: Policy, _certificate: x509.Certificate, found: x509.KeyUsage) -> None:
    if not found.digital_signature or found.key_cert_sign or found.crl_sign:
        raise ValueError("the key of a leaf signs data, not certificates or revocation lists")


def _ca_constraints(_policy: Policy, _certificate: x509.Certificate, found: x509.BasicConstraints) -> None:
    if not found.ca:
        raise ValueError("is not a CA")


def _ca_key_usage(_policy: Policy, _certificate: x509.Certificate, found: x509.KeyUsage) -> None:
    if not found.key_cert_sign or not found.crl_sign:
        raise ValueError("the key of a CA signs certificates and revocation lists")


def _with_identifiers(policy: ExtensionPolicy) -> ExtensionPolicy:
    for extension in (x509.AuthorityKeyIdentifier, x509.SubjectKeyIdentifier, x509.CRLDistributionPoints):
        policy = policy.require_present(extension, Criticality.NON_CRITICAL, None)
    return policy


CA_POLICY = (
    _with_identifiers(ExtensionPolicy.permit_all())
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, _ca_constraints)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, _ca_key_usage)
)
"""For every certificate above the leaf, the root included."""

_LEAF_POLICY = (
    _with_identifiers(ExtensionPolicy.permit_all())
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, _leaf_constraints)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, _leaf_key_usage)
)

LEAF_POLICIES = {"pck": _LEAF_POLICY, "tcb-signing": _LEAF_POLICY, "ca": CA_POLICY}
"""For the lowest certificate, by kind of chain; that of a CRL issuer's chain is a CA itself."""


# --- When something may be relied on: one window per certificate, CRL or signed JSON ----------------------------------


@dataclass(frozen=True, slots=True)
class Window:
    """The validity of one item, both ends included; times are UTC. `not_after` None means that no end is stated."""

    what: str
    not_before: datetime
    not_after: datetime | None

    def contains(self, now: datetime) -> bool:
        """Whether the item is valid at `now`: at exactly `not_after` it still is (RFC 5280 §4.1.2.5)."""
        return self.not_before <= now and (self.not_after is None or now <= self.not_after)


ChainKind = Literal["pck", "tcb-signing", "ca"]
_WORDS: dict[ChainKind, str] = {"pck": "PCK", "tcb-signing": "TCB signing", "ca": "PCK CA"}
PckCa = Literal["processor", "platform"]

# What the common names of a chain contain, from the leaf up to below the root. Its length is part of the profile.
_NAMES: dict[ChainKind, tuple[str, ...]] = {
    "pck": ("SGX PCK Certificate", "CA"),
    "tcb-signing": ("SGX TCB Signing",),
    "ca": ("CA",),
}
_ROOT_NAME = "SGX Root CA"
_MAX_CHAIN = 3

_SGX_EXTENSION = x509.ObjectIdentifier(PCK_EXTENSION_OID)


@dataclass(frozen=True, slots=True)
class VerifiedChain(Proof):
    """A chain that ends at a trusted root; only `verify_chain` makes one. Expiry is not judged here: see `windows`."""

    made_by: ClassVar[str] = "verify_chain"

    kind: ChainKind
    leaf: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]
    root: TrustRoot
    windows: tuple[Window, ...]
    public_key: ec.EllipticCurvePublicKey
    _extension: PckExtension | None = field(default=None, repr=False)
    _ca: PckCa | None = field(default=None, repr=False)
    proof: InitVar[object] = None

    @property
    def statement(self) -> bytes:
        """SHA-256 (32 bytes) of what the chain says: the signed parts of its certificates, and the root's key."""
        certified = (certificate.tbs_certificate_bytes for certificate in (self.leaf, *self.intermediates))
        return sha256(b"".join((*certified, self.root.public_key))).digest()

    @property
    def extension(self) -> PckExtension:
        """Intel's SGX extension of the leaf, for chains of kind `pck`."""
        if self._extension is None:
            raise CertificateError(f"a chain of kind {self.kind} has no SGX extension")
        return self._extension

    @property
    def ca(self) -> PckCa:
        """Which PCK CA issued the leaf (kind `pck`), or which one the leaf is (kind `ca`)."""
        if self._ca is None:
            raise CertificateError(f"a chain of kind {self.kind} has no PCK CA")
        return self._ca


def verify_chain(
    certificates: bytes | Sequence[bytes], *, roots: TrustRoots, kind: ChainKind, step: str
) -> VerifiedChain:
    """Verify a chain, given as PEM or as the DER of each certificate, up to one of the roots.

    (1) read the certificates: leaf first or root first, with or without the root, and no other certificate;
    (2) names and algorithms of the profile;
    (3) the path: signatures, constraints, key usage, at a time within the validity of all;
    (4) the root's key is a trusted one. A sound chain to another root is an `UntrustedRootError`;
    (5) for a PCK certificate, its SGX extension.

    Malformed bytes are a `FormatError`, a wrong signature a `SignatureError`, the rest a `CertificateError`.
    """
    # (1)
    path, included_root = _arrange(_load(certificates, f"{_WORDS[kind]} chain"), kind, step)
    # (2)
    _check_profile(path, included_root, kind, step)
    # (3)
    anchor = _build_path(path, included_root, roots, kind, step)
    # (4)
    root = roots.with_public_key(uncompressed_point(p256_key(anchor, step=step)))
    if root is None:
        raise UntrustedRootError(
            f"the {_WORDS[kind]} chain ends at a root that is not trusted",
            step=step,
            expected=" or ".join(known.name for known in roots.roots),
            found=f"{common_name(anchor)}, key {uncompressed_point(p256_key(anchor)).hex()}",
        )
    # (5)
    extension = sgx_extension(path[0], step) if kind == "pck" else None
    return VerifiedChain(
        kind=kind,
        leaf=path[0],
        intermediates=tuple(path[1:]),
        root=root,
        windows=tuple(_window(certificate) for certificate in (*path, anchor)),
        public_key=p256_key(path[0], step=step),
        _extension=extension,
        _ca=None if kind == "tcb-signing" else _pck_ca(path[-1], step),
        proof=PROOF,
    )


def _load(certificates: bytes | Sequence[bytes], structure: str) -> list[x509.Certificate]:
    ders = parse_certificates(certificates, structure=structure) if isinstance(certificates, bytes) else certificates
    return [
        load_certificate(der, structure=structure, field=f"certificate {number}")
        for number, der in enumerate(ders[: _MAX_CHAIN + 1], start=1)
    ]


def _arrange(
    found: list[x509.Certificate], kind: ChainKind, step: str
) -> tuple[list[x509.Certificate], x509.Certificate | None]:
    """The path from the leaf to below the root, and the root if it came along."""
    if found and _self_issued(found[0]):
        found.reverse()
    root = found.pop() if found and _self_issued(found[-1]) else None
    expected = len(_NAMES[kind])
    if len(found) != expected or any(_self_issued(certificate) for certificate in found):
        raise CertificateError(
            f"the {_WORDS[kind]} chain has other certificates than it should",
            step=step,
            expected=f"{expected} and perhaps the root",
            found=", ".join(common_name(certificate) or "unnamed" for certificate in found) or "no other than the root",
        )
    return found, root


def _self_issued(certificate: x509.Certificate) -> bool:
    return certificate.subject == certificate.issuer


def _check_profile(path: list[x509.Certificate], root: x509.Certificate | None, kind: ChainKind, step: str) -> None:
    names = [*zip(path, _NAMES[kind], strict=True)]
    if root is not None:
        names.append((root, _ROOT_NAME))
    for certificate, expected in names:
        if expected not in common_name(certificate):
            raise CertificateError(
                f"a certificate of the {_WORDS[kind]} chain has another name than it should",
                step=step,
                expected=f"a common name with {expected!r}",
                found=common_name(certificate),
            )
        p256_key(certificate, step=step)


def _build_path(
    path: list[x509.Certificate], included_root: x509.Certificate | None, roots: TrustRoots, kind: ChainKind, step: str
) -> x509.Certificate:
    """Verify the path up to the included root, or else to the trusted one that issued it; returns that root."""
    if included_root is not None:
        anchor = included_root
        # pyca takes an anchor as given; a root that came from outside must at least have signed itself.
        if anchor not in [root.certificate for root in roots.roots]:
            _check_issued(anchor, anchor, step)
    else:
        anchor = _issuing_root(path[-1], roots, step)
    at = max(certificate.not_valid_before_utc for certificate in (*path, anchor))
    if at > min(certificate.not_valid_after_utc for certificate in (*path, anchor)):
        raise CertificateError(f"the certificates of the {_WORDS[kind]} chain were never valid together", step=step)
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([anchor]))
        .time(at)
        .max_chain_depth(len(path) - 1)
        .extension_policies(ca_policy=CA_POLICY, ee_policy=LEAF_POLICIES[kind])
        .build_client_verifier()
    )
    try:
        verifier.verify(path[0], path[1:])
    except verification.VerificationError as error:
        for certificate, issuer in zip(path, (*path[1:], anchor), strict=True):
            _check_issued(certificate, issuer, step)
        raise CertificateError(f"the {_WORDS[kind]} chain is not valid: {der_reason(error)}", step=step) from error
    return anchor


def _issuing_root(top: x509.Certificate, roots: TrustRoots, step: str) -> x509.Certificate:
    """The trusted root that says it issued `top`: by name, and by key identifier, since names are copied easily."""
    key_id = _key_identifier(top)
    for root in roots.roots:
        if root.certificate.subject == top.issuer and _subject_key_identifier(root.certificate) == key_id:
            return root.certificate
    raise UntrustedRootError(
        f"{common_name(top)!r} was issued by a root that is not trusted",
        step=step,
        expected=" or ".join(root.name for root in roots.roots),
        found=f"{top.issuer.rfc4514_string()}, key identifier {key_id.hex() if key_id else 'missing'}",
    )


def _key_identifier(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return None


def _subject_key_identifier(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate, step: str) -> None:
    what, by = common_name(certificate), common_name(issuer)
    try:
        certificate.verify_directly_issued_by(issuer)
    except InvalidSignature:
        raise SignatureError(
            f"signature of certificate {what!r} does not match",
            step=step,
            expected=f"a signature by {by!r}",
            found=certificate.signature.hex(),
        ) from None
    except (ValueError, TypeError) as error:
        message = f"certificate {what!r} was not issued by {by!r}: {der_reason(error)}"
        raise CertificateError(message, step=step) from error


def sgx_extension(leaf: x509.Certificate, step: str) -> PckExtension:
    """Intel's SGX extension of a PCK certificate, which says nothing about the certificate's signature."""
    try:
        value = leaf.extensions.get_extension_for_oid(_SGX_EXTENSION).value
    except x509.ExtensionNotFound as error:
        raise CertificateError("the PCK certificate has no SGX extension", step=step) from error
    return PckExtension.parse(value.public_bytes())


def _pck_ca(certificate: x509.Certificate, step: str) -> PckCa:
    name = common_name(certificate)
    if "Processor CA" in name:
        return "processor"
    if "Platform CA" in name:
        return "platform"
    raise CertificateError(
        "the issuer of the PCK certificate is neither of the PCK CAs",
        step=step,
        expected="'Processor CA' or 'Platform CA'",
        found=name,
    )


def _window(certificate: x509.Certificate) -> Window:
    return Window(
        f"certificate {common_name(certificate)}", certificate.not_valid_before_utc, certificate.not_valid_after_utc
    )
