"""The device plugin on a real kubelet: how long until EPC is allocatable, and until it is so again after a restart.

It needs the cluster of `./dev cluster up` to itself ($KUBE_HOME names another of its kind), because it kills the
kubelet. The plugin is a process in the node's mount namespace, on a simulated node; pods that do nothing hold all EPC.
What is measured, and from when:

  told        from the start of the process until the kubelet has the list (devices), or the API the amount or slice
  visible     from the same moment until the Node object says so; the kubelet writes it every 10 s
  again       from the new kubelet.sock after a kill -9 until the kubelet has worked through every list, all EPC in use
  node        from the same moment until the Node object says the right amounts with a status of the new kubelet
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, show
from benchmarks.simulated import simulated_world
from confcom.devices.sgx_node import DEFAULT_UNIT_LIMIT
from confcom.protocols.epc import DRA_VERSION, EPC_CLASS, device_class
from confcom.services.device_plugin.epc_in_api import CHECKPOINT

EPC = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
ENCLAVE = "sgx.intel.com/enclave"
SIZES = (512 << 10, 256 << 10, 64 << 10, 16 << 10, 3072, 168)
"""MiB; large ones first, because a kubelet that knew EPC as devices keeps it so for five minutes."""
HOLDERS = 8
NAMESPACE = "bench-kubelet"
NODE_FOLDER = "/var/lib/confcom/bench-node"
SCRIPTS = Path(__file__).resolve().parent.parent / "tests" / "e2e" / "cluster"
_PROCESSED = re.compile(r'I(\d{4} [\d:.]+) .*"Processed device updates for resource" resourceName="([^"]+)"')
SOCKET = "var/lib/kubelet/device-plugins/kubelet.sock"


class Cluster:
    """The cluster in a folder of `./dev cluster`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.kubeconfig = home / "admin.kubeconfig"
        self.holder = int((home / "run" / "holder.pid").read_text())
        self.node: str = self.get("nodes")["items"][0]["metadata"]["name"]

    def kubectl(self, *words: str, given: object = None) -> str:
        """Run a command that must not fail."""
        command = [str(self.home / "bin" / "kubectl"), "--kubeconfig", str(self.kubeconfig), *words]
        text = None if given is None else json.dumps(given)
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=240).stdout

    def get(self, *words: str) -> Any:  # noqa: ANN401 - JSON
        """An object or a list."""
        return json.loads(self.kubectl("get", "-o", "json", *words))

    def status(self) -> dict[str, Any]:
        """The node's."""
        found: dict[str, Any] = self.get("node", self.node)["status"]
        return found

    def heartbeat(self) -> str:
        """When the kubelet last wrote the node's status."""
        found: str = next(
            entry["lastHeartbeatTime"] for entry in self.status()["conditions"] if entry["type"] == "Ready"
        )
        return found

    def socket(self) -> int | None:
        """When the kubelet made its socket, in nanoseconds."""
        try:
            return (Path(f"/proc/{self.holder}/root") / SOCKET).stat().st_ctime_ns
        except OSError:
            return None

    def processed(self, since: float) -> dict[str, float]:
        """When the kubelet's device manager had worked through a resource's list for the first time, by its log."""
        found: dict[str, float] = {}
        for line in (self.home / "logs" / "kubelet.log").read_text(errors="replace").splitlines():
            if (match := _PROCESSED.match(line)) is None:
                continue
            year = datetime.fromtimestamp(since, UTC).year
            # The log has the machine's own time.
            moment = datetime.strptime(f"{year}{match[1]}", "%Y%m%d %H:%M:%S.%f").astimezone().timestamp()
            if moment >= since:
                found.setdefault(match[2], moment)
        return found

    def restart_kubelet(self, *, forget: bool = False) -> tuple[float, float]:
        """Kill it and start it; returns when it was killed, and when its socket stood there again."""
        before, pid = self.socket(), self.home / "run" / "kubelet.pid"
        killed = time.time()
        os.kill(int(pid.read_text()), signal.SIGKILL)
        pid.unlink()
        if forget:
            (self.home / "data" / "node" / SOCKET).with_name(CHECKPOINT).unlink(missing_ok=True)
        environment = os.environ | {"KUBE_HOME": str(self.home)}
        with subprocess.Popen([str(SCRIPTS / "up.sh")], env=environment, stdout=subprocess.DEVNULL) as up:
            wait(lambda: self.socket() not in (None, before), 60)
            made = time.time()
            assert up.wait(240) == 0
        return killed, made


