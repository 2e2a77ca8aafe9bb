"""The device plugin may write to the status of its own node only, and only what it is there for.

RBAC cannot say "your own node": a role with `patch` on `nodes/status` lets every plugin, and whoever breaks into one,
write to every node. The API server's admission policies can, because tokens of pods name the node that they run on.
"""

from __future__ import annotations

from confcom.manifests.objects import DEVICE_PLUGIN, EPC_RESOURCE, NAMESPACE, Object, global_object

NAME = "sgx-device-plugin-own-node.confcom.dev"
_ACCOUNT = f"system:serviceaccount:{NAMESPACE}:{DEVICE_PLUGIN.name}"
_ADMISSION = "admissionregistration.k8s.io"
_NODE_CLAIM = "authentication.kubernetes.io/node-name"
_LABELS = "confcom.dev/"


def own_node_policy() -> list[Object]:
    """The policy for nodes' status, and its binding."""
    return admission_policy(
        NAME,
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["nodes/status"]},
        _validations(),
    )


def admission_policy(name: str, rule: Object, validations: list[Object]) -> list[Object]:
    """A policy over what the device plugin asks for, and its binding."""
    policy = global_object(
        f"{_ADMISSION}/v1",
        "ValidatingAdmissionPolicy",
        name,
        DEVICE_PLUGIN.component,
        spec={
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": [
                {"name": "the-device-plugin", "expression": f"request.userInfo.username == '{_ACCOUNT}'"}
            ],
            "validations": validations,
        },
    )
    binding = global_object(
        f"{_ADMISSION}/v1",
        "ValidatingAdmissionPolicyBinding",
        name,
        DEVICE_PLUGIN.component,
        spec={"policyName": name, "validationActions": ["Deny"]},
    )
    return [policy, binding]


def of_own_node(node: str) -> str:
    """CEL: what asks is a pod on the node whose name `node` gives."""
    claim = f"request.userInfo.extra['{_NODE_CLAIM}']"
    return f"'{_NODE_CLAIM}' in request.userInfo.extra && {claim} == [{node}]"


def _validations() -> list[Object]:
    rest = "conditions", "addresses", "nodeInfo", "daemonEndpoints"
    return [
        {
            "expression": of_own_node("object.metadata.name"),
            "message": "the SGX device plugin writes to the status of its own node only",
        },
        *(_unchanged(f"status.{field}", f"k == '{EPC_RESOURCE}'") for field in ("capacity", "allocatable")),
        *(_unchanged(f"metadata.{field}", f"k.startsWith('{_LABELS}')") for field in ("labels", "annotations")),
        {
            "expression": " && ".join(f"object.status.?{field} == oldObject.status.?{field}" for field in rest),
            "message": f"the SGX device plugin changes nothing else of a node's status: not {', '.join(rest)}",
        },
    ]


def _unchanged(path: str, allowed: str) -> Object:
    """Two maps have the same entries, except for keys that `allowed` lets through."""
    new, old = (f"{side}.{path.replace('.', '.?', 1)}.orValue({{}})" for side in ("object", "oldObject"))
    one = f"{new}.all(k, {allowed} || (k in {old} && {old}[k] == {new}[k]))"
    return {
        "expression": f"{one} && {old}.all(k, {allowed} || k in {new})",
        "message": f"the SGX device plugin changes nothing in {path} but what is its own: {EPC_RESOURCE}, {_LABELS}…",
    }
