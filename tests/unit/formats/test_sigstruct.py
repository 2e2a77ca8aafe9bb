"""SIGSTRUCT against the offsets of the SDM (vol. 3D, Enclave Signature Structure)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confcom.formats.sgx import HEADER, HEADER2, MAX_PLACES, SigStruct, find_sigstructs
from record_layout import check_complete, check_field, distinct

FIELDS = [
    ("header", 0, 16),
    ("vendor", 16, 4),
    ("date", 20, 4),
    ("header2", 24, 16),
    ("sw_defined", 40, 4),
    ("reserved1", 44, 84),
    ("modulus", 128, 384),
    ("exponent", 512, 4),
    ("signature", 516, 384),
    ("misc_select", 900, 4),
    ("misc_mask", 904, 4),
    ("cet_attributes", 908, 1),
    ("cet_attributes_mask", 909, 1),
    ("reserved2", 910, 2),
    ("isv_family_id", 912, 16),
    ("attributes.flags", 928, 8),
    ("attributes.xfrm", 936, 8),
    ("attribute_mask.flags", 944, 8),
    ("attribute_mask.xfrm", 952, 8),
    ("enclave_hash", 960, 32),
    ("reserved3", 992, 16),
    ("isv_ext_prod_id", 1008, 16),
    ("isv_prod_id", 1024, 2),
    ("isv_svn", 1026, 2),
    ("reserved4", 1028, 12),
    ("q1", 1040, 384),
    ("q2", 1424, 384),
]


@pytest.mark.parametrize(("path", "offset", "size"), FIELDS)
def test_field(path: str, offset: int, size: int) -> None:
    check_field(SigStruct, path, offset, size)


def test_the_table_is_complete() -> None:
    check_complete(SigStruct, FIELDS)
    assert SigStruct.size() == 1808


def test_the_signature_covers_header_and_body() -> None:
    data = distinct(1808)
    assert SigStruct.parse(data).signed_bytes == data[:128] + data[900:1028]


def _struct() -> bytes:
    return HEADER + bytes(8) + HEADER2 + bytes(1768)


@given(before=st.binary(max_size=200), after=st.binary(max_size=200))
def test_it_is_found_wherever_it_lies(before: bytes, after: bytes) -> None:
    assert (len(before), _struct()) in [(at, bytes(found)) for at, found in find_sigstructs(before + _struct() + after)]


def test_one_that_is_cut_off_is_none() -> None:
    assert list(find_sigstructs(_struct()[:-1])) == []


def test_a_file_of_nothing_else_is_not_searched_without_end() -> None:
    assert len(list(find_sigstructs(_struct() * (MAX_PLACES + 5)))) == MAX_PLACES
