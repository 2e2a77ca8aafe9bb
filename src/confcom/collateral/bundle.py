"""Collateral in files: a folder with one file per part, or one `collateral.json`."""

from __future__ import annotations

from pathlib import Path

from confcom.appraisal.collateral import Collateral


def load_bundle(path: Path) -> Collateral:
    """Read a folder, or a JSON file in dcap-qvl's form."""
    raise NotImplementedError


def save_bundle(collateral: Collateral, folder: Path) -> None:
    """Write one file per part into the folder."""
    raise NotImplementedError


def to_json(collateral: Collateral) -> bytes:
    """The collateral in dcap-qvl's form."""
    raise NotImplementedError


def from_json(data: bytes, *, source: str) -> Collateral:
    """Collateral from dcap-qvl's form."""
    raise NotImplementedError
