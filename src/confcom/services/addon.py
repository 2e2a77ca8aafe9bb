"""The add-on in a cluster: enabled, updated, disabled, purged, shown.

What is wanted is written to the cluster first, then applied; an interrupted command is run again. The cluster's own
record, labels on every object, says what there is, so nothing is forgotten that a lost run had made. Commands beside
each other add up: each writes the state on the condition that it is the one that it read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from confcom.cluster.object_kinds import CLAIM_KIND, POD_KIND
from confcom.cluster.objects import ClusterObjects, Object, Ref
from confcom.errors import ClusterError, ConfigError
from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.addon_state import AddonState
from confcom.manifests.namespace import namespace
from confcom.manifests.objects import (
    COMPONENT,
    NAMESPACE,
    OURS,
    QUOTE_HELPER,
)
from confcom.services.addon_api_server import ports_of_api
from confcom.services.addon_deletion import Deadline, Deletions
from confcom.services.addon_memory import Memory
from confcom.services.addon_plan import (
    HELPER_REF,
    NAMESPACE_REF,
    PLUGIN_REF,
    STATE_REF,
    WORLD_REF,
    Change,
    change_of,
    removal_of,
    to_prune,
)
from confcom.services.addon_removal import Removal
from confcom.services.addon_requirements import check_cluster
from confcom.services.addon_rollout import WORKLOADS, Progress, Rollout, progress_of
from confcom.services.addon_simulation import simulated_objects
from confcom.services.addon_trouble import trouble_of
from confcom.services.addon_use import Use, claim_holders, uses
from confcom.services.addon_webhook_ca import CA_REF, CONFIGURATIONS, is_another, webhook_ca

PATIENCE = 120.0
"""Seconds to wait for what has to be gone before anything can be made, where no time is given."""

Tell = Callable[[str], None]
Settle = Callable[[AddonState | None], AddonConfig]
"""Settings from what is remembered; it is called again if another run has changed that."""
_NOT_ENABLED = 'Addon "confcom" is not enabled in this cluster.'


class Shown(NamedTuple):
    """The add-on as it is: what was decided, how far the cluster is, and which pods wait for what."""

    state: AddonState
    progress: tuple[Progress, ...]
    waiting: tuple[str, ...] = ()


def to_enable(changes: Mapping[str, Any], state: AddonState | None) -> AddonConfig:
    """The settings with which an enable goes: remembered ones, then `changes`."""
    return (AddonConfig() if state is None else state.config).changed(changes)


def to_update(changes: Mapping[str, Any], state: AddonState | None) -> AddonConfig:
    """The same for an update, which keeps what it does not mention, and needs an add-on that is enabled."""
    if state is None or not state.enabled:
        raise ConfigError(_NOT_ENABLED, advice="Enable it, with the same options: confcom addon enable.")
    return state.config.changed(changes)


class Addon:
    """The add-on in one cluster. `version` is the program's; `now` the time at which a new simulated world begins."""

    def __init__(self, cluster: ClusterObjects, *, version: str, now: datetime, tell: Tell) -> None:
        self._cluster = cluster
        self._version = version
        self._now = now
        self._tell = tell
        self._memory = Memory(cluster)
        self._deletions = Deletions(cluster, tell)
        self._removal = Removal(cluster, version=version, tell=tell)

    async def state(self) -> AddonState | None:
        """What the cluster remembers; None where it remembers nothing."""
        return await self._memory.read()

    async def show(self) -> Shown:
        """The enabled add-on; a `ConfigError` where it is not enabled."""
        state = await self.state()
        if state is None or not state.enabled:
            raise ConfigError(_NOT_ENABLED, advice="Enable it: confcom addon enable.")
        present = await self._cluster.addon_objects(NAMESPACE, OURS)
        workloads = [found for ref, found in present.items() if ref.kind in WORKLOADS]
        pods = await self._cluster.objects(POD_KIND, namespace=NAMESPACE)
        waiting = [trouble.sentence() for pod in pods if (trouble := trouble_of(pod)) is not None]
        return Shown(state, tuple(progress_of(one) for one in workloads), tuple(waiting))

    async def plan(self, config: AddonConfig) -> list[Change]:
        """What `change` would do, as the server says; nothing is written."""
        await check_cluster(self._cluster, config)
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

    async def change(self, settle: Settle, *, wait: float | None) -> AddonConfig:
        """Remember what `settle` makes of the settings, apply everything, and delete what is no longer wanted.

        Waits up to `wait` seconds for all of it, until all of it runs; with None, for what is in the way alone. A run
        beside another one goes on with the settings that were written last, which have those of both.
        """
        deadline = Deadline(PATIENCE if wait is None else wait)
        config = settle(await self.state())
        await check_cluster(self._cluster, config)
        await self._deletions.ended(NAMESPACE_REF, deadline)
        if await self._cluster.get(NAMESPACE_REF) is None:
            await self._apply_one(namespace(), deadline)
        state = await self._memory.change(partial(self._settled, settle, deadline))
        while True:
            wanted = await self._wanted(state.config)
            await self._apply([one for one in wanted if Ref.of(one) != STATE_REF], deadline, wait=wait is not None)
            latest = await self.state()
            if latest == state:
                break
            if latest is None or not latest.enabled:
                raise ClusterError("another run disabled the add-on meanwhile", advice="Run the command again.")
            self._tell("another run changed the settings meanwhile: going on with those")
            state = latest
        self._tell(f"applied {len(wanted)} objects")
        present = await self._cluster.addon_objects(NAMESPACE, OURS)
        for ref in to_prune(present, map(Ref.of, wanted)):
            await self._deletions.delete(ref)
        if wait is not None:
            await Rollout(self._cluster, wanted, self._tell).wait(deadline.left())
        return state.config

    async def _settled(self, settle: Settle, deadline: Deadline, before: AddonState | None) -> AddonState:
        config = settle(before)
        await self._leave_dra(before, config, deadline)
        return AddonState(enabled=True, version=self._version, config=config)

    async def uses(self) -> list[Use]:
        """Pods of others that use it."""
        pods = await self._cluster.objects(POD_KIND)
        return uses(pods, claim_holders(await self._cluster.objects(CLAIM_KIND)))

    async def removals(self, *, purge: bool) -> list[Change]:
        """What a disable would delete."""
        return await self._removal.plan(purge=purge)

    async def disable(self, *, purge: bool, wait: float | None) -> bool:
        """Delete everything but what is remembered; with `purge` that too. False where there was nothing."""
        return await self._removal.run(self._memory, purge=purge, wait=wait)

    async def _wanted(self, config: AddonConfig) -> list[Object]:
        ports = await ports_of_api(self._cluster, self._tell)
        ca = await webhook_ca(self._cluster, self._now) if config.webhook else None
        wanted = render(config, version=self._version, api_ports=ports, webhook_ca=ca)
        if config.platform != "simulated":
            return wanted
        secret = await self._cluster.get(WORLD_REF)
        # Behind namespace and state, before what needs them.
        return wanted[:2] + simulated_objects(self._now, secret=secret) + wanted[2:]

    async def _leave_dra(self, state: AddonState | None, config: AddonConfig, deadline: Deadline) -> None:
        """Where EPC was published by claims and no longer shall be, end those who hold some first.

        A pod with a claim cannot end when nobody on its node knows the claim's driver any more.
        """
        if state is None or state.config.publisher != "dra" or config.publisher == "dra":
            return
        holders = [use for use in await self.uses() if use.claims]
        if holders:
            raise ConfigError(
                f"{len(holders)} pods hold claims of EPC, which only --publisher dra can end: {holders[0]}",
                advice="Delete these pods first; `confcom addon disable --dry-run` names all of them.",
            )
        helper = await self._cluster.get(HELPER_REF)
        if helper is not None and helper["spec"]["template"]["spec"].get("resourceClaims"):
            await self._deletions.delete(HELPER_REF)
            self._tell("the quote helper of an earlier version ends first: it holds a claim")
            await self._deletions.gone([HELPER_REF], deadline)

    async def _apply(self, wanted: Sequence[Object], deadline: Deadline, *, wait: bool) -> None:
        """Apply each once; where a device plugin is there already, the quote helper's when the new one runs.

        While a plugin is being replaced, the kubelet turns pods away that ask for its devices.
        """
        await self._trust_first(wanted, deadline)
        replaces = wait and await self._cluster.get(PLUGIN_REF) is not None
        later = [one for one in wanted if replaces and one["metadata"]["labels"][COMPONENT] == QUOTE_HELPER.component]
        for one in wanted:
            if one not in later:
                await self._apply_one(one, deadline)
        if later:
            plugin = [one for one in wanted if Ref.of(one) == PLUGIN_REF]
            await Rollout(self._cluster, plugin, self._tell).wait(deadline.left())
        for one in later:
            await self._apply_one(one, deadline)

    async def _trust_first(self, wanted: Sequence[Object], deadline: Deadline) -> None:
        """Where the webhook gets another CA, have the API server trust it before a replica can use it."""
        secrets = [one for one in wanted if Ref.of(one) == CA_REF]
        if not secrets or not is_another(secrets[0], await self._cluster.get(CA_REF)):
            return
        for one in wanted:
            if Ref.of(one) in CONFIGURATIONS and await self._cluster.get(Ref.of(one)) is not None:
                await self._apply_one(one, deadline)

    async def _apply_one(self, one: Object, deadline: Deadline) -> None:
        applied = await self._cluster.apply(one)
        if applied["metadata"].get("deletionTimestamp"):
            # What an earlier change deleted takes as long as its pods do, and takes what was applied along.
            await self._deletions.gone([Ref.of(one)], deadline)
            await self._cluster.apply(one)
