"""A pytest plugin for relying parties: evidence of simulated worlds as fixtures, to test a policy without hardware.

pytest loads it by itself where confcom is installed. A test names the enclave that its policy is about (fixture
`confcom_enclave`) and asks for worlds by name; docs/howto/test-a-policy.md has an example. Nothing is imported until a
fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from confcom.appraisal.collateral import Collateral
    from confcom.appraisal.policy import Policy
    from confcom.appraisal.result import AttestationResult
    from confcom.pki.chain import TrustRoots
    from confcom.simulator.declaration import EnclaveDeclaration
    from confcom.simulator.world import SimulatedWorld

_SEED = b"confcom pytest plugin".ljust(32, b".")
_EXPIRED = timedelta(days=31)
"""Collateral is issued a day before the world begins, and valid for 30 days from then."""
_ADVISORY = "SIMULATED-SA-00002"


@dataclass(frozen=True)
class SimulatedEvidence:
    """A quote with the collateral that judges it, the root that both are of, and the time to judge at."""

    quote: bytes = field(repr=False)
    collateral: Collateral = field(repr=False)
    trust_roots: TrustRoots = field(repr=False)
    now: datetime

    def judge(self, policy: str | Path | Policy) -> AttestationResult:
        """The result under a policy: the path of a policy file, or a `Policy` that accepts simulated platforms.

        A file's policy needs nothing for that: the simulated root is accepted here, in tests.
        """
        from confcom.appraisal.quote import QuoteVerifier
        from confcom.appraisal.result import judge
        from confcom.collateral.bundle import load_policy

        grace = timedelta()
        if isinstance(policy, (str, Path)):
            file = load_policy(policy)
            policy, grace = file.policy(accept_simulated=True), file.grace
        verifier = QuoteVerifier(self.trust_roots)
        return judge(self.quote, self.collateral, verifier=verifier, policy=policy, now=self.now, grace=grace)


def _debug(enclave: EnclaveDeclaration) -> EnclaveDeclaration:
    from confcom.formats.sgx import AttributeFlags

    flags = enclave.attributes.flags | AttributeFlags.DEBUG
    return replace(enclave, attributes=replace(enclave.attributes, flags=int(flags)))


def _wrong_signer(enclave: EnclaveDeclaration) -> EnclaveDeclaration:
    return replace(enclave, mr_signer=sha256(enclave.mr_signer).digest())


def _promote(world: SimulatedWorld) -> None:
    """The collateral of the next TCB evaluation, under which the machine's present TCB is out of date."""
    tcb = world.machine.tcb
    better = replace(tcb, sgx_components=(tcb.sgx_components[0] + 1, *tcb.sgx_components[1:]))
    world.authority.raise_tcb(better, advisory_ids=(_ADVISORY,))


_ENCLAVES: Mapping[str, Callable[[EnclaveDeclaration], EnclaveDeclaration]] = {
    "debug": _debug,
    "wrong_signer": _wrong_signer,
}
_DECISIONS: Mapping[str, Callable[[SimulatedWorld], None]] = {
    "revoked": lambda world: world.authority.revoke_pck(world.machine),
    "out_of_date": lambda world: world.authority.set_status("OutOfDate", (_ADVISORY,)),
    "coming_promotion": _promote,
}
REFUSED = (*_ENCLAVES, *_DECISIONS, "expired_collateral")
"""The worlds that a strict policy refuses."""


def make_evidence(world_name: str, enclave: object, report_data: bytes, now: datetime) -> SimulatedEvidence:
    """The evidence of an enclave in the world of that name, `accepted` or one of `REFUSED`.

    `enclave` is the path of a signed enclave file or a declaration, or the declaration's keys and values.
    """
    from confcom.errors import ConfigError
    from confcom.wiring import load_declaration, simulated_world

    if world_name not in ("accepted", *REFUSED):
        raise ConfigError(f"there is no world {world_name!r}", advice=f"Name accepted, {', '.join(REFUSED)}.")
    declared = load_declaration(Path(enclave) if isinstance(enclave, str) else enclave)
    world = simulated_world(_SEED, now=now)
    target = world.platform.init_quote().target_info
    if world_name in _ENCLAVES:
        declared = _ENCLAVES[world_name](declared)
    report = world.machine.launch(declared).create_report(target, report_data)
    quote = world.platform.quote(report).quote
    if world_name in _DECISIONS:
        _DECISIONS[world_name](world)
    at = now + _EXPIRED if world_name == "expired_collateral" else now
    return SimulatedEvidence(quote, world.publish(), world.trust_roots, at)


@pytest.fixture
def confcom_enclave() -> Any:  # noqa: ANN401 - what a test overrides it with
    """The enclave that the policy is about; override it: a path, or a mapping as in a declaration file."""
    return {"enclave": "enclave", "signer": "signer", "isv_prod_id": 1, "isv_svn": 1}


@pytest.fixture
def confcom_report_data() -> bytes:
    """The 64 bytes in the quotes; override it for a policy that asks for others than zeros."""
    return bytes(64)


@pytest.fixture
def confcom_evidence(confcom_enclave: Any, confcom_report_data: bytes) -> Callable[[str], SimulatedEvidence]:  # noqa: ANN401 - as above
    """Makes the evidence of a world by its name."""
    from confcom.cli.options import now
    from confcom.errors import ConfcomError

    today = now()  # policies have dates

    def evidence(name: str) -> SimulatedEvidence:
        try:
            return make_evidence(name, confcom_enclave, confcom_report_data, today)
        except ConfcomError as error:
            pytest.fail(f"{error}\nwhat to do: {error.advice()}", pytrace=False)

    return evidence


@pytest.fixture
def confcom_accepted(confcom_evidence: Callable[[str], SimulatedEvidence]) -> SimulatedEvidence:
    """Of the enclave itself, on a machine that is up to date, with fresh collateral."""
    return confcom_evidence("accepted")


@pytest.fixture(params=REFUSED)
def confcom_refused(
    request: pytest.FixtureRequest, confcom_evidence: Callable[[str], SimulatedEvidence]
) -> SimulatedEvidence:
    """Of each world that a strict policy refuses, one after the other."""
    return confcom_evidence(request.param)


def _fixture_of(world_name: str) -> Any:  # noqa: ANN401 - pytest's own type
    def evidence(confcom_evidence: Callable[[str], SimulatedEvidence]) -> SimulatedEvidence:
        return confcom_evidence(world_name)

    evidence.__doc__ = f"Of the world {world_name}."
    return pytest.fixture(name=f"confcom_{world_name}")(evidence)


confcom_debug = _fixture_of("debug")
confcom_wrong_signer = _fixture_of("wrong_signer")
confcom_revoked = _fixture_of("revoked")
confcom_out_of_date = _fixture_of("out_of_date")
confcom_coming_promotion = _fixture_of("coming_promotion")
confcom_expired_collateral = _fixture_of("expired_collateral")
