"""Every complaint that the documents name is shown by a test not to hold here, and no test names another."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "howto" / "troubleshoot-the-cluster.md"
IDENTIFIER = re.compile(r"[A-Za-z]+(?:[-/][A-Za-z]+)* #[0-9]+")


def rows() -> dict[str, list[str]]:
    """The table: what is complained of, and where that was reported."""
    section = PAGE.read_text().split("## Complaints about other add-ons, and here\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {complaint: reported.rstrip(" |").split(", ") for complaint, _, reported in cells}


@cache
def shown_by_tests() -> dict[str, list[str]]:
    """Every marker in the tests: where a complaint was reported, and the files in which tests are about it."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "complaint":
                for argument in node.args:
                    found.setdefault(ast.literal_eval(argument), []).append(str(path.relative_to(ROOT)))
    return found


@pytest.mark.parametrize(("complaint", "reported"), rows().items(), ids=rows())
def test_every_complaint_names_its_reports_and_each_has_a_test(complaint: str, reported: list[str]) -> None:
    shown = shown_by_tests()
    for one in reported:
        assert IDENTIFIER.fullmatch(one), one
        assert shown.get(one), f"{complaint}: no test has @pytest.mark.complaint({one!r})"


def test_no_test_is_about_a_complaint_that_the_page_does_not_name() -> None:
    named = {one for reported in rows().values() for one in reported}
    assert shown_by_tests().keys() <= named


def test_no_report_stands_in_two_rows() -> None:
    named = [one for reported in rows().values() for one in reported]
    assert len(named) == len(set(named))
