"""PCK certificates of the collateral service: by the platform's raw TCB from the store, from upstream, or selected."""

from __future__ import annotations

from dataclasses import replace

from confcom.collateral.documents import DocumentKey, keys_for
from confcom.collateral.pck_platform import require_same_platform
from confcom.collateral.pck_selection import select_pck_certificate
from confcom.collateral.platform_collateral import PlatformCollateral
from confcom.collateral.registrations import Registration, Registrations
from confcom.collateral.store_platforms import PlatformTcb
from confcom.errors import CollateralError, CollateralNotFound, FormatError, MismatchError
from confcom.formats.tcb_info import SignedTcbInfo
from confcom.protocols.pcs import PckCertificateAnswer, PckCertRequest
from confcom.services.collateral_cache import CollateralCache
from confcom.services.worker_threads import Overloaded

STRUCTURE = "PCS request"


class PlatformUnknown(CollateralNotFound):
    """No certificate of this platform is here, and nobody can be asked. Answered with 461."""


class CertificatesUnavailable(CollateralNotFound):
    """The platform is known, but no certificate is for a TCB that it reaches. Answered with 462."""


class OtherProcessor(CollateralError):
    """Upstream's certificate is not of the processor that is known under this QE_ID. Answered with 460."""


class PckCertificates:
    """Finds, fetches and keeps PCK certificates."""

    def __init__(self, cache: CollateralCache, registrations: Registrations) -> None:
        self._cache = cache
        self._store = cache.store
        self._registrations = registrations

    async def find(self, request: PckCertRequest) -> PckCertificateAnswer:
        """The certificate for a raw TCB.

        (1) the one that was kept for exactly this TCB;
        (2) the one that upstream gives, which is kept;
        (3) if nobody can be asked, the best of the platform's certificates in the store.
        """
        platform = platform_of(request)
        # (1)
        kept = await self._cache.read(lambda: self._store.platforms.pck_certificate(platform))
        if kept is not None:
            return kept
        # (2)
        if self._cache.upstream is not None:
            try:
                return await self._cache.once(("pck", request), lambda: self.fetch(request))
            except (CollateralError, Overloaded):
                # (3) The platform may have taken an update a moment ago.
                selected = await self._select(platform, must=False)
                if selected is None:
                    raise
                return selected
        selected = await self._select(platform, must=True)
        if selected is None:
            raise AssertionError("a selection that must succeed says why it does not")
        return selected

    async def fetch(self, request: PckCertRequest, *, trusted: bool = False) -> PckCertificateAnswer:
        """Ask upstream and keep what it gives. `trusted` lets it replace certificates of another processor."""
        platform = platform_of(request)
        known = await self._cache.read(lambda: self._registrations.of_platform(platform.qe_id, platform.pce_id))
        complete = _completed(request, known)
        answer = await self._cache.ask_pck_certificate(complete)
        return await self._cache.keep(lambda: self._keep(complete, answer, trusted=trusted))

    def _keep(self, request: PckCertRequest, answer: PckCertificateAnswer, *, trusted: bool) -> PckCertificateAnswer:
        platform = platform_of(request)
        others = self._store.platforms.pck_certificates(platform.qe_id, platform.pce_id)
        if others and not trusted:
            try:
                require_same_platform(others[0], answer, roots=self._store.roots)
            except MismatchError as error:
                raise OtherProcessor(error.message, advice=error.advice()) from error
        now = self._cache.clock()
        kept = self._store.platforms.add_pck_certificate(platform, answer, seen=now, source=self._cache.source)
        self._registrations.put(Registration(request, "cached", now, kept.fmspc or b""))
        return kept

    async def register(self, request: PckCertRequest) -> bool:
        """Take a platform in: fetch its certificate and the collateral for it, or queue it; says whether it is cached.

        A failure of upstream leaves the platform in the queue and is raised.
        """
        platform = platform_of(request)
        now = self._cache.clock()
        if self._cache.upstream is None:
            kept = await self._cache.read(lambda: self._store.platforms.pck_certificate(platform))
            state = Registration(request, "waiting" if kept is None else "cached", now)
            await self._cache.read(lambda: self._registrations.put(state))
            return kept is not None
        try:
            answer = await self.fetch(request, trusted=True)
        except CollateralError as error:
            missing = isinstance(error, CollateralNotFound)
            state = Registration(request, "unavailable" if missing else "waiting", now)
            await self._cache.read(lambda: self._registrations.put(state))
            raise
        for key in keys_for(answer.fmspc or b"", answer.ca or "platform", "sgx"):
            await self._cache.document(key)
        return True

    async def take(self, collateral: PlatformCollateral) -> int:
        """Verify and keep what an administrator brings; gives how many documents and certificates there were.

        All documents are kept or none. Each raw TCB gets the best of the platform's certificates, by Intel's rule.
        """
        count = await self._cache.read(lambda: self._take(collateral))
        self._cache.store_changed()
        return count

    def _take(self, collateral: PlatformCollateral) -> int:
        now, count = self._cache.clock(), len(collateral.documents)
        self._store.add(collateral.documents, seen=now, source="platformcollateral")
        for platform in collateral.platforms:
            count += len(platform.certificates)
            for answer in platform.certificates:
                # At its own TCB, so that it can be selected for any that is as high.
                svn = int.from_bytes(answer.tcbm[16:], "little")
                own = PlatformTcb(platform.qe_id, platform.pce_id, answer.tcbm[:16], svn)
                self._store.platforms.add_pck_certificate(own, answer, seen=now, source="platformcollateral")
            for request in platform.requests:
                self._settle(request)
        return count

    def _settle(self, request: PckCertRequest) -> None:
        """Give a raw TCB the best certificate of its platform."""
        platform, now = platform_of(request), self._cache.clock()
        best = self._selected(platform)
        if not isinstance(best, PckCertificateAnswer):
            raise best
        self._store.platforms.add_pck_certificate(platform, best, seen=now, source="platformcollateral")
        self._registrations.put(Registration(request, "cached", now, best.fmspc or b""))

    async def _select(self, platform: PlatformTcb, *, must: bool) -> PckCertificateAnswer | None:
        selected = await self._cache.read(lambda: self._selected(platform))
        if isinstance(selected, PckCertificateAnswer):
            return selected
        if must:
            raise selected
        return None

    def _selected(self, platform: PlatformTcb) -> PckCertificateAnswer | CollateralNotFound:
        """The best certificate in the store (a call that blocks), or why there is none."""
        found = self._store.platforms.pck_certificates(platform.qe_id, platform.pce_id)
        if not found:
            return PlatformUnknown(
                f"no PCK certificate of the platform with QE_ID {platform.qe_id.hex()} is in the store",
                advice="Register the platform (POST platforms) with a service that has an upstream, or import its "
                "certificates (PUT platformcollateral).",
            )
        key = DocumentKey.tcb_info("sgx", found[0].fmspc or bytes(6))
        stored = self._cache.stored(key, self._cache.clock())
        if stored is None:
            return CollateralNotFound(
                f"choosing a PCK certificate for this TCB needs the {key}, which is not in the store",
                advice=f"Fetch it: confcom collateral fetch --fmspc {(found[0].fmspc or b'').hex()}.",
            )
        tcb_info = SignedTcbInfo.parse(stored.document.body).tcb_info()
        selected = select_pck_certificate(found, cpu_svn=platform.cpu_svn, pce_svn=platform.pce_svn, tcb_info=tcb_info)
        return selected or CertificatesUnavailable(
            f"none of the {len(found)} PCK certificates of the platform is for a TCB as low as CPUSVN "
            f"{platform.cpu_svn.hex()}, PCESVN {platform.pce_svn}",
            advice="Update BIOS and microcode, or have the platform's certificates fetched again (refresh?type=certs).",
        )


def platform_of(request: PckCertRequest) -> PlatformTcb:
    """The platform and raw TCB of a request; a caching service knows platforms by their QE_ID."""
    if request.qe_id is None:
        raise FormatError("is missing: a caching service knows platforms by it", structure=STRUCTURE, field="qeid")
    return PlatformTcb(request.qe_id, request.pce_id, request.cpu_svn, request.pce_svn)


def _completed(request: PckCertRequest, known: tuple[Registration, ...]) -> PckCertRequest:
    """The request with the encrypted PPID or manifest that the platform once gave, if it gives none now."""
    if request.encrypted_ppid is not None or request.platform_manifest is not None:
        return request
    for registration in known:
        told = registration.request
        if told.encrypted_ppid is not None or told.platform_manifest is not None:
            return replace(request, encrypted_ppid=told.encrypted_ppid, platform_manifest=told.platform_manifest)
    return request
