"""Policies as values: what a relying party accepts of authentic evidence.

A policy looks at a `VerifiedQuote` and returns findings; nothing here can make unauthentic evidence acceptable. An
empty policy is refused, because it would accept everything. `appraise` adds the safe defaults that a policy does not
replace itself.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from itertools import chain
from typing import ClassVar, Protocol

from confcom.appraisal.findings import Check, finding
from confcom.appraisal.quote import VerifiedQuote
from confcom.appraisal.tcb import TcbEvaluation, describe_tcb, explain_tcb, tcb_advice
from confcom.errors import ConfigError
from confcom.formats.arguments import checked_bytes, checked_int, checked_time, checked_type, checked_values
from confcom.formats.quote import TeeType
from confcom.formats.sgx import ReportBody, TdAttributeFlags, TdReportBody10, td_base
from confcom.formats.tcb_info import TcbStatus


class Policy(Protocol):
    """One condition, or several."""

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """Findings, in order; the evidence is acceptable when all are ok."""


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every policy must hold. An empty one is a mistake, not a wish to accept everything."""

    policies: tuple[Policy, ...]

    def __init__(self, *policies: Policy) -> None:
        object.__setattr__(self, "policies", _policies(policies))

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """The findings of all."""
        return tuple(chain.from_iterable(policy.check(verified) for policy in self.policies))


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one policy must hold; when none does, the findings of all are shown."""

    policies: tuple[Policy, ...]

    def __init__(self, *policies: Policy) -> None:
        object.__setattr__(self, "policies", _policies(policies))

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """The findings of the first that holds, else of all."""
        tried = [policy.check(verified) for policy in self.policies]
        for findings in tried:
            if all(check.ok for check in findings):
                return findings
        return tuple(check for findings in tried for check in findings)


# Requirements on the identity of the enclave or TD.


class _OfReport:
    """A condition on one field of the report body, which only one kind of evidence has."""

    __slots__ = ()
    tee: ClassVar[TeeType]
    identifier: ClassVar[str]
    title: ClassVar[str]
    """The field's name in the SGX or TDX documentation."""

    def _compare(self, verified: VerifiedQuote, ok: bool, expected: str, found: str, advice: str) -> tuple[Check, ...]:
        if verified.tee is self.tee:
            return (finding(self.identifier, ok, expected, found, advice),)
        if self.tee is TeeType.SGX:
            found = f"the quote of a TD, which has no {self.title}"
            advice = f"{self.title} belongs to SGX enclaves; a TD is pinned by MRTD and RTMR0 to RTMR3."
        else:
            found = f"the quote of an SGX enclave, which has no {self.title}"
            advice = f"{self.title} belongs to TDs; an enclave is pinned by MRENCLAVE, or by MRSIGNER and ISVPRODID."
        return (Check(self.identifier, ok=False, expected=expected, found=found, advice=advice),)


@dataclass(frozen=True, slots=True)
class OneOf(_OfReport):
    """The field is exactly one of these values."""

    allowed: tuple[bytes, ...]

    tee: ClassVar[TeeType] = TeeType.TDX
    size: ClassVar[int] = 48

    def __init__(self, allowed: Iterable[bytes]) -> None:
        values = tuple(checked_bytes(value, self.title, self.size) for value in checked_values(allowed, self.title))
        if not values:
            raise ConfigError(f"{self.title}: an empty list accepts nothing", advice="Name at least one value.")
        object.__setattr__(self, "allowed", values)

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        found = self._found(verified)
        expected = " or ".join(value.hex() for value in self.allowed)
        advice = f"Compare {self.title} with the build you trust; a new release needs a new expectation."
        return self._compare(verified, found in self.allowed, expected, found.hex(), advice)

    def _found(self, verified: VerifiedQuote) -> bytes:
        body = verified.quote.body
        source = body if isinstance(body, ReportBody) else td_base(body)
        value: bytes = getattr(source, self.identifier.replace("-", "_"), b"")
        return value


