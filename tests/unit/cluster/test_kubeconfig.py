"""Kubeconfigs: what the client's library does not know is refused by name, because requests would go astray."""

from __future__ import annotations

import asyncio
import json
import socket
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from confcom.cluster.client import open_client, version_of_server
from confcom.cluster.nodes import ClusterEpc
from confcom.errors import ClusterError, ConfigError
from confcom.pki.serving_pair import make_serving_pair
from confcom.services.runtime.tls import HeldTls


def kubeconfig(folder: Path, *, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> str:
    """A file with two clusters and users; the settings are those of the chosen ones."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [
            {"name": "there", "cluster": {"server": "https://192.0.2.1", "proxy-url": "http://proxy.example"}},
            {"name": "here", "cluster": {"server": "https://192.0.2.2"} | (cluster or {})},
        ],
        "users": [
            {"name": "you", "user": {"token": "b", "as": "root"}},
            {"name": "me", "user": {"token": "a"} | (user or {})},
        ],
    }
    path = folder / "config"
    path.write_text(json.dumps(content))
    return str(path)


def opened(path: str) -> None:
    async def run() -> None:
        async with open_client(path):
            pass

    asyncio.run(run())


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"cluster": {"proxy-url": "http://proxy.example:3128"}}, "cluster 'here' has proxy-url"),
        ({"user": {"as": "somebody"}}, "user 'me' has as,"),
        ({"user": {"as-groups": ["system:masters"]}}, "user 'me' has as-groups"),
    ],
    ids=str,
)
def test_settings_that_would_be_passed_over_are_refused_by_name(
    tmp_path: Path, given: dict[str, Any], named: str
) -> None:
    path = kubeconfig(tmp_path, **given)
    with pytest.raises(ConfigError, match=named) as caught:
        opened(path)
    assert path in str(caught.value)
    assert caught.value.advice


def test_those_of_other_clusters_and_users_do_not_matter(tmp_path: Path) -> None:
    opened(kubeconfig(tmp_path))


def test_settings_without_a_value_do_not_matter(tmp_path: Path) -> None:
    cluster, user = {"proxy-url": "", "tls-server-name": ""}, {"as": "", "as-groups": [], "as-user-extra": None}
    opened(kubeconfig(tmp_path, cluster=cluster, user=user))


async def _version(folder: Path, port: int, ca: bytes, **more: str) -> str:
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority-data": b64encode(ca).decode()} | more
    async with open_client(kubeconfig(folder, cluster=cluster)) as client:
        return await version_of_server(client)


async def test_a_server_is_verified_by_the_name_that_the_kubeconfig_gives(tmp_path: Path) -> None:
    """As kubectl does behind a tunnel: `server` is where it ends, the certificate is that of the API server."""
    now = datetime.now(UTC)  # noqa: TID251 - the client verifies by the true time
    ca, pair = make_serving_pair(("kubernetes",), now=now, lifetime=timedelta(hours=1), common_name="API server")
    body = b'{"gitVersion":"v1.36.2"}'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    context = HeldTls(pair.certificate, pair.key).context
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        assert await _version(tmp_path, port, ca, **{"tls-server-name": "kubernetes"}) == "v1.36.2"
        for others in ({}, {"tls-server-name": "kubernetes.example"}):
            with pytest.raises(ClusterError, match="certificate"):
                await _version(tmp_path, port, ca, **others)


async def test_a_kubeconfig_that_went_away_is_an_error_of_ours(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path)
    async with open_client(path) as client:
        Path(path).unlink()
        with pytest.raises(ClusterError, match="cannot read the API server's version"):
            await version_of_server(client)


async def test_a_server_that_does_not_answer_is_named_and_rights_are_not_to_blame(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, and does not listen: connections are refused
        server = f"https://127.0.0.1:{held.getsockname()[1]}"
        async with open_client(kubeconfig(tmp_path, cluster={"server": server})) as client:
            with pytest.raises(ClusterError, match=f"cannot list the pods: .*{server}") as caught:
                await ClusterEpc(client, "test").pods()
    assert caught.value.advice() == ClusterError.default_advice


def test_behind_a_proxy_of_the_environment_another_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    with pytest.raises(ConfigError, match="cluster 'here' has tls-server-name"):
        opened(kubeconfig(tmp_path, cluster={"tls-server-name": "kubernetes"}))


def test_a_proxy_of_the_environment_stands_in_for_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    opened(kubeconfig(tmp_path, cluster={"proxy-url": "http://proxy.example:3128"}))
