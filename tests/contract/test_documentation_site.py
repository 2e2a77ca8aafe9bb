"""The documentation site: its navigation, and what its build notices. `./dev browser` looks at it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from documentation_site import ROOT, defects, finished, links, list_versions, listed, navigation, pages


def test_every_page_is_in_the_list_of_one_reader() -> None:
    """A new page goes into a row of docs/README.md, or into the README.md of its folder where one is listed there."""
    places = Counter(listed(navigation()))
    assert sorted(places) == pages()
    assert [page for page, count in places.items() if count > 1] == []


def test_the_navigation_has_a_section_for_each_reader() -> None:
    titles = [title for section in navigation() for title in section]
    assert titles == ["Introduction", "Operators", "Application developers", "Relying parties", "Contributors"]


def test_links_lead_to_files_that_are_there() -> None:
    found = {page: target for page in pages() for _, target in links((ROOT / page).read_text(), page.parent)
             if not (ROOT / target).exists()}  # fmt: skip
    assert found == {}


def test_defects_of_a_built_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.html").write_text(
        '<link rel="stylesheet" href="https://fonts.example.com/x.css"><script src="//cdn.example.com/x.js"></script>'
        '<link rel="canonical" href="https://docs.example.com/"><img src="../x.svg">'
        '<h1 id="here">x</h1><a href="#here">1</a><a href="#there">2</a><a href="two.html">3</a>'
        '<a href="../index.html">4</a><a href="https://example.com/">5</a><a href="../index.html#x">6</a>'
    )
    (tmp_path / "index.html").write_text('<a href="a/one.html#here">1</a><iframe src="https://example.com/"></iframe>')
    (tmp_path / "x.css").write_text("@import 'https://example.com/y.css'; a { background: url(//example.com/z.png) }")
    assert defects(tmp_path) == [
        "a/one.html loads https://fonts.example.com/x.css from another host",
        "a/one.html loads //cdn.example.com/x.js from another host",
        "a/one.html loads ../x.svg, which is not there",
        "a/one.html links to #there, which has no such anchor",
        "a/one.html links to two.html, which is not there",
        "a/one.html links to ../index.html#x, which has no such anchor",
        "index.html loads https://example.com/ from another host",
        "x.css loads https://example.com/y.css from another host",
        "x.css loads //example.com/z.png from another host",
    ]


def test_code_has_a_button_that_copies_it_and_tables_no_empty_headings() -> None:
    code = "<pre><span></span><code>a</code></pre>"
    page = finished(f"{code}<table><tr><th></th><th>b</th></tr></table>{code}<pre>c</pre>")
    targets = re.findall(r'data-clipboard-target="#([^ "]+)"', page)
    assert targets == re.findall(r'<code id="([^"]+)"', page)
    assert len(set(targets)) == 2
    assert page.endswith("<pre>c</pre>")
    assert "<tr><td></td><th>b</th></tr>" in page


def test_the_newest_version_is_the_first_and_the_start(tmp_path: Path) -> None:
    for name in ("0.9.0", "0.10.0", "assets", "0.2.1"):
        (tmp_path / name).mkdir()
    list_versions(tmp_path, "0.10.0")
    rows = json.loads((tmp_path / "versions.json").read_text())
    assert [row["version"] for row in rows] == ["0.10.0", "0.9.0", "0.2.1"]
    assert [row["aliases"] for row in rows] == [["latest"], [], []]
    assert "url=0.10.0/index.html" in (tmp_path / "index.html").read_text()
