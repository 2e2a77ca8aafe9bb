"""The quote helper on a real socket: what each client of the world sends, and what each abuser tries."""

from __future__ import annotations

import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from aesm_wire import KEY_ID, frame, message, read_response, request
from confcom import errors
from confcom.formats.sgx import Report
from recording_platform import PUB_KEY_ID, QUOTE_SIZE, TARGET_INFO, RecordingPlatform, quote_over
from running_helper import RunningHelper, connect, exchange, read_all, running_helper

REPORT = bytes(range(216)) * 2
QUOTE = quote_over(Report.parse(REPORT))
TARGET = bytes(TARGET_INFO)
NUM = request(21, (9, 15000))
NUM_ANSWER = {1: 0, 2: 1}
UNINITIALISED = 140104990781472


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "aesmd" / "aesm.socket"


@pytest.fixture
def platform() -> RecordingPlatform:
    return RecordingPlatform()


@pytest.fixture
def helper(platform: RecordingPlatform, path: Path) -> Iterator[RunningHelper]:
    # Longer than any client here waits: what is closed is closed for what it said, not for its silence.
    with running_helper(platform, path, read_timeout=600) as running:
        yield running


def assert_serves(path: Path) -> None:
    assert read_response(exchange(path, NUM), 21) == NUM_ANSWER


class Gate:
    """Holds the platform in one of its calls."""

    def __init__(self, call: str) -> None:
        self.call = call
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, what: str) -> None:
        if what == self.call:
            self.entered.set()
            assert self.opened.wait(60)


class TestClients:
    """Frames as each client puts them on the wire, in its order."""

    def test_intels_quoting_library_out_of_process(self, helper: RunningHelper) -> None:
        # libsgx_dcap_ql: sgx_qe_get_target_info, sgx_qe_get_quote_size, sgx_qe_get_quote
        step_1 = request(15, (1, KEY_ID), (3, 0), (4, UNINITIALISED), (9, 15000))
        step_2 = request(15, (1, KEY_ID), (3, 1), (4, 32), (9, 15000))
        size = request(16, (1, KEY_ID), (9, 15000))
        quote = request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE), (9, 15000))

        assert read_response(exchange(helper.path, step_1), 15) == {1: 0, 2: bytes(512), 3: 32}
        assert read_response(exchange(helper.path, step_2), 15) == {1: 0, 2: TARGET, 3: 32, 4: PUB_KEY_ID}
        assert read_response(exchange(helper.path, size), 16) == {1: 0, 2: QUOTE_SIZE}
        assert read_response(exchange(helper.path, quote), 17) == {1: 0, 2: QUOTE}

    def test_intels_quote_ex_library_selects_a_key(self, helper: RunningHelper) -> None:
        # The only request whose timeout is field 2.
        select = request(19, (1, bytes(4) + b"\1\0\0\0" + KEY_ID), (2, 15000))

        assert read_response(exchange(helper.path, select), 19) == {1: 0, 2: KEY_ID}

    def test_intels_key_exchange_with_a_qe_report(self, helper: RunningHelper) -> None:
        info = b"n" * 16 + bytes(512) + bytes(432)
        quote = request(17, (1, REPORT), (2, KEY_ID), (3, info), (4, QUOTE_SIZE), (9, 15000))

        answer = read_response(exchange(helper.path, quote), 17)

        assert (answer[1], answer[2]) == (0, QUOTE)
        assert isinstance(answer[3], bytes)
        assert (len(answer[3]), answer[3][:528]) == (960, info[:528])

    def test_open_enclave(self, helper: RunningHelper) -> None:
        flow = [
            (21, request(21, (9, 15000)), {1: 0, 2: 1}),
            (22, request(22, (1, 256), (9, 15000)), {1: 0, 2: KEY_ID}),
            (15, request(15, (1, KEY_ID), (3, 0), (9, 15000)), {1: 0, 2: bytes(512), 3: 32}),
            (15, request(15, (1, KEY_ID), (3, 1), (4, 32), (9, 15000)), {1: 0, 2: TARGET, 3: 32, 4: PUB_KEY_ID}),
            (16, request(16, (1, KEY_ID), (9, 15000)), {1: 0, 2: QUOTE_SIZE}),
            (16, request(16, (1, KEY_ID), (9, 15000)), {1: 0, 2: QUOTE_SIZE}),
            (17, request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE), (9, 15000)), {1: 0, 2: QUOTE}),
        ]
        for number, sent, wanted in flow:
            assert read_response(exchange(helper.path, sent), number) == wanted

    def test_gramine(self, helper: RunningHelper) -> None:
        # No timeouts, no step 1, no size: a buffer of 8192, trimmed by the length at 432.
        init = request(15, (1, KEY_ID), (3, 1), (4, 32))
        quote = request(17, (1, REPORT), (2, KEY_ID), (4, 8192))

        assert read_response(exchange(helper.path, init), 15) == {1: 0, 2: TARGET, 3: 32, 4: PUB_KEY_ID}
        padded = read_response(exchange(helper.path, quote), 17)[2]
        assert isinstance(padded, bytes)
        assert len(padded) == 8192
        assert padded[: 436 + int.from_bytes(padded[432:436], "little")] == QUOTE

    def test_fortanix(self, helper: RunningHelper) -> None:
        # Timeouts in microseconds, none on the second init; always asks for the QE's report.
        info = b"n" * 16 + bytes(512) + bytes(432)
        flow = [
            (21, request(21, (9, 30_000_000))),
            (22, request(22, (1, 256), (9, 30_000_000))),
            (15, request(15, (1, KEY_ID), (3, 0), (9, 30_000_000))),
            (15, request(15, (1, KEY_ID), (3, 1), (4, 32))),
            (16, request(16, (1, KEY_ID), (9, 30_000_000))),
            (17, request(17, (1, REPORT), (2, KEY_ID), (3, info), (4, QUOTE_SIZE), (9, 30_000_000))),
        ]
        answers = [read_response(exchange(helper.path, sent), number) for number, sent in flow]

        assert [answer[1] for answer in answers] == [0] * 6
        assert isinstance(answers[5][3], bytes)
        assert len(answers[5][3]) == 960

    def test_fortanix_gets_its_qe_report_info_back_on_errors(self, helper: RunningHelper) -> None:
        info = b"n" * 16 + bytes(944)
        sent = request(17, (1, REPORT), (2, bytes(256)), (3, info), (4, QUOTE_SIZE))

        assert read_response(exchange(helper.path, sent), 17) == {1: 38, 3: info}

    def test_an_old_epid_client(self, helper: RunningHelper) -> None:
        assert read_response(exchange(helper.path, request(1, (9, 15000))), 1) == {1: 30}


