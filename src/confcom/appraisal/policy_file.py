"""Policies as files: a TOML table that becomes policy values. Unknown keys are errors; defaults are the safe ones."""

from __future__ import annotations

import tomllib

import msgspec

from confcom.appraisal.policy import AllOf, IsvProdId, MinIsvSvn, MrEnclave, MrSigner, Policy, safe_defaults
from confcom.errors import ConfigError
from confcom.formats.tcb_info import TcbStatus

MAX_POLICY = 64 * 1024
"""Bytes."""


class PolicyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of a policy file. Hashes are hexadecimal, 32 bytes."""

    mr_enclave: tuple[str, ...] = ()
    """Builds that are trusted."""
    mr_signer: tuple[str, ...] = ()
    """Signers that are trusted."""
    isv_prod_id: int | None = None
    """The product of the signer."""
    min_isv_svn: int | None = None
    """The lowest security version."""
    accept_tcb: tuple[TcbStatus, ...] = (TcbStatus.UP_TO_DATE,)
    """TCB statuses that are good enough."""
    allow_debug: bool = False
    """Accept debug enclaves, whose memory is open to the host."""

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
        return AllOf(*policies)


def parse_policy(data: bytes) -> PolicyFile:
    """Read a policy file; `ConfigError` names the key that is wrong."""
    advice = "See docs/reference/policy-file.md for the keys."
    if len(data) > MAX_POLICY:
        raise ConfigError(f"the policy file has {len(data)} bytes, more than {MAX_POLICY}", advice=advice)
    try:
        table = tomllib.loads(data.decode())
        if not table:
            raise ConfigError("the policy file is empty: it would say nothing", advice=advice)
        return msgspec.convert(table, PolicyFile)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigError(f"the policy file is not valid: {error}", advice=advice) from error


def hash_value(text: str, name: str) -> bytes:
    """A 32-byte hash from hexadecimal text."""
    try:
        value = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {text!r} is not hexadecimal") from error
    if len(value) != 32:
        raise ConfigError(f"{name}: expected 32 bytes (64 hexadecimal digits), found {len(value)}")
    return value
