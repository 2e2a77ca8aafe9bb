from __future__ import annotations

import pytest

from aesm_wire import KEY_ID, field, message, read_fields
from confcom.errors import LocalProtocolError, RemoteProtocolError
from confcom.protocols import aesm_messages as legacy
from confcom.protocols import aesm_messages as m
from confcom.protocols.aesm_messages import (
    EXCHANGES,
    IncompleteRequest,
    Request,
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

# value, its number, its fields on the wire: one full message of every kind.
REQUESTS: list[tuple[Request, int, list[tuple[int, int | bytes]]]] = [
    (legacy.InitQuoteRequest(timeout=7), 1, [(9, 7)]),
    (
        legacy.GetQuoteRequest(b"R", 1, b"S", 900, nonce=b"N", sig_rl=b"L", qe_report=True, timeout=7),
        2,
        [(1, b"R"), (2, 1), (3, b"S"), (4, b"N"), (5, b"L"), (6, 900), (7, 1), (9, 7)],
    ),
    (legacy.GetLaunchTokenRequest(b"E", b"S", b"A", 7), 3, [(1, b"E"), (2, b"S"), (3, b"A"), (9, 7)]),
    (legacy.ReportAttestationErrorRequest(b"P", 5, 6, 7), 4, [(1, b"P"), (2, 5), (3, 6), (9, 7)]),
    (legacy.GetWhiteListSizeRequest(7), 10, [(9, 7)]),
    (legacy.GetWhiteListRequest(5, 7), 11, [(1, 5), (9, 7)]),
    (legacy.SgxGetExtendedEpidGroupIdRequest(7), 12, [(9, 7)]),
    (legacy.SgxSwitchExtendedEpidGroupRequest(5, 7), 13, [(1, 5), (9, 7)]),
    (legacy.SgxRegisterRequest(b"B", 1, 7), 14, [(1, b"B"), (2, 1), (9, 7)]),
    (m.InitQuoteExRequest(True, KEY_ID, 1 << 63, 7), 15, [(1, KEY_ID), (3, 1), (4, 1 << 63), (9, 7)]),
    (m.GetQuoteSizeExRequest(KEY_ID, 7), 16, [(1, KEY_ID), (9, 7)]),
    (m.GetQuoteExRequest(b"R", 5, KEY_ID, b"Q", 7), 17, [(1, b"R"), (2, KEY_ID), (3, b"Q"), (4, 5), (9, 7)]),
    (legacy.CheckUpdateStatusRequest(5, 6, b"P", 7), 18, [(1, b"P"), (2, 5), (3, 6), (9, 7)]),
    (m.SelectAttKeyIdRequest(b"L", 7), 19, [(1, b"L"), (2, 7)]),
    (m.GetSupportedAttKeyIdNumRequest(7), 21, [(9, 7)]),
    (m.GetSupportedAttKeyIdsRequest(256, 7), 22, [(1, 256), (9, 7)]),
]
RESPONSES: list[tuple[Response, int, list[tuple[int, int | bytes]]]] = [
    (legacy.InitQuoteResponse(OK, b"T", b"G"), 1, [(1, 0), (2, b"T"), (3, b"G")]),
    (legacy.GetQuoteResponse(OK, b"Q", b"R"), 2, [(1, 0), (2, b"Q"), (3, b"R")]),
    (legacy.GetLaunchTokenResponse(OK, b"T"), 3, [(1, 0), (2, b"T")]),
    (legacy.ReportAttestationErrorResponse(OK, b"U"), 4, [(1, 0), (2, b"U")]),
    (legacy.GetWhiteListSizeResponse(OK, 5), 10, [(1, 0), (2, 5)]),
    (legacy.GetWhiteListResponse(OK, b"W"), 11, [(1, 0), (2, b"W")]),
    (legacy.SgxGetExtendedEpidGroupIdResponse(OK, 5), 12, [(1, 0), (2, 5)]),
    (legacy.SgxSwitchExtendedEpidGroupResponse(OK), 13, [(1, 0)]),
    (legacy.SgxRegisterResponse(OK), 14, [(1, 0)]),
    (m.InitQuoteExResponse(OK, b"T", 32, b"K"), 15, [(1, 0), (2, b"T"), (3, 32), (4, b"K")]),
    (m.GetQuoteSizeExResponse(OK, 4600), 16, [(1, 0), (2, 4600)]),
    (m.GetQuoteExResponse(OK, b"Q", b"I"), 17, [(1, 0), (2, b"Q"), (3, b"I")]),
    (legacy.CheckUpdateStatusResponse(OK, b"U", 5), 18, [(1, 0), (2, b"U"), (3, 5)]),
    (m.SelectAttKeyIdResponse(OK, b"K"), 19, [(1, 0), (2, b"K")]),
    (m.GetSupportedAttKeyIdNumResponse(OK, 1), 21, [(1, 0), (2, 1)]),
    (m.GetSupportedAttKeyIdsResponse(OK, b"K"), 22, [(1, 0), (2, b"K")]),
]
KINDS = [type(value).__name__ for value, _, _ in REQUESTS]


@pytest.mark.parametrize(("value", "number", "wire"), REQUESTS, ids=KINDS)
def test_requests_are_these_bytes(value: Request, number: int, wire: list[tuple[int, int | bytes]]) -> None:
    assert request_bytes(value) == message(number, *wire)
    assert parse_request(message(number, *wire)) == value
    assert exchange_of(value).number == number


@pytest.mark.parametrize(("value", "number", "wire"), RESPONSES, ids=KINDS)
def test_responses_are_these_bytes(value: Response, number: int, wire: list[tuple[int, int | bytes]]) -> None:
    exchange = next(row for row in EXCHANGES if row.number == number)

    assert response_bytes(value, exchange) == message(number, *wire)
    assert parse_response(message(number, *wire), exchange) == value


def test_a_request_without_any_field_is_still_a_request() -> None:
    assert request_bytes(m.GetSupportedAttKeyIdNumRequest()) == bytes.fromhex("aa0100")
    assert parse_request(bytes.fromhex("aa0100")) == m.GetSupportedAttKeyIdNumRequest()


def test_several_requests_are_answered_in_intels_order_whatever_their_order_on_the_wire() -> None:
    order = [3, 1, 2, 4, 18, 10, 11, 12, 13, 14, 15, 16, 17, 19, 21, 22]
    wire = {number: message(number, *fields) for _, number, fields in REQUESTS}

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
    ("kind", "number", "wire", "missing"),
    [
        (m.InitQuoteExRequest, 15, [(1, KEY_ID), (4, 32)], ("b_pub_key_id",)),
        (m.GetQuoteExRequest, 17, [(2, KEY_ID), (4, 100)], ("report",)),
        (m.GetQuoteExRequest, 17, [(1, b"R"), (2, KEY_ID)], ("buf_size",)),
        (m.GetQuoteExRequest, 17, [], ("report", "buf_size")),
        (m.GetSupportedAttKeyIdsRequest, 22, [], ("buf_size",)),
        (legacy.SgxRegisterRequest, 14, [(1, b"B")], ("data_type",)),
        (legacy.CheckUpdateStatusRequest, 18, [], ("update_info_size", "config")),
        (legacy.GetQuoteRequest, 2, [(1, b"R")], ("quote_type", "spid", "buf_size")),
    ],
)
def test_a_request_without_required_fields_says_which(
    kind: type[Request], number: int, wire: list[tuple[int, int | bytes]], missing: tuple[str, ...]
) -> None:
    request = parse_request(message(number, *wire))

    assert isinstance(request, IncompleteRequest)
    assert request.kind is kind
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
def test_a_value_that_does_not_fit_its_field_is_our_mistake(request_: Request) -> None:
    with pytest.raises(LocalProtocolError):
        request_bytes(request_)
