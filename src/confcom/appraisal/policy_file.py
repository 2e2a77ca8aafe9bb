"""Policies as files: a table (TOML, YAML or JSON) that becomes policy values.

Unknown keys are errors; what is not named keeps the safe default.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from confcom.appraisal.policy import (
    AcceptAdvisories,
    AllOf,
    IsvProdId,
    Masked,
    MinIsvSvn,
    MinTcbEvaluation,
    MrConfigId,
    MrEnclave,
    MrOwner,
    MrOwnerConfig,
    MrSeam,
    MrSigner,
    MrSignerSeam,
    MrTd,
    OneOf,
    Policy,
    Rtmr0,
    Rtmr1,
    Rtmr2,
    Rtmr3,
    TdAttributes,
    Xfam,
    safe_defaults,
)
from confcom.errors import ConfigError
from confcom.formats.arguments import checked_bytes, explain_settings, members_once, without_bom
from confcom.formats.quote import TeeType
from confcom.formats.signed_json import prepare
from confcom.formats.tcb_info import TcbStatus

MAX_POLICY = 64 * 1024
"""Bytes."""

MAX_GRACE_DAYS = 90

_ADVICE = "See docs/reference/policy-file.md for the keys."
_U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_Hash32 = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$", description="32 bytes in hexadecimal")]
_Hash48 = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{96}$", description="48 bytes in hexadecimal")]
_Hashes32 = Annotated[tuple[_Hash32, ...], msgspec.Meta(min_length=1)]
_Hashes48 = Annotated[tuple[_Hash48, ...], msgspec.Meta(min_length=1)]
_Masked = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{16}(/[0-9a-fA-F]{16})?$")]


def _about(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class PolicyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a relying party accepts. A key that is absent says nothing; null and empty lists are errors."""

    mr_enclave: Annotated[_Hashes32 | UnsetType, _about("Builds that are trusted.")] = UNSET
    mr_signer: Annotated[_Hashes32 | UnsetType, _about("Signers that are trusted.")] = UNSET
    isv_prod_id: Annotated[_U16 | UnsetType, _about("The product of the signer.")] = UNSET
    min_isv_svn: Annotated[_U16 | UnsetType, _about("The lowest security version.")] = UNSET
    mr_td: Annotated[_Hashes48 | UnsetType, _about("Initial images of TDs that are trusted.")] = UNSET
    rtmr0: Annotated[_Hashes48 | UnsetType, _about("Values of RTMR0 that are trusted.")] = UNSET
    rtmr1: Annotated[_Hashes48 | UnsetType, _about("Values of RTMR1 that are trusted.")] = UNSET
    rtmr2: Annotated[_Hashes48 | UnsetType, _about("Values of RTMR2 that are trusted.")] = UNSET
    rtmr3: Annotated[_Hashes48 | UnsetType, _about("Values of RTMR3 that are trusted.")] = UNSET
    mr_seam: Annotated[_Hashes48 | UnsetType, _about("TDX modules that are trusted.")] = UNSET
    mr_signer_seam: Annotated[_Hashes48 | UnsetType, _about("Signers of the TDX module; zeros: Intel.")] = UNSET
    mr_config_id: Annotated[_Hashes48 | UnsetType, _about("Configuration ids of TDs that are trusted.")] = UNSET
    mr_owner: Annotated[_Hashes48 | UnsetType, _about("Owners of TDs that are trusted.")] = UNSET
    mr_owner_config: Annotated[_Hashes48 | UnsetType, _about("Configurations of owners that are trusted.")] = UNSET
    td_attributes: Annotated[_Masked | UnsetType, _about("TDATTRIBUTES, 8 bytes, perhaps /MASK.")] = UNSET
    xfam: Annotated[_Masked | UnsetType, _about("XFAM, 8 bytes, perhaps /MASK.")] = UNSET
    accept_tcb: Annotated[
        tuple[TcbStatus, ...],
        msgspec.Meta(min_length=1, description="TCB statuses that are good enough; never Revoked."),
    ] = (TcbStatus.UP_TO_DATE,)
    accept_advisories: Annotated[
        dict[str, date] | UnsetType,
        _about("Advisories that may be open, each until a date (exclusive, UTC). Without it: any."),
    ] = UNSET
    min_tcb_evaluation_data_number: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)] | UnsetType,
        _about("The oldest TCB evaluation that may judge."),
    ] = UNSET
    collateral_grace_days: Annotated[
        int,
        msgspec.Meta(ge=0, le=MAX_GRACE_DAYS, description="Days for which expired collateral is still accepted."),
    ] = 0
    allow_debug: Annotated[bool, _about("Accept debug enclaves and debug TDs: their memory is open.")] = False

    def policy(self, *, accept_simulated: bool = False, options: Collection[str] = ()) -> AllOf:
        """The policy values that the file stands for, on top of the safe defaults.

        Keys of enclaves beside keys of TDs are a `ConfigError`: no evidence could fulfil both. Errors name the keys
        among `options` as options of the command line.
        """

        def named(key: str) -> str:
            return f"--{key.replace('_', '-')}" if key in options else key

        policies: list[Policy] = [
            safe_defaults(accept_tcb=self.accept_tcb, allow_debug=self.allow_debug, accept_simulated=accept_simulated)
        ]
        if self.keys_of(TeeType.SGX) and self.keys_of(TeeType.TDX):
            raise ConfigError(
                f"{', '.join(map(named, self.keys_of(TeeType.SGX)))} belong to SGX enclaves, "
                f"{', '.join(map(named, self.keys_of(TeeType.TDX)))} to TDs: no evidence has both",
                advice="Write one policy for each kind of evidence.",
            )
        policies += [_IDENTITY[name](named(name), getattr(self, name)) for name in self._given(_IDENTITY)]
        if self.accept_advisories is not UNSET:
            ends = {name: datetime.combine(day, time(), UTC) for name, day in self.accept_advisories.items()}
            policies.append(AcceptAdvisories(ends))
        if self.min_tcb_evaluation_data_number is not UNSET:
            policies.append(MinTcbEvaluation(self.min_tcb_evaluation_data_number))
        return AllOf(*policies)

    def keys_of(self, tee: TeeType) -> tuple[str, ...]:
        """The keys given here that say who an enclave (SGX) or a TD (TDX) should be."""
        return tuple(name for name in self._given(_IDENTITY) if (name in _SGX_KEYS) is (tee is TeeType.SGX))

    def _given(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in names if getattr(self, name) is not UNSET)

    @property
    def grace(self) -> timedelta:
        """How long after its end collateral is still accepted."""
        return timedelta(days=self.collateral_grace_days)


