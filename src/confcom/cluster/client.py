"""A client of the Kubernetes API, and its failures as ours.

lightkube (extra `kube`) is imported in this package alone.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import getproxies

import httpx2
from lightkube import AsyncClient, KubeConfig
from lightkube.config.client_adapter import AsyncClient as AsyncConnection
from lightkube.config.client_adapter import ConnectionParams, verify_cluster
from lightkube.config.kubeconfig import SingleConfig
from lightkube.core.exceptions import ApiError, LoadResourceError
from lightkube.core.exceptions import ConfigError as LightkubeConfigError

from confcom.errors import ClusterError, ClusterRefused, ConfigError

_NOT_FOUND = 404
_ADVICE = "Name a kubeconfig with --kubeconfig or $KUBECONFIG; a pod needs a service account instead."


def open_client(
    kubeconfig: str | None = None, *, context: str | None = None, field_manager: str = "confcom"
) -> AsyncClient:
    """A client; without `kubeconfig`, in-cluster credentials, else those of $KUBECONFIG or the user's file.

    The token of a service account is read once, here, and expires: long-running callers open a new client now and then.
    """
    try:
        config = KubeConfig.from_env() if kubeconfig is None else KubeConfig.from_file(kubeconfig)
        chosen = config.get(context_name=context)
        return AsyncClient(config=chosen, field_manager=field_manager, transport=_transport(chosen))
    except (LightkubeConfigError, OSError, KeyError) as error:
        # KeyError: a context that names a cluster or user which the file does not have.
        raise ConfigError(f"no way to the Kubernetes API: {error}", advice=_ADVICE) from error


async def version_of_server(client: AsyncClient) -> str:
    """The API server's version, such as `v1.36.2`; empty if it does not say."""
    transport: Any = _transport(client.config)  # lightkube's annotation is that of its other client
    parameters = ConnectionParams(transport=transport)
    with cluster_errors("cannot read the API server's version"):
        # lightkube can only request paths of API groups.
        async with AsyncConnection(client.config, parameters) as connection:
            answer = await connection.get("/version")
    if answer.is_error:
        return ""
    try:
        return str(answer.json()["gitVersion"])
    except (ValueError, TypeError, KeyError):
        return ""


def _transport(config: SingleConfig | None) -> httpx2.AsyncHTTPTransport | None:
    """Connections that verify the API server as kubectl does: chain, name and time, but not the form of its CA.

    From 3.13 on Python refuses CAs without extensions that RFC 5280 requires, and many clusters have such CAs. None if
    a proxy is set in the environment: only lightkube's own transport uses it.
    """
    if config is None or config.user is None or "https" in getproxies():
        return None
    context = verify_cluster(config.cluster, config.user, config.abs_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return httpx2.AsyncHTTPTransport(verify=context)


@contextmanager
def cluster_errors(what: str, *, advice: str | None = None) -> Iterator[None]:
    """Turn failures of the API into `ClusterRefused` (the server said no) or `ClusterError` (it did not answer)."""
    try:
        yield
    except ApiError as error:
        status = error.status
        raise _kind(status.code)(
            f"{what}: {status.message or error}", status=status.code, reason=status.reason, advice=advice
        ) from error
    except httpx2.HTTPStatusError as error:
        # A proxy, or the API server for an unknown group, answers in plain text.
        code = error.response.status_code
        raise _kind(code)(f"{what}: the server answers with HTTP {code}", status=code, advice=advice) from error
    except (httpx2.HTTPError, LoadResourceError) as error:
        raise ClusterError(f"{what}: {str(error) or type(error).__name__}", advice=advice) from error


@contextmanager
def missing_ok() -> Iterator[None]:
    """Go on after the block where the API knows no such object, kind or group. Stands before `cluster_errors`."""
    try:
        yield
    except ClusterRefused as refused:
        if refused.status != _NOT_FOUND:
            raise


def _kind(status: int | None) -> type[ClusterError]:
    return ClusterRefused if status is not None and 400 <= status < 500 else ClusterError
