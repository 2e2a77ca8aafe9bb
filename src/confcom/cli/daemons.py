"""The daemons as commands: settings from flags, environment and a file, then `serve` until a signal; their databases.

Options are declared without the daemons' packages, so that `--help` is quick; each command imports its daemon.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from confcom.cli.options import (
    FILE,
    NO_MACHINE_ADVICE,
    check_variables,
    given_by,
    is_quiet,
    note,
    now,
    option_of,
    prefix_of,
    read_input,
    trust_roots,
)
from confcom.errors import ConfigError

if TYPE_CHECKING:
    from confcom.database.engine import Database
    from confcom.database.revisions import Chain
    from confcom.devices.host import Host
    from confcom.pki.chain import TrustRoots
    from confcom.services.certificate_signer.certificate_signer import CertificateSignerConfig
    from confcom.services.collateral.cache import Upstream
    from confcom.services.collateral.collateral_service import CollateralServiceConfig
    from confcom.services.device_plugin.plugin import DevicePluginConfig
    from confcom.services.metrics.exporter import MetricsConfig
    from confcom.services.metrics_api.metrics_api import MetricsApiConfig
    from confcom.services.quote_helper.helper import QuoteHelperConfig
    from confcom.services.webhook.webhook import WebhookConfig

MAX_KEY = 4096
"""Bytes of the file with upstream's key."""
_Serve = Callable[[Any], None]


def daemon(
    service: str, config: str, *, extras: str, name: str = "", debug: str = "Log more.", check: bool = True
) -> Callable[[_Serve], click.Command]:
    """A command that reads its settings and calls the decorated function with them.

    `config` is the class of the settings as `module:class`, `extras` the extras of confcom that the daemon needs,
    `check` whether settings that contradict each other are refused even where they are only printed.
    """

    def command(serve: _Serve) -> click.Command:
        def run(config_file: Path | None, print_config: bool, verbose: bool, **flags: Any) -> None:  # noqa: ANN401 - settings
            with needing(f"the {service}", extras):
                from confcom.services.runtime.process import configure_logging, load, render

                module, _, kind = config.partition(":")
                given = {field: value or None if isinstance(value, tuple) else value for field, value in flags.items()}
                settings_type = getattr(import_module(module), kind)
                check_variables(os.environ, service, settings_type.__struct_fields__)
                settings: Any
                settings, place = load(
                    settings_type,
                    service=service,
                    file=config_file,
                    environment=os.environ,
                    flags=given,
                    option=option_of,
                )
                with given_by(place):
                    if check:
                        settings.check()
                    if print_config:
                        click.echo(render(settings))
                        return
                    configure_logging(verbose=verbose, quiet=is_quiet())
                    serve(settings)

        text = (
            f"Settings come from flags, from {prefix_of(service)}… in the environment, and from a file, in this order."
        )
        own = reversed(serve.__click_params__)  # type: ignore[attr-defined]  # where click.option leaves them
        shared = (
            click.Option(["--config", "config_file"], type=FILE, help="TOML file with settings."),
            click.Option(["--print-config"], is_flag=True, help="Print the settings in force as JSON, and stop."),
            click.Option(["-v", "--verbose", "--debug", "verbose"], is_flag=True, help=debug),
        )
        about = f"{inspect.cleandoc(serve.__doc__ or '')}\n\n{text}"
        return click.Command(name or service, callback=run, params=[*own, *shared], help=about)

    return command


