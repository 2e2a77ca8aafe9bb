"""Text from files and peers, made safe for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with every character that could steer a terminal written as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
