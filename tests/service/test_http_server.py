"""What a hostile client can hold of our HTTP server: connections, answers that it does not read, the event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import ssl
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from confcom.errors import ConfigError
from confcom.pki.serving_pair import make_serving_pair
from confcom.services.runtime.http_server import ACCEPT_PAUSE, FIRST_REQUEST, Listener, _client_key, serve_http
from confcom.services.runtime.tls import HeldTls

GET = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
HANG = 60


class Application:
    """Answers every path with as many bytes as it says, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append("?".join(filter(None, (scope["path"], scope["query_string"].decode()))))
        status, body = 200, b"x" * int(scope["path"].strip("/") or 0)
        if scope["method"] == "POST":
            body = b""
            status = 400
            while (message := await receive())["type"] == "http.request":
                body += message["body"]
                if not message["more_body"]:
                    status = 200
                    break
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Running:
    """A server in this process, and what of it the tests look at."""

    def __init__(self, app: Application, port: int) -> None:
        self.app = app
        self.port = port
        self.clients: list[socket.socket] = []
        self.stop = asyncio.Event()

    def connect(self, *, source: str = "127.0.0.1") -> socket.socket:
        """A client that does not read and has little room for what it is sent."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.bind((source, 0))
        client.connect(("127.0.0.1", self.port))
        client.setblocking(False)
        self.clients.append(client)
        return client

    async def ask(self, size: int = 5, *, source: str = "127.0.0.1") -> bytes:
        """A whole answer over a connection of its own."""
        async with asyncio.timeout(HANG):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
            writer.write(b"GET /%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % size)
            answer = await reader.read()
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            return answer


@asynccontextmanager
async def running(**limits: Any) -> AsyncIterator[Running]:
    app, stop = Application(), asyncio.Event()
    started = asyncio.get_running_loop().create_future()
    listener = Listener(address=("127.0.0.1", 0), **limits)
    serving = asyncio.create_task(serve_http(app, listener, stop=stop, started=started.set_result))
    server = Running(app, int((await started).rpartition(":")[2]))
    server.stop = stop
    try:
        yield server
    finally:
        for client in server.clients:
            client.close()
        stop.set()
        await serving


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "\udcff"])
async def test_a_name_that_cannot_be_one_is_an_address_to_correct(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        await serve_http(Application(), Listener(address=(host, 0)), stop=asyncio.Event())


async def test_a_replica_that_was_told_to_stop_still_answers_and_ends_each_connection() -> None:
    app, stop = Application(), asyncio.Event()
    started = asyncio.get_running_loop().create_future()
    listener = Listener(address=("127.0.0.1", 0), leave_after=3600)
    serving = asyncio.create_task(serve_http(app, listener, stop=stop, started=started.set_result))
    server = Running(app, int((await started).rpartition(":")[2]))
    async with asyncio.timeout(HANG):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET % 5)
        assert b"connection" not in (await reader.readuntil(b"\r\n\r\n")).lower()
        assert await reader.readexactly(5)
        stop.set()
        await asyncio.sleep(0)
        writer.write(GET % 5)
        assert b"connection: close" in (await reader.read()).lower()  # up to the end of the connection
        writer.close()
        assert (await server.ask()).startswith(b"HTTP/1.1 200")
        assert not serving.done()
        serving.cancel()
        await asyncio.wait([serving])


async def test_an_answer_that_did_not_end_its_connection_is_followed_by_one_that_does() -> None:
    """The replica was told to stop while it answered: a client that sends its next request loses nothing."""
    begun, stop = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
        if not begun.is_set():
            begun.set()
            await stop.wait()
            await asyncio.sleep(0)  # the server has noticed
        await send({"type": "http.response.body", "body": b"k"})

    started = asyncio.get_running_loop().create_future()
    listener = Listener(address=("127.0.0.1", 0), leave_after=3600)
    serving = asyncio.create_task(serve_http(app, listener, stop=stop, started=started.set_result))
    async with asyncio.timeout(HANG):
        reader, writer = await asyncio.open_connection("127.0.0.1", int((await started).rpartition(":")[2]))
        writer.write(GET % 0)
        await begun.wait()
        stop.set()
        assert b"connection" not in (await reader.readuntil(b"\r\n\r\n")).lower()
        assert await reader.readexactly(2) == b"ok"
        writer.write(GET % 0)
        last = await reader.read()  # up to the end of the connection
        assert b"connection: close" in last.lower()
        assert last.endswith(b"\r\n\r\nok")
        writer.close()
        serving.cancel()
        await asyncio.wait([serving])


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("said", [b"", b"GET /5 HT"])
async def test_who_was_let_in_before_the_end_gets_an_answer(said: bytes, accepted: bool) -> None:
    """A client of a rolling update whose connection is open and has no request yet, or waits in the kernel."""
    async with running() as server, asyncio.timeout(HANG):
        client = server.connect()  # the kernel lets it in
        if accepted:
            client.send(said)
            await asyncio.sleep(0.05)
        server.stop.set()
        await asyncio.sleep(0.05)
        if not accepted:
            client.send(said)
        client.send((GET % 5)[len(said) :])
        answer = b""
        while piece := await asyncio.get_running_loop().sock_recv(client, 65536):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in answer.lower()
        assert answer.endswith(b"\r\n\r\nxxxxx")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))


async def test_who_asks_nothing_holds_up_the_end_for_two_seconds_at_most_and_an_idle_connection_not_at_all() -> None:
    loop = asyncio.get_running_loop()
    for asked, least, most in ((True, 0, FIRST_REQUEST), (False, FIRST_REQUEST, HANG)):
        async with running() as server, asyncio.timeout(HANG):
            client = server.connect()
            if asked:
                client.send(GET % 5)
                assert await loop.sock_recv(client, 999)
            await asyncio.sleep(0.05)
            begun = loop.time()
            server.stop.set()
            await is_closed(client)
            assert least <= loop.time() - begun < most


async def test_a_handshake_that_is_under_way_at_the_end_is_followed_by_an_answer() -> None:
    now = datetime.fromtimestamp(time.time(), UTC)
    authority, pair = make_serving_pair(("127.0.0.1",), now=now, lifetime=timedelta(days=1), common_name="test")
    trusting = ssl.create_default_context(cadata=authority.decode())
    async with running(tls=HeldTls(pair.certificate, pair.key)) as server, asyncio.timeout(HANG):
        client = server.connect()
        await asyncio.sleep(0.05)
        server.stop.set()
        reader, writer = await asyncio.open_connection(sock=client, ssl=trusting, server_hostname="127.0.0.1")
        writer.write(GET % 5)
        assert (await reader.read()).endswith(b"\r\n\r\nxxxxx")
        writer.close()


async def is_closed(client: socket.socket) -> None:
    """Wait until the server has ended a connection."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(HANG):
        with suppress(ConnectionResetError):
            while await loop.sock_recv(client, 65536):
                pass


