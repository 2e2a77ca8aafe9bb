"""A client of the Kubernetes API, its failures as ours, and objects of a cluster as plain JSON.

`ClusterObjects` reads, lists, applies and deletes objects: as JSON no field is lost, fields that lightkube does not
know do not fail, and it is much cheaper than lightkube's models. lightkube (extra `kube`) is imported in this package
alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.request import getproxies

import httpx2
import msgspec
from lightkube import AsyncClient, KubeConfig
from lightkube.config.client_adapter import AsyncClient as AsyncConnection
from lightkube.config.client_adapter import ConnectionParams, verify_cluster
from lightkube.config.kubeconfig import DEFAULT_KUBECONFIG, SingleConfig
from lightkube.config.models import NameValue, User
from lightkube.core.exceptions import ApiError, LoadResourceError
from lightkube.core.exceptions import ConfigError as LightkubeConfigError
from lightkube.core.resource import ApiInfo, ResourceDef
from lightkube.generic_resource import GenericGlobalResource, GenericNamespacedResource
from lightkube.resources.core_v1 import Node
from lightkube.types import CascadeType, PatchType

from confcom.errors import ClusterError, ClusterRefused, ConfcomError, ConfigError
from confcom.formats.arguments import parse_http_url
from confcom.formats.yaml_text import read_yaml
from confcom.input_file import read_bounded

WATCH_AGAIN = 1.0
"""Seconds between the beginnings of two watches of a client: a server, or a proxy, may end each one at once."""
CLIENT_LIFETIME = 300.0
"""Seconds until credentials are read again: a service account's token is replaced every hour."""
SERVER_TIMEOUT = 300
"""Seconds after which the API server shall end a watch."""
VANISHED = SERVER_TIMEOUT + 30.0
"""Seconds without a byte of a watch after which its server is gone: nothing tells a client that a machine went away."""
CONNECT = 10.0
"""Seconds for a connection."""
ANSWER = 60.0
"""Seconds for the first byte of an answer: as long as an API server with slow webhooks or a slow store takes."""
ATTEMPTS = 5
"""At a server that answers that it is busy, and when to ask again."""
MAX_WAIT = 10
"""Seconds that a server may have a client wait before the next attempt."""
KNOWN = "KNOWN"
"""What `list_and_watch` yields when the list is complete."""
_NOT_FOUND = 404
_BUSY = 429
_UNREADABLE = (msgspec.MsgspecError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)
"""What lightkube raises for an answer that is no object of the API (a proxy's page), and for a credential plugin."""
_PLUGIN = "client.authentication.k8s.io"
_OTHER_WAY = {
    "proxy-url": "Set HTTPS_PROXY to that URL for this command.",
    "tls-server-name": "Write that name as the host of `server`; or, without HTTPS_PROXY, leave it.",
}
_OTHER_USER = dict.fromkeys(
    ("as", "as-uid", "as-groups", "as-user-extra"), "Choose a context of a user that needs no impersonation."
)
MAX_KUBECONFIG = 4 << 20
"""Bytes."""
_ADVICE = "Name a kubeconfig with --kubeconfig or $KUBECONFIG; a pod needs a service account instead."


def open_client(
    kubeconfig: str | None = None, *, context: str | None = None, field_manager: str = "confcom"
) -> AsyncClient:
    """A client; without `kubeconfig`, in-cluster credentials, else those of $KUBECONFIG or the user's file.

    The token of a service account is read once, here, and expires: long-running callers open a new client now and then.
    """
    try:
        chosen = _read(kubeconfig).get(context_name=context)
        if chosen is not None:
            parse_http_url(chosen.cluster.server, "an API server")
            _adopt_plugin(chosen.user)
        transport = _transport(chosen)
        if chosen is not None:
            _check_known(chosen, transport)
        timeout = httpx2.Timeout(CONNECT, read=ANSWER)
        return AsyncClient(config=chosen, field_manager=field_manager, transport=transport, timeout=timeout)
    except ConfcomError:
        raise
    except (LightkubeConfigError, OSError) as error:
        raise ConfigError(f"no way to the Kubernetes API: {error}", advice=_ADVICE) from error
    except Exception as error:  # lightkube passes on what YAML, msgspec, ssl and a missing name raise
        what = f"there is no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        message = f"no way to the Kubernetes API: the kubeconfig cannot be used: {what}"
        raise ConfigError(message, advice=_ADVICE) from error


