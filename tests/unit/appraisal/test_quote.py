"""Verification step by step: what is proven, and that nothing else passes."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from msgspec import structs

import pki_builder as intel
from confcom.appraisal.quote import QuoteVerifier, VerifiedQuote, verify_quote, verify_similar
from confcom.errors import (
    BindingError,
    CollateralInvalid,
    ConfcomError,
    FormatError,
    RevokedError,
    SignatureError,
    UntrustedRootError,
)
from confcom.formats.quote import (
    CertificationData,
    CertificationDataType,
    PpidCleartext,
    PpidEncryptedRsa2048,
    PpidEncryptedRsa3072,
    Quote,
)
from confcom.formats.tcb_info import TcbStatus
from confcom.pki.certificate import MAX_PEM, Crl, parse_certificates
from confcom.pki.chain import TrustRoots
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.enclaves import QE3, TDX_1_5, quote_td, td_report, td_report_1_5
from confcom.simulator.machine import PckCa, SimulatedMachine
from confcom.simulator.world import SimulatedPlatform, SimulatedWorld


def test_a_genuine_quote_is_authentic_and_says_that_it_is_simulated(world, make_quote, verifier, now) -> None:
    verified = verifier.verify(make_quote(), world.publish(), now=now)
    assert verified.simulated
    assert verified.tcb_status is TcbStatus.UP_TO_DATE
    assert verified.stale == ()
    assert verified.pck.fmspc == world.machine.fmspc


def test_only_verification_makes_a_verified_quote(world, make_quote, verifier, now) -> None:
    verified = verifier.verify(make_quote(), world.publish(), now=now)
    fields = {name: getattr(verified, name) for name in VerifiedQuote.__dataclass_fields__}
    with pytest.raises(TypeError):
        VerifiedQuote(**fields | {"proof": object()})


def test_a_quote_beside_a_similar_one_needs_its_signature_and_the_dates(world, make_quote, verifier, now) -> None:
    earlier, made = verifier.verify(make_quote(), world.publish(), now=now), make_quote(b"\1" * 64)
    later = now + timedelta(days=4000)
    for at in (now, later):
        similar = verify_similar(earlier, earlier.quote.similar(made), roots=verifier.roots, now=at)
        assert similar == verifier.verify(made, world.publish(), now=at)
    assert similar.stale
    assert similar.report_data == b"\1" * 64
    for place in (368, 431, 436, 499):
        wrong = bytearray(made)
        wrong[place] ^= 1
        with pytest.raises(SignatureError) as refused:
            verify_similar(earlier, earlier.quote.similar(bytes(wrong)), roots=verifier.roots, now=now)
        assert refused.value.step == "quote-signature"


def test_a_quote_that_shares_less_is_not_verified_beside_another(world, make_quote, verifier, now) -> None:
    earlier = verifier.verify(make_quote(), world.publish(), now=now)
    similar, other = earlier.quote.similar(make_quote(b"\1" * 64)), Quote.parse(make_quote(isv_svn=7))
    section = similar.signature
    for wrong in (
        Quote.parse(bytes(earlier.quote)),
        structs.replace(similar, header=other.header),
        structs.replace(similar, body=other.body),
        structs.replace(similar, signature=structs.replace(section, attestation_key=bytes(64))),
        structs.replace(similar, signature=structs.replace(section, certification=other.signature.certification)),
    ):
        with pytest.raises(ValueError, match="differ in more"):
            verify_similar(earlier, wrong, roots=verifier.roots, now=now)
    with pytest.raises(ValueError, match="root"):
        verify_similar(earlier, similar, roots=TrustRoots.intel(), now=now)


def test_a_simulated_quote_is_refused_under_intels_root(world, make_quote, now) -> None:
    with pytest.raises(UntrustedRootError) as refused:
        verify_quote(make_quote(), world.publish(), roots=TrustRoots.intel(), now=now)
    assert refused.value.step == "pck-chain"
    assert "--trust-root" in refused.value.advice()


def test_collateral_of_another_root_is_refused(world, make_quote, verifier, now) -> None:
    other = SimulatedWorld.from_seed(b"seed of another world", now=now)
    with pytest.raises(CollateralInvalid, match="root that is not trusted"):
        verifier.verify(make_quote(), other.publish(), now=now)
    both = TrustRoots((*world.trust_roots.roots, *other.trust_roots.roots))
    with pytest.raises(CollateralInvalid):
        verify_quote(make_quote(), other.publish(), roots=both, now=now)


def test_collateral_of_another_fmspc_is_refused_with_both_values(world, make_quote, verifier, now) -> None:
    fmspc = bytes.fromhex("00aabbccddee")
    world.authority.add_tcb_info(fmspc)
    collateral = world.authority.collateral(fmspc, world.machine.pck_ca)
    with pytest.raises(CollateralInvalid) as refused:
        verifier.verify(make_quote(), collateral, now=now)
    assert refused.value.step == "tcb-info-match"
    assert fmspc.hex() in refused.value.found
    assert world.machine.fmspc.hex() in refused.value.expected


def test_collateral_of_the_other_pck_ca_is_refused(world, make_quote, verifier, now) -> None:
    other = PckCa.PROCESSOR if world.machine.pck_ca is PckCa.PLATFORM else PckCa.PLATFORM
    with pytest.raises(CollateralInvalid) as refused:
        verifier.verify(make_quote(), world.authority.collateral(world.machine.fmspc, other), now=now)
    assert refused.value.step == "pck-revocation"


@pytest.mark.parametrize("who", ["pck", "pck-ca", "tcb-signing"])
def test_a_revoked_certificate_is_refused(world, make_quote, verifier, now, who: str) -> None:
    quote = make_quote()
    match who:
        case "pck":
            world.authority.revoke_pck(world.machine)
        case "pck-ca":
            world.authority.revoke_pck_ca(world.machine.pck_ca)
        case _:
            world.authority.revoke_tcb_signing()
    with pytest.raises(CollateralInvalid if who == "tcb-signing" else RevokedError):
        verifier.verify(quote, world.publish(), now=now)


def test_revocation_counts_for_a_platform_that_was_verified_before(world, make_quote, verifier, now) -> None:
    quote = make_quote()
    verifier.verify(quote, world.publish(), now=now)
    world.authority.revoke_pck(world.machine)
    with pytest.raises(RevokedError):
        verifier.verify(quote, world.publish(), now=now)


def test_an_attestation_key_that_the_qe_does_not_vouch_for_is_refused(world, make_quote, verifier, now) -> None:
    quote = Quote.parse(make_quote())
    other = structs.replace(quote.signature, attestation_key=quote.signature.attestation_key[::-1])
    with pytest.raises(BindingError) as refused:
        verifier.verify(structs.replace(quote, signature=other), world.publish(), now=now)
    assert refused.value.step == "attestation-key-binding"


def test_a_changed_body_is_refused_at_the_quotes_signature(world, make_quote, verifier, now) -> None:
    quote = Quote.parse(make_quote())
    forged = structs.replace(quote, body=replace(quote.body, isv_svn=99))
    with pytest.raises(SignatureError) as refused:
        verifier.verify(forged, world.publish(), now=now)
    assert refused.value.step == "quote-signature"


def _certified_by(quote: bytes, kind: int, data: bytes) -> bytes:
    parsed = Quote.parse(quote)
    entry = CertificationData(CertificationDataType(kind), data)
    certification = structs.replace(parsed.signature.certification, certification_data=entry)
    return bytes(structs.replace(parsed, signature=structs.replace(parsed.signature, certification=certification)))


def _named(world, kind: int, **changes: object) -> bytes:
    """What a quote of the type says of the world's first machine."""
    values = {"cpu_svn": world.machine.tcb.cpu_svn, "pce_svn": world.machine.tcb.pce_svn, "pce_id": 0} | changes
    match kind:
        case 1:
            return bytes(PpidCleartext(**{"ppid": world.machine.ppid} | values))
        case 2:
            return bytes(PpidEncryptedRsa2048(encrypted_ppid=bytes(256), **values))
        case _:
            return bytes(PpidEncryptedRsa3072(encrypted_ppid=bytes(384), **values))


