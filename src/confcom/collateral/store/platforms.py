"""Platforms in the store: their PCK certificates, and the TCB that they were last seen at.

A PCK certificate names its platform by the PPID, which is a lasting identifier of a machine: the registry of platforms
keeps only its SHA-256. The certificates themselves contain it, so the store's file is readable by its owner alone.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from confcom.collateral.store.database import StoreDatabase
from confcom.collateral.store.registrations import Registration, put_registration
from confcom.collateral.store.rows import keep_chain, seconds, time_of
from confcom.errors import MismatchError
from confcom.formats.pck_extension import PckExtension, PckTcb
from confcom.pki.certificate import load_certificate, parse_certificates
from confcom.pki.chain import sgx_extension, verify_chain
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import PckCaName, PckCertificateAnswer, Tee

STEP = "pck-certificate"

REMOVED_AT_A_TIME = 100
"""Platforms that are removed in one transaction."""

_UNSEEN = """
    SELECT qe_id, pce_id FROM (
        SELECT qe_id, pce_id, last_seen FROM registrations
        UNION ALL SELECT qe_id, pce_id, last_seen FROM pck_certificates AS c WHERE NOT EXISTS
            (SELECT 1 FROM registrations AS r WHERE r.qe_id = c.qe_id AND r.pce_id = c.pce_id)
    ) GROUP BY qe_id, pce_id HAVING max(last_seen) < ?
