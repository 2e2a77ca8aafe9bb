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
from confcom.cli.printable import printable
from confcom.cluster.objects import ClusterObjects
from confcom.errors import ConfigError
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
            return await work(Addon(cluster, version=VERSION, now=now, tell=note))

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
