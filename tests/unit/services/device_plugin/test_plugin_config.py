from __future__ import annotations

import msgspec
import pytest

from confcom.errors import ConfigError
from confcom.services.device_plugin.plugin import DevicePluginConfig


def test_the_defaults_are_sound_and_deny_provisioning() -> None:
    config = DevicePluginConfig()
    config.check()
    assert config.provision_limit == 0
    assert config.namespaces == frozenset()
    assert config.resource == "kubernetes.azure.com/sgx_epc_mem_in_MiB"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"provision_limit": 1}, "provision_namespaces: names no namespace"),
        ({"provision_limit": 1, "provision_namespaces": " , "}, "provision_namespaces: names no namespace"),
        ({"resource": "sgx.intel.com/epc"}, "counts bytes"),
        ({"resource": "sgx.intel.com/enclave"}, "the same name"),
        ({"resource": "epc"}, "no name that the kubelet takes"),
        ({"resource": "kubernetes.io/epc"}, "no name that the kubelet takes"),
        ({"resource": "node.kubernetes.io/epc"}, "no name that the kubelet takes"),
        ({"enclave_resource": "a/b/c"}, "no name that the kubelet takes"),
        ({"helper_resource": "aesm"}, "no name that the kubelet takes"),
        ({"helper_resource": "sgx.intel.com/enclave"}, "the same name"),
        ({"helper_folder": "run/aesmd"}, "no folder"),
        ({"helper_folder": "/var/run/../lib"}, "no folder"),
    ],
)
def test_contradictions_are_named(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        msgspec.convert(settings, DevicePluginConfig).check()


def test_other_dialects_in_mib_may_be_the_canonical_one() -> None:
    for name in ("sgx.intel.com/sgx_epc_mem_in_MiB", "alibabacloud.com/sgx_epc_MiB"):
        DevicePluginConfig(resource=name).check()


@pytest.mark.parametrize("settings", [{"overcommit": 0.5}, {"unit_limit": 200_000}, {"reserve_mib": -1}, {"colour": 1}])
def test_values_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(settings, DevicePluginConfig)
