"""`confcom addon`: the add-on of a cluster, with the words of `az aks addon`. Declares commands and options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from confcom.cli.options import STREAM, kubeconfig_options
from confcom.cli.root import AzGroup
from confcom.errors import ConfigError

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

ADDON, API_KEY = "confcom", "ACCSGXDevicePlugin"
FORMATS = ("json", "yaml", "table", "tsv", "none")
DESCRIPTION = "SGX device plugin and admission webhook; with --enable-sgxquotehelper also the SGX quote helper."


@click.group(cls=AzGroup)
def addon() -> None:
    """Enable, update and disable the confcom add-on of a Kubernetes cluster, and look at it.

    The cluster is that of $KUBECONFIG or ~/.kube/config, in its current context, unless --kubeconfig and --context
    say otherwise.
    """


def _applied(command: Command, *decorators: Decorator) -> Command:
    """The command with these decorators, the first one outermost, as if they stood above it."""
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def _refuse_query(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    del ctx, parameter
    if value is not None:
        raise ConfigError("--query is az's", advice="Take the value out of the JSON, for example by `| jq`.")


def _check_addon(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    del ctx, parameter
    if "," in value:
        raise ConfigError("Please pick only 1 addon.", advice=f"This command knows one: {ADDON}.")
    if value.lower() in (name.lower() for name in (ADDON, API_KEY)):
        return ADDON
    import difflib  # here: the name is nearly always right

    close = difflib.get_close_matches(value.lower(), [ADDON], n=1, cutoff=0.4)
    meant = f" Did you mean {close}?" if close else ""
    raise ConfigError(
        f'The addon "{value}" is not a recognized addon option.{meant} Possible options: {ADDON}',
        advice="See `confcom addon list-available`.",
    )


def _target(command: Command) -> Command:
    """`--kubeconfig`, `--context`, and options of `az` that are refused or ignored."""
    return _applied(
        command,
        kubeconfig_options,
        click.option("--name", "-n", "cluster_name", metavar="NAME", help="Of az; ignored with a note."),
        click.option("--resource-group", "-g", metavar="NAME", help="Of az; ignored with a note."),
        click.option("--subscription", metavar="NAME", help="Of az; ignored with a note."),
        click.option("--query", expose_value=False, hidden=True, callback=_refuse_query),
    )


_addon = click.option(
    *("--addon", "--addons", "-a", "addon"),
    metavar="NAME",
    default=ADDON,
    show_default=True,
    expose_value=False,
    callback=_check_addon,
    help="The add-on.",
)
_output = click.option(
    "--output",
    "-o",
    type=click.Choice(FORMATS, case_sensitive=False),
    default="json",
    show_default=True,
    help="Form of the result.",
)


def _waiting(what: str, dry_run: str) -> Decorator:
    """`--dry-run`, `--no-wait` and `--timeout`."""
    return lambda command: _applied(
        command,
        click.option("--dry-run", is_flag=True, help=dry_run),
        click.option("--no-wait", is_flag=True, help=f"Do not wait until everything {what}."),
        _timeout(300),
    )


def _timeout(default: int) -> Decorator:
    limits = click.IntRange(1, 86400)
    return _text("--timeout", "SECONDS", "How long to wait.", type=limits, default=default, show_default=True)


def _text(name: str, metavar: str, text: str, **more: Any) -> Decorator:  # noqa: ANN401 - click's
    return click.option(name, metavar=metavar, help=text, **more)


def _switch(name: str, field: str, text: str) -> Decorator:
    return click.option(f"--enable-{name}/--disable-{name}", field, default=None, help=text)


def _choice(name: str, text: str, *words: str) -> Decorator:
    return click.option(name, type=click.Choice(words), help=text)


def _repeated(name: str, field: str, metavar: str, text: str) -> Decorator:
    return click.option(name, field, multiple=True, metavar=metavar, help=text)


_SETTINGS = {
    "Image": (
        _text("--image", "IMAGE", "Image of every component; '' is this version's own."),
        _choice("--image-pull-policy", "When to pull it.  [default: IfNotPresent]", "IfNotPresent", "Always", "Never"),
        _repeated("--image-pull-secret", "image_pull_secrets", "NAME", "To pull it. Repeatable."),
    ),
    "Nodes and EPC": (
        _choice("--platform", "Platform of the nodes.  [default: intel]", "intel", "simulated"),
        _text("--simulated-epc", "SIZE[,…]", "EPC per NUMA node of simulated nodes.  [default: 168Mi]"),
        _repeated("--node-selector", "node_selector", "KEY=VALUE", "Only nodes with it. Repeatable."),
        _repeated(
            "--toleration", "tolerations", "KEY[=VALUE][:EFFECT]", "Taint of SGX nodes. Repeatable; '*' is every taint."
        ),
        _choice("--publisher", "How EPC is published.  [default: auto]", "auto", "devices", "node-status", "dra"),
        _text("--epc-reserve-mib", "N", "MiB held back on every node.  [default: 0]", type=int),
        _text("--overcommit", "RATIO", "Requestable over true size.  [default: 1]", type=float),
        _text("--provision-grants", "NS/SA,…", "Who may hold the provisioning device; NS/* is all."),
    ),
    "Quote helper": (
        _switch("sgxquotehelper", "quote_helper", "The SGX quote helper on every SGX node.  [default: off]"),
        _text("--quote-helper-epc-mib", "N", "EPC of the quote helper.  [default: 4]", type=int),
        _text("--quote-helper-groups", "GID,…", "Groups of the nodes' SGX devices; it joins them."),
        _text("--quote-helper-seccomp", "PROFILE", "Or localhost/PATH.  [default: runtime/default]"),
        _text("--expected-signers", "HEX,…", "MRSIGNERs; other quotes are counted.  [default: any]"),
    ),
    "Admission webhook": (
        _switch("webhook", "webhook", "The admission webhook.  [default: on]"),
        _text("--webhook-replicas", "N", "Its pods.  [default: 2]", type=int),
        _choice("--webhook-namespaces", "Namespaces that it serves.  [default: all]", "all", "labelled"),
        _text("--webhook-client-ca", "NAME", "ConfigMap with its clients' authority; '' is none."),
        _choice("--oversized", "Pods that want more EPC than any node has.  [default: refuse]", "refuse", "warn"),
        _text("--api-ports", "PORT,…", "Of the API server, for network policies.  [default: 443,6443]"),
        _text("--api-addresses", "CIDR,…", "From which it asks the webhook.  [default: any]"),
    ),
    "Collateral service": (
        _switch("collateral", "collateral", "The collateral service.  [default: off]"),
        _text("--collateral-upstream", "NAME|URL", "The source it asks.  [default: intel]"),
        _repeated("--collateral-fmspc", "collateral_fmspcs", "HEX", "FMSPC to keep fresh. Repeatable."),
        _repeated(
            "--collateral-tcb-set",
            "collateral_tcb_sets",
            "[GROUP=]SET",
            "Pin what its clients get: early or a number. Repeatable.",
        ),
        _text("--collateral-storage", "[CLASS/]SIZE", "A volume for its store; '' is none."),
        _text("--collateral-tls-secret", "NAME", "Its certificate; '' has it make one."),
        _text("--collateral-database", "NAME", "Secret with its PostgreSQL's address; '' is none."),
        _text("--collateral-database-port", "PORT", "Of the PostgreSQL.  [default: 5432]", type=int),
        _text("--collateral-replicas", "N", "Its pods, with a PostgreSQL.  [default: 2]", type=int),
        _text("--collateral-url", "URL", "Instead: the PCCS that quote helpers ask; '' is the image's."),
    ),
    "Attestation service": (
        _switch("attestation-service", "attestation", "The attestation service.  [default: off]"),
        _text("--attestation-url", "URL", "URL of its clients, issuer of tokens; '' is its Service's."),
        _text("--attestation-storage", "[CLASS/]SIZE", "Volume of its state; '' is none.  [default: 1Gi]"),
        _text("--attestation-tls-secret", "NAME", "Its certificate; '' has it make one."),
        _text(
            "--attestation-administrators",
            "NAME",
            "Secret with administrators.toml and the files it names.  [default: confcom-attestation-admin]",
        ),
        _text("--attestation-keys", "URI", "PKCS#11 token with its keys; '' is files on the volume."),
        _text("--attestation-pin-secret", "NAME", "Secret with the PIN of that token, under pin."),
        _text("--attestation-database", "NAME", "Secret with its PostgreSQL's address; '' is none."),
        _text("--attestation-database-port", "PORT", "Of the PostgreSQL.  [default: 5432]", type=int),
        _text("--attestation-replicas", "N", "Its pods, with a PostgreSQL.  [default: 2]", type=int),
    ),
    "Certificate signer": (
        _switch("attested-certificates", "attested_certificates", "The signer of pods' certificates.  [default: off]"),
        _text("--approve-for", "SIGNER,…", "It approves for these too, such as cert-manager's issuers."),
    ),
    "Metrics and autoscaling": (
        _switch("metrics", "metrics", "The exporter of EPC use.  [default: off]"),
        _switch(
            "autoscaling", "autoscaling", "The metrics API, for HPA on EPC; with --enable-metrics.  [default: off]"
        ),
        _switch(
            "epc-enforcement", "epc_enforcement", "It limits EPC by cgroups, where the kernel can.  [default: off]"
        ),
        _choice(
            "--monitoring",
            "How Prometheus finds the components.  [default: auto]",
            "auto",
            "operator",
            "annotations",
            "off",
        ),
        _repeated(
            "--monitoring-label",
            "monitoring_labels",
            "KEY=VALUE",
            "By which a Prometheus selects monitors. Repeatable.",
        ),
    ),
}


_SUBJECTS = {
    option.name: subject
    for subject, options in _SETTINGS.items()
    for option in click.command(_applied(lambda: None, *options)).params
}


class _SettingsCommand(click.Command):
    """A command with one option per setting. Its help lists them by subject, after its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each subject under its name."""
        shown = [(option, record) for option in self.get_params(ctx) if (record := option.get_help_record(ctx))]
        for subject in ("Options", *_SETTINGS):
            with formatter.section(subject):
                formatter.write_dl(
                    [record for option, record in shown if _SUBJECTS.get(option.name, "Options") == subject]
                )


def setting_options(command: Command) -> Command:
    """One option per setting."""
    return _applied(command, *(option for options in _SETTINGS.values() for option in options))


def _run(name: str, options: dict[str, Any]) -> None:
    from confcom.cli import addon_change

    getattr(addon_change, name)(**options)


@addon.command(cls=_SettingsCommand, short_help="Enable the add-on; what it does not mention stays as it was.")
@_addon
@setting_options
@_waiting("runs", "Show what would change, and change nothing.")
@_output
@_target
def enable(**options: Any) -> None:  # noqa: ANN401 - by name
    """Enable the add-on, and wait until it runs on every SGX node.

    An add-on that is enabled already is changed as by `update`; one that was disabled comes back with its settings,
    unless it was purged.
    """
    _run("enable", options)


@addon.command(cls=_SettingsCommand, short_help="Change the enabled add-on; the rest stays as it was.")
@_addon
@setting_options
@_waiting("runs", "Show what would change, and change nothing.")
@_output
@_target
def update(**options: Any) -> None:  # noqa: ANN401 - by name
    """Change settings of the enabled add-on. What is not mentioned stays as it is.

    Without any, bring everything to this version of the program.
    """
    _run("update", options)


@addon.command(short_help="Disable it; --purge forgets its settings too.")
@_addon
@click.option("--purge", is_flag=True, help="Forget the settings and the simulated world too; leave nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask, even if pods use the add-on.")
@_waiting("is gone", "Show what would be deleted, and delete nothing.")
@_output
@_target
def disable(**options: Any) -> None:  # noqa: ANN401 - by name
    """Disable the add-on. Says first which pods use it.

    Running pods keep their devices; new ones that ask for EPC stay Pending, and quotes from the helper end. The
    settings are remembered for the next enable, unless they are purged.
    """
    _run("disable", options)


@addon.command(short_help="Show the settings of the enabled add-on.")
@_addon
@_output
@_target
def show(**options: Any) -> None:  # noqa: ANN401 - by name
    """Show the settings of the enabled add-on, and how many pods of each component serve."""
    _run("show", options)


@addon.command("list", short_help="Show which add-ons there are, and whether they are enabled.")
@_output
@_target
def list_(**options: Any) -> None:  # noqa: ANN401 - by name
    """Show which add-ons there are, and whether they are enabled in this cluster."""
    _run("list_", options)


@addon.command(short_help="Show which add-ons could be enabled.")
@_output
def list_available(**options: Any) -> None:  # noqa: ANN401 - by name
    """Show which add-ons could be enabled. Asks no cluster."""
    _run("list_available", options)


@addon.command(cls=_SettingsCommand, short_help="Write the add-on as YAML, for other tools to apply.")
@_addon
@setting_options
@click.option(
    "--simulated-world",
    metavar="FILE",
    type=STREAM,
    help="Machine file of the world of --platform simulated, to be written as a Secret.",
)
def manifests(**options: Any) -> None:  # noqa: ANN401 - by name
    """Write the add-on as YAML, in an order in which it can be applied. Asks no cluster.

    For other tools: `confcom addon manifests | kubectl apply --server-side -f -`. Each output has a new CA of the
    webhook with its key: keep it like a password, and apply it as a whole.
    """
    _run("manifests", options)


@addon.command(short_help="For the Helm chart: clean nodes before an uninstall.")
@_timeout(200)
@kubeconfig_options
def clean_nodes(**options: Any) -> None:  # noqa: ANN401 - by name
    """End the quote helper and the device plugin, and remove what they wrote on nodes.

    The Helm chart runs this before an uninstall, with the rights for this alone.
    """
    _run("clean_nodes", options)


@addon.command(short_help="For the Helm chart: publish a simulated world's root.")
@click.option("--simulated-world", metavar="FILE", type=STREAM, required=True, help="Machine file of the world.")
@kubeconfig_options
def publish_root(**options: Any) -> None:  # noqa: ANN401 - by name
    """Write the root of a simulated world to ConfigMap confcom-simulated-root, after an installation by Helm."""
    _run("publish_root", options)
