"""PEM without slack (RFC 7468): every byte of a chain has one place and one value, so none can change unnoticed.

General PEM readers skip text between blocks and white space within them; two files of different bytes then mean the
same chain, and a cache keyed by content, or a person who compares hashes, is misled.
"""

from __future__ import annotations

import base64
import binascii

from confcom.errors import FormatError

MAX_CERTIFICATES = 8
"""Intel's chains have two or three."""

MAX_PEM = 64 * 1024
"""Bytes. Intel's chains take less than 4 kB; the limit bounds what a hostile quote can make us parse."""

BEGIN = b"-----BEGIN CERTIFICATE-----"
END = b"-----END CERTIFICATE-----"


def parse_certificates(data: bytes, *, structure: str, limit: int = MAX_CERTIFICATES) -> tuple[bytes, ...]:
    """The DER of each CERTIFICATE block, in order; whether it is a certificate is not asked here.

    Lines end with LF or all with CRLF, and within a block all are of one length but the last. Line ends after the
    last block and NULs at the very end are Intel's habit and accepted; anything else is a `FormatError`.
    """
    if len(data) > MAX_PEM:
        raise FormatError(f"{len(data)} bytes are over the limit {MAX_PEM}", structure=structure, field="")
    line_end = b"\r\n" if b"\r" in data else b"\n"
    text = data.rstrip(b"\0")
    certificates: list[bytes] = []
    offset = 0
    while text.startswith(BEGIN, offset):
        if len(certificates) == limit:
            raise FormatError(f"more than {limit} certificates", structure=structure, field="", offset=offset)
        start = offset + len(BEGIN)
        end = text.find(END, start)
        if end < 0:
            raise FormatError("a CERTIFICATE block has no end", structure=structure, field="", offset=offset)
        certificates.append(_der(text[start:end], line_end, structure, start))
        offset = end + len(END)
        # Some tools join blocks without a line end; that leaves nothing open, as the next bytes must be BEGIN.
        if text.startswith(line_end + BEGIN, offset):
            offset += len(line_end)
    if not certificates:
        raise FormatError("no PEM certificate here", structure=structure, field="", offset=0)
    if text[offset:].replace(line_end, b""):
        raise FormatError("text that belongs to no certificate", structure=structure, field="", offset=offset)
    return tuple(certificates)


def _der(block: bytes, line_end: bytes, structure: str, offset: int) -> bytes:
    lines = block.split(line_end)
    text = b"".join(lines)
    width = len(lines[1]) if len(lines) > 2 else 0
    try:
        der = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise FormatError(f"not base64: {error}", structure=structure, field="", offset=offset) from error
    # Written again, the block must be the same text: no stray bits in the last digit, no line of another length.
    if width == 0 or not der or block != _block(der, width, line_end):
        raise FormatError("not base64 in lines of one length", structure=structure, field="", offset=offset)
    return der


def _block(der: bytes, width: int, line_end: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = [text[start : start + width] for start in range(0, len(text), width)]
    return line_end + line_end.join(lines) + line_end
