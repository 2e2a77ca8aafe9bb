"""Signed JSON keeps the bytes that were signed, and names what is wrong by its path."""

from __future__ import annotations

import json
from typing import Annotated

import msgspec
import pytest

import pki_builder as intel
from confcom.errors import FormatError
from confcom.formats import signed_json
from confcom.formats.tcb_info import SignedEnclaveIdentity, SignedTcbInfo


class _Inner(msgspec.Struct):
    svn: signed_json.U8
    mask: signed_json.Hex4
    date: signed_json.Date


class _Outer(msgspec.Struct):
    levels: Annotated[list[_Inner], msgspec.Meta(min_length=1)]


signed_json.prepare(_Outer)


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


AMBIGUOUS = [
    b'{"a":1,"a":1}',
    b'{"a":1,"b":2,"a":3}',
    b'{"a":1,"A":2}',
    b'{"a":1,"\\u0061":2}',
    b'{"x":{"a":1,"a":2}}',
    b'{"x":[[{"y":{"a":1,"a":2}}]]}',
    b'{"":1,"":2}',
    b'{"a":-0}',
    b'{"a":[-0]}',
    b'{"a":NaN}',
    b'{"a":-Infinity}',
    b'{"a":1e999}',
    b'{"a":%s}' % (b"9" * 5000),
    b'{"a":"\\ud800"}',
    b'{"\\udc00":1}',
    b'{"a":"\xff"}',
    b'{"a":"\x01"}',
    b'{"a":1,}',
    b'{"a":01}',
    b"{'a':1}",
    b'{"a":1}{}',
    b'{"a":1}\0\0',
    b"\xef\xbb\xbf{}",
    b'{"a":1}'.decode().encode("utf-16"),
    b'{"a":' * 50_000,
    b"[" * 100_000 + b"]" * 100_000,
]
PLAIN = [
    b'{"a":1,"b":{"a":1},"c":[{"a":1},{"a":2}]}',
    b' { "a" : 1 }\n\0',
    b'{"a":"a\\u0062\\ud83d\\ude00"}',
    b'{"a":1.5e3,"b":-1,"c":0,"d":null,"e":true}',
    b'{"aa":1,"a":2}',
]


@pytest.mark.parametrize("document", AMBIGUOUS, ids=lambda document: str(document[:30]))
def test_json_that_readers_read_differently_is_refused(document: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        signed_json.check_json(document, "Sample")
    assert caught.value.structure == "Sample"


@pytest.mark.parametrize("document", PLAIN)
def test_json_of_one_meaning_is_read(document: bytes) -> None:
    assert signed_json.check_json(document, "Sample") == json.loads(document.removesuffix(b"\0"))


def test_the_key_that_stands_twice_is_named() -> None:
    with pytest.raises(FormatError, match="stands twice") as caught:
        signed_json.check_json(b'{"x":{"id":1,"b":2,"ID":3}}', "Sample")
    assert caught.value.field == "id"


# Where a key can stand twice in a signed document: around the body, in a member that nobody reads, and in the body.
SIGNED = [
    (SignedTcbInfo, "tcbInfo", intel.tcb_info()),
    (SignedTcbInfo, "tcbInfo", intel.tdx_tcb_info()),
    (SignedEnclaveIdentity, "enclaveIdentity", intel.enclave_identity()),
]
SPOILED = [
    lambda outer, body: outer.replace(b'{"', b'{"signature":"%s","' % (b"0" * 128), 1),
    lambda outer, body: b'{"x":{"a":1,"a":2},' + outer[1:],
    lambda outer, body: outer[:-1] + b',"Signature":1}',
    lambda outer, body: b'{"tcbInfo":{},"enclaveIdentity":{},' + outer[1:],
    lambda outer, body: outer[:-1] + b',"x":-0}',
    lambda outer, body: outer.replace(body, b'{"version":2,' + body[1:]),
    lambda outer, body: outer.replace(body, body[:-1] + b',"issuedate":"2026-01-01T00:00:00Z"}'),
    lambda outer, body: outer.replace(body, body[:-1] + b',"x":[{"y":1,"\\u0079":2}]}'),
    lambda outer, body: outer.replace(body, body.replace(b'"tcbStatus":', b'"tcbStatus":"UpToDate","tcbStatus":', 1)),
    lambda outer, body: outer.replace(body, body.replace(b'svn":', b'svn":-0,"x":', 1)),
    lambda outer, body: outer.replace(body, body[:-1] + b',"x":"\xff"}'),
]


@pytest.mark.parametrize(("kind", "name", "content"), SIGNED)
@pytest.mark.parametrize("spoil", SPOILED)
def test_a_signed_document_with_a_key_twice_is_refused_at_every_depth(kind, name: str, content: dict, spoil) -> None:
    def read(data: bytes) -> object:
        document = kind.parse(data)
        return document.tcb_info() if name == "tcbInfo" else document.enclave_identity()

    outer = intel.signed(name, content)
    read(outer)
    read(outer + b"\n\0")
    spoiled = spoil(outer, intel.compact(content))
    assert spoiled != outer
    with pytest.raises(FormatError):
        read(spoiled)