"""
_RAW_TCBS = "SELECT cpu_svn, pce_svn FROM platform_tcbs WHERE qe_id = ? AND pce_id = ? AND certificate = ?"
_ASKED = "SELECT coalesce(max(last_seen), 0) FROM registrations WHERE qe_id = ? AND pce_id = ?"


@dataclass(frozen=True, slots=True)
class PlatformTcb:
    """A platform at a raw TCB, as its quote provider names it: QE_ID, PCE-ID (2 bytes), CPUSVN (16 bytes), PCESVN."""

    qe_id: bytes
    pce_id: bytes
    cpu_svn: bytes
    pce_svn: int


def require_one_processor(found: Iterable[VerifiedPck]) -> None:
    """Refuse certificates of several processors: `MismatchError`."""
    if len({verified.extension.ppid for verified in found}) > 1:
        raise MismatchError("the PCK certificates of this platform are of several processors", step=STEP)


def own_tcb(qe_id: bytes, pce_id: bytes, answer: PckCertificateAnswer) -> PlatformTcb:
    """The platform at the TCB that a certificate is for."""
    return PlatformTcb(qe_id, pce_id, answer.tcbm[:16], int.from_bytes(answer.tcbm[16:], "little"))


@dataclass(frozen=True, slots=True)
class VerifiedPck:
    """A PCK certificate that leads to a trusted root; TCBm, FMSPC and CA of the answer are those of the certificate."""

    answer: PckCertificateAnswer
    extension: PckExtension
    root: bytes


@dataclass(frozen=True, slots=True)
class StoredPck:
    """A PCK certificate as it is stored. `raw_tcbs`: those that it is served for, as CPUSVN (16 bytes) and PCESVN."""

    qe_id: bytes
    pce_id: bytes
    answer: PckCertificateAnswer
    source: str
    first_seen: datetime
    last_seen: datetime
    raw_tcbs: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class PlatformUpdate:
    """New certificates of a platform, each for a raw TCB, and what the platform asked for."""

    certificates: tuple[tuple[PlatformTcb, VerifiedPck], ...]
    registrations: tuple[Registration, ...]


@dataclass(frozen=True, slots=True)
class KnownPlatform:
    """A platform that was seen, at its latest TCB. `id` is the SHA-256 of its PPID in hexadecimal digits."""

    id: str
    tee: Tee
    fmspc: bytes
    ca: PckCaName
    tcb: PckTcb
    first_seen: datetime
    last_seen: datetime


class PlatformRegistry:
    """The part of a `CollateralStore` that knows platforms."""

    def __init__(self, database: StoreDatabase, roots: TrustRoots) -> None:
        self._database = database
        self._roots = roots

    def observe(self, extension: PckExtension, *, seen: datetime, tee: Tee = "sgx") -> None:
        """Remember a platform at the TCB of its PCK certificate; an older sighting does not replace a newer one."""
        with self._database.write() as connection:
            _observe(connection, extension, seconds(seen), tee)

    def known(self) -> tuple[KnownPlatform, ...]:
        """Every platform seen, in the order of first sight."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id, tee, fmspc, ca, sgx_components, pce_svn, cpu_svn, first_seen, last_seen "
                "FROM platforms ORDER BY first_seen, id, tee"
            ).fetchall()
            return tuple(_platform(row) for row in rows)

    def kinds(self) -> tuple[tuple[Tee, bytes, PckCaName], ...]:
        """The kinds of platforms that were seen: TEE, FMSPC (6 bytes) and CA."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT DISTINCT tee, fmspc, ca FROM platforms").fetchall()
            return tuple(("tdx" if tee == "tdx" else "sgx", bytes.fromhex(fmspc), _ca(ca)) for tee, fmspc, ca in rows)

    def verify(self, answer: PckCertificateAnswer, pce_id: bytes) -> VerifiedPck:
        """Verify a PCK certificate with its chain, for a platform of this PCE-ID (2 bytes)."""
        chain = verify_chain(_whole_chain(answer), roots=self._roots, kind="pck", step=STEP)
        extension = chain.extension
        if extension.pce_id != pce_id:
            raise MismatchError(
                "the PCK certificate is of another PCE", step=STEP, expected=pce_id.hex(), found=extension.pce_id.hex()
            )
        tcbm = extension.tcb.cpu_svn + extension.tcb.pce_svn.to_bytes(2, "little")
        kept = PckCertificateAnswer(answer.certificate, answer.issuer_chain, tcbm, extension.fmspc, chain.ca)
        return VerifiedPck(kept, extension, chain.root.public_key)

    def add_pck_certificate(
        self, platform: PlatformTcb, answer: PckCertificateAnswer, *, seen: datetime, source: str
    ) -> PckCertificateAnswer:
        """Verify a PCK certificate with its chain and keep it for the platform's raw TCB.

        Gives the answer as it was kept: TCBm, FMSPC and CA are those of the certificate itself.
        """
        verified = self.verify(answer, platform.pce_id)
        with self._database.write() as connection:
            keep_pck(connection, platform, verified, seen=seen, source=source)
        return verified.answer

    def keep(self, platforms: Iterable[PlatformUpdate], *, seen: datetime, source: str) -> None:
        """Keep what there is of some platforms, all or none."""
        with self._database.write() as connection:
            for platform in platforms:
                for raw, verified in platform.certificates:
                    keep_pck(connection, raw, verified, seen=seen, source=source)
                for registration in platform.registrations:
                    put_registration(connection, registration)

    def saw(self, platform: PlatformTcb, answer: PckCertificateAnswer, *, seen: datetime) -> None:
        """Note that a platform, which has this certificate in the store, asked for it."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE registrations SET last_seen = max(last_seen, ?) WHERE qe_id = ? AND pce_id = ?",
                (seconds(seen), platform.qe_id.hex(), platform.pce_id.hex()),
            )
            id_ = _id_of(answer.certificate)
            connection.execute("UPDATE platforms SET last_seen = max(last_seen, ?) WHERE id = ?", (seconds(seen), id_))

    def remove(self, qe_id: bytes) -> int:
        """Remove the platforms of a QE_ID: certificates, registrations, and sightings; gives their number.

        A platform has one QE_ID for each PCE-ID, which is always 0000 so far.
        """
        with self._database.write() as connection:
            found = connection.execute(
                "SELECT pce_id FROM registrations WHERE qe_id = :qe_id UNION "
                "SELECT pce_id FROM pck_certificates WHERE qe_id = :qe_id UNION "
                "SELECT pce_id FROM pck_claims WHERE qe_id = :qe_id",
                {"qe_id": qe_id.hex()},
            ).fetchall()
            for (pce_id,) in found:
                _remove(connection, qe_id.hex(), pce_id)
            return len(found)

    def remove_known(self, id_: str) -> int:
        """Remove the platform of an id, with its certificates and registrations; gives 1, or 0 if there is none."""
        with self._database.write() as connection:
            if connection.execute("SELECT 1 FROM platforms WHERE id = ?", (id_,)).fetchone() is None:
                return 0
            # No column leads from a PPID to certificates: all are looked through.
            platforms = connection.execute(
                "SELECT qe_id, pce_id, certificate FROM pck_certificates GROUP BY qe_id, pce_id"
            ).fetchall()
            for qe_id, pce_id, certificate in platforms:
                if _id_of(certificate) == id_:
                    _remove(connection, qe_id, pce_id)
            connection.execute("DELETE FROM pck_claims WHERE processor = ?", (id_,))
            connection.execute("DELETE FROM platforms WHERE id = ?", (id_,))
            return 1

    def remove_unseen(self, since: datetime) -> int:
        """Remove every platform that has neither asked nor been seen since; gives their number."""
        with self._database.read() as connection:
            unseen = connection.execute(_UNSEEN, (seconds(since),)).fetchall()
        removed = 0
        for start in range(0, len(unseen), REMOVED_AT_A_TIME):
            # In pieces, so that other writers get their turn. A platform that asks meanwhile stays.
            with self._database.write() as connection:
                for qe_id, pce_id in unseen[start : start + REMOVED_AT_A_TIME]:
                    asked = connection.execute(_ASKED, (qe_id, pce_id)).fetchone()[0]
                    if asked < seconds(since):
                        _remove(connection, qe_id, pce_id)
                        removed += 1
        with self._database.write() as connection:
            connection.execute("DELETE FROM pck_claims WHERE last_seen < ?", (seconds(since),))
            # Those known by their quotes alone.
            sql = "DELETE FROM platforms WHERE last_seen < ?"
            return removed + connection.execute(sql, (seconds(since),)).rowcount

    def last_asked(self, platform: PlatformTcb) -> datetime:
        """When a platform asked last; 1970 if it never did."""
        with self._database.read() as connection:
            asked = connection.execute(_ASKED, (platform.qe_id.hex(), platform.pce_id.hex())).fetchone()[0]
            return time_of(asked)

    def pck_certificate(self, platform: PlatformTcb) -> PckCertificateAnswer | None:
        """The certificate that was last kept for exactly this raw TCB."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT c.certificate, h.pem, c.tcbm, c.fmspc, c.ca, c.root FROM platform_tcbs t "
                "JOIN pck_certificates c ON c.id = t.certificate JOIN chains h ON h.id = c.chain "
                "WHERE t.qe_id = ? AND t.pce_id = ? AND t.cpu_svn = ? AND t.pce_svn = ?",
                (platform.qe_id.hex(), platform.pce_id.hex(), platform.cpu_svn.hex(), platform.pce_svn),
            ).fetchall()
            return next(iter(self._answers(rows)), None)

    def pck_certificates(self, qe_id: bytes, pce_id: bytes) -> tuple[PckCertificateAnswer, ...]:
        """Every certificate kept for a platform, the one seen last at the front: what a selection chooses from."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT c.certificate, h.pem, c.tcbm, c.fmspc, c.ca, c.root FROM pck_certificates c "
                "JOIN chains h ON h.id = c.chain WHERE c.qe_id = ? AND c.pce_id = ? "
                "ORDER BY c.last_seen DESC, c.id DESC",
                (qe_id.hex(), pce_id.hex()),
            ).fetchall()
            return tuple(self._answers(rows))

    def count_certificates(self) -> int:
        """How many PCK certificates there are, of whatever root."""
        with self._database.read() as connection:
            return int(connection.execute("SELECT count(*) FROM pck_certificates").fetchone()[0])

    def stored_certificates(self) -> Iterator[StoredPck]:
        """Every certificate, read in pieces."""
        last = -1
        while True:
            with self._database.read() as connection:
                rows = connection.execute(
                    "SELECT c.id, c.qe_id, c.pce_id, c.source, c.first_seen, c.last_seen, "
                    "c.certificate, h.pem, c.tcbm, c.fmspc, c.ca, c.root FROM pck_certificates c "
                    "JOIN chains h ON h.id = c.chain WHERE c.id > ? ORDER BY c.id LIMIT 200",
                    (last,),
                ).fetchall()
                pieces = [(row, connection.execute(_RAW_TCBS, (row[1], row[2], row[0])).fetchall()) for row in rows]
            for row, raw in pieces:
                last, qe_id, pce_id, source, first_seen, last_seen = row[:6]
                times = (time_of(first_seen), time_of(last_seen))
                tcbs = tuple((bytes.fromhex(cpu_svn), pce_svn) for cpu_svn, pce_svn in raw)
                for answer in self._answers([row[6:]]):
                    yield StoredPck(bytes.fromhex(qe_id), bytes.fromhex(pce_id), answer, source, *times, tcbs)
            if not rows:
                return

    def _answers(self, rows: Iterable[tuple[bytes, bytes, bytes, str, str, bytes]]) -> Iterator[PckCertificateAnswer]:
        for certificate, chain, tcbm, fmspc, ca, root in rows:
            if self._roots.with_public_key(root) is not None:
                yield PckCertificateAnswer(certificate, chain, tcbm, bytes.fromhex(fmspc), _ca(ca))


