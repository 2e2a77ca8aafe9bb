"""The kubelet's side of dynamic resource allocation, as in v1.36: it finds drivers in its registry, watches their
health, has claims prepared once and unprepared when the last pod has gone, and remembers that in a checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from confcom.protocols._pb import kubelet_dra_health_pb2 as health_pb
from confcom.protocols._pb import kubelet_dra_pb2 as pb
from confcom.protocols._pb import kubelet_plugin_registration_pb2 as registration_pb
from kubelet_emulator import KubeletEmulator

SUPPORTED = ("v1.DRAPlugin", "v1beta1.DRAPlugin")


class PrepareError(Exception):
    """What would be an event of the pod."""


@dataclass
class Driver:
    channel: grpc.Channel
    healthy: dict[str, bool] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    stream: Any = None
    watching: bool = False


class DraEmulator(KubeletEmulator):
    """Use like the other; `drivers` are the registered ones by name, `prepared` CDI devices by claim UID."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self.drivers: dict[str, Driver] = {}
        self.health_wanted = True
        """The gate ResourceHealthStatus."""
        self._claims_checkpoint = folder / "dra_manager_state"

    def start(self) -> None:
        self.drivers = {}
        self.prepared: dict[str, list[str]] = {}
        if self._claims_checkpoint.exists():
            self.prepared = json.loads(self._claims_checkpoint.read_text())
        super().start()

    def stop(self) -> None:
        for driver in self.drivers.values():
            driver.channel.close()
        super().stop()

    def prepare(self, driver: str, *claims: dict[str, Any]) -> dict[str, pb.NodePrepareResourceResponse]:
        """For claims as the API has them; those that are known to be prepared are not asked for again."""
        request = pb.NodePrepareResourcesRequest()
        for claim in claims:
            if claim["metadata"]["uid"] not in self.prepared:
                self._add(request, claim)
        answer = self._dra(driver, "NodePrepareResources", request, pb.NodePrepareResourcesResponse)
        assert set(answer.claims) == {claim.uid for claim in request.claims}, "a claim was skipped"
        for uid, result in answer.claims.items():
            if result.error:
                raise PrepareError(f"NodePrepareResources failed for ResourceClaim {uid}: {result.error}")
            self.prepared[uid] = [name for device in result.devices for name in device.cdi_device_ids]
        self._claims_checkpoint.write_text(json.dumps(self.prepared))
        return dict(answer.claims)

    def unprepare(self, driver: str, *claims: dict[str, Any]) -> None:
        request = pb.NodeUnprepareResourcesRequest()
        for claim in claims:
            self._add(request, claim)
        answer = self._dra(driver, "NodeUnprepareResources", request, pb.NodeUnprepareResourcesResponse)
        assert set(answer.claims) == {claim["metadata"]["uid"] for claim in claims}, "a claim was skipped"
        for uid, result in answer.claims.items():
            if result.error:
                raise PrepareError(f"NodeUnprepareResources failed for ResourceClaim {uid}: {result.error}")
            self.prepared.pop(uid, None)
        self._claims_checkpoint.write_text(json.dumps(self.prepared))

    def forget_claims(self) -> None:
        """As when the checkpoint is lost: everything is prepared again."""
        self.prepared = {}

    @staticmethod
    def _add(request: Any, claim: dict[str, Any]) -> None:
        metadata = claim["metadata"]
        request.claims.add(namespace=metadata["namespace"], uid=metadata["uid"], name=metadata["name"])

    def _dra(self, driver: str, name: str, request: Any, answer: Any) -> Any:
        method = self.drivers[driver].channel.unary_unary(
            f"/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return method(request, timeout=60)
        except grpc.RpcError as error:
            raise PrepareError(f"{name}: {error.code().name}: {error.details()}") from error

    def _take_plugin(self, info: registration_pb.PluginInfo, endpoint: Path) -> str:
        if info.type != "DRAPlugin":
            return super()._take_plugin(info, endpoint)
        if not set(SUPPORTED) & set(info.supported_versions):
            return f"invalid supported gRPC versions of DRA driver plugin {info.name}"
        driver = Driver(grpc.insecure_channel(f"unix:{endpoint}", options=[("grpc.use_local_subchannel_pool", 1)]))
        with self.changed:
            self.registrations[info.name] += 1
            self.drivers[info.name] = driver
            self.changed.notify_all()
        if self.health_wanted:
            self._spawn(self._watch_health, driver)
        return ""

    def _watch_health(self, driver: Driver) -> None:
        watch = driver.channel.unary_stream(
            "/v1alpha1.DRAResourceHealth/NodeWatchResources",
            request_serializer=health_pb.NodeWatchResourcesRequest.SerializeToString,
            response_deserializer=health_pb.NodeWatchResourcesResponse.FromString,
        )
        try:
            driver.stream = watch(health_pb.NodeWatchResourcesRequest())
            for told in driver.stream:
                with self.changed:
                    driver.watching = True
                    devices = {entry.device.device_name: entry for entry in told.devices}
                    driver.healthy = {name: entry.health == health_pb.HEALTHY for name, entry in devices.items()}
                    driver.messages = {name: entry.message for name, entry in devices.items()}
                    self.changed.notify_all()
        except (grpc.RpcError, ValueError):
            pass
        with self.changed:
            driver.watching = False
            self.changed.notify_all()
