"""Updates of the quote helper over Intel's libraries: the new QE proves itself although no enclave of ours is there.

The libraries are the stand-in. Behind those of each helper stands a simulated QE that checks MACs and target infos, so
that a report for one release of the QE is none for another.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from confcom.appraisal.quote import verify_quote
from confcom.errors import PlatformUnavailable
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.intel.platform import IntelWorkerPlatform, WorkerLimits
from confcom.platforms.intel.process import worker_command
from confcom.platforms.interface import Platform, QuoteResult
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.services.quote_helper.helper import QuoteHelperConfig, serve
from confcom.services.quote_helper.self_test import SelfTestKit
from confcom.simulator.declaration import EnclaveDeclaration, measure
from confcom.simulator.enclaves import QE3
from confcom.simulator.world import SimulatedPlatform, SimulatedWorld
from helper_process import eventually
from software_qe import COMPILER, Stub, software_qe

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="needs a C compiler"),
    pytest.mark.promise("M10"),
]

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
DATA = bytes(range(64))
NEWER = replace(QE3, mr_enclave=measure("a newer QE3"))


class WrongSignatures(SimulatedPlatform):
    """A QE whose quotes nobody can verify."""

    def quote(self, *arguments: object, **more: object) -> QuoteResult:
        result = super().quote(*arguments, **more)  # type: ignore[arg-type]
        # r of the signature: still a quote in every other respect
        wrong = bytes(byte ^ 1 for byte in result.quote[436:468])
        return QuoteResult(result.quote[:436] + wrong + result.quote[468:], result.qe_report_info)


@dataclass
class Helper:
    """One helper in a thread; `wait` gives the error that it ended with, if any."""

    thread: threading.Thread
    ready: threading.Event
    stop: Callable[[], None]
    errors: list[Exception]

    def wait(self) -> Exception | None:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.errors[0] if self.errors else None


class Node:
    """A machine on which one helper follows another."""

    def __init__(self, libraries: Path, folder: Path, stack: ExitStack) -> None:
        self.path = folder / "aesm.socket"
        self.world = SimulatedWorld.from_seed(b"updates".ljust(32, b"."), now=NOW)
        self._libraries, self._stack = libraries, stack
        self._kit = SelfTestKit(None, lambda _, now: self.world.publish(now), self.world.trust_roots, simulated=True)

    def helper(self, qe: Platform) -> Helper:
        stub = Stub(Path(self._stack.enter_context(tempfile.TemporaryDirectory())))
        self._stack.enter_context(software_qe(qe, stub))
        command = ("env", f"DCAP_STUB={stub.folder}", *worker_command(self._libraries))
        platform = IntelWorkerPlatform(limits=WorkerLimits(timeout=8), command=command)
        self._stack.callback(platform.close)
        return self._start(platform)

    def _start(self, platform: Platform) -> Helper:
        ready, errors, stops = threading.Event(), [], []
        config = QuoteHelperConfig(socket=str(self.path), replace=True, http=f"unix:{self.path}.http")

        async def run() -> None:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            stops.append(lambda: loop.call_soon_threadsafe(stop.set))
            await serve(platform, config, stop=stop, started=ready.set, self_test=self._kit)

        def work() -> None:
            try:
                asyncio.run(run())
            except Exception as error:  # noqa: BLE001 - the test looks at it
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()

        def stop() -> None:
            with suppress(RuntimeError, IndexError):
                stops[0]()
            thread.join(60)

        self._stack.callback(stop)
        return Helper(thread, ready, stop, errors)

    def ask_as_a_client(self) -> None:
        enclave = self.world.machine.launch(EnclaveDeclaration.from_names("app"))
        quote = EnclaveQuoteSource(AesmPlatform(self.path, simulated=True), enclave).quote(DATA).quote
        verified = verify_quote(quote, self.world.publish(NOW), roots=self.world.trust_roots, now=NOW)
        assert verified.report_data == DATA


@pytest.fixture
def node(libraries: Path) -> Iterator[Node]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        yield Node(libraries, Path(folder), stack)


def release(node: Node, qe: EnclaveDeclaration = QE3, kind: type[SimulatedPlatform] = SimulatedPlatform) -> Platform:
    return kind(node.world.machine, node.world.authority, qe)


def serving(node: Node, qe: Platform) -> Helper:
    helper = node.helper(qe)
    assert helper.ready.wait(60), helper.errors
    return helper


def wait_for_report(node: Node) -> bytes:
    kept = node.path.with_name(".aesm.socket.self-test-report")
    deadline = time.monotonic() + 60
    while not kept.exists():
        assert time.monotonic() < deadline, "no report was kept"
        time.sleep(0.02)
    return kept.read_bytes()


def proof(log: list[dict[str, object]]) -> dict[str, str]:
    found = [event["checks"] for event in log if event["event"] == "aesm.proof"]
    assert len(found) == 1
    assert isinstance(found[0], dict)
    return found[0]


def test_a_new_qe_is_proven_with_a_report_of_the_old_one(node: Node) -> None:
    old = serving(node, release(node))
    node.ask_as_a_client()
    before = wait_for_report(node)
    with capture_logs() as log:
        serving(node, release(node, NEWER))
    assert "a report by the QE before it" in proof(log)["quote"]
    assert proof(log)["verification"] == "TCB status UpToDate"
    assert proof(log)["recorded-clients"] == "18 requests"
    assert old.wait() is None
    node.ask_as_a_client()
    eventually("the report is the new QE's", lambda: wait_for_report(node) != before)

    with capture_logs() as log:  # and so on for ever
        serving(node, release(node))
    assert "a report by the QE before it" in proof(log)["quote"]


def test_the_same_qe_is_proven_with_the_report_that_is_kept(node: Node) -> None:
    old = serving(node, release(node))
    node.ask_as_a_client()
    wait_for_report(node)
    with capture_logs() as log:
        serving(node, release(node))
    assert "the QE's report on itself" in proof(log)["quote"]
    assert old.wait() is None


@pytest.mark.parametrize("qe", [QE3, NEWER], ids=["same release", "newer release"])
def test_a_qe_that_signs_wrongly_does_not_take_over(node: Node, qe: EnclaveDeclaration) -> None:
    old = serving(node, release(node))
    node.ask_as_a_client()
    before = wait_for_report(node)
    failure = node.helper(release(node, qe, WrongSignatures)).wait()
    assert isinstance(failure, PlatformUnavailable)
    assert "verification: " in failure.message
    assert old.thread.is_alive()
    assert wait_for_report(node) == before
    node.ask_as_a_client()


def test_before_the_first_client_the_proof_says_what_it_could_not_do(node: Node) -> None:
    serving(node, release(node))
    with capture_logs() as log:
        serving(node, release(node, NEWER))
    assert "no other before the first quote for a client" in proof(log)["quote"]
    assert "not done" in proof(log)["verification"]
    assert not node.path.with_name(".aesm.socket.self-test-report").exists()


def test_a_report_that_the_qe_does_not_take_any_more_is_dropped_and_said_so(node: Node) -> None:
    kept = node.path.with_name(".aesm.socket.self-test-report")
    kept.write_bytes(bytes(432))
    kept.chmod(0o600)
    with capture_logs() as log:
        serving(node, release(node))
        eventually("it is dropped", lambda: not kept.exists())
        eventually("it is said", lambda: any(event["event"] == "aesm.self_test_report" for event in log))
    said = [event for event in log if event["event"] == "aesm.self_test_report"]
    assert [event["outcome"] for event in said] == ["dropped"]
    assert "another one than before" in str(said[0]["reason"])
    node.ask_as_a_client()
    wait_for_report(node)