class MrEnclave(OneOf):
    """The enclave is exactly one of these builds (32 bytes each)."""

    __slots__ = ()
    tee, size, identifier, title = TeeType.SGX, 32, "mr-enclave", "MRENCLAVE"


class MrSigner(OneOf):
    """The enclave was signed by one of these keys (SHA-256 of the modulus, 32 bytes each)."""

    __slots__ = ()
    tee, size, identifier, title = TeeType.SGX, 32, "mr-signer", "MRSIGNER"


class MrTd(OneOf):
    """The TD was built from one of these initial images (SHA-384, 48 bytes each)."""

    __slots__ = ()
    identifier, title = "mr-td", "MRTD"


class MrSeam(OneOf):
    """One of these TDX modules runs the TD (48 bytes each)."""

    __slots__ = ()
    identifier, title = "mr-seam", "MRSEAM"


class MrSignerSeam(OneOf):
    """The TDX module was signed by one of these (48 bytes each); zeros stand for Intel."""

    __slots__ = ()
    identifier, title = "mr-signer-seam", "MRSIGNERSEAM"


class MrConfigId(OneOf):
    """The TD was started with one of these configuration ids (48 bytes each)."""

    __slots__ = ()
    identifier, title = "mr-config-id", "MRCONFIGID"


class MrOwner(OneOf):
    """The TD was started for one of these owners (48 bytes each)."""

    __slots__ = ()
    identifier, title = "mr-owner", "MROWNER"


class MrOwnerConfig(OneOf):
    """The TD was started with one of these configurations of its owner (48 bytes each)."""

    __slots__ = ()
    identifier, title = "mr-owner-config", "MROWNERCONFIG"


class Rtmr0(OneOf):
    """Runtime measurement register 0 (firmware and its configuration) holds one of these values (48 bytes each)."""

    __slots__ = ()
    identifier, title = "rtmr0", "RTMR0"


class Rtmr1(OneOf):
    """Runtime measurement register 1 (boot loader, kernel) holds one of these values (48 bytes each)."""

    __slots__ = ()
    identifier, title = "rtmr1", "RTMR1"


class Rtmr2(OneOf):
    """Runtime measurement register 2 (command line, initrd) holds one of these values (48 bytes each)."""

    __slots__ = ()
    identifier, title = "rtmr2", "RTMR2"


class Rtmr3(OneOf):
    """Runtime measurement register 3 (what the applications extend) holds one of these values (48 bytes each)."""

    __slots__ = ()
    identifier, title = "rtmr3", "RTMR3"


@dataclass(frozen=True, slots=True)
class Masked(_OfReport):
    """The bits of the field that the mask names (all of them without one) have this value.

    Value and mask are 8 bytes in the order of the report (little-endian), as `confcom verify --json` shows the field.
    """

    value: bytes
    mask: bytes

    tee: ClassVar[TeeType] = TeeType.TDX

    def __init__(self, value: bytes, mask: bytes = b"\xff" * 8) -> None:
        checked_bytes(value, self.title, 8)
        checked_bytes(mask, f"mask of {self.title}", 8)
        if not any(mask):
            raise ConfigError(f"{self.title}: a mask of zeros compares nothing")
        if _and(value, mask) != value:
            raise ConfigError(f"{self.title}: the value {value.hex()} has bits that the mask {mask.hex()} leaves out")
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "mask", mask)

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        body = verified.quote.body
        number = 0 if isinstance(body, ReportBody) else getattr(td_base(body), self.identifier.replace("-", "_"))
        found = number.to_bytes(8, "little")
        under = "" if self.mask == b"\xff" * 8 else f" under the mask {self.mask.hex()}"
        advice = f"Compare {self.title} with how the TD was meant to be started."
        ok = _and(found, self.mask) == self.value
        return self._compare(verified, ok, self.value.hex() + under, found.hex(), advice)


