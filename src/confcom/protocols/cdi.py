"""The container device interface: files by which a container runtime learns what a named device brings; pure.

Version 0.6.0 of the specification, the first with annotations; `hostPath` came with 0.5.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from confcom.protocols.kubelet import ContainerAllocation

CDI_VERSION = "0.6.0"
DEVICE_MODE = 0o666
"""Whoever runs in a container that was given a device may open it; containerd's choice too where none is said."""
MOUNT_OPTIONS = ("bind", "nosuid", "nodev")


def cdi_spec(kind: str, devices: Mapping[str, ContainerAllocation], annotations: Mapping[str, str]) -> bytes:
    """The content of a file for devices of one kind (`vendor/class`), by name."""
    spec = {
        "cdiVersion": CDI_VERSION,
        "kind": kind,
        "annotations": dict(annotations),
        "devices": [{"name": name, "containerEdits": _edits(brought)} for name, brought in devices.items()],
    }
    return json.dumps(spec, indent=1).encode() + b"\n"


def _edits(brought: ContainerAllocation) -> dict[str, Any]:
    edits: dict[str, Any] = {}
    if brought.environment:
        edits["env"] = [f"{name}={value}" for name, value in brought.environment]
    if brought.devices:
        edits["deviceNodes"] = [
            {
                "path": node.container_path,
                "hostPath": node.host_path,
                "permissions": node.permissions,
                "fileMode": DEVICE_MODE,
            }
            for node in brought.devices
        ]
    if brought.mounts:
        edits["mounts"] = [
            {
                "hostPath": mount.host_path,
                "containerPath": mount.container_path,
                "options": [*MOUNT_OPTIONS, *(["ro"] if mount.read_only else [])],
            }
            for mount in brought.mounts
        ]
    return edits
