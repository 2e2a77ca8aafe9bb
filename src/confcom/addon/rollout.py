"""Waits until applied workloads run; a failure names the pods that do not, and why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from confcom.cluster.client import POD_KIND, ClusterObjects, Object, Ref
from confcom.errors import ClusterError
from confcom.manifests.objects import NAMESPACE, OWN_NODE_LABEL

MAX_REASON = 600
"""Characters of a message of the cluster or of a container."""

# Problems that do not pass by waiting. An unschedulable pod has none: it may wait for the device plugin. Nor has a pod
# that the kubelet rejected while the plugin was being replaced: it has a successor already.
_LASTING = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError",
     "CreateContainerError", "RunContainerError", "CrashLoopBackOff"}
)  # fmt: skip


class Problem(NamedTuple):
    """Why a pod does not serve. `log_of` names the container, if any, that logged more about it."""

    pod: str
    node: str
    reason: str
    message: str
    log_of: str = ""

    @property
    def lasts(self) -> bool:
        """Whether it does not pass by waiting."""
        return self.reason in _LASTING

    def sentence(self, log: Sequence[str] = ()) -> str:
        """One line; `log` has the container's last lines."""
        where = f" on {self.node}" if self.node else ""
        # A server's last line may be that it serves, which does not explain why it is not ready.
        said = _said([line for line in log if ": ready" not in line])
        new = said and said not in self.message
        words = ": ".join(word for word in (self.message, f"it says {said!r}" if new else "") if word)
        return f"pod {self.pod}{where}: {self.reason}" + (f": {words[:MAX_REASON]}" if words else "")


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether the pod is ready."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def was_rejected(pod: Mapping[str, Any]) -> bool:
    """Whether the kubelet rejected the pod for lack of a device: its plugin is away, or being replaced."""
    status = pod.get("status") or {}
    deleted = pod["metadata"].get("deletionTimestamp")
    return status.get("phase") == "Failed" and status.get("reason") == "UnexpectedAdmissionError" and not deleted


