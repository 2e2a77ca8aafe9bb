"""CollateralStore: every version of every document, with a memory of when it was seen, in SQLite or PostgreSQL.

`add` verifies each document under the roots that the store was opened with, and only what leads to those roots is read.
Its users verify it once more (`verify_collateral`), so that the database need not be trusted.

It also keeps appraisal policies for Intel's appraisal library, one default per FMSPC. A policy is a JWT. Its payload
has the text `policy_payload`: JSON with a `policy_array`, one entry of which names the class of platforms. The
signature is the appraisal library's to check: the store keeps the bytes as they came.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import sqlalchemy as sa

from confcom.appraisal.collateral import Collateral
from confcom.collateral.documents import (
    Document,
    DocumentKey,
    VerifiedDocument,
    assemble,
    keys_for,
    missing_document,
    verify_document,
)
from confcom.collateral.store.database import StoreDatabase
from confcom.collateral.store.platforms import PckClaims, PlatformRegistry
from confcom.collateral.store.registrations import Registrations
from confcom.collateral.store.rows import (
    Sighting,
    StoredVersion,
    all_keys,
    documents_in_force,
    keep_version,
    load_document,
    served_as,
    version_in_force,
    versions_of,
)
from confcom.collateral.store.schema import APPRAISAL_POLICIES, CHANGES, LEASES
from confcom.database.changes import Leases
from confcom.database.engine import BUSY_TIMEOUT, Database, Query
from confcom.errors import CollateralNotFound, CollateralUnavailable, FormatError
from confcom.formats.pck_extension import PckExtension
from confcom.pki.chain import TrustRoots
from confcom.protocols.pcs import PckCaName, Tee, Update


class CollateralStore:
    """A store. Safe to use from several threads and processes; a context manager that closes it."""

    def __init__(
        self, store: Path | str, *, roots: TrustRoots, create: bool = True, busy_timeout: float = BUSY_TIMEOUT
    ) -> None:
        """Open the store, and make an SQLite file that is not there. Failures are `CollateralError`s with advice.

        `store` is a path, or the URL of a PostgreSQL database; what is no such URL is a `ConfigError`.
        """
        self.database = StoreDatabase(store, create=create, busy_timeout=busy_timeout)
        """What a `Watch` is made for."""
        self.roots = roots
        self.address = self.database.address
        """The path, or the URL without the password."""
        self.source = f"store {self.address}"
        self.platforms = PlatformRegistry(self.database, roots)
        self.registrations = Registrations(self.database)
        self.claims = PckClaims(self.database, roots)
        self.policies = AppraisalPolicies(self.database)
        self._leases = Leases(self.database, LEASES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def failures(self) -> int:
        """Reads and writes since it was opened that the engine or the file system refused."""
        return self.database.failures

    def take_lease(self, name: str, now: datetime, lasting: timedelta) -> bool:
        """Whether this process may do for all replicas what the lease is for; of a file always."""
        return not self.database.shared or self._leases.take(name, now, lasting)

    def release_lease(self, name: str) -> None:
        """Let another replica have it at once."""
        if self.database.shared:
            self._leases.release(name)

    def changes(self) -> int:
        """How many transactions have written, of every process: what was read holds while this stays the same."""
        with self.database.look_ups() as look_up:
            ((number,),) = look_up(_CHANGES, {})
            return int(number)

    def foreign_changes(self) -> int:
        """The same without those of this object; in the middle of one that is its own, it may count too."""
        return self.changes() - self.database.written

    def close(self) -> None:
        """Close its connections."""
        self.database.close()

    def check(self) -> None:
        """Read the whole file, with every byte of every document; damage is a `CollateralError`."""
        self.database.check()
        for key in self.document_keys():
            for version in self.history(key):
                self.load(version)

    def add(self, documents: Iterable[Document], *, seen: datetime, source: str) -> int:
        """Verify documents and keep them, all or none; gives how many were new versions.

        `seen` is the time at which `source` served them. When this returns, they are on the disk.
        """
        verified = [verify_document(document, roots=self.roots) for document in documents]
        return self.add_verified(verified, seen=seen, source=source)

    def add_verified(self, documents: Iterable[VerifiedDocument], *, seen: datetime, source: str) -> int:
        """The same for documents that were verified under the store's roots."""
        return self.add_seen((document, (Sighting(served_as(document), source, seen),)) for document in documents)

    def add_seen(self, documents: Iterable[tuple[VerifiedDocument, Sequence[Sighting]]]) -> int:
        """Keep verified documents with what is known of when they were seen; gives how many were new versions."""
        with self.database.change() as connection:
            return sum(keep_version(connection, document, sightings) for document, sightings in documents)

    def write(self, writers: Iterable[Callable[[sa.Connection], bool]]) -> int:
        """Run calls that write in one transaction; gives how many said that what they wrote is new."""
        with self.database.change() as connection:
            return sum(writer(connection) for writer in writers)

    def observe_platform(self, extension: PckExtension, *, seen: datetime, tee: Tee = "sgx") -> None:
        """Remember a platform and its TCB, as its PCK certificate states them, for `status`."""
        self.platforms.observe(extension, seen=seen, tee=tee)

    def collateral(
        self, fmspc: bytes, ca: PckCaName, tee: Tee, *, at: datetime, update: Update = "standard"
    ) -> Collateral:
        """The collateral that was in force at `at`; what is not there at all is `CollateralNotFound`.

        Where no version of a document was valid at `at`, the nearest one is given: judged as of `at`, it is stale.
        """
        keys = keys_for(fmspc, ca, tee, update)
        with self.database.look_ups() as look_up:
            # All four of one root: that of the TCB info.
            for root in self._root_keys:
                found = documents_in_force(look_up, keys, at, root)
                if found[0] is not None:
                    break
        missing = [str(key) for key, one in zip(keys, found, strict=True) if one is None]
        if missing:
            raise CollateralNotFound(
                f"{self.source} has no {', no '.join(missing)}",
                advice=f"Fetch it: confcom collateral fetch --fmspc {fmspc.hex()} --ca {ca} --tee {tee} "
                f"--update {update} --store {self.address}",
            )
        return assemble([one[0] for one in found if one is not None], source=self.source)

    def document(self, key: DocumentKey, *, at: datetime) -> Document:
        """The version of one document that was in force at `at`, of the first root that has it."""
        found = self.document_until(key, at=at)
        if found is None:
            raise missing_document(key, self.source)
        return found[0]

    def document_until(self, key: DocumentKey, *, at: datetime) -> tuple[Document, datetime] | None:
        """What `document` gives, and when it expires; None where there is none."""
        with self.database.look_ups() as look_up:
            found = (documents_in_force(look_up, [key], at, root)[0] for root in self._root_keys)
            return next((document for document in found if document is not None), None)

    def in_force(self, key: DocumentKey, *, at: datetime) -> StoredVersion | None:
        """The version that `document` would give, without its bytes; None where there is none."""
        with self.database.look_ups() as look_up:
            found = (version_in_force(look_up, key, at, root) for root in self._root_keys)
            return next((version for version in found if version is not None), None)

    def history(self, key: DocumentKey) -> tuple[StoredVersion, ...]:
        """Every version of a document that was served as the key's set, or has its number; the latest issue first."""
        with self.database.read() as connection:
            return tuple(version for root in self._root_keys for version in versions_of(connection, key, root))

    def load(self, version: StoredVersion) -> Document:
        """The bytes of a version."""
        with self.database.look_ups() as look_up:
            return load_document(look_up, version.id, version.key)[0]

    def document_keys(self) -> tuple[DocumentKey, ...]:
        """Every document in the store, once for each set that it was ever served as."""
        with self.database.read() as connection:
            found = (key for root in self._root_keys for key in all_keys(connection, root))
            return tuple(dict.fromkeys(found))

    @property
    def _root_keys(self) -> list[bytes]:
        return [root.public_key for root in self.roots.roots]


