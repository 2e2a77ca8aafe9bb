"""Requests read in one piece mean what a full reading of them means, whatever came before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aesm_wire import KEY_ID, request
from confcom.errors import RemoteProtocolError
from confcom.protocols import aesm_messages as m
from confcom.protocols.aesm import MAX_FORMS, RequestReader, ServerConnection

REPORTS = st.binary(min_size=432, max_size=432)
INTEL = ((4, 4700), (9, 15000))


def quote(report: bytes, *tail: tuple[int, int | bytes]) -> bytes:
    return request(17, (1, report), (2, KEY_ID), *tail)


def read_whole(frame: bytes) -> object:
    connection = ServerConnection()
    connection.receive_data(frame)
    return connection.next_event()


@given(st.lists(st.tuples(REPORTS, st.sampled_from([INTEL, ((4, 8192),), ((4, 1 << 31), (9, 0))])), max_size=8))
def test_known_forms_mean_what_a_full_reading_says(asked: list[tuple[bytes, tuple[tuple[int, int], ...]]]) -> None:
    reader = RequestReader()
    for report, tail in asked:
        frame = quote(report, *tail)
        assert reader.whole(frame) == read_whole(frame)


def outcome(read: Callable[[], object]) -> object:
    try:
        return read()
    except RemoteProtocolError as error:
        return str(error)


@given(st.integers(0, 703), st.integers(1, 255))
def test_one_changed_byte_means_what_a_full_reading_says(at: int, change: int) -> None:
    reader = RequestReader()
    frame = quote(b"r" * 432, *INTEL)
    reader.whole(frame)
    changed = bytearray(frame)
    changed[at % len(frame)] ^= change
    data = bytes(changed)
    whole = outcome(lambda: reader.whole(data))
    assert whole is None or whole == outcome(lambda: read_whole(data))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda report: quote(report, *INTEL, (1, b"x" * 432)), id="a second report, which counts"),
        pytest.param(lambda report: quote(report, *INTEL, (77, 5)), id="a field that nobody knows"),
        pytest.param(lambda report: request(17, (2, KEY_ID), (1, report), (4, 4700)), id="another order"),
        pytest.param(lambda report: quote(report, (3, b"n" * 960), (4, 4700)), id="a QE report"),
        pytest.param(lambda report: quote(report), id="a field is missing"),
        pytest.param(lambda report: request(17, (1, report[:431]), (2, KEY_ID), (4, 4700)), id="a short report"),
        pytest.param(lambda report: request(2, (1, report), (2, 1), (3, bytes(16)), (6, 4700)), id="EPID"),
    ],
)
def test_what_is_not_written_as_clients_do_is_read_in_full(make) -> None:
    reader = RequestReader()
    for report in (b"a" * 432, b"b" * 432, b"\x0a\xb0\x03" * 144):
        frame = make(report)
        assert reader.whole(frame) == read_whole(frame)


def test_another_report_gives_another_request() -> None:
    reader = RequestReader()
    first, second = (reader.whole(quote(letter * 432, *INTEL)) for letter in (b"a", b"b"))
    assert isinstance(first, m.GetQuoteExRequest)
    assert isinstance(second, m.GetQuoteExRequest)
    assert (first.report, second.report) == (b"a" * 432, b"b" * 432)


def test_remembers_no_more_than_it_may() -> None:
    reader = RequestReader()
    for size in range(3 * MAX_FORMS):
        frame = quote(b"r" * 432, (4, size))
        assert reader.whole(frame) == read_whole(frame)
    assert len(reader._forms) <= MAX_FORMS


@pytest.mark.parametrize("frame", [b"", b"\1\0\0", quote(bytes(432), *INTEL)[:-1], quote(bytes(432), *INTEL) + b"\0"])
def test_less_or_more_than_a_frame_is_left_to_the_connection(frame: bytes) -> None:
    assert RequestReader().whole(frame) is None


def test_the_limit_is_left_to_the_connection_too() -> None:
    frame = quote(bytes(432), *INTEL)
    assert RequestReader(len(frame) - 5).whole(frame) is None
    assert RequestReader(len(frame) - 4).whole(frame) is not None


def test_nonsense_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        RequestReader().whole(b"\4\0\0\0\xff\xff\xff\xff")
