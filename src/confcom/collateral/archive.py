"""Archives: every version of every document in one file, to carry a store over an air gap.

JSON Lines in UTF-8: a header, one line per version, an end line with their number. Bodies are in base64, so they arrive
byte for byte; no document is trusted before its signature is verified. PCK certificates and registrations, which name
machines, are in it only if that is asked for.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
import sqlalchemy as sa

from confcom.collateral.documents import (
    Dates,
    Document,
    DocumentKey,
    DocumentKind,
    VerifiedDocument,
    rfc3339,
    verify_document,
)
from confcom.collateral.store.platform_sightings import met, restore_met, sighted
from confcom.collateral.store.platforms import PlatformTcb, restore_choice, restore_pck
from confcom.collateral.store.registrations import PAGE, Registration, State, keep_former, restore_registration
from confcom.collateral.store.rows import Sighting, seconds, time_of, update_of
from confcom.collateral.store.schema import (
    CHAINS,
    FORMER_REGISTRATIONS,
    PCK_CERTIFICATES,
    PLATFORM_TCBS,
    REGISTRATIONS,
)
from confcom.collateral.store.store import CollateralStore, platform_class
from confcom.errors import ClockError, CollateralError, ConfigError, FormatError
from confcom.formats.arguments import decode_json
from confcom.formats.pck_extension import PckTcb
from confcom.formats.signed_json import Hex2, Hex6, Hex16
from confcom.pki.certificate import MAX_CRL, MAX_PEM
from confcom.protocols.pcs import (
    ENCRYPTED_PPID_SIZE,
    MAX_PLATFORM_MANIFEST,
    MAX_QE_ID,
    PckCertificateAnswer,
    pck_request,
)

STRUCTURE = "collateral archive"
ARCHIVE_START = b'{"format":"confcom-collateral-archive"'
"""What an archive begins with."""
PLATFORM_LINE = b'{"platform":"'
"""What lines of platforms and policies begin with."""
MAX_LINE = 2 * (MAX_CRL + MAX_PEM)
"""Bytes of one line: base64 takes a third more than the document, the chain is text."""
MAX_LINES = 10_000_000
MAX_SIGHTINGS = 100_000
"""Times in one line."""
MAX_AHEAD = timedelta(days=1)
"""Times in the future by less than this come from a clock that was ahead, and count as of now."""
BATCH = 200
"""Lines that are verified and kept in one transaction."""
MAX_HELD = 16 << 20
"""Bytes of lines after which a transaction is ended early."""

QeId = Annotated[str, msgspec.Meta(pattern=rf"\A(?:[0-9a-f]{{2}}){{1,{MAX_QE_ID}}}\Z")]
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Svn = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_Pem = Annotated[str, msgspec.Meta(max_length=MAX_PEM)]
_Source = Annotated[str, msgspec.Meta(max_length=1024, pattern=r"\A[^\0]*\Z")]
"""PostgreSQL keeps no text with a zero character."""
_Manifest = Annotated[bytes, msgspec.Meta(max_length=MAX_PLATFORM_MANIFEST)]

Keep = Callable[[sa.Connection], bool]
"""Keeps what a line holds in the transaction that is open; whether it is new."""


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["confcom-collateral-archive"] = "confcom-collateral-archive"
    version: Literal[1, 2, 3] = 3


class _Seen(msgspec.Struct, forbid_unknown_fields=True):
    served_as: Annotated[str, msgspec.Meta(pattern=r"\A(|standard|early|[0-9]{1,9})\Z")]
    source: _Source
    first_seen: datetime
    last_seen: datetime


class _Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    kind: DocumentKind
    tee: Literal["sgx", "tdx"] | None = None
    fmspc: Hex6 | None = None
    ca: Literal["processor", "platform"] | None = None
    body: str
    issuer_chain: _Pem = ""
    seen: Annotated[list[_Seen], msgspec.Meta(min_length=1, max_length=MAX_SIGHTINGS)]


class _End(msgspec.Struct, forbid_unknown_fields=True):
    end: int


# Lines that are no documents: PCK certificates, which of them raw TCBs led to, sightings of platforms, registrations
# and what they were before, appraisal policies. Certificates are verified like documents. Nothing signs the others: an
# archive is trusted by the user who imports it, and entries that the store has already stay.


class _RawTcb(msgspec.Struct, forbid_unknown_fields=True):
    cpu_svn: Hex16
    pce_svn: _Svn


class _OfPlatform(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag_field="platform"):
    qe_id: QeId
    pce_id: Hex2

    def ids(self, raw_tcb: _RawTcb | None = None) -> PlatformTcb:
        """The platform; without a raw TCB its CPUSVN is empty."""
        raw = raw_tcb or _RawTcb("", 0)
        return PlatformTcb(
            bytes.fromhex(self.qe_id), bytes.fromhex(self.pce_id), bytes.fromhex(raw.cpu_svn), raw.pce_svn
        )


class _Pck(_OfPlatform, kw_only=True, tag="pck-certificate"):
    certificate: _Pem
    issuer_chain: _Pem
    source: _Source
    first_seen: datetime
    last_seen: datetime
    raw_tcbs: Annotated[list[_RawTcb], msgspec.Meta(max_length=1000)] | None = None
    """Of versions 1 and 2, which have no lines of choices and sightings."""


class _Choice(_OfPlatform, kw_only=True, tag="choice"):
    raw_tcb: _RawTcb
    certificate: _Sha256
    since: datetime


class _Met(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="sightings", tag_field="platform"):
    id: _Sha256
    tee: Literal["sgx", "tdx"]
    fmspc: Hex6
    ca: Literal["processor", "platform"]
    sgx_components: Hex16
    pce_svn: _Svn
    cpu_svn: Hex16
    seen: Annotated[list[datetime], msgspec.Meta(min_length=1, max_length=MAX_SIGHTINGS)]


class _Registration(_OfPlatform, kw_only=True, tag="registration"):
    raw_tcb: _RawTcb | None = None
    encrypted_ppid: Annotated[bytes, msgspec.Meta(max_length=ENCRYPTED_PPID_SIZE)] | None = None
    platform_manifest: _Manifest | None = None
    fmspc: Hex6 | None = None
    state: State
    since: datetime
    last_seen: datetime
    began: datetime | None = None


class _Former(_OfPlatform, kw_only=True, tag="former-registration"):
    raw_tcb: _RawTcb | None = None
    state: State
    since: datetime
    platform_manifest: _Manifest | None = None


class _Policy(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="appraisal-policy", tag_field="platform"):
    fmspc: Hex6
    default: bool
    policy: Annotated[str, msgspec.Meta(max_length=1 << 20)]


_HEADER = msgspec.json.Decoder(_Header)
_LINE = msgspec.json.Decoder(_Line)
_END = msgspec.json.Decoder(_End)
_PlatformLine = _Pck | _Choice | _Met | _Registration | _Former | _Policy
_PLATFORM_LINE: msgspec.json.Decoder[_PlatformLine] = msgspec.json.Decoder(_PlatformLine)


@dataclass(frozen=True, slots=True)
class Exported:
    """How much was written to an archive."""

    documents: int
    policies: int
    certificates: int = 0
    registrations: int = 0
    history: int = 0


@dataclass(slots=True)
class Imported:
    """What an import took in: documents, and other lines (PCK certificates, registrations, policies), all and new ones.

    `ahead`: by how much the clock of the machine that wrote the archive was ahead of this one.
    """

    documents: int = 0
    new: int = 0
    others: int = 0
    new_others: int = 0
    keys: set[DocumentKey] = field(default_factory=set)
    ahead: timedelta = timedelta()


def write_archive(store: CollateralStore, file: BinaryIO, *, platforms: bool = False) -> Exported:
    """Write every version in the store, and the policies; with `platforms`, all that is known of platforms."""
    file.write(msgspec.json.encode(_Header()) + b"\n")
    written: set[int] = set()
    for key in store.document_keys():
        for version in store.history(key):
            if version.id not in written:
                written.add(version.id)
                file.write(msgspec.json.encode(_line(store.load(version), version.sightings)) + b"\n")
    parts = (_policies, _certificates, _registrations, _history) if platforms else (_policies,)
    with store.database.read(paused=True) as connection:  # as of one moment: choices name certificates
        connection = connection.execution_options(yield_per=PAGE)
        others = [_write_lines(file, part(store, connection)) for part in parts]
    file.write(msgspec.json.encode(_End(len(written) + sum(others))) + b"\n")
    return Exported(len(written), *others)


def _write_lines(file: BinaryIO, lines: Iterable[msgspec.Struct]) -> int:
    count = 0
    for line in lines:
        file.write(msgspec.json.encode(line) + b"\n")
        count += 1
    return count


def read_archive(store: CollateralStore, file: BinaryIO, *, now: datetime) -> Imported:
    """Verify every version of an archive and keep it.

    Versions are kept in batches, so some that stand before a refused line are kept. An archive without its end line was
    cut off: `FormatError`. Where its dates and `now` cannot both be right: `ClockError`.
    """
    imported = Imported()
    batch: list[tuple[VerifiedDocument, tuple[Sighting, ...]]] = []
    others: list[Keep] = []
    held = 0
    for size, found in _read(store, file, now, imported):
        if isinstance(found, tuple):
            document, sightings = found
            verified = verify_document(document, roots=store.roots)
            Dates(verified.facts.issue_date, verified.expires).require_clock(now)
            batch.append((verified, sightings))
            imported.documents += 1
            imported.keys |= {replace(document.key, update=update_of(seen.served_as)) for seen in sightings}
        else:
            others.append(found)
            imported.others += 1
        held += size
        if len(batch) + len(others) == BATCH or held > MAX_HELD:
            _keep(store, batch, others, imported)
            held = 0
    _keep(store, batch, others, imported)
    return imported


def _keep(
    store: CollateralStore,
    batch: list[tuple[VerifiedDocument, tuple[Sighting, ...]]],
    others: list[Keep],
    imported: Imported,
) -> None:
    imported.new += store.add_seen(batch)
    imported.new_others += store.write(others)
    batch.clear()
    others.clear()


def _read(
    store: CollateralStore, file: BinaryIO, now: datetime, imported: Imported
) -> Iterator[tuple[int, tuple[Document, tuple[Sighting, ...]] | Keep]]:
    """The size of each line, and what it holds."""
    decode_json(_line_of(file, 1), _HEADER, STRUCTURE, "line 1")
    for number in range(2, MAX_LINES + 3):
        line, field = _line_of(file, number), f"line {number}"
        if line.startswith(b'{"end"'):
            _check_end(decode_json(line, _END, STRUCTURE, field).end, number - 2, file)
            return
        if line.startswith(PLATFORM_LINE):
            yield len(line), _read_platform_line(store, line, field, now)
            continue
        document, sightings = _document(decode_json(line, _LINE, STRUCTURE, field), field)
        imported.ahead = max(imported.ahead, *(one.seen - now for one in sightings))
        seen = tuple(replace(one, seen=at_most(one.seen, now, field)) for one in sightings)
        yield len(line), (document, seen)
    raise FormatError(f"more than {MAX_LINES} lines", structure=STRUCTURE, field="")


def _line_of(file: BinaryIO, number: int) -> bytes:
    line = file.readline(MAX_LINE + 1)
    if len(line) > MAX_LINE:
        raise FormatError(f"longer than {MAX_LINE} bytes", structure=STRUCTURE, field=f"line {number}")
    if number == 1 and not line.startswith(ARCHIVE_START):
        advice = "Give an archive of `confcom collateral export`; name a folder or a collateral.json by its path."
        raise FormatError("is not the head of an archive", structure=STRUCTURE, field="line 1", advice=advice)
    if not line.endswith(b"\n"):
        raise FormatError(
            "the file ends before its end line",
            structure=STRUCTURE,
            field=f"line {number}",
            advice="The archive was cut off: export or copy it again.",
        )
    return line


def _check_end(stated: int, found: int, file: BinaryIO) -> None:
    if stated != found:
        raise FormatError(f"states {stated} lines, found {found}", structure=STRUCTURE, field="end")
    if file.read(1):
        raise FormatError("is not the last line", structure=STRUCTURE, field="end")


def at_most(seen: datetime, now: datetime, what: str) -> datetime:
    """The time at which another machine saw something, not after now; `ClockError` where no small fault explains it."""
    if seen.tzinfo is None:
        raise FormatError("a time has no time zone", structure="archive", field=what)
    try:
        seen = seen.astimezone(UTC)
    except OverflowError as error:  # before the year 1, or after 9999
        raise FormatError("a time is none in UTC", structure="archive", field=what) from error
    if seen - now > MAX_AHEAD:
        raise ClockError(
            f"{what} of the archive was seen at {rfc3339(seen)}, but this machine's clock says {rfc3339(now)}: this "
            "clock is behind, or that of the machine which wrote the archive was ahead",
            advice="Compare both clocks with the true time. If this one is right, import the archive after that time.",
        )
    return min(seen, now)


def _line(document: Document, sightings: Iterable[Sighting]) -> _Line:
    key = document.key
    return _Line(
        kind=key.kind,
        tee=key.tee,
        fmspc=None if key.fmspc is None else key.fmspc.hex(),
        ca=key.ca,
        body=base64.b64encode(document.body).decode(),
        issuer_chain=_text(document.issuer_chain),
        seen=[_Seen(one.served_as, one.source, one.seen, one.seen) for one in sightings],
    )


def _document(line: _Line, where: str) -> tuple[Document, tuple[Sighting, ...]]:
    try:
        body = base64.b64decode(line.body, validate=True)
        key = DocumentKey(
            line.kind,
            tee=line.tee,
            fmspc=None if line.fmspc is None else bytes.fromhex(line.fmspc),
            ca=line.ca,
            update=update_of(line.seen[0].served_as),
        )
    except (ValueError, ConfigError) as error:  # b64decode: binascii.Error, or its parent for what is not ASCII
        raise FormatError(f"{error}", structure=STRUCTURE, field=where) from error
    sightings = tuple(sighting for seen in line.seen for sighting in _sightings(seen, key, where))
    # Under which set it was served is not in the document; its number is, and a pinned one must be the document's.
    return Document(_by_number(key, sightings), body, line.issuer_chain.encode()), sightings


def _sightings(seen: _Seen, key: DocumentKey, where: str) -> Iterator[Sighting]:
    if (seen.served_as == "") != (key.update is None):
        raise FormatError("served_as does not fit the kind", structure=STRUCTURE, field=where)
    if seen.first_seen.tzinfo is None or seen.last_seen.tzinfo is None:
        raise FormatError("a time has no time zone", structure=STRUCTURE, field=where)
    if seen.first_seen > seen.last_seen:
        raise FormatError("was seen last before it was seen first", structure=STRUCTURE, field=where)
    for time in dict.fromkeys((seen.first_seen, seen.last_seen)):
        yield Sighting(seen.served_as, seen.source, time)


def _by_number(key: DocumentKey, sightings: Iterable[Sighting]) -> DocumentKey:
    numbers = [int(seen.served_as) for seen in sightings if seen.served_as.isdigit()]
    return replace(key, update=numbers[0]) if numbers else key


def _text(pem: bytes) -> str:
    """PEM as text: what stands around its blocks may be of any encoding."""
    return pem.decode(errors="replace")


def _policies(store: CollateralStore, _: sa.Connection) -> Iterator[_Policy]:
    for fmspc, default, policy in store.policies.all():
        yield _Policy(fmspc=fmspc.hex(), default=default, policy=policy)


def _certificates(store: CollateralStore, connection: sa.Connection) -> Iterator[_Pck]:
    chosen = sa.select(PCK_CERTIFICATES, CHAINS.c.pem).join(CHAINS, CHAINS.c.id == PCK_CERTIFICATES.c.chain)
    for row in connection.execute(chosen.where(_is_trusted(store)).order_by(PCK_CERTIFICATES.c.id)):
        yield _Pck(
            qe_id=row.qe_id,
            pce_id=row.pce_id,
            certificate=_text(row.certificate),
            issuer_chain=_text(row.pem),
            source=row.source,
            first_seen=time_of(row.first_seen),
            last_seen=time_of(row.last_seen),
        )


def _registrations(_: CollateralStore, connection: sa.Connection) -> Iterator[_Registration]:
    columns, states = REGISTRATIONS.c, {"waiting": 0, "unavailable": 1, "cached": 2}
    order = (sa.case(states, value=columns.state), columns.fmspc, *REGISTRATIONS.primary_key)
    for row in connection.execute(sa.select(REGISTRATIONS).order_by(*order)):
        yield _Registration(
            qe_id=row.qe_id,
            pce_id=row.pce_id,
            raw_tcb=_raw_tcb(row),
            encrypted_ppid=row.encrypted_ppid,
            platform_manifest=row.platform_manifest,
            fmspc=row.fmspc or None,
            state=row.state,
            since=time_of(row.since),
            last_seen=time_of(row.last_seen),
            began=time_of(row.began),
        )


def _history(store: CollateralStore, connection: sa.Connection) -> Iterator[_Choice | _Met | _Former]:
    """Which certificates raw TCBs led to, of each the latest first; when platforms were met; former registrations."""
    order = [PLATFORM_TCBS.c[name].desc() for name in ("qe_id", "pce_id", "cpu_svn", "pce_svn", "since", "id")]
    chosen = sa.select(PLATFORM_TCBS, PCK_CERTIFICATES.c.digest).join(PCK_CERTIFICATES).order_by(*order)
    for row in connection.execute(chosen.where(_is_trusted(store))):
        raw, since = _RawTcb(row.cpu_svn, row.pce_svn), time_of(row.since)
        yield _Choice(qe_id=row.qe_id, pce_id=row.pce_id, raw_tcb=raw, certificate=row.digest.hex(), since=since)
    for row, seen in met(connection):
        yield _Met(
            id=row.id,
            tee=row.tee,
            fmspc=row.fmspc,
            ca=row.ca,
            sgx_components=row.sgx_components.hex(),
            pce_svn=row.pce_svn,
            cpu_svn=row.cpu_svn.hex(),
            seen=list(map(time_of, seen)),
        )
    for row in connection.execute(sa.select(FORMER_REGISTRATIONS).order_by(FORMER_REGISTRATIONS.c.id)):
        yield _Former(
            qe_id=row.qe_id,
            pce_id=row.pce_id,
            raw_tcb=_raw_tcb(row),
            state=row.state,
            since=time_of(row.since),
            platform_manifest=row.platform_manifest,
        )


def _is_trusted(store: CollateralStore) -> sa.ColumnElement[bool]:
    return PCK_CERTIFICATES.c.root.in_([root.public_key for root in store.roots.roots])


def _raw_tcb(row: Any) -> _RawTcb | None:  # noqa: ANN401 - of registrations, or former ones
    return _RawTcb(row.cpu_svn, row.pce_svn) if row.cpu_svn else None


def _read_platform_line(store: CollateralStore, data: bytes, field: str, now: datetime) -> Keep:
    """Verify a line and give what keeps it."""
    line = decode_json(data, _PLATFORM_LINE, STRUCTURE, field)

    def at(time: datetime) -> int:
        return seconds(at_most(time, now, field))

    try:
        match line:
            case _Pck():
                return _certificate(store, line, at(line.first_seen), at(line.last_seen))
            case _Choice():
                digest = bytes.fromhex(line.certificate)
                return partial(_keep_choice, values=(line.ids(line.raw_tcb), digest, at(line.since)), field=field)
            case _Met():
                tcb = PckTcb(tuple(bytes.fromhex(line.sgx_components)), line.pce_svn, bytes.fromhex(line.cpu_svn))
                of = sighted(line.id, line.tee, bytes.fromhex(line.fmspc), line.ca, tcb)
                return partial(restore_met, of=of, seen=sorted(set(map(at, line.seen))))
            case _Registration():
                return partial(restore_registration, registration=_registration(line, field, now))
            case _Former():
                values = line.ids(line.raw_tcb).columns() | {"state": line.state, "since": at(line.since)}
                return partial(keep_former, former=values | {"platform_manifest": line.platform_manifest})
            case _Policy():
                platform_class(line.policy)
                fmspc = bytes.fromhex(line.fmspc)
                return partial(store.policies.restore, policy=line.policy, fmspc=fmspc, default=line.default)
    except (ConfigError, FormatError) as error:
        raise FormatError(error.message, structure=STRUCTURE, field=field) from error


def _certificate(store: CollateralStore, line: _Pck, first_seen: int, last_seen: int) -> Keep:
    platform = line.ids()
    answer = PckCertificateAnswer(line.certificate.encode(), line.issuer_chain.encode(), b"")
    return partial(
        restore_pck,
        platform=platform,
        verified=store.platforms.verify(answer, platform.pce_id),
        source=line.source,
        seen=(first_seen, last_seen),
        raw_tcbs=None if line.raw_tcbs is None else [line.ids(raw) for raw in line.raw_tcbs],
    )


def _keep_choice(connection: sa.Connection, values: tuple[PlatformTcb, bytes, int], field: str) -> bool:
    try:
        return restore_choice(connection, *values)
    except CollateralError as error:
        raise FormatError(error.message, structure=STRUCTURE, field=field) from error


def _registration(line: _Registration, field: str, now: datetime) -> Registration:
    ids, ppid, manifest = line.ids(line.raw_tcb), line.encrypted_ppid, line.platform_manifest
    request = pck_request(ids.pce_id, ids.qe_id, ids.cpu_svn, ids.pce_svn, ppid, manifest)
    since, seen = at_most(line.since, now, field), at_most(line.last_seen, now, field)
    began = since if line.began is None else at_most(line.began, now, field)
    return Registration(request, line.state, since, bytes.fromhex(line.fmspc or ""), seen, began)
