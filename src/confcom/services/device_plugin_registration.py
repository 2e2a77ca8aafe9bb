"""Registers a device plugin at kubelet.sock, again whenever the kubelet has forgotten it.

Serve first, register second. A kubelet that starts deletes every socket in its directory, ours too, and makes its own
anew, perhaps with the old inode number; so both are watched, and the time of change counts. A stream that ends while
the kubelet lives is a failure as well: nobody else would bring it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from confcom.errors import ConfcomError, PlatformUnavailable
from confcom.protocols import kubelet as k
from confcom.services.device_plugin_config import DevicePluginConfig
from confcom.services.device_plugin_events import Observer
from confcom.services.device_plugin_grpc import GrpcSocket, call
from confcom.services.kubelet_registration import Registration, Served

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
