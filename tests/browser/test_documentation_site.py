"""The documentation site in a browser: every page, its colours, its search, and nothing from elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import documentation_site
import pytest
from lighthouse import MOST_BYTES, CompressingHandler

LOADED = "return performance.getEntriesByType('resource').map(each => each.name)"
WEIGHT = """return ['navigation', 'resource'].flatMap(kind => performance.getEntriesByType(kind))
    .reduce((sum, each) => sum + each.encodedBodySize, 0)"""
TOO_WIDE = "return document.documentElement.scrollWidth > innerWidth"
SCHEMES = {"light": "default", "dark": "slate"}
"""What a system prefers, to what the theme calls it."""
SHOWN = ("index.html", "docs/index.html", "docs/howto/verify-a-quote.html", "docs/reference/command-line.html")
"""Pages of which pictures are kept."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of the newest version, and its URL; served with gzip as web servers do."""
    folder = tmp_path_factory.mktemp("site")
    assert documentation_site.main([str(folder)]) == 0
    (built,) = (path for path in folder.iterdir() if path.is_dir())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(CompressingHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield built, f"http://127.0.0.1:{server.server_port}/{built.name}"
        server.shutdown()


@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_every_page_is_accessible_fits_and_is_light(browser, site: tuple[Path, str], size: str, scheme: str) -> None:
    """Without a violation of axe-core's rules, sideways scrolling, complaints in the console, and other hosts."""
    built, url = site
    found = {}
    browser.look(size, scheme)
    browser.open(f"{url}/404.html")
    browser.script("localStorage.clear()")  # the theme remembers the first scheme
    browser.complaints()
    for name in sorted(str(page.relative_to(built)) for page in built.rglob("*.html")):
        if name == "404.html":
            continue
        browser.look(size, scheme)
        browser.open(f"{url}/{name}")
        browser.wait(f"document.body.dataset.mdColorScheme === '{SCHEMES[scheme]}'")
        browser.wait("document.querySelector('.md-version__current') !== null")
        browser.settle()
        defects = browser.violations() + browser.complaints()
        defects += [f"loads {each}" for each in browser.script(LOADED) if not each.startswith(url.rpartition("/")[0])]
        defects += ["scrolls sideways"] if browser.script(TOO_WIDE) else []
        weight = browser.script(WEIGHT)
        defects += [] if 10_000 < weight <= MOST_BYTES else [f"takes {weight} bytes"]
        found |= {name: defects} if defects else {}
        if name in SHOWN:
            browser.screenshot(f"site-{name.replace('/', '-').removesuffix('.html')}-{size}-{scheme}")
    assert found == {}


def test_a_button_copies_code(browser, site: tuple[Path, str]) -> None:
    browser.open(f"{site[1]}/docs/howto/verify-a-quote.html")
    browser.wait("document.querySelector('.md-code__button') !== null")
    browser.find(".md-code__button").click()
    browser.wait("document.querySelector('.md-dialog').textContent.includes('Copied')")
    pages = browser.script("return document.querySelectorAll('pre > code').length")
    assert browser.script("return document.querySelectorAll('pre > nav > .md-code__button').length") == pages


def test_the_search_finds_a_page_and_requests_its_index_when_it_is_used(browser, site: tuple[Path, str]) -> None:
    browser.open(f"{site[1]}/index.html")
    assert not [each for each in browser.script(LOADED) if each.endswith("search.json")]
    browser.chord("\ue009", "k")
    browser.wait("document.activeElement.shadowRoot?.activeElement?.tagName === 'INPUT'")
    browser.keys("Glossary")
    browser.wait("document.activeElement.shadowRoot.textContent.includes('Glossary')")
    assert [each for each in browser.script(LOADED) if each.endswith("search.json")]


def test_a_page_offers_the_versions_that_are_there(browser, site: tuple[Path, str]) -> None:
    browser.open(f"{site[1]}/index.html")
    browser.wait("document.querySelector('.md-version__link') !== null")
    assert browser.find(".md-version__current").text == site[0].name