class Plugin:
    """One device plugin, and the lines of its log."""

    def __init__(self, cluster: Cluster, folder: Path, mib: int, publisher: str) -> None:
        machine = folder / "machine.json"
        if not machine.exists():
            simulated_world().write_first(machine)
        self._log = (folder / "log").open("w+")
        command = ["nsenter", f"--mount=/proc/{cluster.holder}/ns/mnt", "--", sys.executable, "-m", "confcom"]
        command += ["device-plugin", "--machine", str(machine), "--simulated-node", NODE_FOLDER]
        command += ["--node-name", cluster.node, "--kubeconfig", str(cluster.kubeconfig)]
        command += ["--simulated-epc", f"{mib}Mi", "--publisher", publisher]
        self.begin = time.time()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._log)

    def events(self, name: str, since: float) -> list[dict[str, Any]]:
        """Lines of one event, from a moment on."""
        lines = [json.loads(line) for line in Path(self._log.name).read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name and _moment(line) >= since]

    def resident(self) -> float:
        """MiB of memory."""
        fields = Path(f"/proc/{self.process.pid}/status").read_text().split("VmRSS:")[1].split()
        return int(fields[0]) / 1024

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)
        self._log.close()


def rows() -> Iterator[Row]:
    """The figures; without a cluster, say so."""
    home = Path(os.environ.get("KUBE_HOME") or Path.home() / ".cache" / "confcom-kubernetes")
    if not (home / "run" / "kubelet.pid").exists():
        print("  no cluster: `./dev cluster up` starts one")
        return
    cluster = Cluster(home)
    others = [pod for pod in cluster.get("pods", "-A")["items"] if pod["metadata"]["namespace"] != NAMESPACE]
    if others:
        print(f"  {len(others)} pods of others run there; this needs the cluster to itself")
        return
    cluster.restart_kubelet(forget=True)
    for mib in SIZES:
        for publisher in ("auto", "dra"):
            yield _measure(cluster, mib, publisher)


def _measure(cluster: Cluster, mib: int, publisher: str) -> Row:
    how = "dra" if publisher == "dra" else "devices" if mib <= DEFAULT_UNIT_LIMIT else "node status"
    with tempfile.TemporaryDirectory() as name, _namespace(cluster):
        plugin = Plugin(cluster, Path(name), mib, publisher)
        try:
            told = _told(cluster, plugin, how, plugin.begin) - plugin.begin
            wait(lambda: _visible(cluster, how, mib), 60)
            visible = time.time() - plugin.begin
            _fill(cluster, how, mib)
            resident = plugin.resident()
            heartbeat = cluster.heartbeat()
            killed, made = cluster.restart_kubelet()
            again = _told(cluster, plugin, how, killed) - made
            if how != "dra":  # nothing of it is in the node's status, which is not written without a change
                wait(lambda: cluster.heartbeat() > heartbeat and _visible(cluster, how, mib), 90)
            node = "" if how == "dra" else f"; node after {time.time() - made:.2f} s"
            _check(cluster)
            cluster.kubectl("delete", "pods", "--all", "-n", NAMESPACE, "--wait")
        finally:
            plugin.stop()
    size = f"{mib} MiB" if mib < 1024 else f"{mib >> 10} GiB"
    note = f"visible {visible:.2f} s, again after a restart {again:.2f} s{node}; {resident:.1f} MiB resident"
    return Row(f"{size} as {how}: told", told, "s", note=note)


