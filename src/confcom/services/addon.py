"""The add-on in a cluster: enabled, updated, disabled, purged, shown.

What is wanted is written to the cluster first, then made so; whoever is interrupted runs the same command again. The
cluster's own record, labels on every object, says what there is, so nothing is forgotten that a lost run had made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from confcom.cluster.object_kinds import NODE_KIND, POD_KIND
from confcom.cluster.objects import ClusterObjects, Object, Ref
from confcom.errors import ClusterError, ConfigError
from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.addon_state import AddonState, parse_state, state_object
from confcom.manifests.objects import (
    ADDON,
    COMPONENT,
    DEVICE_PLUGIN,
    MANAGED_BY,
    MANAGER,
    NAMESPACE,
    PART_OF,
    QUOTE_HELPER,
)
from confcom.services.addon_plan import (
    NAMESPACE_REF,
    STATE_REF,
    WORLD_REF,
    Change,
    change_of,
    removal_of,
    to_prune,
)
from confcom.services.addon_rollout import WORKLOADS, Progress, Rollout, progress_of
from confcom.services.addon_simulation import simulated_objects
from confcom.services.addon_use import Remains, Use, remains, uses

OURS = {PART_OF: ADDON, MANAGED_BY: MANAGER}
LOOK = 0.5
"""Seconds between two looks at something that goes away."""

Tell = Callable[[str], None]
_PLUGIN_REF = Ref("apps/v1", "DaemonSet", NAMESPACE, DEVICE_PLUGIN.name)
_HELPER_REF = _PLUGIN_REF._replace(name=QUOTE_HELPER.name)
_NOT_ENABLED = 'Addon "confcom" is not enabled in this cluster.'


class Shown(NamedTuple):
    """The add-on as it is: what was decided, and how far the cluster is."""

    state: AddonState
    progress: tuple[Progress, ...]


class Addon:
    """The add-on in one cluster. `version` is the program's; `now` the time at which a new simulated world begins."""

    def __init__(self, cluster: ClusterObjects, *, version: str, now: datetime, tell: Tell) -> None:
        self._cluster = cluster
        self._version = version
        self._now = now
        self._tell = tell

    async def state(self) -> AddonState | None:
        """What the cluster remembers; None where it remembers nothing."""
        found = await self._cluster.get(STATE_REF)
        return None if found is None else parse_state(found.get("data") or {})

    async def show(self) -> Shown:
        """The enabled add-on; a `ConfigError` where it is not enabled."""
        state = await self.state()
        if state is None or not state.enabled:
            raise ConfigError(_NOT_ENABLED, advice="Enable it: confcom addon enable.")
        present = await self._cluster.addon_objects(NAMESPACE, OURS)
        workloads = [found for ref, found in present.items() if ref.kind in WORKLOADS]
        return Shown(state, tuple(progress_of(one) for one in workloads))

    async def enable(self, changes: Mapping[str, Any]) -> AddonConfig:
        """The settings with which an enable would go: remembered ones, then `changes`."""
        state = await self.state()
        return _changed(AddonConfig() if state is None else state.config, changes)

    async def update(self, changes: Mapping[str, Any]) -> AddonConfig:
        """The same for an update, which keeps what it does not mention, and needs an add-on that is enabled."""
        state = await self.state()
        if state is None or not state.enabled:
            raise ConfigError(_NOT_ENABLED, advice="Enable it, with the same options: confcom addon enable.")
        return _changed(state.config, changes)

    async def plan(self, config: AddonConfig) -> list[Change]:
        """What `make_so` would change, as the server says; nothing is written."""
        wanted = await self._wanted(config)
        has_namespace = await self._cluster.get(NAMESPACE_REF) is not None
        changes = []
        for one in wanted:
            before = await self._cluster.get(Ref.of(one))
            # What belongs into a namespace that is not there yet cannot be tried out.
            tried = has_namespace or "namespace" not in one["metadata"]
            after = await self._cluster.apply(one, dry_run=True) if tried else one
            changes.append(change_of(before, after))
        present = await self._cluster.addon_objects(NAMESPACE, OURS)
        pruned = to_prune(present, map(Ref.of, wanted))
        return changes + [removal_of(present[ref]) for ref in pruned]

    async def make_so(self, config: AddonConfig, *, wait: float | None) -> None:
        """Apply everything, delete what is no longer wanted, and wait up to `wait` seconds until all of it runs."""
        await self._gone(NAMESPACE_REF, "the namespace of an earlier add-on is still being deleted", 120)
        wanted = await self._wanted(config)
        if wait is not None and await self._cluster.get(_HELPER_REF) is not None:
            await self._plugin_first(wanted, wait)
        for one in wanted:
            await self._cluster.apply(one)
        self._tell(f"applied {len(wanted)} objects")
        present = await self._cluster.addon_objects(NAMESPACE, OURS)
        for ref in to_prune(present, map(Ref.of, wanted)):
            await self._delete(ref)
        if wait is not None:
            await Rollout(self._cluster, wanted, self._tell).wait(wait)

    async def uses(self) -> list[Use]:
        """Pods of others that use it."""
        return uses(await self._cluster.objects(POD_KIND))

    async def removals(self, *, purge: bool) -> list[Change]:
        """What a disable would delete."""
        present = await self._cluster.addon_objects(NAMESPACE, OURS)
        gone = reversed(list(present)) if purge else to_prune(present, ())
        changes = [removal_of(present[ref]) for ref in gone]
        namespace = await self._cluster.get(NAMESPACE_REF) if purge else None
        return changes if namespace is None else [*changes, removal_of(namespace)]

    async def disable(self, *, purge: bool, wait: float | None) -> bool:
        """Delete everything but what is remembered; with `purge` that too. False where there was nothing."""
        state = await self.state()
        if state is not None and state.enabled:
            await self._cluster.apply(state_object(state._replace(enabled=False)))
        changes = await self.removals(purge=purge)
        for change in changes:
            await self._delete(change.ref)
        if wait is not None:
            await self._all_gone([change.ref for change in changes], wait)
            if purge:
                await self._clean_nodes()
        return bool(changes) or state is not None

    async def _wanted(self, config: AddonConfig) -> list[Object]:
        wanted = render(config, version=self._version)
        if config.platform != "simulated":
            return wanted
        secret = await self._cluster.get(WORLD_REF)
        # Behind namespace and state, before what needs them.
        return wanted[:2] + simulated_objects(self._now, secret=secret) + wanted[2:]

    async def _plugin_first(self, wanted: Sequence[Object], wait: float) -> None:
        """Bring the device plugin up to date before the quote helper.

        While a plugin is being replaced, the kubelet turns pods away that ask for its devices.
        """
        before = [one for one in wanted if one["metadata"]["labels"][COMPONENT] != QUOTE_HELPER.component]
        for one in before:
            await self._cluster.apply(one)
        plugin = [one for one in before if Ref.of(one) == _PLUGIN_REF]
        await Rollout(self._cluster, plugin, self._tell).wait(wait)

    async def _delete(self, ref: Ref) -> None:
        if await self._cluster.delete(ref):
            self._tell(f"deleted {ref}")

    async def _all_gone(self, refs: Sequence[Ref], seconds: float) -> None:
        for ref in refs:
            await self._gone(ref, f"{ref} is still being deleted", seconds, already=True)

    async def _gone(self, ref: Ref, why: str, seconds: float, *, already: bool = False) -> None:
        """Wait for the end of an object that is being deleted; `already`: even if it does not say so."""
        async with asyncio.timeout(seconds) as limit:
            told = False
            try:
                while True:
                    found = await self._cluster.get(ref)
                    if found is None or not (already or found["metadata"].get("deletionTimestamp")):
                        return
                    if not told:
                        self._tell(f"waiting: {why}")
                        told = True
                    await asyncio.sleep(LOOK)
            except asyncio.CancelledError:
                if limit.expired():
                    raise ClusterError(
                        why, advice=f"See what holds it: kubectl get {ref.kind} {ref.name} -o yaml"
                    ) from None
                raise

    async def _clean_nodes(self) -> None:
        for left in remains(await self._cluster.objects(NODE_KIND)):
            await self._clean(left)

    async def _clean(self, left: Remains) -> None:
        await self._cluster.patch_node(
            left.node, labels=dict.fromkeys(left.labels), resources=dict.fromkeys(left.resources)
        )
        self._tell(f"took away from node {left.node}: {', '.join((*left.resources, *left.labels))}")


def _changed(config: AddonConfig, changes: Mapping[str, Any]) -> AddonConfig:
    try:
        found = msgspec.convert(msgspec.structs.asdict(config) | dict(changes), AddonConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"settings of the add-on: {error}") from error
    found.check()
    return found
