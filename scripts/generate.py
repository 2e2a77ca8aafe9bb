"""Writes what is generated: protobuf modules, reference pages, JSON schemas, what `deploy` takes from `src`.

`--check` writes nothing and exits 1 when a checked-in file differs from what the present sources give.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from chart_files import CHART, chart_files
from dashboards import GRAFANA, dashboard_files
from grpc_tools import protoc  # type: ignore[import-untyped]  # the package carries no types
from kustomize_base import KUSTOMIZE, kustomize_files
from output_schemas import FOLDER as SCHEMAS
from output_schemas import schema_files
from reference_pages import admission_page, command_line_page, errors_page, policy_schema_page, python_page

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "proto"
TARGET = ROOT / "src" / "confcom" / "protocols" / "_pb"
RULES = ROOT / "src" / "confcom" / "manifests" / "rules.yaml"
PAGES = {
    ROOT / "docs" / "reference" / "admission.md": admission_page,
    ROOT / "docs" / "reference" / "command-line.md": command_line_page,
    ROOT / "docs" / "reference" / "errors.md": errors_page,
    ROOT / "docs" / "reference" / "python.md": python_page,
    ROOT / "docs" / "reference" / "policy.schema.json": policy_schema_page,
    ROOT / "deploy" / "prometheus" / "rules.yaml": RULES.read_bytes,
}


def protobuf_modules() -> dict[Path, bytes]:
    """Path to content of every protobuf module."""
    includes = [f"-I{SOURCES}", f"-I{files('grpc_tools') / '_proto'}"]
    sources = sorted(str(path) for path in SOURCES.glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        if protoc.main(["protoc", *includes, f"--python_out={folder}", f"--pyi_out={folder}", *sources]):
            sys.exit("generate: protoc refused the sources")
        return {TARGET / path.name: path.read_bytes() for path in Path(folder).iterdir()}


def current() -> dict[Path, bytes]:
    """Path to content of what is checked in."""
    pages = (page for page in PAGES if page.exists())
    found = [*TARGET.glob("*_pb2*.py*"), *pages, *KUSTOMIZE.glob("*"), *(CHART / "files").glob("*")]
    found += [CHART / "templates" / "_generated.tpl", *GRAFANA.glob("*.json"), *SCHEMAS.glob("*.json")]
    return {path: path.read_bytes() for path in found if path.is_file()}


def main(arguments: list[str]) -> int:
    wanted = protobuf_modules() | {path: page() for path, page in PAGES.items()}
    wanted |= kustomize_files() | dashboard_files() | chart_files() | schema_files()
    found = current()
    stale = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
    if arguments == ["--check"]:
        for path in stale:
            print(f"generate: {path.relative_to(ROOT)} is out of date: run ./dev generate", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        if path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wanted[path])
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
