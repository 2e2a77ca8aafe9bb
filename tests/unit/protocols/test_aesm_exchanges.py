from __future__ import annotations

import pytest

from aesm_wire import KEY_ID, field, message, read_fields
from confcom.errors import LocalProtocolError, RemoteProtocolError
from confcom.protocols import aesm as m
from confcom.protocols.aesm import (
    EXCHANGES,
    DcapRequest,
    IncompleteRequest,
    LegacyRequest,
    LegacyResponse,
    Response,
    exchange_of,
    parse_request,
    parse_response,
    refusal,
    request_bytes,
    response_bytes,
)
from confcom.protocols.aesm_status import AesmStatus

OK = AesmStatus.SUCCESS

ROWS = {exchange.number: exchange for exchange in EXCHANGES}
# value, its number, its fields on the wire: one full message of every kind.
DCAP_REQUESTS: list[tuple[DcapRequest, int, list[tuple[int, int | bytes]]]] = [
    (m.InitQuoteExRequest(True, KEY_ID, 1 << 63, 7), 15, [(1, KEY_ID), (3, 1), (4, 1 << 63), (9, 7)]),
    (m.GetQuoteSizeExRequest(KEY_ID, 7), 16, [(1, KEY_ID), (9, 7)]),
    (m.GetQuoteExRequest(b"R", 5, KEY_ID, b"Q", 7), 17, [(1, b"R"), (2, KEY_ID), (3, b"Q"), (4, 5), (9, 7)]),
    (m.SelectAttKeyIdRequest(b"L", 7), 19, [(1, b"L"), (2, 7)]),
    (m.GetSupportedAttKeyIdNumRequest(7), 21, [(9, 7)]),
    (m.GetSupportedAttKeyIdsRequest(256, 7), 22, [(1, 256), (9, 7)]),
]
DCAP_RESPONSES: list[tuple[Response, int, list[tuple[int, int | bytes]]]] = [
    (m.InitQuoteExResponse(OK, b"T", 32, b"K"), 15, [(1, 0), (2, b"T"), (3, 32), (4, b"K")]),
    (m.GetQuoteSizeExResponse(OK, 4600), 16, [(1, 0), (2, 4600)]),
    (m.GetQuoteExResponse(OK, b"Q", b"I"), 17, [(1, 0), (2, b"Q"), (3, b"I")]),
    (m.SelectAttKeyIdResponse(OK, b"K"), 19, [(1, 0), (2, b"K")]),
    (m.GetSupportedAttKeyIdNumResponse(OK, 1), 21, [(1, 0), (2, 1)]),
    (m.GetSupportedAttKeyIdsResponse(OK, b"K"), 22, [(1, 0), (2, b"K")]),
]
LEGACY_REQUESTS: dict[int, tuple[dict[str, int | bytes], list[tuple[int, int | bytes]]]] = {
    1: ({"timeout": 7}, [(9, 7)]),
    2: (
        {"report": b"R", "quote_type": 1, "spid": b"S", "nonce": b"N", "sig_rl": b"L", "buf_size": 900, "qe_report": 1},
        [(1, b"R"), (2, 1), (3, b"S"), (4, b"N"), (5, b"L"), (6, 900), (7, 1)],
    ),
    3: ({"mr_enclave": b"E", "mr_signer": b"S", "se_attributes": b"A"}, [(1, b"E"), (2, b"S"), (3, b"A")]),
    4: (
        {"platform_info": b"P", "attestation_error_code": 5, "update_info_size": 6, "timeout": 7},
        [(1, b"P"), (2, 5), (3, 6), (9, 7)],
    ),
    10: ({"timeout": 7}, [(9, 7)]),
    11: ({"white_list_size": 5, "timeout": 7}, [(1, 5), (9, 7)]),
    12: ({"timeout": 7}, [(9, 7)]),
    13: ({"x_group_id": 5, "timeout": 7}, [(1, 5), (9, 7)]),
    14: ({"buf": b"B", "data_type": 1, "timeout": 7}, [(1, b"B"), (2, 1), (9, 7)]),
    18: ({"platform_info": b"P", "update_info_size": 5, "config": 6}, [(1, b"P"), (2, 5), (3, 6)]),
}
LEGACY_RESPONSES: dict[int, tuple[dict[str, int | bytes], list[tuple[int, int | bytes]]]] = {
    1: ({"targetInfo": b"T", "gid": b"G"}, [(1, 0), (2, b"T"), (3, b"G")]),
    2: ({"quote": b"Q", "qe_report": b"R"}, [(1, 0), (2, b"Q"), (3, b"R")]),
    3: ({"token": b"T"}, [(1, 0), (2, b"T")]),
    4: ({"platform_update_info": b"U"}, [(1, 0), (2, b"U")]),
    10: ({"white_list_size": 5}, [(1, 0), (2, 5)]),
    11: ({"white_list": b"W"}, [(1, 0), (2, b"W")]),
    12: ({"x_group_id": 5}, [(1, 0), (2, 5)]),
    13: ({}, [(1, 0)]),
    14: ({}, [(1, 0)]),
    18: ({"platform_update_info": b"U", "status": 5}, [(1, 0), (2, b"U"), (3, 5)]),
}


