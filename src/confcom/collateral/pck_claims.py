"""PCK certificates that callers without a token asked for: what one says of a QE_ID holds for its address alone.

No certificate holds a QE_ID, so a caller can name another machine's and its own encrypted PPID. Such a claim is kept
for its address, because a quote provider gives the encrypted PPID once and asks without it later. Nothing of it binds
the QE_ID: platforms that are registered or imported are in `store_platforms` and come first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from confcom.collateral.store_database import StoreDatabase
from confcom.collateral.store_platforms import PlatformTcb, VerifiedPck, platform_id
from confcom.collateral.store_rows import keep_chain, seconds, time_of
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import PckCertificateAnswer

MAX_CLAIMS = 200_000
MAX_OF_CALLER = 5_000
"""Claims of one address: behind a proxy that is a fleet. Beyond both limits the ones asked for longest ago go."""

_COLUMNS = "k.encrypted_ppid, k.last_seen, k.processor, k.certificate, h.pem, k.tcbm, k.fmspc, k.ca, k.root"
_FROM = f"SELECT {_COLUMNS} FROM pck_claims k JOIN chains h ON h.id = k.chain"  # noqa: S608


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
        with self._database.write() as connection:
            chain = keep_chain(connection, answer.issuer_chain)
            row = connection.execute(
                "INSERT INTO pck_claims VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "encrypted_ppid = coalesce(excluded.encrypted_ppid, encrypted_ppid), tcbm = excluded.tcbm, "
                "root = excluded.root, certificate = excluded.certificate, chain = excluded.chain, "
                "fmspc = excluded.fmspc, ca = excluded.ca, last_seen = excluded.last_seen",
                (
                    *_key(platform),
                    caller,
                    platform_id(verified.extension),
                    encrypted_ppid,
                    answer.tcbm,
                    verified.root,
                    answer.certificate,
                    chain,
                    (answer.fmspc or b"").hex(),
                    answer.ca,
                    now,
                    now,
                ),
            )
            _keep_latest(connection, "WHERE caller = ?", (caller,), MAX_OF_CALLER)
            if (row.lastrowid or 0) % _part(MAX_CLAIMS) == 0:  # counting them all takes a while
                _keep_latest(connection, "", (), MAX_CLAIMS)

    def of_caller(self, caller: str, platform: PlatformTcb, encrypted_ppid: bytes | None) -> PckClaim | None:
        """What an address claimed for exactly this raw TCB with this encrypted PPID; None means its first processor."""
        where = "WHERE k.qe_id = ? AND k.pce_id = ? AND k.cpu_svn = ? AND k.pce_svn = ? AND k.caller = ?"
        with self._database.read() as connection:
            found = self._claims(connection.execute(f"{_FROM} {where}", (*_key(platform), caller)))
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
        where = "WHERE k.qe_id = ? AND k.pce_id = ?"
        key: tuple[str, ...] = (platform.qe_id.hex(), platform.pce_id.hex())
        with self._database.read() as connection:
            if caller is None:
                return self._claims(connection.execute(f"{_FROM} {where} ORDER BY k.last_seen DESC LIMIT 1000", key))
            first = self._first_processor(connection, platform, caller)
            rows = connection.execute(
                f"{_FROM} {where} AND k.caller = ? AND k.processor = ? ORDER BY k.last_seen DESC LIMIT 1000",
                (*key, caller, first),
            )
            return self._claims(rows)

    @staticmethod
    def _first_processor(connection: sqlite3.Connection, platform: PlatformTcb, caller: str) -> str:
        """Of two processors behind one address the first: a QE_ID becomes known by the quotes of its own machine."""
        row = connection.execute(
            "SELECT processor FROM pck_claims WHERE qe_id = ? AND pce_id = ? AND caller = ? "
            "ORDER BY first_seen, rowid LIMIT 1",
            (platform.qe_id.hex(), platform.pce_id.hex(), caller),
        ).fetchone()
        return "" if row is None else str(row[0])

    def _claims(
        self, rows: Iterable[tuple[bytes | None, int, str, bytes, bytes, bytes, str, str, bytes]]
    ) -> list[PckClaim]:
        return [
            PckClaim(
                PckCertificateAnswer(
                    certificate, chain, tcbm, bytes.fromhex(fmspc), "processor" if ca == "processor" else "platform"
                ),
                ppid,
                time_of(seen),
                processor,
            )
            for ppid, seen, processor, certificate, chain, tcbm, fmspc, ca, root in rows
            if self._roots.with_public_key(root) is not None
        ]


def _key(platform: PlatformTcb) -> tuple[str, str, str, int]:
    return platform.qe_id.hex(), platform.pce_id.hex(), platform.cpu_svn.hex(), platform.pce_svn


def _keep_latest(connection: sqlite3.Connection, where: str, values: tuple[str, ...], limit: int) -> None:
    if connection.execute(f"SELECT count(*) FROM pck_claims {where}", values).fetchone()[0] > limit:  # noqa: S608
        connection.execute(
            f"DELETE FROM pck_claims WHERE rowid IN (SELECT rowid FROM pck_claims {where} "  # noqa: S608
            "ORDER BY last_seen, rowid LIMIT ?)",
            (*values, _part(limit)),
        )


def _part(limit: int) -> int:
    return max(1, limit // 100)
