"""Waiting until what was applied runs, or saying which pod does not and why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from confcom.cluster.objects import POD_KIND, ClusterObjects, Object, Ref
from confcom.errors import ClusterError
from confcom.manifests.objects import NAMESPACE, OWN_NODE_LABEL

# --- Why a pod does not run, in one sentence, from what the cluster says about it: pure, over JSON --------------------


MAX_REASON = 600
"""Characters of what a cluster or a container said."""

# What does not go away while one waits for it. A pod that cannot be scheduled may be waiting for the device plugin, and
# one that the kubelet rejected while the plugin was replaced has a successor already.
_FIRM = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError",
     "CreateContainerError", "RunContainerError", "CrashLoopBackOff"}
)  # fmt: skip


class Trouble(NamedTuple):
    """A pod's trouble. `log_of` names the container whose last line of log says more."""

    pod: str
    node: str
    reason: str
    message: str
    log_of: str = ""

    @property
    def firm(self) -> bool:
        """Whether waiting is no use."""
        return self.reason in _FIRM

    def sentence(self, log: Sequence[str] = ()) -> str:
        """The trouble in one line; `log` has the container's last lines."""
        where = f" on {self.node}" if self.node else ""
        # What a server says last may be that it serves, which is not why it is not ready.
        said = _said([line for line in log if ": ready" not in line])
        new = said and said not in self.message
        words = ": ".join(word for word in (self.message, f"it says {said!r}" if new else "") if word)
        return f"pod {self.pod}{where}: {self.reason}" + (f": {words[:MAX_REASON]}" if words else "")


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether the pod serves."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def was_rejected(pod: Mapping[str, Any]) -> bool:
    """Whether the kubelet would not have it, for want of a device: a plugin that is away, or about to be replaced."""
    status = pod.get("status") or {}
    deleted = pod["metadata"].get("deletionTimestamp")
    return status.get("phase") == "Failed" and status.get("reason") == "UnexpectedAdmissionError" and not deleted


def cannot_be_configured(pod: Mapping[str, Any]) -> bool:
    """Whether the kubelet cannot put one of its containers together."""
    trouble = (
        None if pod["metadata"].get("deletionTimestamp") else _container(_Subject("", ""), pod.get("status") or {})
    )
    return trouble is not None and trouble.reason == "CreateContainerConfigError"


def trouble_of(pod: Mapping[str, Any], events: Sequence[Mapping[str, Any]] = ()) -> Trouble | None:
    """What keeps a pod from serving; None when it serves or is going away."""
    if is_ready(pod) or pod["metadata"].get("deletionTimestamp"):
        return None
    status = pod.get("status") or {}
    found = _Subject(pod["metadata"]["name"], (pod.get("spec") or {}).get("nodeName", ""))
    return (
        _rejected(found, status)
        or _unschedulable(found, status)
        or _container(found, status)
        or _unready(found, status)
        or _warned(found, events)
        or found.trouble(status.get("phase") or "Pending")
    )


class _Subject(NamedTuple):
    name: str
    node: str

    def trouble(self, reason: str, message: str = "", log_of: str = "") -> Trouble:
        return Trouble(self.name, self.node, reason, " ".join(message.split()), log_of)


def _rejected(pod: _Subject, status: Mapping[str, Any]) -> Trouble | None:
    if status.get("phase") != "Failed":
        return None
    return pod.trouble(status.get("reason") or "Failed", status.get("message") or "")


def _unschedulable(pod: _Subject, status: Mapping[str, Any]) -> Trouble | None:
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return pod.trouble(condition.get("reason", "Unschedulable"), condition.get("message", ""))
    return None


