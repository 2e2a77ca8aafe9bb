"""Options of the add-on's commands, and the connection to the cluster that they name."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar

import click

from confcom.addon.changes import Addon
from confcom.cli.inputs import printable
from confcom.cluster.objects import ClusterObjects
from confcom.errors import ConfigError
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.addon_state import API_KEY
from confcom.manifests.objects import ADDON, MANAGER

VERSION = version("confcom")
_Result = TypeVar("_Result")
_Command = Callable[..., Any]


class Target(NamedTuple):
    """The cluster that a command is for."""

    kubeconfig: str | None
    context: str | None


def target_options(command: _Command) -> _Command:
    """`--kubeconfig`, `--context`, and what is left over of a command line for `az`; gives `target`."""
    for option in reversed(
        (
            click.option("--kubeconfig", metavar="FILE", help="Credentials.  [default: $KUBECONFIG, ~/.kube/config]"),
            click.option("--context", metavar="NAME", help="Context of the kubeconfig.  [default: its current one]"),
            click.option("--name", "-n", "cluster_name", metavar="NAME", help="Of az; ignored with a note."),
            click.option("--resource-group", "-g", metavar="NAME", help="Of az; ignored with a note."),
            click.option("--subscription", metavar="NAME", help="Of az; ignored with a note."),
            click.option("--query", expose_value=False, hidden=True, callback=_refuse_query),
        )
    ):
        command = option(command)
    return command


def addon_option(command: _Command) -> _Command:
    """`--addon`; az's older commands call it `--addons`."""
    return click.option(
        "--addon",
        "--addons",
        "-a",
        "addon",
        default=ADDON,
        show_default=True,
        callback=_check_addon,
        help="The add-on.",
    )(command)


def target_of(flags: dict[str, Any]) -> Target:
    """Take the target's options out of a command's."""
    of_az = {"--name": "cluster_name", "--resource-group": "resource_group", "--subscription": "subscription"}
    given = [option for option, name in of_az.items() if flags.pop(name, None) is not None]
    found = Target(flags.pop("kubeconfig"), flags.pop("context"))
    if given:
        note(f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} az's: the cluster is that of the kubeconfig")
    return found


def note(line: str) -> None:
    """A line for the person who waits; standard output is for results."""
    click.echo(printable(line), err=True)


def with_addon(target: Target, work: Callable[[Addon], Awaitable[_Result]]) -> _Result:
    """Connect, do the work, and disconnect."""

    async def run() -> _Result:
        async with ClusterObjects.open(target.kubeconfig, target.context, MANAGER) as cluster:
            now = datetime.now(UTC)  # noqa: TID251 - the command line is where the clock is read
            return await work(Addon(cluster, version=VERSION, now=now, report=note))

    return asyncio.run(run())


