"""Policies as values: what a relying party accepts of authentic evidence.

A policy looks at a `VerifiedQuote` and returns findings; nothing here can make unauthentic evidence acceptable. An
empty policy is refused, because it would accept everything.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from confcom.appraisal.evidence import VerifiedQuote
from confcom.appraisal.findings import Check, finding
from confcom.appraisal.tcb_policy import AcceptAdvisories, AcceptTcb, MinTcbEvaluation
from confcom.errors import ConfigError
from confcom.formats.sgx import ReportBody
from confcom.formats.tcb_info import TcbStatus
from confcom.formats.tdx import TdAttributeFlags, TdReportBody10, td_base

__all__ = [
    "AcceptAdvisories",
    "AcceptTcb",
    "AllOf",
    "AnyOf",
    "HardwareOnly",
    "HeldData",
    "IsvProdId",
    "MinIsvSvn",
    "MinTcbEvaluation",
    "MrEnclave",
    "MrSigner",
    "NoDebug",
    "Policy",
    "ReportData",
    "SafeTd",
    "safe_defaults",
]


class Policy(Protocol):
    """One condition, or several."""

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """Findings, in order; the evidence is acceptable when all are ok."""


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every policy must hold. An empty one is a mistake, not a wish to accept everything."""

    policies: tuple[Policy, ...]

    def __init__(self, *policies: Policy) -> None:
        _refuse_empty(policies)
        object.__setattr__(self, "policies", policies)

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """The findings of all."""
        return tuple(check for policy in self.policies for check in policy.check(verified))


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one policy must hold; when none does, the findings of all are shown."""

    policies: tuple[Policy, ...]

    def __init__(self, *policies: Policy) -> None:
        _refuse_empty(policies)
        object.__setattr__(self, "policies", policies)

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """The findings of the first that holds, else of all."""
        tried = [policy.check(verified) for policy in self.policies]
        for findings in tried:
            if all(check.ok for check in findings):
                return findings
        return tuple(check for findings in tried for check in findings)


@dataclass(frozen=True, slots=True)
class MrEnclave:
    """The enclave is exactly one of these builds (32 bytes each)."""

    allowed: tuple[bytes, ...]

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        return _one_of("mr-enclave", "MRENCLAVE", self.allowed, _sgx(verified, "mr_enclave"))


@dataclass(frozen=True, slots=True)
class MrSigner:
    """The enclave was signed by one of these keys (SHA-256 of the modulus, 32 bytes each)."""

    allowed: tuple[bytes, ...]

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        return _one_of("mr-signer", "MRSIGNER", self.allowed, _sgx(verified, "mr_signer"))


@dataclass(frozen=True, slots=True)
class IsvProdId:
    """The enclave is this product of its signer: MRSIGNER alone names a vendor, not a program."""

    isv_prod_id: int

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        found = verified.quote.body.isv_prod_id if isinstance(verified.quote.body, ReportBody) else None
        return (
            finding(
                "isv-prod-id",
                found == self.isv_prod_id,
                f"product id {self.isv_prod_id}",
                f"product id {found}" if found is not None else "a TD, which has none",
                "This is another program of the same signer; check which one was meant to answer.",
            ),
        )


@dataclass(frozen=True, slots=True)
class MinIsvSvn:
    """The enclave's security version is at least this."""

    isv_svn: int

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        found = verified.quote.body.isv_svn if isinstance(verified.quote.body, ReportBody) else None
        return (
            finding(
                "min-isv-svn",
                found is not None and found >= self.isv_svn,
                f"security version at least {self.isv_svn}",
                f"security version {found}" if found is not None else "a TD, which has none",
                "The peer runs an old build with known weaknesses; update it.",
            ),
        )


@dataclass(frozen=True, slots=True)
class NoDebug:
    """Neither a debug enclave nor a debug TD: their memory is open to the host."""

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        body = verified.quote.body
        debug = body.attributes.debug if isinstance(body, ReportBody) else td_base(body).debug
        return (
            finding(
                "no-debug",
                not debug,
                "debug off",
                "debug on" if debug else "debug off",
                "Build and sign the enclave for release; in a test, accept it on purpose with --allow-debug.",
            ),
        )


