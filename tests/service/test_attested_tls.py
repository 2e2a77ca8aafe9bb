"""Attested TLS with the standard library: nothing goes out before the verification, and nothing goes around it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import multiprocessing
import os
import pickle
import resource
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

import attested_certificates as made
from attested_tls import HANG, SECRET, accepts, client, declared, issuer, quotes, refusal, served, world
from confcom.appraisal.policy import NoDebug
from confcom.appraisal.quote import QuoteVerifier
from confcom.atls import (
    ClientContext,
    Issuer,
    NotAttested,
    ServerContext,
    attested_peer,
    fetch_and_pin,
    load_pair,
    serve_fresh,
)
from confcom.atls.client import name_of_nonce, nonce_of_name
from confcom.atls.issuer import utc_now
from confcom.atls.server import server_name
from confcom.collateral.bundle import save_bundle
from confcom.collateral.sources import RememberedCollateral, SourceOptions
from confcom.errors import ConfigError, PlatformBusy, PlatformError, PlatformUnavailable
from confcom.formats.attested_certificate import AttestedCertificate
from confcom.platforms.quoting import GramineQuoteSource

DAY = timedelta(days=1)


@contextmanager
def listening(context: ssl.SSLContext, *, received: list[bytes] | None = None) -> Iterator[int]:
    """A server in a thread that answers each connection's first bytes with the same; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(HANG)
        ended = False

        def serve() -> None:
            while not ended:
                try:
                    stream, _ = listener.accept()
                except OSError:
                    return
                stream.settimeout(HANG)
                try:
                    with context.wrap_socket(stream, server_side=True) as connection:
                        data = connection.recv(1000)
                        if received is not None:
                            received.append(data)
                        connection.sendall(data)
                except OSError:
                    stream.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended = True
            with socket.create_connection(("127.0.0.1", listener.getsockname()[1]), HANG):
                pass
            thread.join(HANG)


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), HANG)


def plain_server(der: bytes, key: Any, folder: Path, *, most: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A server of the standard library that shows any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    path = folder / "server.pem"
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(ssl.DER_cert_to_PEM_cert(der).encode() + pem)
    context.load_cert_chain(path)
    if most is not None:
        context.maximum_version = most
    return context


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> datetime:
        return self.now


# The client


def test_a_round_trip_names_the_peer() -> None:
    with listening(ServerContext(issuer())) as port, client().wrap_socket(connected(port)) as connection:
        peer = attested_peer(connection)
        assert connection.version() == "TLSv1.3"
        assert peer.certificate.format == "ra-tls"
        assert peer.binding == "SHA-256 of the claims"
        assert peer.quote.simulated
        connection.sendall(SECRET)
        assert connection.recv(1000) == SECRET


def test_nothing_is_written_or_read_before_the_handshake_is_over() -> None:
    received: list[bytes] = []
    uses: list[Callable[[ssl.SSLSocket], object]] = [
        lambda one: one.send(SECRET),
        lambda one: one.sendall(SECRET),
        lambda one: one.write(SECRET),
        lambda one: one.sendfile(io.BytesIO(SECRET)),
        lambda one: one.recv(1),
        lambda one: one.recv_into(bytearray(1)),
        lambda one: one.read(1),
        lambda one: one.makefile("rb").read(1),
    ]
    with listening(ServerContext(issuer()), received=received) as port:
        for use in uses:
            connection = client().wrap_socket(connected(port), do_handshake_on_connect=False)
            with connection, pytest.raises(NotAttested, match="the handshake is not over"):
                use(connection)
        with client().wrap_socket(connected(port), do_handshake_on_connect=False) as connection:
            connection.do_handshake(block=True)
            connection.write(SECRET)
            assert connection.read(len=1000) == SECRET
    assert [one for one in received if one] == [SECRET]


def test_a_refusal_that_was_caught_opens_nothing() -> None:
    received: list[bytes] = []
    with (
        listening(ServerContext(issuer("other")), received=received) as port,
        client().wrap_socket(connected(port), do_handshake_on_connect=False) as connection,
    ):
        for _ in range(2):
            with pytest.raises(NotAttested, match="mr-enclave"):
                connection.do_handshake()
        with pytest.raises(NotAttested):
            connection.sendall(SECRET)
        with pytest.raises(ConfigError, match="no attested connection"):
            attested_peer(connection)
    assert SECRET not in received


def test_the_same_for_objects_over_memory() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = client().wrap_bio(incoming, outgoing, server_hostname="x")
    for use in (lambda: connection.write(SECRET), lambda: connection.read(1), lambda: connection.read(1, bytearray(1))):
        with pytest.raises(NotAttested):
            use()
    assert outgoing.read() == b""


def test_another_context_set_on_a_connection_opens_nothing() -> None:
    with listening(ServerContext(issuer())) as port:
        connection = client().wrap_socket(connected(port), do_handshake_on_connect=False)
        connection.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with connection, pytest.raises(NotAttested, match="another context"):
            connection.do_handshake()


def test_a_policy_is_needed_and_must_say_who_is_expected() -> None:
    collateral = world().publish()
    with pytest.raises(TypeError):
        ClientContext()  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="does not say who is expected"):
        ClientContext(NoDebug(), collateral)
    with pytest.raises(TypeError, match="collateral: expected Collateral or RememberedCollateral, found str"):
        ClientContext(accepts(), "collateral")  # type: ignore[arg-type]


