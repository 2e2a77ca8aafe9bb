"""Two replicas of each service over one PostgreSQL that people bring: under load through updates, kills and restarts.

    ./dev e2e --thorough -k test_replicas

The server is Debian's, at the node's address, with TLS and passwords; pods have what the documentation gives them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_attestation import ATTESTATION, COLLATERAL, address_of, start_attestation
from cluster_jobs import DEVICE, limits, one_container, pod
from cluster_plugin import own_cluster
from confcom.protocols.pcs import PckCertRequest
from confcom.services.attestation.appraiser import POLICY_FOR
from confcom.services.attestation.signing_keys import make_pair
from confcom.simulator.enclaves import QuotingEnclave
from confcom.simulator.world import SimulatedWorld
from kubectl import ADDON_NAMESPACE, Kubectl
from postgres_server import OwnServer, program
from relying_party import RelyingParty

pytestmark = pytest.mark.timeout(1200)
SERVICES = {"attestation": ATTESTATION, "collateral": "confcom-collateral"}
"""Deployments by component."""
CLIENT = "replica-client"
TOKEN = "the administrator's"
DENIED = """
import os, sys, psycopg
url = next(value for name, value in os.environ.items() if name.endswith("_SERVICE_STORE"))
with psycopg.connect(url + "?sslmode=verify-full", autocommit=True) as connection:
    print(connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone())
    for statement in sys.argv[1:]:
        try:
            connection.execute(statement)
            print("DONE", statement)
        except psycopg.errors.InsufficientPrivilege:
            print("denied")
"""


@dataclass(frozen=True)
class Replicas:
    """Both services, their database and a client that asks all the time."""

    cluster: Kubectl
    addon: Addon
    database: OwnServer
    settings: dict[str, Any]

    def figures(self) -> dict[str, Any]:
        """The latest figures of the client."""
        lines = self.cluster.attempt("logs", "-n", "e2e", CLIENT, "--tail=1").out.strip().splitlines()
        figures: dict[str, Any] = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
        return figures

    def failed(self) -> int:
        """Requests that failed so far."""
        found: int = self.cluster.wait("figures", self.figures)["failed"]
        return found

    def more(self, count: int = 30) -> None:
        """Wait until so many more answers of each kind came, of which none differs from those before."""
        before = self.cluster.wait("figures", lambda: len(self.figures().get("answered", {})) == 3 and self.figures())

        def came() -> bool:
            now = self.figures().get("answered", {})
            return all(now.get(kind, 0) >= number + count for kind, number in before["answered"].items())

        self.cluster.wait("answers of each kind", came)
        assert self.figures()["different"] == {"attest": 1, "tcb": 1, "pckcert": 1}

    def no_failure_since(self, failed: int) -> None:
        """Every request was answered since there were so many failures."""
        self.more()
        figures = self.figures()
        assert figures["failed"] == failed, figures

    def client(self, *words: str) -> str:
        """Run the client's program once more."""
        return self.cluster("exec", CLIENT, "-n", "e2e", "--", "python3", "/etc/confcom/client/client.py", *words)

    def pods(self, component: str) -> list[Any]:
        """The pods that are ready."""
        conditions = ((one, one["status"].get("conditions", [])) for one in self.addon.pods(component))
        return [one for one, found in conditions if any(c["type"] == "Ready" and c["status"] == "True" for c in found)]

    def restarts(self) -> dict[str, int]:
        """How often the container of each pod was started again."""
        pods = [one for component in SERVICES for one in self.addon.pods(component)]
        statuses = {one["metadata"]["name"]: one["status"].get("containerStatuses", []) for one in pods}
        return {name: sum(status["restartCount"] for status in found) for name, found in statuses.items()}


