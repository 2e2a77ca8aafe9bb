"""`confcom quote`, each time as a process of its own, because a process decides on its mode once."""

from __future__ import annotations

import hashlib
import os
import pty
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from confcom.errors import ExitCode
from confcom.formats.quote import Quote
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.wiring import create_machine_file, declare_enclave, open_machine, open_platform

DATA = "c0ffee"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "machine.json"
    create_machine_file(path, b"confcom quote tests", NOW)
    return path


@pytest.fixture
def helper(machine: Path, tmp_path: Path) -> Iterator[Path]:
    """The real quote helper of that machine, on a socket."""
    socket = tmp_path / "aesm.socket"
    command = [sys.executable, "-m", "confcom", "quote-helper", "--socket", socket, "--machine", machine]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert b"ready" in process.stdout.readline()
        try:
            yield socket
        finally:
            process.terminate()


def lines(outcome: subprocess.CompletedProcess[bytes]) -> list[str]:
    return outcome.stderr.decode().splitlines()


@pytest.mark.promise("M8")
def test_in_proc_without_the_variable(confcom_process: Run, machine: Path) -> None:
    outcome = confcom_process("quote", "--machine", machine, "--report-data", DATA)
    assert outcome.returncode == ExitCode.OK
    assert Quote.parse(outcome.stdout).report_data == bytes.fromhex(DATA).ljust(64, b"\0")
    (line,) = lines(outcome)
    assert "quotes in-proc" in line
    assert "SGX_AESM_ADDR is not set" in line
    assert "SIMULATED" in line


@pytest.mark.promise("M8")
@pytest.mark.promise("M9")
@pytest.mark.parametrize("value", ["1", ""])
def test_out_of_proc_with_the_variable_whatever_its_value(
    value: str, confcom_process: Run, machine: Path, helper: Path, tmp_path: Path
) -> None:
    arguments = ("quote", "--machine", machine, "--report-data", DATA, "--socket", helper, "-o", "q.bin")
    outcome = confcom_process(*arguments, SGX_AESM_ADDR=value)
    assert outcome.returncode == ExitCode.OK
    assert outcome.stdout == b""
    (line,) = lines(outcome)
    assert "quotes out-of-proc" in line
    assert "SGX_AESM_ADDR is set" in line
    quote = Quote.parse((tmp_path / "q.bin").read_bytes())
    assert quote.report_data[:3].hex() == DATA


def test_both_modes_quote_the_same_enclave_with_the_same_key(confcom_process: Run, machine: Path, helper: Path) -> None:
    """The machine decides, not who asks: an application can change its mode without any verifier noticing."""
    arguments = ("quote", "--machine", machine, "--report-data", DATA, "--socket", helper)
    inside = Quote.parse(confcom_process(*arguments).stdout)
    outside = Quote.parse(confcom_process(*arguments, SGX_AESM_ADDR="1").stdout)
    assert inside.body == outside.body
    assert inside.signature.attestation_key == outside.signature.attestation_key


def test_out_of_proc_can_be_asked_for_without_the_variable(confcom_process: Run, machine: Path, helper: Path) -> None:
    arguments = ("quote", "--machine", machine, "--report-data", DATA, "--socket", helper, "--mode", "out-of-proc")
    outcome = confcom_process(*arguments)
    assert outcome.returncode == ExitCode.OK
    assert "it was asked for" in lines(outcome)[0]


def test_the_qe_reports_on_the_quote_for_a_nonce(confcom_process: Run, machine: Path, helper: Path) -> None:
    nonce = "0f" * 16
    arguments = ("quote", "--machine", machine, "--report-data", DATA, "--socket", helper)
    outcome = confcom_process(*arguments, "--qe-report-nonce", nonce, SGX_AESM_ADDR="1")
    assert outcome.returncode == ExitCode.OK
    assert lines(outcome)[1] == f"confcom: the QE itself reported on this quote, for nonce {nonce}"


def test_held_data_is_hashed_into_the_report_data(confcom_process: Run, machine: Path, tmp_path: Path) -> None:
    (tmp_path / "held").write_bytes(b"a public key")
    outcome = confcom_process("quote", "--machine", machine, "--held-data", "held")
    assert Quote.parse(outcome.stdout).report_data == hashlib.sha256(b"a public key").digest() + bytes(32)


