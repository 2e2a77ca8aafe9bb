"""The collateral service and the source behind it: one question each, nothing unverified, stale rather than nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import pki_builder as pki
from confcom.collateral.documents import Document, DocumentKey, keys_for
from confcom.collateral.sources import BundleSource
from confcom.collateral.store.registrations import Registration, put_registration
from confcom.collateral.store.store import CollateralStore
from confcom.protocols.pcs import PckCertRequest
from confcom.protocols.pcs_service import PckCertificateEntry
from confcom.services.collateral import service_http
from confcom.simulator.enclaves import QuotingEnclave
from confcom.simulator.machine import FMSPC as FMSPC_BYTES
from confcom.simulator.machine import MachineTcb
from confcom.simulator.world import SimulatedUpstream, SimulatedWorld
from running_collateral_service import (
    BUILT_FMSPC,
    BUILT_NOW,
    BUILT_ROOTS,
    FMSPC,
    NOW,
    SEED,
    BuiltUpstream,
    Clock,
    RecordedUpstream,
    Reply,
    RunningService,
    running_service,
)
from running_in_thread import leaving

V4 = "/sgx/certification/v4"
TCB_PATH = f"{V4}/tcb?fmspc={FMSPC}"
TCB = DocumentKey.tcb_info("sgx", FMSPC_BYTES)
USER, ADMIN = "the user's token", "the admin's token"
HASHES = {
    "user_token_hash": hashlib.sha512(USER.encode()).hexdigest(),
    "admin_token_hash": hashlib.sha512(ADMIN.encode()).hexdigest().upper(),
}


class CountingUpstream(BuiltUpstream):
    """Takes note of what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[DocumentKey] = []

    def fetch_document(self, key: DocumentKey) -> Document:
        self.asked.append(key)
        return super().fetch_document(key)


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(SEED, now=NOW, machines=2)


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def upstream(world: SimulatedWorld, clock: Clock) -> RecordedUpstream:
    return RecordedUpstream(world, clock)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "collateral.sqlite"


@pytest.fixture
def service(store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock) -> Iterator[RunningService]:
    with running_service(store, upstream, world.trust_roots, clock, remember_missing=0.05, **HASHES) as service:
        yield service


def offline(store: Path, world: SimulatedWorld, clock: Clock, **settings: Any) -> Any:
    return running_service(store, None, world.trust_roots, clock, mode="offline", **HASHES, **settings)


def qe_id(world: SimulatedWorld, machine: int = 0) -> bytes:
    found = world.machines[machine]
    return QuotingEnclave(found, world.authority.pck_chain(found)).qe_id


def pck_path(world: SimulatedWorld, *, cpu_svn: bytes | None = None, pce_svn: int | None = None, more: str = "") -> str:
    tcb = world.machine.tcb
    svn = (tcb.pce_svn if pce_svn is None else pce_svn).to_bytes(2, "little").hex()
    raw = tcb.cpu_svn if cpu_svn is None else cpu_svn
    return f"{V4}/pckcert?qeid={qe_id(world).hex()}&cpusvn={raw.hex()}&pcesvn={svn}&pceid=0000{more}"


