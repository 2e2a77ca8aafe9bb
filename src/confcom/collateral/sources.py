"""From what a person names with `--collateral` or `--source` to a source: one table for every command and service."""

from __future__ import annotations

import os
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from confcom.appraisal.collateral import PCK_CHAIN_BESIDE, Collateral
from confcom.appraisal.quote import pck_chain_of
from confcom.collateral.bundle import load_bundle
from confcom.collateral.documents import (
    CollateralSource,
    Document,
    DocumentKey,
    check_answer,
    missing_document,
    take_apart,
)
from confcom.collateral.pcs_client import DEFAULT_LIMITS, HttpLimits, PcsClient
from confcom.errors import (
    CollateralError,
    CollateralInvalid,
    CollateralNotFound,
    CollateralUnavailable,
    ConfcomError,
    ConfigError,
    FormatError,
    VerificationError,
)
from confcom.formats.arguments import parse_http_url
from confcom.formats.pck_extension import PckExtension
from confcom.formats.quote import Quote, TeeType
from confcom.input_file import read_bounded
from confcom.pki.chain import TrustRoots, verify_chain
from confcom.protocols.pcs import Dialect, PckCaName, PckCertificateAnswer, PckCertRequest, Tee, Update

if TYPE_CHECKING:
    from confcom.collateral.store.store import CollateralStore

IMDS = "http://169.254.169.254/metadata/THIM"
GLOBAL_CACHE = "https://global.acccache.azure.net"
REGION_CACHE = "https://{region}.thim.azure.net"