class TestWire:
    def test_the_answer_arrives_in_one_piece(self, helper: RunningHelper) -> None:
        """Intel's client crashes on answers in many pieces."""
        with connect(helper.path) as client:
            client.sendall(request(17, (1, REPORT), (2, KEY_ID), (4, 8192)))
            first = client.recv(1 << 20)

        assert len(first) == 4 + int.from_bytes(first[:4], "little") > 8192

    def test_every_answer_is_followed_by_the_end(self, helper: RunningHelper) -> None:
        with connect(helper.path) as client:
            client.sendall(NUM)
            assert read_response(read_all(client), 21) == NUM_ANSWER

    def test_a_client_that_ends_its_sending_still_gets_its_quote(self, helper: RunningHelper) -> None:
        with connect(helper.path) as client:
            client.sendall(request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE)))
            client.shutdown(socket.SHUT_WR)

            assert read_response(read_all(client), 17) == {1: 0, 2: QUOTE}

    def test_a_request_in_single_bytes_is_served(self, helper: RunningHelper) -> None:
        with connect(helper.path) as client:
            for byte in request(16, (1, KEY_ID)):
                client.sendall(bytes([byte]))

            assert read_response(read_all(client), 16) == {1: 0, 2: QUOTE_SIZE}

    @pytest.mark.parametrize("frame", [NUM, b"\2\0\0\0\xff\xff", b"\xff\xff\xff\xff"], ids=["asked", "invalid", "huge"])
    def test_no_end_is_an_error_for_the_client(self, helper: RunningHelper, frame: bytes) -> None:
        """Bytes left in a socket that is closed would be a reset, where clients look for the end."""
        with connect(helper.path) as client:
            client.sendall(frame)
            while client.recv(1 << 16):
                pass

    def test_a_second_request_on_the_connection_is_not_answered(self, helper: RunningHelper) -> None:
        assert read_response(exchange(helper.path, NUM + NUM), 21) == NUM_ANSWER

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(bytes(4), id="empty message"),
            pytest.param(frame(message(20, (1, 1))), id="field 20"),
            pytest.param(frame(message(99, (1, 1))), id="unknown request"),
            pytest.param(frame(b"\xff" * 32), id="garbage"),
            pytest.param(frame(message(16, (1, KEY_ID))[:-1]), id="cut off"),
            pytest.param((65537).to_bytes(4, "little"), id="one byte over the limit"),
            pytest.param((0x40000000).to_bytes(4, "little"), id="1 GiB"),
            pytest.param(b"\xff\xff\xff\xff", id="4 GiB"),
            pytest.param((6).to_bytes(4, "big") + NUM[4:], id="big-endian length"),
        ],
    )
    def test_what_is_no_request_is_closed_at_once_and_without_a_byte(self, helper: RunningHelper, data: bytes) -> None:

        assert exchange(helper.path, data) == b""
        assert_serves(helper.path)

    def test_a_request_of_64_kib_is_read(self, helper: RunningHelper) -> None:
        inner = message(16, (1, KEY_ID), (77, bytes(65536 - 256 - 20)))

        assert len(inner) <= 65536
        assert read_response(exchange(helper.path, frame(inner)), 16) == {1: 0, 2: QUOTE_SIZE}


