"""EPC of large nodes in the node's status: the plugin between a kubelet and the API, both on real sockets."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from confcom.cluster.nodes import FIELD_MANAGER
from confcom.errors import ConfigError
from kubelet_emulator import KubeletEmulator
from node_api import NodeApi
from running_plugin import ENCLAVE, EPC, RunningPlugin


@pytest.fixture
def api() -> Iterator[NodeApi]:
    with NodeApi("worker-1") as api:
        yield api


def large_node(folder: Path, kubelet: KubeletEmulator, api: NodeApi, **settings: Any) -> RunningPlugin:
    kubeconfig = api.kubeconfig(folder)
    settings = {"epc": "256Gi,256Gi"} | settings
    return RunningPlugin(folder, kubelet, node_name="worker-1", kubeconfig=kubeconfig, **settings)


@pytest.mark.promise("M2")
def test_512_gib_are_an_amount_beside_a_pool_of_enclave_devices(
    tmp_path: Path, kubelet: KubeletEmulator, api: NodeApi
) -> None:
    with large_node(tmp_path, kubelet, api) as plugin:
        api.wait(lambda: api.amount(EPC) == "524288")
        assert api.amount(EPC, "capacity") == "524288"
        kubelet.wait_allocatable(ENCLAVE, 110)
        assert set(kubelet.endpoints) == {ENCLAVE}
        answer = kubelet.admit("default/app", ENCLAVE, 1)
        assert [mount.container_path for mount in answer.mounts] == ["/dev/sgx_enclave", "/dev/sgx/enclave"]
        plan = plugin.wait_event("epc.plan")
        assert plan["publisher"] == "node-status"
        assert plan["reason"] == "524288 units are more than the limit of 3072"
        assert plugin.wait_event("epc.published")["units"] == 524288
    labels = api.node["metadata"]["labels"]
    assert labels["confcom.dev/sgx-epc-mib"] == "524288"
    assert labels["kubernetes.io/arch"] == "amd64"
    assert api.node["status"]["allocatable"]["cpu"] == "2"


@pytest.mark.complaint("kubernetes #115190")
def test_whoever_resets_the_amount_it_comes_back(tmp_path: Path, kubelet: KubeletEmulator, api: NodeApi) -> None:
    with large_node(tmp_path, kubelet, api, epc="1000Mi", publisher="node-status"):
        api.wait(lambda: api.amount(EPC) == "1k")
        count = len(api.patches)
        for reset in ({EPC: None}, {EPC: "0"}, {EPC: "7"}):
            api.change({"status": {"allocatable": reset}})
            api.wait(lambda: api.amount(EPC) == "1k")
        api.change({"metadata": {"labels": {"confcom.dev/sgx-epc-mib": None}}})
        api.wait(lambda: "confcom.dev/sgx-epc-mib" in api.node["metadata"]["labels"])
        assert len(api.patches) == count + 4
        # `1k` is 1000: there is nothing to patch, whatever else changes on the node.
        api.change({"metadata": {"labels": {"other": "change"}}})
        api.change({"metadata": {"labels": {"other": None}}})
        time.sleep(0.1)
        assert len(api.patches) == count + 4


def test_the_api_may_be_away_and_its_watch_may_break(tmp_path: Path, kubelet: KubeletEmulator, api: NodeApi) -> None:
    api.down = True
    with large_node(tmp_path, kubelet, api) as plugin:
        failed = plugin.wait_event("epc.published")
        assert failed["outcome"] == "failed"
        assert "503" in failed["reason"]
        # Containers get their devices meanwhile.
        kubelet.wait_allocatable(ENCLAVE, 110)
        api.down = False
        api.wait(lambda: api.amount(EPC) == "524288")
        api.cut_watches()
        api.change({"status": {"capacity": {EPC: None}, "allocatable": {EPC: None}}})
        api.wait(lambda: api.amount(EPC) == "524288" and api.amount(EPC, "capacity") == "524288")


def test_missing_rights_are_told(tmp_path: Path, kubelet: KubeletEmulator, api: NodeApi) -> None:
    api.allowed = False
    with large_node(tmp_path, kubelet, api) as plugin:
        failed = plugin.wait_event("epc.published")
    assert "403" in failed["reason"] or "forbidden" in failed["reason"]
    assert set(api.requests) == {"GET /api/v1/nodes"}


def test_only_the_status_of_the_own_node_is_written(tmp_path: Path, kubelet: KubeletEmulator, api: NodeApi) -> None:
    with large_node(tmp_path, kubelet, api):
        api.wait(lambda: api.amount(EPC) == "524288")
    assert set(api.requests) == {
        "GET /api/v1/nodes",
        f"PATCH /api/v1/nodes/worker-1/status?fieldManager={FIELD_MANAGER}",
    }
    assert api.node["spec"] == {"podCIDR": "10.244.0.0/24"}


def test_no_epc_is_promised_while_the_driver_is_away(tmp_path: Path, kubelet: KubeletEmulator, api: NodeApi) -> None:
    with large_node(tmp_path, kubelet, api) as plugin:
        api.wait(lambda: api.amount(EPC) == "524288")
        device = plugin.root / "dev/sgx_enclave"
        device.rename(device.with_name("gone"))
        api.wait(lambda: api.amount(EPC) == "0")
        kubelet.wait_allocatable(ENCLAVE, 0)
        device.with_name("gone").rename(device)
        api.wait(lambda: api.amount(EPC) == "524288")


def test_reserve_and_overcommit_show_the_true_size(tmp_path: Path, kubelet: KubeletEmulator, api: NodeApi) -> None:
    with large_node(tmp_path, kubelet, api, epc="16Gi", reserve_mib=384, overcommit=1.25):
        api.wait(lambda: api.amount(EPC) == "20k")
        labels = api.node["metadata"]["labels"]
        assert labels["confcom.dev/sgx-epc-mib"] == "16384"
        assert labels["confcom.dev/sgx-epc-overcommit"] == "1.25"


def test_a_large_node_without_a_name_is_told_what_to_do(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet, epc="16Gi") as plugin:
        error = plugin.failure()
    assert isinstance(error, ConfigError)
    assert "16384 units are more than the limit of 3072" in error.message
    assert "--node-name" in error.advice()


def test_credentials_that_are_not_there_are_told(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    nowhere = str(tmp_path / "none")
    with RunningPlugin(tmp_path, kubelet, epc="16Gi", node_name="worker-1", kubeconfig=nowhere) as plugin:
        assert "configuration-error" in plugin.wait_event("epc.published")["reason"]


@pytest.mark.promise("M2")
def test_an_amount_is_held_back_while_the_kubelet_would_fail_its_pods(
    tmp_path: Path, kubelet: KubeletEmulator, api: NodeApi
) -> None:
    """A kubelet that knew EPC as devices keeps it so, and says so in its checkpoint alone."""
    folder = tmp_path / "plugins"  # books of our own, at a kubelet that says who holds what
    folder.mkdir()

    def remembers(pods: list[dict[str, Any]] | None, devices: dict[str, list[str]]) -> None:
        content = {"PodDeviceEntries": pods, "RegisteredDevices": devices}
        (folder / "draft").write_text(json.dumps({"Data": content, "Checksum": 1}))
        (folder / "draft").rename(folder / "kubelet_internal_checkpoint")

    entry = {"PodUID": "u", "ContainerName": "c", "ResourceName": EPC, "DeviceIDs": {"-1": ["0000"]}, "AllocResp": "x"}
    kubelet.pods = {"default/old": {EPC: ["0000"]}, "default/older": {EPC: ["0001"]}}
    remembers([entry, entry], {EPC: [], "other/x": ["1"]})
    with large_node(tmp_path, kubelet, api, plugin_dir=str(folder)) as plugin:
        assert "2 containers hold" in plugin.wait_event("epc.held_back")["reason"]
        api.wait(lambda: "confcom.dev/sgx-epc-mib" in api.node["metadata"]["labels"])
        # The pods end, which the checkpoint does not say before the next allocation; the kubelet does when asked.
        kubelet.pods = {}
        assert "for five minutes" in plugin.wait_event("epc.held_back", 2)["reason"]
        assert api.amount(EPC) is None
        remembers([entry, entry], {"other/x": ["1"]})
        api.wait(lambda: api.amount(EPC) == "524288")
        assert plugin.wait_event("epc.held_back", 3) == {"reason": ""}


def test_a_kubelet_that_cannot_be_asked_holds_the_amount_back(
    tmp_path: Path, kubelet: KubeletEmulator, api: NodeApi
) -> None:
    entry = {"PodUID": "u", "ContainerName": "c", "ResourceName": EPC}
    content = {"Data": {"PodDeviceEntries": [entry], "RegisteredDevices": None}, "Checksum": 1}
    (tmp_path / "kubelet_internal_checkpoint").write_text(json.dumps(content))
    settings = {"plugin_dir": str(tmp_path), "pod_resources_socket": str(tmp_path / "none")}
    with large_node(tmp_path, kubelet, api, **settings) as plugin:
        assert "does not say who holds" in plugin.wait_event("epc.held_back")["reason"]
        assert api.amount(EPC) is None
