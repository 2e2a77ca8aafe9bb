"""Lines of an archive that are no documents: PCK certificates, registrations of platforms, appraisal policies.

Certificates are verified like documents. Nothing signs a registration or a policy: an archive is trusted by
the user who imports it, and entries that the store has already stay.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Annotated

import msgspec

from confcom.collateral.appraisal_policies import platform_class
from confcom.collateral.clock import at_most
from confcom.collateral.registrations import Registration, State, restore_registration
from confcom.collateral.store import CollateralStore
from confcom.collateral.store_platforms import StoredPck, restore_pck
from confcom.errors import ConfigError, FormatError
from confcom.formats.signed_json import Hex2, Hex6, Hex16
from confcom.pki.certificate import MAX_PEM
from confcom.protocols.pcs import (
    ENCRYPTED_PPID_SIZE,
    MAX_PLATFORM_MANIFEST,
    MAX_QE_ID,
    PckCertificateAnswer,
    PckCertRequest,
    PckCertsRequest,
)

QeId = Annotated[str, msgspec.Meta(pattern=rf"\A(?:[0-9a-f]{{2}}){{1,{MAX_QE_ID}}}\Z")]
_Svn = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_Pem = Annotated[str, msgspec.Meta(max_length=MAX_PEM)]

Keep = Callable[[sqlite3.Connection], bool]
"""Keeps what a line holds in the transaction that is open; whether it is new."""


class _RawTcb(msgspec.Struct, forbid_unknown_fields=True):
    cpu_svn: Hex16
    pce_svn: _Svn


class _Pck(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="pck-certificate", tag_field="platform"):
    qe_id: QeId
    pce_id: Hex2
    certificate: _Pem
    issuer_chain: _Pem
    source: Annotated[str, msgspec.Meta(max_length=1024)]
    first_seen: datetime
    last_seen: datetime
    raw_tcbs: Annotated[list[_RawTcb], msgspec.Meta(max_length=1000)]


class _Registration(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="registration", tag_field="platform"):
    qe_id: QeId
    pce_id: Hex2
    raw_tcb: _RawTcb | None = None
    encrypted_ppid: Annotated[bytes, msgspec.Meta(max_length=ENCRYPTED_PPID_SIZE)] | None = None
    platform_manifest: Annotated[bytes, msgspec.Meta(max_length=MAX_PLATFORM_MANIFEST)] | None = None
    fmspc: Hex6 | None = None
    state: State
    since: datetime
    last_seen: datetime


class _Policy(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag="appraisal-policy", tag_field="platform"):
    fmspc: Hex6
    default: bool
    policy: Annotated[str, msgspec.Meta(max_length=1 << 20)]


PLATFORM_LINE = b'{"platform":"'
"""How these lines begin."""

_LINE = msgspec.json.Decoder(_Pck | _Registration | _Policy)


def policy_lines(store: CollateralStore) -> Iterator[bytes]:
    """The appraisal policies."""
    for fmspc, default, policy in store.policies.all():
        yield msgspec.json.encode(_Policy(fmspc=fmspc.hex(), default=default, policy=policy))


def certificate_lines(store: CollateralStore) -> Iterator[bytes]:
    """The PCK certificates, with the raw TCBs that they are served for."""
    for stored in store.platforms.stored_certificates():
        line = _Pck(
            qe_id=stored.qe_id.hex(),
            pce_id=stored.pce_id.hex(),
            certificate=stored.answer.certificate.decode(),
            issuer_chain=stored.answer.issuer_chain.decode(),
            source=stored.source,
            first_seen=stored.first_seen,
            last_seen=stored.last_seen,
            raw_tcbs=[_RawTcb(cpu_svn.hex(), pce_svn) for cpu_svn, pce_svn in stored.raw_tcbs],
        )
        yield msgspec.json.encode(line)


def registration_lines(store: CollateralStore) -> Iterator[bytes]:
    """The registrations."""
    states: tuple[State, ...] = ("waiting", "unavailable", "cached")
    for entry in (entry for state in states for entry in store.registrations.all(state)):
        request = entry.request
        raw = _RawTcb(request.cpu_svn.hex(), request.pce_svn) if isinstance(request, PckCertRequest) else None
        line = _Registration(
            qe_id=(request.qe_id or b"").hex(),
            pce_id=request.pce_id.hex(),
            raw_tcb=raw,
            encrypted_ppid=request.encrypted_ppid,
            platform_manifest=request.platform_manifest,
            fmspc=entry.fmspc.hex() or None,
            state=entry.state,
            since=entry.since,
            last_seen=entry.last_seen or entry.since,
        )
        yield msgspec.json.encode(line)


def read_line(store: CollateralStore, data: bytes, *, structure: str, field: str, now: datetime) -> Keep:
    """Verify a line and give what keeps it; malformed lines are `FormatError`s that name the field."""
    try:
        line = _LINE.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{error}", structure=structure, field=field) from error
    try:
        if isinstance(line, _Pck):
            return _certificate(store, line, field, now)
        if isinstance(line, _Registration):
            return partial(restore_registration, registration=_registration(line, field, now))
        platform_class(line.policy)
        return partial(
            store.policies.restore, policy=line.policy, fmspc=bytes.fromhex(line.fmspc), default=line.default
        )
    except (ConfigError, FormatError) as error:
        raise FormatError(error.message, structure=structure, field=field) from error


def _certificate(store: CollateralStore, line: _Pck, field: str, now: datetime) -> Keep:
    pce_id = bytes.fromhex(line.pce_id)
    answer = PckCertificateAnswer(line.certificate.encode(), line.issuer_chain.encode(), b"")
    verified = store.platforms.verify(answer, pce_id)
    stored = StoredPck(
        bytes.fromhex(line.qe_id),
        pce_id,
        verified.answer,
        line.source,
        at_most(line.first_seen, now, field),
        at_most(line.last_seen, now, field),
        tuple((bytes.fromhex(raw.cpu_svn), raw.pce_svn) for raw in line.raw_tcbs),
    )
    return partial(restore_pck, stored=stored, verified=verified)


def _registration(line: _Registration, field: str, now: datetime) -> Registration:
    pce_id, qe_id = bytes.fromhex(line.pce_id), bytes.fromhex(line.qe_id)
    ppid, manifest = line.encrypted_ppid, line.platform_manifest
    request: PckCertRequest | PckCertsRequest
    if line.raw_tcb is None:
        request = PckCertsRequest(pce_id, ppid, manifest, qe_id=qe_id)
    else:
        cpu_svn = bytes.fromhex(line.raw_tcb.cpu_svn)
        request = PckCertRequest(cpu_svn, line.raw_tcb.pce_svn, pce_id, qe_id, ppid, manifest)
    since, seen = at_most(line.since, now, field), at_most(line.last_seen, now, field)
    return Registration(request, line.state, since, bytes.fromhex(line.fmspc or ""), seen)
