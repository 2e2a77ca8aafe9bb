"""The walks through the source, as the program really goes, beside what ARCHITECTURE.md says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from walks import WALKS, Walk, walk

PAGE = (Path(__file__).resolve().parents[2] / "ARCHITECTURE.md").read_text()
DOCUMENTED_MOST = 10
HARDWARE = "platforms/intel/"
"""Modules that need hardware: no recorded walk passes through them."""
ROOMS_MOST = {"A quote": 17, "A verdict": 29, "A pod": 10, "EPC": 21, "`confcom addon enable`": 23}
"""Modules that each walk passes, the simulator's among them: none may get longer again."""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(params=list(WALKS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def documented(name: str) -> list[str]:
    """The modules that the map names for a walk, below src/confcom."""
    section = PAGE.split("## Five walks")[1].split("\n## ")[0]
    found = re.search(rf"^\d\. \*\*{re.escape(name)}\.\*\*(.*?)(?=^\d\. |\Z)", section, re.MULTILINE | re.DOTALL)
    assert found, f"ARCHITECTURE.md has no walk named {name}"
    return re.findall(r"`([a-z_]+/[a-z0-9_/]+\.py|[a-z_]+\.py)`", found[1])


def test_a_documented_walk_is_what_the_program_does_in_ten_modules_at_most(name: str) -> None:
    named = documented(name)
    assert len(named) == len(set(named)) <= DOCUMENTED_MOST
    went: Walk = walk(name)
    missed = {room for room in named if not room.startswith(HARDWARE)} - set(went.rooms)
    assert missed == set(), f"named by ARCHITECTURE.md, and never run: {missed}"
    assert len(went.rooms) <= ROOMS_MOST[name], f"{name} passes {len(went.rooms)} modules: {' '.join(went.rooms)}"
