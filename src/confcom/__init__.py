"""Confidential computing on Kubernetes nodes with Intel SGX.

The names here and the errors in `confcom.errors` are the public ones: verify a quote, judge it, get its collateral, get
a quote. docs/reference/python.md describes them. Each is imported when it is first used, so that `import confcom` costs
nothing and the verifier needs no package beyond `cryptography` and `msgspec`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confcom.appraisal.collateral import Collateral
    from confcom.appraisal.findings import Check, Verdict
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
        Policy,
        ReportData,
        Rtmr0,
        Rtmr1,
        Rtmr2,
        Rtmr3,
        TdAttributes,
        Xfam,
        safe_defaults,
    )
    from confcom.appraisal.policy_file import PolicyFile
    from confcom.appraisal.quote import QuoteVerifier, VerifiedQuote, verify_quote
    from confcom.appraisal.result import (
        Appraisal,
        AttestationResult,
        VerifiedPeer,
        accept_quote,
        appraise,
        judge,
        verify_certificate,
    )
    from confcom.collateral.bundle import load_bundle, load_policy, load_trust_roots, save_bundle
    from confcom.collateral.documents import CollateralSource
    from confcom.collateral.sources import RememberedCollateral, SourceOptions, fetch_for_quote, open_source
    from confcom.collateral.store.store import CollateralStore
    from confcom.errors import (
        CollateralError,
        ConfcomError,
        ConfigError,
        ExitCode,
        FormatError,
        PlatformError,
        PolicyError,
        ProtocolError,
        VerificationError,
        exit_code,
    )
    from confcom.formats.quote import Quote, TeeType
    from confcom.formats.sgx import ReportBody, TargetInfo
    from confcom.formats.tcb_info import TcbStatus
    from confcom.pki.chain import TrustRoot, TrustRoots
    from confcom.platforms.intel.dcap import IntelDcapPlatform
    from confcom.platforms.interface import LocalEnclave, Platform, QuoteResult, verify_local_report
    from confcom.platforms.pod_certificate import request_certificate
    from confcom.platforms.quoting import QuoteSource, open_quote_source, process_mode
    from confcom.wiring import launch_enclave, open_platform, own_quote_source

_HOMES = {
    "confcom.appraisal.collateral": "Collateral",
    "confcom.appraisal.findings": "Check Verdict",
    "confcom.appraisal.policy": (
        "AcceptTcb AllOf AnyOf HeldData IsvProdId MinIsvSvn MrConfigId MrEnclave MrOwner MrOwnerConfig MrSeam "
        "MrSigner MrSignerSeam MrTd NoDebug Policy ReportData Rtmr0 Rtmr1 Rtmr2 Rtmr3 TdAttributes Xfam "
        "safe_defaults"
    ),
    "confcom.appraisal.policy_file": "PolicyFile",
    "confcom.appraisal.quote": "QuoteVerifier VerifiedQuote verify_quote",
    "confcom.appraisal.result": (
        "Appraisal AttestationResult VerifiedPeer accept_quote appraise judge verify_certificate"
    ),
    "confcom.collateral.bundle": "load_bundle load_policy load_trust_roots save_bundle",
    "confcom.collateral.documents": "CollateralSource",
    "confcom.collateral.sources": "RememberedCollateral SourceOptions fetch_for_quote open_source",
    "confcom.collateral.store.store": "CollateralStore",
    "confcom.errors": (
        "CollateralError ConfcomError ConfigError ExitCode FormatError PlatformError PolicyError ProtocolError "
        "VerificationError exit_code"
    ),
    "confcom.formats.quote": "Quote TeeType",
    "confcom.formats.sgx": "ReportBody TargetInfo",
    "confcom.formats.tcb_info": "TcbStatus",
    "confcom.pki.chain": "TrustRoot TrustRoots",
    "confcom.platforms.intel.dcap": "IntelDcapPlatform",
    "confcom.platforms.interface": "LocalEnclave Platform QuoteResult verify_local_report",
    "confcom.platforms.pod_certificate": "request_certificate",
    "confcom.platforms.quoting": "QuoteSource open_quote_source process_mode",
    "confcom.wiring": "launch_enclave open_platform own_quote_source",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "AcceptTcb",
    "AllOf",
    "AnyOf",
    "Appraisal",
    "AttestationResult",
    "Check",
    "Collateral",
    "CollateralError",
    "CollateralSource",
    "CollateralStore",
    "ConfcomError",
    "ConfigError",
    "ExitCode",
    "FormatError",
    "HeldData",
    "IntelDcapPlatform",
    "IsvProdId",
    "LocalEnclave",
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
    "Platform",
    "PlatformError",
    "Policy",
    "PolicyError",
    "PolicyFile",
    "ProtocolError",
    "Quote",
    "QuoteResult",
    "QuoteSource",
    "QuoteVerifier",
    "RememberedCollateral",
    "ReportBody",
    "ReportData",
    "Rtmr0",
    "Rtmr1",
    "Rtmr2",
    "Rtmr3",
    "SourceOptions",
    "TargetInfo",
    "TcbStatus",
    "TdAttributes",
    "TeeType",
    "TrustRoot",
    "TrustRoots",
    "Verdict",
    "VerificationError",
    "VerifiedPeer",
    "VerifiedQuote",
    "Xfam",
    "accept_quote",
    "appraise",
    "exit_code",
    "fetch_for_quote",
    "judge",
    "launch_enclave",
    "load_bundle",
    "load_policy",
    "load_trust_roots",
    "open_platform",
    "open_quote_source",
    "open_source",
    "own_quote_source",
    "process_mode",
    "request_certificate",
    "safe_defaults",
    "save_bundle",
    "verify_certificate",
    "verify_local_report",
    "verify_quote",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'confcom' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"confcom.{name} needs the package {error.name!r}: install confcom[cli]", name=error.name
        ) from error


def __dir__() -> list[str]:
    return __all__
