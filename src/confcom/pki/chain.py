"""Certificate chains of Intel's PKI up to trusted roots (dcap.md §2), verified apart from the present time.

Whether a chain is genuine does not depend on the day; whether it is still valid does. So the path is checked whatever
the time, if all its certificates were valid together once, and each validity is handed out as a `Window`, for the
caller to judge: stale is not forged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, ClassVar, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from confcom.errors import CertificateError, ConfigError, SignatureError, UntrustedRootError
from confcom.formats.arguments import checked_bytes, checked_type
from confcom.formats.pck_extension import PckExtension
from confcom.pki.certificate import (
    PemChain,
    check_p256,
    load_certificate,
    load_certificates,
    load_chain,
    parse_certificates,
    remember,
)
from confcom.pki.der import Certificate
from confcom.pki.proof import PROOF, Known, Proof, is_good, sealed

# Trusted roots: keys, given as values. Intel's is built in; every other root is a simulated one.
#
# The key is pinned, not the certificate: two root certificates of the same key are in use, and a third may come.

INTEL_ROOT_PUBLIC_KEY = bytes.fromhex(
    "040ba9c4c0c0c86193a3fe23d6b02cda10a8bbd4e88e48b4458561a36e705525f5"
    "67918e2edc88e40d860bd0cc4ee26aacc988e505a953558c453f6b0904ae7394"
)
"""The key of Intel's SGX root, 65 bytes (dcap.md §2): the one thing that makes evidence real."""

_INTEL_SGX_ROOT_CA_PEM = b"""\
-----BEGIN CERTIFICATE-----
MIICjzCCAjSgAwIBAgIUImUM1lqdNInzg7SVUr9QGzknBqwwCgYIKoZIzj0EAwIw
aDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoMEUludGVsIENv
cnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJ
BgNVBAYTAlVTMB4XDTE4MDUyMTEwNDUxMFoXDTQ5MTIzMTIzNTk1OVowaDEaMBgG
A1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoMEUludGVsIENvcnBvcmF0
aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYT
AlVTMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEC6nEwMDIYZOj/iPWsCzaEKi7
1OiOSLRFhWGjbnBVJfVnkY4u3IjkDYYL0MxO4mqsyYjlBalTVYxFP2sJBK5zlKOB
uzCBuDAfBgNVHSMEGDAWgBQiZQzWWp00ifODtJVSv1AbOScGrDBSBgNVHR8ESzBJ
MEegRaBDhkFodHRwczovL2NlcnRpZmljYXRlcy50cnVzdGVkc2VydmljZXMuaW50
ZWwuY29tL0ludGVsU0dYUm9vdENBLmRlcjAdBgNVHQ4EFgQUImUM1lqdNInzg7SV
Ur9QGzknBqwwDgYDVR0PAQH/BAQDAgEGMBIGA1UdEwEB/wQIMAYBAf8CAQEwCgYI
KoZIzj0EAwIDSQAwRgIhAOW/5QkR+S9CiSDcNoowLuPRLsWGf/Yi7GSX94BgwTwg
AiEA4J0lrHoMs+Xo5o/sX6O9QWxHRAvZUGOdRQ7cvqRXaqI=
-----END CERTIFICATE-----
"""


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """A root certificate with a trusted key. `public_key` is the uncompressed point, 65 bytes.

    Only Intel's key stands for real hardware: a root that claims otherwise is a `ConfigError`.
    """

    name: str
    certificate_der: bytes = field(repr=False)
    simulated: bool
    certificate: Certificate = field(init=False, repr=False, compare=False)
    public_key: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        der = checked_bytes(self.certificate_der, "certificate of the trust root")
        certificate = load_certificate(der, structure="trust root", field="certificate")
        try:
            check_p256(certificate)
            own = is_good(certificate, certificate.signature, certificate.signed_digest)
        except CertificateError:
            own = False
        if not own or certificate.issuer != certificate.subject:
            raise ConfigError(
                f"{certificate.common_name or 'this certificate'} cannot be a trust root: "
                "it is not a self-signed certificate of a P-256 key",
                advice="Name the root certificate itself, not one that it issued.",
            )
        remember((certificate,))
        object.__setattr__(self, "certificate", certificate)
        object.__setattr__(self, "public_key", certificate.point)
        if self.simulated != (self.public_key != INTEL_ROOT_PUBLIC_KEY):
            raise ConfigError(f"trust root {self.name}: only Intel's key stands for real hardware")

    def __reduce__(self) -> tuple[Any, ...]:
        return TrustRoot, (self.name, self.certificate_der, self.simulated)

    @property
    def pem(self) -> bytes:
        """The certificate in PEM."""
        # Here, because it takes a twelfth of all that verifying quotes imports.
        from cryptography.hazmat.primitives.serialization import Encoding

        return self.certificate.in_full().public_bytes(Encoding.PEM)

    @classmethod
    def from_pem(cls, data: bytes, *, name: str | None = None) -> TrustRoot:
        """A root from its PEM certificate; only Intel's key gives a root that is not simulated."""
        checked_bytes(data, "root certificate")
        ders = parse_certificates(data, structure="trust root")
        if len(ders) != 1:
            raise ConfigError(
                f"a trust root is one certificate, found {len(ders)}",
                advice="Give a file that holds the root certificate alone.",
            )
        if load_certificate(ders[0], structure="trust root", field="certificate").point == INTEL_ROOT_PUBLIC_KEY:
            return cls(name or "Intel SGX Root CA", ders[0], simulated=False)
        return cls(name or f"simulated root {hashlib.sha256(ders[0]).hexdigest()[:16]}", ders[0], simulated=True)