def _refuse_query(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    del ctx, parameter
    if value is not None:
        raise ConfigError("--query is az's", advice="Take the value out of the JSON, for example by `| jq`.")


def _check_addon(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    del ctx, parameter
    names = (ADDON, API_KEY)
    if "," in value:
        raise ConfigError("Please pick only 1 addon.", advice=f"This command knows one: {ADDON}.")
    if value.lower() in (name.lower() for name in names):
        return ADDON
    close = difflib.get_close_matches(value.lower(), [ADDON], n=1, cutoff=0.4)
    meant = f" Did you mean {close}?" if close else ""
    raise ConfigError(
        f'The addon "{value}" is not a recognized addon option.{meant} Possible options: {ADDON}',
        advice="See `confcom addon list-available`.",
    )


# --- The add-on's settings as options. What is not given is None, and means: as it was --------------------------------


_LISTS = ("provision_grants", "api_ports", "api_addresses", "quote_helper_groups")
"""Settings that are given as one word with commas."""


def _switch(name: str, field: str, text: str) -> Callable[[_Command], _Command]:
    return click.option(f"--enable-{name}/--disable-{name}", field, default=None, help=text)


def _choice(name: str, text: str, *words: str) -> Callable[[_Command], _Command]:
    return click.option(name, type=click.Choice(words), help=text)


_OPTIONS = (
    _switch("sgxquotehelper", "quote_helper", "The SGX quote helper on every SGX node.  [default: off]"),
    _choice("--platform", "Whose enclaves.  [default: intel]", "intel", "simulated"),
    click.option("--simulated-epc", metavar="SIZE[,…]", help="EPC per NUMA node of simulated nodes.  [default: 168Mi]"),
    click.option("--image", metavar="IMAGE", help="Image of every component; '' is this version's own."),
    _choice("--image-pull-policy", "When to pull it.  [default: IfNotPresent]", "IfNotPresent", "Always", "Never"),
    click.option(
        "--image-pull-secret",
        "image_pull_secrets",
        multiple=True,
        metavar="NAME",
        help="To pull it. Repeatable.",
    ),
    _choice("--publisher", "How EPC is published.  [default: auto]", "auto", "devices", "node-status", "dra"),
    click.option("--epc-reserve-mib", type=int, metavar="N", help="MiB held back on every node.  [default: 0]"),
    click.option("--overcommit", type=float, metavar="RATIO", help="Requestable beside true size.  [default: 1]"),
    click.option("--quote-helper-epc-mib", type=int, metavar="N", help="EPC of the quote helper.  [default: 4]"),
    click.option("--quote-helper-groups", metavar="GID,…", help="Groups of the nodes' SGX devices; it joins them."),
    click.option("--quote-helper-seccomp", metavar="PROFILE", help="Or localhost/PATH.  [default: runtime/default]"),
    click.option("--provision-grants", metavar="NS/SA,…", help="Who may hold the provisioning device; NS/* is all."),
    click.option("--node-selector", multiple=True, metavar="KEY=VALUE", help="Only nodes with it. Repeatable."),
    click.option(
        "--toleration",
        "tolerations",
        multiple=True,
        metavar="KEY[=VALUE][:EFFECT]",
        help="Taint of SGX nodes. Repeatable; '*' is every taint.",
    ),
    _switch("webhook", "webhook", "The admission webhook.  [default: on]"),
    click.option("--webhook-replicas", type=int, metavar="N", help="Its pods.  [default: 2]"),
    _choice("--webhook-namespaces", "Whose pods it is for.  [default: all]", "all", "labelled"),
    click.option("--webhook-client-ca", metavar="NAME", help="ConfigMap with its clients' authority; '' is none."),
    _choice("--oversized", "Pods that want more EPC than any node has.  [default: refuse]", "refuse", "warn"),
    click.option("--api-ports", metavar="PORT,…", help="Of the API server, for network policies.  [default: 443,6443]"),
    click.option("--api-addresses", metavar="CIDR,…", help="From which it asks the webhook.  [default: any]"),
    _switch("collateral", "collateral", "The collateral service.  [default: off]"),
    click.option("--collateral-upstream", metavar="NAME|URL", help="Whom it asks.  [default: intel]"),
    click.option("--collateral-fmspc", "collateral_fmspcs", multiple=True, metavar="HEX", help="Kept from the start."),
    click.option("--collateral-storage", metavar="[CLASS/]SIZE", help="A volume for its store; '' is none."),
    click.option("--collateral-tls-secret", metavar="NAME", help="Its certificate; '' has it make one."),
    click.option("--collateral-url", metavar="URL", help="Else: the PCCS that quote helpers ask; '' is the image's."),
    _switch("metrics", "metrics", "The exporter of EPC use.  [default: off]"),
    _switch("epc-enforcement", "epc_enforcement", "Let it limit EPC by cgroups, where the kernel can.  [default: off]"),
)


def setting_options(command: _Command) -> _Command:
    """One option per setting."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def changes_of(flags: dict[str, Any]) -> dict[str, Any]:
    """Take the settings that were given out of a command's options; an empty word clears a list."""
    found: dict[str, Any] = {}
    for field in AddonConfig.__struct_fields__:
        value = flags.pop(field, None)
        if isinstance(value, tuple) and value:
            found[field] = [word for word in value if word]
        elif value is not None and value != ():
            found[field] = _words(value) if field in _LISTS else value
    return found


def _words(text: str) -> list[str]:
    return [word for part in text.split(",") if (word := part.strip())]