def test_a_thousand_clients_at_once_cost_one_question(service: RunningService, upstream: RecordedUpstream) -> None:
    upstream.gate.clear()

    def ask() -> socket.socket:
        client = socket.create_connection(service.address, timeout=120)
        client.sendall(f"GET {TCB_PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return client

    # Each sends at once: the service waits for a request's head for some seconds only.
    clients = [ask() for _ in range(1000)]
    service.wait_until(lambda: bool(upstream.asked))
    upstream.gate.set()
    answers = []
    for client in clients:
        with client, client.makefile("rb") as answer:
            answers.append(answer.read())

    assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 200 OK"}
    assert len({answer.split(b"\r\n\r\n", 1)[1] for answer in answers}) == 1
    assert upstream.asked.count(TCB) == 1


def test_a_client_that_leaves_does_not_take_the_answer_from_the_others(
    store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock
) -> None:
    upstream.gate.clear()
    with running_service(store, upstream, world.trust_roots, clock, answer_timeout=0.2) as service:
        impatient = service.ask(TCB_PATH)
        upstream.gate.set()
        service.wait_until(lambda: service.ask(TCB_PATH).status == 200)

    assert impatient.status == 503
    assert impatient.header("Retry-After")
    assert impatient.json["error"] == "Server is currently unable to process the request."
    assert upstream.asked.count(TCB) == 1


def test_upstream_out_of_reach_is_said_so_and_asked_again_later(
    service: RunningService, upstream: RecordedUpstream
) -> None:
    upstream.down = True
    down = service.ask(TCB_PATH)
    upstream.down = False
    service.wait_until(lambda: service.ask(TCB_PATH).status == 200)

    assert down.status == 502
    assert down.json["error"] == "Unable to retrieve the collateral from the Intel SGX PCS."
    assert down.json["code"] == "collateral-unavailable"
    assert service.metric("upstream_errors_total", code="collateral-unavailable") == 1


def test_what_upstream_does_not_have_is_not_asked_for_at_every_request(
    store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock
) -> None:
    missing = DocumentKey.tcb_info("tdx", b"\xff" * 6)
    with running_service(store, upstream, world.trust_roots, clock) as service:
        replies = [service.ask("/tdx/certification/v4/tcb?fmspc=ffffffffffff") for _ in range(5)]

    assert {reply.status for reply in replies} == {404}
    assert len({reply.json["message"] for reply in replies}) == 1
    assert upstream.asked.count(missing) == 1


def test_what_expired_is_served_with_a_warning_while_nothing_newer_can_be_had(
    service: RunningService, upstream: RecordedUpstream, clock: Clock
) -> None:
    fresh = service.ask(TCB_PATH)
    upstream.down = True
    clock.now += timedelta(days=60)
    stale = service.ask(TCB_PATH)
    upstream.down = False
    service.wait_until(lambda: service.ask(TCB_PATH).header("Warning") is None)

    assert (stale.status, stale.body) == (200, fresh.body)
    assert (stale.header("Warning") or "").startswith('110 - "Response is Stale: it expired at 2026-12-20')
    assert service.ask(TCB_PATH).body != fresh.body


def test_what_expired_is_served_after_the_time_that_upstream_has_however_long(
    store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_http, "STORE_WITHIN", 60.0)
    with running_service(store, upstream, world.trust_roots, clock, answer_timeout=61.0) as service:
        fresh, asked = service.ask(TCB_PATH), len(upstream.asked)
        clock.now += timedelta(days=60)
        upstream.gate.clear()
        with ThreadPoolExecutor() as client:
            answer = client.submit(service.ask, TCB_PATH)
            service.wait_until(lambda: len(upstream.asked) > asked)
            service.pass_time(61.0)
            stale = answer.result()
            upstream.gate.set()
    assert (stale.status, stale.body) == (200, fresh.body)


def test_an_upstream_with_expired_documents_is_not_asked_at_every_request(store: Path) -> None:
    upstream, path = CountingUpstream(), f"{V4}/tcb?fmspc={BUILT_FMSPC}"
    with running_service(store, upstream, BUILT_ROOTS, Clock(pki.NEXT + timedelta(days=1))) as service:
        replies = [service.ask(f"{path}&client={number}") for number in range(2)]

    assert {reply.status for reply in replies} == {200}
    assert all((reply.header("Warning") or "").startswith("110 ") for reply in replies)
    # Once for the clients, and perhaps once more in the background.
    assert upstream.asked.count(DocumentKey.tcb_info("sgx", bytes.fromhex(BUILT_FMSPC))) <= 2


def test_forged_documents_are_neither_served_nor_kept(store: Path) -> None:
    upstream = BuiltUpstream()
    upstream.signer = pki.STRANGER
    clock = Clock(BUILT_NOW)
    with running_service(store, upstream, BUILT_ROOTS, clock, remember_missing=0.01) as service:
        reply = service.ask(f"{V4}/tcb?fmspc={BUILT_FMSPC}")
        with CollateralStore(store, roots=BUILT_ROOTS) as kept:
            assert kept.document_keys() == ()
        upstream.signer = pki.TCB_SIGNING
        service.wait_until(lambda: service.ask(f"{V4}/tcb?fmspc={BUILT_FMSPC}").status == 200)

    assert reply.status == 502
    assert "signature-invalid" in reply.json["message"]
    assert service.metric("upstream_errors_total", code="signature-invalid") == 1


def test_documents_of_another_fmspc_are_not_served(store: Path) -> None:
    upstream = BuiltUpstream()
    upstream.changes = {"fmspc": "FFFFFFFFFFFF"}
    with running_service(store, upstream, BUILT_ROOTS, Clock(BUILT_NOW)) as service:
        assert service.ask(f"{V4}/tcb?fmspc={BUILT_FMSPC}").status in (404, 502)


def test_an_older_answer_does_not_replace_a_newer_one(store: Path) -> None:
    upstream, path = BuiltUpstream(), f"{V4}/tcb?fmspc={BUILT_FMSPC}"
    with running_service(store, upstream, BUILT_ROOTS, Clock(BUILT_NOW), **HASHES) as service:
        newer = service.ask(path)
        upstream.changes = {"tcbEvaluationDataNumber": 19, "issueDate": "2026-02-20T00:00:00Z"}
        report = service.ask(f"{V4}/refresh", method="POST", headers={"admin-token": ADMIN})
        after = service.ask(path)

    assert report.status == 200
    assert after.body == newer.body


def test_what_another_process_imports_is_served_within_seconds(
    store: Path, world: SimulatedWorld, clock: Clock, upstream: RecordedUpstream
) -> None:
    with offline(store, world, clock) as service:
        before = service.ask(TCB_PATH)
        with CollateralStore(store, roots=world.trust_roots) as other:
            other.add([upstream.fetch_document(TCB)], seen=clock.now, source="elsewhere")
        service.wait_until(lambda: service.ask(TCB_PATH).status == 200)
        old = service.ask(TCB_PATH).body
        clock.now += timedelta(days=2)
        with CollateralStore(store, roots=world.trust_roots) as other:
            other.add([upstream.fetch_document(TCB)], seen=clock.now, source="elsewhere")
        service.wait_until(lambda: service.ask(TCB_PATH).body != old)

    assert before.status == 404
    assert "offline" in before.json["message"]


# --- PCK certificates -------------------------------------------------------------------------------------------------


def test_gives_pck_certificates_and_remembers_them(
    service: RunningService, upstream: RecordedUpstream, world: SimulatedWorld
) -> None:
    path = pck_path(world)
    first = service.ask(path)
    upstream.down = True
    again = [service.ask(path.replace("/v4/", f"/v{version}/")) for version in (4, 3)]

    assert first.status == 200
    assert first.body.startswith(b"-----BEGIN CERTIFICATE-----")
    assert first.header("Content-Type") == "application/x-pem-file"
    tcb = world.machine.tcb
    assert first.header("SGX-TCBm") == (tcb.cpu_svn + tcb.pce_svn.to_bytes(2, "little")).hex()
    assert first.header("SGX-FMSPC") == FMSPC
    assert first.header("SGX-PCK-Certificate-CA-Type") == "platform"
    assert (first.header("SGX-PCK-Certificate-Issuer-Chain") or "").startswith("-----BEGIN%20CERTIFICATE-----%0A")
    assert [reply.body for reply in again] == [first.body] * 2
    assert again[1].header("Warning")


def test_selects_a_certificate_for_a_tcb_that_none_is_exactly_for(
    service: RunningService, upstream: RecordedUpstream, world: SimulatedWorld
) -> None:
    known = service.ask(pck_path(world))
    service.ask(TCB_PATH)
    upstream.down = True
    components = list(world.machine.tcb.sgx_components)
    components[0] += 3
    updated = service.ask(pck_path(world, cpu_svn=bytes(components)))
    lowered = service.ask(pck_path(world, cpu_svn=bytes(16)))

    assert (updated.status, updated.body) == (200, known.body)
    assert (updated.header("Warning") or "").startswith("199 ")
    ages = [int((one.header("Cache-Control") or "").removeprefix("private, max-age=")) for one in (known, updated)]
    assert ages[1] <= 600 < ages[0]
    assert known.header("Warning") is None
    assert lowered.status == 502
    assert service.metric("pck_fallbacks_total") == 1


def test_an_unknown_platform_and_a_tcb_without_certificate_have_their_own_statuses(
    store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock
) -> None:
    with running_service(store, upstream, world.trust_roots, clock) as service:
        known = service.ask(pck_path(world))
        service.ask(TCB_PATH)
    with offline(store, world, clock) as service:
        exact = service.ask(pck_path(world))
        lowered = service.ask(pck_path(world, cpu_svn=bytes(16)))
        strange = service.ask(pck_path(world).replace(qe_id(world).hex(), "00" * 16))

    assert (exact.status, exact.body) == (200, known.body)
    assert (lowered.status, lowered.json["error"]) == (462, "Certificates are not available for certain TCBs.")
    assert (strange.status, strange.json["error"]) == (461, "The platform was not found in the cache.")
    assert "00" * 16 in strange.json["message"]


class SwappingUpstream(SimulatedUpstream):
    """Gives the certificate of another processor to whom sends an encrypted PPID, as Intel's service would."""

    def fetch_pck_certificate(self, request: Any) -> Any:
        if request.encrypted_ppid is not None:
            other = self._world.machines[1]
            authority = self._world.authority
            leaf = authority.pck_chain(other).split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
            mine = super().fetch_pck_certificate(request)
            return type(mine)(leaf, mine.issuer_chain, mine.tcbm, mine.fmspc, mine.ca)
        return super().fetch_pck_certificate(request)


def test_nobody_can_put_his_certificate_in_another_platforms_place(
    store: Path, world: SimulatedWorld, clock: Clock
) -> None:
    ppid = f"&encrypted_ppid={'ab' * 384}"
    raw = b"\xff" * 16
    with running_service(store, SwappingUpstream(world, clock), world.trust_roots, clock) as service:
        own = service.ask(pck_path(world))
        attack = service.ask(pck_path(world, cpu_svn=raw, more=ppid))
        after = service.ask(pck_path(world, cpu_svn=raw))

    assert (own.status, attack.status) == (200, 200)
    assert attack.body != own.body
    assert after.body == own.body


# --- administration ---------------------------------------------------------------------------------------------------


def registration(world: SimulatedWorld) -> dict[str, str]:
    tcb = world.machine.tcb
    return {
        "qe_id": qe_id(world).hex(),
        "pce_id": "0000",
        "cpu_svn": tcb.cpu_svn.hex(),
        "pce_svn": tcb.pce_svn.to_bytes(2, "little").hex(),
        "enc_ppid": "ab" * 384,
        "platform_manifest": "",
    }


@pytest.mark.parametrize(
    ("method", "path", "header"),
    [("POST", "platforms", "user-token"), ("GET", "platforms", "admin-token"), ("POST", "refresh", "admin-token")],
)
def test_administration_wants_its_token(service: RunningService, method: str, path: str, header: str) -> None:
    wrong = [{}, {header: ""}, {header: "guess"}, {header: HASHES["user_token_hash"]}, {"user-token": ADMIN}]
    for headers in wrong:
        reply = service.ask(f"{V4}/{path}", method=method, headers=headers, body={})
        assert (reply.status, reply.json["error"]) == (401, "Authentication failed.")


def test_after_five_wrong_tokens_no_token_of_the_address_is_looked_at_for_a_minute(
    service: RunningService, clock: Clock
) -> None:
    def ask(token: str) -> Reply:
        return service.ask(f"{V4}/platforms", headers={"admin-token": token})

    assert [ask(f"guess {number}").status for number in range(5)] == [401] * 5
    locked = [ask("guess"), ask(ADMIN)]
    registering = service.ask(f"{V4}/platforms", method="POST", headers={"user-token": USER}, body={})
    public = service.ask(TCB_PATH)
    clock.now += timedelta(seconds=61)
    after = ask(ADMIN)

    assert [reply.status for reply in (*locked, registering)] == [429] * 3
    assert 0 < int(locked[0].header("Retry-After") or "") <= 60
    assert (public.status, after.status) == (200, 200)


def test_right_and_missing_tokens_lock_nobody_out(service: RunningService) -> None:
    for headers in [{"admin-token": ADMIN}, {}, {"admin-token": ""}] * 4:
        service.ask(f"{V4}/platforms", headers=headers)
    assert service.ask(f"{V4}/platforms", headers={"admin-token": ADMIN}).status == 200


@pytest.mark.parametrize(("method", "path"), [("POST", "platforms"), ("PUT", "platformcollateral")])
def test_a_caller_is_known_before_its_body_is_read(service: RunningService, method: str, path: str) -> None:
    with socket.create_connection(service.address, timeout=60) as client:
        head = f"{method} {V4}/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nadmin-token: guess\r\n\r\n"
        client.sendall(head.encode() + b"{")
        answer = b"".join(iter(lambda: client.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 401 ")


def test_the_bytes_of_all_bodies_are_bounded(
    store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock
) -> None:
    limits = {"max_body": 100_000, "max_bodies": 150_000}
    with running_service(store, upstream, world.trust_roots, clock, **limits, **HASHES) as service:

        def begin(size: int) -> socket.socket:
            client = socket.create_connection(service.address, timeout=60)
            head = f"PUT {V4}/platformcollateral HTTP/1.1\r\nHost: x\r\nadmin-token: {ADMIN}\r\n"
            client.sendall(f"{head}Content-Length: {size + 1}\r\n\r\n".encode() + b"x" * size)
            return client

        # What was only announced takes nothing.
        with begin(0), begin(0), begin(0), begin(90_000) as first:
            with begin(90_000) as second:
                refused = second.recv(65536)
            with begin(50_000) as third:
                third.sendall(b"x")
                assert third.recv(65536).startswith(b"HTTP/1.1 400 ")
            first.sendall(b"x")
            assert first.recv(65536).startswith(b"HTTP/1.1 400 ")
        with begin(90_000) as fourth:
            fourth.sendall(b"x")
            assert fourth.recv(65536).startswith(b"HTTP/1.1 400 ")

    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 2" in refused


def test_what_callers_without_a_token_cost_upstream_is_bounded(
    store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock
) -> None:
    settings = {"questions_per_address": 3, **HASHES}
    with running_service(store, upstream, world.trust_roots, clock, **settings) as service:
        known = service.ask(TCB_PATH)
        strange = [service.ask(f"{V4}/tcb?fmspc={number:012x}").status for number in range(5)]
        certificate = service.ask(pck_path(world))
        again, remembered = service.ask(f"{TCB_PATH}&x=y"), service.ask(f"{V4}/tcb?fmspc={0:012x}")
        registered = service.ask(
            f"{V4}/platforms", method="POST", headers={"user-token": USER}, body=registration(world)
        )
        served = service.ask(pck_path(world))
        clock.now += timedelta(seconds=61)
        later = service.ask(f"{V4}/tcb?fmspc={9:012x}")

    assert (known.status, strange) == (200, [404, 404, 429, 429, 429])
    assert (certificate.status, certificate.header("Retry-After")) == (429, "60")
    # What is in the store, and what is known to be missing, cost nothing; nor is a registered platform limited.
    assert (again.status, remembered.status) == (200, 404)
    assert (registered.status, served.status, later.status) == (200, 200, 404)


def test_the_questions_of_one_address_hold_up_no_other(
    store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock
) -> None:
    with (
        running_service(store, upstream, world.trust_roots, clock, upstream_threads=1) as service,
        ThreadPoolExecutor(6) as callers,
    ):
        upstream.gate.clear()
        many = [callers.submit(service.ask, f"{V4}/tcb?fmspc={number:012x}") for number in range(5)]
        service.wait_until(lambda: service.metric("upstream_requests_total", document="tcb-info") == 5)
        other = callers.submit(service.ask, f"{V4}/qe/identity", source="127.0.0.2")
        service.wait_until(lambda: service.metric("upstream_requests_total", document="qe-identity"))
        upstream.gate.set()
        assert other.result().status == 200
        assert {each.result().status for each in many} == {404}
    # One was under way, and one was next before the other address came.
    assert upstream.asked.index(DocumentKey.qe_identity("sgx")) == 2


def test_no_answer_names_a_file_of_the_server(tmp_path: Path, world: SimulatedWorld, clock: Clock) -> None:
    store, folder = tmp_path / "collateral.sqlite", tmp_path / "a folder"
    world.export_collateral(folder)
    with running_service(store, BundleSource(folder), world.trust_roots, clock, **HASHES) as service:
        replies = [
            service.ask(f"{V4}/tcb?fmspc=ffffffffffff"),
            service.ask(f"{V4}/qve/identity"),
            service.ask(pck_path(world)),
            service.ask(f"{V4}/refresh", headers={"admin-token": ADMIN}),
        ]
        with closing(sqlite3.connect(store)) as database, database:
            database.execute("DROP TABLE versions")
        replies += [service.ask(path) for path in (TCB_PATH, "/readyz", f"{V4}/rootcacrl", f"{V4}/platforms")]

    for reply in replies:
        assert str(tmp_path) not in str(reply.headers) + reply.body.decode(), reply
    assert {404, 503} <= {reply.status for reply in replies}


def test_what_is_stale_is_served_to_who_may_not_cause_questions(
    store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock
) -> None:
    with running_service(store, upstream, world.trust_roots, clock, questions_per_address=1) as service:
        service.ask(TCB_PATH)
        upstream.down = True
        clock.now += timedelta(days=60)
        first = service.ask(f"{TCB_PATH}&x=1")
        second = service.ask(f"{TCB_PATH}&x=2")

    assert [(reply.status, (reply.header("Warning") or "")[:3]) for reply in (first, second)] == [(200, "110")] * 2


def test_without_a_token_set_administration_is_closed(
    store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock
) -> None:
    with running_service(store, upstream, world.trust_roots, clock) as service:
        reply = service.ask(f"{V4}/refresh", method="POST", headers={"admin-token": ""})

    assert reply.status == 401
    assert "admin_token_hash" in reply.json["advice"]


def test_registering_a_platform_fetches_all_that_its_quotes_need(
    service: RunningService, upstream: RecordedUpstream, world: SimulatedWorld
) -> None:
    reply = service.ask(f"{V4}/platforms", method="POST", headers={"user-token": USER}, body=registration(world))
    upstream.down = True
    listed = service.ask(f"{V4}/platforms?source=[{FMSPC}]", headers={"admin-token": ADMIN})

    assert (reply.status, reply.body) == (200, b"Operation successful.")
    assert service.ask(pck_path(world, cpu_svn=world.machine.tcb.cpu_svn)).status == 200
    paths = ["qe/identity", "rootcacrl", "pckcrl?ca=platform", f"tcb?fmspc={FMSPC}"]
    assert {service.ask(f"{V4}/{path}").status for path in paths} == {200}
    assert listed.header("platform-count") == "1"
    assert listed.json[0]["qe_id"] == qe_id(world).hex().upper()
    assert service.ask("/readyz").json["ready"] is True


def test_offline_a_registration_is_queued_and_reading_the_queue_keeps_it(
    store: Path, world: SimulatedWorld, clock: Clock
) -> None:
    with offline(store, world, clock) as service:
        service.ask(f"{V4}/platforms", method="POST", headers={"user-token": USER}, body=registration(world))
    with offline(store, world, clock) as service:
        first, second = (service.ask(f"{V4}/platforms", headers={"admin-token": ADMIN}) for _ in range(2))

    assert first.json == second.json == [{k: v.upper() for k, v in registration(world).items()}]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"qe_id": ""}, "qe_id"),
        ({"cpu_svn": "zz" * 16}, "cpu_svn"),
        ({"pce_id": None}, "pce_id"),
        ({"enc_ppid": "00"}, "enc_ppid"),
        ({"enc_ppid": None}, "enc_ppid"),
        ({"enc_ppid": "00" * 384}, "enc_ppid"),
        ({"cpu_svn": ""}, "cpu_svn"),
        ({"pce_svn": None}, "pce_svn"),
        ({"platform_manifest": "xyz", "cpu_svn": ""}, "platform_manifest"),
    ],
)
def test_names_what_is_wrong_with_a_registration(
    service: RunningService, world: SimulatedWorld, change: dict[str, Any], named: str
) -> None:
    body = registration(world) | change
    reply = service.ask(f"{V4}/platforms", method="POST", headers={"user-token": USER}, body=body)

    assert reply.status == 400
    assert named in reply.json["message"]


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_survives_bodies_that_are_no_registration(service: RunningService, body: bytes) -> None:
    reply = service.ask(f"{V4}/platforms", method="POST", headers={"user-token": USER}, body=body)

    assert reply.status == 400


