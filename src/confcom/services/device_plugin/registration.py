"""Keeps a server of ours known to the kubelet, through restarts of the kubelet and loss of its directories.

Serve first, register second. A kubelet that starts deletes every socket in its directory, ours too, and makes its own
again, perhaps with the old inode number; so both are watched, and the time of change counts. A stream that ends while
the kubelet runs is a failure as well: nothing else would bring it back.

There are two ways: register at kubelet.sock (device plugins only), or let the kubelet find the socket in a directory
that it watches (device plugins and DRA drivers).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias

from confcom.devices.sgx_node import SgxNode
from confcom.errors import ConfcomError, PlatformUnavailable
from confcom.protocols import kubelet as k
from confcom.services.device_plugin.grpc import GrpcSocket, Handlers, call
from confcom.services.device_plugin.plugin_config import DevicePluginConfig
from confcom.services.device_plugin.plugin_metrics import Observer, PluginEvent
from confcom.services.device_plugin.resource_server import KubeletStreams, ResourceServer

KUBELET_SOCKET = "kubelet.sock"
_Fingerprint: TypeAlias = tuple[int, int, int]


class Served(Protocol):
    """What the kubelet calls."""

    name: str
    """Its name at the kubelet."""
    endpoint: str
    """A word for its socket's file name."""
    streams: KubeletStreams
    """Those that the kubelet holds open."""

    @property
    def unhealthy_reason(self) -> str:
        """Why what it serves cannot be had now, as a clause; empty when it can."""

    def handlers(self) -> Handlers:
        """The table of calls."""

    def info(self, path: str) -> k.PluginInfo:
        """What it is, for the kubelet that found its socket at `path`."""

    def update(self, node: SgxNode) -> None:
        """Serve what there is of SGX now."""


class Registration:
    """A Part: one server at the kubelet. `ready` is called whenever the kubelet has taken it."""

    def __init__(
        self, server: Served, directory: str, config: DevicePluginConfig, observe: Observer, ready: Callable[[], None]
    ) -> None:
        self.name = server.name
        self._reason = "the kubelet does not know it yet"
        self._server = server
        self._config = config
        self._observe = observe
        self._ready = ready
        self._retry = config.retry_initial
        self._path = Path(directory) / f"confcom-{server.endpoint}.sock"

    @property
    def unhealthy_reason(self) -> str:
        """Why the kubelet cannot call, or what the server lacks, as a clause; empty when all is well."""
        return self._reason or self._server.unhealthy_reason

    def update(self, node: SgxNode) -> None:
        """Serve what there is of SGX now."""
        self._server.update(node)

    async def run(self) -> None:
        """Bind, have it found, watch, and again; until cancelled."""
        while True:
            try:
                socket = GrpcSocket(self._path, self._handlers())
            except PlatformUnavailable as error:
                self._report("plugin.listen", warning=True, error=error.code, reason=error.message)
                await asyncio.sleep(self._next_retry())
                continue
            try:
                await socket.start()
                await self._while_bound(socket)
            finally:
                await self._server.streams.end()
                await socket.close()
            if socket.path_exists():
                # This process has the turn (`plugin.py`); only versions without turns take the path from it.
                reason = f"another process took {self._path}: taking it back"
                self._report("plugin.listen", warning=True, reason=reason)
                await asyncio.sleep(self._next_retry())

    def _handlers(self) -> Handlers:
        return self._server.handlers()

    async def _while_bound(self, socket: GrpcSocket) -> None:
        """Return once the socket has to be bound again."""
        raise NotImplementedError

    async def _watch(self, socket: GrpcSocket) -> None:
        """Return when the kubelet does not know us any more. Streams that are left are ended then."""
        loop = asyncio.get_running_loop()
        opened = loop.time()
        while (reason := self._why_lost(socket)) is None:
            if loop.time() - opened > self._retry:
                self._retry = self._config.retry_initial
            await self._stream_change()
        self._report("kubelet.lost", warning=True, reason=reason)
        await self._server.streams.end()

    def _why_lost(self, socket: GrpcSocket) -> str | None:
        if not socket.owns_path():
            return "our socket is gone"
        return None if self._server.streams.open else "the stream ended"

    async def _stream_change(self) -> None:
        """Until a stream opens or ends, or it is time to look again."""
        try:
            async with asyncio.timeout(self._config.watch_interval):
                await self._server.streams.changed.wait()
            self._server.streams.changed.clear()
        except TimeoutError:
            return

    def _next_retry(self) -> float:
        seconds, self._retry = self._retry, min(self._retry * 2, self._config.retry_max)
        return seconds

    def _report(self, name: str, *, warning: bool = False, **fields: object) -> None:
        # Every event here is a change of what the kubelet knows.
        self._reason = "" if fields.get("outcome") == "registered" else str(fields.get("reason", ""))
        self._observe(PluginEvent(name, self.name, fields, warning))


