"""Appraisal policies that a caching service keeps for Intel's appraisal library, one default per FMSPC.

A policy is a JWT. Its payload has the text `policy_payload`: JSON with a `policy_array`, one entry of which names the
class of platforms. The signature is the appraisal library's to check: the service keeps the bytes as they came.
"""

from __future__ import annotations

import base64
import hashlib

import msgspec
import sqlalchemy as sa

from confcom.collateral.store.database import StoreDatabase
from confcom.collateral.store.schema import APPRAISAL_POLICIES
from confcom.database.engine import Database
from confcom.errors import CollateralUnavailable, FormatError

MAX_POLICIES = 10_000
STRUCTURE = "appraisal policy"

PLATFORM_CLASSES = {
    "3123ec35-8d38-4ea5-87a5-d6c48b567570": "SGX",
    "9eec018b-7481-4b1c-8e1a-9f7c0c8c777f": "TDX 1.0",
    "f708b97f-0fb2-4e6b-8b03-8a5bcd1221d3": "TDX 1.5",
}
TD_QE_CLASS = "3769258c-75e6-4bc7-8d72-d2b0e224cad2"


class AppraisalPolicies:
    """The policies in a store. Safe to use from several threads and processes."""

    def __init__(self, database: StoreDatabase) -> None:
        self._database = database

    def put(self, policy: str, *, fmspc: bytes, default: bool) -> str:
        """Keep a policy, as the default of the FMSPC (6 bytes) in the place of the one before; gives its id.

        The id is the SHA-384 of the policy in hexadecimal digits. What is no such JWT is a `FormatError`.
        """
        platform_class(policy)
        id_ = hashlib.sha384(policy.encode()).hexdigest()
        with self._database.change() as connection:
            if default:
                connection.execute(sa.update(APPRAISAL_POLICIES).where(*_defaults(fmspc)).values(is_default=0))
            added = Database.insert(connection.dialect.name, APPRAISAL_POLICIES)
            kept = added.on_conflict_do_update(
                index_elements=[_C.id, _C.fmspc], set_={"is_default": added.excluded.is_default}
            )
            connection.execute(kept, _row(id_, fmspc, policy, default=default))
            if (
                connection.execute(sa.select(sa.func.count()).select_from(APPRAISAL_POLICIES)).scalar_one()
                > MAX_POLICIES
            ):
                raise CollateralUnavailable(
                    f"the store holds {MAX_POLICIES} appraisal policies already", advice="Use a store for each fleet."
                )
        return id_

    def all(self) -> tuple[tuple[bytes, bool, str], ...]:
        """Every policy: its FMSPC (6 bytes), whether it is the default, and its text."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(_C.fmspc, _C.is_default, _C.policy).order_by(_C.id, _C.fmspc))
            return tuple((bytes.fromhex(fmspc), bool(default), policy) for fmspc, default, policy in rows)

    def restore(self, connection: sa.Connection, policy: str, *, fmspc: bytes, default: bool) -> bool:
        """Keep a policy of another store; whether it is new. The default that an FMSPC has stays its default."""
        default = default and connection.execute(sa.select(_C.id).where(*_defaults(fmspc))).first() is None
        id_ = hashlib.sha384(policy.encode()).hexdigest()
        if connection.execute(sa.select(_C.id).where(_C.id == id_, _C.fmspc == fmspc.hex())).first() is not None:
            return False
        connection.execute(sa.insert(APPRAISAL_POLICIES), _row(id_, fmspc, policy, default=default))
        return True

    def default(self, fmspc: bytes) -> str | None:
        """The default policy of an FMSPC (6 bytes), None where there is none."""
        with self._database.read() as connection:
            found = connection.execute(sa.select(_C.policy).where(*_defaults(fmspc))).scalar()
            return None if found is None else str(found)


_C = APPRAISAL_POLICIES.c


def _defaults(fmspc: bytes) -> tuple[sa.ColumnElement[bool], ...]:
    return _C.fmspc == fmspc.hex(), _C.is_default == 1


def _row(id_: str, fmspc: bytes, policy: str, *, default: bool) -> dict[str, str | int]:
    return {"id": id_, "fmspc": fmspc.hex(), "is_default": int(default), "policy": policy}


def platform_class(policy: str) -> str:
    """The class of platforms that a policy is for, of `PLATFORM_CLASSES`; the signature is not checked."""
    parts = policy.split(".")
    if len(parts) != 3:
        raise FormatError("is not a JWT of three parts", structure=STRUCTURE, field="policy")
    if "\0" in policy:
        raise FormatError("has a zero character", structure=STRUCTURE, field="policy")  # PostgreSQL keeps none
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        entries = _POLICY.decode(_PAYLOAD.decode(payload).policy_payload)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise FormatError(
            f"its payload is not the documented JSON: {error}", structure=STRUCTURE, field="policy"
        ) from error
    for entry in entries.policy_array:
        found = entry.environment.class_id.lower()
        if found in PLATFORM_CLASSES:
            return PLATFORM_CLASSES[found]
        if found != TD_QE_CLASS:
            raise FormatError(f"{found[:64]!r} is no known class", structure=STRUCTURE, field="class_id")
    raise FormatError("names no class of platforms", structure=STRUCTURE, field="policy_array")


class _Payload(msgspec.Struct):
    policy_payload: str


class _Environment(msgspec.Struct):
    class_id: str


class _Entry(msgspec.Struct):
    environment: _Environment


class _Policy(msgspec.Struct):
    policy_array: list[_Entry]


_PAYLOAD = msgspec.json.Decoder(_Payload)
_POLICY = msgspec.json.Decoder(_Policy)
