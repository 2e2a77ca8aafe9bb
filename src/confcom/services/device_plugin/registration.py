"""Registers a device plugin at kubelet.sock, again whenever the kubelet has forgotten it.

Serve first, register second. A kubelet that starts deletes every socket in its directory, ours too, and makes its own
anew, perhaps with the old inode number; so both are watched, and the time of change counts. A stream that ends while
the kubelet lives is a failure as well: nobody else would bring it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from confcom.errors import ConfcomError, PlatformUnavailable
from confcom.protocols import kubelet as found
from confcom.protocols import kubelet as k
from confcom.protocols.kubelet import Empty, Method
from confcom.services.device_plugin.grpc import GrpcSocket, call
from confcom.services.device_plugin.plugin_config import DevicePluginConfig
from confcom.services.device_plugin.plugin_metrics import Observer, PluginEvent
from confcom.services.device_plugin.resource_server import KubeletStreams

# --- Keeps a socket of ours where the kubelet looks for it, whatever the kubelet and its directories do ---------------
#
# Here is what both ways to be found have in common, and the second way: the kubelet watches a directory of sockets
# and asks each who it is. The first way, for device plugins alone, is `device_plugin_registration`.


class Served(Protocol):
    """What the kubelet calls."""

    @property
    def streams(self) -> KubeletStreams:
        """Those that the kubelet holds open."""

    @property
    def name(self) -> str:
        """Its name at the kubelet."""

    @property
    def endpoint(self) -> str:
        """A word for its socket's file name."""

    def handlers(self) -> dict[Method, Callable[[Any], Any]]:
        """The table of calls."""


class Registration:
    """One server's. `run` goes on until it is cancelled."""

    def __init__(
        self, server: Served, directory: str, config: DevicePluginConfig, observe: Observer, ready: Callable[[], None]
    ) -> None:
        self.trouble = "the kubelet does not know it yet"
        """Why the kubelet cannot call, as a clause; empty while it can."""
        self._server = server
        self._config = config
        self._observe = observe
        self._ready = ready
        self._retry = config.retry_initial
        self._path = Path(directory) / f"confcom-{server.endpoint}.sock"

    async def run(self) -> None:
        """Bind, have it found, watch, and again."""
        while True:
            try:
                socket = GrpcSocket(self._path, self._handlers())
            except PlatformUnavailable as error:
                self._tell("plugin.listen", trouble=True, error=error.code, reason=error.message)
                await asyncio.sleep(self._next_retry())
                continue
            try:
                await socket.start()
                await self._while_bound(socket)
            finally:
                await self._server.streams.end()
                await socket.close()
            if socket.path_exists():
                # It is our turn (services.device_plugin), which only versions without turns do not wait for.
                self._tell("plugin.listen", trouble=True, reason=f"another process took {self._path}: taking it back")
                await asyncio.sleep(self._next_retry())

    def _handlers(self) -> dict[Method, Callable[[Any], Any]]:
        return self._server.handlers()

    async def _while_bound(self, socket: GrpcSocket) -> None:
        """Return once the socket has to be bound anew."""
        raise NotImplementedError

    async def _watch(self, socket: GrpcSocket) -> None:
        """Return when the kubelet does not know us any more. Streams that are left are ended then."""
        loop = asyncio.get_running_loop()
        opened = loop.time()
        while (reason := self._why_lost(socket)) is None:
            if loop.time() - opened > self._retry:
                self._retry = self._config.retry_initial
            await self._stream_change()
        self._tell("kubelet.lost", trouble=True, reason=reason)
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

    def _tell(self, name: str, *, trouble: bool = False, **fields: object) -> None:
        # Every event here is a change of what the kubelet knows.
        self.trouble = "" if fields.get("outcome") == "registered" else str(fields.get("reason", ""))
        self._observe(PluginEvent(name, self._server.name, fields, trouble))


class RegistryRegistration(Registration):
    """In the directory that the kubelet watches. `info` says who we are, by the path of the socket."""

    def __init__(
        self,
        server: Served,
        info: Callable[[str], found.PluginInfo],
        config: DevicePluginConfig,
        observe: Observer,
        ready: Callable[[], None],
    ) -> None:
        super().__init__(server, config.registry_dir, config, observe, ready)
        self._info = info

    def _handlers(self) -> dict[Method, Callable[[Any], Any]]:
        return super()._handlers() | {
            found.GET_INFO: self._get_info,
            found.NOTIFY_REGISTRATION_STATUS: self._notified,
        }

    async def _while_bound(self, socket: GrpcSocket) -> None:
        """The kubelet finds us, again after its restart; if it does not come back, the socket has to appear anew."""
        deadline: float | None = None
        loop = asyncio.get_running_loop()
        while socket.owns_path() and (deadline is None or loop.time() < deadline):
            if self._server.streams.open:
                self.trouble = ""
                self._ready()
                await self._watch(socket)
                deadline = loop.time() + self._config.register_timeout
            await self._stream_change()

    async def _get_info(self, request: Empty) -> found.PluginInfo:
        del request
        return self._info(str(self._path))

    async def _notified(self, status: found.RegistrationStatus) -> Empty:
        outcome = "registered" if status.registered else "failed"
        self._tell("kubelet.registered", trouble=not status.registered, outcome=outcome, reason=status.error)
        if status.registered:
            self._ready()
        return Empty()


KUBELET_SOCKET = "kubelet.sock"
_Fingerprint: TypeAlias = tuple[int, int, int]


class SocketRegistration(Registration):
    """At kubelet.sock. `request` is what we register as, by the file name of our socket."""

    def __init__(
        self,
        server: Served,
        request: Callable[[str], k.RegisterRequest],
        config: DevicePluginConfig,
        observe: Observer,
        ready: Callable[[], None],
    ) -> None:
        super().__init__(server, config.plugin_dir, config, observe, ready)
        self._request = request
        self._kubelet = Path(config.plugin_dir) / KUBELET_SOCKET
        self._registered_at: _Fingerprint | None = None

    async def _while_bound(self, socket: GrpcSocket) -> None:
        absent = False
        while socket.owns_path():
            kubelet = self._fingerprint()
            if kubelet is None:
                if not absent:
                    self._tell("kubelet.absent", reason=f"{self._kubelet} is not there yet")
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
            request = self._request(self._path.name)
            await call(self._kubelet, k.REGISTER, request, timeout=self._config.register_timeout)
            await self._await_stream(socket, opened)
        except ConfcomError as error:
            self._tell("kubelet.registered", trouble=True, outcome="failed", error=error.code, reason=error.message)
            return False
        self._tell("kubelet.registered", outcome="registered")
        self._ready()
        return True

    async def _await_stream(self, socket: GrpcSocket, opened: int) -> None:
        """Until one has been opened, even if it has ended again by now: `_watch` sees that."""
        loop = asyncio.get_running_loop()
        limit = self._config.register_timeout
        deadline = loop.time() + limit
        while self._server.streams.opened == opened:
            if self._must_start_over(socket):
                raise PlatformUnavailable("the kubelet started anew before it opened its stream", retryable=True)
            if loop.time() > deadline:
                raise PlatformUnavailable(f"the kubelet opened no stream within {limit:g} s", retryable=True)
            await self._stream_change()

    def _why_lost(self, socket: GrpcSocket) -> str | None:
        if socket.owns_path() and self._registered_at != self._fingerprint():
            return "the kubelet has made its socket anew"
        return super()._why_lost(socket)

    async def _pause(self, socket: GrpcSocket) -> None:
        """Until the next attempt; at once when the kubelet starts anew, which is another kubelet to try."""
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
