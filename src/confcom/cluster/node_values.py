"""What we read of a Node object, as a value: no client is needed to know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TRUE_SIZE_LABEL = "confcom.dev/sgx-epc-mib"
"""MiB of EPC that the node has."""
OVERCOMMIT_LABEL = "confcom.dev/sgx-epc-overcommit"
"""The ratio between what may be requested and what is there beside the reserve."""
BOOT_ANNOTATION = "confcom.dev/sgx-epc-boot"
"""The kubelet's boot id when the true size was found: until the next boot the size only falls."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """Of a Node object: amounts of extended resources as the API writes them, labels, annotations, the boot's id."""

    capacity: Mapping[str, str]
    allocatable: Mapping[str, str]
    labels: Mapping[str, str]
    annotations: Mapping[str, str] = field(default_factory=dict)
    boot_id: str = ""
