"""PCK certificates of platforms: kept in the store, fetched from upstream, and chosen for a raw TCB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import structlog

from confcom.collateral.documents import keys_for
from confcom.collateral.pck_rules import (
    CertificatesUnavailable,
    require_raw_tcb,
    require_same_platform,
    require_stated,
    select_pck_certificate,
)
from confcom.collateral.platform_collateral import tcb_info_to_select_by
from confcom.collateral.store.platforms import (
    PlatformTcb,
    PlatformUpdate,
    highest,
    own_tcb,
    require_one_processor,
)
from confcom.collateral.store.registrations import Registration
from confcom.errors import CollateralError, CollateralNotFound, FormatError, MismatchError
from confcom.protocols.pcs import PckCertificateAnswer, PckCertRequest, PckCertsRequest, Update
from confcom.services.collateral.cache import CollateralCache
from confcom.services.runtime.process import Overloaded

STRUCTURE = "PCS request"

CLAIM_AGAIN = timedelta(days=1)
"""Age from which upstream is asked again for what a caller without a token claimed."""
NOTE_AGAIN = timedelta(days=1)
"""Time from one noted request of a platform to the next: requests need no token, so writes are bounded."""
MAX_RAW_TCBS = 64
"""Raw TCBs of one platform that are kept for callers without a token, who can name any; a machine has a few."""


class PlatformUnknown(CollateralNotFound):
    """No certificate of this platform is in the store, and there is no upstream. Answered with 461."""


class OtherProcessor(CollateralError):
    """Upstream's certificate is not of the processor that is known under this QE_ID. Answered with 460."""


@dataclass(frozen=True, slots=True)
class FoundPck:
    """A PCK certificate; `lasting`: any caller with the same request may get it from memory."""

    answer: PckCertificateAnswer
    lasting: bool = True
    fallback: str = ""
    """Why it was chosen among the platform's old certificates, instead of one that upstream has for its raw TCB."""