def keep_pck(
    connection: sqlite3.Connection, platform: PlatformTcb, verified: VerifiedPck, *, seen: datetime, source: str
) -> None:
    """Keep a certificate for a raw TCB in the transaction that is open."""
    certificate = _keep_certificate(connection, platform, verified.answer, verified.root, seconds(seen), source)
    connection.execute(
        "INSERT INTO platform_tcbs VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET certificate = excluded.certificate",
        (platform.qe_id.hex(), platform.pce_id.hex(), platform.cpu_svn.hex(), platform.pce_svn, certificate),
    )
    _observe(connection, verified.extension, seconds(seen), "sgx")


def restore_pck(connection: sqlite3.Connection, stored: StoredPck, verified: VerifiedPck) -> bool:
    """Keep a certificate of another store in the transaction that is open; whether it is new.

    A raw TCB that has a certificate here keeps it.
    """
    own = (stored.qe_id.hex(), stored.pce_id.hex())
    digest = hashlib.sha256(verified.answer.certificate).digest()
    known = "SELECT 1 FROM pck_certificates WHERE qe_id = ? AND pce_id = ? AND digest = ?"
    new = connection.execute(known, (*own, digest)).fetchone() is None
    platform = own_tcb(stored.qe_id, stored.pce_id, verified.answer)
    for seen in (stored.first_seen, stored.last_seen):
        certificate = _keep_certificate(
            connection, platform, verified.answer, verified.root, seconds(seen), stored.source
        )
        _observe(connection, verified.extension, seconds(seen), "sgx")
    connection.executemany(
        "INSERT OR IGNORE INTO platform_tcbs VALUES (?, ?, ?, ?, ?)",
        [(*own, cpu_svn.hex(), pce_svn, certificate) for cpu_svn, pce_svn in stored.raw_tcbs],
    )
    return new


