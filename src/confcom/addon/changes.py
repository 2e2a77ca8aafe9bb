"""The add-on in a cluster: enabled, updated, disabled, purged, shown.

What is wanted is written to the cluster first, then applied; an interrupted command is run again. The cluster's own
record, labels on every object, says what there is, so nothing is forgotten that a lost run had made. Commands beside
each other add up: each writes the state on the condition that it is the one that it read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from confcom.addon.plan import (
    HELPER_REF,
    NAMESPACE_REF,
    PLUGIN_REF,
    STATE_REF,
    WORLD_REF,
    Change,
    Remains,
    Use,
    change_of,
    check_cluster,
    claim_holders,
    remains,
    removal_of,
    to_prune,
    uses,
)
from confcom.addon.rollout import WORKLOADS, Progress, Rollout, progress_of, trouble_of
from confcom.cluster.objects import CLAIM_KIND, NODE_KIND, POD_KIND, SLICE_KIND, ClusterObjects, Object, Ref
from confcom.errors import ClusterError, ClusterRefused, ConfigError
from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.addon_state import AddonState, parse_state, state_object
from confcom.manifests.objects import (
    COMPONENT,
    NAMESPACE,
    OURS,
    QUOTE_HELPER,
    WEBHOOK,
    namespace,
)
from confcom.manifests.simulated import WORLD_KEY, WORLD_SECRET, cleanup, world_objects
from confcom.manifests.webhook import CA_SECRET, WebhookCa
from confcom.pki.serving_pair import Authority, authorities_in, expiry_of
from confcom.protocols.admission import CONFIGURATION

# --- Where a cluster's API server is, as its own Service says: network policies have to let pods ask there ------------
#
# Plugins for the network look at a connection before or after the Service's address was replaced by that of the
# server behind it, so the ports of both count.


SERVICE = Ref("v1", "Service", "default", "kubernetes")
SERVICE_NAME = "kubernetes.io/service-name"
"""The label that says whose addresses an EndpointSlice has."""


async def ports_of_api(cluster: ClusterObjects, tell: Callable[[str], None]) -> tuple[int, ...]:
    """Every port, each once, in rising order; none where the caller may not read them, which is told."""
    try:
        service = await cluster.get(SERVICE)
        slices = await cluster.objects(SLICE_KIND, namespace=SERVICE.namespace, labels={SERVICE_NAME: SERVICE.name})
    except ClusterRefused as refused:
        tell(f"where the API server listens could not be read, so --api-ports decides: {refused.message}")
        return ()
    specs = [] if service is None else [service["spec"]]
    found = {entry.get("port") for one in (*specs, *slices) for entry in one.get("ports") or []}
    return tuple(sorted(port for port in found if isinstance(port, int)))


# --- Deleting objects of the add-on, and waiting until they are gone --------------------------------------------------


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


# --- What a cluster remembers of the add-on, changed by one run at a time: each write is conditional on w ---


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


# --- Disabling the add-on, and purging it: what is deleted, in which order, and what is taken away from nodes ---------


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


# --- The world of a simulated cluster: made once, and the same from then on, until the add-on is purged ---------------


def simulated_objects(
    now: datetime, *, secret: dict[str, Any] | None = None, machine_file: bytes | None = None
) -> list[Object]:
    """The world's objects: of the Secret in the cluster, else of a machine file, else of a new world."""
    # Here, because it brings the simulator along, and clusters with real nodes do without.
    from confcom.wiring import world_documents

    if secret is not None:
        machine_file = _content(secret)
    return world_objects(*world_documents(machine_file, now))


def _content(secret: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode((secret.get("data") or {})[WORLD_KEY], validate=True)
    except (KeyError, binascii.Error) as error:
        raise ConfigError(
            f"Secret {NAMESPACE}/{WORLD_SECRET} holds no simulated world",
            advice="Delete it to get a new world; what was attested in the old one is then worth nothing.",
        ) from error


# --- The CA of a cluster's webhook: made by the installer, kept in a Secret, and replaced before it ends --------------
#
# The API server trusts a new CA before replicas have its key, and the one before until that has expired.


CA_REF = Ref("v1", "Secret", NAMESPACE, CA_SECRET)
CONFIGURATION_KINDS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
CONFIGURATIONS = tuple(Ref("admissionregistration.k8s.io/v1", kind, "", CONFIGURATION) for kind in CONFIGURATION_KINDS)
COMMON_NAME = "confcom admission webhook"
LIFETIME = timedelta(days=3650)
RENEW = timedelta(days=365)
"""A CA that ends sooner is replaced, and stays trusted until then; one that ends later and is replaced does not."""
MAX_TRUSTED = 8
"""CAs that are trusted at a time; two, in the usual course of things."""


async def webhook_ca(cluster: ClusterObjects, now: datetime) -> WebhookCa:
    """The CA that the cluster has, or a new one where it has none that lasts."""
    secret = await cluster.get(CA_REF)
    configuration = await cluster.get(CONFIGURATIONS[0])
    entries = (configuration or {}).get("webhooks") or [{}]
    in_force = _decoded((entries[0].get("clientConfig") or {}).get("caBundle") or "")
    data = {name: _decoded(text) for name, text in ((secret or {}).get("data") or {}).items()}
    return next_ca(data, in_force, now)


def next_ca(data: Mapping[str, bytes], in_force: bytes, now: datetime) -> WebhookCa:
    """What the Secret with this `data` should hold, where the API server trusts `in_force`; pure but for keys."""
    present = Authority.parse(data.get("tls.crt", b""), data.get("tls.key", b""))
    trusted = authorities_in(data.get("ca.crt", b""))
    if present is None or present.expires - now <= RENEW:
        trusted = (*trusted, *authorities_in(in_force))
        present = new_authority(now)
    (own,) = authorities_in(present.certificate)
    ending = [one for one in trusted if one != own and _ends_soon(one, now)]
    bundle = b"".join(dict.fromkeys((own, *ending[: MAX_TRUSTED - 1])))
    return WebhookCa(present.certificate, present.key, bundle)


def new_authority(now: datetime) -> Authority:
    """A CA for the webhook's Service, and for nothing else."""
    service = f"{WEBHOOK.name}.{NAMESPACE}.svc"
    return Authority.make(COMMON_NAME, now=now, lifetime=LIFETIME, names=(service, f"{service}.cluster.local"))


def is_another(wanted: Object, present: Object | None) -> bool:
    """Whether the CA's Secret gets another CA than it has."""
    return present is None or (present.get("data") or {}).get("tls.crt") != wanted["data"]["tls.crt"]


def _ends_soon(certificate: bytes, now: datetime) -> bool:
    expires = expiry_of(certificate)
    return expires is not None and now < expires <= now + RENEW


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text)
    except (binascii.Error, ValueError):
        return b""


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
