"""Runs a command under a seccomp profile of the form that container runtimes read: `PROFILE COMMAND…`.

Uses libseccomp as they do, so that names, arguments and actions mean the same. Exits 77 where it is not installed.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import sys
from pathlib import Path
from typing import Any

ACTIONS = {"SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_ERRNO": 0x00050000}
OPERATORS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
NOT_INSTALLED = 77


class Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def action(rule: dict[str, Any], errno_key: str) -> int:
    """The number of an action; the errno is its low half."""
    name = rule.get("action") or rule["defaultAction"]
    return ACTIONS[name] | (rule.get(errno_key, 1) if name == "SCMP_ACT_ERRNO" else 0)


def load(path: Path) -> None:
    """Put this process, and what it becomes, under the profile."""
    name = ctypes.util.find_library("seccomp")
    if name is None:
        sys.exit(NOT_INSTALLED)
    library = ctypes.CDLL(name)
    library.seccomp_init.restype = ctypes.c_void_p
    profile = json.loads(path.read_text())
    context = ctypes.c_void_p(library.seccomp_init(action(profile, "defaultErrnoRet")))
    for rule in profile["syscalls"]:
        comparisons = [
            Comparison(one["index"], OPERATORS[one["op"]], one["value"], one.get("valueTwo", 0))
            for one in rule.get("args", [])
        ]
        array = (Comparison * len(comparisons))(*comparisons)
        for syscall in rule["names"]:
            number = library.seccomp_syscall_resolve_name(syscall.encode())
            assert number != -1, f"no system call {syscall}"
            status = library.seccomp_rule_add_array(
                context, ctypes.c_uint32(action(rule, "errnoRet")), number, len(comparisons), array
            )
            assert status == 0, f"{syscall}: {os.strerror(-status)}"
    assert library.seccomp_load(context) == 0


if __name__ == "__main__":
    load(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
