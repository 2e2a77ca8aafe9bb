"""The mode of an application, and whether its quote helper can be reached; sockets are real."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from confcom.devices.host import Host
from confcom.doctor.checks import Finding, Level, Role, Subject
from confcom.doctor.quoting_checks import aesm_findings, mode_findings
from recording_platform import RecordingPlatform
from running_helper import running_helper
from sgx_host_folder import complete_host, write


@pytest.fixture
def host() -> Iterator[Path]:
    # Not tmp_path: the path of a socket in it must be short.
    with tempfile.TemporaryDirectory() as folder:
        yield complete_host(Path(folder))


def subject(root: Path, role: Role = Role.APPLICATION, **environ: str) -> Subject:
    return Subject.of(Host(root), environ, role)


def aesm(root: Path, role: Role = Role.APPLICATION, **environ: str) -> dict[str, Finding]:
    return {finding.id: finding for finding in aesm_findings(subject(root, role, **environ))}


def mode(root: Path, **environ: str) -> dict[str, Finding]:
    return {finding.id: finding for finding in mode_findings(subject(root, **environ))}


class TestMode:
    def test_without_the_variable(self, host: Path) -> None:
        found = mode(host)
        assert found["mode.variable"].found == "SGX_AESM_ADDR is not set"
        assert "in-proc" in found["mode.application"].found

    def test_an_empty_variable_counts(self, host: Path) -> None:
        found = mode(host, SGX_AESM_ADDR="")
        assert "set to ''" in found["mode.variable"].found
        assert "out-of-proc" in found["mode.application"].found

    def test_gramine(self, host: Path) -> None:
        path = write(host, "dev/attestation/attestation_type", "dcap")
        assert "Gramine" in mode(host)["mode.application"].found
        path.write_text("none")
        finding = mode(host)["mode.gramine"]
        assert finding.level is Level.WARNING
        assert "sgx.remote_attestation" in finding.advice

    def test_the_library_that_makes_fake_quotes(self, host: Path) -> None:
        assert "mode.simulation-library" not in mode(host)
        write(host, "opt/intel/sgxsdk/sdk_libs/libsgx_quote_ex_sim.so", "")
        finding = mode(host, LD_LIBRARY_PATH="/opt/intel/sgxsdk/sdk_libs")["mode.simulation-library"]
        assert finding.level is Level.WARNING
        assert "LD_PRELOAD=libsgx_quote_ex.so.1" in finding.advice


class TestSocket:
    def test_a_helper_that_answers(self, host: Path) -> None:
        with running_helper(RecordingPlatform(), host / "run/aesmd/aesm.socket"):
            found = aesm(host, SGX_AESM_ADDR="1")
        assert {key: finding.level for key, finding in found.items()} == {
            "aesm.socket": Level.OK,
            "aesm.answer": Level.OK,
        }
        assert "mode 0666, folder 0755" in found["aesm.socket"].found
        assert found["aesm.answer"].found.endswith("keys: 1")

    def test_no_socket_is_a_problem_for_those_who_need_one(self, host: Path) -> None:
        finding = aesm(host, SGX_AESM_ADDR="1")["aesm.socket"]
        assert finding.level is Level.PROBLEM
        assert "/var/run/aesmd" in finding.advice
        assert aesm(host)["aesm.socket"].level is Level.OK
        assert aesm(host, Role.QUOTE_HELPER, SGX_AESM_ADDR="1")["aesm.socket"].level is Level.OK

    def test_a_socket_that_nobody_listens_on(self, host: Path) -> None:
        (host / "run/aesmd").mkdir()
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(str(host / "run/aesmd/aesm.socket"))
        finding = aesm(host, SGX_AESM_ADDR="1")["aesm.answer"]
        assert finding.level is Level.PROBLEM
        assert "no process listens on it" in finding.found
        assert "directory" in finding.advice

    def test_a_file_where_the_socket_should_be(self, host: Path) -> None:
        write(host, "run/aesmd/aesm.socket", "")
        found = aesm(host, SGX_AESM_ADDR="1")
        assert found["aesm.socket"].level is Level.PROBLEM
        assert "is an ordinary file, not a socket" in found["aesm.socket"].found
        assert "aesm.answer" not in found

    def test_a_folder_where_the_socket_should_be(self, host: Path) -> None:
        (host / "run/aesmd/aesm.socket").mkdir(parents=True)
        finding = aesm(host, SGX_AESM_ADDR="1")["aesm.socket"]
        assert "is a folder, not a socket" in finding.found
        assert "rmdir" in finding.advice

    def test_who_answers_is_named_and_intels_service_is_in_the_way_of_a_helper(self, host: Path) -> None:
        write(host, f"proc/{os.getpid()}/comm", "aesm_service\n")
        with running_helper(RecordingPlatform(), host / "run/aesmd/aesm.socket"):
            client = aesm(host, SGX_AESM_ADDR="1")["aesm.answer"]
            helper = aesm(host, Role.QUOTE_HELPER)["aesm.answer"]
        assert client.level is Level.OK
        assert f"(aesm_service, process {os.getpid()})" in client.found
        assert (helper.level, "--replace" in helper.advice) == (Level.WARNING, True)

    @pytest.mark.parametrize(("of", "mode"), [("aesm.socket", 0o660), (".", 0o700)])
    def test_a_socket_that_others_cannot_reach(self, host: Path, of: str, mode: int) -> None:
        with running_helper(RecordingPlatform(), host / "run/aesmd/aesm.socket"):
            (host / "run/aesmd" / of).chmod(mode)
            finding = aesm(host, SGX_AESM_ADDR="1")["aesm.socket"]
            (host / "run/aesmd").chmod(0o755)
        assert finding.level is Level.WARNING
        assert "0666" in finding.advice

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
    def test_a_folder_that_may_not_be_searched(self, host: Path) -> None:
        (host / "run/aesmd").mkdir(mode=0o000)
        assert aesm(host, SGX_AESM_ADDR="1")["aesm.socket"].level is Level.PROBLEM


class TestTraps:
    def test_a_mounted_socket(self, host: Path) -> None:
        write(host, "proc/self/mounts", "tmpfs /run/aesmd/aesm.socket tmpfs rw 0 0\n")
        finding = aesm(host)["aesm.mount"]
        assert finding.level is Level.WARNING
        assert "mount its folder" in finding.advice

    def test_a_mounted_folder_is_right(self, host: Path) -> None:
        write(host, "proc/self/mounts", "tmpfs /var/run/aesmd tmpfs rw 0 0\n")
        assert "aesm.mount" not in aesm(host)

    def test_somebody_on_the_abstract_socket(self, host: Path) -> None:
        line = "0: 2 0 10000 1 1 23 @sgx_aesm_socket_base@@@@@\n"
        write(host, "proc/net/unix", f"Num RefCount Protocol Flags Type St Inode Path\n{line}")
        assert "Gramine prefers it" in aesm(host)["aesm.abstract"].advice
        write(host, "proc/net/unix", line.replace(" 10000 ", " 00000000 "))
        assert "aesm.abstract" not in aesm(host)


class TestFolder:
    """Where the quote helper is to stand."""

    def folder(self, root: Path) -> Finding:
        return aesm(root, Role.QUOTE_HELPER)["aesm.folder"]

    def test_one_that_it_may_use(self, host: Path) -> None:
        (host / "run/aesmd").mkdir()
        assert self.folder(host).level is Level.OK

    def test_none(self, host: Path) -> None:
        finding = self.folder(host)
        assert (finding.level, "mount" in finding.advice) == (Level.WARNING, True)

    def test_one_that_everybody_may_use(self, host: Path) -> None:
        folder = host / "run/aesmd"
        folder.mkdir()
        folder.chmod(0o777)
        finding = self.folder(host)
        assert (finding.level, finding.advice.endswith("chmod 0755 /var/run/aesmd")) == (Level.PROBLEM, True)

    def test_one_that_stayed_roots(self, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (host / "run/aesmd").mkdir()
        # Root may write anywhere, so that the kernel's answer is given here.
        monkeypatch.setattr(os, "access", lambda *_: False)
        monkeypatch.setattr(os, "geteuid", lambda: 65532)
        finding = self.folder(host)
        assert finding.level is Level.PROBLEM
        assert "this process is user 65532" in finding.found
        assert "chown 65532 /var/run/aesmd" in finding.advice

    def test_an_application_is_not_asked(self, host: Path) -> None:
        assert "aesm.folder" not in aesm(host)
