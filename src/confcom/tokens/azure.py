"""The dialect of Azure Attestation: what a request holds, what a policy sees, what a token says.

Names of fields and claims, their types and hashes are those of api-versions 2020-10-01 to 2025-06-01; recorded
exchanges are the reference (attestation-service.md, sections 1.3 to 1.5).

Nonces are ours: made without being kept, recognised by every replica with the secret, good for minutes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from string import hexdigits
from typing import Any, Literal

import msgspec
from cryptography import x509

from confcom.appraisal.collateral import Collateral
from confcom.appraisal.quote import VerifiedQuote
from confcom.errors import ConfcomError
from confcom.formats.arguments import check_members_once, decode_base64, encode_base64url
from confcom.formats.evidence import EvidenceFile, EvidenceKind
from confcom.formats.quote import Quote, TeeType
from confcom.formats.sgx import AttributeFlags, ReportBody, TdAttributeFlags, TdReportBody, td_base

MAX_NONCE = 1024
"""Characters."""
TOKEN_LIFE = 8 * 3600
"""Seconds; fixed, as in every recorded token."""
PSW_VERSIONS = {
    10: ("2.9", "2.7.101.2"),
    11: ("2.13.3", "2.13.100.2"),
    12: ("2.13.3", "2.13.100.2"),
    13: ("2.17", "2.16"),
}
"""By TCB evaluation data number, the oldest platform software of SGX on Linux and Windows that satisfies it, as far as
Azure's documentation ("custom TCB baseline enforcement") names them."""
TDX_PROFILE = "https://aka.ms/maa-eat-profile-tdxvm"
DEFAULT_POLICY = """version= 1.1;
configurationrules{
};
authorizationrules{
c:[type=="x-ms-sgx-is-debuggable", value==true] => deny();
=> permit();
};
issuancerules{
c:[type=="x-ms-sgx-is-debuggable"] => issue(type="is-debuggable", value=c.value);
c:[type=="x-ms-sgx-mrsigner"] => issue(type="sgx-mrsigner", value=c.value);
c:[type=="x-ms-sgx-mrenclave"] => issue(type="sgx-mrenclave", value=c.value);
c:[type=="x-ms-sgx-product-id"] => issue(type="product-id", value=c.value);
c:[type=="x-ms-sgx-svn"] => issue(type="svn", value=c.value);
c:[type=="x-ms-attestation-type"] => issue(type="tee", value=c.value);
};
"""
"""Azure's default issues the same claims and permits debug enclaves; ours denies them."""
DEFAULT_TDX_POLICY = """version= 1.1;
authorizationrules{
c:[type=="tdx_td_attributes_debug", value==true] => deny();
=> permit();
};
issuancerules{
};
"""
"""The same for TDs: debug TDs are denied."""
_TD_FLAGS = {
    "debug": TdAttributeFlags.DEBUG,
    "key_locker": TdAttributeFlags.KL,
    "perfmon": TdAttributeFlags.PERFMON,
    "protection_keys": TdAttributeFlags.PKS,
    "septve_disable": TdAttributeFlags.SEPT_VE_DISABLE,
}


_KSS = AttributeFlags.KSS.value
_OLDER_NAMES = {
    "$is-debuggable": "x-ms-sgx-is-debuggable",
    "$product-id": "x-ms-sgx-product-id",
    "$sgx-mrsigner": "x-ms-sgx-mrsigner",
    "$sgx-mrenclave": "x-ms-sgx-mrenclave",
    "$svn": "x-ms-sgx-svn",
    "$tee": "x-ms-attestation-type",
}


class AttestationType(StrEnum):
    """The kinds of evidence, by the names in paths."""

    SGX_ENCLAVE = "SgxEnclave"
    OPEN_ENCLAVE = "OpenEnclave"
    TDX_VM = "TdxVm"

    @property
    def tee(self) -> TeeType:
        """What the evidence is about."""
        return TeeType.TDX if self is AttestationType.TDX_VM else TeeType.SGX

    @property
    def evidence_field(self) -> str:
        """The field of a request that holds the evidence."""
        return "report" if self is AttestationType.OPEN_ENCLAVE else "quote"


