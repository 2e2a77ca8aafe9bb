"""custom.metrics.k8s.io/v1beta2 as JSON: requests, label selectors, answers, and pods as far as both need them; the
samples of Prometheus' text format (version 0.0.4) that they are made of. Pure.

Kubernetes' API reference has the layouts (`MetricValueList`, `APIResourceList`, `Status`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

import msgspec

from confcom.errors import FormatError
from confcom.protocols.epc import parse_pod

GROUP = "custom.metrics.k8s.io"
VERSION = "v1beta2"
GROUP_VERSION = f"{GROUP}/{VERSION}"
PATH = f"/apis/{GROUP_VERSION}"
NAMESPACE = "confcom-system"
SERVICE = "confcom-metrics-api"
"""The Service that the API server asks."""

EXPORTER_PORT = 9467
"""Where exporters serve /metrics over TLS."""
EXPORTERS: Mapping[str, str] = {
    "metrics": f"sgx-metrics.{NAMESPACE}.svc",
    "quote-helper": f"sgx-quote-helper.{NAMESPACE}.svc",
}
"""The name in an exporter's certificate, by its component."""

ALL = "*"
RESOURCES: Mapping[str, tuple[str, str]] = {
    "pods": ("v1", "Pod"),
    "deployments.apps": ("apps/v1", "Deployment"),
    "replicasets.apps": ("apps/v1", "ReplicaSet"),
    "statefulsets.apps": ("apps/v1", "StatefulSet"),
    "daemonsets.apps": ("apps/v1", "DaemonSet"),
    "jobs.batch": ("batch/v1", "Job"),
    "namespaces": ("v1", "Namespace"),
}
"""What has metrics, as paths name it: apiVersion and kind."""
_PLACES = {kind: resource for resource, kind in RESOURCES.items()}
_HASH_LABEL = "pod-template-hash"

MAX_QUERY = 8 * 1024
"""Bytes of a query."""
MAX_REQUIREMENTS = 32
"""Parts of a label selector."""
MAX_SHOWN = 80
"""Characters of a client's text in a message."""

_KEY = r"[A-Za-z0-9][-A-Za-z0-9_./]{0,315}"
_VALUE = r"[-A-Za-z0-9_.]{0,63}"
_REQUIREMENT = re.compile(
    rf"\s*(?:!\s*(?P<absent>{_KEY})"
    rf"|(?P<key>{_KEY})(?:\s*(?P<equality>==|=|!=)\s*(?P<value>{_VALUE})"
    rf"|\s+(?P<set>in|notin)\s*\((?P<values>[-A-Za-z0-9_.,\s]*)\)"
    r"|\s*(?P<order>[<>])\s*(?P<bound>-?[0-9]{1,18}))?)\s*"
)


class Requirement(NamedTuple):
    """One part of a label selector; `operator` is =, !=, in, notin, exists, absent, < or >."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()
    bound: int = 0

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels meet it, as Kubernetes decides it."""
        found = labels.get(self.key)
        match self.operator:
            case "=" | "in":
                return found in self.values
            case "!=" | "notin":
                return found not in self.values
            case "exists":
                return found is not None
            case "absent":
                return found is None
        if found is None or re.fullmatch(r"-?[0-9]{1,18}", found) is None:
            return False
        return int(found) < self.bound if self.operator == "<" else int(found) > self.bound


Selector = tuple[Requirement, ...]
"""A label selector: every part has to match."""


def parse_selector(text: str) -> Selector:
    """Read a label selector as the Kubernetes API takes it; empty selects everything."""
    text, found = text.strip(), list[Requirement]()
    place = 0
    while place < len(text) or found:
        if len(found) == MAX_REQUIREMENTS:
            raise _malformed("labelSelector", f"has more than {MAX_REQUIREMENTS} parts")
        match = _REQUIREMENT.match(text, place)
        if match is None or (match.end() < len(text) and text[match.end()] != ","):
            raise _malformed("labelSelector", f"cannot read {text[place : place + MAX_SHOWN]!r}")
        found.append(_requirement(match))
        if match.end() == len(text):
            break
        place = match.end() + 1
    return tuple(found)


def _requirement(match: re.Match[str]) -> Requirement:
    part = match.groupdict()
    if part["absent"]:
        return Requirement(part["absent"], "absent")
    if part["equality"]:
        return Requirement(part["key"], "!=" if part["equality"] == "!=" else "=", frozenset((part["value"],)))
    if part["set"]:
        words = [word.strip() for word in part["values"].split(",")]
        if wrong := next((word for word in words if word.split() not in ([], [word])), None):
            raise _malformed("labelSelector", f"cannot read the value {wrong[:MAX_SHOWN]!r}")
        return Requirement(part["key"], part["set"], frozenset(words))
    if part["order"]:
        return Requirement(part["key"], part["order"], bound=int(part["bound"]))
    return Requirement(part["key"], "exists")


class MetricRequest(NamedTuple):
    """A request for values. `resource` is a key of `RESOURCES`, `name` an object's or `ALL`."""

    namespace: str
    resource: str
    name: str
    metric: str
    selector: Selector = ()


