"""The certificate of a service in a cluster: one for all replicas, trusted by clients before it is served.

The replicas agree through a Secret: each write is conditional on what was read, and after a conflict the Secret is read
again. A ConfigMap publishes the authorities to clients. No request needs the Kubernetes API: an outage of it delays the
next rotation alone.

A successor is first made and published, then used, and its predecessor stays published for a while, so that no client
meets a certificate of an authority that it does not know. Only a service that signs certificates for others keeps the
keys of its authorities.
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from confcom.cluster.client import CLIENT_LIFETIME, ClusterObjects, Ref
from confcom.errors import ClusterError, ClusterRefused, ConfcomError, ConfigError
from confcom.pki.serving_pair import Authority, Pair, ServingPair, authorities_in, make_serving_pair, service_names
from confcom.services.runtime.process import Seconds
from confcom.services.runtime.status_page import Metrics
from confcom.services.runtime.tls import HeldTls, OwnCertificate, TlsFiles

CA_KEY = "ca-certificates.crt"
"""What programs on Debian and Ubuntu read in /etc/ssl/certs, so that the ConfigMap can be mounted there."""
MAX_TRUSTED = 8
"""Authorities that are published at a time; usually two at most."""
EVER = datetime.min.replace(tzinfo=UTC)
_DAY = 24 * 3600.0


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a service over TLS: a certificate in files, or one that it keeps in its cluster."""

    tls_certificate: str | None = None
    """PEM chain, leaf first. A renewed file is used without a restart."""
    tls_key: str | None = None
    """PEM key of the certificate."""
    tls_secret: str = ""
    """Instead of files: a Secret of the cluster in which the service keeps a certificate that it makes and renews."""
    tls_given: bool = False
    """The Secret is managed elsewhere: take tls.crt, tls.key and ca.crt from it, and change nothing there."""
    tls_config_map: str = ""
    """ConfigMap that publishes the authorities of the certificate, under ca-certificates.crt."""
    tls_namespace: str = "confcom-system"
    """Namespace of both and of the Service."""
    tls_service: str = ""
    """The Service by which clients find us; the certificate is for its name."""
    tls_hosts: str = ""
    """Further names and addresses of the certificate, with commas between."""
    tls_lifetime: Seconds = 730 * _DAY
    """Seconds that a certificate and its authority are valid: copies of authorities elsewhere are not renewed."""
    tls_renew_before: Seconds = 90 * _DAY
    """Seconds before its end at which its successor is made and published."""
    tls_overlap: Seconds = 14 * _DAY
    """Seconds that a successor is published before it is used, and a predecessor after it was."""
    tls_look_every: Seconds = 10.0
    """Seconds between two looks at Secret and ConfigMap."""
    kubeconfig: str | None = None
    """Credentials for these; else the pod's service account, or the user's own."""
    insecure_http: bool = False
    """Serve without TLS: for a first try on one machine."""

    @property
    def is_plain(self) -> bool:
        """Whether clients are to be served without TLS."""
        return self.insecure_http

    def check(self) -> None:
        """Check fields against each other: `ConfigError`."""
        if self.tls_renew_before >= self.tls_lifetime or 4 * self.tls_overlap > self.tls_renew_before:
            raise ConfigError(
                "a certificate must be renewed within its lifetime, and four overlaps before its end at the latest",
                advice="Leave tls_lifetime, tls_renew_before and tls_overlap as they are, or shorten the last.",
            )
        if self.tls_secret and (self.tls_certificate or self.tls_key or self.is_plain):
            raise ConfigError("TLS is configured twice, or plain HTTP beside it", advice="Leave one of them out.")
        if self.tls_secret:
            self.names()

    def tls_files(self) -> TlsFiles | None:
        """The files of the certificate; None where plain HTTP is asked for. Neither is a `ConfigError`."""
        if self.tls_certificate is None and self.tls_key is None:
            if self.is_plain:
                return None
            raise ConfigError(
                "no TLS certificate is given",
                advice="Give --tls-certificate and --tls-key; for a first try on this machine, --insecure-http.",
            )
        if self.tls_certificate is None or self.tls_key is None:
            raise ConfigError("a TLS certificate and its key come together", advice="Give both, or neither.")
        if self.is_plain:
            raise ConfigError("TLS is configured, and plain HTTP too", advice="Leave one of them out.")
        return TlsFiles(Path(self.tls_certificate), Path(self.tls_key))

    def names(self) -> tuple[str, ...]:
        """The names of a certificate that the service makes."""
        return service_names(self.tls_service, self.tls_namespace, self.tls_hosts, setting="tls_hosts")


