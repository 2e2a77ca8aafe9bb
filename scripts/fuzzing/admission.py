"""Reviews of pods, as any client of the webhook's port may send them."""

from __future__ import annotations

import base64
import json
from typing import Any

from confcom.admission.decision import AdmissionContext
from confcom.admission.pod_json import Grants
from confcom.errors import PolicyError
from confcom.protocols.epc import CANONICAL
from confcom.services.webhook.webhook import Task, review

_LABEL = "/metadata/labels/confcom.dev~1uses-sgx"
_HERE = AdmissionContext(namespace="fuzz", grants=Grants.parse("fuzz/*"), largest_node=168)


def pod_review(data: bytes) -> None:
    """What is refused is not changed; what is patched is only ever changed where SGX pods may be."""
    answer = _ask(data, "mutate")
    if not answer["allowed"]:
        assert "patch" not in answer
        raise PolicyError(answer["status"]["message"][:12])
    operations = json.loads(base64.b64decode(answer.get("patch", "W10=")))
    for operation in operations:
        steps = operation["path"].split("/")
        if steps[1] == "metadata":
            assert _LABEL.startswith(operation["path"])
            assert "true" in json.dumps(operation["value"])
            continue
        assert steps[1] == "spec"
        assert steps[2] in ("containers", "initContainers", "ephemeralContainers", "volumes")
        assert steps[2] == "volumes" or steps[4] in ("resources", "env", "volumeMounts")
    assert _ask(data, "validate")["allowed"] == (not operations)


def _ask(data: bytes, task: Task) -> dict[str, Any]:
    answer, _ = review(data, task, lambda _: _HERE)
    found: dict[str, Any] = json.loads(answer)["response"]
    return found


def pod_reviews() -> list[bytes]:
    """Pods in several dialects, one with contradictory requests, and one that is debugged."""
    variable = {"name": "SGX_AESM_ADDR", "value": "1"}
    container = {"name": "a", "image": "i", "resources": {"limits": {"sgx.intel.com/epc": "10Mi", "cpu": "1"}}}
    spec = {"containers": [container], "initContainers": [{**container, "name": "b", "env": [variable]}]}
    wired = {"volumes": [{"name": "aesmd-socket", "hostPath": {"path": "/var/run/aesmd"}}], "containers": [container]}
    debugged = {**wired, "ephemeralContainers": [{"name": "d", "image": "i", "env": [variable]}]}
    found: list[dict[str, Any]] = [
        {"object": {"metadata": {"annotations": {"confcom.dev/quote-mode": "out-of-proc"}}, "spec": spec}},
        {"object": {"metadata": {"annotations": {"sgx.intel.com/quote-provider": "b"}}, "spec": spec}},
        {"object": {"spec": {"containers": [{"name": "a", "resources": {"limits": {CANONICAL: "10Mi"}}}]}}},
        {
            "object": {"spec": debugged},
            "oldObject": {"spec": wired},
            "operation": "UPDATE",
            "subResource": "ephemeralcontainers",
        },
    ]
    about = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
    return [
        json.dumps({**about, "request": {"uid": "u", "operation": "CREATE", "namespace": "fuzz", **one}}).encode()
        for one in found
    ]
