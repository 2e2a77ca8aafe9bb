"""What the documents show to be copied: fenced blocks of YAML and Dockerfiles, with the page each stands on."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
INSTRUCTIONS = frozenset(
    ("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN",
     "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR")
)  # fmt: skip


class Block(NamedTuple):
    """One block; `place` is for people."""

    place: str
    text: str


class Instruction(NamedTuple):
    """One instruction of a Dockerfile: its flags (`--from=build`), and the rest of its line."""

    word: str
    flags: dict[str, str]
    rest: str


def blocks(language: str) -> Iterator[Block]:
    """Every fenced block of a language."""
    for page in sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]):
        text = page.read_text()
        for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, found.start()) + 1
            yield Block(f"{page.relative_to(ROOT)}:{line}", found[1])


def objects(text: str) -> list[dict[str, Any]]:
    """The Kubernetes objects of a block; none where it is a part of one."""
    return [one for one in yaml.safe_load_all(text) if isinstance(one, dict) and "apiVersion" in one]


def instructions(text: str) -> list[Instruction]:
    """A Dockerfile, read as builders do, with comments and continued lines. `ValueError` if it is none."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word not in INSTRUCTIONS:
            raise ValueError(f"{word!r} is no instruction")
        flags = {}
        while match := re.match(r"--([a-z]+)=(\S+)\s+", rest):
            flags[match[1]] = match[2]
            rest = rest[match.end() :]
        found.append(Instruction(word, flags, rest))
    return found


def check_build(text: str) -> list[str]:
    """The commands of a Dockerfile's RUN instructions; `ValueError` names what no builder would take."""
    stages: set[str] = set()
    commands = []
    for one in instructions(text):
        if not stages and one.word not in ("FROM", "ARG"):
            raise ValueError(f"{one.word} before FROM")
        match one.word:
            case "FROM":
                image, *name = re.split(r"\s+AS\s+", one.rest)
                if not re.fullmatch(r"\S+", image):
                    raise ValueError(f"{image!r} is no image")
                stages.add(name[0] if name else f"stage {len(stages)}")
            case "COPY" if "from" in one.flags and one.flags["from"] not in stages:
                raise ValueError(f"there is no stage {one.flags['from']}")
            case "CMD" | "ENTRYPOINT":
                if not all(isinstance(word, str) for word in json.loads(one.rest)):
                    raise ValueError(f"{one.rest} is no list of words")
            case "ENV" if not all("=" in word for word in shlex.split(one.rest)):
                raise ValueError(f"{one.rest} sets nothing")
            case "RUN":
                commands.append(one.rest)
    return commands
