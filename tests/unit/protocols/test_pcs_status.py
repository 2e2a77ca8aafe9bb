"""Failures of services: which error, whether to ask again, and words that help."""

from __future__ import annotations

import pytest

from confcom.errors import CollateralNotFound, CollateralUnavailable
from confcom.protocols.pcs import HttpResponse, TcbInfoRequest
from confcom.protocols.pcs_service import RETRYABLE, explanation, retry_after, status_error

TCB = TcbInfoRequest("sgx", bytes.fromhex("00906ed50000"), "early")


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (301, CollateralUnavailable, "points elsewhere"),
        (400, CollateralNotFound, "does not understand"),
        (401, CollateralUnavailable, "key"),
        (403, CollateralUnavailable, "forbids"),
        (404, CollateralNotFound, "has none"),
        (410, CollateralNotFound, "given it up"),
        (418, CollateralUnavailable, "refuses"),
        (429, CollateralUnavailable, "fewer requests"),
        (460, CollateralNotFound, "integrity"),
        (461, CollateralNotFound, "does not know the platform"),
        (462, CollateralNotFound, "no certificates"),
        (500, CollateralUnavailable, "not able"),
        (502, CollateralUnavailable, "not able"),
        (599, CollateralUnavailable, "not able"),
    ],
)
def test_a_status_becomes_an_error_that_says_everything(status, kind, words):
    headers = (("Error-Code", "E7"), ("Error-Message", "no such thing"), ("Request-ID", "r1"))
    error = status_error(TCB, HttpResponse(status, headers), service="https://pcs")
    assert type(error) is kind
    for text in (words, "00906ed50000", "early", "https://pcs", str(status), "E7 no such thing", "r1"):
        assert text in str(error)
    assert error.advice()


def test_only_what_can_pass_is_asked_again():
    assert {429, 500, 502, 503, 504} <= RETRYABLE
    assert RETRYABLE.isdisjoint({301, 400, 401, 403, 404, 410, 460, 461, 462})


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ((), None),
        ((("Retry-After", "120"),), 120.0),
        ((("retry-after", " 0 "),), 0.0),
        ((("Retry-After", "-1"),), None),
        ((("Retry-After", "soon"),), None),
        ((("Retry-After", "٣"),), None),
        ((("Retry-After", "9" * 5000),), 999999999.0),
        ((("Retry-After", "Fri, 05 Jun 2026 10:01:30 GMT"), ("Date", "Fri, 05 Jun 2026 10:00:00 GMT")), 90.0),
        ((("Retry-After", "Fri, 05 Jun 2026 09:00:00 GMT"), ("Date", "Fri, 05 Jun 2026 10:00:00 GMT")), 0.0),
        ((("Retry-After", "Fri, 05 Jun 2026 10:01:30 GMT"),), None),
    ],
)
def test_how_long_a_service_asks_to_wait(headers, seconds):
    assert retry_after(HttpResponse(429, headers)) == seconds


def test_words_of_a_service_are_short_and_harmless():
    response = HttpResponse(
        500, (("Request-ID", "\x1b[2J" + "r" * 500),), b"\x1b[31m no\r\nsuch \xff thing" + b"x" * 5000
    )
    said = explanation(response)
    assert said.isprintable()
    assert len(said) < 450
    assert explanation(HttpResponse(500)) == ""
