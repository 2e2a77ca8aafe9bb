"""What `confcom collateral` does: fetch into a store or a folder, import, export, status, remove."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import click

from confcom.appraisal.collateral import verify_collateral
from confcom.appraisal.result import read_evidence
from confcom.cli.options import (
    complain,
    keep_input,
    naming,
    note,
    parse_duration,
    parse_hex,
    parse_time,
    print_json,
    print_pieces,
    printable,
    proxy_of_environment,
    read_input,
    trust_roots,
)
from confcom.collateral.archive import ARCHIVE_START, Exported, Imported, read_archive, write_archive
from confcom.collateral.bundle import load_bundle, save_bundle
from confcom.collateral.documents import (
    CollateralSource,
    Dates,
    Document,
    DocumentKey,
    assemble,
    keys_for,
    read_document,
    rfc3339,
    take_apart,
)
from confcom.collateral.sources import SourceOptions, open_source, platform_of, source_name
from confcom.collateral.store.database import unfinished_store
from confcom.collateral.store.status import (
    Judged,
    MissingDocument,
    PlatformStatus,
    StoreStatus,
    status_json,
    store_status,
)
from confcom.collateral.store.store import CollateralStore
from confcom.database.engine import DatabaseAddress
from confcom.errors import (
    CollateralInvalid,
    CollateralNotFound,
    CollateralUnavailable,
    ConfcomError,
    ConfigError,
    ExitCode,
    FormatError,
    VerificationError,
    exit_code,
)
from confcom.formats.evidence import MAX_EVIDENCE, EvidenceFile
from confcom.formats.pck_extension import PckExtension
from confcom.input_file import open_input
from confcom.pki.chain import TrustRoots, verify_chain
from confcom.protocols.pcs import MAX_QE_ID, PckCaName, TcbSets, Tee, Update, clients_of, parse_update


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """The options of the command line, as given."""

    fmspc: tuple[str, ...]
    ca: tuple[PckCaName, ...]
    tee: tuple[Tee, ...]
    quote: tuple[Path, ...]
    source: str
    update: str
    store: str
    output: Path | None
    trust_root: tuple[str, ...]
    collateral_ca: Path | None
    insecure_tls: bool
    key: str | None
    proxy: str | None
    azure_region: str | None
    as_json: bool


@dataclass(frozen=True, slots=True)
class _Target:
    """What to ask for: one set for one kind of platform."""

    fmspc: bytes
    ca: PckCaName
    tee: Tee
    update: Update


@dataclass(slots=True)
class _Fetched:
    """The outcome. CRLs and identities are the same for many platforms and are fetched once."""

    documents: dict[DocumentKey, Document] = field(default_factory=dict)
    failed: dict[DocumentKey, ConfcomError] = field(default_factory=dict)
    new: int = 0
    errors: list[ConfcomError] = field(default_factory=list)


def fetch(**options: Any) -> int:  # noqa: ANN401 - FetchOptions has the types
    """Fetch, verify and keep; the exit code is that of the first failure."""
    given = FetchOptions(**options)
    now, roots = parse_time(None, ""), trust_roots(given.trust_root)
    evidence = (_read_evidence(path, alone=len(given.quote) == 1) for path in given.quote)
    platforms = [platform_of(one.quote, roots) for one in evidence]
    targets = list(_targets(given, platforms))
    if given.output is not None and len(targets) != 1:
        raise ConfigError(f"-o takes the collateral of one platform and one set, found {len(targets)}")
    fetched = _Fetched()
    settings = SourceOptions(
        roots=roots,
        at=now,
        ca_certificates=given.collateral_ca,
        insecure_tls=given.insecure_tls,
        key=given.key,
        proxy=given.proxy or proxy_of_environment(given.source),
        azure_region=given.azure_region,
    )
    with ExitStack() as stack:
        name = source_name(given.source)
        source = stack.enter_context(open_source(given.source, settings))
        store: CollateralStore | None = None
        for target in targets:
            try:
                documents = _fetch_one(source, target, fetched, name, roots, now)
            except ConfcomError as error:
                if error not in fetched.errors:
                    fetched.errors.append(error)
                continue
            if given.output is not None:
                save_bundle(assemble(documents, source=name), given.output)
            else:
                store = store or stack.enter_context(filled_store(given.store, roots))
                fetched.new += store.add(documents, seen=now, source=name)
        if store is not None:
            for extension, _, tee in platforms:
                store.observe_platform(extension, seen=now, tee=tee)
    _show(given, fetched, now)
    return exit_code(fetched.errors[0]) if fetched.errors else ExitCode.OK


def _fetch_one(
    source: CollateralSource, target: _Target, fetched: _Fetched, name: str, roots: TrustRoots, now: datetime
) -> list[Document]:
    keys = keys_for(target.fmspc, target.ca, target.tee, target.update)
    documents = [_fetch_document(source, key, fetched, name) for key in keys]
    # Together, so that revoked signers are found before anything is kept.
    verify_collateral(assemble(documents, source=name), roots=roots)
    for facts in map(read_document, documents):
        Dates(facts.issue_date, facts.next_update).require_clock(now)
    return documents


def _fetch_document(source: CollateralSource, key: DocumentKey, fetched: _Fetched, name: str) -> Document:
    if key in fetched.failed:
        raise fetched.failed[key]
    if key not in fetched.documents:
        try:
            fetched.documents[key] = source.fetch_document(key)
        except (FormatError, VerificationError) as error:
            fetched.failed[key] = CollateralInvalid.of(error, f"the {key} from {name}")
            raise fetched.failed[key] from error
        except ConfcomError as error:
            fetched.failed[key] = error
            raise
    return fetched.documents[key]


@contextmanager
def filled_store(store: str, roots: TrustRoots) -> Iterator[CollateralStore]:
    """A store to be filled. A new file, and its folder, are there only if the block ends well."""
    path = DatabaseAddress.parse(store).path
    if path is None:
        with CollateralStore(store, roots=roots) as opened:
            yield opened
        return
    # os.path.exists: what may not be looked at is reported when it is written.
    missing = [folder for folder in path.absolute().parents if not os.path.exists(folder)]  # noqa: PTH110
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--store: cannot make the folder {path.parent}: {error.strerror}") from error
    try:
        if os.path.exists(path):  # noqa: PTH110
            with CollateralStore(path, roots=roots) as opened:
                yield opened
            return
        with unfinished_store(path) as temporary, CollateralStore(temporary, roots=roots) as opened:
            yield opened
    except BaseException as error:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, FileExistsError):
            raise CollateralUnavailable(
                f"another process made {path} meanwhile", advice="Run the command again."
            ) from error
        raise


def _read_evidence(path: Path, *, alone: bool) -> EvidenceFile:
    data = read_input(path, MAX_EVIDENCE, "evidence")
    with nullcontext() if alone else naming(str(path)):
        return read_evidence(data)


def _named(store: str) -> str:
    """For people: a URL has no password."""
    return printable(DatabaseAddress.parse(store))


def _targets(given: FetchOptions, platforms: Iterable[tuple[PckExtension, PckCaName, Tee]]) -> Iterator[_Target]:
    both: tuple[PckCaName, ...] = ("platform",) if given.output else ("platform", "processor")
    sets = [parse_update(text) for text in given.update.split(",")]
    wanted: dict[tuple[bytes, PckCaName, Tee], None] = {}
    for digits in given.fmspc:
        fmspc = parse_hex(digits, "--fmspc", most=6)
        if len(fmspc) != 6:
            raise ConfigError(f"--fmspc: expected 12 hexadecimal digits, found {digits!r}")
        wanted |= {(fmspc, ca, tee): None for tee in given.tee or ("sgx",) for ca in given.ca or both}
    wanted |= {(extension.fmspc, ca, tee): None for extension, ca, tee in platforms}
    if not wanted:
        raise ConfigError(
            "nothing to fetch", advice="Name platforms with --fmspc HEX, or quotes of theirs with --quote FILE."
        )
    return (_Target(fmspc, ca, tee, update) for fmspc, ca, tee in wanted for update in sets)


def _show(given: FetchOptions, fetched: _Fetched, now: datetime) -> None:
    facts = {key: read_document(document) for key, document in fetched.documents.items()}
    if given.as_json:
        print_json(
            {
                "source": source_name(given.source),
                "documents": [
                    {"document": str(key), "number": fact.number, "until": rfc3339(fact.next_update)}
                    for key, fact in facts.items()
                ],
                "new_versions": fetched.new,
                "errors": [error.as_dict() for error in fetched.errors],
            }
        )
        return
    for key, fact in facts.items():
        late = "  (in the past)" if fact.next_update < now else ""
        click.echo(f"{key!s:<60} number {fact.number:<6} until {rfc3339(fact.next_update)}{late}")
    where = f"in {given.output}" if given.output is not None else f"{fetched.new} new versions in {_named(given.store)}"
    if facts:
        click.echo(printable(where))
    for error in fetched.errors:
        complain(error)


# Import and export carry a store over an air gap, in one file.


def import_(path: Path, store: str, trust_root: tuple[str, ...], update: str) -> None:
    """Verify an archive or a bundle, keep it, and say what was new."""
    now, roots, set_ = parse_time(None, ""), trust_roots(trust_root), parse_update(update)
    source = _archive(path)
    if source is not None:
        name = "the archive on standard input" if str(path) == "-" else str(path)
        with source as file, filled_store(store, roots) as opened:
            try:
                imported = read_archive(opened, file, now=now)
            except (FormatError, VerificationError) as error:
                raise CollateralInvalid.of(error, name) from error
            except OSError as error:
                raise ConfigError(f"cannot read {name}: {error.strerror}", advice="Check its source.") from error
            expired = _expired(opened, imported.keys, now)
    else:
        documents = _read_bundle(path, set_, roots, now)
        with filled_store(store, roots) as opened:
            new = opened.add(documents, seen=now, source=str(path))
            imported = Imported(len(documents), new, keys={document.key for document in documents})
            expired = _expired(opened, imported.keys, now)
    click.echo(f"{imported.documents} documents verified, {imported.new} new in {_named(store)}")
    if imported.others:
        click.echo(f"{imported.others} entries of platforms and appraisal policies, {imported.new_others} new")
    if imported.ahead > timedelta():
        note(
            f"the clock of the machine that wrote the archive was {imported.ahead.total_seconds():.0f} s ahead of this "
            "one; what it saw later than now counts as seen now"
        )
    for key, since in expired:
        note(f"the {key} has expired, at {rfc3339(since)}: fetch a fresh one")


def export(output: Path, store: str, trust_root: tuple[str, ...], platforms: bool) -> None:
    """Write the archive, and say what is in it and what was left out."""
    with CollateralStore(store, roots=trust_roots(trust_root), create=False) as opened:
        left_out = opened.platforms.count_certificates(), opened.registrations.count_all()
        if not opened.document_keys() and not (platforms and any(left_out)):
            raise CollateralNotFound(
                f"{_named(store)} holds no documents of a trusted root, so there is nothing to export",
                advice="Fill it with `confcom collateral fetch`, or name its root with --trust-root.",
            )
        if str(output) == "-":
            exported = write_archive(opened, sys.stdout.buffer, platforms=platforms)
        else:
            exported = _write(opened, output, platforms=platforms)
    counts = f"{exported.documents} documents and {exported.policies} appraisal policies"
    if platforms:
        counts += (
            f", {exported.certificates} PCK certificates and {exported.registrations} registrations of platforms with "
            f"{exported.history} entries of their history"
        )
    click.echo(f"{counts} in {printable(output)}", err=str(output) == "-")
    if not platforms and any(left_out):
        note(
            f"left out: {left_out[0]} PCK certificates and {left_out[1]} registrations of platforms, which name "
            "machines; --platforms carries them"
        )


def _write(store: CollateralStore, output: Path, *, platforms: bool) -> Exported:
    # Under another name first, so that a partial archive never has the name of a complete one.
    part = output.with_name(f"{output.name}.part")
    try:
        keep_input(output)
        mode = 0o600 if platforms else 0o666
        part.unlink(missing_ok=True)  # of a killed process, with another mode
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            written = write_archive(store, file, platforms=platforms)
        part.replace(output)
    except OSError as error:
        raise ConfigError(
            f"cannot write the archive to {output}: {error.strerror}", advice="Check the path."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return written


def _archive(path: Path) -> AbstractContextManager[BinaryIO] | None:
    """The archive to read from a file or a pipe; None for a bundle."""
    if str(path) == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        if path.is_dir():
            return None
        file = open_input(path)
        if file.peek(len(ARCHIVE_START)).startswith(ARCHIVE_START) or not path.is_file():
            return file
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", advice="Check the path.") from error
    file.close()
    return None


def _read_bundle(path: Path, update: Update, roots: TrustRoots, now: datetime) -> tuple[Document, ...]:
    collateral = load_bundle(path)
    verified = verify_collateral(collateral, roots=roots)
    ca = verify_chain(collateral.pck_crl_issuer_chain, roots=roots, kind="ca", step="import").ca
    tee: Tee = "tdx" if verified.tcb_info.id == "TDX" else "sgx"
    documents = take_apart(collateral, fmspc=verified.tcb_info.fmspc, ca=ca, tee=tee, update=update)
    for facts in map(read_document, documents):
        Dates(facts.issue_date, facts.next_update).require_clock(now)
    return documents


def _expired(store: CollateralStore, keys: Iterable[DocumentKey], now: datetime) -> list[tuple[DocumentKey, datetime]]:
    """The imported documents of which nothing in the store is valid now."""
    found = ((key, store.in_force(key, at=now)) for key in sorted(keys, key=str))
    return [(key, version.expires) for key, version in found if version is not None and version.expires < now]


# Status: what expires, what is missing, which platforms fall behind.


def status(
    store: str,
    min_validity: str,
    fail_on_promotion: bool,
    fmspc: tuple[str, ...],
    tcb_sets: tuple[str, ...],
    at: str | None,
    trust_root: tuple[str, ...],
    as_json: bool,
) -> int:
    """Print the store's status; exit code 6 when something needs action."""
    threshold = parse_duration(min_validity, "--min-validity")
    fmspcs = frozenset(parse_hex(digits, "--fmspc", most=6) for digits in fmspc)
    now = parse_time(at, "--at")
    # The environment variable of a service separates them by commas.
    words = (word.strip() for text in tcb_sets for word in text.split(","))
    sets = TcbSets.parse(filter(None, words), setting="--tcb-set")
    with CollateralStore(store, roots=trust_roots(trust_root), create=False) as opened:
        found = store_status(opened, now, fmspcs=fmspcs, sets=sets)
    if as_json:
        print_pieces(status_json(found, min_validity=threshold, clock=at is None))
    else:
        _show_status(found, threshold, clock=at is None)
    alarms = [found.expiring(threshold), found.missing, found.not_yet_valid]
    alarms += [found.falling_behind] if fail_on_promotion else []
    return ExitCode.COLLATERAL if any(alarms) else ExitCode.OK


