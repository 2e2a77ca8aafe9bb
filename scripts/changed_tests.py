"""Runs the unit tests of what changed since the main branch, committed or not; further words go to pytest.

A changed module's tests are those that import it, those that mirror its name, and those below the folder that mirrors
it; a changed test runs itself. The main branch is the first of upstream/main, origin/main and main that there is.
"""

from __future__ import annotations

import re
import subprocess
import sys

from pytest_child import ROOT, run_pytest

QUICK = ("tests/unit", "tests/property", "tests/architecture")
BRANCHES = ("upstream/main", "origin/main", "main")


def git(*words: str) -> list[str]:
    """Lines of the answer; none where git refuses."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return [] if done.returncode else done.stdout.splitlines()


def changed() -> set[str]:
    """Paths that differ from the main branch, or from the last commit where there is none; new files too."""
    base = next((found[0] for name in BRANCHES if (found := git("merge-base", "HEAD", name))), "HEAD")
    listed = git("diff", "--name-only", "--diff-filter=d", base)
    return {*listed, *git("ls-files", "--others", "--exclude-standard")}


def tests_of(paths: set[str], tests: dict[str, str]) -> list[str]:
    """The tests, given with their texts, that show what changed in `paths`."""
    found = set()
    for path in paths:
        module = re.fullmatch(r"src/(confcom/.+?)(?:/__init__)?\.py", path)
        if module is None:
            found |= {path} & tests.keys()
            continue
        name = module[1].replace("/", ".")
        package, _, last = name.rpartition(".")
        imported = re.compile(rf"\b{re.escape(name)}\b(?!\.)|from {re.escape(package)} import .*\b{last}\b")
        mirror = "tests/unit/" + module[1].removeprefix("confcom/")
        folder, _, stem = mirror.rpartition("/")
        found |= {
            test
            for test, text in tests.items()
            if imported.search(text) or test.startswith((f"{mirror}/", f"{folder}/test_{stem}"))
        }
    return sorted(found)


def main(words: list[str]) -> int:
    """Run them; 0 where nothing that has unit tests changed."""
    files = (file for part in QUICK for file in (ROOT / part).rglob("test_*.py"))
    tests = {str(file.relative_to(ROOT)): file.read_text() for file in files}
    chosen = tests_of(changed(), tests)
    if not chosen:
        print("check: no unit test has to do with what changed")
        return 0
    print(f"check: {len(chosen)} of {len(tests)} files of unit tests", flush=True)
    return run_pytest("-q", "-n", "2", "--dist", "worksteal", *chosen, *words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
