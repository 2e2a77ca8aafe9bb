"""The part of the Kubernetes API that the exporter of EPC use and `confcom top` speak, on a real socket.

It refuses what the real one refuses: a watch of another node's pods, an event that lacks something or changes what may
not be changed.
"""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from api_stand_in import ApiStandIn
from node_api import refuse, reply

CANONICAL = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
_EVENTS = re.compile(r"/apis/events\.k8s\.io/v1/namespaces/([^/]+)/events(?:/([^/]+))?")
_PROXY = re.compile(r"/api/v1/namespaces/([^/]+)/pods/([^/]+)/proxy/metrics")
_POD = re.compile(r"/api/v1/namespaces/([^/]+)/pods/([^/]+)")
_POD_EVENTS = re.compile(r"/api/v1/namespaces/([^/]+)/events")
_CLAIM = re.compile(r"/apis/resource\.k8s\.io/v1/namespaces/([^/]+)/resourceclaims/([^/]+)")
_CONFIG_MAP = re.compile(r"/api/v1/namespaces/([^/]+)/configmaps/([^/]+)")
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")


def make_pod(
    name: str, *, namespace: str = "default", node: str = "n1", uid: str = "", **details: Any
) -> dict[str, Any]:
    """A running pod; `mib` is what its one container `app` requests, `container` the container's id."""
    mib, container = details.get("mib"), details.get("container", "")
    resources = {} if mib is None else {"limits": {CANONICAL: str(mib)}, "requests": {CANONICAL: str(mib)}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid or f"uid-{name}",
            "resourceVersion": "1",
            "labels": details.get("labels", {}),
        },
        "spec": {"nodeName": node, "containers": [{"name": "app", "resources": resources}]},
        "status": {
            "phase": details.get("phase", "Running"),
            "containerStatuses": [{"name": "app", "containerID": f"containerd://{container}" if container else ""}],
        },
    }


def page(gauges: dict[str, list[tuple[dict[str, str], float]]]) -> bytes:
    """A page of metrics as the daemons write theirs."""
    registry = CollectorRegistry()
    for name, samples in gauges.items():
        kind = Counter if name.endswith("_total") else Gauge
        family = kind(name.removesuffix("_total"), "Help.", sorted(samples[0][0]), registry=registry)
        for labels, value in samples:
            child = family.labels(**labels)
            child.inc(value)
    return generate_latest(registry)


def enclave(peer: str, build: str, **words: str) -> dict[str, str]:
    """The labels of an enclave."""
    return {
        "peer": peer, "mr_enclave": build, "mr_signer": words.get("signer", "cd" * 32),
        "isv_prod_id": words.get("product", "1"), "isv_svn": words.get("svn", "2"),
        "debug": words.get("debug", "false"), "signer_expected": words.get("expected", ""),
    }  # fmt: skip


def component(name: str) -> dict[str, str]:
    """The labels of a component's pods."""
    return {"app.kubernetes.io/part-of": "confcom", "app.kubernetes.io/component": name}


