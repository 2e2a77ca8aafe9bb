"""The device plugin against a kubelet that follows the API to the letter."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from confcom.devices.host import Host
from confcom.devices.sgx_node import declare_node
from confcom.errors import ConfigError, PlatformUnavailable
from confcom.protocols import kubelet as k
from confcom.protocols._pb import kubelet_device_plugin_pb2 as pb
from confcom.services.device_plugin.grpc import GrpcSocket, call
from confcom.services.device_plugin.plugin import SETTLE
from kubelet_emulator import AdmissionError, KubeletEmulator, wait_until
from no_descriptors import no_descriptors
from running_plugin import ENCLAVE, EPC, RunningPlugin

PROVISION = "sgx.intel.com/provision"


def mounted(answer: pb.ContainerAllocateResponse) -> dict[str, str]:
    return {mount.container_path: mount.host_path for mount in answer.mounts}


@pytest.mark.promise("M2")
def test_epc_becomes_a_resource_in_whole_mib(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet) as plugin:
        kubelet.wait_allocatable(EPC, 168)
        assert kubelet.capacity(EPC) == 168
        wait_until(lambda: plugin.started)
        assert plugin.started == [f"{EPC} = 168 (168 MiB of EPC), as devices"]
    # Nothing else is offered: provisioning above all.
    assert set(kubelet.endpoints) == {EPC, ENCLAVE}


@pytest.mark.promise("M2")
def test_a_pod_that_names_epc_and_enclave_gets_one_device(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    """The form that fits nodes of every size; what both resources bring must not disagree."""
    with RunningPlugin(tmp_path, kubelet, enclave_limit=3):
        kubelet.wait_allocatable(EPC, 168)
        kubelet.wait_allocatable(ENCLAVE, 3)
        by_amount = kubelet.admit("default/app", EPC, 10)
        by_slot = kubelet.admit("default/app", ENCLAVE, 1)
        assert mounted(by_amount) == mounted(by_slot)
        assert (dict(by_amount.envs), dict(by_slot.envs)) == ({"SGX_EPC_MIB": "10"}, {})


@pytest.mark.promise("M3")
def test_a_container_gets_the_enclave_device_and_its_size(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet) as plugin:
        kubelet.wait_allocatable(EPC, 168)
        answer = kubelet.admit("default/app", EPC, 10)
        assert dict(answer.envs) == {"SGX_EPC_MIB": "10"}
        device = str(plugin.root / "dev/sgx_enclave")
        assert mounted(answer) == {"/dev/sgx_enclave": device, "/dev/sgx/enclave": device}
        assert all(mount.read_only for mount in answer.mounts)
        assert not answer.annotations
        assert not answer.cdi_devices
        assert plugin.fields("devices.granted") == [
            {"units": 10, "devices": 0, "duration_ms": plugin.fields("devices.granted")[0]["duration_ms"]}
        ]


@pytest.mark.promise("M3")
@pytest.mark.complaint("azure-docs #71783", "intel-device-plugins #1526", "intel-device-plugins #1565")
def test_character_devices_are_passed_under_both_names(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    root = tmp_path / "host"
    declare_node(root, (8 << 20,), b"")
    try:
        for number, name in enumerate(("sgx_enclave", "sgx_provision")):
            (root / "dev" / name).unlink()
            os.mknod(root / "dev" / name, stat.S_IFCHR | 0o660, os.makedev(10, 125 + number))
    except PermissionError:
        pytest.skip("making device nodes needs CAP_MKNOD")
    (root / "dev/sgx").mkdir()
    (root / "dev/sgx/enclave").symlink_to("../sgx_enclave")
    settings = {"provision_limit": 1, "provision_namespaces": "system"}
    with RunningPlugin(tmp_path, kubelet, host=Host(root), **settings):
        kubelet.wait_allocatable(EPC, 8)
        answer = kubelet.admit("default/app", EPC, 8)
        found = [(device.host_path, device.container_path, device.permissions) for device in answer.devices]
        assert found == [("/dev/sgx_enclave", "/dev/sgx_enclave", "rw"), ("/dev/sgx_enclave", "/dev/sgx/enclave", "rw")]
        assert not answer.mounts
        kubelet.wait_allocatable(PROVISION, 1)
        answer = kubelet.admit("system/helper", PROVISION, 1)
        assert [device.container_path for device in answer.devices] == ["/dev/sgx_provision", "/dev/sgx/provision"]
        assert {device.host_path for device in answer.devices} == {"/dev/sgx_provision"}


@pytest.mark.complaint("HAMi #140")
def test_a_whole_node_goes_to_one_container_without_a_list_of_ids(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet, epc="3Gi"):
        kubelet.wait_allocatable(EPC, 3072)
        answer = kubelet.admit("default/app", EPC, 3072)
        assert answer.ByteSize() < 500
        with pytest.raises(AdmissionError, match="available: 0"):
            kubelet.admit("default/late", EPC, 1)


@pytest.mark.promise("M2")
def test_twenty_kubelet_restarts_change_nothing(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet):
        kubelet.wait_allocatable(EPC, 168)
        kubelet.admit("default/app", EPC, 100)
        held, ids = kubelet.pods["default/app"][EPC], kubelet.resources[EPC].healthy
        for _ in range(20):
            kubelet.restart()
            kubelet.wait_allocatable(EPC, 168)
        assert kubelet.registrations[EPC] == 21
        assert kubelet.resources[EPC].healthy == ids
        assert kubelet.pods["default/app"][EPC] == held
        assert set(held) <= ids
        assert kubelet.allocate_calls == 1
        kubelet.admit("default/other", EPC, 68)


def test_a_lost_stream_is_registered_again(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet) as plugin:
        kubelet.wait_allocatable(EPC, 168)
        for number in range(1, 11):
            lost = kubelet.endpoints[EPC]
            kubelet.lose_stream(EPC)
            kubelet.wait(lambda lost=lost: not lost.alive)
            kubelet.wait_allocatable(EPC, 168)
            assert kubelet.registrations[EPC] == number + 1
        assert {fields["reason"] for fields in plugin.fields("kubelet.lost")} == {"the stream ended"}


def test_a_kubelet_that_comes_later_is_waited_for(tmp_path: Path, sockets: Path) -> None:
    kubelet = KubeletEmulator(sockets)
    with RunningPlugin(tmp_path, kubelet) as plugin:
        plugin.wait_event("kubelet.absent", of=EPC)
        assert len(plugin.fields("kubelet.absent", of=EPC)) == 1
        kubelet.start()
        kubelet.wait_allocatable(EPC, 168)
        kubelet.stop()


def test_a_kubelet_that_starts_is_registered_at_however_long_the_last_one_was_dead(
    tmp_path: Path, sockets: Path
) -> None:
    kubelet = KubeletEmulator(sockets)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(kubelet.plugin_dir / "kubelet.sock"))
    with RunningPlugin(tmp_path, kubelet, retry_initial=200, retry_max=200) as plugin:
        # The next attempt would come after the end of this test.
        assert "cannot reach" in plugin.wait_event("kubelet.registered", of=EPC)["reason"]
        kubelet.start()
        kubelet.wait_allocatable(EPC, 168)
        kubelet.stop()


def test_streams_that_end_before_the_registration_is_answered_cost_no_timeout(
    tmp_path: Path, kubelet: KubeletEmulator
) -> None:
    kubelet.streams_to_drop = 5
    with RunningPlugin(tmp_path, kubelet, register_timeout=60.0):
        kubelet.wait(lambda: kubelet.registrations.total() == 7)
        kubelet.wait_allocatable(EPC, 168)


def test_a_directory_that_comes_later_is_waited_for(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    late = tmp_path / "late"
    with RunningPlugin(tmp_path, kubelet, plugin_dir=str(late)) as plugin:
        assert f"cannot listen at {late}/" in (reason := plugin.wait_event("plugin.listen")["reason"])
        assert reason.endswith(f": {late} is not there")
        late.mkdir()
        plugin.wait_event("kubelet.absent")


def test_a_folder_that_was_removed_under_its_mount_ends_the_plugin(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    """A container that starts again has a mount of the folder that the kubelet has made since."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    mounted = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with RunningPlugin(tmp_path, kubelet, plugin_dir=f"/proc/self/fd/{mounted}") as plugin:
            plugin.wait_event("kubelet.absent")
            shutil.rmtree(folder)
            folder.mkdir()
            wait_until(lambda: plugin.error is not None)
            error, plugin.error = plugin.error, None
        assert isinstance(error, PlatformUnavailable)
        assert error.message.endswith(f"/proc/self/fd/{mounted} was removed from the node")
    finally:
        os.close(mounted)


