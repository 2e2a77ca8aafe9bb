"""A stand-in for the part of the Kubernetes API that the webhook uses, over real HTTP: the nodes."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from api_stand_in import ApiStandIn


class WebhookApi(ApiStandIn):
    """Use as a context."""

    def __init__(self) -> None:
        super().__init__()
        self.version = 1
        self.nodes: dict[str, dict[str, str]] = {"plain": {"cpu": "2"}}
        self.cordoned: set[str] = set()
        self.watches = 0
        """How many were begun."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        assert (handler.command, parts.path) == ("GET", "/api/v1/nodes")
        if "watch" in parse_qs(parts.query):
            self._watch(handler)
            return
        with self.changed:
            items = [self._node(name) for name in self.nodes]
            version = str(self.version)
        _send(handler, 200, {"metadata": {"resourceVersion": version}, "items": items})

    def set_node(self, name: str, capacity: dict[str, str] | None) -> None:
        """Add, change or (None) delete a node."""
        with self.changed:
            if capacity is None:
                del self.nodes[name]
            else:
                self.nodes[name] = capacity
            self.version += 1
            self.changed.notify_all()

    def cordon(self, *names: str) -> None:
        """Have these nodes cordoned, and no others."""
        with self.changed:
            self.cordoned = set(names)
            self.version += 1
            self.changed.notify_all()

    def _watch(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Connection", "close")
        request.end_headers()
        with self.changed:
            self.watches += 1
            known = self._all()
            while not self.down:
                while not self.down and self._all() == known:
                    self.changed.wait()
                now = self._all()
                for name in known.keys() | now.keys():
                    if known.get(name) != now.get(name):
                        kind = "DELETED" if name not in now else "MODIFIED"
                        event = {"type": kind, "object": now.get(name) or known[name]}
                        request.wfile.write(json.dumps(event).encode() + b"\n")
                request.wfile.flush()
                known = now

    def _all(self) -> dict[str, dict[str, Any]]:
        return {name: self._node(name) for name in self.nodes}

    def _node(self, name: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "resourceVersion": str(self.version)},
            "spec": {"unschedulable": True} if name in self.cordoned else {},
            "status": {"capacity": self.nodes[name]},
        }


def _send(request: BaseHTTPRequestHandler, code: int, thing: dict[str, Any]) -> None:
    body = json.dumps(thing).encode()
    request.send_response(code)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
