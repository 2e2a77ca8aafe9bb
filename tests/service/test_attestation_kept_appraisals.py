"""A service that keeps what it found out about evidence says what one says that has never seen any."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from confcom.appraisal.findings import Check, passed
from confcom.appraisal.policy import AcceptAdvisories, AllOf, Policy, ReportData, safe_defaults
from confcom.appraisal.quote import QuoteVerifier, VerifiedQuote
from confcom.collateral.sources import RememberedCollateral, SourceOptions
from confcom.errors import ConfcomError
from confcom.formats.arguments import decode_base64, encode_base64url, members_once
from confcom.formats.evidence import REPORT_VERSION, OeReportHeader, OeReportType
from confcom.formats.quote import HEADER_SIZE, Quote
from confcom.formats.tcb_info import TcbStatus
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.services.attestation.appraiser import MAX_KNOWN, Appraiser
from confcom.services.attestation.attestation_store import AttestationStore
from confcom.services.attestation.lockstep import Outcome
from confcom.services.attestation.signing_keys import KeyFolder, SigningKeys
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.enclaves import derive_p256_key, td_report
from confcom.simulator.world import SimulatedPlatform, SimulatedUpstream, SimulatedWorld
from confcom.tokens.azure import AttestationType
from confcom.tokens.policy_jws import SentPolicy
from running_attestation_service import NOW, make_world
from running_collateral_service import Clock, running_service

SGX, OPEN_ENCLAVE, TDX = AttestationType
HELD = b'{"key":"of the enclave"}'
OVER_HELD = hashlib.sha256(HELD).digest() + bytes(32)
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of P-256: r ‖ ORDER - s is a signature if r ‖ s is one."""
ISSUING = """version= 1.1;authorizationrules{{ {} => permit(); }};issuancerules{{
c:[type=="{}"] => issue(type="repeated", value=c.value); => issue(type="sgx-mrsigner", value="own"); }};"""
POLICIES: dict[AttestationType, tuple[str, ...]] = {
    SGX: (
        "version= 1.0;authorizationrules{ => permit(); };",
        "version= 1.0;authorizationrules{ => deny(); };",
        ISSUING.format("", "x-ms-sgx-report-data"),
        ISSUING.format("", "x-ms-sgx-mrenclave"),
        ISSUING.format(f'[type=="x-ms-sgx-report-data", value=="{OVER_HELD.hex()}"]', "x-ms-sgx-svn"),
        ISSUING.format(f'[value=="{OVER_HELD.hex()}"]', "x-ms-sgx-svn"),
    ),
    TDX: (
        ISSUING.format("", "tdx_report_data"),
        ISSUING.format(f'[type=="tdx_report_data", value=="{OVER_HELD.hex()}"]', "tdx_mrtd"),
        "version= 1.0;authorizationrules{ => permit(); };",
    ),
}
POLICIES[OPEN_ENCLAVE] = POLICIES[SGX]
_DEFAULTS = safe_defaults(accept_simulated=True)


class Counted:
    """A policy that accepts everything, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        del verified
        self.asked += 1
        return (passed("counted", "", ""),)


class Both:
    """An appraiser that lives on, and for each request another one. `counted` is asked by the first alone."""

    def __init__(
        self, folder: Path, world: SimulatedWorld, collateral: str, clock: Clock, *policies: Policy, **settings: Any
    ) -> None:
        self.store, self.clock, self.counted = AttestationStore.open(folder / "store.sqlite"), clock, Counted()
        weakref.finalize(self, self.store.close)
        self._world, self._policies, self._settings = world, policies, {"grace": timedelta()} | settings
        self._collateral = RememberedCollateral(collateral, SourceOptions(roots=world.trust_roots, at=clock()))
        folder_of_keys = KeyFolder(folder / "keys", simulated=True, clock=clock)
        signing = {key.algorithm: key for key in folder_of_keys.load()}
        self._keys = SigningKeys(signing, (), elsewhere=False, as_of=float("inf"))
        self.living = self._new(self.counted)

    def _new(self, *further: Policy) -> Appraiser:
        return Appraiser(
            self.store,
            QuoteVerifier(self._world.trust_roots),
            self._collateral,
            AllOf(*self._policies, *further),
            issuer="https://service.example",
            keys=lambda: self._keys,
            clock=self.clock,
            **self._settings,
        )

    def set_policy(self, kind: AttestationType, text: str | None) -> None:
        self.store.set_policy(kind, None if text is None else SentPolicy("", text, None), NOW)
        self.living.policy_changed()

    def appraise(self, kind: AttestationType, evidence: bytes, *, ear: bool = False, **more: Any) -> tuple[Any, ...]:
        """What both say, which is the same."""
        field = "report" if kind is OPEN_ENCLAVE else "quote"
        body = json.dumps({field: encode_base64url(evidence)} | more).encode()
        said = [_said(lambda: each.appraise(body, kind, "", ear=ear)) for each in (self.living, self._new())]  # noqa: B023
        assert said[0] == said[1]
        return said[0]


def _said(call: Callable[[], Outcome]) -> tuple[Any, ...]:
    """Record and claims without the token's own id, or everything about the refusal."""
    try:
        record, found = call()
    except ConfcomError as error:
        return None, error.as_dict()
    if isinstance(found, str):
        header, claims = (
            json.loads(decode_base64(part), object_pairs_hook=members_once) for part in found.split(".")[:2]
        )
        claims.pop("jti", None)
        return record, header, claims
    checks = [each for each in getattr(found, "checks", ()) if each["id"] != "counted"]
    return record, found.as_dict(), checks, getattr(found, "trace", None)


