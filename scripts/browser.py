"""Run the tests of the pages in a headless Chromium; installs what they need, or says what is missing.

Chromium and its driver are Debian's (installed here where this is root), selenium comes from requirements/browser.txt,
axe-core, which checks accessibility, from npm. With CONFCOM_SCREENSHOTS=FOLDER the tests leave pictures there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import debian
from locked import provide
from pytest_child import ROOT, run_pytest

FOLDER = ROOT / "tests" / "browser"
PACKAGES = ["chromium", "chromium-driver", "fonts-dejavu-core"]


def missing(*, lighthouse: bool = False) -> str:
    """Install what is missing; what still is, in a sentence."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")) and (reason := debian.install(*PACKAGES)):
        return reason
    provide("browser", "selenium")
    package = "lighthouse" if lighthouse else "axe-core"
    if not (FOLDER / "node_modules" / package / "package.json").is_file():
        if not shutil.which("npm"):
            return f"install Node.js with npm, for {package}"
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", *([] if lighthouse else ["--omit=dev"])]
        if subprocess.run(command, check=False, cwd=FOLDER).returncode:
            return "npm ci failed in tests/browser"
    return ""


def main(arguments: list[str]) -> int:
    if reason := missing():
        sys.exit(f"browser: {reason}")
    environment = os.environ | {"CONFCOM_BROWSER": "1"}
    return run_pytest("tests/browser", *arguments, environment=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
