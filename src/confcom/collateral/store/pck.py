"""PCK certificates: claims of callers without a token, and the rules by which a certificate is accepted and selected.

A claim holds for the caller's address alone.

No certificate holds a QE_ID, so a caller can name another machine's and its own encrypted PPID. Such a claim is kept
for its address, because a quote provider gives the encrypted PPID once and asks without it later. Nothing of it binds
the QE_ID: platforms that are registered or imported are in `store.platforms` and come first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import gt

from confcom.collateral.store.database import StoreDatabase
from confcom.collateral.store.platforms import PlatformTcb, VerifiedPck, platform_id
from confcom.collateral.store.rows import keep_chain, seconds, time_of
from confcom.errors import CollateralNotFound, MismatchError
from confcom.formats.tcb_info import TcbInfo
from confcom.pki.certificate import load_certificate, parse_certificates
from confcom.pki.chain import verify_chain
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


STEP = "pck-certificate"


def require_same_platform(known: PckCertificateAnswer, found: PckCertificateAnswer, *, roots: TrustRoots) -> None:
    """Refuse a certificate of another processor than the known one's: `MismatchError`.

    A caching service knows platforms by their QE_ID, which no certificate holds. Without this check, a caller with
    another machine's QE_ID and its own encrypted PPID would replace that machine's certificate.
    """
    if _ppid(known, roots) != _ppid(found, roots):
        raise MismatchError(
            "the PCK certificate is of another processor than those known under this QE_ID",
            step=STEP,
            expected="the PPID of the certificates that are in the store",
            found="another PPID",
            advice="If the machine was provisioned again, register it with the user token (POST platforms).",
        )


def require_raw_tcb(found: PckCertificateAnswer, *, cpu_svn: bytes, pce_svn: int) -> None:
    """Refuse a certificate for a TCB that the raw one (CPUSVN 16 bytes, PCESVN) does not reach: `MismatchError`.

    Its TCBm is that of the certificate itself. A platform cannot derive the key of such a certificate.
    """
    components, svn = found.tcbm[:16], int.from_bytes(found.tcbm[16:], "little")
    if svn > pce_svn or any(map(gt, components, cpu_svn)):
        raise MismatchError(
            "the PCK certificate is for a TCB that the platform does not reach",
            step=STEP,
            expected=f"at most CPUSVN {cpu_svn.hex()}, PCESVN {pce_svn}",
            found=f"CPUSVN {components.hex()}, PCESVN {svn}",
        )


def require_stated(answer: PckCertificateAnswer, found: PckCertificateAnswer) -> None:
    """Refuse an answer that states other values than its certificate has (`found`): `MismatchError`."""
    for name, stated, own in (
        ("TCBm", answer.tcbm, found.tcbm),
        ("FMSPC", answer.fmspc, found.fmspc),
        ("CA", (answer.ca or "").encode() or None, (found.ca or "").encode()),
    ):
        if stated is not None and stated != own:
            raise MismatchError(
                f"the {name} that comes with the PCK certificate is another than the certificate's",
                step=STEP,
                expected=(own or b"").hex(),
                found=stated.hex(),
            )


def chain_expires(answer: PckCertificateAnswer) -> datetime:
    """When the first certificate of the chain ends."""
    ders = (
        der for pem in (answer.certificate, answer.issuer_chain) for der in parse_certificates(pem, structure="PCK")
    )
    return min(load_certificate(der, structure="PCK", field="certificate").not_after for der in ders)


def _ppid(answer: PckCertificateAnswer, roots: TrustRoots) -> bytes:
    leaf = parse_certificates(answer.certificate, structure="PCK certificate", limit=1)
    issuers = parse_certificates(answer.issuer_chain, structure="PCK certificate issuer chain")
    return verify_chain([*leaf, *issuers], roots=roots, kind="pck", step=STEP).extension.ppid


# Selection of a PCK certificate for a raw TCB (dcap.md §8, Intel's PCK certificate selection library)
#
# A platform that updates its microcode reports a raw TCB that no certificate has exactly; the best certificate is one
# of the highest TCB level that the platform still reaches.


COMPONENTS = 16


class CertificatesUnavailable(CollateralNotFound):
    """The platform is known, but no certificate is for a TCB that it reaches. A caching service answers 462."""


@dataclass(frozen=True, slots=True, order=True)
class _Tcb:
    """Sixteen components, then the PCESVN. The order is total, and agrees with `reaches` where that holds."""

    components: tuple[int, ...]
    pce_svn: int

    def reaches(self, other: _Tcb) -> bool:
        """Whether every component and the PCESVN are at least those of the other."""
        pairs = zip(self.components, other.components, strict=True)
        return self.pce_svn >= other.pce_svn and all(mine >= theirs for mine, theirs in pairs)


def select_pck_certificate(
    certificates: Sequence[PckCertificateAnswer], *, cpu_svn: bytes, pce_svn: int, tcb_info: TcbInfo
) -> PckCertificateAnswer:
    """The certificate to use at a raw TCB (CPUSVN 16 bytes, PCESVN).

    (1) each certificate belongs to the highest level of the TCB info that its own TCB reaches, or to none;
    (2) certificates of a higher level come first, and within a level the higher TCB;
    (3) the first one whose TCB the platform reaches in all components and the PCESVN is taken.

    All are of one platform, as the caller knows; those of another FMSPC than the TCB info's are passed over. If the
    platform reaches none of them: `CertificatesUnavailable`.
    """
    raw = _Tcb(tuple(cpu_svn), pce_svn)
    levels = [_Tcb(level.sgx_components, level.pce_svn) for level in tcb_info.tcb_levels]
    of_the_platform = [found for found in certificates if found.fmspc == tcb_info.fmspc]
    # (1)
    ranked = [(_bucket(_tcb(found), levels), _tcb(found), found) for found in of_the_platform]
    # (2) A stable sort after the other, since one goes up and one goes down.
    ranked.sort(key=lambda entry: entry[1], reverse=True)
    ranked.sort(key=lambda entry: entry[0])
    # (3)
    selected = next((found for _, tcb, found in ranked if raw.reaches(tcb)), None)
    if selected is None:
        raise CertificatesUnavailable(
            f"none of the {len(certificates)} PCK certificates of the platform is for a TCB as low as CPUSVN "
            f"{cpu_svn.hex()}, PCESVN {pce_svn}",
            advice="Update BIOS and microcode, or have the platform's certificates fetched again (refresh?type=certs).",
        )
    return selected


def _bucket(tcb: _Tcb, levels: Sequence[_Tcb]) -> int:
    return next((index for index, level in enumerate(levels) if tcb.reaches(level)), len(levels))


def _tcb(certificate: PckCertificateAnswer) -> _Tcb:
    return _Tcb(tuple(certificate.tcbm[:COMPONENTS]), int.from_bytes(certificate.tcbm[COMPONENTS:], "little"))