def test_a_refused_registration_is_tried_again(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet, resource="example.com/requests.epc") as plugin:
        kubelet.wait_allocatable("example.com/requests.epc", 168)
    plugin = RunningPlugin(tmp_path, kubelet, resource="requests.example.com/epc")
    with plugin:
        plugin.wait_event("kubelet.registered", 3, of="requests.example.com/epc")
    outcomes = plugin.fields("kubelet.registered", of="requests.example.com/epc")
    assert {fields["outcome"] for fields in outcomes} == {"failed"}
    assert "is invalid" in outcomes[0]["reason"]
    assert not plugin.started


@pytest.mark.promise("M3")
def test_a_device_that_vanishes_makes_epc_unhealthy_until_it_returns(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet) as plugin:
        kubelet.wait_allocatable(EPC, 168)
        kubelet.admit("default/app", EPC, 10)
        device = plugin.root / "dev/sgx_enclave"
        device.rename(device.with_name("gone"))
        kubelet.wait_allocatable(EPC, 0)
        assert kubelet.capacity(EPC) == 168
        health = plugin.wait_event("devices.health", of=EPC)
        assert health["healthy"] is False
        assert "no driver is loaded" in health["reason"]
        device.with_name("gone").rename(device)
        kubelet.wait_allocatable(EPC, 168)
        assert plugin.wait_event("devices.health", 2, of=EPC) == {"healthy": True, "reason": ""}
        # One connection throughout: health is told on the stream.
        assert kubelet.registrations[EPC] == 1
        assert len(kubelet.pods["default/app"][EPC]) == 10


