"""`confcom why POD` and `confcom top --enclaves` on a real cluster: a pod that waits, one with quotes, one by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import QUOTE, limits, one_container, pod, with_aesmd
from kubectl import Kubectl

NAMESPACE = "e2e"
HOUR = "3600"


@pytest.fixture(scope="module")
def watched(addon: Addon, cluster: Kubectl) -> Addon:
    """The add-on with quote helper and exporter, on a node of 40 MiB: 32 for applications."""
    addon.enable("--enable-metrics", "--simulated-epc=40Mi")
    cluster.rollout("daemonset", "sgx-metrics")
    cluster.rollout("daemonset", "sgx-quote-helper")
    return addon


def why(cluster: Kubectl, name: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the answer, with the checks by their names."""
    command = [sys.executable, "-m", "confcom", "why", name, "-n", NAMESPACE, "-o", "json"]
    done = subprocess.run([*command, "--kubeconfig", cluster.kubeconfig], capture_output=True, text=True, timeout=60)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["missing"] == []
    return done.returncode, found | {"checks": {check["id"]: check for check in found["checks"]}}


def phase(cluster: Kubectl, name: str) -> str:
    return str(cluster.get("pod", name, "-n", NAMESPACE)["status"].get("phase"))


def test_a_pod_that_waits_for_epc(watched: Addon, cluster: Kubectl, made: Callable[..., Any], image: str) -> None:
    made(pod("filler", NAMESPACE, one_container(image, "sleep", HOUR, resources=limits(25))))
    cluster.wait("the filler", lambda: phase(cluster, "filler") == "Running")
    wanting = one_container(image, "sleep", HOUR, resources={"limits": {"sgx.intel.com/epc": "10Mi"}})
    made(pod("wanting", NAMESPACE, wanting))

    def said() -> dict[str, Any] | None:
        _, found = why(cluster, "wanting")
        return found if "Insufficient" in found["checks"]["scheduling"]["found"] else None

    found = cluster.wait("the scheduler's word", said)
    assert "it needs 10 MiB of EPC, and no node has more free than" in found["checks"]["scheduling"]["found"]
    assert "7 MiB free of 32 MiB" in found["checks"]["scheduling"]["found"]
    assert "confcom top --sort requested" in found["checks"]["scheduling"]["advice"]
    assert found["checks"]["translated"]["found"].startswith("application: sgx.intel.com/epc: 10Mi became ")
    assert why(cluster, "wanting")[0] == 7
    cluster("delete", "pod", "filler", "-n", NAMESPACE, "--wait")
    cluster.wait("the pod that waited", lambda: phase(cluster, "wanting") == "Running")
    code, found = why(cluster, "wanting")
    assert (code, found["checks"]["devices"]["found"]) == (0, "application: enclave"), found


def test_a_pod_with_quotes(watched: Addon, cluster: Kubectl, made: Callable[..., Any], image: str) -> None:
    spec = one_container(image, "sh", "-c", f"{QUOTE} && sleep {HOUR}", "00", resources=limits(10))
    made(pod("attesting", NAMESPACE, with_aesmd(spec)))
    cluster.wait("the quote", lambda: cluster.attempt("logs", "attesting", "-n", NAMESPACE).out)
    code, found = why(cluster, "attesting")
    assert code == 0, found
    checks = {name: check["found"] for name, check in found["checks"].items()}
    assert checks["helper"].startswith("serves on node ")
    assert checks["mode"].startswith("application: out-of-proc (")
    assert checks["tcb"].startswith("UpToDate, ")
    (enclave,) = found["enclaves"]
    assert checks["quotes"].startswith(f"1 of MRENCLAVE {enclave['mr_enclave'][:16]}…")

    command = [sys.executable, "-m", "confcom", "top", "--enclaves", "--kubeconfig", cluster.kubeconfig]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith(f"{NAMESPACE}/attesting")]
    assert line.split()[2] == enclave["mr_enclave"][:16]


def test_a_pod_with_a_device_mounted_by_hand(
    watched: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    spec = one_container(image, "confcom", "simulate", "hold", "--epc", "4Mi")
    spec["containers"][0]["volumeMounts"] = [{"name": "device", "mountPath": "/dev/sgx_enclave"}]
    path = "/var/lib/confcom/simulated-node/dev/sgx_enclave"
    spec["volumes"] = [{"name": "device", "hostPath": {"path": path, "type": "File"}}]
    made(pod("by-hand", NAMESPACE, spec))

    def said() -> dict[str, Any] | None:
        _, found = why(cluster, "by-hand")
        return found if "EpcNotRequested" in found["checks"].get("use", {}).get("found", "") else None

    found = cluster.wait("the event", said)
    assert "of the host by hand (volume device)" in found["checks"]["devices"]["found"]
    assert "over now: application no-request" in found["checks"]["use"]["found"]
    assert found["checks"]["requests"]["found"] == "no EPC"


def test_as_a_plug_in_of_kubectl(watched: Addon, cluster: Kubectl, made: Callable[..., Any], image: str) -> None:
    made(pod("plain", NAMESPACE, one_container(image, "sleep", HOUR)))
    cluster.wait("the pod", lambda: phase(cluster, "plain") == "Running")
    scripts = Path(sysconfig.get_path("scripts"))
    environment = os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}", "KUBECONFIG": cluster.kubeconfig}
    command = [cluster.program, "confcom", "why", "plain", "-n", NAMESPACE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "e2e/plain is Running; it uses no SGX"), done.stderr
