"""The pages for those who come from other plugins, followed on two real nodes while the other plugin serves one.

The other plugin is a stand-in with the same resources, devices and DaemonSet; CONFCOM_E2E_INTEL_PLUGIN names the
program of Intel's own, to run that instead.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster_addon import Addon
from cluster_jobs import EPC, one_container
from cluster_plugin import forget_devices, own_cluster
from documented import ROOT
from kubectl import Kubectl
from second_node import NODE, second_node
from sgx_on_node import MIB_PER_NUMA_NODE, sgx_on_node, start_kubelet_again

MIB = 2 * MIB_PER_NUMA_NODE
INTEL_EPC, ENCLAVE, PROVISION = "sgx.intel.com/epc", "sgx.intel.com/enclave", "sgx.intel.com/provision"
NFD = "intel.feature.node.kubernetes.io/sgx"
STAYS, MOVES = "e2e-stays", "e2e-moves"
PLUGIN = """
import asyncio
from pathlib import Path
from confcom.protocols import kubelet as k
from confcom.services.device_plugin.grpc import GrpcSocket, call

FOLDER = Path("/var/lib/kubelet/device-plugins")

async def serve(kind):
    async def options(_):
        return k.DevicePluginOptions()

    async def devices(_):
        yield k.list_devices([f"sgx-{kind}-{number}" for number in range(110)], healthy=True)
        await asyncio.Event().wait()

    async def allocate(request):
        answer = k.AllocateResponse()
        for _ in request.container_requests:
            path = f"/dev/sgx_{kind}"
            answer.container_responses.add().devices.add(host_path=path, container_path=path, permissions="rw")
        return answer

    endpoint = f"sgx.intel.com-{kind}.sock"
    socket = GrpcSocket(FOLDER / endpoint, {k.GET_OPTIONS: options, k.LIST_AND_WATCH: devices, k.ALLOCATE: allocate})
    await socket.start()
    known = k.RegisterRequest(version=k.VERSION, endpoint=endpoint, resource_name=f"sgx.intel.com/{kind}")
    await call(FOLDER / "kubelet.sock", k.REGISTER, known, timeout=10)
    return socket

async def main():
    kept = await asyncio.gather(serve("enclave"), serve("provision"))
    await asyncio.Event().wait()

asyncio.run(main())
"""


def intel_plugin(image: str) -> dict[str, Any]:
    """The DaemonSet of Intel's deployment, with its selector for nodes that NFD labelled."""
    program = os.environ.get("CONFCOM_E2E_INTEL_PLUGIN", "")
    folders = {"sockets": "/var/lib/kubelet/device-plugins", "devices": "/dev", "cdi": "/var/run/cdi"}
    if program:
        folders["program"] = str(Path(program).parent)
    container = {
        "name": "intel-sgx-plugin",
        "image": image,
        "command": [f"/program/{Path(program).name}"] if program else ["python3", "-c", PLUGIN],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [
            {"name": name, "mountPath": "/program" if name == "program" else path} for name, path in folders.items()
        ],
    }
    spec = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "nodeSelector": {NFD: "true"},
        "containers": [container],
        "volumes": [{"name": name, "hostPath": {"path": path}} for name, path in folders.items()],
    }
    labels = {"app": "intel-sgx-plugin"}
    template = {"metadata": {"labels": labels}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "intel-sgx-plugin", "namespace": "default", "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }


def application(namespace: str, image: str) -> dict[str, Any]:
    """Two pods as Intel's webhook leaves them: EPC in bytes, and one slot of the enclave device."""
    amounts = {INTEL_EPC: "10Mi", ENCLAVE: "1"}
    spec = one_container(image, "sh", "-c", "test -c /dev/sgx_enclave && exec sleep infinity",
                         resources={"limits": amounts, "requests": amounts})  # fmt: skip
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
              "labelSelector": {"matchLabels": {"app": "app"}}}  # fmt: skip
    template = {
        "metadata": {"labels": {"app": "app"}},
        "spec": spec | {"restartPolicy": "Always", "topologySpreadConstraints": [spread]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "app", "namespace": namespace},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "app"}}, "template": template},
    }


