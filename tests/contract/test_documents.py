"""Documents are true: manifests pass, Dockerfiles are well-formed, the tutorial runs, every page is listed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from confcom.cli.root import root
from documented import ROOT, Block, blocks, check_build, objects

MANIFESTS = list(blocks("yaml"))
BUILDS = [*blocks("dockerfile"), Block("deploy/Containerfile", (ROOT / "deploy" / "Containerfile").read_text())]
WITH_PODS = ("Pod", "Job", "Deployment", "DaemonSet", "StatefulSet", "CronJob")


@pytest.mark.parametrize("block", MANIFESTS, ids=lambda block: block.place)
def test_every_manifest_is_read_and_its_pods_are_good(tmp_path: Path, block: Block) -> None:
    assert list(yaml.safe_load_all(block.text))
    found = [one for one in objects(block.text) if one["kind"] in WITH_PODS]
    if not found:
        return
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump_all(found))
    result = CliRunner().invoke(root, ["check-pods", str(path)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("block", BUILDS, ids=lambda block: block.place)
def test_every_dockerfile_is_one_and_its_commands_are_shell(block: Block) -> None:
    commands = check_build(block.text)
    for command in commands:
        done = subprocess.run(["sh", "-n"], input=command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert commands or "RUN" not in block.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RUN true\n", "RUN before FROM"),
        ("FROM a\nRUM true\n", "'RUM' is no instruction"),
        ("FROM a AS build\nFROM b\nCOPY --from=built /x /\n", "no stage built"),
        ("FROM a b\n", "'a b' is no image"),
        ('FROM a\nCMD ["x" "y"]\n', "Expecting ',' delimiter"),
        ("FROM a\nENV A\n", "sets nothing"),
    ],
)
def test_a_mistake_in_a_dockerfile_is_noticed(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_build(text)


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found: dict[tuple[str, ...], click.Command] = {}
    for name in group.list_commands(context := click.Context(group)):
        command = group.get_command(context, name)
        assert command is not None
        below = _commands(command, (*path, name)) if isinstance(command, click.Group) else {}
        found |= {(*path, name): command} | below
    return found


def test_every_command_in_the_pages_exists_with_its_options() -> None:
    commands = _commands(root)
    seen = 0
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", page.read_text()) if page.name != "CHANGELOG.md" else ""
        for line in re.findall(r"(?<![\w/-])confcom ([a-z][^\n`|&;]*)", text):
            words, path = line.split(), ()
            while words and (*path, words[0]) in commands:
                path = (*path, words.pop(0))
            if not path:
                continue
            known = {"-h", "--help"}
            for parameter in commands[path].params:
                known |= {*parameter.opts, *parameter.secondary_opts}
            named = {found[0] for word in words if (found := re.match(r"--?[a-z][a-z0-9-]*", word))}
            assert named <= known, f"{page.relative_to(ROOT)}: confcom {line}"
            seen += 1
    assert seen > 100


def called(text: str) -> Iterator[list[str]]:
    """The words of each `confcom …` in the code blocks of a page, without what the shell does with them."""
    for block in re.findall(r"(?ms)^ *```sh\n(.*?)^ *```|((?:^ {4,}\S[^\n]*\n)+)", re.sub(r"\\\n\s*", " ", text)):
        for line in "".join(block).splitlines():
            for part in re.split(r"\||&&|;|\$\(", re.sub(r"\$\(\w+\)", "X", line)):
                found = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\./dev run |kubectl )?confcom ([a-z].*)", part)
                if found:
                    command = re.sub(r"\s(?:[12]?>>?|&|<).*|\s#.*|\).*", "", f"{found[1]} ")
                    yield shlex.split(command)


def test_every_command_line_in_the_pages_parses() -> None:
    """Options have their values, and there are neither too many nor too few arguments."""
    commands = _commands(root)
    seen = 0
    for page in PAGES:
        for words in called(page.read_text()) if page.name != "CHANGELOG.md" else ():
            path: tuple[str, ...] = ()
            rest = list(words)
            while rest and (*path, rest[0]) in commands:
                path = (*path, rest.pop(0))
            if not path or isinstance(commands[path], click.Group) or "…" in rest:
                continue
            place = f"{page.relative_to(ROOT)}: confcom {' '.join(words)}"
            context = click.Context(commands[path], info_name=" ".join(path))
            try:
                values, left, _ = commands[path].make_parser(context).parse_args(rest)
            except click.UsageError as error:
                raise AssertionError(f"{place}: {error.format_message()}") from None
            assert not left, f"{place}: too many arguments: {left}"
            for one in commands[path].params:
                if isinstance(one, click.Argument) and one.required:
                    assert values.get(one.name or "") not in (None, (), click.core.UNSET), (
                        f"{place}: {one.name} is missing"
                    )
            seen += 1
    assert seen > 100


def test_anchors_of_links_are_headings_of_their_pages() -> None:
    for page in PAGES:
        for file, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text()):
            text = (page.parent / file).read_text() if file else page.read_text()
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            known = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in known, f"{page.relative_to(ROOT)} links to {file}#{anchor}"


def test_sentences_of_the_documentation_are_wrapped() -> None:
    for page in [*ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"), ROOT / "README.md", ROOT / "SECURITY.md"]:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        wide = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))]
        assert wide == [], page.relative_to(ROOT)


def test_the_readme_is_one_screen_before_its_links() -> None:
    first, _, links = (ROOT / "README.md").read_text().partition("## Where to go on")
    assert first.count("\n") <= 50
    assert "first-ten-minutes.md" in links.splitlines()[2]
    assert "![Data flow on a node and to the relying party](docs/data-flow.svg)" in first


PICTURES = [ROOT / "docs" / "data-flow.svg", *sorted((ROOT / "docs" / "explanation").glob("*.svg"))]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_pictures_are_small_text_readable_in_light_and_dark_and_to_screen_readers(picture: Path) -> None:
    data = picture.read_text()
    assert len(data) < 8000
    assert "prefers-color-scheme: dark" in data
    found = ET.fromstring(data)
    title, description, *_ = found
    assert found.get("role") == "img"
    assert found.get("aria-labelledby", "").split() == [title.get("id"), description.get("id")]
    assert title.text
    assert len(description.text or "") > 80
    assert any(f"({picture.name})" in text or f"/{picture.name})" in text for text in map(Path.read_text, PAGES))


def test_the_picture_of_the_readme_names_the_parts() -> None:
    found = ET.parse(ROOT / "docs" / "data-flow.svg")
    words = [element.text for element in found.iter() if element.tag.endswith("}text")]
    assert {"quote helper", "device plugin", "relying party", "collateral service", "evidence"} <= set(words)


def printed_as_shown(shown: str) -> str:
    """A pattern: `…` is anything on a line, and in a line of its own any lines."""
    lines = [".*" if line == "…" else re.escape(line).replace("…", "[^\\n]*") for line in shown.splitlines()]
    return "\\n".join(lines)


def test_the_tutorial_runs_as_written(tmp_path: Path) -> None:
    """Its commands in their order print what the page shows, and end as it says."""
    page = (ROOT / "docs" / "tutorial" / "first-ten-minutes.md").read_text()
    steps = re.findall(r"^    (\S.*)$(?:\n\n```text\n((?s:.*?))^```)?", page, re.MULTILINE)
    assert steps.pop(0)[0] == "./dev run bash"
    assert len([shown for _, shown in steps if shown]) >= 7
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("SGX_AESM_ADDR", None)
    codes = []
    helper = None
    try:
        for command, shown in steps:
            if command.startswith("confcom quote-helper"):
                helper = subprocess.Popen(f"exec {command}", shell=True, cwd=tmp_path, env=environment)
                ends = time.monotonic() + 60
                while not (tmp_path / "aesm.socket").exists() and time.monotonic() < ends:
                    time.sleep(0.05)
                continue
            done = subprocess.run(
                command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            codes.append((command, done.returncode))
            if shown:
                pattern = printed_as_shown(shown.rstrip())
                assert re.fullmatch(pattern, (done.stdout + done.stderr).rstrip(), re.DOTALL), f"{command}: {done}"
    finally:
        if helper is not None:
            helper.terminate()
            helper.wait(60)
    assert [code for command, code in codes if command.startswith("confcom verify")] == [4, 0, 5]
    assert [command for command, code in codes if code not in (0, 4, 5)] == []
