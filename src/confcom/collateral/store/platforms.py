"""Platforms in the store: their PCK certificates, which of them a raw TCB leads to, and what callers claim to have.

A PCK certificate contains the PPID, which is a lasting identifier of a machine, so the store's file is readable by its
owner alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa

from confcom.collateral.pck_rules import STEP, whole_chain
from confcom.collateral.store import platform_sightings
from confcom.collateral.store.database import StoreDatabase
from confcom.collateral.store.platform_sightings import LATEST, PlatformGroup, platform_id
from confcom.collateral.store.registrations import Registration, put_registration, uncount
from confcom.collateral.store.rows import ca_of, keep_chain, seconds, tee_of, time_of
from confcom.collateral.store.schema import (
    CHAINS,
    CURRENT_PLATFORMS,
    FORMER_REGISTRATIONS,
    PCK_CERTIFICATES,
    PCK_CLAIMS,
    PLATFORM_TCBS,
    PLATFORMS,
    REGISTRATIONS,
)
from confcom.database.engine import Database, Query
from confcom.errors import CollateralError, FormatError, MismatchError
from confcom.formats.pck_extension import PckExtension
from confcom.pki.certificate import load_certificate, parse_certificates
from confcom.pki.chain import TrustRoots, sgx_extension, verify_chain
from confcom.protocols.pcs import PckCaName, PckCertificateAnswer, Tee

REMOVED_AT_A_TIME = 100
"""Platforms that are removed in one transaction."""


@dataclass(frozen=True, slots=True)
class PlatformTcb:
    """A platform at a raw TCB, as its quote provider names it: QE_ID, PCE-ID (2 bytes), CPUSVN (16 bytes), PCESVN."""

    qe_id: bytes
    pce_id: bytes
    cpu_svn: bytes
    pce_svn: int

    def columns(self) -> dict[str, str | int]:
        """Its values in the tables."""
        return {
            "qe_id": self.qe_id.hex(),
            "pce_id": self.pce_id.hex(),
            "cpu_svn": self.cpu_svn.hex(),
            "pce_svn": self.pce_svn,
        }


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


def highest(found: Iterable[VerifiedPck]) -> VerifiedPck:
    """The certificate of the highest TCB: Intel gives a platform certificates up to the TCB that it registered with."""
    return max(found, key=lambda one: (one.extension.tcb.sgx_components, one.extension.tcb.pce_svn))


@dataclass(frozen=True, slots=True)
class PlatformUpdate:
    """New certificates of a platform, each for a raw TCB, and what the platform asked for.

    `met` is the certificate of the TCB that the platform has now; None leaves what is known of it.
    """

    certificates: tuple[tuple[PlatformTcb, VerifiedPck], ...]
    registrations: tuple[Registration, ...]
    met: VerifiedPck | None


class PlatformRegistry:
    """The part of a `CollateralStore` that knows platforms."""

    def __init__(self, database: StoreDatabase, roots: TrustRoots) -> None:
        self._database = database
        self._roots = roots

    def observe(self, extension: PckExtension, *, seen: datetime, tee: Tee = "sgx", claimed: bool = False) -> None:
        """Remember a platform at the TCB of its PCK certificate; an older sighting does not replace a newer one.

        `claimed`: a caller without a token said so. Of each TCB that is claimed again and again there is one row.
        """
        with self._database.change() as connection:
            platform_sightings.observe(connection, extension, seconds(seen), tee, claimed=claimed)

    def groups(self, at: datetime = LATEST) -> tuple[PlatformGroup, ...]:
        """Every platform, in groups, at the TCB at which it was met last by then (`platform_sightings.groups`)."""
        with self._database.read() as connection:
            return platform_sightings.groups(connection, seconds(at))

    def counts(self) -> tuple[tuple[PlatformGroup, int], ...]:
        """The number of platforms in each group now; the groups list no platforms."""
        with self._database.read() as connection:
            return platform_sightings.counts(connection)

    def kinds(self) -> tuple[tuple[Tee, bytes, PckCaName], ...]:
        """The kinds of platforms that were met: TEE, FMSPC (6 bytes) and CA."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(PLATFORMS.c.tee, PLATFORMS.c.fmspc, PLATFORMS.c.ca).distinct())
            return tuple((tee_of(tee), bytes.fromhex(fmspc), ca_of(ca)) for tee, fmspc, ca in rows)

    def verify(self, answer: PckCertificateAnswer, pce_id: bytes) -> VerifiedPck:
        """Verify a PCK certificate with its chain, for a platform of this PCE-ID (2 bytes)."""
        if not answer.certificate.isascii():  # archives know it by its digest, and are text
            raise FormatError("has text around it that is not ASCII", structure="PCK certificate", field="")
        chain = verify_chain(whole_chain(answer), roots=self._roots, kind="pck", step=STEP)
        extension = chain.extension
        if extension.pce_id != pce_id:
            raise MismatchError(
                "the PCK certificate is of another PCE", step=STEP, expected=pce_id.hex(), found=extension.pce_id.hex()
            )
        tcbm = extension.tcb.cpu_svn + extension.tcb.pce_svn.to_bytes(2, "little")
        kept = PckCertificateAnswer(answer.certificate, answer.issuer_chain, tcbm, extension.fmspc, chain.ca)
        return VerifiedPck(kept, extension, chain.root.public_key)

    def add_pck_certificate(
        self, platform: PlatformTcb, answer: PckCertificateAnswer, *, seen: datetime, source: str, asked: bool = True
    ) -> PckCertificateAnswer:
        """Verify a PCK certificate with its chain and keep it for the platform's raw TCB.

        `asked`: the platform itself asked, so that it was seen. Gives the answer as it was kept: TCBm, FMSPC and CA are
        those of the certificate itself.
        """
        verified = self.verify(answer, platform.pce_id)
        with self._database.change() as connection:
            certificate = _keep_certificate(connection, platform, verified, seconds(seen), source)
            _choose(connection, platform, certificate, seconds(seen))
            platform_sightings.observe(connection, verified.extension, seconds(seen), "sgx", asked=asked)
        return verified.answer

    def keep(self, platforms: Iterable[PlatformUpdate], *, seen: datetime, source: str, asked: bool = True) -> None:
        """Keep what there is of some platforms, all or none."""
        with self._database.change() as connection:
            for platform in platforms:
                kept: dict[bytes, int] = {}
                for raw, verified in platform.certificates:
                    certificate = verified.answer.certificate
                    if certificate not in kept:
                        kept[certificate] = _keep_certificate(connection, raw, verified, seconds(seen), source)
                    _choose(connection, raw, kept[certificate], seconds(seen))
                if platform.met is not None:
                    platform_sightings.observe(connection, platform.met.extension, seconds(seen), "sgx", asked=asked)
                for registration in platform.registrations:
                    put_registration(connection, registration)

    def saw(self, platform: PlatformTcb, answer: PckCertificateAnswer, *, seen: datetime) -> None:
        """Note that a platform, which has this certificate in the store, asked for it."""
        qe_id, pce_id, at = platform.qe_id.hex(), platform.pce_id.hex(), seconds(seen)
        with self._database.change() as connection:
            asking = sa.update(REGISTRATIONS).where(REGISTRATIONS.c.qe_id == qe_id, REGISTRATIONS.c.pce_id == pce_id)
            connection.execute(asking.where(REGISTRATIONS.c.last_seen < at).values(last_seen=at))
            platform_sightings.note_asked(connection, _id_of(answer.certificate), at)

    def remove(self, qe_id: bytes) -> int:
        """Remove the platforms of a QE_ID: certificates, registrations, and sightings; gives their number.

        A platform has one QE_ID for each PCE-ID, which is always 0000 so far.
        """
        of = [sa.select(table.c.pce_id).where(table.c.qe_id == qe_id.hex()) for table in _OF_PLATFORM]
        with self._database.change() as connection:
            found = connection.execute(sa.union(*of)).scalars().all()
            for pce_id in found:
                _remove(connection, qe_id.hex(), pce_id)
            return len(found)

    def remove_known(self, id_: str) -> int:
        """Remove the platform of an id, with its certificates and registrations; gives 1, or 0 if there is none."""
        with self._database.change() as connection:
            if not platform_sightings.forget(connection, CURRENT_PLATFORMS.c.id == id_):
                return 0
            # No column leads from a PPID to certificates: one of each platform is looked at.
            columns = PCK_CERTIFICATES.c
            one = sa.select(sa.func.min(columns.id)).group_by(columns.qe_id, columns.pce_id)
            platforms = sa.select(columns.qe_id, columns.pce_id, columns.certificate).where(columns.id.in_(one))
            for qe_id, pce_id, certificate in connection.execute(platforms).all():
                if _id_of(certificate) == id_:
                    _remove(connection, qe_id, pce_id)
            connection.execute(sa.delete(PCK_CLAIMS).where(PCK_CLAIMS.c.processor == id_))
            return 1

    def remove_unseen(self, since: datetime) -> int:
        """Remove every platform that has neither asked nor been seen since; gives their number."""
        before = seconds(since)
        with self._database.read() as connection:
            unseen = connection.execute(_UNSEEN, {"since": before}).all()
        removed = 0
        for start in range(0, len(unseen), REMOVED_AT_A_TIME):
            # In pieces, so that other writers get their turn. A platform that asks meanwhile stays.
            with self._database.change() as connection:
                for qe_id, pce_id in unseen[start : start + REMOVED_AT_A_TIME]:
                    asked = connection.execute(_ASKED, {"qe_id": qe_id, "pce_id": pce_id}).scalar_one()
                    if asked < before:
                        _remove(connection, qe_id, pce_id)
                        removed += 1
        with self._database.change() as connection:
            connection.execute(sa.delete(PCK_CLAIMS).where(PCK_CLAIMS.c.last_seen < before))
            # Those known by their quotes alone.
            return removed + platform_sightings.forget(connection, CURRENT_PLATFORMS.c.last_seen < before)

    def pck_certificate(self, platform: PlatformTcb) -> PckCertificateAnswer | None:
        """The certificate that was last kept for exactly this raw TCB."""
        found = self.asked_for(platform)
        return None if found is None else found[0]

    def asked_for(self, platform: PlatformTcb) -> tuple[PckCertificateAnswer, datetime] | None:
        """The same, and when the platform asked last, with any raw TCB; 1970 if it never did."""
        own = {"qe_id": platform.qe_id.hex(), "pce_id": platform.pce_id.hex()}
        with self._database.look_ups() as look_up:
            for *row, asked in look_up(_CHOSEN, _raw_key(platform) | own):
                for answer in self._answers([row]):
                    return answer, time_of(asked)
        return None

    def pck_certificates(self, qe_id: bytes, pce_id: bytes) -> tuple[PckCertificateAnswer, ...]:
        """Every certificate kept for a platform, the one seen last at the front: what a selection chooses from."""
        with self._database.look_ups() as look_up:
            return tuple(self._answers(look_up(_OF_QE_ID, {"qe_id": qe_id.hex(), "pce_id": pce_id.hex()})))

    def count_certificates(self) -> int:
        """How many PCK certificates there are, of whatever root."""
        with self._database.read() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(PCK_CERTIFICATES)).scalar_one())

    def _answers(self, rows: Iterable[Sequence[Any]]) -> Iterator[PckCertificateAnswer]:
        for certificate, chain, tcbm, fmspc, ca, root in rows:
            if self._roots.with_public_key(root) is not None:
                yield PckCertificateAnswer(certificate, chain, tcbm, bytes.fromhex(fmspc), ca_of(ca))


