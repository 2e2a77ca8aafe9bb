"""`confcom collateral fetch`: from a service into a store or a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import click

from confcom.appraisal.collateral import verify_collateral
from confcom.appraisal.result import read_evidence
from confcom.cli.collateral import store_option, trust_root_option
from confcom.cli.exit_codes import ExitCode, exit_code
from confcom.cli.inputs import parse_hex, parse_time, read_input
from confcom.cli.printable import printable
from confcom.cli.trust_options import trust_roots
from confcom.cli.update_option import parse_update
from confcom.collateral.bundle import save_bundle
from confcom.collateral.clock import Dates, rfc3339
from confcom.collateral.documents import Document, DocumentKey, assemble, keys_for, read_document
from confcom.collateral.interface import CollateralSource
from confcom.collateral.sources import SourceOptions, platform_of, resolve
from confcom.collateral.store.database import unfinished_store
from confcom.collateral.store.store import CollateralStore
from confcom.errors import (
    CollateralInvalid,
    CollateralUnavailable,
    ConfcomError,
    ConfigError,
    FormatError,
    VerificationError,
)
from confcom.formats.evidence import MAX_EVIDENCE
from confcom.formats.pck_extension import PckExtension
from confcom.pki.roots import TrustRoots
from confcom.protocols.pcs import PckCaName, Tee, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """The options of the command line, as given."""

    fmspc: tuple[str, ...]
    ca: tuple[PckCaName, ...]
    tee: tuple[Tee, ...]
    quote: tuple[Path, ...]
    source: str
    update: str
    store: Path
    output: Path | None
    trust_root: tuple[str, ...]
    ca_certificates: Path | None
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
    """What came of it. CRLs and identities are the same for many platforms and are asked for once."""

    documents: dict[DocumentKey, Document] = field(default_factory=dict)
    failed: dict[DocumentKey, ConfcomError] = field(default_factory=dict)
    new: int = 0
    errors: list[ConfcomError] = field(default_factory=list)


_FILE = click.Path(path_type=Path)


@click.command()
@click.option("--fmspc", metavar="HEX", multiple=True, help="The kind of platform, 12 digits. Repeatable.")
@click.option(
    "--ca",
    type=click.Choice(get_args(PckCaName), case_sensitive=False),
    multiple=True,
    help="The CA of its PCK certificate. Default: both (platform with -o).",
)
@click.option(
    "--tee",
    type=click.Choice(get_args(Tee), case_sensitive=False),
    multiple=True,
    help="The kind of its quotes. Default: sgx.",
)
@click.option("--quote", metavar="FILE", type=_FILE, multiple=True, help="Take FMSPC, CA and kind from this evidence.")
@click.option(
    "--source",
    metavar="NAME",
    default="intel",
    show_default=True,
    help="intel, pccs, thim, the URL of a PCS or PCCS, a folder, a collateral.json, or a store.",
)
@click.option(
    "--update", metavar="SET,…", default="standard", show_default=True, help="standard, early, or numbers of sets."
)
@store_option
@click.option("-o", "--output", metavar="FOLDER", type=_FILE, help="Write one platform's files here, not to the store.")
@trust_root_option
@click.option("--ca-certificates", metavar="PEM", type=_FILE, help="CAs that the service's TLS certificate may be of.")
@click.option("--insecure-tls", is_flag=True, help="Accept any TLS certificate; Intel's signatures are checked anyway.")
@click.option(
    "--key", envvar="CONFCOM_PCS_KEY", help="Intel's subscription key, or the PCCS's token. Better: $CONFCOM_PCS_KEY."
)
@click.option("--proxy", metavar="URL", help="Default: $HTTPS_PROXY, except for the hosts in $NO_PROXY.")
@click.option("--azure-region", metavar="NAME", help="For thim: whose cache to ask, as westeurope. TDX needs it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fetch(**options: Any) -> int:  # noqa: ANN401 - click fills FetchOptions, which has the types
    """Get collateral, verify it, and keep it in the store (or, with -o, in a folder that `confcom verify` reads).

    What fails does not stop the rest; the exit code is then that of the first failure.
    """
    given = FetchOptions(**options)
    now, roots = parse_time(None, ""), trust_roots(given.trust_root)
    evidence = (read_evidence(read_input(path, MAX_EVIDENCE, "evidence")) for path in given.quote)
    platforms = [platform_of(one.quote, roots) for one in evidence]
    targets = list(_targets(given, platforms))
    if given.output is not None and len(targets) != 1:
        raise ConfigError(f"-o takes the collateral of one platform and one set, found {len(targets)}")
    fetched = _Fetched()
    settings = SourceOptions(
        roots=roots,
        at=now,
        ca_certificates=given.ca_certificates,
        insecure_tls=given.insecure_tls,
        key=given.key,
        proxy=given.proxy or _proxy_of_environment(given.source),
        azure_region=given.azure_region,
    )
    with ExitStack() as stack:
        source = stack.enter_context(resolve(given.source, settings))
        store: CollateralStore | None = None
        for target in targets:
            try:
                documents = _fetch_one(source, target, fetched, given.source, roots, now)
            except ConfcomError as error:
                if error not in fetched.errors:
                    fetched.errors.append(error)
                continue
            if given.output is not None:
                save_bundle(assemble(documents, source=given.source), given.output)
            else:
                store = store or stack.enter_context(filled_store(given.store, roots))
                fetched.new += store.add(documents, seen=now, source=given.source)
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


def _proxy_of_environment(source: str) -> str | None:
    host = urlsplit(source).hostname if "://" in source else source
    if host is None or host in {"pccs", "localhost", "127.0.0.1", "::1"} or proxy_bypass(host):
        return None
    return getproxies().get("https")


@contextmanager
def filled_store(path: Path, roots: TrustRoots) -> Iterator[CollateralStore]:
    """The store at a path, to be filled. A new one, and its folder, are there only if the block ends well."""
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--store: cannot make the folder {path.parent}: {error.strerror}") from error
    try:
        if path.exists():
            with CollateralStore(path, roots=roots) as store:
                yield store
            return
        with unfinished_store(path) as temporary, CollateralStore(temporary, roots=roots) as store:
            yield store
    except BaseException as error:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, FileExistsError):
            raise CollateralUnavailable(
                f"another process made {path} meanwhile", advice="Run the command again."
            ) from error
        raise


def _targets(given: FetchOptions, platforms: Iterable[tuple[PckExtension, PckCaName, Tee]]) -> Iterator[_Target]:
    both: tuple[PckCaName, ...] = ("platform",) if given.output else ("platform", "processor")
    sets = [parse_update(text.strip()) for text in given.update.split(",")]
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
        click.echo(
            json.dumps(
                {
                    "source": given.source,
                    "documents": [
                        {"document": str(key), "number": fact.number, "until": rfc3339(fact.next_update)}
                        for key, fact in facts.items()
                    ],
                    "new_versions": fetched.new,
                    "errors": [error.as_dict() for error in fetched.errors],
                },
                indent=2,
            )
        )
        return
    for key, fact in facts.items():
        late = "  (in the past)" if fact.next_update < now else ""
        click.echo(f"{key!s:<60} number {fact.number:<6} until {rfc3339(fact.next_update)}{late}")
    where = f"in {given.output}" if given.output is not None else f"{fetched.new} new versions in {given.store}"
    if facts:
        click.echo(printable(where))
    for error in fetched.errors:
        click.echo(f"confcom: {printable(str(error))}\n  what to do: {printable(error.advice())}", err=True)
