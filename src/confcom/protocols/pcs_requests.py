"""Requests to PCS, PCCS and THIM as HTTP: one table of paths, three dialects (dcap.md §7)."""

from __future__ import annotations

from confcom.errors import CollateralNotFound
from confcom.protocols.pcs import (
    INTEL_PCS,
    INTEL_ROOT_CA_CRL,
    Api,
    CrlRequest,
    Dialect,
    EnclaveIdentityRequest,
    FmspcsRequest,
    HttpRequest,
    PckCertRequest,
    PckCertsRequest,
    PckCrlRequest,
    Request,
    RootCaCrlRequest,
    TcbEvaluationDataNumbersRequest,
    TcbInfoRequest,
    Tee,
    Update,
)

_THIM_COLLATERAL = (("clientid", "production_client"), ("api-version", "2018-10-01-preview"))
_THIM_PCK = (("clientid", "production_client"), ("api-version", "2021-07-22-preview"))


def build_request(request: Request, api: Api) -> HttpRequest:
    """The HTTP request in the service's dialect; what a dialect cannot ask is `CollateralNotFound`."""
    match request:
        case PckCertRequest():
            return _build_pck_cert(request, api)
        case PckCertsRequest():
            return _build_pck_certs(request, api)
        case RootCaCrlRequest() | PckCrlRequest() | CrlRequest():
            return _build_crl(request, api)
        case TcbInfoRequest(tee, fmspc, update):
            return _get(api, tee, "tcb", (("fmspc", fmspc.hex()), *_update(update, api)))
        case EnclaveIdentityRequest(tee, enclave, update):
            return _get(api, tee, f"{enclave}/identity", _update(update, api))
        case TcbEvaluationDataNumbersRequest(tee):
            return _get(api, tee, "tcbevaluationdatanumbers", ())
        case FmspcsRequest(platform):
            return _get(api, "sgx", "fmspcs", (("platform", platform),))


def _get(api: Api, tee: Tee, name: str, query: tuple[tuple[str, str], ...]) -> HttpRequest:
    if tee == "tdx" and api.version == 3:
        raise CollateralNotFound("version 3 of the service's interface knows no TDX", advice="Use version 4.")
    extra = _THIM_COLLATERAL if api.dialect is Dialect.THIM else ()
    return HttpRequest(f"/{tee}/certification/v{api.version}/{name}", (*query, *extra))


def _build_crl(request: RootCaCrlRequest | PckCrlRequest | CrlRequest, api: Api) -> HttpRequest:
    # PCS has no path for the root's list, and THIM knows every list by its distribution point.
    if api.dialect is Dialect.THIM:
        return _get(api, "sgx", "pckcrl", (("uri", _distribution_point(request, api)),))
    match request:
        case PckCrlRequest(ca, encoding):
            return _get(api, "sgx", "pckcrl", (("ca", ca), *(() if encoding is None else (("encoding", encoding),))))
        case RootCaCrlRequest() if api.dialect is Dialect.PCCS:
            return _get(api, "sgx", "rootcacrl", ())
        case CrlRequest(uri) if api.dialect is Dialect.PCCS:
            return _get(api, "sgx", "crl", (("uri", uri),))
        case _:
            return HttpRequest("", url=_distribution_point(request, api))


def _distribution_point(request: RootCaCrlRequest | PckCrlRequest | CrlRequest, api: Api) -> str:
    match request:
        case CrlRequest(uri):
            return uri
        case RootCaCrlRequest():
            return INTEL_ROOT_CA_CRL
        case PckCrlRequest(ca):
            return f"{INTEL_PCS}/sgx/certification/v{api.version}/pckcrl?ca={ca}&encoding=der"


def _build_pck_cert(request: PckCertRequest, api: Api) -> HttpRequest:
    tcb = (("cpusvn", request.cpu_svn.hex()), ("pcesvn", request.pce_svn.to_bytes(2, "little").hex()))
    pce_id = ("pceid", request.pce_id.hex())
    ppid = () if request.encrypted_ppid is None else (("encrypted_ppid", request.encrypted_ppid.hex()),)
    path = f"/sgx/certification/v{api.version}/pckcert"
    if api.dialect is Dialect.PCS:
        if request.platform_manifest is not None:
            return _post(path, (("platformManifest", request.platform_manifest.hex()), *tcb, pce_id))
        if not ppid:
            raise CollateralNotFound("Intel's service knows a platform by its encrypted PPID or its manifest only")
        return HttpRequest(path, (*ppid, *tcb, pce_id))
    if request.qe_id is None:
        raise CollateralNotFound("a caching service knows a platform by its QE_ID only")
    query = (("qeid", request.qe_id.hex()), *tcb, pce_id, *ppid)
    if api.dialect is Dialect.PCCS:
        return HttpRequest(path, query)
    return HttpRequest(path, (*query, *_THIM_PCK), headers=(("metadata", "true"),))


def _build_pck_certs(request: PckCertsRequest, api: Api) -> HttpRequest:
    path = f"/sgx/certification/v{api.version}/pckcerts"
    pce_id = ("pceid", request.pce_id.hex())
    if api.dialect is not Dialect.PCS:
        raise CollateralNotFound("only Intel's service lists all PCK certificates of a platform")
    if request.platform_manifest is not None:
        return _post(path, (("platformManifest", request.platform_manifest.hex()), pce_id))
    if request.encrypted_ppid is None:
        raise CollateralNotFound("Intel's service knows a platform by its encrypted PPID or its manifest only")
    return HttpRequest(path, (("encrypted_ppid", request.encrypted_ppid.hex()), pce_id))


def _post(path: str, fields: tuple[tuple[str, str], ...]) -> HttpRequest:
    # Hexadecimal values only, so the text is JSON without any escaping.
    body = "{" + ",".join(f'"{name}":"{value}"' for name, value in fields) + "}"
    return HttpRequest(path, headers=(("content-type", "application/json"),), method="POST", body=body.encode())


def _update(update: Update, api: Api) -> tuple[tuple[str, str], ...]:
    """The two parameters exclude each other; `standard` is what every service gives unasked."""
    if update == "standard":
        return ()
    if api.version == 3:
        raise CollateralNotFound("version 3 of the service's interface knows the standard set only")
    return (("update", "early"),) if update == "early" else (("tcbEvaluationDataNumber", str(update)),)
