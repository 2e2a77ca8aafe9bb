"""Answers of PCS, PCCS and THIM: documents with their issuer chains, PCK certificates, and errors by status.

What is malformed is a `FormatError`. Source: dcap.md §7.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from confcom.errors import CollateralError, CollateralNotFound, CollateralUnavailable, FormatError
from confcom.protocols import pcs
from confcom.protocols.pcs import Answer, HttpResponse, PckCaName, PckCertificateAnswer, Request, describe

MAX_ISSUER_CHAIN = 64 * 1024
"""Bytes of a PEM chain in its percent-encoded form; Intel's take 3 kB."""

MAX_LIST = 4 << 20
"""Bytes. A platform has some twenty PCK certificates of 2 kB."""

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


_PCK_CERT = msgspec.json.Decoder(_PckCert)
_PCK_CERT_ENTRIES = msgspec.json.Decoder(list[_PckCertEntry])


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


# Statuses other than 200

MAX_EXPLANATION = 300
"""Characters of a service's own explanation that are passed on."""

RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""


@dataclass(frozen=True, slots=True)
class _Meaning:
    error: type[CollateralError]
    words: str
    advice: str


_NOT_THERE = "Check the FMSPC, the CA and the kind of quote (`confcom inspect QUOTE` shows them)."
_LATER = "Ask again later, name another source, or use what the store holds."
_MEANINGS: dict[int, _Meaning] = {
    400: _Meaning(
        CollateralNotFound, "the service does not understand the request", f"{_NOT_THERE} It may not know this set."
    ),
    401: _Meaning(
        CollateralUnavailable,
        "the service wants a valid key",
        "Give the subscription key of Intel's service, or the token of the caching service.",
    ),
    403: _Meaning(CollateralUnavailable, "the service forbids it", "Check the key and who may use the service."),
    404: _Meaning(CollateralNotFound, "the service has none", f"{_NOT_THERE} A caching service may have to be filled."),
    410: _Meaning(
        CollateralNotFound,
        "the service has given it up",
        "This interface version or this TCB evaluation data number is no longer served: use version 4 and a newer "
        "set, or a store that kept the old one.",
    ),
    429: _Meaning(CollateralUnavailable, "the service asks for fewer requests", "Wait, then ask less often."),
    460: _Meaning(
        CollateralNotFound,
        "what is known of the platform failed the service's integrity check",
        "Register the platform again, with its manifest.",
    ),
    461: _Meaning(
        CollateralNotFound,
        "the service does not know the platform",
        "Register the platform with Intel, then ask again.",
    ),
    462: _Meaning(
        CollateralNotFound,
        "there are no certificates for the platform's present TCB",
        "Update BIOS and microcode, or ask again after Intel has issued certificates for it.",
    ),
}


def status_error(request: Request, response: HttpResponse, *, service: str) -> CollateralError:
    """The error of a response with a status other than 200: the request, the service's explanation, advice."""
    meaning = _MEANINGS.get(response.status) or _other(response.status)
    said = explanation(response)
    message = f"{describe(request)}: {meaning.words} ({service} answered {response.status}{said})"
    return meaning.error(message, advice=meaning.advice)


def explanation(response: HttpResponse) -> str:
    """The service's explanation of a failure, made safe to print; empty or beginning with a comma."""
    parts = [response.header("Error-Code") or "", response.header("Error-Message") or ""]
    if not any(parts):
        parts = [response.body[:MAX_EXPLANATION].decode("utf-8", "replace")]
    text = " ".join(_printable(part) for part in parts if part).strip()
    request_id = _printable(response.header("Request-ID") or "")[:64]
    said = f", {text[:MAX_EXPLANATION]!r}" if text else ""
    return said + (f", Request-ID {request_id}" if request_id else "")


def retry_after(response: HttpResponse) -> float | None:
    """Seconds that the service asks to wait, None where it does not say.

    The header is a number of seconds or a date; a date is taken relative to the response's own `Date`, so that the
    clocks of the two sides do not matter.
    """
    text = (response.header("Retry-After") or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    until, now = _http_date(text), _http_date(response.header("Date") or "")
    if until is None or now is None:
        return None
    return max(0.0, (until - now).total_seconds())


def _http_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo is not None else None


def _other(status: int) -> _Meaning:
    if status in RETRYABLE or status >= 500:
        return _Meaning(CollateralUnavailable, "the service is not able to answer", _LATER)
    if 300 <= status < 400:
        return _Meaning(
            CollateralUnavailable, "the service points elsewhere, which is not followed", "Name the service's own URL."
        )
    return _Meaning(CollateralUnavailable, "the service refuses", "Check the URL and the dialect of the service.")


def _printable(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
