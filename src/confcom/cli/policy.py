"""`confcom policy`: policy files, made from what shall be accepted."""

from __future__ import annotations

from pathlib import Path

import click

from confcom.cli.inputs import read_input
from confcom.cli.options import STREAM
from confcom.cli.outputs import write_file


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
