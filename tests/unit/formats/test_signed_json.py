"""Signed JSON keeps the bytes that were signed, and names what is wrong by its path."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest

from confcom.errors import FormatError
from confcom.formats import signed_json


class _Inner(msgspec.Struct):
    svn: signed_json.U8
    mask: signed_json.Hex4
    date: signed_json.Date


class _Outer(msgspec.Struct):
    levels: Annotated[list[_Inner], msgspec.Meta(min_length=1)]


def test_a_wrong_value_is_named_by_its_path() -> None:
    document = b'{"levels":[{"svn":256,"mask":"00000000","date":"2026-01-01T00:00:00Z"}]}'
    with pytest.raises(FormatError) as caught:
        signed_json.decode(document, _Outer, "Sample")
    assert (caught.value.structure, caught.value.field) == ("Sample", "levels[0].svn")


@pytest.mark.parametrize(
    ("mask", "date", "field", "says"),
    [
        ("0000000", "2026-01-01T00:00:00Z", "levels[0].mask", "8 hexadecimal digits"),
        ("0000000g", "2026-01-01T00:00:00Z", "levels[0].mask", "8 hexadecimal digits"),
        ("00000000\\n", "2026-01-01T00:00:00Z", "levels[0].mask", "8 hexadecimal digits"),
        ("00000000", "2026-01-01T00:00:00+00:00", "levels[0].date", "YYYY-MM-DDThh:mm:ssZ"),
        ("00000000", "2026-01-01T00:00:00.0Z", "levels[0].date", "YYYY-MM-DDThh:mm:ssZ"),
    ],
)
def test_texts_have_one_spelling(mask: str, date: str, field: str, says: str) -> None:
    document = f'{{"levels":[{{"svn":1,"mask":"{mask}","date":"{date}"}}]}}'.encode()
    with pytest.raises(FormatError, match=says) as caught:
        signed_json.decode(document, _Outer, "Sample")
    assert caught.value.field == field


def test_a_missing_field_is_named() -> None:
    with pytest.raises(FormatError) as caught:
        signed_json.decode(b"{}", _Outer, "Sample")
    assert caught.value.field == "levels"


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"null", b"[]", b"\xff", b'{"\xff":1}', b'{"x":' * 100_000, b"1" * 10_000, b'{"levels":1e999}'],
)
def test_hostile_bytes_are_malformed_and_nothing_else(document: bytes) -> None:
    with pytest.raises(FormatError):
        signed_json.decode(document, _Outer, "Sample")


def test_a_document_over_the_limit_is_not_parsed() -> None:
    document = b'{"levels":[]}' + b" " * signed_json.MAX_SIGNED_JSON
    with pytest.raises(FormatError, match="over the limit"):
        signed_json.decode(document, _Outer, "Sample")


@pytest.mark.parametrize("text", ["2026-02-30T00:00:00Z", "2026-01-01T24:00:01Z", "0000-01-01T00:00:00Z"])
def test_a_date_that_never_was_is_malformed(text: str) -> None:
    with pytest.raises(FormatError):
        signed_json.parse_date(text, "Sample", "date")
