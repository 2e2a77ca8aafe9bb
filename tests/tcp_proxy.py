"""A proxy between a client and a server on 127.0.0.1 that can be a bad network: silent, or cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from running_attestation_service import free_port


class TcpProxy:
    """Forwards connections to `target`; while `silent`, what is sent goes nowhere, and nobody is told."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.asked = 0
        """Pieces that came from clients: of those that wait for each answer, the number of exchanges."""
        self._target = target
        self._open = threading.Event()
        self._open.set()
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> None:
        """Connections stay and new ones are accepted, but no byte passes."""
        self._open.clear()

    def restore(self, *, cut: bool = True) -> None:
        """Bytes pass again; connections from before are ended."""
        if cut:
            self.cut()
        self._open.set()

    def cut(self) -> None:
        """End every connection."""
        ends, self._ends = self._ends, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._open.set()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with suppress(OSError):
                server = socket.create_connection(("127.0.0.1", self._target))
                self._ends += [client, server]
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, target), daemon=True).start()
                continue
            client.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.asked += source.getsockname()[1] == self.port
                self._open.wait()
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
