"""Platforms in the store: their PCK certificates, and the TCB that they were last seen at.

A PCK certificate names its platform by the PPID, which is a lasting identifier of a machine: the registry of platforms
keeps only its SHA-256. The certificates themselves contain it, so the store's file is readable by its owner alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from confcom.collateral.store.database import StoreDatabase
from confcom.collateral.store.registrations import Registration, put_registration, uncount
from confcom.collateral.store.rows import keep_chain, seconds, time_of
from confcom.collateral.store.schema import (
    CHAINS,
    CURRENT_PLATFORMS,
    FORMER_REGISTRATIONS,
    PCK_CERTIFICATES,
    PCK_CLAIMS,
    PLATFORM_SIGHTINGS,
    PLATFORM_TCBS,
    PLATFORMS,
    REGISTRATIONS,
)
from confcom.database.engine import Database, Query
from confcom.errors import MismatchError
from confcom.formats.pck_extension import PckExtension, PckTcb
from confcom.pki.certificate import load_certificate, parse_certificates
from confcom.pki.chain import sgx_extension, verify_chain
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import PckCaName, PckCertificateAnswer, Tee

STEP = "pck-certificate"

PAGE = 1000
"""Platforms that are read at a time."""
REMOVED_AT_A_TIME = 100
"""Platforms that are removed in one transaction."""
LATEST = datetime.max.replace(tzinfo=UTC)
SIGHTED_AGAIN = 7 * 24 * 3600
"""Seconds in which a platform that stays at its TCB has one sighting: 100,000 platforms add 5 million rows a year."""


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
    """New certificates of a platform, each for a raw TCB, and what the platform asked for.

    `met` is the certificate of the TCB that the platform has now; None leaves what is known of it.
    """

    certificates: tuple[tuple[PlatformTcb, VerifiedPck], ...]
    registrations: tuple[Registration, ...]
    met: VerifiedPck | None


@dataclass(frozen=True, slots=True)
class PlatformGroup:
    """Platforms at the same latest TCB, of one TEE, FMSPC and CA, which are judged alike.

    `seen` has the id of each (SHA-256 of its PPID in hexadecimal digits), and when it was seen last (seconds since
    1970).
    """

    tee: Tee
    fmspc: bytes
    ca: PckCaName
    tcb: PckTcb
    seen: list[tuple[str, int]]


class PlatformRegistry:
    """The part of a `CollateralStore` that knows platforms."""

    def __init__(self, database: StoreDatabase, roots: TrustRoots) -> None:
        self._database = database
        self._roots = roots

    def observe(self, extension: PckExtension, *, seen: datetime, tee: Tee = "sgx", claimed: bool = False) -> None:
        """Remember a platform at the TCB of its PCK certificate; an older sighting does not replace a newer one.

        `claimed`: a caller without a token said so. Of each TCB that is claimed again and again there is one row.
        """
        with self._database.write() as connection:
            _observe(connection, extension, seconds(seen), tee, claimed=claimed)

    def groups(self, at: datetime = LATEST) -> tuple[PlatformGroup, ...]:
        """Every platform, in groups, at the TCB at which it was met last by then.

        One that was met only later is at the TCB of its first sighting. What is older than its last sighting is known
        to a week (`SIGHTED_AGAIN`).
        """
        found: dict[tuple[Any, ...], PlatformGroup] = {}
        with self._database.read() as connection:
            for query in (_CURRENT, _AS_OF):
                rows = connection.execution_options(yield_per=PAGE).execute(query, {"at": seconds(at)})
                for id_, last_seen, *facts in rows:
                    group = found.get(key := tuple(facts))
                    if group is None:
                        tee, fmspc, ca, components, pce_svn, cpu_svn = facts
                        tcb = PckTcb(tuple(components), pce_svn, cpu_svn)
                        group = found[key] = PlatformGroup(_tee(tee), bytes.fromhex(fmspc), _ca(ca), tcb, [])
                    group.seen.append((id_, last_seen))
        return tuple(found.values())

    def kinds(self) -> tuple[tuple[Tee, bytes, PckCaName], ...]:
        """The kinds of platforms that were seen: TEE, FMSPC (6 bytes) and CA."""
        with self._database.read() as connection:
            rows = connection.execute(_KINDS)
            return tuple((_tee(tee), bytes.fromhex(fmspc), _ca(ca)) for tee, fmspc, ca in rows)

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
        self, platform: PlatformTcb, answer: PckCertificateAnswer, *, seen: datetime, source: str, asked: bool = True
    ) -> PckCertificateAnswer:
        """Verify a PCK certificate with its chain and keep it for the platform's raw TCB.

        `asked`: the platform itself asked, so that it was seen. Gives the answer as it was kept: TCBm, FMSPC and CA are
        those of the certificate itself.
        """
        verified = self.verify(answer, platform.pce_id)
        with self._database.write() as connection:
            _keep_pck(connection, platform, verified, seen=seen, source=source)
            _observe(connection, verified.extension, seconds(seen), "sgx", asked=asked)
        return verified.answer

    def keep(self, platforms: Iterable[PlatformUpdate], *, seen: datetime, source: str, asked: bool = True) -> None:
        """Keep what there is of some platforms, all or none."""
        with self._database.write() as connection:
            for platform in platforms:
                for raw, verified in platform.certificates:
                    _keep_pck(connection, raw, verified, seen=seen, source=source)
                if platform.met is not None:
                    _observe(connection, platform.met.extension, seconds(seen), "sgx", asked=asked)
                for registration in platform.registrations:
                    put_registration(connection, registration)

    def saw(self, platform: PlatformTcb, answer: PckCertificateAnswer, *, seen: datetime) -> None:
        """Note that a platform, which has this certificate in the store, asked for it."""
        qe_id, pce_id, at = platform.qe_id.hex(), platform.pce_id.hex(), seconds(seen)
        with self._database.write() as connection:
            asking = sa.update(REGISTRATIONS).where(REGISTRATIONS.c.qe_id == qe_id, REGISTRATIONS.c.pce_id == pce_id)
            connection.execute(asking.where(REGISTRATIONS.c.last_seen < at).values(last_seen=at))
            met = (CURRENT_PLATFORMS.c.id == _id_of(answer.certificate), CURRENT_PLATFORMS.c.last_seen < at)
            for number in connection.execute(sa.select(CURRENT_PLATFORMS.c.platform).where(*met)).scalars().all():
                _sight(connection, number, at, SIGHTED_AGAIN)
            connection.execute(sa.update(CURRENT_PLATFORMS).where(*met).values(last_seen=at))

    def remove(self, qe_id: bytes) -> int:
        """Remove the platforms of a QE_ID: certificates, registrations, and sightings; gives their number.

        A platform has one QE_ID for each PCE-ID, which is always 0000 so far.
        """
        of = [sa.select(table.c.pce_id).where(table.c.qe_id == qe_id.hex()) for table in _OF_PLATFORM]
        with self._database.write() as connection:
            found = connection.execute(sa.union(*of)).scalars().all()
            for pce_id in found:
                _remove(connection, qe_id.hex(), pce_id)
            return len(found)

    def remove_known(self, id_: str) -> int:
        """Remove the platform of an id, with its certificates and registrations; gives 1, or 0 if there is none."""
        with self._database.write() as connection:
            if not _forget(connection, CURRENT_PLATFORMS.c.id == id_):
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
            with self._database.write() as connection:
                for qe_id, pce_id in unseen[start : start + REMOVED_AT_A_TIME]:
                    asked = connection.execute(_ASKED, {"qe_id": qe_id, "pce_id": pce_id}).scalar_one()
                    if asked < before:
                        _remove(connection, qe_id, pce_id)
                        removed += 1
        with self._database.write() as connection:
            connection.execute(sa.delete(PCK_CLAIMS).where(PCK_CLAIMS.c.last_seen < before))
            # Those known by their quotes alone.
            return removed + _forget(connection, CURRENT_PLATFORMS.c.last_seen < before)

    def pck_certificate(self, platform: PlatformTcb) -> PckCertificateAnswer | None:
        """The certificate that was last kept for exactly this raw TCB."""
        found = self.asked_for(platform)
        return None if found is None else found[0]

    def asked_for(self, platform: PlatformTcb) -> tuple[PckCertificateAnswer, datetime] | None:
        """The same, and when the platform asked last, with whatever raw TCB; 1970 if it never did."""
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

    def stored_certificates(self) -> Iterator[StoredPck]:
        """Every certificate, read in pieces."""
        last = -1
        while True:
            with self._database.read() as connection:
                rows = connection.execute(_PAGE, {"after": last}).all()
                pieces = [(row, connection.execute(_RAW_TCBS, {"certificate": row.id}).all()) for row in rows]
            for row, raw in pieces:
                last = row.id
                times = (time_of(row.first_seen), time_of(row.last_seen))
                tcbs = tuple((bytes.fromhex(cpu_svn), pce_svn) for cpu_svn, pce_svn in raw)
                for answer in self._answers([row[:6]]):
                    yield StoredPck(
                        bytes.fromhex(row.qe_id), bytes.fromhex(row.pce_id), answer, row.source, *times, tcbs
                    )
            if not rows:
                return

    def _answers(self, rows: Iterable[Sequence[Any]]) -> Iterator[PckCertificateAnswer]:
        for certificate, chain, tcbm, fmspc, ca, root in rows:
            if self._roots.with_public_key(root) is not None:
                yield PckCertificateAnswer(certificate, chain, tcbm, bytes.fromhex(fmspc), _ca(ca))


def _keep_pck(
    connection: sa.Connection, platform: PlatformTcb, verified: VerifiedPck, *, seen: datetime, source: str
) -> None:
    """Keep a certificate for a raw TCB in the transaction that is open."""
    certificate = _keep_certificate(connection, platform, verified.answer, verified.root, seconds(seen), source)
    _choose(connection, platform, certificate, seconds(seen))


def restore_pck(connection: sa.Connection, stored: StoredPck, verified: VerifiedPck) -> bool:
    """Keep a certificate of another store in the transaction that is open; whether it is new.

    A raw TCB that has a certificate here keeps it.
    """
    digest = hashlib.sha256(verified.answer.certificate).digest()
    own = {"qe_id": stored.qe_id.hex(), "pce_id": stored.pce_id.hex()}
    known = sa.select(PCK_CERTIFICATES.c.id).where(*_own(PCK_CERTIFICATES), PCK_CERTIFICATES.c.digest == digest)
    new = connection.execute(known, own).first() is None
    platform = own_tcb(stored.qe_id, stored.pce_id, verified.answer)
    for seen in (stored.first_seen, stored.last_seen):
        certificate = _keep_certificate(
            connection, platform, verified.answer, verified.root, seconds(seen), stored.source
        )
        _observe(connection, verified.extension, seconds(seen), "sgx")
    for cpu_svn, pce_svn in stored.raw_tcbs:
        raw = PlatformTcb(stored.qe_id, stored.pce_id, cpu_svn, pce_svn)
        if connection.execute(sa.select(_CHOICE), _raw_key(raw)).scalar() is None:
            _choose(connection, raw, certificate, seconds(stored.first_seen))
    return new


def _choose(connection: sa.Connection, platform: PlatformTcb, certificate: int, since: int) -> None:
    if connection.execute(sa.select(_CHOICE), _raw_key(platform)).scalar() != certificate:
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
    _forget(connection, CURRENT_PLATFORMS.c.id.in_(ids))


def _forget(connection: sa.Connection, gone: sa.ColumnElement[bool]) -> int:
    """Remove the sightings of platforms for which this condition on the current ones holds; gives their number."""
    of = sa.tuple_(PLATFORMS.c.id, PLATFORMS.c.tee).in_(
        sa.select(CURRENT_PLATFORMS.c.id, CURRENT_PLATFORMS.c.tee).where(gone)
    )
    sighted = PLATFORM_SIGHTINGS.c.platform.in_(sa.select(PLATFORMS.c.number).where(of))
    connection.execute(sa.delete(PLATFORM_SIGHTINGS).where(sighted))
    connection.execute(sa.delete(PLATFORMS).where(of))
    return int(connection.execute(sa.delete(CURRENT_PLATFORMS).where(gone)).rowcount)


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
    connection: sa.Connection, platform: PlatformTcb, answer: PckCertificateAnswer, root: bytes, seen: int, source: str
) -> int:
    added = Database.insert(connection, PCK_CERTIFICATES)
    new, old = added.excluded, PCK_CERTIFICATES.c
    kept = added.on_conflict_do_update(
        index_elements=[old.qe_id, old.pce_id, old.digest],
        set_={
            "chain": new.chain,
            "source": new.source,
            "first_seen": sa.case((new.first_seen < old.first_seen, new.first_seen), else_=old.first_seen),
            "last_seen": sa.case((new.last_seen > old.last_seen, new.last_seen), else_=old.last_seen),
        },
    )
    values = {
        "qe_id": platform.qe_id.hex(),
        "pce_id": platform.pce_id.hex(),
        "tcbm": answer.tcbm,
        "digest": hashlib.sha256(answer.certificate).digest(),
        "root": root,
        "certificate": answer.certificate,
        "chain": keep_chain(connection, answer.issuer_chain),
        "fmspc": (answer.fmspc or b"").hex(),
        "ca": answer.ca,
        "source": source,
        "first_seen": seen,
        "last_seen": seen,
    }
    return int(connection.execute(kept.returning(old.id), values).scalar_one())


def _observe(
    connection: sa.Connection,
    extension: PckExtension,
    seen: int,
    tee: Tee,
    *,
    claimed: bool = False,
    asked: bool = True,
) -> None:
    """Append a sighting; the TCB of the latest one is the current TCB.

    A lower TCB of the same second belongs to the same set of certificates and is none. If the platform did not ask
    itself (`asked`), the time of its last sighting stays. Of a TCB that is `claimed` one sighting a week is kept, so
    that callers cannot make the store grow at will.
    """
    # Only the Platform CA writes an instance id into its certificates.
    ca = "processor" if extension.platform_instance_id is None else "platform"
    tcb, of = extension.tcb, {"id": platform_id(extension), "tee": tee}
    facts = (extension.fmspc.hex(), ca, bytes(tcb.sgx_components), tcb.pce_svn, tcb.cpu_svn)
    values = of | dict(zip(_FACTS, facts, strict=True))
    current = connection.execute(_MET, {f"of_{name}": value for name, value in of.items()}).first()
    if current is not None and not asked:
        seen = current.last_seen
    number = connection.execute(_NUMBER, {f"of_{name}": value for name, value in values.items()}).scalar()
    changes = current is None or number != current.number
    if changes and current is not None and seen == current.last_seen and _is_lower(tcb, current):
        return
    if number is None:
        number = connection.execute(sa.insert(PLATFORMS).returning(PLATFORMS.c.number), values).scalar_one()
    newest = current is None or seen >= current.last_seen
    if changes and newest and current is not None and not claimed:
        _sight(connection, current.number, current.last_seen, 1)
    _sight(connection, number, seen, 1 if changes and newest and not claimed else SIGHTED_AGAIN)
    if newest:
        added = Database.insert(connection, CURRENT_PLATFORMS)
        new = {"platform": number, "last_seen": seen}
        connection.execute(added.on_conflict_do_update(index_elements=["id", "tee"], set_=new), of | new)


def _sight(connection: sa.Connection, number: int, seen: int, within: int) -> None:
    """Append a sighting at a TCB, unless there is one `within` so many seconds before it."""
    own, at = PLATFORM_SIGHTINGS.c, {"platform": number, "seen": seen}
    lately = sa.select(own.seen).where(own.platform == number, own.seen > seen - within, own.seen <= seen).limit(1)
    if connection.execute(lately).first() is None:
        connection.execute(sa.insert(PLATFORM_SIGHTINGS), at)


def _is_lower(tcb: PckTcb, than: Any) -> bool:  # noqa: ANN401 - of `_MET`
    pairs = zip(tcb.sgx_components, than.sgx_components, strict=True)
    return tcb.pce_svn <= than.pce_svn and all(mine <= theirs for mine, theirs in pairs)


def _ca(text: str) -> PckCaName:
    return "processor" if text == "processor" else "platform"


def _tee(text: str) -> Tee:
    return "tdx" if text == "tdx" else "sgx"


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
_CHOICE = (
    sa.select(PLATFORM_TCBS.c.certificate).where(*_RAW_KEY).order_by(PLATFORM_TCBS.c.id.desc()).limit(1)
).scalar_subquery()
_WITH_CHAIN = PCK_CERTIFICATES.join(CHAINS, CHAINS.c.id == PCK_CERTIFICATES.c.chain)
_OF_QE_ID = Query(
    sa.select(*_CERTIFICATE)
    .select_from(_WITH_CHAIN)
    .where(*_own(PCK_CERTIFICATES))
    .order_by(PCK_CERTIFICATES.c.last_seen.desc(), PCK_CERTIFICATES.c.id.desc())
)
_PAGE = (
    sa.select(
        *_CERTIFICATE,
        PCK_CERTIFICATES.c.id,
        PCK_CERTIFICATES.c.qe_id,
        PCK_CERTIFICATES.c.pce_id,
        PCK_CERTIFICATES.c.source,
        PCK_CERTIFICATES.c.first_seen,
        PCK_CERTIFICATES.c.last_seen,
    )
    .select_from(_WITH_CHAIN)
    .where(PCK_CERTIFICATES.c.id > sa.bindparam("after"))
    .order_by(PCK_CERTIFICATES.c.id)
    .limit(200)
)
_LATER = PLATFORM_TCBS.alias()
_RAW_TCBS = (
    sa.select(PLATFORM_TCBS.c.cpu_svn, PLATFORM_TCBS.c.pce_svn)
    .join(PCK_CERTIFICATES, PCK_CERTIFICATES.c.id == PLATFORM_TCBS.c.certificate)
    .where(
        PCK_CERTIFICATES.c.id == sa.bindparam("certificate"),
        # By the platform, which has an index.
        PLATFORM_TCBS.c.qe_id == PCK_CERTIFICATES.c.qe_id,
        PLATFORM_TCBS.c.pce_id == PCK_CERTIFICATES.c.pce_id,
        ~sa.exists().where(
            *(_LATER.c[name] == PLATFORM_TCBS.c[name] for name in ("qe_id", "pce_id", "cpu_svn", "pce_svn")),
            _LATER.c.id > PLATFORM_TCBS.c.id,
        ),
    )
    .order_by(PLATFORM_TCBS.c.cpu_svn, PLATFORM_TCBS.c.pce_svn)
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

_FACTS = ("fmspc", "ca", "sgx_components", "pce_svn", "cpu_svn")
_AT: sa.ColumnElement[int] = sa.bindparam("at")
_SHOWN = (PLATFORMS.c.tee, *(PLATFORMS.c[name] for name in _FACTS))
_CURRENT = (
    sa.select(PLATFORMS.c.id, CURRENT_PLATFORMS.c.last_seen, *_SHOWN)
    .join(CURRENT_PLATFORMS, CURRENT_PLATFORMS.c.platform == PLATFORMS.c.number)
    .where(CURRENT_PLATFORMS.c.last_seen <= _AT)
    .order_by(PLATFORMS.c.number)
)


def _sighted(which: sa.Function[int], *of: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    return sa.select(which).where(PLATFORM_SIGHTINGS.c.platform == PLATFORMS.c.number, *of).scalar_subquery()


_SEEN_AT = PLATFORM_SIGHTINGS.c.seen
_THEN = (
    sa.select(
        PLATFORMS,
        sa.func.coalesce(_sighted(sa.func.max(_SEEN_AT), _SEEN_AT <= _AT), _sighted(sa.func.min(_SEEN_AT))).label(
            "seen"
        ),
    )
    .join(CURRENT_PLATFORMS, (CURRENT_PLATFORMS.c.id == PLATFORMS.c.id) & (CURRENT_PLATFORMS.c.tee == PLATFORMS.c.tee))
    .where(CURRENT_PLATFORMS.c.last_seen > _AT)
    .subquery()
)
"""When platforms that were met since were met at each of their TCBs: last by then, else first."""
_NEAREST = sa.case((_THEN.c.seen <= _AT, -_THEN.c.seen), else_=_THEN.c.seen)
_PLACE = sa.func.row_number().over(partition_by=(_THEN.c.id, _THEN.c.tee), order_by=(_NEAREST, _THEN.c.number.desc()))
_RANKED = sa.select(_THEN, _PLACE.label("place")).subquery()
_AS_OF = (
    sa.select(_RANKED.c.id, _RANKED.c.seen, _RANKED.c.tee, *(_RANKED.c[name] for name in _FACTS))
    .where(_RANKED.c.place == 1)
    .order_by(_RANKED.c.number)
)
_KINDS = sa.select(PLATFORMS.c.tee, PLATFORMS.c.fmspc, PLATFORMS.c.ca).distinct()
_MET = (
    sa.select(PLATFORMS, CURRENT_PLATFORMS.c.last_seen)
    .join(CURRENT_PLATFORMS, CURRENT_PLATFORMS.c.platform == PLATFORMS.c.number)
    .where(*(CURRENT_PLATFORMS.c[name] == sa.bindparam(f"of_{name}") for name in ("id", "tee")))
)
_NUMBER = sa.select(PLATFORMS.c.number).where(
    *(PLATFORMS.c[name] == sa.bindparam(f"of_{name}") for name in ("id", "tee", *_FACTS))
)
