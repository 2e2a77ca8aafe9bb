"""Renders reports as HTML: the page of the attestation service, and the one file of `confcom verify --html`.

What was judged is hostile: templates escape every value, characters that control or reorder text become visible, and
the policy of the document allows no script.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from confcom.appraisal.findings import Check
from confcom.appraisal.result import AttestationResult, identity
from confcom.pki.chain import Window
from confcom.report.pictures import LevelPicture, TimeLine, level_pictures, time_line
from confcom.report.summary import Summary

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
