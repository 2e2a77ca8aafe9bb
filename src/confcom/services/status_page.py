"""A small HTTP listener beside a daemon: /healthz, /readyz, /metrics. Plain HTTP/1.1, one request per connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

import structlog

from confcom.errors import ConfigError
from confcom.services.stop_accepting import stop_accepting

MAX_REQUEST = 8 * 1024
"""Bytes of request line and headers."""
DEADLINE = 5.0
"""Seconds for the request, and again for the answer."""
MAX_CONNECTIONS = 32
RETRY = 0.5
"""Seconds between attempts to listen while a predecessor still holds the address."""

TEXT = "text/plain; charset=utf-8"
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class Page(NamedTuple):
    """An answer."""

    status: int
    body: bytes
    content_type: str = TEXT


Handler = Callable[[], Awaitable[Page]]


class StatusPage:
    """Serves the pages of a table from path to handler at `HOST:PORT`, `[ADDRESS]:PORT` or `unix:PATH`."""

    def __init__(self, address: str, pages: dict[str, Handler]) -> None:
        self._address = address
        self._pages = pages
        self._open = 0
        self._server: asyncio.Server | None = None
        self._where = _parse(address)

    async def run(self) -> None:
        """Serve until cancelled; while the address is taken, by a predecessor say, try again."""
        said = ""
        try:
            while self._server is None:
                try:
                    self._server = await self._listen()
                except OSError as error:
                    if str(error) != said:
                        structlog.get_logger().warning("status_page", outcome="waits", reason=str(error))
                        said = str(error)
                    await asyncio.sleep(RETRY)
            # It serves already. `serve_forever` would close it by itself when we are cancelled, which is too early.
            await asyncio.get_running_loop().create_future()
        finally:
            if self._server is not None:
                await stop_accepting(self._server.sockets)
                self._server.close()

    async def _listen(self) -> asyncio.Server:
        if isinstance(self._where, str):
            return await asyncio.start_unix_server(self._serve, self._where, limit=MAX_REQUEST)
        host, port = self._where
        # On [::] asyncio listens for IPv6 alone; whoever writes it means every address that there is.
        return await asyncio.start_server(self._serve, None if host == "::" else host, port, limit=MAX_REQUEST)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                async with asyncio.timeout(DEADLINE):
                    head = await reader.readuntil(b"\r\n\r\n")
                page, with_body = await self._answer(head)
                writer.write(_response(page, with_body=with_body))
                async with asyncio.timeout(DEADLINE):
                    await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, head: bytes) -> tuple[Page, bool]:
        parts = head.split(b"\r\n", 1)[0].split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            return Page(400, b"not HTTP\n"), True
        if parts[0] not in (b"GET", b"HEAD"):
            return Page(405, b"only GET and HEAD\n"), True
        handler = self._pages.get(parts[1].split(b"?", 1)[0].decode("latin-1"))
        if handler is None:
            return Page(404, f"there are {', '.join(self._pages)}\n".encode()), True
        return await handler(), parts[0] == b"GET"


def _response(page: Page, *, with_body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {page.status} {_REASONS[page.status]}\r\nContent-Type: {page.content_type}\r\n"
        f"Content-Length: {len(page.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (page.body if with_body else b"")


def _parse(address: str) -> str | tuple[str, int]:
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address.removeprefix("unix:")
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 0xFFFF or not host:
        raise ConfigError(
            f"{address!r} is no address for HTTP", advice="Use HOST:PORT, [ADDRESS]:PORT for IPv6, or unix:PATH."
        )
    return host.strip("[]"), int(port)
