"""The documentation site in a browser: every page, its colours, its search, and nothing from elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import documentation_site
import pytest

LOADED = "return performance.getEntriesByType('resource').map(each => each.name)"
TOO_WIDE = "return document.documentElement.scrollWidth > innerWidth"
SHOWN = [
    "index.html",
    "docs/index.html",
    "docs/tutorial/first-ten-minutes.html",
    "docs/howto/verify-a-quote.html",
    "docs/explanation/epc.html",
    "docs/reference/command-line.html",
    "docs/reference/glossary.html",
]


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Requests are no news."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of the newest version, and its URL."""
    folder = tmp_path_factory.mktemp("site")
    assert documentation_site.main([str(folder)]) == 0
    (built,) = (path for path in folder.iterdir() if path.is_dir())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield built, f"http://127.0.0.1:{server.server_port}/{built.name}"
        server.shutdown()


@pytest.mark.timeout(3600)
def test_every_page_is_accessible_fits_a_phone_and_loads_nothing_from_elsewhere(
    browser, site: tuple[Path, str]
) -> None:
    built, url = site
    found = {}
    for number, page in enumerate(sorted(built.rglob("*.html"))):
        name = str(page.relative_to(built))
        if name == "404.html":
            continue
        browser.look("phone", "dark" if number % 2 else "light")
        browser.open(f"{url}/{name}")
        defects = browser.violations()
        defects += [f"loads {each}" for each in browser.script(LOADED) if not each.startswith(url.rpartition("/")[0])]
        defects += ["is wider than a phone"] if browser.script(TOO_WIDE) else []
        found |= {name: defects} if defects else {}
    assert found == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_pages_are_accessible_at_both_widths_in_both_schemes(
    browser, site: tuple[Path, str], size: str, scheme: str
) -> None:
    found = {}
    for name in SHOWN:
        browser.look(size, scheme)
        browser.open(f"{site[1]}/{name}")
        browser.script("localStorage.clear()")  # the theme remembers the first scheme
        browser.open(f"{site[1]}/{name}")
        found |= {name: defects} if (defects := browser.violations()) else {}
        assert browser.script("return document.body.dataset.mdColorScheme") == (
            "slate" if scheme == "dark" else "default"
        )
        browser.screenshot(f"site-{name.replace('/', '-').removesuffix('.html')}-{size}-{scheme}")
    assert found == {}


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