class PckCertificates:
    """Finds, fetches and keeps PCK certificates."""

    def __init__(self, cache: CollateralCache) -> None:
        self._cache = cache
        self._store = cache.store
        self._registrations = cache.store.registrations

    async def find(self, request: PckCertRequest, *, caller: str) -> FoundPck:
        """The certificate for a raw TCB. `caller` is the address that asks.

        (1) the one that was kept for exactly this TCB of a platform that is registered, or that the caller claimed;
        (2) the one that upstream gives, which is kept;
        (3) if upstream gives none, the best of the platform's certificates in the store.
        """
        platform = platform_of(request)
        # (1)
        kept = await self._cache.read(lambda: self._kept(platform, request.encrypted_ppid, caller))
        if kept is not None:
            return kept
        # (2)
        failure: CollateralError | Overloaded | None = None
        if self._cache.upstream is not None:
            try:
                return await self._cache.once(
                    ("pck", request, caller),
                    lambda: self._cache.for_all(
                        f"pck {sha256(repr(platform).encode()).hexdigest()}",
                        lambda: self._kept(platform, request.encrypted_ppid, caller),
                        lambda: self.fetch(request, caller=caller),
                    ),
                    caller=caller,
                )
            except (CollateralError, Overloaded) as error:
                failure = error
        # (3) The platform may have taken an update a moment ago.
        try:
            selected = await self._cache.read(lambda: self._selected(platform, caller))
        except CollateralNotFound as missing:
            raise failure or missing from None
        # It is not kept for this raw TCB: the next request asks upstream again.
        if failure is None:
            return FoundPck(selected, lasting=False)
        reason = str(failure) or "upstream did not answer in time"
        self._cache.note_fallback(platform, reason)
        return FoundPck(selected, lasting=False, fallback=reason)

    def _kept(self, platform: PlatformTcb, encrypted_ppid: bytes | None, caller: str) -> FoundPck | None:
        found, now = self._store.platforms.asked_for(platform), self._cache.clock()
        if found is None:
            claim = self._store.claims.of_caller(caller, platform, encrypted_ppid)
            # A time later than now is from before the clock was set back.
            if claim is None or not timedelta() <= now - claim.last_seen < CLAIM_AGAIN:
                return None
            return FoundPck(claim.answer, lasting=False)
        kept, last_asked = found
        if now - last_asked >= NOTE_AGAIN:
            self._store.platforms.saw(platform, kept, seen=now)
        return FoundPck(kept)

    async def fetch(
        self, request: PckCertRequest, *, trusted: bool = False, asked: bool = True, caller: str | None = None
    ) -> FoundPck:
        """Ask upstream and keep what it gives. `trusted` lets it replace certificates of another processor.

        `asked`: the platform itself asks, not a refresh; `caller` is the address of a request without a token.
        """
        complete, claimed = await self._cache.read(lambda: self._completed(request, caller))
        answer = await self._cache.ask_pck_certificate(complete)
        return await self._cache.keep(
            lambda: self._keep(complete, answer, trusted=trusted, asked=asked, caller=caller, claimed=claimed)
        )

    def _completed(self, request: PckCertRequest, caller: str | None) -> tuple[PckCertRequest, bool]:
        """The request with the encrypted PPID or manifest that the platform was registered with.

        A caller without a token cannot replace these; of a platform that is not registered it may give its own, once.
        The second value: the platform is known by the caller's claim alone.
        """
        given = request.encrypted_ppid is not None or request.platform_manifest is not None
        if given and caller is None:
            return request, False
        platform = platform_of(request)
        for registration in self._registrations.of_platform(platform.qe_id, platform.pce_id):
            ppid, manifest = registration.request.encrypted_ppid, registration.request.platform_manifest
            if ppid is not None or manifest is not None:
                return replace(request, encrypted_ppid=ppid, platform_manifest=manifest), False
        bound = self._store.platforms.pck_certificates(platform.qe_id, platform.pce_id)
        if not given and caller is not None and not bound:
            request = replace(request, encrypted_ppid=self._store.claims.ppid_of_caller(caller, platform))
        return request, caller is not None

    def _keep(
        self,
        request: PckCertRequest,
        answer: PckCertificateAnswer,
        *,
        trusted: bool,
        asked: bool,
        caller: str | None,
        claimed: bool,
    ) -> FoundPck:
        platform, now = platform_of(request), self._cache.clock()
        verified = self._store.platforms.verify(answer, platform.pce_id)
        require_stated(answer, verified.answer)
        require_raw_tcb(verified.answer, cpu_svn=platform.cpu_svn, pce_svn=platform.pce_svn)
        others = self._store.platforms.pck_certificates(platform.qe_id, platform.pce_id)
        if others and not trusted:
            try:
                require_same_platform(others[0], answer, roots=self._store.roots)
            except MismatchError as error:
                raise OtherProcessor(error.message, advice=error.advice()) from error
        if caller is not None and claimed and not others:
            self._store.claims.put(caller, platform, request.encrypted_ppid, verified, seen=now)
            self._store.platforms.observe(verified.extension, seen=now, claimed=True)
            return FoundPck(verified.answer, lasting=False)
        if caller is not None and len(self._registrations.of_platform(platform.qe_id, platform.pce_id)) >= MAX_RAW_TCBS:
            return FoundPck(verified.answer, lasting=False)
        source = self._cache.source
        kept = self._store.platforms.add_pck_certificate(platform, answer, seen=now, source=source, asked=asked)
        self._registrations.put(_cached(request, kept, now, asked=asked))
        return FoundPck(kept)

    async def fetch_all(self, request: PckCertsRequest, *, asked: bool = True) -> PckCertificateAnswer:
        """Ask upstream for all certificates of a platform that gave its manifest, and keep each for its own TCB.

        Gives that of the highest TCB. They may replace certificates of another processor: the platform was registered.
        """
        answers = await self._cache.ask_pck_certificates(request)
        if not answers:
            raise CertificatesUnavailable(f"{self._cache.source} has no PCK certificate for any TCB of this platform")
        return await self._cache.keep(lambda: self._keep_set(request, answers, alone=True, asked=asked))

    def _keep_set(
        self, request: PckCertsRequest, answers: Sequence[PckCertificateAnswer], *, alone: bool, asked: bool
    ) -> PckCertificateAnswer:
        """Verify certificates of one platform, and keep each for its own TCB; gives the one of the highest TCB.

        `alone`: the platform is known by its manifest, and not by a raw TCB. The highest TCB is then taken for its own.
        """
        now, platforms = self._cache.clock(), self._store.platforms
        found = [platforms.verify(answer, request.pce_id) for answer in answers]
        for answer, verified in zip(answers, found, strict=True):
            require_stated(answer, verified.answer)
        require_one_processor(found)
        own = tuple((own_tcb(_qe_id(request), request.pce_id, one.answer), one) for one in found)
        best = highest(found)
        registrations = (_cached(request, best.answer, now, asked=asked),) if alone else ()
        update = PlatformUpdate(own, registrations, best if alone else None)
        platforms.keep([update], seen=now, source=self._cache.source, asked=asked)
        return best.answer

    async def register(
        self, request: PckCertRequest | PckCertsRequest, updates: Sequence[Update] = ("standard",)
    ) -> None:
        """Take a platform in: fetch its certificates and the collateral of these sets for it; offline, queue it.

        A failure of upstream leaves the platform in the queue and is raised.
        """
        now = self._cache.clock()
        if self._cache.upstream is None:
            await self._cache.read(lambda: self._enqueue(request))
            return
        try:
            if isinstance(request, PckCertsRequest):
                answer = await self.fetch_all(request)
            else:
                answer = (await self.fetch(request, trusted=True)).answer
                if request.platform_manifest is not None:
                    await self._fetch_set(request)
        except CollateralError as error:
            missing = isinstance(error, CollateralNotFound)
            state = Registration(request, "unavailable" if missing else "waiting", now)
            await self._cache.read(lambda: self._registrations.put(state))
            raise
        for update in updates:
            for key in keys_for(answer.fmspc or b"", answer.ca or "platform", "sgx", update):
                await self._cache.document(key)

    async def _fetch_set(self, request: PckCertRequest) -> None:
        """Keep what the manifest gets for other TCBs too; upstream may lack it, or not list certificates."""
        whole = PckCertsRequest(request.pce_id, request.encrypted_ppid, request.platform_manifest, qe_id=request.qe_id)
        try:
            answers = await self._cache.ask_pck_certificates(whole)
            await self._cache.keep(lambda: self._keep_set(whole, answers, alone=False, asked=True))
        except (CollateralError, Overloaded) as error:
            structlog.get_logger().info("collateral.pck_set", qe_id=_qe_id(whole).hex(), reason=str(error))

    def _enqueue(self, request: PckCertRequest | PckCertsRequest) -> None:
        if isinstance(request, PckCertsRequest):
            found = self._store.platforms.pck_certificates(_qe_id(request), request.pce_id)
            kept = next(iter(found), None)
        else:
            kept = self._store.platforms.pck_certificate(platform_of(request))
        fmspc = b"" if kept is None else kept.fmspc or b""
        state = Registration(request, "waiting" if kept is None else "cached", self._cache.clock(), fmspc)
        self._registrations.put(state)

    def _selected(self, platform: PlatformTcb, caller: str | None = None) -> PckCertificateAnswer:
        """The best certificate in the store (a call that blocks); why there is none is raised."""
        found = self._store.platforms.pck_certificates(platform.qe_id, platform.pce_id)
        if not found and caller is not None:
            found = self._store.claims.certificates(caller, platform)
        if not found:
            raise PlatformUnknown(
                f"no PCK certificate of the platform with QE_ID {platform.qe_id.hex()} is in the store",
                advice="Register the platform (POST platforms) with a service that has an upstream, or import its "
                "certificates (PUT platformcollateral).",
            )
        tcb_info = tcb_info_to_select_by(self._store, found[0].fmspc or bytes(6), self._cache.clock())
        return select_pck_certificate(found, cpu_svn=platform.cpu_svn, pce_svn=platform.pce_svn, tcb_info=tcb_info)


def _cached(
    request: PckCertRequest | PckCertsRequest, kept: PckCertificateAnswer, now: datetime, *, asked: bool
) -> Registration:
    seen = now if asked else datetime.fromtimestamp(0, UTC)
    return Registration(request, "cached", now, kept.fmspc or b"", seen)


def platform_of(request: PckCertRequest) -> PlatformTcb:
    """The platform and raw TCB of a request; a caching service knows platforms by their QE_ID."""
    return PlatformTcb(_qe_id(request), request.pce_id, request.cpu_svn, request.pce_svn)


def _qe_id(request: PckCertRequest | PckCertsRequest) -> bytes:
    if request.qe_id is None:
        raise FormatError("is missing: a caching service knows platforms by it", structure=STRUCTURE, field="qeid")
    return request.qe_id
