"""The certificate of a server, issued in memory and renewed, by a CA in a folder (a mounted Secret).

Each replica issues its own, so replicas share only the CA and need no right at the Kubernetes API for it. The
installer makes the CA and publishes it to the API server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from confcom.pki.serving_pair import MAX_PEM, Authority, Pair
from confcom.services.runtime.http_server import Application, Listener, Page, serve_http
from confcom.services.runtime.process import background, run_until
from confcom.services.runtime.status_page import LEAVING, Handler, StatusPage, alive, metrics_of
from confcom.services.runtime.tls import HeldTls, OwnCertificate

LIFETIME = timedelta(days=30)
LOOK_EVERY = 5.0
"""Seconds between two reads of the CA."""
CERTIFICATE, KEY = "tls.crt", "tls.key"
"""The CA's files, named as in Secrets of type kubernetes.io/tls."""


class IssuedCertificate(OwnCertificate):
    """The certificate in use: replaced after half of its lifetime, and when the folder holds another CA."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        lifetime: timedelta = LIFETIME,
        common_name: str,
        clock: Callable[[], datetime],
    ) -> None:
        super().__init__()
        self.changes = 0
        """Certificates that were taken into use."""
        self._folder = folder
        self._names = names
        self._lifetime = lifetime
        self._common_name = common_name
        self._clock = clock
        self._authority: Authority | None = None

    async def run(self, every: float = LOOK_EVERY) -> None:
        """Read the CA every `every` seconds, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(every)

    def look(self) -> None:
        """Read the CA, and issue a certificate if one is due. Without a CA the present certificate stays."""
        now, authority = self._clock(), self._read()
        if authority is None or authority.expires <= now:
            state = "no usable CA in" if authority is None else "the CA has expired in"
            self._note(f"{state} {self._folder}: `confcom addon update` makes one")
            return
        if authority != self._authority or self.served is None or now >= _middle(self.served):
            self._serve(authority, now)
        self._note("")

    def _read(self) -> Authority | None:
        try:
            with (self._folder / CERTIFICATE).open("rb") as certificate, (self._folder / KEY).open("rb") as key:
                return Authority.parse(certificate.read(MAX_PEM + 1), key.read(MAX_PEM + 1))
        except OSError:
            return None

    def _serve(self, authority: Authority, now: datetime) -> None:
        pair = authority.issue(self._names, now=now, lifetime=self._lifetime, common_name=self._common_name)
        self._use(pair)
        self._authority = authority
        self.changes += 1
        structlog.get_logger().info("certificate.served", expires=pair.expires.isoformat())

    def _note(self, reason: str) -> None:
        if reason != self.not_ready:
            structlog.get_logger().info("certificate.ready", ready=not reason, reason=reason)
        self.not_ready = reason


def _middle(pair: Pair) -> datetime:
    return pair.made + (pair.expires - pair.made) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedServer:
    """One replica of a server behind a Service, and its status pages at `http`, if that is not empty.

    `listener` may wait until there can be answers. `not_ready` gives reasons beside those of the certificate. `service`
    begins the event of leaving in the log.
    """

    service: str
    app: Application
    certificate: IssuedCertificate
    listener: Callable[[HeldTls], Awaitable[Listener]]
    not_ready: Callable[[], str]
    registry: CollectorRegistry
    http: str
    leave_after: float
    look_every: float = LOOK_EVERY

    async def run(
        self, *beside: Coroutine[Any, Any, None], stop: asyncio.Event, started: Callable[[str], None] | None
    ) -> None:
        """Serve from the first certificate on, until `leave_after` seconds after `stop` is set.

        `beside` runs for as long. `started` gets the URL.
        """
        serving, ended = asyncio.Event(), asyncio.Event()

        async def answer() -> None:
            listener = await self.listener(await self.certificate.first())
            serving.set()
            await serve_http(self.app, replace(listener, leave_after=self.leave_after), stop=stop, started=started)
            ended.set()

        async def leave() -> None:
            await stop.wait()
            if serving.is_set():
                structlog.get_logger().info(f"{self.service}.leaves", seconds=self.leave_after)
                await ended.wait()
            ended.set()

        async def readyz() -> Page:
            reason = LEAVING if stop.is_set() else self.certificate.not_ready or self.not_ready()
            return Page(503, f"{reason}\n".encode()) if reason else Page(200, b"ok\n")

        actors = [answer(), leave(), self.certificate.run(self.look_every), *beside]
        if self.http:
            pages = {"/healthz": alive, "/readyz": readyz, "/metrics": metrics_of(self.registry)}
            actors.append(StatusPage(self.http, pages).run())
        await run_until(ended, *actors)


async def serve_issued_page(address: str, pages: Mapping[str, Handler], folder: Path, name: str) -> None:
    """Serve status pages over TLS until cancelled, with a certificate for `name` by the CA in `folder`."""
    certificate = IssuedCertificate(folder, (name,), common_name=name, clock=_now)
    async with background("certificate", certificate.run):
        await StatusPage(address, pages, await certificate.first()).run()


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - services read the clock
