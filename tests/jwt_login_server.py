"""A server with the JWT login and the secrets of Vault's documented API, over TLS, for tests without Vault itself.

`tests/interop/test_vault_login.py` asks Vault.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from confcom.pki.serving_pair import make_serving_pair

CLIENT_TOKEN = "s.token"


@dataclass
class JwtLoginServer:
    """`roles` are bound claims by role; `secrets` data by path. `answer` replaces every answer, where it is set."""

    url: str
    ca: Path
    issuer: str
    clock: Any
    keys: Callable[[], Any]
    roles: dict[str, dict[str, Any]] = field(default_factory=dict)
    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    answer: tuple[int, bytes] | None = None
    drips: bool = False
    """Whether an answer is begun and never ended, with a byte now and then."""

    def respond(self, path: str, body: bytes, token: str | None) -> tuple[int, bytes]:
        if self.answer is not None:
            return self.answer
        if path == "/v1/auth/jwt/login":
            return self._login(json.loads(body))
        found = self.secrets.get(path.removeprefix("/v1/"))
        if token != CLIENT_TOKEN or found is None:
            return 403, b'{"errors": ["permission denied"]}'
        return 200, json.dumps({"data": {"data": found}}).encode()

    def _login(self, body: dict[str, str]) -> tuple[int, bytes]:
        bound = self.roles[body["role"]]
        try:
            known = KeySet.import_key_set(self.keys())
            claims = jwt.decode(body["jwt"], known, algorithms=["RS256"]).claims
            now = int(self.clock().timestamp())
            rules = {"iss": {"value": self.issuer}, "aud": {"value": body["role"]}}
            jwt.JWTClaimsRegistry(now=now, **rules).validate(claims)  # type: ignore[arg-type]
        except JoseError as error:
            return 400, json.dumps({"errors": [f"error validating token: {error}"]}).encode()
        wrong = [name for name, value in bound.items() if claims.get(name) != value]
        if wrong:
            return 400, json.dumps(
                {"errors": [f"claim {wrong[0]!r} does not match any associated bound claim"]}
            ).encode()
        return 200, json.dumps({"auth": {"client_token": CLIENT_TOKEN}}).encode()


@contextmanager
def jwt_login_server(
    folder: Path,
    issuer: str,
    clock: Any,
    *,
    keys: Callable[[], Any] | None = None,
    address: str = "127.0.0.1",
    network: str = "",
) -> Iterator[JwtLoginServer]:
    """The server at an address of this machine, or of the network namespace `network`.

    `keys` gives the issuer's key set, where this process cannot ask the issuer.
    """

    def ask_issuer() -> Any:
        with urllib.request.urlopen(f"{issuer}/certs", timeout=60) as answer:
            return json.load(answer)

    now = datetime.fromtimestamp(time.time(), UTC)
    ca, pair = make_serving_pair((address,), now=now, lifetime=timedelta(days=1), common_name="secrets")
    paths = {name: folder / name for name in ("secrets-ca.crt", "secrets.crt", "secrets.key")}
    for path, content in zip(paths.values(), (ca, pair.certificate, pair.key), strict=True):
        path.write_bytes(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if found.drips:
                with suppress(OSError):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-More: ")
                    while found.drips:
                        self.wfile.write(b"a")
                        time.sleep(0.02)
                return
            status, content = found.respond(self.path, body, self.headers.get("X-Vault-Token"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((address, 0), Handler, bind_and_activate=False) as server:
        listening = Thread(target=_listen, args=(server, network))
        listening.start()
        listening.join()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(paths["secrets.crt"], paths["secrets.key"])
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = f"https://{address}:{server.server_port}"
        found = JwtLoginServer(url, paths["secrets-ca.crt"], issuer, clock, keys or ask_issuer)
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def _listen(server: ThreadingHTTPServer, network: str) -> None:
    """Bind its socket, which stays in the network namespace of the thread that made it."""
    if network:
        space = os.open(f"/run/netns/{network}", os.O_RDONLY)
        assert ctypes.CDLL(None, use_errno=True).setns(space, 0) == 0, os.strerror(ctypes.get_errno())
        os.close(space)
        server.socket.close()
        server.socket = socket.socket(server.address_family, server.socket_type)
    server.server_bind()
    server.server_activate()