@contextmanager
def needing(what: str, extras: str) -> Iterator[None]:
    """Within the block, a package that is missing becomes a sentence with the extras to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what} needs the package {error.name!r}", advice=f"Install confcom[{extras}].") from error


def run_until_stopped(
    serve: Callable[..., Coroutine[Any, Any, None]], *arguments: object, ready: str, mark: str = "", **settings: object
) -> None:
    """Run `serve` in an event loop of its own; a request to stop (`stop_on_signals`) sets its event `stop`.

    Once it has started, `ready` is printed, what `serve` says of itself (its URL), and `mark`.
    """
    import asyncio

    from confcom.services.runtime.process import Lossy, stop_on_signals

    def started(found: str = "") -> None:
        output = Lossy(sys.stdout)  # a full disk keeps no service from serving
        output.write(f"{ready}{found}{mark}\n")
        output.flush()

    async def run() -> None:
        await serve(*arguments, stop=stop_on_signals(), started=started, **settings)

    asyncio.run(run())


# The quote helper.


@daemon(
    "quote-helper",
    "confcom.services.quote_helper.helper:QuoteHelperConfig",
    extras="node",
    debug="Log more, silent connections too.",
    check=False,
)
@click.option("--socket", metavar="PATH", help="Where to listen.  [default: /var/run/aesmd/aesm.socket]")
@click.option("--platform", type=click.Choice(["auto", "intel", "simulated"]), help="What makes the quotes.")
@click.option("--machine", "simulated_machine", metavar="FILE", help="The machine file that the enclaves use too.")
@click.option("--replace", is_flag=True, default=None, help="Take the path over from a service that still answers.")
@click.option("--http", metavar="ADDRESS", help="Where /healthz, /readyz and /metrics are: HOST:PORT or unix:PATH.")
@click.option("--collateral", metavar="PATH", help="What verifies its quotes: a folder, collateral.json, or URL.")
@click.option("--collateral-ca", metavar="PEM", help="CAs of that service's TLS certificate.  [default: public ones]")
@click.option("--trust-root", metavar="PEM", help="The root that they chain to.  [default: Intel's]")
def quote_helper(config: QuoteHelperConfig) -> None:
    """Serve quotes to every enclave of this node, on the AESM socket that Intel's clients know."""
    import gc

    from confcom.services.quote_helper import helper
    from confcom.services.quote_helper.telemetry import RequestLog
    from confcom.services.runtime.process import restart_when_killed
    from confcom.wiring import choose_platform, open_platform, self_test_kit

    restarts = restart_when_killed() if config.when_killed == "restart" else 0
    machine = Path(config.simulated_machine) if config.simulated_machine is not None else None
    choice = choose_platform(config.platform, machine=machine)
    socket = Path(config.socket)
    memory = socket.with_name(f".{socket.name}.pck-certificates")
    platform = open_platform(config.platform, machine=machine, pck_memory=memory)
    kit = self_test_kit(
        choice,
        platform,
        machine=machine,
        collateral=config.collateral,
        collateral_ca=config.collateral_ca,
        trust_root=config.trust_root,
    )
    # On a terminal structlog writes columns; otherwise a thread of its own writes the lines.
    verbose = click.get_current_context().params["verbose"]
    log = None if sys.stderr.isatty() or is_quiet() else RequestLog(verbose=verbose)
    # What exists now stays: the collector need not walk through it again during a request.
    gc.collect()
    gc.freeze()

    try:
        run_until_stopped(
            helper.serve,
            platform,
            config,
            ready=f"quote helper: ready on {config.socket}, platform {choice.name} ({choice.reason})",
            log=log,
            quick=choice.name == "simulated",
            restarted=restarts > 0,
            self_test=kit,
        )
    finally:
        if log is not None:
            log.close()
        if callable(close := getattr(platform, "close", None)):  # a platform in a process of its own
            close()


# The device plugin.


