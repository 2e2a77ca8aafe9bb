"""Processes of the attestation service over one store, under load, with clients that remember what was acknowledged."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from confcom.formats.arguments import encode_base64url
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.services.attestation.attestation_store import AttestationStore
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld
from confcom.tokens.jws import ReadJws
from running_attestation_service import API, TOKEN, claims_of, free_port

WAIT = 120
POLICY = 'version=1.0;authorizationrules{{[type=="x-ms-sgx-svn", value<={}] => permit();}};issuancerules{{}};'
UNAVAILABLE = 503


def now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


class Stage:
    """The replicas, their clients, and what must be true afterwards."""

    def __init__(self, folder: Path, store: str = "", *, replicas: int = 1, served: str = "") -> None:
        """`served` is the address of the store for the replicas, where that is another one than for the test."""
        self.store, self.keys = store or str(folder / "store.sqlite"), folder / "keys"
        world = SimulatedWorld.from_seed(bytes(range(32)), now=now())
        world.export_collateral(folder / "collateral")
        enclave = world.machine.launch(EnclaveDeclaration.from_names("app", "us"))
        self._source = EnclaveQuoteSource(world.platform, enclave)
        self._quoting = threading.Lock()
        self._ports = [free_port() for _ in range(replicas)]
        self._logs = [folder / f"log-{number}" for number in range(replicas)]
        self._command = [
            sys.executable, "-m", "confcom", "attestation", "serve", "--insecure-http", "--keys", str(self.keys),
            "--url", "http://attest.test", "--collateral", str(folder / "collateral"),
            "--trust-root", str(folder / "collateral" / "root_ca.pem"),
        ]  # fmt: skip
        self._environment = os.environ | {
            "CONFCOM_ATTESTATION_SERVICE_STORE": served or self.store,
            "CONFCOM_ATTESTATION_SERVICE_ADMIN_TOKEN_HASH": hashlib.sha512(TOKEN.encode()).hexdigest(),
            "CONFCOM_ATTESTATION_SERVICE_KEY_OVERLAP": "0.5",
            "CONFCOM_ATTESTATION_SERVICE_ATTEST_PER_MINUTE": "1000000",
        }
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self.evidence: list[str] = []
        """SHA-256 of evidence for which a token came."""
        self.signers: set[str] = set()
        self.attempted = self.acknowledged = 0
        """Numbers of policies."""
        self.policies: list[int] = []
        self.used: dict[str, Any] | None = None
        """A request with a bound nonce that gave its token."""
        self.failures: list[str] = []

    def start(self, replica: int = 0) -> None:
        """Start a replica, and wait until it answers."""
        command = [*self._command, "--listen", f"127.0.0.1:{self._ports[replica]}"]
        with self._logs[replica].open("ab") as log:
            process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        self._processes[replica] = process
        deadline = time.monotonic() + WAIT
        while self.ask("GET", "/certs", replica=replica) is None:
            assert process.poll() is None, self._logs[replica].read_text()
            assert time.monotonic() < deadline, "the service did not get ready"
            time.sleep(0.02)

    def kill(self, replica: int = 0) -> None:
        process = self._processes.pop(replica)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(WAIT)

    def ask(self, method: str, path: str, body: Any = None, *, replica: int | None = None) -> tuple[int, Any] | None:
        """Status and JSON of an answer that came whole; None for all else, and for a 503."""
        port = random.choice(self._ports) if replica is None else self._ports[replica]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
        content = body if body is None or isinstance(body, str) else json.dumps(body)
        try:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            connection.request(method, f"/simulated{path}?{API}", body=content, headers=headers)
            response = connection.getresponse()
            answer = response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return None if answer[0] == UNAVAILABLE else answer

    def work(self) -> None:
        """Start clients, which work until `end`."""
        calls = (self._attest, self._attest, self._attest_bound, self._set_policy)
        self._threads = [threading.Thread(target=self._again, args=(call,), daemon=True) for call in calls]
        for thread in self._threads:
            thread.start()

    def wait_for_progress(self) -> None:
        """Return when a token and a policy were acknowledged after this call."""
        before = len(self.evidence), self.acknowledged
        deadline = time.monotonic() + WAIT
        while not (len(self.evidence) > before[0] and self.acknowledged > before[1]) and not self.failures:
            assert time.monotonic() < deadline, "nothing was acknowledged"
            time.sleep(0.01)

    def end(self) -> None:
        """End the clients and the replicas."""
        self._stop.set()
        for thread in self._threads:
            thread.join(WAIT)
        for replica in tuple(self._processes):
            self.kill(replica)

    def check(self, replica: int = 0) -> None:
        """What must be true of a replica that serves."""
        found = self.ask("GET", "/certs", replica=replica)
        assert found is not None
        published = {key["kid"] for key in found[1]["keys"]}
        assert self.signers <= published, "a token has the signature of an unpublished key"
        if self.used is not None:
            replayed = self.ask("POST", "/attest/SgxEnclave", self.used, replica=replica)
            assert replayed is not None
            assert "was used before" in replayed[1]["error"]["message"]

    def check_records(self) -> None:
        """Every acknowledged write is in the store."""
        store = AttestationStore.open(self.store, made=False)
        kept = {row["evidence_hash"] for row in store.export()}
        assert set(self.evidence) <= kept, "an appraisal is not in the record"
        store.database.check()
        with store.database.read() as connection:
            texts = list(connection.execute(sa.text("SELECT text FROM policy_change ORDER BY id")).scalars())
        store.close()
        numbers = [number for number in range(1, self.attempted + 1) if POLICY.format(number) in texts]
        assert set(self.policies) <= set(numbers), "an acknowledged policy is not in the history"
        assert texts == [POLICY.format(number) for number in numbers]
        assert texts[-1] in (POLICY.format(self.acknowledged), POLICY.format(self.attempted))

    def quote(self, data: bytes) -> bytes:
        with self._quoting:
            return self._source.quote(data).quote

    def bound_request(self) -> tuple[bytes, dict[str, Any]] | None:
        """A quote over a nonce of the service, and the request with both."""
        if (nonce := self.ask("POST", "/nonces", "")) is None:
            return None
        quote = self.quote(hashlib.sha256(nonce[1]["nonce"].encode()).digest() + bytes(32))
        return quote, {"quote": encode_base64url(quote), "nonce": nonce[1]["nonce"], "bindNonce": True}

    def _again(self, call: Callable[[], bool]) -> None:
        while not self._stop.is_set():
            try:
                if not call():
                    time.sleep(0.02)
            except Exception as error:  # noqa: BLE001 - handed to the test
                self.failures.append(repr(error))
                return

    def _took(self, quote: bytes, answer: tuple[int, Any] | None) -> bool:
        if answer is None:
            return False
        assert answer[0] == 200, answer
        self.evidence.append(hashlib.sha256(quote).hexdigest())
        self.signers.add(ReadJws.parse(answer[1]["token"]).header["kid"])
        return True

    def _attest(self) -> bool:
        quote = self.quote(os.urandom(64))
        return self._took(quote, self.ask("POST", "/attest/SgxEnclave", {"quote": encode_base64url(quote)}))

    def _attest_bound(self) -> bool:
        if (made := self.bound_request()) is None:
            return False
        quote, body = made
        took = self._took(quote, self.ask("POST", "/attest/SgxEnclave", body))
        if took:
            self.used = body
        return took

    def _set_policy(self) -> bool:
        self.attempted += 1
        answer = self.ask("PUT", "/policies/SgxEnclave", POLICY.format(self.attempted))
        if answer is None:
            return False
        assert answer[0] == 200, answer
        assert claims_of(answer[1]["token"])["x-ms-policy-result"] == "Updated"
        self.policies.append(self.attempted)
        self.acknowledged = self.attempted
        return True
