"""The add-on's namespace, and its right to the priorities of system components."""

from __future__ import annotations

from confcom.manifests.objects import CRITICAL, ITSELF, NAMESPACE, Object, global_object, namespaced_object

_POD_SECURITY = "pod-security.kubernetes.io"


def namespace() -> Object:
    """The namespace. The node components mount paths of the host, which only the level `privileged` lets through.

    `audit` stays at `restricted`, so that whatever else runs here is seen.
    """
    found = global_object("v1", "Namespace", NAMESPACE, ITSELF.component)
    found["metadata"]["labels"] |= {f"{_POD_SECURITY}/enforce": "privileged", f"{_POD_SECURITY}/audit": "restricted"}
    return found


def critical_pods() -> Object:
    """Lets pods here have the priorities of system components in clusters that restrict these to some namespaces.

    Such clusters want a quota that names the priorities. In all others it restricts nothing.
    """
    classes = {"operator": "In", "scopeName": "PriorityClass", "values": list(CRITICAL)}
    spec = {"hard": {"pods": "1000000"}, "scopeSelector": {"matchExpressions": [classes]}}
    return namespaced_object("v1", "ResourceQuota", "confcom-critical-pods", ITSELF.component, spec=spec)
