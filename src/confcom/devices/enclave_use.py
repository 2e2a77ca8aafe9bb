"""How much enclave memory each container's processes map; pure.

Linux counts no EPC per process or container. What it shows is which addresses a process has mapped from the SGX driver;
that is an upper bound of the EPC in use: a page may never have been added, or be paged out. It is the bound that a
limit can be held against, because every one of these pages may be used at any moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from confcom.devices.process_cgroup import CgroupOwner
from confcom.devices.process_maps import Range, merge, size, subtract


@dataclass(frozen=True, slots=True)
class EnclaveProcess:
    """A process with enclave memory. `image` tells programs apart (`process_maps.program_image`).

    `usable` are the addresses that it may use, `reserved` those that are only kept free for its enclave.
    """

    pid: int
    parent: int
    owner: CgroupOwner
    image: tuple[int, ...]
    usable: tuple[Range, ...]
    reserved: tuple[Range, ...] = ()


@dataclass(frozen=True, slots=True)
class EnclaveUse:
    """Bytes of enclave memory of one owner, and how many processes have some."""

    mapped: int
    reserved: int
    processes: int


def count_use(processes: Iterable[EnclaveProcess]) -> Mapping[CgroupOwner, EnclaveUse]:
    """Add up per owner; each address once, and what fork() handed down only at the parent.

    A child that was forked has its parent's enclaves at the same addresses, and they are the same pages of EPC. A
    program that was started anew may have another enclave at equal addresses; it is known by its stack's place. Where
    that cannot be told, the child counts in full: the sum stays an upper bound.
    """
    found = list(processes)
    by_pid = {process.pid: process for process in found}
    sums: dict[CgroupOwner, tuple[int, int, int]] = {}
    for process in found:
        parent = by_pid.get(process.parent)
        inherited: tuple[Range, ...] = ()
        if parent is not None and process.image and parent.image == process.image and parent.owner == process.owner:
            inherited = (*parent.usable, *parent.reserved)
        usable = subtract(process.usable, inherited)
        reserved = subtract(process.reserved, (*inherited, *merge(process.usable)))
        mapped, kept, count = sums.get(process.owner, (0, 0, 0))
        sums[process.owner] = (mapped + size(usable), kept + size(reserved), count + 1)
    return {owner: EnclaveUse(*numbers) for owner, numbers in sums.items()}
