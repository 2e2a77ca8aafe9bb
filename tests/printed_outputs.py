"""What commands print with `-o json`, against the published schemas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).resolve().parent.parent / "docs" / "reference" / "schemas"


@cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text()))


@cache
def _schemas() -> dict[tuple[str, ...], str]:
    from output_schemas import OUTPUTS

    return {tuple(command.split()): name for name, (_, commands) in OUTPUTS.items() for command in commands}


def schema_of(words: Sequence[str]) -> str | None:
    """The schema of what a call prints; None where it prints no JSON."""
    name = next((found for command, found in _schemas().items() if tuple(words[: len(command)]) == command), None)
    formats = [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-o", "--output")]
    by_default = name is not None and name.startswith(("addon-", "attestation-")) and not formats
    return name if by_default or "--json" in words or "json" in formats else None


def check_printed(words: Sequence[str], printed: str) -> int:
    """Validate every document that a call printed; how many there were."""
    name = schema_of(words)
    if name is None or not printed.lstrip().startswith(("{", "[")):
        return 0
    lines = printed.splitlines() if name == "attestation-audit" else [printed]
    for line in lines:
        found = json.loads(line)
        validator("failure" if list(found) == ["error"] else name).validate(found)
    return len(lines)
