"""PEM (RFC 7468): the DER of the blocks of one label, with or without text around them.

Tools write whole lines of text before and after the blocks (`openssl x509 -text`, "Bag Attributes"), blanks, other
line ends, a byte order mark or final NULs. None of it has a meaning, so what is read is the DER alone, and keys of
caches are made of the DER. A damaged marker is no text, and within a block white space is the only freedom.
"""

from __future__ import annotations

import binascii
from codecs import BOM_UTF8
from collections.abc import Iterator

from confcom.errors import FormatError

MAX_CERTIFICATES = 8
"""Intel's chains have two or three."""

MAX_PEM = 32 * 1024
"""Bytes of a chain. Intel's take less than 4 kB, with the text of `openssl x509 -text` 16 kB; longer is hostile."""

_LINE_END = b"\r\n"
_BLANKS = b" \t" + _LINE_END


def parse_certificates(data: bytes, *, structure: str, limit: int = MAX_CERTIFICATES) -> tuple[bytes, ...]:
    """The DER of each CERTIFICATE block, in order; whether it is a certificate is not asked here.

    None at all, more than `limit`, and a NUL before the end are a `FormatError`.
    """
    if len(data) > MAX_PEM:
        raise FormatError(f"{len(data)} bytes are over the limit {MAX_PEM}", structure=structure, field="")
    certificates = tuple(_blocks(data, "CERTIFICATE", structure, limit))
    if not certificates:
        raise FormatError("no PEM certificate here", structure=structure, field="", offset=0)
    return certificates


def parse_crl(data: bytes, *, structure: str) -> bytes:
    """The DER of the one X509 CRL block; the caller bounds the length."""
    lists = tuple(_blocks(data, "X509 CRL", structure, 1))
    if not lists:
        raise FormatError("no PEM revocation list here", structure=structure, field="", offset=0)
    return lists[0]


def _blocks(data: bytes, label: str, structure: str, limit: int) -> Iterator[bytes]:
    begin, end = b"-----BEGIN %s-----" % label.encode(), b"-----END %s-----" % label.encode()
    text = data.removeprefix(BOM_UTF8).rstrip(b"\0")
    if (encoded := text.find(b"-----BEGIN%20")) >= 0:
        raise FormatError("is percent-encoded: decode it first", structure=structure, field="", offset=encoded)
    if (nul := text.find(b"\0")) >= 0:
        # Readers that know strings by their NUL end here, others read on: they would see different chains.
        raise FormatError("a NUL before the end of the text", structure=structure, field="", offset=nul)
    count = offset = 0
    while True:
        start = text.find(begin, offset)
        around = text[offset : len(text) if start < 0 else start].strip(b" \t")
        # Text is whole lines, and the remains of a marker are no text: its block would be left out without a word.
        if around.strip(_LINE_END) and (
            around[-1] not in _LINE_END
            or (count and around[0] not in _LINE_END)
            or any(remains in around for remains in (begin[:10], end[:8], end[9:]))
        ):
            message = f"neither a {label} block nor a line of text"
            raise FormatError(message, structure=structure, field="", offset=offset)
        if start < 0:
            return
        if count == limit:
            raise FormatError(f"more than {limit} {label} blocks", structure=structure, field="", offset=start)
        inner = start + len(begin)
        stop = text.find(end, inner)
        if stop < 0:
            raise FormatError(f"a {label} block has no end", structure=structure, field="", offset=start)
        yield _der(text[inner:stop], structure, inner)
        count, offset = count + 1, stop + len(end)


def _der(block: bytes, structure: str, offset: int) -> bytes:
    text = block.translate(None, _BLANKS)
    try:
        der = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise FormatError(f"not base64: {error}", structure=structure, field="", offset=offset) from error
    # Stray bits in the last digit would be a second spelling.
    if not der or binascii.b2a_base64(der, newline=False) != text:
        raise FormatError("not base64 of whole bytes", structure=structure, field="", offset=offset)
    return der
