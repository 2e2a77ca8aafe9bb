"""EPC as an amount in the node's status: what the status should say, whether it does, and the patch if not.

Pure. The kubelet makes `allocatable` equal to `capacity` for resources that it does not know itself, so both say what
may be requested: reserve taken off, overcommit applied. The true size is a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confcom.cluster.node_values import BOOT_ANNOTATION, OVERCOMMIT_LABEL, TRUE_SIZE_LABEL, NodeStatus
from confcom.devices.epc_pool import EpcPool
from confcom.errors import FormatError
from confcom.protocols.epc import parse_quantity


@dataclass(frozen=True, slots=True)
class EpcAmount:
    """What the node's status should say of one resource. `units` is 0 while the driver is away.

    `units` None: nothing may be requested this way, because EPC is published otherwise.
    """

    resource: str
    units: int | None
    true_mib: int
    overcommit: float = 1.0

    @classmethod
    def of(cls, resource: str, pool: EpcPool, *, healthy: bool = True) -> EpcAmount:
        """The amount of a pool."""
        return cls(resource, pool.units if healthy else 0, pool.true_mib, pool.overcommit)

    @property
    def labels(self) -> Mapping[str, str]:
        """The true size beside the amount."""
        return {TRUE_SIZE_LABEL: str(self.true_mib), OVERCOMMIT_LABEL: f"{self.overcommit:g}"}

    def patch_for(self, status: NodeStatus) -> Mapping[str, object] | None:
        """The merge patch that makes a node's status right; None if it is."""
        amounts = self._withdrawal(status) if self.units is None else self._amounts(status, self.units)
        labels = {name: value for name, value in self.labels.items() if status.labels.get(name) != value}
        metadata: dict[str, object] = {"labels": labels} if labels else {}
        if status.boot_id and status.annotations.get(BOOT_ANNOTATION) != status.boot_id:
            metadata["annotations"] = {BOOT_ANNOTATION: status.boot_id}
        patch: dict[str, object] = {"metadata": metadata} if metadata else {}
        if amounts:
            patch["status"] = amounts
        return patch or None

    def _amounts(self, status: NodeStatus, units: int) -> Mapping[str, object]:
        return {
            part: {self.resource: str(units)}
            for part, found in (("capacity", status.capacity), ("allocatable", status.allocatable))
            if not _says(found.get(self.resource), units)
        }

    def _withdrawal(self, status: NodeStatus) -> Mapping[str, object]:
        # Capacity alone can be what the kubelet remembers of an earlier plugin: nobody can request that.
        offered = status.allocatable.get(self.resource)
        if offered is None or _says(offered, 0):
            return {}
        return {part: {self.resource: None} for part in ("capacity", "allocatable")}


def _says(text: str | None, units: int) -> bool:
    if text is None:
        return False
    try:
        return parse_quantity(text) == units
    except FormatError:
        return False
