"""The Node object of this node in the Kubernetes API, through lightkube (extra `kube`): a NodeStatusPublisher.

A client lasts as long as one watch, because the token of a service account is replaced every hour and is read when the
client is made. Only `nodes/status` of the one node is ever written.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import httpx2
from lightkube import AsyncClient, KubeConfig
from lightkube.core.exceptions import ApiError, LoadResourceError
from lightkube.core.exceptions import ConfigError as LightkubeConfigError
from lightkube.resources.core_v1 import Node
from lightkube.types import PatchType

from confcom.devices.interface import NodeStatus
from confcom.errors import ConfigError, PlatformError, PlatformUnavailable

SERVER_TIMEOUT = 300
"""Seconds after which the API server shall end a watch."""


class KubeNode:
    """One node; `kubeconfig` None means in-cluster credentials, else $KUBECONFIG or the user's file."""

    def __init__(self, name: str, *, kubeconfig: str | None = None) -> None:
        self.name = name
        self._kubeconfig = kubeconfig
        self._client: AsyncClient | None = None

    async def watch(self) -> AsyncGenerator[NodeStatus, None]:
        """The present state first, then every further one; a node that is deleted ends it."""
        client = await self._renew()
        seen: Any = client.watch(Node, fields={"metadata.name": self.name}, server_timeout=SERVER_TIMEOUT)
        try:
            async with aclosing(seen):
                async for kind, node in seen:
                    if kind == "DELETED":
                        return
                    yield _status(node)
        except (ApiError, httpx2.HTTPError, LoadResourceError) as error:
            raise _failure(f"cannot watch node {self.name}", error) from error
        finally:
            await self.close()

    async def patch(self, patch: Mapping[str, object]) -> None:
        """A merge patch of the status subresource, while `watch` runs."""
        if self._client is None:
            # Between two watches; the next one shows what is to be patched again.
            raise PlatformError(f"no connection for node {self.name} now", retryable=True)
        try:
            await self._client.patch(Node.Status, self.name, dict(patch), patch_type=PatchType.MERGE)
        except (ApiError, httpx2.HTTPError) as error:
            raise _failure(f"cannot write the status of node {self.name}", error) from error

    async def close(self) -> None:
        """End the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def _renew(self) -> AsyncClient:
        await self.close()
        try:
            config = KubeConfig.from_env() if self._kubeconfig is None else KubeConfig.from_file(self._kubeconfig)
            self._client = AsyncClient(config=config.get())
        except (LightkubeConfigError, OSError) as error:
            raise ConfigError(
                f"no way to the Kubernetes API: {error}",
                advice="Give the pod a service account, or name a kubeconfig.",
            ) from error
        return self._client


def _status(node: Node) -> NodeStatus:
    status, metadata = node.status, node.metadata
    return NodeStatus(
        capacity=dict((status and status.capacity) or {}),
        allocatable=dict((status and status.allocatable) or {}),
        labels=dict((metadata and metadata.labels) or {}),
    )


def _failure(what: str, error: Exception) -> PlatformError:
    if isinstance(error, ApiError) and error.status.code in (401, 403, 404):
        return PlatformUnavailable(
            f"{what}: {error.status.message}",
            retryable=True,
            advice="The plugin's service account needs list and watch on nodes, patch on nodes/status, and its own "
            "node's name.",
        )
    return PlatformError(f"{what}: {str(error) or type(error).__name__}", retryable=True)
