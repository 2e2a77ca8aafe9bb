"""docs/howto/attested-tls.md runs as it is written."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attested_tls import HANG
from documented import ROOT

PAGE = (ROOT / "docs" / "howto" / "attested-tls.md").read_text()


def program(name: str, port: int) -> str:
    """A program of the page, with a port that is free here."""
    [found] = re.findall(rf"^```python\n(# {name}\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert "8443" in found
    return found.replace("8443", str(port))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Path]:
    """The folder in which the commands of the page ran, with the server running."""
    commands = [line.strip() for line in re.findall(r"^    confcom .*$", PAGE, re.MULTILINE)]
    assert len(commands) == 3
    for command in commands:
        words = [str(Path(sys.executable).parent / "confcom"), *shlex.split(command)[1:]]
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, timeout=HANG)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name in ("server.py", "client.py"):
        (tmp_path / name).write_text(program(name, port))
    words = [sys.executable, "server.py"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert server.stderr.readline().strip() in PAGE  # it serves from here on, or in a moment
        yield tmp_path
        server.kill()


def run_client(stage: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "client.py"]
    return subprocess.run(words, cwd=stage, capture_output=True, text=True, timeout=HANG, check=False)


def test_the_first_example(stage: Path) -> None:
    for _ in range(HANG):
        done = run_client(stage)
        if "Connection refused" not in done.stderr:
            break
    shown = PAGE.partition("$ python client.py\n")[2].partition("\n\n")[0]
    assert done.stdout.strip() == "\n".join(line.strip() for line in shown.splitlines()), done.stderr
    # The other way round: another signer.
    (stage / "client.py").write_text((stage / "client.py").read_text().replace("3f39", "3f30"))
    done = run_client(stage)
    refused = PAGE.partition("`ssl.SSLCertVerificationError`:\n\n")[2].partition("…")[0].strip()
    assert done.stderr.splitlines()[-1].startswith(refused)
