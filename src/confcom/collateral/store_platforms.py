"""Platforms in the store: their PCK certificates for the quotes they make, and the TCB that they were met at.

A PCK certificate names its platform by the PPID, which is a lasting identifier of a machine: the registry of platforms
keeps only its SHA-256. The certificates themselves contain it, so the store's file is readable by its owner alone.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from confcom.collateral.store_database import StoreDatabase
from confcom.collateral.store_rows import keep_chain, seconds, time_of
from confcom.errors import MismatchError
from confcom.formats.pck_extension import PckExtension, PckTcb
from confcom.pki.chain import verify_chain
from confcom.pki.pem import parse_certificates
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import PckCaName, PckCertificateAnswer, Tee

STEP = "pck-certificate"


@dataclass(frozen=True, slots=True)
class PlatformTcb:
    """A platform at a raw TCB, as its quote provider names it: QE_ID, PCE-ID (2 bytes), CPUSVN (16 bytes), PCESVN."""

    qe_id: bytes
    pce_id: bytes
    cpu_svn: bytes
    pce_svn: int


@dataclass(frozen=True, slots=True)
class KnownPlatform:
    """A platform that was met, at its latest TCB. `id` is the SHA-256 of its PPID in hexadecimal digits."""

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
        """Every platform met, the one met first at the front."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id, tee, fmspc, ca, sgx_components, pce_svn, cpu_svn, first_seen, last_seen "
                "FROM platforms ORDER BY first_seen, id, tee"
            ).fetchall()
            return tuple(_platform(row) for row in rows)

    def add_pck_certificate(
        self, platform: PlatformTcb, answer: PckCertificateAnswer, *, seen: datetime, source: str
    ) -> PckCertificateAnswer:
        """Verify a PCK certificate with its chain and keep it for the platform's raw TCB.

        Gives the answer as it was kept: TCBm, FMSPC and CA are those of the certificate itself.
        """
        chain = verify_chain(_whole_chain(answer), roots=self._roots, kind="pck", step=STEP)
        extension = chain.extension
        if extension.pce_id != platform.pce_id:
            raise MismatchError(
                "the PCK certificate is of another PCE",
                step=STEP,
                expected=platform.pce_id.hex(),
                found=extension.pce_id.hex(),
            )
        tcbm = extension.tcb.cpu_svn + extension.tcb.pce_svn.to_bytes(2, "little")
        kept = PckCertificateAnswer(answer.certificate, answer.issuer_chain, tcbm, extension.fmspc, chain.ca)
        with self._database.write() as connection:
            certificate = _keep_certificate(connection, platform, kept, chain.root.public_key, seconds(seen), source)
            connection.execute(
                "INSERT INTO platform_tcbs VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET certificate = excluded.certificate",
                (platform.qe_id.hex(), platform.pce_id.hex(), platform.cpu_svn.hex(), platform.pce_svn, certificate),
            )
            _observe(connection, extension, seconds(seen), "sgx")
        return kept

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

    def _answers(self, rows: Iterable[tuple[bytes, bytes, bytes, str, str, bytes]]) -> Iterator[PckCertificateAnswer]:
        for certificate, chain, tcbm, fmspc, ca, root in rows:
            if self._roots.with_public_key(root) is not None:
                issuer: PckCaName = "processor" if ca == "processor" else "platform"
                yield PckCertificateAnswer(certificate, chain, tcbm, bytes.fromhex(fmspc), issuer)


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
            hashlib.sha256(extension.ppid).hexdigest(),
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
        ca="processor" if ca == "processor" else "platform",
        tcb=PckTcb(tuple(components), pce_svn, cpu_svn),
        first_seen=time_of(first),
        last_seen=time_of(last),
    )