_CHANGES = Query(sa.select(CHANGES.c.number))


MAX_POLICIES = 10_000
APPRAISAL_POLICY = "appraisal policy"

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
                connection.execute(sa.update(APPRAISAL_POLICIES).where(*_default_policy(fmspc)).values(is_default=0))
            added = Database.insert(connection.dialect.name, APPRAISAL_POLICIES)
            kept = added.on_conflict_do_update(
                index_elements=[_P.id, _P.fmspc], set_={"is_default": added.excluded.is_default}
            )
            connection.execute(kept, _policy_row(id_, fmspc, policy, default=default))
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
            rows = connection.execute(sa.select(_P.fmspc, _P.is_default, _P.policy).order_by(_P.id, _P.fmspc))
            return tuple((bytes.fromhex(fmspc), bool(default), policy) for fmspc, default, policy in rows)

    def restore(self, connection: sa.Connection, policy: str, *, fmspc: bytes, default: bool) -> bool:
        """Keep a policy of another store; whether it is new. The default that an FMSPC has stays its default."""
        default = default and connection.execute(sa.select(_P.id).where(*_default_policy(fmspc))).first() is None
        id_ = hashlib.sha384(policy.encode()).hexdigest()
        if connection.execute(sa.select(_P.id).where(_P.id == id_, _P.fmspc == fmspc.hex())).first() is not None:
            return False
        connection.execute(sa.insert(APPRAISAL_POLICIES), _policy_row(id_, fmspc, policy, default=default))
        return True

    def default(self, fmspc: bytes) -> str | None:
        """The default policy of an FMSPC (6 bytes), None where there is none."""
        with self._database.read() as connection:
            found = connection.execute(sa.select(_P.policy).where(*_default_policy(fmspc))).scalar()
            return None if found is None else str(found)


_P = APPRAISAL_POLICIES.c


def _default_policy(fmspc: bytes) -> tuple[sa.ColumnElement[bool], ...]:
    return _P.fmspc == fmspc.hex(), _P.is_default == 1


def _policy_row(id_: str, fmspc: bytes, policy: str, *, default: bool) -> dict[str, str | int]:
    return {"id": id_, "fmspc": fmspc.hex(), "is_default": int(default), "policy": policy}


def platform_class(policy: str) -> str:
    """The class of platforms that a policy is for, of `PLATFORM_CLASSES`; the signature is not checked."""
    parts = policy.split(".")
    if len(parts) != 3:
        raise FormatError("is not a JWT of three parts", structure=APPRAISAL_POLICY, field="policy")
    if "\0" in policy:
        raise FormatError("has a zero character", structure=APPRAISAL_POLICY, field="policy")  # PostgreSQL keeps none
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        entries = _POLICY.decode(_PAYLOAD.decode(payload).policy_payload)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise FormatError(
            f"its payload is not the documented JSON: {error}", structure=APPRAISAL_POLICY, field="policy"
        ) from error
    for entry in entries.policy_array:
        found = entry.environment.class_id.lower()
        if found in PLATFORM_CLASSES:
            return PLATFORM_CLASSES[found]
        if found != TD_QE_CLASS:
            raise FormatError(f"{found[:64]!r} is no known class", structure=APPRAISAL_POLICY, field="class_id")
    raise FormatError("names no class of platforms", structure=APPRAISAL_POLICY, field="policy_array")


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
