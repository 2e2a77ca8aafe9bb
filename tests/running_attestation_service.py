"""An attestation service on a real socket, over a collateral service of the simulated world, with a plain client."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confcom.formats.arguments import decode_base64, encode_base64url
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.services.attestation.attestation_service import AttestationServiceConfig, serve
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedUpstream, SimulatedWorld
from running_collateral_service import Clock, running_service
from running_in_thread import RunningInThread

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
TOKEN = "the administrator's"
API = "api-version=2022-08-01"
Quote = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found

    @property
    def claims(self) -> dict[str, Any]:
        """Of the token, unverified."""
        return claims_of(self.json["token"])


def claims_of(token: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(decode_base64(token.split(".")[1]))
    return found


class RunningAttestation(RunningInThread):
    """A service that serves until the block ends. `url` is the base URL of clients."""

    def __init__(
        self, config: AttestationServiceConfig, world: SimulatedWorld, clock: Clock, quote: Quote | None = None
    ) -> None:
        super().__init__()
        self._quote = quote
        self.config = config
        self.world = world
        self.clock = clock
        self.url = ""
        self.tls: ssl.SSLContext | None = None

    def ask(self, path: str, body: Any = None, *, method: str = "", **headers: str) -> Answer:
        """One request; `path` is below the base URL, or absolute after a double slash."""
        host, _, prefix = self.url.partition("://")[2].partition("/")
        where = path[1:] if path.startswith("//") else f"/{prefix}{path}"
        connection = (
            http.client.HTTPConnection(host, timeout=120)
            if self.tls is None
            else http.client.HTTPSConnection(host, timeout=120, context=self.tls)
        )
        content = body if body is None or isinstance(body, (bytes, str)) else json.dumps(body)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method or ("GET" if body is None else "POST"), where, body=content, headers=named)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def attest(self, quote: bytes, kind: str = "SgxEnclave", **more: Any) -> Answer:
        field = "report" if kind == "OpenEnclave" else "quote"
        return self.ask(f"/attest/{kind}?{API}", {field: encode_base64url(quote)} | more)

    def administer(self, path: str, body: Any = None, *, method: str = "") -> Answer:
        return self.ask(f"{path}?{API}", body, method=method, Authorization=f"Bearer {TOKEN}")

    async def serve(self, stop: asyncio.Event, started: Callable[..., None]) -> None:
        await serve(
            self.config,
            roots=self.world.trust_roots,
            clock=self.clock,
            stop=stop,
            started=started,
            quote=self._quote,
        )

    def on_started(self, *where: str) -> None:
        self.url = where[0]


def make_world(now: datetime = NOW, **settings: Any) -> SimulatedWorld:
    return SimulatedWorld.from_seed(bytes(range(32)), now=now, **settings)


def enclave_quote(world: SimulatedWorld, held: bytes = b"", *, debug: bool = False) -> bytes:
    return quote_over(world, debug=debug)(hashlib.sha256(held).digest() + bytes(32) if held else bytes(64))


def quote_over(world: SimulatedWorld, *, debug: bool = False) -> Quote:
    """Makes quotes of one enclave over 64 bytes of report data."""
    enclave = world.machine.launch(EnclaveDeclaration.from_names("app", "us", debug=debug))
    return lambda data: EnclaveQuoteSource(world.platform, enclave).quote(data).quote


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


@contextmanager
def running_attestation(
    folder: Path, world: SimulatedWorld, *, now: datetime = NOW, quote: Quote | None = None, **settings: Any
) -> Iterator[RunningAttestation]:
    clock = Clock(now)
    upstream = SimulatedUpstream(world, clock)
    with running_service(folder / "collateral.sqlite", upstream, world.trust_roots, clock) as collateral:
        config = AttestationServiceConfig(
            **{
                "listen": f"127.0.0.1:{free_port()}",
                "insecure_http": True,
                "store": str(folder / "attestation.sqlite"),
                "keys": str(folder / "keys"),
                "collateral": collateral.url,
                "admin_token_hash": hashlib.sha512(TOKEN.encode()).hexdigest(),
                **settings,
            }
        )
        service = RunningAttestation(config, world, clock, quote)
        service.start()
        try:
            yield service
        finally:
            service.stop()
