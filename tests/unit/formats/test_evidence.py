"""Evidence is recognised as people hand it over; anything else is told by its name (attestation-service.md §4.2)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from confcom.errors import FormatError
from confcom.formats.evidence import MAX_EVIDENCE, Encoding, EvidenceFile, EvidenceKind
from confcom.formats.quote import Quote
from made_quotes import quote_v3, quote_v4, quote_v5, u32

QUOTES = {"v3": quote_v3(), "v4": quote_v4(), "v5": quote_v5()}
QUOTE = QUOTES["v3"]
SGX_ECDSA = bytes.fromhex("a3a21e87 1b4d 4014 b70a a125d2fbcd8c")
LOCAL = bytes.fromhex("09268c33 6e0b 45e5 8a27 15644d0ef89a")


def oe_report(content: bytes, kind: int = 2) -> bytes:
    return u32(1) + u32(kind) + len(content).to_bytes(8, "little") + content


def oe_evidence(content: bytes, format_id: bytes = SGX_ECDSA) -> bytes:
    return u32(3) + format_id + bytes(4) + len(content).to_bytes(8, "little") + content


def wrapped_hex(data: bytes) -> bytes:
    text = data.hex()
    return "\n".join(text[start : start + 64] for start in range(0, len(text), 64)).encode() + b"\r\n"


ENCODINGS: dict[str, tuple[Encoding, Callable[[bytes], bytes]]] = {
    "binary": (Encoding.BINARY, bytes),
    "hex": (Encoding.HEX, lambda data: data.hex().encode()),
    "upper case hex with 0x": (Encoding.HEX, lambda data: b"0x" + data.hex().upper().encode() + b"\n"),
    "hex in lines": (Encoding.HEX, wrapped_hex),
    "hex in groups": (Encoding.HEX, lambda data: data.hex(" ").encode()),
    "base64": (Encoding.BASE64, base64.b64encode),
    "base64 in lines": (Encoding.BASE64, base64.encodebytes),
    "base64url": (Encoding.BASE64, base64.urlsafe_b64encode),
    "base64url without padding": (Encoding.BASE64, lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")),
}


@pytest.mark.parametrize("version", QUOTES)
@pytest.mark.parametrize("name", ENCODINGS)
def test_a_quote_is_recognised_in_every_encoding(version: str, name: str) -> None:
    encoding, encode = ENCODINGS[name]
    file = EvidenceFile.parse(encode(QUOTES[version]))
    assert (file.kind, file.encoding, file.content) == (EvidenceKind.QUOTE, encoding, QUOTES[version])
    assert file.quote == Quote.parse(QUOTES[version])
    assert file.custom_claims is None


@pytest.mark.parametrize("name", ENCODINGS)
def test_open_enclave_wrappings_are_recognised_in_every_encoding(name: str) -> None:
    encoding, encode = ENCODINGS[name]
    report = EvidenceFile.parse(encode(oe_report(QUOTE)))
    assert (report.kind, report.encoding, report.custom_claims) == (EvidenceKind.OE_REPORT, encoding, None)
    evidence = EvidenceFile.parse(encode(oe_evidence(QUOTE + b"claims")))
    assert (evidence.kind, evidence.encoding, evidence.custom_claims) == (EvidenceKind.OE_EVIDENCE, encoding, b"claims")
    assert report.quote == evidence.quote == Quote.parse(QUOTE)


def test_nothing_at_all_is_said_to_be_empty() -> None:
    with pytest.raises(FormatError, match="the input is empty"):
        EvidenceFile.parse(b"")


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"deadbeef",
        bytes(48),
        b"hello, world; this is text of no encoding at all",
        b"0x" * 40,
        b"A" * 33,
        b"0" * 33,
        b"-_" * 40,
        b"=" * 64,
        "Grüße ".encode() * 20,
        u32(1),
        u32(3),
        oe_report(QUOTE, 3),
        oe_report(QUOTE)[:-1],
        oe_evidence(QUOTE)[:-1],
        oe_evidence(QUOTE, bytes(16)),
        oe_evidence(QUOTE, LOCAL),
        QUOTE[:-1],
        QUOTE[:-1].hex().encode(),
        QUOTE.hex().encode()[:-1],
        base64.b64encode(QUOTE)[:1001],
    ],
)
def test_what_is_no_evidence_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        EvidenceFile.parse(data)


def test_a_local_report_is_said_to_be_one() -> None:
    with pytest.raises(FormatError, match="local report") as caught:
        EvidenceFile.parse(oe_report(bytes(432), 1))
    assert "remote report" in caught.value.advice()


def test_a_file_of_evidence_has_a_limit() -> None:
    with pytest.raises(FormatError, match="over the limit"):
        EvidenceFile.parse(bytes(MAX_EVIDENCE + 1))
    with pytest.raises(FormatError, match="over the limit"):
        EvidenceFile.parse(base64.b64encode(QUOTE.ljust(200_000, b"\0")))


@pytest.mark.vectors
def test_azures_public_samples_are_recognised(vectors: Path) -> None:
    for sdk in ("intel-sdk", "oe-sdk"):
        for build in ("debug", "release"):
            document = json.loads((vectors / "azure-attestation" / sdk / f"enclave.info.{build}.json").read_text())
            file = EvidenceFile.parse(document["QuoteHex"].encode())
            assert file.encoding is Encoding.HEX
            assert file.quote.body.mr_enclave.hex() == document["MrEnclaveHex"].lower()
            assert file.quote.body.mr_signer.hex() == document["MrSignerHex"].lower()
            assert file.quote.body.isv_svn == document["SecurityVersion"]


@pytest.mark.vectors
def test_what_went_to_azure_attestation_is_recognised(vectors: Path) -> None:
    folders = sorted(path for path in (vectors / "maa").iterdir() if path.is_dir())
    assert folders
    kinds = set()
    for folder in folders:
        file = EvidenceFile.parse((folder / "evidence.bin").read_bytes())
        kinds.add(file.kind)
        body = json.loads((folder / "request.json").read_text())
        text = body.get("quote") or body.get("report")
        assert EvidenceFile.parse(text.encode()).content == file.content
    assert kinds == {EvidenceKind.QUOTE, EvidenceKind.OE_REPORT}
