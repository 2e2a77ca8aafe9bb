"""The metrics API: a small aggregated API server for custom.metrics.k8s.io/v1beta2, which HPA asks.

It reads the pages of all exporters over TLS, every few seconds. An exporter is a pod of the add-on's namespace with its
component's label. What it says counts only if its certificate is of the exporters' CA and for the component's name: the
label proves nothing.

Every answer is made from memory (`figures`), so no answer waits for an exporter or for the API server. Only the API
server's front proxy is answered. The API server authenticates and authorises each request before it passes it on with
that certificate, so the certificate is enough for every value, and there is no SubjectAccessReview.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated

import httpx2
import msgspec
import structlog
from prometheus_client import CollectorRegistry

from confcom.cluster.client import ClusterObjects, Ref
from confcom.cluster.nodes import scaled_pods
from confcom.errors import ClusterError, ConfcomError, ConfigError, FormatError
from confcom.formats.arguments import parse_tcp_address
from confcom.protocols import custom_metrics
from confcom.protocols.custom_metrics import (
    EXPORTER_PORT,
    EXPORTERS,
    MAX_PAGE,
    NAMESPACE,
    SERVICE,
    FrontProxy,
    ScaledPod,
    parse_front_proxy,
)
from confcom.services.metrics_api.figures import (
    METRICS,
    Exporter,
    Figures,
    Refused,
    parse_epc_page,
    parse_quotes_page,
)
from confcom.services.runtime.http_server import JSON, Listener, Message, Page, Receive, Send
from confcom.services.runtime.process import repeat
from confcom.services.runtime.status_page import IssuedServer, IssuedServerConfig, Metrics, component_registry
from confcom.services.runtime.tls import HeldTls, IssuedCertificate, read_authorities

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class MetricsApiConfig(IssuedServerConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the metrics API; the defaults are those for production."""

    namespace: str = NAMESPACE
    """Namespace of the Service, and of the exporters."""
    service: str = SERVICE
    ca: str = "/etc/confcom/metrics-api-ca"
    exporters_ca: str = "/etc/confcom/exporters-ca/ca.crt"
    """PEM file with the CAs of the exporters' certificates; changes are followed."""
    interval: _Seconds = 5.0
    """Seconds between two reads of every exporter."""
    timeout: _Seconds = 4.0
    """Seconds for the whole answer of an exporter."""
    stale_after: _Seconds = 30.0
    """Seconds after which figures are no longer given: HPA ignores their timestamps."""


FRONT_PROXY = Ref("v1", "ConfigMap", "kube-system", "extension-apiserver-authentication")
"""Where the API server publishes its front proxy's CA."""
FRONT_PROXY_EVERY = 60.0
"""Seconds between two reads of it."""
RETRY_MAX = 30.0
"""Most seconds between two attempts to reach the API; the first is 1, and it doubles."""
IDLE = 150.0
"""Seconds that a connection may stay without a request; more than the 90 after which the API server closes it."""


async def serve(
    config: MetricsApiConfig,
    *,
    clock: Callable[[], datetime],
    stop: asyncio.Event,
    started: Callable[[str], None] | None = None,
    registry: CollectorRegistry | None = None,
    exporter_port: int = EXPORTER_PORT,
) -> None:
    """Serve until `stop` is set, then for as long as the API server needs to find another replica.

    `started` receives the URL. `ConfigError` without credentials for the Kubernetes API.
    """
    api = _MetricsApi(config, clock, registry or component_registry("metrics-api"), exporter_port)
    await api.run(stop, started)


PREFIX = "confcom_metrics_api"
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Seconds; 5,000 pods take some 30 ms."""


class MetricsApiMetrics(Metrics):
    """Metrics of the metrics API. `docs/reference/metrics-api.md` explains each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, PREFIX)
        self.requests = self.counter("requests", "Requests, by HTTP status.", "code")
        self.durations = self.seconds("request_seconds", "What an answer took.", BUCKETS)
        answered = "Exporters in the cluster, by whether they answered the last time."
        self.exporters = self.gauge("exporters", answered, "component", "answered")
        self.oldest = self.gauge("oldest_figures_seconds", "Age of the oldest figures.")
        self.failures = self.counter("cluster_failures", "Times that the Kubernetes API did not do as asked.", "what")

    def show_certificate(self, certificate: IssuedCertificate) -> None:
        """Show the certificate that this replica issued for itself."""
        super().show_certificate(certificate)
        self.reading("certificate_trusted", "1 while there is a usable CA.", lambda: not certificate.not_ready)


