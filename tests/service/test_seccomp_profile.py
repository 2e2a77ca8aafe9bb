"""The quote helper does all its work under the profile that is shipped with it, and what it never needs is refused."""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aesm_wire import KEY_ID, read_response, request
from confcom.wiring import create_machine_file
from running_helper import exchange
from software_qe import COMPILER, build_libraries

pytestmark = pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="needs libseccomp")

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "deploy" / "seccomp" / "quote-helper.json"
UNDER = [sys.executable, str(ROOT / "tests" / "seccomp_launcher.py"), str(PROFILE)]

REFUSED = """
import ctypes, errno
syscall = ctypes.CDLL(None, use_errno=True).syscall
NEW_USER = 0x10000000
calls = {
    "ptrace": (101, 0, 0, 0, 0), "mount": (165, 0, 0, 0, 0, 0), "unshare": (272, NEW_USER), "setns": (308, 0, 0),
    "bpf": (321, 0, 0, 0), "keyctl": (250, 0), "init_module": (175, 0, 0, 0), "io_uring_setup": (425, 1, 0),
    "process_vm_readv": (310, 1, 0, 0, 0), "userfaultfd": (323, 0), "chroot": (161, 0), "setuid": (105, 0),
    "clone": (56, NEW_USER | 17, 0, 0, 0, 0), "packet socket": (41, 17, 3, 0), "vsock": (41, 40, 1, 0),
}
for name, arguments in calls.items():
    ctypes.set_errno(0)
    print(name, syscall(*arguments), errno.errorcode.get(ctypes.get_errno()))
ctypes.set_errno(0)
print("clone3", syscall(435, 0, 0), errno.errorcode.get(ctypes.get_errno()))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: the path of a socket in it must be short.
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_the_helper_command_serves_under_it(folder: Path) -> None:
    machine, socket = folder / "machine.json", folder / "aesmd" / "aesm.socket"
    create_machine_file(machine, bytes(32), datetime(2026, 11, 21, tzinfo=UTC))
    command = [*UNDER, sys.executable, "-m", "confcom", "quote-helper", "--socket", str(socket), "--machine"]
    with subprocess.Popen([*command, str(machine)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        answer = exchange(socket, request(15, (1, KEY_ID), (3, 1), (4, 32)))
        process.terminate()
        _, log = process.communicate(timeout=60)
    assert ready.startswith(b"quote helper: ready"), log
    assert read_response(answer, 15)[1] == 0
    assert process.returncode == 0, log


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_workers_with_intels_libraries_are_replaced_under_it(folder: Path) -> None:
    libraries = build_libraries(folder / "libraries")
    (folder / "stub").mkdir()
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*UNDER, sys.executable, str(ROOT / "tests" / "whole_way.py"), str(folder / "stub"), str(libraries)],
        env=os.environ | {"PYTHONPATH": path, "DCAP_STUB": str(folder / "stub")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("replaced 4\n")


def test_what_it_never_needs_is_refused() -> None:
    done = subprocess.run(
        [*UNDER, sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=60, check=False
    )
    lines = done.stdout.splitlines()
    assert lines.pop() == "clone3 -1 ENOSYS"
    assert len(lines) == 15
    assert [line for line in lines if not line.endswith("-1 EPERM")] == []


def test_it_allows_by_name_and_refuses_by_default() -> None:
    profile = json.loads(PROFILE.read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = [name for rule in profile["syscalls"] if "args" not in rule for name in rule["names"]]
    assert len(allowed) == len(set(allowed))
