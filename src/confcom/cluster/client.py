"""A client of the Kubernetes API, and its failures as ours.

lightkube (extra `kube`) is imported in this package alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import httpx2
import msgspec
from lightkube import AsyncClient, KubeConfig
from lightkube.config.client_adapter import AsyncClient as AsyncConnection
from lightkube.config.client_adapter import ConnectionParams, verify_cluster
from lightkube.config.kubeconfig import DEFAULT_KUBECONFIG, SingleConfig
from lightkube.config.models import NameValue, User
from lightkube.core.exceptions import ApiError, LoadResourceError
from lightkube.core.exceptions import ConfigError as LightkubeConfigError

from confcom.errors import ClusterError, ClusterRefused, ConfcomError, ConfigError
from confcom.formats.arguments import parse_http_url
from confcom.formats.yaml_text import read_yaml
from confcom.input_file import read_bounded

WATCH_AGAIN = 1.0
"""Seconds between the beginnings of two watches of a client: a server, or a proxy, may end each one at once."""
CLIENT_LIFETIME = 300.0
"""Seconds until credentials are read again: a service account's token is replaced every hour."""
SERVER_TIMEOUT = 300
"""Seconds after which the API server shall end a watch."""
VANISHED = SERVER_TIMEOUT + 30.0
"""Seconds without a byte of a watch after which its server is gone: nothing tells a client that a machine went away."""
CONNECT = 10.0
"""Seconds for a connection."""
ANSWER = 60.0
"""Seconds for the first byte of an answer: as long as an API server with slow webhooks or a slow store takes."""
ATTEMPTS = 5
"""At a server that answers that it is busy, and when to ask again."""
MAX_WAIT = 10
"""Seconds that a server may have a client wait before the next attempt."""
KNOWN = "KNOWN"
"""What `list_and_watch` yields when the list is complete."""
_NOT_FOUND = 404
_BUSY = 429
_UNREADABLE = (msgspec.MsgspecError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)
"""What lightkube raises for an answer that is no object of the API (a proxy's page), and for a credential plugin."""
_PLUGIN = "client.authentication.k8s.io"
_OTHER_WAY = {
    "proxy-url": "Set HTTPS_PROXY to that URL for this command.",
    "tls-server-name": "Write that name as the host of `server`; or, without HTTPS_PROXY, leave it.",
}
_OTHER_USER = dict.fromkeys(
    ("as", "as-uid", "as-groups", "as-user-extra"), "Choose a context of a user that needs no impersonation."
)
MAX_KUBECONFIG = 4 << 20
"""Bytes."""
_ADVICE = "Name a kubeconfig with --kubeconfig or $KUBECONFIG; a pod needs a service account instead."


def open_client(
    kubeconfig: str | None = None, *, context: str | None = None, field_manager: str = "confcom"
) -> AsyncClient:
    """A client; without `kubeconfig`, in-cluster credentials, else those of $KUBECONFIG or the user's file.

    The token of a service account is read once, here, and expires: long-running callers open a new client now and then.
    """
    try:
        chosen = _read(kubeconfig).get(context_name=context)
        if chosen is not None:
            parse_http_url(chosen.cluster.server, "an API server")
            _adopt_plugin(chosen.user)
        transport = _transport(chosen)
        if chosen is not None:
            _check_known(chosen, transport)
        timeout = httpx2.Timeout(CONNECT, read=ANSWER)
        return AsyncClient(config=chosen, field_manager=field_manager, transport=transport, timeout=timeout)
    except ConfcomError:
        raise
    except (LightkubeConfigError, OSError) as error:
        raise ConfigError(f"no way to the Kubernetes API: {error}", advice=_ADVICE) from error
    except Exception as error:  # lightkube passes on what YAML, msgspec, ssl and a missing name raise
        what = f"there is no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        message = f"no way to the Kubernetes API: the kubeconfig cannot be used: {what}"
        raise ConfigError(message, advice=_ADVICE) from error


