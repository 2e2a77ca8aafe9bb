from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from confcom.devices.resources import EpcUnits
from confcom.devices.sgx_node import declare_node, find_sgx
from confcom.errors import ConfigError, RemoteProtocolError
from confcom.protocols import kubelet as k
from confcom.services.device_plugin.kubelet_plugin import PluginEvent, RegistryRegistration, ResourceServer
from confcom.services.device_plugin.plugin import DevicePluginConfig


def server_of(folder: Path, mib: int, events: list[PluginEvent]) -> ResourceServer:
    host = declare_node(folder, (mib << 20,), b"machine")
    units = EpcUnits(host)
    return ResourceServer(units, find_sgx(host), events.append)


def grow(server: ResourceServer, folder: Path, mib: int) -> None:
    server.update(find_sgx(declare_node(folder, (mib << 20,), b"machine")))


async def test_every_stream_is_told_of_a_change_once(tmp_path: Path) -> None:
    server = server_of(tmp_path, 2, [])
    watch = server.handlers()[k.LIST_AND_WATCH]
    streams = [watch(k.Empty()), watch(k.Empty())]
    assert [(await anext(stream)).ByteSize() for stream in streams] == [2 * 17] * 2
    assert server.streams.open == 2
    waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
    grow(server, tmp_path, 2)
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    grow(server, tmp_path, 3)
    assert [(await task).ByteSize() for task in waiting] == [3 * 17] * 2
    for stream in streams:
        await stream.aclose()
    assert server.streams.open == 0


async def test_a_list_that_grew_too_long_is_not_sent(tmp_path: Path) -> None:
    events: list[PluginEvent] = []
    server = server_of(tmp_path, k.MAX_MESSAGE // 17 + 1, events)
    stream = server.handlers()[k.LIST_AND_WATCH](k.Empty())
    with pytest.raises(ConfigError, match="make a message of 4194308 bytes"):
        await anext(stream)
    assert [event.name for event in events] == ["devices.too_many"]
    assert server.streams.open == 0


async def test_streams_end_in_order_when_they_are_ended(tmp_path: Path) -> None:
    server = server_of(tmp_path, 1, [])
    stream = server.handlers()[k.LIST_AND_WATCH](k.Empty())
    await anext(stream)

    async def drain() -> int:
        return len([message async for message in stream])

    rest = asyncio.create_task(drain())
    await asyncio.sleep(0)
    await server.streams.end()
    assert await rest == 0
    assert server.streams.open == 0


def test_what_it_registers_as(tmp_path: Path) -> None:
    """Bytes by hand from the interface's field numbers: what a kubelet expects."""
    server = server_of(tmp_path, 1, [])
    name = b"kubernetes.azure.com/sgx_epc_mem_in_MiB"
    request = b"\x0a\x07v1beta1\x12\x06a.sock\x1a" + bytes([len(name)]) + name + b"\x22\x02\x10\x01"
    assert server.registration("a.sock").SerializeToString() == request
    info = b"\x0a\x0cDevicePlugin\x12" + bytes([len(name)]) + name + b"\x1a\x02/s\x22\x07v1beta1"
    assert server.info("/s").SerializeToString() == info


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([], "no device of .* is asked for"),
        (["0000", "0000"], "is asked for twice"),
        (["0000", "none"], "1 of 2 devices of .* do not exist"),
        ([""], "1 of 1 devices of .* do not exist"),
    ],
)
async def test_nobody_gets_the_driver_without_a_device_of_ours(tmp_path: Path, ids: list[str], reason: str) -> None:
    """A container without any brought the enclave device, and SGX_EPC_MIB=0."""
    request = k.AllocateRequest()
    request.container_requests.add(devices_ids=ids)
    with pytest.raises(RemoteProtocolError, match=reason):
        await server_of(tmp_path, 2, []).handlers()[k.ALLOCATE](request)


async def test_a_kubelet_that_refuses_without_a_reason_has_refused(tmp_path: Path) -> None:
    events: list[PluginEvent] = []
    config = DevicePluginConfig(registry_dir=str(tmp_path))
    registration = RegistryRegistration(server_of(tmp_path, 2, []), config, events.append, lambda: None)
    notified = registration._handlers()[k.NOTIFY_REGISTRATION_STATUS]
    await notified(k.RegistrationStatus(plugin_registered=False))
    assert registration.unhealthy_reason == "the kubelet refused it, and says no reason"
    await notified(k.RegistrationStatus(plugin_registered=True))
    assert registration.unhealthy_reason == ""
    assert [event.fields["outcome"] for event in events] == ["failed", "registered"]
