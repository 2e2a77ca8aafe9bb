"""Files of Kubernetes manifests, read as `kubectl` reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # the package carries no types

from confcom.cli.inputs import read_input
from confcom.errors import FormatError

MAX_MANIFEST = 4 << 20
"""Bytes of a file."""
_IMAGE = re.compile(r"^\s*(?:-\s+)?image:\s*([^\s:]+):\s+(\S+)\s*$")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # the package carries no types
    """YAML as the API server's reader has it: `y` and `n` are truth values, and dates are text."""

    bool_values: Mapping[str, bool] = {**yaml.SafeLoader.bool_values, "y": True, "n": False}
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:y|Y|n|N)$"), list("yYnN"))


def read_manifests(path: Path) -> list[Mapping[str, Any]]:
    """The documents of a YAML or JSON file, `-` for standard input; `FormatError` says where it is wrong."""
    text = read_input(path, MAX_MANIFEST, "manifest").decode("utf-8", "replace")
    try:
        found = list(yaml.load_all(text, _Loader))
    except yaml.YAMLError as error:
        raise _wrong(path, text, error) from error
    except (RecursionError, ValueError) as error:
        raise FormatError(str(error), structure=str(path), field="") from error
    return [document for document in found if isinstance(document, dict)]


def _wrong(path: Path, text: str, error: yaml.YAMLError) -> FormatError:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return FormatError(str(error), structure=str(path), field="")
    line = text.splitlines()[mark.line] if mark.line < len(text.splitlines()) else ""
    image = _IMAGE.match(line)
    advice = None
    if image is not None:
        advice = f"The image has a blank in it. Write {image[1]}:{image[2]}."
    problem = getattr(error, "problem", None) or "not YAML"
    return FormatError(
        f"line {mark.line + 1}: {problem}: {line.strip()[:80]!r}", structure=str(path), field="", advice=advice
    )