def _remove(connection: sqlite3.Connection, qe_id: str, pce_id: str) -> None:
    own = (qe_id, pce_id)
    rows = connection.execute("SELECT certificate FROM pck_certificates WHERE qe_id = ? AND pce_id = ?", own)
    ids = {_id_of(certificate) for (certificate,) in rows.fetchall()}
    claimed = connection.execute("SELECT DISTINCT processor FROM pck_claims WHERE qe_id = ? AND pce_id = ?", own)
    ids |= {processor for (processor,) in claimed.fetchall()}
    for table in ("platform_tcbs", "pck_certificates", "registrations", "pck_claims"):
        connection.execute(f"DELETE FROM {table} WHERE qe_id = ? AND pce_id = ?", own)  # noqa: S608
    connection.executemany("DELETE FROM platforms WHERE id = ?", [(id_,) for id_ in ids])


def _id_of(certificate: bytes) -> str:
    """The id of the platform that a stored PCK certificate is of."""
    (der,) = parse_certificates(certificate, structure="PCK certificate", limit=1)
    return platform_id(sgx_extension(load_certificate(der, structure="PCK certificate", field=""), STEP))


def platform_id(extension: PckExtension) -> str:
    """SHA-256 of the PPID in hexadecimal digits."""
    return hashlib.sha256(extension.ppid).hexdigest()