class ListingUpstream(RecordedUpstream):
    """Lists a TCB without a certificate too, as Intel's service does."""

    def fetch_pck_certificates(self, request: Any) -> Any:
        entries, chain = super().fetch_pck_certificates(request)
        return (PckCertificateEntry(bytes(18), None), *entries), chain


class UpdatedUpstream(RecordedUpstream):
    """Lists the certificate of a TCB that the machine has after its next update."""

    def fetch_pck_certificates(self, request: Any) -> Any:
        machine = self.world.machine
        before = machine.tcb
        machine.tcb = MachineTcb((before.sgx_components[0] + 1, *before.sgx_components[1:]), before.pce_svn)
        try:
            return super().fetch_pck_certificates(request)
        finally:
            machine.tcb = before


def test_a_platform_that_registers_with_its_manifest_has_its_certificates_for_tcbs_to_come(
    store: Path, world: SimulatedWorld, clock: Clock
) -> None:
    upstream = UpdatedUpstream(world, clock)
    body = registration(world) | {"platform_manifest": "AB" * 100}
    with running_service(store, upstream, world.trust_roots, clock, **HASHES) as service:
        assert service.ask(f"{V4}/platforms", method="POST", headers={"user-token": USER}, body=body).status == 200
        upstream.down = True
        before = service.ask(pck_path(world))
        components = list(world.machine.tcb.sgx_components)
        components[0] += 1
        after = service.ask(pck_path(world, cpu_svn=bytes(components)))
    assert (before.status, after.status) == (200, 200)
    assert before.body != after.body
    assert after.header("Warning") is None