async def test_clients_that_do_not_read_their_answers_do_not_shut_others_out() -> None:
    async with running(max_connections=128, write_timeout=30) as server:
        rude = [server.connect() for _ in range(512)]
        for client in rude:
            client.send(GET % 1_000_000)
            await asyncio.sleep(0)
        for _ in range(5):
            assert (await server.ask()).endswith(b"\r\n\r\nxxxxx")


async def test_pipelined_requests_are_answered_one_after_another_and_hold_up_nobody() -> None:
    async with running(max_connections=128, write_timeout=30) as server:
        rude = [server.connect() for _ in range(64)]
        for client in rude:
            with suppress(BlockingIOError):
                for _ in range(64):
                    client.send(GET % 100_000)
        await asyncio.sleep(0.2)
        # No more than what fits into the buffers between is ever asked of the application.
        assert len(server.app.asked) < 64 * 10
        assert (await server.ask()).endswith(b"\r\n\r\nxxxxx")


async def test_one_connection_full_of_requests_takes_turns_with_others() -> None:
    async with running() as server:
        server.connect().send((GET % 0) * 2000)
        assert (await server.ask()).endswith(b"\r\n\r\nxxxxx")
        # The greedy one came first, and is not through yet.
        assert server.app.asked.index("/5") < 1000


async def test_output_without_progress_is_aborted() -> None:
    async with running(write_timeout=0.2) as server:
        with server.connect() as rude:
            rude.send(GET % 10_000_000)
            async with asyncio.timeout(HANG):
                while True:  # it takes nothing; once the server has given it up, a write fails
                    await asyncio.sleep(0.05)
                    try:
                        rude.send(b" ")
                    except (ConnectionResetError, BrokenPipeError):
                        break


