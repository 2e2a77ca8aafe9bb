"""What callers without a token say of a QE_ID binds it for nobody else, lasts, and is checked (lazy mode)."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from confcom.collateral.documents import DocumentKey
from confcom.collateral.store.schema import PLATFORMS
from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralNotFound
from confcom.protocols.pcs import PckCertificateAnswer
from confcom.services.collateral import pck_certificates
from confcom.simulator.enclaves import QuotingEnclave
from confcom.simulator.machine import FMSPC as FMSPC_BYTES
from confcom.simulator.machine import MachineTcb, SimulatedMachine
from confcom.simulator.world import SimulatedWorld
from running_collateral_service import (
    NOW,
    SEED,
    Clock,
    RecordedUpstream,
    Reply,
    RunningService,
    running_service,
)

V4 = "/sgx/certification/v4"
USER = "the user's token"
HASHES = {"user_token_hash": hashlib.sha512(USER.encode()).hexdigest()}
VICTIM, ATTACKER = 0, 1
HERE, ELSEWHERE, THIRD = "127.0.0.1", "127.0.0.2", "127.0.0.3"
HIGHER = b"\xff" * 16


def ppid(machine: int, attempt: int = 0) -> bytes:
    """An encrypted PPID, which is another one each time; this upstream sees whose it is in the first byte."""
    return bytes([machine + 1, attempt]) * 192


class IntelLikeUpstream(RecordedUpstream):
    """Knows a platform by its encrypted PPID alone, as Intel's service does."""

    def fetch_pck_certificate(self, request: Any) -> PckCertificateAnswer:
        self._visit(request)
        if request.encrypted_ppid is None:
            raise CollateralNotFound("this service knows a platform by its encrypted PPID only")
        return self.certify(self.world.machines[request.encrypted_ppid[0] - 1])

    def certify(self, machine: SimulatedMachine) -> PckCertificateAnswer:
        leaf, issuers = split(self.world.authority.pck_chain(machine))
        tcbm = machine.tcb.cpu_svn + machine.tcb.pce_svn.to_bytes(2, "little")
        return PckCertificateAnswer(leaf, issuers, tcbm, machine.fmspc, machine.pck_ca.value)


def split(chain: bytes) -> tuple[bytes, bytes]:
    end = chain.index(b"-----END CERTIFICATE-----\n") + len(b"-----END CERTIFICATE-----\n")
    return chain[:end], chain[end:]


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(SEED, now=NOW, machines=2)


@pytest.fixture
def upstream(world: SimulatedWorld) -> IntelLikeUpstream:
    return IntelLikeUpstream(world, Clock(NOW))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "collateral.sqlite"


class Asking:
    """Asks for PCK certificates of the victim's QE_ID."""

    def __init__(self, service: RunningService, world: SimulatedWorld) -> None:
        self.service, self.world = service, world
        machine = world.machines[VICTIM]
        self.qe_id = QuotingEnclave(machine, world.authority.pck_chain(machine)).qe_id.hex()

    def __call__(
        self, encrypted_ppid: bytes | None = None, *, source: str = HERE, cpu_svn: bytes | None = None
    ) -> Reply:
        raw = self.world.machine.tcb.cpu_svn if cpu_svn is None else cpu_svn
        more = "" if encrypted_ppid is None else f"&encrypted_ppid={encrypted_ppid.hex()}"
        path = f"{V4}/pckcert?qeid={self.qe_id}&cpusvn={raw.hex()}&pcesvn=0d00&pceid=0000{more}"
        return self.service.ask(path, source=source)

    def register(self, encrypted_ppid: bytes) -> Reply:
        tcb = self.world.machine.tcb
        body = {"qe_id": self.qe_id, "pce_id": "0000", "cpu_svn": tcb.cpu_svn.hex(), "pce_svn": "0d00"}
        body["enc_ppid"] = encrypted_ppid.hex()
        return self.service.ask(f"{V4}/platforms", method="POST", headers={"user-token": USER}, body=body)


def is_of(reply: Reply, world: SimulatedWorld, machine: int) -> bool:
    return reply.status == 200 and reply.body == split(world.authority.pck_chain(world.machines[machine]))[0]


def serving(store: Path, upstream: Any, world: SimulatedWorld, clock: Clock | None = None, **settings: Any) -> Any:
    settings = HASHES | {"remember_missing": 0} | settings
    return running_service(store, upstream, world.trust_roots, clock or Clock(NOW), **settings)


@pytest.mark.parametrize("source", [HERE, ELSEWHERE])
@pytest.mark.parametrize("cpu_svn", [None, HIGHER])
def test_a_stranger_who_names_a_qe_id_first_locks_nobody_out(store, upstream, world, source, cpu_svn) -> None:
    with serving(store, upstream, world) as service:
        ask = Asking(service, world)
        attack = ask(ppid(ATTACKER), source=source, cpu_svn=cpu_svn)
        victim = ask(ppid(VICTIM))
        again = ask(ppid(VICTIM, 1))

    assert is_of(attack, world, ATTACKER)
    assert is_of(victim, world, VICTIM)
    assert is_of(again, world, VICTIM)


