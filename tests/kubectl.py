"""Kubernetes' own client as the tests use it: commands, waits for states, and what to show when a test fails."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ADDON_NAMESPACE = "confcom-system"


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    code: int
    out: str
    err: str


class TooLong(AssertionError):
    """A state did not come in time."""


@dataclass(frozen=True)
class Kubectl:
    """`kubectl` with one kubeconfig."""

    program: str
    kubeconfig: str

    def attempt(self, *words: str, given: str | None = None, seconds: float = 120) -> Outcome:
        """Run a command that may fail."""
        command = [self.program, "--kubeconfig", self.kubeconfig, *words]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=seconds, check=False)
        return Outcome(done.returncode, done.stdout, done.stderr)

    def __call__(self, *words: str, given: str | None = None, seconds: float = 120) -> str:
        """Run a command that must not fail."""
        outcome = self.attempt(*words, given=given, seconds=seconds)
        assert outcome.code == 0, f"kubectl {' '.join(words)}: {outcome.err}"
        return outcome.out

    def get(self, *words: str) -> Any:
        """An object, or the list of them."""
        return json.loads(self("get", "-o", "json", *words))

    def find(self, *words: str) -> Any:
        """The same, or None where there is none."""
        outcome = self.attempt("get", "-o", "json", "--ignore-not-found", *words)
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out) if outcome.out.strip() else None

    def items(self, *words: str) -> list[Any]:
        """The items of a list."""
        items: list[Any] = self.get(*words)["items"]
        return items

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create or change objects."""
        self("apply", "-f", "-", given=encode(*objects))

    def wait(self, what: str, look: Callable[[], Any], seconds: float = 180) -> Any:
        """Look until there is something to see, and return it; false, empty and None are nothing."""
        deadline = time.monotonic() + seconds
        while True:
            seen = look()
            if seen:
                return seen
            if time.monotonic() > deadline:
                raise TooLong(f"waited {seconds:g} s for {what}")
            time.sleep(0.5)

    def rollout(self, kind: str, name: str, seconds: int = 180) -> None:
        """Wait until every pod of the latest template is ready."""
        words = ("rollout", "status", f"{kind}/{name}", "-n", ADDON_NAMESPACE, f"--timeout={seconds}s")
        self(*words, seconds=seconds + 10)

    def diagnosis(self, *namespaces: str) -> str:
        """Pods, events and logs, for the report of a failed test."""
        found = [self.attempt("get", "pods", "-A", "-o", "wide").out]
        for namespace in namespaces:
            found.append(self.attempt("get", "events", "-n", namespace, "--sort-by=.lastTimestamp").out[-6000:])
            found.append(self.attempt("describe", "jobs,pods", "-n", namespace).out[-12000:])
            for name in self.attempt("get", "pods", "-n", namespace, "-o", "name").out.split():
                words = ("logs", "-n", namespace, name, "--all-containers", "--prefix", "--tail=200")
                lines = self.attempt(*words).out.splitlines()
                # The helper says one line per request, which hides the others.
                found.append("\n".join([line for line in lines if '"aesm.request"' not in line][-25:]))
        return "\n".join(found)


def encode(*objects: dict[str, Any]) -> str:
    """As `kubectl -f -` reads it."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