def _read(kubeconfig: str | None) -> KubeConfig:
    if kubeconfig is not None:
        return KubeConfig.from_file(kubeconfig)
    with suppress(LightkubeConfigError):
        return KubeConfig.from_service_account()
    listed = [file for file in os.environ.get("KUBECONFIG", "").split(os.pathsep) if file] or [DEFAULT_KUBECONFIG]
    # kubectl merges the files of a list, and passes over those that do not exist.
    found = [file for file in listed if Path(file).is_file()]
    if len(found) > 1:
        raise ConfigError(f"$KUBECONFIG lists {len(found)} files; only one is supported", advice=_ADVICE)
    return KubeConfig.from_file(found[0] if found else ", ".join(listed))


def _adopt_plugin(user: User | None) -> None:
    """Have lightkube, which knows v1beta1, run a credential plugin of version v1: their answers are the same."""
    if user is None or user.exec is None or user.exec.apiVersion != f"{_PLUGIN}/v1":
        return
    info = {"apiVersion": user.exec.apiVersion, "kind": "ExecCredential", "spec": {"interactive": False}}
    user.exec.env = [*(user.exec.env or ()), NameValue("KUBERNETES_EXEC_INFO", json.dumps(info))]
    user.exec.apiVersion = f"{_PLUGIN}/v1beta1"


def _check_known(chosen: SingleConfig, transport: _Transport | None) -> None:
    """Refuse what lightkube passes over: requests would go another way, or be of another user."""
    for kind, name, settings in (
        ("cluster", chosen.context.cluster, _OTHER_WAY),
        ("user", chosen.context.user, _OTHER_USER),
    ):
        written = _entry(chosen, kind, name)
        for setting, advice in settings.items():
            followed = (setting == "proxy-url" and "https" in getproxies()) or (
                setting == "tls-server-name" and transport is not None
            )
            if written.get(setting) and not followed:
                raise ConfigError(
                    f"{chosen.fname}: {kind} {name!r} has {setting}, which this client does not support", advice=advice
                )


def _entry(chosen: SingleConfig, kind: str, name: str | None) -> dict[str, Any]:
    """The settings of a cluster or user as the kubeconfig has them: lightkube keeps those that it knows."""
    if chosen.fname is None:
        return {}
    (document,) = read_yaml(read_bounded(chosen.fname, MAX_KUBECONFIG).decode(), source=str(chosen.fname))
    return next((entry[kind] for entry in document.get(f"{kind}s") or () if entry["name"] == name), {})


async def list_and_watch(
    client: Any,  # noqa: ANN401 - lightkube's signatures know its own models only
    resource: Any,  # noqa: ANN401 - as above
    *,
    chunk: int | None = None,
    **where: Any,  # noqa: ANN401 - as above
) -> AsyncGenerator[tuple[str, Any], None]:
    """Yields the present objects of a kind as ADDED, then `KNOWN`, then each change until the watch ends.

    A change is ADDED, MODIFIED or DELETED. `chunk` objects come per answer; `where` selects by namespace and fields.
    """
    listed = client.list(resource, chunk_size=chunk, **where)
    async for found in listed:
        yield "ADDED", found
    yield KNOWN, None
    seen = client.watch(resource, resource_version=listed.resourceVersion, server_timeout=SERVER_TIMEOUT, **where)
    async with aclosing(seen):
        async for change in seen:
            yield change


async def version_of_server(client: AsyncClient) -> str:
    """The API server's version, such as `v1.36.2`; empty if it does not say."""
    with cluster_errors("cannot read the API server's version"):
        transport: Any = _transport(client.config)  # lightkube's annotation is that of its other client
        parameters = ConnectionParams(transport=transport)
        # lightkube can only request paths of API groups.
        async with AsyncConnection(client.config, parameters) as connection:
            answer = await connection.get("/version")
    if answer.is_error:
        return ""
    try:
        return str(answer.json()["gitVersion"])
    except (ValueError, TypeError, KeyError):
        return ""


