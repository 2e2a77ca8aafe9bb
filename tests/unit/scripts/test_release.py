"""A release agrees with itself, and is the same bytes each time; what was altered is named."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pip
import pytest
import yaml
from publish import commands, notes_of
from release_artifacts import chart_package, checksums, intel_files, packed

from release import VERSION_IN_PAGES, pages_with_versions, version_of

ROOT = Path(__file__).resolve().parents[3]
FILES = {
    "pyproject.toml": '[project]\nname = "confcom"\nversion = "1.2.3"\n',
    "CHANGELOG.md": "# Changes\n\n## 1.2.3 (2026-12-01)\n",
    "deploy/helm/Chart.yaml": 'name: confcom\nversion: 1.2.3\nappVersion: "1.2.3"\n',
    "deploy/helm/templates/a.yaml": "a: 1\n",
}
CONTROL = "Package: {}\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody <n@example.org>\nDescription: x\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_one_version_everywhere_is_the_version(tree: Path) -> None:
    assert version_of(tree) == "1.2.3"


def test_what_users_copy_names_this_version() -> None:
    version = version_of(ROOT)
    pages = pages_with_versions(ROOT)
    assert {"README.md", "install-in-five-minutes.md", "attest.yaml"} <= {path.name for path in pages}
    for path in pages:
        named = {found[0].removeprefix(found[1]) for found in VERSION_IN_PAGES.finditer(path.read_text())}
        assert named == {version}, path


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
    (tree / "deploy/helm/Chart.yaml").chmod(0o700)
    assert chart_package(tree, 7) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        assert archive.getnames() == ["confcom/Chart.yaml", "confcom/templates/a.yaml"]
        assert {(entry.mtime, entry.mode, entry.uid) for entry in archive} == {(7, 0o644, 0)}


def test_programs_stay_programs_in_an_archive(tmp_path: Path) -> None:
    for name, mode in (("install", 0o700), ("text", 0o600)):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(mode)
    with tarfile.open(fileobj=io.BytesIO(packed(tmp_path, "x", 7, zipped=False))) as archive:
        assert [(entry.name, entry.mode) for entry in archive] == [("x/install", 0o755), ("x/text", 0o644)]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release of one file, complete."""
    pytest.importorskip("cyclonedx.validation.json", reason="./dev release installs it")
    import release_statements as statements

    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "a.tgz").write_text("a")
    (folder / "a.tgz.cdx.json").write_text('{"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}')
    _finish(folder, statements)
    return folder


def _finish(folder: Path, statements: object) -> None:
    """Write provenance and checksums for what is in the folder now."""
    found = {path.name: statements.sha256(path) for path in folder.glob("a.tgz*")}  # type: ignore[attr-defined]
    parameters = {"buildDefinition": {"externalParameters": {"version": "1.2.3"}}}
    subjects = [{"name": name, "digest": {"sha256": digest}} for name, digest in found.items()]
    (folder / "provenance.json").write_text(json.dumps({"subject": subjects, "predicate": parameters}))
    (folder / "SHA256SUMS").write_bytes(checksums(folder))


def test_a_whole_release_passes(release: Path) -> None:
    import release_statements as statements

    assert statements.check(release) == "1.2.3"
    done = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=release, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "a.tgz").write_text("b"), "a.tgz is not what SHA256SUMS says it is"),
        (lambda folder: (folder / "a.tgz").unlink(), "a.tgz is not what SHA256SUMS says it is"),
        (lambda folder: (folder / "b.tgz").write_text("b"), "b.tgz is not what SHA256SUMS says it is"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "SHA256SUMS is not there"),
    ],
)
def test_what_was_altered_is_named(release: Path, change: object, said: str) -> None:
    import release_statements as statements

    change(release)  # type: ignore[operator]
    with pytest.raises(SystemExit, match=said):
        statements.check(release)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "a.tgz has no SBOM"),
        ('{"bomFormat": "CycloneDX", "specVersion": "1.6", "version": "one"}', "is no CycloneDX 1.6"),
    ],
)
def test_every_file_has_an_sbom_that_is_one(release: Path, text: str | None, said: str) -> None:
    import release_statements as statements

    sbom = release / "a.tgz.cdx.json"
    sbom.unlink() if text is None else sbom.write_text(text)
    _finish(release, statements)
    with pytest.raises(SystemExit, match=said):
        statements.check(release)


