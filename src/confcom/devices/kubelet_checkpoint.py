"""What the kubelet's device manager remembers of a resource: as long as it does, it lets no pod have it otherwise.

A node that published EPC as devices before cannot offer it as an amount at once. The kubelet keeps the resource for
five minutes after its plugin has gone, longer while a pod holds devices, and fails pods that ask for it ("no healthy
devices present"). Its checkpoint says so; it is the one sign that there is (Kubernetes 1.36, cm/devicemanager).
"""

from __future__ import annotations

from dataclasses import dataclass
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


_CHECKPOINT = msgspec.json.Decoder(_Checkpoint)


@dataclass(frozen=True, slots=True)
class Remembered:
    """`registered`: as one of a device plugin; `holders`: containers that hold devices of it, or did.

    Holders that have ended stay in the file until the next allocation of any device.
    """

    registered: bool = False
    holders: int = 0


def remembered(directory: Path, resource: str) -> Remembered:
    """What the kubelet's checkpoint says of a resource; nothing where it cannot be read or is written otherwise."""
    path = directory / CHECKPOINT
    try:
        if path.stat().st_size > MAX_SIZE:
            return Remembered()
        found = _CHECKPOINT.decode(path.read_bytes()).Data
    except (OSError, msgspec.MsgspecError):
        return Remembered()
    holders = sum(entry.ResourceName == resource for entry in found.PodDeviceEntries or ())
    return Remembered(resource in (found.RegisteredDevices or {}), holders)
