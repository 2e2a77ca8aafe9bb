"""The kubelet's API for DRA drivers, v1, as values: which claims to make ready, and what a container gets by each.

The kubelet calls us; it finds our socket in its registry directory and asks who it is (`PLUGIN_TYPE`, `SERVICE`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from confcom.protocols._pb import kubelet_dra_health_pb2 as health_pb
from confcom.protocols._pb import kubelet_dra_pb2 as pb
from confcom.protocols.kubelet import ContainerAllocation, Empty, Method, read_message

PLUGIN_TYPE = "DRAPlugin"
SERVICE = "v1.DRAPlugin"
"""What the registration lists as supported."""
_PATH = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"


@dataclass(frozen=True, slots=True)
class ClaimName:
    """A ResourceClaim. Namespace and name may belong to another claim by now; the UID may not."""

    namespace: str
    uid: str
    name: str


@dataclass(frozen=True, slots=True)
class ClaimsRequest:
    """Claims to make ready, or to let go."""

    claims: tuple[ClaimName, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it; both requests have the same layout."""
        message = read_message(pb.NodePrepareResourcesRequest(), data)
        return cls(tuple(ClaimName(claim.namespace, claim.uid, claim.name) for claim in message.claims))

    def __bytes__(self) -> bytes:
        message = pb.NodePrepareResourcesRequest()
        for claim in self.claims:
            message.claims.add(namespace=claim.namespace, uid=claim.uid, name=claim.name)
        return message.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class PreparedDevice:
    """What a container gets when it names one of `requests` of the claim: the CDI devices."""

    pool: str
    device: str
    requests: tuple[str, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    share: str = ""


@dataclass(frozen=True, slots=True)
class PreparedClaim:
    """One claim's devices, or why it has none."""

    devices: tuple[PreparedDevice, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class PrepareResponse:
    """By the claim's UID."""

    claims: Mapping[str, PreparedClaim]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        message = read_message(pb.NodePrepareResourcesResponse(), data)
        return cls({uid: _prepared(entry) for uid, entry in message.claims.items()})

    def __bytes__(self) -> bytes:
        message = pb.NodePrepareResourcesResponse()
        for uid, claim in self.claims.items():
            entry = message.claims[uid]
            entry.error = claim.error
            for device in claim.devices:
                entry.devices.add(
                    request_names=device.requests,
                    pool_name=device.pool,
                    device_name=device.device,
                    cdi_device_ids=device.cdi_devices,
                    share_id=device.share or None,
                )
        return message.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class UnprepareResponse:
    """By the claim's UID: why it could not be let go, or nothing."""

    errors: Mapping[str, str]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        message = read_message(pb.NodeUnprepareResourcesResponse(), data)
        return cls({uid: entry.error for uid, entry in message.claims.items()})

    def __bytes__(self) -> bytes:
        message = pb.NodeUnprepareResourcesResponse()
        for uid, error in self.errors.items():
            message.claims[uid].error = error
        return message.SerializeToString(deterministic=True)


PREPARE = Method(f"{_PATH}/NodePrepareResources", ClaimsRequest, PrepareResponse)
UNPREPARE = Method(f"{_PATH}/NodeUnprepareResources", ClaimsRequest, UnprepareResponse)


def _prepared(entry: pb.NodePrepareResourceResponse) -> PreparedClaim:
    devices = tuple(
        PreparedDevice(
            device.pool_name,
            device.device_name,
            tuple(device.request_names),
            tuple(device.cdi_device_ids),
            device.share_id,
        )
        for device in entry.devices
    )
    return PreparedClaim(devices, entry.error)


# --- The health of a DRA driver's devices as values: each message is a complete list, and counts for a while ----------


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
        message = read_message(health_pb.NodeWatchResourcesResponse(), data)
        return cls(
            tuple(
                DeviceHealth(
                    entry.device.pool_name,
                    entry.device.device_name,
                    entry.health == health_pb.HEALTHY,
                    entry.last_updated_time,
                    entry.health_check_timeout_seconds,
                    entry.message,
                )
                for entry in message.devices
            )
        )

    def __bytes__(self) -> bytes:
        message = health_pb.NodeWatchResourcesResponse()
        for device in self.devices:
            message.devices.add(
                device=health_pb.DeviceIdentifier(pool_name=device.pool, device_name=device.device),
                health=health_pb.HEALTHY if device.healthy else health_pb.UNHEALTHY,
                last_updated_time=device.known,
                health_check_timeout_seconds=device.timeout,
                message=device.message[:MAX_MESSAGE],
            )
        return message.SerializeToString(deterministic=True)


WATCH_HEALTH = Method("/v1alpha1.DRAResourceHealth/NodeWatchResources", Empty, HealthList, streams=True)


# --- The container device interface: files by which a container runtime learns what a named device brings; pure -------
#
# Version 0.6.0 of the specification, the first with annotations; `hostPath` came with 0.5.0.


CDI_VERSION = "0.6.0"
DEVICE_MODE = 0o666
"""Whoever runs in a container that was given a device may open it; containerd's choice too where none is said."""
MOUNT_OPTIONS = ("bind", "nosuid", "nodev")


def cdi_spec(kind: str, devices: Mapping[str, ContainerAllocation], annotations: Mapping[str, str]) -> bytes:
    """The content of a file for devices of one kind (`vendor/class`), by name."""
    spec = {
        "cdiVersion": CDI_VERSION,
        "kind": kind,
        "annotations": dict(annotations),
        "devices": [{"name": name, "containerEdits": _edits(brought)} for name, brought in devices.items()],
    }
    return json.dumps(spec, indent=1).encode() + b"\n"


def _edits(brought: ContainerAllocation) -> dict[str, Any]:
    edits: dict[str, Any] = {}
    if brought.environment:
        edits["env"] = [f"{name}={value}" for name, value in brought.environment]
    if brought.devices:
        edits["deviceNodes"] = [
            {
                "path": node.container_path,
                "hostPath": node.host_path,
                "permissions": node.permissions,
                "fileMode": DEVICE_MODE,
            }
            for node in brought.devices
        ]
    if brought.mounts:
        edits["mounts"] = [
            {
                "hostPath": mount.host_path,
                "containerPath": mount.container_path,
                "options": [*MOUNT_OPTIONS, *(["ro"] if mount.read_only else [])],
            }
            for mount in brought.mounts
        ]
    return edits
