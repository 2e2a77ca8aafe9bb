"""Recognises what an input is and explains it. Nothing is verified here, and nothing that is shown may be believed.

Text forms come first (PEM, JSON, tokens), then hexadecimal and base64 are undone, then the bytes decide: by what they
begin with where there is such a thing, by their size where there is not.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from confcom.appraisal.enclave_file import read_signed_enclave
from confcom.appraisal.inspection import documents, quotes
from confcom.appraisal.inspection.items import Inspection, Item
from confcom.errors import ConfcomError, ConfigError, FormatError
from confcom.formats.arguments import without_bom
from confcom.formats.attestation_key_id import AttestationKeyId, AttestationKeyIdList
from confcom.formats.codec import Record
from confcom.formats.evidence import EVIDENCE_VERSION, MAX_EVIDENCE, REPORT_VERSION, OeEvidence, OeReport, decode_text
from confcom.formats.quote import INTEL_QE_VENDOR_ID, QUOTE_VERSIONS, Quote, is_epid
from confcom.formats.sgx import (
    QeReportInfo,
    Report,
    ReportBody,
    TargetInfo,
    TdReportBody10,
    TdReportBody15,
    TdReportBody15Ex,
    find_sigstructs,
    is_sigstruct,
)
from confcom.formats.tcb_info import SignedEnclaveIdentity, SignedTcbInfo

MAX_INSPECTED = 17 << 20
"""Bytes of an input: a revocation list at its limit, in hexadecimal."""

KNOWN = (
    "quote, Open Enclave report or evidence, SGX report or report body, target info, QE report info, TD report body, "
    "attestation key id, signed enclave (SIGSTRUCT), certificate, also with evidence for its key, revocation list, "
    "TCB info, enclave identity, collateral.json, AESM frame, attestation token"
)

INPUT = "input"
"""What errors call a file that is nothing known."""
_STRANGERS = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"SQLite format 3", "an SQLite database"),
)
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")


def inspect(data: bytes) -> Inspection:
    """Recognise and explain an input; a `FormatError` says what it looks like instead, or where it is damaged."""
    if not data.strip(b"\0\r\n\t "):
        raise _refusal("the input is empty" if not data else "the input holds nothing but zero bytes or white space")
    if len(data) > MAX_INSPECTED:
        raise _refusal(f"{len(data)} bytes are over the limit {MAX_INSPECTED}")
    data = without_bom(data)
    for magic, what in _STRANGERS:
        if data.startswith(magic):
            raise _refusal(f"this is {what}")
    if data.startswith(b"\x7fELF") and not any(True for _ in find_sigstructs(data)):
        raise _refusal("this is an ELF program with no SIGSTRUCT: no enclave, or one that was not signed")
    if data.startswith(b"\x7fELF") or is_sigstruct(data):
        signed = read_signed_enclave(data)
        items = quotes.sigstruct_items(signed)
        return Inspection("signed-enclave", "signed enclave (SIGSTRUCT)", "binary", len(data), items)
    found = _text(data.strip(b"\0\r\n\t "), len(data))
    if found is not None:
        return found
    content, encoding = _decoded(data)
    if not content.strip(b"\0"):
        raise _refusal(f"the input holds nothing but zero bytes, written in {encoding}")
    found = _binary(content, encoding)
    if found is None:
        raise _refusal(_looks_like(content, encoding))
    return found


_COLLATERAL = "This is collateral: judge a quote by it with `confcom verify QUOTE --collateral PATH`."
_LOCAL = "It proves something on its own machine only: get a quote there (`confcom quote`)."
_SHOWN = "`confcom inspect FILE` shows what it says."
_EVIDENCE = "Give a quote (raw, hexadecimal or base64), an Open Enclave report or Open Enclave evidence."

# What is no evidence, and what to do with it instead.
_INSTEAD = {
    "attested-certificate": "Verify it with `confcom verify --certificate FILE`.",
    "certificate": f"{_SHOWN} A root goes to --trust-root, an issuer's chain into the folder of --collateral.",
    "certificate-chain": f"{_SHOWN} An issuer's chain goes into the folder of --collateral.",
    "crl": _COLLATERAL,
    "tcb-info": _COLLATERAL,
    "enclave-identity": _COLLATERAL,
    "collateral": _COLLATERAL,
    "attestation-token": f"{_SHOWN} Verify it with the keys of the service that issued it.",
    "signed-enclave": "`confcom policy from FILE` writes a policy for it; verify a quote of the running enclave.",
    "report": _LOCAL,
    "report-body": _LOCAL,
    "td-report-body": _LOCAL,
    "target-info": _SHOWN,
    "qe-report-info": _SHOWN,
    "attestation-key-id": _SHOWN,
    "attestation-key-id-list": _SHOWN,
    "aesm-frame": _SHOWN,
}


def other_than_evidence(data: bytes, error: FormatError) -> FormatError | None:
    """The error for an input that is something else than evidence; None for evidence, also damaged.

    `error` is what a reader of evidence said. Bytes that have no mark of evidence are read as a quote, so what such an
    error says about a quote holds only where the input begins like one.
    """
    advice = _EVIDENCE
    try:
        found = inspect(data)
    except ConfcomError as refusal:
        if is_sigstruct(data):  # also when its signature is wrong
            what, advice = ", but: SIGSTRUCT of an enclave", _INSTEAD["signed-enclave"]
        elif isinstance(refusal, FormatError) and error.structure == "Quote" != refusal.structure:
            what = f": {refusal.message.removeprefix(f'{INPUT}: ')}"
        else:
            return None
    else:
        if found.kind not in _INSTEAD:
            return None
        what, advice = f", but: {found.title}", _INSTEAD[found.kind]
    return FormatError(
        f"this is no quote and no evidence{what}", structure="Evidence", field="", offset=0, advice=advice
    )


def _refusal(message: str) -> FormatError:
    advice = f"Known are: {KNOWN}; binary, hexadecimal, base64 or PEM."
    return FormatError(message, structure=INPUT, field="", advice=advice)


def _reads_as_text(content: bytes) -> bool:
    """Whether the first 4096 bytes are printable UTF-8; a character may be cut at their end."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(content[:4096])
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\r\n\t" for char in text)


