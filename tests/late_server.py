"""A TLS server that begins an answer and goes on when it is told to, after the client has given up."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from confcom.pki.serving_pair import make_serving_pair

OTHERS = b"\x17\x03\x03\x00\x05bytes of another connection"
"""What another connection carries; it begins as a TLS record does."""


@dataclass
class LateServer:
    url: str
    ca: Path
    goes_on: threading.Event = field(default_factory=threading.Event)

    def check_other_connections(self) -> None:
        """Connections that take the freed descriptors keep their bytes, and get none, while the answer goes on."""
        with ExitStack() as stack:
            ends = [stack.enter_context(end) for _ in range(4) for end in socket.socketpair()]
            for end in ends:
                end.send(OTHERS)
            self.goes_on.set()
            time.sleep(0.3)  # for a thread that still reads
            for end in ends:
                end.setblocking(False)
                assert end.recv(1000) == OTHERS


@contextmanager
def late_server(folder: Path) -> Iterator[LateServer]:
    now = datetime.fromtimestamp(time.time(), UTC)
    ca, pair = make_serving_pair(("127.0.0.1",), now=now, lifetime=timedelta(days=1), common_name="late")
    paths = [folder / name for name in ("late-ca.crt", "late.crt", "late.key")]
    for path, content in zip(paths, (ca, pair.certificate, pair.key), strict=True):
        path.write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths[1], paths[2])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        found = LateServer(f"https://127.0.0.1:{listening.getsockname()[1]}", paths[0])

        def answer() -> None:
            with suppress(OSError), context.wrap_socket(listening.accept()[0], server_side=True) as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-More: ")
                assert found.goes_on.wait(120)
                connection.sendall(b"a")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield found
        finally:
            found.goes_on.set()
            thread.join(120)
