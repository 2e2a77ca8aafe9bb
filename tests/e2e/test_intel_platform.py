"""The quote helper as it is for real SGX nodes, run by a kubelet: devices, worker process, certification data.

The node looks like one with SGX (`sgx_on_node`), and the image has libraries with the names and functions of Intel's
(`tests/native`), behind which a simulated QE signs. What only hardware can show is whether Intel's own libraries load
their enclaves through these devices, and get their PCK certificate.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cluster_addon import HELPERS, Addon
from cluster_jobs import job, limits, one_container
from cluster_plugin import forget_devices, own_cluster
from confcom.appraisal.quote import verify_quote
from confcom.simulator.world import SimulatedWorld
from confcom.wiring import create_machine_file
from derived_image import derive
from kubectl import ADDON_NAMESPACE, Kubectl
from relying_party import quote_in
from sgx_on_node import GROUP, MIB_PER_NUMA_NODE, NUMBER, RemovableDriver, set_devices, sgx_on_node
from software_qe import COMPILER, Stub, build_libraries, software_qe

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

IMAGE = "localhost/confcom-intel:e2e"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
STUB = "/var/run/aesmd/stub"
INTEL = (
    *("--platform=intel", "--publisher=devices", "--enable-sgxquotehelper", f"--quote-helper-groups={GROUP}"),
    *("--webhook-replicas=1", "--provision-grants="),
)
OFFERED = 2 * MIB_PER_NUMA_NODE - HELPERS
QUOTE = "confcom quote --machine /machine/machine.json --report-data $0 -o /tmp/quote && base64 -w0 /tmp/quote"
LOOK = """
import os
for path in ("/dev/sgx_enclave", "/dev/sgx/enclave", "/dev/sgx_provision", "/dev/sgx/provision"):
    status = os.stat(path)
    os.close(os.open(path, os.O_RDWR))
    print(path, os.major(status.st_rdev), os.minor(status.st_rdev), "opened by", os.getuid())
"""

READYZ = """
import urllib.error, urllib.request
try:
    print(urllib.request.urlopen("http://127.0.0.1:9464/readyz").read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode())
"""

HOST = "confcom-collateral.confcom-system.svc"
ASK = """
import json, os, socket, ssl, sys
for path in (os.environ["QCNL_CONF_PATH"], "/etc/sgx_default_qcnl.conf"):
    with open(path) as file:
        print(json.dumps(json.load(file)))
address, host = sys.argv[1:]
context = ssl.create_default_context()
with socket.create_connection((address, 8081), 20) as raw, context.wrap_socket(raw, server_hostname=host) as secure:
    secure.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    print(secure.recv(100).split()[1].decode(), "with the system's authorities")
"""


@dataclass(frozen=True)
class IntelNode:
    """The add-on on such a node, what its libraries are told to do, and the world whose QE answers."""

    addon: Addon
    cluster: Kubectl
    stub: Stub
    world: SimulatedWorld
    machine: str

    def helper(self) -> Any:
        """The helper's pod."""
        (pod,) = self.addon.pods("quote-helper")
        return pod

    def inside(self, *words: str) -> str:
        """What a command says in the helper's container."""
        return self.cluster("exec", self.helper()["metadata"]["name"], "-n", ADDON_NAMESPACE, "--", *words)

    def readyz(self) -> Any:
        """What the helper says of itself, ready or not."""
        return json.loads(self.inside("python3", "-c", READYZ))

    def workers(self) -> list[int]:
        """Processes with Intel's libraries that belong to the helper's pod."""
        uid = self.helper()["metadata"]["uid"].replace("-", "_"), self.helper()["metadata"]["uid"]
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command, group = (process / "cmdline").read_bytes(), (process / "cgroup").read_text()
            except OSError:
                continue
            if b"platforms.intel.main" in command and any(name in group for name in uid):
                found.append(int(process.name))
        return found

    def asking(self, image: str, report_data: str) -> Any:
        """A Job whose pod asks the helper for a quote of an enclave of the world's machine."""
        spec = one_container(image, "sh", "-c", QUOTE, report_data, resources=limits(10))
        spec["containers"][0]["volumeMounts"] = [{"name": "machine", "mountPath": "/machine"}]
        spec["volumes"] = [{"name": "machine", "configMap": {"name": self.machine}}]
        return job("intel", "e2e", spec, annotations={"confcom.dev/quote-mode": "out-of-proc"})


@pytest.fixture(scope="module")
def home(cluster: Kubectl, addon: Addon) -> Iterator[Path]:
    """The node, which looks like one with SGX."""
    found = own_cluster(cluster)
    if found is None:
        pytest.skip("the node of this cluster is not ours to change")
    assert addon("disable", "--yes", "-o", "none").code == 0
    forget_devices(found, cluster)
    with sgx_on_node(found):
        yield found
        assert addon("disable", "--purge", "--yes", "-o", "none").code == 0
    forget_devices(found, cluster)


