"""Why a pod does not run, in one sentence, from what the cluster says about it: pure, over JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