class RegistryRegistration(Registration):
    """In the directory that the kubelet watches: it asks each socket there what it is."""

    def __init__(
        self, server: Served, config: DevicePluginConfig, observe: Observer, ready: Callable[[], None]
    ) -> None:
        super().__init__(server, config.registry_dir, config, observe, ready)

    def _handlers(self) -> Handlers:
        more: Handlers = {k.GET_INFO: self._get_info, k.NOTIFY_REGISTRATION_STATUS: self._notified}
        return {**super()._handlers(), **more}

    async def _while_bound(self, socket: GrpcSocket) -> None:
        """The kubelet finds us, again after its restart; if it does not come back, the socket has to appear again."""
        deadline: float | None = None
        loop = asyncio.get_running_loop()
        while socket.owns_path() and (deadline is None or loop.time() < deadline):
            if self._server.streams.open:
                self._reason = ""
                self._ready()
                await self._watch(socket)
                deadline = loop.time() + self._config.register_timeout
            await self._stream_change()

    async def _get_info(self, _: k.InfoRequest) -> k.PluginInfo:
        return self._server.info(str(self._path))

    async def _notified(self, status: k.RegistrationStatus) -> k.Empty:
        registered = status.plugin_registered
        outcome = "registered" if registered else "failed"
        self._report("kubelet.registered", warning=not registered, outcome=outcome, reason=status.error)
        if registered:
            self._ready()
        return k.Empty()


class SocketRegistration(Registration):
    """At kubelet.sock."""

    def __init__(
        self, server: ResourceServer, config: DevicePluginConfig, observe: Observer, ready: Callable[[], None]
    ) -> None:
        super().__init__(server, config.plugin_dir, config, observe, ready)
        self._request = server.registration(self._path.name)
        self._kubelet = Path(config.plugin_dir) / KUBELET_SOCKET
        self._registered_at: _Fingerprint | None = None

    async def _while_bound(self, socket: GrpcSocket) -> None:
        absent = False
        while socket.owns_path():
            kubelet = self._fingerprint()
            if kubelet is None:
                if not absent:
                    self._report("kubelet.absent", reason=f"{self._kubelet} is not there yet")
                absent = True
                await asyncio.sleep(self._config.watch_interval)
                continue
            absent = False
            self._registered_at = kubelet
            if await self._register(socket):
                await self._watch(socket)
            await self._pause(socket)

    async def _register(self, socket: GrpcSocket) -> bool:
        """Says whether the kubelet took the registration and opened its stream."""
        opened = self._server.streams.opened
        try:
            await call(self._kubelet, k.REGISTER, self._request, timeout=self._config.register_timeout)
            await self._await_stream(socket, opened)
        except ConfcomError as error:
            self._report("kubelet.registered", warning=True, outcome="failed", error=error.code, reason=error.message)
            return False
        self._report("kubelet.registered", outcome="registered")
        self._ready()
        return True

    async def _await_stream(self, socket: GrpcSocket, opened: int) -> None:
        """Until one has been opened, even if it has ended again by now: `_watch` sees that."""
        loop = asyncio.get_running_loop()
        limit = self._config.register_timeout
        deadline = loop.time() + limit
        while self._server.streams.opened == opened:
            if self._must_start_over(socket):
                raise PlatformUnavailable("the kubelet restarted before it opened its stream", retryable=True)
            if loop.time() > deadline:
                raise PlatformUnavailable(f"the kubelet opened no stream within {limit:g} s", retryable=True)
            await self._stream_change()

    def _why_lost(self, socket: GrpcSocket) -> str | None:
        if socket.owns_path() and self._registered_at != self._fingerprint():
            return "the kubelet has made its socket again"
        return super()._why_lost(socket)

    async def _pause(self, socket: GrpcSocket) -> None:
        """Until the next attempt; at once when the kubelet restarts: that is another kubelet to try."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._next_retry()
        while (left := deadline - loop.time()) > 0:
            if self._must_start_over(socket):
                self._retry = self._config.retry_initial
                return
            await asyncio.sleep(min(left, self._config.watch_interval))

    def _must_start_over(self, socket: GrpcSocket) -> bool:
        return not socket.owns_path() or self._registered_at != self._fingerprint()

    def _fingerprint(self) -> _Fingerprint | None:
        try:
            status = self._kubelet.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_ctime_ns
