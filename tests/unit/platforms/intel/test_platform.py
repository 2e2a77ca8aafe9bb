"""The worker with Intel's libraries: whatever they do to it, the caller is answered in time and nothing is left over.

The workers are real processes and the libraries a stand-in that can be told to crash, hang or lose its enclave.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from confcom.errors import (
    KeyNotInitialized,
    NativeError,
    PlatformBusy,
    PlatformError,
    PlatformUnavailable,
    ReportRejected,
)
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.formats.sgx import QeReportInfo, Report
from confcom.platforms.intel.platform import IntelWorkerPlatform, WorkerLimits
from software_qe import COMPILER, Stub, build_libraries

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

REPORT = Report.parse(bytes(range(216)) * 2)
INFO = QeReportInfo.parse(bytes(range(240)) * 4)
PATIENT = WorkerLimits(timeout=60.0, attempt_timeout=30.0, spare=False)
HASTY = WorkerLimits(timeout=60.0, attempt_timeout=0.8, spare=False)
"""Takes a worker for hung early, and gives a busy machine the time to start another."""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_libraries(tmp_path_factory.mktemp("libraries"))


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    (tmp_path / "stub").mkdir()
    monkeypatch.setenv("DCAP_STUB", str(tmp_path / "stub"))
    return Stub(tmp_path / "stub")


@pytest.fixture
def opened(libraries: Path, stub: Stub) -> Iterator[Callable[[WorkerLimits], IntelWorkerPlatform]]:
    platforms: list[IntelWorkerPlatform] = []

    def open_with(limits: WorkerLimits) -> IntelWorkerPlatform:
        platforms.append(IntelWorkerPlatform(libraries, limits))
        return platforms[-1]

    yield open_with
    for platform in platforms:
        platform.close()


@pytest.fixture
def platform(opened: Callable[[WorkerLimits], IntelWorkerPlatform]) -> IntelWorkerPlatform:
    return opened(PATIENT)


def all_children() -> set[int]:
    found = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    return {int(pid) for pid in found}


OTHERS: set[int] = set()
"""Children that other tests left, such as the resource tracker of multiprocessing."""


@pytest.fixture(autouse=True)
def others() -> None:
    OTHERS.clear()
    OTHERS.update(all_children())


def children() -> set[int]:
    """Process ids of the children that this test has made, zombies too."""
    return all_children() - OTHERS


def descriptors() -> int:
    """Of this process, without those of earlier tests that wait for a collection."""
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def is_quote(data: bytes) -> bool:
    return len(data) == 4700 and data[48:432] == bytes(REPORT.body)


class TestAnswers:
    def test_are_those_of_the_libraries(self, platform: IntelWorkerPlatform) -> None:
        assert platform.key_ids() == (ECDSA_P256_KEY_ID,)
        initialized = platform.init_quote(ECDSA_P256_KEY_ID)
        assert bytes(initialized.target_info) == b"\x11" * 512
        assert initialized.pub_key_id == b"\x22" * 32
        assert platform.quote_size(ECDSA_P256_KEY_ID) == 4700
        assert is_quote(platform.quote(REPORT).quote)
        result = platform.quote(REPORT, ECDSA_P256_KEY_ID, INFO)
        assert result.qe_report_info is not None
        assert bytes(result.qe_report_info) == bytes(INFO)[:528] + b"\x77" * 432

    def test_a_quote_without_a_key_is_refused_as_by_the_libraries(self, platform: IntelWorkerPlatform) -> None:
        with pytest.raises(KeyNotInitialized):
            platform.quote(REPORT)

    @pytest.mark.parametrize(
        ("number", "kind"), [(0xE015, ReportRejected), (0xE00F, KeyNotInitialized), (0xE019, NativeError)]
    )
    def test_errors_keep_class_and_number_and_cost_no_worker(
        self, platform: IntelWorkerPlatform, stub: Stub, number: int, kind: type[PlatformError]
    ) -> None:
        platform.init_quote()
        worker = platform.worker_pid
        stub.once("get_quote", f"{number:x}")
        with pytest.raises(kind) as error:
            platform.quote(REPORT)
        assert error.value.native_code == number
        assert is_quote(platform.quote(REPORT).quote)
        assert platform.worker_pid == worker

    def test_sgx_aesm_addr_does_not_reach_the_libraries(
        self, platform: IntelWorkerPlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SGX_AESM_ADDR", "")
        assert len(platform.init_quote().pub_key_id) == 32
        assert "SGX_AESM_ADDR" in os.environ


class TestReplacement:
    @pytest.mark.parametrize("what", ["crash", "exit", "lose", "e014", "e00e"])
    @pytest.mark.parametrize("call", ["get_quote_size", "get_quote"])
    def test_a_quote_comes_all_the_same(self, platform: IntelWorkerPlatform, stub: Stub, call: str, what: str) -> None:
        platform.init_quote()
        first = platform.worker_pid
        stub.once(call, what)
        assert is_quote(platform.quote(REPORT).quote)
        assert not stub.pending(call)
        assert platform.worker_pid != first
        assert platform.replaced == 1

    @pytest.mark.parametrize("what", ["crash", "lose"])
    def test_the_key_is_made_all_the_same(self, platform: IntelWorkerPlatform, stub: Stub, what: str) -> None:
        stub.once("init_quote", what)
        assert len(platform.init_quote().pub_key_id) == 32
        assert platform.replaced == 1

    def test_a_worker_that_is_killed_while_idle(self, platform: IntelWorkerPlatform) -> None:
        platform.init_quote()
        for _ in range(5):
            assert platform.worker_pid is not None
            os.kill(platform.worker_pid, signal.SIGKILL)
            time.sleep(0.01)
            assert is_quote(platform.quote(REPORT).quote)

    def test_a_worker_that_hangs(self, opened: Callable[[WorkerLimits], IntelWorkerPlatform], stub: Stub) -> None:
        platform = opened(HASTY)
        platform.init_quote()
        stub.once("get_quote", "hang")
        assert is_quote(platform.quote(REPORT).quote)
        assert platform.replaced >= 1

    def test_what_a_new_worker_says_of_the_key_is_the_answer(self, platform: IntelWorkerPlatform, stub: Stub) -> None:
        platform.init_quote()
        stub.once("get_quote", "crash")
        stub.once("init_quote", "e019")
        with pytest.raises(NativeError) as error:
            platform.quote(REPORT)
        assert error.value.native_code == 0xE019
        assert is_quote(platform.quote(REPORT).quote)

    def test_the_key_is_not_made_unasked(self, platform: IntelWorkerPlatform, stub: Stub) -> None:
        stub.once("get_quote_size", "crash")
        with pytest.raises(KeyNotInitialized):
            platform.quote_size()

    def test_a_spare_takes_over(self, opened: Callable[[WorkerLimits], IntelWorkerPlatform], stub: Stub) -> None:
        platform = opened(WorkerLimits())
        platform.init_quote()
        spare = children() - {platform.worker_pid}
        assert len(spare) == 1
        stub.once("get_quote", "crash")
        assert is_quote(platform.quote(REPORT).quote)
        assert {platform.worker_pid} == spare

    def test_killing_worker_and_spare_at_once_fails_nothing(
        self, opened: Callable[[WorkerLimits], IntelWorkerPlatform]
    ) -> None:
        platform = opened(WorkerLimits())
        platform.init_quote()
        for pid in children():
            os.kill(pid, signal.SIGKILL)
        assert is_quote(platform.quote(REPORT).quote)

    def test_kills_under_load_fail_no_quote(self, opened: Callable[[WorkerLimits], IntelWorkerPlatform]) -> None:
        platform = opened(WorkerLimits())
        platform.init_quote()
        ended = threading.Event()

        def kill() -> None:
            killed: set[int] = set()
            while len(killed) < 10 and not ended.wait(0.3):
                pid = platform.worker_pid
                if pid is not None and pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            ended.set()

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            while not ended.is_set():
                assert is_quote(platform.quote(REPORT).quote)
        finally:
            ended.set()
            killer.join()
        assert platform.replaced >= 9


OTHER = Report.parse(bytes(range(1, 217)) * 2)
KEY = bytes(ECDSA_P256_KEY_ID)


class TestQuotesAhead:
    """Requests that are begun are answered in their order, or not at all and then made good for."""

    def begin(self, platform: IntelWorkerPlatform, *reports: Report) -> int:
        (descriptor,) = {platform.begin_quote(bytes(report), KEY, None) for report in reports}
        assert descriptor >= 0
        return descriptor

    def end(self, platform: IntelWorkerPlatform, descriptor: int) -> bytes | None:
        assert select.select([descriptor], [], [], 60)[0]
        result = platform.end_quote()
        return None if result is None else result.quote[48:432]

    def test_answers_come_in_the_order_of_the_requests(self, platform: IntelWorkerPlatform) -> None:
        platform.init_quote()
        descriptor = self.begin(platform, REPORT, OTHER)
        assert self.end(platform, descriptor) == bytes(REPORT.body)
        self.begin(platform, REPORT)
        assert self.end(platform, descriptor) == bytes(OTHER.body)
        assert self.end(platform, descriptor) == bytes(REPORT.body)
        assert is_quote(platform.quote(REPORT).quote)
        assert platform.replaced == 0

    def test_the_qe_report_comes_along(self, platform: IntelWorkerPlatform) -> None:
        platform.init_quote()
        descriptor = platform.begin_quote(bytes(REPORT), KEY, bytes(INFO))
        assert select.select([descriptor], [], [], 60)[0]
        result = platform.end_quote()
        assert result is not None
        assert result.qe_report_info is not None
        assert bytes(result.qe_report_info) == bytes(INFO)[:528] + b"\x77" * 432

    def test_without_a_key_or_a_spare_nothing_is_begun(
        self, opened: Callable[[WorkerLimits], IntelWorkerPlatform]
    ) -> None:
        platform = opened(WorkerLimits())
        assert platform.begin_quote(bytes(REPORT), KEY, None) == -1
        platform.start()
        assert platform.begin_quote(bytes(REPORT), KEY, None) == -1
        platform.init_quote()
        self.end(platform, self.begin(platform, REPORT))

    def test_a_refusal_is_the_answer_to_its_request_alone(self, platform: IntelWorkerPlatform, stub: Stub) -> None:
        platform.init_quote()
        stub.once("get_quote", "e015")
        descriptor = self.begin(platform, REPORT, OTHER)
        with pytest.raises(ReportRejected):
            self.end(platform, descriptor)
        assert self.end(platform, descriptor) == bytes(OTHER.body)
        assert platform.replaced == 0

    @pytest.mark.parametrize("what", ["crash", "exit", "lose", "e014"])
    def test_no_request_gets_the_answer_to_another_after_a_failure(
        self, platform: IntelWorkerPlatform, stub: Stub, what: str
    ) -> None:
        platform.init_quote()
        stub.once("get_quote", what)
        descriptor = self.begin(platform, REPORT)
        # Refused if the worker has gone by then.
        platform.begin_quote(bytes(OTHER), KEY, None)
        assert self.end(platform, descriptor) is None
        assert platform.quote(REPORT).quote[48:432] == bytes(REPORT.body)
        assert platform.quote(OTHER).quote[48:432] == bytes(OTHER.body)
        assert platform.replaced == 1

    def test_an_answer_that_does_not_come_is_none(self, platform: IntelWorkerPlatform, stub: Stub) -> None:
        platform.init_quote()
        stub.once("get_quote", "hang")
        self.begin(platform, REPORT)
        while stub.pending("get_quote"):
            time.sleep(0.001)
        assert platform.end_quote() is None
        assert is_quote(platform.quote(REPORT).quote)
        assert platform.replaced == 1

    def test_a_late_answer_is_not_that_to_the_next_request(self, platform: IntelWorkerPlatform) -> None:
        """Also when all who asked have left, so that no `quote` makes good for them."""
        platform.init_quote()
        stopped = platform.worker_pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        self.begin(platform, REPORT)
        assert platform.end_quote() is None
        assert platform.begin_quote(bytes(OTHER), KEY, None) == -1
        os.kill(stopped, signal.SIGCONT)
        assert platform.quote(OTHER).quote[48:432] == bytes(OTHER.body)
        assert self.end(platform, self.begin(platform, OTHER)) == bytes(OTHER.body)

    def test_the_try_that_was_begun_counts(self, platform: IntelWorkerPlatform, stub: Stub) -> None:
        platform.init_quote()
        stub.always("get_quote", "crash")
        assert self.end(platform, self.begin(platform, REPORT)) is None
        with pytest.raises(PlatformUnavailable, match="SIGSEGV"):
            platform.quote(REPORT)
        assert platform.replaced == 2

    def test_a_worker_that_was_killed_answers_nothing(self, platform: IntelWorkerPlatform) -> None:
        platform.init_quote()
        assert platform.worker_pid is not None
        os.kill(platform.worker_pid, signal.SIGKILL)
        descriptor = platform.begin_quote(bytes(REPORT), KEY, None)
        assert descriptor == -1 or self.end(platform, descriptor) is None
        assert is_quote(platform.quote(REPORT).quote)


class TestFailure:
    @pytest.mark.parametrize(("what", "said"), [("crash", "SIGSEGV"), ("exit", "status 9")])
    def test_twice_in_one_request_is_told(
        self, platform: IntelWorkerPlatform, stub: Stub, what: str, said: str
    ) -> None:
        platform.init_quote()
        stub.always("get_quote", what)
        with pytest.raises(PlatformUnavailable, match=said) as error:
            platform.quote(REPORT)
        assert error.value.retryable
        stub.relent()
        assert is_quote(platform.quote(REPORT).quote)

    def test_enclaves_that_stay_lost_are_told_with_their_number(
        self, platform: IntelWorkerPlatform, stub: Stub
    ) -> None:
        platform.init_quote()
        stub.always("get_quote_size", "e014")
        with pytest.raises(NativeError) as error:
            platform.quote_size()
        assert error.value.native_code == 0xE014

    @pytest.mark.parametrize("call", ["init_quote", "get_quote_size", "get_quote", "get_keyid"])
    def test_a_hang_ends_in_time(
        self, opened: Callable[[WorkerLimits], IntelWorkerPlatform], stub: Stub, call: str
    ) -> None:
        platform = opened(PATIENT)
        platform.init_quote()
        stub.always(call, "hang")
        platform._limits = WorkerLimits(timeout=2.0, attempt_timeout=0.5, spare=False)
        with pytest.raises(PlatformBusy, match="in time"):
            {
                "init_quote": platform.init_quote,
                "get_quote_size": platform.quote_size,
                "get_quote": lambda: platform.quote(REPORT),
                "get_keyid": platform.key_ids,
            }[call]()
        assert children() == set()

    def test_a_slow_collateral_service_may_take_longer_than_a_first_try(
        self, opened: Callable[[WorkerLimits], IntelWorkerPlatform], stub: Stub
    ) -> None:
        platform = opened(HASTY)
        stub.always("init_quote", f"sleep {int(HASTY.attempt_timeout * 2000)}")
        assert len(platform.init_quote().pub_key_id) == 32
        assert platform.replaced == 0

    def test_a_library_that_always_crashes_does_not_keep_the_processor_busy(self, libraries: Path, stub: Stub) -> None:
        now = [0.0]
        limits = WorkerLimits(spare=False, failures_before_pause=2)
        platform = IntelWorkerPlatform(libraries, limits, monotonic=lambda: now[0])
        stub.always("get_keyid", "crash")
        for _ in range(2):
            with pytest.raises(PlatformUnavailable):
                platform.key_ids()
        used = platform.replaced
        for _ in range(100):
            with pytest.raises(PlatformUnavailable, match="SIGSEGV"):
                platform.key_ids()
        assert platform.replaced == used
        stub.relent()
        now[0] += limits.longest_pause
        assert platform.key_ids() == (ECDSA_P256_KEY_ID,)
        platform.close()

    def test_missing_libraries_are_named_at_start(self, tmp_path: Path) -> None:
        platform = IntelWorkerPlatform(tmp_path, PATIENT)
        with pytest.raises(PlatformUnavailable, match=r"cannot load libsgx_dcap_ql\.so\.1"):
            platform.start()
        assert children() == set()

    @pytest.mark.parametrize(
        "program",
        [
            "s.send(b'nonsense')",
            "s.send(b'x' * 140000)",
            "s.send(b'\\x81\\xa4type\\xa4size')",
            "s.send(b'\\x82\\xa4type\\xa4size\\xa4size\\x05')",
        ],
    )
    def test_a_worker_that_talks_nonsense_is_ended(self, program: str) -> None:
        self.is_ended(program, HASTY)

    def test_a_worker_that_says_nothing_is_ended(self) -> None:
        self.is_ended("pass", WorkerLimits(timeout=1.0, attempt_timeout=0.8, spare=False))

    def is_ended(self, program: str, limits: WorkerLimits) -> None:
        program = f"import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); {program}; s.recv(1)"
        platform = IntelWorkerPlatform(limits=limits, command=[sys.executable, "-c", program])
        with pytest.raises(PlatformError):
            platform.key_ids()
        assert children() == set()

    def test_no_more_files_is_busy(self, platform: IntelWorkerPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
        program = (
            "import resource, sys, pathlib\n"
            "from confcom.errors import PlatformBusy\n"
            "from confcom.platforms.intel.platform import IntelWorkerPlatform\n"
            "platform = IntelWorkerPlatform(pathlib.Path(sys.argv[1]))\n"
            "import os, subprocess\n"
            "limit = len(os.listdir('/proc/self/fd')) + 1\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))\n"
            "held = [os.dup(0)]\n"
            "try:\n"
            "    platform.key_ids()\n"
            "except PlatformBusy as error:\n"
            "    print(error)\n"
            "os.close(held[0])\n"
        )
        done = subprocess.run([sys.executable, "-c", program, "/nowhere"], capture_output=True, text=True, check=False)
        assert "Too many open files" in done.stdout, done.stderr


class TestNothingIsLeftOver:
    def test_after_crashes_hangs_and_close(
        self, opened: Callable[[WorkerLimits], IntelWorkerPlatform], stub: Stub
    ) -> None:
        before = descriptors()
        platform = opened(WorkerLimits(timeout=60, attempt_timeout=0.3))
        platform.init_quote()
        for what in ("crash", "hang", "lose", "exit"):
            stub.once("get_quote", what)
            platform.quote(REPORT)
        assert len(children()) <= 2
        platform.close()
        platform.close()
        assert children() == set()
        assert descriptors() == before

    def test_when_a_platform_is_forgotten(self, libraries: Path, stub: Stub) -> None:
        before = descriptors()
        platform = IntelWorkerPlatform(libraries)
        platform.init_quote()
        assert children()
        del platform
        gc.collect()
        assert children() == set()
        assert descriptors() == before

    def test_a_closed_platform_says_so(self, platform: IntelWorkerPlatform) -> None:
        platform.key_ids()
        platform.close()
        with pytest.raises(PlatformUnavailable, match="closed"):
            platform.key_ids()
        assert children() == set()

    def test_closing_ends_a_call_under_way(self, platform: IntelWorkerPlatform, stub: Stub) -> None:
        platform.start()
        stub.always("get_keyid", "hang")
        threading.Timer(0.2, platform.close).start()
        with pytest.raises(PlatformUnavailable):
            platform.key_ids()

    @pytest.mark.parametrize("call", [None, "get_keyid"])
    def test_workers_end_with_a_parent_that_is_killed(self, libraries: Path, stub: Stub, call: str | None) -> None:
        program = (
            "import sys, pathlib, threading\n"
            "from confcom.platforms.intel.platform import IntelWorkerPlatform\n"
            "platform = IntelWorkerPlatform(pathlib.Path(sys.argv[1]))\n"
            "platform.init_quote()\n"
            "print(open(f'/proc/self/task/{threading.get_native_id()}/children').read(), flush=True)\n"
            "platform.key_ids()\n"
            "input()\n"
        )
        if call is not None:
            stub.always(call, "hang")
        with subprocess.Popen(
            [sys.executable, "-c", program, str(libraries)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as parent:
            assert parent.stdout is not None
            pids = [int(pid) for pid in parent.stdout.readline().split()]
            assert len(pids) == 2
            parent.kill()
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() and not is_zombie(pid) for pid in pids):
            assert time.monotonic() < deadline, "a worker outlives its parent"
            time.sleep(0.01)

    def test_the_terminals_signals_do_not_reach_a_worker(self, platform: IntelWorkerPlatform) -> None:
        platform.init_quote()
        worker = platform.worker_pid
        assert worker is not None
        assert os.getsid(worker) == worker
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(worker, number)
        assert is_quote(platform.quote(REPORT).quote)
        assert platform.worker_pid == worker

    def test_a_forked_process_gets_workers_of_its_own(self, platform: IntelWorkerPlatform) -> None:
        platform.init_quote()
        ours = platform.worker_pid
        child = os.fork()
        if child == 0:
            works = is_quote(platform.quote(REPORT).quote) and platform.worker_pid != ours
            platform.close()
            os._exit(0 if works else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert is_quote(platform.quote(REPORT).quote)
        assert platform.worker_pid == ours


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
