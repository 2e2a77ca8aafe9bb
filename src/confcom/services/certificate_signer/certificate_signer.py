"""The certificate signer: gives attested pods ordinary TLS certificates, through Kubernetes' own signing requests.

This module has its settings and its life cycle, and writes decisions to the API. `decisions` decides. Replicas need no
leader: each write names the version of the request that was read, so that the second one is refused by the API server,
and nonces need no memory (`protocols/certificate_requests.py`).
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from confcom.appraisal.quote import QuoteVerifier
from confcom.cluster.certificate_requests import MAX_PENDING, CertificateRequests, PendingRequests
from confcom.collateral.sources import RememberedCollateral, SourceOptions
from confcom.errors import ClusterError, ClusterRefused, CollateralError, ConfcomError, ConfigError, FormatError
from confcom.pki.chain import TrustRoots, simulated_world
from confcom.pki.serving_pair import Authority, Pair
from confcom.protocols.certificate_requests import (
    APPROVED,
    DENIED,
    FAILED,
    NONCE_ISSUED,
    SIGNER,
    SigningRequest,
    check_other_signers,
    condition,
)
from confcom.services.certificate_signer.decisions import Decisions, Denial, Grant, PodPolicies
from confcom.services.runtime.allowances import Allowance
from confcom.services.runtime.certificates import (
    CA_KEY,
    CONFLICT,
    CertificateKeeper,
    CertificateMetrics,
    PublishedCa,
    RotationPolicy,
)
from confcom.services.runtime.process import Seconds, WorkerThreads, repeat, run_until
from confcom.services.runtime.status_page import (
    Metrics,
    StatusPage,
    alive,
    component_registry,
    metrics_of,
    parse_address,
    readiness,
)

_DAY = 24 * 3600.0
_TRUST_DOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9._]{0,253}[a-z0-9])?")
DNS_SUFFIXES = ("svc", "svc.cluster.local")
"""The CA may certify names of Services alone: a stolen CA can impersonate no other host."""


class CertificateSignerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the certificate signer; the defaults are those for production."""

    http: str = "[::]:9464"
    """HOST:PORT, or unix:PATH, of /healthz, /readyz and /metrics; empty for none."""
    policies: str = "/etc/confcom/certificate-policies"
    """Folder of policy files of `confcom verify`: NAMESPACE.SERVICEACCOUNT.toml, or NAMESPACE.toml for its other
    accounts. An account without one gets no certificate."""
    trust_domain: str = "cluster.local"
    """The first part of the names spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT."""
    approve_for: tuple[str, ...] = ()
    """Other signers for which requests are approved, after the same checks: of cert-manager,
    clusterissuers.cert-manager.io/NAME."""
    lifetime: Annotated[float, msgspec.Meta(ge=600, le=7 * _DAY)] = _DAY
    """Seconds that a certificate is valid at most; a request may ask for less."""
    collateral: str = "intel"
    """intel, pccs, thim, the URL of a collateral service, a folder, a collateral.json, or a store."""
    collateral_ca: str | None = None
    """PEM file with the CAs that the TLS certificate of the collateral service may be of."""
    trust_roots: tuple[str, ...] = ()
    """PEM files of the roots to trust instead of Intel's: all of them simulated, or none."""

    namespace: str = "confcom-system"
    """Namespace of the Secret and the ConfigMap."""
    secret: str = "confcom-certificate-signer-ca"  # noqa: S105 - a name
    """Secret in which the signer keeps its CA; nothing else may read it."""
    config_map: str = "confcom-attested-pods-ca"
    """ConfigMap that publishes the CA's certificates, under ca-certificates.crt."""
    ca_lifetime: Seconds = 730 * _DAY
    """Seconds that a CA is valid."""
    ca_renew_before: Seconds = 90 * _DAY
    """Seconds before its end at which its successor is made and published."""
    ca_overlap: Seconds = 14 * _DAY
    """Seconds that a successor is published before it signs, and a predecessor after it did."""
    ca_look_every: Seconds = 10.0
    """Seconds between two looks at Secret and ConfigMap."""
    kubeconfig: str | None = None
    """Credentials for the Kubernetes API; else the pod's service account, or the user's own."""

    requests_per_minute: Annotated[int, msgspec.Meta(ge=2)] = 20
    """Requests of one pod in a minute that are looked at; a certificate takes two. Others are denied."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    """Requests that are worked on at a time."""

    def check(self) -> None:
        """Check fields against each other: `ConfigError`."""
        if self.http:
            parse_address(self.http)
        check_other_signers(self.approve_for, simulated=False)
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise ConfigError(f"{self.trust_domain!r} is no trust domain", advice="Write it as cluster.local.")
        if self.ca_renew_before >= self.ca_lifetime or 4 * self.ca_overlap > self.ca_renew_before:
            raise ConfigError(
                "a CA must be renewed within its lifetime, and four overlaps before its end at the latest",
                advice="Leave ca_lifetime, ca_renew_before and ca_overlap as they are, or shorten the last.",
            )
        if self.ca_overlap < self.lifetime:
            raise ConfigError(
                "certificates would outlive the CA that signed them: ca_overlap is less than lifetime",
                advice="Shorten lifetime, or lengthen ca_overlap.",
            )

    def rotation(self, common_name: str) -> RotationPolicy:
        times = (self.ca_lifetime, self.ca_renew_before, self.ca_overlap)
        lifetime, renew_before, overlap = (timedelta(seconds=seconds) for seconds in times)
        return RotationPolicy(DNS_SUFFIXES, lifetime, renew_before, overlap, common_name, Authority)


MANAGER = "confcom-certificate-signer"
PREFIX = "confcom_certificate_signer"
RETRY_MAX = 30.0
"""Most seconds between two attempts to reach the API; the first is 1, and it doubles."""
WAIT = 5.0
"""Seconds before a request is looked at again that could not be decided, such as without collateral."""
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


async def serve(
    config: CertificateSignerConfig,
    *,
    roots: TrustRoots,
    clock: Callable[[], datetime],
    stop: asyncio.Event,
    started: Callable[[str], None] | None = None,
    registry: CollectorRegistry | None = None,
) -> None:
    """Sign until `stop` is set. `started` receives the signer's name once there is a CA.

    `ConfigError` without credentials for the Kubernetes API.
    """
    await _Signer(config, roots, clock, registry or component_registry("certificate-signer")).run(stop, started)


class SignerMetrics(Metrics):
    """Metrics of the signer. `docs/reference/certificate-signer.md` explains each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, PREFIX)
        decided = "Requests that were decided: signed, approved, nonce, denied, or left waiting."
        self.decisions = self.counter("decisions", decided, "outcome", "reason")
        for reason in ("EvidenceRefused", "PolicyUnusable"):  # beforehand, so that the first is an increase
            self.decisions.labels("denied", reason)
        self.durations = self.seconds("decision_seconds", "What a decision took, without writing it.", BUCKETS)
        self.failures = self.counter("cluster_failures", "Times that the Kubernetes API did not do as asked.", "what")


