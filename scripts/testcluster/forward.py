"""Passes connections to a port of the host's 127.0.0.1 on to the API server in the cluster's network namespace."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import sys
from functools import partial
from pathlib import Path

_CLONE_NEWNET = 0x40000000


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until one side ends."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def connect(api_port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One client's connection."""
    try:
        upstream = await asyncio.open_connection("127.0.0.1", api_port)
    except OSError:
        writer.close()
        return
    await asyncio.gather(pump(reader, upstream[1]), pump(upstream[0], writer))


async def serve(listener: socket.socket, api_port: int) -> None:
    """Serve until ended."""
    server = await asyncio.start_server(partial(connect, api_port), sock=listener)
    await server.serve_forever()


def main(namespace: str, port: int, api_port: int) -> None:
    """Listen in the host's namespace, then move into the cluster's."""
    # With the protocol's number: asyncio sets TCP_NODELAY only where it stands; without, many an answer waits 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    entry = os.open(Path(namespace), os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(entry, _CLONE_NEWNET):
        sys.exit(f"forward: cannot enter {namespace}: {os.strerror(ctypes.get_errno())}")
    asyncio.run(serve(listener, api_port))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
