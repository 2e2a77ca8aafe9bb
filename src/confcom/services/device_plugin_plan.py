"""What the device plugin found on its node and makes of it: the fields of the log's event `epc.plan`."""

from __future__ import annotations

from collections.abc import Mapping

from confcom.devices.epc_pool import EpcPool
from confcom.devices.epc_publisher import PublisherChoice
from confcom.devices.host import Host
from confcom.devices.sgx_driver import find_cpu_flags
from confcom.devices.sgx_node import SgxNode
from confcom.services.device_plugin_config import DevicePluginConfig


def plan_fields(
    host: Host, node: SgxNode, pool: EpcPool, choice: PublisherChoice, config: DevicePluginConfig
) -> Mapping[str, object]:
    """Sizes in MiB, devices with number, mode and owner, launch control (None: the host does not say)."""
    driver, flags = node.driver, find_cpu_flags(host)
    return {
        "simulated": host.stand_ins,
        "publisher": choice.name,
        "reason": choice.reason,
        "true_mib": pool.true_mib,
        "reserve_mib": pool.reserve_mib,
        "overcommit": pool.overcommit,
        "units": pool.units,
        "numa_nodes": {str(section.numa_node): section.true_mib for section in pool.sections},
        "epc_source": node.epc.source,
        "driver": driver.kind,
        "devices": [found.describe() for found in (driver.enclave, driver.provision) if found is not None],
        "launch_control": None if flags is None else flags.launch_control,
        "provision": _provision(config),
    }


def _provision(config: DevicePluginConfig) -> str:
    if not config.provision_limit:
        return "given to nobody"
    return f"given to {config.provision_limit} at a time, namespaces {config.provision_namespaces}"