class CertificateMetrics(Metrics):
    """What is shown of a TLS certificate."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        super().__init__(registry, prefix)
        kinds = "Of a certificate kept in a Secret: served, told (its CA published), failed (the Kubernetes API)."
        self.events = self.counter("certificate_events", kinds, "event")
        for event in ("served", "told", "failed"):  # beforehand, so that the first is an increase
            self.events.labels(event)

    def served_by(self, tls: HeldTls | None) -> None:
        """Show when the certificate in use expires; nothing without TLS."""
        if tls is not None:

            def expiry() -> float | None:
                return None if (expires := tls.expires) is None else expires.timestamp()

            text = "When the certificate in use expires."
            self.reading("certificate_expiry_timestamp_seconds", text, expiry)


class Holding(NamedTuple):
    """What the Secret holds: authorities (PEM each, latest first), the pair in use, and the one that comes next."""

    trusted: tuple[bytes, ...] = ()
    current: Pair | None = None
    prepared: Pair | None = None
    since: datetime = EVER
    """When the pair was taken into use."""

    @classmethod
    def parse(cls, data: Mapping[str, bytes], kind: type[Pair] = ServingPair) -> Holding:
        """Read the Secret's data; what is broken counts as missing."""
        trusted = authorities_in(data.get("ca.crt", b""))[:MAX_TRUSTED]
        current = kind.parse(data.get("tls.crt", b""), data.get("tls.key", b""))
        prepared = kind.parse(data.get("next.crt", b""), data.get("next.key", b""))
        return cls(trusted, current, prepared, _time(data.get("tls.since", b"")))

    def data(self) -> dict[str, bytes]:
        found = {"ca.crt": self.bundle}
        if self.current is not None:
            found |= {"tls.crt": self.current.certificate, "tls.key": self.current.key}
            found |= {"tls.since": self.since.isoformat().encode()}
        if self.prepared is not None:
            found |= {"next.crt": self.prepared.certificate, "next.key": self.prepared.key}
        return found

    @property
    def bundle(self) -> bytes:
        """All trusted authorities, as they are published."""
        return b"".join(self.trusted)

    def trusts(self, pair: Pair) -> bool:
        """Whether one of the authorities signed the pair."""
        return any(pair.is_issued_by(authority) for authority in self.trusted)


class RotationPolicy(NamedTuple):
    """When certificates are replaced; `TlsSettings` gives the reasons."""

    names: Sequence[str]
    lifetime: timedelta
    renew_before: timedelta
    overlap: timedelta
    common_name: str
    kind: type[Pair] = ServingPair
    """Authority: the CA is kept itself, with its key, for a service that signs."""

    @classmethod
    def of(cls, config: TlsSettings, service: str) -> RotationPolicy:
        times = (config.tls_lifetime, config.tls_renew_before, config.tls_overlap)
        lifetime, renew_before, overlap = (timedelta(seconds=seconds) for seconds in times)
        return cls(config.names(), lifetime, renew_before, overlap, f"confcom {service} service")


def next_holding(held: Holding, policy: RotationPolicy, *, now: datetime, bundle_in_force: bool) -> Holding:
    """What the Secret should hold now; the same object if that is what it holds.

    `bundle_in_force` says whether all the authorities that are held are published.
    """
    current, prepared = held.current, held.prepared
    if current is None or current.expires <= now or not held.trusts(current):
        authority, pair = _make(policy, now)
        return Holding((authority,), pair, since=now)
    if prepared is not None and not (held.trusts(prepared) and now < prepared.expires):
        return held._replace(prepared=None)
    if prepared is not None:
        waited = now - prepared.made >= policy.overlap
        return held._replace(current=prepared, prepared=None, since=now) if waited and bundle_in_force else held
    if current.expires - now <= policy.renew_before or not current.names.issuperset(policy.names):
        authority, pair = _make(policy, now)
        return held._replace(trusted=(authority, *held.trusted)[:MAX_TRUSTED], prepared=pair)
    if len(held.trusted) > 1 and now - held.since >= policy.overlap:
        kept = tuple(authority for authority in held.trusted if current.is_issued_by(authority))
        return held._replace(trusted=kept) if len(kept) < len(held.trusted) else held
    return held


def _make(policy: RotationPolicy, now: datetime) -> tuple[bytes, Pair]:
    if policy.kind is Authority:
        made = Authority.make(policy.common_name, now=now, lifetime=policy.lifetime, names=policy.names)
        return made.certificate, made
    return make_serving_pair(policy.names, now=now, lifetime=policy.lifetime, common_name=policy.common_name)