def restore_pck(
    connection: sa.Connection,
    platform: PlatformTcb,
    verified: VerifiedPck,
    source: str,
    seen: tuple[int, int],
    raw_tcbs: Iterable[PlatformTcb] | None,
) -> bool:
    """Keep a certificate of another store, `seen` first and last, in the transaction that is open; whether it is new.

    `raw_tcbs` led to it according to an archive that has neither choices nor sightings.
    """
    digest = hashlib.sha256(verified.answer.certificate).digest()
    own = {"qe_id": platform.qe_id.hex(), "pce_id": platform.pce_id.hex()}
    known = sa.select(PCK_CERTIFICATES.c.id).where(*_own(PCK_CERTIFICATES), PCK_CERTIFICATES.c.digest == digest)
    new = connection.execute(known, own).first() is None
    for at in seen:
        _keep_certificate(connection, platform, verified, at, source)
        if raw_tcbs is not None:
            platform_sightings.observe(connection, verified.extension, at, "sgx")
    for raw in raw_tcbs or ():
        restore_choice(connection, raw, digest, seen[0])
    return new


def restore_choice(connection: sa.Connection, platform: PlatformTcb, digest: bytes, since: int) -> bool:
    """Keep which certificate (SHA-256) a raw TCB led to since a time in another store; whether it is new.

    What it leads to here stays: only what was before that is added, so the latest choices have to come first.
    """
    own, columns = platform.columns(), PCK_CERTIFICATES.c
    of = (columns.qe_id == own["qe_id"], columns.pce_id == own["pce_id"], columns.digest == digest)
    certificate = connection.execute(sa.select(columns.id).where(*of)).scalar()
    if certificate is None:
        raise CollateralError(f"no PCK certificate has the SHA-256 {digest.hex()} that a raw TCB led to")
    earliest = sa.select(sa.func.min(PLATFORM_TCBS.c.since)).where(*_RAW_KEY)
    found = connection.execute(earliest, _raw_key(platform)).scalar()
    if found is not None and found <= since:
        return False
    connection.execute(sa.insert(PLATFORM_TCBS), own | {"certificate": certificate, "since": since})
    return True


