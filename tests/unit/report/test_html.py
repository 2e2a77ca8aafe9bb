"""The report as HTML: what it says, that hostile text stays text, and that one file is enough."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from msgspec import structs

import confcom
from confcom.appraisal.findings import Check, Verdict
from confcom.appraisal.policy import AllOf
from confcom.appraisal.policy_file import PolicyFile
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import AttestationResult, judge
from confcom.formats.tcb_info import TcbStatus
from confcom.report.html import (
    FOLDER,
    MAX_LEVELS,
    Column,
    Level,
    LevelPicture,
    Report,
    level_pictures,
    report_document,
    time_line,
)
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.enclaves import td_report, td_report_1_5
from confcom.simulator.world import SimulatedWorld
from report_reader import SCRIPT, Page, assert_inert

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(bytes(range(32)), now=NOW)


def enclave(world: SimulatedWorld) -> bytes:
    target = world.platform.init_quote().target_info
    report = world.machine.launch(EnclaveDeclaration.from_names("app", "us")).create_report(target, bytes(64))
    return world.platform.quote(report).quote


def judged(world: SimulatedWorld, evidence: bytes, *, late: timedelta = timedelta()) -> AttestationResult:
    tee = "tdx" if evidence[4:8] == b"\x81\0\0\0" else "sgx"
    machine = world.machine
    collateral = replace(world.authority.collateral(machine.fmspc, machine.pck_ca, tee), source=SCRIPT)
    policy = AllOf(PolicyFile().policy(accept_simulated=True))
    return judge(evidence, collateral, verifier=QuoteVerifier(world.trust_roots), policy=policy, now=NOW + late)


def page_of(result: AttestationResult, *, sets=()) -> Page:
    report = Report.of(result, NOW, identity_expected=False, sets=sets)
    page = Page(report_document(report).decode())
    assert_inert(page)
    return page


def test_an_accepted_enclave(world: SimulatedWorld) -> None:
    result = judged(world, enclave(world))
    page = page_of(result)
    assert "ACCEPTED" in page.words
    assert "SIMULATED: no hardware vouches for this." in page.words
    assert result.evidence is not None
    assert result.evidence.quote.body.mr_enclave.hex() in page.text
    assert "Platform: level 1 of 2 is reached, UpToDate" in page.words
    assert "Pin it with --mr-enclave" in page.words
    for check in result.checks:
        assert check.id in page.text
    # The name of the collateral's source is hostile here, and shown as it is written.
    assert "from <script>alert(1)</script><img src=x onerror=alert(2)>" in page.words
    assert "\\u202e\\x1b" in page.text


def test_every_problem_is_told_with_its_advice(world: SimulatedWorld) -> None:
    page = page_of(judged(world, enclave(world), late=timedelta(days=60)))
    assert "UNDECIDED" in page.words
    assert "✗ expired" in page.words
    assert "What to do:" in page.words


def test_nothing_of_a_forgery_is_shown_as_proven(world: SimulatedWorld) -> None:
    quote = bytearray(enclave(world))
    quote[200] ^= 1
    page = page_of(judged(world, bytes(quote)))
    assert "INVALID" in page.words
    assert "nothing of it was proven" in page.words
    assert not page.all("svg")


def test_what_is_no_evidence(world: SimulatedWorld) -> None:
    page = page_of(judged(world, b"<script>alert(1)</script>"))
    assert "INVALID" in page.words
    assert not page.all("svg")


def test_further_sets_stand_beside_the_first(world: SimulatedWorld) -> None:
    result = judged(world, enclave(world))
    page = page_of(result, sets=[result.under("standard"), result.under("early")])
    number = world.publish().content().tcb_info.tcb_info().tcb_evaluation_data_number
    assert f"standardaccepted{number}UpToDate" in page.text
    assert f"earlyaccepted{number}UpToDate" in page.text


def test_tds_have_the_levels_of_launch_and_now(world: SimulatedWorld) -> None:
    once = judged(world, world.platform.quote_td(td_report("td", bytes(64))))
    assert once.verified is not None
    titles = [picture.title for picture in level_pictures(once.verified)]
    assert titles == ["Platform", "TDX module", "Quoting enclave"]
    platform = level_pictures(once.verified)[0]
    assert [column.judged for column in platform.columns[17:20]] == [False, False, True]
    older = bytes([4, 1, 3]).ljust(16, b"\0")
    twice = judged(world, world.platform.quote_td(td_report_1_5("td", bytes(64), tee_tcb_svn=older)))
    assert twice.verified is not None
    pictures = level_pictures(twice.verified)
    assert [picture.title for picture in pictures] == [
        "Platform at launch",
        "TDX module at launch",
        "Platform now",
        "TDX module now",
        "Quoting enclave",
    ]
    assert [level.reached for level in pictures[3].levels][:1] == [True]
    assert [level.reached for level in pictures[1].levels][:1] == [False]
    assert "Platform now" in page_of(twice).words


def test_a_component_that_is_too_low_is_marked_and_named() -> None:
    columns = (Column("1", f"SGX component 1 {SCRIPT}", 4), Column("PCE", "PCE SVN", 11), Column("T1", "TDX", 0, False))
    levels = tuple(
        Level(status, NOW, (), needed, reached)
        for status, needed, reached in (("UpToDate", (5, 11, 9), False), (f"OutOfDate{SCRIPT}", (4, 11, 9), True))
    )
    picture = LevelPicture(f"Platform {SCRIPT}", columns, levels)
    assert [column.head for column in picture.low(levels[0])] == ["1"]
    assert "Too low for the highest level: SGX component 1" in picture.description
    none = replace(picture, levels=levels[:1])
    assert "none of the 1 levels shown is reached" in none.description


def test_a_platform_behind_the_highest_level() -> None:
    behind = SimulatedWorld.from_seed(b"a world of its own, whose TCB is raised", now=NOW)
    quote = enclave(behind)
    tcb = behind.machine.tcb
    behind.authority.raise_tcb(tcb.with_component(2, tcb.sgx_components[2] + 3), advisory_ids=["INTEL-SA-00001"])
    result = judged(behind, quote)
    page = page_of(result)
    assert "✗ REFUSED" in page.words
    assert result.verified is not None
    picture = level_pictures(result.verified)[0]
    assert [level.reached for level in picture.levels] == [False, True, False]
    assert [column.head for column in picture.low(picture.levels[0])] == ["3"]
    assert "Platform: level 2 of 3 is reached, OutOfDate" in page.words
    # The cell that is too low has its corner.
    assert len(page.all("path")) == 1


def test_the_time_line_has_every_date_in_its_order(world: SimulatedWorld) -> None:
    result = judged(world, enclave(world), late=timedelta(days=60))
    assert result.verified is not None
    windows = {*result.verified.collateral.windows, *result.verified.chain.windows}
    line = time_line(windows, result.verified.verified_at)
    assert {bar.window for bar in line.bars} == windows
    assert all(0 <= bar.start <= bar.end <= 1 for bar in line.bars)
    for bar in line.bars:
        assert (bar.end < 0.5) == (bar.state == "expired") == (bar.window not in windows - set(result.verified.stale))
    assert [bar.end for bar in line.bars] == sorted(bar.end for bar in line.bars)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_hostile_text_stays_text_everywhere(world: SimulatedWorld, verdict: Verdict) -> None:
    report = Report.of(judged(world, enclave(world)), NOW, identity_expected=False)
    check = Check(SCRIPT, False, SCRIPT, SCRIPT, SCRIPT)
    summary = replace(
        report.summary,
        verdict=verdict,
        meaning=SCRIPT,
        rows=((SCRIPT, SCRIPT), ("", SCRIPT)),
        problem=SCRIPT,
        advice=SCRIPT,
        problems=(check,),
        note=SCRIPT,
    )
    column, level = Column(SCRIPT, SCRIPT, 1), Level(SCRIPT, NOW, (SCRIPT,), (2,), True)
    line = report.line
    assert line is not None
    bars = tuple(replace(bar, window=structs.replace(bar.window, what=SCRIPT)) for bar in line.bars)
    stated = {"tcb_evaluation_data_number": None, "tcb_status": None, "error": {"message": SCRIPT}}
    sets = [{"update": SCRIPT, "verdict": SCRIPT} | stated]
    hostile = replace(
        report,
        summary=summary,
        checks=[check],
        identity={SCRIPT: [SCRIPT, SCRIPT]},
        levels=[LevelPicture(SCRIPT, (column,), (level,))],
        line=replace(line, bars=bars),
        sets=sets,
    )
    page = Page(report_document(hostile).decode())
    assert_inert(page)
    assert page.text.count("<script>alert(1)</script>") > 20


def test_the_file_needs_nothing_else_and_allows_nothing_else(world: SimulatedWorld) -> None:
    document = report_document(Report.of(judged(world, enclave(world)), NOW, identity_expected=False)).decode()
    page = Page(document)
    [policy] = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    style = re.search(r"<style>(.*)</style>", document, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert style[1] == (FOLDER / "report.css").read_text()
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_long_lists_are_bounded(world: SimulatedWorld) -> None:
    result = judged(world, enclave(world))
    assert result.verified is not None
    assert all(len(picture.levels) <= MAX_LEVELS for picture in level_pictures(result.verified))
    assert {level.status for picture in level_pictures(result.verified) for level in picture.levels} <= set(TcbStatus)


def test_the_wheel_has_the_files_of_the_pages() -> None:
    root = Path(confcom.__file__).parents[2]
    shipped = {Path(file.distribution_path) for file in WheelBuilder(str(root)).recurse_included_files()}
    for folder in (FOLDER, FOLDER.parent / "services" / "attestation"):
        files = [path for ending in ("html", "css", "js", "svg") for path in folder.rglob(f"*.{ending}")]
        assert len(files) >= 3
        assert {path.relative_to(root / "src") for path in files} <= shipped
