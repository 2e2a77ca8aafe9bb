"""What `confcom addon` does: connect to the cluster, change or show the add-on, print the result."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import click

from confcom.addon.changes import Addon, next_ca, simulated_objects, to_enable, to_update
from confcom.cli.addon import ADDON, API_KEY, DESCRIPTION
from confcom.cli.addon_output import print_result, profile, show_changes, shown, yaml_documents
from confcom.cli.inputs import now, read_input
from confcom.cli.options import option_of
from confcom.cli.outputs import note
from confcom.cluster.objects import ClusterObjects
from confcom.errors import ConfigError
from confcom.manifests import attestation, collateral
from confcom.manifests.addon import issuers, render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.addon_state import AddonState
from confcom.manifests.objects import MANAGER
from confcom.manifests.simulated import WORLD_KEY, WORLD_SECRET

VERSION = version("confcom")
MAX_SHOWN = 20
"""Pods that are named one by one."""
MAX_MACHINE = 16 * 1024
"""Bytes of a machine file."""
_LISTS = ("provision_grants", "api_ports", "api_addresses", "quote_helper_groups", "expected_signers", "approve_for")
"""Settings that are given as one word with commas."""
_Result = TypeVar("_Result")


def with_addon(flags: dict[str, Any], work: Callable[[Addon], Awaitable[_Result]]) -> _Result:
    """Take the cluster's options out of the flags, connect, do the work, and disconnect."""
    of_az = {"--name": "cluster_name", "--resource-group": "resource_group", "--subscription": "subscription"}
    given = [option for option, name in of_az.items() if flags.pop(name, None) is not None]
    kubeconfig, context = flags.pop("kubeconfig"), flags.pop("context")
    if given:
        note(f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} az's: the cluster is that of the kubeconfig")

    async def run() -> _Result:
        async with ClusterObjects.open(kubeconfig, context, MANAGER) as cluster:
            return await work(Addon(cluster, version=VERSION, now=now(), report=note))

    return asyncio.run(run())


def changes_of(flags: dict[str, Any]) -> dict[str, Any]:
    """Take the settings that were given out of a command's options; an empty word clears a list.

    A wrong one is a `ConfigError` that names its option.
    """
    found: dict[str, Any] = {}
    for field in AddonConfig.__struct_fields__:
        value = flags.pop(field, None)
        if isinstance(value, tuple) and value:
            found[field] = [word for word in value if word]
        elif value is not None and value != ():
            found[field] = _words(value) if field in _LISTS else value
    AddonConfig.read(found, option_of)
    return found


def _words(text: str) -> list[str]:
    return [word for part in text.split(",") if (word := part.strip())]


def enable(**flags: Any) -> None:  # noqa: ANN401 - by name
    """Enable the add-on, and print its profile."""
    _change(flags, to_enable)


def update(**flags: Any) -> None:  # noqa: ANN401 - by name
    """Change the enabled add-on, and print its profile."""
    _change(flags, to_update)


def _change(flags: dict[str, Any], settle: Callable[[dict[str, Any], AddonState | None], AddonConfig]) -> None:
    changes = changes_of(flags)

    async def work(addon: Addon) -> AddonConfig:
        config = settle(changes, await addon.state())
        for remark in filter(None, (collateral.remark(config), attestation.remark(config))):
            note(remark)
        if flags["dry_run"]:
            show_changes(await addon.plan(config))
            return config
        return await addon.change(partial(settle, changes), wait=None if flags["no_wait"] else flags["timeout"])

    config = with_addon(flags, work)
    if flags["dry_run"]:
        note("dry run: nothing was changed")
    else:
        print_result(profile(AddonState(enabled=True, version=VERSION, config=config)), flags["output"])


def disable(**flags: Any) -> None:  # noqa: ANN401 - by name
    """Say which pods use the add-on, disable it, and print its profile."""

    async def work(addon: Addon) -> AddonState:
        await _say_who_uses_it(addon, ask=not (flags["yes"] or flags["dry_run"]), purge=flags["purge"])
        state = await addon.state()
        if flags["dry_run"]:
            show_changes(await addon.removals(purge=flags["purge"]))
            note("dry run: nothing was changed")
        elif not await addon.disable(purge=flags["purge"], wait=None if flags["no_wait"] else flags["timeout"]):
            note("the add-on is not installed: nothing to do")
        return AddonState(enabled=False, version=VERSION, config=AddonConfig() if state is None else state.config)

    state = with_addon(flags, work)
    if not flags["dry_run"]:
        kept = AddonState(enabled=False, version=VERSION, config=AddonConfig()) if flags["purge"] else state
        print_result(profile(kept), flags["output"])


async def _say_who_uses_it(addon: Addon, *, ask: bool, purge: bool) -> None:
    found = await addon.uses()
    for use in found[:MAX_SHOWN]:
        note(f"in use by {use}")
    if len(found) > MAX_SHOWN:
        note(f"… and {len(found) - MAX_SHOWN} more pods")
    if found and ask and purge and not sys.stdin.isatty():
        raise ConfigError(
            f"{len(found)} pods use the add-on, and there is no terminal to ask whether to purge it",
            advice="End them first, or say --yes.",
        )
    if found and ask and sys.stdin.isatty():
        click.confirm(f"{len(found)} pods use the add-on. Disable it?", abort=True, err=True)


def clean_nodes(timeout: float, **flags: Any) -> None:  # noqa: ANN401 - by name
    """End the node components and clean the nodes."""
    with_addon(flags, lambda addon: addon.clean_nodes(wait=timeout))


def publish_root(simulated_world: Path, **flags: Any) -> None:  # noqa: ANN401 - by name
    """Write the root of a simulated world to its ConfigMap."""
    content = read_input(simulated_world, MAX_MACHINE, "machine file")
    with_addon(flags, lambda addon: addon.publish_root(content))


def manifests(simulated_world: Path | None, **flags: Any) -> None:  # noqa: ANN401 - by name
    """Print every object as YAML."""
    config = AddonConfig().changed(changes_of(flags))
    cas = {issuer.secret: next_ca(issuer, {}, b"", now()) for issuer in issuers(config)}
    objects = render(config, version=VERSION, cas=cas)
    if config.platform == "simulated":
        if simulated_world is None:
            note(f"not included: Secret {WORLD_SECRET} with the key {WORLD_KEY}; name its content: --simulated-world")
        else:
            content = read_input(simulated_world, MAX_MACHINE, "machine file")
            objects[2:2] = simulated_objects(now(), machine_file=content)
    elif simulated_world is not None:
        raise ConfigError("--simulated-world is for --platform simulated")
    click.echo(yaml_documents(objects), nl=False)


def show(**flags: Any) -> None:  # noqa: ANN401 - by name
    """Print the settings and how many pods of each component serve."""
    found = with_addon(flags, Addon.show)
    print_result(shown(found), flags["output"])


def list_(**flags: Any) -> None:  # noqa: ANN401 - by name
    """Print the add-ons of this cluster."""
    state = with_addon(flags, Addon.state)
    enabled = state is not None and state.enabled
    print_result([{"name": ADDON, "api_key": API_KEY, "enabled": enabled}], flags["output"])


def list_available(output: str) -> None:
    """Print the add-ons that could be enabled."""
    print_result([{"name": ADDON, "description": DESCRIPTION}], output)
