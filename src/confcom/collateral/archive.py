"""Archives: every version of every document in one file, to carry a store over an air gap.

JSON Lines in UTF-8: a header, one line per version, an end line with their number. Bodies are in base64, so they arrive
byte for byte; no document is trusted before its signature is verified. PCK certificates and registrations, which name
machines, are in it only if that is asked for (`platform_archive`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Annotated, BinaryIO, Literal, TypeVar

import msgspec

from confcom.collateral.clock import Dates, at_most
from confcom.collateral.documents import Document, DocumentKey, DocumentKind
from confcom.collateral.platform_archive import (
    PLATFORM_LINE,
    Keep,
    certificate_lines,
    policy_lines,
    read_line,
    registration_lines,
)
from confcom.collateral.store import CollateralStore
from confcom.collateral.store_rows import Sighting
from confcom.collateral.verified_document import VerifiedDocument, verify_document
from confcom.errors import ConfigError, FormatError
from confcom.formats.signed_json import Hex6
from confcom.pki.certificate import MAX_PEM
from confcom.pki.crl import MAX_CRL
from confcom.protocols.pcs import Update

ARCHIVE_START = b'{"format":"confcom-collateral-archive"'
"""What an archive begins with."""

MAX_LINE = 2 * (MAX_CRL + MAX_PEM)
"""Bytes of one line: base64 takes a third more than the document, the chain is text."""

MAX_LINES = 3_000_000
MAX_SIGHTINGS = 1_000
BATCH = 200
"""Versions that are verified and kept in one transaction."""

STRUCTURE = "collateral archive"

T = TypeVar("T")


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["confcom-collateral-archive"] = "confcom-collateral-archive"
    version: Literal[1, 2] = 2


class _Seen(msgspec.Struct, forbid_unknown_fields=True):
    served_as: Annotated[str, msgspec.Meta(pattern=r"\A(|standard|early|[0-9]{1,9})\Z")]
    source: Annotated[str, msgspec.Meta(max_length=1024)]
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
    """Write every version in the store, and the policies; with `platforms`, PCK certificates and registrations."""
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
    exported = Exported(len(written), policies, certificates, registrations)
    file.write(msgspec.json.encode(_End(len(written) + policies + certificates + registrations)) + b"\n")
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
        imported.ahead = max(imported.ahead, *(seen.last_seen - now for seen in sightings))
        yield document, tuple(_at_most(seen, now, number) for seen in sightings)
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
        seen=[_Seen(seen.served_as, seen.source, seen.first_seen, seen.last_seen) for seen in sightings],
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
    sightings = tuple(_sighting(seen, key, where) for seen in line.seen)
    # Under which set it was served is not in the document; its number is, and a pinned one must be the document's.
    return Document(_by_number(key, sightings), body, line.issuer_chain.encode()), sightings


def _sighting(seen: _Seen, key: DocumentKey, where: str) -> Sighting:
    if (seen.served_as == "") != (key.update is None):
        raise FormatError("served_as does not fit the kind", structure=STRUCTURE, field=where)
    if seen.first_seen.tzinfo is None or seen.last_seen.tzinfo is None:
        raise FormatError("a time has no time zone", structure=STRUCTURE, field=where)
    if seen.first_seen > seen.last_seen:
        raise FormatError("was seen last before it was seen first", structure=STRUCTURE, field=where)
    return Sighting(seen.served_as, seen.source, seen.first_seen, seen.last_seen)


def _at_most(seen: Sighting, now: datetime, number: int) -> Sighting:
    where = f"line {number}"
    return replace(seen, first_seen=at_most(seen.first_seen, now, where), last_seen=at_most(seen.last_seen, now, where))


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
