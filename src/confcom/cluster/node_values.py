"""What we read of a Node object, as a value: no client is needed to know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """Of a Node object: amounts of extended resources as the API writes them, and the labels."""

    capacity: Mapping[str, str]
    allocatable: Mapping[str, str]
    labels: Mapping[str, str]
