"""A pod that attests all the time, and how it went."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster_jobs import limits, one_container, pod, with_aesmd
from kubectl import Kubectl

SCRIPT = Path(__file__).resolve().parent / "e2e" / "attestation_load.py"
NAME = "attestation-load"


@dataclass(frozen=True)
class Load:
    """Attestation under way in namespace e2e."""

    cluster: Kubectl

    @classmethod
    def start(cls, cluster: Kubectl, image: str) -> Load:
        """Start, and wait for the first quotes."""
        script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": "e2e"}}
        spec = with_aesmd(one_container(image, "python3", "/load/load.py", resources=limits(10)))
        spec["terminationGracePeriodSeconds"] = 30
        spec["volumes"].append({"name": "load", "configMap": {"name": NAME}})
        spec["containers"][0]["volumeMounts"].append({"name": "load", "mountPath": "/load"})
        load = cls(cluster)
        load.end()  # what a test before left behind

        def begun() -> Any:
            # A kubelet whose device plugin has just started again may fail a pod, which no controller makes again here.
            found = cluster.find("pod", NAME, "-n", "e2e")
            if found is None or found["status"].get("reason") == "UnexpectedAdmissionError":
                load.end()
                cluster.apply(script | {"data": {"load.py": SCRIPT.read_text()}}, pod(NAME, "e2e", spec))
            return load.figures().get("quotes")

        cluster.wait("the first quotes", begun)
        return load

    def figures(self) -> dict[str, Any]:
        """The latest figures."""
        lines = self.cluster.attempt("logs", "-n", "e2e", NAME, "--tail=1").out.strip().splitlines()
        figures: dict[str, Any] = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
        return figures

    def more(self, count: int = 200) -> None:
        """Wait until that many quotes came since now."""
        # A kubelet that has just started does not give logs yet.
        before = self.cluster.wait("figures", lambda: self.figures().get("quotes"))
        self.cluster.wait("quotes to go on", lambda: self.figures().get("quotes", 0) >= before + count)

    def end(self) -> None:
        """End it."""
        self.cluster("delete", "pod", NAME, "-n", "e2e", "--ignore-not-found", "--wait")
        self.cluster("delete", "configmap", NAME, "-n", "e2e", "--ignore-not-found")
