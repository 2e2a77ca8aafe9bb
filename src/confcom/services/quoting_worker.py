"""The process that quotes beside the quote helper: a platform of its own, and one channel to the helper.

The channel is a Unix socket of packets on standard input. In comes a request frame as a client sent it, out goes a
`Reply`; first of all `READY`, or what went wrong. The client's connection stays with the helper: when this process
dies, the helper still has the request and gives it to another. When the helper dies, the channel ends, and so does
this process.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Literal

import msgspec

from confcom.errors import ConfcomError, PlatformError
from confcom.protocols.aesm import response_frame
from confcom.protocols.aesm_exchanges import IncompleteRequest
from confcom.protocols.aesm_messages import Request
from confcom.protocols.aesm_reader import RequestReader
from confcom.services.aesm_broker import AesmBroker, Answer

READY = b"ready"
MAX_PACKET = 160 * 1024
"""Longest frame either way, with what a reply adds."""


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the helper tells its workers, as JSON on the command line."""

    platform: Literal["simulated"]
    machine: str | None
    max_request: int


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """An answer's frame, its status number, the error behind a refusal, and the seconds that it took."""

    frame: bytes
    status: int
    error_code: str | None
    error: str
    duration: float


def answer_safely(broker: AesmBroker, request: Request | IncompleteRequest) -> Answer:
    """The broker's answer; a mistake in a platform becomes a refusal, because the client must have an answer."""
    try:
        return broker.answer(request)
    except Exception as error:  # noqa: BLE001 - see above
        return broker.refuse(request, PlatformError(f"{type(error).__name__}: {error}"))


def serve_channel(channel: socket.socket, broker: AesmBroker, max_request: int) -> None:
    """Answer until the channel ends."""
    encode = msgspec.msgpack.Encoder().encode
    reader = RequestReader(max_request)
    packet = memoryview(bytearray(MAX_PACKET))  # one for all: asking for so much anew each time would cost more
    while size := channel.recv_into(packet):
        started = time.monotonic()
        request = reader.whole(bytes(packet[:size]))
        assert request is not None, "the helper passes on whole requests"  # noqa: S101
        answer = answer_safely(broker, request)
        frame = response_frame(request, answer.response)
        code, message = (None, "") if answer.error is None else (answer.error.code, answer.error.message)
        channel.send(encode(Reply(frame, int(answer.response.status), code, message, time.monotonic() - started)))


def main() -> int:
    """Open the platform, make its key, serve the channel on standard input."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the helper decides, and tells by closing the channel
    settings = msgspec.json.decode(sys.argv[1], type=WorkerSettings)
    with socket.socket(fileno=os.dup(0)) as channel:
        from confcom.services.wiring import open_platform

        try:
            machine = None if settings.machine is None else Path(settings.machine)
            broker = AesmBroker(open_platform(settings.platform, machine=machine))
            broker.warm_up()
        except ConfcomError as error:
            channel.send(error.message.encode()[:MAX_PACKET])
            return 1
        gc.collect()
        gc.freeze()  # nothing of this is garbage ever
        try:
            channel.send(READY)
            serve_channel(channel, broker, settings.max_request)
        except (BrokenPipeError, ConnectionResetError):  # the helper is gone
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
