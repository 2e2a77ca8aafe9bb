"""The systemd units: systemd reads them, they are hardened, their commands are ours, and a failed check pages."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from confcom.cli.root import root
from documented import ROOT

FOLDER = ROOT / "deploy" / "systemd"
UNITS = sorted([*FOLDER.glob("*.service"), *FOLDER.glob("*.timer")])
SERVICES = [path for path in UNITS if path.suffix == ".service"]
MOST = {"confcom-collateral-status.service": 0.5}
"""Exposure, where it is not 1.5: what systemd-analyze prints, from 0 (nothing) to 10."""


def lines(path: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", path.read_text(), re.MULTILINE)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units with the paths of programs that are here: systemd looks for them."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    program = tmp_path / "confcom"
    program.symlink_to(sys.executable)
    for path in UNITS:
        text = path.read_text().replace("/usr/bin/confcom", str(program))
        (tmp_path / path.name).write_text(text.replace("/usr/lib/confcom/page", str(FOLDER / "page")))
    return tmp_path


def analyze(installed: Path, *words: str) -> str:
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{installed}:", "SYSTEMD_COLORS": "0"}
    done = subprocess.run(
        ["systemd-analyze", *words], env=environment, cwd=installed, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_reads_every_unit_without_a_complaint(installed: Path) -> None:
    assert analyze(installed, "verify", "--man=no", *(path.name for path in UNITS)) == ""


def test_a_mistake_in_a_unit_is_noticed(installed: Path) -> None:
    path = installed / "confcom-collateral.service"
    path.write_text(path.read_text().replace("ProtectHome=yes", "ProtectHose=yes"))
    assert "ProtectHose" in analyze(installed, "verify", "--man=no", path.name)


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_services_are_hardened(installed: Path, path: Path) -> None:
    most = MOST.get(path.name, 1.5)
    shown = analyze(installed, "security", "--offline=true", "--no-pager", str(installed / path.name))
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", shown)
    assert level
    assert float(level[1]) <= most
    page = (ROOT / "docs" / "howto" / "run-on-hosts.md").read_text()
    assert re.search(rf"^\| `{re.escape(path.name)}` \|.*\| {re.escape(level[1])} \|$", page, re.MULTILINE)


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_commands_are_ours_and_take_these_options(path: Path) -> None:
    (command,) = lines(path, "ExecStart")
    program, *words = shlex.split(command)
    if program == "/usr/lib/confcom/page":
        return
    assert program == "/usr/bin/confcom"
    words = [word for word in words if not word.startswith("$")]
    # A missing file is an error of its own; an option that does not exist is a usage error, 2.
    result = CliRunner().invoke(root, [*words, "--help"])
    assert result.exit_code == 0
    for option in (word for word in words if word.startswith("--")):
        assert option in result.output


def test_the_settings_of_the_service_are_read() -> None:
    result = CliRunner().invoke(
        root, ["collateral", "serve", "--config", str(FOLDER / "collateral.toml"), "--print-config"]
    )
    assert result.exit_code == 0, result.output
    assert '"tls_certificate": "/etc/confcom/tls.crt"' in result.output


def test_every_unit_that_can_fail_pages(installed: Path) -> None:
    for path in SERVICES:
        if path.name != "confcom-page@.service":
            assert lines(path, "OnFailure") == ["confcom-page@%n.service"]
    for timer in FOLDER.glob("*.timer"):
        assert timer.with_suffix(".service").exists()
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(timer)
        analyze(installed, "calendar", parser["Timer"]["OnCalendar"])


def test_an_empty_store_fails_the_check(tmp_path: Path) -> None:
    (command,) = lines(FOLDER / "confcom-collateral-status.service", "ExecStart")
    words = shlex.split(command.replace("/var/lib/confcom/collateral.sqlite", str(tmp_path / "store.sqlite")))[1:]
    done = subprocess.run([sys.executable, "-m", "confcom", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stdout + done.stderr


def test_the_page_reaches_url_and_mail(tmp_path: Path) -> None:
    """With stand-ins of the programs that it calls, in the PATH before them."""
    for name in ("curl", "sendmail", "journalctl"):
        program = tmp_path / name
        text = (
            "echo last line"
            if name == "journalctl"
            else f'echo "$@" > {tmp_path}/{name}.args; cat > {tmp_path}/{name}.in'
        )
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)

    def page(**settings: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **settings}
        command = [str(FOLDER / "page"), "confcom-collateral-status.service"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    done = page(PAGE_URL="https://pager.example/hook", PAGE_MAIL="ops@example.org")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curl.args").read_text().split()[-1] == "https://pager.example/hook"
    assert "confcom-collateral-status.service failed" in (tmp_path / "curl.in").read_text()
    assert "last line" in (tmp_path / "curl.in").read_text()
    assert "To: ops@example.org\n" in (tmp_path / "sendmail.in").read_text()
    (tmp_path / "curl").write_text("#!/bin/sh\nexit 22\n")
    assert page(PAGE_URL="https://pager.example/hook").returncode == 1
    missing = page()
    assert missing.returncode == 1
    assert "set PAGE_URL or PAGE_MAIL" in missing.stderr