def test_a_declared_enclave_is_quoted(confcom_process: Run, machine: Path, tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text('enclave = "payment"\nsigner = "Contoso"\nisv_prod_id = 5\nisv_svn = 6\n')
    outcome = confcom_process("quote", "--machine", machine, "--report-data", DATA, "--enclave", "e.toml")
    body = Quote.parse(outcome.stdout).body
    assert body.mr_signer == declare_enclave("payment", "Contoso").mr_signer
    assert (body.isv_prod_id, body.isv_svn) == (5, 6)


def test_a_terminal_gets_base64(machine: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "confcom", "quote", "--machine", machine, "--report-data", DATA]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
        os.close(theirs)
        text = b""
        try:
            while piece := os.read(ours, 65536):
                text += piece
        except OSError:  # how a terminal ends on Linux
            pass
        assert process.wait(60) == ExitCode.OK
    os.close(ours)
    assert Quote.parse(b64decode(text)).report_data[:3].hex() == DATA


@pytest.mark.promise("M13")
def test_under_gramine_its_files_are_used_whatever_the_variable_says(
    confcom_process: Run, machine: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "host/dev/attestation"
    folder.mkdir(parents=True)
    report_data = bytes.fromhex(DATA).ljust(64, b"\0")
    enclave = open_machine(machine).launch(declare_enclave("under Gramine"))
    quote = EnclaveQuoteSource(open_platform("simulated", machine=machine), enclave).quote(report_data).quote
    for name, content in {"attestation_type": b"dcap", "user_report_data": bytes(64), "quote": quote}.items():
        (folder / name).write_bytes(content)
    outcome = confcom_process("quote", "--report-data", DATA, "--host", tmp_path / "host", SGX_AESM_ADDR="1")
    assert outcome.returncode == ExitCode.OK
    assert outcome.stdout == quote
    assert "through Gramine" in lines(outcome)[0]
    outcome = confcom_process("quote", "--report-data", DATA, "--host", tmp_path / "host", "--machine", machine)
    assert outcome.returncode == ExitCode.USAGE
    assert "an enclave of its own" in lines(outcome)[1]


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "words"),
    [
        ([], {}, ExitCode.USAGE, "--report-data or --held-data"),
        (["--report-data", "00", "--held-data", "x"], {}, ExitCode.USAGE, "either --report-data or --held-data"),
        (["--report-data", "zz"], {}, ExitCode.USAGE, "not hexadecimal"),
        (["--report-data", "00" * 65], {}, ExitCode.USAGE, "found 65"),
        (["--report-data", "00", "--qe-report-nonce", "00"], {}, ExitCode.USAGE, "expected 16 bytes"),
        (["--report-data", "00", "--mode", "in-proc"], {"SGX_AESM_ADDR": ""}, ExitCode.USAGE, "SGX_AESM_ADDR is set"),
        (["--report-data", "00", "--platform", "simulated"], {}, ExitCode.USAGE, "needs a machine file"),
        (["--report-data", "00", "--enclave", "e.toml"], {}, ExitCode.USAGE, "no simulated machine runs it"),
        (["--report-data", "00", "--machine", "none.json"], {}, ExitCode.USAGE, "none.json: No such file"),
        (["--report-data", "00"], {"SGX_AESM_ADDR": "1"}, ExitCode.PLATFORM, "no enclave in this process"),
    ],
)
def test_a_mistake_gets_one_clear_message(
    arguments: list[str], variables: dict[str, str], code: ExitCode, words: str, confcom_process: Run, tmp_path: Path
) -> None:
    (tmp_path / "bare").mkdir()
    outcome = confcom_process("quote", "--host", "bare", *arguments, **variables)
    assert outcome.returncode == code
    assert outcome.stdout == b""
    assert words in outcome.stderr.decode()
    assert b"what to do" in outcome.stderr
    assert b"Traceback" not in outcome.stderr


def test_without_hardware_in_proc_names_everything_that_is_missing(confcom_process: Run, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    outcome = confcom_process("quote", "--report-data", "00", "--host", "bare")
    assert outcome.returncode == ExitCode.PLATFORM
    for name in ("/dev/sgx_enclave", "/dev/sgx_provision", "libsgx_dcap_ql.so.1"):
        assert name in outcome.stderr.decode()


def test_without_a_helper_out_of_proc_says_where_it_looked(confcom_process: Run, machine: Path) -> None:
    arguments = ("quote", "--machine", machine, "--report-data", "00", "--socket", "nowhere/aesm.socket")
    outcome = confcom_process(*arguments, SGX_AESM_ADDR="1")
    assert outcome.returncode == ExitCode.PLATFORM
    assert b"nowhere/aesm.socket" in outcome.stderr
