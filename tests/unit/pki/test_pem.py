"""PEM chains: the same DER in every way that tools write them; what is damaged or ambiguous is refused."""

from __future__ import annotations

import base64
import binascii
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

import pki_builder as intel
from confcom.errors import FormatError
from confcom.pki.certificate import MAX_PEM, load_chain, parse_certificates

LEAF, ROOT = intel.SIGNING_CERTIFICATE.build(), intel.ROOT_CERTIFICATE.build()
CHAIN = intel.pem(LEAF, ROOT)
LINES = CHAIN.split(b"\n")


def _block(der: bytes, width: int) -> bytes:
    text = base64.b64encode(der)
    lines = [text[start : start + width] for start in range(0, len(text), width)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])


TEXT = b"Certificate:\n    Data:\n        Version: 3 (0x2)\n        X509v3 Key Usage: critical\n"
BAG = b"Bag Attributes\n    friendlyName: caf\xc3\xa9\nsubject=CN = Intel SGX PCK Certificate\n"


@pytest.mark.parametrize(
    "data",
    [
        CHAIN,
        CHAIN.rstrip(b"\n"),
        CHAIN + b"\0",
        CHAIN + b"\n\0\0\0",
        CHAIN + b" ",
        CHAIN + b"\n\r\n \t\n",
        CHAIN + b"\n \0",
        CHAIN + b"\0" * 200,
        CHAIN.replace(b"\n", b"\r\n"),
        CHAIN.replace(b"\n", b"\r\n", 3),
        CHAIN.replace(b"\n", b"\r"),
        CHAIN.replace(b"\n", b"\r\n") + b"\0",
        CHAIN.replace(b"\n", b" \n"),
        CHAIN.replace(b"\n", b"\n\n"),
        b"\xef\xbb\xbf" + CHAIN,
        b"\n \n" + CHAIN,
        _block(LEAF, 76) + _block(ROOT, 64),
        _block(LEAF, 4) + _block(ROOT, 10_000),
        _block(LEAF, 64).rstrip() + _block(ROOT, 64),
        TEXT + _block(LEAF, 64) + TEXT + _block(ROOT, 64),
        BAG + _block(LEAF, 64) + b"\n" + BAG + _block(ROOT, 64) + b"# the end\n\0",
        b"----- Intel -----\n" + CHAIN,
    ],
)
def test_every_way_of_writing_a_chain_is_the_same_chain(data: bytes) -> None:
    assert parse_certificates(data, structure="chain") == (LEAF, ROOT)
    assert [one.der for one in load_chain(data, structure="chain").certificates] == [LEAF, ROOT]


def _changed(number: int, line: bytes) -> bytes:
    return b"\n".join([*LINES[:number], line, *LINES[number + 1 :]])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0",
        b"\n",
        TEXT,
        CHAIN + b"x",
        CHAIN + b"\0\n",
        CHAIN + b"\0x",
        CHAIN + b"\0" + CHAIN,
        CHAIN + b"\n" + TEXT.rstrip(),
        b"x" + CHAIN,
        CHAIN.replace(b"-----\n-----", b"-----x-----"),
        CHAIN.replace(b"\n", b"\0", 1),
        CHAIN.replace(b"BEGIN CERTIFICATE", b"BEGIN TRUSTED CERTIFICATE", 1),
        CHAIN + CHAIN.replace(b"CERTIFICATE", b"PRIVATE KEY"),
        CHAIN.replace(b"-----BEGIN CERTIFICATE", b"+----BEGIN CERTIFICATE", 1),
        CHAIN.replace(b"-----END CERTIFICATE-----", b"-----END CERTIFICATE----"),
        CHAIN[:200],
        _changed(2, LINES[2][:-1] + b"="),
        _changed(2, LINES[2][:-1] + b"-"),
        _changed(2, LINES[2][:-1] + b"\x0b"),
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE----------END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMB==\n-----END CERTIFICATE-----\n",
        CHAIN + b"\0" * MAX_PEM,
        CHAIN + b"\n" * MAX_PEM,
    ],
)
def test_what_is_damaged_or_ambiguous_is_malformed(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse_certificates(data, structure="PCK chain")
    assert caught.value.structure == "PCK chain"
    with pytest.raises(FormatError, match=re.escape(str(caught.value))):
        load_chain(data, structure="PCK chain")


@pytest.mark.parametrize("wrong", [b"-", b"\x0b", b"\xe9", b"*"])
def test_a_character_that_is_no_digit_is_shown_with_its_place(wrong: bytes) -> None:
    data = _changed(2, LINES[2][:-1] + wrong)
    place, shown = data.index(wrong, 30), repr(chr(wrong[0]))
    message = f"chain at byte {place}: holds characters that base64 does not have, first {shown}"
    with pytest.raises(FormatError, match=re.escape(message)):
        load_chain(data, structure="chain")


BREAKS = st.sampled_from(
    [b"\n", b"\r\n", b"\r", b" ", b"\0", b"=", b"-", b"\xef\xbb\xbf", b"A", b"-----BEGIN%20", b"-----"]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(CHAIN)), st.integers(0, 3), BREAKS), max_size=3), st.integers(1, 3))
