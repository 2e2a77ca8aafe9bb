"""Checks of this process and its host: each with what was found, and what to do.

What is missing is a problem only for a process that needs it: an application that uses the quote helper needs neither
provisioning nor Intel's libraries, and one under Gramine not even a device of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from confcom.devices.host import Host
from confcom.platforms.quoting import ModeDecision, QuoteMode, choose_mode


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Role(StrEnum):
    """What the process is, or would be."""

    APPLICATION = "application"
    QUOTE_HELPER = "quote-helper"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, by its stable id; `advice` is empty when all is well."""

    id: str
    level: Level
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """For machines."""
        return {"id": self.id, "status": self.level.value, "found": self.found, "advice": self.advice}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked: a process of this role and environment on this host."""

    host: Host
    environ: Mapping[str, str]
    role: Role
    decision: ModeDecision
    simulated: bool = False
    """Whether QE and PCE are those of a simulated machine, which needs nothing of the node."""

    @classmethod
    def of(cls, host: Host, environ: Mapping[str, str], role: Role, *, simulated: bool = False) -> Subject:
        """With the mode that an application of this environment would take."""
        return cls(host, environ, role, choose_mode("auto", environ, host.root), simulated)

    @property
    def quotes_itself(self) -> bool:
        """Whether it runs Intel's QE and PCE: needs provisioning, Intel's libraries and enclaves."""
        return not self.simulated and not self.asks_helper

    @property
    def opens_enclaves(self) -> bool:
        """Whether it needs the enclave device; Gramine's loader has opened it already."""
        return not self.simulated and (self.quotes_itself or self.decision.mode is QuoteMode.OUT_OF_PROC)

    @property
    def asks_helper(self) -> bool:
        """Whether it needs a quote helper."""
        return self.role is Role.APPLICATION and self.decision.mode is not QuoteMode.IN_PROC

    def missing(self, identifier: str, found: str, advice: str, *, needed: bool) -> Finding:
        """A problem for a process that needs it, and a remark for others."""
        if needed:
            return Finding(identifier, Level.PROBLEM, found, advice)
        return Finding(identifier, Level.OK, f"{found} (not needed: {self.why_not_needed})")

    @property
    def why_not_needed(self) -> str:
        """One clause."""
        if self.simulated:
            return "the platform is simulated"
        if self.role is Role.QUOTE_HELPER:
            return "this is the quote helper"
        return f"this application's mode is {self.decision.mode.value}"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings: the worst first, those of one level in the order in which things depend on each other."""

    subject: Subject
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, subject: Subject, findings: Iterable[Finding]) -> Diagnosis:
        """From findings in the order in which things depend on each other."""
        return cls(subject, tuple(sorted(findings, key=lambda found: -list(Level).index(found.level))))

    @property
    def headline(self) -> str:
        """One line: how many problems and warnings, of what process, and the first of them."""
        counts = [
            f"{count} {level.value}{'' if count == 1 else 's'}"
            for level in (Level.PROBLEM, Level.WARNING)
            if (count := sum(finding.level is level for finding in self.findings))
        ]
        summary = f"{' and '.join(counts) or 'no problems'} for {self._subject}"
        first = next((finding for finding in self.findings if finding.level is not Level.OK), None)
        return summary if first is None else f"{summary}; first {first.id}: {first.found}"

    @property
    def _subject(self) -> str:
        where = "on a SIMULATED platform" if self.subject.simulated else "here"
        if self.subject.role is Role.QUOTE_HELPER:
            return f"a quote helper {where}"
        return f"an application {where}, its mode {self.subject.decision.mode.value}"

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What must change before it works."""
        return tuple(finding for finding in self.findings if finding.level is Level.PROBLEM)

    def as_dict(self) -> dict[str, Any]:
        """For machines: `ok`, `headline`, `role`, `mode`, `simulated`, `checks`."""
        return {
            "ok": not self.problems,
            "headline": self.headline,
            "simulated": self.subject.simulated,
            "role": self.subject.role.value,
            "mode": self.subject.decision.mode.value,
            "checks": [finding.as_dict() for finding in self.findings],
        }


def worst(levels: Iterable[Level]) -> Level:
    """The worst of some levels; ok if there is none."""
    return max(levels, key=list(Level).index, default=Level.OK)
