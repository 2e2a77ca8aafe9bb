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
import time
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
def platform(libraries: Path, stub: Stub, world: SimulatedWorld) -> Iterator[IntelWorkerPlatform]:
    with software_qe(world.platform, stub):
        platform = IntelWorkerPlatform(libraries, WorkerLimits(timeout=8, attempt_timeout=3))
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
    result = EnclaveQuoteSource(client, enclave).quote(DATA, nonce=b"n" * 16)

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


def test_kills_under_load_fail_no_request(path: Path, platform: IntelWorkerPlatform, enclave: SimulatedEnclave) -> None:
    source = EnclaveQuoteSource(AesmPlatform(path, simulated=True), enclave)
    source.quote(DATA)
    ended = threading.Event()

    def kill() -> None:
        for _ in range(5):
            time.sleep(0.4)
            if (pid := platform.worker_pid) is not None:
                os.kill(pid, signal.SIGKILL)
        ended.set()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        while not ended.is_set():
            assert DATA in source.quote(DATA).quote
    finally:
        killer.join()
    assert platform.replaced >= 4


def test_clients_at_once_get_their_own_quotes_while_workers_are_killed(
    path: Path, platform: IntelWorkerPlatform, enclave: SimulatedEnclave
) -> None:
    ended = threading.Event()

    def ask(number: int) -> int:
        source, data, asked = EnclaveQuoteSource(AesmPlatform(path, simulated=True), enclave), bytes([number]) * 64, 0
        while not ended.is_set():
            assert Quote.parse(source.quote(data).quote).body.report_data == data
            asked += 1
        return asked

    with ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(ask, number) for number in range(4)]
        for _ in range(3):
            time.sleep(0.4)
            if (pid := platform.worker_pid) is not None:
                os.kill(pid, signal.SIGKILL)
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