def test_epc_that_vanishes_from_sysfs_keeps_its_ids(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet) as plugin:
        kubelet.wait_allocatable(EPC, 168)
        size = plugin.root / "sys/devices/system/node/node0/x86/sgx_total_bytes"
        size.rename(size.with_name("gone"))
        kubelet.wait_allocatable(EPC, 0)
        assert kubelet.capacity(EPC) == 168
        size.with_name("gone").rename(size)
        kubelet.wait_allocatable(EPC, 168)


def test_nothing_is_sent_while_nothing_changes(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet, health_interval=0.01, watch_interval=0.01) as plugin:
        kubelet.wait_allocatable(EPC, 168)
        kubelet.admit("default/app", EPC, 5)
        plugin.wait_event("devices.granted")
        for _ in range(5):
            kubelet.restart()
            kubelet.wait_allocatable(EPC, 168)
            assert kubelet.endpoints[EPC].sizes == [168 * 17]


@pytest.mark.complaint("intel-device-plugins #1141", "kubernetes #112234")
def test_units_of_one_numa_node_go_together(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet, epc="64Mi,64Mi"):
        kubelet.wait_allocatable(EPC, 128)
        numa = kubelet.resources[EPC].numa
        for number in range(8):
            kubelet.admit(f"default/app{number}", EPC, 15)
            assert len({numa[unit] for unit in kubelet.pods[f"default/app{number}"][EPC]}) == 1
        kubelet.admit("default/rest", EPC, 8)
        assert {numa[unit] for unit in kubelet.pods["default/rest"][EPC]} == {0, 1}


@pytest.mark.complaint("intel-device-plugins #1141", "kubernetes #112234")
def test_one_numa_node_has_no_topology_and_no_preference(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet):
        kubelet.wait_allocatable(EPC, 168)
        assert kubelet.resources[EPC].numa == {}
        assert not kubelet.endpoints[EPC].options.get_preferred_allocation_available


def test_the_kubelet_may_find_us_in_its_registry(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet, registration="registry", register_timeout=0.2) as plugin:
        kubelet.wait_allocatable(EPC, 168)
        assert plugin.wait_event("kubelet.registered", of=EPC) == {"outcome": "registered", "reason": ""}
        kubelet.admit("default/app", EPC, 10)
        for _ in range(3):
            kubelet.restart()
            kubelet.wait_allocatable(EPC, 168)
        kubelet.lose_stream(EPC)
        kubelet.wait(lambda: not kubelet.endpoints[EPC].alive)
        kubelet.wait_allocatable(EPC, 168)
        assert kubelet.allocate_calls == 1
    assert list(kubelet.registry_dir.iterdir()) == []