def _looks_like(content: bytes, encoding: str) -> str:
    written = "" if encoding == "binary" else f", written in {encoding}"
    if _reads_as_text(content):
        return f"this looks like plain text, {len(content)} bytes{written}, and is nothing that is known here"
    begin = content[:8].hex(" ")
    return f"{len(content)} bytes that begin with {begin}{written} are nothing that is known here"


def _decoded(data: bytes) -> tuple[bytes, str]:
    if len(data) <= MAX_EVIDENCE:
        try:
            content, encoding = decode_text(data)
        except FormatError:
            return data, "binary"
        return content, encoding.value
    text = data.rstrip(b"\0\r\n ")
    if len(text) % 2 == 0 and _HEX_DIGITS.issuperset(text):
        return bytes.fromhex(text.decode()), "hex"
    return data, "binary"


# Inputs that are text.


def _text(text: bytes, size: int) -> Inspection | None:
    if text.startswith(b"-----BEGIN"):
        return _pem(text, size)
    if text.startswith(b"{") and _is_text(text):
        return _json(text, size)
    # After lines of text, as `openssl x509 -text` writes them.
    start = text.find(b"\n-----BEGIN ") + 1
    if start and _is_text(text):
        return _pem(text[start:], size)
    if documents.TOKEN.fullmatch(text):
        return Inspection("attestation-token", "attestation token (JWT)", "text", size, documents.token_items(text))
    if text.startswith(b"<") and _is_text(text):
        raise _refusal("this is an XML or HTML document")
    return None


def _is_text(data: bytes) -> bool:
    """Whether no byte is one that text does not have; every binary struct has zeros."""
    return not any(byte < 0x09 for byte in data[:4096])


