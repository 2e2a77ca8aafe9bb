from __future__ import annotations

import json
from typing import Any

import pytest

from confcom.errors import FormatError
from confcom.protocols.epc import (
    DRA_DRIVER,
    EPC_CLASS,
    AllocatedDevice,
    SharedDevice,
    allocated_devices,
    claimed_epc,
    device_class,
    lost_sharing,
    resource_slice,
    slice_devices,
    slice_name,
)

MIB = 1 << 20
DEVICE = SharedDevice("epc", "epc", 64 * MIB, MIB, {"kind": "epc", "numaNode": 0, "simulated": False})


def written(**changes: Any) -> dict[str, Any]:
    """A slice as the API gives it back: other spellings of the same, fields of its own."""
    made = resource_slice("n", [DEVICE], generation=3)
    device = made["spec"]["devices"][0]
    device["capacity"]["epc"] = {
        "value": str(64 * MIB),
        "requestPolicy": {"default": "1024Ki", "validRange": {"min": "1Mi", "step": "1048576"}},
    }
    device["attributes"]["numaNode"] = {"int": 0, "string": None}
    device |= changes
    made["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    return made


def test_a_slice_in_another_spelling_is_the_same() -> None:
    assert slice_devices(written()) == slice_devices(resource_slice("n", [DEVICE], generation=9))


@pytest.mark.parametrize(
    "changes",
    [
        {"allowMultipleAllocations": False},
        {"name": "other"},
        {"attributes": {"kind": {"string": "epc"}}},
        {"capacity": {"epc": {"value": "65Mi"}}},
        {"capacity": {}},
    ],
)
def test_every_difference_that_counts_is_seen(changes: dict[str, Any]) -> None:
    assert slice_devices(written(**changes)) != slice_devices(resource_slice("n", [DEVICE], generation=3))


def test_a_server_that_knows_no_sharing_is_seen() -> None:
    assert not lost_sharing(written())
    assert lost_sharing(written(allowMultipleAllocations=None))
    assert not lost_sharing(resource_slice("n", [], generation=1))


def test_a_device_with_room_for_one_step_has_no_policy() -> None:
    """The API refuses one: least amount and a step must fit."""
    small = SharedDevice("epc", "epc", MIB, MIB, {})
    assert resource_slice("n", [small], generation=1)["spec"]["devices"][0]["capacity"] == {"epc": {"value": "1Mi"}}


def test_the_name_of_a_slice_is_short_enough_and_tells_nodes_apart() -> None:
    assert slice_name("worker-1") == f"worker-1-{DRA_DRIVER}"
    long = [slice_name("n" * 252 + end) for end in "ab"]
    assert len(set(long)) == 2
    assert all(len(name) <= 253 for name in long)


def test_classes_choose_by_driver_and_kind() -> None:
    assert device_class(EPC_CLASS, "epc")["spec"]["selectors"][0]["cel"]["expression"] == (
        'device.driver == "sgx.confcom.dev" && device.attributes["sgx.confcom.dev"].kind == "epc"'
    )


def test_allocations_are_read_whatever_the_spelling() -> None:
    results = [
        {"driver": "other", "pool": "n", "device": "d", "request": "r"},
        {
            "driver": DRA_DRIVER,
            "pool": "n",
            "device": "epc",
            "request": "main/first",
            "shareID": "s",
            "consumedCapacity": {f"{DRA_DRIVER}/epc": "1Gi"},
        },
    ]
    claim = {"status": {"allocation": {"devices": {"results": results}}}}
    assert allocated_devices(claim) == (AllocatedDevice("main", "n", "epc", {"epc": 1 << 30}, "s"),)
    for nothing in (
        {},
        {"status": None},
        {"status": {"allocation": None}},
        {"status": {"allocation": {"devices": {}}}},
    ):
        assert allocated_devices(nothing) == ()


def test_epc_of_a_claim_is_what_our_driver_gave() -> None:
    def result(driver: str, capacity: dict[str, str], **more: bool) -> dict[str, Any]:
        return {"driver": driver, "pool": "n", "device": "d", "request": "r", "consumedCapacity": capacity} | more

    results = [
        result(DRA_DRIVER, {"epc": "10Mi"}),
        result(DRA_DRIVER, {f"{DRA_DRIVER}/epc": "1Mi"}),
        result(DRA_DRIVER, {"holders": "1"}),
        # A device of another driver may call its memory so too, and admin access brings no EPC.
        result("gpu.example.com", {"epc": "4Gi"}),
        result(DRA_DRIVER, {"epc": "2Mi"}, adminAccess=True),
    ]
    assert claimed_epc({"status": {"allocation": {"devices": {"results": results}}}}) == 11 * MIB
    assert claimed_epc({"metadata": {"name": "c"}}) == 0


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"status": 5}',
        '{"status": {"allocation": {"devices": {"results": [{"driver": "sgx.confcom.dev"}]}}}}',
        '{"status": {"allocation": {"devices": {"results": [5]}}}}',
        '{"status": {"allocation": {"devices": {"results": [{"driver": "sgx.confcom.dev", "request": 5}]}}}}',
    ],
)
def test_what_is_no_allocation_is_a_format_error(text: str) -> None:
    with pytest.raises(FormatError):
        allocated_devices(json.loads(text))