class TdAttributes(Masked):
    """TDATTRIBUTES of the TD: debug, SEPT_VE_DISABLE, migratable, performance monitoring and others."""

    __slots__ = ()
    identifier, title = "td-attributes", "TDATTRIBUTES"


class Xfam(Masked):
    """XFAM of the TD: which extended processor features it may use."""

    __slots__ = ()
    identifier, title = "xfam", "XFAM"


@dataclass(frozen=True, slots=True)
class IsvProdId(_OfReport):
    """The enclave is this product of its signer: MRSIGNER alone names a vendor, not a program."""

    isv_prod_id: int

    tee: ClassVar[TeeType] = TeeType.SGX
    identifier: ClassVar[str] = "isv-prod-id"
    title: ClassVar[str] = "ISVPRODID"

    def __post_init__(self) -> None:
        checked_int(self.isv_prod_id, self.title)

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        found = getattr(verified.quote.body, "isv_prod_id", None)
        advice = "This is another program of the same signer; check which one was meant to answer."
        expected = f"product id {self.isv_prod_id}"
        return self._compare(verified, found == self.isv_prod_id, expected, f"product id {found}", advice)


@dataclass(frozen=True, slots=True)
class MinIsvSvn(_OfReport):
    """The enclave's security version is at least this."""

    isv_svn: int

    tee: ClassVar[TeeType] = TeeType.SGX
    identifier: ClassVar[str] = "min-isv-svn"
    title: ClassVar[str] = "ISVSVN"

    def __post_init__(self) -> None:
        checked_int(self.isv_svn, self.title)

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        found: int = getattr(verified.quote.body, "isv_svn", -1)
        advice = "The peer runs an old build with known weaknesses; update it."
        expected = f"security version at least {self.isv_svn}"
        return self._compare(verified, found >= self.isv_svn, expected, f"security version {found}", advice)


# Requirements on the report data.


@dataclass(frozen=True, slots=True)
class ReportData:
    """The report data begins with these bytes (1 to 64): a nonce, or the hash of a key."""

    expected: bytes

    def __post_init__(self) -> None:
        if not 1 <= len(checked_bytes(self.expected, "report data")) <= 64:
            raise ConfigError(f"report data has 1 to 64 bytes, given {len(self.expected)}")

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        found = verified.report_data[: len(self.expected)]
        same = hmac.compare_digest(found, self.expected)
        advice = "The evidence is for other data or an older request: ask again with a fresh nonce."
        return (finding("report-data", same, self.expected.hex(), found.hex(), advice),)


@dataclass(frozen=True, slots=True)
class HeldData:
    """SHA-256 of this data is the first half of the report data: the enclave vouches for it."""

    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        checked_bytes(self.data, "held data")

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        expected, found = sha256(self.data).digest(), verified.report_data[:32]
        same = hmac.compare_digest(found, expected)
        advice = "The evidence does not vouch for this data; do not use it."
        return (finding("held-data", same, f"SHA-256 {expected.hex()}", found.hex(), advice),)


# Requirements on the platform's TCB: accepted statuses, accepted advisories with an end, the evaluation number.

ACCEPTABLE = frozenset(TcbStatus) - {TcbStatus.REVOKED}
"""Statuses that a policy may accept; Revoked never is."""