DEFAULT_POLICIES = {
    AttestationType.SGX_ENCLAVE: DEFAULT_POLICY,
    AttestationType.OPEN_ENCLAVE: DEFAULT_POLICY,
    AttestationType.TDX_VM: DEFAULT_TDX_POLICY,
}


def type_of(evidence: EvidenceFile) -> AttestationType:
    """The attestation type that takes this evidence."""
    if evidence.quote.tee is TeeType.TDX:
        return AttestationType.TDX_VM
    plain = evidence.kind is EvidenceKind.QUOTE
    return AttestationType.SGX_ENCLAVE if plain else AttestationType.OPEN_ENCLAVE


class AzureError(ConfcomError):
    """A request that the API refuses; `azure_code` is the code of its error body."""

    code = "attestation-request"
    default_advice = "Correct the request as the message says."

    def __init__(self, message: str, azure_code: str = "InvalidParameter", *, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self.azure_code = azure_code


def check_kind(evidence: EvidenceFile, kind: AttestationType) -> None:
    """Refuse evidence of another TEE, or in another form, than an attestation type takes, with an `AzureError`."""
    found = evidence.quote.tee
    if found is not kind.tee:
        raise AzureError(f"/attest/{kind} takes evidence of {kind.tee.name}, this is of {found.name}")
    if (evidence.kind is EvidenceKind.QUOTE) is (kind is AttestationType.OPEN_ENCLAVE):
        wanted = "an Open Enclave report or evidence" if kind is AttestationType.OPEN_ENCLAVE else "a raw quote"
        raise AzureError(f"/attest/{kind} takes {wanted}, this is {evidence.kind.value}")


@dataclass(frozen=True, slots=True)
class HeldData:
    """Data that the quote vouches for by its hash: the bytes, and the value where they were declared JSON."""

    data: bytes
    json: Any = None

    @property
    def is_json(self) -> bool:
        """Whether the data was declared JSON."""
        return self.json is not None


@dataclass(frozen=True, slots=True)
class SentPolicy:
    """A policy as it was sent: its text, empty for a reset, and who signed it."""

    jws: str
    text: str
    signer: x509.Certificate | None


class AttestRequest(msgspec.Struct, frozen=True):
    """The body of an attest call, decoded; nothing of it is verified."""

    evidence: bytes
    runtime: HeldData | None = None
    init_time: HeldData | None = None
    draft_policy: str | None = None
    nonce: str | None = None
    bind_nonce: bool = False
    """Ours, not Azure's: the report data vouches for a nonce that the service gave, before the runtime data."""
    login_for: str | None = None
    """Ours: the audience of a login token (`tokens.login`), which is asked for in place of Azure's."""


class _Data(msgspec.Struct, omit_defaults=True):
    data: str | None = None
    dataType: str | None = None  # noqa: N815 - as the API spells it


class _Body(msgspec.Struct, omit_defaults=True):
    quote: str | None = None
    report: str | None = None
    runtimeData: _Data | None = None  # noqa: N815
    initTimeData: _Data | None = None  # noqa: N815
    draftPolicyForAttestation: str | None = None  # noqa: N815
    nonce: str | None = None
    bindNonce: bool = False  # noqa: N815
    loginFor: str | None = None  # noqa: N815


_BODY = msgspec.json.Decoder(_Body)


def read_request(body: bytes, kind: AttestationType) -> AttestRequest:
    """Read the JSON of an attest call.

    Raises:
        AzureError: a field is missing, of another type, or not base64.
    """
    try:
        read = _BODY.decode(body)
        if evidence := getattr(read, kind.evidence_field):
            setattr(read, kind.evidence_field, "")  # most of the body, which is not written again
        if b"\\" in body or _has_more(body, msgspec.json.encode(read), len(evidence or "")):
            check_members_once(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise AzureError(f"the body is not the JSON of an attest call: {error}") from None
    if not evidence:
        raise AzureError(f"the body lacks {kind.evidence_field!r}, the evidence in base64url")
    if evidence.startswith("0") and not evidence.strip(hexdigits):  # as no evidence begins in base64
        raise AzureError(f"{kind.evidence_field!r} is written in hexadecimal digits: write it in base64url")
    if read.nonce is not None and len(read.nonce) > MAX_NONCE:
        raise AzureError(f"'nonce' has {len(read.nonce)} characters, at most {MAX_NONCE} are taken")
    return AttestRequest(
        _decoded(evidence, kind.evidence_field),
        _held(read.runtimeData, "runtimeData"),
        _held(read.initTimeData, "initTimeData"),
        read.draftPolicyForAttestation or None,
        read.nonce,
        read.bindNonce,
        read.loginFor,
    )


def _has_more(body: bytes, read: bytes, size: int) -> bool:
    """Whether a body without escapes may have other members than were read, or one twice.

    `read` lacks the `size` characters of the evidence. One more member takes five bytes at least (`,"":0`), and more
    quotation marks; counting those takes longer.
    """
    return len(body) - len(read) - size >= 5 and body.count(b'"') != read.count(b'"')


def _decoded(text: str, field: str) -> bytes:
    try:
        return decode_base64(text)
    except ValueError as error:
        raise AzureError(f"{field!r} {error}") from None


def _held(given: _Data | None, field: str) -> HeldData | None:
    # The Python client sends `data: null` where it has none.
    if given is None or given.data is None:
        return None
    data = _decoded(given.data, f"{field}.data")
    match (given.dataType or "Binary").lower():
        case "binary":
            return HeldData(data)
        case "json":
            try:
                value = msgspec.json.decode(data)
                check_members_once(data)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise AzureError(f"'{field}.data' is declared JSON and is not: {error}") from None
            if not isinstance(value, dict):
                raise AzureError(f"'{field}.data' is declared JSON and is no object")
            return HeldData(data, value)
        case other:
            raise AzureError(f"'{field}.dataType' is Binary or JSON, found {other!r}")


def check_binding(quote: Quote, request: AttestRequest) -> None:
    """The quote must vouch for what came beside it.

    Bytes 0 to 31 of the report data are the SHA-256 of the runtime data, or of nonce ‖ runtime data where the nonce
    is bound. Bytes 0 to 31 of CONFIGID (MRCONFIGID of a
    TD) are the SHA-256 of the init-time data.

    Raises:
        AzureError: a hash does not match.
    """
    held = b"" if request.runtime is None else request.runtime.data
    if request.bind_nonce:
        _same_hash((request.nonce or "").encode() + held, quote.report_data, "nonce ‖ runtimeData", "report data")
    elif request.runtime is not None:
        _same_hash(held, quote.report_data, "runtimeData", "report data")
    if request.init_time is not None:
        body = quote.body
        holder, name = (
            (body.config_id, "CONFIGID") if isinstance(body, ReportBody) else (td_base(body).mr_config_id, "MRCONFIGID")
        )
        _same_hash(request.init_time.data, holder, "initTimeData", name)


def _same_hash(data: bytes, holder: bytes, field: str, name: str) -> None:
    expected, found = hashlib.sha256(data).hexdigest(), holder[:32].hex()
    if expected != found:
        raise AzureError(
            f"the quote does not vouch for {field!r}: bytes 0 to 31 of its {name} are {found}, "
            f"the SHA-256 of the data is {expected}",
            advice="Send the exact bytes that the enclave hashed.",
        )


def sgx_claims(body: ReportBody) -> dict[str, Any]:
    """What a token says of an enclave, and a policy sees of it."""
    found: dict[str, Any] = {
        "x-ms-sgx-is-debuggable": body.attributes.debug,
        "x-ms-sgx-mrenclave": body.mr_enclave.hex(),
        "x-ms-sgx-mrsigner": body.mr_signer.hex(),
        "x-ms-sgx-product-id": body.isv_prod_id,
        "x-ms-sgx-report-data": body.report_data.hex(),
        "x-ms-sgx-svn": body.isv_svn,
    }
    if body.attributes.flags & _KSS:
        found |= {
            "x-ms-sgx-config-id": body.config_id.hex(),
            "x-ms-sgx-config-svn": body.config_svn,
            "x-ms-sgx-isv-extended-product-id": body.isv_ext_prod_id.hex(),
            "x-ms-sgx-isv-family-id": body.isv_family_id.hex(),
        }
    return found


def tdx_claims(body: TdReportBody) -> dict[str, Any]:
    """What a token says of a TD (Azure's EAT profile for TDX): bytes in hex, in the order of the report."""
    td = td_base(body)
    names = ("mrsignerseam", "mrseam", "mrtd", "mrconfigid", "mrowner", "mrownerconfig")
    fields = ("mr_signer_seam", "mr_seam", "mr_td", "mr_config_id", "mr_owner", "mr_owner_config")
    found = {f"tdx_{name}": getattr(td, attribute).hex() for name, attribute in zip(names, fields, strict=True)}
    found |= {f"tdx_rtmr{number}": getattr(td, f"rtmr{number}").hex() for number in range(4)}
    return {
        "dbgstat": "enabled" if td.debug else "disabled",
        **found,
        "tdx_report_data": td.report_data.hex(),
        "tdx_seam_attributes": td.seam_attributes.hex(),
        "tdx_seamsvn": int.from_bytes(td.tee_tcb_svn[:2], "little"),
        "tdx_tee_tcb_svn": td.tee_tcb_svn.hex(),
        "tdx_td_attributes": td.td_attributes.to_bytes(8, "little").hex(),
        **{f"tdx_td_attributes_{name}": bool(td.td_attributes & flag) for name, flag in _TD_FLAGS.items()},
        "tdx_xfam": td.xfam.to_bytes(8, "little").hex(),
    }


def quote_claims(quote: Quote) -> dict[str, Any]:
    """What a token says of an enclave or TD, and a policy sees of it."""
    if isinstance(quote.body, ReportBody):
        return sgx_claims(quote.body) | {"x-ms-attestation-type": "sgx"}
    return tdx_claims(quote.body) | {"x-ms-attestation-type": "tdxvm"}


def report_data_claim(quote: Quote) -> str:
    """The name of the claim of `quote_claims` that holds the report data."""
    return "x-ms-sgx-report-data" if isinstance(quote.body, ReportBody) else "tdx_report_data"


def policy_claims(named: Mapping[str, Any]) -> dict[str, Any]:
    """What a policy sees: the claims of `quote_claims`, of an enclave with the older names that begin with `$` too."""
    return {**named, **{older: named[name] for older, name in _OLDER_NAMES.items() if name in named}}


def psw_versions(number: int) -> dict[str, str]:
    """The fields of a TCB baseline that name platform software, where they are known (`PSW_VERSIONS`)."""
    names = ("minimumPswLinuxVersion", "minimumPswWindowsVersion")
    return dict(zip(names, PSW_VERSIONS.get(number, ()), strict=False))


@lru_cache(maxsize=256)
def collateral_hashes(collateral: Collateral) -> dict[str, str]:
    """SHA-256 in hex of what judges evidence, over NUL-terminated buffers as Azure's library has them."""

    def of(part: bytes) -> str:
        return hashlib.sha256(part.rstrip(b"\0") + b"\0").hexdigest()

    return {
        "qeidcertshash": of(collateral.qe_identity_issuer_chain),
        "qeidcrlhash": of(collateral.root_ca_crl),
        "qeidhash": of(collateral.qe_identity),
        "tcbinfocertshash": of(collateral.tcb_info_issuer_chain),
        "tcbinfocrlhash": of(collateral.root_ca_crl),
        "tcbinfohash": of(collateral.tcb_info),
    }


def evidence_claims(named: Mapping[str, Any]) -> dict[str, Any]:
    """The claims of a token that come from the quote alone; `named` are those of `quote_claims`."""
    of_td = {} if named["x-ms-attestation-type"] == "sgx" else {"eat_profile": TDX_PROFILE, "intuse": "generic"}
    return {"x-ms-ver": "1.0", **named, **of_td}


def request_claims(request: AttestRequest, tee: TeeType, hashes: Mapping[str, str] | msgspec.Raw) -> dict[str, Any]:
    """The claims that come from what stands beside the quote.

    `hashes` are those of `collateral_hashes`, and `quotehash`: SHA-256 in hex of the evidence as it was sent, an Open
    Enclave report with its header.
    """
    found: dict[str, Any] = {}
    if tee is TeeType.SGX:
        found["x-ms-sgx-collateral"] = found["maa-attestationcollateral"] = hashes
        if request.runtime is not None and not request.runtime.is_json:
            held = encode_base64url(request.runtime.data)
            found |= {"x-ms-sgx-ehd": held, "maa-ehd": held, "aas-ehd": held}
    if request.runtime is not None and request.runtime.is_json:
        found["x-ms-runtime"] = request.runtime.json
    if request.init_time is not None and request.init_time.is_json:
        found["x-ms-inittime"] = request.init_time.json
    return found


def appraisal_claims(verified: VerifiedQuote) -> dict[str, Any]:
    """What Azure's tokens do not say: TCB status, advisories, FMSPC, evaluation number and dates of the collateral."""
    tcb, collateral = verified.tcb, verified.collateral
    status = tcb.status.value if tcb.status else None
    found: dict[str, Any] = {
        "confcom-tcb-status": status,
        "confcom-tcb-date": int(tcb.tcb_date.timestamp()) if tcb.tcb_date else None,
        "confcom-advisory-ids": list(tcb.advisory_ids),
        "confcom-tcb-evaluation-data-number": verified.tcb_evaluation_data_number,
        "confcom-fmspc": verified.pck.fmspc.hex(),
        "confcom-collateral-issued": int(collateral.earliest_issue.timestamp()),
        "confcom-collateral-expires": int(collateral.earliest_expiration.timestamp()),
        "confcom-simulated": verified.simulated,
    }
    return found | ({"attester_tcb_status": status} if verified.tee is TeeType.TDX else {})


@lru_cache(maxsize=64)
def policy_hash(text: str) -> str:
    """`x-ms-policy-hash`: base64url of SHA-256 over the base64url of the policy in UTF-8."""
    return encode_base64url(hashlib.sha256(encode_base64url(text.encode()).encode()).digest())


NONCE_LIFE = timedelta(minutes=5)
_RANDOM, _TIME, _MAC = 16, 8, 16
"""Bytes of each part: random ‖ u64 big-endian seconds of its end ‖ HMAC-SHA-256 over both, cut."""


def make_nonce(secret: bytes, now: datetime, random: bytes, context: bytes = b"") -> str:
    """A nonce (54 characters) of 16 random bytes, good until `now` + `NONCE_LIFE`, and with this context alone."""
    body = random[:_RANDOM] + int((now + NONCE_LIFE).timestamp()).to_bytes(_TIME)
    return encode_base64url(body + _mac(secret, body + context))


def check_nonce(nonce: str | None, secret: bytes, now: datetime) -> bytes:
    """The bytes of a nonce that was made with this secret and is still good, the same for every spelling in base64.

    Raises:
        AzureError: missing, of another service, or expired.
    """
    try:
        raw = decode_base64(nonce or "")
    except ValueError:
        raw = b""
    found = state_of_nonce(raw, secret, now)
    if found == "unknown":
        raise AzureError("'nonce' is none of this service's", advice="Get one with POST /nonces, and use it once.")
    if found == "expired":
        raise AzureError(f"'nonce' expired: it is good for {NONCE_LIFE}", advice="Get another one with POST /nonces.")
    return raw


def state_of_nonce(
    raw: bytes, secret: bytes, now: datetime, context: bytes = b""
) -> Literal["good", "expired", "unknown"]:
    """Judge the bytes of a nonce; `unknown`: made with another secret or for another context."""
    body, mac = raw[: _RANDOM + _TIME], raw[_RANDOM + _TIME :]
    if len(raw) != _RANDOM + _TIME + _MAC or not hmac.compare_digest(_mac(secret, body + context), mac):
        return "unknown"
    # One that ends much later was made by a clock that was ahead, and would outlive the record of its use.
    return (
        "good" if 0 <= int.from_bytes(body[_RANDOM:]) - now.timestamp() <= 2 * NONCE_LIFE.total_seconds() else "expired"
    )


def _mac(secret: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, body, hashlib.sha256)[:_MAC]
