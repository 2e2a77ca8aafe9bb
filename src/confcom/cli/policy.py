"""`confcom policy`: policy files, made from what shall be accepted."""

from __future__ import annotations

from pathlib import Path

import click

from confcom.cli.inputs import read_input
from confcom.cli.options import STREAM, json_option
from confcom.cli.outputs import print_json, printable, write_file


@click.group()
def policy() -> None:
    """Write policies: what a relying party accepts."""


@policy.command("from")
@click.argument("enclave", type=STREAM)
@click.option("-o", "--output", metavar="FILE", type=STREAM, help="Write the policy there. Default: standard output.")
def from_enclave(enclave: Path, output: Path | None) -> None:
    """Write the policy that accepts exactly the signed enclave file ENCLAVE.

    Reads the SIGSTRUCT: who signed (MRSIGNER), which build (MRENCLAVE), product and security version. Its signature is
    checked; whether you trust the signer is for you to decide. For `confcom verify --policy`.
    """
    # Here: cryptography is slow to load, and --help does without.
    from confcom.appraisal.enclave_file import MAX_ENCLAVE, policy_text, read_signed_enclave

    signed = read_signed_enclave(read_input(enclave, MAX_ENCLAVE, "enclave"))
    if output is None:
        click.echo(policy_text(signed), nl=False)
    else:
        write_file(output, policy_text(signed).encode(), "policy")


@policy.command()
@click.argument("file", type=STREAM, metavar="POLICY")
@click.option("-o", "--output", metavar="FILE", type=STREAM, help="Write the policy there with every known repair.")
@json_option
def lint(file: Path, output: Path | None, as_json: bool) -> int:
    """Check POLICY, text in Azure's policy language, and list every departure from the grammar with its repair."""
    from confcom.cli.exit_codes import ExitCode
    from confcom.tokens.policy_language import MAX_TEXT, PolicyTextError, lint_policy, repaired

    text = read_input(file, 4 * MAX_TEXT, "policy").decode("utf-8", "replace")
    try:
        _, found = lint_policy(text)
    except PolicyTextError as error:
        found = (error.defect,)
    if output is not None:
        write_file(output, repaired(text, found).encode(), "policy")
    if as_json:
        print_json({"ok": not found, "defects": [defect.as_dict() for defect in found]})
    else:
        for defect in found:
            repair = "" if defect.replacement is None else f"; write {defect.replacement!r}"
            where = f"line {defect.place.line}, column {defect.place.column}"
            click.echo(printable(f"{where} ({defect.rule}), at {defect.symbol!r}: {defect.message}{repair}"))
        click.echo(f"{len(found)} to correct" if found else "the policy follows the grammar")
    return ExitCode.MALFORMED if found else ExitCode.OK