INTEL_SGX_ROOT_CA = TrustRoot.from_pem(_INTEL_SGX_ROOT_CA_PEM)
"""Intel's root in its certificate valid to 2049-12-31."""


@dataclass(frozen=True, slots=True)
class TrustRoots:
    """The roots that one verification accepts; none at all is a `ConfigError`."""

    roots: tuple[TrustRoot, ...]

    def __post_init__(self) -> None:
        for root in checked_type(self.roots, tuple, "trust roots"):
            checked_type(root, TrustRoot, "trust root", "; TrustRoot.from_pem(data) makes one")
        if not self.roots:
            raise ConfigError("no trust root is given", advice="Trust Intel's root, or name a root with --trust-root.")

    @classmethod
    def intel(cls) -> TrustRoots:
        """Intel's root alone: real hardware."""
        return cls((INTEL_SGX_ROOT_CA,))

    def with_public_key(self, public_key: bytes) -> TrustRoot | None:
        """The root of that key (65 bytes), None when it is not trusted."""
        for root in self.roots:
            if root.public_key == public_key:
                return root
        return None


def simulated_world(roots: TrustRoots) -> bool:
    """Whether every root is simulated; an instance of both worlds is a `ConfigError`."""
    kinds = {root.simulated for root in roots.roots}
    if len(kinds) > 1:
        raise ConfigError(
            "an instance judges real or simulated evidence, never both",
            advice="Run two instances, each with its own keys and URL.",
        )
    return kinds == {True}


# Chains.


class Window(msgspec.Struct, frozen=True):
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

_ROOT_NAME = "SGX Root CA"
# What the common names of a chain contain, from the leaf up to the root. Its length is part of the profile.
_NAMES: dict[ChainKind, tuple[str, ...]] = {
    "pck": ("SGX PCK Certificate", "CA", _ROOT_NAME),
    "tcb-signing": ("SGX TCB Signing", _ROOT_NAME),
    "ca": ("CA", _ROOT_NAME),
}
_MAX_CHAIN = 3

# Bits of the first byte of the key usage (RFC 5280 §4.2.1.3).
_DIGITAL_SIGNATURE, _KEY_CERT_SIGN, _CRL_SIGN = 0x80, 0x04, 0x02


