"""Figures of the source: sizes of modules, share of comments, and what five walks pass through.

A module is a file of our own that is neither generated nor an `__init__.py`: commit 897114d has 326. (Its median of 98
lines counted the 14 packages' docstrings and two more `__init__.py` too; without them it is 104.) Lines and their
share of comments are those of all files.

`--timed` adds the seconds of `./dev unit` and `./dev check`; `--json` is for machines. `--source` measures the `src` of
another checkout, without the walks.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import statistics
import subprocess
import sys
import time
import tokenize
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SMALL = 80
"""A module of fewer lines needs a reason to be alone."""
CHART_ENDINGS = {".yaml", ".tpl", ".txt", ".json"}


def own_files(source: Path) -> list[Path]:
    """Python files of our own: no generated ones."""
    return [path for path in sorted(source.rglob("*.py")) if "_pb" not in path.parts]


def prose_lines(text: str) -> int:
    """Lines that hold nothing but comments and docstrings."""
    lines = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def sizes(source: Path) -> dict[str, Any]:
    """Sizes of the modules below `source`."""
    texts = {path: path.read_text() for path in own_files(source)}
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    modules = [path for path in texts if path.name != "__init__.py"]
    largest = max(modules, key=lines.__getitem__)
    return {
        "modules": len(modules),
        "median lines": round(statistics.median(lines[path] for path in modules)),
        "largest": f"{lines[largest]} ({largest.relative_to(source)})",
        f"modules under {SMALL} lines": sum(lines[path] < SMALL for path in modules),
        "lines of src": sum(lines.values()),
        "comments and docstrings, %": round(100 * sum(map(prose_lines, texts.values())) / sum(lines.values()), 1),
    }


def chart_lines(folder: Path) -> int:
    """Lines of the Helm chart, its schema included."""
    files = (path for path in folder.rglob("*") if path.suffix in CHART_ENDINGS)
    return sum(len(path.read_text().splitlines()) for path in files)


def walks() -> dict[str, Any]:
    """Name to modules and changes of module, recorded in processes of the program."""
    command = [sys.executable, str(ROOT / "tests" / "walks.py")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def seconds(task: str) -> float:
    """Seconds of one task of `./dev`."""
    begun = time.monotonic()
    code = subprocess.run([str(ROOT / "dev"), task], stdout=subprocess.DEVNULL, check=False).returncode
    if code:
        sys.exit(f"figures: ./dev {task} ended with exit code {code}")
    return round(time.monotonic() - begun, 1)


def main(arguments: list[str]) -> int:
    """Print them."""
    parser = argparse.ArgumentParser(prog="./dev figures", description=__doc__)
    parser.add_argument("--source", type=Path, metavar="SRC", help="measure this folder instead, without walks")
    parser.add_argument("--timed", action="store_true", help="seconds of `./dev unit` and `./dev check` too")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    source = options.source or ROOT / "src"
    figures: dict[str, Any] = sizes(source.resolve() / "confcom")
    figures["chart lines"] = chart_lines(source.resolve().parent / "deploy" / "helm")
    recorded = {} if options.source else walks()
    for name, walk in recorded.items():
        figures[f"walk, {name}"] = f"{len(walk['rooms'])} modules, {walk['changes']} changes"
    if options.timed:
        figures |= {f"seconds of ./dev {task}": seconds(task) for task in ("unit", "check")}
    if options.json:
        print(json.dumps({"figures": figures, "walks": recorded}, indent=1))
        return 0
    for name, value in figures.items():
        print(f"{name:40} {value}")
    for name, walk in recorded.items():
        print(f"\n{name}:\n  " + f"{os.linesep}  ".join(walk["rooms"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
