"""The roots that a person names with `--trust-root`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from confcom.cli.inputs import read_input
from confcom.errors import ConfigError, FormatError
from confcom.formats.text import without_bom
from confcom.pki.roots import TrustRoot, TrustRoots

MAX_ROOT = 64 * 1024
"""Bytes of a file with a root certificate."""


def trust_roots(names: Iterable[str]) -> TrustRoots:
    """Intel's root where none is named; the word `intel` adds it to others."""
    roots: list[TrustRoot] = []
    for name in names:
        if name == "intel":
            roots += TrustRoots.intel().roots
        else:
            roots.append(_root(name))
    return TrustRoots(tuple(roots)) if roots else TrustRoots.intel()


def _root(name: str) -> TrustRoot:
    data = without_bom(read_input(Path(name), MAX_ROOT, "root certificate"))
    try:
        return TrustRoot.from_pem(data)
    except FormatError as error:
        raise ConfigError(
            f"--trust-root {name}: {error.message}", advice="Name a file with one root certificate in PEM."
        ) from error
