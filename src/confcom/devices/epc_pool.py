"""The pool of EPC that a node offers, in whole MiB: sizes, reserve, overcommit, ids, and which units go together.

The pool is planned from what was found; it is the only place that turns bytes of EPC into units. Each unit's id is four
characters of a fixed alphabet: the NUMA node, then the unit's number there. So an id means the same after every
restart, and the kubelet's books stay right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from confcom.devices.epc_sections import MIB, EpcSection
from confcom.errors import ConfigError

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
ID_LENGTH = 4
MAX_UNITS_PER_NODE = 64**3
_NOWHERE = 63
"""The first character's value for EPC of an unknown node; nodes from 63 on count as unknown."""


@dataclass(frozen=True, slots=True)
class PoolSection:
    """EPC of one NUMA node: what is there, and what of it may be requested, in MiB."""

    numa_node: int | None
    true_mib: int
    units: int

    @property
    def ids(self) -> tuple[str, ...]:
        """One id per unit, in order."""
        if self.units > MAX_UNITS_PER_NODE:
            raise ConfigError(
                f"{self.units} units of one NUMA node are more than ids of {ID_LENGTH} characters can name"
            )
        head = ALPHABET[_NOWHERE if self.numa_node is None else self.numa_node]
        return tuple(
            head + ALPHABET[number >> 12] + ALPHABET[number >> 6 & 63] + ALPHABET[number & 63]
            for number in range(self.units)
        )


@dataclass(frozen=True, slots=True)
class EpcPool:
    """All of it. `reserve_mib` was taken away before the overcommit ratio was applied."""

    sections: tuple[PoolSection, ...]
    reserve_mib: int = 0
    overcommit: float = 1.0

    @property
    def true_mib(self) -> int:
        """MiB that the node has."""
        return sum(section.true_mib for section in self.sections)

    @property
    def units(self) -> int:
        """MiB that may be requested."""
        return sum(section.units for section in self.sections)

    def without(self, held: Mapping[int | None, int]) -> EpcPool:
        """The same, less the units per NUMA node that are in use by other ways."""
        left = [replace(one, units=max(0, one.units - held.get(one.numa_node, 0))) for one in self.sections]
        return replace(self, sections=tuple(left))


def numa_node_of(unit: str) -> int | None:
    """The NUMA node that a unit's id names; None for EPC of an unknown node."""
    number = ALPHABET.index(unit[:1])
    return None if number == _NOWHERE else number


def plan_pool(found: Iterable[EpcSection], *, reserve_mib: int = 0, overcommit: float = 1.0) -> EpcPool:
    """Take the reserve from the first node that has it, then the next; the rest times the ratio, rounded down."""
    per_node: Counter[int | None] = Counter()
    for section in found:
        known = section.numa_node is not None and section.numa_node < _NOWHERE
        per_node[section.numa_node if known else None] += section.size
    ratio = Fraction(str(overcommit))
    sections, owed = [], reserve_mib
    for node, size in per_node.items():
        true_mib = size // MIB
        held = min(owed, true_mib)
        owed -= held
        sections.append(PoolSection(node, true_mib, int((true_mib - held) * ratio)))
    return EpcPool(tuple(sections), reserve_mib, overcommit)


def prefer_one_node(available: Sequence[str], must_include: Sequence[str], size: int) -> tuple[str, ...]:
    """Which `size` of the available ids a container should get: from one NUMA node if one has enough.

    Of several such nodes the one that `must_include` is from, then the fullest, which leaves the large holes for large
    requests. If none has enough, as few nodes as possible. Fewer than `size` come back only if there are fewer.
    """
    chosen = dict.fromkeys(must_include)
    free: dict[str, list[str]] = {}
    for unit in sorted(set(available) - chosen.keys()):
        free.setdefault(unit[:1], []).append(unit)
    started = {unit[:1] for unit in chosen}
    while len(chosen) < size and free:
        missing = size - len(chosen)
        node = min(free, key=lambda name: _cost(name in started, len(free[name]), missing, name))
        chosen |= dict.fromkeys(free.pop(node)[:missing])
    return tuple(chosen)


def _cost(started: bool, free: int, missing: int, name: str) -> tuple[bool, bool, int, str]:
    enough = free >= missing
    return (not enough, not started, free if enough else -free, name)