def test_without_an_encrypted_ppid_each_address_gets_what_it_claimed(store, upstream, world) -> None:
    with serving(store, upstream, world) as service:
        ask = Asking(service, world)
        ask(ppid(ATTACKER), source=ELSEWHERE)
        ask(ppid(VICTIM))
        victim, attacker, higher = ask(), ask(source=ELSEWHERE), ask(cpu_svn=HIGHER)
        third = ask(source=THIRD)
    with serving(store, upstream, world) as service:
        restarted = Asking(service, world)()

    assert is_of(victim, world, VICTIM)
    assert is_of(higher, world, VICTIM)
    assert is_of(restarted, world, VICTIM)
    assert is_of(attacker, world, ATTACKER)
    assert third.status == 404


@pytest.mark.parametrize("source", [HERE, ELSEWHERE])
def test_who_claimed_a_qe_id_keeps_it_whatever_others_claim_later(store, upstream, world, source) -> None:
    with serving(store, upstream, world) as service:
        ask = Asking(service, world)
        service.ask(f"{V4}/tcb?fmspc={FMSPC_BYTES.hex()}")
        ask(ppid(VICTIM))
        ask(ppid(ATTACKER), source=source)
        ask(ppid(ATTACKER, 1), source=source, cpu_svn=HIGHER)
        upstream.down = True
        known, higher, with_ppid = ask(), ask(cpu_svn=HIGHER), ask(ppid(VICTIM))

    assert all(is_of(reply, world, VICTIM) for reply in (known, higher, with_ppid))


def test_of_a_registered_platform_no_stranger_says_anything(store, upstream, world) -> None:
    with serving(store, upstream, world) as service:
        ask = Asking(service, world)
        before = ask(ppid(ATTACKER), source=ELSEWHERE)
        registered = ask.register(ppid(VICTIM))
        asked = len(upstream.asked)
        replies = [ask(ppid(ATTACKER), source=ELSEWHERE), ask(ppid(ATTACKER, 1), cpu_svn=HIGHER), ask(source=THIRD)]

    assert (registered.status, before.status) == (200, 200)
    assert all(is_of(reply, world, VICTIM) for reply in replies)
    questions = [item for item in upstream.asked[asked:] if not isinstance(item, DocumentKey)]
    assert {item.encrypted_ppid for item in questions} == {ppid(VICTIM)}  # type: ignore[attr-defined]


def test_strangers_make_the_store_grow_no_further(store, upstream, world, monkeypatch) -> None:
    """Any raw TCB can be named without a token."""
    monkeypatch.setattr(pck_certificates, "MAX_RAW_TCBS", 4)
    machine = world.machines[VICTIM]
    with serving(store, upstream, world) as service:
        ask = Asking(service, world)
        ask.register(ppid(VICTIM))
        replies = [ask(cpu_svn=b"\xff" * 15 + bytes([0x80 + number])) for number in range(8)]
        own = ask()
    assert all(is_of(reply, world, VICTIM) for reply in [*replies, own])
    with CollateralStore(store, roots=world.trust_roots) as opened:
        assert opened.registrations.count_all() == 4
    other = store.with_name("claims.sqlite")
    low, high = machine.tcb, MachineTcb((machine.tcb.sgx_components[0] + 1, *machine.tcb.sgx_components[1:]), 13)
    with serving(other, upstream, world) as service:
        ask = Asking(service, world)
        for number in range(8):
            machine.tcb = (low, high)[number % 2]
            assert ask(ppid(VICTIM), cpu_svn=b"\xff" * 15 + bytes([0x80 + number])).status == 200
    with CollateralStore(other, roots=world.trust_roots) as opened, opened.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(PLATFORMS)).scalar() == 2


def test_a_registration_puts_a_strangers_claim_right(store, upstream, world) -> None:
    with serving(store, upstream, world) as service:
        ask = Asking(service, world)
        ask(ppid(ATTACKER))
        ask.register(ppid(VICTIM))
        replies = [ask(), ask(ppid(VICTIM, 1)), ask(source=ELSEWHERE)]

    assert all(is_of(reply, world, VICTIM) for reply in replies)


def test_an_agreed_claim_serves_other_addresses_while_upstream_is_down(store, upstream, world) -> None:
    with serving(store, upstream, world) as service:
        ask = Asking(service, world)
        service.ask(f"{V4}/tcb?fmspc={FMSPC_BYTES.hex()}")
        ask(ppid(VICTIM))
        upstream.down = True
        agreed = ask(source=ELSEWHERE)
        upstream.down = False
        ask(ppid(ATTACKER), source=THIRD)
        upstream.down = True
        disputed = ask(source=ELSEWHERE)
        own = ask()

    assert is_of(agreed, world, VICTIM)
    assert disputed.status == 502
    assert is_of(own, world, VICTIM)


