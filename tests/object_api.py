"""A stand-in for the Kubernetes API with objects of every kind: create, server-side apply, read, list and delete.

As the real one it refuses writes that name another resourceVersion than the latest, and creations of what is there.
An apply takes the whole object as it was sent: there are no other field managers here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from api_stand_in import ApiStandIn

Object = dict[str, Any]
PATH = re.compile(
    r"/(?:api|apis/[^/]+)/[^/]+(?:/namespaces/(?P<namespace>[^/]+))?/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?"
)
GUARD = 120.0
"""Seconds after which a test hangs."""


class ObjectApi(ApiStandIn):
    """Use as a context. `objects` are by plural, namespace and name; `before_write` sees each write first."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.before_write: Callable[[str, tuple[str, str, str]], None] = lambda verb, place: None
        self._version = 0

    def put(self, plural: str, thing: Object) -> None:
        """Have an object there."""
        metadata = thing["metadata"]
        self._version += 1
        stored = thing | {"metadata": metadata | {"resourceVersion": str(self._version)}}
        self.objects[plural, metadata.get("namespace", ""), metadata["name"]] = stored

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        if parts.path == "/version":
            _send(handler, 200, {"gitVersion": "v1.36.2"})
            return
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length) or b"{}")
        found = PATH.fullmatch(parts.path)
        assert found, parts.path
        kind, namespace, name = found["kind"], found["namespace"] or "", found["name"]
        with self.changed:
            if handler.command == "GET" and name is None:
                items = [one for place, one in self.objects.items() if place[0] == kind and namespace in ("", place[1])]
                _send(handler, 200, {"metadata": {"resourceVersion": str(self._version)}, "items": items})
                return
            place = (kind, namespace, name or body["metadata"]["name"])
            dry = "dryRun" in parse_qs(parts.query)
            if handler.command != "GET" and not dry:
                self.before_write(handler.command, place)
            self._answer(handler, place, body, dry=dry)

    def _answer(self, handler: BaseHTTPRequestHandler, place: tuple[str, str, str], body: Object, *, dry: bool) -> None:
        present = self.objects.get(place)
        if handler.command == "POST" and present is not None:
            _send(handler, 409, _status(409, "AlreadyExists"))
        elif handler.command in ("GET", "DELETE") and present is None:
            _send(handler, 404, _status(404, "NotFound"))
        elif handler.command == "GET":
            _send(handler, 200, present or {})
        elif handler.command == "DELETE":
            del self.objects[place]
            _send(handler, 200, {"kind": "Status", "status": "Success"})
        else:
            wanted = body["metadata"].get("resourceVersion")
            if wanted is not None and (present is None or wanted != present["metadata"]["resourceVersion"]):
                _send(handler, 409, _status(409, "Conflict"))
                return
            if dry:
                _send(handler, 200, body)
                return
            same = present is not None and {**body, "metadata": None} == {**present, "metadata": None}
            if not same:
                self.put(place[0], body)
            _send(handler, 200, self.objects[place])


def _status(code: int, reason: str) -> Object:
    return {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}


def _send(handler: BaseHTTPRequestHandler, code: int, thing: Object) -> None:
    content = json.dumps(thing).encode()
    handler.send_response(code)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)
