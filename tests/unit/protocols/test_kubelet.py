from __future__ import annotations

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from confcom.errors import FormatError
from confcom.protocols import kubelet as k

METHODS = [found for found in vars(k).values() if isinstance(found, k.Method)]
REQUESTS = sorted({method.request for method in METHODS}, key=lambda kind: kind.__name__)


def test_devices_as_the_kubelet_reads_them() -> None:
    """Bytes by hand from the interface's field numbers."""
    assert k.list_devices(["0000"], healthy=True).SerializeToString() == b"\x0a\x0f\x0a\x040000\x12\x07Healthy"
    nodes = {"1": 0, "2": 5, "3": None}
    assert k.list_devices("123", healthy=False, numa_node=nodes.get).SerializeToString() == (
        b"\x0a\x12\x0a\x011\x12\x09Unhealthy\x1a\x02\x0a\x00"
        b"\x0a\x14\x0a\x012\x12\x09Unhealthy\x1a\x04\x0a\x02\x08\x05"
        b"\x0a\x0e\x0a\x013\x12\x09Unhealthy"
    )


def test_who_holds_devices_of_a_resource() -> None:
    """The kubelet lists a container once per device; fields that a newer one adds are skipped."""
    wire = (
        b"\x0a\x2b\x0a\x01p\x12\x02ns\x1a\x22\x0a\x01c"
        b"\x12\x08\x0a\x03x/y\x12\x01a\x12\x08\x0a\x03x/y\x12\x01b\x12\x09\x0a\x04x/zz\x12\x01a"
        b"\x0a\x05\x0a\x01q\x1a\x00\xc2\x3e\x03new"
    )
    listed = k.parse(k.ListPodResourcesResponse, wire)
    assert k.holders(listed, "x/y") == {k.Holder("ns", "p", "c"): ["a", "b"]}
    assert k.holders(listed, "x/zz") == {k.Holder("ns", "p", "c"): ["a"]}
    assert k.holders(listed, "none") == {}


@pytest.mark.parametrize("kind", REQUESTS)
def test_what_is_no_message_is_a_format_error(kind: type[Message]) -> None:
    for data in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05a"):
        with pytest.raises(FormatError, match=kind.__name__):
            k.parse(kind, data)


@given(st.binary(max_size=200), st.sampled_from(REQUESTS))
def test_any_bytes_are_a_request_or_a_format_error(data: bytes, kind: type[Message]) -> None:
    try:
        found = k.parse(kind, data)
    except FormatError:
        return
    assert k.parse(kind, found.SerializeToString()) == found


@given(st.integers(0, 40), st.sampled_from([1, 4, 63]), st.booleans())
def test_the_size_is_known_before_the_message_is_made(count: int, length: int, topology: bool) -> None:
    message = k.list_devices(["x" * length] * count, healthy=True, numa_node=lambda _: 5 if topology else None)
    assert message.ByteSize() == k.list_and_watch_size(count, length, topology=topology)


def test_the_kubelets_limit() -> None:
    assert k.list_and_watch_size(262_144, 3, topology=False) == k.MAX_MESSAGE


def test_health_as_the_kubelet_reads_it() -> None:
    """Bytes by hand from the interface's field numbers."""
    healthy = k.device_health("p", "d", "", known=5, timeout=7)
    assert healthy.SerializeToString() == b"\x0a\x06\x0a\x01p\x12\x01d\x10\x01\x18\x05\x20\x07"
    ill = k.device_health("p", "e", "x", known=5, timeout=7)
    assert ill.SerializeToString() == b"\x0a\x06\x0a\x01p\x12\x01e\x10\x02\x18\x05\x20\x07\x2a\x01x"


def test_a_long_reason_is_cut_as_the_interface_says() -> None:
    assert len(k.device_health("p", "d", "x" * 5000, known=0, timeout=0).message) == 1024
