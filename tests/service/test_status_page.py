"""The status page listens where it is told to."""

from __future__ import annotations

import asyncio
import socket

import pytest

from confcom.services.status_page import Page, StatusPage


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
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
