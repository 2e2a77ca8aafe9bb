"""`confcom check-pods`: what the admission webhook would change or refuse, before manifests are applied."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from confcom.cli.options import STREAM, naming, print_json, printable, read_input
from confcom.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from confcom.admission.decision import Decision, FoundPod
    from confcom.admission.quote_modes import Wiring

MAX_MANIFEST = 4 << 20
"""Bytes of a file."""
_IMAGE = re.compile(r"\s{0,200}(?:-\s{1,20})?image:\s{0,20}([^\s:]{1,200}):\s{1,20}(\S{1,200})\s{0,20}")


def read_manifests(path: Path) -> list[Mapping[str, Any]]:
    """The documents of a YAML or JSON file, `-` for standard input; `FormatError` says where it is wrong."""
    from confcom.formats.arguments import without_bom
    from confcom.formats.yaml_text import read_yaml

    text = without_bom(read_input(path, MAX_MANIFEST, "manifest")).decode("utf-8", "replace")
    found = read_yaml(text, source=str(path), advise=_advice)
    return [document for document in found if isinstance(document, dict)]


def _advice(line: str) -> str | None:
    image = _IMAGE.fullmatch(line)
    return None if image is None else f"The image has a blank in it. Write {image[1]}:{image[2]}."


@click.command("check-pods")
@click.argument("files", nargs=-1, required=True, type=STREAM, metavar="FILE…")
@click.option(
    "--namespace", "-n", metavar="NAME", default="default", show_default=True, help="Where manifests name none."
)
@click.option("--provision-grants", default="", metavar="NS/ACCOUNT,…", help="Who may hold the provisioning device.")
@click.option("--largest-node", type=click.IntRange(0), metavar="MIB", help="EPC of the node that has most.")
@click.option(
    "--wiring",
    type=click.Choice(["plugin", "host-path"]),
    default="plugin",
    show_default=True,
    help="What brings the quote helper's folder into containers.",
)
@click.option(
    "--output", "-o", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the result."
)
def check_pods(
    files: tuple[Path, ...],
    namespace: str,
    provision_grants: str,
    largest_node: int | None,
    wiring: Wiring,
    output: str,
) -> None:
    """Show what the admission webhook would change or refuse in the pods of manifests. Asks no cluster.

    Pods are found in Pods, Jobs, CronJobs, Deployments and the like. The exit code is 5 if one would be refused.
    """
    from confcom.admission.decision import AdmissionContext, check_pod, find_pods
    from confcom.admission.pod_json import Grants

    grants = Grants.parse(provision_grants)
    checks = []
    for path in files:
        for document in read_manifests(path):
            metadata = document.get("metadata")
            name = metadata.get("name") if isinstance(metadata, dict) else None
            with naming(f"{path}, {str(name or 'an object without a name')[:100]}"):
                for found in find_pods(document):
                    context = AdmissionContext(
                        namespace=found.namespace or namespace, grants=grants, largest_node=largest_node, wiring=wiring
                    )
                    checks.append((path, found, check_pod(found.pod, context, found.around)))
    if not checks:
        raise ConfigError("there is no pod in what was given", advice="Name files with a Pod, a Job or a Deployment.")
    if output == "json":
        print_json([_as_dict(*check) for check in checks])
    else:
        for check in checks:
            _print(*check)
    if any(decision.refusals for _, _, decision in checks):
        click.get_current_context().exit(ExitCode.REFUSED)


def _as_dict(path: Path, found: FoundPod, decision: Decision) -> dict[str, Any]:
    from confcom.protocols.admission import difference

    return {
        "file": str(path),
        "kind": found.kind,
        "name": found.name,
        "allowed": not decision.refusals,
        "epc_mib": decision.epc,
        "refusals": [finding._asdict() for finding in decision.refusals],
        "warnings": [finding._asdict() for finding in decision.warnings],
        "patch": difference(found.pod, decision.pod),
    }


def _print(path: Path, found: FoundPod, decision: Decision) -> None:
    from confcom.protocols.admission import difference

    changes = len(difference(found.pod, decision.pod))
    state = "refused" if decision.refusals else "completed" if changes else "as it is"
    epc = f", {decision.epc} MiB of EPC" if decision.epc else ""
    click.echo(printable(f"{path}: {found.kind} {found.name or '(no name)'}: {state}{epc}"))
    for finding in decision.refusals:
        click.echo(f"  refused   {finding.sentence} [{finding.code}]")
    for finding in decision.warnings:
        click.echo(f"  warning   {finding.sentence} [{finding.code}]")