@sealed
@dataclass(frozen=True, slots=True)
class VerifiedChain(Proof):
    """A chain that ends at a trusted root; only `verify_chain` makes one. Expiry is not judged here: see `windows`.

    `anchor` is the certificate at its end: one of the key of `root`. All are valid from `valid_from` to `valid_until`,
    both included.
    """

    made_by: ClassVar[str] = "verify_chain"

    kind: ChainKind
    leaf: Certificate
    intermediates: tuple[Certificate, ...]
    anchor: Certificate
    root: TrustRoot
    valid_from: datetime
    valid_until: datetime
    proof: InitVar[object] = None

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The key of the leaf."""
        return self.leaf.public_key

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """From the leaf to the anchor."""
        return self.leaf, *self.intermediates, self.anchor

    @property
    def windows(self) -> tuple[Window, ...]:
        """The validity of each certificate, from the leaf up."""
        return tuple(_window(certificate) for certificate in self.certificates)

    @property
    def extension(self) -> PckExtension:
        """Intel's SGX extension of the leaf, for chains of kind `pck`."""
        if self.kind != "pck":
            raise CertificateError(f"a chain of kind {self.kind} has no SGX extension")
        return sgx_extension(self.leaf, "")

    @property
    def ca(self) -> PckCa:
        """Which PCK CA issued the leaf (kind `pck`), or which one the leaf is (kind `ca`)."""
        if self.kind == "tcb-signing":
            raise CertificateError(f"a chain of kind {self.kind} has no PCK CA")
        return _pck_ca(self.certificates[-2], "")


def verify_chain(
    certificates: bytes | Sequence[bytes] | PemChain,
    *,
    roots: TrustRoots,
    kind: ChainKind,
    step: str,
    known: Known | None = None,
) -> VerifiedChain:
    """Verify a chain, given as PEM, read or not, or as the DER of its certificates, up to one of the roots.

    (1) read the certificates: leaf first or root first, with or without the root, and no other certificate;
    (2) names and algorithms of the profile;
    (3) the path: names, signatures, constraints, key usage; all were valid together once;
    (4) the root's key is a trusted one. A sound chain to another root is an `UntrustedRootError`;
    (5) for a PCK certificate, its SGX extension.

    Malformed bytes are a `FormatError`, a wrong signature a `SignatureError`, the rest a `CertificateError`. Signatures
    by issuers are remembered in `known`, but for those of PCK certificates.
    """
    # (1)
    path, included_root = _arrange([*_load(certificates, kind).certificates], kind, step)
    # (2)
    _check_profile(path if included_root is None else [*path, included_root], kind, step)
    # (3)
    anchor = included_root or _issuing_root(path[-1], roots, step)
    root = roots.with_public_key(anchor.point)
    # A root that came from outside must at least have signed itself.
    if root is None or anchor.der != root.certificate_der:
        _check_issued(anchor, anchor, step, known)
    valid_from, valid_until = _check_path([*path, anchor], kind, step, known)
    # (4)
    if root is None:
        raise UntrustedRootError(
            f"the {_WORDS[kind]} chain ends at a root that is not trusted",
            step=step,
            expected=" or ".join(one.name for one in roots.roots),
            found=f"{anchor.common_name}, SHA-256 {hashlib.sha256(anchor.der).hexdigest()}",
        )
    # (5)
    if kind == "pck":
        sgx_extension(path[0], step)
    if kind != "tcb-signing":
        _pck_ca(path[-1], step)
    remember((*path, anchor))
    return VerifiedChain(
        kind=kind,
        leaf=path[0],
        intermediates=tuple(path[1:]),
        anchor=anchor,
        root=root,
        valid_from=valid_from,
        valid_until=valid_until,
        proof=PROOF,
    )


def _load(certificates: bytes | Sequence[bytes] | PemChain, kind: ChainKind) -> PemChain:
    if isinstance(certificates, PemChain):
        return certificates
    structure = f"{_WORDS[kind]} chain"
    if isinstance(certificates, bytes):
        return load_chain(certificates, structure=structure)
    return PemChain.of(load_certificates(certificates[: _MAX_CHAIN + 1], structure))


def _arrange(found: list[Certificate], kind: ChainKind, step: str) -> tuple[list[Certificate], Certificate | None]:
    """The path from the leaf to below the root, and the root if it came along."""
    if found and found[0].self_issued:
        found.reverse()
    root = found.pop() if found and found[-1].self_issued else None
    expected = len(_NAMES[kind]) - 1
    if len(found) != expected or found[0].self_issued or found[-1].self_issued:
        raise CertificateError(
            f"the {_WORDS[kind]} chain has other certificates than it should",
            step=step,
            expected=f"{expected} and perhaps the root",
            found=", ".join(certificate.common_name or "unnamed" for certificate in found) or "no other than the root",
        )
    return found, root


