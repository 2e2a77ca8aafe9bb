"""The attestation service as operators see it: readiness, shutdown, renewed TLS, and the description of its API."""

from __future__ import annotations

import asyncio
import hashlib
import json
import select
import socket
import sqlite3
import ssl
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry
from starlette.routing import Mount, Route

from confcom.collateral.sources import SourceOptions
from confcom.errors import ConfigError, DatabaseUnavailable
from confcom.formats.arguments import encode_base64url
from confcom.pki.serving_pair import Authority
from confcom.services.attestation import attestation_service
from confcom.services.attestation.appraiser import Appraiser
from confcom.services.attestation.attestation_http import AttestationApp, AttestationMetrics
from confcom.services.attestation.attestation_service import AttestationServiceConfig, CollateralState
from confcom.services.attestation.attestation_store import AttestationStore
from confcom.services.attestation.lockstep import Outcome
from confcom.simulator.world import SimulatedWorld
from confcom.tokens.azure import DEFAULT_POLICY
from running_attestation_service import API, NOW, TOKEN, RunningAttestation, enclave_quote, free_port, make_world
from running_attestation_service import running_attestation as running
from running_collateral_service import Clock
from running_in_thread import leaving

DOCUMENT: dict[str, Any] = json.loads(files("confcom.services.attestation").joinpath("openapi.json").read_bytes())
UNDESCRIBED = {("/certs/", "GET"), ("/openapi.json", "GET"), ("/attest/{type}", "POST")}
"""Gramine's spelling of /certs, the description itself, and what refuses the types that are not served."""


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return make_world()


def _ready(service: RunningAttestation) -> Any:
    return service.ask("//readyz").json


def test_it_is_ready_when_collateral_and_keys_are_there(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attestation_service, "LOOK_AT_COLLATERAL", 0.05)
    with running(tmp_path, world) as service:
        service.wait_until(lambda: service.ask("//readyz").status == 200)
        assert _ready(service) == {"ready": True, "simulated": True}
        assert service.ask("//healthz").status == 200
    with running(tmp_path, world, collateral=f"http://127.0.0.1:{free_port()}") as service:
        assert service.ask("//readyz").status == 503
        service.wait_until(lambda: "not answered yet" not in _ready(service)["reason"])
        assert _ready(service)["reason"].startswith("no collateral: ")
        assert service.ask("//healthz").status == 200


async def test_a_replica_that_leaves_says_so_and_still_answers(tmp_path: Path, world: SimulatedWorld) -> None:
    config = AttestationServiceConfig(
        listen=f"127.0.0.1:{free_port()}",
        insecure_http=True,
        store=str(tmp_path / "attestation.sqlite"),
        keys=str(tmp_path / "keys"),
        collateral=f"http://127.0.0.1:{free_port()}",
        admin_token_hash=hashlib.sha512(b"a").hexdigest(),
        leave_after=3600,
    )
    service = RunningAttestation(config, world, Clock(NOW))
    async with leaving(service):
        page = await asyncio.to_thread(service.ask, "//readyz")
        assert (page.status, page.json["reason"]) == (503, "leaving: told to stop")
        keys = await asyncio.to_thread(service.ask, "/certs")
        assert (keys.status, keys.headers["connection"]) == (200, "close")


def test_short_outages_of_the_source_are_borne(tmp_path: Path, world: SimulatedWorld) -> None:
    clock, folder = Clock(NOW), tmp_path / "collateral"
    state = CollateralState(str(folder), SourceOptions(roots=world.trust_roots, at=NOW), timedelta(), clock=clock)
    assert "not answered yet" in state.problem
    state.look()
    assert "there is no collateral at" in state.problem
    world.export_collateral(folder)
    state.look()
    assert state.problem == ""
    folder.rename(tmp_path / "away")
    clock.now += timedelta(minutes=59)
    state.look()
    assert state.problem == ""
    clock.now += timedelta(minutes=2)
    assert "there is no collateral at" in state.problem
    (tmp_path / "away").rename(folder)
    state.look()
    assert state.problem == ""


