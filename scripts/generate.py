"""Writes the protobuf modules of `src/confcom/protocols/_pb` anew from `proto/*.proto`.

`--check` writes nothing and exits 1 when a checked-in file differs from what the present sources give.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]  # the package carries no types

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "proto"
TARGET = ROOT / "src" / "confcom" / "protocols" / "_pb"


def generated() -> dict[str, bytes]:
    """File name to content of every generated module."""
    includes = [f"-I{SOURCES}", f"-I{files('grpc_tools') / '_proto'}"]
    sources = sorted(str(path) for path in SOURCES.glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        if protoc.main(["protoc", *includes, f"--python_out={folder}", f"--pyi_out={folder}", *sources]):
            sys.exit("generate: protoc refused the sources")
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def current() -> dict[str, bytes]:
    """The same of what is checked in."""
    return {path.name: path.read_bytes() for path in TARGET.glob("*_pb2*.py*") if path.is_file()}


def main(arguments: list[str]) -> int:
    wanted, found = generated(), current()
    stale = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if arguments == ["--check"]:
        for name in stale:
            print(f"generate: {TARGET.relative_to(ROOT) / name} is out of date: run ./dev generate", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        if name in wanted:
            (TARGET / name).write_bytes(wanted[name])
        else:
            (TARGET / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
