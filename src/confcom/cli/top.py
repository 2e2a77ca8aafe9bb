"""`confcom top`: EPC and quotes per node and pod of a cluster."""

from __future__ import annotations

from typing import Any

import click

from confcom.cli.daemons import needing
from confcom.cli.options import kubeconfig_options

ORDERS = ("name", "node", "requested", "mapped", "in-use", "quotes")


@click.command()
@click.option("-n", "--namespace", metavar="NAME", help="Show the pods of this namespace only.")
@click.option("--filter", "pattern", metavar="GLOB", help="Pods of this name, NAMESPACE/NAME or node, as in 'web-*'.")
@click.option("--sort", "order", type=click.Choice(ORDERS), default="name", show_default=True, help="Largest first.")
@click.option("--enclaves", is_flag=True, help="Show which enclaves had quotes, and for which pods.")
@click.option(
    "--watch/--once",
    default=None,
    help="Show it until Ctrl-C (exit code 130), or once. Where the output is no terminal it is shown once.",
)
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.5),
    default=3.0,
    show_default=True,
    help="Between two looks.",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="json: once, sizes in bytes.")
@click.option(
    "--addon-namespace", "addon", metavar="NAME", default="confcom-system", show_default=True, help="Of the add-on."
)
@kubeconfig_options
def top(**options: Any) -> int:  # noqa: ANN401 - `run` has the types
    """Show EPC (allocatable, requested, mapped, in use) and quotes per node and pod.

    Requests come from the API, use from the add-on's pods through the API server's proxy: a kubeconfig is all that is
    needed. What is not known is shown as '-' and listed below.
    """
    with needing("the cluster", "cli,kube"):
        from confcom.cli.top_view import run

        return run(**options)