def test_what_libraries_set_has_no_effect() -> None:
    context = client()
    context.check_hostname = True
    context.verify_mode = ssl.CERT_NONE
    assert (context.check_hostname, context.verify_mode) == (False, ssl.CERT_REQUIRED)
    with listening(ServerContext(issuer("other"))) as port, pytest.raises(NotAttested):
        context.wrap_socket(connected(port))


def test_what_would_go_around_the_evidence_is_refused() -> None:
    with listening(ServerContext(issuer())) as port:
        with client().wrap_socket(connected(port)) as connection:
            connection.sendall(b"x")
            connection.recv(1)
            session = connection.session
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with connected(port) as stream:
            for wrap in (
                lambda **more: client().wrap_bio(incoming, outgoing, **more),
                lambda **more: client().wrap_socket(stream, **more),
            ):
                with pytest.raises(ConfigError, match="cannot serve"):
                    wrap(server_side=True)
                with pytest.raises(ConfigError, match="cannot be resumed"):
                    wrap(session=session or object())
        connection = client().wrap_socket(connected(port), do_handshake_on_connect=False)
        with connection, pytest.raises(ConfigError, match="cannot be resumed"):
            connection.session = session
        older = client()
        older.minimum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ConfigError, match=r"TLS 1\.3 only"):
            older.wrap_bio(incoming, outgoing)


def test_a_server_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    current = issuer().current()
    context = plain_server(current.der, current.key, tmp_path, most=ssl.TLSVersion.TLSv1_2)
    with listening(context) as port, pytest.raises(ssl.SSLError) as caught:
        client().wrap_socket(connected(port))
    assert "PROTOCOL_VERSION" in str(caught.value)


def test_an_error_says_what_the_projects_error_says_and_travels() -> None:
    with listening(ServerContext(issuer("other"))) as port, pytest.raises(ssl.SSLCertVerificationError) as caught:
        client().wrap_socket(connected(port))
    found = refusal(caught.value)
    assert str(found) == f"not attested (policy-refused): {found.error}"
    assert found.advice() == found.error.advice()
    again = pickle.loads(pickle.dumps(found))
    assert (str(again), again.code, again.verify_message) == (str(found), found.code, found.verify_message)


@pytest.mark.parametrize("name", [name for name in made.every_format() if ", TD" not in name])
def test_every_format_of_certificate_is_accepted(name: str, tmp_path: Path) -> None:
    der, kind, binding = made.every_format()[name]
    key = ec.derive_private_key(77, ec.SECP384R1()) if name == "ra-tls, P-384" else made.key()
    verifier, collateral = QuoteVerifier(made.world().trust_roots), made.world().publish()
    context = ClientContext(accepts(), collateral, verifier=verifier, clock=lambda: made.NOW)
    with listening(plain_server(der, key, tmp_path)) as port, context.wrap_socket(connected(port)) as connection:
        peer = attested_peer(connection)
        assert (peer.certificate.format, peer.binding) == (kind, binding)


@pytest.mark.parametrize(
    ("der", "key", "code"),
    [
        (made.Certificate((made.dice(),), key=made.key(2)).build(), made.key(2), "binding-mismatch"),
        (made.Certificate(()).build(), made.key(), "malformed-input"),
        (made.Certificate((made.dice(),), not_after=made.NOW - DAY / 2).build(), made.key(), "certificate-invalid"),
        (made.Certificate(((made.DICE, bytes(1000)),)).build(), made.key(), "malformed-input"),
        (made.Certificate(((made.DICE, bytes(97 * 1024)),)).build(), made.key(), "malformed-input"),
    ],
    ids=["evidence for another key", "no evidence", "expired", "damaged", "98 kB"],
)
def test_a_hostile_certificate_is_refused_with_a_code(der: bytes, key: Any, code: str, tmp_path: Path) -> None:
    verifier, collateral = QuoteVerifier(made.world().trust_roots), made.world().publish()
    context = ClientContext(accepts(), collateral, verifier=verifier, clock=lambda: made.NOW)
    with listening(plain_server(der, key, tmp_path)) as port, pytest.raises(NotAttested) as caught:
        context.wrap_socket(connected(port))
    assert caught.value.code == code


