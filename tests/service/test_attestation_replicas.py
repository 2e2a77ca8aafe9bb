"""Two replicas of the attestation service over one PostgreSQL, and what happens between them.

More rounds of faults: ATTESTATION_FAULTS=20 ./dev postgres -s -k faults
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestation_stage import POLICY, Stage, now
from confcom.database.engine import Database, DatabaseAddress
from confcom.services.attestation.appraiser import POLICY_FOR
from confcom.services.attestation.attestation_store import CHAIN, AttestationStore
from confcom.services.attestation.signing_keys import make_pair
from confcom.tokens.azure import policy_hash
from postgres_server import OwnServer, PostgresServer
from running_attestation_service import claims_of
from tcp_proxy import TcpProxy

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(1800)]
ROUNDS = int(os.environ.get("ATTESTATION_FAULTS", "1"))
WAIT = 120
SILENT = 25.0
"""Seconds without a network: more than a replica waits for an answer."""
ROLE = "attestation_service"


@contextmanager
def replicas(folder: Path, server: PostgresServer, name: str, port: int = 0) -> Iterator[Stage]:
    """Two, which serve with a role that may not change the schema."""
    if not server.execute(f"SELECT 1 FROM pg_roles WHERE rolname = '{ROLE}'"):
        server.execute(f"CREATE ROLE {ROLE} LOGIN")
    database = Database(DatabaseAddress.parse(server.of(name)))
    CHAIN.upgrade(database)
    CHAIN.grant(database, ROLE)
    database.close()
    stage = Stage(folder, server.of(name), replicas=2, served=server.of(name, role=ROLE, port=port))
    try:
        stage.start(0)
        stage.start(1)
        yield stage
    finally:
        stage.end()


def test_replicas_answer_alike(tmp_path: Path, postgres: PostgresServer) -> None:
    with postgres.database() as name, replicas(tmp_path, postgres, name) as stage:
        keys = [stage.ask("GET", "/certs", replica=replica) for replica in (0, 1)]
        assert keys[0] is not None
        assert keys[0] == keys[1]

        made = stage.bound_request()
        assert made is not None
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda number: stage.ask(*_attest(made[1]), replica=number % 2), range(8)))
        assert sorted(answer[0] for answer in answers if answer) == [200, *[400] * 7]

        for number in range(1, 6):
            changed = stage.ask("PUT", "/policies/SgxEnclave", POLICY.format(number), replica=number % 2)
            assert changed is not None
            assert changed[0] == 200
            # A policy of the store is used for `POLICY_FOR` seconds: a call that begins later is judged by the new one.
            time.sleep(POLICY_FOR)
            for replica in (0, 1):
                bound = stage.bound_request()
                assert bound is not None
                token = stage.ask(*_attest(bound[1]), replica=replica)
                assert token is not None
                assert claims_of(token[1]["token"])["x-ms-policy-hash"] == policy_hash(POLICY.format(number))


def _attest(body: object) -> tuple[str, str, object]:
    return "POST", "/attest/SgxEnclave", body


def test_a_key_that_was_revoked_signs_no_more_on_any_replica(tmp_path: Path, postgres: PostgresServer) -> None:
    with postgres.database() as name, replicas(tmp_path, postgres, name) as stage:
        found = stage.ask("GET", "/certs")
        assert found is not None
        revoked = found[1]["keys"][0]["kid"]
        make_pair(stage.keys, now(), simulated=True)
        store = AttestationStore.open(stage.store, made=False)
        _until(lambda: all(len(_published(stage, replica)) == 4 for replica in (0, 1)))
        assert store.revoke_key(revoked, now())
        store.close()
        _until(lambda: all(revoked not in _published(stage, replica) for replica in (0, 1)))
        stage.signers.clear()
        stage.work()
        stage.wait_for_progress()
        assert revoked not in stage.signers


def _published(stage: Stage, replica: int) -> list[str]:
    found = stage.ask("GET", "/certs", replica=replica)
    return [key["kid"] for key in found[1]["keys"]] if found else []


def _until(true: object) -> None:
    deadline = time.monotonic() + WAIT
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def test_faults_lose_no_acknowledged_write_and_end_by_themselves(tmp_path: Path, postgres: PostgresServer) -> None:
    if not isinstance(postgres, OwnServer):
        pytest.skip("a server that CONFCOM_TEST_POSTGRES names is not restarted")
    proxy = TcpProxy(postgres.port)
    with postgres.database() as name, replicas(tmp_path, postgres, name, proxy.port) as stage:
        stage.work()

        def killed() -> None:
            stage.kill(1)
            stage.wait_for_progress()  # the other one serves
            stage.start(1)

        def restarted(how: signal.Signals) -> None:
            postgres.stop(how)
            time.sleep(1)
            postgres.start()

        def silent() -> None:
            proxy.silence()
            time.sleep(SILENT)
            proxy.restore()

        faults = [
            ("a replica was killed", killed),
            ("PostgreSQL was restarted", lambda: restarted(signal.SIGINT)),
            ("PostgreSQL crashed", lambda: restarted(signal.SIGQUIT)),
            ("connections were cut", proxy.cut),
            ("the network was silent", silent),
        ]
        for _ in range(ROUNDS):
            for what, fault in faults:
                stage.wait_for_progress()
                begun, before = time.monotonic(), len(stage.evidence)
                fault()
                over = time.monotonic()
                for replica in (0, 1):
                    _until(lambda replica=replica: _serves(stage, replica))
                stage.wait_for_progress()
                sys.stdout.write(
                    f"{what}: {over - begun:.1f} s, then served again after {time.monotonic() - over:.1f} s; "
                    f"{len(stage.evidence) - before} tokens meanwhile\n"
                )
        assert stage.failures == []
        for replica in (0, 1):
            stage.check(replica)
        stage.end()
        assert stage.failures == []
        stage.check_records()
        sys.stdout.write(f"{len(stage.evidence)} tokens and {len(stage.policies)} policies acknowledged: all kept\n")
    proxy.close()


def _serves(stage: Stage, replica: int) -> bool:
    made = stage.bound_request()
    answer = None if made is None else stage.ask(*_attest(made[1]), replica=replica)
    return answer is not None and answer[0] == 200


def test_the_role_of_the_service_has_no_right_that_it_does_not_need(tmp_path: Path, postgres: PostgresServer) -> None:
    with postgres.database() as name, replicas(tmp_path, postgres, name) as stage:
        stage.work()
        stage.wait_for_progress()
        stage.end()
        served = PostgresServer(postgres.of(name, role=ROLE))
        for statement in (
            "UPDATE appraisal SET reason = 'forged'", "DELETE FROM appraisal", "TRUNCATE appraisal",
            "UPDATE policy_change SET text = 'forged'", "DELETE FROM policy_change", "DELETE FROM signer_change",
            "DELETE FROM key_change", "UPDATE secret SET value = ''", "DROP TABLE appraisal",
            "CREATE TABLE another (id int)", "ALTER TABLE appraisal ADD COLUMN more int",
            "UPDATE alembic_version SET version_num = '0000'",
        ):  # fmt: skip
            with pytest.raises(Exception, match=r"permission denied|must be owner"):
                served.execute(statement)
        kept = served.execute("SELECT count(*) FROM appraisal")[0][0]
        assert kept > 0
        # Retention goes through a function, which leaves what happened in the last day.
        assert served.execute("SELECT forget_appraisals('9999-01-01', 1000000, 100000)") == [(0,)]
        postgres.execute("UPDATE appraisal SET at = at - interval '2 days' WHERE id % 2 = 0", name)
        gone = served.execute("SELECT forget_appraisals('9999-01-01', 1000000, 100000)")[0][0]
        assert served.execute("SELECT count(*) FROM appraisal") == [(kept - gone,)]
        assert gone > 0