def _choose(connection: sa.Connection, platform: PlatformTcb, certificate: int, since: int) -> None:
    """Append a choice; it is the latest one also where the clock was set back."""
    found = connection.execute(_LATEST, _raw_key(platform)).first()
    if found is None or found.certificate != certificate:
        since = since if found is None else max(since, found.since)
        values = platform.columns() | {"certificate": certificate, "since": since}
        connection.execute(sa.insert(PLATFORM_TCBS), values)


def _raw_key(platform: PlatformTcb) -> dict[str, str | int]:
    return {f"raw_{name}": value for name, value in platform.columns().items()}


def _remove(connection: sa.Connection, qe_id: str, pce_id: str) -> None:
    own = {"qe_id": qe_id, "pce_id": pce_id}
    certificates = connection.execute(sa.select(PCK_CERTIFICATES.c.certificate).where(*_own(PCK_CERTIFICATES)), own)
    ids = {_id_of(certificate) for certificate in certificates.scalars()}
    ids |= set(connection.execute(sa.select(PCK_CLAIMS.c.processor).where(*_own(PCK_CLAIMS)), own).scalars())
    uncount(connection, qe_id, pce_id)
    for table in _OF_PLATFORM:
        connection.execute(sa.delete(table).where(*_own(table)), own)
    platform_sightings.forget(connection, CURRENT_PLATFORMS.c.id.in_(ids))


