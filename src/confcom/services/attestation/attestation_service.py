"""The attestation service: its settings, and its life from them to sockets."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import structlog
from cryptography import x509

from confcom.appraisal.policy_file import PolicyFile
from confcom.appraisal.quote import QuoteVerifier
from confcom.collateral.bundle import load_policy
from confcom.collateral.documents import DocumentKey, verify_document
from confcom.collateral.sources import FRESH, LIMITS, RememberedCollateral, SourceOptions, open_source, source_name
from confcom.database.changes import Watch
from confcom.errors import ConfcomError, ConfigError
from confcom.formats.arguments import parse_http_url, parse_tcp_address
from confcom.pki.chain import TrustRoots, simulated_world
from confcom.pki.der import UNREADABLE, der_reason
from confcom.protocols.pcs import parse_update
from confcom.services.attestation.administrators import Administrators, PolicyAdministration, TokenHash
from confcom.services.attestation.appraiser import Appraiser
from confcom.services.attestation.attestation_http import AttestationApp, AttestationMetrics
from confcom.services.attestation.attestation_store import (
    FORGOTTEN_AT_ONCE,
    KEYS,
    POLICIES,
    AttestationStore,
    AuditWriter,
)
from confcom.services.attestation.pages import Examiner, Pages
from confcom.services.attestation.signing_keys import RENEWING, KeptKeys, KeyFolder, KeySource
from confcom.services.runtime.allowances import parse_networks
from confcom.services.runtime.certificates import CertificateMetrics, TlsSettings, kept_certificate
from confcom.services.runtime.http_server import Listener, serve_http
from confcom.services.runtime.process import Seconds, WorkerThreads, background
from confcom.services.runtime.status_page import LEAVING, component_registry
from confcom.services.runtime.tls import HeldTls, ReloadingTls, read_authorities
from confcom.tokens.azure import AzureError
from confcom.tokens.policy_jws import check_signer_chain

LOOK_AT_FILES = 5.0
"""Seconds between two looks at the signing keys and the file of administrators."""
LOOK_AT_COLLATERAL = 30.0
"""Seconds between two requests to the source of collateral."""
FORGET_EVERY = 60.0
"""Seconds between two removals of records that are past their retention period, or too many."""
SIMULATED_PREFIX = "/simulated"
"""The API of an instance that judges simulated evidence stands there, so that its URL and issuer say so."""


class AttestationServiceConfig(TlsSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the attestation service; the defaults are those for production."""

    listen: str = "127.0.0.1:8443"
    """HOST:PORT; port 0 takes a free one."""
    tls_config_map: str = "confcom-attestation-ca"
    """ConfigMap that publishes the authorities of the certificate, under ca-certificates.crt."""
    tls_service: str = "confcom-attestation"
    """The Service by which clients find us; the certificate is for its name."""
    url: str | None = None
    """The URL by which clients reach the service: issuer and key address of its tokens. Default: where it listens."""
    store: str = "/var/lib/confcom/attestation.sqlite"
    """Policies, signers and the audit record: an SQLite file, made if it is not there and migrated if an older release
    made it; or postgresql://USER[:PASSWORD]@HOST/DATABASE, which replicas share and `attestation migrate` prepares."""
    audit_days: Annotated[int, msgspec.Meta(ge=1, le=36_525)] = 90
    """Days that records of appraisals are kept. They hold addresses, and measurements that identify machines."""
    audit_records: Annotated[int, msgspec.Meta(ge=1000)] = 500_000
    """Records of appraisals that are kept, the newest; 500,000 take about 600 MB. Looked at once a minute."""
    keys: str = "/var/lib/confcom/attestation-keys"
    """Folder of signing keys, one PEM file with key and certificate each; an empty one gets a first pair. Or a PKCS#11
    URI (RFC 7512)."""
    attest_keys: bool = False
    """Have the enclave in which the service runs vouch for the keys: a quote over each is in its certificate."""
    simulated_machine: str | None = None
    """Machine file of the simulated enclave that vouches for the keys."""
    key_overlap: Seconds = 3600.0
    """Seconds that a new key is published before it signs."""
    collateral: str = "intel"
    """intel, pccs, thim, the URL of a collateral service, a folder, a collateral.json, or a store."""
    collateral_ca: str | None = None
    """PEM file with the CAs that the TLS certificate of the collateral service may be of."""
    update: str = "standard"
    """Sets of collateral: standard, early, numbers. The first decides; tokens have the verdicts under all of them."""
    trust_roots: tuple[str, ...] = ()
    """PEM files of the roots to trust instead of Intel's: all of them simulated, or none."""
    policy: str | None = None
    """Policy file of `confcom verify`, applied before the policy of the attestation type."""
    trust_model: Literal["open", "isolated", "shared"] = "open"
    """open: administrators set policies, signed or not. isolated: signed ones only. shared: none is set."""
    policy_signers: tuple[str, ...] = ()
    """PEM files of the first signers of policies, for isolated."""
    administrators: str | None = None
    """TOML file of administrators: by bearer tokens, OIDC tokens or client certificates. Read again when it changes."""
    administrators_optional: bool = False
    """Whether that file may be missing: until it appears, it names none."""
    admin_token_hash: TokenHash | None = None
    """SHA-512 of the bearer token of one more administrator, 128 hexadecimal digits."""
    max_body: Annotated[int, msgspec.Meta(ge=4096)] = 1 << 20
    """Bytes of a request's body."""
    attest_per_minute: Annotated[int, msgspec.Meta(ge=1)] = 1200
    """Attest calls that one address may make in a minute; beyond it the answer is 429."""
    proxies: tuple[str, ...] = ()
    """Networks of proxies (10.0.0.0/8) that are trusted to name callers in X-Forwarded-For, for limits and records."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    """Appraisals at a time."""
    max_waiting: Annotated[int, msgspec.Meta(ge=1)] = 256
    """Appraisals that may wait; beyond it the answer is 503."""
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 1024
    """Connections at a time."""
    leave_after: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Seconds for which a replica still answers after SIGTERM, so that callers find another one first."""