class TestAbuse:
    def test_a_client_may_leave_at_every_byte(self, helper: RunningHelper) -> None:
        sent = request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE))
        for size in range(len(sent) + 1):
            with connect(helper.path) as client:
                client.sendall(sent[:size])

        events = helper.wait_for_events(len(sent) + 1)
        assert len(events) == len(sent) + 1
        assert_serves(helper.path)

    @pytest.mark.parametrize("beginning", [b"", NUM[:2], NUM[:-1]])
    def test_hundreds_of_silent_clients_stop_nobody(
        self, platform: RecordingPlatform, path: Path, beginning: bytes
    ) -> None:
        with running_helper(platform, path, max_connections=100) as helper:
            silent = []
            for _ in range(400):
                client = connect(path)
                client.sendall(beginning)
                silent.append(client)
                if len(silent) % 50 == 0:
                    assert_serves(path)
            # Those that were answered, and those that made room; the other hundred are still open.
            events = helper.wait_for_events(400 // 50 + 300)
            made_room = [event for event in events if "made room" in event.reason]
            for client in silent:
                client.close()

        assert len(made_room) >= 300

    def test_those_who_waited_longest_make_room(self, platform: RecordingPlatform, path: Path) -> None:
        with running_helper(platform, path, max_connections=3), connect(path) as oldest:
            others = [connect(path) for _ in range(3)]
            assert read_all(oldest) == b""
            for client in others:
                client.sendall(NUM)
                assert read_response(read_all(client), 21) == NUM_ANSWER
                client.close()

    def test_a_silent_client_is_closed_at_the_deadline(self, platform: RecordingPlatform, path: Path) -> None:
        with running_helper(platform, path, read_timeout=0.3) as helper, connect(path) as client:
            client.sendall(NUM[:5])
            started = time.monotonic()
            assert read_all(client) == b""

            assert time.monotonic() - started > 0.2
            assert helper.wait_for_events(1)[0].reason == "no request within the deadline"

    def test_trickling_does_not_move_the_deadline(self, platform: RecordingPlatform, path: Path) -> None:
        with running_helper(platform, path, read_timeout=0.3) as helper, connect(path) as client:
            with suppress(BrokenPipeError):
                for byte in request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE)):
                    client.sendall(bytes([byte]))
                    time.sleep(0.02)

            assert helper.wait_for_events(1)[0].outcome == "closed"

    def test_a_client_that_takes_no_answer_stops_nobody(self, platform: RecordingPlatform, path: Path) -> None:
        with running_helper(platform, path):
            lazy = [connect(path) for _ in range(50)]
            for client in lazy:
                client.sendall(request(17, (1, REPORT), (2, KEY_ID), (4, 0xFFFFFFFF)))

            assert_serves(path)
            for client in lazy:
                client.close()

    def test_a_buf_size_of_4_gib_costs_64_kib(self, helper: RunningHelper) -> None:
        answer = exchange(helper.path, request(17, (1, REPORT), (2, KEY_ID), (4, 0xFFFFFFFF)))

        assert len(answer) < 64 * 1024 + 100

    def test_running_out_of_files_does_not_last(self, path: Path) -> None:
        """Intel's service never recovers from this."""
        with helper_with_spare_files(path, 5):
            silent = [connect(path) for _ in range(60)]
            assert_serves(path)
            for client in silent:
                client.close()
            assert_serves(path)

    def test_without_any_file_left_it_waits_and_does_not_spin(self, path: Path) -> None:
        """Intel's service uses a whole processor from then on."""
        with helper_with_spare_files(path, 0) as process, connect(path) as client:
            client.sendall(NUM)
            before = processor_seconds(process.pid)
            time.sleep(0.6)
            assert processor_seconds(process.pid) - before < 0.2
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (256, 256))

            assert read_response(read_all(client), 21) == NUM_ANSWER