@pytest.fixture(scope="module")
def database(cluster: Kubectl) -> Iterator[OwnServer]:
    """A PostgreSQL beside the cluster, with a database and two roles for each service, as the documentation says."""
    if own_cluster(cluster) is None:
        pytest.skip("a server in the network of the nodes is needed, where only the cluster of `./dev e2e` lets one be")
    if not program("initdb").exists():
        pytest.skip("needs a PostgreSQL server: `./dev postgres` installs Debian's")
    addresses = cluster.items("nodes")[0]["status"]["addresses"]
    address = next(one["address"] for one in addresses if one["type"] == "InternalIP")
    folder = Path(tempfile.mkdtemp(prefix="confcom-pg-", dir="/tmp"))
    server = OwnServer(folder, address=address, network=os.environ.get("KUBE_NAME", "kube"))
    server.settings["max_connections"] = "100"
    try:
        server.start()
        for service in SERVICES:
            for role in (service, f"{service}_owner"):
                server.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{role} of the test'")
            server.execute(f"CREATE DATABASE {service} OWNER {service}_owner")
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def replicas(
    enabled: Addon, cluster: Kubectl, database: OwnServer, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicas]:
    """Two replicas of each, by the settings of the add-on, and a client whose quote the quote helper made."""
    folder = tmp_path_factory.mktemp("replicas")
    secrets = [_addresses(database, service) for service in SERVICES]
    hashed = hashlib.sha512(TOKEN.encode()).hexdigest()
    file = f'[[administrators]]\nname = "first"\nrole = "contributor"\ntoken_hash = "{hashed}"\n'
    secrets.append(_secret("confcom-attestation-admin", {"administrators.toml": file}))
    now = datetime.now(UTC)  # noqa: TID251 - the cluster's time
    (folder / "keys").mkdir()
    make_pair(folder / "keys", now, simulated=True)
    secrets.append(_secret(f"{ATTESTATION}-keys", {one.name: one.read_text() for one in (folder / "keys").iterdir()}))
    cluster.apply(*secrets)
    words = [f"--{name}-database={name}-database" for name in SERVICES]
    words += [f"--{name}-database-port={database.port}" for name in SERVICES]
    try:
        start_attestation(enabled, cluster, *words)
        settings = _settings(cluster, RelyingParty.of(cluster, folder).folder)
        found = Replicas(cluster, enabled, database, settings)
        _start_client(found, image)
        yield found
    finally:
        cluster("delete", "pod", CLIENT, "-n", "e2e", "--ignore-not-found", "--wait")
        outcome = enabled("update", "--disable-attestation-service", "--disable-collateral", "-o", "none")
        enabled.enable()
        names = [one["metadata"]["name"] for one in secrets]
        cluster("delete", "secret", *names, "-n", ADDON_NAMESPACE)
        assert outcome.code == 0, outcome.err


