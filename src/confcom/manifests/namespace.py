"""The add-on's namespace and the priority of its quote helper."""

from __future__ import annotations

from confcom.manifests.objects import ITSELF, NAMESPACE, QUOTE_HELPER, Object, global_object

HELPER_PRIORITY = "confcom-quote-helper"
_POD_SECURITY = "pod-security.kubernetes.io"


def namespace() -> Object:
    """The namespace. The node components mount paths of the host, which only the level `privileged` lets through.

    `audit` stays at `restricted`, so that whatever else runs here is seen.
    """
    found = global_object("v1", "Namespace", NAMESPACE, ITSELF.component)
    found["metadata"]["labels"] |= {f"{_POD_SECURITY}/enforce": "privileged", f"{_POD_SECURITY}/audit": "restricted"}
    return found


def helper_priority() -> Object:
    """Above applications, so that the helper finds its EPC first; but it turns nobody out."""
    return global_object(
        "scheduling.k8s.io/v1",
        "PriorityClass",
        HELPER_PRIORITY,
        QUOTE_HELPER.component,
        value=1_000_000,
        preemptionPolicy="Never",
        globalDefault=False,
        description="The SGX quote helper: scheduled before applications, preempts nobody.",
    )
