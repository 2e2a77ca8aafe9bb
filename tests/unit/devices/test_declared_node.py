from __future__ import annotations

from pathlib import Path

import pytest

from confcom.devices.host import Host
from confcom.devices.sgx_node import EpcSection, declare_node, find_cpu_flags, find_sgx, parse_epc_sizes
from confcom.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("168Mi", (168 << 20,)),
        ("64Gi,64GiB", (64 << 30, 64 << 30)),
        (" 1G , 1048576", (1 << 30, 1 << 20)),
        ("1T", (1 << 40,)),
    ],
)
def test_sizes(text: str, sizes: tuple[int, ...]) -> None:
    assert parse_epc_sizes(text) == sizes


@pytest.mark.parametrize("text", ["", "168", "much", "-1Mi", "1Mi,", "1.5Gi", ",".join(["1Mi"] * 65), "\u0661Mi"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_epc_sizes(text)


def test_the_same_code_finds_what_was_declared(tmp_path: Path) -> None:
    host = declare_node(tmp_path / "node", (64 << 30, 0, 32 << 30), b"the machine")
    node = find_sgx(host)
    assert node.epc.sections == (EpcSection(0, 64 << 30), EpcSection(2, 32 << 30))
    assert node.obstacles == ()
    assert node.driver.kind == "in-kernel"
    assert node.driver.enclave is not None
    assert host.read(node.driver.enclave.file.path) == "the machine"
    flags = find_cpu_flags(host)
    assert flags is not None
    assert flags.launch_control


def test_declaring_again_brings_it_up_to_date(tmp_path: Path) -> None:
    declare_node(tmp_path, (1 << 30, 1 << 30, 1 << 30), b"old")
    host = declare_node(tmp_path, (2 << 30,), b"new")
    assert find_sgx(host).epc.sections == (EpcSection(0, 2 << 30),)
    assert find_sgx(host).epc.numa_nodes == 1
    assert host.read("/dev/sgx_enclave") == "new"


def test_what_is_the_same_stays_the_same_file(tmp_path: Path) -> None:
    device = tmp_path / "dev/sgx_enclave"
    declare_node(tmp_path, (1 << 30,), b"machine")
    before = device.stat().st_ino
    declare_node(tmp_path, (2 << 30,), b"machine")
    assert device.stat().st_ino == before
    declare_node(tmp_path, (2 << 30,), b"another")
    assert device.read_bytes() == b"another"


def test_stand_ins_are_nothing_on_a_real_host(tmp_path: Path) -> None:
    declare_node(tmp_path, (1 << 30,), b"machine")
    assert find_sgx(Host(tmp_path)).driver.enclave is None


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the simulated node"):
        declare_node(tmp_path / "file", (1 << 20,), b"")