@pytest.mark.complaint("kubernetes #109304", "HAMi #99")
def test_devices_that_make_too_long_a_message_are_refused_before_anything_is_sent(
    tmp_path: Path, kubelet: KubeletEmulator
) -> None:
    with RunningPlugin(tmp_path, kubelet, epc="256Gi", publisher="devices") as plugin:
        error = plugin.failure()
    assert isinstance(error, ConfigError)
    assert "262144 devices of 1 MiB make a message of 4456448 bytes" in error.message
    assert not kubelet.registrations


def test_the_longest_message_is_taken(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    count = 4 * 1024 * 1024 // 17
    with RunningPlugin(tmp_path, kubelet, epc=f"{count}Mi", publisher="devices", health_interval=60):
        kubelet.wait_allocatable(EPC, count)
        assert kubelet.endpoints[EPC].sizes == [count * 17]


def message_of(size: int) -> k.ListAndWatchResponse:
    """A list without devices, but with a field that is skipped: for sizes from 2 MiB on."""
    length = size - 6
    digits = bytes((length >> shift & 0x7F) | (0x80 if shift < 21 else 0) for shift in (0, 7, 14, 21))
    return k.ListAndWatchResponse.FromString(b"\xa2\x01" + digits + bytes(length))


async def test_the_kubelet_drops_a_stream_with_a_longer_message(tmp_path: Path, sockets: Path) -> None:
    """What our count guards against: the message of the very limit is taken, one byte more loses the stream."""
    sizes = [k.MAX_MESSAGE, k.MAX_MESSAGE + 1]
    go_on = asyncio.Event()

    async def options(request: k.Empty) -> k.DevicePluginOptions:
        return k.DevicePluginOptions()

    async def watch(request: k.Empty) -> AsyncIterator[k.ListAndWatchResponse]:
        for size in sizes:
            yield message_of(size)
            await go_on.wait()
        await asyncio.sleep(10)

    kubelet = KubeletEmulator(sockets)
    await asyncio.to_thread(kubelet.start)
    socket = GrpcSocket(kubelet.plugin_dir / "probe.sock", {k.GET_OPTIONS: options, k.LIST_AND_WATCH: watch})
    await socket.start()
    request = k.RegisterRequest(version=k.VERSION, endpoint="probe.sock", resource_name="example.com/probe")
    await call(kubelet.plugin_dir / "kubelet.sock", k.REGISTER, request, timeout=60)
    endpoint = kubelet.endpoints["example.com/probe"]
    await asyncio.to_thread(kubelet.wait, lambda: endpoint.sizes == sizes[:1])
    go_on.set()
    await asyncio.to_thread(kubelet.wait, lambda: not endpoint.alive)
    assert "RESOURCE_EXHAUSTED" in endpoint.error
    assert endpoint.sizes == sizes[:1]
    await socket.close()
    await asyncio.to_thread(kubelet.stop)


@pytest.mark.promise("M10")
def test_the_provisioning_device_goes_to_named_namespaces_only(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    settings = {"provision_limit": 2, "provision_namespaces": "confcom-system, trusted"}
    with RunningPlugin(tmp_path, kubelet, **settings) as plugin:
        kubelet.wait_allocatable(PROVISION, 2)
        answer = kubelet.admit("confcom-system/helper", PROVISION, 1)
        device = str(plugin.root / "dev/sgx_provision")
        assert mounted(answer) == {"/dev/sgx_provision": device, "/dev/sgx/provision": device}
        kubelet.start_container("confcom-system/helper", PROVISION)
        assert plugin.wait_event("devices.start") == {"units": 1, "pod": "confcom-system/helper"}

        kubelet.admit("default/curious", PROVISION, 1)
        with pytest.raises(AdmissionError, match=r"PERMISSION_DENIED.*namespace default \(pod curious\)"):
            kubelet.start_container("default/curious", PROVISION)
        kubelet.wait_allocatable(EPC, 168)
        # EPC alone brings the enclave device alone.
        assert "/dev/sgx_provision" not in mounted(kubelet.admit("default/app", EPC, 1))


def test_without_the_kubelets_word_nobody_starts_with_the_provisioning_device(
    tmp_path: Path, kubelet: KubeletEmulator
) -> None:
    settings = {"provision_limit": 1, "provision_namespaces": "trusted", "pod_resources_socket": str(tmp_path / "none")}
    with RunningPlugin(tmp_path, kubelet, **settings):
        kubelet.wait_allocatable(PROVISION, 1)
        kubelet.admit("trusted/app", PROVISION, 1)
        with pytest.raises(AdmissionError, match="UNAVAILABLE"):
            kubelet.start_container("trusted/app", PROVISION)


def test_reserve_and_overcommit(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet, reserve_mib=8, overcommit=1.5) as plugin:
        kubelet.wait_allocatable(EPC, 240)
        plan = plugin.wait_event("epc.plan")
        assert (plan["true_mib"], plan["reserve_mib"], plan["overcommit"], plan["units"]) == (168, 8, 1.5, 240)


@pytest.mark.complaint("intel-device-plugins #1611", "intel-device-plugins #1344", "confidential-containers #224")
def test_a_node_without_sgx_is_told_why(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    (tmp_path / "bare").mkdir()
    with RunningPlugin(tmp_path, kubelet, host=Host(tmp_path / "bare")) as plugin:
        error = plugin.failure()
    assert isinstance(error, PlatformUnavailable)
    assert "neither /dev/sgx_enclave nor /dev/sgx/enclave is a device" in error.message
    assert not kubelet.registrations


def test_a_node_may_be_waited_for(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    root = tmp_path / "later"
    with RunningPlugin(tmp_path, kubelet, host=Host(root, stand_ins=True), wait_for_sgx=True):
        declare_node(root, (7 << 20,), b"machine")
        kubelet.wait_allocatable(EPC, 7)


def test_a_successor_is_ready_beside_the_present_plugin_and_serves_when_that_ends(
    tmp_path: Path, kubelet: KubeletEmulator
) -> None:
    page = tmp_path / "page"
    with RunningPlugin(tmp_path, kubelet) as first:
        kubelet.wait_allocatable(EPC, 168)
        with RunningPlugin(tmp_path, kubelet, reserve_mib=8, http=f"unix:{page}") as second:
            kubelet.wait(lambda: page.exists() and _ready(page)["ready"])
            assert _ready(page)["reason"] == "waits until its predecessor has ended"
            assert (kubelet.registrations[EPC], second.started) == (1, [])
            kubelet.admit("default/app", EPC, 1)
            first.stop()
            kubelet.wait_allocatable(EPC, 160)
            kubelet.wait(lambda: _ready(page)["parts"][EPC] == "ready")
            kubelet.admit("default/other", EPC, 1)


def test_a_successor_gives_the_kubelet_time_to_note_its_predecessors_end(
    tmp_path: Path, kubelet: KubeletEmulator
) -> None:
    """A busy machine only makes it longer."""
    page = tmp_path / "page"
    with RunningPlugin(tmp_path, kubelet) as first:
        kubelet.wait_allocatable(EPC, 168)
        with RunningPlugin(tmp_path, kubelet, http=f"unix:{page}"):
            kubelet.wait(lambda: page.exists() and _ready(page)["ready"])
            stopped = time.monotonic()
            first.stop()
            kubelet.wait(lambda: kubelet.registrations[EPC] == 2)
            assert time.monotonic() - stopped >= SETTLE


def test_a_successor_that_is_stopped_before_its_turn_leaves_the_present_plugin_alone(
    tmp_path: Path, kubelet: KubeletEmulator
) -> None:
    with RunningPlugin(tmp_path, kubelet):
        kubelet.wait_allocatable(EPC, 168)
        with RunningPlugin(tmp_path, kubelet):
            pass
        kubelet.admit("default/app", EPC, 1)
        assert kubelet.registrations[EPC] == 1


def test_a_socket_that_an_earlier_version_takes_is_taken_back(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet) as plugin:
        kubelet.wait_allocatable(EPC, 168)
        path = kubelet.plugin_dir / "confcom-epc.sock"
        with socket.socket(socket.AF_UNIX) as other:
            path.unlink()
            other.bind(str(path))
            kubelet.wait(lambda: kubelet.registrations[EPC] == 2)
            kubelet.wait_allocatable(EPC, 168)
            kubelet.admit("default/app", EPC, 1)
        assert any("taking it back" in str(event.fields.get("reason")) for event in plugin.events)


def _ready(page: Path) -> Any:
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(page))) as client:
        return client.get("http://page/readyz").json()


def test_nobody_but_root_may_talk_to_the_plugin(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet):
        kubelet.wait_allocatable(EPC, 168)
        path = kubelet.plugin_dir / "confcom-epc.sock"
        assert path.stat().st_mode & 0o777 == 0o600
        # What is no gRPC does it no harm.
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(path))
            rude.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(500))
        kubelet.admit("default/app", EPC, 1)


