"""The command line as a process of its own: its streams, its exit code, and what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner

from printed_outputs import check_printed

Outcome = subprocess.CompletedProcess[bytes]


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The test's environment without the variable that decides on modes."""
    return {name: value for name, value in os.environ.items() if name != "SGX_AESM_ADDR"} | dict(extra)


@pytest.fixture
def confcom_process(tmp_path: Path) -> Callable[..., Outcome]:
    """Run `confcom` in an empty folder, with SGX_AESM_ADDR only where a test sets it."""

    def run(*arguments: str | Path, **variables: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "confcom", *map(str, arguments)],
            cwd=tmp_path,
            env=environment(variables),
            capture_output=True,
            timeout=60,
            check=False,
        )
        check_printed([str(word) for word in arguments], done.stdout.decode(errors="replace"))
        return done

    return run


@pytest.fixture(autouse=True)
def printed_json_follows_its_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of a command that prints JSON holds it to the schema in docs/reference/schemas."""
    invoke = CliRunner.invoke

    def checked(self: CliRunner, command: Any, args: Any = None, **named: Any) -> Any:
        result = invoke(self, command, args, **named)
        check_printed([str(word) for word in args or ()], result.stdout)
        return result

    monkeypatch.setattr(CliRunner, "invoke", checked)


@pytest.fixture(autouse=True)
def _log_of_a_daemon() -> Iterator[None]:
    """A daemon that a test starts in this process logs to the test's output, which later tests do not have."""
    yield
    structlog.reset_defaults()
