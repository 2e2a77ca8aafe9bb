"""Chains: what Intel's PKI issues is verified at any time; every other arrangement has its own refusal."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509

import pki_builder as intel
from confcom.errors import CertificateError, ConfcomError, FormatError, SignatureError, UntrustedRootError
from confcom.pki.certificate import PemChain, load_certificates
from confcom.pki.chain import ChainKind, TrustRoot, TrustRoots, VerifiedChain, verify_chain
from confcom.pki.proof import Known, Memory

OWN = TrustRoots((TrustRoot.from_pem(intel.pem(intel.ROOT_CERTIFICATE)),))
PCK = intel.PCK_CERTIFICATE
CA = intel.PLATFORM_CERTIFICATE
SIGNING = intel.SIGNING_CERTIFICATE
ROOT = intel.ROOT_CERTIFICATE


def _verify(*certificates: intel.Certificate, kind: ChainKind = "pck", roots: TrustRoots = OWN) -> VerifiedChain:
    return verify_chain(intel.pem(*certificates), roots=roots, kind=kind, step="(3)")


def test_a_pck_chain() -> None:
    chain = _verify(PCK, CA, ROOT)
    assert chain.leaf.serial_number == 4
    assert [item.serial_number for item in chain.intermediates] == [2]
    assert chain.root is OWN.roots[0]
    assert chain.ca == "platform"
    assert chain.extension.tcb.pce_svn == 13
    assert chain.leaf.point == intel.point(intel.PCK)
    assert chain.public_key.public_numbers() == intel.PCK.public_key().public_numbers()


def test_a_processor_chain() -> None:
    ca = replace(CA, subject=intel.PROCESSOR_NAME)
    assert _verify(replace(PCK, issuer=intel.PROCESSOR_NAME), ca, ROOT).ca == "processor"
    assert _verify(ca, ROOT, kind="ca").ca == "processor"


def test_the_root_may_come_last_first_or_not_at_all() -> None:
    leaves = {_verify(*certificates).leaf for certificates in ((PCK, CA, ROOT), (ROOT, CA, PCK), (PCK, CA))}
    assert len(leaves) == 1
    assert _verify(SIGNING, kind="tcb-signing").root is _verify(ROOT, SIGNING, kind="tcb-signing").root


def test_der_is_taken_as_well_as_pem() -> None:
    chain = verify_chain([PCK.build(), CA.build()], roots=OWN, kind="pck", step="(3)")
    assert chain == _verify(PCK, CA)


def test_a_signing_chain_has_no_extension_and_no_pck_ca() -> None:
    chain = _verify(SIGNING, ROOT, kind="tcb-signing")
    with pytest.raises(CertificateError):
        _ = chain.extension
    with pytest.raises(CertificateError):
        _ = chain.ca


def test_a_verified_chain_cannot_be_made_by_hand() -> None:
    chain = _verify(PCK, CA)
    with pytest.raises(TypeError):
        VerifiedChain("pck", chain.leaf, chain.intermediates, chain.anchor, chain.root)
    with pytest.raises(TypeError):
        dataclasses.replace(chain, kind="ca")


def test_another_certificate_of_the_same_root_key_is_trusted() -> None:
    renewed = replace(ROOT, serial=99, end=intel.END - timedelta(days=1))
    chain = _verify(PCK, CA, renewed)
    assert chain.root is OWN.roots[0]
    assert chain.windows[-1].not_after == renewed.end


def test_validity_is_handed_out_and_not_judged() -> None:
    # All of it ended long before any test runs, and parts began after others.
    begin = intel.START.replace(year=2001)
    old = replace(ROOT, begin=begin, end=begin.replace(year=2009))
    leaf = replace(PCK, begin=begin.replace(year=2005), end=begin.replace(year=2006))
    ca = replace(CA, begin=begin.replace(year=2003), end=begin.replace(year=2008))
    chain = _verify(leaf, ca, old)
    assert [(window.what, window.not_before.year, window.not_after.year) for window in chain.windows] == [
        (f"certificate {intel.PCK_NAME}", 2005, 2006),
        (f"certificate {intel.PLATFORM_NAME}", 2003, 2008),
        (f"certificate {intel.ROOT_NAME}", 2001, 2009),
    ]


def test_certificates_that_were_never_valid_together_are_no_chain() -> None:
    begin = intel.START.replace(year=2001)
    with pytest.raises(CertificateError, match="never valid together"):
        _verify(replace(PCK, begin=begin, end=begin.replace(year=2002)), CA, ROOT)


def test_a_sound_chain_to_another_root_says_whom_to_trust() -> None:
    ca = replace(CA, signer=intel.STRANGER)
    with pytest.raises(UntrustedRootError) as caught:
        _verify(PCK, ca, intel.STRANGER_ROOT)
    assert "--trust-root" in caught.value.advice()
    assert caught.value.step == "(3)"
    fingerprint = sha256(intel.STRANGER_ROOT.build()).hexdigest()
    assert caught.value.found == f"{intel.ROOT_NAME}, SHA-256 {fingerprint}"  # as `confcom inspect` shows it
    with pytest.raises(UntrustedRootError):
        _verify(PCK, ca)
    with pytest.raises(UntrustedRootError):
        _verify(PCK, CA, ROOT, roots=TrustRoots.intel())


def test_a_forged_chain_to_another_root_is_forged_and_no_more() -> None:
    with pytest.raises(SignatureError):
        _verify(PCK, replace(CA, signer=intel.PCK, issuer_key=intel.STRANGER), intel.STRANGER_ROOT)


def test_a_root_that_did_not_sign_itself_is_refused_though_its_key_is_trusted() -> None:
    with pytest.raises(SignatureError, match="Root CA"):
        _verify(PCK, CA, replace(ROOT, signer=intel.STRANGER))


@pytest.mark.parametrize(
    "chain",
    [
        (replace(PCK, signer=intel.STRANGER), CA, ROOT),
        (PCK, replace(CA, signer=intel.STRANGER), ROOT),
        (PCK, replace(CA, signer=intel.STRANGER, issuer_key=intel.ROOT)),
    ],
)
def test_a_wrong_signature_is_called_so(chain: tuple[intel.Certificate, ...]) -> None:
    with pytest.raises(SignatureError) as caught:
        _verify(*chain)
    assert caught.value.step == "(3)"


@pytest.mark.parametrize(
    "leaf",
    [
        PCK,
        replace(PCK, serial=5),
        replace(PCK, signer=intel.STRANGER),
        replace(PCK, issuer="Intel SGX PCK Processor CA"),
        replace(PCK, subject="Intel SGX Certificate"),
        replace(PCK, begin=intel.START.replace(year=2001), end=intel.START.replace(year=2002)),
        replace(PCK, sgx=None),
        replace(PCK, without=(x509.KeyUsage,)),
        replace(PCK, without=(x509.BasicConstraints,)),
        CA,
    ],
)
def test_a_leaf_below_known_issuers_is_judged_as_below_new_ones(leaf: intel.Certificate) -> None:
    def verdict(known: Known | None) -> str:
        try:
            return repr(verify_chain(intel.pem(leaf, CA, ROOT), roots=OWN, kind="pck", step="(3)", known=known))
        except ConfcomError as error:
            return f"{type(error).__name__} {error}"

    known = Memory[bool](8)
    verify_chain(intel.pem(PCK, CA, ROOT), roots=OWN, kind="pck", step="(3)", known=known)
    assert verdict(known) == verdict(None)


def _signed_with(certificate: intel.Certificate, signature: bytes) -> bytes:
    """The certificate with any bytes as its signature."""
    algorithm = intel.tlv(0x30, intel.tlv(0x06, bytes.fromhex("2a8648ce3d040302")))
    signed = x509.load_der_x509_certificate(certificate.build()).tbs_certificate_bytes
    return intel.tlv(0x30, signed + algorithm + intel.tlv(0x03, b"\0" + signature))


@pytest.mark.parametrize("cut", [-8, 8])
def test_the_border_between_two_signatures_cannot_move(cut: int) -> None:
    chain = [PCK.build(), CA.build(), ROOT.build()]
    known = Memory[bool](8)
    verify_chain(chain, roots=OWN, kind="pck", step="(3)", known=known)
    ca, root = (x509.load_der_x509_certificate(der).signature for der in chain[1:])
    size = len(ca) + cut
    moved = [_signed_with(CA, (ca + root)[:size]), _signed_with(ROOT, (ca + root)[size:])]
    whole, other = (PemChain.of(load_certificates(ders, "")) for ders in (chain, [chain[0], *moved]))
    assert (whole.statement, whole.exact) != (other.statement, other.exact)
    with pytest.raises(SignatureError):
        verify_chain([chain[0], *moved], roots=OWN, kind="pck", step="(3)", known=known)


@pytest.mark.parametrize(
    "issuers",
    [
        (replace(CA, signer=intel.STRANGER), ROOT),
        (replace(CA, serial=77), replace(ROOT, signer=intel.STRANGER)),
        (replace(CA, path_length=None), intel.STRANGER_ROOT),
        (ROOT, CA),
    ],
)
def test_issuers_are_known_by_their_exact_bytes_and_places(issuers: tuple[intel.Certificate, ...]) -> None:
    known = Memory[bool](8)
    for kind, chain in (("pck", (PCK, CA, ROOT)), ("ca", (CA, ROOT)), ("tcb-signing", (SIGNING, ROOT))):
        verify_chain(intel.pem(*chain), roots=OWN, kind=kind, step="(3)", known=known)
    with pytest.raises(ConfcomError):
        verify_chain(intel.pem(PCK, *issuers), roots=OWN, kind="pck", step="(3)", known=known)
    # For a verifier with other roots what is known of their signatures is no reason to trust them.
    with pytest.raises(UntrustedRootError):
        verify_chain(intel.pem(PCK, CA, ROOT), roots=TrustRoots.intel(), kind="pck", step="(3)", known=known)


@pytest.mark.parametrize(
    ("kind", "chain"),
    [
        ("pck", (PCK,)),
        ("pck", (PCK, ROOT)),
        ("pck", (ROOT,)),
        ("pck", (PCK, CA, CA, ROOT)),
        ("pck", (PCK, CA, ROOT, ROOT)),
        ("pck", (PCK, ROOT, CA)),
        ("pck", (CA, PCK, ROOT)),
        ("pck", (SIGNING, ROOT)),
        ("tcb-signing", (ROOT,)),
        ("tcb-signing", (SIGNING, CA, ROOT)),
        ("tcb-signing", (PCK, CA, ROOT)),
        ("tcb-signing", (CA, ROOT)),
        ("ca", (SIGNING, ROOT)),
        ("ca", (ROOT,)),
        ("ca", (CA, CA, ROOT)),
    ],
)
def test_other_certificates_than_the_kind_has_are_refused(
    kind: ChainKind, chain: tuple[intel.Certificate, ...]
) -> None:
    with pytest.raises(CertificateError):
        _verify(*chain, kind=kind)


@pytest.mark.parametrize(
    ("kind", "chain"),
    [
        ("pck", (replace(PCK, subject="Intel SGX TCB Signing"), CA, ROOT)),
        ("pck", (replace(PCK, issuer="Intel SGX Platform"), replace(CA, subject="Intel SGX Platform"), ROOT)),
        ("pck", (replace(PCK, issuer="My CA"), replace(CA, subject="My CA"), ROOT)),
        ("pck", (PCK, replace(CA, issuer="My Root"), replace(ROOT, subject="My Root", issuer="My Root"))),
        ("tcb-signing", (replace(SIGNING, subject="Intel SGX PCK Certificate"), ROOT)),
    ],
)
def test_names_are_part_of_the_profile(kind: ChainKind, chain: tuple[intel.Certificate, ...]) -> None:
    with pytest.raises(CertificateError):
        _verify(*chain, kind=kind)


def test_a_pck_certificate_needs_its_sgx_extension() -> None:
    with pytest.raises(CertificateError, match="SGX extension"):
        _verify(replace(PCK, sgx=None), CA, ROOT)
    with pytest.raises(FormatError):
        _verify(replace(PCK, sgx=b"\x30\x00"), CA, ROOT)


@pytest.mark.parametrize("data", [b"", b"garbage", intel.pem(PCK, CA, ROOT)[:-30]])
def test_bytes_that_are_no_chain_are_malformed(data: bytes) -> None:
    with pytest.raises(FormatError):
        verify_chain(data, roots=OWN, kind="pck", step="(3)")
    with pytest.raises(FormatError):
        verify_chain([data, data], roots=OWN, kind="pck", step="(3)")


def test_without_a_root_the_issuer_is_known_by_its_key_identifier() -> None:
    anonymous = replace(CA, without=(x509.AuthorityKeyIdentifier,))
    with pytest.raises(UntrustedRootError, match="not trusted") as caught:
        _verify(PCK, anonymous)
    assert "missing" in caught.value.found
    unlabelled = replace(ROOT, without=(x509.SubjectKeyIdentifier,))
    with pytest.raises(CertificateError):
        _verify(PCK, anonymous, roots=TrustRoots((TrustRoot.from_pem(intel.pem(unlabelled)),)))


def test_no_certificates_are_no_chain() -> None:
    with pytest.raises(CertificateError):
        verify_chain([], roots=OWN, kind="pck", step="(3)")


@pytest.mark.vectors
def test_every_real_chain_leads_to_intel(vectors: Path) -> None:
    kinds: dict[str, ChainKind] = {
        "pck_chain.pem": "pck",
        "tcb_info_issuer_chain.pem": "tcb-signing",
        "qe_identity_issuer_chain.pem": "tcb-signing",
        "pck_crl_issuer_chain.pem": "ca",
    }
    for name, kind in kinds.items():
        paths = sorted((vectors / "real").glob(f"[st]*/{name}"))
        assert paths
        for path in paths:
            chain = verify_chain(path.read_bytes(), roots=TrustRoots.intel(), kind=kind, step="(1)")
            assert not chain.root.simulated, path
            assert chain.leaf.in_full() == x509.load_pem_x509_certificates(path.read_bytes())[0]