def _told(cluster: Cluster, plugin: Plugin, how: str, since: float) -> float:
    """When everything that this way of publishing consists of had been taken, by the logs of plugin and kubelet."""
    wanted = {"devices": {EPC, ENCLAVE}, "node status": {ENCLAVE}, "dra": {"sgx.confcom.dev"}}[how]

    def registered() -> set[str]:
        return {
            line["resource"] for line in plugin.events("kubelet.registered", since) if line["outcome"] == "registered"
        }

    wait(lambda: registered() >= wanted, 90)
    if how != "dra":
        wait(lambda: cluster.processed(since).keys() >= wanted, 90)
    moments = [
        *cluster.processed(since).values(),
        *(_moment(line) for line in plugin.events("kubelet.registered", since)),
    ]
    if how != "node status" or since == plugin.begin:  # an amount in the status outlives the kubelet
        name = "devices.sent" if how == "devices" else "epc.published"
        wait(lambda: plugin.events(name, since), 90)
        moments += [_moment(line) for line in plugin.events(name, since)]
    return max(moments)


def _visible(cluster: Cluster, how: str, mib: int) -> bool:
    if how == "dra":
        return any(one["spec"].get("devices") for one in cluster.get("resourceslices")["items"])
    amounts = cluster.status()["allocatable"]
    return _number(amounts.get(EPC, "0")) == mib and amounts.get(ENCLAVE) == "110"


def _fill(cluster: Cluster, how: str, mib: int) -> None:
    share = mib // HOLDERS
    objects: list[dict[str, Any]] = []
    for number in range(HOLDERS):
        held: dict[str, Any] = {"resources": {"limits": {EPC: share, ENCLAVE: 1}}}
        spec: dict[str, Any] = {"terminationGracePeriodSeconds": 0}
        if how == "dra":
            held = {"resources": {"claims": [{"name": "epc"}]}}
            spec["resourceClaims"] = [{"name": "epc", "resourceClaimTemplateName": "share"}]
        container = {"name": "holder", "image": "localhost/pause:1", "imagePullPolicy": "IfNotPresent"} | held
        metadata = {"name": f"holder-{number}", "namespace": NAMESPACE}
        objects.append(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec | {"containers": [container]}}
        )
    if how == "dra":
        request = {"deviceClassName": EPC_CLASS, "capacity": {"requests": {"epc": f"{share}Mi"}}}
        devices = {"requests": [{"name": "epc", "exactly": request}]}
        template = {"apiVersion": DRA_VERSION, "kind": "ResourceClaimTemplate", "spec": {"spec": {"devices": devices}}}
        objects = [template | {"metadata": {"name": "share", "namespace": NAMESPACE}}, *objects]
    cluster.kubectl("apply", "-f", "-", given={"apiVersion": "v1", "kind": "List", "items": objects})
    wait(lambda: _running(cluster) == HOLDERS, 90)


def _running(cluster: Cluster) -> int:
    return sum(pod["status"].get("phase") == "Running" for pod in cluster.get("pods", "-n", NAMESPACE)["items"])


def _check(cluster: Cluster) -> None:
    """Every pod still runs, and none was restarted."""
    pods = cluster.get("pods", "-n", NAMESPACE)["items"]
    assert _running(cluster) == HOLDERS
    assert not any(status["restartCount"] for pod in pods for status in pod["status"]["containerStatuses"])


@contextmanager
def _namespace(cluster: Cluster) -> Iterator[None]:
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        device_class(EPC_CLASS, "epc"),
    ]
    cluster.kubectl("apply", "-f", "-", given={"apiVersion": "v1", "kind": "List", "items": objects})
    wait(lambda: cluster.get("serviceaccounts", "-n", NAMESPACE)["items"], 30)
    try:
        yield
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--wait")
        amounts = {part: {EPC: None} for part in ("capacity", "allocatable")}
        patch = json.dumps({"status": amounts})
        cluster.kubectl("patch", "node", cluster.node, "--subresource=status", "--type=merge", "-p", patch)


def wait(condition: Callable[[], object], seconds: float) -> None:
    """Until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.05)


def _moment(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def _number(amount: str) -> int:
    return int(amount.removesuffix("k")) * (1000 if amount.endswith("k") else 1)


if __name__ == "__main__":
    show(rows())
