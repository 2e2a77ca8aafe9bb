"""A real HTTP server that serves a simulated authority's documents as PCS or PCCS does, and misbehaves on request."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from confcom.collateral.documents import key_for
from confcom.errors import CollateralNotFound, FormatError
from confcom.protocols.pcs import Answer, HttpResponse
from confcom.protocols.pcs_service import document_response, parse_request
from confcom.simulator.world import SimulatedPcs

Behaviour = Callable[[BaseHTTPRequestHandler], bool]
"""Answers a request itself and gives True, or leaves it to the server."""


class PcsServer:
    """Serves on 127.0.0.1 while the block runs. `behaviours` are tried first, each until it gives True once."""

    def __init__(self, source: SimulatedPcs, *, tls: ssl.SSLContext | None = None) -> None:
        self.source = source
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.behaviours: list[Behaviour] = []
        self.always: Behaviour | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                try:
                    if outer.behaviours:
                        outer.behaviours.pop(0)(self)
                    elif outer.always is None or not outer.always(self):
                        send(self, outer.answer(self.path))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> PcsServer:
        threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, target: str) -> HttpResponse:
        """What an honest service answers."""
        parts = urlsplit(target)
        if parts.path == "/IntelSGXRootCA.der":
            parts = urlsplit("/sgx/certification/v4/crl?uri=https://example.com/IntelSGXRootCA.der")
        try:
            served = parse_request(parts.path, dict(parse_qsl(parts.query)))
            key = None if served is None else key_for(served.request)
            if served is None or key is None:
                return HttpResponse(404, (("Request-ID", "r-404"),), b"no such path")
            document = self.source.fetch_document(key)
        except FormatError as error:
            return HttpResponse(400, (("Request-ID", "r-400"),), str(error).encode())
        except CollateralNotFound:
            return HttpResponse(404, (("Request-ID", "r-404"),), b"No cache data for this platform.")
        return document_response(served, Answer(document.body, document.issuer_chain), request_id="r-200")


def send(handler: BaseHTTPRequestHandler, response: HttpResponse) -> None:
    """Write a response as it is."""
    handler.send_response(response.status)
    for name, value in response.headers:
        handler.send_header(name, value)
    if response.header("Content-Length") is None:
        handler.send_header("Content-Length", str(len(response.body)))
    handler.end_headers()
    handler.wfile.write(response.body)


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    """Answer with a status; header names with underscores for hyphens."""
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())

    def behave(handler: BaseHTTPRequestHandler) -> bool:
        send(handler, HttpResponse(code, pairs, body))
        return True

    return behave


def cut_off(handler: BaseHTTPRequestHandler) -> bool:
    """Promise more bytes than come."""
    handler.close_connection = True
    send(handler, HttpResponse(200, (("Content-Length", "4000"),), b'{"tcbInfo":'))
    handler.wfile.flush()
    return True


def drip(handler: BaseHTTPRequestHandler) -> bool:
    """Send header bytes slowly for as long as somebody reads, each well within any read timeout."""
    handler.close_connection = True
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(200):
        handler.wfile.write(b"X-Drip: 1\r\n")
        handler.wfile.flush()
        time.sleep(0.02)
    return True


def endless(handler: BaseHTTPRequestHandler) -> bool:
    """A body without an end, in chunks."""
    handler.close_connection = True
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(100_000):
        handler.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
    return True


def silent(handler: BaseHTTPRequestHandler) -> bool:
    """Say nothing for a while, then hang up."""
    handler.close_connection = True
    time.sleep(0.6)
    return True