def test_a_certificate_beyond_openssls_bound_ends_the_handshake(tmp_path: Path) -> None:
    der = made.Certificate(((made.DICE, bytes(120_000)),)).build()
    with listening(plain_server(der, made.key(), tmp_path)) as port, pytest.raises(ssl.SSLError, match="EXCESSIVE"):
        client().wrap_socket(connected(port))


def test_a_server_without_a_key_of_its_own_certificate_fails() -> None:
    """A certificate that was recorded is worth nothing without its key: OpenSSL takes no other."""
    recorded, own = issuer().current(), ec.generate_private_key(ec.SECP256R1())
    stolen = recorded.__class__(recorded.der, own, recorded.not_before, recorded.not_after, recorded.renew_at, True, 0)
    with pytest.raises(ssl.SSLError, match="KEY_VALUES_MISMATCH"):
        stolen.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


def test_a_certificate_that_is_known_is_judged_again_each_time() -> None:
    """What a context remembers of a certificate are its signature and binding, not dates and verdict."""
    clock, served_by = Clock(), ServerContext(issuer())
    context = client(clock=clock, max_age=2 * DAY)
    with listening(served_by) as port:
        for _ in range(2):
            context.wrap_socket(connected(port)).close()
        clock.now += 2 * DAY
        with pytest.raises(NotAttested, match="the certificate is expired"):
            context.wrap_socket(connected(port))
        clock.now -= 4 * DAY
        with pytest.raises(NotAttested, match="not valid yet"):
            context.wrap_socket(connected(port))


def test_old_evidence_is_refused_where_an_age_is_given(tmp_path: Path) -> None:
    """Generators write dates of decades; a stale quote in a long certificate is refused by age."""
    certificate = made.Certificate((made.dice(),), not_before=made.NOW - 2 * DAY, not_after=made.NOW + 3650 * DAY)
    verifier, collateral = QuoteVerifier(made.world().trust_roots), made.world().publish()
    context = ClientContext(accepts(), collateral, verifier=verifier, clock=lambda: made.NOW, max_age=DAY)
    with listening(plain_server(certificate.build(), made.key(), tmp_path)) as port, pytest.raises(NotAttested):
        context.wrap_socket(connected(port))


def test_collateral_that_is_not_in_memory_is_refused_until_it_was_fetched(tmp_path: Path) -> None:
    save_bundle(world().publish(), tmp_path)
    options = SourceOptions(roots=world().trust_roots, at=utc_now())
    remembered = RememberedCollateral(str(tmp_path), options)
    context = ClientContext(accepts(), remembered, verifier=QuoteVerifier(world().trust_roots))
    with listening(ServerContext(issuer())) as port:
        with pytest.raises(NotAttested, match=r"SGX collateral of FMSPC [0-9a-f]{12} .*not in memory") as caught:
            context.wrap_socket(connected(port))
        assert caught.value.code == "collateral-not-found"
        assert "refresh()" in caught.value.advice()
        remembered.refresh(utc_now())
        context.wrap_socket(connected(port)).close()
        for file in tmp_path.iterdir():
            file.unlink()
        # What is old stays in use while the source has nothing; the verifier decides whether it is too old.
        with pytest.raises(Exception, match="missing"):
            remembered.refresh(utc_now() + DAY)
        context.wrap_socket(connected(port)).close()


def test_a_platform_under_another_root_leaves_nothing_to_fetch(tmp_path: Path) -> None:
    save_bundle(world().publish(), tmp_path)
    remembered = RememberedCollateral(str(tmp_path), SourceOptions(roots=made.world().trust_roots, at=utc_now()))
    context = ClientContext(accepts(), remembered, verifier=QuoteVerifier(made.world().trust_roots))
    with listening(ServerContext(issuer())) as port, pytest.raises(NotAttested) as caught:
        context.wrap_socket(connected(port))
    assert caught.value.code == "root-untrusted"
    assert not remembered._missed