async def test_a_client_that_reads_slowly_gets_all_of_a_large_answer() -> None:
    async with running(write_timeout=5) as server:
        with server.connect() as slow:
            slow.send(b"GET /2000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            found = 0
            while part := await asyncio.get_running_loop().sock_recv(slow, 32768):
                found += len(part)
                await asyncio.sleep(0.001)
            assert found > 2_000_000


async def test_answers_in_flight_are_bounded_together() -> None:
    """38 clients that want 8 MB each and read nothing: those that wait for longest go, a reader is served."""
    async with running(output_memory=20_000_000, write_timeout=HANG) as server:
        rude = [server.connect() for _ in range(38)]
        for client in rude:
            client.send(GET % 8_000_000)
        await asyncio.gather(*(is_closed_without_reading(client) for client in rude[:30]))
        assert len(await server.ask(1_000_000)) > 1_000_000


async def is_closed_without_reading(client: socket.socket) -> None:
    async with asyncio.timeout(HANG):
        while True:
            await asyncio.sleep(0.05)
            try:
                client.send(b" ")
            except (ConnectionResetError, BrokenPipeError):
                return


@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\nHost", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"]
)
async def test_a_newcomer_takes_the_place_of_the_oldest(said: bytes) -> None:
    limits = {"head_timeout": HANG, "body_timeout": HANG, "idle_timeout": HANG}
    async with running(max_connections=16, **limits) as server:
        silent = []
        for _ in range(40):
            client = server.connect()
            client.send(said)
            silent.append(client)
            await asyncio.sleep(0)
        assert (await server.ask()).endswith(b"\r\n\r\nxxxxx")
        await asyncio.gather(*(is_closed(client) for client in silent[:24]))


async def test_a_flood_from_one_address_leaves_the_connections_of_others_alone() -> None:
    async with running(max_connections=8) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=("127.0.0.2", 0))
        flood = []
        for turn in range(40):
            flood.append(server.connect())
            if turn % 10 == 0:
                writer.write(GET % 5)
                async with asyncio.timeout(HANG):
                    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
                    await reader.readexactly(5)
        writer.close()


async def test_handshakes_that_never_come_make_room() -> None:
    now = datetime.fromtimestamp(time.time(), UTC)
    authority, pair = make_serving_pair(("127.0.0.1",), now=now, lifetime=timedelta(days=1), common_name="test")
    tls = HeldTls(pair.certificate, pair.key)
    async with running(tls=tls, max_connections=16, head_timeout=HANG) as server:
        for _ in range(100):
            server.connect()
        trusting = ssl.create_default_context(cadata=authority.decode())
        async with asyncio.timeout(HANG):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trusting)
            writer.write(GET % 5)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_body_is_read_whole_and_in_pieces() -> None:
    body = bytes(range(256)) * 4096
    async with running() as server:
        for framing in (b"Content-Length: %d\r\n" % len(body), b"Transfer-Encoding: chunked\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" + framing + b"\r\n")
            async with asyncio.timeout(HANG):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
                chunked = framing.startswith(b"T")
                for begin in range(0, len(body), 5000):
                    piece = body[begin : begin + 5000]
                    writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n" if chunked else piece)
                writer.write(b"0\r\n\r\n" if chunked else b"")
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert await reader.readexactly(len(body)) == body
            writer.close()


POST = b"POST / HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("head_timeout", b""),
        ("head_timeout", b"GET /5 HTTP/1.1\r\nHost"),
        ("idle_timeout", GET % 5),
        ("idle_timeout", GET % 5 + b"GET /5 HTTP/1.1\r\nHost"),
        ("body_timeout", POST + b"Content-Length: 9\r\n\r\n"),
        ("body_timeout", POST + b"Content-Length: 9\r\n\r\nhalf"),
        ("body_timeout", POST + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
    ],
)
async def test_a_client_that_stops_is_cut_off_by_the_limit_of_its_step(limit: str, said: bytes) -> None:
    limits = dict.fromkeys(("head_timeout", "idle_timeout", "body_timeout"), 100.0 * HANG) | {limit: 0.05}
    async with running(**limits) as server, asyncio.timeout(HANG):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(said)
        with suppress(ConnectionResetError):
            await reader.read()  # up to the end of the connection
        writer.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (
            POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n",
            b"400",
        ),
        (b"GET /5 HTTP/2.0\r\nHost: a\r\n\r\n", b"505"),
        (b"PRI * HTTP/2.0\r\n\r\n", b"505"),
        (b"GET /5 HTTP/1.1\r\nHost: a/b\r\n\r\n", b"400"),
        (b"GET /5 HTTP/1.1\r\nHost: a b\r\n\r\n", b"400"),
        (b"GET /5 HTTP/1.1\r\nHost: \xc3\xa4\r\n\r\n", b"400"),
    ],
)
async def test_a_request_that_a_proxy_reads_otherwise_ends_its_connection(head: bytes, status: bytes) -> None:
    async with running() as server, asyncio.timeout(HANG):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head + GET % 6)  # smuggled
        writer.write_eof()
        answer = await reader.read()  # up to the end of the connection
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert answer.count(b"HTTP/1.1") == 1 + (b"only HTTP/1.1" in answer)
        assert server.app.asked == []
        writer.close()


