"""Files that users name: bounded, read once, and never waited for without end, whatever they are."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from confcom import input_file
from confcom.errors import ConfigError
from confcom.http_client import verifying_context
from confcom.input_file import open_input, read_bounded

SOURCE = Path(input_file.__file__).parent
OWN_FILES = {
    "cli/build_info.py", "cli/demo_stage.py", "devices/sgx_node.py", "manifests/metrics.py",
    "report/html.py", "services/attestation/attestation_http.py", "services/attestation/pages.py",
    "platforms/quoting.py",
}  # fmt: skip
"""Modules that open files of the package, files that they made, or Gramine's pseudo-files."""
IMPATIENT = 0.2

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def feed(path: Path, *pieces: bytes, before: float = 0, between: float = 0) -> None:
    def write() -> None:
        time.sleep(before)
        with path.open("wb", buffering=0) as pipe:
            for piece in pieces:
                pipe.write(piece)
                time.sleep(between)

    threading.Thread(target=write, daemon=True).start()


def test_no_module_opens_a_file_by_another_way() -> None:
    opens = re.compile(r"\.open\(\"rb\"\)|\.read_bytes\(|\.read_text\(|\bopen\([^)]*\"rb?\"|cafile=|tomllib\.load\(")
    found = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if opens.search(path.read_text())}
    assert found - OWN_FILES == set(), "these read files without confcom.input_file"


def test_a_pipe_is_read_to_its_end(fifo: Path) -> None:
    feed(fifo, b"first, ", b"second", before=0.3, between=0.3)
    assert read_bounded(fifo, 100) == b"first, second"


def test_a_process_substitution_is_read_to_its_end() -> None:
    script = "import sys; from confcom.input_file import read_bounded; print(read_bounded(sys.argv[1], 9))"
    line = 'exec "$0" -c "$1" <(sleep 0.3; printf \'text\')'
    done = subprocess.run(["bash", "-c", line, sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "b'text'\n"


def test_a_pipe_without_a_writer_is_given_up(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_file, "PATIENCE", IMPATIENT)
    with pytest.raises(TimeoutError) as caught:
        open_input(fifo)
    assert "within 0.2 s" in str(caught.value.strerror)


def test_a_writer_that_stops_is_given_up(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(fifo, b"a part", between=60)
    with open_input(fifo) as file:
        monkeypatch.setattr(input_file, "PATIENCE", IMPATIENT)
        with pytest.raises(TimeoutError):
            file.read(100)


def test_a_writer_that_writes_nothing_ends_the_input(fifo: Path) -> None:
    feed(fifo)
    assert read_bounded(fifo, 100) == b""


def test_no_more_is_read_than_the_limit_and_a_byte() -> None:
    assert read_bounded("/dev/zero", 10) == bytes(11)


def test_what_is_no_file_is_an_error_with_its_reason(tmp_path: Path) -> None:
    address = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        for path in (tmp_path, tmp_path / "missing", address, "zero\0byte"):
            with pytest.raises(OSError, match=r"\[Errno \d+\]") as caught:
                open_input(path)
            assert caught.value.strerror


def test_failures_leave_no_descriptor_open(fifo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_file, "PATIENCE", 0.001)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (fifo, tmp_path) * 5:
        with pytest.raises(OSError, match=r"\[Errno \d+\]"):
            open_input(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("content", [b"", b"\n", b"no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_without_authorities_never_means_those_of_the_system(tmp_path: Path, content: bytes) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(content)
    with pytest.raises(ConfigError, match="CA certificates"):
        verifying_context(ca)
