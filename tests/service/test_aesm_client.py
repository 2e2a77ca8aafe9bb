"""Our client of the AESM socket, against our helper over the simulated platform and against services that misbehave."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aesm_wire import KEY_ID, message, request
from confcom import errors
from confcom.appraisal.quote import verify_quote
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.formats.sgx import QeReportInfo, Report
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.interface import Platform
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import SimulatedEnclave
from confcom.simulator.world import SimulatedWorld
from recording_platform import RecordingPlatform
from running_helper import running_helper

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
DATA = bytes(range(64))
REPORT = Report.parse(bytes(432))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "aesm.socket"


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(bytes(32), now=NOW)


@pytest.fixture
def enclave(world: SimulatedWorld) -> SimulatedEnclave:
    return world.machine.launch(EnclaveDeclaration.from_names("app", "us"))


@pytest.fixture
def client(world: SimulatedWorld, path: Path) -> Iterator[AesmPlatform]:
    with running_helper(world.platform, path):
        yield AesmPlatform(path, simulated=True)


class TestWholeWay:
    def test_a_quote_over_the_socket_verifies(
        self, client: AesmPlatform, world: SimulatedWorld, enclave: SimulatedEnclave
    ) -> None:
        target_info = client.init_quote().target_info
        result = client.quote(enclave.create_report(target_info, DATA))

        verified = verify_quote(result.quote, world.publish(NOW), roots=world.trust_roots, now=NOW)
        assert result.qe_report_info is None
        assert len(result.quote) == client.quote_size()
        assert verified.simulated
        assert DATA in result.quote

    def test_it_is_the_platform_that_the_helper_has(self, client: AesmPlatform, world: SimulatedWorld) -> None:
        direct: Platform = world.platform

        assert client.key_ids() == (ECDSA_P256_KEY_ID,)
        assert client.init_quote() == direct.init_quote()
        assert client.quote_size() == direct.quote_size()
        assert (client.name, client.simulated) == ("aesm", True)

    def test_the_qe_report_proves_the_quote_to_the_enclave(
        self, client: AesmPlatform, enclave: SimulatedEnclave
    ) -> None:
        asked = QeReportInfo(b"n" * 16, enclave.target_info, REPORT)
        report = enclave.create_report(client.init_quote().target_info, DATA)

        result = client.quote(report, qe_report_info=asked)

        assert result.qe_report_info is not None
        qe_report = result.qe_report_info.qe_report
        enclave.verify_report(qe_report)
        assert qe_report.body.report_data == hashlib.sha256(b"n" * 16 + result.quote).digest() + bytes(32)

    def test_a_forged_report_is_rejected(self, client: AesmPlatform, enclave: SimulatedEnclave) -> None:
        report = enclave.create_report(client.init_quote().target_info, DATA)
        forged = replace(report, body=replace(report.body, mr_enclave=bytes(32)))

        with pytest.raises(errors.ReportRejected) as rejected:
            client.quote(forged)
        assert rejected.value.native_code == 47

    def test_an_unknown_key_id_is_unsupported(self, client: AesmPlatform) -> None:
        with pytest.raises(errors.UnsupportedKeyId):
            client.quote_size(ECDSA_P256_KEY_ID.with_algorithm(3))

    def test_a_bad_target_for_the_qe_report_is_told(self, client: AesmPlatform, enclave: SimulatedEnclave) -> None:
        report = enclave.create_report(client.init_quote().target_info, DATA)

        with pytest.raises(errors.NativeError) as failed:
            client.quote(report, qe_report_info=QeReportInfo.parse(bytes(960)))
        assert failed.value.native_code == 49


class TestKeyNotInitialized:
    def test_the_key_is_made_anew_and_the_caller_told_to_report_again(self, path: Path) -> None:
        platform = RecordingPlatform()
        with running_helper(platform, path):
            client = AesmPlatform(path, simulated=True)
            platform.initialized = False

            with pytest.raises(errors.KeyNotInitialized) as told:
                client.quote(REPORT)
            assert platform.initialized
            assert "make a new report" in told.value.advice()
            assert client.quote(REPORT).quote

    def test_a_size_is_only_asked(self, path: Path) -> None:
        platform = RecordingPlatform()
        with running_helper(platform, path):
            platform.initialized = False
            with pytest.raises(errors.KeyNotInitialized):
                AesmPlatform(path, simulated=True).quote_size()
            assert not platform.initialized


class TestNoService:
    """What was found at the path, and what to do."""

    def fail(self, path: Path, message: str, advice: str) -> errors.PlatformError:
        with pytest.raises(errors.PlatformError, match=message) as failed:
            AesmPlatform(path, simulated=False).quote_size()
        assert str(path) in failed.value.message
        assert advice in failed.value.advice()
        return failed.value

    def test_nothing_there(self, path: Path) -> None:
        error = self.fail(path, "there is nothing", "Start the quote helper")
        assert type(error) is errors.PlatformUnavailable

    def test_no_directory(self, path: Path) -> None:
        self.fail(path.parent / "aesmd" / "aesm.socket", "there is no directory .*aesmd", "quote-mode: out-of-proc")

    def test_not_a_socket(self, path: Path) -> None:
        path.write_text("")
        self.fail(path, "it is not a socket", "Name the socket")

    def test_nobody_listens(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        self.fail(path, "no process listens on it", "mount its directory")

    def test_too_many_wait(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
            full.bind(str(path))
            full.listen(0)
            first.connect(str(path))
            error = self.fail(path, "too many connections", "moment")
        assert type(error) is errors.PlatformBusy

    def test_a_path_too_long(self, path: Path) -> None:
        self.fail(path.parent / ("x" * 120), "too long", "path")

    def test_permission_denied(self, path: Path) -> None:
        script = f"""
