"""Secret provisioning of Gramine: gives a secret to its unmodified clients (`libsecret_prov_attest.so`).

The client shows an attested certificate, the server an ordinary one. After the handshake the client sends `REQUEST`;
the answer is `RESPONSE`, the size of the secret (uint32, big-endian) and the secret (Gramine's
tools/sgx/ra-tls/secret_prov.h). pyOpenSSL makes the TLS (`confcom[gramine]`): the standard library's servers cannot
take self-signed certificates of clients.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from confcom.appraisal.collateral import Collateral
from confcom.appraisal.peer import check_binding, read_attested_certificate
from confcom.appraisal.policy import Policy, checked_identity
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import VerifiedPeer, verify_attested
from confcom.atls.issuer import utc_now
from confcom.atls.server import DEADLINE, serve_each
from confcom.errors import ConfcomError, ConfigError, FormatError
from confcom.formats.arguments import checked_bytes
from confcom.formats.attested_certificate import AttestedCertificate
from confcom.formats.quote import Quote
from confcom.pki.chain import TrustRoots

if TYPE_CHECKING:
    from OpenSSL import SSL

    from confcom.collateral.sources import RememberedCollateral

REQUEST = b"SECRET_PROVISION_RA_TLS_REQUEST_V1\0"
RESPONSE = b"SECRET_PROVISION_RA_TLS_RESPONSE_V1:\0"
MAX_SECRET = 2**31 - 1
"""Bytes; clients refuse more."""
_READ = 16 * 1024
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"

_LEFT = "the client ended the connection"

_log = logging.getLogger("confcom.atls")
_T = TypeVar("_T")


async def serve_secret(
    listener: socket.socket,
    secret: bytes,
    policy: Policy,
    collateral: Collateral | RememberedCollateral,
    *,
    certificate: bytes,
    key: bytes,
    verifier: QuoteVerifier | None = None,
    grace: timedelta = timedelta(),
) -> None:
    """Give `secret` to the Gramine clients of a listening socket that `policy` accepts, until cancelled.

    Clients with `SECRET_PROVISION_SET_KEY` need 16 bytes; those that read `SECRET_PROVISION_SECRET_STRING` need text
    that ends with a NUL. `policy` must name who is expected. A `RememberedCollateral` asks its source in a thread, for
    one client at a time. `certificate` (its chain follows) and `key`, PEM both, are the server's. `verifier` has the
    trusted roots, by default Intel's.

    A connection ends after 10 s; after 2 s if 100 others are there. The log (`confcom.atls`) says who got
    the secret, and why others did not. `ConfigError` for parameters that cannot be used.
    """
    checked_identity(policy)
    if not 0 < len(checked_bytes(secret, "secret")) <= MAX_SECRET:
        raise ConfigError(f"secret: expected 1 to {MAX_SECRET} bytes, found {len(secret)}")
    context = _context(checked_bytes(certificate, "certificate"), checked_bytes(key, "key"))
    verifier = QuoteVerifier(TrustRoots.intel()) if verifier is None else verifier
    # Of its own: a source that hangs must not take the threads that read and verify certificates.
    asking = concurrent.futures.ThreadPoolExecutor(1)
    try:
        await serve_each(listener, _Server(context, secret, policy, collateral, verifier, grace, asking).serve)
    finally:
        asking.shutdown(wait=False, cancel_futures=True)


def _context(certificate: bytes, key: bytes) -> SSL.Context:
    """TLS that asks for a certificate and takes any; without renegotiation and resumption, which would show none.

    TLS 1.2, which every Gramine speaks: pyOpenSSL cannot turn off the session tickets of TLS 1.3, and the mbedTLS of
    Gramine 1.8 (3.6.0) takes one for an error.
    """
    try:
        from OpenSSL import SSL
    except ImportError as error:
        raise ConfigError("secret provisioning needs pyOpenSSL", advice="Install confcom[gramine].") from error
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
    try:
        leaf, *chain = x509.load_pem_x509_certificates(certificate)
        context.use_certificate(leaf)
        for one in chain:
            context.add_extra_chain_cert(one)
        context.use_privatekey(load_pem_private_key(key, None))  # type: ignore[arg-type]  # of any kind of key
        context.check_privatekey()
    except (ValueError, TypeError, UnsupportedAlgorithm, SSL.Error) as error:
        raise ConfigError(f"certificate and key cannot be used: {_reason(error)}") from error
    return context


@dataclass(frozen=True, slots=True)
class _Server:
    context: SSL.Context
    secret: bytes = field(repr=False)
    policy: Policy
    collateral: Collateral | RememberedCollateral
    verifier: QuoteVerifier
    grace: timedelta
    asking: concurrent.futures.Executor

    async def serve(self, stream: socket.socket) -> None:
        """Serve one connection and close it."""
        from OpenSSL import SSL

        client = "a client"
        try:
            if address := stream.getpeername():  # not of a Unix socket
                client = str(address[0])
            stream.setblocking(False)
            async with asyncio.timeout(DEADLINE):
                peer = await self._exchange(_Tls(SSL.Connection(self.context), stream))
            _log.info("secret given to %s: %r", client, peer)
        except ConfcomError as error:
            _log.warning("no secret for %s (%s): %s", client, error.code, error)
        except TimeoutError:
            _log.warning("no secret for %s: not done within %g s", client, DEADLINE)
        except (OSError, SSL.Error) as error:
            _log.warning("no secret for %s: %s", client, _reason(error))
        finally:
            stream.close()

    async def _exchange(self, tls: _Tls) -> VerifiedPeer:
        peer = await self._verify(await tls.accept())
        request = await tls.receive(len(REQUEST))
        if request != REQUEST:
            raise FormatError(f"expected {REQUEST!r}, found {request!r}", structure="request", field="")
        await tls.send(RESPONSE + len(self.secret).to_bytes(4, "big") + self.secret)
        return peer

    async def _verify(self, der: bytes) -> VerifiedPeer:
        now, collateral = utc_now(), self.collateral
        certificate = await asyncio.to_thread(_read, der)
        if not isinstance(collateral, Collateral):
            collateral = await self._ask(collateral, certificate.quote, now)
        return await asyncio.to_thread(
            verify_attested,
            certificate,
            self.policy,
            collateral,
            now=now,
            verifier=self.verifier,
            nonce=None,
            max_age=None,
            grace=self.grace,
        )

    async def _ask(self, source: RememberedCollateral, quote: Quote, now: datetime) -> Collateral:
        known = await asyncio.to_thread(lambda: source.remembered(source.platform(quote), now))
        if known is None:
            known = await asyncio.get_running_loop().run_in_executor(self.asking, source.for_quote, quote, now)
        return known


def _read(der: bytes) -> AttestedCertificate:
    certificate = read_attested_certificate(der)
    check_binding(certificate)  # first: a source is not asked for quotes that were copied
    return certificate


class _Tls:
    """A connection of pyOpenSSL on an event loop. OpenSSL bounds the messages of handshakes (certificates: 100 KiB)."""

    def __init__(self, connection: SSL.Connection, stream: socket.socket) -> None:
        self._connection, self._stream = connection, stream

    async def accept(self) -> bytes:
        """Make the handshake; the client's certificate, DER."""
        from OpenSSL import crypto

        self._connection.set_accept_state()
        await self._run(self._connection.do_handshake)
        found = self._connection.get_peer_certificate()
        if found is None:  # OpenSSL ends the handshake then
            raise FormatError("the client showed none", structure="certificate", field="")
        # Not through `cryptography`, which refuses those that mbedTLS made.
        return crypto.dump_certificate(crypto.FILETYPE_ASN1, found)

    async def receive(self, size: int) -> bytes:
        """Receive exactly `size` bytes."""
        received = bytearray()
        while len(received) < size:
            received += await self._run(partial(self._connection.recv, size - len(received)))
        return bytes(received)

    async def send(self, data: bytes) -> None:
        """Send, and end the TLS connection (close_notify)."""
        await self._run(partial(self._connection.sendall, data))
        await self._run(self._connection.shutdown)

    async def _run(self, step: Callable[[], _T]) -> _T:
        from OpenSSL import SSL

        while True:
            try:
                done = step()
            except SSL.WantReadError:
                await self._flush()
            except SSL.Error:
                await self._flush()  # the alert
                raise
            else:
                await self._flush()
                return done
            await asyncio.sleep(0)  # `sock_recv` does not yield while there is data
            received = await asyncio.get_running_loop().sock_recv(self._stream, _READ)
            if not received:
                raise ConnectionResetError(_LEFT)
            self._connection.bio_write(received)

    async def _flush(self) -> None:
        from OpenSSL import SSL

        while True:
            try:
                pending = self._connection.bio_read(_READ)
            except SSL.WantReadError:
                return
            await asyncio.get_running_loop().sock_sendall(self._stream, pending)


def _reason(error: Exception) -> str:
    """The reason of an error; the last one of OpenSSL's list."""
    found = error.args[0] if error.args else None
    if isinstance(found, list) and found:
        return str(found[-1][-1])
    return getattr(error, "strerror", None) or str(error) or _LEFT