def _check_profile(certificates: list[Certificate], kind: ChainKind, step: str) -> None:
    for certificate, expected in zip(certificates, _NAMES[kind], strict=False):
        if expected not in certificate.common_name:
            raise CertificateError(
                f"a certificate of the {_WORDS[kind]} chain has another name than it should",
                step=step,
                expected=f"a common name with {expected!r}",
                found=certificate.common_name,
            )
        check_p256(certificate, step=step)


def _issuing_root(top: Certificate, roots: TrustRoots, step: str) -> Certificate:
    """The trusted root that says it issued `top`: by name, and by key identifier, since names are copied easily."""
    key_id = top.extensions.authority_key_id
    for root in roots.roots:
        if root.certificate.subject == top.issuer and root.certificate.extensions.subject_key_id == key_id:
            return root.certificate
    raise UntrustedRootError(
        f"{top.common_name!r} was issued by a root that is not trusted",
        step=step,
        expected=" or ".join(root.name for root in roots.roots),
        found=f"{top.issuer_text}, key identifier {key_id.hex() if key_id else 'missing'}",
    )


def _check_path(whole: list[Certificate], kind: ChainKind, step: str, known: Known | None) -> tuple[datetime, datetime]:
    """Step 3 for the path from leaf to anchor; when all are valid."""
    for certificate, issuer in pairwise(whole):
        # PCK certificates are as many as platforms: what is remembered of one is remembered with its platform.
        leaf_of_platform = kind == "pck" and certificate is whole[0]
        _check_issued(certificate, issuer, step, None if leaf_of_platform else known)
    begin, end = whole[-1].not_before, whole[-1].not_after
    for below, certificate in enumerate(whole):
        begin, end = max(begin, certificate.not_before), min(end, certificate.not_after)
        wrong = _extension_problem(certificate, ca=below > 0 or kind == "ca", cas_below=below - 1)
        if wrong:
            raise CertificateError(
                f"certificate {certificate.common_name!r} of the {_WORDS[kind]} chain {wrong}", step=step
            )
    if begin > end:
        raise CertificateError(f"the certificates of the {_WORDS[kind]} chain were never valid together", step=step)
    return begin, end


def _check_issued(certificate: Certificate, issuer: Certificate, step: str, known: Known | None) -> None:
    what, by = certificate.common_name, issuer.common_name
    if certificate.issuer != issuer.subject:
        message = f"certificate {what!r} was not issued by {by!r}: it names another issuer"
        raise CertificateError(message, step=step, expected=issuer.subject_text, found=certificate.issuer_text)
    if not is_good(issuer, certificate.signature, certificate.signed_digest, known):
        raise SignatureError(
            f"signature of certificate {what!r} does not match",
            step=step,
            expected=f"a signature by {by!r}",
            found=certificate.signature.hex(),
        )


def _extension_problem(certificate: Certificate, *, ca: bool, cas_below: int) -> str:
    """What is wrong with the extensions, empty if nothing is; `cas_below` counts the CAs under this certificate."""
    found = certificate.extensions
    usage = found.key_usage[0] if found.key_usage else 0
    if found.problem:
        return found.problem
    if found.is_ca != ca:
        return "is not a CA" if ca else "is a CA, and a leaf must not be one"
    if ca:
        if usage & (_KEY_CERT_SIGN | _CRL_SIGN) != _KEY_CERT_SIGN | _CRL_SIGN:
            return "has a key that may not sign certificates and revocation lists"
        if found.path_length is not None and found.path_length < cas_below:
            return f"allows {found.path_length} CAs below it, and has {cas_below}"
    elif usage & (_DIGITAL_SIGNATURE | _KEY_CERT_SIGN | _CRL_SIGN) != _DIGITAL_SIGNATURE:
        return "has a key that may not sign data, or may sign certificates or revocation lists"
    return ""


def sgx_extension(leaf: Certificate, step: str) -> PckExtension:
    """Intel's SGX extension of a PCK certificate, which says nothing about the certificate's signature."""
    extension = leaf.sgx_extension
    if extension is None:
        raise CertificateError("the PCK certificate has no SGX extension", step=step)
    return extension


def _pck_ca(certificate: Certificate, step: str) -> PckCa:
    name = certificate.common_name
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


def _window(certificate: Certificate) -> Window:
    return Window(f"certificate {certificate.common_name}", certificate.not_before, certificate.not_after)
