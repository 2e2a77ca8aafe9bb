"""A stand-in for the Kubernetes API's Node objects, over real HTTP: watch by name, and PATCH of nodes/NAME/status.

As the real one it takes JSON merge patches, writes amounts as Quantities, gives every change a resourceVersion, and
lets the caller write the status of its own node only.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from api_stand_in import TOKEN, ApiStandIn


class NodeApi(ApiStandIn):
    """One node named `name`. Use as a context."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.node: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "resourceVersion": "1", "labels": {"kubernetes.io/arch": "amd64"}},
            "spec": {"podCIDR": "10.244.0.0/24"},
            "status": {"capacity": {"cpu": "2"}, "allocatable": {"cpu": "2"}},
        }
        self.patches: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.allowed = True
        self._watches: set[Any] = set()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        answers = {"GET": self._get, "PATCH": self._patch, "DELETE": self._delete}
        answers.get(handler.command, self._write)(handler)

    def __exit__(self, *error: object) -> None:
        self.cut_watches()
        super().__exit__(*error)

    def change(self, patch: dict[str, Any]) -> None:
        """Somebody else changes the node."""
        with self.changed:
            _merge(self.node, patch)
            _quantities(self.node)
            self.node["metadata"]["resourceVersion"] = str(int(self.node["metadata"]["resourceVersion"]) + 1)
            self.changed.notify_all()

    def amount(self, resource: str, part: str = "allocatable") -> str | None:
        with self.changed:
            amount: str | None = self.node["status"][part].get(resource)
            return amount

    def wait(self, condition: Any, timeout: float = 60) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout), self.node

    def cut_watches(self) -> None:
        """Break every watch off, as a restart of the API server does."""
        with self.changed:
            self._watches.clear()
            self.changed.notify_all()

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        query = parse_qs(url.query)
        self.requests.append(f"GET {url.path}")
        if not self._admitted(request):
            return
        if url.path != "/api/v1/nodes" or query.get("fieldSelector") != [f"metadata.name={self.name}"]:
            refuse(request, 403, "nodes is forbidden: only this node may be watched")
            return
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        self._stream(request, int(query.get("resourceVersion", ["0"])[0]))

    def _stream(self, request: BaseHTTPRequestHandler, seen: int) -> None:
        kind, mark = "ADDED" if seen == 0 else "MODIFIED", object()
        with self.changed:
            self._watches.add(mark)
        while True:
            with self.changed:
                while self._version() <= seen and mark in self._watches:
                    self.changed.wait()
                if mark not in self._watches:
                    request.close_connection = True
                    return
                seen = self._version()
                line = json.dumps({"type": kind, "object": self.node}).encode() + b"\n"
            kind = "MODIFIED"
            try:
                request.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            except OSError:
                return

    def _patch(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        self.requests.append(f"PATCH {request.path}")
        if not self._admitted(request):
            return
        if urlsplit(request.path).path != f"/api/v1/nodes/{self.name}/status":
            refuse(request, 403, "forbidden: only the status of this node may be written")
            return
        if request.headers["Content-Type"] != "application/merge-patch+json":
            refuse(request, 415, "unsupported media type")
            return
        self.patches.append(body)
        body.pop("spec", None)  # the status subresource leaves the spec alone
        self.change(body)
        reply(request, 200, self.node)

    def _write(self, request: BaseHTTPRequestHandler) -> None:
        refuse(request, 403, "forbidden: nothing is made or replaced here")

    def _delete(self, request: BaseHTTPRequestHandler) -> None:
        refuse(request, 403, "forbidden: nothing is deleted here")

    def _admitted(self, request: BaseHTTPRequestHandler) -> bool:
        if self.down:
            refuse(request, 503, "the API server is starting")
        elif request.headers.get("Authorization") != f"Bearer {TOKEN}":
            refuse(request, 401, "Unauthorized")
        elif not self.allowed:
            refuse(request, 403, "nodes is forbidden")
        else:
            return True
        return False

    def _version(self) -> int:
        return int(self.node["metadata"]["resourceVersion"])


def _merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    """RFC 7396."""
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, dict):
            _merge(target.setdefault(name, {}), value)
        else:
            target[name] = value


def _quantities(node: dict[str, Any]) -> None:
    """As the API writes them: thousands become `k`."""
    for part in ("capacity", "allocatable"):
        for name, value in node["status"][part].items():
            if value.isdigit() and int(value) and int(value) % 1000 == 0:
                node["status"][part][name] = f"{int(value) // 1000}k"


def refuse(request: BaseHTTPRequestHandler, code: int, message: str) -> None:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    reply(request, code, status)


def reply(request: BaseHTTPRequestHandler, code: int, content: dict[str, Any]) -> None:
    data = json.dumps(content).encode()
    request.send_response(code)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)
