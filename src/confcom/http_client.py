"""What the HTTP clients share: a deadline for a whole exchange, and TLS with authorities from a file.

The HTTP library's timeouts are for single reads, and a server can drip.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from confcom.errors import ConfigError
from confcom.input_file import read_bounded

T = TypeVar("T")
MAX_AUTHORITIES = 4 << 20
"""Bytes of a file of CA certificates; those of systems have a quarter of a megabyte."""
ENDING = 1.0
"""Seconds for the thread of an exchange to end after its connection was shut down."""


def within(seconds: float, ask: Callable[[dict[str, Any]], T]) -> T:
    """What `ask` returns or raises; `TimeoutError` after `seconds`.

    `ask` runs in a thread of its own. It gets the `extensions` for its one request, which goes over a new connection.
    The deadline shuts that connection down, which ends the thread. Closed from here, the connection would give its
    file descriptor to another one, and OpenSSL in the thread would read and write there.
    """
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    late = threading.Event()
    streams: list[Any] = []

    def shut_down() -> None:
        for stream in streams:
            with suppress(OSError):
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def trace(event: str, details: Mapping[str, Any]) -> None:
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            streams.append(details["return_value"])
            if late.is_set():
                shut_down()

    def work() -> None:
        try:
            answers.put((ask({"trace": trace}), None))
        except BaseException as error:  # noqa: BLE001 - raised by the caller's thread
            answers.put((None, error))

    thread = threading.Thread(target=work, name="http-exchange", daemon=True)
    thread.start()
    try:
        found, failure = answers.get(timeout=seconds)
    except queue.Empty:
        late.set()
        shut_down()
        thread.join(ENDING)
        raise TimeoutError from None
    if failure is not None:
        raise failure
    return found  # type: ignore[return-value]


def verifying_context(ca: Path | None) -> ssl.SSLContext:
    """TLS that verifies servers by the authorities in a PEM file; without a file, by those of the system.

    A file that cannot be used is a `ConfigError`. From 3.13 on Python refuses authorities without extensions that
    RFC 5280 requires; many private ones have none.
    """
    if ca is None:
        return ssl.create_default_context()
    try:
        pem = read_bounded(ca, MAX_AUTHORITIES)
        if not pem or len(pem) > MAX_AUTHORITIES:
            raise ValueError(f"expected 1 to {MAX_AUTHORITIES} bytes of PEM")
        # Bundles have comments between certificates, in any language.
        context = ssl.create_default_context(cadata=pem.decode("ascii", "ignore"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the file of CA certificates {ca} cannot be used: {getattr(error, 'strerror', None) or error}",
            advice="Name a PEM file with the CA that issued the service's certificate.",
        ) from error
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
