"""`confcom doctor`: why something does not work here, and what to do."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from confcom.cli.options import FILE, output_options, parse_time, print_json, printable, trust_roots
from confcom.errors import ExitCode

if TYPE_CHECKING:
    from confcom.doctor.checks import Diagnosis

_MARKS = {"ok": ("ok     ", "green"), "warning": ("warning", "yellow"), "problem": ("PROBLEM", "red")}
_ROOT = Path("/")


@click.command()
@click.option(
    "--role",
    type=click.Choice(["application", "quote-helper"]),
    default="application",
    show_default=True,
    help="What this process is, or would be: the quote helper needs more than its clients.",
)
@click.option("--socket", metavar="PATH", default="/var/run/aesmd/aesm.socket", show_default=True, help="Quote helper.")
@click.option(
    "--machine", "simulated_machine", metavar="FILE", type=FILE, help="Simulated machine.  [default: what the node has]"
)
@click.option("--collateral", metavar="PATH", type=FILE, help="Also look at this collateral (folder or file).")
@click.option("--trust-root", metavar="PEM", multiple=True, help="Its root, if that is not Intel's. Repeatable.")
@click.option("--at", metavar="RFC3339", help="Judge it as of this time. Default: now.")
@click.option(
    "--host",
    metavar="FOLDER",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=_ROOT,
    help="The root of another host, mounted here.",
)
@output_options
def doctor(
    role: str,
    socket: str,
    simulated_machine: Path | None,
    collateral: Path | None,
    trust_root: tuple[str, ...],
    at: str | None,
    host: Path,
    as_json: bool,
) -> int:
    """Find out why something does not work on this node or in this pod, and say what to do.

    Looks at processor, SGX devices and their permissions, enclave memory, Intel's libraries and settings, the mode that
    an application would take here, and the quote helper. What matters comes first. Changes nothing. Exit 0: no
    problems; 7: there are some.
    """
    from confcom.devices.host import Host
    from confcom.doctor.checks import Diagnosis, Role, Subject, node_findings, simulated_platform
    from confcom.doctor.quoting_checks import (
        aesm_findings,
        collateral_finding,
        mode_findings,
        quoting_findings,
        service_findings,
    )

    # Under another root an ordinary file may stand for a device: a simulated node's folder, or a test's.
    place = Host(host, stand_ins=host != _ROOT)
    simulated = simulated_platform(place, os.environ, Role(role), simulated_machine)
    subject = Subject.of(place, os.environ, Role(role), simulated=simulated is not None)
    findings = chain(
        mode_findings(subject),
        () if simulated is None else (simulated,),
        node_findings(subject),
        quoting_findings(subject),
        service_findings(subject) if host == _ROOT else (),  # another host has another network
        aesm_findings(subject, socket),
        [collateral_finding(collateral, trust_roots(trust_root), parse_time(at, "--at"))],
    )
    diagnosis = Diagnosis.of(subject, findings)
    if as_json:
        print_json(diagnosis.as_dict())
    else:
        _show(diagnosis)
    return ExitCode.PLATFORM if diagnosis.problems else ExitCode.OK


def _show(diagnosis: Diagnosis) -> None:
    click.echo(f"{printable(diagnosis.headline)}\n")
    width = max(len(finding.id) for finding in diagnosis.findings)
    for finding in diagnosis.findings:
        word, colour = _MARKS[finding.level.value]
        mark = click.style(word, fg=colour, bold=word == "PROBLEM")
        click.echo(f"{mark}  {finding.id:{width}}  {printable(finding.found)}")
        if finding.advice:
            click.echo(f"{'':{width + 11}}what to do: {printable(finding.advice)}")
