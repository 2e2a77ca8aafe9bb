"""What `confcom --version -v` shows: the commit that the program was built from, and what it runs on.

Wheels and sdists carry `_built.json`, which `scripts/build_stamp.py` writes with `stamp`; a checkout is asked itself.
"""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
STAMP = "_built.json"
_GIT_SECONDS = 60


def stamp(tree: Path) -> dict[str, str | bool]:
    """Commit (40 hex digits), its date (RFC 3339, UTC), and whether the files differ from it; empty where unknown.

    SOURCE_COMMIT and SOURCE_DATE_EPOCH say it where there is no folder of git's, as in a container build.
    """
    commit, seconds = os.environ.get("SOURCE_COMMIT", ""), os.environ.get("SOURCE_DATE_EPOCH", "")
    changed = ""
    if not commit and (tree / ".git").exists():
        commit, _, seconds = _git(tree, "log", "-1", "--format=%H %ct").partition(" ")
        changed = _git(tree, "status", "--porcelain") if commit else ""
    if not commit:
        return {}
    date = datetime.fromtimestamp(int(seconds), UTC).isoformat() if seconds.isdigit() else "unknown"
    return {"commit": commit, "date": date.replace("+00:00", "Z"), "changed": bool(changed)}


def _git(tree: Path, *words: str) -> str:
    # The checkout, the code of which runs here anyway, may be another user's: sudo, containers.
    command = ["git", "-c", f"safe.directory={tree}", "-C", str(tree), *words]
    try:
        done = subprocess.run(  # noqa: S603 - fixed words, no shell
            command, capture_output=True, text=True, check=False, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def build_info() -> str:
    """The lines of `confcom --version -v`."""
    import platform
    import re
    import ssl
    from importlib.metadata import PackageNotFoundError, requires, version

    written = PACKAGE / STAMP
    found = json.loads(written.read_text()) if written.is_file() else stamp(PACKAGE.parent.parent)
    lines = [f"confcom {version('confcom')}"]
    if found:
        state = ", with changes that are not committed" if found["changed"] else ""
        lines.append(f"commit {found['commit']} of {found['date']}{state}")
    else:
        lines.append("commit unknown: built from sources without git's folder and without SOURCE_COMMIT")
    lines += [
        f"in {PACKAGE}",
        f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, {platform.system()} {platform.machine()}",
    ]
    names = {re.split(r"[^\w.-]", line)[0].lower() for line in requires("confcom") or ()} - {"confcom"}
    for name in sorted(names):
        try:
            lines.append(f"  {name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"  {name} not installed")
    return "\n".join(lines)
