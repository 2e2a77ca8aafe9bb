"""A quote helper on a real socket in a thread of its own, and clients that write and read bytes."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confcom.platforms.interface import Platform
from confcom.services.quote_helper.connection import RequestEvent
from confcom.services.quote_helper.helper import QuoteHelperConfig, serve
from confcom.services.quote_helper.self_test import SelfTestKit
from running_in_thread import RunningInThread


class RunningHelper(RunningInThread):
    """A helper that serves until `stop`; `events` are what it told of its connections."""

    def __init__(
        self, platform: Platform, path: Path, *, self_test: SelfTestKit | None = None, **settings: Any
    ) -> None:
        super().__init__()
        self.path = path
        self.events: list[RequestEvent] = []
        self.on_event: Callable[[RequestEvent], None] = lambda _: None
        self._config = QuoteHelperConfig(socket=str(path), **settings)
        self._platform = platform
        self._self_test = self_test

    def wait_for_events(self, count: int) -> list[RequestEvent]:
        deadline = time.monotonic() + 60
        while len(self.events) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.events

    def _observe(self, event: RequestEvent) -> None:
        self.events.append(event)
        self.on_event(event)

    async def serve(self, stop: asyncio.Event, started: Callable[..., None]) -> None:
        await serve(
            self._platform,
            self._config,
            stop=stop,
            started=started,
            observe=self._observe,
            self_test=self._self_test,
        )


@contextmanager
def running_helper(platform: Platform, path: Path, **settings: Any) -> Iterator[RunningHelper]:
    helper = RunningHelper(platform, path, **settings)
    helper.start()
    try:
        yield helper
    finally:
        helper.stop()


def connect(path: Path, timeout: float = 60) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.connect(str(path))  # waits while the backlog is full, as real clients do
    except OSError:
        client.close()
        raise
    client.settimeout(timeout)
    return client


def read_all(client: socket.socket) -> bytes:
    """Everything up to the end of the stream; a reset behind it counts as the end."""
    received = b""
    try:
        while piece := client.recv(1 << 20):
            received += piece
    except ConnectionResetError:
        pass
    return received


def exchange(path: Path, data: bytes) -> bytes:
    """Send a frame on a new connection and read until the service closes."""
    with connect(path) as client:
        client.sendall(data)
        return read_all(client)