def test_many_threads_share_a_context() -> None:
    context, failed = client(), []

    def work(port: int) -> None:
        try:
            for _ in range(5):
                with context.wrap_socket(connected(port)) as connection:
                    connection.sendall(b"x")
                    assert connection.recv(1) == b"x"
        except BaseException as error:  # noqa: BLE001 - shown below
            failed.append(error)

    with listening(ServerContext(issuer(), fresh_per_second=0)) as port:
        threads = [threading.Thread(target=work, args=(port,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG)
    assert failed == []


# Freshness


def test_names_of_nonces() -> None:
    nonce = os.urandom(32)
    name = name_of_nonce(nonce)
    assert nonce_of_name(name) == nonce
    assert max(map(len, name.split("."))) <= 63
    others = [None, "", "x", name.upper(), name[1:], "x" + name[1:], name.replace(".invalid", ".example"), "é" * 73]
    others += [f"{nonce.hex()}..invalid", " " * 32 + "." + " " * 32 + ".invalid"]
    assert [nonce_of_name(one) for one in others] == [None] * len(others)


def test_fresh_evidence_is_made_for_each_handshake_and_never_shown_again() -> None:
    seen = []
    with listening(ServerContext(issuer())) as port:
        for _ in range(2):
            with client(fresh=True).wrap_socket(connected(port), server_hostname="127.0.0.1") as connection:
                evidence = attested_peer(connection).certificate
                assert evidence.ra_tls is not None
                assert evidence.ra_tls.nonce == nonce_of_name(connection.server_hostname)
                seen.append(evidence.der)
    assert seen[0] != seen[1]


def test_a_stolen_key_with_its_certificate_is_no_fresh_evidence() -> None:
    """Replay, a leaked key, and servers that know nothing of nonces."""
    context = ServerContext(issuer(), fresh_per_second=0)
    stolen = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer().current().load_into(stolen)
    with listening(stolen) as port, pytest.raises(NotAttested, match="not made for this request: it has no nonce"):
        client(fresh=True).wrap_socket(connected(port))
    with listening(context) as port, pytest.raises(ssl.SSLError, match="INTERNAL_ERROR"):
        client(fresh=True).wrap_socket(connected(port))


def test_a_client_without_a_name_gets_no_fresh_evidence() -> None:
    """An address as server name is not sent in the handshake: the usual certificate is shown."""
    with listening(ServerContext(issuer())) as port:
        for name in (None, "127.0.0.1", "server.example.org"):
            with client().wrap_socket(connected(port), server_hostname=name) as connection:
                assert attested_peer(connection).certificate.ra_tls.nonce is None  # type: ignore[union-attr]


def test_fresh_quotes_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    """One peer leaves the others theirs, and many peers together get no more than eight."""

    def asked_from(number: int) -> str:
        with socket.create_connection(("127.0.0.1", port), HANG, (f"127.0.0.{number}", 0)) as stream:
            caplog.clear()
            with contextlib.suppress(ssl.SSLError), client(fresh=True).wrap_socket(stream):
                return "answered"
        return caplog.messages[0]

    with listening(ServerContext(issuer(), fresh_per_second=1e-6)) as port:
        assert asked_from(1) == "answered"
        assert asked_from(1) == "fresh evidence refused: more than 1e-06 requests of one peer in a second"
        assert [asked_from(number) for number in range(2, 9)] == ["answered"] * 7
        assert asked_from(9) == "fresh evidence refused: more than 8e-06 requests of all peers in a second"
    with listening(ServerContext(issuer(), fresh_per_second=0)) as port:
        assert "refused" in asked_from(1)


async def test_peers_are_counted_on_an_event_loop_too_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confcom.atls.server.MAX_PEERS", 3)
    context = ServerContext(issuer(), fresh_per_second=1e-6)
    async with serving_fresh(context) as port:
        for number in (1, 2, 3, 4):
            options = {"local_addr": (f"127.0.0.{number}", 0), "ssl": client(fresh=True)}
            _, writer = await asyncio.open_connection("127.0.0.1", port, **options)
            writer.close()
        with pytest.raises(OSError):  # noqa: PT011 - the alert, or the end of the connection
            await asyncio.open_connection("127.0.0.1", port, **options)
    assert [*context._peers] == ["127.0.0.2", "127.0.0.3", "127.0.0.4"]


class Stuck:
    """Quotes that never come after the first."""

    def __init__(self) -> None:
        self.inner, self.asked, self.let_go = quotes(), 0, threading.Event()

    def quote(self, report_data: bytes, *, nonce: bytes | None = None) -> Any:
        self.asked += 1
        if self.asked > 1:
            self.let_go.wait(HANG)
        return self.inner.quote(report_data, nonce=nonce)


def test_a_stuck_platform_stops_neither_server_nor_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from confcom.atls import server as module

    monkeypatch.setattr(module, "WAIT", 0.1)
    source = Stuck()
    context = ServerContext(Issuer(source), fresh_per_second=1000)
    try:
        with listening(context) as port:
            for _ in range(module.AT_A_TIME + 2):
                with pytest.raises(ssl.SSLError, match="INTERNAL_ERROR"):
                    client(fresh=True).wrap_socket(connected(port))
            client().wrap_socket(connected(port)).close()
            assert source.asked == 1 + module.AT_A_TIME
            assert "no fresh evidence within 0.1 s" in caplog.text
            assert f"{module.AT_A_TIME} quotes are in work" in caplog.text
    finally:
        source.let_go.set()


async def test_quotes_stop_an_event_loop_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A client asks for fresh evidence again and again, and the platform answers late or never."""
    monkeypatch.setattr("confcom.atls.server.LOOP_SHARE", 0.1)
    source = Stuck()
    server = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=ServerContext(Issuer(source), fresh_per_second=1000)
    )
    port = server.sockets[0].getsockname()[1]
    try:
        async with server:
            for _ in range(4):
                with pytest.raises(OSError):  # noqa: PT011 - the alert, or a closed connection
                    await asyncio.open_connection("127.0.0.1", port, ssl=client(fresh=True))
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client())
            writer.close()
    finally:
        source.let_go.set()
    waits = [float(line.split()[-2]) for line in caplog.messages if line.startswith("no fresh evidence within")]
    assert waits
    assert max(waits) <= 0.2
    assert "quotes stopped the event loop" in caplog.text or "quotes are in work" in caplog.text


@contextlib.asynccontextmanager
async def serving_fresh(context: ServerContext) -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(await reader.read(100))
            await writer.drain()
        writer.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(
            serve_fresh(listener, lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), echo), context)
        )
        yield listener.getsockname()[1]
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def test_a_server_without_descriptors_says_so_once_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with serving_fresh(ServerContext(issuer())) as port:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as waiting:
            waiting.setblocking(False)
            await asyncio.sleep(0)
            os.close(lowest := os.dup(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                await asyncio.get_running_loop().sock_connect(waiting, ("127.0.0.1", port))
                await asyncio.sleep(0.5)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [line for line in caplog.messages if "not accepted" in line] == [
            "a connection was not accepted: Too many open files"
        ]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client())
        writer.close()


async def test_an_event_loop_goes_on_while_a_quote_is_made() -> None:
    source = Stuck()
    async with serving_fresh(ServerContext(Issuer(source))) as port:
        asking = asyncio.create_task(asyncio.open_connection("127.0.0.1", port, ssl=client(fresh=True)))
        while source.asked < 2:
            await asyncio.sleep(0.01)
        # The quote is in work and does not come; others are served.
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client())
            writer.write(SECRET)
            assert await reader.read() == SECRET
            writer.close()
        source.let_go.set()
        _, writer = await asking
        assert attested_peer(writer).certificate.ra_tls.nonce  # type: ignore[union-attr]
        writer.close()


async def test_hostile_clients_do_not_stop_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that say nothing, a byte, nonsense, or half of a first message, and then leave or stay."""
    from confcom.atls import server as atls_server

    monkeypatch.setattr(atls_server, "DEADLINE", 0.5)
    half = hello_of(name_of_nonce(bytes(32)))[:100]
    with contextlib.ExitStack() as staying:
        async with serving_fresh(ServerContext(issuer())) as port:
            for number in range(atls_server.MAX_PENDING + 5):
                one = staying.enter_context(connected(port))
                one.sendall((b"", b"\x16", b"GET / HTTP/1.1\r\n", half)[number % 4])
            for sent in (b"", b"\x16", b"\x16\x03\x01\xff\xff", bytes(100), half):
                with connected(port) as leaving:
                    leaving.sendall(sent)
            # The deadline ends those who stay; on a busy machine it may meet an honest client too.
            for _ in range(HANG):
                with contextlib.suppress(OSError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client(fresh=True))
                    break
            writer.write(SECRET)
            assert await reader.read() == SECRET
            writer.close()


async def test_those_who_stay_silent_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from confcom.atls import server as atls_server

    monkeypatch.setattr(atls_server, "DEADLINE", 10.0 * HANG)
    monkeypatch.setattr(atls_server, "PATIENCE", 0.2)
    with contextlib.ExitStack() as staying:
        async with serving_fresh(ServerContext(issuer())) as port, asyncio.timeout(HANG):
            silent = [staying.enter_context(connected(port)) for _ in range(atls_server.MAX_PENDING + 1)]
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client())
            writer.close()
            assert await asyncio.to_thread(silent[0].recv, 1) == b""  # the one that came first
            silent[-1].setblocking(False)
            with pytest.raises(BlockingIOError):
                silent[-1].recv(1)


def hello_of(name: str | None) -> bytes:
    """The first message of OpenSSL as a client."""
    context, outgoing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.MemoryBIO()
    context.check_hostname = False
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("name", ["server.example.org", name_of_nonce(bytes(32)), None, "10.0.0.1"])
def test_the_name_in_a_first_message(name: str | None) -> None:
    expected = None if name == "10.0.0.1" else name
    assert server_name(hello_of(name)) == expected


def test_a_first_message_that_is_none_has_no_name() -> None:
    hello = hello_of("server.example.org")
    for end in range(len(hello)):
        assert server_name(hello[:end]) in (None, "server.example.org")
    for place in range(len(hello)):
        changed = bytearray(hello)
        changed[place] ^= 0xFF
        assert server_name(bytes(changed)) is None or server_name(bytes(changed))


# The server and its issuer


def test_a_server_speaks_tls_1_3_alone_and_gives_no_ticket() -> None:
    usual = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    usual.check_hostname, usual.verify_mode = False, ssl.CERT_NONE
    with listening(ServerContext(issuer())) as port:
        with usual.wrap_socket(connected(port)) as connection:
            connection.sendall(b"x")
            connection.recv(1)
            assert connection.session is None or not connection.session.has_ticket
            session = connection.session
        if session is not None:
            with usual.wrap_socket(connected(port), session=session) as connection:
                assert not connection.session_reused
        usual.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError, match="VERSION"):
            usual.wrap_socket(connected(port))
    with pytest.raises(ConfigError, match="a ServerContext cannot connect"):
        ServerContext(issuer()).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())