@pytest.mark.parametrize(("value", "number", "wire"), DCAP_REQUESTS)
def test_requests_are_these_bytes(value: DcapRequest, number: int, wire: list[tuple[int, int | bytes]]) -> None:
    assert request_bytes(value) == message(number, *wire)
    assert parse_request(message(number, *wire)) == value
    assert exchange_of(value).number == number


@pytest.mark.parametrize("number", LEGACY_REQUESTS)
def test_legacy_requests_are_read_from_these_bytes(number: int) -> None:
    values, wire = LEGACY_REQUESTS[number]

    assert parse_request(message(number, *wire)) == LegacyRequest(ROWS[number], values)


@pytest.mark.parametrize(
    ("value", "number", "wire"),
    [*DCAP_RESPONSES, *((LegacyResponse(OK, row[0]), number, row[1]) for number, row in LEGACY_RESPONSES.items())],
)
def test_responses_are_these_bytes(value: Response, number: int, wire: list[tuple[int, int | bytes]]) -> None:
    exchange = ROWS[number]

    assert response_bytes(value, exchange) == message(number, *wire)
    assert parse_response(message(number, *wire), exchange) == value


def test_every_exchange_is_in_a_test() -> None:
    assert sorted([*LEGACY_REQUESTS, *(number for _, number, _ in DCAP_REQUESTS)]) == sorted(ROWS)


def test_a_request_without_any_field_is_still_a_request() -> None:
    assert request_bytes(m.GetSupportedAttKeyIdNumRequest()) == bytes.fromhex("aa0100")
    assert parse_request(bytes.fromhex("aa0100")) == m.GetSupportedAttKeyIdNumRequest()


def test_several_requests_are_answered_in_intels_order_whatever_their_order_on_the_wire() -> None:
    order = [3, 1, 2, 4, 18, 10, 11, 12, 13, 14, 15, 16, 17, 19, 21, 22]
    wire = {number: message(number, *fields) for _, number, fields in DCAP_REQUESTS}
    wire |= {number: message(number, *fields) for number, (_, fields) in LEGACY_REQUESTS.items()}

    for at, first in enumerate(order):
        together = b"".join(wire[number] for number in reversed(order[at:]))
        assert exchange_of(parse_request(together)).number == first


def test_unknown_fields_are_ignored_at_both_levels() -> None:
    inner = field(1, KEY_ID) + field(77, b"new") + field(78, 5)

    assert parse_request(field(99, b"x") + field(16, inner)) == m.GetQuoteSizeExRequest(KEY_ID)


def test_a_repeated_sub_message_merges_and_the_last_scalar_wins() -> None:
    twice = message(15, (3, 0), (4, 1)) + message(15, (1, KEY_ID), (3, 1))

    assert parse_request(twice) == m.InitQuoteExRequest(True, KEY_ID, 1)