def _time(text: bytes) -> datetime:
    try:
        found = datetime.fromisoformat(text.decode("ascii"))
    except ValueError:
        return EVER
    return found if found.tzinfo is not None else EVER


CONFLICT = 409
ATTEMPTS = 5
"""Writes of the Secret in one round before a conflict is an error."""


class SecretState(NamedTuple):
    """A Secret's data, and its resourceVersion for a conditional write; None if there is no Secret."""

    version: str | None
    data: Mapping[str, bytes]


class PublishedCa:
    """One server's Secret, and the ConfigMap where clients read its authorities under `key`, PEM after PEM.

    Failures are `ClusterError`; a conditional write that came too late is `ClusterRefused` with status 409.
    `manager` is the field manager of all writes.
    """

    def __init__(
        self, *, namespace: str, secret: str, config_map: str, key: str, kubeconfig: str | None, manager: str
    ) -> None:
        self._secret = Ref("v1", "Secret", namespace, secret)
        self._config_map = Ref("v1", "ConfigMap", namespace, config_map)
        self._key = key
        self._kubeconfig = kubeconfig
        self._manager = manager
        self._cluster: ClusterObjects | None = None
        self._opened = 0.0

    async def close(self) -> None:
        if self._cluster is not None:
            await self._cluster.__aexit__()
            self._cluster = None

    async def secret(self) -> SecretState:
        found = await (await self._open()).get(self._secret)
        if found is None:
            return SecretState(None, {})
        data = found.get("data") or {}
        return SecretState(found["metadata"]["resourceVersion"], {name: _decoded(data[name]) for name in data})

    async def write_secret(self, data: Mapping[str, bytes], *, version: str | None) -> None:
        """Write the Secret's data; refused with 409 if it has changed since `version`."""
        metadata = {"namespace": self._secret.namespace, "name": self._secret.name}
        if version is not None:
            metadata["resourceVersion"] = version
        encoded = {name: b64encode(value).decode() for name, value in data.items()}
        wanted = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded}
        await (await self._open()).apply(wanted)

    async def published(self) -> bytes | None:
        """The authorities that the ConfigMap publishes; None if there is no ConfigMap."""
        found = await (await self._open()).get(self._config_map)
        return None if found is None else (found.get("data") or {}).get(self._key, "").encode()

    async def publish(self, bundle: bytes) -> None:
        metadata = {"namespace": self._config_map.namespace, "name": self._config_map.name}
        data = {self._key: bundle.decode("ascii")}
        await (await self._open()).apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})

    async def _open(self) -> ClusterObjects:
        now = time.monotonic()
        if self._cluster is not None and now - self._opened > CLIENT_LIFETIME:
            await self.close()
        if self._cluster is None:
            self._cluster, self._opened = ClusterObjects.open(self._kubeconfig, None, self._manager), now
        return self._cluster


def _decoded(text: str) -> bytes:
    """Decode base64 of an object; `ClusterError` if it is none."""
    try:
        return b64decode(text)
    except (Base64Error, ValueError) as error:
        raise ClusterError("the Kubernetes API sent bytes that are not in base64") from error