def _show_status(found: StoreStatus, threshold: timedelta, *, clock: bool) -> None:
    if clock and found.clock_problem:
        click.echo(f"CLOCK: {found.clock_problem}; the times below are by this clock")
    if not found.documents:
        click.echo("the store holds no documents of a trusted root (--trust-root names others)")
    for document in found.documents:
        low = "  LOW" if document.seconds_left < threshold.total_seconds() else ""
        left = "not yet valid" if document in found.not_yet_valid else _left(document.seconds_left)
        click.echo(f"{left:>14}  {document.key!s:<60} number {document.number}{low}")
    for entry in found.missing:
        click.echo(f"{'missing':>14}  {_missing(entry)}")
    if found.platforms:
        pinned = "; ".join(f"{clients_of(group)}: {update}" for group, update in found.sets.by_group.items())
        click.echo(f"sets that clients get (--tcb-set says what a service is pinned to): {pinned}")
    print_pieces(line for platforms in found.platforms for line in _platform_lines(platforms, found.sets))


def _missing(entry: MissingDocument) -> str:
    if entry.key is None or entry.fmspc is None:
        return "every TCB info: fetch that of your platforms (confcom collateral fetch --quote FILE, or --fmspc HEX)"
    return f"{entry.key} (for {entry.tee.upper()} quotes of FMSPC {entry.fmspc.hex()})"


