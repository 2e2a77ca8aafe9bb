"""Which Kubernetes a name means, and that each pinned one is of one piece."""

from __future__ import annotations

from pathlib import Path

import pytest
from testcluster.home import default_home, usual_home
from testcluster.programs import wanted
from testcluster.versions import FOLDER, chosen_version, full_version, module_files, usual_version


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBE_VERSION", "KUBE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_word_it_is_the_usual_one_in_the_usual_folder() -> None:
    assert chosen_version() == usual_version()
    assert default_home() == usual_home()
    assert wanted()[0].modules == "go.mod"


@pytest.mark.parametrize("form", ["1.30", "v1.30", "1.30.14", "v1.30.14"])
def test_a_version_has_a_folder_and_a_program_of_its_own(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBE_VERSION", form)
    assert default_home().path == usual_home().path.with_name("confcom-kubernetes-1.30")
    kubernetes, *others = wanted()
    assert kubernetes.modules == "versions/1.30.mod"
    assert "gitVersion=v1.30.14 " in kubernetes.ldflags
    monkeypatch.delenv("KUBE_VERSION")
    assert others == list(wanted()[1:])


@pytest.mark.parametrize("form", ["1.29", "1.30.1", "2", "latest", "../1.30"])
def test_what_is_not_pinned_is_refused_with_what_there_is(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBE_VERSION", form)
    with pytest.raises(SystemExit, match=rf"Kubernetes {form} is not among .*: 1\.\d+\.\d+, 1\.30\.14"):
        chosen_version()


@pytest.mark.parametrize(("minor", "name"), module_files().items())
def test_the_parts_of_a_version_were_released_together(minor: str, name: str) -> None:
    path = FOLDER / name
    version = full_version(path)
    assert version.startswith(f"{minor}.")
    assert name in ("go.mod", f"versions/{minor}.mod")
    parts = [line.split()[-1] for line in path.read_text().splitlines() if " => k8s.io/" in line]
    assert len(parts) > 20
    assert set(parts) == {f"v0.{version.partition('.')[2]}"}
    sums = Path(path).with_suffix(".sum").read_text()
    assert f"k8s.io/kubernetes v{version} h1:" in sums