def test_unknown_and_repeated_devices_are_refused(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet):
        kubelet.wait_allocatable(EPC, 168)
        endpoint = kubelet.endpoints[EPC]
        with pytest.raises(AdmissionError, match=r"INVALID_ARGUMENT.*1 of 2 devices"):
            kubelet._allocate(endpoint, ["0000", "nope"])
        with pytest.raises(AdmissionError, match=r"INVALID_ARGUMENT.*twice"):
            kubelet._allocate(endpoint, ["0000", "0000"])


def test_the_end_leaves_no_socket_behind(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet):
        kubelet.wait_allocatable(EPC, 168)
    assert sorted(path.name for path in kubelet.plugin_dir.iterdir()) == ["kubelet.sock", "kubelet_internal_checkpoint"]
    # The kubelet learnt of it at once.
    kubelet.wait_allocatable(EPC, 0)


HELPER_EPC = "sgx.confcom.dev/quote-helper-epc"


def test_the_quote_helpers_have_a_part_of_the_epc_that_applications_cannot_take(
    tmp_path: Path, kubelet: KubeletEmulator
) -> None:
    with RunningPlugin(tmp_path, kubelet, helper_epc_mib=4, helper_namespace="home"):
        kubelet.wait_allocatable(EPC, 160)
        kubelet.wait_allocatable(HELPER_EPC, 8)
        kubelet.admit("apps/all", EPC, 160)
        for pod in ("home/present", "home/successor"):
            granted = kubelet.admit(pod, HELPER_EPC, 4)
            paths = {mount.container_path for mount in granted.mounts}
            assert paths == {"/dev/sgx_enclave", "/dev/sgx/enclave", "/dev/sgx_provision", "/dev/sgx/provision"}
            assert granted.envs == {"SGX_EPC_MIB": "4"}
            kubelet.start_container(pod, HELPER_EPC)
        kubelet.remove("home/present")
        kubelet.admit("apps/curious", HELPER_EPC, 4)
        with pytest.raises(AdmissionError, match="namespace apps"):
            kubelet.start_container("apps/curious", HELPER_EPC)


