"""The way to the node's quote helper as a resource: a container that requests it finds the helper's folder in place.

A pod needs no volume for that, so it may live where Pod Security forbids those of the host. What it gets is less than
such a volume, too: the mount is read-only, which is enough to connect to the socket, and nobody can replace that for
others. Only who asks gets it: another's image may have a service of its own in this place.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from confcom.devices.device_slots import any_of, slots
from confcom.devices.interface import Inventory
from confcom.devices.sgx_node import SgxNode
from confcom.errors import PlatformUnavailable
from confcom.protocols.aesm import FOLDER, RESOURCE, SOCKET, VARIABLE
from confcom.protocols.kubelet import ContainerAllocation, Mount

PATIENCE = 60.0
"""Seconds for which a helper may be away before pods are no longer sent to this node."""


class HelperSlots:
    """A DeviceResource of `count` slots. `folder` is seen here under the path that it has on the host.

    The kubelet fails pods that come when it has just been told of unhealthy slots. So a helper that was there is waited
    for a while when its socket is away. Not so without the folder: a runtime would make an empty one, or fail.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        *,
        name: str = RESOURCE,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.endpoint = "quote-helper"
        self.prefers = False
        self.guarded = False
        self.essential = False
        self._folder = folder
        self._count = count
        self._patience = patience
        self._clock = clock
        self._seen: float | None = None

    def inventory(self, node: SgxNode) -> Inventory:
        """The slots, healthy while a helper is there or will be back; what there is of SGX does not matter."""
        reason = self._why_no_folder() or self._why_no_helper()
        return Inventory(slots(self.endpoint, self._count, reason), node, reason)

    def prefer(self, available: Sequence[str], must_include: Sequence[str], size: int) -> tuple[str, ...]:
        """Any will do."""
        return any_of(available, must_include, size)

    def grant(self, ids: Sequence[str], inventory: Inventory) -> ContainerAllocation:
        """The folder, read-only, and the variable that says to ask there."""
        del ids
        if inventory.reason:
            raise PlatformUnavailable(inventory.reason)
        return ContainerAllocation(mounts=(Mount(str(self._folder), FOLDER),), environment=((VARIABLE, "1"),))

    def _why_no_folder(self) -> str:
        try:
            links = self._folder.stat().st_nlink
        except OSError as error:
            return f"{self._folder}: {error.strerror}"
        # We hold on to what was mounted here; under its path on the node there may be another by now.
        return (
            "" if links else f"{self._folder} was removed from the node: restart the device plugin and the helper there"
        )

    def _why_no_helper(self) -> str:
        now = self._clock()
        try:
            is_socket = stat.S_ISSOCK((self._folder / SOCKET).lstat().st_mode)
        except OSError as error:
            if self._seen is not None and now - self._seen < self._patience:
                return ""
            return f"no quote helper: {self._folder / SOCKET}: {error.strerror}"
        self._seen = now if is_socket else None
        return "" if is_socket else f"no quote helper: {self._folder / SOCKET} is no socket"
