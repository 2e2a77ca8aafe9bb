"""The exporter of EPC use: real processes that really map a file, the API on a real socket, cgroups in a folder."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from confcom.errors import ConfigError
from confcom.services.metrics.exporter import MetricsConfig, MetricsExporter
from confcom.services.runtime.process import run_until
from epc_api import EpcApi, make_pod
from epc_host import UID, Node
from no_descriptors import no_descriptors

MIB = 1 << 20
ONE, TWO = "0123456789abcdef" * 4, "fedcba9876543210" * 4
OTHER_UID = UID.replace("3", "4")
SECOND = "GET /apis/resource.k8s.io/v1/namespaces/default/resourceclaims/second"

pytestmark = pytest.mark.promise("M5")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for a socket in it."""
    with TemporaryDirectory(prefix="epc-") as name:
        yield Path(name)


@pytest.fixture
def api() -> Iterator[EpcApi]:
    with EpcApi() as api:
        yield api


@pytest.fixture
def node(folder: Path) -> Iterator[Node]:
    made = Node(folder)
    yield made
    made.close()


class Running:
    """An exporter that runs, and its pages."""

    def __init__(self, exporter: MetricsExporter, address: Path) -> None:
        self.exporter = exporter
        self._address = address

    async def get(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(self._get, path)

    def _get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(self._address))
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    async def samples(self) -> dict[str, float]:
        status, text = await self.get("/metrics")
        assert status == 200
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    async def until(self, what: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """Wait for something that the metrics show."""
        found: dict[str, float] = {}
        for _ in range(600):
            with suppress(OSError):
                found = await self.samples()
                if what(found):
                    return found
            await asyncio.sleep(0.05)
        raise AssertionError(found)


@asynccontextmanager
async def exporter(node: Node, api: EpcApi, folder: Path, **settings: Any) -> AsyncIterator[Running]:
    address = folder / "http"
    config = MetricsConfig(
        **{
            "node_name": "n1",
            "kubeconfig": api.kubeconfig(folder),
            "host_root": str(node.root),
            "simulated_node": str(node.simulated),
            "http": f"unix:{address}",
            "interval": 0.05,
            "patience": 0.2,
        }
        | settings
    )
    made = MetricsExporter(config)
    stop = asyncio.Event()
    task = asyncio.create_task(run_until(stop, *made.actors()))
    try:
        yield Running(made, address)
    finally:
        stop.set()
        await task


def of(name: str, pod: str = "greedy", **more: str) -> str:
    labels = {"container": "app", "namespace": "default", "node": "n1", "pod": pod} | more
    text = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"confcom_epc_{name}{{{text}}}"


async def test_a_container_over_its_request_is_reported_once_and_one_within_is_not(
    node: Node, api: EpcApi, folder: Path
) -> None:
    node.hold(20, ONE)
    node.hold(8, TWO)
    api.put(make_pod("greedy", uid=UID, mib=10, container=ONE))
    api.put(make_pod("modest", mib=10, container=TWO))
    async with exporter(node, api, folder) as running:
        found = await running.until(
            lambda found: found.get('confcom_epc_reports_total{node="n1",outcome="created"}') == 1
        )
        assert found[of("mapped_bytes")] == 20 * MIB
        assert found[of("requested_bytes")] == 10 * MIB
        assert found[of("over_limit", kind="over-limit")] == 1
        assert found[of("mapped_bytes", "modest")] == 8 * MIB
        assert found[of("over_limit", "modest", kind="over-limit")] == 0
        assert found['confcom_epc_node_mapped_bytes{node="n1"}'] == 28 * MIB
        assert found['confcom_epc_node_requested_bytes{node="n1"}'] == 20 * MIB
        assert found['confcom_epc_node_allocatable_bytes{node="n1"}'] == 168 * MIB
        await asyncio.sleep(0.6)  # several times the patience
        assert len(api.events) == 1
        assert (await running.get("/readyz"))[0] == 200
        assert (await running.get("/healthz"))[0] == 200
    (event,) = api.events.values()
    assert (event["reason"], event["type"]) == ("EpcOverLimit", "Warning")
    assert event["regarding"]["uid"] == UID
    assert event["regarding"]["fieldPath"] == "spec.containers{app}"
    assert "has 20 MiB of enclave memory mapped on node n1 and requested 10 MiB" in event["note"]
    assert "sgx_epc_mem_in_MiB to 20" in event["note"]
    assert "series" not in event


async def test_a_new_exporter_adds_to_the_event_that_there_is(node: Node, api: EpcApi, folder: Path) -> None:
    node.hold(20, ONE)
    api.put(make_pod("greedy", uid=UID, mib=10, container=ONE))
    for outcome in ("created", "counted", "counted"):
        async with exporter(node, api, folder) as running:
            name = f'confcom_epc_reports_total{{node="n1",outcome="{outcome}"}}'
            await running.until(lambda found, name=name: found.get(name) == 1)
    (event,) = api.events.values()
    assert event["series"]["count"] == 3


async def test_enclaves_without_a_request_are_reported_and_their_end_is_seen(
    node: Node, api: EpcApi, folder: Path
) -> None:
    pid = node.hold(4, ONE)
    api.put(make_pod("greedy", uid=UID, container=ONE))
    async with exporter(node, api, folder) as running:
        found = await running.until(lambda found: found.get(of("over_limit", kind="no-request")) == 1)
        assert of("requested_bytes") not in found
        await running.until(lambda found: found.get('confcom_epc_reports_total{node="n1",outcome="created"}') == 1)
        node.end(pid)
        # Nothing stale is left.
        await running.until(lambda found: of("mapped_bytes") not in found)
    (event,) = api.events.values()
    assert event["reason"] == "EpcNotRequested"
    assert "at least 4." in event["note"]


async def test_pods_come_change_and_go(node: Node, api: EpcApi, folder: Path) -> None:
    node.hold(8, ONE)
    async with exporter(node, api, folder) as running:
        stranger = (
            f'confcom_epc_mapped_bytes{{container="pod {UID} container {ONE[:12]}",namespace="",node="n1",pod=""}}'
        )
        await running.until(lambda found: found.get(stranger) == 8 * MIB)
        api.put(make_pod("greedy", uid=UID, mib=10, container=ONE))
        await running.until(lambda found: found.get(of("mapped_bytes")) == 8 * MIB)
        api.put(make_pod("greedy", uid=UID, mib=12, container=ONE))
        await running.until(lambda found: found.get(of("requested_bytes")) == 12 * MIB)
        api.remove("greedy")
        await running.until(lambda found: of("requested_bytes") not in found)
        api.put(make_pod("elsewhere", node="n2", mib=10, container=TWO))
        await asyncio.sleep(0.2)
        assert not any("elsewhere" in name for name in await running.samples())
    assert api.events == {}


async def test_what_is_in_no_container_counts_for_the_node(node: Node, api: EpcApi, folder: Path) -> None:
    node.hold(3, None)
    async with exporter(node, api, folder) as running:
        await running.until(lambda found: found.get('confcom_epc_node_outside_bytes{node="n1"}') == 3 * MIB)


async def test_a_forked_process_counts_once(node: Node, api: EpcApi, folder: Path) -> None:
    pid = node.hold(6, ONE)
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from confcom.devices.sgx_node import map_enclave_memory\n"
        "held = map_enclave_memory(Path(sys.argv[1]), 5 << 20)\n"
        "child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "signal.pause()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(node.simulated / "dev/sgx_enclave")], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        for number in (parent.pid, child):
            (node.root / "proc" / str(number)).mkdir()
            for name in ("maps", "stat"):
                (node.root / "proc" / str(number) / name).symlink_to(f"/proc/{number}/{name}")
            (node.root / "proc" / str(number) / "cgroup").write_text(f"0::/kubepods/pod{UID}/{ONE}\n")
        api.put(make_pod("greedy", uid=UID, mib=20, container=ONE))
        async with exporter(node, api, folder) as running:
            found = await running.until(lambda found: found.get(of("processes")) == 3)
            assert found[of("mapped_bytes")] == 11 * MIB
    finally:
        os.kill(child, signal.SIGKILL)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        node.end(pid)