prepare(PolicyFile)


def parse_policy(data: bytes, *, name: str = "policy.toml") -> PolicyFile:
    """Read a policy file; its name's ending gives the form. `ConfigError` names the key that is wrong."""
    what = f"the policy file {name}"
    if len(checked_bytes(data, "policy file")) > MAX_POLICY:
        raise ConfigError(f"{what} has {len(data)} bytes, more than {MAX_POLICY}", advice=_ADVICE)
    try:
        table = _reader(name)(without_bom(data))
        if not table:
            raise ConfigError(f"{what} is empty: it would say nothing", advice=_ADVICE)
        return msgspec.convert(table, PolicyFile)
    except ImportError as error:
        raise ConfigError("YAML needs the package pyyaml", advice="Install confcom[cli], or write TOML.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} is not UTF-8 (byte {error.start})", advice=_ADVICE) from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{what} is not valid: {explain_settings(error, PolicyFile)}", advice=_ADVICE) from error
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(f"{what} is not valid: {error}", advice=_ADVICE) from error


def policy_schema() -> dict[str, Any]:
    """The JSON schema of a policy file."""
    return msgspec.json.schema(PolicyFile)


def _value(text: str, name: str, size: int) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {text!r} is not hexadecimal") from error
    if len(value) != size:
        raise ConfigError(f"{name}: expected {size} bytes ({2 * size} hexadecimal digits), found {len(value)}")
    return value


def _one_of(kind: type[OneOf]) -> Callable[[str, Any], Policy]:
    return lambda name, texts: kind([_value(text, name, kind.size) for text in texts])


def _masked(kind: type[Masked]) -> Callable[[str, Any], Policy]:
    def make(name: str, text: str) -> Policy:
        value, slash, mask = text.partition("/")
        return kind(_value(value, name, 8), *([_value(mask, f"mask of {name}", 8)] if slash else []))

    return make


_SGX_KEYS = ("mr_enclave", "mr_signer", "isv_prod_id", "min_isv_svn")

# Key of the identity → what makes a policy of the key's name and value.
_IDENTITY: dict[str, Callable[[str, Any], Policy]] = {
    "mr_enclave": _one_of(MrEnclave),
    "mr_signer": _one_of(MrSigner),
    "isv_prod_id": lambda _, number: IsvProdId(number),
    "min_isv_svn": lambda _, number: MinIsvSvn(number),
    "mr_td": _one_of(MrTd),
    "rtmr0": _one_of(Rtmr0),
    "rtmr1": _one_of(Rtmr1),
    "rtmr2": _one_of(Rtmr2),
    "rtmr3": _one_of(Rtmr3),
    "mr_seam": _one_of(MrSeam),
    "mr_signer_seam": _one_of(MrSignerSeam),
    "mr_config_id": _one_of(MrConfigId),
    "mr_owner": _one_of(MrOwner),
    "mr_owner_config": _one_of(MrOwnerConfig),
    "td_attributes": _masked(TdAttributes),
    "xfam": _masked(Xfam),
}


def _reader(name: str) -> Callable[[bytes], Any]:
    if name.endswith((".yaml", ".yml")):
        return _read_yaml
    return _read_json if name.endswith(".json") else _read_toml


def _read_yaml(data: bytes) -> object:
    from confcom.formats.yaml_text import read_yaml

    documents = read_yaml(data.decode(), source="policy")
    if len(documents) > 1:
        raise ConfigError(f"the policy file has {len(documents)} documents, not one", advice=_ADVICE)
    return documents[0] if documents else None


def _read_json(data: bytes) -> object:
    return json.loads(data, object_pairs_hook=members_once)


def _read_toml(data: bytes) -> object:
    import tomllib  # here: most verdicts are made without a policy file

    return tomllib.loads(data.decode())