async def serve(
    config: AttestationServiceConfig,
    *,
    roots: TrustRoots,
    clock: Callable[[], datetime],
    stop: asyncio.Event,
    started: Callable[[str], None] | None = None,
    quote: Callable[[bytes], bytes] | None = None,
) -> None:
    """Serve until `stop` is set. `started` gets the base URL of clients once there is a socket.

    `quote` makes a quote of the enclave in which this runs over 64 bytes; with it the signing keys are attested.

    Raises:
        ConfigError: a setting cannot be used.
    """
    if config.url is not None:
        parse_http_url(config.url, "this service (--url)", advice="Write it as clients do: https://HOST[:PORT].")
    simulated = simulated_world(roots)
    prefix = SIMULATED_PREFIX if simulated else ""
    registry = component_registry("attestation")
    certificate = CertificateMetrics(registry, "confcom_attestation")
    named = None if config.administrators is None else Path(config.administrators)
    administrators = Administrators(
        named, config.admin_token_hash, clock=clock, optional=config.administrators_optional
    )
    async with AsyncExitStack() as stack:
        kept = None
        if config.tls_secret:
            keeping = kept_certificate(config, certificate, service="attestation", clock=clock, stop=stop)
            kept = await stack.enter_async_context(keeping)
            if kept is None:
                return
        listener = _listener(config, None if kept is None else kept.tls)
        authority = partial(_use_client_ca, listener.tls, administrators)
        authority()
        certificate.served_by(listener.tls)
        store = AttestationStore.open(config.store)
        stack.callback(store.close)
        source = _key_source(config.keys, store, simulated=simulated, clock=clock)
        overlap = timedelta(seconds=config.key_overlap)
        keys = KeptKeys(source, store, overlap=overlap, simulated=simulated, clock=clock, quote=quote)
        for name in config.policy_signers:
            store.first_signer(_signer(name), clock())
        workers = WorkerThreads("appraisal", threads=config.threads, max_waiting=config.max_waiting)
        stack.callback(workers.close)
        audit = AuditWriter(store)
        stack.callback(audit.close)
        issuer = (config.url or _own_url(config, listener)).rstrip("/") + prefix
        file = PolicyFile() if config.policy is None else load_policy(config.policy)
        ca = None if config.collateral_ca is None else Path(config.collateral_ca)
        options = SourceOptions(roots=roots, at=clock(), ca_certificates=ca)
        collateral = RememberedCollateral(config.collateral, options)
        state = CollateralState(config.collateral, options, file.grace, clock=clock)
        appraiser = Appraiser(
            store,
            QuoteVerifier(roots),
            collateral,
            file.policy(accept_simulated=simulated),
            grace=file.grace,
            updates=tuple(dict.fromkeys(parse_update(name, setting="update") for name in config.update.split(","))),
            issuer=issuer,
            keys=keys,
            clock=clock,
        )
        administration = PolicyAdministration(store, appraiser, config.trust_model, clock)
        app = AttestationApp(
            appraiser,
            administration,
            administrators,
            store.records,
            keys,
            lambda: (
                (LEAVING if stop.is_set() else "")
                or keys.problem
                or administrators.problem
                or ("" if kept is None else kept.keeper.not_ready)
                or state.problem
                or audit.problem
            ),
            workers,
            audit,
            AttestationMetrics(registry, keys, store),
            issuer=issuer,
            prefix=prefix,
            max_body=config.max_body,
            attest_per_minute=config.attest_per_minute,
            simulated=simulated,
        )
        pages = Pages(
            app,
            Examiner(appraiser, roots, issuer=issuer, keys=keys, clock=clock),
            prefix=prefix,
            secure=issuer.startswith("https://"),
            proxies=parse_networks(config.proxies, "proxies"),
        )
        if store.database.shared:
            watch = Watch(store.database, partial(_changed, keys, appraiser))
            stack.callback(watch.close)
        forget = partial(_forget, store, config.audit_records, timedelta(days=config.audit_days), clock)
        for interval, *looks in (
            (LOOK_AT_FILES, keys.look, administrators.look, authority),
            (LOOK_AT_COLLATERAL, state.look),
            (FORGET_EVERY, forget),
        ):
            await stack.enter_async_context(background("looks", partial(_follow, interval, *looks)))
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be looked at in every full collection
        await serve_http(pages, listener, stop=stop, started=lambda _: started(issuer) if started else None)


