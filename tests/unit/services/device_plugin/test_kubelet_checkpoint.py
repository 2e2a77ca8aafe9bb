from __future__ import annotations

import json
from pathlib import Path

import pytest

from confcom.errors import PlatformUnavailable
from confcom.services.device_plugin import epc_in_api
from confcom.services.device_plugin.epc_in_api import CHECKPOINT, Remembered, remembered
from no_descriptors import no_descriptors

EPC = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
# As a kubelet 1.36 wrote it, with fewer devices.
WRITTEN = (
    '{"Data":{"PodDeviceEntries":[{"PodUID":"5f9c","ContainerName":"main","ResourceName":"sgx.intel.com/enclave",'
    '"DeviceIDs":{"-1":["enclave-7"]},"AllocResp":"GhsKEC9kZXY="}],"RegisteredDevices":'
    '{"kubernetes.azure.com/sgx_epc_mem_in_MiB":["0000","0001"],"sgx.intel.com/enclave":["enclave-7"]}},'
    '"Checksum":2186034107}'
)


def test_what_a_kubelet_writes_is_understood(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_text(WRITTEN)
    assert remembered(tmp_path, EPC) == Remembered(registered=True)
    assert remembered(tmp_path, "sgx.intel.com/enclave") == Remembered(registered=True, holders=1)
    assert remembered(tmp_path, "other/resource") == Remembered()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"Data": 5}', WRITTEN[:-40], json.dumps({"Data": {}})])
def test_what_cannot_be_read_holds_nothing_back(tmp_path: Path, content: str) -> None:
    """Another version may write another file: EPC of the node must not depend on our reading it."""
    (tmp_path / CHECKPOINT).write_text(content)
    assert remembered(tmp_path, EPC) == Remembered()


def test_no_file_and_one_that_is_too_long_hold_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert remembered(tmp_path, EPC) == Remembered()
    (tmp_path / CHECKPOINT).write_text(WRITTEN)
    monkeypatch.setattr(epc_in_api, "MAX_CHECKPOINT", 10)
    assert remembered(tmp_path, EPC) == Remembered()


def test_without_descriptors_nothing_is_known(tmp_path: Path) -> None:
    """EPC would be offered that the kubelet still keeps as devices, and pods would fail."""
    (tmp_path / CHECKPOINT).write_text(WRITTEN)
    with no_descriptors(), pytest.raises(PlatformUnavailable, match="Too many open files"):
        remembered(tmp_path, EPC)