class AzureThim:
    """A `CollateralSource` over Azure's Trusted Hardware Identity Management (dcap.md §7.3).

    The instance metadata service gives PCK certificates to virtual machines in Azure, the global cache SGX collateral
    to everyone, and a region's cache TDX collateral: that needs the name of a region, such as `westeurope`. By default
    THIM serves an older TCB info than Intel; verifiers find it stale when its next update has passed.
    """

    def __init__(
        self,
        *,
        region: str | None = None,
        imds: str = IMDS,
        cache: str = GLOBAL_CACHE,
        region_cache: str = REGION_CACHE,
        limits: HttpLimits = DEFAULT_LIMITS,
        proxy: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        if region is not None and not (region.isascii() and region.isalnum()):
            raise ConfigError(f"{region!r} is not the name of an Azure region", advice="Write it as westeurope.")

        def client(url: str, dialect: Dialect, through: str | None) -> PcsClient:
            return PcsClient(url, dialect=dialect, limits=limits, proxy=through, sleep=sleep, chance=chance)

        # The metadata service is link-local: a proxy is not on the way to it.
        self._metadata = client(imds, Dialect.THIM, None)
        self._cache = client(cache, Dialect.THIM, proxy)
        self._region = None if region is None else client(region_cache.format(region=region), Dialect.PCCS, proxy)
        self.source = cache if self._region is None else self._region.source

    def fetch(self, fmspc: bytes, ca: PckCaName, tee: Tee, *, update: Update = "standard") -> Collateral:
        """The collateral of a platform. CRLs come from the same cache as the rest."""
        return self._client(tee).fetch(fmspc, ca, tee, update=update)

    def fetch_document(self, key: DocumentKey) -> Document:
        """One document; those of TDX from the region's cache."""
        return self._client(key.tee or "sgx").fetch_document(key)

    def fetch_pck_certificate(self, request: PckCertRequest) -> PckCertificateAnswer:
        """The PCK certificate of this virtual machine's host, from the metadata service, else from the cache."""
        try:
            return self._metadata.fetch_pck_certificate(request)
        except CollateralUnavailable:
            return self._cache.fetch_pck_certificate(request)

    def _client(self, tee: Tee) -> PcsClient:
        if self._region is not None:
            return self._region
        if tee == "tdx":
            raise ConfigError(
                "THIM serves TDX collateral from its regions' caches only", advice="Name a region, such as westeurope."
            )
        return self._cache


class BundleSource:
    """A `CollateralSource` over one bundle: a folder, or a `collateral.json`. It is read at each call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = str(path)

    def fetch(self, fmspc: bytes, ca: PckCaName, tee: Tee, *, update: Update = "standard") -> Collateral:
        """The bundle, whichever set it is of, unless a number is asked for; whether it fits is the verifier's to say.

        A verifier names what does not fit; a refusal here would hide it.
        """
        collateral = load_bundle(self.path)
        if isinstance(update, int):
            for document in take_apart(collateral, fmspc=fmspc, ca=ca, tee=tee, update=update):
                check_answer(document, source=self.source)
        return collateral

    def fetch_document(self, key: DocumentKey) -> Document:
        """One document of the bundle, held to its key."""
        update = "standard" if key.update is None else key.update
        documents = take_apart(
            load_bundle(self.path),
            fmspc=key.fmspc or bytes(6),
            ca=key.ca or "platform",
            tee=key.tee or "sgx",
            update=update,
        )
        for document in documents:
            if document.key == key:
                check_answer(document, source=self.source)
                return document
        raise missing_document(key, self.source)


class OfflineSource:
    """A `CollateralSource` that refuses every request, in the place of a service in offline mode."""

    source = "offline"

    def fetch(self, fmspc: bytes, ca: PckCaName, tee: Tee, *, update: Update = "standard") -> NoReturn:
        """Always `CollateralUnavailable`."""
        del ca, update
        self._refuse(f"{tee.upper()} collateral of FMSPC {fmspc.hex()}")

    def fetch_document(self, key: DocumentKey) -> NoReturn:
        """Always `CollateralUnavailable`."""
        self._refuse(str(key))

    def _refuse(self, what: str) -> NoReturn:
        raise CollateralUnavailable(
            f"{what} is not here, and offline mode asks no service",
            advice="Bring it with `confcom collateral export` on a machine with a network and `import` here.",
        )


DEFAULT_PCCS = "https://localhost:8081"
_INTEL_HOSTS = ("trustedservices.intel.com",)
_AZURE_CACHE = "acccache.azure.net"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How sources are reached. `roots` and `at` are for stores: what they may hold, and as of when they are asked."""

    roots: TrustRoots
    at: datetime
    offline: bool = False
    ca_certificates: Path | None = None
    insecure_tls: bool = False
    """Accept any TLS certificate. What comes is signed by Intel all the same; only its freshness is at stake."""
    key: str | None = None
    proxy: str | None = None
    azure_region: str | None = None
    limits: HttpLimits = DEFAULT_LIMITS


SQLITE_MAGIC = b"SQLite format 3\0"
"""What an SQLite file begins with."""


def is_store(name: str) -> bool:
    """Whether a name stands for a store: the URL of a PostgreSQL database, or an SQLite file."""
    if name.startswith(("postgresql:", "postgres:")):
        return True
    try:
        return Path(name).is_file() and read_bounded(name, len(SQLITE_MAGIC))[:-1] == SQLITE_MAGIC
    except OSError:
        return False


def source_name(name: str) -> str:
    """What a source is called in messages, records and pages: its name without the user and password of a URL."""
    if name.startswith(("postgresql:", "postgres:")):
        from confcom.database.engine import DatabaseAddress  # here, as where a store is opened

        return str(DatabaseAddress.parse(name))
    scheme, found, rest = name.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}" if found else name


class StoreSource:
    """A `CollateralSource` over a store, as of one time."""

    def __init__(self, store: CollateralStore, at: datetime) -> None:
        self._store = store
        self._at = at
        self.source = store.source

    def fetch(self, fmspc: bytes, ca: PckCaName, tee: Tee, *, update: Update = "standard") -> Collateral:
        """What was in force at that time."""
        return self._store.collateral(fmspc, ca, tee, at=self._at, update=update)

    def fetch_document(self, key: DocumentKey) -> Document:
        """The version that was in force at that time."""
        return self._store.document(key, at=self._at)


