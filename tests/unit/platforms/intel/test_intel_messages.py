"""Messages between a worker and its parent: whole, bounded, and read as a stranger's."""

from __future__ import annotations

import pytest

from confcom import errors
from confcom.errors import FormatError, NativeError
from confcom.platforms.intel import process as m

REQUESTS = [
    m.ListKeyIds(),
    m.Initialize(None),
    m.Initialize(b"k" * 256),
    m.AskSize(b"k" * 256),
    m.MakeQuote(b"r" * 432, None, b"i" * 960),
]
ANSWERS = [
    m.Ready(),
    m.KeyIds((b"k" * 256,)),
    m.Initialized(b"t" * 512, b"p" * 32),
    m.Size(4700),
    m.Quoted(b"q" * 64 * 1024, b"i" * 960),
    m.Failed("platform-native-error", "x" * m.MAX_TEXT, "y" * m.MAX_TEXT, retryable=True, native_code=0xE014),
]


@pytest.mark.parametrize("message", REQUESTS, ids=lambda message: type(message).__name__)
def test_requests_arrive_as_they_were(message: m.WorkerRequest) -> None:
    assert m.parse_request(m.pack(message)) == message


@pytest.mark.parametrize("message", ANSWERS, ids=lambda message: type(message).__name__)
def test_answers_arrive_as_they_were_and_fit(message: m.WorkerAnswer) -> None:
    packed = m.pack(message)
    assert len(packed) <= m.MAX_MESSAGE
    assert m.parse_answer(packed) == message


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81\xa4type\xa4nope", b"\xa3\xff\xff\xff", m.pack(m.Size(1))[:-1]])
def test_anything_else_is_malformed(data: bytes) -> None:
    with pytest.raises(FormatError):
        m.parse_answer(data)
    with pytest.raises(FormatError):
        m.parse_request(data)


@pytest.mark.parametrize(
    "error",
    [
        errors.PlatformBusy("busy", native_code=7),
        errors.PlatformUnavailable("no device", advice="get one"),
        errors.KeyNotInitialized("no key", native_code=0xE00F),
        errors.ReportRejected("not for us", native_code=0xE015),
        errors.UnsupportedKeyId("not here", native_code=0xE00B),
        errors.NativeError("lost", native_code=0xE014, retryable=True),
        errors.PlatformError("something"),
    ],
    ids=lambda error: error.code,
)
def test_an_error_is_the_same_on_the_other_side(error: errors.PlatformError) -> None:
    again = m.Failed.of(error).error()
    assert type(again) is type(error)
    assert (again.message, again.advice()) == (error.message, error.advice())
    assert (again.native_code, again.retryable) == (error.native_code, error.retryable)


def test_an_error_of_another_family_becomes_a_native_error() -> None:
    again = m.Failed.of(FormatError("is short", structure="Report", field="mac")).error()
    assert type(again) is NativeError
    assert "Report.mac" in again.message
