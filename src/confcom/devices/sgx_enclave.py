"""The enclave device: what a container needs to run enclaves at all."""

from __future__ import annotations

from confcom.devices.device_slots import DeviceSlots
from confcom.devices.host import Host
from confcom.devices.sgx_driver import DriverDevice
from confcom.devices.sgx_node import SgxNode
from confcom.errors import PlatformUnavailable

ENCLAVE_RESOURCE = "sgx.intel.com/enclave"


def enclave_slots(host: Host, count: int, *, name: str = ENCLAVE_RESOURCE) -> DeviceSlots:
    """The enclave device as a resource of its own, for nodes whose EPC is published in the node's status."""
    return DeviceSlots(host, name, "enclave", count, enclave_device, lambda node: node.driver.missing)


def enclave_device(node: SgxNode) -> DriverDevice:
    """The device; `PlatformUnavailable` when it is not there now."""
    if node.driver.enclave is None:
        raise PlatformUnavailable(f"no enclave device: {node.driver.missing}")
    return node.driver.enclave
