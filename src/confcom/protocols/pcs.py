"""Intel's Provisioning Certification Service and its caches (PCS, PCCS, Azure THIM): requests and answers as values.

`build_request` writes a request value as `HttpRequest` in the dialect of the service, `pcs_answers` reads
`HttpResponse` as an answer value or an error, `pcs_service` is the server's side. Nothing is sent and nothing is
trusted here: bodies stay as received, because signatures are over their bytes.

Source: dcap.md §7 (Intel PCS v3 and v4, Intel PCCS, Azure THIM).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal
from urllib.parse import urlencode

import msgspec

from confcom.errors import CollateralNotFound, ConfigError, FormatError

Tee = Literal["sgx", "tdx"]
PckCaName = Literal["processor", "platform"]
Update = Literal["standard", "early"] | int
"""Which set: the one that is enforced now, the newest, or the one of a `tcbEvaluationDataNumber`."""
CrlEncoding = Literal["pem", "der", "hex"]
Enclave = Literal["qe", "qve", "qae"]

ENCRYPTED_PPID_SIZE = 384
"""Bytes of an RSA-3072 ciphertext."""

MAX_QE_ID = 130
"""Bytes of a QE_ID in a request (260 digits); Intel's QE makes 16."""

MAX_PLATFORM_MANIFEST = 64 * 1024

INTEL_PCS = "https://api.trustedservices.intel.com"
INTEL_ROOT_CA_CRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"


def parse_update(text: str, *, setting: str = "--update") -> Update:
    """A set by its name: `standard`, `early`, or a TCB evaluation data number; anything else is a `ConfigError`."""
    named = text.strip().lower()
    if named == "standard":
        return "standard"
    if named == "early":
        return "early"
    if (number := evaluation_data_number(named)) is not None:
        return number
    raise ConfigError(
        f"{text.strip()!r} is neither standard nor early nor a TCB evaluation data number", setting=setting
    )


def evaluation_data_number(text: str) -> int | None:
    """A TCB evaluation data number from its digits, nine at most; Intel's count from 1, and are below 100 so far."""
    return (int(text) or None) if text.isascii() and text.isdigit() and len(text) <= 9 else None


@dataclass(frozen=True, slots=True)
class TcbSets:
    """The sets that clients of a caching service get when they name none, or `standard`.

    Clients of a group in `groups` get the set of the group, all others `default`.
    """

    default: Update = "standard"
    groups: Mapping[str, Update] = field(default_factory=dict)

    @classmethod
    def parse(cls, named: Iterable[str], *, setting: str = "tcb_sets") -> TcbSets:
        """From SET and GROUP=SET; the standard set by default. Anything else is a `ConfigError`."""
        sets: dict[str, Update] = {}
        for text in named:
            group, found, update = text.rpartition("=")
            if found and not _GROUP.fullmatch(group):
                advice = "Write GROUP=SET; a name has up to 63 lower-case letters, digits and dashes."
                raise ConfigError(f"{group[:80]!r} is no name of a group", setting=setting, advice=advice)
            if group in sets:
                of = f"the set of {clients_of(group)}"
                raise ConfigError(f"{of} is given twice", setting=setting, advice="Leave one of them out.")
            sets[group] = parse_update(update, setting=setting)
        return cls(sets.pop("", "standard"), sets)

    @property
    def by_group(self) -> dict[str, Update]:
        """All sets by the name of the group, which is empty for clients without one."""
        return {"": self.default, **self.groups}

    @property
    def served(self) -> frozenset[Update]:
        """Every set that is served to some clients."""
        return frozenset(self.by_group.values())


_GROUP = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def clients_of(group: str) -> str:
    """The words for the clients of a group, which is empty for those without one."""
    return f"clients of the group {group}" if group else "clients without a group"


class Dialect(StrEnum):
    """Which service it is: Intel's, a caching one, or Azure's."""

    PCS = "pcs"
    PCCS = "pccs"
    THIM = "thim"


class Api(msgspec.Struct, frozen=True):
    """A dialect and the version in its paths. PCS v3 is switched off (410); PCCSes still serve it."""

    dialect: Dialect
    version: Literal[3, 4] = 4