class CertificateKeeper(OwnCertificate):
    """What is served, and whether clients trust it.

    Without a policy the Secret is managed elsewhere: its content is served and published, and never changed.
    """

    def __init__(
        self,
        objects: PublishedCa,
        policy: RotationPolicy | None,
        metrics: CertificateMetrics,
        *,
        service: str,
        clock: Callable[[], datetime],
    ) -> None:
        """`service` begins the names of events in the log."""
        super().__init__()
        self._objects = objects
        self._policy = policy
        self._metrics = metrics
        self._service = service
        self._clock = clock
        self._held = Holding()
        self._log = structlog.get_logger()

    @property
    def bundle(self) -> bytes:
        """All authorities that clients are to trust, PEM after PEM."""
        return self._held.bundle

    async def run(self, every: float) -> None:
        """Repeat `look`. Unusable credentials end it, but only before there is a certificate."""
        logged = ""
        while True:
            try:
                await self.look()
                logged = ""
            except ConfcomError as error:
                if isinstance(error, ConfigError) and self.served is None:
                    raise
                self._metrics.events.labels("failed").inc()
                if self.served is None or self.served.expires <= self._clock():
                    self._not_ready(error.message)
                if str(error) != logged:
                    self._log.warning(
                        f"{self._service}.certificate", outcome="waits", reason=str(error), advice=error.advice()
                    )
                    logged = str(error)
            except Exception:  # noqa: BLE001 - the next look must come, whatever failed in this one
                self._log.exception(f"{self._service}.certificate", outcome="aborted")
            await asyncio.sleep(every)

    async def look(self) -> None:
        """Reconcile Secret, ConfigMap and the served certificate, once."""
        # A successor is only used once clients can have read its authority.
        in_force = self._held.prepared is not None and await self._objects.published() == self._held.bundle
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._held = await self._agree(bundle_in_force=in_force)
                break
            except ClusterRefused as error:
                if error.status != CONFLICT or attempt == ATTEMPTS:
                    raise
        self._serve()
        await self._publish()

    async def _agree(self, *, bundle_in_force: bool) -> Holding:
        """What the Secret holds, after what was due has been written to it."""
        found = await self._objects.secret()
        if self._policy is None:
            return _as_given(Holding.parse(found.data))
        held = Holding.parse(found.data, self._policy.kind)
        if held.current is None and self._held.current is not None:
            held = self._held  # the Secret was emptied: restore what is served
        # What was seen published is the former bundle; a newer one of another replica has to be seen first.
        known = bundle_in_force and held.trusted == self._held.trusted
        wanted = next_holding(held, self._policy, now=self._clock(), bundle_in_force=known)
        if wanted.data() != dict(found.data):
            await self._objects.write_secret(wanted.data(), version=found.version)
            self._log.info(f"{self._service}.secret", outcome="written", trusted=len(wanted.trusted),
                           prepared=wanted.prepared is not None)  # fmt: skip
        return wanted

    def _serve(self) -> None:
        pair = self._held.current
        if pair is None or pair == self.served:
            return
        self._use(pair)
        self._metrics.events.labels("served").inc()
        self._log.info(f"{self._service}.certificate", outcome="served", expires=pair.expires.isoformat())

    async def _publish(self) -> None:
        """Publish the authorities that are held; the service is ready once they are."""
        found = await self._objects.published()
        if found is None:
            self._not_ready("there is no ConfigMap: `confcom addon update` makes it")
            return
        if found != self._held.bundle:
            await self._objects.publish(self._held.bundle)
            self._metrics.events.labels("told").inc()
            self._log.info(f"{self._service}.configuration", outcome="told", kind="ConfigMap", entries=[CA_KEY])
        self._not_ready("")

    def _not_ready(self, reason: str) -> None:
        if reason != self.not_ready:
            self._log.info(f"{self._service}.ready", ready=not reason, reason=reason)
        self.not_ready = reason


def _as_given(held: Holding) -> Holding:
    if held.current is None or not held.trusted:
        raise ClusterError(
            "the Secret with the TLS certificate lacks a usable tls.crt, tls.key or ca.crt",
            advice="Put a PEM chain, leaf first, its key, and the CA's certificate there; cert-manager does just that.",
        )
    return held


class KeptTls(NamedTuple):
    """A certificate, and the keeper that renews it."""

    tls: HeldTls
    keeper: CertificateKeeper


@asynccontextmanager
async def kept_certificate(
    config: TlsSettings,
    metrics: CertificateMetrics,
    *,
    service: str,
    clock: Callable[[], datetime],
    stop: asyncio.Event,
) -> AsyncIterator[KeptTls | None]:
    """The certificate while the block runs, once there is one; None if `stop` was set before.

    `service` is part of the certificate's common name, of the field manager and of events in the log.

    Raises:
        ConfigError: the credentials for the Kubernetes API cannot be used.
    """
    objects = PublishedCa(
        namespace=config.tls_namespace,
        secret=config.tls_secret,
        config_map=config.tls_config_map,
        key=CA_KEY,
        kubeconfig=config.kubeconfig,
        manager=f"confcom-{service}",
    )
    policy = None if config.tls_given else RotationPolicy.of(config, service)
    keeper = CertificateKeeper(objects, policy, metrics, service=service, clock=clock)
    keeping = asyncio.create_task(keeper.run(config.tls_look_every), name="certificate")
    try:
        tls = await _first(keeper, keeping, stop)
        yield None if tls is None else KeptTls(tls, keeper)
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError, Exception):  # what ended it has been raised already
            await keeping
        await objects.close()


async def _first(keeper: CertificateKeeper, keeping: asyncio.Task[None], stop: asyncio.Event) -> HeldTls | None:
    first, stopped = asyncio.create_task(keeper.first()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({first, stopped, keeping}, return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            keeping.result()
        return first.result() if first.done() else None
    finally:
        first.cancel()
        stopped.cancel()
