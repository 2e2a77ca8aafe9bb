"""Verification step by step: what is proven, and that nothing else passes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from confcom.appraisal.evidence import VerifiedQuote
from confcom.appraisal.quote import QuoteVerifier, verify_quote
from confcom.errors import (
    BindingError,
    ConfcomError,
    FormatError,
    MismatchError,
    RevokedError,
    SignatureError,
    UntrustedRootError,
    VerificationError,
)
from confcom.formats.quote import Quote
from confcom.formats.tcb_info import TcbStatus
from confcom.pki.roots import TrustRoots
from confcom.simulator.machine import PckCa
from confcom.simulator.world import SimulatedWorld


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


def test_a_simulated_quote_is_refused_under_intels_root(world, make_quote, now) -> None:
    with pytest.raises(UntrustedRootError) as refused:
        verify_quote(make_quote(), world.publish(), roots=TrustRoots.intel(), now=now)
    assert refused.value.step == "pck-chain"
    assert "--trust-root" in refused.value.advice()


def test_collateral_of_another_root_is_refused(world, make_quote, verifier, now) -> None:
    other = SimulatedWorld.from_seed(b"seed of another world", now=now)
    with pytest.raises(VerificationError):
        verifier.verify(make_quote(), other.publish(), now=now)
    both = TrustRoots((*world.trust_roots.roots, *other.trust_roots.roots))
    with pytest.raises(MismatchError):
        verify_quote(make_quote(), other.publish(), roots=both, now=now)


def test_collateral_of_another_fmspc_is_refused_with_both_values(world, make_quote, verifier, now) -> None:
    fmspc = bytes.fromhex("00aabbccddee")
    world.authority.add_tcb_info(fmspc)
    collateral = world.authority.collateral(fmspc, world.machine.pck_ca)
    with pytest.raises(MismatchError) as refused:
        verifier.verify(make_quote(), collateral, now=now)
    assert refused.value.step == "tcb-info-match"
    assert fmspc.hex() in refused.value.found
    assert world.machine.fmspc.hex() in refused.value.expected


def test_collateral_of_the_other_pck_ca_is_refused(world, make_quote, verifier, now) -> None:
    other = PckCa.PROCESSOR if world.machine.pck_ca is PckCa.PLATFORM else PckCa.PLATFORM
    with pytest.raises(MismatchError) as refused:
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
    with pytest.raises(RevokedError):
        verifier.verify(quote, world.publish(), now=now)


def test_revocation_counts_for_a_platform_that_was_verified_before(world, make_quote, verifier, now) -> None:
    quote = make_quote()
    verifier.verify(quote, world.publish(), now=now)
    world.authority.revoke_pck(world.machine)
    with pytest.raises(RevokedError):
        verifier.verify(quote, world.publish(), now=now)


def test_an_attestation_key_that_the_qe_does_not_vouch_for_is_refused(world, make_quote, verifier, now) -> None:
    quote = Quote.parse(make_quote())
    other = replace(quote.signature, attestation_key=quote.signature.attestation_key[::-1])
    with pytest.raises(BindingError) as refused:
        verifier.verify(replace(quote, signature=other), world.publish(), now=now)
    assert refused.value.step == "attestation-key-binding"


def test_a_changed_body_is_refused_at_the_quotes_signature(world, make_quote, verifier, now) -> None:
    quote = Quote.parse(make_quote())
    forged = replace(quote, body=replace(quote.body, isv_svn=99))
    with pytest.raises(SignatureError) as refused:
        verifier.verify(forged, world.publish(), now=now)
    assert refused.value.step == "quote-signature"


def test_a_quote_without_a_pck_chain_says_what_it_has_instead(world, make_quote, verifier, now) -> None:
    quote = make_quote()
    index = Quote.parse(quote).signature.certification
    offset = quote.index(bytes(index.certification_data))
    without = quote[:offset] + (4).to_bytes(2, "little") + quote[offset + 2 :]
    with pytest.raises(FormatError, match="PCK_CERTIFICATE"):
        verifier.verify(without, world.publish(), now=now)


@pytest.mark.parametrize(("days", "stale"), [(0, False), (29, False), (31, True), (-3, True), (400, True)])
def test_stale_collateral_is_reported_and_the_status_still_told(
    world, make_quote, verifier, now, days: int, stale: bool
) -> None:
    collateral = world.publish()
    verified = verifier.verify(make_quote(), collateral, now=now + timedelta(days=days))
    assert bool(verified.stale) is stale
    assert verified.tcb_status is TcbStatus.UP_TO_DATE


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


def _accepted_after_change(quote: bytes, offset: int, verify) -> bool:
    changed = bytearray(quote)
    changed[offset] ^= 0x01
    try:
        verify(bytes(changed))
    except ConfcomError:
        return False
    return True


def test_no_byte_of_a_simulated_quote_can_change(world, make_quote, verifier, now) -> None:
    quote, collateral = make_quote(), world.publish()
    accepted = [
        offset
        for offset in range(len(quote))
        if _accepted_after_change(quote, offset, lambda data: verifier.verify(data, collateral, now=now))
    ]
    assert accepted == []
