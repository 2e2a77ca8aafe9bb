"""`confcom top` and `confcom why`: EPC and quotes of a cluster's pods, and one pod explained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from confcom.cli.daemons import needing
from confcom.cli.options import Number, kubeconfig_options, now, print_json, printable
from confcom.errors import ExitCode

if TYPE_CHECKING:
    from confcom.addon.why import Explanation

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
    type=Number(0.5, 86400),
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


@click.command()
@click.argument("pod", metavar="POD")
@click.option("-n", "--namespace", metavar="NAME", help="Of the pod.  [default: the context's]")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="json: sizes in bytes.")
@kubeconfig_options
def why(pod: str, namespace: str | None, output: str, kubeconfig: str | None, context: str | None) -> int:
    """Explain a pod: NAME, or NAMESPACE/NAME.

    What it requested and what the webhook made of it, why it is Pending, its devices, the mode of its quotes, the
    quotes that it had and their TCB, its use of EPC, and what to do. A kubeconfig is all that is needed; what may not
    be read is listed. Exit 0: no problems; 7: there are some, or there is no such pod. Also: kubectl confcom why POD.
    """
    with needing("the cluster", "cli,kube"):
        import asyncio

        from confcom.addon.why import explain, gather, place_of
        from confcom.cluster.nodes import ClusterEpc

        async def work() -> Explanation:
            async with ClusterEpc.open(kubeconfig, context, "confcom-why") as cluster:
                return explain(await gather(cluster, *place_of(pod, namespace, cluster.namespace)), now())

        found = asyncio.run(work())
    if output == "json":
        print_json(found.as_dict())
    else:
        _show(found)
    return ExitCode.PLATFORM if found.problems else ExitCode.OK


def _show(found: Explanation) -> None:
    from confcom.protocols.epc import in_mib

    click.echo(f"{printable(found.headline)}\n")
    for check in found.checks:
        mark = click.style("ok     ", fg="green") if check.ok else click.style("PROBLEM", fg="red", bold=True)
        click.echo(f"{mark}  {check.id:10}  {printable(check.found)}")
        if not check.ok:
            click.echo(f"{'':21}what to do: {printable(check.advice)}")
    if found.nodes:
        click.echo(f"\n{'NODE':30}  {'EPC FOR PODS':>14}  {'FREE':>14}")
    for node in found.nodes:
        sizes = "  ".join(f"{'-' if size is None else in_mib(size):>14}" for size in (node.offered, node.free))
        click.echo(f"{printable(node.name):30}  {sizes}")
    if found.missing:
        click.echo("\nnot known:")
    for clause in found.missing:
        click.echo(f"  {printable(clause)}")
