from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confcom.errors import FormatError
from confcom.protocols import kubelet_dra as dra
from confcom.protocols.kubelet import Value
from confcom.protocols.kubelet_dra import MAX_MESSAGE, DeviceHealth, HealthList

# Bytes by hand from the interface's field numbers: what a kubelet sends and expects.
_HEALTH = (
    b"\x0a\x0e\x0a\x06\x0a\x01p\x12\x01d\x10\x01\x18\x05\x20\x07"
    b"\x0a\x11\x0a\x06\x0a\x01p\x12\x01e\x10\x02\x18\x05\x20\x07\x2a\x01x"
)
WIRE = [
    (dra.ClaimsRequest((dra.ClaimName("ns", "u", "c"),)), b"\x0a\x0a\x0a\x02ns\x12\x01u\x1a\x01c"),
    (
        dra.PrepareResponse({"u": dra.PreparedClaim((dra.PreparedDevice("p", "d", ("r",), ("v/c=n",), "s"),))}),
        b"\x0a\x1a\x0a\x01u\x12\x15\x0a\x13\x0a\x01r\x12\x01p\x1a\x01d\x22\x05v/c=n\x2a\x01s",
    ),
    (
        dra.PrepareResponse({"u": dra.PreparedClaim(error="no")}),
        b"\x0a\x09\x0a\x01u\x12\x04\x12\x02no",
    ),
    (dra.UnprepareResponse({"u": ""}), b"\x0a\x05\x0a\x01u\x12\x00"),
    (dra.UnprepareResponse({"u": "no"}), b"\x0a\x09\x0a\x01u\x12\x04\x0a\x02no"),
    (
        HealthList((DeviceHealth("p", "d", True, 5, 7), DeviceHealth("p", "e", False, 5, 7, "x"))),
        _HEALTH,
    ),
]


@pytest.mark.parametrize(("value", "wire"), WIRE)
def test_values_and_their_bytes(value: object, wire: bytes) -> None:
    assert bytes(value) == wire  # type: ignore[call-overload]
    assert type(value).parse(wire) == value  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", tuple(dict.fromkeys(type(value) for value, _ in WIRE)))
def test_what_is_no_message_is_a_format_error(kind: type[Value]) -> None:
    for data in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05a"):
        with pytest.raises(FormatError):
            kind.parse(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_format_error(data: bytes) -> None:
    try:
        found = dra.ClaimsRequest.parse(data)
    except FormatError:
        return
    assert dra.ClaimsRequest.parse(bytes(found)) == found


def test_a_share_that_there_is_not_is_not_sent() -> None:
    """The kubelet takes an empty share for one: presence counts in this field."""
    response = dra.PrepareResponse({"u": dra.PreparedClaim((dra.PreparedDevice("p", "d"),))})
    assert b"\x2a" not in bytes(response)


def test_a_long_reason_is_cut_as_the_interface_says() -> None:
    told = HealthList((DeviceHealth("p", "d", False, 0, 0, "x" * 5000),))
    assert len(HealthList.parse(bytes(told)).devices[0].message) == MAX_MESSAGE
