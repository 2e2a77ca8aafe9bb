"""One device per MiB, or an amount in the node's status: which of the two suits a node, and why. Or claims, if wanted.

Measured on kubelet 1.36 (docs/explanation/epc.md): after its restart it spends 70 to 120 ns per device and allocated
device before it admits pods again. 3072 units, all in use, stay under 2 s on a busy machine of 2 cores; 16384 take
half a minute. The message limit comes much later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from confcom.devices.epc_pool import ID_LENGTH, EpcPool
from confcom.errors import ConfigError
from confcom.protocols.kubelet import MAX_MESSAGE, list_and_watch_size

DEFAULT_UNIT_LIMIT = 3072
MAX_UNIT_LIMIT = 180_000
"""Units whose message stays under the kubelet's limit, NUMA nodes included."""

PublisherName: TypeAlias = Literal["auto", "devices", "node-status", "dra"]


@dataclass(frozen=True, slots=True)
class PublisherChoice:
    """How EPC is published, and why, as a clause for the log."""

    name: Literal["devices", "node-status", "dra"]
    reason: str


def choose_publisher(
    pool: EpcPool, *, wanted: PublisherName = "auto", unit_limit: int = DEFAULT_UNIT_LIMIT, topology: bool = False
) -> PublisherChoice:
    """Settle `auto` by the size; `ConfigError` if devices were asked for and the kubelet could not take them."""
    size = list_and_watch_size(pool.units, ID_LENGTH, topology=topology)
    match wanted:
        case "node-status" | "dra":
            return PublisherChoice(wanted, "it was asked for by name")
        case "devices" if size > MAX_MESSAGE:
            raise ConfigError(
                f"{pool.units} devices of 1 MiB make a message of {size} bytes, and the kubelet takes {MAX_MESSAGE}",
                advice="Choose publisher node-status (or auto) for a node of this size.",
            )
        case "devices":
            return PublisherChoice("devices", f"it was asked for by name; {_figures(pool.units, size)}")
        case "auto" if pool.units <= unit_limit:
            return PublisherChoice("devices", f"{_figures(pool.units, size)}, within the limit of {unit_limit} units")
        case _:
            return PublisherChoice("node-status", f"{pool.units} units are more than the limit of {unit_limit}")


def _figures(units: int, size: int) -> str:
    return f"{units} devices of 1 MiB, a message of {size} bytes"
