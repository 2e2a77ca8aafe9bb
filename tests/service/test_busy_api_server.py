"""An API server that is busy, and one whose machine goes away in the middle of a watch."""

from __future__ import annotations

import asyncio
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from api_stand_in import ApiStandIn
from confcom.cluster import client, nodes
from confcom.cluster.client import POD_KIND, ClusterObjects, Ref
from confcom.cluster.nodes import ClusterEpc, KubeResourceClaims, NodeState, watch_nodes
from confcom.errors import ClusterError, ClusterRefused
from confcom.protocols.epc import parse_pod
from epc_api import make_pod

SETTINGS = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "n"}, "data": {"k": "v"}}
REF = Ref.of(SETTINGS)


class Busy(ApiStandIn):
    """Answers `status` so many `times`, then does as it is asked: gives and takes `SETTINGS`."""

    def __init__(self, times: int, status: int, after: str | None = "0") -> None:
        super().__init__()
        self.times = times
        self.status = status
        self.after = after
        self.asked: list[bytes] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(handler.rfile.read(int(handler.headers.get("Content-Length") or 0)))
        busy = len(self.asked) <= self.times
        found = {"kind": "Status", "code": self.status, "message": "too many requests"} if busy else SETTINGS
        body = json.dumps(found).encode()
        handler.send_response(self.status if busy else 200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        if busy and self.after is not None:
            handler.send_header("Retry-After", self.after)
        handler.end_headers()
        handler.wfile.write(body)


async def apply(api: ApiStandIn, folder: Path) -> dict[str, object]:
    async with ClusterObjects.open(api.kubeconfig(folder), None, "test") as cluster:
        return await cluster.apply(SETTINGS)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(tmp_path: Path, status: int) -> None:
    with Busy(client.ATTEMPTS - 1, status) as api:
        assert asyncio.run(apply(api, tmp_path)) == SETTINGS
        assert [json.loads(body) for body in api.asked] == [SETTINGS] * client.ATTEMPTS


@pytest.mark.parametrize(("status", "after", "attempts"), [(429, "0", client.ATTEMPTS), (503, None, 1), (429, "x", 1)])
def test_a_server_that_stays_busy_has_refused_nothing(
    tmp_path: Path, status: int, after: str | None, attempts: int
) -> None:
    with Busy(100, status, after) as api, pytest.raises(ClusterError, match="too many requests") as caught:
        asyncio.run(apply(api, tmp_path))
    assert len(api.asked) == attempts
    assert caught.value.status == status
    assert not isinstance(caught.value, ClusterRefused)


def test_an_answer_may_take_as_long_as_an_api_server_works_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.ANSWER >= 60  # its --request-timeout
    monkeypatch.setattr(client, "ANSWER", 0.3)
    with Slow() as api, pytest.raises(ClusterError, match="cannot apply ConfigMap n/a: ReadTimeout"):
        asyncio.run(apply(api, tmp_path))


class Slow(ApiStandIn):
    """Answers nothing."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.down)


class Paged(ApiStandIn):
    """Has five pods, and gives three of them in an answer at most."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[str] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(handler.path).query).items()}
        self.limits.append(query.get("limit", ""))
        begin = int(query.get("continue", "0"))
        end = min(begin + min(3, int(query.get("limit", "3"))), 5)
        items = [{"metadata": {"name": f"p{number}", "namespace": "n"}} for number in range(begin, end)]
        metadata = {"resourceVersion": "8"} | ({"continue": str(end)} if end < 5 else {})
        body = json.dumps({"kind": "PodList", "metadata": metadata, "items": items}).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@pytest.mark.parametrize(
    ("most", "number", "limits"), [(None, 5, ["500", "500"]), (2, 2, ["2"]), (1000, 5, ["1000", "1000"])]
)
def test_lists_come_in_parts(tmp_path: Path, most: int | None, number: int, limits: list[str]) -> None:
    async def names(api: Paged) -> list[str]:
        async with ClusterObjects.open(api.kubeconfig(tmp_path), None, "test") as cluster:
            return [one["metadata"]["name"] for one in await cluster.objects(POD_KIND, most=most)]

    with Paged() as api:
        assert asyncio.run(names(api)) == [f"p{one}" for one in range(number)]
        assert api.limits == limits


class GoesAway(ApiStandIn):
    """Lists no node, and begins watches of which nothing ever comes."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        body = json.dumps({"kind": "NodeList", "metadata": {"resourceVersion": "8"}, "items": []}).encode()
        if "watch=true" in handler.path:
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            with self.changed:
                self.changed.wait_for(lambda: self.down)
            return
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


async def test_a_busy_server_refuses_no_page_of_a_pod(tmp_path: Path) -> None:
    with Busy(100, 429, after=None) as api:
        async with ClusterEpc.open(api.kubeconfig(tmp_path), None, "test") as cluster:
            with pytest.raises(ClusterError, match="too many requests") as caught:
                await cluster.metrics(parse_pod(make_pod("exporter")))
    assert not isinstance(caught.value, ClusterRefused)


async def test_a_claim_is_read_before_the_kubelet_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "CLAIM_WITHIN", 0.5)
    with Busy(100, 429, after="5") as api:
        claims = KubeResourceClaims(kubeconfig=api.kubeconfig(tmp_path))
        with pytest.raises(ClusterError, match=r"cannot read the claim n/c: no answer within 0\.5 s"):
            await claims.get("n", "c")


def test_a_watch_of_a_server_that_went_away_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "VANISHED", 0.5)

    async def follow(api: GoesAway) -> list[dict[str, NodeState]]:
        return [dict(nodes) async for nodes in watch_nodes(api.kubeconfig(tmp_path))]

    with GoesAway() as api, pytest.raises(ClusterError, match="cannot watch the nodes: ReadTimeout"):
        asyncio.run(asyncio.wait_for(follow(api), 60))