@dataclass(frozen=True, slots=True)
class AcceptTcb:
    """Which TCB statuses are good enough; Revoked can never be named."""

    statuses: frozenset[TcbStatus]
    _names: str = field(init=False, repr=False, compare=False)

    def __init__(self, statuses: Iterable[TcbStatus]) -> None:
        try:
            accepted = frozenset(map(TcbStatus, checked_values(statuses, "accepted TCB statuses")))
        except ValueError as error:
            known = ", ".join(TcbStatus)
            raise ConfigError(f"{error}; known are {known}", advice="Name statuses of Intel's list.") from error
        if not accepted:
            raise ConfigError("no TCB status would be accepted", advice="Name at least one status.")
        if not accepted <= ACCEPTABLE:
            raise ConfigError("a revoked TCB is never acceptable", advice="Take Revoked out of the accepted statuses.")
        object.__setattr__(self, "statuses", accepted)
        object.__setattr__(self, "_names", " or ".join(wanted.value for wanted in TcbStatus if wanted in accepted))

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding, of TDX 1.5 another for the module that runs now; when not ok, one more for every SVN too low."""
        tcb, status = verified.tcb, verified.tcb_status
        checks = [self._judge("tcb-status", status in self.statuses, tcb, verified.tee)]
        # A converged status that differs from the launch's covers the current module too.
        if tcb.current and tcb.launch and status is tcb.launch.status:
            ok = tcb.current.status in (*self.statuses, TcbStatus.UP_TO_DATE)
            checks.append(self._judge("tcb-status-current", ok, tcb.current, verified.tee))
        if all(check.ok for check in checks):
            return tuple(checks)
        return (*checks, *explain_tcb(verified))

    def _judge(self, identifier: str, ok: bool, tcb: TcbEvaluation, tee: TeeType) -> Check:
        return Check(identifier, ok, self._names, describe_tcb(tcb), "" if ok else tcb_advice(tcb, tee))


@dataclass(frozen=True, slots=True)
class AcceptAdvisories:
    """Of the advisories that are open on the platform, only these are accepted, each until its date (exclusive)."""

    until: Mapping[str, datetime]

    def __post_init__(self) -> None:
        if not isinstance(self.until, Mapping):
            raise TypeError(f"AcceptAdvisories: expected advisories with dates, found {type(self.until).__name__}")
        for advisory, end in self.until.items():
            checked_time(end, f"the date of {advisory}")
        object.__setattr__(self, "until", dict(self.until))

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding per open advisory; none when none is open."""
        return tuple(self._judge(advisory, verified.verified_at) for advisory in verified.tcb.advisory_ids)

    def _judge(self, advisory: str, now: datetime) -> Check:
        end = self.until.get(advisory)
        if end is None:
            found = f"{advisory} is open and not accepted"
        elif now >= end:
            found = f"{advisory} was accepted until {end:%Y-%m-%d}"
        else:
            found = f"{advisory} is accepted until {end:%Y-%m-%d}"
        advice = f"Read {advisory}; mitigate it, or accept it in the policy until a date."
        return finding("advisory", end is not None and now < end, "no advisory that is not accepted", found, advice)


@dataclass(frozen=True, slots=True)
class MinTcbEvaluation:
    """The collateral has at least this TCB evaluation data number, so that no old list decides."""

    number: int

    def __post_init__(self) -> None:
        checked_int(self.number, "TCB evaluation data number", 32)

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        found, expected = verified.tcb_evaluation_data_number, f"TCB evaluation {self.number} or later"
        advice = "Fetch newer collateral (Intel: update=early, or a number)."
        return (
            finding("tcb-evaluation-data-number", found >= self.number, expected, f"TCB evaluation {found}", advice),
        )


# The safe defaults.


@dataclass(frozen=True, slots=True)
class NoDebug:
    """Neither a debug enclave nor a debug TD: their memory is open to the host."""

    def check(self, verified: VerifiedQuote) -> tuple[Check, ...]:
        """One finding."""
        body = verified.quote.body
        if isinstance(body, ReportBody):
            debug, release = body.attributes.debug, "Build and sign the enclave for release"
        else:
            debug, release = td_base(body).debug, "Start the TD without its debug attribute"
        advice = f"{release}; in a test, accept it on purpose with --allow-debug."
        return (finding("no-debug", not debug, "debug off", "debug on" if debug else "debug off", advice),)


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


class _SafeDefaults(AllOf):
    """The safe defaults as the caller wants them: what they leave out was left out on purpose."""

    __slots__ = ()


