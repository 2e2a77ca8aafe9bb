"""Runs in a pod: attests over and over, from several clients, until it is told to end; then says how it went.

Every client is a careful one: a connection of its own for each request, report data of its own for each quote, and no
second try.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from confcom.errors import ConfcomError
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.wiring import declare_enclave, open_machine

CLIENTS = 4
PAUSE = 0.01
"""Seconds between two quotes of one client: load, but not all that the node can do."""

ended = threading.Event()
quotes = [0] * CLIENTS
slowest = [0.0] * CLIENTS
failures: list[str] = []


def attest(client: int) -> None:
    """One client's life."""
    enclave = open_machine(Path("/dev/sgx_enclave")).launch(declare_enclave(f"client {client}", "load"))
    source = EnclaveQuoteSource(AesmPlatform(simulated=True), enclave)
    while not ended.is_set():
        start = time.monotonic()
        try:
            source.quote(os.urandom(64))
            quotes[client] += 1
        except ConfcomError as error:
            failures.append(f"{time.time():.3f} {type(error).__name__}: {error}")
        slowest[client] = max(slowest[client], time.monotonic() - start)
        ended.wait(PAUSE)


def main() -> None:
    """Until SIGTERM, one line of figures a second; the last one is final."""
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    clients = [threading.Thread(target=attest, args=(client,)) for client in range(CLIENTS)]
    for client in clients:
        client.start()
    while not ended.wait(1):
        say(final=False)
    for client in clients:
        client.join()
    say(final=True)


def say(*, final: bool) -> None:
    """One line."""
    figures = {"quotes": sum(quotes), "slowest_s": round(max(slowest), 3), "failures": failures, "final": final}
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