def _whole_chain(answer: PckCertificateAnswer) -> list[bytes]:
    leaf = parse_certificates(answer.certificate, structure="PCK certificate", limit=1)
    return [*leaf, *parse_certificates(answer.issuer_chain, structure="PCK certificate issuer chain")]


def _keep_certificate(
    connection: sqlite3.Connection,
    platform: PlatformTcb,
    answer: PckCertificateAnswer,
    root: bytes,
    seen: int,
    source: str,
) -> int:
    chain = keep_chain(connection, answer.issuer_chain)
    digest = hashlib.sha256(answer.certificate).digest()
    qe_id, pce_id = platform.qe_id.hex(), platform.pce_id.hex()
    fmspc = (answer.fmspc or b"").hex()
    row = connection.execute(
        "INSERT INTO pck_certificates (qe_id, pce_id, tcbm, digest, root, certificate, chain, fmspc, ca, source, "
        "first_seen, last_seen) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET chain = excluded.chain, source = excluded.source, "
        "first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen) "
        "RETURNING id",
        (qe_id, pce_id, answer.tcbm, digest, root, answer.certificate, chain, fmspc, answer.ca, source, seen, seen),
    ).fetchone()
    return int(row[0])


def _observe(connection: sqlite3.Connection, extension: PckExtension, seen: int, tee: Tee) -> None:
    # Only the Platform CA writes an instance id into its certificates.
    ca = "processor" if extension.platform_instance_id is None else "platform"
    tcb = extension.tcb
    connection.execute(
        "INSERT INTO platforms VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
        "fmspc = iif(excluded.last_seen >= last_seen, excluded.fmspc, fmspc), "
        "ca = iif(excluded.last_seen >= last_seen, excluded.ca, ca), "
        "sgx_components = iif(excluded.last_seen >= last_seen, excluded.sgx_components, sgx_components), "
        "pce_svn = iif(excluded.last_seen >= last_seen, excluded.pce_svn, pce_svn), "
        "cpu_svn = iif(excluded.last_seen >= last_seen, excluded.cpu_svn, cpu_svn), "
        "first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen)",
        (
            platform_id(extension),
            tee,
            extension.fmspc.hex(),
            ca,
            bytes(tcb.sgx_components),
            tcb.pce_svn,
            tcb.cpu_svn,
            seen,
            seen,
        ),
    )


def _platform(row: tuple[str, str, str, str, bytes, int, bytes, int, int]) -> KnownPlatform:
    id_, tee, fmspc, ca, components, pce_svn, cpu_svn, first, last = row
    return KnownPlatform(
        id=id_,
        tee="tdx" if tee == "tdx" else "sgx",
        fmspc=bytes.fromhex(fmspc),
        ca=_ca(ca),
        tcb=PckTcb(tuple(components), pce_svn, cpu_svn),
        first_seen=time_of(first),
        last_seen=time_of(last),
    )


def _ca(text: str) -> PckCaName:
    return "processor" if text == "processor" else "platform"
