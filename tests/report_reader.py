"""Reads the HTML of reports as a browser does: elements, attributes and text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u202e\x1b"
"""What evidence, its callers and its policies may hold."""
_VOID = {"meta", "link", "input", "br", "img", "rect", "line", "path"}


class Page(HTMLParser):
    """`elements` are (tag, attributes) in their order, `text` is what people read."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", self.text)


def assert_inert(page: Page, *, scripts: int = 0) -> None:
    """No script but `scripts` files, no handler, no inline style, no picture, no link to another host."""
    assert len(page.all("script")) == scripts
    assert not page.all("img")
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        for name in ("src", "href", "action", "formaction"):
            target = attributes.get(name) or ""
            assert ":" not in target, (tag, target)
            assert not target.startswith("//"), (tag, target)
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text
