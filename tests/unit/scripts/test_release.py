"""A release agrees with itself, and its chart is the same bytes each time."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from release import chart_package, version_of

FILES = {
    "pyproject.toml": '[project]\nname = "confcom"\nversion = "1.2.3"\n',
    "CHANGELOG.md": "# Changes\n\n## 1.2.3 (2026-12-01)\n",
    "deploy/helm/Chart.yaml": 'name: confcom\nversion: 1.2.3\nappVersion: "1.2.3"\n',
    "deploy/helm/templates/a.yaml": "a: 1\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_one_version_everywhere_is_the_version(tree: Path) -> None:
    assert version_of(tree) == "1.2.3"


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("deploy/helm/Chart.yaml", "\nversion: 1.2.3", "\nversion: 1.2.30", "version is not 1.2.3"),
        ("deploy/helm/Chart.yaml", '"1.2.3"', '"1.2.2"', "appVersion is not 1.2.3"),
        ("CHANGELOG.md", "1.2.3", "1.2.2", "no section for 1.2.3"),
    ],
)
def test_another_version_anywhere_is_refused(tree: Path, name: str, old: str, new: str, said: str) -> None:
    (tree / name).write_text(FILES[name].replace(old, new))
    with pytest.raises(SystemExit, match=said):
        version_of(tree)


def test_a_chart_is_its_content(tree: Path) -> None:
    first = chart_package(tree, 7)
    (tree / "deploy/helm/templates/a.yaml").touch()
    (tree / "deploy/helm/Chart.yaml").chmod(0o600)
    assert chart_package(tree, 7) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        assert archive.getnames() == ["confcom/Chart.yaml", "confcom/templates/a.yaml"]
        assert {(entry.mtime, entry.mode, entry.uid) for entry in archive} == {(7, 0o644, 0)}
