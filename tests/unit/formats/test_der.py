"""DER: one spelling for each value, bounded, and the same object identifiers and times as `cryptography` reads."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st

from confcom.formats import der
from confcom.formats.der import DerError


def test_a_frame_gives_the_values_of_documents_that_differ_in_nothing_else() -> None:
    frame = der.Frame.of(b"name=ab, key=xyz.", [b"ab", b"xyz"])
    assert frame is not None
    assert frame.values(b"name=cd, key=123.") == (b"cd", b"123")
    for other in (b"", b"name=cd, kez=123.", b"name=cd, key=123!", b"name=cd, key=123..", b"Name=cd, key=123."):
        assert frame.values(other) is None


@pytest.mark.parametrize("values", [[b"a"], [b"xyz", b"ab"], [b""], [b"ab", b"no"], [b"ab", b"b, k"]])
def test_there_is_no_frame_around_values_that_have_not_one_place_each(values: list[bytes]) -> None:
    assert der.Frame.of(b"name=ab, key=xyz.", values) is None


@pytest.mark.parametrize("size", [0, 1, 127, 128, 255, 256, 65535, 65536, 1 << 16])
def test_what_is_written_is_read(size: int) -> None:
    content = bytes(size)
    whole = der.write(der.OCTET_STRING, content)
    assert whole == asn1.encode_der(content)
    assert der.elements(whole + b"\x05\x00") == [(der.OCTET_STRING, content, whole), (5, b"", b"\x05\x00")]


@pytest.mark.parametrize(
    "data",
    [
        b"\x04",
        b"\x04\x01",
        b"\x04\x81",
        b"\x04\x80\x00\x00",
        b"\x04\x81\x7f" + bytes(127),
        b"\x04\x82\x00\xff" + bytes(255),
        b"\x04\x85\x00\x00\x00\x00\x01\x00",
        b"\x04\x84\xff\xff\xff\xff",
        b"\x1f\x81\x01\x00",
        b"\x05\x00" * (der.MAX_ELEMENTS + 1),
    ],
)
def test_another_spelling_what_is_cut_off_and_too_many_elements_are_refused(data: bytes) -> None:
    with pytest.raises(DerError, match="the bytes"):
        der.elements(data)


@given(st.binary(max_size=300))
def test_elements_are_the_bytes_they_came_from_or_an_error(data: bytes) -> None:
    try:
        found = der.elements(data)
    except DerError:
        return
    assert b"".join(whole for _, _, whole in found) == data
    assert all(der.write(tag, content) == whole for tag, content, whole in found)


@given(st.integers(min_value=0, max_value=1 << 200))
def test_integers_are_as_the_library_writes_them(value: int) -> None:
    assert der.write_integer(value) == der.write(der.INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))
    assert der.integer(der.elements(der.write_integer(value))[0][1]) == value


@given(st.binary(max_size=4))
def test_an_integer_has_one_spelling(content: bytes) -> None:
    try:
        expected = asn1.decode_der(int, der.write(der.INTEGER, content))
    except ValueError:
        with pytest.raises(DerError):
            der.integer(content)
    else:
        assert der.integer(content) == expected


@given(st.integers(0, 2), st.lists(st.integers(0, 1 << 40), min_size=1, max_size=9))
def test_object_identifiers_are_as_the_library_reads_them(first: int, rest: list[int]) -> None:
    text = ".".join(map(str, (first, rest[0] if first == 2 else rest[0] % 40, *rest[1:])))
    content = der.oid(text)
    assert der.oid_text(content) == text
    try:
        theirs = asn1.encode_der(ObjectIdentifier(text))
    except ValueError:  # the library has a limit of its own for the size
        return
    assert theirs == der.write(der.OID, content)


@given(st.binary(max_size=6))
def test_an_object_identifier_has_one_spelling(content: bytes) -> None:
    try:
        expected = asn1.decode_der(ObjectIdentifier, der.write(der.OID, content)).dotted_string
    except ValueError:
        with pytest.raises(DerError):
            der.oid_text(content)
    else:
        assert der.oid_text(content) == expected


def test_times_of_both_forms() -> None:
    assert der.time(der.UTC_TIME, b"491231235959Z") == datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert der.time(der.UTC_TIME, b"500101000000Z") == datetime(1950, 1, 1, tzinfo=UTC)
    # Go writes the year 1 where no beginning is set.
    assert der.time(der.GENERALIZED_TIME, b"00010101000000Z") == datetime(1, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("tag", "content"),
    [
        (der.UTC_TIME, b"20261129000000Z"),
        (der.GENERALIZED_TIME, b"261129000000Z"),
        (der.UTC_TIME, b"261129000000"),
        (der.UTC_TIME, b"2611290000Z"),
        (der.UTC_TIME, b"261129000000+0000"),
        (der.UTC_TIME, b"261329000000Z"),
        (der.UTC_TIME, b"261129246000Z"),
        (der.UTC_TIME, b"261129240000Z"),
        (der.UTC_TIME, b"-61129000000Z"),
        (der.UTC_TIME, "\uff12\uff161129000000Z".encode()),
        (der.GENERALIZED_TIME, b"20261129000000.5Z"),
        (der.GENERALIZED_TIME, b"00000101000000Z"),
        (der.OCTET_STRING, b"261129000000Z"),
        (der.UTC_TIME, b""),
    ],
)
def test_other_spellings_of_a_time_are_refused(tag: int, content: bytes) -> None:
    with pytest.raises(DerError):
        der.time(tag, content)


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x08\x00", b"\x01\x01", b"\x07\x7f"])
def test_unused_bits_are_zero_and_fewer_than_eight(content: bytes) -> None:
    with pytest.raises(DerError):
        der.bit_string(content)
    assert der.bit_string(b"\x00") == (b"", 0)
    assert der.bit_string(b"\x05\xe0") == (b"\xe0", 5)