@contextmanager
def open_source(name: str, options: SourceOptions) -> Iterator[CollateralSource]:
    """The source that a name stands for, while the block runs.

    `intel`, `pccs` (at its default address), `thim`, the URL of a PCS or PCCS, a store (its path, or the URL of its
    PostgreSQL database), the path of a folder or of a `collateral.json`. Names of services give a source that refuses
    when `offline` is set.
    """
    if is_store(name):
        # Here, because it takes longer to import than a quote to verify.
        try:
            from confcom.collateral.store.store import CollateralStore
        except ModuleNotFoundError as error:
            raise ConfigError(f"a store needs the package {error.name!r}", advice="Install confcom[store].") from error

        with CollateralStore(name, roots=options.roots, create=False) as store:
            yield StoreSource(store, options.at)
        return
    url = {"intel": "https://api.trustedservices.intel.com", "pccs": DEFAULT_PCCS}.get(name, name)
    if name == "thim" or "://" in url:
        yield OfflineSource() if options.offline else _service(url, options)
        return
    if not os.path.exists(name):  # noqa: PTH110 - for a name that no file can have, too
        raise CollateralNotFound(
            f"there is no collateral at {name}",
            advice="Name a folder, a collateral.json, a store, the URL of a collateral service, intel, pccs or thim.",
        )
    yield BundleSource(Path(name))


def _service(url: str, options: SourceOptions) -> CollateralSource:
    if url == "thim":
        return AzureThim(region=options.azure_region, limits=options.limits, proxy=options.proxy)
    base, version = _base_and_version(url)
    host = (parse_http_url(base, "a collateral service").hostname or "").lower()
    verify: bool | Path = options.ca_certificates if options.ca_certificates is not None else not options.insecure_tls
    return PcsClient(
        base,
        api_version=version,
        dialect=_dialect(host),
        verify_tls=verify,
        limits=options.limits,
        key=options.key,
        proxy=options.proxy,
    )


def _dialect(host: str) -> Dialect:
    if any(host == known or host.endswith(f".{known}") for known in _INTEL_HOSTS):
        return Dialect.PCS
    return Dialect.THIM if host.endswith(_AZURE_CACHE) else Dialect.PCCS


def _base_and_version(url: str) -> tuple[str, Literal[3, 4]]:
    """A URL as people copy it from Intel's client configuration, with or without the path of the interface."""
    base, found, rest = url.partition("/sgx/certification")
    version = rest.strip("/")
    if not found or version in {"", "v4"}:
        return base, 4
    if version == "v3":
        return base, 3
    raise ConfigError(f"{url!r} is of a version that is not known", advice="End the URL before /sgx/certification.")


def platform_of(
    quote: Quote, roots: TrustRoots, *, pck_chain: bytes | None = None
) -> tuple[PckExtension, PckCaName, Tee]:
    """The platform that made the quote; its certificate must lead to one of the roots.

    `pck_chain` is PEM given beside a quote that carries no chain.
    """
    found = pck_chain_of(quote, pck_chain)
    try:
        chain = verify_chain(found, roots=roots, kind="pck", step="pck-chain")
    except (FormatError, VerificationError) as error:
        if found is pck_chain:
            raise CollateralInvalid.of(error, PCK_CHAIN_BESIDE) from error
        raise
    return chain.extension, chain.ca, "sgx" if quote.tee is TeeType.SGX else "tdx"


def fetch_for_quote(
    source: CollateralSource,
    quote: Quote,
    roots: TrustRoots,
    *,
    update: Update = "standard",
    pck_chain: bytes | None = None,
) -> Collateral:
    """Ask for the collateral of the platform that made the quote; `pck_chain` goes along with it.

    A wrong answer is the source's fault: `CollateralInvalid`.
    """
    extension, ca, tee = platform_of(quote, roots, pck_chain=pck_chain)
    try:
        found = source.fetch(extension.fmspc, ca, tee, update=update)
    except (FormatError, VerificationError) as error:
        raise CollateralInvalid.of(error, f"the {tee.upper()} collateral of FMSPC {extension.fmspc.hex()}") from error
    return found if pck_chain is None else found.with_pck_chain(pck_chain)


FRESH = timedelta(hours=1)
"""Time for which the source is not asked again."""
MAX_PLATFORMS = 256
"""Kinds of platforms (FMSPC, CA, TEE) whose collateral is remembered; a node has one, an attestation service many."""
MAX_CHAINS = 4096
"""PCK chains whose kind of platform is remembered, by digest."""
PlatformKind = tuple[bytes, PckCaName, Tee]
"""FMSPC, the CA of the PCK certificate, and what is judged."""
LIMITS = HttpLimits(timeout=3.0, deadline=4.0, retries=0)
"""A probe waits for the answer, and is repeated."""


