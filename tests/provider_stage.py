"""Libraries with a quote provider that asks a collateral service over HTTP, and that service, which misbehaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from confcom.errors import CollateralNotFound
from confcom.protocols.pcs import HttpResponse, PckCertRequest
from confcom.protocols.pcs_service import ServedRequest, parse_request, pck_certificate_response
from confcom.simulator.enclaves import QuotingEnclave
from confcom.simulator.world import SimulatedUpstream, SimulatedWorld
from pcs_server import send
from software_qe import Stub

Behaviour = Callable[[BaseHTTPRequestHandler], None]


class PckService:
    """Gives the PCK certificate of a simulated machine, on 127.0.0.1; `behaviour` replaces the honest answer."""

    def __init__(self, world: SimulatedWorld, now: datetime) -> None:
        self._upstream = SimulatedUpstream(world, lambda: now)
        self.behaviour: Behaviour | None = None
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                if outer.behaviour is not None:
                    outer.behaviour(self)
                else:
                    send(self, outer.answer(self.path))

            def log_message(self, *_: object) -> None:
                """Silence."""

        self._handler = Handler
        self._server = self._listen(0)
        self._port = self._server.server_port
        self.url = f"http://127.0.0.1:{self._port}/sgx/certification/v4/"

    def _listen(self, port: int) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", port), self._handler)
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        return server

    def __enter__(self) -> PckService:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def reopen(self) -> None:
        """Serve again after `close`, at the same place."""
        self._server = self._listen(self._port)
        self.__enter__()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, target: str) -> HttpResponse:
        """What an honest service answers."""
        parts = urlsplit(target)
        served = parse_request(parts.path, dict(parse_qsl(parts.query)))
        assert served is not None
        assert isinstance(served.request, PckCertRequest)
        try:
            answer = self._upstream.fetch_pck_certificate(served.request)
        except CollateralNotFound:
            return HttpResponse(461)
        return pck_certificate_response(served, answer, request_id="r", max_age=0)


def refuses(status: int) -> Behaviour:
    """Answer with a status."""
    return lambda handler: send(handler, HttpResponse(status))


def says(response: HttpResponse) -> Behaviour:
    """Answer so."""
    return lambda handler: send(handler, response)


def never_answers(handler: BaseHTTPRequestHandler) -> None:
    """Take the request, and nothing more."""
    del handler
    time.sleep(120)


def honest_answer(world: SimulatedWorld, now: datetime) -> HttpResponse:
    """What a service answers to the machine of a world."""
    request = platform_identity(world)
    answer = SimulatedUpstream(world, lambda: now).fetch_pck_certificate(request)
    return pck_certificate_response(ServedRequest(4, request), answer, request_id="r", max_age=0)


def platform_identity(world: SimulatedWorld) -> PckCertRequest:
    """What the provider tells of the machine."""
    machine = world.machine
    qe_id = QuotingEnclave(machine, world.authority.pck_chain(machine)).qe_id
    return PckCertRequest(machine.tcb.cpu_svn, machine.tcb.pce_svn, bytes(2), qe_id, b"\xa5" * 384)


def install_provider(stub: Stub, world: SimulatedWorld, url: str, **settings: object) -> Path:
    """Give the stand-in libraries a quote provider, and the configuration of an operator; gives its path."""
    identity = platform_identity(world)
    words = (identity.qe_id, identity.cpu_svn, identity.pce_svn.to_bytes(2, "little"), bytes(2))
    found = [word.hex().upper() for word in (*words, identity.encrypted_ppid) if word is not None]
    (stub.folder / "provider").write_text(" ".join(found))
    path = stub.folder / "qcnl.conf"
    path.write_text("// the operator's\n" + json.dumps({"pccs_url": url, **settings}))
    return path
