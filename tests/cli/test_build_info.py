"""What a build says of its sources: the commit, its date, and whether files differ from it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from confcom.cli.build_info import stamp

DATE = "2026-12-01T10:00:00Z"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SOURCE_COMMIT", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)
    for kind in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{kind}_NAME", "x")
        monkeypatch.setenv(f"GIT_{kind}_EMAIL", "x@example.org")
        monkeypatch.setenv(f"GIT_{kind}_DATE", DATE)
    (tmp_path / "file").write_text("a")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_a_checkout_is_its_commit_until_a_file_differs(checkout: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    assert stamp(checkout) == {"commit": head.stdout.strip(), "date": DATE, "changed": False}
    (checkout / "file").write_text("b")
    assert stamp(checkout)["changed"] is True
    (checkout / "file").write_text("a")
    (checkout / "new").touch()
    assert stamp(checkout)["changed"] is True


def test_a_build_is_told_where_there_is_no_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = checkout / "sources"
    sources.mkdir()
    assert stamp(sources) == {}
    monkeypatch.setenv("SOURCE_COMMIT", "ab" * 20)
    assert stamp(sources) == {"commit": "ab" * 20, "date": "unknown", "changed": False}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1796119200")
    assert stamp(sources) == {"commit": "ab" * 20, "date": DATE, "changed": False}
