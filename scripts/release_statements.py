"""What a release says of itself (SBOM per artifact, provenance, checksums, signature), and the check of all of it."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
import sys
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imaging.base import provide_base
from release_artifacts import IMAGES, Source, checksums

PROVENANCE = "provenance.json"
SUMS = "SHA256SUMS"
IDENTITY, NAMESPACE = "releases@confcom", "confcom-release"
_WITH_PACKAGES = ("confcom-wheels", *IMAGES)
"""Artifacts that bring the locked dependencies; of wheel and sdist they are what was tested."""

Sbom = dict[str, Any]


def sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def encoded(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def sboms(source: Source, folder: Path) -> dict[str, bytes]:
    """An SBOM for each artifact of a folder, by its file name."""
    locked = _locked_packages(source)
    debian = _debian_packages(provide_base(source.kept).root)
    found = {}
    for path in sorted(folder.iterdir()):
        parts: list[Sbom] = []
        if path.name.endswith((".whl", f"confcom-{source.version}.tar.gz")) or path.name.startswith(_WITH_PACKAGES):
            parts += locked["components"]
        if path.name.startswith(tuple(IMAGES)):
            parts += debian
        if path.name.startswith(("confcom-chart", "confcom-kustomize")):
            parts.append(
                {"type": "container", "name": "confcom/confcom", "version": source.version, "bom-ref": "image"}
            )
        if path.name.startswith("confcom-site"):
            used = {"name": "zensical", "version": version("zensical")}
            parts.append({"type": "library", "purl": f"pkg:pypi/zensical@{used['version']}", "bom-ref": "site", **used})
        if path.name.startswith("confcom-bundle"):
            parts = [*locked["components"], *debian]
        found[f"{path.name}.cdx.json"] = encoded(locked | {"metadata": _subject(path, source), "components": parts})
    return found


def _subject(path: Path, source: Source) -> Sbom:
    kind = "container" if path.name.startswith(tuple(IMAGES)) else "library" if path.suffix == ".whl" else "file"
    component = {
        "type": kind,
        "bom-ref": "confcom",
        "name": path.name,
        "version": source.version,
        "hashes": [{"alg": "SHA-256", "content": sha256(path)}],
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    if path.name.endswith((".whl", f"confcom-{source.version}.tar.gz")):
        component["purl"] = f"pkg:pypi/confcom@{source.version}"
    tool = {"type": "application", "name": "cyclonedx-py", "version": version("cyclonedx-bom")}
    return {"component": component, "tools": {"components": [tool]}}


def _locked_packages(source: Source) -> Sbom:
    """The SBOM of the locked dependencies, as cyclonedx-py writes it, without their order of dependence."""
    command = ["-m", "cyclonedx_py", "requirements", "--output-reproducible", "--sv", "1.6", "--of", "JSON"]
    done = subprocess.run(
        [sys.executable, *command, str(source.tree / "requirements" / "run.txt")], capture_output=True, check=False
    )
    if done.returncode:
        sys.exit(f"release: cyclonedx-py: {done.stderr.decode(errors='replace').strip()}")
    found: Sbom = json.loads(done.stdout)
    found.pop("dependencies", None)
    for component in found["components"]:
        component.pop("description", None)  # names the line of the file, and the machine's folder
    return found


def _debian_packages(root: Path) -> list[Sbom]:
    """What Debian's package manager lists in the base of the images."""
    found = []
    for paragraph in (root / "var" / "lib" / "dpkg" / "status").read_text().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Architecture): (.*)$", paragraph, re.MULTILINE))
        if "ok installed" not in paragraph or len(fields) != len(("Package", "Version", "Architecture")):
            continue
        place = f"{fields['Package']}@{fields['Version']}?arch={fields['Architecture']}"
        purl = f"pkg:deb/debian/{place.replace('+', '%2B').replace(':', '%3A')}&distro=debian-13"
        part = {"type": "library", "name": fields["Package"], "version": fields["Version"], "purl": purl}
        found.append(part | {"bom-ref": f"deb-{fields['Package']}-{fields['Architecture']}"})
    return found


def provenance(source: Source, folder: Path) -> bytes:
    """An in-toto statement with SLSA provenance for every file of a folder but the statements themselves."""
    inputs = [{"uri": f"git+{source.commit}", "digest": {"gitCommit": source.commit}}]
    locks = sorted((source.tree / "requirements").glob("*.txt"))
    inputs += [{"uri": f"requirements/{path.name}", "digest": {"sha256": sha256(path)}} for path in locks]
    base = provide_base(source.kept).layer.digest.removeprefix("sha256:")
    inputs.append({"uri": "deb.debian.org/debian trixie, the images' first layer", "digest": {"sha256": base}})
    tools = {"python": platform.python_version(), "zlib": zlib.ZLIB_RUNTIME_VERSION, "hatchling": version("hatchling")}
    subjects = [{"name": path.name, "digest": {"sha256": sha256(path)}} for path in _artifacts(folder)]
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://confcom.dev/release/v1",
                "externalParameters": {"commit": source.commit, "version": source.version},
                "internalParameters": {"SOURCE_DATE_EPOCH": source.date, "tools": tools},
                "resolvedDependencies": inputs,
            },
            "runDetails": {"builder": {"id": "https://confcom.dev/release/dev-release"}},
        },
    }
    return encoded(statement)


def _artifacts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name not in (PROVENANCE, SUMS, f"{SUMS}.sig"))


def sign(folder: Path, key: Path) -> None:
    """Sign the checksums with an SSH key, as `ssh-keygen` checks it."""
    command = ["ssh-keygen", "-q", "-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(folder / SUMS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / f"{SUMS}.sig").is_file():
        sys.exit(f"release: ssh-keygen cannot sign with {key}: {done.stderr.strip()}")


def check(folder: Path, signers: Path | None = None) -> str:
    """Check that a release is whole and agrees with itself; its version. Ends the program with what is wrong."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    if not (folder / SUMS).is_file():
        sys.exit(f"release: {folder / SUMS} is not there: name the folder that ./dev release made")
    written, computed = (folder / SUMS).read_bytes(), checksums(folder)
    for line in sorted(set(written.decode().splitlines()) ^ set(computed.decode().splitlines())):
        name = line.partition("  ")[2]
        sys.exit(f"release: {folder / name} is not what {SUMS} says it is: make the release again, or fetch it again")
    statement = json.loads((folder / PROVENANCE).read_bytes())
    found = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    if found != {path.name: sha256(path) for path in _artifacts(folder)}:
        sys.exit(f"release: {folder / PROVENANCE} is about other files than those of the folder: make it again")
    for name in found:
        if name.endswith(".cdx.json"):
            problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str((folder / name).read_text())
            if problem:
                sys.exit(f"release: {folder / name} is no CycloneDX 1.6: {problem}")
        elif f"{name}.cdx.json" not in found:
            sys.exit(f"release: {folder / name} has no SBOM: make the release again")
    if signers is not None:
        command = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", IDENTITY, "-n", NAMESPACE]
        command += ["-s", str(folder / f"{SUMS}.sig")]
        if subprocess.run(command, input=written, capture_output=True, check=False).returncode:
            sys.exit(f"release: {folder / SUMS}.sig is no signature of {IDENTITY} by a key of {signers}")
    release: str = statement["predicate"]["buildDefinition"]["externalParameters"]["version"]
    return release
