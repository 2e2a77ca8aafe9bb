"""When a container is over its EPC: each episode is told once, however long it lasts and however it wavers; pure.

An episode begins when a container has been over for `patience` seconds without a break, and ends when it has been back
within its request for as long, or is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from confcom.protocols.epc_pods import EpcPod
from confcom.protocols.epc_requests import CANONICAL, MIB
from confcom.services.epc_use import ContainerUse


class Kind(StrEnum):
    """What is wrong with a container's use."""

    OVER_LIMIT = "over-limit"
    NO_REQUEST = "no-request"


@dataclass(frozen=True, slots=True)
class Episode:
    """A container that is to be told of."""

    kind: Kind
    pod: EpcPod
    row: ContainerUse


@dataclass(slots=True)
class _State:
    kind: Kind
    since: float
    told: bool = False
    quiet_since: float | None = None


class Episodes:
    """`tolerance` is a share of the request that may be exceeded; `patience` in seconds."""

    def __init__(self, *, tolerance: float, patience: float) -> None:
        self._tolerance = tolerance
        self._patience = patience
        self._states: dict[tuple[str, str], _State] = {}

    def step(self, rows: Iterable[ContainerUse], now: float) -> list[Episode]:
        """Take a look at the containers, and say whose episodes begin. `now` is of a monotonic clock."""
        begun = []
        present = {key: row for row in rows if (key := _key(row)) is not None}
        for key in self._states.keys() - present.keys():
            del self._states[key]
        for key, row in present.items():
            kind = self.judge(row)
            if kind is None:
                self._quiet(key, now)
            elif self._loud(key, kind, now) and row.pod is not None:
                begun.append(Episode(kind, row.pod, row))
        return begun

    def judge(self, row: ContainerUse) -> Kind | None:
        """What is wrong with a container at this moment; None if nothing is, or that cannot be told."""
        if not row.judged or row.pod is None:
            return None
        if row.requested is None:
            return Kind.NO_REQUEST if row.counted else None
        return Kind.OVER_LIMIT if row.counted > row.requested * (1 + self._tolerance) else None

    def lasts(self, row: ContainerUse) -> bool:
        """Whether the container is in an episode that was told."""
        key = _key(row)
        state = None if key is None else self._states.get(key)
        return state is not None and state.told

    def _loud(self, key: tuple[str, str], kind: Kind, now: float) -> bool:
        state = self._states.get(key)
        if state is None or state.kind is not kind:
            state = self._states[key] = _State(kind, now)
        state.quiet_since = None
        if state.told or now - state.since < self._patience:
            return False
        state.told = True
        return True

    def _quiet(self, key: tuple[str, str], now: float) -> None:
        state = self._states.get(key)
        if state is None:
            return
        if state.quiet_since is None:
            state.quiet_since = now
        if not state.told or now - state.quiet_since >= self._patience:
            del self._states[key]


def explain(episode: Episode, *, node: str, exact: bool) -> str:
    """What happened, with the figures, and what to do, in a few sentences."""
    row = episode.row
    what = "in EPC" if exact else "of enclave memory mapped"
    has = f"Container {row.container} has {_mib(row.counted)} {what}"
    if episode.kind is Kind.NO_REQUEST:
        return (
            f"{has} on node {node} and requests no EPC, so the scheduler does not count it. "
            f"Set a limit of {CANONICAL} of at least {_whole_mib(row.counted)}."
        )
    size = _whole_mib(row.counted)
    raised = f"capacity epc of its claim to {size}Mi" if _claims(episode) else f"limit {CANONICAL} to {size}"
    return (
        f"{has} on node {node} and requested {_mib(row.requested or 0)}. All enclaves of the node share its EPC: more "
        f"than was requested slows all of them down. Raise the {raised}, or make the enclave smaller."
    )


def _claims(episode: Episode) -> bool:
    """Whether the container has its EPC through claims alone."""
    return any(
        one.name == episode.row.container and one.claims and one.requested is None for one in episode.pod.containers
    )


def _key(row: ContainerUse) -> tuple[str, str] | None:
    return (row.pod.uid, row.id) if row.pod is not None and row.id else None


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}".removesuffix(".0") + " MiB"


def _whole_mib(size: int) -> int:
    return -(-size // MIB)
