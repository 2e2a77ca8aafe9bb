"""The QE's report on itself: where it comes from, how it is kept, and when it is given up."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from confcom.errors import NativeError
from confcom.formats.quote import Quote
from confcom.formats.sgx import QeReportInfo, Report, ReportBody
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.interface import Platform, QuoteResult
from confcom.services.quote_helper.self_test import KeptFile, SelfQuote, SelfTestReport
from confcom.simulator.declaration import EnclaveDeclaration, measure
from confcom.simulator.enclaves import QE3
from confcom.simulator.machine import SimulatedMachine
from confcom.simulator.world import SimulatedPlatform, SimulatedWorld
from running_helper import running_helper

NEWER = replace(QE3, mr_enclave=measure("a newer QE3"))


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(b"report on itself".ljust(32, b"."), now=datetime(2026, 11, 1, tzinfo=UTC))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "aesm.socket"


@pytest.fixture
def kept(path: Path) -> Path:
    return path.with_name(".aesm.socket.self-test-report")


def clients_report(machine: SimulatedMachine, platform: Platform) -> bytes:
    enclave = machine.launch(EnclaveDeclaration.from_names("client"))
    return bytes(enclave.create_report(platform.init_quote().target_info, bytes(64)))


@contextmanager
def helper_at(path: Path, platform: Platform) -> Iterator[AesmPlatform]:
    with running_helper(platform, path):
        yield AesmPlatform(path, simulated=True)


def ask(report: SelfTestReport, helper: AesmPlatform, client: bytes | None = None) -> SelfQuote | None:
    return report.quote(helper, helper.init_quote().target_info, client)


def quoted_enclave(made: SelfQuote) -> bytes:
    body = Quote.parse(made.quote).body
    assert isinstance(body, ReportBody)
    return body.mr_enclave


def test_one_report_of_a_client_is_enough_for_ever(path: Path, kept: Path, world: SimulatedWorld) -> None:
    with helper_at(path, world.platform) as helper:
        first = SelfTestReport(path)
        assert ask(first, helper) is None
        made = ask(first, helper, clients_report(world.machine, world.platform))
        assert made is not None
        assert quoted_enclave(made) == QE3.mr_enclave
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        for again in (first, SelfTestReport(path)):
            made = ask(again, helper)
            assert made is not None
            assert made.origin == "the QE's report on itself"
            assert bytes(made.report) == kept.read_bytes()


def test_a_report_for_another_tcb_is_dropped_and_the_next_client_gives_a_new_one(
    path: Path, kept: Path, world: SimulatedWorld
) -> None:
    with helper_at(path, world.platform) as helper:
        report = SelfTestReport(path)
        old = clients_report(world.machine, world.platform)
        assert ask(report, helper, old) is not None
        world.machine.tcb = replace(world.machine.tcb, sgx_components=(9,) * 16)
        assert ask(report, helper, old) is None
        assert not kept.exists()
        assert ask(report, helper, clients_report(world.machine, world.platform)) is not None
        assert kept.exists()


def test_the_old_qe_reports_to_the_new_one(path: Path, kept: Path, world: SimulatedWorld) -> None:
    newer = SimulatedPlatform(world.machine, world.authority, NEWER)
    place = path.with_name("new")
    with helper_at(path, world.platform) as old, helper_at(place, newer) as new:
        assert ask(SelfTestReport(path), old, clients_report(world.machine, world.platform)) is not None
        before = kept.read_bytes()
        successor = SelfTestReport(path)
        made = ask(successor, new)
        assert made is not None
        assert made.origin == "a report by the QE before it"
        assert quoted_enclave(made) == QE3.mr_enclave
        # The predecessor may have to go on.
        assert kept.read_bytes() == before
        assert ask(SelfTestReport(path), old) is not None
    with helper_at(path, newer) as new:
        assert ask(successor, new) is not None
        assert kept.read_bytes() == bytes(made.report)


def test_a_predecessor_that_cannot_report_leaves_us_without(path: Path, kept: Path, world: SimulatedWorld) -> None:
    newer = SimulatedPlatform(world.machine, world.authority, NEWER)
    with helper_at(path.with_name("new"), newer) as new:
        kept.write_bytes(bytes(432))
        kept.chmod(0o600)
        assert ask(SelfTestReport(path), new) is None
        assert kept.exists()


class Forger(SimulatedPlatform):
    """Gives QE reports that are about another quote."""

    def quote(self, report: Report, key_id: object = None, qe_report_info: QeReportInfo | None = None) -> QuoteResult:
        info = None if qe_report_info is None else replace(qe_report_info, nonce=bytes(16))
        result = super().quote(report, None, info)
        return QuoteResult(result.quote, result.qe_report_info)


def test_a_qe_report_about_something_else_is_a_failure(path: Path, world: SimulatedWorld) -> None:
    forger = Forger(world.machine, world.authority)
    with helper_at(path, forger) as helper, pytest.raises(NativeError, match="not about the quote"):
        ask(SelfTestReport(path), helper, clients_report(world.machine, forger))


def kept_file(path: Path) -> KeptFile:
    return KeptFile(path, "aesm.self_test_report", limit=Report.size())


class TestFile:
    def test_only_a_file_of_this_user_alone_counts(self, tmp_path: Path) -> None:
        file = kept_file(tmp_path / "report")
        assert file.read() is None
        report = bytes(range(216)) * 2
        file.keep(report)
        assert file.read() == report
        (tmp_path / "report").chmod(0o644)
        assert file.read() is None
        file.keep(report)
        assert file.read() == report

    @pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
    def test_what_is_no_file_is_none(self, tmp_path: Path, make) -> None:
        make(tmp_path / "report")
        assert kept_file(tmp_path / "report").read() is None

    @pytest.mark.parametrize("size", [0, 431, 433, 1 << 20])
    def test_what_is_no_report_is_none(self, tmp_path: Path, size: int) -> None:
        path = tmp_path / ".s.self-test-report"
        path.write_bytes(bytes(size))
        path.chmod(0o600)
        assert SelfTestReport(tmp_path / "s")._kept() is None

    @pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to somebody else")
    def test_what_another_user_put_there_is_none(self, tmp_path: Path) -> None:
        file = kept_file(tmp_path / "report")
        file.keep(bytes(432))
        os.chown(tmp_path / "report", 65532, 65532)
        assert file.read() is None

    def test_a_place_where_nothing_can_be_kept_stops_nobody(self, tmp_path: Path) -> None:
        kept_file(tmp_path / "nowhere" / "report").keep(bytes(432))
