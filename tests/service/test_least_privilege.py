"""The quote helper does its work with everything taken away that a container can do without, all at once."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

import confined
from aesm_wire import read_response
from confcom.wiring import create_machine_file
from helper_process import quote_request
from running_helper import exchange
from software_qe import COMPILER, build_libraries

pytestmark = pytest.mark.promise("M10")

HELPER = [
    sys.executable, "-P", "-m", "confcom", "quote-helper", "--platform", "simulated", "--machine",
    "/var/run/aesmd/machine.json",
]  # fmt: skip

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def folder() -> Iterator[Path]:
    if confined.obstacle():
        pytest.skip(confined.obstacle())
    # Not tmp_path: the path of a socket in it must be short.
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def aesmd(folder: Path) -> Path:
    """A hostPath directory as the kubelet makes it: root's, 0755."""
    directory = folder / "aesmd"
    directory.mkdir(0o755)
    machine = directory / "machine.json"
    create_machine_file(machine, bytes(32), datetime(2026, 6, 1, tzinfo=UTC))
    os.chown(machine, confined.USER, confined.USER)
    return directory


@pytest.fixture
def start(folder: Path, aesmd: Path) -> Iterator[Start]:
    numbers = itertools.count()
    with ExitStack() as stack:

        def start(*options: str) -> subprocess.Popen[str]:
            container = confined.start(
                folder / f"bundle-{next(numbers)}", [*HELPER, *options], {"/var/run/aesmd": aesmd}
            )
            stack.callback(_end, container)
            return container

        yield start


def _end(container: subprocess.Popen[str]) -> None:
    container.terminate()  # runc passes it on
    container.communicate(timeout=60)


@pytest.mark.complaint("linux-sgx #583", "linux-sgx #725")
def test_serves_and_updates_itself_with_nothing(folder: Path, aesmd: Path, start: Start) -> None:
    os.chown(aesmd, confined.USER, confined.USER)  # what the init container does
    socket = aesmd / "aesm.socket"
    frame, quote = quote_request(aesmd / "machine.json")
    first = start("--http", "unix:/var/run/aesmd/http")
    assert first.stdout is not None
    assert "ready" in first.stdout.readline(), first.communicate(timeout=60)

    assert read_response(exchange(socket, frame), 17) == {1: 0, 2: quote}
    assert stat.S_IMODE(socket.stat().st_mode) == 0o666
    kernel = confined.kernel_view(folder / "bundle-0")
    assert kernel["Uid"].split() == [str(confined.USER)] * 4
    assert {kernel[name] for name in kernel if name.startswith("Cap")} == {"0" * 16}
    assert (kernel["NoNewPrivs"], kernel["Seccomp"]) == ("1", "2")

    second = start("--replace")
    assert second.stdout is not None
    assert "ready" in second.stdout.readline(), second.communicate(timeout=60)
    assert first.wait(60) == 0
    assert read_response(exchange(socket, frame), 17) == {1: 0, 2: quote}
    assert first.stderr is not None
    assert "Traceback" not in first.stderr.read()


def test_a_directory_that_stayed_roots_is_an_advice_not_a_traceback(aesmd: Path, start: Start) -> None:
    container = start()
    _, told = container.communicate(timeout=60)

    assert container.returncode == 7
    assert "belongs to user 0, mode 0755; this process is user 65532" in told
    assert "chown 65532 /var/run/aesmd" in told
    assert "Traceback" not in told


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_workers_with_intels_libraries_are_replaced_with_nothing(folder: Path) -> None:
    libraries, stub = build_libraries(folder / "libraries"), folder / "stub"
    stub.mkdir()
    for path in (stub, libraries):
        shutil.chown(path, confined.USER, confined.USER)
    command = [sys.executable, str(confined.ROOT / "tests" / "whole_way.py"), "/stub", "/libraries"]
    container = confined.start(
        folder / "bundle", command, {"/stub": stub, "/libraries": libraries}, {"DCAP_STUB": "/stub"}
    )
    output, told = container.communicate(timeout=90)

    assert container.returncode == 0, told
    assert output.endswith("replaced 4\n")


def test_its_profile_is_one_that_a_container_runtime_reads() -> None:
    """The OCI form, without what only Docker reads (`archMap`, `includes`): such a profile is passed on as it is."""
    profile = json.loads(confined.PROFILE.read_text())
    assert set(profile) == {"defaultAction", "defaultErrnoRet", "architectures", "syscalls"}
    for rule in profile["syscalls"]:
        assert set(rule) <= {"names", "action", "errnoRet", "args"}
        for argument in rule.get("args", []):
            assert set(argument) <= {"index", "value", "valueTwo", "op"}