async def test_the_api_may_be_away(node: Node, api: EpcApi, folder: Path) -> None:
    node.hold(20, ONE)
    api.put(make_pod("greedy", uid=UID, mib=10, container=ONE))
    api.down = True
    async with exporter(node, api, folder) as running:
        # Figures without names meanwhile, and nobody is accused.
        found = await running.until(lambda found: found.get('confcom_epc_node_mapped_bytes{node="n1"}') == 20 * MIB)
        assert found['confcom_epc_pods_known{node="n1"}'] == 0
        assert (await running.get("/readyz"))[0] == 503
        api.down = False
        await running.until(lambda found: found.get(of("mapped_bytes")) == 20 * MIB)


async def test_a_report_that_is_refused_is_tried_again(node: Node, api: EpcApi, folder: Path) -> None:
    node.hold(20, ONE)
    api.forbidden.add("/events")
    api.put(make_pod("greedy", uid=UID, mib=10, container=ONE))
    async with exporter(node, api, folder) as running:
        await running.until(lambda found: found.get('confcom_epc_reports_total{node="n1",outcome="failed"}', 0) >= 2)
        api.forbidden.clear()
        await running.until(lambda found: found.get('confcom_epc_reports_total{node="n1",outcome="created"}') == 1)
    assert len(api.events) == 1


