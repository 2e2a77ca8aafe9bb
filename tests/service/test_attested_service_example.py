"""The web service of `examples/attested_service` as real processes, over a real PostgreSQL."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest

from confcom import AllOf, MrSigner, QuoteVerifier, TrustRoot, TrustRoots, load_bundle, safe_defaults
from confcom.atls import ClientContext, https_opener
from confcom.wiring import create_machine_file, declare_enclave, export_simulated_collateral, simulated_world
from jwt_login_server import JwtLoginServer, jwt_login_server
from postgres_server import PostgresServer
from running_attestation_service import free_port, running_attestation

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(600)]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "attested_service" / "service.py"
SEED = b"seed of the example's tests"
SIGNER = declare_enclave("", "Contoso").mr_signer.hex()


@dataclass
class Stage:
    folder: Path
    options: list[str]
    secrets: JwtLoginServer
    processes: list[subprocess.Popen[str]]

    def start(self, name: str, *options: str | Path, signer: str = "Contoso") -> tuple[subprocess.Popen[str], str]:
        declared = self.folder / f"{name}.toml"
        declared.write_text(f'enclave = "{name}"\nsigner = "{signer}"\nisv_prod_id = 1\nisv_svn = 1\n')
        address = f"127.0.0.1:{free_port()}"
        command = [sys.executable, str(EXAMPLE), "--listen", address, "--enclave", str(declared), *self.options]
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.processes.append(process)
        return process, f"https://{address}"

    def serve(self, name: str, *options: str | Path, **more: str) -> str:
        process, url = self.start(name, *options, **more)
        assert process.stdout is not None
        assert "the database's password was released" in process.stdout.readline()
        return url

    def ask(self, url: str) -> str:
        roots = TrustRoots((TrustRoot.from_pem((self.folder / "collateral/root_ca.pem").read_bytes()),))
        policy = AllOf(MrSigner((bytes.fromhex(SIGNER),)), safe_defaults(accept_simulated=True))
        context = ClientContext(policy, load_bundle(self.folder / "collateral"), verifier=QuoteVerifier(roots))
        deadline = time.monotonic() + 60
        while True:
            try:
                with https_opener(context).open(url, timeout=60) as answer:
                    return str(answer.read().decode())
            except URLError as error:
                if not isinstance(error.reason, ConnectionRefusedError) or time.monotonic() > deadline:
                    raise


@pytest.fixture
def stage(tmp_path: Path, postgres: PostgresServer) -> Iterator[Stage]:
    now = datetime.fromtimestamp(time.time(), UTC)
    machine = tmp_path / "machine.json"
    create_machine_file(machine, SEED, now)
    export_simulated_collateral(machine, tmp_path / "collateral", now)
    with (
        postgres.database() as database,
        running_attestation(tmp_path, simulated_world(SEED, now=now), now=now) as attestation,
        jwt_login_server(tmp_path, attestation.url, attestation.clock) as secrets,
    ):
        postgres.execute("CREATE TABLE stock (name text PRIMARY KEY, number int)", database)
        postgres.execute("INSERT INTO stock VALUES ('apples', 3)", database)
        postgres.execute("DROP ROLE IF EXISTS stock")
        postgres.execute("CREATE ROLE stock LOGIN PASSWORD 'correct horse'")
        postgres.execute("GRANT SELECT ON stock TO stock", database)
        secrets.secrets["secret/data/stock"] = {"password": "correct horse"}
        secrets.roles["stock"] = {"mrsigner": SIGNER, "debug": False}
        options: list[Any] = ["--database", postgres.of(database, role="stock"), "--secrets", secrets.url]
        options += ["--attestation", attestation.url, "--ca", secrets.ca, "--machine", machine]
        running = Stage(tmp_path, list(map(str, options)), secrets, [])
        yield running
        for process in running.processes:
            process.kill()
            process.communicate()
        postgres.execute("DROP OWNED BY stock", database)
        postgres.execute("DROP ROLE stock")


def test_it_reads_its_password_and_asks_an_attested_peer(stage: Stage) -> None:
    (stage.folder / "policy.toml").write_text(f'mr_signer = ["{SIGNER}"]\nisv_prod_id = 1\nmin_isv_svn = 1\n')
    collateral = stage.folder / "collateral"
    expected = ["--policy", stage.folder / "policy.toml", "--collateral", collateral]
    expected += ["--trust-root", collateral / "root_ca.pem"]
    store = stage.serve("store")
    assert stage.ask(f"{store}/stock/apples") == "3\n"
    assert stage.ask(f"{store}/stock/pears") == "0\n"
    shop = stage.serve("shop", "--peer", store, *expected)
    assert stage.ask(f"{shop}/stock/apples") == "6\n"
    # A peer of another signer has the same words and the same database, and is not believed.
    stage.secrets.roles["stock"] = {}
    stranger = stage.serve("stranger", signer="Mallory")
    fooled = stage.serve("other", "--peer", stranger, *expected)
    with pytest.raises(HTTPError, match="502"):
        stage.ask(f"{fooled}/stock/apples")


def test_another_enclave_gets_no_password(stage: Stage) -> None:
    process, _ = stage.start("stranger", signer="Mallory")
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "claim 'mrsigner' does not match" in err
    assert "correct horse" not in out + err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--listen", "nonsense"], 2, "--listen"),
        (["--listen", "127.0.0.1:99999"], 1, "cannot serve: bind(): port must be"),
        (["--peer", "https://127.0.0.1:1"], 2, "--peer needs --policy and --collateral"),
        (["--peer", "https://127.0.0.1:1", "--policy", "/dev/null", "--collateral", "."], 2, "/dev/null"),
        (["--ca", "nowhere.pem"], 2, "nowhere.pem cannot be used"),
        (["--ca", "/dev/null"], 2, "/dev/null cannot be used"),
        (["--machine", "/dev/null"], 3, "machine file /dev/null: is empty"),
        (["--database", "postgresql://stock@127.0.0.1:1/stock"], 1, "cannot serve: connection failed"),
        (["--secrets", "https://127.0.0.1:1"], 7, "127.0.0.1:1"),
        (["--listen", "203.0.113.1:1"], 1, "cannot serve"),
    ],
)
def test_what_cannot_work_is_a_sentence(options: list[str], code: int, words: str, stage: Stage) -> None:
    process, _ = stage.start("store", *options)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, words in err) == (code, True), err
    assert "Traceback" not in err
    assert "correct horse" not in out + err


def test_it_outlives_its_database_and_ends_with_ctrl_c(stage: Stage, postgres: PostgresServer) -> None:
    url = stage.serve("store")
    assert stage.ask(f"{url}/stock/apples") == "3\n"
    postgres.execute("ALTER ROLE stock NOLOGIN")
    with pytest.raises(HTTPError, match="503"):
        stage.ask(f"{url}/stock/apples")
    postgres.execute("ALTER ROLE stock LOGIN")
    assert stage.ask(f"{url}/stock/apples") == "3\n"
    stage.processes[-1].send_signal(signal.SIGINT)
    _, err = stage.processes[-1].communicate(timeout=60)
    assert stage.processes[-1].returncode == 130
    assert "Traceback" not in err
