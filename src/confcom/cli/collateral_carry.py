"""`confcom collateral import` and `export`: a store's content over an air gap, in one file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import click

from confcom.appraisal.collateral import verify_collateral
from confcom.cli.collateral import store_option, trust_root_option
from confcom.cli.collateral_fetch import filled_store
from confcom.cli.inputs import parse_time
from confcom.cli.printable import printable
from confcom.cli.trust_options import trust_roots
from confcom.cli.update_option import parse_update
from confcom.collateral.archive import ARCHIVE_START, Exported, Imported, read_archive, write_archive
from confcom.collateral.bundle import load_bundle
from confcom.collateral.clock import Dates, rfc3339
from confcom.collateral.documents import Document, DocumentKey, read_document, take_apart
from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralInvalid, CollateralNotFound, ConfigError, FormatError, VerificationError
from confcom.pki.chain import verify_chain
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import Tee, Update

_FILE = click.Path(path_type=Path, allow_dash=True)


@click.command("import")
@click.argument("path", type=_FILE)
@store_option
@trust_root_option
@click.option("--update", default="standard", show_default=True, help="The set that a bundle is of; archives say it.")
def import_(path: Path, store: Path, trust_root: tuple[str, ...], update: str) -> None:
    """Verify collateral and keep it: PATH is an archive (`confcom collateral export`), a folder with one file per
    part, or a collateral.json; '-' reads an archive from standard input. A store is made only if the import succeeds.
    """
    now, roots, set_ = parse_time(None, ""), trust_roots(trust_root), parse_update(update)
    if str(path) == "-" or _is_archive(path):
        name = "the archive on standard input" if str(path) == "-" else str(path)
        source = nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb")
        with source as file, filled_store(store, roots) as opened:
            try:
                imported = read_archive(opened, file, now=now)
            except (FormatError, VerificationError) as error:
                raise CollateralInvalid.of(error, name) from error
            expired = _expired(opened, imported.keys, now)
    else:
        documents = _read_bundle(path, set_, roots, now)
        with filled_store(store, roots) as opened:
            new = opened.add(documents, seen=now, source=str(path))
            imported = Imported(len(documents), new, keys={document.key for document in documents})
            expired = _expired(opened, imported.keys, now)
    click.echo(f"{imported.documents} documents verified, {imported.new} new in {printable(str(store))}")
    if imported.others:
        click.echo(
            f"{imported.others} PCK certificates, registrations and appraisal policies, {imported.new_others} new"
        )
    if imported.ahead > timedelta():
        click.echo(
            f"confcom: the clock of the machine that wrote the archive was {imported.ahead.total_seconds():.0f} s "
            "ahead of this one; what it saw later than now counts as seen now",
            err=True,
        )
    for key, since in expired:
        click.echo(f"confcom: the {key} has expired, at {rfc3339(since)}: fetch a fresh one", err=True)


@click.command()
@click.option("-o", "--output", metavar="FILE", type=_FILE, required=True, help="The archive to write; '-' for stdout.")
@store_option
@trust_root_option
@click.option("--platforms", is_flag=True, help="Carry PCK certificates and registrations too: they name machines.")
def export(output: Path, store: Path, trust_root: tuple[str, ...], platforms: bool) -> None:
    """Write every version of every document, with the times at which they were seen, and every appraisal policy into
    one archive.

    PCK certificates and registrations of platforms are left out unless --platforms is given, and it is said how many.
    """
    with CollateralStore(store, roots=trust_roots(trust_root), create=False) as opened:
        left_out = opened.platforms.count_certificates(), opened.registrations.count_all()
        if not opened.document_keys() and not (platforms and any(left_out)):
            raise CollateralNotFound(
                f"{store} holds no documents of a trusted root, so there is nothing to export",
                advice="Fill it with `confcom collateral fetch`, or name its root with --trust-root.",
            )
        if str(output) == "-":
            exported = write_archive(opened, sys.stdout.buffer, platforms=platforms)
        else:
            exported = _write(opened, output, platforms=platforms)
    counts = f"{exported.documents} documents and {exported.policies} appraisal policies"
    if platforms:
        counts += f", {exported.certificates} PCK certificates and {exported.registrations} registrations of platforms"
    click.echo(f"{counts} in {printable(str(output))}", err=str(output) == "-")
    if not platforms and any(left_out):
        click.echo(
            f"confcom: left out: {left_out[0]} PCK certificates and {left_out[1]} registrations of platforms, which "
            "name machines; --platforms carries them",
            err=True,
        )


def _write(store: CollateralStore, output: Path, *, platforms: bool) -> Exported:
    # Under another name first, so that an archive that was cut off never has the name of a whole one.
    part = output.with_name(f"{output.name}.part")
    try:
        mode = 0o600 if platforms else 0o666
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


def _is_archive(path: Path) -> bool:
    if path.is_dir():
        return False
    file: BinaryIO
    try:
        with path.open("rb") as file:
            return file.read(len(ARCHIVE_START)) == ARCHIVE_START
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", advice="Check the path.") from error


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
