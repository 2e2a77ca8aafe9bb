"""Reads, lists, applies and deletes objects of a cluster as plain JSON.

So no field is lost, fields that lightkube does not know do not fail, and it is much cheaper than lightkube's models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from lightkube import AsyncClient
from lightkube.core.exceptions import ApiError
from lightkube.core.resource import ApiInfo, ResourceDef
from lightkube.generic_resource import GenericGlobalResource, GenericNamespacedResource
from lightkube.resources.core_v1 import Node
from lightkube.types import CascadeType, PatchType

from confcom.cluster.client import cluster_errors, missing_ok, open_client, version_of_server

_VERBS = ["delete", "get", "global_list", "global_watch", "list", "patch", "post", "put", "watch"]


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

JOB_KIND = _kind("batch/v1", "Job", "jobs")
API_SERVICE_KIND = _kind("apiregistration.k8s.io/v1", "APIService", "apiservices", namespaced=False)
MONITORING_KINDS = (
    _kind("monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors"),
    _kind("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules"),
)
"""Those of the Prometheus operator, which a cluster may not have."""
# Kinds of the add-on's objects. They are pruned in the reverse order: what sends requests first, then workloads, then
# rights.
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
    *MONITORING_KINDS,
    _kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    JOB_KIND,
    _kind("apps/v1", "Deployment", "deployments"),
    _kind("apps/v1", "DaemonSet", "daemonsets"),
    _kind(_ADMISSION, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", namespaced=False),
    _kind(_ADMISSION, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", namespaced=False),
    API_SERVICE_KIND,
)
NAMESPACE_KIND = _kind("v1", "Namespace", "namespaces", namespaced=False)
NODE_KIND = _kind("v1", "Node", "nodes", namespaced=False)
POD_KIND = _kind("v1", "Pod", "pods")
EVENT_KIND = _kind("v1", "Event", "events")
CSR_KIND = _kind("certificates.k8s.io/v1", "CertificateSigningRequest", "certificatesigningrequests", namespaced=False)
CLAIM_KIND = _kind("resource.k8s.io/v1", "ResourceClaim", "resourceclaims")
SLICE_KIND = _kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
RESOURCE_SLICE_KIND = _kind("resource.k8s.io/v1", "ResourceSlice", "resourceslices", namespaced=False)
OWNER_KINDS = (
    _kind("apps/v1", "ReplicaSet", "replicasets"),
    _kind("apps/v1", "StatefulSet", "statefulsets"),
    JOB_KIND,
    _kind("v1", "ReplicationController", "replicationcontrollers"),
)
"""With DaemonSet, the kinds that make pods of a template."""

_OTHERS = (NAMESPACE_KIND, NODE_KIND, POD_KIND, EVENT_KIND, CSR_KIND, CLAIM_KIND, SLICE_KIND, *OWNER_KINDS)
_KINDS = {(kind.api_version, kind.name): kind for kind in (*ADDON_KINDS, *_OTHERS)}


def kind_of(api_version: str, name: str) -> Kind:
    """The kind of that name; `KeyError` if it is not in the table."""
    return _KINDS[api_version, name]


Object = dict[str, Any]

Labels = Mapping[str, str | tuple[str, ...]]
"""A selection by labels: each has its value, or one of its values."""

CHUNK = 500
"""Objects per answer, as of kubectl: all pods of a large cluster at once would be a gigabyte."""
MAX_LOG_LINES = 20
"""Lines read from a container's log."""
MAX_EVENTS = 1000
"""Events read about one object; every user who may create events can make any number."""


class Ref(NamedTuple):
    """Identifies an object; `namespace` is empty for cluster-wide ones."""

    api_version: str
    kind: str
    namespace: str
    name: str

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """The reference to this object."""
        metadata = found["metadata"]
        return cls(found["apiVersion"], found["kind"], metadata.get("namespace", ""), metadata["name"])

    def __str__(self) -> str:
        return f"{self.kind} {f'{self.namespace}/' if self.namespace else ''}{self.name}"


