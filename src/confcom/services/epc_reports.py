"""Reports containers that are over their EPC as events of their pods. What the API does not take now is tried again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from confcom.cluster.client import open_client
from confcom.cluster.pod_events import PodEvent, report
from confcom.errors import ConfcomError
from confcom.services.epc_episodes import Episode, Kind, explain

CONTROLLER = "confcom.dev/metrics"
REASONS = {Kind.OVER_LIMIT: "EpcOverLimit", Kind.NO_REQUEST: "EpcNotRequested"}
MAX_WAITING = 256
"""Reports that wait for the API; of more, the oldest are dropped."""
AT_ONCE = 16
"""Reports in one go, so that a slow API does not keep anybody from looking at the node."""


class EpcReports:
    """The reports of one node. `outcomes` counts what became of them."""

    def __init__(self, node: str, *, kubeconfig: str | None, outcomes: Counter[str]) -> None:
        self._node = node
        self._kubeconfig = kubeconfig
        self._outcomes = outcomes
        self._waiting: list[Episode] = []

    def add(self, episode: Episode) -> None:
        """Report it with the next `send`."""
        self._waiting = [*self._waiting, episode][-MAX_WAITING:]

    async def send(self, lasts: Callable[[Episode], bool]) -> ConfcomError | None:
        """Write what waits, and give the error that stopped it. What failed waits on while its episode lasts."""
        now, later = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
        failure = None
        if now:
            try:
                await self._write(now)
            except ConfcomError as error:
                self._outcomes["failed"] += 1
                failure = error
        # At the end: a pod that is gone, or an event that is not taken, must not hold up the others.
        self._waiting = [*later, *[one for one in now if lasts(one)]]
        return failure

    async def _write(self, episodes: list[Episode]) -> None:
        """Write and take out of the list, one by one; at an error its episode goes to the end."""
        client: Any = open_client(self._kubeconfig, field_manager="confcom-metrics")
        try:
            while episodes:
                episode = episodes.pop(0)
                try:
                    self._outcomes[await self._report(client, episode)] += 1
                except ConfcomError:
                    episodes.append(episode)
                    raise
        finally:
            await client.close()

    async def _report(self, client: Any, episode: Episode) -> str:  # noqa: ANN401 - of lightkube
        now = datetime.now(UTC)  # noqa: TID251 - services read the clock
        event = event_of(episode, self._node)
        return await report(client, event, now, controller=CONTROLLER, instance=self._node[:128])


def event_of(episode: Episode, node: str) -> PodEvent:
    """The event that tells of an episode."""
    row = episode.row
    return PodEvent(
        namespace=episode.pod.namespace,
        pod=episode.pod.name,
        uid=episode.pod.uid,
        container=row.container,
        reason=REASONS[episode.kind],
        note=explain(episode, node=node, exact=row.misc is not None),
        action="Watching",
        key=row.id,
    )
