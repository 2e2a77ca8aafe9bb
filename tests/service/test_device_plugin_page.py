"""The status page of the device plugin, over real HTTP, while the kubelet, the device and the API come and go."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from confcom.devices.host import Host
from confcom.devices.sgx_node import declare_node
from kubelet_emulator import KubeletEmulator, wait_until
from node_api import NodeApi
from running_plugin import ENCLAVE, EPC, RunningPlugin


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def get(page: Path, path: str) -> tuple[int, str]:
    connection = _UnixConnection(page)
    wait_until(lambda: _connects(connection))
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def _connects(connection: _UnixConnection) -> bool:
    try:
        connection.connect()
    except OSError:
        connection.close()
        return False
    return True


def readiness(page: Path) -> tuple[int, dict[str, Any]]:
    status, body = get(page, "/readyz")
    return status, json.loads(body)


def wait_ready(page: Path, status: int = 200) -> dict[str, Any]:
    wait_until(lambda: readiness(page)[0] == status)
    return readiness(page)[1]


@pytest.mark.promise("M9")
def test_ready_means_that_the_kubelet_knows_every_resource_and_the_device_is_there(
    tmp_path: Path, sockets: Path
) -> None:
    page = sockets / "page"
    kubelet = KubeletEmulator(sockets)
    with RunningPlugin(tmp_path, kubelet, http=f"unix:{page}") as plugin:
        told = wait_ready(page, 503)
        assert set(told["parts"]) == {EPC, ENCLAVE}
        assert "kubelet" in told["reason"]
        assert get(page, "/healthz") == (200, "ok\n")

        kubelet.start()
        assert wait_ready(page) == {"ready": True, "reason": "", "parts": {EPC: "ready", ENCLAVE: "ready"}}

        device = plugin.root / "dev/sgx_enclave"
        device.rename(device.with_name("gone"))
        assert "no driver is loaded" in wait_ready(page, 503)["reason"]
        device.with_name("gone").rename(device)
        wait_ready(page)

        kubelet.stop()
        assert wait_ready(page, 503)["reason"]
        kubelet.start()
        wait_ready(page)
        # Ready says that the list was sent; the kubelet may still be reading it.
        kubelet.wait_allocatable(EPC, 168)
        kubelet.admit("default/app", EPC, 10)
        _, figures = get(page, "/metrics")
        assert f'confcom_device_plugin_granted_units_total{{resource="{EPC}"}} 10.0' in figures
        assert 'confcom_device_plugin_epc_mib{numa_node="0"} 168.0' in figures
        assert 'confcom_device_plugin_publisher{publisher="devices"} 1.0' in figures
        kubelet.stop()


def test_an_amount_that_the_api_does_not_show_is_not_ready(tmp_path: Path, sockets: Path) -> None:
    page = sockets / "page"
    kubelet = KubeletEmulator(sockets)
    kubelet.start()
    with NodeApi("worker-1") as api:
        api.down = True
        kubeconfig = api.kubeconfig(tmp_path)
        with RunningPlugin(
            tmp_path,
            kubelet,
            epc="64Gi",
            http=f"unix:{page}",
            node_name="worker-1",
            kubeconfig=kubeconfig,
        ):
            kubelet.wait_allocatable(ENCLAVE, 110)
            wait_until(lambda: "503" in readiness(page)[1]["parts"]["node status"])
            assert readiness(page)[0] == 503
            api.down = False
            assert wait_ready(page)["parts"] == {ENCLAVE: "ready", "node status": "ready"}
    kubelet.stop()


@pytest.mark.complaint("intel-device-plugins #739", "intel-device-plugins #1611")
def test_a_plugin_that_waits_for_sgx_lives_and_is_not_ready(tmp_path: Path, sockets: Path) -> None:
    page, root = sockets / "page", tmp_path / "later"
    kubelet = KubeletEmulator(sockets)
    kubelet.start()
    with RunningPlugin(tmp_path, kubelet, host=Host(root, stand_ins=True), wait_for_sgx=True, http=f"unix:{page}"):
        wait_until(lambda: "neither /dev/sgx_enclave" in readiness(page)[1]["reason"])
        assert readiness(page)[0] == 503
        assert get(page, "/healthz")[0] == 200
        declare_node(root, (7 << 20,), b"machine")
        wait_ready(page)
    kubelet.stop()