def _container(pod: _Subject, status: Mapping[str, Any]) -> Trouble | None:
    for one in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (one.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            log_of = one["name"] if reason == "CrashLoopBackOff" else ""
            return pod.trouble(reason, _last_end(one) or waiting.get("message", ""), log_of)
        ended = (one.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            return pod.trouble(ended.get("reason", "Error"), _end(one["name"], ended), one["name"])
    return None


def _last_end(status: Mapping[str, Any]) -> str:
    ended = (status.get("lastState") or {}).get("terminated") or {}
    return _end(status["name"], ended) if ended else ""


def _end(name: str, ended: Mapping[str, Any]) -> str:
    """How a container ended; its message is what the runtime said, or the end of its log."""
    said = _said((ended.get("message") or "").splitlines())
    last = f", saying {said!r}" if said else ""
    return f"container {name} ended with code {ended.get('exitCode')}{last}"


def _said(lines: Sequence[str]) -> str:
    """The last line; where that is our own advice, what it is about comes before it."""
    last = [line.strip() for line in lines if line.strip()][-2:]
    return " ".join(last if last and last[-1].startswith("what to do:") else last[-1:])


def _warned(pod: _Subject, events: Sequence[Mapping[str, Any]]) -> Trouble | None:
    for event in reversed(events):
        # Of a pod that has found its node, the search is over.
        if event.get("type") == "Warning" and not (pod.node and event.get("reason") == "FailedScheduling"):
            return pod.trouble(event.get("reason", "Warning"), event.get("message", ""))
    return None


def _unready(pod: _Subject, status: Mapping[str, Any]) -> Trouble | None:
    for one in status.get("containerStatuses") or []:
        if not one.get("ready") and "running" in (one.get("state") or {}):
            return pod.trouble("NotReady", f"container {one['name']} is not ready yet", one["name"])
    return None


LOOK = 1.0
"""Seconds between two looks."""
PATIENCE = 30.0
"""Seconds for which a trouble that does not go away by itself must be seen until the wait ends with it."""
MAX_LINE = 160
"""Characters of a line about a trouble that may yet pass."""
WORKLOADS = ("DaemonSet", "Deployment")

Tell = Callable[[str], None]


class Progress(NamedTuple):
    """How far a workload is: pods of the present version that serve, of those that there should be.

    `serving` counts those of an earlier version as well, which serve until their successors do.
    """

    name: str
    available: int
    wanted: int
    settled: bool
    serving: int

    def __str__(self) -> str:
        # Enough of the present version serve, but earlier ones have not ended, or the controller has yet to look.
        replaced = not self.settled and self.available == self.wanted
        return f"{self.name} {self.available}/{self.wanted}{', still being replaced' if replaced else ''}"


def progress_of(workload: Mapping[str, Any]) -> Progress:
    """The progress of a DaemonSet or Deployment."""
    status, metadata = workload.get("status") or {}, workload["metadata"]
    if workload["kind"] == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        current, available = status.get("updatedNumberScheduled", 0), status.get("numberAvailable", 0)
        total = wanted
    else:
        wanted = workload["spec"].get("replicas", 1)
        current, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
        total = status.get("replicas", 0)
    seen = status.get("observedGeneration", 0) >= metadata.get("generation", 1)
    settled = seen and current == available == wanted == total
    return Progress(metadata["name"], min(current, available), wanted, settled, min(available, wanted))


class Rollout:
    """The wait for some workloads. `tell` is called with a line whenever there is something new."""

    def __init__(self, cluster: ClusterObjects, workloads: Sequence[Object], tell: Tell) -> None:
        self._cluster = cluster
        self._refs = [Ref.of(one) for one in workloads if one["kind"] in WORKLOADS]
        self._tell = tell
        self._said: set[str] = set()
        self._since: dict[str, float] = {}
        self._renewed: set[str] = set()

    async def wait(self, seconds: float) -> None:
        """Until all of them are ready; `ClusterError` names what is not, and why."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            states = await self._states()
            late = [state for state in states if not state.settled]
            self._say(", ".join(str(state) for state in states))
            if not late:
                self._warn_of_nothing(states)
                return
            troubles = await self._troubles(late)
            for trouble in troubles:
                self._say(shortened(trouble.sentence()), about=f"{trouble.pod} {trouble.reason}")
            now = loop.time()
            firm = self._firm(troubles, now)
            if firm or now >= deadline:
                await self._fail(late, firm or troubles)
            await asyncio.sleep(LOOK)

    def _firm(self, troubles: Sequence[Trouble], now: float) -> list[Trouble]:
        """Troubles of pods that have had some such for too long: what starts again and again shows one now and then."""
        for trouble in troubles:
            if trouble.firm:
                self._since.setdefault(trouble.pod, now)
        pods = {trouble.pod for trouble in troubles}
        self._since = {pod: since for pod, since in self._since.items() if pod in pods}
        return [one for one in troubles if one.firm and now - self._since[one.pod] >= PATIENCE]

    async def _states(self) -> list[Progress]:
        found = [(ref, await self._cluster.get(ref)) for ref in self._refs]
        missing = [ref for ref, workload in found if workload is None]
        if missing:
            raise ClusterError(f"{missing[0]} was deleted by somebody else", advice="Run the command again.")
        return [progress_of(workload) for _, workload in found if workload is not None]

    async def _troubles(self, late: Sequence[Progress]) -> list[Trouble]:
        owners = {state.name for state in late}
        found = []
        for pod in await self._cluster.objects(POD_KIND, namespace=NAMESPACE):
            if _owner(pod) not in owners:
                continue
            if was_rejected(pod) or self._is_without_devices(pod):
                # A DaemonSet with a surge makes successors of rejected pods at once, many of them while the device
                # plugin is away, but deletes one at a time, ever slower, and goes by the oldest until then.
                await self._cluster.delete(Ref.of(pod))
            events = await self._cluster.events_of(Ref.of(pod))
            if (trouble := trouble_of(pod, events)) is not None:
                found.append(trouble)
        return found

    def _is_without_devices(self, pod: Mapping[str, Any]) -> bool:
        """Whether a pod may have been started without its devices, by a kubelet that had forgotten who provides them.

        Its containers cannot be started again once the plugin is back. One try for each workload: it may be another
        mistake, which the next pod shows as well.
        """
        owner = _owner(pod)
        if owner in self._renewed or not cannot_be_configured(pod):
            return False
        self._renewed.add(owner)
        return True

    async def _fail(self, late: Sequence[Progress], troubles: Sequence[Trouble]) -> None:
        sentences = [trouble.sentence(await self._log(trouble)) for trouble in troubles[:3]]
        more = f" (and {len(troubles) - 3} more pods)" if len(troubles) > 3 else ""
        raise ClusterError(
            f"not ready: {', '.join(str(state) for state in late)}. {'. '.join(sentences)}{more}",
            advice=_advice(troubles),
        )

    async def _log(self, trouble: Trouble) -> list[str]:
        if not trouble.log_of:
            return []
        return await self._cluster.last_log_lines(NAMESPACE, trouble.pod, trouble.log_of)

    def _warn_of_nothing(self, states: Sequence[Progress]) -> None:
        if any(ref.kind == "DaemonSet" and not state.wanted for ref, state in zip(self._refs, states, strict=True)):
            self._tell(
                "no node is an SGX node yet: none has the labels of node feature discovery or our own. "
                f"Say which are: kubectl label node NAME {OWN_NODE_LABEL}=true"
            )

    def _say(self, line: str, *, about: str = "") -> None:
        """Tell a line once, or once for what it is about."""
        if line and (about or line) not in self._said:
            self._said.add(about or line)
            self._tell(line)


def shortened(line: str) -> str:
    """A line that fits into a terminal or two; the failure at the end has all of it."""
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…"


def _owner(pod: Mapping[str, Any]) -> str:
    """The name of the DaemonSet or Deployment of a pod; a Deployment's pods belong to a ReplicaSet named after it."""
    for owner in pod["metadata"].get("ownerReferences") or []:
        name: str = owner["name"]
        return name.rpartition("-")[0] if owner["kind"] == "ReplicaSet" else name
    return ""


def _advice(troubles: Sequence[Trouble]) -> str:
    reasons = {trouble.reason for trouble in troubles}
    if reasons & {"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"}:
        return "Name an image that the nodes can pull, with --image; what was applied stays, and goes on by itself."
    if "Unschedulable" in reasons:
        return "Make room, or change what is requested; what was applied stays, and goes on by itself."
    return "What was applied stays; run the command again to go on waiting, or `confcom addon disable`."
