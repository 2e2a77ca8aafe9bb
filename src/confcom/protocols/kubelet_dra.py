"""The kubelet's API for DRA drivers (v1) and their health (v1alpha1), and CDI files; no sockets.

The kubelet calls us; it finds our socket in its registry directory and asks who it is (`PLUGIN_TYPE`, `SERVICE`). What
a prepared claim brings into containers is a CDI file, which the container runtime reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from confcom.protocols._pb.kubelet_dra_health_pb2 import (
    HEALTHY,
    UNHEALTHY,
    DeviceHealth,
    DeviceIdentifier,
    NodeWatchResourcesRequest,
    NodeWatchResourcesResponse,
)
from confcom.protocols._pb.kubelet_dra_pb2 import (
    Claim,
    Device,
    NodePrepareResourceResponse,
    NodePrepareResourcesRequest,
    NodePrepareResourcesResponse,
    NodeUnprepareResourceResponse,
    NodeUnprepareResourcesRequest,
    NodeUnprepareResourcesResponse,
)
from confcom.protocols.kubelet import ContainerAllocateResponse, Method

__all__ = [
    "Claim",
    "Device",
    "DeviceHealth",
    "NodePrepareResourceResponse",
    "NodePrepareResourcesRequest",
    "NodePrepareResourcesResponse",
    "NodeUnprepareResourceResponse",
    "NodeUnprepareResourcesRequest",
    "NodeUnprepareResourcesResponse",
    "NodeWatchResourcesRequest",
    "NodeWatchResourcesResponse",
]

PLUGIN_TYPE = "DRAPlugin"
SERVICE = "v1.DRAPlugin"
"""What the registration lists as supported."""
MAX_REASON = 1024
"""Characters of a reason in the health of a device."""

_PATH = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"
PREPARE = Method(f"{_PATH}/NodePrepareResources", NodePrepareResourcesRequest, NodePrepareResourcesResponse)
UNPREPARE = Method(f"{_PATH}/NodeUnprepareResources", NodeUnprepareResourcesRequest, NodeUnprepareResourcesResponse)
WATCH_HEALTH = Method(
    "/v1alpha1.DRAResourceHealth/NodeWatchResources",
    NodeWatchResourcesRequest,
    NodeWatchResourcesResponse,
    streams=True,
)


def device_health(pool: str, device: str, reason: str, *, known: int, timeout: int) -> DeviceHealth:
    """Healthy unless there is a reason; `known` in seconds since 1970, after which it counts for `timeout` seconds."""
    return DeviceHealth(
        device=DeviceIdentifier(pool_name=pool, device_name=device),
        health=UNHEALTHY if reason else HEALTHY,
        last_updated_time=known,
        health_check_timeout_seconds=timeout,
        message=reason[:MAX_REASON],
    )


CDI_VERSION = "0.6.0"
"""Of the container device interface's specification: the first with annotations (`hostPath` came with 0.5.0)."""
DEVICE_MODE = 0o666
"""Every user of a container that was given a device may open it, as containerd does where no mode is given."""
MOUNT_OPTIONS = ("bind", "nosuid", "nodev")


def cdi_spec(kind: str, devices: Mapping[str, ContainerAllocateResponse], annotations: Mapping[str, str]) -> bytes:
    """The content of a CDI file for devices of one kind (`vendor/class`), by name."""
    spec = {
        "cdiVersion": CDI_VERSION,
        "kind": kind,
        "annotations": dict(annotations),
        "devices": [{"name": name, "containerEdits": _edits(brought)} for name, brought in devices.items()],
    }
    return json.dumps(spec, indent=1).encode() + b"\n"


def _edits(brought: ContainerAllocateResponse) -> dict[str, Any]:
    edits: dict[str, Any] = {
        "env": [f"{name}={value}" for name, value in sorted(brought.envs.items())],
        "deviceNodes": [
            {
                "path": node.container_path,
                "hostPath": node.host_path,
                "permissions": node.permissions,
                "fileMode": DEVICE_MODE,
            }
            for node in brought.devices
        ],
        "mounts": [
            {
                "hostPath": mount.host_path,
                "containerPath": mount.container_path,
                "options": [*MOUNT_OPTIONS, *(["ro"] if mount.read_only else [])],
            }
            for mount in brought.mounts
        ],
    }
    return {name: entries for name, entries in edits.items() if entries}
