from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from confcom.devices.resources import HelperSlots
from confcom.devices.sgx_node import EpcSections, SgxDriver, SgxNode
from confcom.errors import PlatformUnavailable
from confcom.protocols.kubelet import ContainerAllocateResponse, Mount

NODE = SgxNode(EpcSections((), "", "no EPC"), SgxDriver(None, None, "none", "no driver"))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "aesmd"
    found.mkdir()
    return found


@pytest.fixture
def helper(folder: Path) -> Iterator[Path]:
    """The helper's socket."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "aesm.socket"))
        yield folder / "aesm.socket"


def reason(slots: HelperSlots) -> str:
    found = slots.inventory(NODE)
    assert {device.health == "Healthy" for device in found.devices.devices} == {not found.reason}
    return found.reason


def test_a_container_gets_the_folder_to_read_and_the_variable(folder: Path, helper: Path) -> None:
    slots = HelperSlots(folder, 3)
    inventory = slots.inventory(NODE)
    granted = slots.grant(["quote-helper-1"], inventory)
    mount = Mount(host_path=str(folder), container_path="/var/run/aesmd", read_only=True)
    assert granted == ContainerAllocateResponse(mounts=[mount], envs={"SGX_AESM_ADDR": "1"})


def test_before_the_first_helper_nobody_is_sent_here(folder: Path, clock: Clock) -> None:
    slots = HelperSlots(folder, 2, clock=clock)
    assert "No such file or directory" in reason(slots)
    with pytest.raises(PlatformUnavailable, match="no quote helper"):
        slots.grant(["quote-helper-0"], slots.inventory(NODE))


def test_one_that_comes_back_in_time_was_never_away(folder: Path, helper: Path, clock: Clock) -> None:
    slots = HelperSlots(folder, 2, patience=60, clock=clock)
    assert reason(slots) == ""
    aside = helper.rename(folder / "aside")
    clock.now += 59
    assert reason(slots) == ""
    clock.now += 2
    assert "aesm.socket" in reason(slots)
    aside.rename(helper)
    assert reason(slots) == ""
    clock.now += 3600
    assert reason(slots) == ""


def test_a_folder_that_is_gone_is_told_at_once(folder: Path, helper: Path, clock: Clock) -> None:
    slots = HelperSlots(folder, 2, clock=clock)
    assert reason(slots) == ""
    shutil.rmtree(folder)
    assert "No such file or directory" in reason(slots)


def test_what_is_no_socket_is_no_helper(folder: Path) -> None:
    (folder / "aesm.socket").write_text("")
    assert reason(HelperSlots(folder, 1)).endswith("is no socket")
    (folder / "aesm.socket").unlink()
    (folder / "aesm.socket").symlink_to("/dev/log")
    assert reason(HelperSlots(folder, 1)).endswith("is no socket")


def test_a_folder_that_is_gone_and_still_held_is_told_as_such(folder: Path, helper: Path) -> None:
    """As in a container, where what was mounted stays in sight, and on the node there may be another by now."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        slots = HelperSlots(Path(f"/proc/self/fd/{held}"), 2)
        assert reason(slots) == ""
        shutil.rmtree(folder)
        folder.mkdir()
        assert "was removed from the node" in reason(slots)
    finally:
        os.close(held)