def _read(kubeconfig: str | None) -> KubeConfig:
    if kubeconfig is not None:
        return KubeConfig.from_file(kubeconfig)
    with suppress(LightkubeConfigError):
        return KubeConfig.from_service_account()
    listed = [file for file in os.environ.get("KUBECONFIG", "").split(os.pathsep) if file] or [DEFAULT_KUBECONFIG]
    # kubectl merges the files of a list, and passes over those that do not exist.
    found = [file for file in listed if Path(file).is_file()]
    if len(found) > 1:
        raise ConfigError(f"$KUBECONFIG lists {len(found)} files; only one is supported", advice=_ADVICE)
    return KubeConfig.from_file(found[0] if found else ", ".join(listed))


def _adopt_plugin(user: User | None) -> None:
    """Have lightkube, which knows v1beta1, run a credential plugin of version v1: their answers are the same."""
    if user is None or user.exec is None or user.exec.apiVersion != f"{_PLUGIN}/v1":
        return
    info = {"apiVersion": user.exec.apiVersion, "kind": "ExecCredential", "spec": {"interactive": False}}
    user.exec.env = [*(user.exec.env or ()), NameValue("KUBERNETES_EXEC_INFO", json.dumps(info))]
    user.exec.apiVersion = f"{_PLUGIN}/v1beta1"


def _check_known(chosen: SingleConfig, transport: _Transport | None) -> None:
    """Refuse what lightkube passes over: requests would go another way, or be of another user."""
    for kind, name, settings in (
        ("cluster", chosen.context.cluster, _OTHER_WAY),
        ("user", chosen.context.user, _OTHER_USER),
    ):
        written = _entry(chosen, kind, name)
        for setting, advice in settings.items():
            followed = (setting == "proxy-url" and "https" in getproxies()) or (
                setting == "tls-server-name" and transport is not None
            )
            if written.get(setting) and not followed:
                raise ConfigError(
                    f"{chosen.fname}: {kind} {name!r} has {setting}, which this client does not support", advice=advice
                )


def _entry(chosen: SingleConfig, kind: str, name: str | None) -> dict[str, Any]:
    """The settings of a cluster or user as the kubeconfig has them: lightkube keeps those that it knows."""
    if chosen.fname is None:
        return {}
    (document,) = read_yaml(read_bounded(chosen.fname, MAX_KUBECONFIG).decode(), source=str(chosen.fname))
    return next((entry[kind] for entry in document.get(f"{kind}s") or () if entry["name"] == name), {})


async def list_and_watch(
    client: Any,  # noqa: ANN401 - lightkube's signatures know its own models only
    resource: Any,  # noqa: ANN401 - as above
    *,
    chunk: int | None = None,
    **where: Any,  # noqa: ANN401 - as above
) -> AsyncGenerator[tuple[str, Any], None]:
    """Yields the present objects of a kind as ADDED, then `KNOWN`, then each change until the watch ends.

    A change is ADDED, MODIFIED or DELETED. `chunk` objects come per answer; `where` selects by namespace and fields.
    """
    listed = client.list(resource, chunk_size=chunk, **where)
    async for found in listed:
        yield "ADDED", found
    yield KNOWN, None
    seen = client.watch(resource, resource_version=listed.resourceVersion, server_timeout=SERVER_TIMEOUT, **where)
    async with aclosing(seen):
        async for change in seen:
            yield change


async def version_of_server(client: AsyncClient) -> str:
    """The API server's version, such as `v1.36.2`; empty if it does not say."""
    with cluster_errors("cannot read the API server's version"):
        transport: Any = _transport(client.config)  # lightkube's annotation is that of its other client
        parameters = ConnectionParams(transport=transport)
        # lightkube can only request paths of API groups.
        async with AsyncConnection(client.config, parameters) as connection:
            answer = await connection.get("/version")
    if answer.is_error:
        return ""
    try:
        return str(answer.json()["gitVersion"])
    except (ValueError, TypeError, KeyError):
        return ""


