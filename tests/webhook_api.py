"""A stand-in for the part of the Kubernetes API that the webhook uses, over real HTTP: one Secret, two configurations
and the nodes. Writes are server-side apply, with the real one's answer to a resourceVersion that is not the latest."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from api_stand_in import ApiStandIn
from confcom.protocols.admission_rules import CONFIGURATION, UrlClient, mutating_webhooks, validating_webhooks

SECRET = "/api/v1/namespaces/confcom-system/secrets/sgx-webhook-tls"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
MUTATING = f"{ADMISSION}/mutatingwebhookconfigurations/{CONFIGURATION}"
VALIDATING = f"{ADMISSION}/validatingwebhookconfigurations/{CONFIGURATION}"


class WebhookApi(ApiStandIn):
    """Use as a context."""

    manager = "confcom-webhook"

    def __init__(self) -> None:
        super().__init__()
        client = UrlClient("https://127.0.0.1:1")
        self.version = 1
        self.conflicts = 0
        self.nodes: dict[str, dict[str, str]] = {"plain": {"cpu": "2"}}
        self.objects: dict[str, dict[str, Any]] = {
            SECRET: {"metadata": {"name": "sgx-webhook-tls", "resourceVersion": "1"}},
            MUTATING: {"metadata": {"name": CONFIGURATION}, "webhooks": mutating_webhooks(client)},
            VALIDATING: {"metadata": {"name": CONFIGURATION}, "webhooks": validating_webhooks(client)},
        }

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        (self._patch if handler.command == "PATCH" else self._get)(handler)

    def set_node(self, name: str, capacity: dict[str, str] | None) -> None:
        """Add, change or (None) delete a node."""
        with self.changed:
            if capacity is None:
                del self.nodes[name]
            else:
                self.nodes[name] = capacity
            self.version += 1
            self.changed.notify_all()

    def bundles(self) -> set[str]:
        """What the entries of both configurations trust."""
        with self.changed:
            found = [entry for path in (MUTATING, VALIDATING) for entry in self.objects[path]["webhooks"]]
            return {entry["clientConfig"].get("caBundle", "") for entry in found}

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        if parts.path == "/api/v1/nodes":
            if "watch" in parse_qs(parts.query):
                self._watch(request)
            else:
                with self.changed:
                    items = [_node(name, capacity) for name, capacity in self.nodes.items()]
                    version = str(self.version)
                _send(request, 200, {"metadata": {"resourceVersion": version}, "items": items})
            return
        with self.changed:
            found = json.loads(json.dumps(self.objects.get(parts.path)))
        _send(request, 200 if found else 404, found or _status(404, "not there"))

    def _watch(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Connection", "close")
        request.end_headers()
        with self.changed:
            known = dict(self.nodes)
            while not self.down:
                while not self.down and self.nodes == known:
                    self.changed.wait()
                for name in known.keys() | self.nodes.keys():
                    if known.get(name) != self.nodes.get(name):
                        kind = "DELETED" if name not in self.nodes else "MODIFIED"
                        event = {"type": kind, "object": _node(name, self.nodes.get(name, {}), self.version)}
                        request.wfile.write(json.dumps(event).encode() + b"\n")
                request.wfile.flush()
                known = dict(self.nodes)

    def _patch(self, request: BaseHTTPRequestHandler) -> None:
        wanted = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        assert request.headers["Content-Type"] == "application/apply-patch+yaml"
        assert parse_qs(urlsplit(request.path).query)["fieldManager"] == [self.manager]
        path = urlsplit(request.path).path
        with self.changed:
            found = self.objects[path]
            version = wanted["metadata"].get("resourceVersion")
            if version not in (None, found["metadata"].get("resourceVersion")):
                self.conflicts += 1
                _send(request, 409, _status(409, "the object has been modified"))
                return
            if "data" in wanted:
                self.version += 1
                found["data"] = wanted["data"]
                found["metadata"]["resourceVersion"] = str(self.version)
            for entry in wanted.get("webhooks", ()):
                (own,) = [one for one in found["webhooks"] if one["name"] == entry["name"]]
                own["clientConfig"] = own["clientConfig"] | entry["clientConfig"]
            answer = json.loads(json.dumps(found))
        _send(request, 200, answer)


def _node(name: str, capacity: dict[str, str], version: int = 1) -> dict[str, Any]:
    metadata = {"name": name, "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": {"capacity": capacity}}


def _status(code: int, message: str) -> dict[str, Any]:
    reason = "Conflict" if code == 409 else "NotFound"
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def _send(request: BaseHTTPRequestHandler, code: int, thing: dict[str, Any]) -> None:
    body = json.dumps(thing).encode()
    request.send_response(code)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