@contextmanager
def helper_with_spare_files(path: Path, spare: int) -> Iterator[subprocess.Popen[bytes]]:
    """A helper in a process that may open so many more files once it is ready."""
    script = f"""
import asyncio, os, resource, sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from recording_platform import RecordingPlatform
from confcom.services.quote_helper.helper import QuoteHelperConfig, serve

def limit_files():
    limit = len(os.listdir("/proc/self/fd")) - 1 + {spare}
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 256))
    print("ready", flush=True)

config = QuoteHelperConfig(socket={str(path)!r})
asyncio.run(serve(RecordingPlatform(), config, stop=asyncio.Event(), started=limit_files, observe=lambda event: None))
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            assert b"ready\n" in iter(process.stdout.readline, b"")
            yield process
        finally:
            process.kill()


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class TestPlatform:
    def test_the_key_is_made_before_the_helper_says_ready(
        self, helper: RunningHelper, platform: RecordingPlatform
    ) -> None:
        assert platform.initialized
        assert read_response(exchange(helper.path, request(16, (1, KEY_ID))), 16) == {1: 0, 2: QUOTE_SIZE}

    def test_a_busy_platform_delays_only_those_who_need_it(
        self, helper: RunningHelper, platform: RecordingPlatform
    ) -> None:
        gate = Gate("quote")
        platform.before = gate
        with connect(helper.path) as client:
            client.sendall(request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE)))
            assert gate.entered.wait(60)
            assert_serves(helper.path)
            step_1 = request(15, (1, KEY_ID), (3, 0))
            assert read_response(exchange(helper.path, step_1), 15) == {1: 0, 2: bytes(512), 3: 32}
            gate.opened.set()

            assert read_response(read_all(client), 17) == {1: 0, 2: QUOTE}

    def test_more_than_may_wait_are_told_busy(self, platform: RecordingPlatform, path: Path) -> None:
        gate = Gate("quote")
        info = bytes(960)
        with running_helper(platform, path, max_waiting=1) as helper, connect(path) as client:
            platform.before = gate
            client.sendall(request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE)))
            assert gate.entered.wait(60)

            second = exchange(path, request(17, (1, REPORT), (2, KEY_ID), (3, info), (4, QUOTE_SIZE)))
            assert read_response(second, 17) == {1: 18, 3: info}
            init = exchange(path, request(15, (1, KEY_ID), (3, 1), (4, 32)))
            assert read_response(init, 15) == {1: 18, 3: 32}
            gate.opened.set()
            assert read_response(read_all(client), 17) == {1: 0, 2: QUOTE}
            assert [event.error for event in helper.wait_for_events(3)[:2]] == ["platform-busy"] * 2

    def test_a_platform_that_hangs_is_told_as_busy_before_the_client_gives_up(
        self, platform: RecordingPlatform, path: Path
    ) -> None:
        gate = Gate("quote")
        with running_helper(platform, path, answer_timeout=0.3):
            platform.before = gate
            answer = exchange(path, request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE)))

            assert read_response(answer, 17) == {1: 18}
            assert_serves(path)
            gate.opened.set()

    def test_quotes_for_clients_that_left_are_not_made(
        self, helper: RunningHelper, platform: RecordingPlatform
    ) -> None:
        gate = Gate("init_quote")
        platform.before = gate
        with connect(helper.path) as holding:
            holding.sendall(request(15, (1, KEY_ID), (3, 1), (4, 32)))
            assert gate.entered.wait(60)
            for _ in range(20):
                with connect(helper.path) as client:
                    client.sendall(request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE)))
            with connect(helper.path) as staying:
                staying.sendall(request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE)))
                staying.shutdown(socket.SHUT_WR)
                assert_serves(helper.path)
                platform.asked.clear()
                gate.opened.set()
                assert read_response(read_all(staying), 17) == {1: 0, 2: QUOTE}

        assert platform.asked.count("quote") == 1

    def test_a_mistake_in_the_platform_is_an_unexpected_error_and_no_more(
        self, helper: RunningHelper, platform: RecordingPlatform
    ) -> None:
        def fail(what: str) -> None:
            if what == "quote":
                raise ZeroDivisionError

        platform.before = fail
        answer = exchange(helper.path, request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE)))

        assert read_response(answer, 17) == {1: 1}
        assert_serves(helper.path)

    def test_a_platform_that_fails_at_start_is_tried_again(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("confcom.services.quote_helper.helper.WARM_UP_RETRY", (0.05,))
        broken = threading.Event()
        broken.set()

        def fail(what: str) -> None:
            if broken.is_set():
                raise errors.PlatformUnavailable("no /dev/sgx_enclave")

        platform = RecordingPlatform(before=fail)
        with running_helper(platform, path):
            assert read_response(exchange(path, NUM), 21) == {1: 30, 2: 0}
            broken.clear()
            deadline = time.monotonic() + 60
            while not platform.initialized and time.monotonic() < deadline:
                time.sleep(0.01)
            assert read_response(exchange(path, request(16, (1, KEY_ID))), 16) == {1: 0, 2: QUOTE_SIZE}


class TestLife:
    def test_socket_and_directory_let_every_user_connect(self, helper: RunningHelper, path: Path) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
        assert [entry.name for entry in path.parent.iterdir()] == ["aesm.socket"]

    def test_the_modes_do_not_depend_on_the_umask(self, platform: RecordingPlatform, path: Path) -> None:
        before = os.umask(0o077)
        try:
            with running_helper(platform, path):
                assert stat.S_IMODE(path.stat().st_mode) == 0o666
                assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
        finally:
            os.umask(before)

    def test_the_path_is_gone_after_a_stop(self, platform: RecordingPlatform, path: Path) -> None:
        with running_helper(platform, path):
            assert path.is_socket()

        assert not path.exists()

    def test_a_second_helper_is_refused_while_the_first_answers(self, helper: RunningHelper, path: Path) -> None:
        with pytest.raises(errors.ConfigError, match="another service answers") as refused:
            RunningHelper(RecordingPlatform(), path).start()

        assert "--replace" in refused.value.advice()
        assert_serves(path)

    def test_a_refused_helper_has_not_touched_its_platform(self, helper: RunningHelper, path: Path) -> None:
        second = RecordingPlatform()
        with pytest.raises(errors.ConfigError):
            RunningHelper(second, path).start()

        assert second.asked == []

    def test_a_dead_socket_is_taken_over(self, platform: RecordingPlatform, path: Path) -> None:
        path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        with running_helper(platform, path):
            assert_serves(path)

    def test_a_file_in_the_way_is_left_alone(self, platform: RecordingPlatform, path: Path) -> None:
        path.parent.mkdir()
        path.write_text("precious")

        with pytest.raises(errors.ConfigError, match="not a socket"):
            RunningHelper(platform, path, replace=True).start()
        assert path.read_text() == "precious"

    def test_a_path_too_long_for_a_socket_is_explained(self, platform: RecordingPlatform, tmp_path: Path) -> None:
        with pytest.raises(errors.ConfigError, match="too long"):
            RunningHelper(platform, tmp_path / ("x" * 100)).start()

    def test_a_successor_takes_over_without_a_gap(self, platform: RecordingPlatform, path: Path) -> None:
        """Open Enclave remembers a first failure for the life of its process: there must be none."""
        done = threading.Event()
        served: list[int] = []
        failed: list[Exception] = []

        def ask_for_ever() -> None:
            while not done.is_set():
                try:
                    assert read_response(exchange(path, NUM), 21) == NUM_ANSWER
                    served.append(1)
                except (OSError, AssertionError) as error:
                    failed.append(error)

        first = RunningHelper(platform, path)
        first.start()
        clients = [threading.Thread(target=ask_for_ever) for _ in range(3)]
        for client in clients:
            client.start()
        for _ in range(5):
            successor = RunningHelper(RecordingPlatform(), path, replace=True)
            successor.start()
            first.stop()
            first = successor
        done.set()
        for client in clients:
            client.join(60)
        assert path.is_socket()
        first.stop()

        assert failed == []
        assert len(served) > 20
        assert not path.exists()

    def test_a_successor_makes_its_key_before_it_takes_over(self, helper: RunningHelper, path: Path) -> None:
        inode = path.stat().st_ino
        gate = Gate("init_quote")
        successor = RunningHelper(RecordingPlatform(before=gate), path, replace=True)
        starting = threading.Thread(target=successor.start)
        starting.start()
        assert gate.entered.wait(60)
        assert path.stat().st_ino == inode
        assert_serves(path)
        gate.opened.set()
        starting.join(10)

        assert path.stat().st_ino != inode
        successor.stop()

    def test_what_is_under_way_when_it_stops_is_answered(self, platform: RecordingPlatform, path: Path) -> None:
        gate = Gate("quote")
        with running_helper(platform, path) as helper, connect(path) as client:
            platform.before = gate
            client.sendall(request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE)))
            assert gate.entered.wait(60)
            helper.ask_to_stop()
            while path.exists():
                time.sleep(0.005)
            gate.opened.set()

            assert read_response(read_all(client), 17) == {1: 0, 2: QUOTE}

    def test_connections_that_wait_in_the_backlog_when_it_stops_are_answered(
        self, platform: RecordingPlatform, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("confcom.services.quote_helper.connections.ACCEPT_BATCH", 1)
        blocked, go_on = threading.Event(), threading.Event()

        def block(_: object) -> None:
            blocked.set()
            assert go_on.wait(60)

        with running_helper(platform, path) as helper:
            helper.on_event = block
            waiting = [connect(path)]
            waiting[0].sendall(NUM)
            assert blocked.wait(60)
            for _ in range(20):
                waiting.append(connect(path))
                waiting[-1].sendall(NUM)
            helper.ask_to_stop()
            go_on.set()

            assert [read_response(read_all(client), 21) for client in waiting] == [NUM_ANSWER] * 21
        for client in waiting:
            client.close()

    def test_stopping_does_not_wait_longer_than_it_may(self, platform: RecordingPlatform, path: Path) -> None:
        gate = Gate("quote")
        with running_helper(platform, path, drain_timeout=0.2) as helper, connect(path) as client, connect(path):
            platform.before = gate
            client.sendall(request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE)))
            assert gate.entered.wait(60)
            helper.stop()

            assert [event.reason for event in helper.events] == ["the helper stops"] * 2
            gate.opened.set()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
    def test_another_user_is_served(self, helper: RunningHelper, path: Path) -> None:
        for folder in (path.parent.parent, *list(path.parents)[2:5]):
            if stat.S_IMODE(folder.stat().st_mode) & 0o001 == 0:
                folder.chmod(0o711)
        script = f"""
