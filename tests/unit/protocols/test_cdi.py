from __future__ import annotations

import json

from confcom.protocols.kubelet import ContainerAllocation, DeviceNode, Mount
from confcom.protocols.kubelet_dra import cdi_spec


def test_what_a_device_brings_is_said_as_the_specification_wants_it() -> None:
    brought = ContainerAllocation(
        devices=(DeviceNode("/dev/sgx_enclave", "/dev/sgx/enclave"),),
        mounts=(Mount("/h", "/c"), Mount("/h2", "/c2", read_only=False)),
        environment=(("SGX_EPC_MIB", "10"),),
    )
    spec = json.loads(cdi_spec("v.example/claim", {"a": brought, "b": ContainerAllocation()}, {"x/y": "z"}))
    assert spec == {
        "cdiVersion": "0.6.0",
        "kind": "v.example/claim",
        "annotations": {"x/y": "z"},
        "devices": [
            {
                "name": "a",
                "containerEdits": {
                    "env": ["SGX_EPC_MIB=10"],
                    "deviceNodes": [
                        {
                            "path": "/dev/sgx/enclave",
                            "hostPath": "/dev/sgx_enclave",
                            "permissions": "rw",
                            "fileMode": 0o666,
                        }
                    ],
                    "mounts": [
                        {"hostPath": "/h", "containerPath": "/c", "options": ["bind", "nosuid", "nodev", "ro"]},
                        {"hostPath": "/h2", "containerPath": "/c2", "options": ["bind", "nosuid", "nodev"]},
                    ],
                },
            },
            {"name": "b", "containerEdits": {}},
        ],
    }