def test_expired_or_foreign_collateral_is_no_collateral(tmp_path: Path, world: SimulatedWorld) -> None:
    clock, folder = Clock(NOW), tmp_path / "collateral"
    world.export_collateral(folder)
    options = SourceOptions(roots=world.trust_roots, at=NOW)
    state = CollateralState(str(folder), options, timedelta(days=5), clock=clock)
    state.look()
    clock.now += timedelta(days=32)
    state.look()
    assert state.problem == ""
    clock.now += timedelta(days=5)
    state.look()
    assert "the QE identity of" in state.problem
    other = SimulatedWorld.from_seed(bytes(32), now=NOW)
    foreign = CollateralState(
        str(folder), SourceOptions(roots=other.trust_roots, at=NOW), timedelta(), clock=Clock(NOW)
    )
    foreign.look()
    assert foreign.problem.startswith("no collateral: ")


def test_readiness_shows_no_password(world: SimulatedWorld) -> None:
    options = SourceOptions(roots=world.trust_roots, at=NOW)
    state = CollateralState("http://me:secret@127.0.0.1:1", options, timedelta(), clock=Clock(NOW))
    state.look()
    assert "http://127.0.0.1:1 " in f"{state.problem} "
    assert "secret" not in state.problem


def test_a_request_under_way_is_answered_before_the_end(tmp_path: Path, world: SimulatedWorld) -> None:
    with running(tmp_path, world) as service:
        body = json.dumps({"quote": encode_base64url(enclave_quote(world))}).encode()
        host, _, port = service.url.removeprefix("http://").removesuffix("/simulated").partition(":")
        with socket.create_connection((host, int(port)), timeout=120) as client:
            head = f"POST /simulated/attest/SgxEnclave?{API} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body[:100])
            # Answered after the head was read, because requests of a connection have their turns.
            assert service.ask("/certs").status == 200
            service.ask_to_stop()
            service.wait_until(lambda: _refused(host, int(port)))
            client.sendall(body[100:])
            answer = b""
            while piece := client.recv(1 << 16):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'{"token":"' in answer


def _refused(host: str, port: int) -> bool:
    """Whether a newcomer gets no answer. A slow machine may end this early, which the test above bears."""
    try:
        with socket.create_connection((host, port), timeout=1) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            return not client.recv(100)
    except OSError:
        return True


