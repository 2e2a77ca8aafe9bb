"""Disabling the add-on, and purging it: what is deleted, in which order, and what is taken away from nodes."""

from __future__ import annotations

from collections.abc import Callable

from confcom.cluster.object_kinds import NODE_KIND
from confcom.cluster.objects import ClusterObjects, Ref
from confcom.errors import ClusterError
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.addon_state import AddonState
from confcom.manifests.cleanup import cleanup
from confcom.manifests.objects import NAMESPACE, OURS, Object
from confcom.services.addon_deletion import Deadline, Deletions
from confcom.services.addon_memory import Memory
from confcom.services.addon_plan import HELPER_REF, NAMESPACE_REF, PLUGIN_REF, Change, removal_of, to_prune
from confcom.services.addon_rollout import Rollout
from confcom.services.addon_use import Remains, remains

CLEANUP_PATIENCE = 60.0
"""Seconds for the pods that clean nodes."""


class Removal:
    """The end of the add-on in one cluster; `version` is the program's."""

    def __init__(self, cluster: ClusterObjects, *, version: str, tell: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._version = version
        self._tell = tell
        self._deletions = Deletions(cluster, tell)

    async def plan(self, *, purge: bool) -> list[Change]:
        """What would be deleted, in this order."""
        present = await self._cluster.addon_objects(NAMESPACE, OURS)
        gone = list(reversed(list(present))) if purge else to_prune(present, ())
        changes = [removal_of(present[ref]) for ref in gone]
        namespace = await self._cluster.get(NAMESPACE_REF) if purge else None
        return changes if namespace is None else [*changes, removal_of(namespace)]

    async def run(self, memory: Memory, *, purge: bool, wait: float | None) -> bool:
        """Delete everything but what is remembered; with `purge` that too. False where there was nothing."""
        deadline = Deadline(2 * CLEANUP_PATIENCE if wait is None else wait)
        state = await memory.read()
        if state is not None and state.enabled:
            state = await memory.change(_disabled)
        refs = [change.ref for change in await self.plan(purge=purge)]
        if purge and wait is not None and state is not None and NAMESPACE_REF in refs:
            refs = await self._clean_folders(state, refs, deadline)
        for ref in refs:
            await self._deletions.delete(ref)
            if ref == HELPER_REF and state is not None and state.config.publisher == "dra":
                # Whoever holds a claim can only end while the plugin is there that made it ready.
                await self._deletions.gone([ref], deadline)
        if wait is not None:
            await self._deletions.gone(refs, deadline)
            if purge:
                await self._clean_nodes(just_ended=bool(refs))
        return bool(refs) or state is not None

    async def _clean_folders(self, state: AddonState, refs: list[Ref], deadline: Deadline) -> list[Ref]:
        """Have the nodes' folders emptied, once nobody writes there any more; gives what is still to be deleted."""
        wanted = cleanup(state.config, version=self._version)
        if not wanted:
            return refs
        users = [ref for ref in refs if ref in (HELPER_REF, PLUGIN_REF) or ref.name == wanted[0]["metadata"]["name"]]
        for ref in users:
            await self._deletions.delete(ref)
        await self._deletions.gone(users, deadline)
        await self._clean(wanted, deadline)
        return [ref for ref in refs if ref not in users]

    async def _clean(self, wanted: list[Object], deadline: Deadline) -> None:
        for one in wanted:
            await self._cluster.apply(one)
        try:
            await Rollout(self._cluster, wanted, lambda _: None).wait(min(CLEANUP_PATIENCE, deadline.left()))
            self._tell("emptied the folders of simulated nodes")
        except ClusterError as error:
            self._tell(f"could not empty the folders of simulated nodes, /var/lib/confcom: {error.message}")
        for one in wanted:
            await self._cluster.delete(Ref.of(one))

    async def _clean_nodes(self, *, just_ended: bool) -> None:
        found = remains(await self._cluster.objects(NODE_KIND))
        for left in found:
            await self._take_away(left)
        if just_ended and any(left.resources for left in found):
            self._say_what_comes_back()

    async def _take_away(self, left: Remains) -> None:
        await self._cluster.patch_node(
            left.node, marks=dict.fromkeys(left.marks), resources=dict.fromkeys(left.resources)
        )
        self._tell(f"took away from node {left.node}: {', '.join((*left.resources, *left.marks))}")

    def _say_what_comes_back(self) -> None:
        self._tell(
            "the kubelet goes on listing a plugin's resources, with 0 of them, for five minutes after its end: "
            "purge once more then, and they are gone"
        )


async def _disabled(state: AddonState | None) -> AddonState:
    return AddonState(False, "", AddonConfig()) if state is None else state._replace(enabled=False)