@pytest.fixture(scope="module")
def node(home: Path, cluster: Kubectl, addon: Addon) -> Iterator[IntelNode]:
    """The add-on with an image that has the libraries."""
    folder = home / f"data/node/run/{STUB.removeprefix('/var/run/')}"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    stub = Stub(folder)
    for left in folder.iterdir():
        left.unlink()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        build_libraries(work / "tree" / LIBRARIES)
        derive(home, work, IMAGE, work / "tree", [f"DCAP_STUB={STUB}"])
        create_machine_file(work / "machine.json", bytes(range(32)), datetime.now(UTC))  # noqa: TID251 - the nodes' time
        world = SimulatedWorld.load(work / "machine.json")
        text = (work / "machine.json").read_text()
    metadata = {"name": "world", "namespace": "e2e"}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"machine.json": text}})
    with software_qe(world.platform, stub):
        (folder / "qe").chmod(0o777)
        outcome = addon("enable", *INTEL, f"--image={IMAGE}", "-o", "none")
        assert outcome.code == 0, outcome.err
        yield IntelNode(addon, cluster, stub, world, "world")
    shutil.rmtree(folder)


@pytest.mark.promise("M10")
def test_an_image_without_intels_libraries_is_said_to_lack_them(home: Path, cluster: Kubectl, addon: Addon) -> None:
    outcome = addon.fails("enable", *INTEL, f"--image={addon.image}", saying="cannot load libsgx_dcap_ql.so.1")
    assert "Install Intel's libsgx-dcap-ql, libsgx-qe3-logic, libsgx-pce-logic, libsgx-urts" in outcome.err
    assert "deploy/Containerfile.intel" in outcome.err
    assert "--enable-collateral or --collateral-url" in outcome.err


@pytest.mark.promise("M1")
@pytest.mark.promise("M10")
def test_the_helper_holds_both_devices_of_the_kernels_driver_and_is_not_root(node: IntelNode) -> None:
    assert node.addon.allocatable() == OFFERED
    (plugin,) = node.addon.pods("device-plugin")
    assert "in-kernel" in node.cluster("logs", plugin["metadata"]["name"], "-n", ADDON_NAMESPACE)
    found = node.inside("python3", "-c", LOOK).splitlines()
    number = " ".join(map(str, NUMBER))
    assert found == [
        f"/dev/sgx_enclave {number} opened by 65532",
        f"/dev/sgx/enclave {number} opened by 65532",
        f"/dev/sgx_provision {number} opened by 65532",
        f"/dev/sgx/provision {number} opened by 65532",
    ]


@pytest.mark.promise("M10")
def test_a_pod_gets_a_quote_through_libraries_in_a_process_of_their_own(
    node: IntelNode, run: Callable[..., str], image: str
) -> None:
    assert node.workers()
    quote = quote_in(run(node.asking(image, "1a")))
    now = datetime.now(UTC)  # noqa: TID251 - the nodes' time
    verified = verify_quote(quote, node.world.publish(now), roots=node.world.trust_roots, now=now)
    assert verified.report_data[:1] == b"\x1a"
    # The first client's report lets the QE report on itself; from then on readiness is about a quote.
    shown = node.cluster.wait("a quote of the QE on itself", lambda: _with_quote(node.readyz()), 90)
    checks = {one["id"]: one["found"] for one in shown["checks"]}
    assert shown["ready"] is True
    assert checks["verification"] == "not done: no collateral is configured"


def _with_quote(shown: Any) -> Any:
    (found,) = (one["found"] for one in shown["checks"] if one["id"] == "quote")
    return shown if "report on itself" in found else None


@pytest.mark.promise("M10")
def test_a_killed_worker_is_replaced_and_the_pod_stays(node: IntelNode, run: Callable[..., str], image: str) -> None:
    before = node.workers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert quote_in(run(node.asking(image, "1b")))
    assert set(node.workers()) - set(before)
    assert node.helper()["status"]["containerStatuses"][0]["restartCount"] == 0