def test_a_helper_that_asked_for_more_leaves_room_for_its_successor(tmp_path: Path, kubelet: KubeletEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet, helper_epc_mib=9):
        kubelet.wait_allocatable(HELPER_EPC, 18)
        kubelet.admit("confcom-system/present", HELPER_EPC, 9)
    with RunningPlugin(tmp_path, kubelet, helper_epc_mib=4):
        kubelet.wait_allocatable(HELPER_EPC, 13)
        kubelet.admit("confcom-system/successor", HELPER_EPC, 4)
        kubelet.remove("confcom-system/present")
        kubelet.wait_allocatable(HELPER_EPC, 8)


def test_without_descriptors_the_devices_stay_healthy(
    tmp_path: Path, kubelet: KubeletEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that cannot open sysfs saw no EPC, and the node lost all of it."""
    true_open = os.open

    def refuse(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).startswith(str(plugin.root / "sys")):
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        return true_open(path, *rest, **more)

    with RunningPlugin(tmp_path, kubelet) as plugin:
        kubelet.wait_allocatable(EPC, 168)
        monkeypatch.setattr(os, "open", refuse)
        plugin.wait_event("node.look", 3)
        monkeypatch.undo()
        assert "Too many open files in system" in plugin.fields("node.look")[0]["reason"]
        assert plugin.fields("devices.health") == []
        assert kubelet.allocatable(EPC) == 168


def test_without_descriptors_a_socket_is_tried_again(tmp_path: Path) -> None:
    with no_descriptors(), pytest.raises(PlatformUnavailable, match="Too many open files") as found:
        GrpcSocket(tmp_path / "x.sock", {})
    assert found.value.retryable
