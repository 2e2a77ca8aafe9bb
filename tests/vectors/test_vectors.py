"""Real quotes, their mutations, simulated ones: every verdict and TCB status of the index (promise M12)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from confcom.appraisal.findings import Verdict
from confcom.appraisal.policy import safe_defaults
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import AttestationResult, failed, judge
from confcom.collateral.bundle import load_bundle
from confcom.errors import ConfcomError, VerificationError
from confcom.pki.chain import TrustRoot, TrustRoots
from confcom.report.html import Report, report_document
from report_reader import Page, assert_inert
from vectors.expectations import Row, negative_rows, real_rows, simulated_rows

pytestmark = [pytest.mark.vectors, pytest.mark.promise("M12")]

UP_TO_DATE = safe_defaults(allow_debug=True, allow_unsafe_td=True, accept_simulated=True)
"""Intel's library judges neither debug flags nor roots: a policy about nothing but the TCB compares with it."""


def judge_row(row: Row, roots: TrustRoots) -> AttestationResult:
    now = datetime.fromtimestamp(row.time, UTC)
    try:
        collateral = load_bundle(row.folder)
    except ConfcomError as error:
        return failed(error)
    evidence = (row.folder / "quote.bin").read_bytes()
    return judge(evidence, collateral, verifier=QuoteVerifier(roots), policy=UP_TO_DATE, now=now)


def differences(rows: list[Row], roots_of: Callable[[Row], TrustRoots]) -> list[str]:
    found = []
    for row in rows:
        result = judge_row(row, roots_of(row))
        verified = result.verified
        expected = (row.verdict(acceptable=True), row.tcb_status if row.authentic else None)
        got = (result.verdict, verified.tcb_status if verified else None)
        if expected != got:
            found.append(f"{row.folder.name}: expected {expected}, got {got} {result.error}")
        elif verified and row.advisory_ids is not None and set(verified.tcb.advisory_ids) != row.advisory_ids:
            found.append(f"{row.folder.name}: advisories {verified.tcb.advisory_ids}")
    return found


def test_every_real_quote_gets_the_verdict_and_status_of_intels_library(vectors: Path) -> None:
    rows = real_rows(vectors)
    assert len(rows) > 100
    assert differences(rows, lambda _: TrustRoots.intel()) == []


def test_every_mutation_gets_the_verdict_of_its_label(vectors: Path) -> None:
    rows = negative_rows(vectors)
    assert len(rows) > 100
    assert differences(rows, negative_roots) == []


def test_every_simulated_quote_gets_the_status_of_intels_library_under_its_own_root(vectors: Path) -> None:
    rows = simulated_rows(vectors)
    assert len(rows) > 40
    assert differences(rows, folder_root) == []


def test_every_verdict_has_its_page_with_one_level_reached_in_each_picture(vectors: Path) -> None:
    pages = [(row, TrustRoots.intel()) for row in real_rows(vectors)]
    pages += [(row, folder_root(row)) for row in simulated_rows(vectors)]
    pages += [(row, negative_roots(row)) for row in negative_rows(vectors)]
    for number, (row, roots) in enumerate(pages):
        result = judge_row(row, roots)
        report = Report.of(result, datetime.fromtimestamp(row.time, UTC), identity_expected=False)
        document = report_document(report).decode()
        assert f"{result.verdict.upper()}</h2>" in document
        if number % 10 == 0:  # reading takes longer than rendering
            assert_inert(Page(document))
        if result.verified and result.verified.tcb_status:
            reached = [sum(level.reached for level in picture.levels) for picture in report.levels]
            assert reached == [1] * len(reached), row.folder.name
            assert document.count("<svg ") == len(reached) + 1


def test_no_simulated_quote_verifies_under_intels_root(vectors: Path) -> None:
    for row in simulated_rows(vectors):
        result = judge_row(row, TrustRoots.intel())
        assert result.verdict is Verdict.INVALID, row.folder.name
        assert isinstance(result.error, (VerificationError, ConfcomError))


def folder_root(row: Row) -> TrustRoots:
    root = TrustRoot.from_pem((row.folder / "root_ca.pem").read_bytes())
    assert root.simulated
    return TrustRoots((root,))


def negative_roots(row: Row) -> TrustRoots:
    # These two rows are about trusting a root that an attacker made.
    if row.folder.name.endswith("root-is-attacker"):
        return folder_root(row)
    return TrustRoots.intel()