def test_a_manifest_alone_suffices_to_register(store: Path, world: SimulatedWorld, clock: Clock) -> None:
    body = {"qe_id": qe_id(world).hex(), "pce_id": "0000", "platform_manifest": "AB" * 100}
    with offline(store, world, clock) as service:
        queued = service.ask(f"{V4}/platforms", method="POST", headers={"user-token": USER}, body=body)
        listed = service.ask(f"{V4}/platforms", headers={"admin-token": ADMIN})
    upstream = ListingUpstream(world, clock)
    with running_service(store, upstream, world.trust_roots, clock, **HASHES) as service:
        fetched = service.ask(f"{V4}/platforms?update=ALL", method="POST", headers={"user-token": USER}, body=body)
        upstream.down = True
        own = service.ask(pck_path(world))
        left = service.ask(f"{V4}/platforms", headers={"admin-token": ADMIN})

    assert (queued.status, fetched.status) == (200, 200)
    expected = {"qe_id": qe_id(world).hex().upper(), "pce_id": "0000", "platform_manifest": "AB" * 100}
    assert listed.json == [expected | {"cpu_svn": "", "pce_svn": "", "enc_ppid": ""}]
    assert own.status == 200
    assert left.json == []
    assert DocumentKey.qe_identity("sgx", "early") in upstream.asked


