"""Files of Kubernetes manifests, read as `kubectl` reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confcom.cli.inputs import read_input
from confcom.formats.text import without_bom
from confcom.formats.yaml_text import read_yaml

MAX_MANIFEST = 4 << 20
"""Bytes of a file."""
_IMAGE = re.compile(r"\s{0,200}(?:-\s{1,20})?image:\s{0,20}([^\s:]{1,200}):\s{1,20}(\S{1,200})\s{0,20}")


def read_manifests(path: Path) -> list[Mapping[str, Any]]:
    """The documents of a YAML or JSON file, `-` for standard input; `FormatError` says where it is wrong."""
    text = without_bom(read_input(path, MAX_MANIFEST, "manifest")).decode("utf-8", "replace")
    found = read_yaml(text, source=str(path), advise=_advice)
    return [document for document in found if isinstance(document, dict)]


def _advice(line: str) -> str | None:
    image = _IMAGE.fullmatch(line)
    return None if image is None else f"The image has a blank in it. Write {image[1]}:{image[2]}."
