"""Watches of the Kubernetes API that end at once, as behind a proxy that does not let answers stay open."""

from __future__ import annotations

import asyncio
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from api_stand_in import ApiStandIn
from confcom.cluster import client
from confcom.cluster.client import KNOWN, POD_KIND, list_and_watch, open_client
from confcom.cluster.nodes import KubeNode

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "resourceVersion": "7"}}


class EndsAtOnce(ApiStandIn):
    """Lists one pod; each watch but those of `events` ends without an event."""

    def __init__(self, *events: dict[str, Any]) -> None:
        super().__init__()
        self.events = list(events)
        self.asked: list[str] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(handler.path)
        watch = "watch=true" in handler.path
        body = json.dumps({"kind": "PodList", "metadata": {"resourceVersion": "8"}, "items": [POD]})
        if watch:
            body = json.dumps(self.events.pop(0)) + "\n" if self.events else ""
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body.encode())


async def seen(api: EndsAtOnce, folder: Path, number: int) -> list[tuple[str, Any]]:
    async with open_client(api.kubeconfig(folder)) as opened:
        found = []
        async for change in list_and_watch(opened, POD_KIND.resource, namespace="*"):
            found.append(change)
            if len(found) == number:
                break
        return found


def test_a_watch_that_ends_at_once_is_not_begun_in_a_tight_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WATCH_AGAIN", 3600.0)
    with EndsAtOnce() as api:
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(seen(api, tmp_path, 3), 1.5))
        # A slow machine may not have come so far.
        assert [("watch" in path) for path in api.asked] in ([], [False], [False, True])

    async def first(node: KubeNode) -> object:
        async for state in node.watch():
            return state
        return None

    with EndsAtOnce() as api:
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(first(KubeNode("n", kubeconfig=api.kubeconfig(tmp_path))), 1.5))
        assert len(api.asked) <= 1


def test_the_next_watch_begins_where_the_list_or_the_last_change_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WATCH_AGAIN", 0.01)
    changed = {"type": "MODIFIED", "object": POD | {"metadata": {"name": "a", "resourceVersion": "9"}}}
    gone = {"type": "DELETED", "object": POD | {"metadata": {"name": "a", "resourceVersion": "8"}}}
    with EndsAtOnce(gone, changed) as api:
        found = asyncio.run(seen(api, tmp_path, 4))
        assert [kind for kind, _ in found] == ["ADDED", KNOWN, "DELETED", "MODIFIED"]
        assert all("resourceVersion=8" in path for path in api.asked[1:])
