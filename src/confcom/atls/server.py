"""The server's side: an `ssl.SSLContext` that shows an issuer's certificate, and one of its own to those who ask.

On an event loop, `serve_fresh` has the quote made before the handshake begins. OpenSSL asks for the certificate in the
middle of a handshake and cannot wait for a thread. So the client's first message is looked at while it is still in the
socket (MSG_PEEK), and the handshake starts when the certificate is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NoReturn, Self

from confcom.atls.client import PresentingContext, nonce_of_name
from confcom.atls.issuer import IssuedCertificate, Issuer
from confcom.errors import ConfcomError, ConfigError, FormatError
from confcom.formats.arguments import checked_type
from confcom.formats.codec import Cursor
from confcom.services.runtime.allowances import address_of

FRESH_PER_SECOND = 10.0
ALL_PEERS = 8
"""The limit for all peers together, as a multiple of that for one."""
MAX_PEERS = 1024
"""Addresses of peers that are counted at a time; the one that asked least recently makes room."""
WAIT = 2.0
"""Seconds that a handshake waits for its quote."""
AT_A_TIME = 2
"""Quotes for handshakes that may be in work, or stuck, at a time."""

MAX_PREPARED = 128
"""Certificates that wait for their handshake."""
LOOP_SHARE = 0.1
"""Of the time of an event loop, what it may stand still for quotes; twice that of a second is saved."""

_log = logging.getLogger("confcom.atls")


class ServerContext(PresentingContext):
    """An `ssl.SSLContext` for servers: it shows the issuer's current certificate. TLS 1.3 only, without tickets.

    A client of ours that asks for fresh evidence (`ClientContext(…, fresh=True)`) gets a certificate with its nonce:
    at most `fresh_per_second` (0: none) for one address of peers, and eight times that for all; else the handshake is
    refused. The thread that makes the handshake waits for the quote, at most two seconds; an event loop stands still
    meanwhile, for at most a tenth of its time, and knows no addresses, unless `serve_fresh` accepts its connections.

    What is set for certificates of clients (`verify_mode`, `load_verify_locations`) has its usual meaning: ordinary
    certificates of an authority work. The standard library's servers cannot take self-signed ones, attested or not.
    """

    _serves = True

    def __new__(cls, issuer: Issuer, **_: object) -> Self:  # noqa: ARG004
        """Make the context of the standard library."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, issuer: Issuer, *, fresh_per_second: float = FRESH_PER_SECOND) -> None:
        checked_type(issuer, Issuer, "issuer")
        if fresh_per_second < 0:
            raise ConfigError(f"fresh_per_second: {fresh_per_second} is negative")
        self._protocols: list[str] = []
        self._rate = fresh_per_second
        self._requests = _quotes(fresh_per_second, ALL_PEERS)
        self._peers: OrderedDict[str, _Budget] = OrderedDict()
        self._peers_lock = threading.Lock()
        self._loop_time = _Budget(LOOP_SHARE, LOOP_SHARE * 2)
        self._prepared: OrderedDict[bytes, tuple[IssuedCertificate | None]] = OrderedDict()
        self._free = threading.BoundedSemaphore(AT_A_TIME)
        _end_resumption(self)
        self._present(issuer)
        self._own: Issuer = issuer
        self.sni_callback = self._on_name

    def load_cert_chain(self, *_: object, **__: object) -> NoReturn:
        """Always a `ConfigError`: the issuer's certificate is the one to show."""
        raise ConfigError("a ServerContext shows its issuer's certificate and no other")

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """As the standard library's."""
        self._protocols = list(alpn_protocols)
        super().set_alpn_protocols(self._protocols)

    def _on_name(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        """Called by OpenSSL with the name that the client sent, or None; a number is the alert to end with."""
        nonce = nonce_of_name(name)
        if nonce is None:
            return None
        prepared = self._prepared.pop(nonce, None)
        made = self._fresh(nonce, _peer(connection)) if prepared is None else prepared[0]
        if made is None:
            return ssl.AlertDescription.ALERT_DESCRIPTION_INTERNAL_ERROR
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        _end_resumption(context)
        if self._protocols:
            context.set_alpn_protocols(self._protocols)
        if anchors := self.get_ca_certs(binary_form=True):
            context.load_verify_locations(cadata=b"".join(anchors))
        made.load_into(context)
        connection.context = context
        return None

    def prepare(self, nonce: bytes, stream: socket.socket) -> None:
        """Make the certificate for a nonce before its handshake begins. Blocks as long as a quote; for a thread."""
        self._prepared[nonce] = (self._fresh(nonce, _peer(stream)),)
        if len(self._prepared) > MAX_PREPARED:
            self._prepared.popitem(last=False)

    def _may_ask(self, peer: str) -> bool:
        """Count a request; False beyond the limit of the peer, or that of all peers."""
        with self._peers_lock:
            own = self._peers.setdefault(peer, _quotes(self._rate))
            self._peers.move_to_end(peer)
            if len(self._peers) > MAX_PEERS:
                self._peers.popitem(last=False)
        for budget, peers in ((own, "one peer"), (self._requests, "all peers")):
            if not budget.spend(1):
                _log.warning("fresh evidence refused: more than %g requests of %s in a second", budget.rate, peers)
                return False
        return True

    def _fresh(self, nonce: bytes, peer: str) -> IssuedCertificate | None:
        """The certificate for a nonce; None where there are too many requests, or no quote in time."""
        if not self._may_ask(peer):
            return None
        blocks_loop = _in_event_loop()
        wait = min(WAIT, self._loop_time.left()) if blocks_loop else WAIT
        if wait <= 0:
            _log.warning("fresh evidence refused: quotes stopped the event loop for %g of its time", LOOP_SHARE)
            return None
        started = time.monotonic()
        if not self._free.acquire(timeout=wait):
            if blocks_loop:
                self._loop_time.spend(wait)
            _log.warning("fresh evidence refused: %d quotes are in work", AT_A_TIME)
            return None
        made: list[IssuedCertificate] = []

        def work() -> None:
            try:
                made.append(self._own.fresh(nonce))
            except ConfcomError as error:
                _log.warning("no fresh evidence (%s): %s", error.code, error)
            finally:
                self._free.release()

        thread = threading.Thread(target=work, name="confcom-atls-quote", daemon=True)
        thread.start()
        thread.join(max(started + wait - time.monotonic(), 0))
        if blocks_loop:
            self._loop_time.spend(time.monotonic() - started)
        if thread.is_alive():
            _log.warning("no fresh evidence within %.3g s", wait)
        return made[0] if made else None


class _Budget:
    """So much per second of something; what is not used is saved up to `most`."""

    def __init__(self, rate: float, most: float) -> None:
        self.rate = rate
        self._most, self._saved, self._counted = most, most, time.monotonic()
        self._lock = threading.Lock()

    def left(self) -> float:
        """What can be spent now."""
        with self._lock:
            now = time.monotonic()
            self._saved = min(self._most, self._saved + (now - self._counted) * self.rate)
            self._counted = now
            return self._saved

    def spend(self, amount: float) -> bool:
        """Spend it; whether it was there. Time that has passed is spent in any case."""
        enough = self.left() >= amount
        with self._lock:
            self._saved = max(self._saved - amount, 0.0)
        return enough


def _quotes(rate: float, peers: int = 1) -> _Budget:
    """`rate` quotes a second for each of the peers, with a burst of one at least; a rate of 0 allows none."""
    return _Budget(peers * rate, peers * max(rate, 1.0) if rate else 0.0)


def _peer(connection: socket.socket | ssl.SSLObject) -> str:
    """The peer's address, of IPv6 its network; empty where it is not known, as below an event loop."""
    try:
        address = connection.getpeername() if isinstance(connection, socket.socket) else ()
    except OSError:
        address = ()
    return address_of({"client": address})


def _in_event_loop() -> bool:
    """Whether an asyncio event loop runs in this thread."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def _end_resumption(context: ssl.SSLContext) -> None:
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0


# On an event loop.

MAX_HELLO = 5 + 16 * 1024
"""Bytes of the first record of TLS, with its head."""
DEADLINE = 10.0
"""Seconds from the connection to the end of the handshake."""
MAX_PENDING = 100
"""Connections before the end of their handshake."""
PATIENCE = 2.0
"""Seconds after which a connection is ended if others wait for its place."""
_LOOK_AGAIN = 0.02


async def serve_fresh(
    listener: socket.socket, protocol: Callable[[], asyncio.BaseProtocol], context: ServerContext
) -> None:
    """Serve the connections of a listening socket until cancelled, each with a protocol of its own, over attested TLS.

    As `loop.create_server(protocol, sock=listener, ssl=context)`, but quotes for clients that ask for fresh evidence
    are made in threads meanwhile. Connections that were handed to their protocol stay when this is cancelled.
    """
    await serve_each(listener, lambda stream: _begin(stream, protocol, context))


async def serve_each(listener: socket.socket, serve: Callable[[socket.socket], Coroutine[Any, Any, None]]) -> None:
    """Run `serve` for the connections of a listening socket until cancelled, about `MAX_PENDING` at a time.

    Beyond that others wait until one ends, or end the oldest when that is `PATIENCE` old.
    """
    loop, tasks = asyncio.get_running_loop(), dict[asyncio.Task[None], float]()
    listener.setblocking(False)
    try:
        while True:
            stream, _ = await _accept(listener)
            task = loop.create_task(serve(stream))
            tasks[task] = loop.time()
            task.add_done_callback(lambda done: tasks.pop(done, None))
            await asyncio.sleep(0)  # starts the task: one that is cancelled before does not close its socket
            if len(tasks) > MAX_PENDING:
                oldest, began = next(iter(tasks.items()))
                left = max(began + PATIENCE - loop.time(), 0)
                await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if len(tasks) > MAX_PENDING:
                    tasks.pop(oldest, None)
                    oldest.cancel()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _accept(listener: socket.socket) -> tuple[socket.socket, object]:
    noted = ""
    while True:
        try:
            return await asyncio.get_running_loop().sock_accept(listener)
        except OSError as error:  # no more file descriptors, or the client left
            if noted != (noted := str(error.strerror)):
                _log.warning("a connection was not accepted: %s", noted)
            await asyncio.sleep(_LOOK_AGAIN)


async def _begin(stream: socket.socket, protocol: Callable[[], asyncio.BaseProtocol], context: ServerContext) -> None:
    stream.setblocking(False)
    try:
        async with asyncio.timeout(DEADLINE):
            nonce = nonce_of_name(server_name(await _first_record(stream)))
            if nonce is not None:
                await asyncio.to_thread(context.prepare, nonce, stream)
            await asyncio.get_running_loop().connect_accepted_socket(protocol, stream, ssl=context)
    except (OSError, TimeoutError):
        stream.close()  # the client left, or refused us
    except ConfcomError as error:
        stream.close()
        _log.warning("a connection was not served (%s): %s", error.code, error)
    except BaseException:
        stream.close()
        raise


async def _first_record(stream: socket.socket) -> bytes:
    """The first record of TLS, or what there is of it when the client ends; it stays in the socket."""
    await _readable(stream)
    while True:
        seen = stream.recv(MAX_HELLO, socket.MSG_PEEK)
        size = 5 + int.from_bytes(seen[3:5], "big")
        if not seen or seen[0] != _HANDSHAKE or (len(seen) >= 5 and len(seen) >= min(size, MAX_HELLO)):
            return seen[:size]
        await asyncio.sleep(_LOOK_AGAIN)  # it is readable, with less than we need


async def _readable(stream: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(stream, wake)
    try:
        await ready
    finally:
        loop.remove_reader(stream)


_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _DNS = 22, 1, 0, 0


def server_name(record: bytes) -> str | None:
    """The server's name in a ClientHello that one record of TLS holds (RFC 8446 §4.1.2, RFC 6066 §3).

    None for everything else, and where there is no name: the handshake itself is the judge of what is malformed.
    """
    with contextlib.suppress(FormatError):
        return _read_name(Cursor(record, "ClientHello"))
    return None


def _read_name(hello: Cursor) -> str | None:
    if hello.take(1, "record")[0] != _HANDSHAKE:
        return None
    hello.take(4, "record")
    if hello.take(1, "handshake")[0] != _CLIENT_HELLO:
        return None
    hello.take(3 + 2 + 32, "random")
    for size, field in ((1, "session"), (2, "ciphers"), (1, "compression")):
        hello.take(_number(hello, size), field)
    extensions = Cursor(hello.take(_number(hello, 2), "extensions"), "extensions")
    while extensions.remaining:
        kind = _number(extensions, 2)
        content = extensions.take(_number(extensions, 2), "extension")
        if kind == _SERVER_NAME:
            names = Cursor(content, "server_name")
            names.take(2, "list")
            if _number(names, 1) != _DNS:
                return None
            return names.take(_number(names, 2), "name").decode("ascii", "replace")
    return None


def _number(cursor: Cursor, size: int) -> int:
    return int.from_bytes(cursor.take(size, "length"), "big")
