"""The kubelet's API for DRA drivers, v1, as values: which claims to make ready, and what a container gets by each.

The kubelet calls us; it finds our socket in its registry directory and asks who it is (`PLUGIN_TYPE`, `SERVICE`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from confcom.protocols._pb import kubelet_dra_pb2 as pb
from confcom.protocols.kubelet_calls import Method, read_message

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