def parse_request(raw_path: bytes, query: bytes) -> MetricRequest | None:
    """Read the path, as it was sent, and the query of a GET; None for a path of another form.

    `FormatError` for a query that cannot be answered as it is meant.
    """
    # Split before decoding: an encoded slash is part of a name. HPA sends the star as %2A.
    words = [unquote(word, errors="replace") for word in raw_path.decode("latin-1").split("/")]
    prefix = PATH.split("/")
    if words[: len(prefix)] != prefix:
        return None
    match words[len(prefix) :]:
        case ["namespaces", namespace, "metrics", metric]:
            found = MetricRequest(namespace, "namespaces", namespace, metric)
        case ["namespaces", namespace, resource, name, metric]:
            found = MetricRequest(namespace, resource, name, metric)
        case _:
            return None
    return found._replace(selector=_selector(query, found))


def _selector(query: bytes, request: MetricRequest) -> Selector:
    if len(query) > MAX_QUERY:
        raise _malformed("query", f"is longer than {MAX_QUERY} bytes")
    try:
        fields = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=16)
    except ValueError as error:
        raise _malformed("query", "has more than 16 parameters") from error
    given = dict(fields)
    if len(given) < len(fields):
        raise _malformed("query", "gives a parameter twice")
    if given.get("metricLabelSelector"):
        raise _malformed("metricLabelSelector", "selects by labels, and the metrics here have none: leave it out")
    selector = parse_selector(given.get("labelSelector", ""))
    if selector and (request.resource != "pods" or request.name != ALL):
        raise _malformed("labelSelector", "selects pods, and the path names an object: ask for pods/*")
    return selector


def _malformed(field: str, found: str) -> FormatError:
    return FormatError(found, structure="request for custom metrics", field=field)


class _Owner(msgspec.Struct):
    apiVersion: str  # noqa: N815 - as the API spells it
    kind: str
    name: str
    controller: bool | None = None


class _Metadata(msgspec.Struct, rename="camel"):
    owner_references: list[_Owner] | None = None
    deletion_timestamp: str | None = None


class _Condition(msgspec.Struct):
    type: str
    status: str
    reason: str = ""


class _Status(msgspec.Struct):
    phase: str = ""
    podIP: str = ""  # noqa: N815 - as the API spells it
    conditions: list[_Condition] | None = None


class _Pod(msgspec.Struct):
    metadata: _Metadata
    status: _Status | None = None


@dataclass(frozen=True, slots=True)
class ScaledPod:
    """A pod. `owners` are the objects above it as (resource, name); `requests` says whether it requests EPC.

    `claims` says whether it has a resource claim of any driver. `runs` is false while the pod is being deleted, and
    when its node is lost.
    """

    uid: str
    namespace: str
    name: str
    node: str
    address: str
    labels: Mapping[str, str]
    owners: frozenset[tuple[str, str]]
    requests: bool
    claims: bool
    runs: bool
    finished: bool


def parse_scaled_pod(document: Any) -> ScaledPod:  # noqa: ANN401 - JSON
    """A Pod object as the API serves it; `FormatError` says what is not as it should be."""
    pod = parse_pod(document)
    try:
        form = msgspec.convert(document, _Pod)
    except msgspec.ValidationError as error:
        raise FormatError(str(error), structure="Pod", field="") from error
    status = form.status or _Status()
    return ScaledPod(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        node=pod.node,
        address=status.podIP,
        labels=pod.labels,
        owners=frozenset(_owners(form.metadata.owner_references or (), pod.labels)),
        requests=any(one.requested is not None for one in pod.containers),
        claims=any(one.claims for one in pod.containers),
        runs=status.phase == "Running" and form.metadata.deletion_timestamp is None and not _lost(status),
        finished=pod.finished,
    )


def _lost(status: _Status) -> bool:
    """Whether the pod's node is lost: its controller makes pods unready, and gives no reason as the kubelet does."""
    return any((one.type, one.status, one.reason) == ("Ready", "False", "") for one in status.conditions or ())


def _owners(references: Iterable[_Owner], labels: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    for owner in references:
        resource = _PLACES.get((owner.apiVersion, owner.kind))
        if resource is None or not owner.controller:
            continue
        yield resource, owner.name
        # The Deployment is the owner's owner. Its controller calls a ReplicaSet DEPLOYMENT-HASH, with HASH in a label.
        end = f"-{labels.get(_HASH_LABEL, '')}"
        if resource == "replicasets.apps" and len(end) > 1 and owner.name.endswith(end):
            yield "deployments.apps", owner.name.removesuffix(end)


class FrontProxy(NamedTuple):
    """How to know the API server's front proxy: the CA of its client certificate (PEM), and common names; none: any."""

    authority: bytes
    names: frozenset[str]

    def accepts(self, name: str | None) -> bool:
        """Whether a verified certificate with that common name is the front proxy's."""
        return name is not None and (not self.names or name in self.names)


_ALLOWED_NAMES = msgspec.json.Decoder(list[str])


def parse_front_proxy(data: Mapping[str, Any]) -> FrontProxy:
    """The data of ConfigMap kube-system/extension-apiserver-authentication; `FormatError` without aggregation."""
    authority = data.get("requestheader-client-ca-file")
    if not isinstance(authority, str) or not authority.strip():
        raise FormatError(
            "is not there: the API server runs without --requestheader-client-ca-file",
            structure="extension-apiserver-authentication",
            field="requestheader-client-ca-file",
        )
    try:
        names = _ALLOWED_NAMES.decode(data.get("requestheader-allowed-names") or "[]")
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError) as error:
        raise FormatError(
            str(error), structure="extension-apiserver-authentication", field="requestheader-allowed-names"
        ) from error
    return FrontProxy(authority.encode(), frozenset(names))


