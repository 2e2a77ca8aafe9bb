"""AzureThim: collateral from Azure's Trusted Hardware Identity Management (dcap.md §7.3).

Three doors: the instance metadata service gives PCK certificates to virtual machines in Azure, the global cache gives
SGX collateral to everyone, and a region's cache gives TDX collateral. By default THIM serves an older TCB info than
Intel, whose next update may have passed: verifiers then find it stale, which is what it is.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from confcom.appraisal.collateral import Collateral
from confcom.collateral.documents import Document, DocumentKey, fetch_collateral
from confcom.collateral.pcs_client import DEFAULT_LIMITS, HttpLimits, PcsClient
from confcom.errors import CollateralUnavailable, ConfigError
from confcom.protocols.pcs import Dialect, PckCaName, PckCertificateAnswer, PckCertRequest, Tee, Update

IMDS = "http://169.254.169.254/metadata/THIM"
GLOBAL_CACHE = "https://global.acccache.azure.net"
REGION_CACHE = "https://{region}.thim.azure.net"


class AzureThim:
    """A `CollateralSource`. TDX needs the name of a region, such as `westeurope`."""

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
        client = self._client(tee)
        return fetch_collateral(client.fetch_document, fmspc, ca, tee, update=update, source=client.source)

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