@pytest.mark.complaint("intel-device-plugins #426", "intel-device-plugins #1567", "linux-sgx-driver #84")
async def test_the_kernel_holds_containers_where_it_can(node: Node, api: EpcApi, folder: Path) -> None:
    group = node.root / f"sys/fs/cgroup/kubepods/pod{UID}/{ONE}"
    group.mkdir(parents=True)
    (node.root / "sys/fs/cgroup/misc.capacity").write_text("sgx_epc 176160768\n")
    (group / "misc.current").write_text(f"sgx_epc {9 * MIB}\n")
    (group / "misc.max").write_text("sgx_epc max\n")
    node.hold(20, ONE)
    api.put(make_pod("greedy", uid=UID, mib=10, container=ONE))
    async with exporter(node, api, folder, enforce="on") as running:
        found = await running.until(lambda found: found.get(of("limit_bytes")) == 10 * MIB)
        assert found['confcom_epc_node_capacity_bytes{node="n1"}'] == 168 * MIB
        assert (group / "misc.max").read_text() == f"sgx_epc {10 * MIB}\n"
        assert found['confcom_epc_enforced_containers{node="n1"}'] == 1
        # 20 MiB are mapped, but what is in EPC counts where it is known.
        assert found[of("in_use_bytes")] == 9 * MIB
        assert found[of("over_limit", kind="over-limit")] == 0
        (group / "misc.max").write_text("sgx_epc max\n")
        async with asyncio.timeout(60):
            while (group / "misc.max").read_text() != f"sgx_epc {10 * MIB}\n":
                await asyncio.sleep(0.05)
        assert (await running.get("/readyz"))[0] == 200
    assert api.events == {}


async def test_enforcement_that_is_wanted_and_impossible_is_not_ready(node: Node, api: EpcApi, folder: Path) -> None:
    async with exporter(node, api, folder, enforce="on") as running:
        await running.until(lambda found: found.get('confcom_epc_pods_known{node="n1"}') == 1)
        status, text = await running.get("/readyz")
    assert status == 503
    assert "sgx_epc" in text


def claim(name: str, amount: str) -> dict[str, Any]:
    """A claim of that much EPC."""
    result = {"driver": "sgx.confcom.dev", "request": "r", "pool": "n1", "device": "epc"}
    results = [result | {"consumedCapacity": {"epc": amount}}]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "default"},
        "status": {"allocation": {"devices": {"results": results}}},
    }


