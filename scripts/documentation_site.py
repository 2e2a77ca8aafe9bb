"""Builds the documentation site: `./dev site [FOLDER]` writes FOLDER/VERSION and the list of the versions in FOLDER.

Zensical makes the pages of README.md, docs and examples; it comes from requirements/site.txt. The navigation is that of
docs/README.md. The built site is checked: links lead to pages and anchors that exist, and nothing is loaded from
another host.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from locked import provide

ROOT = Path(__file__).resolve().parent.parent
INDEX = Path("docs") / "README.md"
THEME = ROOT / "scripts" / "site_theme"
SETTINGS = """\
site_name: confcom
site_description: Attestation for Intel SGX on Kubernetes
docs_dir: pages
site_dir: site
use_directory_urls: false
theme:
  name: material
  font: false
  custom_dir: theme
  features: [navigation.tabs, navigation.prune, navigation.top, search.highlight, toc.follow]
  palette:
    - {media: "(prefers-color-scheme: light)", scheme: default, toggle: {icon: lucide/sun, name: Use dark colours}}
    - {media: "(prefers-color-scheme: dark)", scheme: slate, toggle: {icon: lucide/moon, name: Use light colours}}
plugins: [search]
markdown_extensions:
  - tables
  - toc: {permalink: true, slugify: !!python/object/apply:pymdownx.slugs.slugify {kwds: {case: lower}}}
  - pymdownx.highlight
  - pymdownx.superfences
extra: {generator: false, version: {provider: mike}}
"""
COPY = """\
<pre><nav class="md-code__nav" role="presentation"><button class="md-code__button" title="Copy to clipboard" \
data-clipboard-target="#{0}" data-md-type="copy"></button></nav><span></span><code id="{0}">"""
"""What the theme's script and style expect around code."""
Navigation = list[dict[str, "str | Navigation"]]


def pages() -> list[Path]:
    """Every page of the site, relative to the root of the project."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    return sorted(page.relative_to(ROOT) for page in found)


def links(text: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Text and target of the links to files of the project, relative to its root; `folder` holds the page."""
    for shown, target in re.findall(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)[^)]*\)", text):
        if not urlsplit(target).scheme:
            yield shown, Path(os.path.normpath(folder / target))


def navigation() -> Navigation:
    """The sections of docs/README.md, one per reader: each page once, where it stands first."""
    seen = {INDEX, Path("README.md")}
    found: Navigation = [{"Introduction": [{"confcom": "README.md"}, {"All pages": str(INDEX)}]}]
    introduction, *sections = re.split(r"^## ", (ROOT / INDEX).read_text(), flags=re.MULTILINE)
    found[0]["Introduction"] += _entries(introduction, INDEX.parent, seen)  # type: ignore[operator]
    for section in sections:
        title, _, body = section.partition("\n")
        rows = re.findall(r"^\| ([^|`]+) \| (.*) \|$", body, re.MULTILINE)
        groups = [(label.capitalize(), _entries(cell, INDEX.parent, seen)) for label, cell in rows]
        if any(entries for _, entries in groups):
            found.append({title: [{label: entries} for label, entries in groups if entries]})
    return found


def _entries(text: str, folder: Path, seen: set[Path]) -> Navigation:
    """The pages that a text links to; the README.md of a folder brings the pages that it links to."""
    found: Navigation = []
    for shown, page in links(text, folder):
        if page.suffix != ".md" or page in seen:
            continue
        seen.add(page)
        title = shown[0].upper() + shown[1:].replace("`", "")
        below = []
        if page.name == "README.md" and page.parts[0] == "docs":
            below = _entries((ROOT / page).read_text(), page.parent, seen)
        found.append({title: [{"Overview": str(page)}, *below] if below else str(page)})
    return found


def listed(entries: Navigation) -> Iterator[Path]:
    """The pages in a navigation."""
    for entry in entries:
        for value in entry.values():
            yield from [Path(value)] if isinstance(value, str) else listed(value)


