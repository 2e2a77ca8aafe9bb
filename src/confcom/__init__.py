"""Confidential computing on Kubernetes nodes with Intel SGX.

The names here are the library's public ones: verify a quote, judge it, get one. They are imported when they are used,
so that a program pays for what it needs only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confcom.appraisal.appraise import Appraisal, appraise
    from confcom.appraisal.collateral import Collateral
    from confcom.appraisal.evidence import VerifiedQuote
    from confcom.appraisal.findings import Verdict
    from confcom.appraisal.policy import (
        AcceptTcb,
        AllOf,
        AnyOf,
        HeldData,
        IsvProdId,
        MinIsvSvn,
        MrConfigId,
        MrEnclave,
        MrOwner,
        MrOwnerConfig,
        MrSeam,
        MrSigner,
        MrSignerSeam,
        MrTd,
        NoDebug,
        ReportData,
        Rtmr0,
        Rtmr1,
        Rtmr2,
        Rtmr3,
        TdAttributes,
        Xfam,
        safe_defaults,
    )
    from confcom.appraisal.quote import QuoteVerifier, verify_quote
    from confcom.appraisal.result import AttestationResult, accept_quote, judge
    from confcom.collateral.bundle import load_bundle
    from confcom.errors import ConfcomError
    from confcom.formats.quote import Quote
    from confcom.formats.tcb_info import TcbStatus
    from confcom.pki.roots import TrustRoot, TrustRoots

_HOMES = {
    "confcom.appraisal.appraise": ("Appraisal", "appraise"),
    "confcom.appraisal.collateral": ("Collateral",),
    "confcom.appraisal.evidence": ("VerifiedQuote",),
    "confcom.appraisal.policy": (
        "AcceptTcb",
        "AllOf",
        "AnyOf",
        "HeldData",
        "IsvProdId",
        "MinIsvSvn",
        "MrConfigId",
        "MrEnclave",
        "MrOwner",
        "MrOwnerConfig",
        "MrSeam",
        "MrSigner",
        "MrSignerSeam",
        "MrTd",
        "NoDebug",
        "ReportData",
        "Rtmr0",
        "Rtmr1",
        "Rtmr2",
        "Rtmr3",
        "TdAttributes",
        "Xfam",
        "safe_defaults",
    ),
    "confcom.appraisal.quote": ("QuoteVerifier", "verify_quote"),
    "confcom.appraisal.result": ("AttestationResult", "accept_quote", "judge"),
    "confcom.appraisal.findings": ("Verdict",),
    "confcom.collateral.bundle": ("load_bundle",),
    "confcom.errors": ("ConfcomError",),
    "confcom.formats.quote": ("Quote",),
    "confcom.formats.tcb_info": ("TcbStatus",),
    "confcom.pki.roots": ("TrustRoot", "TrustRoots"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AcceptTcb",
    "AllOf",
    "AnyOf",
    "Appraisal",
    "AttestationResult",
    "Collateral",
    "ConfcomError",
    "HeldData",
    "IsvProdId",
    "MinIsvSvn",
    "MrConfigId",
    "MrEnclave",
    "MrOwner",
    "MrOwnerConfig",
    "MrSeam",
    "MrSigner",
    "MrSignerSeam",
    "MrTd",
    "NoDebug",
    "Quote",
    "QuoteVerifier",
    "ReportData",
    "Rtmr0",
    "Rtmr1",
    "Rtmr2",
    "Rtmr3",
    "TcbStatus",
    "TdAttributes",
    "TrustRoot",
    "TrustRoots",
    "Verdict",
    "VerifiedQuote",
    "Xfam",
    "accept_quote",
    "appraise",
    "judge",
    "load_bundle",
    "safe_defaults",
    "verify_quote",
]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'confcom' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