# Headers of answers. The issuer chain of a TCB info changed its name with version 4 of the interface.
TCB_INFO_CHAIN: dict[int, str] = {
    2: "SGX-TCB-Info-Issuer-Chain",
    3: "SGX-TCB-Info-Issuer-Chain",
    4: "TCB-Info-Issuer-Chain",
}
IDENTITY_CHAIN = "SGX-Enclave-Identity-Issuer-Chain"
PCK_CRL_CHAIN = "SGX-PCK-CRL-Issuer-Chain"
NUMBERS_CHAIN = "TCB-Evaluation-Data-Numbers-Issuer-Chain"
PCK_CHAIN = "SGX-PCK-Certificate-Issuer-Chain"
TCBM = "SGX-TCBm"
FMSPC = "SGX-FMSPC"
CA_TYPE = "SGX-PCK-Certificate-CA-Type"


@dataclass(frozen=True, slots=True)
class TcbInfoRequest:
    """TCB info of one FMSPC (6 bytes)."""

    tee: Tee
    fmspc: bytes
    update: Update = "standard"

    def __post_init__(self) -> None:
        _size(self.fmspc, 6, "fmspc")


@dataclass(frozen=True, slots=True)
class EnclaveIdentityRequest:
    """Identity of the QE (SGX or TDX), the QvE or the QAE (SGX alone)."""

    tee: Tee
    enclave: Enclave = "qe"
    update: Update = "standard"

    def __post_init__(self) -> None:
        if self.tee == "tdx" and self.enclave != "qe":
            raise FormatError("TDX has an identity of the QE alone", structure="PCS request", field="enclave")


class PckCrlRequest(msgspec.Struct, frozen=True):
    """Revocation list of one PCK CA. `encoding` None leaves it to the service: PEM from PCS, hexadecimal from PCCS."""

    ca: PckCaName
    encoding: Literal["pem", "der"] | None = "der"


class RootCaCrlRequest(msgspec.Struct, frozen=True):
    """Revocation list of the root. Intel serves it at another host, so PCS has no path for it."""


class CrlRequest(msgspec.Struct, frozen=True):
    """The revocation list of a distribution point, `crl?uri=` (PCCS) or `pckcrl?uri=` (THIM).

    THIM gives DER to clients of its first interface, PEM to those of later ones.
    """

    uri: str
    encoding: Literal["pem", "der"] = "der"


@dataclass(frozen=True, slots=True)
class PckCertRequest:
    """The PCK certificate for a raw TCB: CPUSVN 16 bytes, PCESVN, PCE-ID 2 bytes in the order of the request.

    PCS knows a platform by its encrypted PPID (384 bytes) or its manifest, PCCS and THIM by its QE_ID. An encrypted
    PPID of zeros becomes None: Intel's provider library sends zeros where it knows none.
    """

    cpu_svn: bytes
    pce_svn: int
    pce_id: bytes
    qe_id: bytes | None = None
    encrypted_ppid: bytes | None = None
    platform_manifest: bytes | None = None

    def __post_init__(self) -> None:
        _size(self.cpu_svn, 16, "cpusvn")
        _size(self.pce_id, 2, "pceid")
        if not 0 <= self.pce_svn <= 0xFFFF:
            raise FormatError("is a number of 0 to 65535", structure="PCS request", field="pcesvn")
        if self.qe_id is not None and not 1 <= len(self.qe_id) <= MAX_QE_ID:
            raise FormatError(f"is 1 to {MAX_QE_ID} bytes", structure="PCS request", field="qeid")
        _platform(self)


@dataclass(frozen=True, slots=True)
class PckCertsRequest:
    """All PCK certificates of a platform, which PCS knows by its encrypted PPID (zeros become None) or its manifest.

    The QE_ID, by which caching services know it, is not sent to PCS.
    """

    pce_id: bytes
    encrypted_ppid: bytes | None = None
    platform_manifest: bytes | None = None
    qe_id: bytes | None = None

    def __post_init__(self) -> None:
        _size(self.pce_id, 2, "pceid")
        _platform(self)


def pck_request(
    pce_id: bytes,
    qe_id: bytes,
    cpu_svn: bytes,
    pce_svn: int,
    encrypted_ppid: bytes | None,
    platform_manifest: bytes | None,
) -> PckCertRequest | PckCertsRequest:
    """A request for the certificate of a raw TCB; without one (an empty CPUSVN) for all of the platform."""
    if cpu_svn:
        return PckCertRequest(cpu_svn, pce_svn, pce_id, qe_id, encrypted_ppid, platform_manifest)
    return PckCertsRequest(pce_id, encrypted_ppid, platform_manifest, qe_id)


