"""PCS, PCCS and THIM over HTTP: their answers as a client reads them (documents with issuer chains, PCK certificates,
errors by status), and the server's side: paths and parameters to request values, answers to responses (dcap.md §7.2).

What cannot be a request is a `FormatError` that names the parameter (status 400); a path that is none of the table's is
`None` (status 404). Unknown parameters are ignored: clients add their own, such as THIM's `clientid`.

Azure's client library names itself by the parameter `api-version`. It expects PCK certificates as JSON, CRLs by their
distribution point, escaped twice, and a chain with every CRL, the root's too (dcap.md §7.3).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Literal, TypeVar, get_args
from urllib.parse import quote, unquote, unquote_to_bytes

import msgspec

from confcom.errors import CollateralError, CollateralNotFound, CollateralUnavailable, FormatError
from confcom.protocols import pcs
from confcom.protocols.pcs import (
    Answer,
    CrlEncoding,
    HttpResponse,
    PckCaName,
    PckCertificateAnswer,
    Request,
    Tee,
    Update,
    describe,
)

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
    return Answer(response.body, b"" if names is None else _issuer_chain(response, names, structure))


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
    return _issuer_chain(response, (pcs.PCK_CHAIN,), _PCK)


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


def _issuer_chain(response: HttpResponse, names: tuple[str, ...], structure: str) -> bytes:
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


STRUCTURE = "PCS request"

MAX_PARAMETER = 2048
"""Characters of one parameter. The longest, an encrypted PPID, has 768."""

OLD_VERSION_WARNING = '299 - "versions 2 and 3 of this interface are deprecated: use version 4"'

AZURE_METADATA = "metadata/THIM/"
"""What Azure's instance metadata service has before the paths."""
AZURE_DER = "2018-10-01-preview"
"""The `api-version` at which Azure's client library reads CRLs as DER; at later ones it reads PEM."""

JSON = "application/json"
PEM = "application/x-pem-file"
DER = "application/pkix-crl"
TEXT = "text/plain"


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """A request with the version of the interface that it came by; `azure` if it is of Azure's client library."""

    version: Literal[2, 3, 4]
    request: pcs.Request
    azure: bool = False


def parse_request(path: str, query: Mapping[str, str]) -> ServedRequest | None:
    """The request of a GET by its path and its decoded parameters; None for a path that is not served.

    A POST to `pckcert` and the PCCS's administration (`platforms`, `platformcollateral`, `refresh`) are not here.
    """
    tee, _, rest = path.strip("/").removeprefix(AZURE_METADATA).partition("/certification/v")
    version, _, name = rest.partition("/")
    if version not in _VERSIONS or tee not in {"sgx", "tdx"} or (tee == "tdx" and version != "4"):
        return None
    reader = _READERS["sgx" if tee == "sgx" else "tdx"].get(name)
    if reader is None:
        return None
    for field, value in query.items():
        if len(value) > MAX_PARAMETER:
            raise FormatError(f"is longer than {MAX_PARAMETER} characters", structure=STRUCTURE, field=field)
    return ServedRequest(_VERSIONS[version], reader(query), azure="api-version" in query)


def document_response(served: ServedRequest, answer: Answer, *, request_id: str) -> HttpResponse:
    """Status 200 with a document. CRLs are given as DER and are written as asked: PCCS's default is hexadecimal."""
    headers = _headers(served, request_id)
    match served.request:
        case pcs.TcbInfoRequest():
            chain = pcs.TCB_INFO_CHAIN[served.version]
            if served.azure:  # it looks for the older name first, whatever the version
                headers += _chain(pcs.TCB_INFO_CHAIN[3], answer.issuer_chain) if served.version == 4 else ()
        case pcs.EnclaveIdentityRequest():
            chain = pcs.IDENTITY_CHAIN
        case pcs.TcbEvaluationDataNumbersRequest():
            chain = pcs.NUMBERS_CHAIN
        case pcs.PckCrlRequest(encoding=encoding) | pcs.CrlRequest(encoding=encoding):
            headers += _chain(pcs.PCK_CRL_CHAIN, answer.issuer_chain)
            return _crl_response(answer.body, encoding or "hex", headers)
        case _:
            headers += _chain(pcs.PCK_CRL_CHAIN, answer.issuer_chain)
            return _crl_response(answer.body, "hex", headers)
    headers += _chain(chain, answer.issuer_chain)
    return HttpResponse(200, (("Content-Type", JSON), *headers), answer.body)


