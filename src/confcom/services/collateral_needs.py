"""Which documents the FMSPCs of a collateral service need, to be ready and to be kept fresh."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from confcom.collateral.documents import DocumentKey, DocumentKind, keys_for
from confcom.collateral.store import CollateralStore
from confcom.protocols.pcs import PckCaName, Tee, Update


@dataclass(frozen=True, slots=True)
class Need:
    """The documents that judge quotes of an FMSPC. `firm` says that it was configured, or that a platform has it."""

    tee: Tee
    fmspc: bytes
    keys: tuple[DocumentKey, ...]
    firm: bool


def needs_of(
    documents: Iterable[DocumentKey],
    platforms: Iterable[tuple[Tee, bytes, PckCaName]],
    configured: Sequence[tuple[Tee, bytes]],
) -> tuple[Need, ...]:
    """What the configured FMSPCs, those of known platforms and those of TCB infos in the store need."""
    known, present = sorted(set(platforms)), list(documents)
    listed = {key.ca for key in present if key.ca is not None}
    firm: set[tuple[Tee, bytes, Update]] = {(tee, fmspc, "standard") for tee, fmspc, _ in known}
    firm |= {(tee, fmspc, "standard") for tee, fmspc in configured}
    asked: set[tuple[Tee, bytes, Update]] = {
        (key.tee or "sgx", key.fmspc or b"", "standard" if key.update is None else key.update)
        for key in present
        # Intel takes numbered sets off its service one day: what was asked for once need not stay fresh.
        if key.kind is DocumentKind.TCB_INFO and not isinstance(key.update, int)
    }
    found = []
    for tee, fmspc, update in sorted(firm | asked, key=str):
        own: list[PckCaName] = [ca for of_tee, of, ca in known if (of_tee, of) == (tee, fmspc)]
        # Of an FMSPC alone nobody knows the CA; servers have the platform CA.
        cas: Sequence[PckCaName] = own or sorted(listed) or ("platform",)
        found.append(Need(tee, fmspc, _keys(tee, fmspc, cas, update), (tee, fmspc, update) in firm))
    return tuple(found)


def needs_in(store: CollateralStore, configured: Sequence[tuple[Tee, bytes]]) -> tuple[Need, ...]:
    """The needs of what a store holds (a call that blocks)."""
    return needs_of(store.document_keys(), store.platforms.kinds(), configured)


def _keys(tee: Tee, fmspc: bytes, cas: Iterable[PckCaName], update: Update) -> tuple[DocumentKey, ...]:
    return tuple(dict.fromkeys(key for ca in cas for key in keys_for(fmspc, ca, tee, update)))