@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize("tee", ["sgx", "tdx"])
def test_a_quote_that_names_its_platform_is_verified_by_the_chain_beside(
    world, make_quote, verifier, now, tee: str, kind: int
) -> None:
    quote = make_quote() if tee == "sgx" else world.platform.quote_td(td_report("td", bytes(64)))
    collateral = world.authority.collateral(world.machine.fmspc, world.machine.pck_ca, tee)
    named = _certified_by(quote, kind, _named(world, kind))
    with pytest.raises(FormatError, match=rf"type {kind} \(PPID_.*is not here") as caught:
        verifier.verify(named, collateral, now=now)
    assert "--pck-chain" in caught.value.advice()
    beside = replace(collateral, pck_certificate_chain=world.authority.pck_chain(world.machine) + b"\0")
    verified = verifier.verify(named, beside, now=now)
    assert verified.pck.ppid == world.machine.ppid
    assert verified.tcb_status is TcbStatus.UP_TO_DATE
    # The chain in a quote comes first, whatever stands beside.
    other = replace(collateral, pck_certificate_chain=b"no chain")
    assert verifier.verify(quote, other, now=now).pck == verified.pck


@pytest.mark.parametrize(
    ("kind", "changes", "what"),
    [
        (1, {"ppid": bytes(16)}, "PPID"),
        (2, {"cpu_svn": bytes(16)}, "CPUSVN"),
        (3, {"cpu_svn": b"\xff" * 16}, "CPUSVN"),
        (3, {"pce_svn": 0}, "PCESVN"),
        (1, {"pce_id": 1}, "PCE-ID"),
        (3, {"pce_id": 256}, "PCE-ID"),
    ],
)
def test_a_chain_of_another_platform_than_the_quote_names_is_refused(
    world, make_quote, verifier, now, kind: int, changes: dict, what: str
) -> None:
    beside = replace(world.publish(), pck_certificate_chain=world.authority.pck_chain(world.machine))
    verifier.verify(_certified_by(make_quote(), kind, _named(world, kind)), beside, now=now)
    with pytest.raises(CollateralInvalid, match=what) as caught:
        verifier.verify(_certified_by(make_quote(), kind, _named(world, kind, **changes)), beside, now=now)
    assert caught.value.step == "pck-chain"


