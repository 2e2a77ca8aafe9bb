"""Answers of PCS, PCCS and THIM as values: documents with their issuer chains, PCK certificates, lists (dcap.md §7).

Only answers with status 200 come here; `pcs_status` is for the others. What is malformed is a `FormatError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from confcom.errors import FormatError
from confcom.protocols import pcs
from confcom.protocols.pcs import Answer, HttpResponse, PckCaName, PckCertificateAnswer

MAX_ISSUER_CHAIN = 64 * 1024
"""Bytes of a PEM chain in its percent-encoded form; Intel's take 3 kB."""

MAX_LIST = 4 << 20
"""Bytes. A platform has some twenty PCK certificates of 2 kB; lists of FMSPCs and numbers are shorter."""

NOT_AVAILABLE = "Not available"

# Every name that some version or service uses (v1, v3, v4, THIM).
_CHAIN_HEADERS: dict[type, tuple[str, ...]] = {
    pcs.TcbInfoRequest: (pcs.TCB_INFO_CHAIN[4], pcs.TCB_INFO_CHAIN[3]),
    pcs.EnclaveIdentityRequest: (pcs.IDENTITY_CHAIN, "SGX-QE-Identity-Issuer-Chain"),
    pcs.PckCrlRequest: (pcs.PCK_CRL_CHAIN,),
    pcs.TcbEvaluationDataNumbersRequest: (pcs.NUMBERS_CHAIN,),
}

_PCK = "PCK certificate answer"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PckCertificateEntry:
    """One of a platform's PCK certificates: `tcbm` 18 bytes; the PEM is None where Intel made none for that TCB."""

    tcbm: bytes
    certificate: bytes | None


@dataclass(frozen=True, slots=True)
class EvaluationDataNumber:
    """One set: its number, when the TCB recovery behind it happened, and the TCB date that it enforces (as sent)."""

    number: int
    recovery_event_date: str
    tcb_date: str


@dataclass(frozen=True, slots=True)
class KnownFmspc:
    """A FMSPC (6 bytes) and the kind of platform that Intel files it under."""

    fmspc: bytes
    platform: str


def parse_document(request: pcs.DocumentRequest, response: HttpResponse) -> Answer:
    """A document with its issuer chain; lists by distribution point and the root's list come without one."""
    structure = pcs.describe(request)
    if not response.body:
        raise FormatError("is empty", structure=structure, field="body")
    names = _CHAIN_HEADERS.get(type(request))
    return Answer(response.body, b"" if names is None else _chain(response, names, structure))


def parse_pck_certificate(response: HttpResponse) -> PckCertificateAnswer:
    """A PCK certificate: PEM with headers (PCS, PCCS) or JSON (THIM at the instance metadata service)."""
    if response.body.lstrip()[:1] == b"{":
        return _pck_certificate_from_json(response.body)
    fmspc = response.header(pcs.FMSPC)
    return PckCertificateAnswer(
        certificate=response.body,
        issuer_chain=pck_issuer_chain(response),
        tcbm=hex_field(response.header(pcs.TCBM) or "", 18, _PCK, pcs.TCBM),
        fmspc=None if fmspc is None else hex_field(fmspc, 6, _PCK, pcs.FMSPC),
        ca=_ca(response.header(pcs.CA_TYPE)),
    )


def parse_pck_certificates(body: bytes) -> tuple[PckCertificateEntry, ...]:
    """All PCK certificates of a platform, in the order of the answer."""
    structure = "PCK certificates answer"
    return tuple(
        PckCertificateEntry(
            hex_field(entry.tcbm, 18, structure, "tcbm"),
            None if entry.cert == NOT_AVAILABLE else decode_chain(entry.cert, structure, "cert"),
        )
        for entry in _decode(body, _PCK_CERT_ENTRIES, structure)
    )


def pck_issuer_chain(response: HttpResponse) -> bytes:
    """The issuer chain in PEM that comes with PCK certificates."""
    return _chain(response, (pcs.PCK_CHAIN,), _PCK)


def parse_evaluation_data_numbers(body: bytes) -> tuple[EvaluationDataNumber, ...]:
    """The sets that Intel lists, lowest first; says nothing about the signature."""
    found = _decode(body, _SIGNED_NUMBERS, "TCB evaluation data numbers").body.numbers
    return tuple(
        EvaluationDataNumber(entry.number, entry.recovery, entry.date)
        for entry in sorted(found, key=lambda entry: entry.number)
    )


