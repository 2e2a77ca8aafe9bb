"""Kubernetes' own messages (k8s.io/kubelet) over the kubelet's gRPC library (grpc-go) against our device plugin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from kubelet_emulator import KubeletEmulator
from running_plugin import EPC, RunningPlugin

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

SOURCE = Path(__file__).parent / "kubelet_api"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed: the kubelet's side cannot be built")
    target = tmp_path_factory.mktemp("kubelet-api") / "kubelet-api"
    built = subprocess.run(
        [go, "build", "-mod=readonly", "-o", str(target), "."], cwd=SOURCE, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return target


def converse(program: Path, folder: Path, count: int, **settings: Any) -> dict[str, Any]:
    """What the kubelet's side was told, with a plugin of those settings."""
    with TemporaryDirectory(prefix="kubelet-") as name:  # short: a socket's path has 107 bytes at most
        return _converse(program, folder, Path(name), count, settings)


def _converse(program: Path, folder: Path, sockets: Path, count: int, settings: dict[str, Any]) -> dict[str, Any]:
    directory = sockets / "device-plugins"
    with RunningPlugin(folder, KubeletEmulator(sockets), **settings):
        done = subprocess.run(
            [program, str(directory), str(count), EPC],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env=os.environ,
        )
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def test_every_call_of_the_kubelet_is_understood(program: Path, tmp_path: Path) -> None:
    answers = converse(program, tmp_path, 10, epc="64Mi,64Mi")
    assert answers["error"] == ""
    assert answers["request"] == {
        "version": "v1beta1",
        "endpoint": "confcom-epc.sock",
        "resource_name": EPC,
        "options": {"get_preferred_allocation_available": True},
    }
    assert answers["options"] == {"get_preferred_allocation_available": True}
    assert answers["devices"] == 128
    assert answers["first"] == {"ID": "0000", "health": "Healthy", "topology": {"nodes": [{}]}}
    assert answers["last"] == {"ID": "100_", "health": "Healthy", "topology": {"nodes": [{"ID": 1}]}}
    assert {unit[0] for unit in answers["preferred"]} == {"0"}
    assert len(answers["preferred"]) == 10
    device = str(tmp_path / "node/dev/sgx_enclave")
    assert answers["allocated"] == {
        "envs": {"SGX_EPC_MIB": "10"},
        "mounts": [
            {"container_path": path, "host_path": device, "read_only": True}
            for path in ("/dev/sgx_enclave", "/dev/sgx/enclave")
        ],
    }
    assert "code = InvalidArgument" in answers["refused"]


def test_the_longest_list_passes_the_kubelets_own_library(program: Path, tmp_path: Path) -> None:
    count = 4 * 1024 * 1024 // 17
    answers = converse(program, tmp_path, 16, epc=f"{count}Mi", publisher="devices", health_interval=60)
    assert answers["error"] == ""
    assert answers["devices"] == count