class _Transport(httpx2.AsyncHTTPTransport):
    """Begins a watch `WATCH_AGAIN` seconds after the last one: lightkube begins another as soon as one has ended.

    Ends a watch of a server that is gone, and asks a busy one again (429, 503 with Retry-After), as kubectl does. With
    a `server_name`, the server's certificate has to have that name instead of the URL's host.
    """

    _again_at = 0.0

    def __init__(self, context: ssl.SSLContext, server_name: str | None) -> None:
        super().__init__(verify=context)
        self._extensions = {"sni_hostname": server_name} if server_name else {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.extensions |= self._extensions
        if "watch" in request.url.params:
            now = time.monotonic()
            wait, self._again_at = self._again_at - now, max(now, self._again_at) + WATCH_AGAIN
            await asyncio.sleep(max(0.0, wait))
            request.extensions["timeout"] = {**request.extensions["timeout"], "read": VANISHED}
        for _ in range(ATTEMPTS - 1):
            answer = await super().handle_async_request(request)
            if (pause := _pause(answer)) is None:
                return answer
            await answer.aclose()
            await asyncio.sleep(pause)
        return await super().handle_async_request(request)


def _pause(answer: httpx2.Response) -> int | None:
    """Seconds after which a server that is busy wants to be asked again; None if it is not."""
    after = answer.headers.get("retry-after", "")
    if answer.status_code not in (_BUSY, 503) or not (after.isascii() and after.isdigit()):
        return None
    return min(int(after[:9]), MAX_WAIT)


def _transport(config: SingleConfig | None) -> _Transport | None:
    """Connections that verify the API server as kubectl does: chain, name and time, but not the form of its CA.

    From 3.13 on Python refuses CAs without extensions that RFC 5280 requires, and many clusters have such CAs. None if
    a proxy is set in the environment: only lightkube's own transport uses it.
    """
    if config is None or config.user is None or "https" in getproxies():
        return None
    context = verify_cluster(config.cluster, config.user, config.abs_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return _Transport(context, _entry(config, "cluster", config.context.cluster).get("tls-server-name"))


@contextmanager
def cluster_errors(what: str, *, advice: str | None = None) -> Iterator[None]:
    """Turn failures of the API into `ClusterRefused` (the server refused) or `ClusterError` (no usable answer).

    `advice` names the rights that the request takes: it is that of `ClusterRefused` alone.
    """
    try:
        yield
    except ApiError as error:
        status = error.status
        raise answered(f"{what}: {status.message or error}", status.code, advice, status.reason) from error
    except httpx2.HTTPStatusError as error:
        # A proxy, or the API server for an unknown group, answers in plain text.
        code = error.response.status_code
        raise answered(f"{what}: the server answers with HTTP {code}", code, advice) from error
    except LightkubeConfigError as error:  # a credential plugin, or the file of a token
        raise ClusterError(f"{what}: no credentials: {error}") from error
    except httpx2.RequestError as error:
        url = error.request.url
        raise ClusterError(
            f"{what}: {str(error) or type(error).__name__} ({url.scheme}://{url.netloc.decode()})"
        ) from error
    except (httpx2.HTTPError, LoadResourceError) as error:
        raise ClusterError(f"{what}: {str(error) or type(error).__name__}") from error
    except _UNREADABLE as error:
        message = f"{what}: the server or a credential plugin gave no usable answer: {type(error).__name__}: {error}"
        raise ClusterError(message) from error


@contextmanager
def missing_ok() -> Iterator[None]:
    """Go on after the block where the API knows no such object, kind or group. Stands before `cluster_errors`."""
    try:
        yield
    except ClusterRefused as refused:
        if refused.status != _NOT_FOUND:
            raise


def answered(message: str, status: int | None, advice: str | None, reason: str | None = None) -> ClusterError:
    """The error for an answer of this HTTP status: `ClusterRefused` if the server refused."""
    # A busy server has refused nothing.
    if status is not None and 400 <= status < 500 and status != _BUSY:
        return ClusterRefused(message, status=status, reason=reason, advice=advice)
    return ClusterError(message, status=status, reason=reason)


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