def parse_fmspcs(body: bytes) -> tuple[KnownFmspc, ...]:
    """The FMSPCs that Intel lists."""
    return tuple(
        KnownFmspc(hex_field(entry.fmspc, 6, "FMSPC list", "fmspc"), entry.platform)
        for entry in _decode(body, _FMSPCS, "FMSPC list")
    )


def decode_chain(text: str, structure: str, name: str) -> bytes:
    """PEM from its percent-encoded form."""
    if len(text) > MAX_ISSUER_CHAIN:
        raise FormatError(f"longer than {MAX_ISSUER_CHAIN} bytes", structure=structure, field=name)
    # A '+' stays: it is a digit of base64, and not every service encodes it.
    chain = unquote_to_bytes(text)
    if b"-----BEGIN CERTIFICATE-----" not in chain:
        raise FormatError("is not PEM of certificates", structure=structure, field=name)
    return chain


def hex_field(text: str, size: int, structure: str, name: str) -> bytes:
    """`size` bytes from exactly that many pairs of hexadecimal digits, of either case."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != size or len(text) != 2 * size:
        raise FormatError(f"is not {2 * size} hexadecimal digits", structure=structure, field=name)
    return value


class _PckCert(msgspec.Struct):
    certificate: str = msgspec.field(name="pckCert")
    issuer_chain: str = msgspec.field(name="sgx-Pck-Certificate-Issuer-Chain")
    tcbm: str = msgspec.field(name="sgx-Tcbm")
    fmspc: str | None = msgspec.field(name="sgx-Fmspc", default=None)
    ca: str | None = msgspec.field(name="sgx-Pck-Certificate-CA-Type", default=None)


class _PckCertEntry(msgspec.Struct):
    tcbm: str
    cert: str


class _Number(msgspec.Struct):
    number: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)] = msgspec.field(name="tcbEvaluationDataNumber")
    recovery: str = msgspec.field(name="tcbRecoveryEventDate", default="")
    date: str = msgspec.field(name="tcbDate", default="")


class _Numbers(msgspec.Struct):
    numbers: list[_Number] = msgspec.field(name="tcbEvalNumbers")


class _SignedNumbers(msgspec.Struct):
    body: _Numbers = msgspec.field(name="tcbEvaluationDataNumbers")


class _Fmspc(msgspec.Struct):
    fmspc: str
    platform: str = ""


_PCK_CERT = msgspec.json.Decoder(_PckCert)
_PCK_CERT_ENTRIES = msgspec.json.Decoder(list[_PckCertEntry])
_SIGNED_NUMBERS = msgspec.json.Decoder(_SignedNumbers)
_FMSPCS = msgspec.json.Decoder(list[_Fmspc])


def _pck_certificate_from_json(body: bytes) -> PckCertificateAnswer:
    found = _decode(body, _PCK_CERT, _PCK)
    return PckCertificateAnswer(
        certificate=decode_chain(found.certificate, _PCK, "pckCert"),
        issuer_chain=decode_chain(found.issuer_chain, _PCK, "sgx-Pck-Certificate-Issuer-Chain"),
        tcbm=hex_field(found.tcbm, 18, _PCK, "sgx-Tcbm"),
        fmspc=None if found.fmspc is None else hex_field(found.fmspc, 6, _PCK, "sgx-Fmspc"),
        ca=_ca(found.ca),
    )


def _chain(response: HttpResponse, names: tuple[str, ...], structure: str) -> bytes:
    for name in names:
        text = response.header(name)
        if text is not None:
            return decode_chain(text, structure, name)
    raise FormatError("the response lacks this header", structure=structure, field=names[0])


def _ca(text: str | None) -> PckCaName | None:
    # Intel's service writes it in lower case, its caching service in upper case.
    match None if text is None else text.lower():
        case (None | "processor" | "platform") as ca:
            return ca
        case _:
            raise FormatError("is neither processor nor platform", structure=_PCK, field=pcs.CA_TYPE)


def _decode(body: bytes, decoder: msgspec.json.Decoder[T], structure: str) -> T:
    if len(body) > MAX_LIST:
        raise FormatError(f"{len(body)} bytes are over the limit {MAX_LIST}", structure=structure, field="")
    try:
        return decoder.decode(body.removesuffix(b"\0"))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"not the documented JSON: {error}", structure=structure, field="") from error