def pck_certificate_response(
    served: ServedRequest, answer: PckCertificateAnswer, *, request_id: str, max_age: int
) -> HttpResponse:
    """Status 200 with a PCK certificate: PEM and headers, or JSON for Azure's client library.

    `max_age` is the number of seconds that the client may keep it.
    """
    if served.azure:
        fields = {
            "pckCert": answer.certificate.decode("ascii"),
            "sgx-Pck-Certificate-Issuer-Chain": quote(answer.issuer_chain, safe=""),
            "sgx-Tcbm": answer.tcbm.hex(),
            "sgx-Fmspc": None if answer.fmspc is None else answer.fmspc.hex(),
            "sgx-Pck-Certificate-CA-Type": answer.ca,
            "cacheMaxAge": str(max_age),
        }
        body = msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
        return HttpResponse(200, (("Content-Type", JSON), *_headers(served, request_id)), body)
    headers = _headers(served, request_id) + _chain(pcs.PCK_CHAIN, answer.issuer_chain)
    headers += ((pcs.TCBM, answer.tcbm.hex()),)
    if answer.fmspc is not None:
        headers += ((pcs.FMSPC, answer.fmspc.hex()),)
    if answer.ca is not None:
        headers += ((pcs.CA_TYPE, answer.ca),)
    return HttpResponse(200, (("Content-Type", PEM), *headers), answer.certificate)


def encode_crl(der: bytes, encoding: CrlEncoding) -> bytes:
    """A CRL's DER in the encoding asked for."""
    match encoding:
        case "der":
            return der
        case "hex":
            return der.hex().encode()
        case "pem":
            text = base64.b64encode(der)
            lines = [text[start : start + 64] for start in range(0, len(text), 64)]
            return b"\n".join((b"-----BEGIN X509 CRL-----", *lines, b"-----END X509 CRL-----", b""))


def _crl_response(der: bytes, encoding: CrlEncoding, headers: tuple[tuple[str, str], ...]) -> HttpResponse:
    kind = {"der": DER, "pem": PEM, "hex": TEXT}[encoding]
    return HttpResponse(200, (("Content-Type", kind), *headers), encode_crl(der, encoding))


def _headers(served: ServedRequest, request_id: str) -> tuple[tuple[str, str], ...]:
    warning = (("Warning", OLD_VERSION_WARNING),) if served.version < 4 else ()
    return (("Request-ID", request_id), *warning)


def _chain(name: str, chain: bytes) -> tuple[tuple[str, str], ...]:
    return ((name, quote(chain, safe="")),)


def _required(query: Mapping[str, str], name: str) -> str:
    if name not in query:
        raise FormatError("is missing", structure=STRUCTURE, field=name)
    return query[name]


def _update(query: Mapping[str, str]) -> Update:
    update, number = query.get("update"), query.get("tcbEvaluationDataNumber")
    if update is not None and number is not None:
        raise FormatError("excludes update", structure=STRUCTURE, field="tcbEvaluationDataNumber")
    if number is not None:
        found = pcs.evaluation_data_number(number)
        if found is None:
            raise FormatError("is no number of 1 to 999999999", structure=STRUCTURE, field="tcbEvaluationDataNumber")
        return found
    match None if update is None else update.lower():
        case None | "standard":
            return "standard"
        case "early":
            return "early"
        case _:
            raise FormatError("is neither standard nor early", structure=STRUCTURE, field="update")


def _tcb(tee: Tee) -> Callable[[Mapping[str, str]], pcs.Request]:
    return lambda query: pcs.TcbInfoRequest(
        tee, hex_field(_required(query, "fmspc"), 6, STRUCTURE, "fmspc"), _update(query)
    )