def _id_of(certificate: bytes) -> str:
    """The id of the platform that a stored PCK certificate is of."""
    (der,) = parse_certificates(certificate, structure="PCK certificate", limit=1)
    return platform_id(sgx_extension(load_certificate(der, structure="PCK certificate", field=""), STEP))


def _keep_certificate(
    connection: sa.Connection, platform: PlatformTcb, verified: VerifiedPck, seen: int, source: str
) -> int:
    values = _columns(connection, verified) | {
        "qe_id": platform.qe_id.hex(),
        "pce_id": platform.pce_id.hex(),
        "digest": hashlib.sha256(verified.answer.certificate).digest(),
        "source": source,
        "first_seen": seen,
        "last_seen": seen,
    }
    return int(connection.execute(_kept(connection.dialect.name), values).scalar_one())


def _columns(connection: sa.Connection, verified: VerifiedPck) -> dict[str, Any]:
    """What the tables of certificates and of claims have of one."""
    answer = verified.answer
    return {
        "tcbm": answer.tcbm,
        "root": verified.root,
        "certificate": answer.certificate,
        "chain": keep_chain(connection, answer.issuer_chain),
        "fmspc": (answer.fmspc or b"").hex(),
        "ca": answer.ca,
    }


@cache
def _kept(dialect: str) -> sa.Executable:
    """Built once: that takes SQLAlchemy longer than running it takes the engines."""
    added = Database.insert(dialect, PCK_CERTIFICATES)
    new, old = added.excluded, PCK_CERTIFICATES.c
    return added.on_conflict_do_update(
        index_elements=[old.qe_id, old.pce_id, old.digest],
        set_={
            "chain": sa.case((new.last_seen >= old.last_seen, new.chain), else_=old.chain),
            "source": sa.case((new.first_seen < old.first_seen, new.source), else_=old.source),
            "first_seen": sa.case((new.first_seen < old.first_seen, new.first_seen), else_=old.first_seen),
            "last_seen": sa.case((new.last_seen > old.last_seen, new.last_seen), else_=old.last_seen),
        },
    ).returning(old.id)


