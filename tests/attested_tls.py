"""Attested TLS on the simulated platform: a world, its contexts, and a web server that records what it receives."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from confcom.appraisal.policy import AllOf, MrEnclave, Policy, safe_defaults
from confcom.appraisal.quote import QuoteVerifier
from confcom.atls import ClientContext, Issuer, NotAttested, ServerContext
from confcom.atls import server as server_module
from confcom.atls.issuer import utc_now
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld

SECRET = b"a secret that only an attested server may see"
HANG = 60
"""Seconds against hanging."""

# A busy machine is slow: tests of these bounds set them.
server_module.WAIT, server_module.LOOP_SHARE = float(HANG), float(HANG)


@cache
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(b"seed of the attested TLS tests".ljust(32), now=utc_now())


def declared(name: str = "app", *, debug: bool = False) -> EnclaveDeclaration:
    return EnclaveDeclaration.from_names(name, "vendor", isv_prod_id=1, isv_svn=1, debug=debug)


def quotes(name: str = "app", *, debug: bool = False) -> EnclaveQuoteSource:
    return EnclaveQuoteSource(world().platform, world().machine.launch(declared(name, debug=debug)))


def issuer(name: str = "app", **options: Any) -> Issuer:
    return Issuer(quotes(name), **options)


def accepts(name: str = "app") -> Policy:
    return AllOf(safe_defaults(accept_simulated=True), MrEnclave((declared(name).mr_enclave,)))


def client(name: str = "app", **options: Any) -> ClientContext:
    """A context that accepts the enclave of this name."""
    return ClientContext(accepts(name), world().publish(), verifier=QuoteVerifier(world().trust_roots), **options)


@dataclass
class WebServer:
    """`received` has the first line and the body of every request; `url` ends without a slash."""

    url: str
    port: int
    received: list[bytes] = field(default_factory=list)


@contextmanager
def web_server(context: ssl.SSLContext | None, *, redirect_to: str = "", status: int = 307) -> Iterator[WebServer]:
    """Serve HTTP/1.1 in threads; without a context in clear."""
    found = WebServer("", 0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = HANG

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            found.received += [self.requestline.encode(), self.rfile.read(length)]
            self.send_response(status if redirect_to else 200)
            if redirect_to:
                self.send_header("Location", redirect_to)
            body = b"" if redirect_to else b"answer"
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - as in http.server

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def finish_request(self, request: Any, address: Any) -> None:
            # In the connection's own thread, so that a client that stands still stops nobody else.
            request.settimeout(HANG)
            try:
                if context is not None:
                    request = context.wrap_socket(request, server_side=True)
                super().finish_request(request, address)
            except OSError:
                return  # the client refused, or left
            finally:
                request.close()

    with Server(("127.0.0.1", 0), Handler) as server:
        found.port = server.server_port
        found.url = f"{'http' if context is None else 'https'}://127.0.0.1:{found.port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join(HANG)


def served(name: str = "app", **options: Any) -> Any:
    """A web server of the enclave of this name."""
    return web_server(ServerContext(issuer(name)), **options)


def refusal(error: BaseException) -> NotAttested:
    """The `NotAttested` in what a library raised, wherever it put it."""
    queue, seen = [error], []
    while queue:
        found = queue.pop(0)
        if isinstance(found, NotAttested):
            return found
        if found in seen:
            continue
        seen.append(found)
        inner = [found.__cause__, found.__context__, getattr(found, "reason", None), *getattr(found, "args", ())]
        queue += [one for one in inner if isinstance(one, BaseException)]
    raise AssertionError(f"no refusal in {error!r}") from error