class _Transport(httpx2.AsyncHTTPTransport):
    """Begins a watch `WATCH_AGAIN` seconds after the last one: lightkube begins another as soon as one has ended.

    Ends a watch of a server that is gone, and asks a busy one again (429, 503 with Retry-After), as kubectl does. With
    a `server_name`, the server's certificate has to have that name instead of the URL's host.
    """

    _again_at = 0.0

    def __init__(self, context: ssl.SSLContext, server_name: str | None) -> None:
        super().__init__(verify=context)
        self._extensions = {"sni_hostname": server_name} if server_name else {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request, and give the answer."""
        request.extensions |= self._extensions
        if "watch" in request.url.params:
            now = time.monotonic()
            wait, self._again_at = self._again_at - now, max(now, self._again_at) + WATCH_AGAIN
            await asyncio.sleep(max(0.0, wait))
            request.extensions["timeout"] = {**request.extensions["timeout"], "read": VANISHED}
        for _ in range(ATTEMPTS - 1):
            answer = await super().handle_async_request(request)
            if (pause := _pause(answer)) is None:
                return answer
            await answer.aclose()
            await asyncio.sleep(pause)
        return await super().handle_async_request(request)


def _pause(answer: httpx2.Response) -> int | None:
    """Seconds after which a server that is busy wants to be asked again; None if it is not."""
    after = answer.headers.get("retry-after", "")
    if answer.status_code not in (_BUSY, 503) or not (after.isascii() and after.isdigit()):
        return None
    return min(int(after[:9]), MAX_WAIT)


def _transport(config: SingleConfig | None) -> _Transport | None:
    """Connections that verify the API server as kubectl does: chain, name and time, but not the form of its CA.

    From 3.13 on Python refuses CAs without extensions that RFC 5280 requires, and many clusters have such CAs. None if
    a proxy is set in the environment: only lightkube's own transport uses it.
    """
    if config is None or config.user is None or "https" in getproxies():
        return None
    context = verify_cluster(config.cluster, config.user, config.abs_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return _Transport(context, _entry(config, "cluster", config.context.cluster).get("tls-server-name"))


@contextmanager
def cluster_errors(what: str, *, advice: str | None = None) -> Iterator[None]:
    """Turn failures of the API into `ClusterRefused` (the server refused) or `ClusterError` (no usable answer).

    `advice` names the rights that the request takes: it is that of `ClusterRefused` alone.
    """
    try:
        yield
    except ApiError as error:
        status = error.status
        raise answered(f"{what}: {status.message or error}", status.code, advice, status.reason) from error
    except httpx2.HTTPStatusError as error:
        # A proxy, or the API server for an unknown group, answers in plain text.
        code = error.response.status_code
        raise answered(f"{what}: the server answers with HTTP {code}", code, advice) from error
    except LightkubeConfigError as error:  # a credential plugin, or the file of a token
        raise ClusterError(f"{what}: no credentials: {error}") from error
    except httpx2.RequestError as error:
        url = error.request.url
        raise ClusterError(
            f"{what}: {str(error) or type(error).__name__} ({url.scheme}://{url.netloc.decode()})"
        ) from error
    except (httpx2.HTTPError, LoadResourceError) as error:
        raise ClusterError(f"{what}: {str(error) or type(error).__name__}") from error
    except _UNREADABLE as error:
        message = f"{what}: the server or a credential plugin gave no usable answer: {type(error).__name__}: {error}"
        raise ClusterError(message) from error


@contextmanager
def missing_ok() -> Iterator[None]:
    """Go on after the block where the API knows no such object, kind or group. Stands before `cluster_errors`."""
    try:
        yield
    except ClusterRefused as refused:
        if refused.status != _NOT_FOUND:
            raise


def answered(message: str, status: int | None, advice: str | None, reason: str | None = None) -> ClusterError:
    """The error for an answer of this HTTP status: `ClusterRefused` if the server refused."""
    # A busy server has refused nothing.
    if status is not None and 400 <= status < 500 and status != _BUSY:
        return ClusterRefused(message, status=status, reason=reason, advice=advice)
    return ClusterError(message, status=status, reason=reason)