_CERTIFICATE = (
    PCK_CERTIFICATES.c.certificate,
    CHAINS.c.pem,
    PCK_CERTIFICATES.c.tcbm,
    PCK_CERTIFICATES.c.fmspc,
    PCK_CERTIFICATES.c.ca,
    PCK_CERTIFICATES.c.root,
)
_OF_PLATFORM = (PLATFORM_TCBS, PCK_CERTIFICATES, REGISTRATIONS, FORMER_REGISTRATIONS, PCK_CLAIMS)
"""Tables with the QE_ID and PCE-ID of a platform, in the order in which rows may be removed."""


def _own(table: sa.Table) -> list[sa.ColumnElement[bool]]:
    return [table.c.qe_id == sa.bindparam("qe_id"), table.c.pce_id == sa.bindparam("pce_id")]


_RAW_KEY = [PLATFORM_TCBS.c[name] == sa.bindparam(f"raw_{name}") for name in ("qe_id", "pce_id", "cpu_svn", "pce_svn")]
_LATEST = (
    sa.select(PLATFORM_TCBS.c.certificate, PLATFORM_TCBS.c.since)
    .where(*_RAW_KEY)
    .order_by(PLATFORM_TCBS.c.since.desc(), PLATFORM_TCBS.c.id.desc())
    .limit(1)
)
_CHOICE = _LATEST.with_only_columns(PLATFORM_TCBS.c.certificate).scalar_subquery()
_WITH_CHAIN = PCK_CERTIFICATES.join(CHAINS, CHAINS.c.id == PCK_CERTIFICATES.c.chain)
_OF_QE_ID = Query(
    sa.select(*_CERTIFICATE)
    .select_from(_WITH_CHAIN)
    .where(*_own(PCK_CERTIFICATES))
    .order_by(PCK_CERTIFICATES.c.last_seen.desc(), PCK_CERTIFICATES.c.id.desc())
)
_ASKED = sa.select(sa.func.coalesce(sa.func.max(REGISTRATIONS.c.last_seen), 0)).where(*_own(REGISTRATIONS))
_CHOSEN = Query(
    sa.select(*_CERTIFICATE, _ASKED.scalar_subquery()).select_from(_WITH_CHAIN).where(PCK_CERTIFICATES.c.id == _CHOICE)
)
_REGISTERED = sa.exists().where(
    REGISTRATIONS.c.qe_id == PCK_CERTIFICATES.c.qe_id, REGISTRATIONS.c.pce_id == PCK_CERTIFICATES.c.pce_id
)
_SEEN = sa.union_all(
    sa.select(REGISTRATIONS.c.qe_id, REGISTRATIONS.c.pce_id, REGISTRATIONS.c.last_seen),
    sa.select(PCK_CERTIFICATES.c.qe_id, PCK_CERTIFICATES.c.pce_id, PCK_CERTIFICATES.c.last_seen).where(~_REGISTERED),
).subquery()
_UNSEEN = (
    sa.select(_SEEN.c.qe_id, _SEEN.c.pce_id)
    .group_by(_SEEN.c.qe_id, _SEEN.c.pce_id)
    .having(sa.func.max(_SEEN.c.last_seen) < sa.bindparam("since"))
)


# PCK certificates that callers without a token claim. A claim holds for the caller's address alone.
#
# No certificate holds a QE_ID, so a caller can name another machine's and its own encrypted PPID. Such a claim is kept
# for its address, because a quote provider gives the encrypted PPID once and asks without it later. Nothing of it binds
# the QE_ID: platforms that are registered or imported come first.

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
    """The claims in a store. A processor is the SHA-256 of a PPID, as in the registry."""

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
        now = seconds(seen)
        own: dict[str, Any] = platform.columns() | {"caller": caller, "processor": platform_id(verified.extension)}
        own |= {"encrypted_ppid": encrypted_ppid, "first_seen": now, "last_seen": now}
        with self._database.change() as connection:
            added, columns = Database.insert(connection.dialect.name, PCK_CLAIMS), _columns(connection, verified)
            ppid = sa.func.coalesce(added.excluded.encrypted_ppid, _C.encrypted_ppid)
            replaced = {name: added.excluded[name] for name in (*columns, "last_seen")} | {"encrypted_ppid": ppid}
            kept = added.on_conflict_do_update(index_elements=list(_PK), set_=replaced).returning(_C.number)
            number = connection.execute(sa.select(sa.func.coalesce(sa.func.max(_C.number), 0) + 1)).scalar_one()
            got = connection.execute(kept, own | columns | {"number": number}).scalar_one()
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
