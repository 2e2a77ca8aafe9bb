"""Enables, updates, shows, disables and purges the add-on in a cluster.

Every command first writes the wanted settings to the cluster, then applies them, so an interrupted command can be run
again. Labels on every object are the record of what exists, so a prune also finds what an interrupted run made.
Commands that run at the same time add up: each writes the settings on the condition that they are the ones it read.
"""

from __future__ import annotations

import asyncio
import binascii
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from confcom.addon.plan import (
    HELPER_REF,
    KEPT,
    NAMESPACE_REF,
    PLUGIN_REF,
    STATE_REF,
    WORLD_REF,
    Change,
    Use,
    change_of,
    check_cluster,
    claim_holders,
    refuse_other_metrics,
    remains,
    removal_of,
    to_prune,
    uses,
)
from confcom.addon.rollout import WORKLOADS, Progress, Report, Rollout, problem_of, progress_of
from confcom.cluster.client import (
    API_SERVICE_KIND,
    CLAIM_KIND,
    MONITORING_KINDS,
    NODE_KIND,
    POD_KIND,
    SLICE_KIND,
    ClusterObjects,
    Object,
    Ref,
)
from confcom.errors import ClusterError, ClusterRefused, ConfigError
from confcom.manifests import metrics
from confcom.manifests.addon import AddonState, Issuer, issuers, parse_state, render, state_object
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import (
    CLEANUP,
    COMPONENT,
    METRICS_API,
    NAMESPACE,
    OURS,
    QUOTE_HELPER,
    IssuingCa,
    namespace,
)
from confcom.manifests.simulated import WORLD_KEY, WORLD_SECRET, cleanup, world_objects
from confcom.manifests.webhook import CA_SECRET
from confcom.pki.serving_pair import Authority, authorities_in, expiry_of
from confcom.protocols.admission import CONFIGURATION

CONFLICT = 409
"""`ClusterRefused.status` of a conditional write that came too late, or of a second object of the same name."""
ATTEMPTS = 8
"""Conditional writes of the settings before a command gives up."""
LOOK = 0.5
"""Seconds between two reads of an object that is being deleted."""
PATIENCE = 120.0
"""Seconds to wait for deletions that a command depends on, where no time is given."""
METRICS_API_REF = Ref("apps/v1", "Deployment", NAMESPACE, METRICS_API.name)
CLEANUP_REF = Ref("apps/v1", "DaemonSet", NAMESPACE, CLEANUP.name)
CLEANUP_PATIENCE = 60.0
"""Seconds for the pods that clean nodes."""

SERVICE = Ref("v1", "Service", "default", "kubernetes")
"""The API server, as clusters publish it to their pods."""
SERVICE_NAME = "kubernetes.io/service-name"
"""Label of an EndpointSlice: the Service that it belongs to."""

Settle = Callable[[AddonState | None], AddonConfig]
"""Computes the settings from the remembered ones. It is called again if another run has changed those."""
_NOT_ENABLED = 'Addon "confcom" is not enabled in this cluster.'


class Shown(NamedTuple):
    """The add-on as it is: its settings, the progress of each workload, and a sentence for each pod that waits."""

    state: AddonState
    progress: tuple[Progress, ...]
    waiting: tuple[str, ...] = ()


