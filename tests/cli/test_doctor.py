"""`confcom doctor`: what it prints and how it exits, on folders that look like hosts."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from confcom.cli.exit_codes import ExitCode
from confcom.services.wiring import create_machine_file, export_simulated_collateral
from recording_platform import RecordingPlatform
from running_helper import running_helper
from sgx_host_folder import complete_host

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def host() -> Iterator[Path]:
    # Not tmp_path: the path of a socket in it must be short.
    with tempfile.TemporaryDirectory() as folder:
        yield complete_host(Path(folder))


@pytest.fixture
def report(confcom_process: Run) -> Callable[..., tuple[int, dict[str, Any]]]:
    def run(*arguments: str | Path, **environ: str) -> tuple[int, dict[str, Any]]:
        done = confcom_process("doctor", "--json", *arguments, **environ)
        told = json.loads(done.stdout)
        assert done.stderr == b""
        return done.returncode, told

    return run


Report = Callable[..., tuple[int, dict[str, Any]]]


def statuses(told: dict[str, Any]) -> dict[str, str]:
    return {check["id"]: check["status"] for check in told["checks"]}


def test_a_complete_host_has_no_problems(report: Report, host: Path) -> None:
    code, told = report("--host", host, HOME="/tmp")
    assert code == ExitCode.OK
    assert told["ok"]
    assert (told["role"], told["mode"]) == ("application", "in-proc")
    assert set(statuses(told).values()) == {"ok"}
    assert {"device.enclave", "device.provision", "library.dcap-ql", "enclave.qe3", "qpl.settings", "aesm.socket",
            "mode.variable", "mode.application", "epc.size", "collateral"} <= set(statuses(told))  # fmt: skip


def test_every_problem_has_advice(report: Report, tmp_path: Path) -> None:
    code, told = report("--host", tmp_path)
    assert code == ExitCode.PLATFORM
    assert not told["ok"]
    for check in told["checks"]:
        assert bool(check["advice"]) == (check["status"] != "ok"), check


def test_a_client_of_the_helper_needs_only_device_and_socket(report: Report, host: Path) -> None:
    shutil.rmtree(host / "usr")
    (host / "dev/sgx_provision").unlink()
    code, told = report("--host", host, SGX_AESM_ADDR="")
    assert code == ExitCode.PLATFORM
    assert {key for key, status in statuses(told).items() if status != "ok"} == {"aesm.socket"}
    with running_helper(RecordingPlatform(), host / "run/aesmd/aesm.socket"):
        code, told = report("--host", host, SGX_AESM_ADDR="")
    assert code == ExitCode.OK
    assert statuses(told)["aesm.answer"] == "ok"


def test_the_helper_itself_needs_the_rest(report: Report, host: Path) -> None:
    (host / "dev/sgx_provision").unlink()
    code, told = report("--host", host, "--role", "quote-helper", SGX_AESM_ADDR="1")
    assert code == ExitCode.PLATFORM
    assert statuses(told)["device.provision"] == "problem"
    assert statuses(told)["aesm.socket"] == "ok"


def test_warnings_are_no_problems(report: Report, host: Path) -> None:
    (host / "etc/sgx_default_qcnl.conf").unlink()
    code, told = report("--host", host, HOME="/tmp")
    assert code == ExitCode.OK
    assert statuses(told)["qpl.settings"] == "warning"


def test_collateral(report: Report, host: Path, tmp_path: Path) -> None:
    create_machine_file(tmp_path / "machine.json", bytes(32), NOW)
    export_simulated_collateral(tmp_path / "machine.json", tmp_path / "c", NOW)
    arguments = ["--host", host, "--collateral", tmp_path / "c", "--trust-root", tmp_path / "c/root_ca.pem", "--at"]
    assert report(*arguments, "2026-03-02T00:00:00Z")[0] == ExitCode.OK
    code, told = report(*arguments, "2027-03-02T00:00:00Z")
    assert code == ExitCode.PLATFORM
    assert statuses(told)["collateral"] == "problem"


def test_for_people(confcom_process: Run, host: Path) -> None:
    (host / "dev/sgx_enclave").unlink()
    done = confcom_process("doctor", "--host", host, HOME="/tmp")
    lines = done.stdout.decode().splitlines()
    assert done.returncode == ExitCode.PLATFORM
    at = next(number for number, line in enumerate(lines) if line.startswith("PROBLEM  device.enclave "))
    assert lines[at + 1].strip().startswith("what to do: ")
    assert lines[-1] == "1 problem for an application here, whose mode is in-proc"