class CollateralState:
    """Whether evidence can be judged: the source of collateral is asked for the QE identity, which each one needs.

    Short outages change nothing, because the source's last answers serve.
    """

    def __init__(self, name: str, options: SourceOptions, grace: timedelta, *, clock: Callable[[], datetime]) -> None:
        self._name, self._options, self._grace, self._clock = name, options, grace, clock
        self._failure = "the source has not answered yet"
        self._answered = self._expires = datetime.min.replace(tzinfo=UTC)

    @property
    def problem(self) -> str:
        """Why there are no verdicts; empty where there are."""
        now = self._clock()
        if now - self._answered > FRESH:
            failure = self._failure or f"by this clock the source last answered at {self._answered:%Y-%m-%d %H:%M} UTC"
            return f"no collateral: {failure}"
        if now - self._expires > self._grace:
            source = source_name(self._name)
            return f"no valid collateral: the QE identity of {source} expired on {self._expires:%Y-%m-%d}"
        return ""

    def look(self) -> None:
        """Ask the source."""
        now, before = self._clock(), self._failure
        try:
            with open_source(self._name, replace(self._options, at=now, limits=LIMITS)) as source:
                document = source.fetch_document(DocumentKey.qe_identity("sgx"))
            self._expires = verify_document(document, roots=self._options.roots).expires
            self._answered, self._failure = now, ""
        except ConfcomError as error:
            self._failure = error.message
        if self._failure and self._failure != before:
            structlog.get_logger().warning("attestation.collateral", reason=self._failure)


