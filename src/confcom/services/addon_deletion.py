"""Deleting objects of the add-on, and waiting until they are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from confcom.cluster.objects import ClusterObjects, Ref
from confcom.errors import ClusterError

LOOK = 0.5
"""Seconds between two looks at something that goes away."""


class Deadline:
    """The end of a command, `seconds` from now, by which all that it waits for has to be there or gone."""

    def __init__(self, seconds: float) -> None:
        self._end = asyncio.get_running_loop().time() + seconds

    def left(self) -> float:
        """Seconds until then; 0 when it is over."""
        return max(0.0, self._end - asyncio.get_running_loop().time())


class Deletions:
    """Deletions in one cluster; `tell` is called with a line for each, and for each wait."""

    def __init__(self, cluster: ClusterObjects, tell: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._tell = tell

    async def delete(self, ref: Ref) -> None:
        """Delete an object, if it is there."""
        if await self._cluster.delete(ref):
            self._tell(f"deleted {ref}")

    async def gone(self, refs: Sequence[Ref], deadline: Deadline) -> None:
        """Wait until all of these are gone; `ClusterError` names what is still there at the end."""
        for ref in refs:
            await self._wait(ref, deadline, or_stays=False)

    async def ended(self, ref: Ref, deadline: Deadline) -> None:
        """Wait until an object is gone, if somebody deletes it; one that stays may stay."""
        await self._wait(ref, deadline, or_stays=True)

    async def _wait(self, ref: Ref, deadline: Deadline, *, or_stays: bool) -> None:
        told = False
        while (found := await self._cluster.get(ref)) is not None:
            if or_stays and not found["metadata"].get("deletionTimestamp"):
                return
            if not deadline.left():
                raise ClusterError(f"{ref} is still being deleted", advice=f"See what holds it: {_look(ref)}")
            if not told:
                self._tell(f"waiting until {ref} is gone")
                told = True
            await asyncio.sleep(min(LOOK, deadline.left()))


def _look(ref: Ref) -> str:
    where = f" -n {ref.namespace}" if ref.namespace else ""
    return f"kubectl get {ref.kind.lower()} {ref.name}{where} -o yaml"
