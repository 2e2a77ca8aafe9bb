"""Attested TLS with the client libraries themselves: what a server that is not accepted receives is nothing."""

from __future__ import annotations

import asyncio
import ssl
import urllib.request
from collections.abc import Callable
from concurrent import futures
from typing import Any
from urllib.error import URLError

import grpc
import grpclib.client
import grpclib.const
import grpclib.exceptions
import grpclib.server
import httpx2
import pytest
import requests

from attested_tls import HANG, SECRET, client, issuer, refusal, served, web_server
from confcom.atls import (
    ClientContext,
    NotAttested,
    ServerContext,
    attested_peer,
    fetch_and_pin,
    https_only,
    https_opener,
    https_session,
)

Send = Callable[[ClientContext, str], bytes]
"""Posts the secret to a URL, following redirects, and returns the answer."""


def by_urllib(context: ClientContext, url: str) -> bytes:
    with https_opener(context).open(url, SECRET, timeout=HANG) as response:
        assert attested_peer(response).quote.simulated
        return response.read()  # type: ignore[no-any-return]


def by_plain_urllib(context: ClientContext, url: str) -> bytes:
    with urllib.request.urlopen(url, SECRET, timeout=HANG, context=context) as response:
        return response.read()  # type: ignore[no-any-return]


def by_requests(context: ClientContext, url: str) -> bytes:
    with https_session(context) as session, session.post(url, data=SECRET, timeout=HANG, stream=True) as response:
        assert attested_peer(response).quote.simulated
        return response.content


def by_httpx2(context: ClientContext, url: str) -> bytes:
    hooks: Any = {"request": [https_only]}
    options: Any = {"verify": context, "timeout": HANG, "trust_env": False, "follow_redirects": True}
    with (
        httpx2.Client(**options, event_hooks=hooks) as session,
        session.stream("POST", url, content=SECRET) as response,
    ):
        assert attested_peer(response).quote.simulated
        return response.read()


def by_httpx2_async(context: ClientContext, url: str) -> bytes:
    async def send() -> bytes:
        hooks: Any = {"request": [https_only]}
        options: Any = {"verify": context, "timeout": HANG, "trust_env": False, "follow_redirects": True}
        async with (
            httpx2.AsyncClient(**options, event_hooks=hooks) as session,
            session.stream("POST", url, content=SECRET) as response,
        ):
            assert attested_peer(response).quote.simulated
            return await response.aread()

    return asyncio.run(send())


CLIENTS: dict[str, Send] = {
    "urllib": by_urllib,
    "requests": by_requests,
    "httpx2": by_httpx2,
    "httpx2, asynchronous": by_httpx2_async,
}


@pytest.fixture(params=CLIENTS)
def send(request: pytest.FixtureRequest) -> Send:
    return CLIENTS[request.param]


def test_an_attested_server_gets_the_request(send: Send) -> None:
    with served() as server:
        assert send(client(), server.url) == b"answer"
        assert server.received[1] == SECRET


@pytest.mark.parametrize("make", [client, lambda name: client(name, fresh=True)], ids=["usual", "fresh"])
def test_another_enclave_gets_no_byte(send: Send, make: Callable[[str], ClientContext]) -> None:
    with served("other") as server:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has its own
            send(make("app"), server.url)
        found = refusal(caught.value)
        assert (found.code, server.received) == ("policy-refused", [])
        assert "mr-enclave" in str(found)


def test_fresh_evidence(send: Send) -> None:
    with served() as server:
        assert send(client(fresh=True), server.url) == b"answer"


def test_a_redirect_to_http_is_refused(send: Send) -> None:
    status = 302 if send is by_urllib else 307  # which urllib does not follow; the others post the body again
    with web_server(None) as plain, served(redirect_to=f"{plain.url}/open?token=x", status=status) as server:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has its own
            send(client(), server.url)
        assert "http://127.0.0.1 is not https" in str(refusal(caught.value))
        assert "token" not in str(refusal(caught.value))
        assert plain.received == []