class Operator:
    """Follows a page: its commands in a shell, with the operator's own names in place of the page's."""

    def __init__(self, page: str, heading: str, folder: Path, cluster: Kubectl, image: str) -> None:
        text = (ROOT / "docs" / "howto" / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        self.text, self.folder = text, folder
        (folder / "kubectl").symlink_to(cluster.program)
        # What the test's cluster has instead of a registry, and of a machine with SGX.
        here = (f"--image={image}", "--disable-sgxquotehelper", "-o", "none")
        program = f'#!/bin/sh\n[ "$2" != enable ] || set -- "$@" {" ".join(here)}\n'
        (folder / "confcom").write_text(f'{program}exec {sys.executable} -m confcom "$@"\n')
        (folder / "confcom").chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "KUBECONFIG": cluster.kubeconfig,
        }

    def commands(self, first: str, last: str = "") -> str:
        """Those that the page shows from the line that begins so on, to the one that begins so."""
        shown = re.sub(r" *\\\n\s*", " ", "\n".join(re.findall(r"^ {4,}(.*)$", self.text, re.MULTILINE))).splitlines()
        begin = next(number for number, line in enumerate(shown) if line.strip().startswith(first))
        end = next((number for number, line in enumerate(shown) if last and line.strip().startswith(last)), begin)
        return "\n".join(shown[begin : end + 1])

    def run(self, first: str, last: str = "", **names: str) -> str:
        """Run them; what was printed."""
        script = self.commands(first, last)
        for name, value in names.items():
            assert name in script, script
            script = re.sub(rf"\b{name}\b", value, script)
        return self.shell(script)

    def shell(self, script: str) -> str:
        """Run a script with the page's programs; what was printed."""
        done = subprocess.run(["bash", "-euc", script], cwd=self.folder, env=self.environment, capture_output=True,
                              text=True, check=False, timeout=400)  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def nodes(cluster: Kubectl, addon: Addon, image: str) -> Iterator[tuple[str, str]]:
    """Two nodes with SGX and the other plugin, and NFD's marks on them; the add-on was never here."""
    home = own_cluster(cluster)
    if home is None:
        pytest.skip("the node of this cluster is not ours to change")
    assert addon("disable", "--purge", "--yes", "-o", "none").code == 0
    forget_devices(home, cluster)
    first = cluster.items("nodes")[0]["metadata"]["name"]
    cluster("label", "node", first, "confcom.dev/sgx-")
    with sgx_on_node(home):
        start_kubelet_again(home)
        with second_node(home, cluster):
            for namespace in (STAYS, MOVES):
                cluster("create", "namespace", namespace)
                words = ("serviceaccount", "default", "-n", namespace)
                cluster.wait("the namespace's service account", lambda words=words: cluster.find(*words))
            cluster.apply(intel_plugin(image))
            for node in (first, NODE):
                cluster("label", "node", node, f"{NFD}=true")
                offered(cluster, node, MIB << 20)
            yield first, NODE
            cluster("delete", "namespace", STAYS, MOVES, "--wait")
            cluster("delete", "daemonset", "intel-sgx-plugin", "--ignore-not-found", "--wait")
            assert addon("disable", "--purge", "--yes", "-o", "none").code == 0
            cluster("uncordon", first)
    cluster("label", "node", first, f"{NFD}-", "example.com/sgx-", "agentpool-", "confcom.dev/sgx=true", "--overwrite")
    start_kubelet_again(home)
    forget_devices(home, cluster)
    offered(cluster, first, None)


def offered(cluster: Kubectl, node: str, size: int | None) -> None:
    """Write what NFD, or Intel's init container, writes into a node's status; None removes it."""
    patch = json.dumps({"status": {"capacity": {INTEL_EPC: size and str(size)}}})
    cluster("patch", "node", node, "--subresource=status", "--type=merge", "-p", patch)


