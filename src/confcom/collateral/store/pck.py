"""PCK certificates that callers without a token claim. A claim holds for the caller's address alone.

No certificate holds a QE_ID, so a caller can name another machine's and its own encrypted PPID. Such a claim is kept
for its address, because a quote provider gives the encrypted PPID once and asks without it later. Nothing of it binds
the QE_ID: platforms that are registered or imported are in `store.platforms` and come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from confcom.collateral.store.database import StoreDatabase
from confcom.collateral.store.platform_sightings import platform_id
from confcom.collateral.store.platforms import PlatformTcb, VerifiedPck
from confcom.collateral.store.rows import ca_of, keep_chain, seconds, time_of
from confcom.collateral.store.schema import CHAINS, PCK_CLAIMS
from confcom.database.engine import Database
from confcom.pki.chain import TrustRoots
from confcom.protocols.pcs import PckCertificateAnswer

MAX_CLAIMS = 200_000
MAX_OF_CALLER = 5_000
"""Claims of one address: behind a proxy that is a fleet. Beyond both limits the ones asked for longest ago go."""

_C = PCK_CLAIMS.c
_PK = (_C.qe_id, _C.pce_id, _C.cpu_svn, _C.pce_svn, _C.caller, _C.processor)
_CLAIMS = sa.select(
    _C.encrypted_ppid, _C.last_seen, _C.processor, _C.certificate, CHAINS.c.pem, _C.tcbm, _C.fmspc, _C.ca, _C.root
).join(CHAINS, CHAINS.c.id == _C.chain)


@dataclass(frozen=True, slots=True)
class PckClaim:
    """A certificate, the encrypted PPID (384 bytes) that it was asked with, if any, and when it was asked for last."""

    answer: PckCertificateAnswer
    encrypted_ppid: bytes | None
    last_seen: datetime
    processor: str


class PckClaims:
    """The claims in a store. A processor is the SHA-256 of a PPID, as in the registry of platforms."""

    def __init__(self, database: StoreDatabase, roots: TrustRoots) -> None:
        self._database = database
        self._roots = roots

    def put(
        self,
        caller: str,
        platform: PlatformTcb,
        encrypted_ppid: bytes | None,
        verified: VerifiedPck,
        *,
        seen: datetime,
    ) -> None:
        """Keep what an address asked for; it replaces what the same address claimed of the same processor."""
        answer, now = verified.answer, seconds(seen)
        values = {
            "processor": platform_id(verified.extension),
            "encrypted_ppid": encrypted_ppid,
            "tcbm": answer.tcbm,
            "root": verified.root,
            "certificate": answer.certificate,
            "fmspc": (answer.fmspc or b"").hex(),
            "ca": answer.ca,
            "last_seen": now,
        }
        with self._database.change() as connection:
            added = Database.insert(connection.dialect.name, PCK_CLAIMS)
            replaced = {name: added.excluded[name] for name in ("tcbm", "root", "certificate", "chain", "fmspc", "ca")}
            kept = added.on_conflict_do_update(
                index_elements=list(_PK),
                set_=replaced
                | {
                    "encrypted_ppid": sa.func.coalesce(added.excluded.encrypted_ppid, _C.encrypted_ppid),
                    "last_seen": now,
                },
            ).returning(_C.number)
            number = connection.execute(sa.select(sa.func.coalesce(sa.func.max(_C.number), 0) + 1)).scalar_one()
            chain = keep_chain(connection, answer.issuer_chain)
            own = platform.columns() | {"caller": caller, "chain": chain, "first_seen": now, "number": number}
            got = connection.execute(kept, own | values).scalar_one()
            _keep_latest(connection, MAX_OF_CALLER, _C.caller == caller)
            if got == number and number % _part(MAX_CLAIMS) == 0:  # counting them all takes a while
                _keep_latest(connection, MAX_CLAIMS)

    def of_caller(self, caller: str, platform: PlatformTcb, encrypted_ppid: bytes | None) -> PckClaim | None:
        """What an address claimed for exactly this raw TCB with this encrypted PPID; None means its first processor."""
        of = [_C[name] == value for name, value in (platform.columns() | {"caller": caller}).items()]
        with self._database.read() as connection:
            found = self._claims(connection, _CLAIMS.where(*of))
            if encrypted_ppid is not None:
                return next((claim for claim in found if claim.encrypted_ppid == encrypted_ppid), None)
            first = self._first_processor(connection, platform, caller)
            return next((claim for claim in found if claim.processor == first), None)

    def ppid_of_caller(self, caller: str, platform: PlatformTcb) -> bytes | None:
        """The encrypted PPID that an address gave last for a QE_ID, of its first processor."""
        claims = self._of_platform(platform, caller)
        return next((claim.encrypted_ppid for claim in claims if claim.encrypted_ppid is not None), None)

    def certificates(self, caller: str, platform: PlatformTcb) -> tuple[PckCertificateAnswer, ...]:
        """The certificates claimed by an address for a QE_ID; of all addresses if it has none and they are at one."""
        claims = self._of_platform(platform, caller) or self._of_platform(platform, None)
        if len({claim.processor for claim in claims}) > 1:
            return ()
        return tuple(claim.answer for claim in claims)

    def _of_platform(self, platform: PlatformTcb, caller: str | None) -> list[PckClaim]:
        chosen = _CLAIMS.where(*_of(platform)).order_by(_C.last_seen.desc()).limit(1000)
        with self._database.read() as connection:
            if caller is not None:
                first = self._first_processor(connection, platform, caller)
                chosen = chosen.where(_C.caller == caller, _C.processor == first)
            return self._claims(connection, chosen)

    @staticmethod
    def _first_processor(connection: sa.Connection, platform: PlatformTcb, caller: str) -> str:
        """Of two processors behind one address the first: a QE_ID becomes known by the quotes of its own machine."""
        claimed = sa.select(_C.processor).where(*_of(platform), _C.caller == caller)
        found = connection.execute(claimed.order_by(_C.first_seen, _C.number).limit(1)).scalar()
        return str(found or "")

    def _claims(self, connection: sa.Connection, chosen: sa.Select[Any]) -> list[PckClaim]:
        return [
            PckClaim(
                PckCertificateAnswer(certificate, chain, tcbm, bytes.fromhex(fmspc), ca_of(ca)),
                ppid,
                time_of(seen),
                processor,
            )
            for ppid, seen, processor, certificate, chain, tcbm, fmspc, ca, root in connection.execute(chosen)
            if self._roots.with_public_key(root) is not None
        ]


def _of(platform: PlatformTcb) -> list[sa.ColumnElement[bool]]:
    return [_C.qe_id == platform.qe_id.hex(), _C.pce_id == platform.pce_id.hex()]


def _keep_latest(connection: sa.Connection, limit: int, *of: sa.ColumnElement[bool]) -> None:
    if connection.execute(sa.select(sa.func.count()).select_from(PCK_CLAIMS).where(*of)).scalar_one() > limit:
        oldest = sa.select(*_PK).where(*of).order_by(_C.last_seen, _C.number).limit(_part(limit))
        connection.execute(sa.delete(PCK_CLAIMS).where(sa.tuple_(*_PK).in_(oldest)))


def _part(limit: int) -> int:
    return max(1, limit // 100)
