"""Writes events about pods, in the API group events.k8s.io."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from lightkube import AsyncClient
from lightkube.core.exceptions import ApiError
from lightkube.models.core_v1 import ObjectReference
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.events_v1 import Event
from lightkube.types import PatchType

from confcom.cluster.client import cluster_errors

MAX_NOTE = 1024
"""Bytes; the API server refuses more."""
_ADVICE = "The service account needs create, get and patch on events in the group events.k8s.io."


@dataclass(frozen=True, slots=True)
class PodEvent:
    """An event about a container, or about the pod where none is named.

    `key` distinguishes events with the same reason in one pod.
    """

    namespace: str
    pod: str
    uid: str
    container: str
    reason: str
    note: str
    action: str
    key: str = ""

    @property
    def name(self) -> str:
        """Equal for a repeated event, so that it is counted on the existing one."""
        parts = "\0".join((self.uid, self.container, self.reason, self.key))
        return f"{self.pod[:200].rstrip('.-')}.{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


async def report(
    client: AsyncClient, event: PodEvent, now: datetime, *, controller: str, instance: str
) -> Literal["created", "counted"]:
    """Create an event; if the API server still has it, increase its count instead."""
    with cluster_errors(f"cannot report {event.reason} of {event.namespace}/{event.pod}", advice=_ADVICE):
        try:
            await client.create(_document(event, _micro(now), controller, instance))
        except ApiError as error:
            if error.status.code != 409:
                raise
            await _count(client, event, _micro(now))
            return "counted"
    return "created"


async def _count(client: Any, event: PodEvent, now: datetime) -> None:  # noqa: ANN401 - lightkube's overloads
    present = await client.get(Event, event.name, namespace=event.namespace)
    count = present.series.count if present.series is not None else 1
    patch = {"series": {"count": count + 1, "lastObservedTime": now.isoformat(timespec="microseconds")}}
    await client.patch(Event, event.name, patch, namespace=event.namespace, patch_type=PatchType.MERGE)


def _document(event: PodEvent, now: datetime, controller: str, instance: str) -> Event:
    return Event(
        eventTime=now,
        metadata=ObjectMeta(name=event.name, namespace=event.namespace),
        type="Warning",
        reason=event.reason,
        action=event.action,
        note=event.note.encode()[:MAX_NOTE].decode(errors="ignore"),
        regarding=ObjectReference(
            apiVersion="v1",
            kind="Pod",
            namespace=event.namespace,
            name=event.pod,
            uid=event.uid,
            fieldPath=f"spec.containers{{{event.container}}}" if event.container else None,
        ),
        reportingController=controller,
        reportingInstance=instance,
    )


def _micro(now: datetime) -> datetime:
    # The API requires six digits of a second; a full second would be written with none.
    return now if now.microsecond else now.replace(microsecond=1)