import os
from pathlib import Path
from confcom.errors import PlatformUnavailable
from confcom.platforms.aesm_client import AesmPlatform
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    AesmPlatform(Path({str(path)!r}), simulated=False).quote_size()
except PlatformUnavailable as error:
    print(error, error.advice())
"""
        with running_helper(RecordingPlatform(), path):
            path.chmod(0o400)
            output = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout.decode()

        assert f"{path}: permission is denied" in output
        assert "write permission" in output


@contextmanager
def service(path: Path, answer: bytes | None, *, wait: float = 0.0) -> Iterator[None]:
    """Accepts connections and writes these bytes to each, whatever is asked; None closes, `wait` keeps it open."""
    done = threading.Event()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            with client, suppress(OSError):
                if done.is_set():
                    return
                client.recv(1 << 16)
                client.sendall(answer or b"")
                done.wait(wait)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        done.set()
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(path))
        thread.join(60)
        listener.close()


class TestMisbehavingService:
    @pytest.mark.parametrize(
        ("answer", "why"),
        [
            (None, "without an answer to GetQuoteSizeEx"),
            (b"\x10\0", "within a message"),
            (bytes(4), "no answer to GetQuoteSizeEx"),
            (request(17, (1, 0), (2, b"q")), "no answer to GetQuoteSizeEx"),
            (request(20, (1, 1)), "no answer to GetQuoteSizeEx"),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "bytes is announced"),
            (b"\xff\xff\xff\xff", "4294967295 bytes is announced"),
            (b"\x04\0\0\0\xff\xff\xff\xff", "not protobuf"),
        ],
    )
    def test_nonsense_is_told_as_such(self, path: Path, answer: bytes | None, why: str) -> None:
        with service(path, answer), pytest.raises(errors.NativeError, match=why) as failed:
            AesmPlatform(path, simulated=False).quote_size()
        assert "which program listens" in failed.value.advice()

    def test_silence_has_a_deadline(self, path: Path) -> None:
        with (
            service(path, b"\x10", wait=5),
            pytest.raises(errors.PlatformUnavailable, match=r"within 0\.1 s") as failed,
        ):
            AesmPlatform(path, 0.1, simulated=False).quote_size()
        assert failed.value.retryable

    def test_trickling_does_not_move_the_deadline(self, path: Path) -> None:
        """The clock says that the time is over, though bytes keep coming."""
        ticks = iter([0.0, 1.0, 99.0])
        client = AesmPlatform(path, 10, simulated=False, monotonic=lambda: next(ticks))
        with service(path, b"\x10", wait=5), pytest.raises(errors.PlatformUnavailable, match="within 10 s"):
            client.quote_size()

    def test_a_target_info_of_another_size_is_nonsense(self, path: Path) -> None:
        answer = request(15, (1, 0), (2, bytes(511)), (3, 32), (4, bytes(32)))
        with service(path, answer), pytest.raises(errors.NativeError, match="TargetInfo"):
            AesmPlatform(path, simulated=False).init_quote()

    def test_a_number_of_keys_beyond_reason_allocates_nothing(self, path: Path) -> None:
        both = message(21, (1, 0), (2, 0xFFFFFFFF)) + message(22, (1, 0), (2, KEY_ID))
        with service(path, len(both).to_bytes(4, "little") + both):
            assert AesmPlatform(path, simulated=False).key_ids() == (ECDSA_P256_KEY_ID,)

    @pytest.mark.parametrize("quote", [b"", bytes(435), bytes(432) + b"\xff\xff\0\0" + bytes(100)])
    def test_a_quote_shorter_than_it_says_is_nonsense(self, path: Path, quote: bytes) -> None:
        both = message(16, (1, 0), (2, 500)) + message(17, (1, 0), (2, quote))
        with (
            service(path, len(both).to_bytes(4, "little") + both),
            pytest.raises(errors.NativeError, match="does not answer as an AESM service"),
        ):
            AesmPlatform(path, simulated=False).quote(REPORT)

    def test_padding_behind_the_quote_is_cut_off(self, path: Path) -> None:
        quote = bytes(432) + b"\x04\0\0\0" + b"sign"
        both = message(16, (1, 0), (2, 8192)) + message(17, (1, 0), (2, quote.ljust(8192, b"\0")))
        with service(path, len(both).to_bytes(4, "little") + both):
            assert AesmPlatform(path, simulated=False).quote(REPORT).quote == quote