def test_a_line_before_the_chain_changes_nothing(edits: list[tuple[int, int, bytes]], copies: int) -> None:
    data = CHAIN * copies
    for at, removed, added in edits:
        data = data[:at] + added + data[at + removed :]
    if not data.startswith((b"\xef", b"\0")):
        assert _outcome(data) == _outcome(b"\n" + data)


def _outcome(data: bytes) -> object:
    try:
        ders = parse_certificates(data, structure="chain")
    except FormatError as error:
        with pytest.raises(FormatError, match=re.escape(str(error))):
            load_chain(data, structure="chain")
        return re.sub(r"\d+", "", str(error))
    # Usual text is read in a shorter way, to the same certificates.
    with suppress(FormatError):
        assert tuple(one.der for one in load_chain(data, structure="chain").certificates) == ders
    return ders


@given(st.lists(st.sampled_from([b"A", b"B", b"/", b"+", b"9", b"=", b"-", b"_", b"\xff", b"\0"]), max_size=14))
def test_base64_has_one_spelling(digits: list[bytes]) -> None:
    text = b"".join(digits)
    try:
        der = binascii.a2b_base64(text, strict_mode=True)
        expected = (der,) if der and base64.b64encode(der) == text else None
    except binascii.Error:
        expected = None
    data = b"-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n" % text
    assert (found if isinstance(found := _outcome(data), tuple) else None) == expected


def test_a_percent_encoded_chain_is_named() -> None:
    with pytest.raises(FormatError, match="percent-encoded"):
        parse_certificates(quote(CHAIN).encode(), structure="chain")


def test_a_chain_longer_than_the_limit_is_malformed() -> None:
    with pytest.raises(FormatError, match="more than 1 CERTIFICATE block"):
        parse_certificates(CHAIN, structure="chain", limit=1)


@pytest.mark.vectors
def test_every_chain_of_a_real_folder_is_read(vectors: Path) -> None:
    for path in sorted(vectors.glob("*/*/*.pem")):
        expected = [item.public_bytes(Encoding.DER) for item in x509.load_pem_x509_certificates(path.read_bytes())]
        assert list(parse_certificates(path.read_bytes(), structure="chain")) == expected, path


@pytest.mark.vectors
def test_every_chain_inside_a_real_quote_is_read(vectors: Path) -> None:
    chain = re.compile(rb"-----BEGIN CERTIFICATE-----.*-----END CERTIFICATE-----\n?\0?", re.DOTALL)
    read = 0
    for path in sorted(
        [*vectors.glob("real/*/quote.bin"), *vectors.glob("sim/*/quote.bin"), *vectors.glob("maa/*/*.bin")]
    ):
        if found := chain.search(path.read_bytes()):
            assert len(parse_certificates(found[0], structure="chain")) == 3, path
            read += 1
    assert read > 100