def _secret(name: str, data: dict[str, str]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": ADDON_NAMESPACE}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}


def _addresses(server: OwnServer, service: str) -> dict[str, Any]:
    urls = {
        key: f"postgresql://{role}:{role}%20of%20the%20test@{server.address}:{server.port}/{service}"
        for key, role in (("url", service), ("owner-url", f"{service}_owner"))
    }
    return _secret(f"{service}-database", {**urls, "role": service, "ca.crt": server.authority.read_text()})


def _settings(cluster: Kubectl, folder: Path) -> dict[str, Any]:
    machine = SimulatedWorld.load(folder / "machine.json")
    qe_id = QuotingEnclave(machine.machine, machine.authority.pck_chain(machine.machine)).qe_id
    raw = PckCertRequest(machine.machine.tcb.cpu_svn, machine.machine.tcb.pce_svn, bytes(2), qe_id)
    base = "/sgx/certification/v4"
    pck = f"qeid={qe_id.hex()}&cpusvn={raw.cpu_svn.hex()}&pcesvn={raw.pce_svn.to_bytes(2, 'little').hex()}&pceid=0000"
    return {
        "attestation": (address_of(cluster, ATTESTATION), f"{ATTESTATION}.{ADDON_NAMESPACE}.svc", 443),
        "collateral": (address_of(cluster, "confcom-collateral"), COLLATERAL, 8081),
        "documents": {
            "tcb": f"{base}/tcb?fmspc={machine.machine.fmspc.hex()}",
            "pckcert": f"{base}/pckcert?{pck}",
        },
        "token": TOKEN,
        "stated": POLICY_FOR,
    }


def _start_client(replicas: Replicas, image: str) -> None:
    cluster = replicas.cluster
    bundles = [cluster.get("configmap", f"{name}-ca", "-n", ADDON_NAMESPACE)["data"] for name in SERVICES.values()]
    data = {
        "ca.pem": "".join(bundle["ca-certificates.crt"] for bundle in bundles),
        "client.py": (Path(__file__).parent / "replica_client.py").read_text(),
    }
    metadata = {"name": CLIENT, "namespace": "e2e"}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    command = (
        f"confcom quote --machine {DEVICE} --report-data 0a -o /tmp/quote >/dev/null && "
        'exec python3 /etc/confcom/client/client.py load "$0"'
    )
    spec = one_container(image, "sh", "-c", command, json.dumps(replicas.settings), resources=limits(10))
    spec["volumes"] = [{"name": "client", "configMap": {"name": CLIENT}}]
    spec["containers"][0]["volumeMounts"] = [{"name": "client", "mountPath": "/etc/confcom/client"}]
    cluster.apply(pod(CLIENT, "e2e", spec, annotations={"confcom.dev/quote-mode": "out-of-proc"}))
    cluster.wait("the first answers", lambda: len(replicas.figures().get("answered", {})) == 3)


def test_the_jobs_made_the_schemas_and_both_replicas_are_ready(replicas: Replicas) -> None:
    for component, name in SERVICES.items():
        jobs = replicas.cluster.items(
            "jobs", "-n", ADDON_NAMESPACE, "-l", f"app.kubernetes.io/component={component}-migration"
        )
        assert [one["status"].get("succeeded") for one in jobs] == [1]
        assert json.loads(replicas.addon("show").out)["ready"][name] == "2/2"
    replicas.no_failure_since(replicas.failed())


def test_connections_are_encrypted_and_their_roles_may_not_change_the_schema(replicas: Replicas) -> None:
    for service in SERVICES:
        used = "SELECT usename, ssl FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE datname = '{}'"
        assert set(replicas.database.execute(used.format(service))) == {(service, True)}
        table = replicas.database.execute("SELECT min(tablename) FROM pg_tables WHERE schemaname = 'public'", service)
        refused = [
            f"ALTER TABLE {table[0][0]} ADD COLUMN more int", f"DROP TABLE {table[0][0]}", "CREATE TABLE more (id int)",
            "UPDATE alembic_version SET version_num = '0000'", f"ALTER TABLE {table[0][0]} OWNER TO {service}",
        ]  # fmt: skip
        name = replicas.pods(service)[0]["metadata"]["name"]
        words = ("exec", name, "-n", ADDON_NAMESPACE, "--", "python3", "-c", DENIED)
        assert replicas.cluster(*words, *refused).splitlines() == ["(True,)", *["denied"] * len(refused)]
        environment = replicas.cluster("exec", name, "-n", ADDON_NAMESPACE, "--", "env")
        assert "_owner" not in environment


def test_a_policy_of_one_replica_is_used_by_the_other_within_the_stated_time(replicas: Replicas) -> None:
    addresses = [one["status"]["podIP"] for one in replicas.pods("attestation")]
    assert len(addresses) == 2
    found = replicas.client("policies", json.dumps(replicas.settings | {"replicas": addresses}), "6")
    for line in map(json.loads, found.splitlines()):
        assert line["set"] == 200, line
        assert line["found"] == [line["number"]] * 2


def test_a_rolling_update_of_both_fails_no_request(replicas: Replicas) -> None:
    before, failed = set(replicas.restarts()), replicas.failed()
    for name in SERVICES.values():
        replicas.cluster("rollout", "restart", f"deployment/{name}", "-n", ADDON_NAMESPACE)
    for name in SERVICES.values():
        replicas.cluster.rollout("deployment", name, seconds=240)
    replicas.cluster.wait("former pods to end", lambda: not before & set(replicas.restarts()))
    replicas.no_failure_since(failed)


def test_a_killed_replica_comes_back_and_the_other_one_answers(replicas: Replicas) -> None:
    for component in SERVICES:
        killed = replicas.pods(component)[0]["metadata"]
        before = replicas.restarts()[killed["name"]]
        kill(killed["uid"])
        replicas.cluster.wait("the container", lambda: replicas.restarts()[killed["name"]] == before + 1)  # noqa: B023
        replicas.cluster.wait("both replicas", lambda: len(replicas.pods(component)) == 2)  # noqa: B023
        replicas.no_failure_since(replicas.failed())


def kill(uid: str) -> None:
    """Kill the processes of a pod, but not the one that holds its namespaces."""
    name = uid.replace("-", "_")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                group = (entry / "cgroup").read_text()
                if (uid in group or name in group) and b"serve" in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue


def test_a_restart_of_the_database_ends_no_replica(replicas: Replicas) -> None:
    for how in (signal.SIGINT, signal.SIGQUIT):
        before = replicas.restarts()
        replicas.database.stop(how)
        failed = replicas.failed()
        replicas.cluster.wait("failures", lambda: replicas.failed() > failed)  # noqa: B023
        # A replica that is not ready gets no connections.
        assert all(": 503 " in line or "ConnectionRefused" in line for line in replicas.figures()["last"])
        time.sleep(5)
        replicas.database.start()
        replicas.more()
        for component in SERVICES:
            replicas.cluster.wait("both replicas", lambda: len(replicas.pods(component)) == 2)  # noqa: B023
        replicas.no_failure_since(replicas.failed())
        assert replicas.restarts() == before
