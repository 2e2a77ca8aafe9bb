from __future__ import annotations

from pathlib import Path

from confcom.devices.host import Host
from confcom.devices.resources import EpcUnits
from confcom.devices.sgx_node import declare_node, find_sgx


def nodes_of(host: Host) -> set[tuple[int, ...]]:
    devices = EpcUnits(host).inventory(find_sgx(host)).devices.devices
    return {tuple(node.ID for node in device.topology.nodes) for device in devices}


def test_topology_is_named_only_where_there_is_a_choice(tmp_path: Path) -> None:
    one = declare_node(tmp_path / "one", (3 << 20,), b"")
    assert nodes_of(one) == {()}
    # EPC on one of two nodes: the kubelet may align processors with it.
    two = declare_node(tmp_path / "two", (0, 3 << 20), b"")
    assert nodes_of(two) == {(1,)}


def test_the_size_is_told_and_only_the_size(tmp_path: Path) -> None:
    host = declare_node(tmp_path, (9 << 20,), b"")
    units = EpcUnits(host)
    inventory = units.inventory(find_sgx(host))
    ids = [device.ID for device in inventory.devices.devices]
    assert units.grant(ids, inventory).envs == {"SGX_EPC_MIB": "9"}


def test_reserve_and_overcommit_count(tmp_path: Path) -> None:
    host = declare_node(tmp_path, (100 << 20,), b"")
    units = EpcUnits(host, reserve_mib=20, overcommit=2.0)
    assert len(units.inventory(find_sgx(host)).devices.devices) == 160
    assert units.pool(find_sgx(host)).true_mib == 100