@pytest.fixture
def world() -> SimulatedWorld:
    return make_world(machines=2)


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def collateral(tmp_path: Path, world: SimulatedWorld, clock: Clock) -> Iterator[str]:
    upstream = SimulatedUpstream(world, clock)
    with running_service(tmp_path / "collateral.sqlite", upstream, world.trust_roots, clock) as service:
        yield service.url


def _enclave(
    world: SimulatedWorld, number: int = 0, name: str = "app", *, debug: bool = False
) -> Callable[[bytes], bytes]:
    enclave = world.machines[number].launch(EnclaveDeclaration.from_names(name, "us", debug=debug))
    return lambda data: EnclaveQuoteSource(world.platforms[number], enclave).quote(data).quote


def _td(world: SimulatedWorld, name: str, **changes: Any) -> Callable[[bytes], bytes]:
    return lambda data: world.platform.quote_td(dataclasses.replace(td_report(name, data), **changes))


def _report(quote: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def report(data: bytes) -> bytes:
        made = quote(data)
        return bytes(OeReportHeader(REPORT_VERSION, OeReportType.REMOTE, len(made))) + made

    return report


def _mutated(evidence: bytes, other: bytes, draw: random.Random) -> bytes:
    """Evidence of which a byte is another, or a part from elsewhere, or the signature written in its second way."""
    place, found = draw.randrange(len(evidence)), bytearray(evidence)
    match draw.randrange(4):
        case 0:
            found[place] ^= 1 << draw.randrange(8)
        case 1:
            found[place % 640] ^= 1 << draw.randrange(8)
        case 2:
            found[place:] = other[place:]
        case _:
            quote = Quote.parse(evidence) if evidence[0] != REPORT_VERSION else None
            if quote is None:
                return evidence[: place // 2]
            second = _second(quote.signature.signature)
            return bytes(replace(quote, signature=replace(quote.signature, signature=second)))
    return bytes(found)


def _second(signature: bytes) -> bytes:
    """The other signature that says the same."""
    return signature[:32] + (ORDER - int.from_bytes(signature[32:])).to_bytes(32)


@pytest.mark.parametrize("seed", range(3))
def test_mixed_and_mutated_evidence_under_changing_policies(
    tmp_path: Path, world: SimulatedWorld, clock: Clock, collateral: str, seed: int
) -> None:
    draw = random.Random(seed)
    app, elsewhere = _enclave(world), _enclave(world, 1)
    sources: list[tuple[AttestationType, Callable[[bytes], bytes]]] = [
        *((SGX, each) for each in (app, elsewhere, _enclave(world, name="other"), _enclave(world, debug=True))),
        *((OPEN_ENCLAVE, _report(each)) for each in (app, elsewhere)),
        *((TDX, each) for each in (_td(world, "td"), _td(world, "other"), _td(world, "td", td_attributes=1))),
    ]
    extras = [
        {},
        {"nonce": "n" * 16},
        {"runtimeData": {"data": encode_base64url(HELD), "dataType": "JSON"}},
        {"runtimeData": {"data": encode_base64url(HELD), "dataType": "Binary"}, "nonce": "m" * 16},
        {"runtimeData": {"data": encode_base64url(b"other data")}},
    ]
    made = [(kind, quote(data)) for kind, quote in sources for data in (OVER_HELD, bytes(64), draw.randbytes(64))]
    updates = ("standard", "early") if seed == 2 else ("standard",)
    accepted, both = 0, Both(tmp_path, world, collateral, clock, _DEFAULTS, updates=updates)
    for number in range(400):
        if number % 20 == 0:
            for kind, policies in POLICIES.items():
                both.set_policy(kind, draw.choice((None, *policies)))
        kind, evidence = draw.choice(made)
        if draw.random() < 0.3:
            evidence = _mutated(evidence, draw.choice(made)[1], draw)
        more: dict[str, Any] = draw.choice(extras)
        if draw.random() < 0.1:
            more = more | {"draftPolicyForAttestation": draw.choice(POLICIES[kind])}
        ear = draw.random() < 0.5
        record, *_ = both.appraise(kind, evidence, ear=ear, **more)
        accepted += record is not None and record.verdict == "accepted"
        clock.now += timedelta(seconds=draw.choice((0, 1, 30)))
    assert accepted > 60


def test_other_report_data_alone_asks_no_policy_again(tmp_path: Path, world: SimulatedWorld, clock: Clock) -> None:
    world.export_collateral(tmp_path / "folder")
    both = Both(tmp_path, world, str(tmp_path / "folder"), clock, _DEFAULTS)
    for number, quote in enumerate((_enclave(world), _enclave(world, 1), _enclave(world, name="other")), 1):
        for data in range(5):
            both.appraise(SGX, quote(bytes((data,)) * 64), ear=data == 3)
        assert both.counted.asked == number
    both.set_policy(SGX, POLICIES[SGX][0])
    both.appraise(SGX, _enclave(world)(bytes(64)))
    assert both.counted.asked == 4


def test_quotes_that_differ_in_more_than_report_data_and_signature_are_read_in_turns(
    tmp_path: Path, world: SimulatedWorld, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another attestation key of the machine, under another signature of the QE report, or padded."""
    world.export_collateral(tmp_path / "folder")
    both = Both(tmp_path, world, str(tmp_path / "folder"), clock, _DEFAULTS)
    first = _enclave(world)
    with monkeypatch.context() as changed:
        derive: Callable[..., Any] = lambda seed, name: derive_p256_key(seed * (1 + name.startswith("att")), name)  # noqa: E731
        changed.setattr("confcom.simulator.enclaves.derive_p256_key", derive)
        enclave = world.machine.launch(EnclaveDeclaration.from_names("app", "us"))
        second = EnclaveQuoteSource(SimulatedPlatform(world.machine, world.authority), enclave)
        second.quote(bytes(64))

    def forms(data: bytes) -> list[bytes]:
        found = []
        for made in (first(data), second.quote(data).quote):
            quote = Quote.parse(made)
            section = quote.signature
            certification = section.certification
            resigned = replace(certification, qe_report_signature=_second(certification.qe_report_signature))
            again = bytes(replace(quote, signature=replace(section, certification=resigned)))
            found += [made, again, made + bytes(9), again + bytes(9), made]
        return found

    keys = set[bytes]()
    for quotes in zip(*(forms(bytes((number,)) * 64) for number in range(3)), strict=True):
        for made in quotes:
            assert both.appraise(SGX, made)[0].verdict == "accepted"
            keys.add(Quote.parse(made).signature.attestation_key)
    assert len(keys) == 2
    assert both.counted.asked == 1


def test_of_large_evidence_nothing_is_kept(tmp_path: Path, world: SimulatedWorld, clock: Clock) -> None:
    """It may have 128 KiB, and 256 are kept."""
    world.export_collateral(tmp_path / "folder")
    both, quote = Both(tmp_path, world, str(tmp_path / "folder"), clock, _DEFAULTS), _enclave(world)
    sizes = MAX_KNOWN + 1, MAX_KNOWN + 1, MAX_KNOWN, MAX_KNOWN, MAX_KNOWN + 1
    asked = []
    for size in sizes:
        assert both.appraise(SGX, quote(bytes(64)).ljust(size, b"\0"))[0].verdict == "accepted"
        asked.append(both.counted.asked)
    assert asked == [1, 2, 3, 3, 3]


@pytest.mark.parametrize("kind", [SGX, TDX])
def test_of_a_known_enclave_nothing_but_report_data_and_signature_is_read(
    tmp_path: Path,
    world: SimulatedWorld,
    clock: Clock,
    collateral: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: AttestationType,
) -> None:
    both = Both(tmp_path, world, collateral, clock, _DEFAULTS)
    quote, body = _enclave(world) if kind is SGX else _td(world, "td"), HEADER_SIZE
    both.appraise(kind, quote(bytes(64)))
    end, parsed, whole = body + (384 if kind is SGX else 584), list[bytes](), Quote.parse
    own, shared = (None, end - 64, end - 1, end + 4, end + 67), (body, end - 65, end, end + 3, end + 68)
    changed = {}
    for place in own + shared:
        made = bytearray(quote(b"\1" * 64))
        if place is not None:
            made[place] ^= 1
        changed[place] = bytes(made)
    monkeypatch.setattr(Quote, "parse", lambda data: parsed.append(data) or whole(data))
    verdicts = [both.appraise(kind, changed[place])[0].verdict for place in own]
    assert verdicts == ["accepted"] + ["refused"] * 4
    assert parsed == [changed[place] for place in own], "each by the appraiser that has seen none before"
    for place in shared:
        assert both.appraise(kind, changed[place])[0].verdict == "refused"
        assert parsed.count(changed[place]) >= 2


@pytest.mark.parametrize("grace", [timedelta(), timedelta(days=3)])
def test_what_is_kept_ends_with_the_dates_of_its_collateral(
    tmp_path: Path, world: SimulatedWorld, clock: Clock, grace: timedelta
) -> None:
    world.export_collateral(tmp_path / "folder")
    ends = QuoteVerifier(world.trust_roots).verify(_enclave(world)(bytes(64)), world.publish(), now=NOW)
    end = ends.collateral.earliest_expiration
    both, quote, verdicts = (
        Both(tmp_path, world, str(tmp_path / "folder"), clock, _DEFAULTS, grace=grace),
        _enclave(world),
        [],
    )
    for now in (NOW, NOW, end, end + timedelta(seconds=1), NOW, end + grace, end + grace + timedelta(seconds=1)):
        clock.now = now
        verdicts.append(both.appraise(SGX, quote(bytes(64)))[0].verdict)
    assert verdicts == ["accepted"] * 3 + ["accepted" if grace else "refused"] + ["accepted"] * 2 + ["refused"]
    clock.now = ends.collateral.valid_from - timedelta(seconds=1)
    assert both.appraise(SGX, quote(bytes(64)))[0].verdict == "refused"


def test_what_is_kept_ends_with_the_date_of_an_advisory(tmp_path: Path, world: SimulatedWorld, clock: Clock) -> None:
    world.authority.set_status("SWHardeningNeeded", advisory_ids=("INTEL-SA-00615",))
    world.export_collateral(tmp_path / "folder")
    until = NOW + timedelta(days=2)
    lenient = safe_defaults(accept_simulated=True, accept_tcb=(TcbStatus.SW_HARDENING_NEEDED,))
    both = Both(tmp_path, world, str(tmp_path / "folder"), clock, lenient, AcceptAdvisories({"INTEL-SA-00615": until}))
    quote, verdicts = _enclave(world)(bytes(64)), list[str]()
    for now in (NOW, NOW, until, until - timedelta(seconds=1), until + timedelta(days=1)):
        clock.now = now
        verdicts.append(both.appraise(SGX, quote)[0].verdict)
    assert verdicts == ["accepted", "accepted", "refused", "accepted", "refused"]


def test_a_policy_of_the_report_data_judges_each_quote(tmp_path: Path, world: SimulatedWorld, clock: Clock) -> None:
    world.export_collateral(tmp_path / "folder")
    both = Both(tmp_path, world, str(tmp_path / "folder"), clock, _DEFAULTS, ReportData(OVER_HELD))
    quote = _enclave(world)
    verdicts = [both.appraise(SGX, quote(data))[0].verdict for data in (OVER_HELD, bytes(64), OVER_HELD)]
    assert verdicts == ["accepted", "refused", "accepted"]


def test_changed_collateral_is_what_judges(tmp_path: Path, world: SimulatedWorld, clock: Clock) -> None:
    world.export_collateral(tmp_path / "folder")
    both, quote = Both(tmp_path, world, str(tmp_path / "folder"), clock, _DEFAULTS), _enclave(world)
    _, _, before = both.appraise(SGX, quote(bytes(64)))
    clock.now += timedelta(hours=2)
    world.export_collateral(tmp_path / "folder", clock.now)
    _, _, after = both.appraise(SGX, quote(bytes(64)))
    assert before["confcom-collateral-expires"] < after["confcom-collateral-expires"]
    assert before["x-ms-sgx-collateral"]["tcbinfohash"] != after["x-ms-sgx-collateral"]["tcbinfohash"]
    # The same content in another wrapping has another hash.
    chain = tmp_path / "folder" / "tcb_info_issuer_chain.pem"
    chain.write_bytes(chain.read_bytes() + b"\n")
    clock.now += timedelta(hours=2)
    _, _, wrapped = both.appraise(SGX, quote(bytes(64)))
    assert wrapped["x-ms-sgx-collateral"]["tcbinfocertshash"] != after["x-ms-sgx-collateral"]["tcbinfocertshash"]
    world.authority.set_status("OutOfDate")
    clock.now += timedelta(hours=2)
    world.export_collateral(tmp_path / "folder", clock.now)
    assert both.appraise(SGX, quote(bytes(64)))[0].verdict == "refused"
