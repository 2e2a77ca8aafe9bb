"""The text format of metrics."""

from __future__ import annotations

import math
import tracemalloc

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from confcom.errors import FormatError
from confcom.protocols.custom_metrics import MAX_PAGE, Sample, parse_samples

PAGE = """\
# HELP a Help with a{b="c"} 1 in it.
# TYPE a gauge
a{x="1",y="two"} 3.5
a 4 1700000000000
a{} 5e3
ab{x="1"} 7
other {
b{x="a\\"b\\\\c\\nd",} NaN
"""


def test_samples_of_the_names_that_are_asked_for() -> None:
    assert parse_samples(PAGE, {"a"}) == (
        Sample("a", {"x": "1", "y": "two"}, 3.5),
        Sample("a", {}, 4.0),
        Sample("a", {}, 5000.0),
    )
    (escaped,) = parse_samples(PAGE, {"b"})
    assert escaped.labels == {"x": 'a"b\\c\nd'}
    assert math.isnan(escaped.value)


def test_what_the_clients_library_writes_is_read() -> None:
    registry = CollectorRegistry()
    text = 'quo"te \\ back\nline, comma="x" }'
    Gauge("g", "Help.", ["l"], registry=registry).labels(text).set(0.25)
    assert parse_samples(generate_latest(registry).decode(), {"g"}) == (Sample("g", {"l": text}, 0.25),)


@pytest.mark.parametrize("line", ["a", "a{", "a{x} 1", 'a{x="1} 2', "a one", 'a{x="1"y="2"} 3', "a 1 2 3"])
def test_lines_that_cannot_be_read(line: str) -> None:
    with pytest.raises(FormatError):
        parse_samples(line, {"a"})
    assert parse_samples(line, {"other"}) == ()


def test_a_line_takes_no_more_memory_than_a_page() -> None:
    """Whoever has a node writes what stands on its exporter's page, and the metrics API serves the whole cluster."""
    page = 'a{x="' + "y" * (MAX_PAGE - 9) + '"} 1'
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="cannot read"):
            parse_samples(page, {"a"})
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_PAGE
    finally:
        tracemalloc.stop()
    assert len(parse_samples('a{x="' + "y" * 8000 + '"} 1', {"a"})) == 1


def test_a_page_may_not_be_too_long() -> None:
    with pytest.raises(FormatError, match="over"):
        parse_samples("#" * (MAX_PAGE + 1), {"a"})
