"""Text in files: editors and shells, those of Windows above all, put a byte order mark before it or write UTF-16."""

from __future__ import annotations

import codecs


def without_bom(data: bytes) -> bytes:
    """Text as UTF-8 without a byte order mark; UTF-16 with one is converted. Other bytes stay as they are."""
    if data.startswith(codecs.BOM_UTF8):
        return data[len(codecs.BOM_UTF8) :]
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16").encode()
        except UnicodeError:
            return data
    return data
