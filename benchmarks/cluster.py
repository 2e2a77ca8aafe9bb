"""The add-on on a real cluster: seconds from `addon enable` until all is ready, and from a Job to its verified quote.

    ./dev cluster up && ./dev image --load
    ./dev run python -m benchmarks.cluster

Purges the add-on of that cluster before and after. The image is on the node already, so nothing is pulled. The peer of
the Job that attests is a Job of the same image that says one word: what Kubernetes itself takes.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, show, spread

NAMESPACE = "confcom-benchmark"
EPC = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
QUOTE = "confcom quote --machine /dev/sgx_enclave --report-data 01 -o /tmp/quote 2>&- && base64 -w0 /tmp/quote"


@dataclass(frozen=True)
class Cluster:
    """One cluster and the image that its nodes have."""

    kubectl: str
    kubeconfig: str
    image: str

    def run(self, *words: str, given: str | None = None) -> str:
        """What kubectl says."""
        command = [self.kubectl, "--kubeconfig", self.kubeconfig, *words]
        return subprocess.run(command, input=given, check=True, capture_output=True, text=True).stdout

    def addon(self, *words: str) -> None:
        """Change the add-on."""
        command = [sys.executable, "-m", "confcom", "addon", *words, "-o", "none", "--kubeconfig", self.kubeconfig]
        subprocess.run(command, check=True, capture_output=True)

    def job(self, spec: dict[str, Any]) -> str:
        """Run a Job and return its log as soon as its container has ended."""
        name = f"job-{secrets.token_hex(4)}"
        container = {"name": "c", "image": self.image, "imagePullPolicy": "IfNotPresent"} | spec
        pod = {"containers": [container], "restartPolicy": "Never"}
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"template": {"spec": pod}, "backoffLimit": 0},
        }
        self.run("create", "-f", "-", given=json.dumps(job))
        self.run("wait", "-n", NAMESPACE, f"job/{name}", "--for=jsonpath={.status.active}=1", "--timeout=60s")
        return self.run("logs", "-n", NAMESPACE, f"job/{name}", "--follow", "--pod-running-timeout=120s")

    def ready(self) -> bool:
        """Whether some node offers EPC."""
        path = f"jsonpath={{.items[*].status.allocatable.{EPC.replace('.', chr(92) + '.')}}}"
        return any(word not in ("", "0") for word in self.run("get", "nodes", "-o", path).split(" "))


def enabling(cluster: Cluster) -> float:
    """Seconds from nothing to everything ready and EPC on offer."""
    cluster.addon("disable", "--purge", "--yes")
    start = time.monotonic()
    words = ("--platform=simulated", "--enable-sgxquotehelper", "--webhook-replicas=1", f"--image={cluster.image}")
    cluster.addon("enable", *words)
    while not cluster.ready():
        time.sleep(0.2)
    return time.monotonic() - start


def attesting(cluster: Cluster, verify: Callable[[bytes], None]) -> float:
    """Seconds from a Job's creation to its verified quote."""
    start = time.monotonic()
    variable = [{"name": "SGX_AESM_ADDR", "value": "1"}]
    log = cluster.job(
        {"command": ["sh", "-c", QUOTE], "env": variable, "resources": {"limits": {EPC: "10"}}},
    )
    verify(base64.b64decode(log.strip().splitlines()[-1]))
    return time.monotonic() - start


def ordinary(cluster: Cluster) -> float:
    """Seconds from the creation of a Job that does nothing to its log."""
    start = time.monotonic()
    cluster.job({"command": ["echo", "hello"]})
    return time.monotonic() - start


def relying_party(cluster: Cluster, folder: Path) -> Callable[[bytes], None]:
    """Verifies quotes of the cluster's simulated nodes; raises for one that is not accepted."""
    place = ("-n", "confcom-system", "-o", "json")
    root = json.loads(cluster.run("get", "configmap", "confcom-simulated-root", *place))["data"]["root_ca.pem"]
    world = json.loads(cluster.run("get", "secret", "confcom-simulated-world", *place))["data"]["machine.json"]
    (folder / "root.pem").write_text(root)
    (folder / "machine.json").write_bytes(base64.b64decode(world))
    confcom = [sys.executable, "-m", "confcom"]
    make = [*confcom, "simulate", "collateral", "machine.json", "-o", "collateral"]
    subprocess.run(make, cwd=folder, check=True, capture_output=True)

    def verify(quote: bytes) -> None:
        (folder / "quote").write_bytes(quote)
        words = ["--collateral", "collateral", "--trust-root", "root.pem", "--report-data", "01"]
        subprocess.run([*confcom, "verify", "quote", *words], cwd=folder, check=True, capture_output=True)

    return verify


def rows(arguments: Sequence[str] = ()) -> Iterator[Row]:
    """Seconds, each the median of some rounds."""
    home = Path(os.environ.get("KUBE_HOME") or Path.home() / ".cache" / "confcom-kubernetes")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kubeconfig", default=str(home / "admin.kubeconfig"))
    parser.add_argument("--kubectl", default=str(home / "bin" / "kubectl"))
    parser.add_argument("--image", default="localhost/confcom:dev")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    if not Path(options.kubeconfig).exists():
        print("  no cluster: `./dev cluster up` starts one")
        return
    cluster = Cluster(options.kubectl, options.kubeconfig, options.image)
    cluster.run("label", "node", "--all", "confcom.dev/sgx=true", "--overwrite")
    cluster.run("create", "namespace", NAMESPACE)
    try:
        enabled = [enabling(cluster) for _ in range(max(1, options.rounds // 2))]
        yield Row(
            "`addon enable` to all ready, from nothing", statistics.median(enabled), "s", note=spread(enabled, unit="s")
        )
        with tempfile.TemporaryDirectory() as folder:
            verify = relying_party(cluster, Path(folder))
            # In turns, so that other work on the machine meets both alike.
            jobs = [(attesting(cluster, verify), ordinary(cluster)) for _ in range(options.rounds)]
        ours, peer = ([job[index] for job in jobs] for index in (0, 1))
        name, beside = "Job created to quote verified", statistics.median(peer)
        yield Row(name, statistics.median(ours), "s", beside, "Job that says one word", spread(ours, unit="s"))
    finally:
        cluster.addon("disable", "--purge", "--yes")
        cluster.run("delete", "namespace", NAMESPACE, "--wait=false")


if __name__ == "__main__":
    show(rows(sys.argv[1:]))