class MetricsApiApp:
    """The application. `front_proxy` may be replaced; without one every request is refused."""

    def __init__(self, figures: Figures, metrics: MetricsApiMetrics, *, clock: Callable[[], datetime]) -> None:
        self.front_proxy: FrontProxy | None = None
        self._figures = figures
        self._metrics = metrics
        self._clock = clock
        self._resources = custom_metrics.resource_list(METRICS)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        del receive  # a body is dropped by the server
        begin = time.perf_counter()
        try:
            status, body = 200, self._answer(scope)
        except Refused as refused:
            status, body = refused.status, custom_metrics.failure(refused.status, refused.message)
        except FormatError as error:
            status, body = 400, custom_metrics.failure(400, str(error))
        self._metrics.requests.labels(str(status)).inc()
        self._metrics.durations.observe(time.perf_counter() - begin)
        await Page(status, body, JSON).send(send)

    def _answer(self, scope: Message) -> bytes:
        name = scope["extensions"]["tls"]["client_common_name"]
        if self.front_proxy is None or not self.front_proxy.accepts(name):
            structlog.get_logger().warning("metrics_api.refused", client=scope["client"], certificate=(name or "")[:80])
            raise Refused(401, "only the API server's front proxy is answered here: ask through the Kubernetes API")
        if scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, "values can only be read: GET")
        path: str = scope["path"]
        if path == custom_metrics.PATH:
            return self._resources
        if path in custom_metrics.OPENAPI:
            return custom_metrics.OPENAPI[path]
        request = custom_metrics.parse_request(scope["raw_path"], scope["query_string"])
        if request is None:
            raise Refused(
                404, f"there is nothing at {path[:200]!r}: ask {custom_metrics.PATH}/namespaces/NAMESPACE/pods/*/METRIC"
            )
        values = self._figures.answer(request, monotonic=time.monotonic(), now=self._clock())
        return custom_metrics.value_list(request, values)


