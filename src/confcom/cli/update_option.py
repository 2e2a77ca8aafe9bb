"""Which set of collateral a person names with `--update`."""

from __future__ import annotations

from confcom.errors import ConfigError
from confcom.protocols.pcs import Update


def parse_update(text: str) -> Update:
    """The name of a set."""
    named = text.lower()
    if named == "standard":
        return "standard"
    if named == "early":
        return "early"
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return int(text)
    raise ConfigError(f"--update: {text!r} is neither standard nor early nor a TCB evaluation data number")
