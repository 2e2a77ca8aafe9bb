"""From what a person names with `--collateral` or `--source` to a source: one table for every command and service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from confcom.appraisal.collateral import Collateral
from confcom.collateral.azure_thim import AzureThim
from confcom.collateral.documents import Document, DocumentKey
from confcom.collateral.interface import CollateralSource
from confcom.collateral.local_sources import BundleSource, OfflineSource
from confcom.collateral.pcs_client import DEFAULT_LIMITS, HttpLimits, PcsClient
from confcom.collateral.store import CollateralStore
from confcom.collateral.store_database import is_store_file
from confcom.errors import CollateralNotFound, ConfigError
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import Dialect, PckCaName, Tee, Update

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
def resolve(name: str, options: SourceOptions) -> Iterator[CollateralSource]:
    """The source that a name stands for, while the block runs.

    `intel`, `pccs` (at its default address), `thim`, the URL of a PCS or PCCS, the path of a store, of a folder or of
    a `collateral.json`. Names of services give a source that refuses when `offline` is set.
    """
    url = {"intel": "https://api.trustedservices.intel.com", "pccs": DEFAULT_PCCS}.get(name, name)
    if name == "thim" or "://" in url:
        yield OfflineSource() if options.offline else _service(url, options)
        return
    path = Path(name)
    if is_store_file(path):
        with CollateralStore(path, roots=options.roots, create=False) as store:
            yield StoreSource(store, options.at)
        return
    if not path.exists():
        raise CollateralNotFound(
            f"there is no collateral at {name}",
            advice="Name a folder, a collateral.json, a store, the URL of a collateral service, intel, pccs or thim.",
        )
    yield BundleSource(path)


def _service(url: str, options: SourceOptions) -> CollateralSource:
    if url == "thim":
        return AzureThim(region=options.azure_region, limits=options.limits, proxy=options.proxy)
    base, version = _base_and_version(url)
    host = (urlsplit(base).hostname or "").lower()
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
