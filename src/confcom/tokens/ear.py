"""EAT Attestation Results (EAR, draft-ietf-rats-ear) for clients of RATS: the trustworthiness vector of AR4SI."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from typing import Any

import msgspec

from confcom.appraisal.quote import VerifiedQuote
from confcom.formats.quote import TeeType
from confcom.formats.sgx import ReportBody, td_base
from confcom.formats.tcb_info import TcbStatus

PROFILE = "tag:github.com,2023:veraison/ear"
MEDIA_TYPE = "application/eat+jwt"
NONCE_SIZES = range(8, 89)
"""Bytes of an `eat_nonce` in JSON (RFC 9711, section 4.1)."""
_BUILD = f"confcom {version('confcom')}"
AFFIRMING, WARNING, CONTRAINDICATED = 2, 32, 96
"""AR4SI tiers; also the values of claims that say no more than their tier."""
_HARDWARE = {
    TcbStatus.UP_TO_DATE: AFFIRMING,
    TcbStatus.SW_HARDENING_NEEDED: WARNING,
    TcbStatus.CONFIGURATION_NEEDED: WARNING,
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED: WARNING,
    TcbStatus.OUT_OF_DATE: CONTRAINDICATED,
    TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED: CONTRAINDICATED,
    TcbStatus.REVOKED: CONTRAINDICATED,
}


def trustworthiness_vector(verified: VerifiedQuote) -> dict[str, int]:
    """What the appraisal says by the names of AR4SI; names without a claim stay out (nothing is claimed)."""
    body = verified.quote.body
    debug = body.attributes.debug if isinstance(body, ReportBody) else td_base(body).debug
    status = verified.tcb_status
    return {
        # 2: recognised and not compromised. Simulated evidence has no hardware: 97, unrecognised.
        "hardware": 97 if verified.simulated else _HARDWARE.get(status, CONTRAINDICATED) if status else CONTRAINDICATED,
        "configuration": CONTRAINDICATED if debug else AFFIRMING,
        # Memory is encrypted: 2.
        "runtime-opaque": CONTRAINDICATED if debug else AFFIRMING,
    }


def tier(vector: dict[str, int]) -> int:
    """`ear.status`: the worst tier of a vector."""
    worst = max(vector.values(), default=0)
    return CONTRAINDICATED if worst >= CONTRAINDICATED else WARNING if worst >= WARNING else AFFIRMING


def ear_claims(
    tee: TeeType,
    vector: dict[str, int],
    claims: dict[str, Any] | msgspec.Raw,
    *,
    policy_id: str,
    nonce: str | None,
    issued: int,
    expires: int,
) -> dict[str, Any]:
    """The claims set of an EAR with one submodule, `sgx` or `tdx`; `claims` are annotated as the evidence's.

    `vector` is that of `trustworthiness_vector`.
    """
    module = {
        "ear.status": tier(vector),
        "ear.trustworthiness-vector": vector,
        "ear.appraisal-policy-id": policy_id,
        "ear.veraison.annotated-evidence": claims,
    }
    found: dict[str, Any] = {
        "eat_profile": PROFILE,
        "iat": issued,
        "exp": expires,
        "ear.verifier-id": {"developer": "https://confcom.dev", "build": _BUILD},
        "submods": {"tdx" if tee is TeeType.TDX else "sgx": module},
    }
    return found if nonce is None else found | {"eat_nonce": nonce}


@lru_cache(maxsize=64)
def accepts_ear(accept: bytes) -> bool:
    """Whether a header `Accept` names EAR, in any case of letters and not with q=0 (RFC 9110, section 12.5.1)."""
    for each in accept.lower().replace(b" ", b"").split(b","):
        media_type, *parameters = each.split(b";")
        if media_type == MEDIA_TYPE.encode():
            return not any(part.startswith(b"q=0") and not part[3:].strip(b".0") for part in parameters)
    return False
