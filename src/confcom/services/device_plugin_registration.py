"""Keeps one resource known to the kubelet, whatever the kubelet, its directory or its stream do.

Serve first, register second. A kubelet that starts deletes every socket in its directory, ours too, and makes its own
anew, perhaps with the old inode number; so both are watched, and the time of change counts. A stream that ends while
the kubelet lives is a failure as well: nobody else would bring it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from confcom.errors import ConfcomError, PlatformUnavailable
from confcom.protocols import kubelet as k
from confcom.protocols import kubelet_plugin_registration as found
from confcom.services.device_plugin_config import DevicePluginConfig
from confcom.services.device_plugin_events import Observer, PluginEvent
from confcom.services.device_plugin_grpc import GrpcSocket, call
from confcom.services.device_plugin_server import ResourceServer

KUBELET_SOCKET = "kubelet.sock"
_Fingerprint: TypeAlias = tuple[int, int, int]


class Registration:
    """One resource's. `run` goes on until it is cancelled, or until another plugin takes the socket's path over."""

    def __init__(
        self, server: ResourceServer, config: DevicePluginConfig, observe: Observer, ready: Callable[[], None]
    ) -> None:
        self.trouble = "the kubelet does not know it yet"
        """Why the kubelet cannot hand the resource out, as a clause; empty while it can."""
        self._server = server
        self._config = config
        self._observe = observe
        self._ready = ready
        self._retry = config.retry_initial
        self._by_registry = config.registration == "registry"
        directory = Path(config.registry_dir if self._by_registry else config.plugin_dir)
        self._path = directory / f"confcom-{server.resource.endpoint}.sock"
        self._kubelet = Path(config.plugin_dir) / KUBELET_SOCKET

    async def run(self) -> None:
        """Bind, register, watch, and again."""
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
                await self._server.end_streams()
                await socket.close()

    def _handlers(self) -> dict[k.Method, Callable[[Any], Any]]:
        mine = self._server.handlers()
        if self._by_registry:
            mine |= {found.GET_INFO: self._get_info, found.NOTIFY_REGISTRATION_STATUS: self._notified}
        return mine

    async def _while_bound(self, socket: GrpcSocket) -> None:
        """Return once the socket has to be bound anew."""
        if self._by_registry:
            await self._while_found(socket)
        else:
            await self._while_registered(socket)
        if socket.path_exists() and not socket.owns_path():
            raise PlatformUnavailable(
                f"another process has taken {self._path} over",
                advice="One device plugin per node is enough: remove one of them, or give it another --plugin-dir.",
            )

    async def _while_registered(self, socket: GrpcSocket) -> None:
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
            if await self._register(socket, kubelet):
                await self._watch(socket, kubelet)
            await self._pause(socket, kubelet)

    async def _while_found(self, socket: GrpcSocket) -> None:
        """The kubelet finds us, again after its restart; if it does not come back, the socket has to appear anew."""
        deadline: float | None = None
        loop = asyncio.get_running_loop()
        while socket.owns_path() and (deadline is None or loop.time() < deadline):
            if self._server.streams:
                self.trouble = ""
                self._ready()
                await self._watch(socket, None)
                deadline = loop.time() + self._config.register_timeout
            await self._stream_change()

    async def _register(self, socket: GrpcSocket, kubelet: _Fingerprint) -> bool:
        """Says whether the kubelet took the registration and opened its stream."""
        opened = self._server.opened
        request = k.RegisterRequest(self._path.name, self._server.resource.name, self._server.options)
        try:
            await call(self._kubelet, k.REGISTER, request, timeout=self._config.register_timeout)
            await self._await_stream(socket, kubelet, opened)
        except ConfcomError as error:
            self._tell("kubelet.registered", trouble=True, outcome="failed", error=error.code, reason=error.message)
            return False
        self._tell("kubelet.registered", outcome="registered")
        self._ready()
        return True

    async def _await_stream(self, socket: GrpcSocket, kubelet: _Fingerprint, opened: int) -> None:
        """Until one has been opened, even if it has ended again by now: `_watch` sees that."""
        loop = asyncio.get_running_loop()
        limit = self._config.register_timeout
        deadline = loop.time() + limit
        while self._server.opened == opened:
            if not socket.owns_path() or kubelet != self._fingerprint():
                raise PlatformUnavailable("the kubelet started anew before it opened its stream", retryable=True)
            if loop.time() > deadline:
                raise PlatformUnavailable(f"the kubelet opened no stream within {limit:g} s", retryable=True)
            await self._stream_change()

    async def _watch(self, socket: GrpcSocket, kubelet: _Fingerprint | None) -> None:
        """Return when the kubelet does not know us any more. Streams that are left are ended then."""
        loop = asyncio.get_running_loop()
        opened = loop.time()
        while (reason := self._why_lost(socket, kubelet)) is None:
            if loop.time() - opened > self._retry:
                self._retry = self._config.retry_initial
            await self._stream_change()
        self._tell("kubelet.lost", trouble=True, reason=reason)
        await self._server.end_streams()

    def _why_lost(self, socket: GrpcSocket, kubelet: _Fingerprint | None) -> str | None:
        if not socket.owns_path():
            return "our socket is gone"
        if kubelet is not None and kubelet != self._fingerprint():
            return "the kubelet has made its socket anew"
        return None if self._server.streams else "the stream ended"

    async def _stream_change(self) -> None:
        """Until a stream opens or ends, or it is time to look again."""
        try:
            async with asyncio.timeout(self._config.watch_interval):
                await self._server.changed.wait()
            self._server.changed.clear()
        except TimeoutError:
            return

    async def _pause(self, socket: GrpcSocket, kubelet: _Fingerprint) -> None:
        """Until the next attempt; at once when the kubelet starts anew, which is another kubelet to try."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._next_retry()
        while (left := deadline - loop.time()) > 0:
            if not socket.owns_path() or kubelet != self._fingerprint():
                self._retry = self._config.retry_initial
                return
            await asyncio.sleep(min(left, self._config.watch_interval))

    def _next_retry(self) -> float:
        seconds, self._retry = self._retry, min(self._retry * 2, self._config.retry_max)
        return seconds

    def _fingerprint(self) -> _Fingerprint | None:
        try:
            status = self._kubelet.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_ctime_ns

    async def _get_info(self, request: k.Empty) -> found.PluginInfo:
        del request
        return found.PluginInfo(name=self._server.resource.name, endpoint=str(self._path))

    async def _notified(self, status: found.RegistrationStatus) -> k.Empty:
        outcome = "registered" if status.registered else "failed"
        self._tell("kubelet.registered", trouble=not status.registered, outcome=outcome, reason=status.error)
        return k.Empty()

    def _tell(self, name: str, *, trouble: bool = False, **fields: object) -> None:
        # Every event here is a change of what the kubelet knows.
        self.trouble = "" if fields.get("outcome") == "registered" else str(fields.get("reason", ""))
        self._observe(PluginEvent(name, self._server.resource.name, fields, trouble))