def test_a_raw_tcb_above_that_of_the_certificate_is_the_platforms(world, make_quote, verifier, now) -> None:
    beside = replace(world.publish(), pck_certificate_chain=world.authority.pck_chain(world.machine))
    raw = Quote.parse(make_quote()).signature.certification.qe_report.cpu_svn
    named = _named(world, 3, cpu_svn=raw, pce_svn=world.machine.tcb.pce_svn + 1)
    verifier.verify(_certified_by(make_quote(), 3, named), beside, now=now)


def test_the_chain_of_another_machine_is_refused_whatever_the_quote_names(make_quote, verifier, now, world) -> None:
    other = SimulatedMachine(b"seed of the appraisal tests", 1)
    beside = replace(world.publish(), pck_certificate_chain=world.authority.pck_chain(other))
    with pytest.raises(SignatureError) as caught:
        verifier.verify(_certified_by(make_quote(), 3, _named(world, 3)), beside, now=now)
    assert caught.value.step == "qe-report-signature"


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        (1, bytes(35), "36 bytes"),
        (2, bytes(404), "276 bytes"),
        (3, b"", "404 bytes"),
        (4, bytes(36), "PCK_CERTIFICATE"),
    ],
)
def test_certification_data_that_names_nothing_is_malformed(
    world, make_quote, verifier, now, kind: int, data: bytes, says: str
) -> None:
    beside = replace(world.publish(), pck_certificate_chain=world.authority.pck_chain(world.machine))
    with pytest.raises(FormatError, match=says):
        verifier.verify(_certified_by(make_quote(), kind, data), beside, now=now)


@pytest.mark.parametrize(("days", "stale"), [(0, False), (29, False), (31, True), (-3, True), (400, True)])
def test_stale_collateral_is_reported_and_the_status_still_told(
    world, make_quote, verifier, now, days: int, stale: bool
) -> None:
    collateral = world.publish()
    verified = verifier.verify(make_quote(), collateral, now=now + timedelta(days=days))
    assert bool(verified.stale) is stale
    assert verified.tcb_status is TcbStatus.UP_TO_DATE


