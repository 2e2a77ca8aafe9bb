"""The program of `examples/remote_attestation` under attack: a relay that alters, replays or puts its own keys in."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from confcom.errors import ExitCode
from sample_stage import Ended, Stage, finish

HELLO_SIZE = 48
"""Bytes: protocol (16), public key (32); all later parts stand behind their length (4)."""
SENDERS = "BABABA"
"""B calls A, so B speaks first; each sends hello, quote, message."""

Tamper = Callable[[int, bytes], bytes]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    stage.prepare()
    yield stage
    stage.end()


def connect(path: Path) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(60)
    deadline = time.monotonic() + 60
    while True:
        try:
            stream.connect(str(path))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return stream


def read_part(stream: socket.socket, *, hello: bool = False) -> bytes:
    if hello:
        return read_exactly(stream, HELLO_SIZE)
    return read_exactly(stream, int.from_bytes(read_exactly(stream, 4), "big"))


def read_exactly(stream: socket.socket, size: int) -> bytes:
    """So many bytes and none of the next part, which may come along."""
    data = b""
    while len(data) < size:
        piece = stream.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def part(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def converse_through_a_relay(stage: Stage, tamper: Tamper) -> tuple[Ended, Ended, list[bytes]]:
    """A waits, B goes to the relay, the relay passes on what `tamper` makes of each frame; all that was said."""
    said: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(stage.folder / "relay"))
    listener.listen(1)
    listener.settimeout(60)

    def relay() -> None:
        with connect(stage.folder / "meet") as a, listener, listener.accept()[0] as b:
            streams = {"A": a, "B": b}
            for number, sender in enumerate(SENDERS):
                try:
                    payload = read_part(streams[sender], hello=number < 2)
                    said.append(payload)
                    changed = tamper(number, payload)
                    streams["BA"["AB".index(sender)]].sendall(changed if number < 2 else part(changed))
                except (EOFError, OSError):
                    return

    side_a = stage.peer("A", "--listen")
    thread = threading.Thread(target=relay)
    thread.start()
    side_b = stage.peer("B", "--connect", "--connect", "unix:relay")
    ended = finish(side_a), finish(side_b)
    thread.join(timeout=60)
    return *ended, said


def unchanged(number: int, payload: bytes) -> bytes:
    return payload


def test_a_relay_can_carry_the_conversation_but_not_read_it(stage: Stage) -> None:
    a, b, said = converse_through_a_relay(stage, unchanged)
    assert (a.code, b.code) == (ExitCode.OK, ExitCode.OK), (a, b)
    assert len(said) == len(SENDERS)
    assert b"hello from" not in b"".join(said)


@pytest.mark.promise("M12")
@pytest.mark.parametrize(
    ("number", "position"),
    [
        pytest.param(0, 3, id="protocol in B's hello"),
        pytest.param(0, 30, id="B's public key"),
        pytest.param(1, 30, id="A's public key"),
        pytest.param(2, 48 + 64, id="B's MRENCLAVE"),
        pytest.param(2, 48 + 320, id="B's report data"),
        pytest.param(2, 436 + 10, id="the signature of B's quote"),
        pytest.param(3, 48 + 258, id="A's SVN"),
        pytest.param(4, 0, id="B's message"),
        pytest.param(5, -1, id="A's message"),
    ],
)
def test_a_relay_that_changes_one_bit_is_noticed(number: int, position: int, stage: Stage) -> None:
    def flip(current: int, payload: bytes) -> bytes:
        changed = bytearray(payload)
        if current == number:
            changed[position] ^= 1
        return bytes(changed)

    a, b, said = converse_through_a_relay(stage, flip)
    victim = a if SENDERS[number] == "B" else b
    assert len(said) > number, (a, b)
    assert "received, encrypted" not in victim.out
    assert victim.code in {ExitCode.NOT_AUTHENTIC, ExitCode.REFUSED, ExitCode.PLATFORM}


@pytest.mark.promise("M12")
def test_a_relay_cannot_put_its_own_keys_in(stage: Stage) -> None:
    def own_keys(number: int, payload: bytes) -> bytes:
        return payload[:16] + bytes(range(32)) if number in {0, 1} else payload

    a, b, _ = converse_through_a_relay(stage, own_keys)
    assert "report-data" in a.err
    assert b.code != ExitCode.OK
    assert "accepted the peer" not in a.out + b.out


@pytest.mark.promise("M12")
def test_a_recorded_quote_does_not_fit_another_conversation(stage: Stage) -> None:
    """Freshness: all that B ever sent, byte for byte, is refused where A has its next key."""
    _, _, said = converse_through_a_relay(stage, unchanged)
    a = stage.peer("A", "--listen")
    with connect(stage.folder / "meet") as stream:
        stream.sendall(said[0] + part(said[2]))
        ended = finish(a)
        answer = read_part(stream, hello=True)
        assert stream.recv(1) == b""  # its key, and nothing else
    assert answer[:16] == said[1][:16]
    assert ended.code == ExitCode.REFUSED
    assert "report-data" in ended.err
    assert "mr-signer" not in ended.err  # everything else about it was good


@pytest.mark.promise("M12")
def test_an_enclaves_own_quote_played_back_does_not_pass_for_a_peers(stage: Stage) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stage.folder / "meet"))
        listener.listen(1)
        listener.settimeout(60)
        b = stage.peer("B", "--connect")
        stream, _ = listener.accept()
        with stream:
            stream.sendall(read_part(stream, hello=True))
            stream.sendall(part(read_part(stream)))
            ended = finish(b)
    assert ended.code == ExitCode.REFUSED
    assert "report-data" in ended.err
    assert "mr-signer" not in ended.err


def test_another_protocol_gets_no_quote(stage: Stage) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stage.folder / "meet"))
        listener.listen(1)
        listener.settimeout(60)
        b = stage.peer("B", "--connect")
        stream, _ = listener.accept()
        with stream:
            stream.sendall(b"another protocol" + read_part(stream, hello=True)[16:])
            ended = finish(b)
            assert stream.recv(1) == b""
    assert ended.code == ExitCode.PLATFORM
    assert "another protocol" in ended.err
    assert "sent a quote" not in ended.out