def test_a_resumed_session_is_refused(tmp_path: Path) -> None:
    """Of a server that resumes: the context offers it no session, and accepts no resumed connection."""
    current = issuer().current()
    usual = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    usual.check_hostname, usual.verify_mode = False, ssl.CERT_NONE
    with listening(plain_server(current.der, current.key, tmp_path)) as port:
        for context in (client(), client(), usual):
            with context.wrap_socket(connected(port)) as connection:
                connection.sendall(b"x")
                connection.recv(1)
                assert not connection.session_reused
                known = connection.session
        with usual.wrap_socket(connected(port), session=known) as connection:
            assert connection.session_reused
            assert connection.getpeercert(binary_form=True) == current.der
            with pytest.raises(NotAttested, match="showed no evidence of its own"):
                client().verify_peer(connection)


def test_certificates_are_short_and_renewed_after_two_thirds() -> None:
    clock = Clock()
    made_by = Issuer(quotes(), life=timedelta(hours=3), clock=clock)
    context = ServerContext(made_by)
    first = made_by.current()
    assert first.not_after - first.not_before == timedelta(hours=3, minutes=5)
    assert clock.now - first.not_before >= timedelta(minutes=5)
    clock.now += timedelta(hours=1, minutes=59)
    assert made_by.current() is first
    clock.now += timedelta(minutes=2)
    assert made_by.current() is first  # the next one is made in a thread meanwhile
    end = time.monotonic() + HANG
    while made_by.current() is first and time.monotonic() < end:
        time.sleep(0.01)
    second = made_by.current()
    assert second.key.private_numbers() != first.key.private_numbers()
    with listening(context) as port:
        with client(clock=clock).wrap_socket(connected(port)) as connection:
            assert attested_peer(connection).certificate.der == second.der
        clock.now += DAY  # nobody came before its end
        with client(clock=clock).wrap_socket(connected(port)) as connection:
            assert attested_peer(connection).certificate.der not in (first.der, second.der)