@daemon("device-plugin", "confcom.services.device_plugin.plugin:DevicePluginConfig", extras="node,kube")
@click.option(
    "--platform", type=click.Choice(["auto", "intel", "simulated"]), help="Whether the node is real or simulated."
)
@click.option("--machine", "simulated_machine", metavar="FILE", help="Machine of the enclaves on a simulated node.")
@click.option("--simulated-epc", metavar="SIZE[,SIZE…]", help="EPC per simulated NUMA node.  [default: 168Mi]")
@click.option("--simulated-node", metavar="DIR", help="Folder of the simulated node.")
@click.option("--plugin-dir", metavar="DIR", help="The kubelet's.  [default: /var/lib/kubelet/device-plugins]")
@click.option("--registration", type=click.Choice(["socket", "registry"]), help="How to register with the kubelet.")
@click.option("--resource", metavar="NAME", help="The EPC resource, in MiB.")
@click.option("--publisher", type=click.Choice(["auto", "devices", "node-status", "dra"]), help="How EPC is published.")
@click.option("--unit-limit", type=int, metavar="N", help="Most devices of 1 MiB that `auto` makes.  [default: 3072]")
@click.option("--reserve-mib", type=int, metavar="N", help="MiB held back.  [default: 0]")
@click.option("--overcommit", type=float, metavar="RATIO", help="Requestable over true size.  [default: 1]")
@click.option("--provision-limit", type=int, metavar="N", help="Holders of the provisioning device.  [default: 0]")
@click.option("--provision-namespaces", metavar="NAME,…", help="Namespaces of the pods that may hold it.")
@click.option("--helper-folder", metavar="DIR", help="The quote helper's /var/run/aesmd, for containers that ask it.")
@click.option("--node-name", metavar="NAME", help="This node in the Kubernetes API, for node-status and dra.")
@click.option("--kubeconfig", metavar="FILE", help="Credentials for that; else the pod's service account.")
@click.option("--http", metavar="ADDRESS", help="Where /healthz, /readyz and /metrics are: HOST:PORT or unix:PATH.")
@click.option("--host-root", metavar="DIR", help="Where this process sees the host's root.  [default: /]")
@click.option("--wait-for-sgx", is_flag=True, default=None, help="On a node without SGX, wait instead of ending.")
def device_plugin(config: DevicePluginConfig) -> None:
    """Make the EPC of this node a resource of Kubernetes, and give containers the SGX driver's devices."""
    from confcom.services.device_plugin import plugin

    host, origin = _open_host(config)
    run_until_stopped(plugin.serve, host, config, ready="device plugin: ready, ", mark=f", {origin}")


def _open_host(config: DevicePluginConfig) -> tuple[Host, str]:
    """The host to look at and its origin in words. A simulated one needs its name or a machine file."""
    from confcom.devices.host import Host

    if config.platform == "intel" and config.simulated_machine is not None:
        raise ConfigError("a real node takes no machine file", advice="Leave it out, or choose --platform simulated.")
    if config.platform == "intel" or (config.platform == "auto" and config.simulated_machine is None):
        return Host(Path(config.host_root)), "real node"
    if config.simulated_machine is None:
        raise ConfigError("a simulated node needs a machine file", advice=NO_MACHINE_ADVICE)
    # Here, because a real node needs none of these.
    from confcom.devices.sgx_node import declare_node, parse_epc_sizes
    from confcom.wiring import read_machine_file

    # A malformed file fails here, not in every container.
    machine = bytes(read_machine_file(Path(config.simulated_machine)))
    sizes = parse_epc_sizes(config.simulated_epc)
    return declare_node(Path(config.simulated_node), sizes, machine), "SIMULATED node"


# The exporter of EPC use.


@daemon("metrics", "confcom.services.metrics.exporter:MetricsConfig", extras="node,kube")
@click.option("--node-name", metavar="NAME", help="This node in the Kubernetes API.")
@click.option("--kubeconfig", metavar="FILE", help="Credentials for the API; else the pod's service account.")
@click.option("--host-root", metavar="DIR", help="Where this process sees the host's root.  [default: /]")
@click.option("--simulated-node", metavar="DIR", help="Folder of the simulated node, if this is one.")
@click.option("--http", metavar="ADDRESS", help="HOST:PORT of /healthz, /readyz and /metrics.  [default: [::]:9466]")
@click.option("--interval", type=float, metavar="SECONDS", help="Between two measurements.  [default: 10]")
@click.option("--tolerance", type=float, metavar="SHARE", help="Excess over a request to ignore.  [default: 0.1]")
@click.option("--patience", type=float, metavar="SECONDS", help="Excess lasts this long, then reported.  [default: 30]")
@click.option("--enforce", type=click.Choice(["auto", "on", "off"]), help="Kernel holds the limits.  [default: auto]")
@click.option("--events/--no-events", default=None, help="Report as events of the pods.  [default: events]")
def metrics(config: MetricsConfig) -> None:
    """Show what the containers of this node request and use of EPC, and report those that use more."""
    from confcom.services.metrics.exporter import serve

    run_until_stopped(serve, config, ready="metrics: ready, ")


