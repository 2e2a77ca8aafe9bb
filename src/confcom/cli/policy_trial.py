"""`confcom policy try`: recorded evidence from files, and what a draft decides on it.

Apart from the other commands, because it loads cryptography.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from confcom.appraisal.result import read_evidence
from confcom.cli.streams import naming, printable, read_input
from confcom.errors import FormatError
from confcom.tokens.azure import DEFAULT_POLICIES, policy_claims, quote_claims, type_of
from confcom.tokens.policy_evaluation import Recorded, claims_of, evaluate_policy, service_claims
from confcom.tokens.policy_language import PolicyText, parse_policy

MAX_RECORD = 64 << 20
"""Bytes of a file with recorded evidence."""


class _Line(msgspec.Struct):
    """A record of an appraisal, as `confcom attestation audit` prints it."""

    id: int
    at: str
    evidence_hash: str
    verdict: str
    claims: str


_LINE = msgspec.json.Decoder(_Line)


def read_recorded(path: Path, current: PolicyText | None) -> Iterator[Recorded]:
    """What the file holds: one piece of evidence, or records of which those count that a policy decided."""
    data = read_input(path, MAX_RECORD, "evidence")
    if not data.lstrip().startswith(b"{"):
        with naming(str(path)):
            evidence = read_evidence(data)
        rules = current or parse_policy(DEFAULT_POLICIES[type_of(evidence)])
        claims = service_claims(policy_claims(quote_claims(evidence.quote)))
        before = "accepted" if evaluate_policy(rules, claims).permitted else "denied"
        yield Recorded({"evidence": str(path)}, before, claims)
        return
    for number, line in enumerate(data.splitlines(), 1):
        try:
            entry = _LINE.decode(line) if line.strip() else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            message = f"is no record of an appraisal: {error}"
            raise FormatError(message, structure=path.name, field=f"line {number}") from None
        if entry is not None and entry.claims:
            label = {"id": entry.id, "at": entry.at, "evidence_hash": entry.evidence_hash}
            yield Recorded(label, entry.verdict, claims_of(entry.claims))


def show_trial(found: dict[str, Any]) -> None:
    """Each outcome in a line, and below it what every rule saw where the trace is known."""
    for outcome in found["outcomes"]:
        name = outcome.get("evidence") or f"{outcome['id']} of {outcome['at']}"
        verdicts = " → ".join(dict.fromkeys((outcome["before"], outcome["after"])))
        click.echo(printable(f"{name}: {verdicts}{outcome['reason'] and ': ' + outcome['reason']}"))
        for rule in outcome.get("trace", ()):
            state = "applied" if rule["applied"] else rule.get("fault") or "did not apply"
            matched = ", ".join(str(count) for count in rule["matched"]) or "always"
            click.echo(printable(f"  line {rule['line']}: {' '.join(rule['rule'].split())}"))
            click.echo(printable(f"    claims matched: {matched}; {state}"))
    click.echo(f"{found['judged']} judged, {found['changed']} decided otherwise than before")