def test_provenance_is_of_these_very_files(release: Path) -> None:
    import release_statements as statements

    (release / "provenance.json").write_text((release / "provenance.json").read_text().replace("a.tgz", "c.tgz"))
    (release / "SHA256SUMS").write_bytes(checksums(release))
    with pytest.raises(SystemExit, match=r"provenance.json is about other files"):
        statements.check(release)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_a_signature_is_checked_as_the_page_says(release: Path, tmp_path: Path) -> None:
    import release_statements as statements

    for name in ("key", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
        public = (tmp_path / f"{name}.pub").read_text().split()
        (tmp_path / f"{name}.signers").write_text(f"releases@confcom {public[0]} {public[1]}\n")
    shutil.copy(tmp_path / "key.signers", release.parent / "allowed_signers")
    statements.sign(release, tmp_path / "key")
    assert statements.check(release, tmp_path / "key.signers") == "1.2.3"
    with pytest.raises(SystemExit, match=r"no signature of releases@confcom"):
        statements.check(release, tmp_path / "other.signers")
    page = (ROOT / "RELEASING.md").read_text().partition("## Check a release")[2]
    shown = "\n".join(re.findall(r"^    (.*)$", page, re.MULTILINE)[:3]).replace(
        "allowed_signers", "../allowed_signers"
    )
    assert shown.startswith("sha256sum")
    done = subprocess.run(["sh", "-e", "-c", shown], cwd=release, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Good" in done.stdout


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """A bundle with its installer, and nothing to install."""
    folder = tmp_path / "bundle"
    (folder / "wheels").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "bundle_install.py", folder / "install")
    (folder / "wheels" / "a.whl").write_text("a")
    (folder / "confcom-image-1.tar").write_text("an image")
    (folder / "SHA256SUMS").write_bytes(checksums(folder))
    return folder


def install(
    folder: Path, *words: str, path: str = "/usr/bin:/bin", **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "install"), "--prefix", str(folder.parent / "prefix"), *words]
    environment = {"PATH": path, "HOME": str(folder.parent)} | variables
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "wheels" / "a.whl").write_text("b"), "a.whl is not what SHA256SUMS says it is"),
        (lambda folder: (folder / "wheels" / "a.whl").unlink(), "a.whl is missing"),
        (lambda folder: (folder / "wheels" / "b.whl").write_text("b"), "b.whl is not in SHA256SUMS"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "SHA256SUMS is missing"),
    ],
)
@pytest.mark.parametrize("what", ["command", "images"])
def test_the_installer_uses_nothing_that_was_altered(unpacked: Path, change: object, said: str, what: str) -> None:
    change(unpacked)  # type: ignore[operator]
    done = install(unpacked, what)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(rf"install: \S+/{said}: .*\n", done.stderr)
    assert not (unpacked.parent / "prefix").exists()


def test_what_pip_is_told_elsewhere_is_not_for_the_installer(unpacked: Path, tmp_path: Path) -> None:
    """A pip.conf and variables that would install elsewhere, from elsewhere, or not at all."""
    wheels = unpacked / "wheels"
    (wheels / "a.whl").unlink()
    source = Path(pip.__file__).parent
    with zipfile.ZipFile(wheels / "pip-1-py3-none-any.whl", "w") as archive:
        for path in source.rglob("*.p[ey]*"):
            archive.write(path, path.relative_to(source.parent))
    with zipfile.ZipFile(wheels / "confcom-1-py3-none-any.whl", "w") as archive:
        about = "confcom-1.dist-info"
        archive.writestr("confcom.py", "def main():\n    print('installed')\n")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: confcom\nVersion: 1\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/entry_points.txt", "[console_scripts]\nconfcom = confcom:main\n")
        archive.writestr(f"{about}/RECORD", "")
    (unpacked / "shell").mkdir()
    (unpacked / "SHA256SUMS").write_bytes(checksums(unpacked))
    told = tmp_path / "pip.conf"
    told.write_text(f"[install]\ntarget = {tmp_path}/elsewhere\nrequire-hashes = true\n")
    (tmp_path / ".config" / "pip").mkdir(parents=True)
    shutil.copy(told, tmp_path / ".config" / "pip" / "pip.conf")
    variables = {
        "PIP_CONFIG_FILE": str(told),
        "PIP_NO_BINARY": ":all:",
        "PIP_DRY_RUN": "1",
        "PYTHONPATH": str(tmp_path),
    }
    done = install(unpacked, **variables)
    assert done.returncode == 0, done.stderr
    program = unpacked.parent / "prefix" / "bin" / "confcom"
    assert subprocess.run([program], capture_output=True, text=True, check=False).stdout == "installed\n"
    assert not (tmp_path / "elsewhere").exists()


