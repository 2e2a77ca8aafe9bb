"""The kinds of objects that are read and written as plain JSON: nothing that they carry is lost on the way."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightkube.core.resource import ApiInfo, ResourceDef
from lightkube.generic_resource import GenericGlobalResource, GenericNamespacedResource

_VERBS = ["delete", "get", "global_list", "list", "patch", "post"]


class Kind(NamedTuple):
    """A kind; `resource` is what lightkube calls it."""

    api_version: str
    name: str
    namespaced: bool
    resource: Any


def _kind(api_version: str, name: str, plural: str, *, namespaced: bool = True) -> Kind:
    group, _, version = api_version.rpartition("/")
    base: Any = GenericNamespacedResource if namespaced else GenericGlobalResource
    info = ApiInfo(resource=ResourceDef(group, version, name), plural=plural, verbs=_VERBS)
    return Kind(api_version, name, namespaced, type(name, (base,), {"_api_info": info}))


_ADMISSION = "admissionregistration.k8s.io/v1"
_RBAC = "rbac.authorization.k8s.io/v1"

# What the add-on may consist of. What lets something through or grants something is deleted before what it is for, so
# the order here is the reverse of that in which objects are pruned.
ADDON_KINDS: tuple[Kind, ...] = (
    _kind("v1", "ConfigMap", "configmaps"),
    _kind("v1", "Secret", "secrets"),
    _kind("v1", "ServiceAccount", "serviceaccounts"),
    _kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    _kind("v1", "ResourceQuota", "resourcequotas"),
    _kind("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", namespaced=False),
    _kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    _kind(_RBAC, "Role", "roles"),
    _kind(_RBAC, "RoleBinding", "rolebindings"),
    _kind(_RBAC, "ClusterRole", "clusterroles", namespaced=False),
    _kind(_RBAC, "ClusterRoleBinding", "clusterrolebindings", namespaced=False),
    _kind(_ADMISSION, "ValidatingAdmissionPolicy", "validatingadmissionpolicies", namespaced=False),
    _kind(_ADMISSION, "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", namespaced=False),
    _kind("resource.k8s.io/v1", "DeviceClass", "deviceclasses", namespaced=False),
    _kind("resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates"),
    _kind("v1", "Service", "services"),
    _kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    _kind("apps/v1", "Deployment", "deployments"),
    _kind("apps/v1", "DaemonSet", "daemonsets"),
    _kind(_ADMISSION, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", namespaced=False),
    _kind(_ADMISSION, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", namespaced=False),
)
NAMESPACE_KIND = _kind("v1", "Namespace", "namespaces", namespaced=False)
NODE_KIND = _kind("v1", "Node", "nodes", namespaced=False)
POD_KIND = _kind("v1", "Pod", "pods")
EVENT_KIND = _kind("v1", "Event", "events")
CLAIM_KIND = _kind("resource.k8s.io/v1", "ResourceClaim", "resourceclaims")
SLICE_KIND = _kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")

_OTHERS = (NAMESPACE_KIND, NODE_KIND, POD_KIND, EVENT_KIND, CLAIM_KIND, SLICE_KIND)
_KINDS = {(kind.api_version, kind.name): kind for kind in (*ADDON_KINDS, *_OTHERS)}


def kind_of(api_version: str, name: str) -> Kind:
    """The kind of that name; one that is not in the table is a mistake of ours."""
    return _KINDS[api_version, name]