class Value(NamedTuple):
    """A metric's value of one object, as of `timestamp` (RFC 3339); `window` in seconds for a rate."""

    name: str
    value: float
    timestamp: str
    window: int | None = None


def quantity(value: float) -> str:
    """A Quantity: rounded up to thousandths, as HPA does."""
    # Rounded first: 0.1 * 1000 may be a little over 100.
    thousandths = math.ceil(round(value * 1000, 3))
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"


def value_list(request: MetricRequest, values: Iterable[Value]) -> bytes:
    """A `MetricValueList`."""
    api_version, kind = RESOURCES[request.resource]
    place = {} if request.resource == "namespaces" else {"namespace": request.namespace}
    metric = {"name": request.metric, "selector": None}
    items = [
        {
            "describedObject": {"kind": kind, **place, "name": one.name, "apiVersion": api_version},
            "metric": metric,
            "timestamp": one.timestamp,
            **({} if one.window is None else {"windowSeconds": one.window}),
            "value": quantity(one.value),
        }
        for one in values
    ]
    return msgspec.json.encode({"kind": "MetricValueList", "apiVersion": GROUP_VERSION, "metadata": {}, "items": items})


def resource_list(metrics: Iterable[str]) -> bytes:
    """The discovery document of the version: an `APIResourceList`."""
    resources = [
        {
            "name": f"{resource}/{metric}",
            "singularName": "",
            "namespaced": resource != "namespaces",
            "kind": "MetricValueList",
            "verbs": ["get"],
        }
        for resource in RESOURCES
        for metric in metrics
    ]
    return msgspec.json.encode(
        {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP_VERSION, "resources": resources}
    )


OPENAPI: Mapping[str, bytes] = {
    "/openapi/v2": msgspec.json.encode(
        {"swagger": "2.0", "info": {"title": "confcom", "version": VERSION}, "paths": {}}
    ),
    "/openapi/v3": b'{"paths":{}}',
}
"""Empty descriptions: without them the API server logs a failure and asks again and again."""

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    404: "NotFound",
    405: "MethodNotAllowed",
    500: "InternalError",
    503: "ServiceUnavailable",
}


def failure(status: int, message: str) -> bytes:
    """A `Status` of a failure; `status` is one of HTTP."""
    return msgspec.json.encode(
        {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": _REASONS[status],
            "code": status,
        }
    )


MAX_PAGE = 4 << 20
"""Bytes of a page of metrics that are looked at."""
MAX_LINE = 16 << 10
"""Characters of a sample; those that are read have less than 1,000. Reading labels takes 170 times their size."""

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]{0,255})(?:\{(.*)\})? +([-+.0-9A-Za-z]{1,40})(?: +-?[0-9]{1,20})?")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]{0,255})="((?:[^"\\]|\\.)*)"\s*(,|$)')
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse_samples(page: str, names: Collection[str]) -> tuple[Sample, ...]:
    """The samples of the metrics that are named, in order; what else is on the page is passed over.

    `FormatError` for a line of one of them that cannot be read, and for a page that is too long.
    """
    if len(page) > MAX_PAGE:
        raise FormatError(f"is over {MAX_PAGE} bytes", structure="metrics", field="")
    found = []
    for line in page.split("\n"):
        name = re.split(r"[{ ]", line, maxsplit=1)[0]
        if name in names:
            found.append(_sample(line))
    return tuple(found)


def _sample(line: str) -> Sample:
    match = _SAMPLE.fullmatch(line.rstrip("\r ")) if len(line) <= MAX_LINE else None
    if match is None:
        raise FormatError(f"cannot read {line[:80]!r}", structure="metrics", field="")
    name, labels, value = match.groups()
    try:
        return Sample(name, _labels(labels or ""), float(value))
    except ValueError:
        raise FormatError(f"{value!r} is no number", structure="metrics", field=name) from None


def _labels(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    place = 0
    while place < len(text):
        match = _LABEL.match(text, place)
        if match is None:
            raise FormatError(f"cannot read the labels {text[place : place + 80]!r}", structure="metrics", field="")
        found[match[1]] = _ESCAPED.sub(lambda escape: "\n" if escape[1] == "n" else escape[1], match[2])
        place = match.end()
    return found