@dataclass(frozen=True, slots=True)
class SafeTd:
    """A TD's further defaults: SEPT_VE_DISABLE on, no service TD bound. Holds for enclaves as it is."""

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """No finding for an enclave, two for a TD."""
        body = verified.quote.body
        if isinstance(body, ReportBody):
            return ()
        guarded = bool(td_base(body).td_attributes & TdAttributeFlags.SEPT_VE_DISABLE)
        service_td = bytes(48) if isinstance(body, TdReportBody10) else body.mr_service_td
        return (
            finding(
                "td-sept-ve-disable",
                guarded,
                "SEPT_VE_DISABLE on",
                "on" if guarded else "off",
                "Start the TD with SEPT_VE_DISABLE, so that its host cannot inject page faults.",
            ),
            finding(
                "td-service-td",
                not any(service_td),
                "no service TD bound",
                service_td.hex() if any(service_td) else "none",
                "A service TD can act on this TD; accept it only if you know it.",
            ),
        )


@dataclass(frozen=True, slots=True)
class ReportData:
    """The report data begins with these bytes (1 to 64): a nonce, or the hash of a key."""

    expected: bytes

    def __post_init__(self) -> None:
        if not 1 <= len(self.expected) <= 64:
            raise ConfigError(f"report data has 1 to 64 bytes, given {len(self.expected)}")

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        found = verified.report_data[: len(self.expected)]
        return (
            finding(
                "report-data",
                hmac.compare_digest(found, self.expected),
                self.expected.hex(),
                found.hex(),
                "The evidence is for other data or an older request: ask again with a fresh nonce.",
            ),
        )


@dataclass(frozen=True, slots=True)
class HeldData:
    """SHA-256 of this data is the first half of the report data: the enclave vouches for it."""

    data: bytes

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        expected, found = sha256(self.data).digest(), verified.report_data[:32]
        return (
            finding(
                "held-data",
                hmac.compare_digest(found, expected),
                f"SHA-256 {expected.hex()}",
                found.hex(),
                "The enclave did not vouch for this data; do not use it.",
            ),
        )


@dataclass(frozen=True, slots=True)
class HardwareOnly:
    """The root is Intel's; a simulated platform proves nothing about hardware."""

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        return (
            finding(
                "hardware",
                not verified.simulated,
                "a hardware root",
                f"simulated root {verified.root.name}" if verified.simulated else verified.root.name,
                "Accept simulated platforms in development only, and on purpose.",
            ),
        )


def safe_defaults(
    *,
    accept_tcb: Iterable[TcbStatus] = (TcbStatus.UP_TO_DATE,),
    allow_debug: bool = False,
    accept_simulated: bool = False,
) -> AllOf:
    """The least that evidence must fulfil: hardware, no debug, a TCB that is up to date. Says nothing of identity."""
    policies: list[Policy] = [AcceptTcb(accept_tcb), SafeTd()]
    if not allow_debug:
        policies.insert(0, NoDebug())
    if not accept_simulated:
        policies.insert(0, HardwareOnly())
    return AllOf(*policies)


def _one_of(identifier: str, name: str, allowed: tuple[bytes, ...], found: bytes | None) -> tuple[Check, ...]:
    _refuse_empty(allowed)
    advice = f"Compare {name} with the build you trust; a new release needs a new expectation."
    expected = " or ".join(value.hex() for value in allowed)
    shown = found.hex() if found is not None else "a TD, which has none"
    return (finding(identifier, found in allowed, expected, shown, advice),)


def _sgx(verified: VerifiedQuote, name: str) -> bytes | None:
    body = verified.quote.body
    value: bytes | None = getattr(body, name) if isinstance(body, ReportBody) else None
    return value


def _refuse_empty(values: tuple[object, ...]) -> None:
    if not values:
        raise ConfigError("an empty policy would accept everything", advice="Name at least one condition.")