class ClusterObjects:
    """One cluster. Failures are `ClusterError`, refusals of the API server `ClusterRefused`."""

    def __init__(self, client: AsyncClient, manager: str) -> None:
        # lightkube's signatures know only its own models; the kinds here are plain JSON.
        self._client: Any = client
        self._manager = manager

    @classmethod
    def open(cls, kubeconfig: str | None, context: str | None, manager: str) -> Self:
        """The cluster of a kubeconfig; `manager` is the field manager of all writes."""
        return cls(open_client(kubeconfig, context=context, field_manager=manager), manager)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self._client.close()

    async def version(self) -> str:
        """What the API server calls itself, such as `v1.36.2`; empty where it does not say."""
        return await version_of_server(self._client)

    @property
    def namespace(self) -> str:
        """The namespace of the kubeconfig's context."""
        return str(self._client.namespace)

    async def get(self, ref: Ref) -> Object | None:
        """An object; None if it, or its kind, does not exist."""
        kind = kind_of(ref.api_version, ref.kind)
        with missing_ok(), cluster_errors(f"cannot read {ref}"):
            return _plain(kind, await self._client.get(kind.resource, ref.name, **_place(ref)))
        return None

    async def knows(self, kind: Kind, namespace: str) -> bool:
        """Whether the cluster has a kind of namespaced objects."""
        with missing_ok(), cluster_errors(f"cannot list {kind.name} objects"):
            async for _ in self._client.list(kind.resource, namespace=namespace, chunk_size=1):
                break
            return True
        return False

    async def objects(
        self,
        kind: Kind,
        *,
        namespace: str | None = None,
        labels: Labels | None = None,
        most: int | None = None,
        **fields: str,
    ) -> list[Object]:
        """Objects of a kind, in one namespace or in all; none if the cluster does not know the kind.

        `most` is how many are read at most; `fields` are field selectors, with `_` for the dot.
        """
        where = {"namespace": namespace or "*"} if kind.namespaced else {}
        chosen = {name.replace("_", "."): value for name, value in fields.items()}
        with missing_ok(), cluster_errors(f"cannot list {kind.name} objects"):
            listed = self._client.list(
                kind.resource,
                labels=dict(labels or {}) or None,
                fields=chosen or None,
                chunk_size=most or CHUNK,
                **where,
            )
            found: list[Object] = []
            async for one in listed:
                found.append(_plain(kind, one))
                if len(found) == most:
                    break
            return found
        return []

    async def addon_objects(self, namespace: str, labels: Labels) -> dict[Ref, Object]:
        """Objects with these labels, in the namespace and cluster-wide, in the order of `ADDON_KINDS`."""
        found: dict[Ref, Object] = {}
        for kind in ADDON_KINDS:
            found |= {Ref.of(one): one for one in await self.objects(kind, namespace=namespace, labels=labels)}
        return found

    async def apply(self, wanted: Object, *, dry_run: bool = False, manager: str | None = None) -> Object:
        """Server-side apply: sets the fields of `manager` (else ours) and keeps those of others. Gives the result."""
        ref = Ref.of(wanted)
        kind = kind_of(ref.api_version, ref.kind)
        with cluster_errors(f"cannot apply {ref}"):
            made = await self._client.patch(
                kind.resource,
                ref.name,
                kind.resource(wanted),
                patch_type=PatchType.APPLY,
                field_manager=manager or self._manager,
                force=True,
                dry_run=dry_run,
                **_place(ref),
            )
        return _plain(kind, made)

    async def create(self, wanted: Object) -> None:
        """Create an object; `ClusterRefused` with status 409 if it exists."""
        ref = Ref.of(wanted)
        kind = kind_of(ref.api_version, ref.kind)
        with cluster_errors(f"cannot create {ref}"):
            await self._client.create(kind.resource(wanted), field_manager=self._manager, **_place(ref))

    async def delete(self, ref: Ref) -> bool:
        """Delete an object after its dependents; False if there was none."""
        kind = kind_of(ref.api_version, ref.kind)
        with missing_ok(), cluster_errors(f"cannot delete {ref}"):
            await self._client.delete(kind.resource, ref.name, cascade=CascadeType.FOREGROUND, **_place(ref))
            return True
        return False

    async def events_of(self, ref: Ref) -> list[Object]:
        """Events about an object of a namespace, latest last."""
        found = await self.objects(
            EVENT_KIND,
            namespace=ref.namespace,
            most=MAX_EVENTS,
            involvedObject_kind=ref.kind,
            involvedObject_name=ref.name,
        )
        return sorted(found, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))

    async def last_log_lines(self, namespace: str, pod: str, container: str) -> list[str]:
        """The last lines of a container's log; none if they cannot be read."""
        try:
            found = self._client.log(pod, namespace=namespace, container=container, tail_lines=MAX_LOG_LINES)
            return [line async for line in found]
        except ApiError:
            return []

    async def patch_node(self, name: str, *, marks: Mapping[str, None], resources: Mapping[str, None]) -> None:
        """Delete labels and annotations (`marks`) and extended resources of a node, by patching its status alone."""
        patch = {
            "metadata": {"labels": dict(marks), "annotations": dict(marks)},
            "status": {"capacity": dict(resources), "allocatable": dict(resources)},
        }
        with cluster_errors(f"cannot clean node {name}"):
            await self._client.patch(Node.Status, name, patch, patch_type=PatchType.MERGE)


def _place(ref: Ref) -> dict[str, str]:
    return {"namespace": ref.namespace} if ref.namespace else {}


def _plain(kind: Kind, found: Any) -> Object:  # noqa: ANN401 - lightkube's generic objects are dicts
    # Items of a list lack both.
    return {"apiVersion": kind.api_version, "kind": kind.name, **dict(found)}