class Failing:
    """A platform that fails after the first quote."""

    def __init__(self) -> None:
        self.inner, self.asked = quotes(), 0

    def quote(self, report_data: bytes, *, nonce: bytes | None = None) -> Any:
        self.asked += 1
        if self.asked > 1:
            raise PlatformBusy("the quote helper is busy")
        return self.inner.quote(report_data, nonce=nonce)


def test_a_renewal_that_fails_leaves_the_certificate_in_use_and_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, source = Clock(), Failing()
    made_by = Issuer(source, clock=clock)
    first = made_by.current()
    clock.now += timedelta(hours=17)
    for expected in (2, 2, 3):
        assert made_by.current() is first
        with made_by._renewing:
            pass
        assert source.asked == expected
        clock.now += timedelta(seconds=20)
    assert "cannot be renewed" in caplog.text
    assert "platform-busy" in caplog.text
    clock.now += DAY
    with pytest.raises(PlatformBusy):
        made_by.current()


def test_the_key_is_on_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was made")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    with listening(ServerContext(issuer())) as port:
        client().wrap_socket(connected(port)).close()


def test_without_memfd_the_file_is_encrypted_and_gone_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[bytes] = []
    load = ssl.SSLContext.load_cert_chain

    def look(self: ssl.SSLContext, path: str, **options: Any) -> None:
        written.append(Path(path).read_bytes())
        load(self, path, **options)

    def missing(*_: object) -> int:
        raise OSError("not implemented")

    monkeypatch.setattr(os, "memfd_create", missing)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", look)
    with listening(ServerContext(issuer())) as port:
        client().wrap_socket(connected(port)).close()
    assert b"ENCRYPTED PRIVATE KEY" in written[0]
    assert b"BEGIN PRIVATE KEY" not in written[0]
    assert list(tmp_path.iterdir()) == []


