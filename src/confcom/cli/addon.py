"""`confcom addon`: the add-on of a cluster, as `az aks addon` has it. Commands are imported when they are called."""

from __future__ import annotations

import importlib

import click

# name → (module, attribute, one line of help).
COMMANDS: dict[str, tuple[str, str, str]] = {
    "enable": ("confcom.cli.addon_change", "enable", "Enable the add-on; what it does not mention stays as it was."),
    "update": ("confcom.cli.addon_change", "update", "Change the enabled add-on; the rest stays as it was."),
    "disable": ("confcom.cli.addon_disable", "disable", "Disable it; --purge forgets its settings too."),
    "show": ("confcom.cli.addon_show", "show", "Show the settings of the enabled add-on."),
    "list": ("confcom.cli.addon_show", "list_", "Show which add-ons there are, and whether they are enabled."),
    "list-available": ("confcom.cli.addon_show", "list_available", "Show which add-ons could be enabled."),
    "manifests": ("confcom.cli.addon_manifests", "manifests", "Write the add-on as YAML, for other tools to apply."),
}


class AddonGroup(click.Group):
    """The commands of the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=AddonGroup)
def addon() -> None:
    """Enable, update and disable the confcom add-on of a Kubernetes cluster, and look at it.

    The cluster is that of $KUBECONFIG or ~/.kube/config, in its current context, unless --kubeconfig and --context
    say otherwise.
    """