def cannot_be_configured(pod: Mapping[str, Any]) -> bool:
    """Whether the kubelet cannot assemble one of its containers."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    problem = _container(_Subject("", ""), pod.get("status") or {})
    return problem is not None and problem.reason == "CreateContainerConfigError"


def problem_of(pod: Mapping[str, Any], events: Sequence[Mapping[str, Any]] = ()) -> Problem | None:
    """Why a pod does not serve; None if it is ready or being deleted."""
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
        or found.problem(status.get("phase") or "Pending")
    )


class _Subject(NamedTuple):
    name: str
    node: str

    def problem(self, reason: str, message: str = "", log_of: str = "") -> Problem:
        return Problem(self.name, self.node, reason, " ".join(message.split()), log_of)


def _rejected(pod: _Subject, status: Mapping[str, Any]) -> Problem | None:
    if status.get("phase") != "Failed":
        return None
    return pod.problem(status.get("reason") or "Failed", status.get("message") or "")


def _unschedulable(pod: _Subject, status: Mapping[str, Any]) -> Problem | None:
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return pod.problem(condition.get("reason", "Unschedulable"), condition.get("message", ""))
    return None


def _container(pod: _Subject, status: Mapping[str, Any]) -> Problem | None:
    for one in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (one.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            log_of = one["name"] if reason == "CrashLoopBackOff" else ""
            return pod.problem(reason, _last_end(one) or waiting.get("message", ""), log_of)
        ended = (one.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            return pod.problem(ended.get("reason", "Error"), _end(one["name"], ended), one["name"])
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
    """The last line, and if that is our own advice the line before it, which has the error."""
    last = [line.strip() for line in lines if line.strip()][-2:]
    return " ".join(last if last and last[-1].startswith("what to do:") else last[-1:])


def _warned(pod: _Subject, events: Sequence[Mapping[str, Any]]) -> Problem | None:
    for event in reversed(events):
        # A pod that has a node was scheduled in the end.
        if event.get("type") == "Warning" and not (pod.node and event.get("reason") == "FailedScheduling"):
            return pod.problem(event.get("reason", "Warning"), event.get("message", ""))
    return None


def _unready(pod: _Subject, status: Mapping[str, Any]) -> Problem | None:
    for one in status.get("containerStatuses") or []:
        if not one.get("ready") and "running" in (one.get("state") or {}):
            return pod.problem("NotReady", f"container {one['name']} is not ready yet", one["name"])
    return None


LOOK = 1.0
"""Seconds between two reads of the workloads."""
PATIENCE = 30.0
"""Seconds after which a lasting problem ends the wait."""
MAX_LINE = 160
"""Characters of a line about a problem while the wait goes on."""
WORKLOADS = ("DaemonSet", "Deployment")

Report = Callable[[str], None]
"""Receives a line for the user."""


class Progress(NamedTuple):
    """How far the update of a workload is: available pods of the present version, of those that are wanted.

    `serving` also counts pods of an earlier version, which serve until their successors do.
    """

    name: str
    available: int
    wanted: int
    settled: bool
    serving: int

    def __str__(self) -> str:
        # All pods of the present version serve, but earlier ones have not ended, or the controller has not looked yet.
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
    """The wait for some workloads; `report` receives each new state and problem once."""

    def __init__(self, cluster: ClusterObjects, workloads: Sequence[Object], report: Report) -> None:
        self._cluster = cluster
        self._refs = [Ref.of(one) for one in workloads if one["kind"] in WORKLOADS]
        self._report = report
        self._said: set[str] = set()
        self._since: dict[str, float] = {}
        self._renewed: set[str] = set()

    async def wait(self, seconds: float) -> None:
        """Wait until all are ready; `ClusterError` names what is not, and why."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            states = await self._states()
            late = [state for state in states if not state.settled]
            self._say(", ".join(str(state) for state in states))
            if not late:
                self._warn_of_nothing(states)
                return
            problems = await self._problems(late)
            for problem in problems:
                self._say(shortened(problem.sentence()), about=f"{problem.pod} {problem.reason}")
            now = loop.time()
            lasting = self._lasting(problems, now)
            if lasting or now >= deadline:
                await self._fail(late, lasting or problems)
            await asyncio.sleep(LOOK)

    def _lasting(self, problems: Sequence[Problem], now: float) -> list[Problem]:
        """Problems of pods that have had lasting ones for `PATIENCE`; a pod that restarts shows one now and then."""
        for problem in problems:
            if problem.lasts:
                self._since.setdefault(problem.pod, now)
        pods = {problem.pod for problem in problems}
        self._since = {pod: since for pod, since in self._since.items() if pod in pods}
        return [one for one in problems if one.lasts and now - self._since[one.pod] >= PATIENCE]

    async def _states(self) -> list[Progress]:
        found = [(ref, await self._cluster.get(ref)) for ref in self._refs]
        missing = [ref for ref, workload in found if workload is None]
        if missing:
            raise ClusterError(f"{missing[0]} was deleted meanwhile", advice="Run the command again.")
        return [progress_of(workload) for _, workload in found if workload is not None]

    async def _problems(self, late: Sequence[Progress]) -> list[Problem]:
        owners = {state.name for state in late}
        found = []
        for pod in await self._cluster.objects(POD_KIND, namespace=NAMESPACE):
            if _owner(pod) not in owners:
                continue
            if was_rejected(pod) or self._is_without_devices(pod):
                # While the device plugin is away, a DaemonSet with a surge makes one successor after the other of
                # rejected pods, but deletes them one at a time, ever slower, and waits for the oldest.
                await self._cluster.delete(Ref.of(pod))
            events = await self._cluster.events_of(Ref.of(pod))
            if (problem := problem_of(pod, events)) is not None:
                found.append(problem)
        return found

    def _is_without_devices(self, pod: Mapping[str, Any]) -> bool:
        """Whether a pod may have been started without its devices, by a kubelet that did not know the plugin yet.

        Its containers cannot start once the plugin is back. True once per workload: if the cause is another one, the
        next pod has it as well.
        """
        owner = _owner(pod)
        if owner in self._renewed or not cannot_be_configured(pod):
            return False
        self._renewed.add(owner)
        return True

    async def _fail(self, late: Sequence[Progress], problems: Sequence[Problem]) -> None:
        sentences = [problem.sentence(await self._log(problem)) for problem in problems[:3]]
        more = f" (and {len(problems) - 3} more pods)" if len(problems) > 3 else ""
        raise ClusterError(
            f"not ready: {', '.join(str(state) for state in late)}. {'. '.join(sentences)}{more}",
            advice=_advice(problems),
        )

    async def _log(self, problem: Problem) -> list[str]:
        if not problem.log_of:
            return []
        return await self._cluster.last_log_lines(NAMESPACE, problem.pod, problem.log_of)

    def _warn_of_nothing(self, states: Sequence[Progress]) -> None:
        if any(ref.kind == "DaemonSet" and not state.wanted for ref, state in zip(self._refs, states, strict=True)):
            self._report(
                "no node is an SGX node yet: none has the labels of node feature discovery or our own. "
                f"Say which are: kubectl label node NAME {OWN_NODE_LABEL}=true"
            )

    def _say(self, line: str, *, about: str = "") -> None:
        """Report a line once, or once for what it is about."""
        if line and (about or line) not in self._said:
            self._said.add(about or line)
            self._report(line)


def shortened(line: str) -> str:
    """A line of `MAX_LINE` characters at most; the error at the end has all of it."""
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…"


def _owner(pod: Mapping[str, Any]) -> str:
    """Name of the pod's DaemonSet or Deployment; a Deployment's pods belong to a ReplicaSet named NAME-HASH."""
    for owner in pod["metadata"].get("ownerReferences") or []:
        name: str = owner["name"]
        return name.rpartition("-")[0] if owner["kind"] == "ReplicaSet" else name
    return ""


def _advice(problems: Sequence[Problem]) -> str:
    reasons = {problem.reason for problem in problems}
    if reasons & {"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"}:
        return "Name an image that the nodes can pull, with --image; what was applied stays, and goes on by itself."
    if "Unschedulable" in reasons:
        return "Make room, or change what is requested; what was applied stays, and goes on by itself."
    return "What was applied stays; run the command again to go on waiting, or `confcom addon disable`."
