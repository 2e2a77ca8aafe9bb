"""What the kubelet's device manager remembers of a resource: as long as it does, it lets no pod have it otherwise.

A node that published EPC as devices before cannot offer it as an amount at once. The kubelet keeps the resource for
five minutes after its plugin has gone, longer while a pod holds devices, and fails pods that ask for it ("no healthy
devices present"). Its checkpoint says so; it is the one sign that there is (Kubernetes 1.36, cm/devicemanager).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

CHECKPOINT = "kubelet_internal_checkpoint"
"""File name in the kubelet's directory of device plugins."""
MAX_SIZE = 64 << 20
"""Bytes; a quarter of a million devices, all allocated, make about 4 MB."""


class _Entry(msgspec.Struct):
    ResourceName: str


class _Data(msgspec.Struct):
    PodDeviceEntries: list[_Entry] | None = None
    RegisteredDevices: dict[str, msgspec.Raw] | None = None


class _Checkpoint(msgspec.Struct):
    Data: _Data


def why_kept_as_devices(directory: Path, resource: str) -> str:
    """Why the kubelet still takes a resource for devices, as a clause; empty when it does not, or nobody can tell."""
    path = directory / CHECKPOINT
    try:
        if path.stat().st_size > MAX_SIZE:
            return ""
        found = msgspec.json.decode(path.read_bytes(), type=_Checkpoint).Data
    except (OSError, msgspec.MsgspecError):
        return ""
    held = sum(entry.ResourceName == resource for entry in found.PodDeviceEntries or ())
    if held:
        return f"{held} containers hold {resource} as devices of an earlier plugin: it is offered when they have ended"
    if resource in (found.RegisteredDevices or {}):
        return f"the kubelet keeps {resource} as devices of an earlier plugin, for five minutes after that has ended"
    return ""