# The admission webhook.


@daemon("webhook", "confcom.services.webhook.webhook:WebhookConfig", extras="services,kube")
@click.option("--listen", metavar="HOST:PORT", help="HTTPS for the API server.  [default: [::]:8443]")
@click.option("--http", metavar="ADDRESS", help="Where /healthz, /readyz and /metrics are.  [default: [::]:9464]")
@click.option("--namespace", metavar="NAME", help="Of the Service.  [default: confcom-system]")
@click.option("--service", metavar="NAME", help="The Service that leads here.  [default: sgx-webhook]")
@click.option("--hosts", metavar="NAME,…", help="Further names and addresses of the certificate.")
@click.option("--ca", metavar="DIR", help="tls.crt and tls.key of its CA.  [default: /etc/confcom/webhook-ca]")
@click.option("--client-ca", metavar="FILE", help="Authority (PEM) of the API server's client certificate.")
@click.option("--provision-grants", metavar="NS/ACCOUNT,…", help="Who may hold the provisioning device.")
@click.option("--oversized", type=click.Choice(["refuse", "warn"]), help="Pods that want more EPC than any node has.")
@click.option("--quote-helper/--no-quote-helper", default=None, help="Whether the quote helper is enabled.")
@click.option("--wiring", type=click.Choice(["plugin", "host-path"]), help="What brings its folder into containers.")
@click.option("--kubeconfig", metavar="FILE", help="Credentials; else the pod's service account.")
def webhook(config: WebhookConfig) -> None:
    """Complete pods that use SGX when they are created, and refuse those that cannot work.

    It issues its certificate by a CA that the webhook configurations trust.
    """
    from confcom.services.webhook.webhook import serve

    run_until_stopped(serve, config, ready="webhook: ready on ", clock=now)


# The metrics API.


@daemon("metrics-api", "confcom.services.metrics_api.metrics_api:MetricsApiConfig", extras="services,kube")
@click.option("--listen", metavar="HOST:PORT", help="Where to serve HTTPS.  [default: [::]:8443]")
@click.option("--http", metavar="ADDRESS", help="Where /healthz, /readyz and /metrics are: HOST:PORT or unix:PATH.")
@click.option("--ca", metavar="DIR", help="Folder with the CA (tls.crt, tls.key) that the APIService trusts.")
@click.option("--exporters-ca", metavar="PEM", help="The CAs of the exporters' certificates.")
@click.option("--kubeconfig", metavar="FILE", help="Credentials; else the pod's service account.")
def metrics_api(config: MetricsApiConfig) -> None:
    """Answer the Kubernetes API's questions for custom metrics, so that HPA can scale on EPC and quotes.

    An aggregated API server for custom.metrics.k8s.io/v1beta2. It asks the exporters of every node itself.
    """
    from confcom.services.metrics_api.metrics_api import serve

    run_until_stopped(serve, config, ready="metrics API: ready on ", clock=now)


# The certificate signer.