@pytest.mark.parametrize("wrong", ["tcbm", "processor"])
def test_a_list_of_certificates_is_held_to_what_it_says(
    store: Path, world: SimulatedWorld, clock: Clock, wrong: str
) -> None:
    class Wrong(ListingUpstream):
        def fetch_pck_certificates(self, request: Any) -> Any:
            entries, issuers = super().fetch_pck_certificates(request)
            other, end, _ = world.authority.pck_chain(world.machines[1]).partition(b"-----END CERTIFICATE-----\n")
            more = {
                "tcbm": PckCertificateEntry(b"\0" * 18, entries[1].certificate),
                "processor": PckCertificateEntry(entries[1].tcbm, other + end),
            }
            return (*entries, more[wrong]), issuers

    body = {"qe_id": qe_id(world).hex(), "pce_id": "0000", "platform_manifest": "AB" * 100}
    with running_service(store, Wrong(world, clock), world.trust_roots, clock, **HASHES) as service:
        reply = service.ask(f"{V4}/platforms", method="POST", headers={"user-token": USER}, body=body)
    with CollateralStore(store, roots=world.trust_roots) as kept:
        assert kept.platforms.groups() == ()

    assert reply.status == 502


def test_an_update_that_is_no_set_is_refused(service: RunningService, world: SimulatedWorld) -> None:
    reply = service.ask(
        f"{V4}/platforms?update=late", method="POST", headers={"user-token": USER}, body=registration(world)
    )

    assert (reply.status, reply.json["field"]) == (400, "update")


def test_an_encrypted_ppid_of_zeros_is_not_sent_on(
    service: RunningService, upstream: RecordedUpstream, world: SimulatedWorld
) -> None:
    assert service.ask(pck_path(world, more=f"&encrypted_ppid={'00' * 384}")).status == 200

    (asked,) = [item for item in upstream.asked if isinstance(item, PckCertRequest)]
    assert asked.encrypted_ppid is None


def register_many(store: Path, world: SimulatedWorld, count: int) -> list[str]:
    names = [f"{number:032X}" for number in range(count)]
    with CollateralStore(store, roots=world.trust_roots) as kept, kept.database.change() as connection:
        for name in names:
            request = PckCertRequest(bytes(16), 1, bytes(2), bytes.fromhex(name), b"\x01" * 384)
            put_registration(connection, Registration(request, "waiting", NOW))
    return names


def test_platforms_are_listed_whole_or_by_pages(store: Path, world: SimulatedWorld, clock: Clock) -> None:
    names = register_many(store, world, 450)
    with offline(store, world, clock) as service:
        whole = service.ask(f"{V4}/platforms?source=REG", headers={"admin-token": ADMIN})
        pages, after = [], ""
        while True:
            page = service.ask(f"{V4}/platforms?limit=200{after}", headers={"admin-token": ADMIN})
            assert page.header("platform-count") == "450"
            pages.append([entry["qe_id"] for entry in page.json])
            if page.header("platform-next") is None:
                break
            after = f"&after={page.header('platform-next')}"
        empty = service.ask(f"{V4}/platforms?source=reg_na", headers={"admin-token": ADMIN})
        wrong = [
            service.ask(f"{V4}/platforms?{query}", headers={"admin-token": ADMIN}).json["field"]
            for query in ("limit=0", "limit=1001", "limit=x", "after=1", "after=..0000..", "source=x")
        ]

    assert whole.header("platform-count") == "450"
    assert [entry["qe_id"] for entry in whole.json] == names
    assert [len(page) for page in pages] == [200, 200, 50]
    assert [name for page in pages for name in page] == names
    assert (empty.json, empty.header("platform-count")) == ([], "0")
    assert wrong == ["limit", "limit", "limit", "after", "after", "source"]


def remove(service: RunningService, query: str) -> Reply:
    return service.ask(f"{V4}/platforms?{query}", method="DELETE", headers={"admin-token": ADMIN})