def test_a_proxy_of_the_environment_is_not_asked(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server(None) as proxy, served() as server:
        for name in ("https_proxy", "HTTPS_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert send(client(), server.url) == b"answer"
        assert proxy.received == []


def test_urllib_with_the_context_alone() -> None:
    with served() as server:
        assert by_plain_urllib(client(), server.url) == b"answer"
    with served("other") as server:
        with pytest.raises(URLError) as caught:
            by_plain_urllib(client(), server.url)
        assert isinstance(caught.value.reason, NotAttested)
        assert server.received == []


async def test_asyncio_streams() -> None:
    received: list[bytes] = []
    logged: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(100))
        writer.write(received[-1])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=ServerContext(issuer()))
    async with server:
        port = server.sockets[0].getsockname()[1]
        for context in (client(), client(fresh=True)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            assert attested_peer(writer) is attested_peer(writer.transport)
            writer.write(SECRET)
            assert await reader.read() == SECRET
            writer.close()
        received.clear()
        with pytest.raises(NotAttested):
            await asyncio.open_connection("127.0.0.1", port, ssl=client("other"))
        await asyncio.sleep(0)
    assert SECRET not in received
    assert logged == []  # a refusal is no fatal error of the loop


class Echo:
    def __mapping__(self) -> dict[str, Any]:
        async def answer(stream: Any) -> None:
            await stream.send_message(await stream.recv_message())

        kind = grpclib.const.Cardinality.UNARY_UNARY
        return {"/test.Echo/Say": grpclib.const.Handler(answer, kind, Raw, Raw)}


class Raw:
    """A message that is its bytes, for both gRPC libraries."""

    DESCRIPTOR: Any = None

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    def SerializeToString(self) -> bytes:  # noqa: N802 - as in protobuf
        return self.data

    @classmethod
    def FromString(cls, data: bytes) -> Raw:  # noqa: N802 - as in protobuf
        return cls(data)


async def test_grpclib_both_sides() -> None:
    context = ServerContext(issuer())
    context.set_alpn_protocols(["h2"])
    server = grpclib.server.Server([Echo()])
    await server.start("127.0.0.1", 0, ssl=context)
    port = server._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        for accepted in (client(), client(fresh=True)):
            accepted.set_alpn_protocols(["h2"])
            async with grpclib.client.Channel("127.0.0.1", port, ssl=accepted) as channel:
                say = grpclib.client.UnaryUnaryMethod(channel, "/test.Echo/Say", Raw, Raw)
                assert (await say(Raw(SECRET), timeout=HANG)).data == SECRET
        refused = client("other")
        refused.set_alpn_protocols(["h2"])
        async with grpclib.client.Channel("127.0.0.1", port, ssl=refused) as channel:
            say = grpclib.client.UnaryUnaryMethod(channel, "/test.Echo/Say", Raw, Raw)
            with pytest.raises(NotAttested):
                await say(Raw(SECRET), timeout=HANG)
    finally:
        server.close()
        await server.wait_closed()


def test_grpcio_trusts_the_pinned_certificate_alone() -> None:
    """grpcio takes no context of Python's: its server gets the issuer's certificate, its client the pinned one."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    made = issuer(names=("quotes.example.org",))

    def serve(current: Any) -> tuple[grpc.Server, int]:
        key = current.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pair = key, ssl.DER_cert_to_PEM_cert(current.der).encode()
        server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Say": handler}),))
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        server.start()
        return server, port

    server, port = serve(made.current())
    pinned = fetch_and_pin("127.0.0.1", port, client())
    other, other_port = serve(made.fresh(b"another key"))
    try:
        options = [("grpc.ssl_target_name_override", pinned.name)]
        for number, answers in ((port, True), (other_port, False)):
            credentials = grpc.ssl_channel_credentials(pinned.pem)
            with grpc.secure_channel(f"127.0.0.1:{number}", credentials, options) as channel:
                say = channel.unary_unary("/test.Echo/Say")
                if answers:
                    assert say(SECRET, timeout=HANG, wait_for_ready=True) == SECRET
                else:
                    with pytest.raises(grpc.RpcError) as caught:
                        say(SECRET, timeout=HANG)
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(NotAttested):
            fetch_and_pin("127.0.0.1", port, client("other"))
    finally:
        server.stop(None).wait(HANG)
        other.stop(None).wait(HANG)


def test_requests_reports_a_refusal_as_its_own_error() -> None:
    with served("other") as server, https_session(client()) as session:
        with pytest.raises(requests.exceptions.SSLError) as caught:
            session.get(server.url, timeout=HANG)
        assert refusal(caught.value).advice()