class _MetricsApi:
    """One replica."""

    def __init__(
        self, config: MetricsApiConfig, clock: Callable[[], datetime], registry: CollectorRegistry, exporter_port: int
    ) -> None:
        config.check()
        self._config = config
        self._metrics = MetricsApiMetrics(registry)
        self._pods = scaled_pods(config.kubeconfig)
        self._figures = Figures(self._all_pods, stale_after=config.stale_after)
        self._exporters = Exporters(config, self._all_pods, self._figures, self._metrics, port=exporter_port)
        self._app = MetricsApiApp(self._figures, self._metrics, clock=clock)
        self._certificate = IssuedCertificate(
            Path(config.ca), config.names(), common_name="confcom metrics API", clock=clock
        )
        self._metrics.show_certificate(self._certificate)
        self._front_proxy_known = asyncio.Event()
        self._no_front_proxy = "the front proxy's CA has not been read yet"
        self._tls: HeldTls | None = None

    async def run(self, stop: asyncio.Event, started: Callable[[str], None] | None) -> None:
        """Answer until `stop` is set and callers have left."""
        server = IssuedServer(
            name="metrics_api",
            config=self._config,
            app=self._app,
            certificate=self._certificate,
            listener=self._listener,
            not_ready=self._not_ready,
            registry=self._metrics.registry,
        )
        await server.run(
            repeat(self._pods.follow, self._failed("pods"), pause=1.0, longest=RETRY_MAX),
            repeat(self._read_front_proxy, self._failed("front-proxy"), pause=FRONT_PROXY_EVERY, longest=RETRY_MAX),
            self._ask_exporters(),
            stop=stop,
            started=started,
        )

    def _all_pods(self) -> Iterable[ScaledPod]:
        return self._pods.pods.values()

    async def _listener(self, tls: HeldTls) -> Listener:
        """The listener; waits until the front proxy's CA is known."""
        await self._front_proxy_known.wait()
        if self._app.front_proxy is not None:
            tls.require_client(self._app.front_proxy.authority)
        self._tls = tls
        address = parse_tcp_address(self._config.listen)
        return Listener(address=address, tls=tls, max_connections=self._config.max_connections, idle_timeout=IDLE)

    async def _ask_exporters(self) -> None:
        while not self._pods.known:
            await asyncio.sleep(0.1)
        await self._exporters.run()

    async def _read_front_proxy(self) -> None:
        async with ClusterObjects.open(self._config.kubeconfig, None, "confcom-metrics-api") as cluster:
            found = await cluster.get(FRONT_PROXY)
        if found is None:
            raise ClusterError(f"there is no {FRONT_PROXY}: this cluster has no aggregation")
        proxy = parse_front_proxy(found.get("data") or {})
        former = self._app.front_proxy
        if self._tls is not None and (former is None or former.authority != proxy.authority):
            self._tls.require_client(proxy.authority)
        self._app.front_proxy, self._no_front_proxy = proxy, ""
        self._front_proxy_known.set()

    def _failed(self, what: str) -> Callable[[ConfcomError], None]:
        def note(error: ConfcomError) -> None:
            if isinstance(error, ConfigError) and not self._pods.known:
                raise error  # unusable credentials, from the start
            self._metrics.failures.labels(what).inc()
            structlog.get_logger().warning("metrics_api.cluster", what=what, reason=error.message)
            if what == "front-proxy" and self._app.front_proxy is None:
                self._no_front_proxy = error.message

        return note

    def _not_ready(self) -> str:
        if self._no_front_proxy or self._exporters.asked:
            return self._no_front_proxy
        return "the exporters have not been asked yet" if self._pods.known else "the pods are not known yet"


COMPONENT = "app.kubernetes.io/component"
DEVICE_PLUGIN = "device-plugin"
"""The component that publishes a node's EPC."""
PART_OF = ("app.kubernetes.io/part-of", "confcom")
_ALL = "exporters"
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
        self._known = {key: self._known.get(key, exporter) for key, exporter in self._found()}
        places = asyncio.Semaphore(AT_ONCE)
        try:
            client = await self._connect()
        except ConfcomError as error:
            for exporter in self._known.values():
                exporter.failure = error.message
            self._note(_ALL, error.message)
        else:
            await asyncio.gather(*(self._ask(client, one, places) for one in self._known.values()))
        self._publish()
        names = {one.title for one in self._known.values()} | {_ALL}
        self._logged = {what: reason for what, reason in self._logged.items() if what in names}
        self.asked = True

    def _found(self) -> Iterable[tuple[tuple[str, str], Exporter]]:
        """The exporters' pods, by uid and address: a pod gets another address when its node starts again."""
        for pod in self._pods():
            component = self._component(pod)
            if component in EXPORTERS and pod.node and pod.address and not pod.finished:
                yield (pod.uid, pod.address), Exporter(component, pod.node, pod.address, time.monotonic())

    def _component(self, pod: ScaledPod) -> str:
        """The component of the add-on that a pod is of; empty for one of something else."""
        ours = pod.namespace == self._config.namespace and pod.labels.get(PART_OF[0]) == PART_OF[1]
        return pod.labels.get(COMPONENT, "") if ours else ""

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
        self._note(exporter.title, reason)

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
        found: dict[str, dict[str, list[Exporter]]] = {component: {} for component in EXPORTERS}
        for exporter in self._known.values():
            found[exporter.component].setdefault(exporter.node, []).append(exporter)
        for pod in self._pods():
            # A node with EPC, while it has no exporter too: a claim there may be one of EPC.
            if self._component(pod) == DEVICE_PLUGIN and pod.node:
                found["metrics"].setdefault(pod.node, [])
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