def test_platforms_can_be_removed(service: RunningService, store: Path, world: SimulatedWorld, clock: Clock) -> None:
    service.ask(pck_path(world))
    wrong = [remove(service, query) for query in ("", "qeid=zz", "qeid=ab&not_seen_since=x", "not_seen_since=soon")]
    strange = remove(service, "qeid=00")
    without = service.ask(f"{V4}/platforms?qeid=00", method="DELETE")
    removed = remove(service, f"qeid={qe_id(world).hex()}")
    listed = service.ask(f"{V4}/platforms?source=[]", headers={"admin-token": ADMIN})
    with CollateralStore(store, roots=world.trust_roots) as kept:
        assert kept.platforms.groups() == ()
        assert kept.platforms.pck_certificates(qe_id(world), bytes(2)) == ()

    assert {reply.status for reply in wrong} == {400}
    assert (strange.status, without.status) == (404, 401)
    assert (removed.status, removed.json["removed"], listed.json) == (200, 1, [])


def test_platforms_that_have_not_asked_for_long_can_be_removed(
    service: RunningService, store: Path, world: SimulatedWorld, clock: Clock, upstream: RecordedUpstream
) -> None:
    service.ask(f"{V4}/platforms", method="POST", headers={"user-token": USER}, body=registration(world))
    clock.now += timedelta(days=40)
    register_many(store, world, 1)  # seen at NOW
    service.ask(f"{V4}/refresh?type=certs", method="POST", headers={"admin-token": ADMIN})  # no sighting
    again = service.ask(pck_path(world))
    clock.now += timedelta(days=1)
    since = "2026-12-20T00:00:00Z"
    first = remove(service, f"not_seen_since={since}")
    listed = service.ask(f"{V4}/platforms?source=[]", headers={"admin-token": ADMIN})
    second = remove(service, "not_seen_since=2027-06-01T00:00:00%2B00:00")

    assert again.status == 200
    assert (first.json["removed"], len(listed.json), second.json["removed"]) == (1, 1, 1)


def tool_output(world: SimulatedWorld, **changes: Any) -> bytes:
    """What Intel's client tool writes after `fetch`, with white space where Python's json puts it."""
    source = SimulatedUpstream(world, lambda: NOW)
    request = PckCertRequest(
        cpu_svn=world.machine.tcb.cpu_svn, pce_svn=world.machine.tcb.pce_svn, pce_id=bytes(2), qe_id=qe_id(world)
    )
    answer = source.fetch_pck_certificate(request)
    tcb_info, identity, crl, root_crl = (
        source.fetch_document(key) for key in keys_for(FMSPC_BYTES, "platform", "sgx", "standard")
    )
    platform = registration(world)
    entry = {"tcb": {}, "tcbm": answer.tcbm.hex(), "cert": quote(answer.certificate)}
    missing = {"tcb": {}, "tcbm": "00" * 18, "cert": "Not available"}
    collaterals = {
        "version": 4,
        "pck_certs": [platform | {"certs": [entry, missing]}],
        "tcbinfos": [{"fmspc": FMSPC, "sgx_tcbinfo": json.loads(tcb_info.body)}],
        "pckcacrl": {"platformCrl": crl.body.hex()},
        "qeidentity": identity.body.decode(),
        "certificates": {
            "SGX-PCK-Certificate-Issuer-Chain": {"PLATFORM": quote(answer.issuer_chain)},
            "TCB-Info-Issuer-Chain": quote(tcb_info.issuer_chain),
            "SGX-Enclave-Identity-Issuer-Chain": quote(identity.issuer_chain),
        },
        "rootcacrl": root_crl.body.hex(),
    } | changes
    return json.dumps({"platforms": [platform], "collaterals": collaterals}).encode()


def put(service: RunningService, body: bytes) -> Reply:
    return service.ask(f"{V4}/platformcollateral", method="PUT", headers={"admin-token": ADMIN}, body=body)


def test_an_offline_service_is_filled_with_what_intels_tool_fetched(
    store: Path, world: SimulatedWorld, clock: Clock
) -> None:
    components = world.machine.tcb.cpu_svn
    with offline(store, world, clock) as service:
        before = service.ask(pck_path(world, cpu_svn=components))
        filled = put(service, tool_output(world))
        paths = ["qe/identity", "rootcacrl", "pckcrl?ca=platform", f"tcb?fmspc={FMSPC}"]
        statuses = {service.ask(f"{V4}/{path}").status for path in paths}
        after = service.ask(pck_path(world, cpu_svn=components))
        higher = service.ask(pck_path(world, cpu_svn=bytes([255] * 16)))
        ready = service.ask("/readyz")

    assert before.status == 461
    assert (filled.status, filled.body) == (200, b"Operation successful.")
    assert (statuses, ready.status) == ({200}, 200)
    assert (after.status, after.body) == (200, higher.body)
    tcb_info = SimulatedUpstream(world, lambda: NOW).fetch_document(TCB)
    with CollateralStore(store, roots=world.trust_roots) as kept:
        assert kept.document(TCB, at=NOW).body == tcb_info.body


def test_collateral_that_is_not_authentic_is_not_taken_in(store: Path, world: SimulatedWorld, clock: Clock) -> None:
    stranger = SimulatedWorld.from_seed(bytes(32), now=NOW)
    with offline(store, world, clock) as service:
        other_root = put(service, tool_output(stranger))
        nonsense = put(service, b'{"collaterals": []}')
        with CollateralStore(store, roots=world.trust_roots) as kept:
            assert kept.document_keys() == ()
            assert kept.platforms.groups() == ()

    assert (other_root.status, other_root.json["code"]) == (460, "root-untrusted")
    assert other_root.json["kept"] == {"documents": 0, "platforms": 0, "certificates": 0}
    assert nonsense.status == 400


def test_documents_of_an_upload_are_judged_one_by_one(store: Path, world: SimulatedWorld, clock: Clock) -> None:
    stranger = SimulatedWorld.from_seed(bytes(32), now=NOW)
    forged = SimulatedUpstream(stranger, lambda: NOW).fetch_document(TCB)
    forgery = [{"fmspc": FMSPC, "sgx_tcbinfo": json.loads(forged.body)}]
    with offline(store, world, clock) as service:
        other_key = put(service, tool_output(world, tcbinfos=forgery))
        with CollateralStore(store, roots=world.trust_roots) as kept:
            keys = set(kept.document_keys())
            platforms = kept.platforms.groups()
        malformed = put(service, tool_output(world, rootcacrl="zz"))
        ready = service.ask("/readyz")

    # Without its TCB info no certificate can be chosen, so nothing of the platform is kept either.
    assert (other_key.status, other_key.json["code"]) == (460, "signature-invalid")
    assert [entry["document"] for entry in other_key.json["documents"]] == ["sgx_tcbinfo"]
    assert [entry["qe_id"] for entry in other_key.json["platforms"]] == [qe_id(world).hex()]
    assert keys == set(keys_for(FMSPC_BYTES, "platform", "sgx")) - {TCB}
    assert platforms == ()
    assert (malformed.status, [entry["document"] for entry in malformed.json["documents"]]) == (400, ["rootcacrl"])
    assert malformed.json["kept"]["platforms"] == 1
    assert ready.status == 200