@pytest.mark.promise("M10")
def test_an_error_of_the_libraries_is_told_by_its_name(
    node: IntelNode, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    node.stub.always("get_quote_size", "e011")
    try:
        failing = made(node.asking(image, "1c"))
        name = failing["metadata"]["name"]
        cluster.wait("it to fail", lambda: cluster.get("job", name, "-n", "e2e")["status"].get("failed"))
        said = cluster("logs", "-n", "e2e", f"job/{name}")
        cluster.wait("readiness to notice", lambda: not node.readyz()["ready"], 60)
        shown = node.readyz()
    finally:
        node.stub.relent()
    assert "NO_PLATFORM_CERT_DATA" in said
    assert "NO_PLATFORM_CERT_DATA" in shown["reason"]
    cluster.wait("readiness to come back", lambda: node.readyz()["ready"], 60)


@pytest.mark.promise("M10")
def test_a_helper_gets_its_certification_data_from_the_clusters_service_and_proves_itself_by_it(
    node: IntelNode, cluster: Kubectl, run: Callable[..., str], image: str
) -> None:
    """Its quotes lead to a simulated root, and a helper of real nodes trusts Intel's alone: it must not take over."""
    # The proof takes most of a minute, and a wait of 8 s could miss how it ends.
    outcome = node.addon("update", "--enable-collateral", "-o", "none", "--timeout=80")
    try:
        assert outcome.code == 7
        assert "could not prove itself: verification" in outcome.err
        assert quote_in(run(node.asking(image, "1d")))  # by the one that goes on
        address = cluster.get("service", HOST.partition(".")[0], "-n", ADDON_NAMESPACE)["spec"]["clusterIP"]
        spec = looking(cluster, "python3", "-c", ASK, address, HOST)
        told, old, trusted = run(job("look", ADDON_NAMESPACE, spec)).splitlines()
        assert told == old
        assert json.loads(told)["pccs_url"] == f"https://{HOST}:8081/sgx/certification/v4/"
        assert trusted == "200 with the system's authorities"
    finally:
        assert node.addon("update", "--disable-collateral", "-o", "none").code == 0


@pytest.mark.promise("M10")
@pytest.mark.promise("M14")
@pytest.mark.timeout(900)
def test_after_an_update_of_the_driver_plugin_and_helper_attest_by_themselves(
    node: IntelNode, home: Path, cluster: Kubectl, run: Callable[..., str], image: str
) -> None:
    with RemovableDriver() as driver:
        try:
            driver.load("first")
            old = driver.load("second")
            set_devices(home, old)
            look_often(cluster)
            assert numbers(node) == {old}

            driver.unload("second")
            set_devices(home, None)
            lost = "/dev/sgx_enclave cannot be opened: No such device: the SGX driver was unloaded or replaced"
            cluster.wait("the helper to say why it is not ready", lambda: lost in node.readyz()["reason"], 30)
            cluster.wait("the plugin to offer nothing", lambda: node.addon.allocatable() == 0, 120)

            driver.unload("first")
            new = driver.load("third")
            assert new != old
            set_devices(home, new)
            cluster.wait("the plugin to offer EPC", lambda: node.addon.allocatable() == OFFERED, 120)
            cluster.wait("the kubelet to make another container", lambda: restarts(node) and is_ready(node), 300)
            assert numbers(node) == {new}
            assert quote_in(run(node.asking(image, "1e")))
        finally:
            set_devices(home, NUMBER)
            made_again(node)


def look_often(cluster: Kubectl) -> None:
    """Make a new helper, which the kubelet replaces when it is lost for some twenty seconds, not a minute."""
    path = "/spec/template/spec/containers/0/livenessProbe/periodSeconds"
    patch = json.dumps([{"op": "replace", "path": path, "value": 8}])
    cluster("patch", "daemonset", "sgx-quote-helper", "-n", ADDON_NAMESPACE, "--type=json", "-p", patch)
    cluster.rollout("daemonset", "sgx-quote-helper")


def made_again(node: IntelNode) -> None:
    """Delete the helper's pod, and wait for another that is ready."""
    name = node.helper()["metadata"]["name"]
    node.cluster("delete", "pod", name, "-n", ADDON_NAMESPACE)
    node.cluster.wait("another helper", lambda: node.addon.pods("quote-helper") and is_ready(node), 120)


def is_ready(node: IntelNode) -> bool:
    """Whether the kubelet calls the helper's container ready."""
    return all(found["ready"] for found in node.helper()["status"].get("containerStatuses", [{"ready": False}]))


def restarts(node: IntelNode) -> int:
    """How often the kubelet has made another container for the helper's pod."""
    return int(node.helper()["status"]["containerStatuses"][0]["restartCount"])


def numbers(node: IntelNode) -> set[tuple[int, int]]:
    """The numbers of the devices in the helper's container; all can be opened."""
    words = (line.split() for line in node.inside("python3", "-c", LOOK).splitlines())
    return {(int(major), int(minor)) for _, major, minor, *_ in words}


def looking(cluster: Kubectl, *command: str) -> Any:
    """The helper's pod with another command, and without devices."""
    spec = cluster.get("daemonset", "sgx-quote-helper", "-n", ADDON_NAMESPACE)["spec"]["template"]["spec"]
    container = spec["containers"][0]
    kept = ("name", "image", "env", "volumeMounts", "securityContext")
    spec["containers"] = [{name: container[name] for name in kept} | {"command": list(command)}]
    return spec | {"initContainers": [], "restartPolicy": "Never"}
