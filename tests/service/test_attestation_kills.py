"""kill -9 of the attestation service under load: no acknowledged write is lost, no token has an unpublished key.

Two kills by default. More: ATTESTATION_KILLS=100 ./dev run python -m pytest -s tests/service/test_attestation_kills.py
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confcom.formats.text import encode_base64url
from confcom.platforms.enclave_quotes import EnclaveQuoteSource
from confcom.services.attestation.attestation_store import AttestationStore
from confcom.services.attestation.signing_keys import make_pair
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld
from confcom.tokens.jws import ReadJws
from running_attestation_service import API, TOKEN, claims_of, free_port

KILLS = int(os.environ.get("ATTESTATION_KILLS", "2"))
WAIT = 120
POLICY = 'version=1.0;authorizationrules{{[type=="x-ms-sgx-svn", value<={}] => permit();}};issuancerules{{}};'


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


class Stage:
    """The service as a process, clients that remember what was acknowledged, and what must be true afterwards."""

    def __init__(self, folder: Path) -> None:
        self.store, self.keys = folder / "store.sqlite", folder / "keys"
        world = SimulatedWorld.from_seed(bytes(range(32)), now=_now())
        world.export_collateral(folder / "collateral")
        enclave = world.machine.launch(EnclaveDeclaration.from_names("app", "us"))
        self._source = EnclaveQuoteSource(world.platform, enclave)
        self._quoting = threading.Lock()
        self._port = free_port()
        self._log = folder / "log"
        self._command = [
            sys.executable, "-m", "confcom", "attestation", "serve", "--insecure-http",
            "--listen", f"127.0.0.1:{self._port}", "--store", str(self.store), "--keys", str(self.keys),
            "--collateral", str(folder / "collateral"), "--trust-root", str(folder / "collateral" / "root_ca.pem"),
        ]  # fmt: skip
        self._environment = os.environ | {
            "CONFCOM_ATTESTATION_SERVICE_ADMIN_TOKEN_HASH": hashlib.sha512(TOKEN.encode()).hexdigest(),
            "CONFCOM_ATTESTATION_SERVICE_KEY_OVERLAP": "0.5",
            "CONFCOM_ATTESTATION_SERVICE_ATTEST_PER_MINUTE": "1000000",
        }
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

    def start(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        deadline = time.monotonic() + WAIT
        while self.ask("GET", "/certs") is None:
            assert process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "the service did not get ready"
            time.sleep(0.02)
        return process

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any] | None:
        """Status and JSON of an answer that came whole; None for all else."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT)
        content = body if body is None or isinstance(body, str) else json.dumps(body)
        try:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            connection.request(method, f"/simulated{path}?{API}", body=content, headers=headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()

    def work(self) -> list[threading.Thread]:
        """Clients that work until `end`."""
        calls = (self._attest, self._attest, self._attest_bound, self._set_policy)
        threads = [threading.Thread(target=self._again, args=(call,), daemon=True) for call in calls]
        for thread in threads:
            thread.start()
        return threads

    def end(self, threads: list[threading.Thread]) -> None:
        self._stop.set()
        for thread in threads:
            thread.join(WAIT)

    def check(self) -> None:
        """What must be true of a service that was started again."""
        found = self.ask("GET", "/certs")
        assert found is not None
        published = {key["kid"] for key in found[1]["keys"]}
        assert self.signers <= published, "a token has the signature of an unpublished key"
        if self.used is not None:
            replayed = self.ask("POST", "/attest/SgxEnclave", self.used)
            assert replayed is not None
            assert "was used before" in replayed[1]["error"]["message"]

    def check_records(self) -> None:
        """Every acknowledged write is in the store."""
        store = AttestationStore.open(self.store, made=False)
        kept = {row["evidence_hash"] for row in store.export()}
        store.close()
        assert set(self.evidence) <= kept, "an appraisal is not in the record"
        with sqlite3.connect(self.store) as connection:
            texts = [text for (text,) in connection.execute("SELECT text FROM policy_change ORDER BY id")]
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        numbers = [number for number in range(1, self.attempted + 1) if POLICY.format(number) in texts]
        assert set(self.policies) <= set(numbers), "an acknowledged policy is not in the history"
        assert texts == [POLICY.format(number) for number in numbers]
        assert texts[-1] in (POLICY.format(self.acknowledged), POLICY.format(self.attempted))

    def _again(self, call: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                call()
            except Exception as error:  # noqa: BLE001 - handed to the test
                self.failures.append(repr(error))
                return

    def _quote(self, data: bytes) -> bytes:
        with self._quoting:
            return self._source.quote(data).quote

    def _took(self, quote: bytes, answer: tuple[int, Any] | None) -> bool:
        if answer is None:
            time.sleep(0.02)
            return False
        assert answer[0] == 200, answer
        self.evidence.append(hashlib.sha256(quote).hexdigest())
        self.signers.add(ReadJws.parse(answer[1]["token"]).header["kid"])
        return True

    def _attest(self) -> None:
        quote = self._quote(os.urandom(64))
        self._took(quote, self.ask("POST", "/attest/SgxEnclave", {"quote": encode_base64url(quote)}))

    def _attest_bound(self) -> None:
        if (nonce := self.ask("POST", "/nonces", "")) is None:
            time.sleep(0.02)
            return
        quote = self._quote(hashlib.sha256(nonce[1]["nonce"].encode()).digest() + bytes(32))
        body = {"quote": encode_base64url(quote), "nonce": nonce[1]["nonce"], "bindNonce": True}
        if self._took(quote, self.ask("POST", "/attest/SgxEnclave", body)):
            self.used = body

    def _set_policy(self) -> None:
        self.attempted += 1
        answer = self.ask("PUT", "/policies/SgxEnclave", POLICY.format(self.attempted))
        if answer is None:
            time.sleep(0.02)
        else:
            assert answer[0] == 200, answer
            assert claims_of(answer[1]["token"])["x-ms-policy-result"] == "Updated"
            self.policies.append(self.attempted)
            self.acknowledged = self.attempted


def test_kills_lose_no_acknowledged_write_and_no_key(tmp_path: Path) -> None:
    stage, dice = Stage(tmp_path), random.Random(7)
    process = stage.start()
    threads = stage.work()
    seen: set[str] = set()
    try:
        for number in range(KILLS):
            before = len(stage.evidence), stage.acknowledged
            deadline = time.monotonic() + WAIT
            while not (len(stage.evidence) > before[0] and stage.acknowledged > before[1]) and not stage.failures:
                assert time.monotonic() < deadline, "nothing was acknowledged"
                time.sleep(0.01)
            make_pair(stage.keys, _now(), simulated=True)
            time.sleep(dice.uniform(0, 0.5 if number % 4 else 6))
            os.kill(process.pid, signal.SIGKILL)
            process.wait(WAIT)
            process = stage.start()
            stage.check()
            seen |= stage.signers
    finally:
        stage.end(threads)
        process.kill()
        process.wait(WAIT)
    assert stage.failures == []
    stage.check_records()
    assert len(seen) >= 2, "no key was changed meanwhile"
    sys.stdout.write(
        f"{KILLS} kills: {len(stage.evidence)} tokens by {len(seen)} keys, {len(stage.policies)} of "
        f"{stage.attempted} policies acknowledged; all are kept\n"
    )