class Deadline:
    """A point in time `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self._end = asyncio.get_running_loop().time() + seconds

    def left(self) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self._end - asyncio.get_running_loop().time())


def to_enable(changes: Mapping[str, Any], state: AddonState | None) -> AddonConfig:
    """Settings of an enable: the remembered ones with `changes`."""
    return (AddonConfig() if state is None else state.config).changed(changes)


def to_update(changes: Mapping[str, Any], state: AddonState | None) -> AddonConfig:
    """Settings of an update: the same, but the add-on must be enabled."""
    if state is None or not state.enabled:
        raise ConfigError(_NOT_ENABLED, advice="Enable it, with the same options: confcom addon enable.")
    return state.config.changed(changes)


class Addon:
    """The add-on in one cluster.

    `version` is the program's, `now` the time at which a new simulated world or CA begins. `report` receives a line for
    each deletion and for each wait.
    """

    def __init__(self, cluster: ClusterObjects, *, version: str, now: datetime, report: Report) -> None:
        self._cluster = cluster
        self._version = version
        self._now = now
        self._report = report

    async def state(self) -> AddonState | None:
        """What the cluster remembers; None where it remembers nothing."""
        return _state(await self._cluster.get(STATE_REF))

    async def show(self) -> Shown:
        """The enabled add-on; a `ConfigError` where it is not enabled."""
        state = await self.state()
        if state is None or not state.enabled:
            raise ConfigError(_NOT_ENABLED, advice="Enable it: confcom addon enable.")
        present = await self._present()
        workloads = [found for ref, found in present.items() if ref.kind in WORKLOADS]
        pods = await self._cluster.objects(POD_KIND, namespace=NAMESPACE)
        waiting = [problem.sentence() for pod in pods if (problem := problem_of(pod)) is not None]
        return Shown(state, tuple(progress_of(one) for one in workloads), tuple(waiting))

    async def uses(self) -> list[Use]:
        """Pods outside the add-on that use it."""
        pods = await self._cluster.objects(POD_KIND)
        return uses(pods, claim_holders(await self._cluster.objects(CLAIM_KIND)))

    async def plan(self, config: AddonConfig) -> list[Change]:
        """What `change` would do, by the server's dry run; nothing is written."""
        await check_cluster(self._cluster, config)
        wanted = await self._wanted(config)
        has_namespace = await self._cluster.get(NAMESPACE_REF) is not None
        changes = []
        for one in wanted:
            before = await self._cluster.get(Ref.of(one))
            # The server refuses a dry run of objects in a namespace that does not exist yet.
            tried = has_namespace or "namespace" not in one["metadata"]
            after = await self._cluster.apply(one, dry_run=True) if tried else one
            changes.append(change_of(before, after))
        present = await self._present()
        return changes + [removal_of(present[ref]) for ref in to_prune(present, map(Ref.of, wanted))]

    async def change(self, settle: Settle, *, wait: float | None) -> AddonConfig:
        """Remember what `settle` makes of the settings, apply everything, delete what is no longer wanted.

        Waits up to `wait` seconds until all of it runs; with None only for deletions in the way. If another run changes
        the settings meanwhile, this one goes on with those, which include its own.
        """
        deadline = Deadline(PATIENCE if wait is None else wait)
        config = settle(await self.state())
        await check_cluster(self._cluster, config)
        await self._gone(NAMESPACE_REF, deadline, only_if_deleted=True)
        if await self._cluster.get(NAMESPACE_REF) is None:
            await self._apply_one(namespace(), deadline)
        state = await self._remember(settle, deadline)
        while True:
            wanted = await self._wanted(state.config)
            await self._apply([one for one in wanted if Ref.of(one) != STATE_REF], deadline, wait=wait is not None)
            latest = await self.state()
            if latest == state:
                break
            if latest is None or not latest.enabled:
                raise ClusterError("another run disabled the add-on meanwhile", advice="Run the command again.")
            self._report("another run changed the settings meanwhile: going on with those")
            state = latest
        self._report(f"applied {len(wanted)} objects")
        present = await self._present()
        unwanted = to_prune(present, map(Ref.of, wanted))
        for ref in unwanted:
            await self._delete(ref)
        if unwanted:
            self._report_kept(present.keys() - {Ref.of(one) for one in wanted})
        await self._disown(present)
        if wait is not None:
            await Rollout(self._cluster, wanted, self._report).wait(deadline.left())
        return state.config

    async def removals(self, *, purge: bool) -> list[Change]:
        """What a disable deletes, in this order."""
        present = await self._present()
        gone = list(reversed(list(present))) if purge else to_prune(present, ())
        changes = [removal_of(present[ref]) for ref in gone]
        namespace = await self._cluster.get(NAMESPACE_REF) if purge else None
        return changes if namespace is None else [*changes, removal_of(namespace)]

    async def disable(self, *, purge: bool, wait: float | None) -> bool:
        """Delete everything but what is remembered; with `purge` that too. False where there was nothing."""
        deadline = Deadline(2 * CLEANUP_PATIENCE if wait is None else wait)
        state = await self.state()
        if state is not None and state.enabled:
            state = await self._remember(None, deadline)
        refs = [change.ref for change in await self.removals(purge=purge)]
        if not purge:
            self._report_kept(await self._present())
        if purge and wait is not None and state is not None and NAMESPACE_REF in refs:
            refs = await self._clean_folders(state, refs, deadline)
        for ref in refs:
            await self._delete_before_others(ref, deadline)
            if ref == HELPER_REF and state is not None and state.config.publisher == "dra":
                # A pod with a claim can only end while the plugin that prepared the claim is there.
                await self._gone(ref, deadline)
        if wait is not None:
            for ref in refs:
                await self._gone(ref, deadline)
            if purge:
                await self._clean_nodes(just_ended=bool(refs))
        return bool(refs) or state is not None

    async def clean_nodes(self, *, wait: float) -> None:
        """End the node components and clean the nodes, for the Helm chart; other objects stay.

        Its DaemonSet that empties the folders of simulated nodes has to be ready first, where there is one.
        """
        deadline = Deadline(wait)
        for ref in (HELPER_REF, PLUGIN_REF):
            await self._delete(ref)
            await self._gone(ref, deadline)
        while (found := await self._cluster.get(CLEANUP_REF)) is not None:
            progress = progress_of(found)
            if progress.settled:
                break
            if not deadline.left():
                raise ClusterError(f"the folders of simulated nodes are not empty yet: {progress}")
            await asyncio.sleep(min(LOOK, deadline.left()))
        await self._clean_nodes(just_ended=False)

    async def publish_root(self, machine_file: bytes) -> None:
        """Write the root of a simulated world to its ConfigMap."""
        _, root = simulated_objects(self._now, machine_file=machine_file)
        await self._cluster.apply(root)

    async def _remember(self, settle: Settle | None, deadline: Deadline) -> AddonState:
        """Write the settings of an enabled add-on, or that it is disabled; again if another run was faster."""
        for _ in range(ATTEMPTS):
            found = await self._cluster.get(STATE_REF)
            before = _state(found)
            if settle is None:
                wanted = AddonState(False, "", AddonConfig()) if before is None else before._replace(enabled=False)
            else:
                wanted = AddonState(enabled=True, version=self._version, config=settle(before))
                await self._leave_dra(before, wanted.config, deadline)
            written = state_object(wanted)
            try:
                if found is None:
                    # Empty, since only one of two runs can create it. The next attempt writes its content.
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

    async def _wanted(self, config: AddonConfig) -> list[Object]:
        ports = await self._ports_of_api()
        cas = await issuing_cas(self._cluster, config, self._now)
        operator = await self._has_operator(config)
        wanted = render(config, version=self._version, api_ports=ports, cas=cas, prometheus_operator=operator)
        if config.platform != "simulated":
            return wanted
        secret = await self._cluster.get(WORLD_REF)
        # After namespace and state, before what needs them.
        return wanted[:2] + simulated_objects(self._now, secret=secret) + wanted[2:]

    async def _has_operator(self, config: AddonConfig) -> bool:
        """Whether the cluster has the Prometheus operator's kinds; a `ConfigError` if they are wanted and absent."""
        lacking = [kind.name for kind in MONITORING_KINDS if not await self._cluster.knows(kind, NAMESPACE)]
        if lacking and config.monitoring == "operator":
            raise ConfigError(
                f"--monitoring operator: the cluster does not know the kinds {', '.join(lacking)}",
                advice="Install the Prometheus operator, or choose --monitoring annotations.",
            )
        return not lacking

    async def _ports_of_api(self) -> tuple[int, ...]:
        """Ports of the API server's Service and of its endpoints, for network policies; reported if not readable.

        Network plugins judge a connection before or after the Service's address is replaced by an endpoint's.
        """
        try:
            service = await self._cluster.get(SERVICE)
            labels = {SERVICE_NAME: SERVICE.name}
            slices = await self._cluster.objects(SLICE_KIND, namespace=SERVICE.namespace, labels=labels)
        except ClusterRefused as refused:
            self._report(f"cannot read where the API server listens, so --api-ports decides: {refused.message}")
            return ()
        specs = [] if service is None else [service["spec"]]
        found = {entry.get("port") for one in (*specs, *slices) for entry in one.get("ports") or []}
        return tuple(sorted(port for port in found if isinstance(port, int)))

    async def _leave_dra(self, state: AddonState | None, config: AddonConfig, deadline: Deadline) -> None:
        """Refuse to stop publishing EPC by claims while pods hold some; end an earlier version's helper that does.

        A pod with a claim cannot end once no driver of the claim is left on its node.
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
            await self._delete(HELPER_REF)
            self._report("the quote helper of an earlier version ends first: it holds a claim")
            await self._gone(HELPER_REF, deadline)

    async def _apply(self, wanted: Sequence[Object], deadline: Deadline, *, wait: bool) -> None:
        """Apply each object; if a device plugin exists already, those of the quote helper once the new one runs.

        While a plugin is being replaced, the kubelet rejects pods that request its devices.
        """
        await self._trust_first(wanted, deadline)
        replaces = wait and await self._cluster.get(PLUGIN_REF) is not None
        later = [one for one in wanted if replaces and one["metadata"]["labels"][COMPONENT] == QUOTE_HELPER.component]
        for one in wanted:
            if one["kind"] == metrics.API_SERVICE and wait:
                # While what it names does not answer, no namespace can be deleted.
                serving = [other for other in wanted if Ref.of(other) == METRICS_API_REF]
                await Rollout(self._cluster, serving, self._report).wait(deadline.left())
            if one not in later:
                await self._apply_one(one, deadline)
        if later:
            plugin = [one for one in wanted if Ref.of(one) == PLUGIN_REF]
            await Rollout(self._cluster, plugin, self._report).wait(deadline.left())
        for one in later:
            await self._apply_one(one, deadline)

    async def _trust_first(self, wanted: Sequence[Object], deadline: Deadline) -> None:
        """If a server gets another CA, have the API server trust it before a replica can use it."""
        for secret in wanted:
            trusting = TRUSTING.get(secret["metadata"]["name"], ()) if secret["kind"] == "Secret" else ()
            if not trusting or not is_another(secret, await self._cluster.get(Ref.of(secret))):
                continue
            for one in wanted:
                if Ref.of(one) in trusting and await self._cluster.get(Ref.of(one)) is not None:
                    await self._apply_one(one, deadline)

    async def _apply_one(self, one: Object, deadline: Deadline) -> None:
        if one["kind"] == metrics.API_SERVICE:
            await refuse_other_metrics(self._cluster)
            if await self._cluster.get(Ref.of(one)) is None:
                # An apply would take over what another server registered a moment ago.
                await self._cluster.create(one)
                return
        applied = await self._cluster.apply(one)
        if applied["metadata"].get("deletionTimestamp"):
            # An earlier command deleted it. It ends with its pods, and what was applied ends with it.
            await self._gone(Ref.of(one), deadline)
            await self._cluster.apply(one)

    async def _disown(self, present: Mapping[Ref, Object]) -> None:
        """End a former webhook's ownership of entries in its configurations, where its replicas wrote their CA.

        Once we no longer list such an entry, its name would stay, without the fields that the API requires.
        """
        for ref in CONFIGURATIONS:
            owners = present.get(ref, {}).get("metadata", {}).get("managedFields") or ()
            if any(owner.get("manager") == FORMER_MANAGER for owner in owners):
                nothing = {"apiVersion": ref.api_version, "kind": ref.kind, "metadata": {"name": ref.name}}
                await self._cluster.apply(nothing, manager=FORMER_MANAGER)

    def _report_kept(self, refs: Iterable[Ref]) -> None:
        for ref in sorted(KEPT.keys() & set(refs)):
            self._report(f"kept {ref}: {KEPT[ref]}; --purge deletes it")

    async def _delete(self, ref: Ref) -> None:
        """Delete an object, if it is there."""
        if await self._cluster.delete(ref):
            self._report(f"deleted {ref}")

    async def _delete_before_others(self, ref: Ref, deadline: Deadline) -> None:
        """Delete an object; wait until an APIService is gone, before its server ends."""
        await self._delete(ref)
        if ref == API_SERVICE:
            await self._gone(ref, deadline)

    async def _present(self) -> dict[Ref, Object]:
        """The add-on's objects. An APIService that leads to another server by now is that server's."""
        found = await self._cluster.addon_objects(NAMESPACE, OURS)
        return {ref: one for ref, one in found.items() if ref != API_SERVICE or metrics.is_ours(one)}

    async def _gone(self, ref: Ref, deadline: Deadline, *, only_if_deleted: bool = False) -> None:
        """Wait until an object is gone; `ClusterError` at the deadline.

        With `only_if_deleted`, return at once unless it is being deleted.
        """
        reported = False
        while (found := await self._cluster.get(ref)) is not None:
            if only_if_deleted and not found["metadata"].get("deletionTimestamp"):
                return
            if not deadline.left():
                where = f" -n {ref.namespace}" if ref.namespace else ""
                look = f"kubectl get {ref.kind.lower()} {ref.name}{where} -o yaml"
                raise ClusterError(f"{ref} is still being deleted", advice=f"See what holds it: {look}")
            if not reported:
                self._report(f"waiting until {ref} is gone")
                reported = True
            await asyncio.sleep(min(LOOK, deadline.left()))

    async def _clean_folders(self, state: AddonState, refs: list[Ref], deadline: Deadline) -> list[Ref]:
        """Empty the nodes' folders once no pod writes there; returns what is still to be deleted."""
        wanted = cleanup(state.config, version=self._version)
        if not wanted:
            return refs
        writers = [ref for ref in refs if ref in (HELPER_REF, PLUGIN_REF) or ref.name == wanted[0]["metadata"]["name"]]
        for ref in writers:
            await self._delete(ref)
        for ref in writers:
            await self._gone(ref, deadline)
        for one in wanted:
            await self._cluster.apply(one)
        try:
            await Rollout(self._cluster, wanted, lambda _: None).wait(min(CLEANUP_PATIENCE, deadline.left()))
            self._report("emptied the folders of simulated nodes")
        except ClusterError as error:
            self._report(f"could not empty the folders of simulated nodes, /var/lib/confcom: {error.message}")
        for one in wanted:
            await self._cluster.delete(Ref.of(one))
        return [ref for ref in refs if ref not in writers]

    async def _clean_nodes(self, *, just_ended: bool) -> None:
        """Delete the add-on's resources, labels and annotations from nodes."""
        found = remains(await self._cluster.objects(NODE_KIND))
        for left in found:
            await self._cluster.patch_node(
                left.node, marks=dict.fromkeys(left.marks), resources=dict.fromkeys(left.resources)
            )
            self._report(f"took away from node {left.node}: {', '.join((*left.resources, *left.marks))}")
        if just_ended and any(left.resources for left in found):
            self._report(
                "the kubelet goes on listing a plugin's resources, with 0 of them, for five minutes after its end: "
                "purge once more then, and they are gone"
            )