def copy_sources(target: Path) -> None:
    """The pages and what they link to, at their places; a folder that a page links to gets a page with its files."""
    for folder in ("docs", "examples"):
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for page in pages():
        shutil.copy(ROOT / page, target / page)
    for page in pages():
        for _, linked in links((ROOT / page).read_text(), page.parent):
            if (ROOT / linked).is_dir():
                files = sorted(path.name for path in (ROOT / linked).iterdir() if path.is_file())
                shutil.copytree(ROOT / linked, target / linked, dirs_exist_ok=True)
                listing = "".join(f"- [{name}]({name})\n" for name in files)
                (target / linked / "README.md").write_text(f"# {linked}\n\n{listing}")
            elif (ROOT / linked).is_file():
                (target / linked).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / linked, target / linked)


def build(target: Path) -> None:
    """Replace a folder by the site."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        copy_sources(work / "pages")
        shutil.copytree(THEME, work / "theme")
        (work / "mkdocs.yml").write_text(f"{SETTINGS}nav: {json.dumps(navigation())}\n")
        command = [sys.executable, "-m", "zensical", "build", "--config-file", "mkdocs.yml"]
        done = subprocess.run(
            command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode or "No issues found" not in done.stdout:
            sys.exit(f"site: {' '.join(command[1:])}:\n{done.stdout}")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(work / "site", target)
    for page in target.rglob("*.html"):
        page.write_text(finished(page.read_text()))


def finished(html: str) -> str:
    """A page with copy buttons, and without empty headings of tables.

    The theme's script would add the buttons one by one in the browser, with a layout of the page for each.
    """
    numbers = itertools.count()

    def with_button(_: re.Match[str]) -> str:
        return COPY.format(f"code-{next(numbers)}")

    return re.sub("<pre><span></span><code>", with_button, html).replace("<th></th>", "<td></td>")


def list_versions(folder: Path, newest: str) -> None:
    """`versions.json`, from which pages offer other versions, and a page that leads to the newest."""
    found = [path.name for path in folder.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+\S*", path.name)]
    found.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)], reverse=True)
    rows = [{"version": name, "title": name, "aliases": ["latest"] if name == newest else []} for name in found]
    (folder / "versions.json").write_text(json.dumps(rows, indent=2) + "\n")
    (folder / "index.html").write_text(
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>confcom</title>\n'
        f'<meta http-equiv="refresh" content="0; url={newest}/index.html">\n'
        f'<p><a href="{newest}/index.html">confcom {newest}</a></p>\n</html>\n'
    )


class _Page(HTMLParser):
    """Anchors of a page, where its links lead, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(given.get("href", ""))
        self.loads += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]


def defects(site: Path) -> list[str]:
    """What is wrong with a built site: a sentence each."""
    read = {path: _Page(path.read_text()) for path in site.rglob("*.html")}
    found: list[str] = []
    for path, page in sorted(read.items()):
        place = path.relative_to(site)
        for url in page.loads:
            if urlsplit(url).netloc:
                found.append(f"{place} loads {url} from another host")
            elif path.name != "404.html" and not urlsplit(url).scheme and not _target(path, url).is_file():
                found.append(f"{place} loads {url}, which is not there")
        for link in page.links:
            if urlsplit(link).scheme or urlsplit(link).netloc or path.name == "404.html":
                continue
            target = _target(path, link)
            if not target.is_file():
                found.append(f"{place} links to {link}, which is not there")
            elif target in read and unquote(urlsplit(link).fragment) not in read[target].anchors:
                found.append(f"{place} links to {link}, which has no such anchor")
    for path in sorted(site.rglob("*.css")):
        urls = re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]*)", path.read_text())
        found += [f"{path.relative_to(site)} loads {url} from another host" for url in urls]
    return found


def _target(page: Path, link: str) -> Path:
    path = unquote(urlsplit(link).path)
    target = Path(os.path.normpath(page.parent / path)) if path else page
    return target / "index.html" if target.is_dir() else target


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev site", description="Build the documentation site, and check it.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "site", help="default: build/site")
    folder: Path = parser.parse_args(arguments).folder.resolve()
    provide("site", "zensical")
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    build(folder / version)
    list_versions(folder, version)
    if found := defects(folder / version):
        sys.exit("\n".join(f"site: {line}" for line in found))
    print(f"site: {sum(1 for _ in (folder / version).rglob('*.html'))} pages in {folder / version}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
