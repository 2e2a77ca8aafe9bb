"""Pods for tests of admission, as small as they can be."""

from __future__ import annotations

from typing import Any

EPC = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
HYBRID = "sgx.intel.com/sgx_epc_mem_in_MiB"
INTEL = "sgx.intel.com/epc"
ALIYUN = "alibabacloud.com/sgx_epc_MiB"
ENCLAVE = "sgx.intel.com/enclave"
PROVISION = "sgx.intel.com/provision"
HELPER = "sgx.confcom.dev/quote-helper"
AESMD = "/var/run/aesmd"
Pod = dict[str, Any]


def container(name: str = "app", limits: Pod | None = None, **more: Any) -> Pod:
    """A container; `limits` become its requests too, as the API server has it."""
    found: Pod = {"name": name, "image": "example.com/app:1", "resources": {}}
    if limits is not None:
        found["resources"] = {"limits": dict(limits), "requests": dict(limits)}
    return found | more


def pod(*containers: Pod, annotations: dict[str, str] | None = None, **spec: Any) -> Pod:
    """A pod, with what the API server fills in."""
    metadata: Pod = {"name": "p", "namespace": "apps", "creationTimestamp": None, "labels": {"app": "p"}}
    if annotations is not None:
        metadata["annotations"] = annotations
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": list(containers) or [container()], "serviceAccountName": "default"} | spec,
        "status": {},
    }


def labelled(given: Pod) -> Pod:
    """The pod with the label of those that use SGX."""
    metadata = given["metadata"]
    return given | {"metadata": metadata | {"labels": metadata["labels"] | {"confcom.dev/uses-sgx": "true"}}}


def canonical(mib: int, *, provision: bool = False, helper: bool = False) -> Pod:
    """Resources as the node understands them."""
    amounts = {EPC: str(mib), ENCLAVE: "1"}
    amounts |= ({PROVISION: "1"} if provision else {}) | ({HELPER: "1"} if helper else {})
    return {"limits": amounts, "requests": amounts}