def _state(found: Object | None) -> AddonState | None:
    return None if found is None else parse_state(found.get("data") or {})


# The world of a simulated cluster is made once and stays the same until the add-on is purged.


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
        return b64decode((secret.get("data") or {})[WORLD_KEY], validate=True)
    except (KeyError, binascii.Error) as error:
        raise ConfigError(
            f"Secret {NAMESPACE}/{WORLD_SECRET} holds no simulated world",
            advice="Delete it to get a new world; what was attested in the old one is then worth nothing.",
        ) from error


# The installer makes the CAs of the webhook, the metrics API and the exporters, and keeps each in a Secret. Before one
# expires it gets a successor, which clients trust before replicas have its key; its predecessor stays trusted until it
# expires.


CONFIGURATION_KINDS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
CONFIGURATIONS = tuple(Ref("admissionregistration.k8s.io/v1", kind, "", CONFIGURATION) for kind in CONFIGURATION_KINDS)
API_SERVICE = Ref(API_SERVICE_KIND.api_version, metrics.API_SERVICE, "", metrics.API_SERVICE_NAME)
TRUSTING = {CA_SECRET: CONFIGURATIONS, metrics.CA_SECRET: (API_SERVICE,)}
"""Objects with a caBundle, by the Secret of its CA. The exporters' is trusted by pods that mount the Secret."""
FORMER_MANAGER = "confcom-webhook"
"""Field manager of webhooks that made their CA themselves."""
LIFETIME = timedelta(days=3650)
RENEW = timedelta(days=365)
"""A CA that ends sooner is replaced, and stays trusted until then; one that ends later and is replaced does not."""
MAX_TRUSTED = 8
"""CAs that are trusted at a time; two, in the usual course of things."""


