from __future__ import annotations

from fractions import Fraction

import pytest

from confcom.devices.sgx_node import EpcSection, plan_pool
from confcom.errors import FormatError
from confcom.protocols.epc import NodeStatus, parse_quantity
from confcom.services.device_plugin.epc_in_api import EpcAmount

EPC = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
LABELS = {"confcom.dev/sgx-epc-mib": "168", "confcom.dev/sgx-epc-overcommit": "1"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("65536", 65536), ("1k", 1000), ("10Mi", 10 << 20), ("512Gi", 512 << 30), ("1e3", 1000),
        ("1E3", 1000),        ("2E", 2 * 10**18), ("1.5Gi", 3 << 29), ("100m", Fraction(1, 10)), ("-1", -1), ("+3", 3),
        (".5", Fraction(1, 2)),        ("5.", 5), ("12e-1", Fraction(6, 5)), ("1Ei", 1 << 60),
    ],
)  # fmt: skip
def test_quantities(text: str, value: int | Fraction) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "Mi", "1 k", "1K", "1kk", "0x10", "1e999", "--1", "\u0661", "9" * 40, "1,5", "."])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(FormatError):
        parse_quantity(text)


def test_the_patch_names_what_differs_and_nothing_else() -> None:
    amount = EpcAmount(EPC, 168, 168)
    assert amount.patch_for(NodeStatus({"cpu": "2"}, {"cpu": "2"}, {})) == {
        "metadata": {"labels": LABELS},
        "status": {"capacity": {EPC: "168"}, "allocatable": {EPC: "168"}},
    }
    assert amount.patch_for(NodeStatus({EPC: "168"}, {EPC: "0"}, LABELS)) == {"status": {"allocatable": {EPC: "168"}}}
    assert amount.patch_for(NodeStatus({EPC: "168"}, {EPC: "168"}, LABELS | {"more": "x"})) is None
    assert amount.patch_for(NodeStatus({EPC: "garbage"}, {EPC: "168"}, LABELS)) == {
        "status": {"capacity": {EPC: "168"}}
    }


def test_an_unhealthy_pool_promises_nothing_and_keeps_its_true_size() -> None:
    pool = plan_pool([EpcSection(0, 168 << 20)], overcommit=2)
    assert EpcAmount.of(EPC, pool).units == 336
    sick = EpcAmount.of(EPC, pool, healthy=False)
    assert (sick.units, sick.true_mib) == (0, 168)
    assert sick.labels == LABELS | {"confcom.dev/sgx-epc-overcommit": "2"}


@pytest.mark.parametrize(
    ("capacity", "allocatable", "taken_back"),
    [({EPC: "168"}, {EPC: "168"}, True), ({EPC: "168"}, {EPC: "0"}, False), ({}, {}, False), ({}, {EPC: "x"}, True)],
)
def test_an_amount_that_is_published_otherwise_is_taken_back_if_it_can_be_requested(
    capacity: dict[str, str], allocatable: dict[str, str], taken_back: bool
) -> None:
    patch = EpcAmount(EPC, None, 168).patch_for(NodeStatus(capacity, allocatable, LABELS))
    gone = {"status": {"capacity": {EPC: None}, "allocatable": {EPC: None}}}
    assert patch == (gone if taken_back else None)
