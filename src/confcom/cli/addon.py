"""`confcom addon`: the add-on of a cluster, as `az aks addon` has it. Commands are imported when they are called."""

from __future__ import annotations

import click

from confcom.cli.lazy_group import AzGroup, CommandTable, lazy_group

COMMANDS: CommandTable = {
    "enable": ("confcom.cli.addon_change", "enable", "Enable the add-on; what it does not mention stays as it was."),
    "update": ("confcom.cli.addon_change", "update", "Change the enabled add-on; the rest stays as it was."),
    "disable": ("confcom.cli.addon_change", "disable", "Disable it; --purge forgets its settings too."),
    "show": ("confcom.cli.addon_change", "show", "Show the settings of the enabled add-on."),
    "list": ("confcom.cli.addon_change", "list_", "Show which add-ons there are, and whether they are enabled."),
    "list-available": ("confcom.cli.addon_change", "list_available", "Show which add-ons could be enabled."),
    "manifests": ("confcom.cli.addon_change", "manifests", "Write the add-on as YAML, for other tools to apply."),
}


@click.group(cls=lazy_group(COMMANDS, AzGroup))
def addon() -> None:
    """Enable, update and disable the confcom add-on of a Kubernetes cluster, and look at it.

    The cluster is that of $KUBECONFIG or ~/.kube/config, in its current context, unless --kubeconfig and --context
    say otherwise.
    """
