"""Archives: every version of every document in one file, to carry a store over an air gap.

JSON Lines in UTF-8: a header, one line per version, an end line with their number. Bodies are in base64, so they arrive
byte for byte; no document is trusted before its signature is verified. PCK certificates and registrations, which name
machines, are in it only if that is asked for.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, BinaryIO, Literal, TypeVar

import msgspec
import sqlalchemy as sa

from confcom.collateral.clock import Dates, at_most
from confcom.collateral.documents import Document, DocumentKey, DocumentKind, VerifiedDocument, verify_document
from confcom.collateral.store.appraisal_policies import platform_class
from confcom.collateral.store.platform_sightings import MetPlatform, restore_met
from confcom.collateral.store.platforms import (
    Choice,
    PlatformTcb,
    StoredPck,
    restore_choice,
    restore_pck,
)
from confcom.collateral.store.registrations import Former, Registration, State, restore_former, restore_registration
from confcom.collateral.store.rows import Sighting
from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralError, ConfigError, FormatError
from confcom.formats.pck_extension import PckTcb
from confcom.formats.signed_json import Hex2, Hex6, Hex16
from confcom.pki.certificate import MAX_PEM
from confcom.pki.crl import MAX_CRL
from confcom.protocols.pcs import (
    ENCRYPTED_PPID_SIZE,
    MAX_PLATFORM_MANIFEST,
    MAX_QE_ID,
    PckCertificateAnswer,
    PckCertRequest,
    PckCertsRequest,
    Update,
)

# Lines that are no documents: PCK certificates, which of them raw TCBs led to, sightings of platforms, registrations
# and what they were before, appraisal policies. Certificates are verified like documents. Nothing signs the others: an
# archive is trusted by the user who imports it, and entries that the store has already stay.

QeId = Annotated[str, msgspec.Meta(pattern=rf"\A(?:[0-9a-f]{{2}}){{1,{MAX_QE_ID}}}\Z")]
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Svn = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_Pem = Annotated[str, msgspec.Meta(max_length=MAX_PEM)]
_Source = Annotated[str, msgspec.Meta(max_length=1024, pattern=r"\A[^\0]*\Z")]
"""PostgreSQL keeps no text with a zero character."""

MAX_SIGHTINGS = 100_000
"""Times in one line."""

Keep = Callable[[sa.Connection], bool]
"""Keeps what a line holds in the transaction that is open; whether it is new."""


class _RawTcb(msgspec.Struct, forbid_unknown_fields=True):
    cpu_svn: Hex16
    pce_svn: _Svn


class _Pck(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="pck-certificate", tag_field="platform"):
    qe_id: QeId
    pce_id: Hex2
    certificate: _Pem
    issuer_chain: _Pem
    source: _Source
    first_seen: datetime
    last_seen: datetime
    raw_tcbs: Annotated[list[_RawTcb], msgspec.Meta(max_length=1000)] | None = None
    """Of versions 1 and 2, which have no lines of choices and sightings."""


class _Choice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="choice", tag_field="platform"):
    qe_id: QeId
    pce_id: Hex2
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


class _Registration(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="registration", tag_field="platform"):
    qe_id: QeId
    pce_id: Hex2
    raw_tcb: _RawTcb | None = None
    encrypted_ppid: Annotated[bytes, msgspec.Meta(max_length=ENCRYPTED_PPID_SIZE)] | None = None
    platform_manifest: Annotated[bytes, msgspec.Meta(max_length=MAX_PLATFORM_MANIFEST)] | None = None
    fmspc: Hex6 | None = None
    state: State
    since: datetime
    last_seen: datetime
    began: datetime | None = None


class _Former(
    msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="former-registration", tag_field="platform"
):
    qe_id: QeId
    pce_id: Hex2
    raw_tcb: _RawTcb | None = None
    state: State
    since: datetime
    platform_manifest: Annotated[bytes, msgspec.Meta(max_length=MAX_PLATFORM_MANIFEST)] | None = None


class _Policy(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="appraisal-policy", tag_field="platform"):
    fmspc: Hex6
    default: bool
    policy: Annotated[str, msgspec.Meta(max_length=1 << 20)]


PLATFORM_LINE = b'{"platform":"'
"""How these lines begin."""

_PLATFORM_LINE = msgspec.json.Decoder(_Pck | _Choice | _Met | _Registration | _Former | _Policy)


def policy_lines(store: CollateralStore) -> Iterator[bytes]:
    """The appraisal policies."""
    for fmspc, default, policy in store.policies.all():
        yield msgspec.json.encode(_Policy(fmspc=fmspc.hex(), default=default, policy=policy))


def certificate_lines(store: CollateralStore) -> Iterator[bytes]:
    """The PCK certificates."""
    for stored in store.platforms.stored_certificates():
        line = _Pck(
            qe_id=stored.qe_id.hex(),
            pce_id=stored.pce_id.hex(),
            certificate=stored.answer.certificate.decode(),
            issuer_chain=stored.answer.issuer_chain.decode(),
            source=stored.source,
            first_seen=stored.first_seen,
            last_seen=stored.last_seen,
        )
        yield msgspec.json.encode(line)


def history_lines(store: CollateralStore) -> Iterator[bytes]:
    """Which certificates raw TCBs led to, when platforms were met, and what registrations were before."""
    for choice in store.platforms.choices():
        raw = choice.platform
        yield msgspec.json.encode(
            _Choice(
                qe_id=raw.qe_id.hex(),
                pce_id=raw.pce_id.hex(),
                raw_tcb=_RawTcb(raw.cpu_svn.hex(), raw.pce_svn),
                certificate=choice.certificate.hex(),
                since=choice.since,
            )
        )
    for met in store.platforms.met():
        yield msgspec.json.encode(
            _Met(
                id=met.id,
                tee=met.tee,
                fmspc=met.fmspc.hex(),
                ca=met.ca,
                sgx_components=bytes(met.tcb.sgx_components).hex(),
                pce_svn=met.tcb.pce_svn,
                cpu_svn=met.tcb.cpu_svn.hex(),
                seen=list(met.seen),
            )
        )
    for former in store.registrations.former():
        yield msgspec.json.encode(
            _Former(
                qe_id=former.qe_id.hex(),
                pce_id=former.pce_id.hex(),
                raw_tcb=_RawTcb(former.cpu_svn.hex(), former.pce_svn) if former.cpu_svn else None,
                state=former.state,
                since=former.since,
                platform_manifest=former.platform_manifest,
            )
        )


def registration_lines(store: CollateralStore) -> Iterator[bytes]:
    """The registrations."""
    states: tuple[State, ...] = ("waiting", "unavailable", "cached")
    for entry in (entry for state in states for entry in store.registrations.all(state)):
        request = entry.request
        raw = _RawTcb(request.cpu_svn.hex(), request.pce_svn) if isinstance(request, PckCertRequest) else None
        line = _Registration(
            qe_id=(request.qe_id or b"").hex(),
            pce_id=request.pce_id.hex(),
            raw_tcb=raw,
            encrypted_ppid=request.encrypted_ppid,
            platform_manifest=request.platform_manifest,
            fmspc=entry.fmspc.hex() or None,
            state=entry.state,
            since=entry.since,
            last_seen=entry.last_seen or entry.since,
            began=entry.began,
        )
        yield msgspec.json.encode(line)


def read_line(store: CollateralStore, data: bytes, *, structure: str, field: str, now: datetime) -> Keep:
    """Verify a line and give what keeps it; malformed lines are `FormatError`s that name the field."""
    try:
        line = _PLATFORM_LINE.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{error}", structure=structure, field=field) from error
    try:
        if isinstance(line, _Pck):
            return _certificate(store, line, field, now)
        if isinstance(line, _Registration):
            return partial(restore_registration, registration=_registration(line, field, now))
        if isinstance(line, _Choice):
            return partial(_keep_choice, choice=_choice(line, field, now), field=field)
        if isinstance(line, _Met):
            return partial(restore_met, met=_met(line, field, now))
        if isinstance(line, _Former):
            return partial(restore_former, former=_former(line, field, now))
        platform_class(line.policy)
        return partial(
            store.policies.restore, policy=line.policy, fmspc=bytes.fromhex(line.fmspc), default=line.default
        )
    except (ConfigError, FormatError) as error:
        raise FormatError(error.message, structure=structure, field=field) from error


def _certificate(store: CollateralStore, line: _Pck, field: str, now: datetime) -> Keep:
    pce_id = bytes.fromhex(line.pce_id)
    answer = PckCertificateAnswer(line.certificate.encode(), line.issuer_chain.encode(), b"")
    verified = store.platforms.verify(answer, pce_id)
    stored = StoredPck(
        bytes.fromhex(line.qe_id),
        pce_id,
        verified.answer,
        line.source,
        at_most(line.first_seen, now, field),
        at_most(line.last_seen, now, field),
    )
    raw_tcbs = None
    if line.raw_tcbs is not None:
        raw_tcbs = [_raw_tcb(line.qe_id, line.pce_id, raw) for raw in line.raw_tcbs]
    return partial(restore_pck, stored=stored, verified=verified, raw_tcbs=raw_tcbs)


def _raw_tcb(qe_id: str, pce_id: str, raw: _RawTcb) -> PlatformTcb:
    return PlatformTcb(bytes.fromhex(qe_id), bytes.fromhex(pce_id), bytes.fromhex(raw.cpu_svn), raw.pce_svn)


def _choice(line: _Choice, field: str, now: datetime) -> Choice:
    raw = _raw_tcb(line.qe_id, line.pce_id, line.raw_tcb)
    return Choice(raw, bytes.fromhex(line.certificate), at_most(line.since, now, field))


def _keep_choice(connection: sa.Connection, choice: Choice, field: str) -> bool:
    try:
        return restore_choice(connection, choice)
    except CollateralError as error:
        raise FormatError(error.message, structure=STRUCTURE, field=field) from error


def _met(line: _Met, field: str, now: datetime) -> MetPlatform:
    tcb = PckTcb(tuple(bytes.fromhex(line.sgx_components)), line.pce_svn, bytes.fromhex(line.cpu_svn))
    seen = tuple(at_most(time, now, field) for time in line.seen)
    return MetPlatform(line.id, line.tee, bytes.fromhex(line.fmspc), line.ca, tcb, seen)


def _former(line: _Former, field: str, now: datetime) -> Former:
    ids = bytes.fromhex(line.qe_id), bytes.fromhex(line.pce_id)
    raw = line.raw_tcb or _RawTcb("", 0)
    since = at_most(line.since, now, field)
    return Former(*ids, bytes.fromhex(raw.cpu_svn), raw.pce_svn, line.state, since, line.platform_manifest)


def _registration(line: _Registration, field: str, now: datetime) -> Registration:
    pce_id, qe_id = bytes.fromhex(line.pce_id), bytes.fromhex(line.qe_id)
    ppid, manifest = line.encrypted_ppid, line.platform_manifest
    request: PckCertRequest | PckCertsRequest
    if line.raw_tcb is None:
        request = PckCertsRequest(pce_id, ppid, manifest, qe_id=qe_id)
    else:
        cpu_svn = bytes.fromhex(line.raw_tcb.cpu_svn)
        request = PckCertRequest(cpu_svn, line.raw_tcb.pce_svn, pce_id, qe_id, ppid, manifest)
    since, seen = at_most(line.since, now, field), at_most(line.last_seen, now, field)
    began = since if line.began is None else at_most(line.began, now, field)
    return Registration(request, line.state, since, bytes.fromhex(line.fmspc or ""), seen, began)


ARCHIVE_START = b'{"format":"confcom-collateral-archive"'
"""What an archive begins with."""

MAX_LINE = 2 * (MAX_CRL + MAX_PEM)
"""Bytes of one line: base64 takes a third more than the document, the chain is text."""

MAX_LINES = 10_000_000
BATCH = 200
"""Versions that are verified and kept in one transaction."""

STRUCTURE = "collateral archive"

T = TypeVar("T")


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
    issuer_chain: Annotated[str, msgspec.Meta(max_length=MAX_PEM)] = ""
    seen: Annotated[list[_Seen], msgspec.Meta(min_length=1, max_length=MAX_SIGHTINGS)]


class _End(msgspec.Struct, forbid_unknown_fields=True):
    end: int


_HEADER = msgspec.json.Decoder(_Header)
_LINE = msgspec.json.Decoder(_Line)
_END = msgspec.json.Decoder(_End)


@dataclass(frozen=True, slots=True)
class Exported:
    """How much was written to an archive."""

    documents: int
    policies: int
    certificates: int
    registrations: int
    history: int


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
    policies = _write_lines(file, policy_lines(store))
    certificates = _write_lines(file, certificate_lines(store)) if platforms else 0
    registrations = _write_lines(file, registration_lines(store)) if platforms else 0
    history = _write_lines(file, history_lines(store)) if platforms else 0
    exported = Exported(len(written), policies, certificates, registrations, history)
    lines = len(written) + policies + certificates + registrations + history
    file.write(msgspec.json.encode(_End(lines)) + b"\n")
    return exported


def _write_lines(file: BinaryIO, lines: Iterable[bytes]) -> int:
    count = 0
    for line in lines:
        file.write(line + b"\n")
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
    for found in _read(store, file, now, imported):
        if isinstance(found, tuple):
            document, sightings = found
            verified = verify_document(document, roots=store.roots)
            Dates(verified.facts.issue_date, verified.expires).require_clock(now)
            batch.append((verified, sightings))
            imported.documents += 1
            imported.keys |= {replace(document.key, update=_update(seen.served_as)) for seen in sightings}
        else:
            others.append(found)
            imported.others += 1
        if len(batch) + len(others) == BATCH:
            _keep(store, batch, others, imported)
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
) -> Iterator[tuple[Document, tuple[Sighting, ...]] | Keep]:
    _decode(_line_of(file, 1), _HEADER, 1)
    for number in range(2, MAX_LINES + 3):
        line = _line_of(file, number)
        if line.startswith(b'{"end"'):
            _check_end(_decode(line, _END, number).end, number - 2, file)
            return
        if line.startswith(PLATFORM_LINE):
            yield read_line(store, line, structure=STRUCTURE, field=f"line {number}", now=now)
            continue
        document, sightings = _document(_decode(line, _LINE, number), number)
        imported.ahead = max(imported.ahead, *(one.seen - now for one in sightings))
        yield document, tuple(replace(one, seen=at_most(one.seen, now, f"line {number}")) for one in sightings)
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


def _decode(line: bytes, decoder: msgspec.json.Decoder[T], number: int) -> T:
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{error}", structure=STRUCTURE, field=f"line {number}") from error


def _line(document: Document, sightings: Iterable[Sighting]) -> _Line:
    key = document.key
    return _Line(
        kind=key.kind,
        tee=key.tee,
        fmspc=None if key.fmspc is None else key.fmspc.hex(),
        ca=key.ca,
        body=base64.b64encode(document.body).decode(),
        issuer_chain=document.issuer_chain.decode(),
        seen=[_Seen(one.served_as, one.source, one.seen, one.seen) for one in sightings],
    )


def _document(line: _Line, number: int) -> tuple[Document, tuple[Sighting, ...]]:
    where = f"line {number}"
    try:
        body = base64.b64decode(line.body, validate=True)
        key = DocumentKey(
            line.kind,
            tee=line.tee,
            fmspc=None if line.fmspc is None else bytes.fromhex(line.fmspc),
            ca=line.ca,
            update=_update(line.seen[0].served_as),
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


def _update(served_as: str) -> Update | None:
    match served_as:
        case "":
            return None
        case "standard" | "early":
            return served_as
        case _:
            return int(served_as)
