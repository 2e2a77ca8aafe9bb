"""Lighthouse's scores of the documentation site, and the weight of its pages: `./dev lighthouse [PAGE…]`.

Builds the site into build/site, serves it on the loopback interface with gzip as web servers do, and measures as a
phone and as a desktop. Every category has 95 points at least, and no page takes more than 500 kB. What else the machine
does takes points away and gives none, so a page has three tries. Lighthouse comes from npm (tests/browser), Chromium
from Debian.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import tomllib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import documentation_site

import browser

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "tests" / "browser" / "node_modules" / "lighthouse" / "cli" / "index.js"
PAGES = [
    "index.html",
    "docs/index.html",
    "docs/tutorial/first-ten-minutes.html",
    "docs/howto/verify-a-quote.html",
    "docs/howto/monitor-the-addon.html",
    "docs/reference/command-line.html",
    "docs/reference/glossary.html",
]
CATEGORIES = ("performance", "accessibility", "best-practices", "seo")
LEAST_POINTS = 95
MOST_BYTES = 500_000
TRIES = 3
COMPRESSED = (".html", ".css", ".js", ".json", ".svg", ".xml")


class CompressingHandler(SimpleHTTPRequestHandler):
    """Serves files of a folder, text with gzip."""

    def do_GET(self) -> None:
        """Answer with a file."""
        path = Path(self.translate_path(self.path))
        if path.suffix not in COMPRESSED or not path.is_file():
            super().do_GET()
            return
        content = gzip.compress(path.read_bytes())
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Requests are no news."""


def measure(url: str, *, desktop: bool) -> tuple[dict[str, int], int, list[str]]:
    """Points by category, bytes received, and the audits that cost points; a browser that fails is a RuntimeError."""
    flags = "--headless=new --no-sandbox --disable-gpu"
    words = ["--quiet", "--output=json", f"--chrome-flags={flags}", f"--only-categories={','.join(CATEGORIES)}"]
    done = subprocess.run(
        ["node", str(PROGRAM), url, *words, *(["--preset=desktop"] if desktop else [])],
        capture_output=True,
        check=False,
        env=os.environ | {"CHROME_PATH": "/usr/bin/chromium"},
    )
    if done.returncode:
        raise RuntimeError(f"lighthouse: {url}: {done.stderr.decode(errors='replace')[-2000:]}")
    found = json.loads(done.stdout)
    points = {name: round(100 * found["categories"][name]["score"]) for name in CATEGORIES}
    weak = [
        f"{name}: {audit['title']}"
        for name in CATEGORIES
        for each in found["categories"][name]["auditRefs"]
        if each["weight"] and (audit := found["audits"][each["id"]])["score"] not in (None, 1)
    ]
    return points, int(found["audits"]["total-byte-weight"]["numericValue"]), weak


def main(arguments: list[str]) -> int:
    if reason := browser.missing(lighthouse=True):
        sys.exit(f"lighthouse: {reason}")
    folder = ROOT / "build" / "site"
    if code := documentation_site.main([str(folder)]):
        return code
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    handler = partial(CompressingHandler, directory=str(folder))
    failed = False
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"{'page':44} {'as':8} {'  '.join(CATEGORIES)}  bytes", flush=True)
        for page in arguments or PAGES:
            for desktop in (False, True):
                url = f"http://127.0.0.1:{server.server_port}/{version}/{page}"
                for tries_left in reversed(range(TRIES)):
                    try:
                        points, weight, weak = measure(url, desktop=desktop)
                    except RuntimeError as error:
                        if not tries_left:
                            sys.exit(str(error))
                        continue
                    if points["performance"] >= LEAST_POINTS:
                        break
                shown = "  ".join(f"{points[name]:{len(name)}}" for name in CATEGORIES)
                print(f"{page:44} {'desktop' if desktop else 'phone':8} {shown}  {weight}", flush=True)
                if min(points.values()) < LEAST_POINTS or weight > MOST_BYTES:
                    failed = True
                    print(*(f"    {line}" for line in weak), sep="\n", flush=True)
        server.shutdown()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
