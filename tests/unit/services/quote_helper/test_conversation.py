"""A conversation costs its client no more than it must."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

from aesm_wire import KEY_ID, request
from confcom.protocols.aesm import GetQuoteExRequest
from confcom.services.quote_helper.broker import AesmBroker, PlatformCall
from confcom.services.quote_helper.connection import Conversation
from confcom.services.quote_helper.peers import Peer
from helper_process import eventually
from recording_platform import QUOTE_SIZE, RecordingPlatform


def test_a_client_that_waits_is_woken_by_its_answer_and_by_nothing_before() -> None:
    """Its request is read, and taken out of the socket only when the answer is there."""
    broker = AesmBroker(RecordingPlatform(initialized=True))
    broker.warm_up()
    ours, theirs = socket.socketpair()
    conversation = Conversation(ours, Peer("uid 1", 1, 0), bytes(12), 4096, time.monotonic())
    received: list[bytes] = []
    with ours, theirs:
        theirs.sendall(request(17, (1, bytes(432)), (2, KEY_ID), (4, QUOTE_SIZE)))
        client = threading.Thread(target=lambda: received.append(theirs.recv(1 << 16)))
        client.start()
        time.sleep(0.1)  # without the interpreter's lock, for which it may wait
        eventually("the client waits", lambda: state(client, "State").startswith("S"))
        slept = state(client, "voluntary_ctxt_switches")
        asked = conversation.read()
        time.sleep(0.1)
        assert state(client, "voluntary_ctxt_switches") == slept
        assert isinstance(asked, GetQuoteExRequest)
        call = broker.plan(asked)
        assert isinstance(call, PlatformCall)
        assert conversation.write(broker.perform(call)) == b""
        client.join(60)
        assert len(received[0]) > QUOTE_SIZE
        assert theirs.recv(1) == b""  # the end, and no reset for what was left unread


def state(thread: threading.Thread, name: str) -> str:
    lines = Path(f"/proc/self/task/{thread.native_id}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))
