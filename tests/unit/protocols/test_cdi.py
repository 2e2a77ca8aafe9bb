from __future__ import annotations

import json

from confcom.protocols.kubelet import ContainerAllocateResponse, DeviceSpec, Mount, cdi_spec


def test_what_a_device_brings_is_said_as_the_specification_wants_it() -> None:
    brought = ContainerAllocateResponse(
        devices=[DeviceSpec(host_path="/dev/sgx_enclave", container_path="/dev/sgx/enclave", permissions="rw")],
        mounts=[
            Mount(host_path="/h", container_path="/c", read_only=True),
            Mount(host_path="/h2", container_path="/c2"),
        ],
        envs={"SGX_EPC_MIB": "10"},
    )
    spec = json.loads(cdi_spec("v.example/claim", {"a": brought, "b": ContainerAllocateResponse()}, {"x/y": "z"}))
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
