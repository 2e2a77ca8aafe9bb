"""Attested TLS with libraries that only `./dev interop` installs (requirements/interop.txt)."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cryptography import x509

from attested_tls import HANG, SECRET, accepts, client, issuer, refusal, served, web_server, world
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import verify_certificate
from confcom.atls import ClientContext, NotAttested, ServerContext, attested_peer, https_only, serve_fresh
from confcom.atls.issuer import utc_now
from confcom.errors import ConfcomError

pytestmark = pytest.mark.interop
aiohttp = pytest.importorskip("aiohttp")
httpx = pytest.importorskip("httpx")
openssl = pytest.importorskip("OpenSSL")
uvloop = pytest.importorskip("uvloop")
websockets = pytest.importorskip("websockets")


def by_httpx(context: ClientContext, url: str) -> bytes:
    options: dict[str, Any] = {"verify": context, "timeout": HANG, "trust_env": False, "follow_redirects": True}
    with (
        httpx.Client(**options, event_hooks={"request": [https_only]}) as session,
        session.stream("POST", url, content=SECRET) as response,
    ):
        assert attested_peer(response).quote.simulated
        return response.read()  # type: ignore[no-any-return]


def by_httpx_async(context: ClientContext, url: str) -> bytes:
    async def send() -> bytes:
        options: dict[str, Any] = {"verify": context, "timeout": HANG, "trust_env": False, "follow_redirects": True}
        async with (
            httpx.AsyncClient(**options, event_hooks={"request": [https_only]}) as session,
            session.stream("POST", url, content=SECRET) as response,
        ):
            assert attested_peer(response).quote.simulated
            return await response.aread()  # type: ignore[no-any-return]

    return asyncio.run(send())


def by_aiohttp(context: ClientContext, url: str) -> bytes:
    async def send() -> bytes:
        connector = aiohttp.TCPConnector(ssl=context)
        async with (
            aiohttp.ClientSession(connector=connector, middlewares=(https_only,)) as session,
            session.post(url, data=SECRET) as response,
        ):
            return await response.read()  # type: ignore[no-any-return]

    return asyncio.run(send())


CLIENTS = {"httpx": by_httpx, "httpx, asynchronous": by_httpx_async, "aiohttp": by_aiohttp}


@pytest.fixture(params=CLIENTS)
def send(request: pytest.FixtureRequest) -> Callable[[ClientContext, str], bytes]:
    return CLIENTS[request.param]


@pytest.mark.parametrize("fresh", [False, True])
def test_an_attested_server_gets_the_request(send: Callable[[ClientContext, str], bytes], fresh: bool) -> None:
    with served() as server:
        assert send(client(fresh=fresh), server.url) == b"answer"
        assert server.received[1] == SECRET


@pytest.mark.parametrize("fresh", [False, True])
def test_another_enclave_gets_no_byte(send: Callable[[ClientContext, str], bytes], fresh: bool) -> None:
    with served("other") as server:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has its own
            send(client(fresh=fresh), server.url)
        assert refusal(caught.value).code == "policy-refused"
        assert server.received == []


def test_a_redirect_to_http_is_refused(send: Callable[[ClientContext, str], bytes]) -> None:
    with web_server(None) as plain, served(redirect_to=plain.url) as server:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has its own
            send(client(), server.url)
        assert "is not https" in str(refusal(caught.value))
        assert plain.received == []


def test_aiohttp_names_the_peer_while_the_response_is_read() -> None:
    async def send(url: str) -> None:
        connector = aiohttp.TCPConnector(ssl=client())
        async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as response:
            if response.connection is not None:  # given back as soon as the whole answer was received
                assert attested_peer(response).quote.simulated

    with served() as server:
        asyncio.run(send(server.url))


@asynccontextmanager
async def websocket_server(context: ServerContext, received: list[Any]) -> AsyncIterator[int]:
    async def echo(connection: Any) -> None:
        async for message in connection:
            received.append(message)
            await connection.send(message)

    async with websockets.serve(echo, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def test_websockets_both_sides() -> None:
    received: list[Any] = []
    async with websocket_server(ServerContext(issuer()), received) as port:
        for context in (client(), client(fresh=True)):
            async with websockets.connect(f"wss://127.0.0.1:{port}", ssl=context, proxy=None) as connection:
                assert attested_peer(connection).quote.simulated
                await connection.send(SECRET)
                assert await connection.recv() == SECRET
        received.clear()
        with pytest.raises(NotAttested):
            await websockets.connect(f"wss://127.0.0.1:{port}", ssl=client("other"), proxy=None)
    assert received == []


def test_websockets_in_threads() -> None:
    from websockets.sync.client import connect

    async def serve(ports: list[int], ready: threading.Event, stop: asyncio.Event) -> None:
        async with websocket_server(ServerContext(issuer()), []) as port:
            ports.append(port)
            ready.set()
            await stop.wait()

    ports: list[int] = []
    ready, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(ports, ready, stop)))
    thread.start()
    try:
        assert ready.wait(HANG)
        with connect(f"wss://127.0.0.1:{ports[0]}", ssl=client(), proxy=None) as connection:
            assert attested_peer(connection).quote.simulated
            connection.send(SECRET)
            assert connection.recv() == SECRET
        with pytest.raises(NotAttested):
            connect(f"wss://127.0.0.1:{ports[0]}", ssl=client("other"), proxy=None)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(HANG)
        loop.close()


async def test_websockets_refuse_a_redirect_to_a_plain_socket() -> None:
    with served(redirect_to="ws://127.0.0.1:1/") as server, pytest.raises(websockets.exceptions.SecurityError):
        await websockets.connect(server.url.replace("https", "wss"), ssl=client(), proxy=None)


@pytest.mark.parametrize("fresh", [False, True])
def test_uvloop_both_sides(fresh: bool) -> None:
    async def run() -> None:
        received: list[bytes] = []

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            received.append(await reader.read(100))
            writer.write(received[-1])
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=ServerContext(issuer()))
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client(fresh=fresh))
        assert attested_peer(writer).quote.simulated
        writer.write(SECRET)
        assert await reader.read() == SECRET
        writer.close()
        received.clear()
        with pytest.raises(NotAttested):
            await asyncio.open_connection("127.0.0.1", port, ssl=client("other", fresh=fresh))
        server.close()
        await server.wait_closed()
        assert SECRET not in received

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_uvloop_serves_fresh_evidence() -> None:
    async def run() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read(100))
            await writer.drain()
            writer.close()

        with socket.create_server(("127.0.0.1", 0)) as listener:
            protocol = lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), echo)  # noqa: E731
            serving = asyncio.create_task(serve_fresh(listener, protocol, ServerContext(issuer())))
            reader, writer = await asyncio.open_connection(*listener.getsockname(), ssl=client(fresh=True))
            writer.write(SECRET)
            assert await reader.read() == SECRET
            writer.close()
            serving.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


@pytest.mark.parametrize(("name", "accepted"), [("app", True), ("other", False)])
def test_a_pyopenssl_listener_takes_attested_clients(name: str, accepted: bool) -> None:
    """As docs/howto/attested-tls.md shows it: OpenSSL's verdict on a self-signed certificate does not count."""
    ssl = openssl.SSL
    context = ssl.Context(ssl.TLS_SERVER_METHOD)
    context.set_min_proto_version(ssl.TLS1_3_VERSION)
    context.set_verify(ssl.VERIFY_PEER | ssl.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
    own = issuer("server").current()
    context.use_certificate(x509.load_der_x509_certificate(own.der))
    context.use_privatekey(own.key)
    verifier, collateral, outcome = QuoteVerifier(world().trust_roots), world().publish(), list[object]()

    def serve(listener: socket.socket) -> None:
        stream, _ = listener.accept()
        with stream:
            connection = ssl.Connection(context, stream)
            connection.set_accept_state()
            stream.setblocking(True)
            connection.do_handshake()
            shown = connection.get_peer_certificate()
            der = openssl.crypto.dump_certificate(openssl.crypto.FILETYPE_ASN1, shown)
            try:
                verify_certificate(der, accepts(), collateral, now=utc_now(), verifier=verifier)
            except ConfcomError as error:
                outcome.append(error.code)
                return
            outcome.append(connection.recv(100))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        port = listener.getsockname()[1]
        shows = client("server", issuer=issuer(name))
        with shows.wrap_socket(socket.create_connection(("127.0.0.1", port), HANG)) as connection:
            connection.sendall(SECRET)
            thread.join(HANG)
    assert outcome == [SECRET if accepted else "policy-refused"]
