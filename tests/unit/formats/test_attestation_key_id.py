"""Attestation key ids against the documented offsets and Intel's published bytes (aesm-protocol.md §5, §6)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from confcom.errors import FormatError
from confcom.formats.attestation_key_id import (
    ECDSA_P256_KEY_ID,
    AttestationKeyId,
    AttestationKeyIdList,
    QlAttestationKeyId,
)
from confcom.formats.codec import Record
from record_layout import check_complete, check_field, distinct

LAYOUTS: dict[type[Record], list[tuple[str, int, int]]] = {
    QlAttestationKeyId: [
        ("id", 0, 2),
        ("version", 2, 2),
        ("mr_signer_length", 4, 2),
        ("mr_signer", 6, 48),
        ("prod_id", 54, 4),
        ("extended_prod_id", 58, 16),
        ("config_id", 74, 64),
        ("family_id", 138, 16),
        ("algorithm_id", 154, 4),
    ],
    AttestationKeyId: [("base", 0, 158), ("spid", 158, 16), ("att_key_type", 174, 2), ("reserved", 176, 80)],
}
ROWS = [(kind, *row) for kind, rows in LAYOUTS.items() for row in rows]

INTEL = bytes.fromhex(
    "0000" "0000" "2000" "8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff" + "00" * 16
    + "01000000" + "00" * 96 + "02000000" + "00" * 98
)  # fmt: skip


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_table_covers_the_struct(kind: type[Record]) -> None:
    check_complete(kind, LAYOUTS[kind])
    assert kind.size() == {QlAttestationKeyId: 158, AttestationKeyId: 256}[kind]


@pytest.mark.parametrize(("kind", "path", "offset", "size"), ROWS, ids=[f"{k.__name__}.{p}" for k, p, _, _ in ROWS])
def test_every_field_stands_at_its_documented_offset(kind: type[Record], path: str, offset: int, size: int) -> None:
    check_field(kind, path, offset, size)


def test_the_built_in_id_is_the_one_that_intels_service_lists() -> None:
    assert bytes(ECDSA_P256_KEY_ID) == INTEL
    assert AttestationKeyId.parse(INTEL) == ECDSA_P256_KEY_ID


def test_only_the_first_158_bytes_name_a_key() -> None:
    other = AttestationKeyId.parse(INTEL[:158] + distinct(98))
    assert other.same_key(ECDSA_P256_KEY_ID)
    for offset in range(158):
        changed = bytearray(INTEL)
        changed[offset] ^= 1
        assert not AttestationKeyId.parse(bytes(changed)).same_key(ECDSA_P256_KEY_ID)


def test_another_algorithm_changes_nothing_else() -> None:
    other = ECDSA_P256_KEY_ID.with_algorithm(3)
    assert bytes(other) == INTEL[:154] + bytes([3, 0, 0, 0]) + INTEL[158:]


@pytest.mark.parametrize("count", [1, 2, 10])
def test_a_list_is_a_header_and_its_ids(count: int) -> None:
    ids = tuple(replace(ECDSA_P256_KEY_ID, att_key_type=number) for number in range(count))
    data = bytes([0, 0, 0, 0, count, 0, 0, 0]) + b"".join(map(bytes, ids))
    assert AttestationKeyIdList.parse(data) == AttestationKeyIdList(ids)
    assert bytes(AttestationKeyIdList(ids)) == data


@pytest.mark.parametrize(
    ("data", "field", "offset"),
    [
        (b"", "id", 0),
        (b"\x01\0\0\0\x01\0\0\0" + INTEL, "id", 0),
        (b"\0\0\x01\0\x01\0\0\0" + INTEL, "version", 2),
        (b"\0\0\0\0", "num_att_ids", 4),
        (bytes(8), "num_att_ids", 4),
        (b"\0\0\0\0\x0b\0\0\0" + INTEL * 11, "num_att_ids", 4),
        (b"\0\0\0\0\xff\xff\xff\xff" + INTEL, "num_att_ids", 4),
        (b"\0\0\0\0\x02\0\0\0" + INTEL, "ids[1]", 264),
        (b"\0\0\0\0\x01\0\0\0" + INTEL[:-1], "ids[0]", 8),
        (b"\0\0\0\0\x01\0\0\0" + INTEL + b"x", "end", 264),
    ],
)
def test_malformed_lists_are_refused_where_they_go_wrong(data: bytes, field: str, offset: int) -> None:
    with pytest.raises(FormatError) as caught:
        AttestationKeyIdList.parse(data)
    found = caught.value
    assert (found.structure, found.field, found.offset) == ("AttestationKeyIdList", field, offset)
