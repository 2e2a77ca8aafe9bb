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
    r"/(?:api|apis/[^/]+)/[^/]+(?:/namespaces/(?P<namespace>[^/]+))?/(?P<kind>[a-z]+)"
    r"(?:/(?P<name>[^/]+)(?:/status)?)?"
)
SERVERS = ("resourceVersion", "deletionTimestamp", "managedFields")
"""Metadata that the server writes."""
FORMER = "confcom-webhook"
"""A field manager of earlier versions."""
GUARD = 120.0
"""Seconds after which a test hangs."""


class ObjectApi(ApiStandIn):
    """Use as a context. `objects` are by plural, namespace and name; `before_write` sees each write first.

    Pods of every workload run at once if `running` is true, and never otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.before_write: Callable[[str, tuple[str, str, str]], None] = lambda verb, place: None
        self.running = True
        self.unknown = {"servicemonitors", "prometheusrules"}
        """Kinds that the cluster does not have."""
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
        if kind in self.unknown:
            _send(handler, 404, _status(404, "NotFound"))
            return
        with self.changed:
            if handler.command == "GET" and name is None:
                labels = parse_qs(parts.query).get("labelSelector", [""])[0]
                items = [
                    self._shown(place)
                    for place, one in self.objects.items()
                    if place[0] == kind and namespace in ("", place[1]) and _has(one, labels)
                ]
                _send(handler, 200, {"metadata": {"resourceVersion": str(self._version)}, "items": items})
                return
            place = (kind, namespace, name or body["metadata"]["name"])
            dry = "dryRun" in parse_qs(parts.query)
            if parse_qs(parts.query).get("fieldManager") == [FORMER]:
                self._disown(handler, place)
                return
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
            _send(handler, 200, self._shown(place))
        elif handler.command == "DELETE":
            del self.objects[place]
            _send(handler, 200, {"kind": "Status", "status": "Success"})
        else:
            wanted = body.get("metadata", {}).get("resourceVersion")
            if wanted is not None and (present is None or wanted != present["metadata"]["resourceVersion"]):
                _send(handler, 409, _status(409, "Conflict"))
                return
            if handler.headers["Content-Type"] == "application/merge-patch+json":
                body = _merged(present or {}, body)
            if dry:
                _send(handler, 200, body)
                return
            if present is None:
                self.put(place[0], body)
            elif _applied(body) != _applied(present):
                kept = {name: one for name, one in present["metadata"].items() if name in SERVERS}
                self.put(place[0], body | {"metadata": body["metadata"] | kept})
            _send(handler, 200, self.objects[place])

    def _disown(self, handler: BaseHTTPRequestHandler, place: tuple[str, str, str]) -> None:
        """`FORMER` applies nothing but a name, and so gives up what it owned."""
        metadata = self.objects[place]["metadata"]
        kept = [one for one in metadata["managedFields"] if one["manager"] != FORMER]
        self.put(place[0], self.objects[place] | {"metadata": metadata | {"managedFields": kept}})
        _send(handler, 200, self.objects[place])

    def _shown(self, place: tuple[str, str, str]) -> Object:
        """An object as it is read: workloads with the status that a controller would write."""
        found = self.objects[place]
        wanted = {"daemonsets": 1, "deployments": found.get("spec", {}).get("replicas", 1)}.get(place[0])
        if wanted is None:
            return found
        names = ("updatedNumberScheduled", "numberAvailable", "updatedReplicas", "availableReplicas", "replicas")
        status = dict.fromkeys(names, wanted if self.running else 0)
        return found | {"status": status | {"desiredNumberScheduled": wanted, "observedGeneration": 1}}


def _applied(thing: Object) -> Object:
    return thing | {"metadata": {name: one for name, one in thing["metadata"].items() if name not in SERVERS}}


def _has(thing: Object, selector: str) -> bool:
    labels = thing["metadata"].get("labels") or {}
    wanted = re.findall(r"([^,=\s]+)(?:=([^,]*)| in \(([^)]*)\))", selector)
    return all(labels.get(name) in (several.split(",") if several else [value]) for name, value, several in wanted)


def _merged(present: Object, patch: Object) -> Object:
    """RFC 7396."""
    merged = {name: value for name, value in present.items() if patch.get(name, "") is not None}
    for name, value in patch.items():
        if value is not None:
            merged[name] = _merged(present.get(name) or {}, value) if isinstance(value, dict) else value
    return merged


def _status(code: int, reason: str) -> Object:
    return {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}


def _send(handler: BaseHTTPRequestHandler, code: int, thing: Object) -> None:
    content = json.dumps(thing).encode()
    handler.send_response(code)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)
