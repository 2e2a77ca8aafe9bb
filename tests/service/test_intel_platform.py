"""The quote helper over Intel's libraries: real sockets, real worker processes, a stand-in for the libraries.

Behind the stand-in a simulated QE signs, so that what clients get can be verified to the end.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aesm_wire import KEY_ID, read_response, request
from confcom import errors
from confcom.appraisal.quote import verify_quote
from confcom.formats.quote import Quote
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.intel.platform import IntelWorkerPlatform, WorkerLimits
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import SimulatedEnclave
from confcom.simulator.world import SimulatedWorld
from running_helper import exchange, running_helper
from software_qe import COMPILER, Stub, software_qe
from whole_way import quoted

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
DATA = bytes(range(64))
INIT = request(15, (1, KEY_ID), (3, 1), (4, 32))
SIZE = request(16, (1, KEY_ID))


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(bytes(32), now=NOW)


@pytest.fixture
def enclave(world: SimulatedWorld) -> SimulatedEnclave:
    return world.machine.launch(EnclaveDeclaration.from_names("app", "us"))


@pytest.fixture
def platform(
    libraries: Path, stub: Stub, world: SimulatedWorld, request: pytest.FixtureRequest
) -> Iterator[IntelWorkerPlatform]:
    limits = WorkerLimits(timeout=8, attempt_timeout=3) if "hang" in request.node.name else WorkerLimits()
    with software_qe(world.platform, stub):
        platform = IntelWorkerPlatform(libraries, limits)
        yield platform
        platform.close()


@pytest.fixture
def path(platform: IntelWorkerPlatform, tmp_path: Path) -> Iterator[Path]:
    with running_helper(platform, tmp_path / "aesm.socket") as helper:
        yield helper.path


def code(answer: bytes, number: int) -> int | bytes:
    return read_response(answer, number)[1]


@pytest.mark.promise("M10")
def test_a_quote_through_helper_and_libraries_verifies(
    path: Path, world: SimulatedWorld, enclave: SimulatedEnclave
) -> None:
    client = AesmPlatform(path, simulated=True)
    source = EnclaveQuoteSource(client, enclave)
    quoted(source)
    result = source.quote(DATA, nonce=b"n" * 16)

    verified = verify_quote(result.quote, world.publish(NOW), roots=world.trust_roots, now=NOW)
    assert verified.report_data == DATA
    assert len(result.quote) == client.quote_size()
    assert result.qe_report_info is not None
    qe_report = result.qe_report_info.qe_report
    enclave.verify_report(qe_report)
    assert qe_report.body.report_data[:32] == hashlib.sha256(b"n" * 16 + result.quote).digest()


def test_a_report_that_no_enclave_made_is_refused(path: Path) -> None:
    report = bytes(range(216)) * 2
    exchange(path, INIT)
    assert code(exchange(path, request(17, (1, report), (2, KEY_ID), (4, 8192))), 17) == 47


@pytest.mark.parametrize("number", [*range(0xE001, 0xE01C), 0xE035, 0xE03F, 0xE043, 0xE049, 0xE0FF])
def test_clients_are_told_the_numbers_of_intels_service(path: Path, stub: Stub, number: int) -> None:
    # 0xe001 → 1, …: the numbers of the page on the AESM protocol, in their order.
    told = [1, 3, 21, 32, 33, 15, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 29, 45, 46, 47, 48, 49, 50, 12, 22]
    expected = dict(zip(range(0xE001, 0xE01B), told, strict=True)).get(number, 1)
    stub.always("get_quote_size", f"{number:x}")
    assert code(exchange(path, SIZE), 16) == expected


@pytest.mark.parametrize("what", ["crash", "exit", "lose", "hang", "e014", "e016", "e03f"])
def test_a_client_sees_nothing_of_a_lost_worker(
    path: Path, stub: Stub, world: SimulatedWorld, enclave: SimulatedEnclave, what: str
) -> None:
    source = EnclaveQuoteSource(AesmPlatform(path, simulated=True), enclave)
    source.quote(DATA)
    for call in ("get_quote_size", "get_quote"):
        stub.once(call, what)
        quote = source.quote(DATA).quote
        assert not stub.pending(call)
        verify_quote(quote, world.publish(NOW), roots=world.trust_roots, now=NOW)


def test_a_hang_is_busy_in_time_and_over_when_the_library_is_well(path: Path, stub: Stub) -> None:
    exchange(path, INIT)
    stub.always("get_quote_size", "hang")
    assert code(exchange(path, SIZE), 16) == 18
    stub.relent()
    assert code(exchange(path, SIZE), 16) == 0


def kill_workers(platform: IntelWorkerPlatform, times: int, answered: threading.Semaphore) -> None:
    """One after the other, each once two quotes came since the one before: a busy machine starts them slowly."""
    for _ in range(times):
        for _ in range(2):
            answered.acquire(timeout=60)
        if (pid := platform.worker_pid) is not None:
            os.kill(pid, signal.SIGKILL)


def test_kills_under_load_fail_no_request(path: Path, platform: IntelWorkerPlatform, enclave: SimulatedEnclave) -> None:
    source = EnclaveQuoteSource(AesmPlatform(path, simulated=True), enclave)
    quoted(source)
    answered = threading.Semaphore(0)
    killer = threading.Thread(target=kill_workers, args=(platform, 5, answered), daemon=True)
    killer.start()
    while killer.is_alive():
        assert DATA in source.quote(DATA).quote
        answered.release()
    assert platform.replaced >= 4


def test_clients_at_once_get_their_own_quotes_while_workers_are_killed(
    path: Path, platform: IntelWorkerPlatform, enclave: SimulatedEnclave
) -> None:
    ended, answered = threading.Event(), threading.Semaphore(0)
    quoted(EnclaveQuoteSource(AesmPlatform(path, simulated=True), enclave))

    def ask(number: int) -> int:
        source, data, asked = EnclaveQuoteSource(AesmPlatform(path, simulated=True), enclave), bytes([number]) * 64, 0
        while not ended.is_set():
            assert Quote.parse(source.quote(data).quote).body.report_data == data
            answered.release()
            asked += 1
        return asked

    with ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(ask, number) for number in range(4)]
        kill_workers(platform, 3, answered)
        ended.set()
    assert all(one.result() for one in asked)
    assert platform.replaced >= 2


def test_another_tcb_asks_the_client_for_a_new_report(
    path: Path, world: SimulatedWorld, enclave: SimulatedEnclave, stub: Stub
) -> None:
    client = AesmPlatform(path, simulated=True)
    report = enclave.create_report(client.init_quote().target_info, DATA)
    stub.once("get_quote_size", "e00f")
    with pytest.raises(errors.KeyNotInitialized):
        client.quote(report)
    assert DATA in client.quote(report).quote


class TestCommand:
    """`confcom quote-helper` chooses the platform, serves with it, and leaves no process behind."""

    def test_without_hardware_says_what_is_missing(self, tmp_path: Path) -> None:
        if Path("/dev/sgx_enclave").exists():
            pytest.skip("there is hardware here")
        done = subprocess.run(
            [sys.executable, "-m", "confcom", "quote-helper", "--socket", str(tmp_path / "s"), "--platform", "intel"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 7
        assert "/dev/sgx_enclave does not exist" in done.stderr
        assert "what to do" in done.stderr