def _pem(text: bytes, size: int) -> Inspection:
    # Services send chains in HTTP headers, percent-encoded.
    encoding = "PEM"
    if text.startswith(b"-----BEGIN%20"):
        text, encoding = unquote_to_bytes(text), "percent-encoded PEM"
    label = text[len(b"-----BEGIN ") :].split(b"-----", 1)[0][:40].decode("ascii", "replace")
    match label:
        case "CERTIFICATE":
            ders = documents.certificates_of_pem(text)
            if len(ders) == 1:
                return _certificate(ders[0], encoding, size) or Inspection(
                    "certificate", "certificate", encoding, size, documents.certificate_items(ders[0])
                )
            chain = (documents.chain_item("certificates", ders),)
            return Inspection("certificate-chain", f"chain of {len(ders)} certificates", encoding, size, chain)
        case "X509 CRL":
            return Inspection("crl", "certificate revocation list", encoding, size, documents.crl_items(text))
        case _:
            raise _refusal(f"this is PEM with a block of {label!r}")


def _json(text: bytes, size: int) -> Inspection:
    keys = _keys(text)

    def found(kind: str, title: str, items: tuple[Item, ...]) -> Inspection:
        return Inspection(kind, title, "JSON", size, items)

    if "tcbInfo" in keys:
        return found("tcb-info", "TCB info", documents.signed_tcb_info_items(SignedTcbInfo.parse(text)))
    if "enclaveIdentity" in keys:
        signed = SignedEnclaveIdentity.parse(text)
        return found("enclave-identity", "enclave identity", documents.signed_identity_items(signed))
    if {"tcb_info", "pck_crl"} <= keys.keys():
        return found("collateral", "collateral of one platform", documents.collateral_items(text))
    if {"tcbLevels", "fmspc"} <= keys.keys():
        items = documents.tcb_info_items(SignedTcbInfo(text, b"").tcb_info())
        return found("tcb-info", "TCB info without its signature", items)
    if {"tcbLevels", "mrsigner"} <= keys.keys():
        items = documents.identity_items(SignedEnclaveIdentity(text, b"").enclave_identity())
        return found("enclave-identity", "enclave identity without its signature", items)
    if "token" in keys:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            held = msgspec.json.decode(keys["token"], type=str)
            return found(
                "attestation-token", "attestation token (JWT) in an answer", documents.token_items(held.encode())
            )
    if {"format", "seed", "sgx_components"} <= keys.keys():
        raise _refusal("this is the machine file of a simulated platform, which is to be kept secret")
    names = ", ".join(repr(key[:40]) for key in sorted(keys)[:8]) or "nothing"
    raise _refusal(f"this is a JSON object with {names} in it, which is nothing that is known here")


def _keys(text: bytes) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal(f"this looks like JSON, but is not: {error}") from error


# Inputs that are bytes.


def _binary(content: bytes, encoding: str) -> Inspection | None:
    for recognise in (_text_inside, _der, _epid, _quote, _open_enclave, _aesm_frame, _by_size, _key_id_list):
        found = recognise(content, encoding)
        if found is not None:
            return found
    return None


def _text_inside(content: bytes, encoding: str) -> Inspection | None:
    """Text forms that were encoded once more, as they are in a Kubernetes secret."""
    found = None if encoding == "binary" else _text(content.strip(b"\0\r\n\t "), len(content))
    return found and replace(found, encoding=f"{found.encoding} in {encoding}")


def _der(content: bytes, encoding: str) -> Inspection | None:
    # A SEQUENCE with a length of one to three bytes. A struct may begin like that too, but then its size differs.
    more = content[1:2] in (b"\x81", b"\x82", b"\x83") and content[1] & 3
    if content[:1] != b"\x30" or not more:
        return None
    size, announced = len(content), 2 + more + int.from_bytes(content[2 : 2 + more], "big")
    if announced != size:
        if size in _SIZES:
            return None
        raise _refusal(f"this looks like DER of {announced} bytes, but {size} are here")
    written = "DER" if encoding == "binary" else f"DER in {encoding}"
    if attested := _certificate(content, written, size):
        return attested
    for kind, title, explain in _DER_KINDS:
        try:
            return Inspection(kind, title, written, size, explain(content))
        except FormatError:
            continue
    raise _refusal(f"this is DER, {size} bytes, but neither a certificate nor a revocation list that can be read")


