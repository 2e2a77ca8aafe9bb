"""The stand-in for the Kubernetes API with DRA's objects too: ResourceSlices of one node, ResourceClaims, the Node.

As the real one it gives every write a resourceVersion, refuses a replacement of what has changed meanwhile, creates
nothing twice, and drops the fields of consumable capacity when it does not know them (`sharing` False).
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from node_api import NodeApi, refuse, reply

SLICES = "/apis/resource.k8s.io/v1/resourceslices"
CLAIMS = "/apis/resource.k8s.io/v1/namespaces/"
NODE_UID = "0f0f0f0f-1111-2222-3333-444444444444"


class SliceApi(NodeApi):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.node["metadata"]["uid"] = NODE_UID
        self.slices: dict[str, dict[str, Any]] = {}
        self.claims: dict[tuple[str, str], dict[str, Any]] = {}
        self.sharing = True
        self._version_of_slices = 10
        self._events: list[tuple[int, str, dict[str, Any]]] = []

    def put_claim(self, claim: dict[str, Any]) -> None:
        with self.changed:
            self.claims[claim["metadata"]["namespace"], claim["metadata"]["name"]] = claim

    def wipe_slices(self) -> None:
        """As a kubelet does when it starts, or an administrator by mistake."""
        with self.changed:
            for name in list(self.slices):
                self._happen("DELETED", self.slices.pop(name))

    def put_slice(self, found: dict[str, Any]) -> None:
        """Somebody else makes or changes one."""
        with self.changed:
            name = found["metadata"]["name"]
            self._happen("MODIFIED" if name in self.slices else "ADDED", found)
            self.slices[name] = found

    def devices(self) -> list[str]:
        with self.changed:
            return [device["name"] for one in self.slices.values() for device in one["spec"].get("devices", [])]

    def _happen(self, kind: str, found: dict[str, Any]) -> None:
        self._version_of_slices += 1
        found["metadata"]["resourceVersion"] = str(self._version_of_slices)
        self._events.append((self._version_of_slices, kind, json.loads(json.dumps(found))))
        self.changed.notify_all()

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        if path == SLICES:
            self._list_or_watch(request)
        elif path.startswith(CLAIMS):
            namespace, _, name = path.removeprefix(CLAIMS).partition("/resourceclaims/")
            self._one(request, self.claims.get((namespace, name)))
        elif path == f"/api/v1/nodes/{self.name}":
            self._one(request, self.node)
        else:
            super()._get(request)

    def _one(self, request: BaseHTTPRequestHandler, found: dict[str, Any] | None) -> None:
        self.requests.append(f"GET {urlsplit(request.path).path}")
        if not self._admitted(request):
            return
        if found is None:
            refuse(request, 404, f"{request.path.rsplit('/', 1)[1]} not found")
        else:
            reply(request, 200, found)

    def _list_or_watch(self, request: BaseHTTPRequestHandler) -> None:
        query = parse_qs(urlsplit(request.path).query)
        self.requests.append(f"GET {SLICES}")
        if not self._admitted(request):
            return
        wanted = set(query.get("fieldSelector", [""])[0].split(","))
        if wanted != {f"spec.nodeName={self.name}", "spec.driver=sgx.confcom.dev"}:
            refuse(request, 403, "only slices of this node and driver may be listed")
        elif "watch" in query:
            self._watch_slices(request, int(query["resourceVersion"][0]))
        else:
            with self.changed:
                metadata = {"resourceVersion": str(self._version_of_slices)}
                items = list(self.slices.values())
                content = {"kind": "ResourceSliceList", "apiVersion": "resource.k8s.io/v1", "metadata": metadata}
                reply(request, 200, content | {"items": items})

    def _watch_slices(self, request: BaseHTTPRequestHandler, seen: int) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        mark = object()
        with self.changed:
            self._watches.add(mark)
        while True:
            with self.changed:
                while not (news := [event for event in self._events if event[0] > seen]) and mark in self._watches:
                    self.changed.wait()
                if mark not in self._watches:
                    request.close_connection = True
                    return
            for version, kind, found in news:
                seen = version
                line = json.dumps({"type": kind, "object": found}).encode() + b"\n"
                try:
                    request.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                except OSError:
                    return

    def _write(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        path = urlsplit(request.path).path
        self.requests.append(f"{request.command} {path}")
        if not self._admitted(request):
            return
        with self.changed:
            name = body["metadata"]["name"]
            present = self.slices.get(name)
            if body["spec"]["nodeName"] != self.name:
                refuse(request, 403, "only slices of this node may be written")
            elif request.command == "POST" and present is not None:
                refuse(request, 409, f"{name} already exists")
            elif request.command == "PUT" and (
                present is None or present["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion")
            ):
                refuse(request, 409, f"{name} has been modified")
            else:
                self._store(body)
                reply(request, 201 if present is None else 200, body)

    def _store(self, body: dict[str, Any]) -> None:
        if not self.sharing:
            for device in body["spec"]["devices"]:
                device.pop("allowMultipleAllocations")
                for capacity in device["capacity"].values():
                    capacity.pop("requestPolicy", None)
        known = body["metadata"]["name"] in self.slices
        self.slices[body["metadata"]["name"]] = body
        self._happen("MODIFIED" if known else "ADDED", body)

    def _delete(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        self.requests.append(f"DELETE {path}")
        if not self._admitted(request):
            return
        with self.changed:
            found = self.slices.pop(path.rsplit("/", 1)[1], None)
            if found is None:
                refuse(request, 404, "not found")
                return
            self._happen("DELETED", found)
        reply(request, 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