class AuthorityKeeper(CertificateKeeper):
    """Keeps the CA in its Secret, rotates it, and publishes its certificates."""

    def _use(self, pair: Pair) -> None:
        self.served = pair

    @property
    def authority(self) -> Authority | None:
        """The CA that signs now; None before there is one."""
        return self.served if isinstance(self.served, Authority) else None


class _Signer:
    """One replica."""

    def __init__(
        self,
        config: CertificateSignerConfig,
        roots: TrustRoots,
        clock: Callable[[], datetime],
        registry: CollectorRegistry,
    ) -> None:
        config.check()
        self._config = config
        self._clock = clock
        self._metrics = SignerMetrics(registry)
        self._log = structlog.get_logger()
        simulated = simulated_world(roots)
        check_other_signers(config.approve_for, simulated=simulated)
        self._common_name = f"confcom attested pods{', SIMULATED' if simulated else ''}"
        ca = None if config.collateral_ca is None else Path(config.collateral_ca)
        collateral = RememberedCollateral(config.collateral, SourceOptions(roots=roots, at=clock(), ca_certificates=ca))
        self._decisions = Decisions(
            PodPolicies(Path(config.policies), simulated=simulated),
            QuoteVerifier(roots),
            collateral.for_quote,
            trust_domain=config.trust_domain,
            lifetime=timedelta(seconds=config.lifetime),
            simulated=simulated,
        )
        self._signers = (SIGNER, *config.approve_for)
        self._pending = PendingRequests(config.kubeconfig, self._signers)
        self._allowance = Allowance(config.requests_per_minute, time.monotonic)
        self._events = Allowance(1, time.monotonic)
        self._threads = WorkerThreads("decision", threads=config.threads, max_waiting=config.threads)
        self._instance = socket.gethostname()
        self._again: set[str] = set()
        """Names of requests that were counted and are looked at again."""
        self._metrics.reading("pending", "Requests without a decision.", self._count)

    def _count(self) -> float | None:
        return float(len(self._pending)) if self._pending.known else None

    async def run(self, stop: asyncio.Event, started: Callable[[str], None] | None) -> None:
        config = self._config
        shared = CertificateMetrics(self._metrics.registry, PREFIX)
        objects = PublishedCa(
            namespace=config.namespace,
            secret=config.secret,
            config_map=config.config_map,
            key=CA_KEY,
            kubeconfig=config.kubeconfig,
            manager=MANAGER,
        )
        self._keeper = AuthorityKeeper(
            objects, config.rotation(self._common_name), shared, service="certificate_signer", clock=self._clock
        )
        self._metrics.reading("ca_expiry_timestamp_seconds", "When the CA expires.", self._keeper.expiry)
        text = "1 while there is a published CA and the requests are followed."
        self._metrics.reading("ready", text, lambda: float(not self._not_ready()))
        clients = [CertificateRequests(config.kubeconfig, MANAGER) for _ in range(config.threads)]
        actors = [
            self._keeper.run(config.ca_look_every),
            *(
                repeat(partial(self._pending.follow, signer), self._failed, pause=1.0, longest=RETRY_MAX)
                for signer in self._signers
            ),
            *(self._work(client, started if client is clients[0] else None) for client in clients),
        ]
        if config.http:
            pages = {
                "/healthz": alive,
                "/readyz": readiness(self._not_ready),
                "/metrics": metrics_of(self._metrics.registry),
            }
            actors.append(StatusPage(config.http, pages).run())
        try:
            await run_until(stop, *actors)
        finally:
            self._threads.close()
            for client in clients:
                await client.close()
            await objects.close()

    def _not_ready(self) -> str:
        return self._keeper.not_ready or ("" if self._pending.known else "the requests have not been read yet")

    def _failed(self, error: ConfcomError) -> None:
        if isinstance(error, ConfigError) and not self._pending.known:
            raise error  # unusable credentials, from the start
        self._metrics.failures.labels("follow").inc()
        self._log.warning("certificate_signer.cluster", what="follow", reason=error.message)

    async def _work(self, client: CertificateRequests, started: Callable[[str], None] | None) -> None:
        while self._keeper.authority is None or self._keeper.not_ready:
            await asyncio.sleep(0.05)
        if started is not None:
            started(SIGNER)
        while True:
            taken = self._pending.take()
            if taken is None:
                self._pending.changed.clear()
                await self._pending.changed.wait()
                continue
            again = False
            try:
                again = not await self._process(client, taken[0])
            except ConfcomError as error:
                again = True
                # 409: it has changed meanwhile, such as by another replica.
                if not (isinstance(error, ClusterRefused) and error.status == CONFLICT):
                    self._metrics.failures.labels("request").inc()
                    self._log.warning("certificate_signer.request", request=taken[0], reason=error.message)
            except Exception:  # noqa: BLE001 - a mistake of ours with one request must not end all others
                self._metrics.failures.labels("request").inc()
                self._log.exception("certificate_signer.request", request=taken[0])
            finally:
                self._pending.release(taken[0])
            self._again.discard(taken[0])
            if again and len(self._again) < MAX_PENDING:
                self._again.add(taken[0])
            if again:
                asyncio.get_running_loop().call_later(WAIT, self._pending.add, *taken)

    async def _process(self, client: CertificateRequests, name: str) -> bool:
        """Decide on a request as it is now; False if that has to wait."""
        document = await client.get(name)
        if document is None:
            return True
        request = SigningRequest.parse(document)
        authority = self._keeper.authority
        if request.is_decided or request.signer not in self._signers:
            return True
        if request.signer != SIGNER and APPROVED in request.conditions:
            return True  # by hand, or by another replica: its signer signs
        if authority is None:
            return False
        begun = time.perf_counter()
        try:
            self._spend(request)
            decide = partial(
                self._decisions.decide, request, authority, now=self._clock(), random=secrets.token_bytes(16)
            )
            grant = await self._threads.run(decide)
        except Denial as denial:
            self._metrics.durations.observe(time.perf_counter() - begun)
            await self._deny(client, request, document, denial)
            return True
        except CollateralError as error:
            self._metrics.decisions.labels("waits", error.code).inc()
            self._record(request, "waits", error.code, {"why": error.message})
            return False
        self._metrics.durations.observe(time.perf_counter() - begun)
        await self._issue(client, request, document, grant)
        return True

    def _spend(self, request: SigningRequest) -> None:
        """Count the request against its pod's allowance, once: that it has to wait is no fault of the pod."""
        if request.name in self._again:
            return
        try:
            pod = request.requester().pod_uid
        except FormatError:
            return  # the decision says why
        if wait := self._allowance.spend(pod):
            raise Denial(
                "TooManyRequests",
                f"The pod made more than {self._config.requests_per_minute} requests in a minute. Wait {wait} s.",
            )

    async def _issue(
        self, client: CertificateRequests, request: SigningRequest, document: dict[str, object], grant: Grant
    ) -> None:
        if APPROVED not in request.conditions:
            text = f"The evidence meets the policy {grant.facts['policy']}."
            document = await client.decide(document, condition(APPROVED, "EvidenceAccepted", text))
        outcome = "approved" if grant.issued is None else "signed"
        if grant.issued is not None:
            # With all authorities: a requester learns of the next one before it signs.
            await client.issue(document, grant.issued.pem + self._keeper.bundle)
        self._metrics.decisions.labels(outcome, "EvidenceAccepted").inc()
        self._record(request, outcome, "EvidenceAccepted", grant.facts | {"signer": request.signer})

    async def _deny(
        self, client: CertificateRequests, request: SigningRequest, document: dict[str, object], denial: Denial
    ) -> None:
        if APPROVED in request.conditions:  # by hand
            await client.fail(document, condition(FAILED, denial.reason, denial.message))
        else:
            await client.decide(document, condition(DENIED, denial.reason, denial.message))
        outcome = "nonce" if denial.reason == NONCE_ISSUED else "denied"
        self._metrics.decisions.labels(outcome, denial.reason).inc()
        self._record(request, outcome, denial.reason, {"why": denial.message} if outcome == "denied" else {})
        if outcome == "denied":
            await self._report(client, request, denial)

    async def _report(self, client: CertificateRequests, request: SigningRequest, denial: Denial) -> None:
        """Write an event about the pod, one in a minute for each reason; each request itself says why as well."""
        try:
            requester, note = request.requester(), f"{request.name}: {denial.reason}: {denial.message}"
            counted = f"{requester.pod_uid} {denial.reason}"
            if self._events.wait(counted):
                return
            self._events.spend(counted)
            await client.report(requester, denial.reason, note, self._clock(), instance=self._instance)
        except FormatError:
            return
        except ClusterError as error:
            self._metrics.failures.labels("event").inc()
            self._log.warning("certificate_signer.event", request=request.name, reason=error.message)

    def _record(self, request: SigningRequest, outcome: str, reason: str, facts: dict[str, object]) -> None:
        try:
            requester = request.requester()._asdict()
        except FormatError:
            requester = {"username": str(request.spec.get("username", ""))[:253]}
        self._log.info(
            "certificate_signer.decision",
            outcome=outcome,
            reason=reason,
            request=request.name,
            request_uid=request.uid,
            **requester,
            **facts,
        )
