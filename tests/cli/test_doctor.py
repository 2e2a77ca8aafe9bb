"""`confcom doctor`: what it prints and how it exits, on folders that look like hosts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from confcom.devices.sgx_node import declare_node
from confcom.errors import ExitCode
from confcom.wiring import create_machine_file, export_simulated_collateral
from recording_platform import RecordingPlatform
from running_helper import running_helper
from sgx_host_folder import complete_host

CASES = Path(__file__).parent.parent / "cases" / "doctor-wrong-facts"
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


def test_a_host_that_is_not_there_is_said(confcom_process: Run, tmp_path: Path) -> None:
    done = confcom_process("doctor", "--host", tmp_path / "nowhere")
    assert done.returncode == ExitCode.USAGE
    assert b"nowhere" in done.stderr


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
    assert at == 2
    told = "neither /dev/sgx_enclave nor /dev/sgx/enclave is a device"
    assert lines[0].startswith(f"1 problem for an application here, its mode in-proc; first device.enclave: {told}")
    assert [line[:7] for line in lines[4:]] == ["ok     "] * (len(lines) - 4)


class TestSimulated:
    """A simulated platform needs nothing of the node, and doctor knows one wherever it is."""

    @pytest.fixture
    def machine(self, tmp_path: Path) -> Path:
        create_machine_file(tmp_path / "machine.json", bytes(32), NOW)
        return tmp_path / "machine.json"

    def test_a_named_machine(self, report: Report, tmp_path: Path, machine: Path) -> None:
        (tmp_path / "bare").mkdir()
        code, told = report("--host", tmp_path / "bare", "--machine", machine)
        assert (code, told["simulated"], told["ok"]) == (ExitCode.OK, True, True)
        (found,) = [check["found"] for check in told["checks"] if check["id"] == "platform.simulated"]
        assert "created 2026-03-01" in found
        assert "takes reports of enclaves of SGX_MODE=SIM too" in found
        assert "0000" not in found

    def test_a_machine_named_from_the_working_folder(
        self, report: Report, machine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(machine.parent)
        _, told = report("--machine", machine.name)
        (check,) = [check for check in told["checks"] if check["id"] == "platform.simulated"]
        assert check["status"] == "ok"

    def test_a_declared_node(self, report: Report, tmp_path: Path, machine: Path) -> None:
        declare_node(tmp_path / "node", (64 << 20,), machine.read_bytes())
        code, told = report("--host", tmp_path / "node", "--role", "application", SGX_AESM_ADDR="1")
        assert (code, told["simulated"]) == (ExitCode.PLATFORM, True)
        assert [check["id"] for check in told["checks"] if check["status"] == "problem"] == ["aesm.socket"]
        assert any("SIMULATED machine /dev/sgx_enclave" in check["found"] for check in told["checks"])

    def test_the_settings_of_the_helper(self, report: Report, host: Path, machine: Path) -> None:
        shutil.copy(machine, host / "run/machine.json")
        setting = {"CONFCOM_QUOTE_HELPER_SIMULATED_MACHINE": "/run/machine.json"}
        assert not report("--host", host, "--role", "application", **setting)[1]["simulated"]
        assert report("--host", host, "--role", "quote-helper", **setting)[1]["simulated"]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (None, "No such file"),
            ("{}", "no machine file"),
            ("\0" * 99999, "no machine file"),
            ("pipe", "no machine file"),
        ],
    )
    def test_a_machine_that_is_none(self, report: Report, tmp_path: Path, content: str | None, said: str) -> None:
        if content == "pipe":
            os.mkfifo(tmp_path / "m")
        elif content is not None:
            (tmp_path / "m").write_text(content)
        code, told = report("--machine", tmp_path / "m")
        assert code == ExitCode.PLATFORM
        assert said in told["headline"]


@pytest.mark.parametrize(
    ("case", "place"),
    [("q457", "byte 262: line 8, column 3: expected a comma"), ("q335", "byte 198: line 9, column 3: expected a key")],
)
def test_positions_are_those_of_the_file_as_it_is(report: Report, host: Path, case: str, place: str) -> None:
    shutil.copy(CASES / f"{case}.conf", host / "etc/sgx_default_qcnl.conf")
    code, told = report("--host", host, HOME="/tmp")
    assert code == ExitCode.PLATFORM
    whom = "1 problem for an application here, its mode in-proc"
    where = "/etc/sgx_default_qcnl.conf: quote provider configuration at"
    assert told["headline"].startswith(f"{whom}; first qpl.settings: {where} {place}")