def amounts(cluster: Kubectl, node: str) -> dict[str, int]:
    """What a node offers of SGX, without what it offers nothing of."""
    found = cluster.get("node", node)["status"]["allocatable"]
    numbers = {name: int(text.replace("Mi", "")) << (20 if "Mi" in text else 0) for name, text in found.items()
               if "sgx" in name}  # fmt: skip
    return {name: number for name, number in numbers.items() if number}


def running(cluster: Kubectl, namespace: str, count: int = 2) -> dict[str, str]:
    """UID to node of the application's pods, once so many run and no others are left."""

    def look() -> dict[str, str]:
        pods = cluster.items("pods", "-n", namespace, "-l", "app=app")
        # One that was placed while the plugins changed places may have been rejected, and another one was made.
        pods = [pod for pod in pods if pod["status"]["phase"] != "Failed"]
        found = {pod["metadata"]["uid"]: pod["spec"].get("nodeName", "") for pod in pods
                 if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
                 and not any(each["restartCount"] for each in pod["status"]["containerStatuses"])}  # fmt: skip
        return found if len(found) == len(pods) == count else {}

    found: dict[str, str] = cluster.wait(f"{count} pods to run in {namespace}", look)
    return found


@pytest.mark.timeout(1800)
def test_a_new_node_pool_takes_workloads_from_the_addon_of_aks(
    nodes: tuple[str, str], cluster: Kubectl, addon: Addon, image: str, tmp_path: Path
) -> None:
    """AKS' plugin, of which Intel's is the origin, serves the old pool; a taint keeps it off the new one."""
    old, new = nodes
    cluster("label", "node", old, "agentpool=old")
    cluster("label", "node", new, "agentpool=new")
    cluster("taint", "node", new, "dedicated=confcom:NoSchedule")
    cluster("delete", "pods", "-l", "app=intel-sgx-plugin", "--field-selector", f"spec.nodeName={new}")
    offered(cluster, new, None)
    for namespace in (STAYS, MOVES):
        cluster.apply(application(namespace, image))
    before = running(cluster, STAYS) | running(cluster, MOVES)
    assert set(before.values()) == {old}
    follow = Operator("come-from-aks.md", "Move", tmp_path, cluster, image)
    names = {"POOL": "new", "KEY": "dedicated", "VALUE": "confcom"}
    follow.run("confcom addon enable", **names)
    cluster.wait("ours in the new pool", lambda: amounts(cluster, new).get(EPC) == MIB)
    shown = follow.commands("nodeSelector:", "tolerations:")
    for name, value in names.items():
        shown = shown.replace(name, value)
    moved = application(MOVES, image)
    moved["spec"]["template"]["spec"] |= yaml.safe_load(shown)
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(moved))
    follow.run("kubectl label namespace", "kubectl -n NAMESPACE", NAMESPACE=MOVES)
    cluster("rollout", "status", "deployment/app", "-n", MOVES, "--timeout=120s")
    assert set(running(cluster, MOVES).values()) == {new}
    assert running(cluster, STAYS).items() <= before.items()
    requests = cluster.items("pods", "-n", MOVES)[0]["spec"]["containers"][0]["resources"]["requests"]
    assert (requests[EPC], INTEL_EPC in requests) == ("10", False)
    # Back to the beginning, for the next page.
    for namespace in (STAYS, MOVES):
        cluster("delete", "deployment", "app", "-n", namespace, "--cascade=foreground", "--wait")
    cluster("label", "namespace", MOVES, "confcom.dev/sgx-")
    assert addon("disable", "--purge", "--yes", "-o", "none").code == 0
    cluster("taint", "node", new, "dedicated-")
    offered(cluster, new, MIB << 20)


