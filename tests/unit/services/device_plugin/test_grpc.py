from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpclib.const import Status

from confcom import errors
from confcom.protocols import kubelet as k
from confcom.services.device_plugin.grpc import GrpcSocket, call, status_of


def test_every_error_has_a_status() -> None:
    waiting = [errors.ConfcomError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        assert isinstance(status_of(kind.__new__(kind)), Status)
    assert status_of(errors.PolicyError("x")) is Status.PERMISSION_DENIED
    assert status_of(errors.FormatError("x", structure="s", field="f")) is Status.INVALID_ARGUMENT


async def answering(path: Path, answer: object) -> GrpcSocket:
    async def handle(request: k.PreStartContainerRequest) -> k.Empty:
        if isinstance(answer, Exception):
            raise answer
        assert request.devices_ids == ["a"]
        return k.Empty()

    socket = GrpcSocket(path, {k.PRE_START_CONTAINER: handle})
    await socket.start()
    return socket


async def test_a_call_and_its_answer(tmp_path: Path) -> None:
    socket = await answering(tmp_path / "s", None)
    request = k.PreStartContainerRequest(devices_ids=["a"])
    assert await call(tmp_path / "s", k.PRE_START_CONTAINER, request, timeout=60) == k.Empty()
    await socket.close()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.PolicyError("not you"), "PERMISSION_DENIED: policy-refused: not you"),
        (ValueError("a secret of ours"), "INTERNAL: ValueError"),
    ],
)
async def test_errors_of_a_handler_reach_the_caller_as_statuses(tmp_path: Path, error: Exception, said: str) -> None:
    socket = await answering(tmp_path / "s", error)
    with pytest.raises(errors.RemoteProtocolError, match=said):
        await call(tmp_path / "s", k.PRE_START_CONTAINER, k.PreStartContainerRequest(devices_ids=["a"]), timeout=60)
    await socket.close()


@pytest.mark.parametrize(
    ("compression", "said"),
    [(grpc.Compression.NoCompression, "PreStartContainerRequest"), (grpc.Compression.Gzip, "not implemented")],
)
async def test_bytes_that_are_no_request_are_an_invalid_argument(
    tmp_path: Path, compression: grpc.Compression, said: str
) -> None:
    socket = await answering(tmp_path / "s", None)

    def refusal() -> grpc.RpcError:
        with grpc.insecure_channel(f"unix:{tmp_path / 's'}", options=[("grpc.default_authority", "localhost")]) as peer:
            ask = peer.unary_unary(k.PRE_START_CONTAINER.path)
            with pytest.raises(grpc.RpcError) as refused:
                ask(b"\x0a\xff" + b"a" * 200, timeout=60, compression=compression)
            return refused.value

    error = await asyncio.to_thread(refusal)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in error.details()
    await socket.close()


async def test_nobody_there_and_an_unknown_method(tmp_path: Path) -> None:
    with pytest.raises(errors.PlatformUnavailable, match="cannot reach"):
        await call(tmp_path / "none", k.ALLOCATE, k.AllocateRequest(), timeout=60)
    socket = await answering(tmp_path / "s", None)
    with pytest.raises(errors.RemoteProtocolError, match="answered"):
        await call(tmp_path / "s", k.ALLOCATE, k.AllocateRequest(), timeout=60)
    await socket.close()


async def test_a_peer_that_ends_each_connection_at_once_is_a_failure_that_is_told(tmp_path: Path) -> None:
    """A kubelet that ends while it is asked: wherever the library is by then, it is no mistake of ours."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen(16)

    def hang_up() -> None:
        with suppress(OSError):
            while True:
                listener.accept()[0].close()

    threading.Thread(target=hang_up, daemon=True).start()
    for attempt in range(60):
        request = k.PreStartContainerRequest(devices_ids=["a"])
        asking = asyncio.create_task(call(tmp_path / "s", k.PRE_START_CONTAINER, request, timeout=60))
        for step in range(2):
            await asyncio.sleep(0)
            # The loop is held up, so that connection and end arrive together.
            time.sleep(0.001 if attempt % 3 != step else 0)
        with pytest.raises(errors.RemoteProtocolError, match="broke the call off"):
            await asking
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


async def test_a_successor_takes_the_path_and_keeps_it(tmp_path: Path) -> None:
    first = await answering(tmp_path / "s", None)
    second = await answering(tmp_path / "s", None)
    assert not first.owns_path()
    assert second.owns_path()
    await first.close()
    assert second.owns_path()
    await second.close()


def test_a_path_that_no_socket_can_have_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="107 bytes at most"):
        GrpcSocket(tmp_path / ("x" * 108), {})


async def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(errors.ConfigError, match="not a socket"):
        GrpcSocket(tmp_path / "s", {})
    assert (tmp_path / "s").read_text() == "mine"


@pytest.mark.parametrize("turns", range(6))
async def test_whoever_is_being_accepted_while_the_socket_closes_is_let_go(tmp_path: Path, turns: int) -> None:
    """Turns of the loop lie between a connection's arrival and its being served; none of them may lose it."""
    server = GrpcSocket(tmp_path / "s", {})
    await server.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.close()
        await server.close()  # once more does no harm
        gc.collect()  # what was lost says so now
        client.settimeout(60)
        with suppress(ConnectionResetError):
            while client.recv(4096):
                pass
