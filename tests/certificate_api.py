"""A stand-in of the Kubernetes API with the two objects where a service keeps and publishes its certificate."""

from __future__ import annotations

import base64
import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from api_stand_in import ApiStandIn

PLACE = "/api/v1/namespaces/confcom-system"


class CertificateApi(ApiStandIn):
    """A Secret and a ConfigMap that the add-on made, both empty. Writes are server-side apply of their data."""

    def __init__(self, secret: str, config_map: str) -> None:
        super().__init__()
        self.version = 1
        self._secret, self.config_map = f"{PLACE}/secrets/{secret}", f"{PLACE}/configmaps/{config_map}"
        self.objects: dict[str, dict[str, Any]] = {
            self._secret: {"metadata": {"name": secret, "resourceVersion": "1"}},
            self.config_map: {"metadata": {"name": config_map, "resourceVersion": "1"}},
        }

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        wanted = json.loads(handler.rfile.read(int(handler.headers.get("Content-Length") or 0)) or b"null")
        with self.changed:
            code, found = (404, None) if path not in self.objects else self._written(path, wanted)
            body = json.dumps(found or {"kind": "Status", "status": "Failure", "code": code, "message": "no"}).encode()
        handler.send_response(code)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _written(self, path: str, wanted: dict[str, Any] | None) -> tuple[int, dict[str, Any] | None]:
        found = self.objects[path]
        if wanted is not None:
            if wanted["metadata"].get("resourceVersion") not in (None, found["metadata"]["resourceVersion"]):
                return 409, None
            self.version += 1
            found["data"] = wanted["data"]
            found["metadata"]["resourceVersion"] = str(self.version)
        return 200, found

    @property
    def published(self) -> str:
        """What clients are told to trust."""
        with self.changed:
            found: str = self.objects[self.config_map].get("data", {}).get("ca-certificates.crt", "")
            return found

    def give(self, **data: bytes) -> None:
        """Put a certificate into the Secret, as somebody else does."""
        with self.changed:
            encoded = {name.replace("_", "."): base64.b64encode(value).decode() for name, value in data.items()}
            self.objects[self._secret]["data"] = encoded

    def secret(self) -> dict[str, Any]:
        """The Secret's data."""
        with self.changed:
            return dict(self.objects[self._secret].get("data", {}))