def test_what_quote_and_collateral_have_in_common_is_stale_once(world, make_quote, verifier, now) -> None:
    verified = verifier.verify(make_quote(), world.publish(), now=now + timedelta(days=365 * 40))
    assert len(verified.stale) == len(set(verified.stale)) == 8


def test_a_platform_that_is_remembered_is_still_held_to_the_time(world, make_quote, verifier, now) -> None:
    quote, collateral = make_quote(), world.publish()
    assert not verifier.verify(quote, collateral, now=now).stale
    assert verifier.verify(quote, collateral, now=now + timedelta(days=60)).stale
    assert not verifier.verify(quote, collateral, now=now).stale


def test_the_cache_stays_bounded(world, make_quote, now) -> None:
    verifier = QuoteVerifier(world.trust_roots, cache_size=2)
    quote = make_quote()
    for day in range(5):
        verifier.verify(quote, world.publish(now + timedelta(days=day)), now=now)
    assert len(verifier._platforms) == 2
    assert len(verifier._collateral) == 2


def _with_chain(quote: bytes, chain: bytes) -> bytes:
    parsed = Quote.parse(quote)
    data = structs.replace(parsed.signature.certification.certification_data, data=chain)
    certification = structs.replace(parsed.signature.certification, certification_data=data)
    return bytes(structs.replace(parsed, signature=structs.replace(parsed.signature, certification=certification)))


def _chain_of(quote: bytes) -> bytes:
    return Quote.parse(quote).signature.certification.certification_data.data


