"""Answers in memory: bounded in number and bytes, gone when they expire or the store changes; a status per error."""

from __future__ import annotations

import msgspec
import pytest

from confcom import errors
from confcom.services.collateral.answers import Answer, HotAnswers, error_answer, json_answer, server_secrets, status_of


def answer(size: int) -> Answer:
    return Answer(200, [], bytes(size))


def key(name: str) -> str:
    return name


def kept(hot: HotAnswers, *names: str) -> list[str]:
    return [name for name in names if hot.get(key(name), 0.0, 0) is not None]


def test_the_least_used_go_when_there_are_too_many() -> None:
    hot = HotAnswers(entries=2, size=10_000)
    for name in ("a", "b"):
        hot.put(key(name), answer(1), now=0, until=9, generation=0)
    hot.get(key("a"), 0.0, 0)
    hot.put(key("c"), answer(1), now=0, until=9, generation=0)

    assert kept(hot, "a", "b", "c") == ["a", "c"]


def test_bytes_are_bounded_and_counted_exactly() -> None:
    hot = HotAnswers(entries=100, size=1000)
    for number in range(50):
        hot.put(key(str(number)), answer(300), now=0, until=9, generation=0)
        hot.put(key(str(number)), answer(200), now=0, until=9, generation=0)
    assert 0 < hot.size <= 1000
    hot.put(key("large"), answer(5000), now=0, until=9, generation=0)
    assert kept(hot, "large") == []
    hot.get(key("any"), 0.0, 1)
    assert hot.size == 0


def test_what_expired_or_was_made_of_another_store_is_not_given() -> None:
    hot = HotAnswers(entries=10, size=10_000)
    hot.put(key("a"), answer(1), now=0, until=5, generation=0)

    assert hot.get(key("a"), 4.9, 0) is not None
    assert hot.get(key("a"), 5.0, 0) is None
    hot.put(key("a"), answer(1), now=3, until=5, generation=0)
    assert hot.get(key("a"), 2.9, 0) is None  # the clock was set back
    assert hot.size == 0
    hot.put(key("a"), answer(1), now=0, until=5, generation=0)
    assert hot.get(key("a"), 0.0, 1) is None
    hot.put(key("a"), answer(1), now=0, until=5, generation=0)  # made before the store changed
    assert hot.get(key("a"), 0.0, 1) is None


def test_every_error_of_the_family_has_a_status() -> None:
    waiting = [errors.ConfcomError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__ != errors.__name__:
            continue
        given = {errors.FormatError: {"structure": "s", "field": "f"}, errors.CollateralInvalid: {"document": "d"}}
        more = next((words for base, words in given.items() if issubclass(kind, base)), {})
        assert 400 <= status_of(kind("x", **more)) <= 599


@pytest.mark.parametrize("text", ["line\r\nSet-Cookie: x", "ünïcode\x00", "x" * 5000])
def test_messages_fit_into_headers_whatever_is_in_them(text: str) -> None:
    headers = dict(error_answer(errors.CollateralNotFound(text)).headers)
    value = headers[b"Error-Message"]

    assert len(value) <= 300
    assert all(0x20 <= byte <= 0x7E for byte in value)


def test_json_answers_say_their_length() -> None:
    found = json_answer({"a": 1}, status=503)

    assert (found.status, msgspec.json.decode(found.body)) == (503, {"a": 1})
    assert (b"Content-Length", b"7") in found.headers


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("store /var/lib/confcom/c.sqlite: disk I/O error", "store [...]: disk I/O error"),
        ("store ./c.sqlite is damaged", "store [...] is damaged"),
        ("/srv/my data/x has no TCB info", "[...] has no TCB info"),
        ("cannot read '/etc/confcom/key': Permission denied", "cannot read '[...]': Permission denied"),
        (
            "https://u:secret@pccs.example:8081/sgx/certification said no",
            "https://[...]pccs.example:8081/sgx/certification said no",
        ),
        ("See docs/reference/collateral-service.md; ask /readyz and/or SGX/TDX 1/2", None),
        ("https://api.trustedservices.intel.com/sgx/certification/v4 answered 404", None),
    ],
)
def test_an_error_shows_no_file_of_the_server(message: str, shown: str | None) -> None:
    secrets = server_secrets(["./c.sqlite", "/srv/my data/x"])
    answer = error_answer(errors.CollateralError(message)).without(secrets)
    expected = message if shown is None else shown
    assert msgspec.json.decode(answer.body)["message"] == expected
    assert dict(answer.headers)[b"Error-Message"] == expected.encode()
    assert dict(answer.headers)[b"Content-Length"] == str(len(answer.body)).encode()
