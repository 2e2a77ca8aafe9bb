"""What every device resource promises, whichever it is."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from confcom.devices.host import Host
from confcom.devices.resources import DeviceResource, DeviceSlots, EpcUnits, HelperEpc, HelperSlots, Inventory
from confcom.devices.sgx_node import declare_node, find_sgx
from confcom.errors import PlatformUnavailable
from confcom.protocols.kubelet import MAX_DEVICE_ID

RESOURCES: dict[str, Callable[[Host], DeviceResource]] = {
    "epc": EpcUnits,
    "enclave": lambda host: DeviceSlots(host, "enclave", 7),
    "provision": lambda host: DeviceSlots(host, "provision", 7),
    "quote-helper-epc": lambda host: HelperEpc(host, 4),
    "quote-helper": lambda host: HelperSlots(host.root / "dev", 7),
}
OF_DEVICES = [name for name in RESOURCES if name != "quote-helper"]
"""Those that bring a device of the driver."""
EPC = (30 << 20, 20 << 20)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    found = declare_node(tmp_path, EPC, b"machine")
    with socket.socket(socket.AF_UNIX) as helper:
        helper.bind(str(found.root / "dev/aesm.socket"))
        yield found


@pytest.fixture(params=RESOURCES)
def resource(request: pytest.FixtureRequest, host: Host) -> DeviceResource:
    return RESOURCES[request.param](host)


def ids_of(inventory: Inventory) -> list[str]:
    return [device.ID for device in inventory.devices.devices]


def test_ids_are_distinct_short_and_the_same_every_time(resource: DeviceResource, host: Host) -> None:
    ids = ids_of(resource.inventory(find_sgx(host)))
    assert ids
    assert len(set(ids)) == len(ids)
    assert all(unit.isascii() and 0 < len(unit) <= MAX_DEVICE_ID for unit in ids)
    again = RESOURCES[resource.endpoint](Host(host.root, stand_ins=True))
    assert ids_of(again.inventory(find_sgx(host))) == ids


def test_whether_the_plugin_is_ready_without_it_is_said(resource: DeviceResource) -> None:
    assert resource.essential == (resource.endpoint in OF_DEVICES)


def test_without_its_device_it_keeps_its_ids_and_is_unhealthy(resource: DeviceResource, host: Host) -> None:
    before = resource.inventory(find_sgx(host))
    assert before.reason == ""
    assert {device.health for device in before.devices.devices} == {"Healthy"}
    shutil.rmtree(host.root / "dev")
    after = resource.inventory(find_sgx(host))
    assert after.reason
    assert ids_of(after) == ids_of(before)
    assert {device.health for device in after.devices.devices} == {"Unhealthy"}
    with pytest.raises(PlatformUnavailable):
        resource.grant(ids_of(after)[:1], after)


@pytest.mark.parametrize("resource", OF_DEVICES, indirect=True)
def test_a_grant_names_two_paths_of_each_device_and_no_ids(resource: DeviceResource, host: Host) -> None:
    inventory = resource.inventory(find_sgx(host))
    ids = ids_of(inventory)[:5]
    granted = resource.grant(ids, inventory)
    assert len(granted.mounts) == (4 if resource.endpoint == "quote-helper-epc" else 2)
    assert len({mount.host_path for mount in granted.mounts}) == len(granted.mounts) // 2
    assert all(mount.read_only for mount in granted.mounts)
    assert not any(unit in value for value in granted.envs.values() for unit in ids)


def test_a_preference_is_among_what_is_available(resource: DeviceResource, host: Host) -> None:
    ids = ids_of(resource.inventory(find_sgx(host)))
    chosen = resource.prefer(ids[2:], ids[3:4], 3)
    assert len(set(chosen)) == 3
    assert ids[3] in chosen
    assert set(chosen) <= set(ids[2:])


def test_its_socket_has_a_name_of_its_own(host: Host) -> None:
    assert {make(host).endpoint for make in RESOURCES.values()} == set(RESOURCES)
