"""The health of a DRA driver's devices as values: each message is a complete list, and counts for a while."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from confcom.protocols._pb import kubelet_dra_health_pb2 as pb
from confcom.protocols.kubelet_calls import Empty, Method, read_message

MAX_MESSAGE = 1024
"""Characters of a reason."""


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """One device's; `known` is seconds since 1970, `timeout` the seconds that it counts from then on."""

    pool: str
    device: str
    healthy: bool
    known: int
    timeout: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class HealthList:
    """Every device of the driver."""

    devices: tuple[DeviceHealth, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        message = read_message(pb.NodeWatchResourcesResponse(), data)
        return cls(
            tuple(
                DeviceHealth(
                    entry.device.pool_name,
                    entry.device.device_name,
                    entry.health == pb.HEALTHY,
                    entry.last_updated_time,
                    entry.health_check_timeout_seconds,
                    entry.message,
                )
                for entry in message.devices
            )
        )

    def __bytes__(self) -> bytes:
        message = pb.NodeWatchResourcesResponse()
        for device in self.devices:
            message.devices.add(
                device=pb.DeviceIdentifier(pool_name=device.pool, device_name=device.device),
                health=pb.HEALTHY if device.healthy else pb.UNHEALTHY,
                last_updated_time=device.known,
                health_check_timeout_seconds=device.timeout,
                message=device.message[:MAX_MESSAGE],
            )
        return message.SerializeToString(deterministic=True)


WATCH_HEALTH = Method("/v1alpha1.DRAResourceHealth/NodeWatchResources", Empty, HealthList, streams=True)