def _changed(keys: KeptKeys, appraiser: Appraiser, topic: str) -> None:
    """Another replica changed the store, or may have ("")."""
    if topic in ("", POLICIES):
        appraiser.policy_changed()
    if topic in ("", KEYS):
        keys.look()


async def _follow(interval: float, *looks: Callable[[], None]) -> None:
    """Call each of `looks` every `interval` seconds, until cancelled: keys, administrators, collateral, old records.

    A failure is logged when it begins, or changes, and ends no further looks.
    """
    failing: dict[Callable[[], None], str] = {}
    while True:
        for look in looks:
            try:
                await asyncio.to_thread(look)
                failing.pop(look, None)
            except Exception as error:  # noqa: BLE001 - one mistake must not end all further looks
                if failing.get(look) != str(error):
                    log = structlog.get_logger()
                    write = log.warning if isinstance(error, ConfcomError) else log.exception
                    write("attestation.look", reason=str(error))
                failing[look] = str(error)
        await asyncio.sleep(interval)


def _forget(store: AttestationStore, most: int, retention: timedelta, clock: Callable[[], datetime]) -> None:
    """Remove the records that are past their retention period, or too many."""
    while store.forget_records(clock() - retention, most) == FORGOTTEN_AT_ONCE:
        pass


def _key_source(where: str, store: AttestationStore, *, simulated: bool, clock: Callable[[], datetime]) -> KeySource:
    if not where.startswith("pkcs11:"):
        alone = lambda: store.leases.take("signing keys", clock(), RENEWING)  # noqa: E731
        return KeyFolder(Path(where), simulated=simulated, clock=clock, alone=alone)
    try:
        from confcom.services.attestation.pkcs11_keys import Pkcs11Keys
    except ImportError as error:
        raise ConfigError("keys in a PKCS#11 token need python-pkcs11", advice="Install confcom[pkcs11].") from error
    return Pkcs11Keys(where)


def _use_client_ca(tls: HeldTls | None, administrators: Administrators) -> None:
    """Let clients show certificates of the authority that the administrators' file names now, if they want to."""
    if tls is None or (file := administrators.client_ca) is None:
        return
    authority = read_authorities(file, "the CA of client certificates")
    if authority != tls.client_ca:
        tls.require_client(authority, optional=True, place=f" {file}")


def _listener(config: AttestationServiceConfig, held: HeldTls | None) -> Listener:
    tls: HeldTls | None = held
    if held is None and (files := config.tls_files()) is not None:
        tls = ReloadingTls(files)
    return Listener(
        address=parse_tcp_address(config.listen),
        tls=tls,
        max_connections=config.max_connections,
        leave_after=config.leave_after,
    )


def _own_url(config: AttestationServiceConfig, listener: Listener) -> str:
    if config.listen.endswith(":0"):
        raise ConfigError("a free port is in no token", advice="Name the URL of clients (--url), or a port.")
    return f"{'http' if listener.tls is None else 'https'}://{config.listen}"


def _signer(name: str) -> x509.Certificate:
    """The first certificate of a PEM file, with its chain behind it."""
    try:
        chain = x509.load_pem_x509_certificates(read_authorities(Path(name), "the certificate of a policy signer"))
        check_signer_chain(chain)
    except UNREADABLE as error:
        raise ConfigError(
            f"{name} is no certificate of a policy signer: {der_reason(error)}",
            advice="Name a PEM file with its certificate, and those of its issuers up to the root.",
        ) from error
    except AzureError as error:
        raise ConfigError(f"{name}: {error.message}", advice=error.advice()) from error
    return chain[0]