@pytest.mark.parametrize("days", [1, -400])
def test_a_claim_is_asked_for_again_after_a_day_or_when_the_clock_was_set_back(store, world, days) -> None:
    clock = Clock(NOW)
    upstream = IntelLikeUpstream(world, clock)
    with serving(store, upstream, world, clock) as service:
        ask = Asking(service, world)
        ask(ppid(VICTIM))
        ask()
        asked = len(upstream.asked)
        clock.now += timedelta(days=days)
        again = ask()

    assert is_of(again, world, VICTIM)
    assert [item.encrypted_ppid for item in upstream.asked[asked:] if hasattr(item, "cpu_svn")] == [ppid(VICTIM)]


class CachingUpstream(IntelLikeUpstream):
    """A caching service that takes an encrypted PPID's word for a QE_ID and repeats it to who sends none."""

    bound: PckCertificateAnswer | None = None

    def fetch_pck_certificate(self, request: Any) -> PckCertificateAnswer:
        if request.encrypted_ppid is not None:
            answer = super().fetch_pck_certificate(request)
            self.bound = self.bound or answer
            return answer
        self._visit(request)
        if self.bound is None:
            raise CollateralNotFound("no such platform")
        return self.bound


def test_what_upstream_says_of_a_qe_id_alone_binds_it_for_no_other_address(store, world) -> None:
    with serving(store, CachingUpstream(world, Clock(NOW)), world) as service:
        ask = Asking(service, world)
        ask(ppid(ATTACKER), source=ELSEWHERE)
        repeated = ask(source=THIRD)
        victim, without = ask(ppid(VICTIM)), ask()

    assert is_of(repeated, world, ATTACKER)
    assert is_of(victim, world, VICTIM)
    assert is_of(without, world, VICTIM)


class Wrong(IntelLikeUpstream):
    """Gives certificates that do not fit what was asked."""

    change: dict[str, Any]

    def certify(self, machine: SimulatedMachine) -> PckCertificateAnswer:
        answer = super().certify(machine)
        fields = {name: getattr(answer, name) for name in ("certificate", "issuer_chain", "tcbm", "fmspc", "ca")}
        return PckCertificateAnswer(**(fields | self.change))


@pytest.mark.parametrize("change", [{"fmspc": bytes(6)}, {"tcbm": bytes(18)}, {"ca": "processor"}], ids=str)
def test_what_comes_with_a_certificate_is_held_to_it(store, world, change) -> None:
    upstream = Wrong(world, Clock(NOW))
    upstream.change = change
    with serving(store, upstream, world) as service:
        ask = Asking(service, world)
        replies = [ask(ppid(VICTIM)), ask.register(ppid(VICTIM))]
    with CollateralStore(store, roots=world.trust_roots) as kept:
        assert kept.platforms.groups() == ()

    assert [reply.status for reply in replies] == [502, 502]
    assert "another than the certificate's" in replies[0].json["message"]


@pytest.mark.parametrize("number", [0, 1, 6, None])
def test_a_certificate_for_a_tcb_that_is_not_reached_is_refused(store, upstream, world, number) -> None:
    tcb = world.machine.tcb
    raw = tcb.cpu_svn if number is None else tcb.with_component(number, tcb.sgx_components[number] - 1).cpu_svn
    with serving(store, upstream, world) as service:
        ask = Asking(service, world)
        path = f"{V4}/pckcert?qeid={ask.qe_id}&cpusvn={raw.hex()}&pceid=0000&encrypted_ppid={ppid(VICTIM).hex()}"
        reply = service.ask(f"{path}&pcesvn={'0c00' if number is None else '0d00'}")
    with CollateralStore(store, roots=world.trust_roots) as kept:
        assert kept.platforms.groups() == ()

    assert reply.status == 502
    assert "for a TCB that the platform does not reach" in reply.json["message"]


def test_a_set_that_was_asked_for_once_and_is_gone_leaves_the_service_ready(store, world) -> None:
    clock = Clock(NOW)
    upstream, old = RecordedUpstream(world, clock), DocumentKey.tcb_info("sgx", FMSPC_BYTES, 17)
    settings = {"refresh_retry": 0.01, "refresh_look": 0.05, "fmspcs": (FMSPC_BYTES.hex(),)}
    with serving(store, upstream, world, clock, **settings) as service:
        asked = service.ask(f"{V4}/tcb?fmspc={FMSPC_BYTES.hex()}&tcbEvaluationDataNumber=17")
        service.wait_until(lambda: service.ask("/readyz").status == 200, seconds=60)
        world.authority.raise_tcb(MachineTcb((12,) * 16, 14), advisory_ids=[])
        clock.now += timedelta(days=40)
        service.wait_until(lambda: service.ask("/readyz").status == 200, seconds=60)
        rounds, questions = service.metric("refresh_total", outcome="renewed"), upstream.asked.count(old)
        clock.now += timedelta(days=2)
        service.wait_until(lambda: service.metric("refresh_total", outcome="renewed") > rounds, seconds=60)

    assert asked.status == 200
    assert upstream.asked.count(old) == questions