class TcbEvaluationDataNumbersRequest(msgspec.Struct, frozen=True):
    """Which sets there are."""

    tee: Tee


class FmspcsRequest(msgspec.Struct, frozen=True):
    """Which FMSPCs there are."""

    platform: Literal["all", "client", "E3", "E5"] = "all"


DocumentRequest = (
    TcbInfoRequest
    | EnclaveIdentityRequest
    | PckCrlRequest
    | RootCaCrlRequest
    | CrlRequest
    | TcbEvaluationDataNumbersRequest
)
Request = DocumentRequest | PckCertRequest | PckCertsRequest | FmspcsRequest


def describe(request: Request) -> str:
    """What was asked, for people; no PPID and no manifest."""
    match request:
        case TcbInfoRequest(tee, fmspc, update):
            return f"{tee.upper()} TCB info of FMSPC {fmspc.hex()} ({_set_name(update)})"
        case EnclaveIdentityRequest(tee, enclave, update):
            return f"{'TD QE' if tee == 'tdx' else enclave.upper()} identity ({_set_name(update)})"
        case PckCrlRequest(ca):
            return f"PCK CRL of the {ca} CA"
        case RootCaCrlRequest():
            return "root CA CRL"
        case CrlRequest(uri):
            return f"CRL of {uri}"
        case PckCertRequest(qe_id=qe_id):
            return f"PCK certificate of QE_ID {qe_id.hex()}" if qe_id else "PCK certificate"
        case PckCertsRequest():
            return "PCK certificates of a platform"
        case TcbEvaluationDataNumbersRequest(tee):
            return f"{tee.upper()} TCB evaluation data numbers"
        case FmspcsRequest(platform):
            return f"FMSPCs ({platform})"


class HttpRequest(msgspec.Struct, frozen=True):
    """`path` begins with a slash and is appended to the service's base; `url` instead of it is another host's."""

    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    method: Literal["GET", "POST"] = "GET"
    body: bytes = b""
    url: str | None = None

    @property
    def target(self) -> str:
        """Path and query, percent-encoded."""
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path


class HttpResponse(msgspec.Struct, frozen=True):
    """Headers keep the case in which they are written; `header` finds them in any."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first value of a header, None where there is none."""
        wanted = name.lower()
        return next((value for found, value in self.headers if found.lower() == wanted), None)


class Answer(msgspec.Struct, frozen=True):
    """A document as received, with the PEM chain of its issuer (empty where the service gives none)."""

    body: bytes
    issuer_chain: bytes = b""


@dataclass(frozen=True, slots=True)
class PckCertificateAnswer:
    """A PCK certificate in PEM with its issuer chain, and what the service says about it.

    `tcbm` is the TCB of the certificate: CPUSVN (16 bytes) ‖ PCESVN (2, little-endian); `fmspc` 6 bytes.
    """

    certificate: bytes
    issuer_chain: bytes
    tcbm: bytes
    fmspc: bytes | None = None
    ca: PckCaName | None = None


def _size(value: bytes, size: int, name: str) -> None:
    if len(value) != size:
        raise FormatError(f"is {size} bytes, found {len(value)}", structure="PCS request", field=name)


def _platform(request: PckCertRequest | PckCertsRequest) -> None:
    encrypted_ppid, manifest = request.encrypted_ppid, request.platform_manifest
    if encrypted_ppid is not None:
        _size(encrypted_ppid, ENCRYPTED_PPID_SIZE, "encrypted_ppid")
        if not any(encrypted_ppid):
            object.__setattr__(request, "encrypted_ppid", None)
    if manifest is not None and not 1 <= len(manifest) <= MAX_PLATFORM_MANIFEST:
        raise FormatError(f"is 1 to {MAX_PLATFORM_MANIFEST} bytes", structure="PCS request", field="platformManifest")


def _set_name(update: Update) -> str:
    return f"set {update}" if isinstance(update, int) else f"{update} set"


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
    body = msgspec.json.encode(dict(fields))
    return HttpRequest(path, headers=(("content-type", "application/json"),), method="POST", body=body)


def _update(update: Update, api: Api) -> tuple[tuple[str, str], ...]:
    """The two parameters exclude each other; `standard` is what every service gives unasked."""
    if update == "standard":
        return ()
    if api.version == 3:
        raise CollateralNotFound("version 3 of the service's interface knows the standard set only")
    return (("update", "early"),) if update == "early" else (("tcbEvaluationDataNumber", str(update)),)