def _certificate(content: bytes, written: str, size: int) -> Inspection | None:
    """A certificate with evidence; other readers may not take it, such as Gramine's."""
    items = quotes.attested_items(content)
    if items is None:
        return None
    return Inspection("attested-certificate", "certificate with evidence", written, size, items)


_DER_KINDS: tuple[tuple[str, str, Callable[[bytes], tuple[Item, ...]]], ...] = (
    ("certificate", "certificate", documents.certificate_items),
    ("crl", "certificate revocation list", documents.crl_items),
)


def _quote(content: bytes, encoding: str) -> Inspection | None:
    version, key_type = content[:2], int.from_bytes(content[2:4], "little")
    is_known = version in (number.to_bytes(2, "little") for number in QUOTE_VERSIONS) and key_type in (2, 3)
    if not is_known and content[12:28] != INTEL_QE_VENDOR_ID:
        return None
    parsed = Quote.parse(content)
    return Inspection("quote", quotes.quote_title(parsed), encoding, len(content), quotes.quote_items(parsed))


def _epid(content: bytes, encoding: str) -> None:
    del encoding
    if is_epid(content):
        Quote.parse(content)


def _open_enclave(content: bytes, encoding: str) -> Inspection | None:
    number, rest = int.from_bytes(content[:4], "little"), content[4:8]
    if number == REPORT_VERSION and rest in (b"\1\0\0\0", b"\2\0\0\0"):
        items = quotes.oe_report_items(OeReport.parse(content))
        return Inspection("open-enclave-report", "Open Enclave report", encoding, len(content), items)
    if number == EVIDENCE_VERSION and len(content) >= 32:
        items = quotes.oe_evidence_items(OeEvidence.parse(content))
        return Inspection("open-enclave-evidence", "Open Enclave evidence", encoding, len(content), items)
    return None


def _aesm_frame(content: bytes, encoding: str) -> Inspection | None:
    if len(content) < 6 or int.from_bytes(content[:4], "little") != len(content) - 4:
        return None
    try:
        # Here, because protobuf does not belong to the bare library.
        from confcom.appraisal.inspection import aesm
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this looks like an AESM frame, and reading it needs the package {error.name!r}",
            advice="Install confcom[cli].",
        ) from error
    return aesm.inspect_frame(content, encoding)


_TD_BODIES = ((TdReportBody10, "TDX 1.0"), (TdReportBody15, "TDX 1.5"), (TdReportBody15Ex, "TDX 1.5 extended"))
_RECORDS: tuple[tuple[type[Record], str, str, Callable[[Any], tuple[Item, ...]]], ...] = (
    (AttestationKeyId, "attestation-key-id", "attestation key id", quotes.key_id_items),
    (ReportBody, "report-body", "SGX report body", quotes.report_body_items),
    (Report, "report", "SGX report (not a quote)", quotes.report_items),
    (TargetInfo, "target-info", "SGX target info", quotes.target_info_items),
    (QeReportInfo, "qe-report-info", "QE report info", quotes.qe_report_info_items),
    *((kind, "td-report-body", f"TD report body ({name})", quotes.td_body_items) for kind, name in _TD_BODIES),
)
_SIZES = {row[0].size(): row for row in _RECORDS}
"""What has no mark but its size: the struct, kind, title and explanation."""


def _by_size(content: bytes, encoding: str) -> Inspection | None:
    if len(content) not in _SIZES or _is_text(content):
        return None
    record, kind, title, explain = _SIZES[len(content)]
    return Inspection(kind, title, encoding, len(content), explain(record.parse(content)))


def _key_id_list(content: bytes, encoding: str) -> Inspection | None:
    count = int.from_bytes(content[4:8], "little")
    if any(content[:4]) or not count or len(content) != 8 + count * AttestationKeyId.size():
        return None
    items = quotes.key_id_list_items(AttestationKeyIdList.parse(content))
    return Inspection("attestation-key-id-list", "list of attestation key ids", encoding, len(content), items)