@daemon(
    "certificate-signer",
    "confcom.services.certificate_signer.certificate_signer:CertificateSignerConfig",
    extras="services,cli,kube",
)
@click.option(
    "--policies", metavar="DIR", help="With NAMESPACE.ACCOUNT.toml.  [default: /etc/confcom/certificate-policies]"
)
@click.option("--trust-domain", metavar="NAME", help="In SPIFFE names, spiffe://NAME/….  [default: cluster.local]")
@click.option("--lifetime", type=float, metavar="SECONDS", help="Longest life of a certificate.  [default: 86400]")
@click.option("--collateral", metavar="PATH-OR-URL", help="As of `confcom verify`.  [default: intel]")
@click.option("--collateral-ca", metavar="PEM", help="CAs of the collateral service's TLS certificate.")
@click.option("--trust-root", "trust_roots", metavar="PEM", multiple=True, help="Trust this root instead of Intel's.")
@click.option("--http", metavar="ADDRESS", help="Where /healthz, /readyz and /metrics are: HOST:PORT or unix:PATH.")
@click.option("--kubeconfig", metavar="FILE", help="Credentials; else the pod's service account.")
def certificate_signer(config: CertificateSignerConfig) -> None:
    """Sign Kubernetes' certificate requests of pods with evidence that meets their policy.

    The signer's name is confcom.dev/attested. Requests for other signers are left alone.
    """
    from confcom.pki.chain import simulated_world
    from confcom.services.certificate_signer.certificate_signer import serve

    roots = trust_roots(config.trust_roots)
    mark = ", SIMULATED" if simulated_world(roots) else ""
    run_until_stopped(serve, config, ready="certificate signer: ready for ", mark=mark, roots=roots, clock=now)


# The collateral service.


@daemon(
    "collateral-service",
    "confcom.services.collateral.collateral_service:CollateralServiceConfig",
    extras="services",
    name="serve",
    debug="Log every request, those answered from memory aside.",
    check=False,
)
@click.option("--listen", metavar="HOST:PORT", help="Where to listen.  [default: 127.0.0.1:8081]")
@click.option("--unix-socket", metavar="PATH", help="Listen there instead, without TLS.")
@click.option("--tls-certificate", metavar="PEM", help="Certificate chain; reloaded when it changes.")
@click.option("--tls-key", metavar="PEM", help="Its key.")
@click.option("--tls-secret", metavar="NAME", help="In a cluster: the Secret of a certificate that the service makes.")
@click.option("--insecure-http", is_flag=True, default=None, help="Serve without TLS.")
@click.option(
    "--store", metavar="PATH-OR-URL", help="The collateral store.  [default: /var/lib/confcom/collateral.sqlite]"
)
@click.option("--mode", type=click.Choice(["lazy", "offline"]), help="Ask upstream for what is missing, or do not.")
@click.option("--upstream", metavar="NAME", help="intel, pccs, thim, a URL, a folder, or simulated.  [default: intel]")
@click.option("--collateral-ca", "upstream_ca", metavar="PEM", help="CAs of upstream's TLS certificate.")
@click.option("--upstream-key-file", metavar="FILE", help="Intel's subscription key, or the PCCS's token.")
@click.option(
    "--machine", "simulated_machine", metavar="FILE", help="With --upstream simulated: the platform's machine file."
)
@click.option("--trust-root", "trust_roots", metavar="PEM", multiple=True, help="Trust this root instead of Intel's.")
@click.option("--fmspc", "fmspcs", metavar="HEX", multiple=True, help="Keep its collateral (tdx:HEX for TDX).")
@click.option(
    "--tcb-set",
    "tcb_sets",
    metavar="[GROUP=]SET",
    multiple=True,
    help="Pin what clients get: early or a number; of a group below /group/GROUP.",
)
def collateral_service(config: CollateralServiceConfig) -> None:
    """Serve collateral, as Intel's caching service (PCCS) does.

    Existing clients only change a URL.
    """
    from confcom.collateral.sources import source_name
    from confcom.services.collateral import collateral_service as service

    config.check()
    if not config.tls_secret:
        service.listener_of(config)
    with _upstream(config) as (upstream, roots):
        origin = "offline" if upstream is None else f"upstream {source_name(config.upstream)}"
        mark = f", {origin}, SIMULATED" if any(root.simulated for root in roots.roots) else f", {origin}"
        ready = "collateral service: ready on "
        run_until_stopped(service.serve, upstream, config, ready=ready, mark=mark, roots=roots, clock=now)


