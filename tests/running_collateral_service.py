"""A collateral service on a real socket in a thread of its own, upstreams to put behind it, and a plain HTTP client."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry

import pki_builder as pki
from confcom.collateral.documents import Document, DocumentKey, DocumentKind
from confcom.errors import CollateralNotFound, CollateralUnavailable
from confcom.pki.chain import TrustRoot, TrustRoots
from confcom.services.collateral.collateral_service import CollateralServiceConfig, serve
from confcom.simulator.world import SimulatedUpstream, SimulatedWorld
from running_in_thread import RunningInThread

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
SEED = bytes(range(32))
FMSPC = "000053494d00"
BUILT_NOW = pki.ISSUE + timedelta(days=10)
BUILT_FMSPC = "00606a000000"
BUILT_ROOTS = TrustRoots((TrustRoot.from_pem(pki.pem(pki.ROOT_CERTIFICATE), name="tests"),))


class Clock:
    """A time that tests move."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


class RecordedUpstream(SimulatedUpstream):
    """The simulated authority, which counts what it is asked, and can be slow or out of reach."""

    def __init__(self, world: SimulatedWorld, clock: Callable[[], datetime]) -> None:
        super().__init__(world, clock)
        self.world = world
        self.asked: list[object] = []
        self.gate = threading.Event()
        self.gate.set()
        self.unreachable: set[object] = set()
        self.down = False

    def fetch_document(self, key: DocumentKey) -> Document:
        self._visit(key)
        return super().fetch_document(key)

    def fetch_pck_certificate(self, request: Any) -> Any:
        self._visit(request)
        return super().fetch_pck_certificate(request)

    def _visit(self, what: object) -> None:
        self.asked.append(what)
        assert self.gate.wait(120)
        if self.down or what in self.unreachable:
            raise CollateralUnavailable("the upstream of this test is down")


class BuiltUpstream:
    """Documents of every kind and set, TDX too, signed by the authority of `pki_builder`; `changes` go into them."""

    def __init__(self) -> None:
        self.changes: dict[str, Any] = {}
        self.signer = pki.TCB_SIGNING

    def fetch_document(self, key: DocumentKey) -> Document:
        root = pki.ROOT_CERTIFICATE.build()
        chain = pki.pem(pki.SIGNING_CERTIFICATE, root)
        number = {"standard": 20, "early": 21}.get(str(key.update), key.update)
        changes = {"tcbEvaluationDataNumber": number} | self.changes
        match key.kind:
            case DocumentKind.TCB_INFO if key.fmspc == bytes.fromhex(BUILT_FMSPC):
                make = pki.tdx_tcb_info if key.tee == "tdx" else pki.tcb_info
                return Document(key, pki.signed("tcbInfo", make(**changes), self.signer), chain)
            case DocumentKind.QE_IDENTITY | DocumentKind.QVE_IDENTITY | DocumentKind.QAE_IDENTITY:
                name = {"qve-identity": "QVE", "qae-identity": "QAE"}.get(key.kind, "QE")
                name = "TD_QE" if key.tee == "tdx" else name
                body = pki.signed("enclaveIdentity", pki.enclave_identity(id=name, **changes), self.signer)
                return Document(key, body, chain)
            case DocumentKind.PCK_CRL if key.ca == "platform":
                crl = pki.crl(pki.PLATFORM_NAME, pki.PLATFORM_CA)
                return Document(key, crl, pki.pem(pki.PLATFORM_CERTIFICATE, root))
            case DocumentKind.ROOT_CA_CRL:
                return Document(key, pki.crl())
        raise CollateralNotFound(f"the upstream of this test has no {key}")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """By its exact name: some clients compare the case."""
        return next((value for found, value in self.headers if found == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RunningService(RunningInThread):
    """A service that serves until `stop`. `url` is where."""

    def __init__(
        self, store: Path, upstream: Any, roots: TrustRoots, clock: Callable[[], datetime], **settings: Any
    ) -> None:
        super().__init__()
        settings = {"listen": "127.0.0.1:0", "insecure_http": "tls_certificate" not in settings} | settings
        self.config = CollateralServiceConfig(store=str(store), upstream="tests", **settings)
        self.registry = CollectorRegistry()
        self.url = ""
        self.tls: ssl.SSLContext | None = None
        self._arguments = (upstream, roots, clock)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 0

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        source: str | None = None,
    ) -> Reply:
        """The answer to one request; `source` is the loopback address that it comes from."""
        own = None if source is None else (source, 0)
        connection = (
            http.client.HTTPConnection(*self.address, timeout=120, source_address=own)
            if self.tls is None
            else http.client.HTTPSConnection(*self.address, timeout=120, context=self.tls)
        )
        try:
            content = json.dumps(body) if body is not None and not isinstance(body, bytes) else body
            connection.request(method, path, body=content, headers=dict(headers or {}))
            response = connection.getresponse()
            return Reply(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"confcom_collateral_service_{name}", labels) or 0.0

    async def serve(self, stop: asyncio.Event, started: Callable[..., None]) -> None:
        upstream, roots, clock = self._arguments
        await serve(upstream, self.config, roots=roots, clock=clock, stop=stop, started=started, registry=self.registry)

    def on_started(self, *where: str) -> None:
        self.url = where[0]


@contextmanager
def running_service(
    store: Path, upstream: Any, roots: TrustRoots, clock: Callable[[], datetime], **settings: Any
) -> Iterator[RunningService]:
    service = RunningService(store, upstream, roots, clock, **settings)
    service.start()
    try:
        yield service
    finally:
        service.stop()
