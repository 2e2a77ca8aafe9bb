"""Packages of Debian that a task needs beside those of requirements/."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def install(*packages: str) -> str:
    """Install them; what prevents it in a sentence, empty where they are there."""
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    if os.geteuid() or not shutil.which("apt-get"):
        return f"as root on Debian: apt-get install {' '.join(packages)}"
    refresh()
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    failed = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment).returncode
    return f"{' '.join(command)} failed" if failed else ""


def unpack(folder: Path, *packages: str) -> str:
    """Download them into a folder and unpack them there, which needs no root; what prevents it in a sentence."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return "there is no apt-get here"
    if not os.geteuid():
        refresh()
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-q", *packages], cwd=folder, check=False)
    for package in packages:
        archive = next(folder.glob(f"{package}_*.deb"), None)
        if archive is None:
            return f"apt-get has no package {package}: run apt-get update as root"
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
    return ""


def refresh() -> None:
    """Read what Debian has today: a new machine has no list, and an old list names versions that are gone."""
    subprocess.run(["apt-get", "update", "-q"], check=False, stdout=subprocess.DEVNULL)
