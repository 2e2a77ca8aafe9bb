"""Policies as files: a table (TOML, YAML or JSON) that becomes policy values.

Unknown keys are errors; what is not named keeps the safe default.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any

import msgspec

from confcom.appraisal.policy import (
    AcceptAdvisories,
    AllOf,
    IsvProdId,
    MinIsvSvn,
    MinTcbEvaluation,
    MrEnclave,
    MrSigner,
    Policy,
    safe_defaults,
)
from confcom.errors import ConfigError
from confcom.formats.tcb_info import TcbStatus

MAX_POLICY = 64 * 1024
"""Bytes."""

MAX_GRACE_DAYS = 90

_ADVICE = "See docs/reference/policy-file.md for the keys."
_U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$", description="32 bytes in hexadecimal")]


class PolicyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a relying party accepts."""

    mr_enclave: Annotated[tuple[_Hash, ...], msgspec.Meta(description="Builds that are trusted; none: any.")] = ()
    mr_signer: Annotated[tuple[_Hash, ...], msgspec.Meta(description="Signers that are trusted; none: any.")] = ()
    isv_prod_id: Annotated[_U16 | None, msgspec.Meta(description="The product of the signer.")] = None
    min_isv_svn: Annotated[_U16 | None, msgspec.Meta(description="The lowest security version.")] = None
    accept_tcb: Annotated[
        tuple[TcbStatus, ...], msgspec.Meta(description="TCB statuses that are good enough; never Revoked.")
    ] = (TcbStatus.UP_TO_DATE,)
    accept_advisories: Annotated[
        dict[str, date] | None,
        msgspec.Meta(description="Advisories that may be open, each until a date (exclusive, UTC). Without it: any."),
    ] = None
    min_tcb_evaluation_data_number: Annotated[
        int | None, msgspec.Meta(description="The oldest TCB evaluation that may judge.")
    ] = None
    collateral_grace_days: Annotated[
        int,
        msgspec.Meta(ge=0, le=MAX_GRACE_DAYS, description="Days for which expired collateral is still accepted."),
    ] = 0
    allow_debug: Annotated[bool, msgspec.Meta(description="Accept debug enclaves: their memory is open.")] = False

    def policy(self, *, accept_simulated: bool = False) -> AllOf:
        """The policy values that the file stands for, on top of the safe defaults."""
        policies: list[Policy] = [
            safe_defaults(accept_tcb=self.accept_tcb, allow_debug=self.allow_debug, accept_simulated=accept_simulated)
        ]
        if self.mr_enclave:
            policies.append(MrEnclave(tuple(hash_value(text, "mr_enclave") for text in self.mr_enclave)))
        if self.mr_signer:
            policies.append(MrSigner(tuple(hash_value(text, "mr_signer") for text in self.mr_signer)))
        if self.isv_prod_id is not None:
            policies.append(IsvProdId(self.isv_prod_id))
        if self.min_isv_svn is not None:
            policies.append(MinIsvSvn(self.min_isv_svn))
        if self.accept_advisories is not None:
            ends = {name: datetime.combine(day, time(), UTC) for name, day in self.accept_advisories.items()}
            policies.append(AcceptAdvisories(ends))
        if self.min_tcb_evaluation_data_number is not None:
            policies.append(MinTcbEvaluation(self.min_tcb_evaluation_data_number))
        return AllOf(*policies)

    @property
    def grace(self) -> timedelta:
        """How long after its end collateral is still accepted."""
        return timedelta(days=self.collateral_grace_days)


def parse_policy(data: bytes, *, name: str = "policy.toml") -> PolicyFile:
    """Read a policy file; its name's ending tells the form. `ConfigError` names the key that is wrong."""
    if len(data) > MAX_POLICY:
        raise ConfigError(f"the policy file has {len(data)} bytes, more than {MAX_POLICY}", advice=_ADVICE)
    try:
        table = _reader(name)(data)
        if not table:
            raise ConfigError("the policy file is empty: it would say nothing", advice=_ADVICE)
        return msgspec.convert(table, PolicyFile)
    except ImportError as error:
        raise ConfigError("YAML needs the package pyyaml", advice="Install confcom[cli], or write TOML.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(f"the policy file is not valid: {error}", advice=_ADVICE) from error


def policy_schema() -> dict[str, Any]:
    """The JSON schema of a policy file."""
    return msgspec.json.schema(PolicyFile)


def hash_value(text: str, name: str) -> bytes:
    """A 32-byte hash from hexadecimal text."""
    try:
        value = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {text!r} is not hexadecimal") from error
    if len(value) != 32:
        raise ConfigError(f"{name}: expected 32 bytes (64 hexadecimal digits), found {len(value)}")
    return value


def _reader(name: str) -> Callable[[bytes], Any]:
    if name.endswith((".yaml", ".yml")):
        return msgspec.yaml.decode
    if name.endswith(".json"):
        return msgspec.json.decode
    return _read_toml


def _read_toml(data: bytes) -> dict[str, Any]:
    return tomllib.loads(data.decode())