def safe_defaults(
    *,
    accept_tcb: Iterable[TcbStatus] = (TcbStatus.UP_TO_DATE,),
    allow_debug: bool = False,
    allow_unsafe_td: bool = False,
    accept_simulated: bool = False,
) -> AllOf:
    """The least that evidence must fulfil: hardware, no debug, a safe TD, a TCB that is up to date.

    Says nothing of identity. `appraise` applies them to every policy; name them in the policy to replace some.
    """
    flags = {"allow_debug": allow_debug, "allow_unsafe_td": allow_unsafe_td, "accept_simulated": accept_simulated}
    for name, flag in flags.items():
        checked_type(flag, bool, name)
    policies: list[Policy] = []
    if not accept_simulated:
        policies.append(HardwareOnly())
    if not allow_debug:
        policies.append(NoDebug())
    policies.append(AcceptTcb(accept_tcb))
    if not allow_unsafe_td:
        policies.append(SafeTd())
    return _SafeDefaults(*policies)


def with_safe_defaults(policy: Policy) -> Policy:
    """The policy with every safe default that it does not replace.

    `safe_defaults(…)` in the policy replaces all of them, `AcceptTcb` that of the TCB. The branches of an outermost
    `AnyOf` are completed one by one; of an inner one, only what all its branches replace counts.
    """
    if isinstance(policy, AnyOf):
        return AnyOf(*map(with_safe_defaults, policy.policies))
    replaced = _kinds(policy)
    missing = [default for default in _DEFAULTS if type(default) not in replaced]
    return AllOf(*missing, policy) if missing else policy


def _kinds(policy: Policy) -> frozenset[type]:
    """Which of the safe defaults a policy holds or replaces, by their types."""
    match policy:
        case _SafeDefaults():
            return frozenset({HardwareOnly, NoDebug, AcceptTcb, SafeTd})
        case AllOf():
            return frozenset(chain.from_iterable(map(_kinds, policy.policies)))
        case AnyOf():
            return frozenset.intersection(*map(_kinds, policy.policies))
        case _:
            return frozenset({type(policy)})


def checked_policy(policy: object) -> Policy:
    """The policy; `TypeError` for what is none, such as a class instead of a value."""
    if isinstance(policy, type) or not callable(getattr(policy, "check", None)):
        found = policy.__name__ if isinstance(policy, type) else type(policy).__name__
        raise TypeError(f"expected a policy such as MrSigner((value,)), found {found}")
    return policy  # type: ignore[return-value]


def checked_identity(policy: object) -> Policy:
    """A policy that says who is expected; a `ConfigError` for one that accepts whatever is genuine.

    Conditions that others wrote count as an identity.
    """
    if not _names_identity(checked_policy(policy)):
        raise ConfigError(
            "the policy does not say who is expected: any genuine enclave would be accepted",
            advice="Name an enclave (MRENCLAVE), its signer (MRSIGNER) and product, or a TD (MRTD).",
        )
    return policy  # type: ignore[return-value]


def _names_identity(policy: Policy) -> bool:
    match policy:
        case AllOf():
            return any(map(_names_identity, policy.policies))
        case AnyOf():
            return all(map(_names_identity, policy.policies))
        case ReportData() | HeldData() | NoDebug() | SafeTd() | HardwareOnly():
            return False
        case AcceptTcb() | AcceptAdvisories() | MinTcbEvaluation():
            return False
        case _OfReport():
            return isinstance(policy, (MrEnclave, MrSigner, MrTd, Rtmr0, Rtmr1, Rtmr2, Rtmr3))
        case _:
            return True


def _policies(policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    if not policies:
        raise ConfigError("an empty policy would accept everything", advice="Name at least one condition.")
    return tuple(map(checked_policy, policies))


_DEFAULTS = safe_defaults().policies


def _and(value: bytes, mask: bytes) -> bytes:
    return bytes(left & right for left, right in zip(value, mask, strict=True))