class RememberedCollateral:
    """Collateral for repeated verification of the same few platforms: asks a source at most once an hour.

    While the source does not answer, its last answer serves; the verifier decides whether that is too old. What was
    asked for by a clock that was ahead is asked for again.
    """

    def __init__(self, name: str, options: SourceOptions) -> None:
        self._name = name
        self._options = replace(options, limits=LIMITS)
        # Several threads ask: `popitem` takes the oldest out in one step.
        self._known: OrderedDict[tuple[PlatformKind, Update], tuple[Collateral, datetime]] = OrderedDict()
        self._kinds: OrderedDict[bytes, PlatformKind] = OrderedDict()
        self._missed: OrderedDict[PlatformKind, None] = OrderedDict()

    def __call__(self, quote: bytes, now: datetime) -> Collateral:
        """The collateral of the platform that made the quote; `CollateralError` where there is none yet."""
        return self.for_quote(Quote.parse(quote), now)

    def remembered(self, platform: PlatformKind, now: datetime, update: Update = "standard") -> Collateral | None:
        """What is known and fresh; None where the source would have to be asked."""
        known = self._known.get((platform, update))
        return known[0] if known is not None and abs(now - known[1]) < FRESH else None

    def held(self, quote: Quote) -> Collateral:
        """What is known, however old, without asking the source: for a TLS handshake, which must not wait.

        `CollateralNotFound` where there is none; the next `refresh` asks for it.
        """
        platform = self.platform(quote)
        known = self._known.get((platform, "standard"))
        if known is not None:
            return known[0]
        self._missed[platform] = None
        if len(self._missed) > MAX_PLATFORMS:
            self._missed.popitem(last=False)
        fmspc, ca, tee = platform
        raise CollateralNotFound(
            f"{tee.upper()} collateral of FMSPC {fmspc.hex()} ({ca}) is not in memory",
            advice="Call refresh() of the collateral, outside of the event loop, and connect again.",
        )

    def refresh(self, now: datetime) -> None:
        """Ask for what `held` missed, and again for what is older than an hour. Blocks; for a thread or a timer.

        Raises the last error, after everything was asked for.
        """
        old = [
            kind
            for (kind, update), (_, at) in [*self._known.items()]
            if update == "standard" and abs(now - at) >= FRESH
        ]
        failed: ConfcomError | None = None
        for platform in dict.fromkeys([*self._missed, *old]):
            try:
                self._ask(platform, now, "standard")
            except ConfcomError as error:
                failed = error
        if failed is not None:
            raise failed

    def for_quote(self, quote: Quote, now: datetime, update: Update = "standard") -> Collateral:
        """The collateral for a quote that has been read, of the set `update`."""
        platform = self.platform(quote)
        if (fresh := self.remembered(platform, now, update)) is not None:
            return fresh
        known = self._known.get((platform, update))
        try:
            return self._ask(platform, now, update)
        except CollateralError:
            if known is None:
                raise
            return known[0]

    def _ask(self, platform: PlatformKind, now: datetime, update: Update) -> Collateral:
        # Opened each time, so that a CA file that was renewed is read again.
        with open_source(self._name, replace(self._options, at=now)) as source:
            found = source.fetch(*platform, update=update)
        self._missed.pop(platform, None)
        self._known.pop((platform, update), None)
        self._known[platform, update] = (found, now)
        if len(self._known) > MAX_PLATFORMS:
            self._known.popitem(last=False)
        return found

    def document(self, key: DocumentKey, now: datetime) -> Document:
        """One document from the source; it is not remembered."""
        with open_source(self._name, replace(self._options, at=now)) as source:
            return source.fetch_document(key)

    def platform(self, quote: Quote) -> PlatformKind:
        """By the verified certificate: quotes of one platform in other wrappings are one entry.

        A chain that was verified once names its platform for good, so its digest is remembered.
        """
        digest = sha256(pck_chain_of(quote, None)).digest() + quote.tee.name.encode()
        kind = self._kinds.get(digest)
        if kind is None:
            extension, ca, tee = platform_of(quote, self._options.roots)
            kind = extension.fmspc, ca, tee
            self._kinds[digest] = kind
            if len(self._kinds) > MAX_CHAINS:
                self._kinds.popitem(last=False)
        return kind