@pytest.mark.timeout(1800)
def test_nodes_and_namespaces_move_from_intels_plugin_one_by_one(
    nodes: tuple[str, str], cluster: Kubectl, image: str, tmp_path: Path
) -> None:
    first, second = nodes
    follow = Operator("come-from-intel-plugins.md", "Move node by node", tmp_path, cluster, image)
    of_intel = {INTEL_EPC: MIB << 20, ENCLAVE: 110, PROVISION: 110}
    for node in nodes:
        cluster.wait(f"Intel's resources on {node}", lambda node=node: amounts(cluster, node) == of_intel)
    for namespace in (STAYS, MOVES):
        cluster.apply(application(namespace, image))
    before = running(cluster, STAYS) | running(cluster, MOVES)
    assert set(before.values()) == {first, second}
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(application(MOVES, image)))
    assert "completed, 10 MiB of EPC" in follow.run("confcom check-pods")

    # Nothing of ours runs on a node yet, and nothing of theirs notices.
    follow.run("confcom addon enable")
    follow.run("kubectl label node -l")
    follow.run("kubectl patch daemonset")
    cluster("rollout", "status", "daemonset/intel-sgx-plugin", "--timeout=120s")
    assert running(cluster, STAYS) | running(cluster, MOVES) == before
    for node in nodes:
        cluster.wait(f"Intel's resources on {node}", lambda node=node: amounts(cluster, node) == of_intel)

    follow.run("kubectl drain", "kubectl uncordon", NODE=second)
    cluster.wait("ours on the moved node", lambda: amounts(cluster, second).get(EPC) == MIB)
    cluster("label", "node", second, f"{NFD}-")  # as NFD does, since its rule leaves the node out
    assert second in follow.shell("confcom top")
    assert set(amounts(cluster, second)) == {EPC, ENCLAVE}
    assert amounts(cluster, first) == of_intel
    kept = {uid: node for uid, node in before.items() if node == first}
    after = running(cluster, STAYS) | running(cluster, MOVES)
    assert kept.items() <= after.items()
    assert set(after.values()) == {first}

    # A namespace moves: its pods run with our devices on the moved node, those of the other stay as they are.
    stayed = running(cluster, STAYS)
    follow.run("kubectl label namespace", "kubectl -n NAMESPACE", NAMESPACE=MOVES, APP="app")
    cluster("rollout", "status", "deployment/app", "-n", MOVES, "--timeout=120s")
    assert set(running(cluster, MOVES).values()) == {second}
    assert running(cluster, STAYS) == stayed

    # EPC counts once: what is left on each node is offered, and no more.
    for namespace, mib, fits in ((MOVES, MIB - 20 + 1, False), (MOVES, MIB - 20, True), (STAYS, MIB - 20 + 1, False)):
        name = f"p{mib}-{namespace}"
        limits = {"limits": {INTEL_EPC: f"{mib}Mi", ENCLAVE: "1"}}
        spec = one_container(image, "sleep", "600", resources=limits)
        cluster.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}
        )
        decided = cluster.wait(f"{name} to run or to wait", lambda name=name, ns=namespace: _decided(cluster, name, ns))
        assert decided == ("Running" if fits else "Unschedulable"), name
        cluster("delete", "pod", name, "-n", namespace, "--wait")

    # The last node.
    follow.run("kubectl drain", "kubectl uncordon", NODE=first)
    cluster.wait("ours on the last node", lambda: amounts(cluster, first).get(EPC) == MIB)
    follow.run("kubectl label namespace", "kubectl -n NAMESPACE", NAMESPACE=STAYS, APP="app")
    cluster("rollout", "status", "deployment/app", "-n", STAYS, "--timeout=120s")
    cluster("delete", "daemonset", "intel-sgx-plugin", "--wait")
    settled = running(cluster, STAYS) | running(cluster, MOVES)
    follow.run("confcom addon update")
    assert running(cluster, STAYS) | running(cluster, MOVES) == settled
    for node in nodes:
        cluster.wait(f"ours alone on {node}", lambda node=node: set(amounts(cluster, node)) == {EPC, ENCLAVE})


def _decided(cluster: Kubectl, name: str, namespace: str) -> str:
    status = cluster.get("pod", name, "-n", namespace)["status"]
    reasons = [each.get("reason", "") for each in status.get("conditions", []) if each["type"] == "PodScheduled"]
    return "Running" if status["phase"] == "Running" else "Unschedulable" if "Unschedulable" in reasons else ""