def _platform_lines(platforms: PlatformStatus, sets: TcbSets) -> Iterator[str]:
    rest = f"  FMSPC {platforms.group.fmspc.hex()}  {_judged(platforms, sets)}\n"
    return (f"platform {id_[:16]}{rest}" for id_, _ in platforms.group.seen)


def _judged(platform: PlatformStatus, sets: TcbSets) -> str:
    words = f"{_set('standard', platform.standard)}, {_set('early', platform.early)}"
    behind = ""
    for group, update in sets.by_group.items():
        if group or update != "standard":
            words += f", {_set(f'group {group}' if group else 'without a group', platform.served[group])}"
        if platform.state_of(group) == "falls_behind":
            behind += "  FALLS BEHIND with the coming set"
            behind += f" (group {group})" if group else ""
            if isinstance(update, int):
                behind += f", when the pin on set {update} is moved"
            elif platform.promotion is not None:
                behind += f", about {platform.promotion:%Y-%m-%d}"
    if platform.shortfall is not None and platform.to_restart:
        behind += f"\n  {printable(platform.shortfall.sentence())}"
    return words + behind


def _set(name: str, judged: Judged) -> str:
    if judged.number is None:
        return f"{name}: no TCB info"
    return f"{name} ({judged.number}): {judged.status or 'below every level'}"


