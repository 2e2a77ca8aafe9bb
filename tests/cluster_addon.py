"""The add-on on a test cluster, through its own command line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from cluster_jobs import EPC
from kubectl import ADDON_NAMESPACE, Kubectl, Outcome

GRANTED = "e2e-granted"
"""The namespace whose pods may hold the provisioning device."""
HELPERS = 8
"""MiB of EPC that a node keeps for its quote helper and a successor."""
SETTINGS = (
    "--platform=simulated",
    "--simulated-epc=176Mi",
    "--image-pull-policy=IfNotPresent",
    "--image-pull-secret=",
    "--publisher=auto",
    "--epc-reserve-mib=0",
    "--overcommit=1",
    "--enable-sgxquotehelper",
    "--quote-helper-epc-mib=4",
    "--quote-helper-groups=",
    "--quote-helper-seccomp=runtime/default",
    "--expected-signers=",
    f"--provision-grants={GRANTED}/*",
    "--node-selector=",
    "--toleration=",
    "--enable-webhook",
    "--webhook-replicas=1",
    "--webhook-namespaces=all",
    "--webhook-client-ca=",
    "--oversized=refuse",
    "--api-ports=443,6443",
    "--api-addresses=",
    "--monitoring=auto",
    "--monitoring-label=",
    "--disable-collateral",
    "--collateral-upstream=intel",
    "--collateral-fmspc=",
    "--collateral-tcb-set=",
    "--collateral-storage=",
    "--collateral-tls-secret=",
    "--collateral-database=",
    "--collateral-database-port=5432",
    "--collateral-replicas=2",
    "--collateral-url=",
    "--disable-attestation-service",
    "--disable-attested-certificates",
    "--approve-for=",
    "--attestation-url=",
    "--attestation-storage=1Gi",
    "--attestation-tls-secret=",
    "--attestation-administrators=",
    "--attestation-keys=",
    "--attestation-pin-secret=",
    "--attestation-database=",
    "--attestation-database-port=5432",
    "--attestation-replicas=2",
    "--disable-metrics",
    "--disable-autoscaling",
    "--disable-epc-enforcement",
)
"""The add-on as most tests want it; said in full, so that no test depends on what another one left."""


@dataclass(frozen=True)
class Addon:
    """`confcom addon …`, and what comes of it on the one SGX node."""

    cluster: Kubectl
    image: str

    def __call__(self, *words: str, seconds: float = 330) -> Outcome:
        """Run one command."""
        command = [sys.executable, "-m", "confcom", "addon", *words, "--kubeconfig", self.cluster.kubeconfig]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        return Outcome(done.returncode, done.stdout, done.stderr)

    def fails(self, *words: str, saying: str) -> Outcome:
        """Run a command that waits for what cannot come, a few seconds each time, until it says so."""

        def attempt() -> Outcome | None:
            outcome = self(*words, "-o", "none", "--timeout=8")
            return outcome if saying in outcome.err else None

        outcome: Outcome = self.cluster.wait(f"`addon {words[0]}` to say: {saying}", attempt)
        assert outcome.code == 7, outcome.err
        return outcome

    def enable(self, *settings: str) -> None:
        """Enable it with the usual settings and these, and wait until the node offers EPC."""
        outcome = self("enable", *SETTINGS, f"--image={self.image}", *settings, "-o", "none", "--timeout", "300")
        assert outcome.code == 0, outcome.err
        amount = next((word for word in settings if word.startswith("--simulated-epc=")), "=176Mi").split("=")[1]
        kept = 0 if "--disable-sgxquotehelper" in settings else HELPERS
        expected = sum(_mib(part) for part in amount.split(",")) - kept
        self.cluster.wait(f"{expected} MiB to be allocatable", lambda: self.allocatable() == expected)

    def node(self) -> Any:
        """The SGX node."""
        return self.cluster.items("nodes", "-l", "confcom.dev/sgx=true")[0]

    def allocatable(self, resource: str = EPC) -> int:
        """What the node offers to pods; 0 where it does not know the resource."""
        return int(self.node()["status"]["allocatable"].get(resource, "0"))

    def pods(self, component: str) -> list[Any]:
        """The pods of one component that are not about to end."""
        words = ("pods", "-n", ADDON_NAMESPACE, "-l", f"app.kubernetes.io/component={component}")
        return [pod for pod in self.cluster.items(*words) if "deletionTimestamp" not in pod["metadata"]]

    def objects(self) -> list[str]:
        """Names of all objects of every kind that carry the add-on's label."""
        kinds = self.cluster("api-resources", "--verbs=list,delete", "-o", "name").split()
        kinds = [kind for kind in kinds if not kind.startswith("events")]
        ours = ("-l", "app.kubernetes.io/part-of=confcom", "-o", "name")
        return self.cluster("get", ",".join(kinds), "-A", *ours).split()


def _mib(amount: str) -> int:
    return int(amount[:-2]) * {"Mi": 1, "Gi": 1024}[amount[-2:]]