async def issuing_cas(cluster: ClusterObjects, config: AddonConfig, now: datetime) -> dict[str, IssuingCa]:
    """The CA of each Secret: the cluster's own, or a new one if it has none or that one expires soon."""
    found = {}
    for issuer in issuers(config):
        secret = await cluster.get(Ref("v1", "Secret", NAMESPACE, issuer.secret))
        trusting = TRUSTING.get(issuer.secret, ())
        in_force = _bundle_of(await cluster.get(trusting[0])) if trusting else b""
        data = {name: _decoded(text) for name, text in ((secret or {}).get("data") or {}).items()}
        found[issuer.secret] = next_ca(issuer, data, in_force, now)
    return found


def _bundle_of(trusting: Object | None) -> bytes:
    """The caBundle of a webhook configuration, or of an APIService."""
    found = trusting or {}
    entries = found.get("webhooks") or [{}]
    text = (entries[0].get("clientConfig") or found.get("spec") or {}).get("caBundle")
    return _decoded(text or "")


def next_ca(issuer: Issuer, data: Mapping[str, bytes], in_force: bytes, now: datetime) -> IssuingCa:
    """What the Secret with this `data` should hold, where clients trust `in_force`; pure but for keys."""
    present = Authority.parse(data.get("tls.crt", b""), data.get("tls.key", b""))
    trusted = authorities_in(data.get("ca.crt", b""))
    if present is None or present.expires - now <= RENEW:
        trusted = (*trusted, *authorities_in(in_force))
        present = Authority.make(issuer.common_name, now=now, lifetime=LIFETIME, names=issuer.names)
    (own,) = authorities_in(present.certificate)
    ending = [one for one in trusted if one != own and _ends_soon(one, now)]
    bundle = b"".join(dict.fromkeys((own, *ending[: MAX_TRUSTED - 1])))
    return IssuingCa(present.certificate, present.key, bundle)


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