def _key_of(made_by: Issuer, answers: Any) -> None:
    answers.put(made_by.current().der)


def test_a_forked_process_makes_a_key_of_its_own() -> None:
    made_by, context = issuer(), multiprocessing.get_context("fork")
    parent, answers = made_by.current().der, context.Queue()
    process = context.Process(target=_key_of, args=(made_by, answers))
    process.start()
    child = answers.get(timeout=HANG)
    process.join(HANG)
    assert child != parent
    assert made_by.current().der == parent


def test_a_process_in_no_enclave_is_called_so(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PlatformUnavailable, match="this process is in no enclave"):
        Issuer.of_this_process()
    assert issuer().current().simulated
    assert "SIMULATED: this process is in no enclave" in caplog.text


def test_gramines_legacy_certificates_on_request() -> None:
    context = ServerContext(issuer(gramine_legacy=True))
    with listening(context) as port:
        with client().wrap_socket(connected(port)) as connection:
            assert attested_peer(connection).certificate.format == "gramine-legacy"
        with client(fresh=True).wrap_socket(connected(port)) as connection:
            assert attested_peer(connection).certificate.format == "ra-tls"  # the older one has no nonce


def test_under_gramine_the_process_attests_itself(tmp_path: Path) -> None:
    """With a stand-in for Gramine's pseudo-files, over the quotes of a simulated enclave."""
    folder = tmp_path / "dev" / "attestation"
    folder.mkdir(parents=True)
    for name in ("user_report_data", "quote"):
        os.mkfifo(folder / name)

    def gramine() -> None:
        with (folder / "user_report_data").open("rb") as file:
            data = file.read(64)
        with (folder / "quote").open("wb") as file:
            file.write(quotes().quote(data).quote)

    thread = threading.Thread(target=gramine, daemon=True)
    thread.start()
    context = ServerContext(Issuer(GramineQuoteSource(tmp_path)))
    with listening(context) as port, client().wrap_socket(connected(port)) as connection:
        assert attested_peer(connection).quote.simulated
    thread.join(HANG)


def test_certificates_are_what_standard_tools_read() -> None:
    current = issuer(names=("server.example.org", "10.0.0.1")).current()
    found = x509.load_der_x509_certificate(current.der)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(one.value) for one in names] == ["server.example.org", "10.0.0.1"]
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert AttestedCertificate.parse(current.der).quote.body.mr_enclave == declared().mr_enclave  # type: ignore[union-attr]


@pytest.mark.parametrize("life", [timedelta(0), timedelta(hours=25), timedelta(seconds=-1)])
def test_a_life_that_is_too_long_or_short_is_refused(life: timedelta) -> None:
    with pytest.raises(ConfigError, match="the life of a certificate"):
        Issuer(quotes(), life=life)


@pytest.mark.parametrize("names", [(), "server.example.org", ("",), ("sërver",), (1,), (b"x",)])
def test_names_that_no_certificate_can_carry_are_refused(names: Any) -> None:
    with pytest.raises(ConfigError, match="names: expected DNS names"):
        Issuer(quotes(), names=names)


def test_arguments_of_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="quotes: expected a QuoteSource, found str"):
        Issuer("machine.json")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="issuer: expected Issuer"):
        ServerContext(quotes())  # type: ignore[arg-type]


async def test_a_platform_that_fails_refuses_connections_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    async with serving_fresh(ServerContext(Issuer(Failing(), clock=clock))) as port:
        clock.now += 2 * DAY
        with pytest.raises(OSError):  # noqa: PT011 - the connection ends
            await asyncio.open_connection("127.0.0.1", port, ssl=client(clock=clock))
        assert "a connection was not served (platform-busy)" in caplog.text


class Wrong:
    """Quotes over other report data."""

    def quote(self, report_data: bytes, *, nonce: bytes | None = None) -> Any:
        return quotes().quote(bytes(64), nonce=nonce)


