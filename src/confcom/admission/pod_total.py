"""EPC of a whole pod, as the scheduler counts it."""

from __future__ import annotations

from collections.abc import Iterable

from confcom.admission.pod_json import Container


def pod_epc(amounts: Iterable[tuple[Container, int]]) -> int:
    """What one node must have for the pod, in the unit of the amounts; containers are given in their order.

    Init containers run one after another, before the others, so the largest of them counts; a sidecar among them stays,
    so it counts beside all that start after it.
    """
    largest_start = sidecars = together = 0
    for container, amount in amounts:
        if container.kind == "containers":
            together += amount
        elif container.is_sidecar:
            sidecars += amount
            largest_start = max(largest_start, sidecars)
        elif container.kind == "initContainers":
            largest_start = max(largest_start, sidecars + amount)
    return max(together + sidecars, largest_start)