@pytest.mark.parametrize("piece", [b"zz\r\nbody\r\n", b"4\r\nbodyX", b"-1\r\n", b"4\r\nbo"])
async def test_a_body_that_breaks_its_framing_is_refused_and_ends_its_connection(piece: bytes) -> None:
    async with running() as server, asyncio.timeout(HANG):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n" + piece)
        writer.write_eof()
        answer = await reader.read()  # up to the end of the connection
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"connection: close" in answer.lower()
        writer.close()


@pytest.mark.parametrize("empty", [[b"\r\n"], [b"\r", b"\n"], [b"\r\n\r\n"], [b"\n"]])
async def test_empty_lines_before_a_request_are_passed_over(empty: list[bytes]) -> None:
    async with running() as server, asyncio.timeout(HANG):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(2):
            for piece in empty:
                writer.write(piece)
                await asyncio.sleep(0.01)
            writer.write(POST + b"Content-Length: 4\r\n\r\nbody" + b"".join(empty) + GET % 5)
            for expected in (b"body", b"xxxxx"):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
                assert await reader.readexactly(len(expected)) == expected
        writer.close()


async def test_a_server_without_descriptors_says_so_once_and_that_it_goes_on() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with capture_logs() as logged:
        async with running() as server:
            server.clients += (waiting := [socket.socket() for _ in range(3)])
            for client in waiting:
                client.setblocking(False)
            os.close(lowest := os.dup(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                for client in waiting:
                    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", server.port))
                await asyncio.sleep(3 * ACCEPT_PAUSE)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for client in waiting:
                await asyncio.get_running_loop().sock_sendall(client, GET % 5)
                assert (await asyncio.get_running_loop().sock_recv(client, 999)).startswith(b"HTTP/1.1 200 ")
    assert [(line["event"], line["outcome"], line["reason"]) for line in logged] == [
        ("http.accept", "waits", "Too many open files"),
        ("http.accept", "goes on", ""),
    ]


def test_an_address_counts_as_one_whichever_way_it_is_written() -> None:
    assert _client_key(("::ffff:10.0.0.1", 1, 0, 0)) == _client_key(("10.0.0.1", 2))
    assert _client_key(("2001:db8::1", 1, 0, 0)) == _client_key(("2001:db8::ffff", 2, 0, 0))
    assert _client_key(("2001:db8:0:1::1", 1, 0, 0)) != _client_key(("2001:db8::1", 1, 0, 0))


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        (b"http://a/5", "/5"),
        (b"HTTPS://a:1/5?q", "/5?q"),
        (b"http://a", "/"),
        (b"http://a?q", "/?q"),
        (b"/5?http://a/6", "/5?http://a/6"),
    ],
)
async def test_a_target_may_have_the_form_that_is_for_proxies(target: bytes, asked: str) -> None:
    """RFC 9112, section 3.2.2."""
    async with running() as server, asyncio.timeout(HANG):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % target)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        assert server.app.asked == [asked]
        writer.close()


async def test_connections_that_ended_are_freed_at_once() -> None:
    """Each has 300 KiB for TLS: a flood of them must not wait for a garbage collection."""
    now = datetime.fromtimestamp(time.time(), UTC)
    authority, pair = make_serving_pair(("127.0.0.1",), now=now, lifetime=timedelta(days=1), common_name="test")
    trusting = ssl.create_default_context(cadata=authority.decode())
    gc.collect()
    gc.disable()
    try:
        before = tls_connections()
        async with running(tls=HeldTls(pair.certificate, pair.key), max_connections=4, head_timeout=HANG) as server:
            for _ in range(50):
                server.connect()  # never a handshake
                await asyncio.sleep(0.001)
            for size in (0, 5, 10_000_000) * 5:
                with socket.create_connection(("127.0.0.1", server.port)) as plain:
                    client = await asyncio.to_thread(trusting.wrap_socket, plain, server_hostname="127.0.0.1")
                    if size:
                        client.sendall(GET % size)
                        await asyncio.to_thread(client.recv, 100)
                    client.close()
            async with asyncio.timeout(HANG):
                while tls_connections() - before > 4:
                    await asyncio.sleep(0.05)
    finally:
        gc.enable()


def tls_connections() -> int:
    return sum(isinstance(found, SSLProtocol) for found in gc.get_objects())