def test_a_renewed_certificate_is_used_without_a_restart(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.runtime.tls.WATCH_INTERVAL", 0.05)
    now = datetime.fromtimestamp(time.time(), UTC)
    authority = Authority.make("tests", now=now, lifetime=timedelta(days=1))
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def renew(name: str) -> None:
        pair = authority.issue(("127.0.0.1",), now=now, lifetime=timedelta(hours=9), common_name=name)
        certificate.write_bytes(pair.certificate)
        key.write_bytes(pair.key)

    renew("first")
    port = free_port()
    tls = {"insecure_http": False, "tls_certificate": str(certificate), "tls_key": str(key)}
    with running(tmp_path, world, listen=f"127.0.0.1:{port}", **tls):
        context = ssl.create_default_context(cadata=authority.certificate.decode())

        def served() -> str:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
            ):
                subject: Any = (secured.getpeercert() or {})["subject"]
                return str(subject[0][0][1])

        assert served() == "first"
        renew("second")
        deadline = time.monotonic() + 60
        while served() != "second":
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_description_has_every_path_and_no_other(tmp_path: Path, world: SimulatedWorld) -> None:
    described = {(path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods}
    served: set[tuple[str, str]] = set()
    with running(tmp_path, world) as service:
        for path, method in described:
            answer = service.ask(path.replace("{type}", "SgxEnclave"), method=method)
            assert answer.status not in (404, 405), (path, method)
        assert service.ask("/openapi.json").json["servers"] == [{"url": service.url}]
    for route in _routes():
        path = route.path.replace("{kind:plain}", "{type}")
        served |= {(path, method) for method in route.methods or () if method != "HEAD"}
    assert served - UNDESCRIBED == described


def _routes() -> list[Route]:
    nothing: Any = None
    app = AttestationApp(
        *[nothing] * 8,
        AttestationMetrics(CollectorRegistry(), nothing, nothing),
        issuer="",
        prefix="/x",
        max_body=1,
        attest_per_minute=1,
        simulated=True,
    )  # of its parts the metrics alone are used
    mount = next(route for route in app._app.routes if isinstance(route, Mount))
    return [route for route in mount.routes if isinstance(route, Route)]


def test_what_administrators_alone_may_do_says_so(tmp_path: Path, world: SimulatedWorld) -> None:
    with running(tmp_path, world) as service:
        for path, methods in DOCUMENT["paths"].items():
            for method, operation in methods.items():
                where = f"{path.replace('{type}', 'SgxEnclave')}?{API}"
                answer = service.ask(where, b"" if method != "get" else None, method=method.upper())
                assert (answer.status == 401) is ("security" in operation), path
                assert str(answer.status) in operation["responses"], (path, answer.status)


def test_tokens_cannot_be_revoked_and_the_endpoint_says_so(tmp_path: Path, world: SimulatedWorld) -> None:
    with running(tmp_path, world) as service:
        where = service.ask("/.well-known/openid-configuration").json["revocation_endpoint"]
        assert where == f"{service.url}/revoke"
        answer = service.ask("/revoke", b"token=x", Content_Type="application/x-www-form-urlencoded")
        assert (answer.status, answer.json["error"]) == (400, "unsupported_token_type")


def test_callers_behind_a_trusted_proxy_have_limits_of_their_own(tmp_path: Path, world: SimulatedWorld) -> None:
    def ask(service: RunningAttestation, *named: str) -> int:
        body = {"quote": encode_base64url(enclave_quote(world))}
        return service.ask(f"/attest/SgxEnclave?{API}", body, X_Forwarded_For=", ".join(named)).status

    with running(tmp_path, world, attest_per_minute=2, proxies=("127.0.0.0/8", "10.0.0.0/8")) as service:
        for caller in ("192.0.2.1", "192.0.2.2:4711", "2001:db8::1", "[2001:db8:1::2]:4711"):
            assert [ask(service, caller) for _ in range(3)] == [200, 200, 429]
        # What a caller claims itself stands before what the proxies saw, and wins nothing.
        assert ask(service, "198.51.100.7", "192.0.2.1", "10.1.2.3") == 429
        assert ask(service, "192.0.2.9", "10.1.2.3") == 200
        with closing(AttestationStore.open(service.config.store, made=False)) as store:
            callers = {row["caller"] for row in store.records()}
        assert callers == {"192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:1::2", "192.0.2.9"}
    # Nobody is trusted to name callers unless a setting says so.
    with running(tmp_path, world, attest_per_minute=2) as service:
        assert [ask(service, f"192.0.2.{number}") for number in range(3)] == [200, 200, 429]
    wrong = running(tmp_path, world, proxies=("10.1.2.3/8",))
    with pytest.raises(ConfigError, match="has host bits set"), wrong:
        pass


def test_an_address_that_fills_the_queue_makes_room_for_others(tmp_path: Path, world: SimulatedWorld) -> None:
    draft = DEFAULT_POLICY.replace("=> permit();", "=> permit();" * 1000)
    body = {"quote": encode_base64url(enclave_quote(world)), "draftPolicyForAttestation": draft}
    done = threading.Event()

    def ask(service: RunningAttestation, caller: str) -> int:
        return service.ask(f"/attest/SgxEnclave?{API}", body, X_Forwarded_For=caller).status

    def flood(service: RunningAttestation) -> set[int]:
        found = set()
        while not done.is_set():
            found.add(ask(service, "192.0.2.1"))
        return found

    with (
        running(tmp_path, world, threads=1, max_waiting=3, proxies=("127.0.0.0/8",)) as service,
        ThreadPoolExecutor(8) as pool,
    ):
        floods = [pool.submit(flood, service) for _ in range(8)]
        try:
            service.wait_until(lambda: ask(service, "192.0.2.1") == 503)
            assert [ask(service, "192.0.2.2") for _ in range(5)] == [200] * 5
        finally:
            done.set()
        assert set().union(*(each.result() for each in floods)) == {200, 503}


def test_administrators_at_one_address_make_room_for_others(tmp_path: Path, world: SimulatedWorld) -> None:
    draft, done = DEFAULT_POLICY.replace("=> permit();", "=> permit();" * 1000), threading.Event()

    def ask(service: RunningAttestation, caller: str, path: str, body: str | None = None) -> int:
        named = {"Authorization": f"Bearer {TOKEN}", "X_Forwarded_For": caller}
        return service.ask(f"{path}?{API}", body, **named).status

    def try_out(service: RunningAttestation) -> int:
        return ask(service, "192.0.2.1", "/policies/SgxEnclave:dryRun", draft)

    def flood(service: RunningAttestation) -> set[int]:
        found = set()
        while not done.is_set():
            found.add(try_out(service))
        return found

    with (
        running(tmp_path, world, threads=1, max_waiting=3, proxies=("127.0.0.0/8",)) as service,
        ThreadPoolExecutor(8) as pool,
    ):
        assert service.attest(enclave_quote(world)).status == 200
        floods = [pool.submit(flood, service) for _ in range(8)]
        try:
            service.wait_until(lambda: try_out(service) == 503)
            paths = "/certificates", "/policies/SgxEnclave", "/audit", "/tcbbaselines/SgxEnclave"
            assert [ask(service, "192.0.2.2", path) for path in paths] == [200] * 4
        finally:
            done.set()
        assert set().union(*(each.result() for each in floods)) == {200, 503}


def test_large_bodies_under_way_are_bounded_together(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.attestation.attestation_http.MAX_LARGE", 3 << 19)
    size = 1 << 20
    with running(tmp_path, world) as service, ExitStack() as stack:
        host, _, port = service.url.removeprefix("http://").removesuffix("/simulated").partition(":")
        head = f"POST /simulated/attest/SgxEnclave?{API} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
        clients = [stack.enter_context(socket.create_connection((host, int(port)), timeout=120)) for _ in range(2)]
        for client in clients:
            client.sendall(head.encode() + b" " * (size - 1))
        refused = next(client for client in clients if select.select(clients, [], [], 120)[0] == [client])
        assert refused.recv(16) == b"HTTP/1.1 503 Ser"
        # The other one is still received, and small bodies are.
        assert service.attest(enclave_quote(world)).status == 200
        (other,) = (client for client in clients if client is not refused)
        other.sendall(b" ")
        assert other.recv(12) == b"HTTP/1.1 400"
        assert service.ask(f"/attest/SgxEnclave?{API}", b" " * size).status == 400


def test_large_bodies_count_until_they_are_answered(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.attestation.attestation_http.MAX_LARGE", 3 << 19)
    appraise, released = Appraiser.appraise, threading.Event()

    def held(*words: Any, **flags: Any) -> Outcome:
        assert released.wait(120)
        return appraise(*words, **flags)

    monkeypatch.setattr(Appraiser, "appraise", held)
    path, body = f"/attest/SgxEnclave?{API}", b" " * (1 << 20)
    with running(tmp_path, world) as service, ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(service.ask, path, body) for _ in range(2)]
        try:
            ((refused,), (waiting,)) = wait(calls, timeout=120, return_when=FIRST_COMPLETED)
            assert refused.result().status == 503
        finally:
            released.set()
        assert waiting.result().status == 400
        assert service.ask(path, body).status == 400


def test_large_bodies_of_one_address_leave_room_for_others(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.attestation.attestation_http.MAX_LARGE", 4 << 17)
    size = 1 << 17
    with running(tmp_path, world, max_body=size, proxies=("127.0.0.0/8",)) as service, ExitStack() as stack:
        host, _, port = service.url.removeprefix("http://").removesuffix("/simulated").partition(":")
        head = f"POST /simulated/attest/SgxEnclave?{API} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\n"
        clients = [stack.enter_context(socket.create_connection((host, int(port)), timeout=120)) for _ in range(8)]
        for client in clients:
            client.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode() + b" " * (size - 1))
        waiting = set(clients)
        while len(waiting) > 1:
            (refused, *_), _, _ = select.select(list(waiting), [], [], 120)
            assert refused.recv(16) == b"HTTP/1.1 503 Ser"
            waiting.remove(refused)
        path = f"/attest/SgxEnclave?{API}"
        assert service.ask(path, b" " * size, X_Forwarded_For="192.0.2.1").status == 503
        assert service.ask(path, b" " * size, X_Forwarded_For="192.0.2.2").status == 400
        waiting.pop().close()
        service.wait_until(lambda: service.ask(path, b" " * size, X_Forwarded_For="192.0.2.1").status == 400)


def test_garbage_of_one_address_is_counted_and_not_all_of_it_recorded(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.attestation.attestation_http.REFUSED_RECORDED", 3)
    with running(tmp_path, world) as service:
        for number in range(5):
            answer = service.attest(bytes([number]) * 500)
            assert (answer.status, answer.error["code"]) == (400, "InvalidParameter")
        assert service.attest(enclave_quote(world)).status == 200
        lines = service.ask("//metrics").body.decode().splitlines()
        assert "confcom_attestation_unrecorded_total 2.0" in lines
        with closing(AttestationStore.open(service.config.store, made=False)) as store:
            assert [row["verdict"] for row in store.records()] == ["accepted", *["refused"] * 3]


def test_without_its_store_the_service_gives_no_token_and_says_so_once(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.attestation.attestation_http.CALM", 0.0)
    with structlog.testing.capture_logs() as logged, running(tmp_path, world) as service:

        def events() -> list[str]:
            return [
                line["event"] for line in logged if line["event"].startswith(("attestation.failed", "attestation.rec"))
            ]

        def rename(old: str, new: str) -> None:
            with closing(sqlite3.connect(service.config.store)) as other:
                other.execute(f"ALTER TABLE {old} RENAME TO {new}")

        assert service.attest(enclave_quote(world)).status == 200
        rename("appraisal", "gone")
        for _ in range(3):
            answer = service.attest(enclave_quote(world))
            assert (answer.status, answer.error["code"]) == (503, "StoreUnavailable")
            assert "no such table" in answer.error["message"]
        assert events() == ["attestation.failed"]
        rename("gone", "appraisal")
        assert [service.attest(enclave_quote(world)).status for _ in range(2)] == [200, 200]
        assert events() == ["attestation.failed", "attestation.recovered"]


def test_it_is_not_ready_while_its_store_refuses(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, world) as service, closing(sqlite3.connect(service.config.store)) as other:
        service.wait_until(lambda: service.ask("//readyz").status == 200)
        other.execute("ALTER TABLE appraisal RENAME TO gone")
        assert service.attest(enclave_quote(world)).status == 503
        monkeypatch.setattr("confcom.services.attestation.attestation_store.REFUSED_FOR", 1e6)
        answer = service.ask("//readyz")
        assert (answer.status, answer.json["ready"]) == (503, False)
        assert "no such table" in answer.json["reason"]
        assert "confcom_attestation_ready 0.0" in service.ask("//metrics").body.decode().splitlines()
        other.execute("ALTER TABLE gone RENAME TO appraisal")
        # Without requests nobody would see that it works again: after a while it is ready, and the next one shows.
        monkeypatch.setattr("confcom.services.attestation.attestation_store.REFUSED_FOR", 0.0)
        assert service.ask("//readyz").status == 200
        assert service.attest(enclave_quote(world)).status == 200
        # A store that is busy may be so for every replica: its callers are told to ask again.
        monkeypatch.setattr("confcom.services.attestation.attestation_store.REFUSED_FOR", 1e6)
        monkeypatch.setattr("confcom.services.attestation.attestation_store.AttestationStore.record", _busy)
        monkeypatch.setattr("confcom.services.attestation.attestation_store.AttestationStore.record_at_once", _no)
        assert service.attest(enclave_quote(world)).status == 503
        assert service.ask("//readyz").status == 200


def _busy(*_: object) -> None:
    raise DatabaseUnavailable("the database is busy")


def _no(*_: object) -> bool:
    return False
