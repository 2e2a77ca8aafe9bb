"""`confcom device-plugin`: make the EPC of this node a resource of Kubernetes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import click

from confcom.devices.host import Host
from confcom.errors import ConfigError
from confcom.services.device_plugin import plugin as service
from confcom.services.device_plugin.plugin_config import DevicePluginConfig
from confcom.services.runtime.process import configure_logging, load, render, stop_on_signals


@click.command("device-plugin")
@click.option("--platform", type=click.Choice(["auto", "intel", "simulated"]), help="Whose EPC it is.")
@click.option("--simulated-machine", "--machine", metavar="FILE", help="Machine of the enclaves on a simulated node.")
@click.option(
    "--simulated-epc", metavar="SIZE[,SIZE…]", help="EPC per NUMA node of a simulated node.  [default: 168Mi]"
)
@click.option("--simulated-node", metavar="DIR", help="Folder of the simulated node.")
@click.option(
    "--plugin-dir", metavar="DIR", help="The kubelet's directory.  [default: /var/lib/kubelet/device-plugins]"
)
@click.option("--registration", type=click.Choice(["socket", "registry"]), help="How the kubelet learns of us.")
@click.option("--resource", metavar="NAME", help="The EPC resource, in MiB.")
@click.option("--publisher", type=click.Choice(["auto", "devices", "node-status", "dra"]), help="How EPC is published.")
@click.option("--unit-limit", type=int, metavar="N", help="Most devices of 1 MiB that `auto` makes.  [default: 3072]")
@click.option("--reserve-mib", type=int, metavar="N", help="MiB held back.  [default: 0]")
@click.option("--overcommit", type=float, metavar="RATIO", help="Requestable beside true size.  [default: 1]")
@click.option("--provision-limit", type=int, metavar="N", help="Holders of the provisioning device.  [default: 0]")
@click.option("--provision-namespaces", metavar="NAME,…", help="Namespaces whose pods may hold it.")
@click.option("--helper-folder", metavar="DIR", help="The quote helper's /var/run/aesmd, for containers that ask it.")
@click.option("--node-name", metavar="NAME", help="This node in the Kubernetes API, for node-status and dra.")
@click.option("--kubeconfig", metavar="FILE", help="Credentials for that; else the pod's service account.")
@click.option("--http", metavar="ADDRESS", help="Where /healthz, /readyz and /metrics are: HOST:PORT or unix:PATH.")
@click.option("--host-root", metavar="DIR", help="Where this process sees the host's root.  [default: /]")
@click.option("--wait-for-sgx", is_flag=True, default=None, help="On a node without SGX, wait instead of ending.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file with further settings.")
@click.option("--print-config", is_flag=True, help="Print the settings in force as JSON, and stop.")
@click.option("--debug", is_flag=True, help="Log more.")
def device_plugin(config_file: Path | None, print_config: bool, debug: bool, **flags: Any) -> None:  # noqa: ANN401 - the settings, by name
    """Make the EPC of this node a resource of Kubernetes, and give containers the SGX driver's devices.

    Settings come from flags, from CONFCOM_DEVICE_PLUGIN_… in the environment, and from a file, in this order.
    """
    config = load(DevicePluginConfig, service="device-plugin", file=config_file, environment=os.environ, flags=flags)
    config.check()
    if print_config:
        click.echo(render(config))
        return
    host, origin = _open_host(config)
    configure_logging(verbose=debug)
    asyncio.run(_run(host, config, origin))


async def _run(host: Host, config: DevicePluginConfig, origin: str) -> None:
    await service.serve(
        host,
        config,
        stop=stop_on_signals(),
        started=lambda summary: click.echo(f"device plugin: ready, {summary}, {origin}"),
    )


def _open_host(config: DevicePluginConfig) -> tuple[Host, str]:
    """The host to look at, and a clause that says which. A simulated one takes its name or a machine file."""
    if config.platform == "intel" and config.simulated_machine is not None:
        raise ConfigError("a real node takes no machine file", advice="Leave it out, or choose --platform simulated.")
    if config.platform == "intel" or (config.platform == "auto" and config.simulated_machine is None):
        return Host(Path(config.host_root)), "real node"
    if config.simulated_machine is None:
        raise ConfigError(
            "a simulated node needs a machine file",
            advice="Make one with `confcom simulate machine -o FILE`, and name it with --simulated-machine FILE.",
        )
    # Here, because a real node needs nothing of these.
    from confcom.devices.declared_node import declare_node, parse_epc_sizes
    from confcom.wiring import open_machine

    machine = Path(config.simulated_machine)
    open_machine(machine)  # a file that is none fails here, not in every container
    sizes = parse_epc_sizes(config.simulated_epc)
    return declare_node(Path(config.simulated_node), sizes, machine.read_bytes()), "SIMULATED node"