@contextmanager
def _upstream(config: CollateralServiceConfig) -> Iterator[tuple[Upstream | None, TrustRoots]]:
    """The source of missing documents, and the roots that its answers may lead to."""
    from confcom.collateral.pcs_client import HttpLimits
    from confcom.collateral.sources import SourceOptions, is_store, open_source, source_name

    roots = trust_roots(config.trust_roots)
    if config.upstream == "simulated":
        if config.simulated_machine is None:
            raise ConfigError("a simulated upstream needs a machine file", advice=NO_MACHINE_ADVICE)
        # Here, because it brings the simulator along.
        from confcom.wiring import simulated_upstream

        simulated = simulated_upstream(Path(config.simulated_machine), now)
        yield None if config.mode == "offline" else simulated, simulated.trust_roots
        return
    if config.mode == "offline":
        yield None, roots
        return
    if is_store(config.upstream):
        advice = "Serve it: --store PATH --mode offline."
        raise ConfigError(f"{source_name(config.upstream)} is a store, not a source", advice=advice)
    timeout = config.upstream_timeout
    options = SourceOptions(
        roots=roots,
        at=now(),
        ca_certificates=None if config.upstream_ca is None else Path(config.upstream_ca),
        key=_key(config),
        proxy=config.upstream_proxy,
        azure_region=config.azure_region,
        # One retry: a client is waiting, and the next refresh asks again.
        limits=HttpLimits(timeout=timeout / 2, deadline=timeout, retries=1, max_wait=2.0),
    )
    with open_source(config.upstream, options) as source:
        yield source, roots


def _key(config: CollateralServiceConfig) -> str | None:
    if config.upstream_key_file is None:
        return None
    path = Path(config.upstream_key_file)
    try:
        return read_input(path, MAX_KEY, "upstream key").decode("ascii", "replace").strip()
    except ConfigError as error:
        if config.upstream_key_optional and isinstance(error.__cause__, FileNotFoundError):
            note(f"{path} is not there: upstream is asked without a key")
            return None
        raise


# The databases of services: `migrate`, which makes the schema, copies another database, and gives rights to a role.


def migrate_command(store_option: Callable[[Any], Any], home: str) -> click.Command:
    """The command of a service; `store_option` names its store, and the module `home` has its `CHAIN`."""

    @click.command("migrate", short_help="Bring a store's schema up to date; copy SQLite to PostgreSQL.")
    @store_option
    @click.option("--from", "source", metavar="PATH", type=FILE, help="Copy the rows of this SQLite file into it.")
    @click.option("--role", metavar="NAME", help="Give this role of PostgreSQL the rights that the service needs.")
    def migrate(store: str, source: Path | None, role: str | None) -> None:
        """Bring the schema of a store up to date; with --from, copy an SQLite file into it.

        In PostgreSQL the command needs a role that may change the schema; the service does not. Stop the service
        before its file is copied. After an interruption, run the same command again.
        """
        with needing("the store", "services,cli,postgres"):
            chain = importlib.import_module(home).CHAIN
        _migrate(chain, store, source, role)

    return migrate


def _migrate(chain: Chain, store: str, source: Path | None, role: str | None) -> None:
    """Bring `store` to the newest revision, copy `source` into it, and let `role` serve; each step is printed."""
    from confcom.database.engine import Database, DatabaseAddress

    with closing(Database(DatabaseAddress.parse(store))) as target:
        if role is not None and not target.shared:
            raise ConfigError("--role is a role of PostgreSQL", advice="Leave it out: files have permissions instead.")
        before = chain.upgrade(target)
        was = "" if before == chain.newest else f", was {before}" if before else ", new"
        click.echo(f"{target.address}: schema {chain.newest}{was}")
        if source is not None:
            _copy(chain, source, target)
        if role is not None:
            chain.grant(target, role)
            click.echo(f"{role} may serve, and not change the schema")


def _copy(chain: Chain, source: Path, target: Database) -> None:
    from confcom.database.engine import Database, DatabaseAddress
    from confcom.database.revisions import copy_database

    try:
        source.stat()
    except OSError as error:
        raise ConfigError(
            f"there is no store at {source}: {error.strerror}", advice="Name the SQLite file of the service (--from)."
        ) from error
    with closing(Database(DatabaseAddress.parse(source))) as opened:
        opened.check()
        chain.check(opened)
        for table, rows in copy_database(opened, target, chain):
            click.echo(f"{table}: {rows:,} rows copied and compared")