def test_images_go_to_the_engine_that_is_there(unpacked: Path, tmp_path: Path) -> None:
    assert "there is no ctr, k3s" in install(unpacked, "images", path=str(tmp_path)).stderr
    for engine in ("docker", "nerdctl"):
        (tmp_path / engine).write_text(f'#!/bin/sh\necho {engine} "$@" >> {tmp_path}/called\n')
        (tmp_path / engine).chmod(0o755)
    assert install(unpacked, "images", path=f"{tmp_path}:/bin").returncode == 0
    assert install(unpacked, "images", "--engine", "docker", path=f"{tmp_path}:/bin").returncode == 0
    archive = unpacked / "confcom-image-1.tar"
    called = (tmp_path / "called").read_text().splitlines()
    assert called == [f"nerdctl --namespace k8s.io load --input {archive}", f"docker load --input {archive}"]


def test_the_page_of_a_release_is_published_last(tmp_path: Path) -> None:
    for name in ("confcom-1.2.3-py3-none-any.whl", "confcom-image-1.2.3.tar", "confcom-examples-image-1.2.3.tar"):
        (tmp_path / name).touch()
    found = commands(tmp_path, "1.2.3", "ghcr.io/x", tmp_path / "notes")
    assert [words[0] for words in found] == ["uv", "skopeo", "skopeo", "helm", "gh"]
    assert found[2][-1] == "docker://ghcr.io/x/confcom:1.2.3"


def test_notes_are_the_section_of_the_version() -> None:
    text = "# Log\n\n## 1.2.3 — today\n\n### Added\n\n- a\n\n## 1.2.2 — before\n\n- b\n"
    assert notes_of("1.2.3", text) == "### Added\n\n- a\n"
    with pytest.raises(SystemExit, match=r"no section for 1\.2\.4"):
        notes_of("1.2.4", text)


def test_hosted_runs_call_commands_of_this_checkout_alone() -> None:
    tasks = subprocess.run(["./dev", "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        jobs = yaml.safe_load(path.read_text())["jobs"].values()
        lines = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
        assert lines, path
        for line in lines:
            found = re.fullmatch(r"(?:sudo --preserve-env=PATH )?(?:bash (\.ci/run)|\./dev (\S+)( .*)?)", line)
            assert found, f"{path.name}: {line}"
            assert os.access(ROOT / found[1], os.X_OK) if found[1] else found[2] in tasks


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_intels_packages_become_what_the_image_adds(tmp_path: Path) -> None:
    files = {
        "libsgx-dcap-ql": "usr/lib/x86_64-linux-gnu/libsgx_dcap_ql.so.1",
        "libsgx-dcap-default-qpl": "usr/lib/x86_64-linux-gnu/libdcap_quoteprov.so.1",
        "settings": "etc/sgx_default_qcnl.conf",
    }
    (tmp_path / "packages").mkdir()
    with pytest.raises(SystemExit, match="holds no Debian packages"):
        intel_files(tmp_path / "packages", tmp_path / "none")
    for name, file in files.items():
        for path, text in ((file, name), ("DEBIAN/control", CONTROL.format(name)), ("usr/share/doc/x", "not taken")):
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        command = ["dpkg-deb", "--build", str(tmp_path / name), str(tmp_path / "packages")]
        subprocess.run(command, check=True, capture_output=True)
    found = intel_files(tmp_path / "packages", tmp_path / "work")
    assert {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()} == {
        *files.values(),
        "usr/lib/x86_64-linux-gnu/libdcap_quoteprov.so",
    }
    link = found / "usr/lib/x86_64-linux-gnu/libdcap_quoteprov.so"
    assert link.read_text() == "libsgx-dcap-default-qpl"


def test_the_bot_watches_folders_that_are_there() -> None:
    files = {"pip": "pyproject.toml", "docker": "Containerfile", "gomod": "go.mod", "npm": "package.json"}
    files |= {"cargo": "Cargo.toml", "github-actions": ".github/workflows/*.yml"}
    watched = set()
    for update in yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]:
        for folder in update.get("directories") or [update["directory"]]:
            found = list(ROOT.glob(f"{folder.strip('/')}/{files[update['package-ecosystem']]}".lstrip("/")))
            assert found, update
            watched |= set(found)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    manifests = {ROOT / name for name in tracked if name.rpartition("/")[2] in ("go.mod", "package.json", "Cargo.toml")}
    assert manifests <= watched
