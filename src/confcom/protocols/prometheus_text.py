"""The text format in which metrics are exposed (Prometheus, version 0.0.4), as far as single samples go; pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from confcom.errors import FormatError

MAX_PAGE = 4 << 20
"""Bytes of a page of metrics that are looked at."""
MAX_LINE = 16 << 10
"""Characters of a sample; those that are read have less than 1,000. Reading labels takes 170 times their size."""

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]{0,255})(?:\{(.*)\})? +([-+.0-9A-Za-z]{1,40})(?: +-?[0-9]{1,20})?")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]{0,255})="((?:[^"\\]|\\.)*)"\s*(,|$)')
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse_samples(page: str, names: Collection[str]) -> tuple[Sample, ...]:
    """The samples of the metrics that are named, in order; what else is on the page is passed over.

    `FormatError` for a line of one of them that cannot be read, and for a page that is too long.
    """
    if len(page) > MAX_PAGE:
        raise FormatError(f"is over {MAX_PAGE} bytes", structure="metrics", field="")
    found = []
    for line in page.split("\n"):
        name = re.split(r"[{ ]", line, maxsplit=1)[0]
        if name in names:
            found.append(_sample(line))
    return tuple(found)


def _sample(line: str) -> Sample:
    match = _SAMPLE.fullmatch(line.rstrip("\r ")) if len(line) <= MAX_LINE else None
    if match is None:
        raise FormatError(f"cannot read {line[:80]!r}", structure="metrics", field="")
    name, labels, value = match.groups()
    try:
        return Sample(name, _labels(labels or ""), float(value))
    except ValueError:
        raise FormatError(f"{value!r} is no number", structure="metrics", field=name) from None


def _labels(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    place = 0
    while place < len(text):
        match = _LABEL.match(text, place)
        if match is None:
            raise FormatError(f"cannot read the labels {text[place : place + 80]!r}", structure="metrics", field="")
        found[match[1]] = _ESCAPED.sub(lambda escape: "\n" if escape[1] == "n" else escape[1], match[2])
        place = match.end()
    return found
