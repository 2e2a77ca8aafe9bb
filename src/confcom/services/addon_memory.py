"""What a cluster remembers of the add-on, changed by one run at a time: each write is conditional on what was read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from confcom.cluster.objects import ClusterObjects, Object
from confcom.errors import ClusterError, ClusterRefused
from confcom.manifests.addon_state import AddonState, parse_state, state_object
from confcom.services.addon_plan import STATE_REF

CONFLICT = 409
"""`ClusterRefused.status` of a write that came too late, or of a second object of the same name."""
ATTEMPTS = 8


class Memory:
    """The add-on's state in one cluster."""

    def __init__(self, cluster: ClusterObjects) -> None:
        self._cluster = cluster

    async def read(self) -> AddonState | None:
        """What the cluster remembers; None where it remembers nothing."""
        return _state(await self._cluster.get(STATE_REF))

    async def change(self, settle: Callable[[AddonState | None], Awaitable[AddonState]]) -> AddonState:
        """Write what `settle` makes of the state, and of the latest one again if another run was faster."""
        for _ in range(ATTEMPTS):
            found = await self._cluster.get(STATE_REF)
            wanted = await settle(_state(found))
            written = state_object(wanted)
            try:
                if found is None:
                    # Empty, since only one of two runs can create it. What it holds is written next.
                    await self._cluster.create({name: one for name, one in written.items() if name != "data"})
                    continue
                version = found["metadata"]["resourceVersion"]
                await self._cluster.apply(written | {"metadata": written["metadata"] | {"resourceVersion": version}})
            except ClusterRefused as refused:
                if refused.status != CONFLICT:
                    raise
                continue
            return wanted
        raise ClusterError(
            "other runs change the settings of the add-on at the same time", advice="Run the command again."
        )


def _state(found: Object | None) -> AddonState | None:
    return None if found is None else parse_state(found.get("data") or {})
