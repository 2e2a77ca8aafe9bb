"""Addresses and names in settings and options: read, or refused with a sentence, whatever the text is."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confcom.errors import ConfigError
from confcom.formats.arguments import explain_settings, parse_http_url, parse_tcp_address
from confcom.formats.tcb_info import TcbStatus


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("0.0.0.0:8443", ("0.0.0.0", 8443)),
        ("[::]:65535", ("::", 65535)),
        ("::1:80", ("::1", 80)),
        ("server.example.org:0", ("server.example.org", 0)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
    ],
)
def test_host_and_port(text: str, place: tuple[str, int]) -> None:
    assert parse_tcp_address(text) == place


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8443",
        "host",
        "host:",
        ":1",
        "host:x",
        "host:65536",
        "host:-1",
        "host:\uff18",
        "host:\u00b2",
        "host:" + "9" * 5000,
        "127.0.0.1:1:2",
        "http://host:1",
        "user:password@host:1",
        "[host:1",
        "[]:1",
        "[::1:1",
        "a b:1",
        "host/path:1",
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        parse_tcp_address(text)


def test_a_peer_has_a_port() -> None:
    with pytest.raises(ConfigError, match="'host:0' is not HOST:PORT"):
        parse_tcp_address("host:0", least=1)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        host, port = parse_tcp_address(text)
    except ConfigError:
        return
    assert host
    assert 0 <= port <= 65535


@pytest.mark.parametrize("url", ["https://h", "http://[::1]:1/p?q", "HTTPS://u:p@h:65535/"])
def test_a_url_names_a_host(url: str) -> None:
    assert parse_http_url(url, "a service").hostname in ("h", "::1")


@given(st.text() | st.text(alphabet="[]:/@?#%1h", max_size=20).map("https://".__add__))
def test_any_url_is_read_or_refused(text: str) -> None:
    try:
        parts = parse_http_url(text, "a service")
    except ConfigError:
        return
    assert parts.hostname
    assert parts.port != 0


class _Inner(msgspec.Struct, forbid_unknown_fields=True):
    level: Literal["low", "high"] = "low"
    kinds: dict[str, list[TcbStatus]] = {}


class _Settings(msgspec.Struct, forbid_unknown_fields=True):
    parts: tuple[_Inner, ...] = ()
    one: _Inner | None = None
    number: Annotated[int, msgspec.Meta(ge=0)] = 0


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (
            {"parts": [{}, {"level": "hihg"}]},
            "parts[1].level: Invalid enum value 'hihg'; known are high, low; did you mean 'high'?",
        ),
        ({"one": {"level": "?"}}, "one.level: Invalid enum value '?'; known are high, low"),
        ({"one": {"kinds": {"a": ["Revokd"]}}}, "Revoked; did you mean 'Revoked'?"),
        ({"one": {"levle": "low"}}, "one: Object contains unknown field `levle`; did you mean 'level'?"),
        ({"zzz": 1}, "known are parts, one, number"),
        ({"number": -1}, "number: Expected `int` >= 0"),
        ({"one": {"level": "a' - at `$.number`"}}, "one.level: Invalid enum value"),
        ({"parts": [{}, 3]}, "parts[1]: Expected `object`, got `int`"),
    ],
)
def test_settings_that_are_not_known_are_listed_with_the_nearest(read: object, expected: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(read, _Settings)
    assert expected in explain_settings(caught.value, _Settings)
    assert "`$" not in explain_settings(caught.value, _Settings).replace("`$.number`", "")


def test_a_setting_has_the_name_that_its_writer_knows() -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"parts": [{"level": "none"}]}, _Settings)
    found = explain_settings(caught.value, _Settings, lambda field: f"CONFCOM_X_{field.upper()}")
    assert found.startswith("CONFCOM_X_PARTS[0].level: ")
    assert found.endswith("known are high, low")
