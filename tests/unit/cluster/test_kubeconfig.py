"""Kubeconfigs: what the client's library does not know is refused by name, because requests would go astray."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from confcom.cluster.client import open_client
from confcom.errors import ConfigError


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
        ({"cluster": {"tls-server-name": "kubernetes"}}, "cluster 'here' has tls-server-name"),
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


def test_a_proxy_of_the_environment_stands_in_for_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    opened(kubeconfig(tmp_path, cluster={"proxy-url": "http://proxy.example:3128"}))
