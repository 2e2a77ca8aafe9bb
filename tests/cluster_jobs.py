"""Jobs and pods as users of the add-on write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EPC = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
DEVICE = "/dev/sgx_enclave"
AESMD = "/var/run/aesmd"

CONFINED: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": 4711,
    "runAsGroup": 4711,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What Pod Security's `restricted` asks of a container."""

QUOTE = f"confcom quote --machine {DEVICE} --report-data $0 -o /tmp/quote && base64 -w0 /tmp/quote"
"""A shell command that attests the demo enclave of a simulated node and prints the quote; $0 is the report data."""


def job(name: str, namespace: str, pod: Mapping[str, Any], *, annotations: Mapping[str, str] | None = None) -> Any:
    """A Job that does not try again: what goes wrong is to be seen."""
    template = {"metadata": {"labels": {"app": name}, "annotations": dict(annotations or {})}, "spec": dict(pod)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"template": template, "backoffLimit": 0},
    }


def pod(name: str, namespace: str, spec: Mapping[str, Any], *, annotations: Mapping[str, str] | None = None) -> Any:
    """A bare pod."""
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name}, "annotations": dict(annotations or {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": dict(spec)}


def one_container(image: str, *command: str, **more: Any) -> dict[str, Any]:
    """A pod's spec with one container, called `application`."""
    container = {"name": "application", "image": image, "imagePullPolicy": "IfNotPresent", "command": list(command)}
    return {"containers": [container | more], "restartPolicy": "Never", "terminationGracePeriodSeconds": 1}


def limits(mib: int | str, **more: str) -> dict[str, Any]:
    """`resources` as the source pages write them: limits alone."""
    return {"limits": {EPC: mib} | more}


def with_aesmd(spec: dict[str, Any]) -> dict[str, Any]:
    """The same pod with the socket's directory mounted and the variable set, as the source pages show it."""
    first = spec["containers"][0]
    first["env"] = [*first.get("env", []), {"name": "SGX_AESM_ADDR", "value": "1"}]
    first["volumeMounts"] = [*first.get("volumeMounts", []), {"name": "var-run-aesmd", "mountPath": AESMD}]
    spec["volumes"] = [*spec.get("volumes", []), {"name": "var-run-aesmd", "hostPath": {"path": AESMD}}]
    return spec


def attesting(image: str, report_data: str, mib: int | str = 10, **more: Any) -> dict[str, Any]:
    """A pod that gets one quote and prints it."""
    return one_container(image, "sh", "-c", QUOTE, report_data, resources=limits(mib), **more)