def test_a_quote_over_other_data_makes_no_certificate() -> None:
    with pytest.raises(PlatformError, match="does not make an attested certificate"):
        Issuer(Wrong()).current()


def test_an_enclave_in_debug_mode_is_refused() -> None:
    with listening(ServerContext(Issuer(quotes(debug=True)))) as port, pytest.raises(NotAttested, match="no-debug"):
        client().wrap_socket(connected(port))


def test_clients_with_ordinary_certificates_are_checked_as_usual() -> None:
    """And attested ones are not taken: the standard library's servers know no self-signed client certificates."""
    from confcom.pki.serving_pair import Authority

    authority = Authority.make("test", now=utc_now(), lifetime=DAY)
    context = ServerContext(issuer())
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority.certificate.decode())
    name = x509.load_pem_x509_certificate(authority.certificate).subject.rfc4514_string().removeprefix("CN=")
    now, signer = utc_now(), load_pem_private_key(authority.key, None)
    leaf = made.Certificate((), subject="client", issuer=name, signer=signer, not_before=now - DAY, not_after=now + DAY)
    certificate = ssl.DER_cert_to_PEM_cert(leaf.build()).encode()
    key = made.key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    theirs: list[bytes] = []
    with listening(context, received=theirs) as port:
        for fresh in (False, True):
            for named in (client(fresh=fresh), client(fresh=fresh, issuer=issuer()), client(fresh=fresh)):
                if named._issuer is None:
                    load_pair(named, certificate, key)
                # In TLS 1.3 a client learns of its refusal after its own handshake, when it reads.
                with contextlib.suppress(OSError), named.wrap_socket(connected(port)) as connection:
                    connection.sendall(b"x")
                    connection.recv(1)
    assert theirs == [b"x"] * 4


def test_a_pair_that_is_none_is_refused() -> None:
    current = issuer().current()
    certificate = ssl.DER_cert_to_PEM_cert(current.der).encode()
    key = made.key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for pair in ((certificate, key), (b"", key), (certificate, b"no key")):
        with pytest.raises(ConfigError, match="certificate and key cannot be used"):
            load_pair(client(), *pair)
    with pytest.raises(ConfigError, match="no other"):
        load_pair(ServerContext(issuer()), certificate, key)


# Deadlines


@contextmanager
def hostile(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def serve() -> None:
            stream, _ = listener.accept()
            with stream:
                try:
                    while not stop.is_set():
                        behave(stream)
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        stop.set()
        thread.join(HANG)


def silent(_: socket.socket) -> None:
    time.sleep(0.01)


def trickling(stream: socket.socket) -> None:
    """A record of handshake that never ends: every byte restarts the timeout of one read."""
    stream.sendall(b"\x16" if not getattr(stream, "begun", False) else b"\0")
    time.sleep(0.02)


@pytest.mark.parametrize("behave", [silent, trickling])
def test_a_server_that_does_not_finish_meets_the_deadline(behave: Callable[[socket.socket], None]) -> None:
    with hostile(behave) as port, pytest.raises(PlatformUnavailable):
        fetch_and_pin("127.0.0.1", port, client(), timeout=0.3)


def test_no_server_is_an_error_with_a_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(PlatformUnavailable, match="Connection refused"):
        fetch_and_pin("127.0.0.1", port, client())


async def test_asyncios_deadline_counts() -> None:
    with hostile(silent) as port, pytest.raises(ConnectionAbortedError):
        await asyncio.open_connection("127.0.0.1", port, ssl=client(), ssl_handshake_timeout=0.2)


def test_a_web_server_with_the_listening_socket_wrapped() -> None:
    """The usual recipe for http.server: each accepted connection shows the certificate of its time."""
    clock = Clock()
    made_by = Issuer(quotes(), clock=clock)
    with ServerContext(made_by).wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True) as listener:
        listener.settimeout(HANG)
        port = listener.getsockname()[1]
        for _ in range(2):
            thread = threading.Thread(target=lambda: listener.accept()[0].close())
            thread.start()
            with client(clock=clock).wrap_socket(connected(port)) as connection:
                assert attested_peer(connection).certificate.der == made_by.current().der
            thread.join(HANG)
            clock.now += 2 * DAY


def test_logs_hold_no_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    current = issuer().current()
    secret = f"{current.key.private_numbers().private_value:x}"
    assert secret not in caplog.text + repr(current)


def test_served_web_page_over_ipv4_address_only() -> None:
    with served() as server:
        assert fetch_and_pin("127.0.0.1", server.port, client()).name == "attested.invalid"
