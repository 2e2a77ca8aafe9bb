"""Any chunking, any bytes: the same request comes out, or an error of the family."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from aesm_wire import KEY_ID, field, frame
from confcom.errors import RemoteProtocolError
from confcom.protocols import aesm as m
from confcom.protocols.aesm import (
    EXCHANGES,
    NEED_DATA,
    ClientConnection,
    DcapRequest,
    Exchange,
    ServerConnection,
    Signal,
    exchange_of,
    parse_request,
    parse_response,
    request_bytes,
)
from confcom.services.quote_helper.broker import AesmBroker, PlatformCall
from recording_platform import RecordingPlatform

u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
maybe_u32 = st.none() | u32
key_ids = st.none() | st.binary(max_size=300) | st.just(KEY_ID) | st.just(KEY_ID + b"more")
requests: st.SearchStrategy[DcapRequest] = st.one_of(
    st.builds(m.InitQuoteExRequest, st.booleans(), key_ids, st.none() | st.just(32) | u64, maybe_u32),
    st.builds(m.GetQuoteSizeExRequest, key_ids, maybe_u32),
    st.builds(
        m.GetQuoteExRequest,
        st.binary(max_size=500) | st.binary(min_size=432, max_size=432),
        u32 | st.just(8192),
        key_ids,
        st.none() | st.binary(max_size=10) | st.binary(min_size=960, max_size=960),
        maybe_u32,
    ),
    st.builds(m.SelectAttKeyIdRequest, st.none() | st.binary(max_size=600), maybe_u32),
    st.builds(m.GetSupportedAttKeyIdNumRequest, maybe_u32),
    st.builds(m.GetSupportedAttKeyIdsRequest, u32 | st.just(256), maybe_u32),
)
# Bytes that look like messages more often than chance would have it.
nearly = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.tuples(st.integers(1, 23), st.binary(max_size=40) | u64).map(lambda pair: field(*pair)),
        st.tuples(st.integers(1, 23), st.integers(1, 5), u64 | st.binary(max_size=300)).map(
            lambda parts: field(parts[0], field(parts[1], parts[2]))
        ),
    ),
    max_size=4,
).map(b"".join)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(at % (len(data) + 1) for at in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(requests, st.lists(st.integers(0, 10_000), max_size=12), st.binary(max_size=8))
def test_any_chunking_gives_the_same_request(request: DcapRequest, cuts: list[int], behind: bytes) -> None:
    data = ClientConnection().send(request)
    connection = ServerConnection()
    pieces = cut(data, cuts)
    for piece in pieces[:-1]:
        connection.receive_data(piece)
        assert connection.next_event() is NEED_DATA
    connection.receive_data(pieces[-1] + behind)

    assert connection.next_event() == request


@given(requests)
def test_requests_survive_the_wire(request: DcapRequest) -> None:
    assert parse_request(request_bytes(request)) == request


@given(st.one_of(st.binary(max_size=200), nearly.map(frame)), st.lists(st.integers(0, 300), max_size=5), st.booleans())
def test_a_server_fed_with_garbage_raises_nothing_but_a_violation(data: bytes, cuts: list[int], ends: bool) -> None:
    connection = ServerConnection(max_request=500)
    try:
        for piece in [*filter(None, cut(data, cuts)), *([b""] if ends else [])]:
            connection.receive_data(piece)
            if not isinstance(connection.next_event(), Signal):
                return
    except RemoteProtocolError:
        pass


@given(nearly, st.sampled_from(EXCHANGES))
def test_a_client_fed_with_garbage_raises_nothing_but_a_violation(data: bytes, exchange: Exchange) -> None:
    try:
        response = parse_response(data, exchange)
    except RemoteProtocolError:
        return
    assert type(response) is exchange.response


@given(st.one_of(nearly.map(frame), requests.map(lambda request: ClientConnection().send(request))), st.booleans())
def test_whatever_is_asked_the_broker_answers_it_in_its_own_kind(data: bytes, initialized: bool) -> None:
    connection = ServerConnection()
    connection.receive_data(data)
    try:
        request = connection.next_event()
    except RemoteProtocolError:
        return
    assert not isinstance(request, Signal)
    broker = AesmBroker(RecordingPlatform(initialized=initialized))
    plan = broker.plan(request)
    answer = broker.perform(plan) if isinstance(plan, PlatformCall) else plan

    wire = connection.send(answer.response)
    # 64 KiB of padding and what goes round it: no number in a request makes an answer longer.
    assert len(wire) < 64 * 1024 + 2048
    assert type(answer.response) is exchange_of(request).response
    assert (answer.response.status == 0) is (answer.error is None)