def _mirrored(der: bytes) -> bytes:
    """The certificate with the other of the two signatures that ECDSA has: (r, n - s)."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    certificate = x509.load_der_x509_certificate(der)
    r, s = decode_dss_signature(certificate.signature)
    algorithm = intel.tlv(0x30, intel.tlv(0x06, bytes.fromhex("2a8648ce3d040302")))
    signature = intel.tlv(0x03, b"\0" + encode_dss_signature(r, order - s))
    return intel.tlv(0x30, certificate.tbs_certificate_bytes + algorithm + signature)


def _wrappings(chain: bytes, count: int) -> Iterator[bytes]:
    """Other bytes of the same certificates: NULs, blanks, line ends, text, line widths, other signatures, no root."""
    ders = parse_certificates(chain, structure="chain")
    for number in range(count):
        yield chain.rstrip(b"\0") + b"\0" * number
        yield chain.rstrip(b"\0") + b"\n \t" * number
        yield b"friendlyName: %d\n" % number + chain
        yield chain.replace(b"\n", b"\r\n", number)
        yield _pem(ders, 1 + number)
    for choice in range(8):
        changed = [_mirrored(der) if choice >> place & 1 else der for place, der in enumerate(ders)]
        yield from (_pem(changed, 64), _pem(changed[::-1], 64), _pem(changed[:2], 64))


def _pem(ders: Sequence[bytes], width: int) -> bytes:
    text = b""
    for der in ders:
        digits = base64.b64encode(der)
        lines = [digits[start : start + width] for start in range(0, len(digits), width)]
        text += b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])
    return text


def test_variants_of_one_genuine_quote_are_one_entry_and_push_nothing_out(world, make_quote, now) -> None:
    other = SimulatedWorld.from_seed(b"seed of the attacker", now=now)
    verifier = QuoteVerifier(TrustRoots((*world.trust_roots.roots, *other.trust_roots.roots)), cache_size=2)
    verifier.verify(make_quote(), world.publish(), now=now)
    (victim,) = verifier._platforms._entries
    enclave = other.machine.launch(EnclaveDeclaration.from_names("app", "vendor"))
    quote = other.platform.quote(enclave.create_report(other.platform.init_quote().target_info, bytes(64))).quote
    variants = {_with_chain(quote, chain) for chain in _wrappings(_chain_of(quote), 60)}
    assert len(variants) > 300
    collateral = other.publish()
    for variant in variants:
        verifier.verify(variant, collateral, now=now)
    assert victim in verifier._platforms._entries
    assert len(verifier._platforms) == 2
    assert {len(key) for memory in (verifier._platforms, verifier._collateral) for key in memory._entries} == {32, 98}


def test_variants_of_one_collateral_are_one_entry(world, make_quote, now) -> None:
    verifier = QuoteVerifier(world.trust_roots, cache_size=50)
    quote, collateral = make_quote(), world.publish()
    crl = Crl.parse(collateral.pck_crl)
    encodings = crl.der, crl.der + b"\0", crl.der.hex().encode(), crl.der.hex().upper().encode()
    for number, chain in enumerate(_wrappings(collateral.tcb_info_issuer_chain, 10)):
        parts = {"tcb_info_issuer_chain": chain, "tcb_info": b" " * number + collateral.tcb_info}
        verifier.verify(quote, replace(collateral, pck_crl=encodings[number % 4], **parts), now=now)
    assert len(verifier._platforms) == len(verifier._collateral) == 1


def test_what_is_remembered_is_no_reason_to_take_another_signature(world, make_quote, verifier, now) -> None:
    quote, collateral = make_quote(), world.publish()
    verifier.verify(quote, collateral, now=now)
    leaf, *issuers = parse_certificates(_chain_of(quote), structure="chain")
    forged = _with_chain(quote, _pem([leaf[:-1] + bytes([leaf[-1] ^ 1]), *issuers], 64))
    with pytest.raises(SignatureError):
        verifier.verify(forged, collateral, now=now)
    with pytest.raises(FormatError):
        verifier.verify(_with_chain(quote, _chain_of(quote) + b"\0" * MAX_PEM), collateral, now=now)


def _verifications(call: Callable[[], object]) -> int:
    """How many ECDSA signatures a call verifies."""
    count = 0

    def see(_frame: object, event: str, function: object) -> None:
        nonlocal count
        count += event == "c_call" and "ECPublicKey" in repr(function) and function.__name__ == "verify"  # type: ignore[attr-defined]

    sys.setprofile(see)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def _quote_of(world: SimulatedWorld, number: int, name: str, tee: str) -> bytes:
    """Of an enclave or TD of that name on one of the machines."""
    machine, platform = world.machines[number], world.platforms[number]
    if tee == "tdx":
        return platform.quote_td(td_report(name, bytes(64)))
    enclave = machine.launch(EnclaveDeclaration.from_names(name, "vendor"))
    return platform.quote(enclave.create_report(platform.init_quote().target_info, bytes(64))).quote


@pytest.mark.parametrize("tee", ["sgx", "tdx"])
def test_each_signature_is_verified_once_and_what_is_known_not_again(now, tee: str) -> None:
    world = SimulatedWorld.from_seed(b"seed of two machines", now=now, machines=2)
    collateral = world.authority.collateral(world.machine.fmspc, world.machine.pck_ca, tee)

    verifier = QuoteVerifier(world.trust_roots)
    quotes = [_quote_of(world, *which, tee) for which in ((0, "first"), (0, "second"), (1, "first"))]
    counts = [_verifications(lambda quote=quote: verifier.verify(quote, collateral, now=now)) for quote in quotes]
    # PCK CA, PCK, two CRLs, TCB signing, TCB info, QE identity, QE report, quote; the quote; PCK, QE report, quote.
    assert counts == [9, 1, 3]
    # A new CRL of the PCK CA: its signature, and all that is said of the platform and its QE again.
    fresh = world.authority.collateral(world.machine.fmspc, world.machine.pck_ca, tee)
    renewed = replace(fresh, pck_crl=world.publish(now + timedelta(days=1)).pck_crl)
    assert _verifications(lambda: verifier.verify(quotes[0], renewed, now=now + timedelta(days=1))) == 4


def _quotes_of_many_kinds(world: SimulatedWorld, tee: str) -> Iterator[bytes]:
    """Of platforms at three TCBs, by quoting enclaves of three kinds, of TDs of several modules."""
    for number, machine in enumerate(world.machines):
        machine.tcb = [machine.tcb, machine.tcb.with_component(1, 3), replace(machine.tcb, pce_svn=2)][number]
        chain = world.authority.pck_chain(machine)
        if tee == "tdx":
            for svn in (TDX_1_5, bytes(16), b"\5\1" + bytes(14), b"\0\1" + bytes(14)):
                yield quote_td(machine, chain, td_report("td", bytes(64), svn))
                yield quote_td(machine, chain, td_report_1_5("td", bytes(64), TDX_1_5, svn))
            yield quote_td(machine, chain, replace(td_report("td", bytes(64)), mr_signer_seam=b"\1" * 48))
            continue
        for qe in (QE3, replace(QE3, isv_svn=1), replace(QE3, mr_signer=bytes(32)), replace(QE3, isv_prod_id=7)):
            own = SimulatedPlatform(machine, world.authority, qe)
            report = machine.launch(EnclaveDeclaration.from_names("app", "vendor"))
            yield own.quote(report.create_report(own.init_quote().target_info, bytes(64))).quote


@pytest.mark.parametrize("tee", ["sgx", "tdx"])
def test_what_is_known_of_other_platforms_changes_no_verdict(now, tee: str) -> None:
    world = SimulatedWorld.from_seed(b"seed of three machines", now=now, machines=3)
    quotes = list(_quotes_of_many_kinds(world, tee))
    collateral = world.authority.collateral(world.machine.fmspc, world.machine.pck_ca, tee)

    def verdict(verifier: QuoteVerifier, quote: bytes) -> object:
        try:
            return verifier.verify(quote, collateral, now=now, any_tcb=True).tcb
        except ConfcomError as error:
            return str(error)

    alone = [verdict(QuoteVerifier(world.trust_roots), quote) for quote in quotes]
    assert len(set(map(str, alone))) >= 4
    for order in (quotes, quotes[::-1]):
        verifier, expected = QuoteVerifier(world.trust_roots), dict(zip(quotes, alone, strict=True))
        for quote in order:
            assert verdict(verifier, quote) == expected[quote]


@pytest.mark.parametrize("tee", ["sgx", "tdx"])
def test_a_tcb_recovery_holds_for_platforms_of_a_known_model(now, tee: str) -> None:
    """What is known of one platform under older collateral is no answer for another one under newer."""
    world = SimulatedWorld.from_seed(b"seed of two machines", now=now, machines=2)
    verifier = QuoteVerifier(world.trust_roots)

    def status(number: int) -> TcbStatus | None:
        collateral = world.authority.collateral(world.machine.fmspc, world.machine.pck_ca, tee)
        return verifier.verify(_quote_of(world, number, "app", tee), collateral, now=now).tcb_status

    assert status(0) is TcbStatus.UP_TO_DATE
    world.authority.raise_tcb(world.machine.tcb.with_component(1, 250), advisory_ids=["INTEL-SA-1"])
    assert status(1) is TcbStatus.OUT_OF_DATE


def test_a_qe_report_is_known_by_its_exact_signature(world, make_quote, verifier, now) -> None:
    quote, collateral = make_quote(), world.publish()
    verifier.verify(quote, collateral, now=now)
    parsed = Quote.parse(quote)
    certification = parsed.signature.certification
    at = quote.index(certification.qe_report_signature)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    s = order - int.from_bytes(quote[at + 32 : at + 64], "big")
    other = quote[: at + 32] + s.to_bytes(32, "big") + quote[at + 64 :]
    # ECDSA has two signatures of each message: both verify, and are one entry.
    assert _verifications(lambda: verifier.verify(other, collateral, now=now)) == 2
    assert _verifications(lambda: verifier.verify(other, collateral, now=now)) == 1
    (entry,) = verifier._platforms._entries.values()
    assert len(entry.value.attesters) == 1


def _accepted_after_change(quote: bytes, offset: int, verify) -> bool:
    changed = bytearray(quote)
    changed[offset] ^= 0x01
    try:
        verify(bytes(changed))
    except ConfcomError:
        return False
    return True


@pytest.mark.parametrize("warm", [False, True])
def test_no_byte_of_a_simulated_quote_can_change(world, make_quote, verifier, now, warm: bool) -> None:
    quote, collateral = make_quote(), world.publish()
    if warm:
        verifier.verify(quote, collateral, now=now)
    accepted = [
        offset
        for offset in range(len(quote))
        if _accepted_after_change(quote, offset, lambda data: verifier.verify(data, collateral, now=now))
    ]
    assert accepted == []