class EpcApi(ApiStandIn):
    """Nodes, pods, events and the metrics pages of pods. Use as a context."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, str] = {"n1": "168"}
        self.pods: dict[str, dict[str, Any]] = {}
        self.node_more: dict[str, str] = {}
        """Further resources of every node."""
        self.claims: dict[tuple[str, str], dict[str, Any]] = {}
        self.config_maps: dict[tuple[str, str], dict[str, Any]] = {}
        self.events: dict[tuple[str, str], dict[str, Any]] = {}
        self.pages: dict[str, bytes] = {}
        self.objects: dict[str, dict[str, Any]] = {}
        """Further objects, by their path."""
        self.pod_events: list[dict[str, Any]] = []
        """Events as the core API lists them."""
        self.forbidden: set[str] = set()
        self.requests: list[str] = []
        self._version = 1
        self._log: list[tuple[int, str, dict[str, Any]]] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self._serve(handler, handler.command)

    def put(self, pod: dict[str, Any]) -> None:
        """Create or change a pod."""
        self._change("MODIFIED" if pod["metadata"]["name"] in self.pods else "ADDED", pod)

    def remove(self, name: str) -> None:
        self._change("DELETED", self.pods[name])

    def _change(self, kind: str, pod: dict[str, Any]) -> None:
        with self.changed:
            self._version += 1
            pod["metadata"]["resourceVersion"] = str(self._version)
            if kind == "DELETED":
                del self.pods[pod["metadata"]["name"]]
            else:
                self.pods[pod["metadata"]["name"]] = pod
            self._log.append((self._version, kind, json.loads(json.dumps(pod))))
            self.changed.notify_all()

    def _serve(self, request: BaseHTTPRequestHandler, method: str) -> None:
        url = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.requests.append(f"{method} {url.path}")
        length = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(length)) if length else {}
        if self.down:
            refuse(request, 503, "the API server is starting")
        elif any(part in url.path for part in self.forbidden):
            refuse(request, 403, f"{url.path} is forbidden")
        elif match := _EVENTS.fullmatch(url.path):
            self._event(request, method, match[1], match[2], body)
        elif match := _PROXY.fullmatch(url.path):
            self._page(request, match[2])
        elif match := _CONFIG_MAP.fullmatch(url.path):
            self._found(request, self.config_maps.get((match[1], match[2])))
        elif match := _CLAIM.fullmatch(url.path):
            self._found(request, self.claims.get((match[1], match[2])))
        elif url.path == "/api/v1/nodes":
            reply(
                request, 200, {"kind": "NodeList", "metadata": {}, "items": [self._node(name) for name in self.nodes]}
            )
        elif url.path.startswith("/api/v1/nodes/"):
            name = url.path.rpartition("/")[2]
            self._found(request, self._node(name) if name in self.nodes else None)
        elif url.path == "/api/v1/pods" or url.path.endswith("/pods"):
            self._pods(request, url.path, query)
        else:
            self._one(request, url.path, query)

    def _one(self, request: BaseHTTPRequestHandler, path: str, query: dict[str, str]) -> None:
        """A pod, its events, or one of the further objects."""
        if match := _POD.fullmatch(path):
            pod = self.pods.get(match[2])
            self._found(request, pod if pod and pod["metadata"]["namespace"] == match[1] else None)
        elif match := _POD_EVENTS.fullmatch(path):
            self._pod_events(request, match[1], query)
        else:
            self._found(request, self.objects.get(path))

    def _node(self, name: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name},
            "status": {
                "allocatable": {"cpu": "2"}
                | self.node_more
                | ({CANONICAL: self.nodes[name]} if self.nodes[name] else {})
            },
        }

    def _pod_events(self, request: BaseHTTPRequestHandler, namespace: str, query: dict[str, str]) -> None:
        chosen = dict(part.split("=") for part in query["fieldSelector"].split(","))

        def wanted(about: dict[str, Any]) -> bool:
            return about["namespace"] == namespace and all(
                about[name.removeprefix("involvedObject.")] == value for name, value in chosen.items()
            )

        items = [event for event in self.pod_events if wanted(event["involvedObject"])]
        start, end = int(query.get("continue", 0)), int(query.get("continue", 0)) + int(query.get("limit", 500))
        more = {"continue": str(end)} if end < len(items) else {}
        reply(
            request, 200, {"kind": "EventList", "metadata": {"resourceVersion": "1"} | more, "items": items[start:end]}
        )

    def _pods(self, request: BaseHTTPRequestHandler, path: str, query: dict[str, str]) -> None:
        node = query.get("fieldSelector", "").partition("spec.nodeName=")[2]
        namespace = path.removeprefix("/api/v1/namespaces/").partition("/")[0] if path != "/api/v1/pods" else None

        def wanted(pod: dict[str, Any]) -> bool:
            return (not node or pod["spec"]["nodeName"] == node) and namespace in (None, pod["metadata"]["namespace"])

        if query.get("watch") == "true":
            self._watch(request, wanted, int(query["resourceVersion"]))
            return
        with self.changed:
            items = [pod for pod in self.pods.values() if wanted(pod)]
            answer = {"kind": "PodList", "metadata": {"resourceVersion": str(self._version)}, "items": items}
            data = json.loads(json.dumps(answer))
        reply(request, 200, data)

    def _watch(self, request: BaseHTTPRequestHandler, wanted: Any, seen: int) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        while True:
            with self.changed:
                while not self.down and self._version <= seen:
                    self.changed.wait()
                if self.down:
                    request.close_connection = True
                    return
                news = [(kind, pod) for version, kind, pod in self._log if version > seen and wanted(pod)]
                seen = self._version
            for kind, pod in news:
                line = json.dumps({"type": kind, "object": pod}).encode() + b"\n"
                try:
                    request.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                except OSError:
                    return

    def _event(
        self, request: BaseHTTPRequestHandler, method: str, namespace: str, name: str | None, body: dict[str, Any]
    ) -> None:
        if method == "GET":
            self._found(request, self.events.get((namespace, name or "")))
            return
        if method == "PATCH":
            present = self.events[namespace, name or ""]
            if set(body) != {"series"} or body["series"]["count"] < 2:
                refuse(request, 422, f"only the series of an event may change: {body}")
            elif not _MICRO_TIME.fullmatch(body["series"]["lastObservedTime"]):
                refuse(request, 400, "lastObservedTime has no six digits of a second")
            else:
                present["series"] = body["series"]
                reply(request, 200, present)
            return
        key = (namespace, body["metadata"]["name"])
        needed = ("type", "reason", "action", "reportingController", "reportingInstance", "note", "regarding")
        missing = [field for field in needed if not body.get(field)]
        if missing or not _MICRO_TIME.fullmatch(body["eventTime"]) or len(body["note"].encode()) > 1024:
            refuse(request, 422, f"Event is invalid: {missing} {body.get('eventTime')}")
        elif body["regarding"]["namespace"] != namespace:
            refuse(request, 422, "Event is invalid: another namespace")
        elif key in self.events:
            refuse(request, 409, f'events "{key[1]}" already exists')
        else:
            with self.changed:
                self.events[key] = body
                self.changed.notify_all()
            reply(request, 201, body)

    def _page(self, request: BaseHTTPRequestHandler, name: str) -> None:
        page = self.pages.get(name)
        if page is None:
            refuse(request, 503, f"error trying to reach service: no answer from {name}")
            return
        request.send_response(200)
        request.send_header("Content-Type", "text/plain")
        request.send_header("Content-Length", str(len(page)))
        request.end_headers()
        request.wfile.write(page)

    def _found(self, request: BaseHTTPRequestHandler, document: dict[str, Any] | None) -> None:
        if document is None:
            refuse(request, 404, "not found")
        else:
            reply(request, 200, document)