@pytest.mark.parametrize("true", [b"\x01", b"\x02", b"\x80\x02"])
def test_any_varint_but_zero_is_true(true: bytes) -> None:
    assert parse_request(field(15, b"\x18" + true)) == m.InitQuoteExRequest(True)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(field(20, field(1, 1)), id="field 20"),
        pytest.param(field(99, b"?"), id="unknown field"),
        pytest.param(field(15, 1), id="wrong wire type"),
        pytest.param(b"\xff" * 20, id="garbage"),
        pytest.param(message(16, (1, KEY_ID))[:-1], id="cut off"),
    ],
)
def test_what_is_no_request_is_a_violation(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_request(data)


@pytest.mark.parametrize(
    ("number", "wire", "missing"),
    [
        (15, [(1, KEY_ID), (4, 32)], ("b_pub_key_id",)),
        (17, [(2, KEY_ID), (4, 100)], ("report",)),
        (17, [(1, b"R"), (2, KEY_ID)], ("buf_size",)),
        (17, [], ("report", "buf_size")),
        (22, [], ("buf_size",)),
        (14, [(1, b"B")], ("data_type",)),
        (18, [], ("update_info_size", "config")),
        (2, [(1, b"R")], ("quote_type", "spid", "buf_size")),
    ],
)
def test_a_request_without_required_fields_says_which(
    number: int, wire: list[tuple[int, int | bytes]], missing: tuple[str, ...]
) -> None:
    request = parse_request(message(number, *wire))

    assert isinstance(request, IncompleteRequest)
    assert request.exchange.number == number
    assert request.missing == missing


@pytest.mark.parametrize(
    ("wire", "answer"),
    [
        pytest.param(message(15, (3, 1), (4, 77)), {1: 38, 3: 77}, id="init echoes buf_size"),
        pytest.param(message(15, (3, 1)), {1: 38, 3: 0}, id="init without buf_size"),
        pytest.param(message(15, (4, 77)), {1: 38, 3: 77}, id="incomplete init"),
        pytest.param(message(16), {1: 38, 2: 0}, id="size"),
        pytest.param(message(17, (1, b"R"), (3, b"I" * 960), (4, 5)), {1: 38, 3: b"I" * 960}, id="quote echoes info"),
        pytest.param(message(17, (1, b"R"), (3, b""), (4, 5)), {1: 38}, id="quote with empty info"),
        pytest.param(message(17, (3, b"I")), {1: 38, 3: b"I"}, id="incomplete quote"),
        pytest.param(message(19), {1: 38}, id="select"),
        pytest.param(message(21), {1: 38, 2: 0}, id="num"),
        pytest.param(message(22, (1, 256)), {1: 38}, id="ids"),
        pytest.param(message(10), {1: 38, 2: 0}, id="white list size"),
        pytest.param(message(12), {1: 38, 2: 0}, id="extended group"),
        pytest.param(message(18, (2, 0), (3, 0)), {1: 38, 3: 0}, id="update status"),
    ],
)
def test_refusals_carry_what_intels_do(wire: bytes, answer: dict[int, int | bytes]) -> None:
    request = parse_request(wire)
    data = response_bytes(refusal(request, AesmStatus.UNSUPPORTED_ATT_KEY_ID), exchange_of(request))
    (inner,) = read_fields(data).values()

    assert isinstance(inner, bytes)
    assert read_fields(inner) == answer


def test_a_response_without_an_error_code_is_an_error() -> None:
    exchange = exchange_of(m.GetQuoteSizeExRequest())

    assert parse_response(message(16, (2, 4600)), exchange).status is AesmStatus.UNEXPECTED_ERROR


def test_an_unknown_error_code_is_kept() -> None:
    exchange = exchange_of(m.GetQuoteSizeExRequest())

    assert parse_response(message(16, (1, 0x10000)), exchange).status == 0x10000


@pytest.mark.parametrize("data", [b"", message(17, (1, 0)), field(20, field(1, 1)), b"\xff\xff", field(16, 0)])
def test_what_does_not_answer_the_request_is_a_violation(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_response(data, exchange_of(m.GetQuoteSizeExRequest()))


@pytest.mark.parametrize(
    "request_",
    [m.GetSupportedAttKeyIdsRequest(1 << 32), m.GetSupportedAttKeyIdsRequest(-1), m.InitQuoteExRequest(True, "text")],  # type: ignore[arg-type]
)
def test_a_value_that_does_not_fit_its_field_is_our_mistake(request_: DcapRequest) -> None:
    with pytest.raises(LocalProtocolError):
        request_bytes(request_)
