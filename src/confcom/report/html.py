"""Renders reports as HTML: the page of the attestation service, and the one file of `confcom verify --html`.

What was judged is hostile: templates escape every value, characters that control or reorder text become visible, and
the policy of the document allows no script. Pictures are values: SVNs beside the levels of TCB, and the validity of
collateral on a time line.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from confcom.appraisal.findings import Check
from confcom.appraisal.quote import VerifiedQuote
from confcom.appraisal.result import AttestationResult, identity
from confcom.appraisal.tcb import TcbEvaluation
from confcom.formats.sgx import ReportBody, TdReportBody10, td_base
from confcom.formats.tcb_info import IsvSvnLevel, TcbComponent, TcbLevel
from confcom.pki.chain import Window
from confcom.report.summary import Summary

MAX_LEVELS = 40
"""Levels that a picture shows; Intel's TCB infos have up to 20."""
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Column:
    """One SVN: a short head, its full name, and what the platform has. One that is not `judged` is shown only."""

    head: str
    name: str
    own: int
    judged: bool = True


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a list: the SVNs that it needs, in the order of the columns; `reached` is the one that matched."""

    status: str
    date: datetime
    advisories: tuple[str, ...]
    needed: tuple[int, ...]
    reached: bool


@dataclass(frozen=True, slots=True)
class LevelPicture:
    """A grid of levels, highest first, by columns."""

    title: str
    columns: tuple[Column, ...]
    levels: tuple[Level, ...]

    def low(self, level: Level) -> list[Column]:
        """The columns in which the platform is below a level."""
        pairs = zip(self.columns, level.needed, strict=True)
        return [column for column, needed in pairs if column.judged and column.own < needed]

    @property
    def description(self) -> str:
        """The picture in a sentence, for those who do not see it."""
        number = next((place for place, level in enumerate(self.levels, 1) if level.reached), None)
        if number is None:
            return f"{self.title}: none of the {len(self.levels)} levels shown is reached."
        level, best = self.levels[number - 1], self.levels[0]
        place = f"level {number} of {len(self.levels)} is reached"
        found = f"{self.title}: {place}, {level.status} of {level.date:%Y-%m-%d}."
        low = ", ".join(f"{column.name} is {column.own}" for column in self.low(best))
        return f"{found} Too low for the highest level: {low or 'nothing'}."


def level_pictures(verified: VerifiedQuote) -> tuple[LevelPicture, ...]:
    """The platform, its QE and its TDX module, each beside the levels that it was judged by."""
    return tuple(_pictures(verified))


def _pictures(verified: VerifiedQuote) -> Iterator[LevelPicture]:
    body, tcb = verified.quote.body, verified.tcb
    if isinstance(body, ReportBody):
        yield _platform("Platform", verified, tcb, None)
    elif isinstance(body, TdReportBody10) or body.tee_tcb_svn2 == td_base(body).tee_tcb_svn:
        yield from _td("", verified, tcb, td_base(body).tee_tcb_svn)
    else:
        yield from _td(" at launch", verified, tcb.launch or tcb, td_base(body).tee_tcb_svn)
        yield from _td(" now", verified, tcb.current or tcb, body.tee_tcb_svn2)
    qe = verified.quote.signature.certification.qe_report.isv_svn
    yield _isv_svn("Quoting enclave", qe, verified.collateral.qe_identity.tcb_levels, tcb.qe)


def _td(when: str, verified: VerifiedQuote, tcb: TcbEvaluation, tee_tcb_svn: bytes) -> Iterator[LevelPicture]:
    yield _platform(f"Platform{when}", verified, tcb, tee_tcb_svn)
    name = f"TDX_{tee_tcb_svn[1]:02X}"
    for module in verified.collateral.tcb_info.tdx_module_identities:
        if module.id.upper() == name and tee_tcb_svn[1]:
            yield _isv_svn(f"TDX module{when}", tee_tcb_svn[0], module.tcb_levels, tcb.tdx_module)


def _platform(title: str, verified: VerifiedQuote, tcb: TcbEvaluation, tee_tcb_svn: bytes | None) -> LevelPicture:
    levels, pck = verified.collateral.tcb_info.tcb_levels, verified.pck.tcb
    columns = [*_components("SGX", pck.sgx_components, levels[0].components), Column("PCE", "PCE SVN", pck.pce_svn)]
    if tee_tcb_svn is not None:
        # The module's own levels judge the first two above version 0.
        first = 2 if tee_tcb_svn[1] > 0 else 0
        columns += _components("TDX", tee_tcb_svn, levels[0].tdx_component_details or (), first)
    return LevelPicture(
        title,
        tuple(columns),
        tuple(
            Level(
                level.tcb_status.value,
                level.tcb_date,
                level.advisory_ids,
                (*level.sgx_components, level.pce_svn, *_needed(level, tee_tcb_svn)),
                level == tcb.platform,
            )
            for level in levels[:MAX_LEVELS]
        ),
    )


def _needed(level: TcbLevel, tee_tcb_svn: bytes | None) -> Sequence[int]:
    return () if tee_tcb_svn is None else level.tdx_components or bytes(16)


def _components(tee: str, svns: Sequence[int], details: Sequence[TcbComponent], first: int = 0) -> Iterator[Column]:
    for place, svn in enumerate(svns):
        detail = details[place] if place < len(details) else TcbComponent(0)
        words = ", ".join(word for word in (detail.category, detail.type) if word)
        name = f"{tee} component {place + 1}" + (f" ({words})" if words else "")
        yield Column(f"{'T' if tee == 'TDX' else ''}{place + 1}", name, svn, place >= first)


def _isv_svn(title: str, own: int, levels: Sequence[IsvSvnLevel], reached: IsvSvnLevel | None) -> LevelPicture:
    return LevelPicture(
        title,
        (Column("SVN", "ISVSVN", own),),
        tuple(
            Level(level.tcb_status.value, level.tcb_date, level.advisory_ids, (level.isv_svn,), level == reached)
            for level in levels[:MAX_LEVELS]
        ),
    )


@dataclass(frozen=True, slots=True)
class Bar:
    """One validity; `start` and `end` are places on the line, 0 to 1. `state` is `valid`, `expired` or `future`."""

    window: Window
    start: float
    end: float
    state: str


@dataclass(frozen=True, slots=True)
class TimeLine:
    """Validities around a time, which is at 0.5. Distances grow with the logarithm, so days and decades both show."""

    now: datetime
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[str, float], ...]


_TICKS = (("10 years", 3652), ("1 year", 365), ("1 month", 30))
_REACH = math.log1p(30 * 365)
"""The ends of the line are 30 years away."""


def time_line(windows: Iterable[Window], now: datetime) -> TimeLine:
    """Each validity once, the first to expire first."""
    bars = [_bar(window, now) for window in dict.fromkeys(windows)]
    bars.sort(key=lambda bar: (bar.end, bar.window.what))
    ticks = [(f"-{name}", _place(-days)) for name, days in _TICKS]
    ticks += [(f"+{name}", _place(days)) for name, days in reversed(_TICKS)]
    return TimeLine(now, tuple(bars), tuple(ticks))


def _bar(window: Window, now: datetime) -> Bar:
    end = 1.0 if window.not_after is None else _place((window.not_after - now) / _DAY)
    state = "valid" if window.contains(now) else "future" if now < window.not_before else "expired"
    return Bar(window, _place((window.not_before - now) / _DAY), end, state)


def _place(days: float) -> float:
    far = min(math.log1p(abs(days)) / _REACH, 1.0)
    return 0.5 + math.copysign(far / 2, days)


FOLDER = Path(__file__).parent
"""Of the style sheet and the templates."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is shown of a verdict. Pictures and identity are there where the evidence is authentic.

    `sets` are verdicts under further sets of collateral, as `confcom verify --json` has them.
    """

    summary: Summary
    simulated: bool = False
    checks: Sequence[Check] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    levels: Sequence[LevelPicture] = ()
    line: TimeLine | None = None
    sets: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(
        cls,
        result: AttestationResult,
        now: datetime,
        *,
        identity_expected: bool,
        sets: Sequence[Mapping[str, Any]] = (),
    ) -> Report:
        """The report of a result as of `now`."""
        summary = Summary.of(result, now, identity_expected=identity_expected)
        verified = result.verified
        if verified is None:
            return cls(summary, checks=result.checks, sets=sets)
        who = identity(verified.quote.body)
        windows = [*verified.collateral.windows, *verified.chain.windows]
        if own := result.certificate:
            windows.append(Window("the attested certificate itself", own.not_before, own.not_after))
        line = time_line(windows, verified.verified_at)
        return cls(summary, verified.simulated, result.checks, who, level_pictures(verified), line, sets)


@cache
def templates(*folders: Path) -> Environment:
    """The templates of the report, and of further folders."""
    return Environment(
        loader=FileSystemLoader([*folders, FOLDER / "templates"]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def report_document(report: Report) -> bytes:
    """One self-contained HTML file: no script, no request to anywhere."""
    # Read as bytes: the policy names the digest of exactly this text.
    style = (FOLDER / "report.css").read_bytes().decode()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    rendered = templates().get_template("document.html").render(report=report, style=Markup(style), digest=digest)  # noqa: S704 - our own file
    return rendered.encode()


def _visible(value: object) -> object:
    """Text with every character that is not printable written as an escape, but for line ends and tabs."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode() for char in value
    )
