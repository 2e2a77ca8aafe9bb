"""The certificate of a server, issued in memory and renewed, by a CA in a folder (a mounted Secret).

Each replica issues its own, so replicas share only the CA and need no right at the Kubernetes API for it. The
installer makes the CA and publishes it to the API server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from confcom.pki.serving_pair import MAX_PEM, Authority, ServingPair
from confcom.services.runtime.tls import HeldTls
from confcom.services.webhook.webhook_http import WebhookMetrics

CERTIFICATE, KEY = "tls.crt", "tls.key"
"""The CA's files, named as in Secrets of type kubernetes.io/tls."""


class IssuedCertificate:
    """The certificate in use: replaced after half of its lifetime, and when the folder holds another CA."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        metrics: WebhookMetrics,
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
        self._metrics = metrics
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
        self._metrics.certificate_served(pair.expires)
        structlog.get_logger().info("certificate.served", expires=pair.expires.isoformat())

    def _note(self, reason: str) -> None:
        if reason != self.not_ready:
            structlog.get_logger().info("certificate.ready", ready=not reason, reason=reason)
        self.not_ready = reason
        self._metrics.certificate_trusted(not reason)


def _middle(pair: ServingPair) -> datetime:
    return pair.made + (pair.expires - pair.made) / 2
