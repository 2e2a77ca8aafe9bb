from __future__ import annotations

from pathlib import Path

import pytest

from confcom.devices.resources import DeviceSlots, check_holder
from confcom.devices.sgx_node import declare_node, find_sgx
from confcom.errors import PlatformUnavailable, PolicyError
from confcom.protocols.kubelet import Holder

RESOURCE = "sgx.intel.com/provision"


def held(*entries: tuple[str, str]) -> dict[Holder, list[str]]:
    return {Holder(namespace, "pod", "main"): [unit] for namespace, unit in entries}


def test_the_holder_of_the_very_device_counts() -> None:
    books = held(("bad", "provision-0"), ("good", "provision-1"))
    assert check_holder(["provision-1"], books, resource=RESOURCE, namespaces={"good"}) == "good/pod"
    with pytest.raises(PolicyError, match="namespace bad"):
        check_holder(["provision-0"], books, resource=RESOURCE, namespaces={"good"})


def test_two_holders_must_both_be_allowed() -> None:
    books = held(("good", "provision-0"), ("bad", "provision-0"))
    with pytest.raises(PolicyError):
        check_holder(["provision-0"], books, resource=RESOURCE, namespaces={"good"})


def test_nobody_known_means_nobody_allowed() -> None:
    with pytest.raises(PolicyError, match="no pod is known"):
        check_holder(["provision-0"], held(), resource=RESOURCE, namespaces={"good"})
    with pytest.raises(PolicyError):
        check_holder([], held(("good", "provision-0")), resource=RESOURCE, namespaces={"good"})
    assert check_holder(["provision-0"], held(), resource=RESOURCE, namespaces={"*"}) == "any"


def test_the_device_alone_is_granted_and_only_while_it_is_there(tmp_path: Path) -> None:
    host = declare_node(tmp_path, (1 << 20,), b"machine")
    slots = DeviceSlots(host, "provision", 3)
    inventory = slots.inventory(find_sgx(host))
    assert [device.ID for device in inventory.devices.devices] == ["provision-0", "provision-1", "provision-2"]
    granted = slots.grant(["provision-0"], inventory)
    assert {mount.host_path for mount in granted.mounts} == {str(tmp_path / "dev/sgx_provision")}
    assert not granted.envs
    (tmp_path / "dev/sgx_provision").unlink()
    inventory = slots.inventory(find_sgx(host))
    assert {device.health for device in inventory.devices.devices} == {"Unhealthy"}
    assert "sgx_provision" in inventory.reason
    with pytest.raises(PlatformUnavailable):
        slots.grant(["provision-0"], inventory)


def test_any_slot_will_do(tmp_path: Path) -> None:
    slots = DeviceSlots(declare_node(tmp_path, (1 << 20,), b"machine"), "provision", 3)
    assert slots.prefer(["a", "b", "c"], ["c"], 2) == ["c", "a"]
