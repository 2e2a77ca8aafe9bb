"""What a caller cannot get wrong by accident: truth values, proofs that are not made by hand, one call that raises."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import fields, replace
from datetime import datetime, timedelta

import pytest

from confcom import errors
from confcom.appraisal.collateral import verify_collateral
from confcom.appraisal.findings import Check, Verdict
from confcom.appraisal.policy import MrSigner, safe_defaults
from confcom.appraisal.quote import VerifiedQuote
from confcom.appraisal.result import accept_quote, appraise, judge
from confcom.errors import (
    ConfcomError,
    ConfigError,
    FormatError,
    PolicyError,
    SignatureError,
    StaleCollateralError,
    TcbNotSupportedError,
    TcbRevokedError,
)
from confcom.formats.tcb_info import TcbStatus
from confcom.pki.proof import Proof

SIMULATED = safe_defaults(accept_simulated=True)


@pytest.fixture
def accept(world, verifier, make_quote, now):
    def run(policy=SIMULATED, *, evidence=None, days: int = 0, **declared):
        quote = make_quote(**declared) if evidence is None else evidence
        at = now + timedelta(days=days)
        return accept_quote(quote, world.publish(), policy, now=at, verifier=verifier)

    return run


def test_only_what_is_accepted_is_true(world, verifier, make_quote, now) -> None:
    verified = verifier.verify(make_quote(), world.publish(), now=now)
    late = verifier.verify(make_quote(), world.publish(), now=now + timedelta(days=90))
    for held, policy, verdict in (
        (verified, SIMULATED, Verdict.ACCEPTED),
        (verified, safe_defaults(), Verdict.REFUSED),
        (late, SIMULATED, Verdict.UNDECIDED),
    ):
        appraisal = appraise(held, policy)
        result = judge(bytes(held.quote), world.publish(), verifier=verifier, policy=policy, now=held.verified_at)
        assert appraisal.verdict is result.verdict is verdict
        accepted = verdict is Verdict.ACCEPTED
        assert [bool(appraisal), bool(result), bool(verdict)] == [accepted] * 3
        assert len(repr(appraisal)) < 100
        assert len(repr(result)) < 100
    assert not Verdict.INVALID
    assert Check("x", ok=True, expected="", found="")
    assert not Check("x", ok=False, expected="", found="")


def test_one_call_returns_what_is_accepted_and_raises_for_everything_else(world, accept, make_quote) -> None:
    verified = accept(isv_prod_id=3)
    assert verified.quote.body.isv_prod_id == 3
    signer = MrSigner([verified.quote.body.mr_signer])
    with pytest.raises(PolicyError, match="hardware"):
        accept(signer)
    with pytest.raises(PolicyError, match="no-debug"):
        accept(debug=True)
    with pytest.raises(StaleCollateralError):
        accept(days=90)
    with pytest.raises(FormatError):
        accept(evidence=b"no evidence at all")
    quote = bytearray(make_quote())
    quote[48 + 64] ^= 1
    with pytest.raises(SignatureError):
        accept(evidence=bytes(quote))
    world.authority.set_status("Revoked")
    with pytest.raises(TcbRevokedError):
        accept()


def test_a_tcb_that_no_policy_accepts_comes_out_of_verify_only_when_asked_for(world, verifier, make_quote, now) -> None:
    world.authority.set_status("Revoked")
    with pytest.raises(TcbRevokedError):
        verifier.verify(make_quote(), world.publish(), now=now)
    revoked = verifier.verify(make_quote(), world.publish(), now=now, any_tcb=True)
    assert revoked.tcb_status is TcbStatus.REVOKED
    assert isinstance(appraise(revoked, SIMULATED).error(), TcbRevokedError)
    del world.tcb_info.levels[1:]
    top = world.tcb_info.levels[0].tcb
    world.tcb_info.levels[0].tcb = top.with_component(1, top.sgx_components[0] + 1)
    with pytest.raises(TcbNotSupportedError):
        verifier.verify(make_quote(), world.publish(), now=now)
    assert verifier.verify(make_quote(), world.publish(), now=now, any_tcb=True).tcb_status is None


def test_no_proof_is_made_by_hand(world, verifier, make_quote, now) -> None:
    verified = verifier.verify(make_quote(), world.publish(), now=now)
    appraisal = appraise(verified, safe_defaults())
    result = judge(bytes(verified.quote), world.publish(), verifier=verifier, policy=safe_defaults(), now=now)
    for refused in (appraisal, result):
        with pytest.raises(TypeError, match="is made by"):
            replace(refused, verdict=Verdict.ACCEPTED)
    for proof in (verified, verified.collateral, appraisal, result):
        values = {item.name: getattr(proof, item.name) for item in fields(proof)}
        for forge in (
            lambda proof=proof: replace(proof),
            lambda proof=proof: copy.copy(proof).__setstate__([None] * 12),
            lambda proof=proof: proof.__getstate__(),
            lambda proof=proof, values=values: type(proof)(**values),
            lambda proof=proof, values=values: type(proof)(**values, proof=object()),
        ):
            with pytest.raises(TypeError):
                forge()
        assert copy.copy(proof) is proof
        assert copy.deepcopy(proof) is proof
        assert "\n" not in repr(proof)
        assert len(repr(proof)) < 160
    for kind in Proof.__subclasses__():
        if "__slots__" in vars(kind):  # else what `dataclass` made it from
            with pytest.raises(TypeError, match="is made by"):
                kind.__setstate__(object.__new__(kind), [None] * 12)


def test_results_cross_the_border_of_a_process_whole(world, verifier, make_quote, now) -> None:
    quote = make_quote(bytes(range(64)))
    for policy in (SIMULATED, safe_defaults()):
        result = judge(quote, world.publish(), verifier=verifier, policy=policy, now=now)
        again = pickle.loads(pickle.dumps(result))
        assert again.as_dict() == result.as_dict()
        assert bytes(again.verified.quote) == quote
        assert again.verified == result.verified
        assert appraise(again.verified, policy).verdict is result.verdict
    collateral = world.publish()
    assert pickle.loads(pickle.dumps(collateral)) == collateral
    verified = verify_collateral(collateral, roots=world.trust_roots)
    assert pickle.loads(pickle.dumps(verified)) == verified
    assert pickle.loads(pickle.dumps(world.trust_roots)) == world.trust_roots
    assert pickle.loads(pickle.dumps(verifier)).verify(quote, collateral, now=now).report_data == bytes(range(64))


def classes() -> list[type[ConfcomError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ConfcomError)]


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_every_error_is_pickled_with_all_that_it_says(kind) -> None:
    names = {
        name: f"the {name}"
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    error = kind("what failed", **names)
    error.add_note("a note")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.as_dict() == error.as_dict()
    assert again.advice() == error.advice()
    assert copy.copy(error).as_dict() == error.as_dict()


@pytest.mark.parametrize("quote", ["00" * 32, bytearray(1000), memoryview(bytes(1000)), None, True, 3])
def test_evidence_of_another_type_is_a_type_error(world, verifier, accept, now, quote) -> None:
    for call in (
        lambda: verifier.verify(quote, world.publish(), now=now),
        lambda: judge(quote, world.publish(), verifier=verifier, policy=SIMULATED, now=now),
        lambda: accept_quote(quote, world.publish(), SIMULATED, now=now),
    ):
        with pytest.raises(TypeError, match="expected bytes"):
            call()


def test_times_without_a_zone_are_refused_and_so_is_what_is_no_time(world, verifier, make_quote, now) -> None:
    quote, collateral = make_quote(), world.publish()
    naive = datetime(2026, 6, 1)  # noqa: DTZ001
    for call in (
        lambda at: verifier.verify(quote, collateral, now=at),
        lambda at: judge(quote, collateral, verifier=verifier, policy=SIMULATED, now=at),
        lambda at: accept_quote(quote, collateral, SIMULATED, now=at, verifier=verifier),
        lambda at: verify_collateral(collateral, roots=world.trust_roots).stale(at),
    ):
        with pytest.raises(ConfigError, match="no time zone"):
            call(naive)
        for other in (None, "2026-06-01T12:00:00Z", 1780315200, now.date()):
            with pytest.raises(TypeError, match="expected datetime"):
                call(other)


def test_collateral_policies_and_roots_of_another_type_are_type_errors(world, verifier, make_quote, now) -> None:
    from confcom.appraisal.collateral import Collateral
    from confcom.appraisal.quote import QuoteVerifier
    from confcom.pki.chain import TrustRoot, TrustRoots

    quote, collateral = make_quote(), world.publish()
    parts = {item.name: getattr(collateral, item.name) for item in fields(Collateral)}
    for call in (
        lambda: verifier.verify(quote, "collateral", now=now),
        lambda: judge(quote, None, verifier=verifier, policy=SIMULATED, now=now),
        lambda: judge(quote, collateral, verifier=verifier, policy=MrSigner, now=now),
        lambda: appraise(quote, SIMULATED),
        lambda: Collateral(**parts | {"tcb_info": parts["tcb_info"].decode()}),
        lambda: Collateral(**parts | {"pck_crl": bytearray(parts["pck_crl"])}),
        lambda: QuoteVerifier(world.trust_roots.roots),
        lambda: TrustRoots(world.trust_roots.roots[0]),
        lambda: TrustRoots(("intel",)),
        lambda: TrustRoot.from_pem("-----BEGIN CERTIFICATE-----"),
    ):
        with pytest.raises(TypeError, match="expected"):
            call()


def test_nothing_says_more_than_a_line_of_itself(world, verifier, make_quote, now) -> None:
    verified = verifier.verify(make_quote(), world.publish(), now=now)
    for value in (verified, verified.collateral, verified.quote, world.publish(), world.trust_roots):
        assert "\n" not in repr(value)
        assert len(repr(value)) < 200, type(value)
    assert isinstance(verified, VerifiedQuote)
