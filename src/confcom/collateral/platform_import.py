"""Takes the JSON of Intel's client tool into a store: document by document, platform by platform.

Everything is verified before it is kept. What is refused is told and does not keep the rest out; a platform is kept
whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from confcom.collateral.documents import DocumentKey, missing_document
from confcom.collateral.pck_selection import CertificatesUnavailable, require_pck_certificate
from confcom.collateral.platform_collateral import PlatformCertificates, PlatformCollateral
from confcom.collateral.registrations import Registration
from confcom.collateral.store import CollateralStore
from confcom.collateral.store_platforms import (
    PlatformTcb,
    PlatformUpdate,
    VerifiedPck,
    own_tcb,
    require_one_processor,
)
from confcom.collateral.verified_document import verify_document
from confcom.errors import ConfcomError
from confcom.formats.tcb_info import SignedTcbInfo, TcbInfo
from confcom.protocols.pcs import PckCertRequest

SOURCE = "platformcollateral"
STEP = "pck-certificate"

BATCH = 20
"""Platforms that are kept in one transaction; other writers wait for so many."""

MAX_FAILURES = 1_000
"""Failures that are kept; more are counted."""


@dataclass(slots=True)
class Taken:
    """What was kept, and what was refused: the name of the document, or the QE_ID of the platform, with the reason."""

    documents: int = 0
    platforms: int = 0
    certificates: int = 0
    refused_documents: list[tuple[str, ConfcomError]] = field(default_factory=list)
    refused_platforms: list[tuple[str, ConfcomError]] = field(default_factory=list)
    refused: int = 0

    def refuse(self, refused: list[tuple[str, ConfcomError]], what: str, error: ConfcomError) -> None:
        """Note a failure in one of the lists."""
        self.refused += 1
        if len(refused) < MAX_FAILURES:
            # Without the stack, which would keep the whole piece in memory.
            refused.append((what[:260], error.with_traceback(None)))


def take_platform_collateral(
    store: CollateralStore,
    collateral: PlatformCollateral,
    *,
    now: datetime,
    proceed: Callable[[], None] = lambda: None,
) -> Taken:
    """Verify and keep what is in the JSON. `proceed` is called before each platform, and may end it by an exception.

    Each raw TCB gets the best of the platform's certificates by Intel's rule, and needs the TCB info for it.
    """
    taken = Taken()
    documents = []
    for name, read_document in collateral.documents():
        proceed()
        try:
            documents.append(verify_document(read_document(), roots=store.roots))
        except ConfcomError as error:
            taken.refuse(taken.refused_documents, name, error)
    store.add_verified(documents, seen=now, source=SOURCE)
    taken.documents = len(documents)
    selection = _Selection(store, now)
    batch: list[PlatformUpdate] = []
    for qe_id, read_platform in collateral.platforms():
        proceed()
        try:
            batch.append(selection.update(read_platform()))
        except ConfcomError as error:
            taken.refuse(taken.refused_platforms, qe_id, error)
            continue
        if len(batch) == BATCH:
            _keep(store, batch, taken, now)
            batch = []
    _keep(store, batch, taken, now)
    return taken


def tcb_info_to_select_by(store: CollateralStore, fmspc: bytes, now: datetime) -> TcbInfo:
    """The TCB info in force, which Intel's rule for PCK certificates needs; `CollateralNotFound` if there is none."""
    key = DocumentKey.tcb_info("sgx", fmspc)
    version = store.in_force(key, at=now)
    if version is None:
        raise missing_document(key, "the store, which chooses a PCK certificate for a raw TCB by it,")
    return SignedTcbInfo.parse(store.load(version).body).tcb_info()


class _Selection:
    """Verifies platforms, and selects the certificates for their raw TCBs. Reads each TCB info once."""

    def __init__(self, store: CollateralStore, now: datetime) -> None:
        self._store = store
        self._now = now
        self._tcb_infos: dict[bytes, TcbInfo] = {}

    def update(self, platform: PlatformCertificates) -> PlatformUpdate:
        """What there is to keep of a platform; whatever is wrong with it is raised."""
        verify = self._store.platforms.verify
        new = {answer.certificate: verify(answer, platform.pce_id) for answer in platform.certificates}
        if not new:
            raise CertificatesUnavailable("no PCK certificate is available for this platform")
        require_one_processor(new.values())
        # At its own TCB too, so that it can be selected for any that is as high.
        kept = [(own_tcb(platform.qe_id, platform.pce_id, one.answer), one) for one in new.values()]
        fmspc = next(iter(new.values())).extension.fmspc
        for request in platform.requests:
            if isinstance(request, PckCertRequest):
                raw = PlatformTcb(platform.qe_id, platform.pce_id, request.cpu_svn, request.pce_svn)
                kept.append((raw, self._best(raw, fmspc, new)))
        registrations = (Registration(request, "cached", self._now, fmspc) for request in platform.requests)
        return PlatformUpdate(tuple(kept), tuple(registrations))

    def _best(self, raw: PlatformTcb, fmspc: bytes, new: dict[bytes, VerifiedPck]) -> VerifiedPck:
        if fmspc not in self._tcb_infos:
            self._tcb_infos[fmspc] = tcb_info_to_select_by(self._store, fmspc, self._now)
        ppid = next(iter(new.values())).extension.ppid
        found = dict(new)
        for answer in self._store.platforms.pck_certificates(raw.qe_id, raw.pce_id):
            if answer.certificate not in new:
                known = self._store.platforms.verify(answer, raw.pce_id)
                # What the machine had before its keys were made again is not for its present key.
                if known.extension.ppid == ppid:
                    found[answer.certificate] = known
        answers = [verified.answer for verified in found.values()]
        tcb_info = self._tcb_infos[fmspc]
        best = require_pck_certificate(answers, cpu_svn=raw.cpu_svn, pce_svn=raw.pce_svn, tcb_info=tcb_info)
        return found[best.certificate]


def _keep(store: CollateralStore, batch: list[PlatformUpdate], taken: Taken, now: datetime) -> None:
    store.platforms.keep(batch, seen=now, source=SOURCE)
    taken.platforms += len(batch)
    taken.certificates += sum(len({id(one) for _, one in update.certificates}) for update in batch)
