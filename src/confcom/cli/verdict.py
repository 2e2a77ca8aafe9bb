"""Judges the evidence of `confcom verify` and shows the verdict."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from confcom.appraisal.collateral import PCK_CHAIN_BESIDE, Collateral
from confcom.appraisal.findings import Verdict
from confcom.appraisal.peer import MAX_ATTESTED_PEM, read_attested_certificate
from confcom.appraisal.policy import AllOf, HeldData, Policy, ReportData, checked_identity
from confcom.appraisal.policy_file import MAX_POLICY, PolicyFile, parse_policy
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import AttestationResult, failed, judge, read_evidence
from confcom.cli.options import (
    MAX_HELD_DATA,
    STORE_VARIABLE,
    default_store,
    parse_hex,
    parse_time,
    print_json,
    printable,
    proxy_of_environment,
    read_input,
    read_peer_certificate,
    trust_roots,
    write_file,
)
from confcom.collateral.bundle import load_bundle
from confcom.errors import (
    CollateralError,
    CollateralInvalid,
    CollateralNotFound,
    ConfcomError,
    ConfigError,
    ExitCode,
    FormatError,
    VerificationError,
    exit_code,
)
from confcom.formats.attested_certificate import AttestedCertificate
from confcom.formats.evidence import MAX_EVIDENCE, EvidenceFile
from confcom.formats.quote import CertificationDataType, Quote, TeeType
from confcom.formats.tcb_info import TcbStatus
from confcom.pki.certificate import MAX_PEM, parse_certificates
from confcom.pki.chain import TrustRoots
from confcom.protocols.pcs import Update, parse_update
from confcom.report.summary import Summary

if TYPE_CHECKING:
    from confcom.collateral.documents import CollateralSource

_STORE_ENDINGS = (".sqlite", ".db")
_SERVICES = ("intel", "pccs", "thim")


def run(
    *,
    evidence: Path | None,
    certificate: Path | None,
    connect: str | None,
    collateral: str | None,
    collateral_ca: Path | None,
    pck_chain: Path | None,
    at: str | None,
    update: str,
    trust_root: tuple[str, ...],
    policy: Path | None,
    report_data: str | None,
    held_data: Path | None,
    as_json: bool,
    html: Path | None,
    **expectations: Any,  # noqa: ANN401 - by the names of the policy file's keys; None or () where not given
) -> int:
    """Judge, print, and give the exit code."""
    try:
        now = parse_time(at, "--at")
        given = _given(expectations)
        file = parse_policy(read_input(policy, MAX_POLICY, "policy"), name=str(policy)) if policy else PolicyFile()
        file = msgspec.structs.replace(file, **given)
        roots = trust_roots(trust_root)
        simulated = any(root.simulated for root in roots.roots)
        accepted: list[Policy] = [file.policy(accept_simulated=simulated, options=given)]
        if report_data is not None:
            accepted.append(ReportData(parse_hex(report_data, "--report-data", most=64)))
        if held_data is not None:
            accepted.append(HeldData(read_input(held_data, MAX_HELD_DATA, "held data")))
        updates = {text.strip(): parse_update(text) for text in update.split(",")}
        read = _reader(evidence, certificate, connect)
        if evidence is None:
            checked_identity(AllOf(*accepted))
        chain = read_input(pck_chain, MAX_PEM, "PCK chain") if pck_chain else None
        chosen = choose_collateral(collateral, roots, now, ca=collateral_ca, pck_chain=chain)
        judged = partial(judge, verifier=QuoteVerifier(roots), policy=AllOf(*accepted), now=now, grace=file.grace)
        results = _under_each(updates, read, judged, chosen, collateral or "")
    except ConfcomError as error:
        if not as_json:
            raise
        # Nothing was judged: the verdict of the object is null.
        print_json(failed(error).as_dict() | {"verdict": None})
        return exit_code(error)
    result = next(iter(results.values()))
    sets = [one.under(name) for name, one in results.items()] if len(results) > 1 else []
    expected = any(file.keys_of(tee) for tee in TeeType)
    if html is not None:
        from confcom.report.html import Report, report_document

        report = Report.of(result, now, identity_expected=expected, sets=sets)
        write_file(html, report_document(report), "report")
    if as_json:
        print_json(result.as_dict() | ({"sets": sets} if sets else {}))
    else:
        show(Summary.of(result, now, identity_expected=expected))
        if sets:
            show_sets(sets)
    return exit_code(result.error) if result.error else ExitCode.OK


def _reader(
    evidence: Path | None, certificate: Path | None, connect: str | None
) -> Callable[[], EvidenceFile | AttestedCertificate]:
    """What reads the one input that was named: evidence, a certificate with evidence, or that of a server."""
    if [evidence, certificate, connect].count(None) != 2:
        given = evidence or certificate or connect
        raise ConfigError(
            "one input is judged at a time" if given else "there is nothing to judge",
            advice="Name EVIDENCE, or --certificate FILE, or --connect HOST:PORT.",
        )
    if evidence is not None:
        return partial(read_evidence, read_input(evidence, MAX_EVIDENCE, "evidence"))
    if certificate is not None:
        return partial(read_attested_certificate, read_input(certificate, MAX_ATTESTED_PEM, "certificate"))
    return partial(read_attested_certificate, read_peer_certificate(connect or ""))


def _given(expectations: dict[str, Any]) -> dict[str, Any]:
    """The keys of the policy file that the command line names, which replace those of the file."""
    named = expectations | {"accept_tcb": _statuses(expectations["accept_tcb"])}
    # 0 is a product id and a security version, so a plain test for truth would drop it.
    return {key: value for key, value in named.items() if value not in (None, ()) and value is not False}


def _statuses(text: str | None) -> tuple[TcbStatus, ...]:
    if text is None:
        return ()
    try:
        return tuple(TcbStatus(name.strip()) for name in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--accept-tcb: {error}; known are {', '.join(TcbStatus)}") from error


def _under_each(
    updates: dict[str, Update],
    read: Callable[[], EvidenceFile | AttestedCertificate],
    judged: Callable[[EvidenceFile | AttestedCertificate, Collateral], AttestationResult],
    chosen: AbstractContextManager[CollateralChoice],
    source: str,
) -> dict[str, AttestationResult]:
    """The result under each set of collateral, by the name of the set."""
    results: dict[str, AttestationResult] = {}
    fail = partial(failed, source=source)
    try:
        # Before the collateral, so that a file that is no evidence is named first.
        found = read()
        certificate = found if isinstance(found, AttestedCertificate) else None
        evidence = found.evidence if isinstance(found, AttestedCertificate) else found
        fail = partial(fail, evidence=evidence, certificate=certificate)
        with chosen as choice:
            for name, update in updates.items():
                # A set that is missing leaves the verdicts of the others.
                try:
                    collateral = choice.collateral(evidence.quote, update)
                except CollateralError as error:
                    results[name] = fail(error)
                else:
                    results[name] = judged(found, collateral)
    except (FormatError, VerificationError, CollateralError) as error:
        results[next(iter(updates))] = fail(error)
    return results


# Collateral for the platform of the quote: a bundle, a store, or a service.


@dataclass(frozen=True, slots=True)
class CollateralChoice:
    """The collateral that `--collateral` names, for one set after the other."""

    name: str
    roots: TrustRoots
    source: CollateralSource | None
    pck_chain: bytes | None = None

    def collateral(self, quote: Quote, update: Update) -> Collateral:
        """The collateral; a bundle is taken as it is, but for a set by its number; others are asked for this platform.

        With `pck_chain` (PEM), that is the chain beside the quote; a quote with another chain is a `ConfigError`.
        """
        self._check_chain(quote)
        if self.source is None and not isinstance(update, int):
            bundle = load_bundle(Path(self.name))
            return bundle if self.pck_chain is None else bundle.with_pck_chain(self.pck_chain)
        from confcom.collateral.sources import BundleSource, fetch_for_quote

        source = self.source or BundleSource(Path(self.name))
        return fetch_for_quote(source, quote, self.roots, update=update, pck_chain=self.pck_chain)

    def _check_chain(self, quote: Quote) -> None:
        own = quote.signature.certification.certification_data
        if self.pck_chain is None or own.type is not CertificationDataType.PCK_CERTIFICATE_CHAIN:
            return
        carried = parse_certificates(own.data, structure="PCK chain")
        try:
            given = parse_certificates(self.pck_chain, structure="PCK chain")
        except FormatError as error:
            raise CollateralInvalid.of(error, PCK_CHAIN_BESIDE) from error
        if given != carried:
            raise ConfigError(
                "--pck-chain: the quote carries its own PCK certificate chain, and this is another one",
                advice="Leave --pck-chain out: it is for quotes that only name their platform.",
            )


@contextmanager
def choose_collateral(
    name: str | None, roots: TrustRoots, at: datetime, *, ca: Path | None = None, pck_chain: bytes | None = None
) -> Iterator[CollateralChoice]:
    """Open what `--collateral` names; without it, the user's own store, if there is one.

    `ca` is a PEM file with the CAs of a service's TLS certificate, `pck_chain` the PEM of a PCK chain for quotes
    without one.
    """
    name = _default() if name is None else name
    if "://" not in name and not name.endswith(_STORE_ENDINGS) and name not in _SERVICES:
        yield CollateralChoice(name, roots, None, pck_chain)
        return
    # Here, because it brings SQLite along, which a bundle does without.
    from confcom.collateral.sources import SourceOptions, open_source

    proxy = proxy_of_environment(name)
    with open_source(name, SourceOptions(roots=roots, at=at, ca_certificates=ca, proxy=proxy)) as source:
        yield CollateralChoice(name, roots, source, pck_chain)


def _default() -> str:
    store = os.environ.get(STORE_VARIABLE) or str(default_store())
    if "://" in store or os.path.isfile(store):  # noqa: PTH113 - in a home that may not be entered, too
        return store
    raise CollateralNotFound(
        "no collateral was given, and there is no store of your own",
        advice="Name it with --collateral (docs/howto/get-collateral.md), or fill a store: confcom collateral fetch.",
    )


# The verdict for people: identity, authenticity, how current the platform is, what to do.


_COLOURS = {Verdict.ACCEPTED: "green", Verdict.REFUSED: "red", Verdict.INVALID: "red", Verdict.UNDECIDED: "yellow"}


def show(summary: Summary) -> None:
    """Print the summary of a result."""
    word = click.style(summary.verdict.value.upper(), fg=_COLOURS[summary.verdict], bold=True)
    click.echo(f"{word}  {summary.meaning}")
    width = max(len(label) for label, _ in summary.rows)
    for label, value in summary.rows:
        click.echo(f"{click.style(label.ljust(width), bold=True)}  {printable(value)}")
    if summary.problem or summary.problems:
        _title("Problems" if len(summary.problems) > 1 else "Problem")
    if summary.problem:
        click.echo(f"  {printable(summary.problem)}")
    if summary.advice:
        click.echo(f"  what to do: {printable(summary.advice)}")
    for number, check in enumerate(summary.problems, 1):
        click.echo(f"  {number}. {check.id}: expected {printable(check.expected)}")
        click.echo(f"     found {printable(check.found)}")
        if check.advice:
            click.echo(f"     what to do: {printable(check.advice)}")
    if summary.note:
        click.echo(click.style(summary.note, fg="yellow"))


def show_sets(sets: list[dict[str, Any]]) -> None:
    """Print the verdict under each set of collateral."""
    _title("Under each set")
    for found in sets:
        number = found["tcb_evaluation_data_number"]
        status = found["tcb_status"] or "no TCB status"
        what = f"TCB evaluation {number}, {status}" if number is not None else found["error"]["message"]
        click.echo(f"  {found['update']}: {found['verdict']} ({printable(what)})")


def _title(text: str) -> None:
    click.echo(click.style(text, bold=True))
