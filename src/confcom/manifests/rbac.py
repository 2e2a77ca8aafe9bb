"""Who may do what at the Kubernetes API. A component that is not listed here may do nothing."""

from __future__ import annotations

from confcom.manifests.objects import NAMESPACE, Object, Workload, global_object, namespaced_object

_API = "rbac.authorization.k8s.io"


def rule(group: str, resources: list[str], verbs: list[str], names: list[str] | None = None) -> Object:
    """One rule of a role."""
    found: Object = {"apiGroups": [group], "resources": resources, "verbs": verbs}
    return found | ({"resourceNames": names} if names else {})


def cluster_role(workload: Workload, rules: list[Object]) -> list[Object]:
    """A role in the whole cluster for a component's account."""
    name = f"confcom:{workload.name}"
    return [
        global_object(f"{_API}/v1", "ClusterRole", name, workload.component, rules=rules),
        global_object(
            f"{_API}/v1",
            "ClusterRoleBinding",
            name,
            workload.component,
            roleRef={"apiGroup": _API, "kind": "ClusterRole", "name": name},
            subjects=[_subject(workload)],
        ),
    ]


def role(workload: Workload, rules: list[Object]) -> list[Object]:
    """A role in the add-on's namespace for a component's account."""
    return [
        namespaced_object(f"{_API}/v1", "Role", workload.name, workload.component, rules=rules),
        namespaced_object(
            f"{_API}/v1",
            "RoleBinding",
            workload.name,
            workload.component,
            roleRef={"apiGroup": _API, "kind": "Role", "name": workload.name},
            subjects=[_subject(workload)],
        ),
    ]


def _subject(workload: Workload) -> Object:
    return {"kind": "ServiceAccount", "name": workload.name, "namespace": NAMESPACE}
