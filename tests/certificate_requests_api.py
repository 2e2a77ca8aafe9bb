"""A stand-in of the Kubernetes API with CertificateSigningRequests, beside the objects of `ObjectApi`.

As the real API server it says itself who made a request, by the bearer's token, keeps approval and status apart, and
lets a watch last.
"""

from __future__ import annotations

import itertools
import json
import time
from base64 import b64encode
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.asymmetric import ec

from confcom.platforms.pod_certificate import signing_request
from confcom.protocols.certificate_requests import SIGNER
from object_api import Object, ObjectApi

SECRET, CONFIG_MAP = "confcom-certificate-signer-ca", "confcom-attested-pods-ca"
BASE = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
PODS = "authentication.kubernetes.io"


class CertificateRequestsApi(ObjectApi):
    """Use as a context. `requests` are by name; `accounts` say who a token is."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[str, Object] = {}
        self.accounts: dict[str, dict[str, Any]] = {}
        self.events: list[Object] = []
        self.writes: list[tuple[str, str]] = []
        """Part and name of each write of a request that was accepted."""
        self.asked: list[str] = []
        """Method, path and query of each call about requests."""
        self._changes: list[tuple[str, Object]] = []
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)

    def account(self, folder: Path, namespace: str, name: str, pod: str = "pod", **extra: Any) -> str:
        """A file of credentials of a pod's service account."""
        token = f"token-{namespace}-{name}-{pod}-{len(self.accounts)}"
        self.accounts[token] = {
            "username": f"system:serviceaccount:{namespace}:{name}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
            "extra": {
                f"{PODS}/pod-name": [pod],
                f"{PODS}/pod-uid": [f"uid-of-{namespace}-{pod}"],
                f"{PODS}/node-name": ["n1"],
            },
        } | extra
        place = folder / token
        place.mkdir()
        path = Path(self.kubeconfig(place))
        config = json.loads(path.read_text())
        config["users"][0]["user"]["token"] = token
        path.write_text(json.dumps(config))
        return str(path)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        if path.startswith("/apis/events.k8s.io/"):
            # Read before the lock is taken: the client may run in the loop of a test that waits for the lock.
            event = json.loads(handler.rfile.read(int(handler.headers.get("Content-Length") or 0)))
            with self.changed:
                self.events.append(event)
            _send(handler, 201, event)
        elif path.startswith(BASE):
            self.asked.append(f"{handler.command} {handler.path.removeprefix(BASE)}")
            self._answer_request(handler, path.removeprefix(BASE).strip("/"))
        else:
            super().answer(handler)

    def _answer_request(self, handler: BaseHTTPRequestHandler, rest: str) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length) or b"null")
        name, _, part = rest.partition("/")
        if handler.command == "GET" and query.get("watch"):
            self._watch(handler, query)
            return
        with self.changed:
            if handler.command == "POST":
                code, found = self._create(body, handler.headers["Authorization"].removeprefix("Bearer "))
            elif handler.command == "PUT":
                code, found = self._write(name, part, body)
            elif name:
                found = self.requests.get(name)
                code = 200 if found else 404
            else:
                items = [one for one in self.requests.values() if _chosen(one, query)]
                version = str(next(self._versions))
                code, found = 200, {"metadata": {"resourceVersion": version}, "items": items}
        _send(handler, code, found if found is not None else {"kind": "Status", "code": code, "message": f"no {rest}"})

    def _create(self, body: Object, token: str) -> tuple[int, Object | None]:
        name = body["metadata"]["name"]
        if name in self.requests:
            return 409, None
        self.add(name, body["spec"] | self.accounts[token])
        return 201, self.requests[name]

    def put_signer(self) -> None:
        """Have the signer's Secret and ConfigMap there, as the add-on makes them."""
        metadata = {"namespace": "confcom-system"}
        self.put("secrets", {"metadata": metadata | {"name": SECRET}})
        self.put("configmaps", {"metadata": metadata | {"name": CONFIG_MAP}})

    def ask(self, folder: Path, namespace: str, pod: str = "pod") -> None:
        """Have a pod make a first request for a key of its own."""
        self.account(folder, namespace, "default", pod)
        content = b64encode(signing_request(ec.generate_private_key(ec.SECP256R1()))).decode()
        spec = {"signerName": SIGNER, "request": content, "usages": ["server auth"]}
        self.add(f"first-of-{pod}", spec | [*self.accounts.values()][-1])

    def add(self, name: str, spec: Object, status: Object | None = None) -> None:
        """Have a request there."""
        with self.changed:
            metadata = {"name": name, "uid": f"u{next(self._uids)}", "resourceVersion": str(next(self._versions))}
            self._put({"metadata": metadata, "spec": spec, "status": status or {}})

    def _write(self, name: str, part: str, body: Object) -> tuple[int, Object | None]:
        found = self.requests.get(name)
        if found is None:
            return 404, None
        if body["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
            return 409, None
        status = dict(found["status"])
        conditions = body["status"].get("conditions", [])
        if part == "approval":
            status["conditions"] = conditions
        else:
            ours = [one for one in status.get("conditions", []) if one["type"] in ("Approved", "Denied")]
            status["conditions"] = ours + [one for one in conditions if one["type"] not in ("Approved", "Denied")]
            if "certificate" in body["status"]:
                status["certificate"] = body["status"]["certificate"]
        metadata = found["metadata"] | {"resourceVersion": str(next(self._versions))}
        self._put(found | {"metadata": metadata, "status": status})
        self.writes.append((part, name))
        return 200, self.requests[name]

    def _put(self, thing: Object) -> None:
        self.requests[thing["metadata"]["name"]] = thing
        self._changes.append(("MODIFIED", thing))
        self.changed.notify_all()

    def _watch(self, handler: BaseHTTPRequestHandler, query: dict[str, list[str]]) -> None:
        since = int(query["resourceVersion"][0])
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Connection", "close")
        handler.end_headers()
        seen, end = 0, time.monotonic() + 60
        while time.monotonic() < end:
            with self.changed:
                self.changed.wait_for(lambda seen=seen: self.down or len(self._changes) > seen, timeout=1.0)
                if self.down:
                    return
                new, seen = self._changes[seen:], len(self._changes)
            for kind, thing in new:
                if int(thing["metadata"]["resourceVersion"]) > since and _chosen(thing, query):
                    handler.wfile.write(json.dumps({"type": kind, "object": thing}).encode() + b"\n")
            handler.wfile.flush()

    def denial(self, name: str) -> tuple[str, str]:
        """Reason and message with which a request was denied; empty while it was not."""
        with self.changed:
            conditions = self.requests[name]["status"].get("conditions", [])
            return next(((one["reason"], one["message"]) for one in conditions if one["type"] == "Denied"), ("", ""))


def _chosen(thing: Object, query: dict[str, list[str]]) -> bool:
    fields = query.get("fieldSelector", [""])[0]
    return not fields or fields == f"spec.signerName={thing['spec'].get('signerName')}"


def _send(handler: BaseHTTPRequestHandler, code: int, thing: Object) -> None:
    content = json.dumps(thing).encode()
    handler.send_response(code)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)