import os, socket
os.setgroups([]), os.setgid(65534), os.setuid(65534)
client = socket.socket(socket.AF_UNIX)
client.connect({str(path)!r})
client.sendall({NUM!r})
print(client.recv(99).hex())
"""
        output = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout

        assert read_response(bytes.fromhex(output.decode()), 21) == NUM_ANSWER
        assert helper.wait_for_events(1)[0].uid == 65534


class TestEvents:
    def test_one_event_per_request_tells_who_asked_what(self, helper: RunningHelper) -> None:
        sent = request(17, (1, REPORT), (2, KEY_ID), (4, QUOTE_SIZE))
        answer = exchange(helper.path, sent)

        (event,) = helper.wait_for_events(1)
        assert event.fields() == {
            "kind": "GetQuoteEx",
            "outcome": "answered",
            "code": 0,
            "duration_ms": event.fields()["duration_ms"],
            "pid": os.getpid(),
            "uid": os.geteuid(),
            "request_size": len(sent),
            "response_size": len(answer),
        }
        assert 0 < event.duration < 60

    def test_a_refusal_says_why(self, helper: RunningHelper) -> None:
        exchange(helper.path, request(22, (1, 257)))

        (event,) = helper.wait_for_events(1)
        assert (event.outcome, event.status, event.error) == ("refused", 3, "malformed-input")
        assert event.reason == "GetSupportedAttKeyIds.buf_size: must be exactly 256, is 257"

    def test_a_violation_says_what(self, helper: RunningHelper) -> None:
        exchange(helper.path, b"\xff\xff\xff\xff")

        (event,) = helper.wait_for_events(1)
        assert (event.kind, event.outcome, event.status, event.response_size) == (None, "closed", None, 0)
        assert "4294967295 bytes" in event.reason