def _identity(tee: Tee, enclave: pcs.Enclave) -> Callable[[Mapping[str, str]], pcs.Request]:
    return lambda query: pcs.EnclaveIdentityRequest(tee, enclave, _update(query))


def _pck_crl(query: Mapping[str, str]) -> pcs.Request:
    if "uri" in query and "ca" not in query:
        return _crl(query)
    match _required(query, "ca").lower():
        case ("processor" | "platform") as ca:
            return pcs.PckCrlRequest(ca, _encoding(query))
        case _:
            raise FormatError("is neither processor nor platform", structure=STRUCTURE, field="ca")


def _crl(query: Mapping[str, str]) -> pcs.Request:
    uri = _required(query, "uri")
    encoding: Literal["pem", "der"] = "der" if query.get("api-version", AZURE_DER) == AZURE_DER else "pem"
    return pcs.CrlRequest(uri if "://" in uri else unquote(uri), encoding)


def _encoding(query: Mapping[str, str]) -> Literal["pem", "der"] | None:
    given = query.get("encoding")
    match None if given is None else given.lower():
        case (None | "pem" | "der") as encoding:
            return encoding
        case _:
            raise FormatError("is neither pem nor der", structure=STRUCTURE, field="encoding")


def _pck_cert(query: Mapping[str, str]) -> pcs.Request:
    qe_id, ppid = query.get("qeid"), query.get("encrypted_ppid")
    if not qe_id and not (ppid and ppid.strip("0")):
        raise FormatError("is missing", structure=STRUCTURE, field="qeid")
    return pcs.PckCertRequest(
        cpu_svn=hex_field(_required(query, "cpusvn"), 16, STRUCTURE, "cpusvn"),
        pce_svn=int.from_bytes(hex_field(_required(query, "pcesvn"), 2, STRUCTURE, "pcesvn"), "little"),
        pce_id=hex_field(_required(query, "pceid"), 2, STRUCTURE, "pceid"),
        qe_id=hex_field(qe_id, len(qe_id) // 2, STRUCTURE, "qeid") if qe_id else None,
        encrypted_ppid=hex_field(ppid, pcs.ENCRYPTED_PPID_SIZE, STRUCTURE, "encrypted_ppid") if ppid else None,
    )


def _pck_certs(query: Mapping[str, str]) -> pcs.Request:
    ppid = hex_field(_required(query, "encrypted_ppid"), pcs.ENCRYPTED_PPID_SIZE, STRUCTURE, "encrypted_ppid")
    return pcs.PckCertsRequest(hex_field(_required(query, "pceid"), 2, STRUCTURE, "pceid"), ppid)


def _fmspcs(query: Mapping[str, str]) -> pcs.Request:
    platform = query.get("platform", "all")
    for known in get_args(Literal["all", "client", "E3", "E5"]):
        if platform.lower() == known.lower():
            return pcs.FmspcsRequest(known)
    raise FormatError("is none of all, client, E3, E5", structure=STRUCTURE, field="platform")


_VERSIONS: dict[str, Literal[2, 3, 4]] = {"2": 2, "3": 3, "4": 4}
_READERS: dict[Tee, dict[str, Callable[[Mapping[str, str]], pcs.Request]]] = {
    "sgx": {
        "tcb": _tcb("sgx"),
        "qe/identity": _identity("sgx", "qe"),
        "qve/identity": _identity("sgx", "qve"),
        "qae/identity": _identity("sgx", "qae"),
        "pckcrl": _pck_crl,
        "rootcacrl": lambda _query: pcs.RootCaCrlRequest(),
        "crl": _crl,
        "pckcert": _pck_cert,
        "pckcerts": _pck_certs,
        "tcbevaluationdatanumbers": lambda _query: pcs.TcbEvaluationDataNumbersRequest("sgx"),
        "fmspcs": _fmspcs,
    },
    "tdx": {
        "tcb": _tcb("tdx"),
        "qe/identity": _identity("tdx", "qe"),
        "tcbevaluationdatanumbers": lambda _query: pcs.TcbEvaluationDataNumbersRequest("tdx"),
    },
}