def many_platforms(world: SimulatedWorld, names: list[str], **changed: dict[str, Any]) -> bytes:
    """What the tool writes of platforms with these QE_IDs and certificates; some of them changed."""
    output = json.loads(tool_output(world))
    (entry,), (platform,) = output["collaterals"]["pck_certs"], output["platforms"]
    entries = [entry | {"qe_id": name} | changed.get(f"q{name}", {}) for name in names]
    output["collaterals"]["pck_certs"] = [{k: v for k, v in one.items() if k != "raw"} for one in entries]
    output["platforms"] = [
        platform | {"qe_id": one["qe_id"], "cpu_svn": one.get("raw", platform["cpu_svn"])} for one in entries
    ]
    return json.dumps(output).encode()


def test_one_bad_platform_neither_loses_the_others_nor_leaves_half_of_itself(
    store: Path, world: SimulatedWorld, clock: Clock
) -> None:
    (good,) = json.loads(tool_output(world))["collaterals"]["pck_certs"]
    stranger = json.loads(tool_output(SimulatedWorld.from_seed(bytes(32), now=NOW)))["collaterals"]["pck_certs"][0]
    names = [f"{number:032x}" for number in range(1, 41)]
    body = many_platforms(
        world,
        names,
        **{
            # The first certificate is good, the second of a stranger.
            f"q{names[3]}": {"certs": [*good["certs"], *stranger["certs"]]},
            f"q{names[20]}": {"certs": [{"tcbm": "zz", "cert": "x"}]},
            f"q{names[25]}": {"certs": []},
            f"q{names[30]}": {"raw": "00" * 16},
        },
    )
    with offline(store, world, clock) as service:
        reply = put(service, body)
        listed = service.ask(f"{V4}/platforms?source=[{FMSPC}]", headers={"admin-token": ADMIN})
        again = put(service, many_platforms(world, names))
    bad = [names[index] for index in (3, 20, 25, 30)]
    with CollateralStore(store, roots=world.trust_roots) as kept:
        assert {entry["qe_id"].lower() for entry in listed.json} == set(names) - set(bad)
        assert all(kept.platforms.pck_certificates(bytes.fromhex(name), bytes(2)) for name in names)

    assert reply.status == 460
    failed = {entry["qe_id"]: entry["code"] for entry in reply.json["platforms"]}
    assert failed == {
        bad[0]: "signature-invalid",
        bad[1]: "malformed-input",
        bad[2]: "collateral-not-found",
        bad[3]: "collateral-not-found",
    }
    assert reply.json["kept"] == {"documents": 4, "platforms": 36, "certificates": 36}
    assert reply.json["refused"] == 4
    assert (again.status, again.body) == (200, b"Operation successful.")


def test_others_are_answered_while_many_platforms_are_taken_in(
    store: Path, world: SimulatedWorld, clock: Clock
) -> None:
    names = [f"{number:032x}" for number in range(1, 101)]
    body = many_platforms(world, names)
    with offline(store, world, clock) as service:
        assert put(service, tool_output(world)).status == 200
        wanted = service.ask(TCB_PATH)
        done: list[Reply] = []
        upload = threading.Thread(target=lambda: done.append(put(service, body)))
        upload.start()
        answered = 0
        while upload.is_alive():
            reply = service.ask(f"{TCB_PATH}&client={answered}")  # of the store, not of memory
            assert (reply.status, reply.body) == (200, wanted.body)
            answered += upload.is_alive()
        upload.join(60)

    assert [reply.status for reply in done] == [200]
    assert answered >= 3
    assert {entry.name for entry in store.parent.iterdir()} == {store.name}


