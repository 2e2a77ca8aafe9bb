"""The bundle of a release on a bare machine: Debian with Python and nothing else, no network, an empty home.

`./dev release --try FOLDER` runs this; FOLDER is one that `./dev release` made. It needs root, for namespaces.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from imaging.base import provide_base
from testcluster.home import default_home

ROOT = Path(__file__).resolve().parents[2]
RELEASE = os.environ.get("CONFCOM_E2E_RELEASE", "")
pytestmark = [
    pytest.mark.skipif(not RELEASE, reason="needs a release: `./dev release --try FOLDER` runs it"),
    pytest.mark.timeout(1200),
]
NO_NETWORK = "mount --rbind /dev {0}/dev && mount -t proc proc {0}/proc && ip link set lo up && exec chroot {1} {0} "
Bare = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """Run a shell script there as an ordinary user, in their home, which keeps what scripts leave."""
    base = provide_base(default_home().path / "images").root
    machine = tmp_path_factory.mktemp("bare") / "machine"
    subprocess.run(["cp", "-a", str(base), str(machine)], check=True)
    home = machine / "home" / "user"
    home.mkdir(parents=True)
    shutil.copy(next(Path(RELEASE).glob("confcom-bundle-*.tar")), home)
    os.chown(home, 1000, 1000)

    def run(script: str) -> subprocess.CompletedProcess[str]:
        prepared = NO_NETWORK.format(shlex.quote(str(machine)), "--userspec=1000:1000")
        inside = f"env -i HOME=/home/user PATH=/usr/bin:/bin sh -e -c {shlex.quote('cd; umask 022; ' + script)}"
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-e", "-c", prepared + inside]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)

    return run


def commands_of_readme() -> str:
    """What README's section on installing shows."""
    section = (ROOT / "README.md").read_text().partition("## Install\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"^    (.*)$", section, re.MULTILINE))


def verdict_of_the_tutorial() -> str:
    """The commands that make a machine and a quote and verify it, of the tutorial's sections 2 to 5."""
    page = (ROOT / "docs" / "tutorial" / "first-ten-minutes.md").read_text()
    part = page.partition("## 2.")[2].partition("## 6.")[0]
    shown = re.sub(r"^```text\n.*?^```", "", part, flags=re.MULTILINE | re.DOTALL)
    commands = re.findall(r"^    (\S.*)$", shown, re.MULTILINE)
    # The others are there to be refused.
    accepted = next(line for line in commands if line.startswith("confcom verify") and "--trust-root" in line)
    before = [line for line in commands[: commands.index(accepted)] if not line.startswith("confcom verify")]
    return "\n".join([*before, accepted])


def test_readme_gives_the_command_and_a_verdict(bare: Bare) -> None:
    started = time.monotonic()
    installed = bare(commands_of_readme().replace("confcom demo", ""))
    assert installed.returncode == 0, installed.stderr
    path = 'export PATH="$HOME/.local/bin:$PATH"; '
    verdict = bare(path + verdict_of_the_tutorial())
    seconds = time.monotonic() - started
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
    assert "ACCEPTED" in verdict.stdout
    sys.stdout.write(f"from bundle to first verdict: {seconds:.1f} s\n")
    demo = bare(path + "confcom demo")
    assert demo.returncode == 0, demo.stdout + demo.stderr


def test_the_command_says_what_it_is_and_completes(bare: Bare) -> None:
    said = bare('"$HOME/.local/bin/confcom" --version -v').stdout
    assert re.search(r"^commit [0-9a-f]{40} of 20\S+$", said, re.MULTILINE), said
    completed = bare(
        "test -s .local/share/man/man1/confcom-verify.1 && test -s .local/share/bash-completion/completions/confcom;"
        'COMP_WORDS="confcom ver" COMP_CWORD=1 _CONFCOM_COMPLETE=bash_complete .local/bin/confcom'
    )
    assert completed.stdout.strip() == "plain,verify", completed.stderr


def test_an_altered_bundle_is_not_installed(bare: Bare) -> None:
    refused = bare(
        "mkdir copy; cp -r confcom-bundle-*/install confcom-bundle-*/SHA256SUMS confcom-bundle-*/attest.yaml copy;"
        "echo >> copy/attest.yaml; copy/install --prefix $HOME/other"
    )
    assert refused.returncode == 1
    assert re.fullmatch(r"install: \S+ is (missing|not what SHA256SUMS says it is): .*\n", refused.stderr)
    assert bare("test ! -e other").returncode == 0


def test_a_program_without_network_has_none(bare: Bare) -> None:
    """The test's own machine is what it says."""
    script = "import socket; socket.create_connection(('10.0.0.1', 80), 5)"
    assert "Network is unreachable" in bare(f'python3 -c "{script}"').stderr
    assert bare("python3 -c 'import ensurepip'").returncode != 0
