"""Pins one more Kubernetes: `./dev cluster pin 1.31.14` writes the file of modules that builds it.

Everything that it is made of comes in the versions that Kubernetes itself names; its parts under k8s.io, which its own
module takes from a neighbouring folder, in the one that was released with it. Needs Go and the network.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from testcluster.versions import FOLDER, minor_of

_PART = re.compile(r"^\s*(?:replace )?(k8s\.io/\S+) => \./staging/", re.MULTILINE)


def pin(version: str) -> Path:
    """Write the two files of a version, with patch and without `v`."""
    command = ["go", "mod", "download", "-json", f"k8s.io/kubernetes@v{version}"]
    found = subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, text=True).stdout
    target = FOLDER / "versions" / f"{minor_of(version)}.mod"
    target.write_text(modules(version, Path(json.loads(found)["GoMod"]).read_text()))
    tidy = ["go", "mod", "tidy", "-modfile", str(target.relative_to(FOLDER))]
    subprocess.run(tidy, cwd=FOLDER, check=True)
    return target


def modules(version: str, upstream: str) -> str:
    """The file's beginning, to which `go mod tidy` adds the rest, from the one in Kubernetes' own module."""
    language = next(line for line in upstream.splitlines() if line.startswith("go "))
    parts = sorted(set(_PART.findall(upstream)))
    lines = ["module confcom.test/kubernetes", language, f"require k8s.io/kubernetes v{version}"]
    lines += ["replace (", *(f"\t{part} => {part} v0.{version.partition('.')[2]}" for part in parts), ")"]
    return "\n".join(lines) + "\n"
