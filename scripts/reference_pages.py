"""Reference pages that are written from the program itself: the command line, errors, what pods are refused for."""

from __future__ import annotations

import importlib
import json
import re

import click

from confcom import errors
from confcom.admission.findings import REFUSALS, WARNINGS
from confcom.appraisal.policy_file import policy_schema
from confcom.cli.exit_codes import ExitCode, exit_code
from confcom.cli.root import COMMANDS, root

_MEANINGS = {
    ExitCode.OK: "ok; for `verify`: accepted",
    ExitCode.UNEXPECTED: "unexpected: a mistake of ours, or interrupted",
    ExitCode.USAGE: "usage or configuration",
    ExitCode.MALFORMED: "malformed input",
    ExitCode.NOT_AUTHENTIC: "not authentic",
    ExitCode.REFUSED: "authentic, but refused by policy or TCB",
    ExitCode.COLLATERAL: "collateral missing, stale, unsound or unreachable",
    ExitCode.PLATFORM: "platform: no SGX, no service, or it failed",
}


def command_line_page() -> bytes:
    """`docs/reference/command-line.md`: exit codes and the help of every command."""
    lines = ["# Command line", "", "Written by `./dev generate` from the program.", "", "## Exit codes", ""]
    lines += ["| code | meaning |", "|---|---|"]
    lines += [f"| {code.value} | {_MEANINGS[code]} |" for code in ExitCode]
    for name, (module, attribute, summary) in COMMANDS.items():
        command: click.Command = getattr(importlib.import_module(module), attribute)
        lines += ["", f"## `confcom {name}`", "", summary]
        lines += _help(command, f"confcom {name}")
        if isinstance(command, click.Group):
            for child in command.list_commands(click.Context(command)):
                found = command.get_command(click.Context(command), child)
                if found is not None:
                    lines += ["", f"### `confcom {name} {child}`"]
                    lines += _help(found, f"confcom {name} {child}")
    return ("\n".join(lines) + "\n").encode()


def errors_page() -> bytes:
    """`docs/reference/errors.md`: every code, its exit code and its advice."""
    lines = ["# Errors", "", "Written by `./dev generate` from `src/confcom/errors.py`.", ""]
    lines += [
        "An error has a message (what failed), a code (stable, for machines) and an advice (what to do). The advice",
        "below is the general one; most errors bring a more precise one.",
        "",
        "| code | exit | meaning | advice |",
        "|---|---|---|---|",
    ]
    for kind in _family(errors.ConfcomError):
        number = exit_code(kind.__new__(kind)).value
        meaning = (kind.__doc__ or "").split("\n")[0].replace("|", "\\|")
        lines.append(f"| `{kind.code}` | {number} | {meaning} | {kind.default_advice} |")
    return ("\n".join(lines) + "\n").encode()


def admission_page() -> bytes:
    """`docs/reference/admission.md`: every sentence that a pod is refused with or warned of, with its code."""
    lines = [
        "# What pods are refused for",
        "",
        "Written by `./dev generate` from `src/confcom/admission/findings.py`.",
        "",
    ]
    lines += [
        "The [admission webhook](webhook.md) answers with these sentences, and `confcom check-pods` prints them. Codes",
        "are stable, for machines: they are in the log and in the metrics. A pod may be refused for several reasons.",
    ]
    for title, sentences in (("Refusals", REFUSALS), ("Warnings", WARNINGS)):
        lines += ["", f"## {title}", "", "| code | sentence |", "|---|---|"]
        for code, sentence in sentences.items():
            shown = re.sub(r"{([a-z_]+)}", lambda found: f"*{found[1].replace('_', ' ')}*", sentence)
            lines.append(f"| `{code}` | {shown} |")
    lines += ["", "`malformed-pod` is for what is no pod by its form: the sentence names the place.", ""]
    return "\n".join(lines).encode()


def policy_schema_page() -> bytes:
    """`docs/reference/policy.schema.json`."""
    return (json.dumps(policy_schema(), indent=2) + "\n").encode()


def _family(kind: type[errors.ConfcomError]) -> list[type[errors.ConfcomError]]:
    children = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind, *(member for child in children for member in _family(child))]


def _help(command: click.Command, path: str) -> list[str]:
    # A fixed width, so that the page does not depend on the terminal.
    context = click.Context(
        command,
        info_name=path,
        max_content_width=110,
        terminal_width=110,
        help_option_names=list(root.context_settings["help_option_names"]),
    )
    return ["", "```text", command.get_help(context), "```"]
