"""The status page listens where it is told to."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from confcom.services.runtime.http_server import Page
from confcom.services.runtime.status_page import MAX_CONNECTIONS, StatusPage


async def _healthz() -> Page:
    return Page(200, b"ok\n")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_every_address_means_both_families(host: str) -> None:
    port = _free_port()
    running = asyncio.create_task(StatusPage(f"[::]:{port}", {"/healthz": _healthz}).run())
    try:
        for _ in range(100):
            try:
                reader, writer = await asyncio.open_connection(host, port)
                break
            except OSError:
                await asyncio.sleep(0.05)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nHo", b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"])
async def test_liveness_is_answered_however_many_connect_and_stay(said: bytes) -> None:
    """Idle, half asked, and asked without reading the answer: five times as many as the page has places for."""
    port = _free_port()

    async def metrics() -> Page:
        return Page(200, b"x" * 1_000_000)

    running = asyncio.create_task(StatusPage(f"127.0.0.1:{port}", {"/healthz": _healthz, "/metrics": metrics}).run())
    flood: list[socket.socket] = []
    try:
        async with asyncio.timeout(60):
            while len(flood) < 5 * MAX_CONNECTIONS:
                with suppress(ConnectionRefusedError):
                    flood.append(socket.create_connection(("127.0.0.1", port)))
                    flood[-1].send(said)
                await asyncio.sleep(0)
            for _ in range(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                assert (await reader.read()).endswith(b"\r\n\r\nok\n")
                writer.close()
                await writer.wait_closed()
    finally:
        for client in flood:
            client.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_unix_socket_goes_with_the_page(sockets: Path) -> None:
    path = sockets / "status"
    running = asyncio.create_task(StatusPage(f"unix:{path}", {"/healthz": _healthz}).run())
    async with asyncio.timeout(60):
        while not path.exists():
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not path.exists()