async def test_amounts_of_claims_count_and_unreadable_claims_accuse_nobody(
    node: Node, api: EpcApi, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.metrics.exporter.NODE_INTERVAL", 0.05)
    node.hold(20, ONE)
    pod = make_pod("greedy", uid=UID, container=ONE)
    pod["spec"]["resourceClaims"] = [{"name": "epc", "resourceClaimName": "some-claim"}]
    pod["spec"]["containers"][0]["resources"] = {"claims": [{"name": "epc"}]}
    # The claim of a pod that has finished is deleted before the pod: it keeps no other from being read.
    finished = make_pod("before", phase="Succeeded")
    finished["spec"]["resourceClaims"] = [{"name": "epc", "resourceClaimName": "deleted"}]
    finished["spec"]["containers"][0]["resources"] = {"claims": [{"name": "epc"}]}
    api.put(finished)
    api.put(pod)
    async with exporter(node, api, folder) as running:
        await running.until(lambda found: found.get(of("mapped_bytes")) == 20 * MIB)
        await asyncio.sleep(0.5)
        assert api.events == {}
        api.claims["default", "some-claim"] = claim("some-claim", "10Mi")
        found = await running.until(lambda found: found.get(of("requested_bytes")) == 10 * MIB)
        assert found[of("over_limit", kind="over-limit")] == 1
        # What a finished pod claimed is not asked for.
        assert not [one for one in api.requests if one.endswith("/deleted")]
        # Another pod of this name has another claim of this name: it counts with its own amount.
        api.claims["default", "some-claim"] = claim("some-claim", "30Mi")
        api.remove("greedy")
        api.put(pod | {"metadata": pod["metadata"] | {"uid": OTHER_UID}})
        await running.until(lambda found: found.get(of("requested_bytes")) == 30 * MIB)


async def test_the_limit_of_a_container_waits_for_all_its_claims(
    node: Node, api: EpcApi, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.metrics.exporter.NODE_INTERVAL", 0.05)
    group = node.root / f"sys/fs/cgroup/kubepods/pod{UID}/{ONE}"
    group.mkdir(parents=True)
    (node.root / "sys/fs/cgroup/misc.capacity").write_text("sgx_epc 176160768\n")
    (group / "misc.current").write_text(f"sgx_epc {9 * MIB}\n")
    (group / "misc.max").write_text("sgx_epc max\n")
    pod = make_pod("greedy", uid=UID, container=ONE)
    pod["spec"]["resourceClaims"] = [{"name": name, "resourceClaimName": name} for name in ("first", "second")]
    pod["spec"]["containers"][0]["resources"] = {"claims": [{"name": "first"}, {"name": "second"}]}
    api.claims["default", "first"] = claim("first", "10Mi")
    api.put(pod)
    other = make_pod("other", uid=OTHER_UID)
    api.put(other | {"spec": other["spec"] | {name: pod["spec"][name] for name in ("resourceClaims", "containers")}})
    async with exporter(node, api, folder) as running:
        await running.until(lambda found: found.get(of("requested_bytes")) == 10 * MIB)
        before = api.requests.count(SECOND)
        async with asyncio.timeout(60):
            while api.requests.count(SECOND) < before + 3:
                await asyncio.sleep(0.05)
        assert (group / "misc.max").read_text() == "sgx_epc max\n"
        api.claims["default", "second"] = claim("second", "5Mi")
        await running.until(lambda found: found.get(of("limit_bytes")) == 15 * MIB)
        # A claim that several pods use is read once.
        assert api.requests.count(SECOND.replace("second", "first")) == 1


def test_an_exporter_without_a_node_is_told() -> None:
    with pytest.raises(ConfigError, match="which node"):
        MetricsExporter(MetricsConfig())


async def test_without_descriptors_the_last_figures_stay_and_grow_old(node: Node, api: EpcApi, folder: Path) -> None:
    """They were 0, as if all enclaves had ended, and as fresh as ever."""
    node.hold(20, ONE)
    api.put(make_pod("greedy", uid=UID, mib=30, container=ONE))
    async with exporter(node, api, folder) as running:
        await running.until(lambda found: found.get(of("mapped_bytes")) == 20 * MIB)
        metrics = running.exporter.metrics
        with no_descriptors():
            await asyncio.sleep(0.1)  # a look that had begun
            before = metrics.age()
            await asyncio.sleep(0.5)
            assert metrics.age() >= before + 0.5
            assert metrics.use is not None
            assert metrics.use.mapped == 20 * MIB
        node.end(node.hold(8, TWO))
        await running.until(lambda found: found['confcom_epc_pass_age_seconds{node="n1"}'] < 0.5)