def _left(seconds: int) -> str:
    if seconds < 0:
        return f"expired {_span(-seconds)}"
    return f"{_span(seconds)} left"


def _span(seconds: int) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


# Removal of platforms.


def remove(
    store: str, trust_root: tuple[str, ...], qe_id: str | None, platform: str | None, not_seen_since: str | None
) -> None:
    """Remove platforms by QE_ID, by id, or by when they were last seen."""
    if [qe_id, platform, not_seen_since].count(None) != 2:
        raise ConfigError("which platforms?", advice="Give one of --qe-id, --platform and --not-seen-since.")
    named = None if qe_id is None else parse_hex(qe_id, "--qe-id", most=MAX_QE_ID)
    since = None if not_seen_since is None else _time(not_seen_since)
    with CollateralStore(store, roots=trust_roots(trust_root), create=False) as opened:
        if named is not None:
            removed = opened.platforms.remove(named)
        elif platform is not None:
            removed = opened.platforms.remove_known(platform.lower())
        else:
            removed = opened.platforms.remove_unseen(since or parse_time(None, ""))
    if not removed and since is None:
        raise CollateralNotFound(
            f"{_named(store)} knows no such platform", advice="List them: confcom collateral status --json."
        )
    click.echo(f"{removed} platforms removed from {_named(store)}")


def _time(text: str) -> datetime:
    if text[-1:].isalpha() and text[-1:] != "Z":
        return parse_time(None, "") - parse_duration(text, "--not-seen-since")
    return parse_time(text, "--not-seen-since")
