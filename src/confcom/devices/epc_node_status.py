"""EPC as an amount in the node's status: what the status should say, whether it does, and the patch if not.

Pure. The kubelet makes `allocatable` equal to `capacity` for resources that it does not know itself, so both say what
may be requested: reserve taken off, overcommit applied. The true size is a label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from confcom.devices.epc_pool import EpcPool
from confcom.devices.interface import NodeStatus
from confcom.errors import FormatError

TRUE_SIZE_LABEL = "confcom.dev/sgx-epc-mib"
"""MiB of EPC that the node has."""
OVERCOMMIT_LABEL = "confcom.dev/sgx-epc-overcommit"
"""The ratio between what may be requested and what is there beside the reserve."""

_SUFFIXES: Mapping[str, Fraction] = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12), "P": Fraction(10**15),
    "E": Fraction(10**18), "Ki": Fraction(1 << 10), "Mi": Fraction(1 << 20), "Gi": Fraction(1 << 30),
    "Ti": Fraction(1 << 40), "Pi": Fraction(1 << 50), "Ei": Fraction(1 << 60),
}  # fmt: skip
_QUANTITY = re.compile(
    r"([+-]?)([0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32})(?:[eE]([+-]?[0-9]{1,2})|([numkMGTPE]|[KMGTPE]i)?)"
)


def parse_quantity(text: str) -> Fraction:
    """A Kubernetes Quantity, such as `1k` for 1000 or `512Gi`; `FormatError` for anything else."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise FormatError(f"{text[:40]!r} is no quantity", structure="Quantity", field="")
    sign, digits, exponent, suffix = match.groups()
    scale = Fraction(10) ** int(exponent) if exponent else _SUFFIXES[suffix or ""]
    return Fraction(digits) * scale * (-1 if sign == "-" else 1)


@dataclass(frozen=True, slots=True)
class EpcAmount:
    """What the node's status should say of one resource. `units` is 0 while the driver is away."""

    resource: str
    units: int
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
        amounts = {
            part: {self.resource: str(self.units)}
            for part, found in (("capacity", status.capacity), ("allocatable", status.allocatable))
            if not _says(found.get(self.resource), self.units)
        }
        labels = {name: value for name, value in self.labels.items() if status.labels.get(name) != value}
        patch: dict[str, object] = {"metadata": {"labels": labels}} if labels else {}
        if amounts:
            patch["status"] = amounts
        return patch or None


def _says(text: str | None, units: int) -> bool:
    if text is None:
        return False
    try:
        return parse_quantity(text) == units
    except FormatError:
        return False
