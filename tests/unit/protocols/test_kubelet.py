from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confcom.errors import FormatError
from confcom.protocols import kubelet as k
from confcom.protocols.kubelet import (
    Empty,
    HeldDevices,
    ListPodResourcesResponse,
    PluginInfo,
    RegistrationStatus,
    Value,
)

# Bytes by hand from the interface's field numbers: what a kubelet sends and expects.
_THREE = (
    b"\x0a\x0f\x0a\x040000\x12\x07Healthy"
    b"\x0a\x12\x0a\x011\x12\x09Unhealthy\x1a\x02\x0a\x00"
    b"\x0a\x12\x0a\x012\x12\x07Healthy\x1a\x04\x0a\x02\x08\x05"
)
WIRE = [
    (Empty(), b""),
    (k.DevicePluginOptions(True, True), b"\x08\x01\x10\x01"),
    (
        k.RegisterRequest("a.sock", "x/y", k.DevicePluginOptions(False, True)),
        b"\x0a\x07v1beta1\x12\x06a.sock\x1a\x03x/y\x22\x02\x10\x01",
    ),
    (
        k.ListAndWatchResponse((k.Device("0000"), k.Device("1", False, 0), k.Device("2", True, 5))),
        _THREE,
    ),
    (
        k.PreferredAllocationRequest((k.ContainerPreference(("a", "b"), ("a",), 2),)),
        b"\x0a\x0b\x0a\x01a\x0a\x01b\x12\x01a\x18\x02",
    ),
    (k.PreferredAllocationResponse((("a", "b"),)), b"\x0a\x06\x0a\x01a\x0a\x01b"),
    (k.AllocateRequest((("a",), ())), b"\x0a\x03\x0a\x01a\x0a\x00"),
    (
        k.AllocateResponse(
            (k.ContainerAllocation((k.DeviceNode("/h", "/c"),), (k.Mount("/m", "/n"),), (("K", "V"),)),),
        ),
        b"\x0a\x22\x0a\x06\x0a\x01K\x12\x01V\x12\x0a\x0a\x02/n\x12\x02/m\x18\x01\x1a\x0c\x0a\x02/c\x12\x02/h\x1a\x02rw",
    ),
    (k.PreStartContainerRequest(("a",)), b"\x0a\x01a"),
    (PluginInfo("x/y", "/s"), b"\x0a\x0cDevicePlugin\x12\x03x/y\x1a\x02/s\x22\x07v1beta1"),
    (RegistrationStatus(False, "no"), b"\x12\x02no"),
    (
        ListPodResourcesResponse((HeldDevices("ns", "p", "c", "x/y", ("a",)),)),
        b"\x0a\x16\x0a\x01p\x12\x02ns\x1a\x0d\x0a\x01c\x12\x08\x0a\x03x/y\x12\x01a",
    ),
]


@pytest.mark.parametrize(("value", "wire"), WIRE, ids=[type(value).__name__ for value, _ in WIRE])
def test_values_and_their_bytes(value: object, wire: bytes) -> None:
    assert bytes(value) == wire  # type: ignore[call-overload]
    assert type(value).parse(wire) == value  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [type(value) for value, _ in WIRE])
def test_what_is_no_message_is_a_format_error(kind: type[Value]) -> None:
    for data in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05a"):
        with pytest.raises(FormatError):
            kind.parse(data)


def test_fields_that_a_newer_kubelet_adds_are_skipped() -> None:
    assert k.AllocateRequest.parse(b"\x0a\x03\x0a\x01a" + b"\xc2\x3e\x03new") == k.AllocateRequest((("a",),))


@given(st.integers(0, 40), st.sampled_from([1, 4, 63]), st.booleans())
def test_the_size_is_known_before_the_message_is_made(count: int, length: int, topology: bool) -> None:
    devices = tuple(k.Device("x" * length, True, 5 if topology else None) for _ in range(count))
    assert len(bytes(k.ListAndWatchResponse(devices))) == k.list_and_watch_size(count, length, topology=topology)


def test_the_kubelets_limit() -> None:
    assert k.list_and_watch_size(262_144, 3, topology=False) == k.MAX_MESSAGE
