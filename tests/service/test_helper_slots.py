"""The way to the quote helper as the device plugin offers it: a kubelet, a plugin and helpers, each on real sockets."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from confcom.platforms.aesm_client import AesmPlatform
from confcom.protocols._pb import kubelet_device_plugin_pb2 as pb
from dra_emulator import DraEmulator
from kubelet_emulator import AdmissionError, KubeletEmulator, wait_until
from recording_platform import RecordingPlatform
from running_helper import RunningHelper
from running_plugin import ENCLAVE, EPC, RunningPlugin
from slice_api import SliceApi

HELPER = "sgx.confcom.dev/quote-helper"
NODE = "worker-1"


@pytest.fixture
def folder(sockets: Path) -> Path:
    found = sockets / "aesmd"
    found.mkdir()
    return found


@contextmanager
def helper(folder: Path, **settings: Any) -> Iterator[RunningHelper]:
    running = RunningHelper(RecordingPlatform(), folder / "aesm.socket", **settings)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def plugin(place: Path, kubelet: KubeletEmulator, folder: Path, **settings: Any) -> RunningPlugin:
    return RunningPlugin(place, kubelet, helper_folder=str(folder), helper_limit=3, **settings)


def mounts(answer: pb.ContainerAllocateResponse) -> list[tuple[str, str, bool]]:
    return [(mount.host_path, mount.container_path, mount.read_only) for mount in answer.mounts]


def asks(answer: pb.ContainerAllocateResponse) -> int:
    """How many attestation keys the helper behind a container's mount has."""
    return len(AesmPlatform(Path(answer.mounts[0].host_path) / "aesm.socket", simulated=True).key_ids())


@pytest.mark.promise("M9")
def test_containers_come_to_a_helper_as_soon_as_there_is_one(
    tmp_path: Path, kubelet: KubeletEmulator, folder: Path
) -> None:
    with plugin(tmp_path, kubelet, folder) as running:
        kubelet.wait_allocatable(EPC, 168)
        kubelet.wait(lambda: kubelet.capacity(HELPER) == 3)
        assert kubelet.allocatable(HELPER) == 0
        # The helper itself needs the plugin, which cannot wait for it.
        wait_until(lambda: running.started)
        with helper(folder):
            kubelet.wait_allocatable(HELPER, 3)
            answer = kubelet.admit("default/app", HELPER, 1)
            assert mounts(answer) == [(str(folder), "/var/run/aesmd", True)]
            assert dict(answer.envs) == {"SGX_AESM_ADDR": "1"}
            assert not answer.devices
            assert asks(answer) == 1
        # What EPC brings is what it was: whoever has a service of his own in that place keeps it.
        assert "/var/run/aesmd" not in [mount.container_path for mount in kubelet.admit("default/b", EPC, 1).mounts]
        assert "/var/run/aesmd" not in [mount.container_path for mount in kubelet.admit("default/c", ENCLAVE, 1).mounts]


def test_a_helper_that_is_replaced_is_in_the_same_folder(
    tmp_path: Path, kubelet: KubeletEmulator, folder: Path
) -> None:
    with plugin(tmp_path, kubelet, folder) as running, helper(folder) as first:
        kubelet.wait_allocatable(HELPER, 3)
        answer = kubelet.admit("default/app", HELPER, 1)
        inode = first.path.stat().st_ino
        with helper(folder, replace=True):
            first.stop()
            assert first.path.stat().st_ino != inode
            assert asks(answer) == 1
        assert all(event["healthy"] for event in running.fields("devices.health", HELPER))


def test_without_a_helper_for_long_no_container_comes(tmp_path: Path, kubelet: KubeletEmulator, folder: Path) -> None:
    with plugin(tmp_path, kubelet, folder, helper_patience=0.2) as running:
        with helper(folder):
            kubelet.wait_allocatable(HELPER, 3)
        kubelet.wait_allocatable(HELPER, 0)
        # How often that was so before depends on whether the plugin looked before the first helper came.
        wait_until(lambda: "no quote helper" in running.fields("devices.health", HELPER)[-1].get("reason", ""))
        with pytest.raises(AdmissionError):
            kubelet.admit("default/app", HELPER, 1)
        with helper(folder):
            kubelet.wait_allocatable(HELPER, 3)


def test_a_folder_that_is_gone_lets_no_container_come(tmp_path: Path, kubelet: KubeletEmulator, folder: Path) -> None:
    """A runtime would make an empty one, or fail."""
    with plugin(tmp_path, kubelet, folder, helper_patience=3600.0):
        with helper(folder):
            kubelet.wait_allocatable(HELPER, 3)
        shutil.rmtree(folder)
        kubelet.wait_allocatable(HELPER, 0)


def test_it_is_there_beside_claims(tmp_path: Path, sockets: Path, folder: Path) -> None:
    kubelet = DraEmulator(sockets)
    kubelet.start()
    with SliceApi(NODE) as api:
        settings = {"node_name": NODE, "kubeconfig": api.kubeconfig(tmp_path), "publisher": "dra"}
        settings["cdi_dir"] = str(tmp_path / "cdi")
        with plugin(tmp_path, kubelet, folder, **settings), helper(folder):
            kubelet.wait_allocatable(HELPER, 3)
            assert asks(kubelet.admit("default/app", HELPER, 1)) == 1
            assert set(kubelet.endpoints) == {HELPER}
            kubelet.wait(lambda: "sgx.confcom.dev" in kubelet.drivers)
    kubelet.stop()
