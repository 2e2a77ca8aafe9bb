"""The kubelet's second way to find a plugin, as values: it watches a directory of sockets and asks each who it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from confcom.protocols._pb import kubelet_plugin_registration_pb2 as pb
from confcom.protocols.kubelet import VERSION
from confcom.protocols.kubelet_calls import Empty, Method, read_message


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """Who a socket in the kubelet's registry directory is; without `endpoint` it serves the plugin itself."""

    name: str
    endpoint: str = ""
    type: str = "DevicePlugin"
    supported_versions: tuple[str, ...] = (VERSION,)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        message = read_message(pb.PluginInfo(), data)
        return cls(message.name, message.endpoint, message.type, tuple(message.supported_versions))

    def __bytes__(self) -> bytes:
        return pb.PluginInfo(
            type=self.type, name=self.name, endpoint=self.endpoint, supported_versions=self.supported_versions
        ).SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class RegistrationStatus:
    """What became of it; `error` is the kubelet's reason."""

    registered: bool
    error: str = ""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read it."""
        message = read_message(pb.RegistrationStatus(), data)
        return cls(message.plugin_registered, message.error)

    def __bytes__(self) -> bytes:
        return pb.RegistrationStatus(plugin_registered=self.registered, error=self.error).SerializeToString(
            deterministic=True
        )


GET_INFO = Method("/pluginregistration.Registration/GetInfo", Empty, PluginInfo)
NOTIFY_REGISTRATION_STATUS = Method(
    "/pluginregistration.Registration/NotifyRegistrationStatus", RegistrationStatus, Empty
)
