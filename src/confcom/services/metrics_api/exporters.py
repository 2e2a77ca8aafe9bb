"""Reads the pages of all exporters over TLS, every few seconds.

An exporter is a pod of the add-on's namespace with its component's label. What it says counts only if its certificate
is of the exporters' CA and for the component's name: the label proves nothing.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import httpx2
import structlog

from confcom.errors import ConfcomError, ConfigError, FormatError
from confcom.protocols.custom_metrics import EXPORTER_PORT, EXPORTERS, ScaledPod
from confcom.protocols.prometheus_text import MAX_PAGE
from confcom.services.metrics_api.figures import Exporter, Figures, parse_epc_page, parse_quotes_page
from confcom.services.metrics_api.metrics_api_config import MetricsApiConfig
from confcom.services.metrics_api.metrics_api_http import MetricsApiMetrics
from confcom.services.runtime.tls import read_authorities

COMPONENT = "app.kubernetes.io/component"
PART_OF = ("app.kubernetes.io/part-of", "confcom")
AT_ONCE = 256
"""Exporters that are asked at a time; many, so that nodes that do not answer delay the others little."""


class Exporters:
    """The exporters of the cluster; keeps the figures up to date."""

    def __init__(
        self,
        config: MetricsApiConfig,
        pods: Callable[[], Iterable[ScaledPod]],
        figures: Figures,
        metrics: MetricsApiMetrics,
        *,
        port: int = EXPORTER_PORT,
    ) -> None:
        self.asked = False
        """Whether every exporter was asked once."""
        self._config = config
        self._pods = pods
        self._figures = figures
        self._metrics = metrics
        self._port = port
        self._known: dict[tuple[str, str], Exporter] = {}
        self._ca = b""
        self._reading = asyncio.Lock()
        self._client: httpx2.AsyncClient | None = None
        self._logged: dict[str, str] = {}

    async def run(self) -> None:
        """Ask every `interval` seconds, until cancelled."""
        try:
            while True:
                await self.ask()
                await asyncio.sleep(self._config.interval)
        finally:
            if self._client is not None:
                await self._client.aclose()

    async def ask(self) -> None:
        """Ask every exporter once."""
        self._known = {key: self._known.get(key, exporter) for key, exporter in self._found()}
        places = asyncio.Semaphore(AT_ONCE)
        try:
            client = await self._connect()
        except ConfcomError as error:
            for exporter in self._known.values():
                exporter.failure = error.message
            self._note("exporters", error.message)
        else:
            await asyncio.gather(*(self._ask(client, one, places) for one in self._known.values()))
        self._publish()
        self.asked = True

    def _found(self) -> Iterable[tuple[tuple[str, str], Exporter]]:
        """The exporters' pods, by uid and address: a pod gets another address when its node starts again."""
        for pod in self._pods():
            component = pod.labels.get(COMPONENT, "")
            ours = pod.namespace == self._config.namespace and pod.labels.get(PART_OF[0]) == PART_OF[1]
            if ours and component in EXPORTERS and pod.node and pod.address and not pod.finished:
                yield (pod.uid, pod.address), Exporter(component, pod.node, pod.address, time.monotonic())

    async def _connect(self) -> httpx2.AsyncClient:
        """The client, another one if the CAs have changed."""
        found = await asyncio.to_thread(read_authorities, Path(self._config.exporters_ca), "the exporters' CA")
        if self._client is None or found != self._ca:
            try:
                context = ssl.create_default_context(cadata=found.decode("ascii", "ignore"))
            except (ssl.SSLError, ValueError) as error:
                raise ConfigError(f"{self._config.exporters_ca} holds no CA: {error}") from error
            if self._client is not None:
                await self._client.aclose()
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=1024, keepalive_expiry=25.0)
            self._client = httpx2.AsyncClient(
                verify=context, trust_env=False, timeout=self._config.timeout, limits=limits
            )
            self._ca = found
        return self._client

    async def _ask(self, client: httpx2.AsyncClient, exporter: Exporter, places: asyncio.Semaphore) -> None:
        async with places:
            try:
                async with asyncio.timeout(self._config.timeout):
                    page = await self._page(client, exporter)
                await self._take(exporter, page)
                reason = ""
            except TimeoutError:
                reason = f"no answer within {self._config.timeout:g} s"
            except (httpx2.HTTPError, OSError) as error:
                reason = str(error) or type(error).__name__
            except FormatError as error:
                reason = error.message
        exporter.failure = reason
        self._note(f"{exporter.component} of node {exporter.node}", reason)

    async def _take(self, exporter: Exporter, page: str) -> None:
        # Read in a thread, because a page may be large; one at a time, because threads of Python would together keep
        # the event loop from answering. Kept in the event loop, where answers are made.
        read = time.monotonic()
        async with self._reading:
            if exporter.component == "metrics":
                exporter.take_epc(await asyncio.to_thread(parse_epc_page, page), read)
            else:
                exporter.take_quotes(await asyncio.to_thread(parse_quotes_page, page), read)

    async def _page(self, client: httpx2.AsyncClient, exporter: Exporter) -> str:
        address = f"[{exporter.address}]" if ":" in exporter.address else exporter.address
        # The name in its certificate is the component's, whatever its address is.
        name = EXPORTERS[exporter.component]
        url = f"https://{address}:{self._port}/metrics"
        async with client.stream("GET", url, headers={"host": name}, extensions={"sni_hostname": name}) as answer:
            if answer.status_code != 200:
                raise FormatError(f"HTTP {answer.status_code}", structure="metrics", field="")
            page = bytearray()
            async for piece in answer.aiter_raw():
                page += piece
                if len(page) > MAX_PAGE:
                    raise FormatError(f"is over {MAX_PAGE} bytes", structure="metrics", field="")
        return page.decode("utf-8", "replace")

    def _publish(self) -> None:
        """Publish the figures to the HTTP application."""
        found: dict[str, dict[str, list[Exporter]]] = {component: {} for component in EXPORTERS}
        for exporter in self._known.values():
            found[exporter.component].setdefault(exporter.node, []).append(exporter)
        self._figures.exporters = found
        now = time.monotonic()
        # One that never answered counts from when it was found: an alert looks at this.
        ages = [now - one.since if (age := one.age(now)) is None else age for one in self._known.values()]
        self._metrics.oldest.set(max(ages, default=0.0))
        for component in EXPORTERS:
            mine = [one for one in self._known.values() if one.component == component]
            failed = sum(1 for one in mine if one.failure)
            self._metrics.exporters.labels(component, "true").set(len(mine) - failed)
            self._metrics.exporters.labels(component, "false").set(failed)

    def _note(self, what: str, reason: str) -> None:
        # Once per reason, not in every round.
        if self._logged.get(what, "") != reason:
            self._logged[what] = reason
            structlog.get_logger().warning("metrics_api.exporter", what=what, reason=reason or "answers again")
