"""The server's side of PCS and PCCS: paths and parameters to request values, answers to responses (dcap.md §7.2).

What cannot be a request is a `FormatError` that names the parameter (status 400); a path that is none of the table's is
`None` (status 404). Unknown parameters are ignored: clients add their own, such as THIM's `clientid`.

Azure's client library names itself by the parameter `api-version`. It expects PCK certificates as JSON, CRLs by their
distribution point, escaped twice, and a chain with every CRL, the root's too (dcap.md §7.3).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import quote, unquote

import msgspec

from confcom.errors import FormatError
from confcom.protocols import pcs
from confcom.protocols.pcs import Answer, CrlEncoding, HttpResponse, PckCertificateAnswer, Tee, Update
from confcom.protocols.pcs_answers import hex_field

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
