"""The certificate of a server, issued in memory and renewed, by a CA in a folder (a mounted Secret).

Each replica issues its own, so replicas share only the CA and need no right at the Kubernetes API for it. The
installer makes the CA and publishes it to the API server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import structlog

from confcom.pki.serving_pair import MAX_PEM, Authority, ServingPair
from confcom.services.runtime.http_server import Application, Listener, serve_http
from confcom.services.runtime.process import end_task
from confcom.services.runtime.status_page import Handler, StatusPage
from confcom.services.runtime.tls import HeldTls

LIFETIME = timedelta(days=30)
"""Of certificates of status pages."""
LOOK_EVERY = 5.0
"""Seconds between two reads of the CA of a status page."""
CERTIFICATE, KEY = "tls.crt", "tls.key"
"""The CA's files, named as in Secrets of type kubernetes.io/tls."""


class CertificateObserver(Protocol):
    """Metrics of a certificate."""

    def certificate_served(self, expires: datetime) -> None:
        """A new certificate is in use."""

    def certificate_trusted(self, trusted: bool) -> None:
        """There is a usable CA, or there is none."""


class IssuedCertificate:
    """The certificate in use: replaced after half of its lifetime, and when the folder holds another CA."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        observer: CertificateObserver | None = None,
        *,
        lifetime: timedelta,
        common_name: str,
        clock: Callable[[], datetime],
    ) -> None:
        self.not_ready = "no certificate yet"
        """Why no trusted certificate is served; empty if one is."""
        self.served: ServingPair | None = None
        self._folder = folder
        self._names = names
        self._observer = observer
        self._lifetime = lifetime
        self._common_name = common_name
        self._clock = clock
        self._authority: Authority | None = None
        self._tls: HeldTls | None = None
        self._first: asyncio.Future[HeldTls] = asyncio.get_running_loop().create_future()

    async def run(self, every: float) -> None:
        """Read the CA every `every` seconds, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(every)

    async def first(self) -> HeldTls:
        """Wait for the first certificate."""
        return await asyncio.shield(self._first)

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
        if self._tls is None:
            self._tls = HeldTls(pair.certificate, pair.key)
            self._first.set_result(self._tls)
        else:
            self._tls.use(pair.certificate, pair.key)
        self.served, self._authority = pair, authority
        if self._observer is not None:
            self._observer.certificate_served(pair.expires)
        structlog.get_logger().info("certificate.served", expires=pair.expires.isoformat())

    def _note(self, reason: str) -> None:
        if reason != self.not_ready:
            structlog.get_logger().info("certificate.ready", ready=not reason, reason=reason)
        self.not_ready = reason
        if self._observer is not None:
            self._observer.certificate_trusted(not reason)


def _middle(pair: ServingPair) -> datetime:
    return pair.made + (pair.expires - pair.made) / 2


async def serve_issued(
    app: Application,
    certificate: IssuedCertificate,
    listener: Callable[[HeldTls], Awaitable[Listener]],
    *,
    stop: asyncio.Event,
    leave: Callable[[], None],
    leave_after: float,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve behind a Service from the first certificate on, until `leave_after` seconds after `stop` is set.

    `leave` is called when `stop` is set: callers shall find another replica meanwhile. `started` gets the URL.
    """

    async def prepare() -> Listener:
        return await listener(await certificate.first())

    preparing = asyncio.create_task(prepare(), name="prepare")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({preparing, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not preparing.done():
            return
        gone = asyncio.Event()
        leaving = asyncio.create_task(_leave(stop, gone, leave, leave_after), name="leave")
        try:
            await serve_http(app, preparing.result(), stop=gone, started=started)
        finally:
            leaving.cancel()
    finally:
        preparing.cancel()
        stopped.cancel()


async def _leave(stop: asyncio.Event, gone: asyncio.Event, leave: Callable[[], None], seconds: float) -> None:
    await stop.wait()
    leave()
    await asyncio.sleep(seconds)
    gone.set()


async def serve_issued_page(address: str, pages: Mapping[str, Handler], folder: Path, name: str) -> None:
    """Serve status pages over TLS until cancelled, with a certificate for `name` by the CA in `folder`."""
    certificate = IssuedCertificate(folder, (name,), lifetime=LIFETIME, common_name=name, clock=_now)
    renewing = asyncio.create_task(certificate.run(LOOK_EVERY), name="certificate")
    try:
        await StatusPage(address, pages, await certificate.first()).run()
    finally:
        await end_task(renewing)


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - services read the clock
