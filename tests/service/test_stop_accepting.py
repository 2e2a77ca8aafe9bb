"""A server of ours that stops leaves nobody behind whom it was just letting in."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from confcom.services.runtime.http_server import Listener, Page, serve_http
from confcom.services.runtime.status_page import StatusPage

Stop = Callable[[], Awaitable[object]]


@asynccontextmanager
async def status_page(path: Path) -> AsyncIterator[Stop]:
    async def answer() -> Page:
        return Page(200, b"ok\n")

    running = asyncio.create_task(StatusPage(f"unix:{path}", {"/healthz": answer}).run())

    async def stop() -> None:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    yield stop


@asynccontextmanager
async def http_server(path: Path) -> AsyncIterator[Stop]:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("nobody asks")

    stopped, started = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(
        serve_http(answer, Listener(address=path), stop=stopped, started=lambda _: started.set())
    )
    await started.wait()

    async def stop() -> None:
        stopped.set()
        await running

    yield stop


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("server", [status_page, http_server])
async def test_nobody_is_left_behind(sockets: Path, server: Any, turns: int) -> None:
    """Turns of the loop lie between a connection's arrival and its being served."""
    async with server(sockets / "s") as stop:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            for _ in range(200):
                with suppress(OSError):
                    client.connect(str(sockets / "s"))
                    break
                await asyncio.sleep(0.01)
            for _ in range(turns):
                await asyncio.sleep(0)
            await stop()
            client.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0.05)
            gc.collect()  # what was lost says so now, which fails the test
            with suppress(ConnectionResetError):
                assert client.recv(100) == b""
