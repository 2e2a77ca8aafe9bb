"""The sample between attackers: who stands in the middle, plays back, or lends other evidence gets nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from confcom.cli.exit_codes import ExitCode
from sample_stage import EXAMPLE, SIGNER, Ended, Stage, finish

HELLO, EVIDENCE, MESSAGE = 1, 2, 3
SENDERS = "BABABA"
"""B calls A, so B speaks first; each says hello, evidence, message."""

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


def read_frame(stream: socket.socket) -> tuple[int, bytes]:
    data = b""
    while len(data) < 5 or len(data) < 5 + int.from_bytes(data[1:5], "big"):
        piece = stream.recv(65536)
        if not piece:
            raise EOFError
        data += piece
    return data[0], data[5:]


def frame(kind: int, payload: bytes) -> bytes:
    return bytes([kind]) + len(payload).to_bytes(4, "big") + payload


def converse_through_a_relay(stage: Stage, tamper: Tamper, *options: str) -> tuple[Ended, Ended, list[bytes]]:
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
                    kind, payload = read_frame(streams[sender])
                    said.append(payload)
                    streams["BA"["AB".index(sender)]].sendall(frame(kind, tamper(number, payload)))
                except (EOFError, OSError):
                    return

    side_a = stage.peer("A", "--listen", "--enclave", EXAMPLE / "enclave_a.toml", *options)
    thread = threading.Thread(target=relay)
    thread.start()
    side_b = stage.peer(
        "B", "--connect", "--connect", "unix:relay", "--enclave", EXAMPLE / "enclave_b.toml", *options
    )  # fmt: skip
    ended = finish(side_a), finish(side_b)
    thread.join(timeout=60)
    return *ended, said


def unchanged(number: int, payload: bytes) -> bytes:
    return payload


def test_a_relay_can_carry_the_conversation_but_not_read_it(stage: Stage) -> None:
    a, b, said = converse_through_a_relay(stage, unchanged)
    assert (a.code, b.code) == (ExitCode.OK, ExitCode.OK)
    assert len(said) == len(SENDERS)
    assert b"greetings" not in b"".join(said)


@pytest.mark.promise("M12")
@pytest.mark.parametrize(
    ("number", "position"),
    [
        pytest.param(0, 17, id="kind in B's hello"),
        pytest.param(0, 30, id="nonce in B's hello"),
        pytest.param(0, 300, id="target info in B's hello"),
        pytest.param(1, 30, id="nonce in A's hello"),
        pytest.param(2, 5, id="B's public key"),
        pytest.param(2, 32 + 48 + 64, id="B's MRENCLAVE"),
        pytest.param(2, 32 + 48 + 320, id="B's report data"),
        pytest.param(2, 32 + 436 + 10, id="the signature of B's quote"),
        pytest.param(3, 5, id="A's public key"),
        pytest.param(3, 32 + 48 + 258, id="A's SVN"),
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
    assert len(said) > number
    assert "received, encrypted" not in victim.out
    assert victim.code in {ExitCode.NOT_AUTHENTIC, ExitCode.REFUSED, ExitCode.PLATFORM}


@pytest.mark.promise("M12")
@pytest.mark.parametrize("local", [False, True], ids=["remote", "local"])
def test_somebody_in_the_middle_cannot_put_his_own_keys_in(local: bool, stage: Stage) -> None:
    def own_keys(number: int, payload: bytes) -> bytes:
        return bytes(range(32)) + payload[32:] if number in {2, 3} else payload

    a, b, _ = converse_through_a_relay(stage, own_keys, *(["--local"] if local else []))
    assert "report-data" in a.err if not local else "about other data" in a.err
    assert b.code != ExitCode.OK
    assert "accepted the peer" not in a.out + b.out


@pytest.mark.promise("M12")
def test_a_recorded_quote_does_not_fit_another_conversation(stage: Stage) -> None:
    """Freshness: all that B ever said, byte for byte, is worth nothing against A's next nonce."""
    _, _, said = converse_through_a_relay(stage, unchanged)
    a = stage.peer("A", "--listen", "--enclave", EXAMPLE / "enclave_a.toml")
    with connect(stage.folder / "meet") as stream:
        stream.sendall(frame(HELLO, said[0]))
        read_frame(stream)
        stream.sendall(frame(EVIDENCE, said[2]))
        kind, reason = read_frame(stream)
    ended = finish(a)
    assert ended.code == ExitCode.REFUSED
    assert "report-data" in ended.err
    assert "mr-signer" not in ended.err  # everything else about it was good
    assert (kind, reason) == (15, b"policy-refused")


@pytest.mark.promise("M12")
def test_an_enclaves_own_quote_played_back_does_not_pass_for_a_peers(stage: Stage) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stage.folder / "meet"))
        listener.listen(1)
        listener.settimeout(60)
        b = stage.peer("B", "--connect", "--enclave", EXAMPLE / "enclave_b.toml")
        stream, _ = listener.accept()
        with stream:
            _, hello = read_frame(stream)
            mirrored = hello[:16] + b"\x02" + hello[17:18] + bytes(32) + hello[50:]
            stream.sendall(frame(HELLO, mirrored))
            _, evidence = read_frame(stream)
            stream.sendall(frame(EVIDENCE, evidence))
            ended = finish(b)
    assert ended.code == ExitCode.REFUSED
    assert "report-data" in ended.err
    assert "mr-signer" not in ended.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hello: hello, "claims our own role"),
        (lambda hello: hello[:16] + b"\x02" + hello[17:], "our own nonce"),
        (lambda hello: hello[:16] + b"\x02\x02" + bytes(32) + hello[50:], "local attestation"),
        (lambda hello: b"another protocol" + b"\x02" + hello[17:], "another protocol"),
    ],
)
def test_a_hello_that_mirrors_ours_is_refused(change: Callable[[bytes], bytes], words: str, stage: Stage) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stage.folder / "meet"))
        listener.listen(1)
        listener.settimeout(60)
        b = stage.peer("B", "--connect")
        stream, _ = listener.accept()
        with stream:
            _, hello = read_frame(stream)
            stream.sendall(frame(HELLO, change(hello)))
            ended = finish(b)
    assert ended.code == ExitCode.PLATFORM
    assert words in ended.err
    assert SIGNER not in ended.out
    assert "sent a quote" not in ended.out
