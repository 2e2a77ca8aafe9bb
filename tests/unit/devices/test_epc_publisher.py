from __future__ import annotations

import pytest

from confcom.devices.sgx_node import ID_LENGTH, MAX_UNIT_LIMIT, EpcPool, PoolSection, choose_publisher
from confcom.errors import ConfigError
from confcom.protocols.kubelet import MAX_MESSAGE, list_and_watch_size


def pool(units: int) -> EpcPool:
    return EpcPool((PoolSection(0, units, units),))


@pytest.mark.parametrize(
    ("mib", "name"),
    [(168, "devices"), (3072, "devices"), (3073, "node-status"), (524288, "node-status")],
)
def test_auto_goes_by_the_size(mib: int, name: str) -> None:
    choice = choose_publisher(pool(mib))
    assert choice.name == name
    assert str(mib) in choice.reason
    assert "3072" in choice.reason


def test_the_limit_can_be_moved() -> None:
    assert choose_publisher(pool(5000), unit_limit=5000).name == "devices"
    assert choose_publisher(pool(1), unit_limit=0).name == "node-status"


def test_a_choice_by_name_is_kept_where_the_kubelet_can_take_it() -> None:
    assert choose_publisher(pool(1), wanted="node-status").name == "node-status"
    assert choose_publisher(pool(1), wanted="dra").name == "dra"
    assert choose_publisher(pool(246_723), wanted="devices").name == "devices"
    with pytest.raises(ConfigError, match="246724 devices of 1 MiB make a message of 4194308 bytes"):
        choose_publisher(pool(246_724), wanted="devices")
    with pytest.raises(ConfigError):
        choose_publisher(pool(246_723), wanted="devices", topology=True)


def test_no_limit_that_can_be_set_exceeds_the_message() -> None:
    assert list_and_watch_size(MAX_UNIT_LIMIT, ID_LENGTH, topology=True) <= MAX_MESSAGE