def test_uploads_that_cannot_go_on_hold_no_answer_up(store: Path, world: SimulatedWorld, clock: Clock) -> None:
    with offline(store, world, clock) as service:
        assert put(service, tool_output(world)).status == 200
        done: list[Reply] = []
        uploads = [threading.Thread(target=lambda: done.append(put(service, tool_output(world)))) for _ in range(3)]
        writer = sqlite3.connect(store, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        for upload in uploads:
            upload.start()
        service.wait_until(lambda: service.ask("/healthz").status == 200, seconds=60)
        replies = [service.ask(f"{TCB_PATH}&client={number}") for number in range(2)]
        waiting = len(uploads) - len(done)
        writer.execute("ROLLBACK")
        writer.close()
        for upload in uploads:
            upload.join(60)

    assert {reply.status for reply in replies} == {200}
    assert waiting == 3
    assert {reply.status for reply in done} == {200}


# --- refreshing -------------------------------------------------------------------------------------------------------


def test_refresh_goes_on_past_what_fails(service: RunningService, upstream: RecordedUpstream, clock: Clock) -> None:
    for path in ("qe/identity", f"tcb?fmspc={FMSPC}", "rootcacrl", "pckcrl?ca=platform"):
        service.ask(f"{V4}/{path}")
    upstream.unreachable = {DocumentKey.qe_identity("sgx")}
    clock.now += timedelta(hours=2)
    reply = service.ask(f"{V4}/refresh", headers={"admin-token": ADMIN})
    healed = upstream.unreachable.clear() or service.ask(f"{V4}/refresh", headers={"admin-token": ADMIN})

    assert reply.status == 502
    assert reply.json["renewed"] == 3
    assert [(failed["what"], failed["code"]) for failed in reply.json["failed"]] == [
        ("QE identity (standard set)", "collateral-unavailable")
    ]
    assert (healed.status, healed.json["failed"]) == (200, [])
    assert service.metric("refresh_total", outcome="failed") == 1


def test_refreshing_certificates_goes_on_past_a_failing_platform(
    service: RunningService, upstream: RecordedUpstream, world: SimulatedWorld
) -> None:
    registered = service.ask(f"{V4}/platforms", method="POST", headers={"user-token": USER}, body=registration(world))
    assert registered.status == 200
    assert service.ask(pck_path(world, cpu_svn=b"\xff" * 16)).status == 200
    failing = next(item for item in upstream.asked if getattr(item, "cpu_svn", b"") == world.machine.tcb.cpu_svn)
    upstream.unreachable = {failing}
    reply = service.ask(f"{V4}/refresh?type=certs&fmspc={FMSPC}", headers={"admin-token": ADMIN})
    nobody = service.ask(f"{V4}/refresh?type=certs&fmspc=[ffffffffffff]", headers={"admin-token": ADMIN})
    wrong = service.ask(f"{V4}/refresh?type=everything", headers={"admin-token": ADMIN})

    assert (reply.status, reply.json["unchanged"], len(reply.json["failed"])) == (502, 1, 1)
    assert (nobody.status, nobody.json["unchanged"]) == (200, 0)
    assert (wrong.status, wrong.json["field"]) == (400, "type")


def test_offline_there_is_nothing_to_refresh(store: Path, world: SimulatedWorld, clock: Clock) -> None:
    with offline(store, world, clock) as service:
        reply = service.ask(f"{V4}/refresh", method="POST", headers={"admin-token": ADMIN})

    assert reply.status == 503
    assert "offline" in reply.json["message"]


def test_renews_in_the_background_before_it_expires(
    store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock
) -> None:
    settings = {"refresh_look": 0.05, "refresh_retry": 3600.0, "fmspcs": (FMSPC,)}
    with running_service(store, upstream, world.trust_roots, clock, **settings) as service:
        # Nobody has asked for anything yet.
        service.wait_until(lambda: service.ask("/readyz").status == 200)
        first = service.ask(TCB_PATH).body
        upstream.unreachable = {DocumentKey.qe_identity("sgx")}
        clock.now += timedelta(days=24)
        service.wait_until(lambda: service.ask(TCB_PATH).body != first)
        assert service.ask(TCB_PATH).header("Warning") is None
        service.wait_until(lambda: service.metric("refresh_total", outcome="failed") >= 1)
        asked = upstream.asked.count(DocumentKey.qe_identity("sgx"))
        upstream.unreachable = set()
        clock.now += timedelta(hours=2)
        service.wait_until(lambda: upstream.asked.count(DocumentKey.qe_identity("sgx")) > asked)

    assert service.metric("last_refresh_timestamp_seconds") >= NOW.timestamp()


def test_what_belongs_to_a_tcb_info_is_fetched_before_anybody_asks(
    service: RunningService, upstream: RecordedUpstream
) -> None:
    service.ask(TCB_PATH)

    service.wait_until(lambda: set(keys_for(FMSPC_BYTES, "platform", "sgx")) <= set(upstream.asked))


# --- readiness --------------------------------------------------------------------------------------------------------


async def test_a_replica_that_leaves_is_not_ready_and_still_answers(
    store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock
) -> None:
    service = RunningService(store, upstream, world.trust_roots, clock, leave_after=3600)
    async with leaving(service):
        page = await asyncio.to_thread(service.ask, "/readyz")
        assert (page.status, page.json["reason"]) == (503, "leaving: told to stop")
        answer = await asyncio.to_thread(service.ask, TCB_PATH)
        assert (answer.status, answer.header("connection")) == (200, "close")


def test_readiness_names_the_fmspc_that_lacks_fresh_collateral(
    store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock
) -> None:
    with running_service(store, upstream, world.trust_roots, clock) as service:
        empty = service.ask("/readyz")
        service.ask(f"{V4}/qe/identity")
        service.ask(TCB_PATH)
        service.wait_until(lambda: service.ask("/readyz").json["documents"] == 4)
        full = service.ask("/readyz")
        upstream.down = True
        clock.now += timedelta(days=31)
        old = service.ask("/readyz")
        assert service.ask("/healthz").json == {"status": "alive"}
        service.ask("/metrics")
        assert service.metric("ready") == 0

    assert (empty.status, full.status, old.status) == (200, 200, 503)
    assert old.json["reason"] == f"fresh collateral is lacking for FMSPC {FMSPC} (sgx)"
    lacking = {gap["document"]: gap["problem"] for gap in old.json["lacking"]}
    assert lacking.keys() == {
        f"SGX TCB info of FMSPC {FMSPC} (standard set)",
        "QE identity (standard set)",
        "PCK CRL of the platform CA",
    }
    assert all(problem.startswith("expired at 2026-12-20") for problem in lacking.values())


def test_readiness_of_an_empty_offline_service_and_of_a_configured_fmspc(
    tmp_path: Path, world: SimulatedWorld, clock: Clock, upstream: RecordedUpstream
) -> None:
    with offline(tmp_path / "a.sqlite", world, clock) as service:
        empty = service.ask("/readyz")
    upstream.down = True
    with running_service(
        tmp_path / "b.sqlite", upstream, world.trust_roots, clock, fmspcs=("00906ed50000",)
    ) as service:
        configured = service.ask("/readyz")

    assert (empty.status, configured.status) == (503, 503)
    assert "empty" in empty.json["reason"]
    assert "00906ed50000" in configured.json["reason"]
    assert {gap["problem"] for gap in configured.json["lacking"]} == {"missing"}


def test_the_metric_says_what_readyz_says(
    store: Path, upstream: RecordedUpstream, world: SimulatedWorld, clock: Clock
) -> None:
    def both(service: RunningService) -> tuple[int, str]:
        ready = service.ask("/readyz")
        service.ask("/metrics")
        assert service.metric("ready") == (ready.status == 200) == ready.json["ready"]
        return ready.status, ready.json.get("reason", "")

    with offline(store, world, clock) as service:
        empty = both(service)
        with CollateralStore(store, roots=world.trust_roots) as kept:
            for key in keys_for(FMSPC_BYTES, "platform", "sgx"):
                kept.add([upstream.fetch_document(key)], seen=clock.now, source="elsewhere")
        service.wait_until(lambda: service.ask("/readyz").status == 200)
        full = both(service)
        clock.now = NOW.replace(year=1990)
        behind = both(service)
        clock.now = NOW.replace(year=2050)
        ahead = both(service)

    assert (empty[0], full, behind[0], ahead[0]) == (503, (200, ""), 503, 503)
    assert "clock says 1990-11-21T09:30:00Z" in behind[1]
    assert "clock says 2050-11-21T09:30:00Z" in ahead[1]
