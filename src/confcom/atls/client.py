"""The client's side: an `ssl.SSLContext` that accepts a server by its evidence, inside the handshake.

The standard library calls `do_handshake` of the context's own socket class, so a program cannot forget the
verification. Until it succeeded, reading and writing are refused: OpenSSL would make the handshake by itself then.
`https_only`, `https_opener` and `https_session` keep HTTP libraries from following a redirect to http://, where no
context is asked.
"""

from __future__ import annotations

import secrets
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    UnknownHandler,
)

from confcom.appraisal.collateral import Collateral
from confcom.appraisal.peer import read_attested_certificate
from confcom.appraisal.policy import Policy, checked_identity
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import VerifiedPeer, verify_attested
from confcom.atls.issuer import IssuedCertificate, Issuer, utc_now
from confcom.errors import ConfcomError, ConfigError, PlatformUnavailable, VerificationError
from confcom.formats.attested_certificate import AttestedCertificate
from confcom.pki.chain import TrustRoots
from confcom.pki.proof import Memory

if TYPE_CHECKING:
    from requests import Session

    from confcom.collateral.sources import RememberedCollateral

    _Object = ssl.SSLObject
else:
    _Object = object

NONCE_SIZE = 32
_SUFFIX = ".invalid"
STEP = "attested-tls"
TIMEOUT = 10.0
"""Seconds of `fetch_and_pin`."""
_READ = 16 * 1024
_KNOWN = 64
"""Accepted certificates that a context remembers."""


class NotAttested(ssl.SSLCertVerificationError):
    """The server is not attested: nothing was sent to it but the handshake. `error` says why, with code and advice.

    Libraries treat it like any certificate that cannot be verified.
    """

    def __init__(self, error: ConfcomError) -> None:
        super().__init__(ssl.SSLErrorNumber.SSL_ERROR_SSL, f"not attested ({error.code}): {error}")
        self.error = error
        self.reason, self.library = "NOT_ATTESTED", "confcom"
        self.verify_code, self.verify_message = 1, str(error)  # X509_V_ERR_UNSPECIFIED

    @property
    def code(self) -> str:
        """The code of `error`, for machines."""
        return self.error.code

    def advice(self) -> str:
        """What to do next."""
        return self.error.advice()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.error,)


def _session_refused() -> ConfigError:
    return ConfigError(
        "a TLS session cannot be resumed: that would skip the server's evidence", advice="Leave out session=."
    )


class _Verifying(_Object):
    """Verifies at the end of the handshake; reads and writes after that alone."""

    attested: VerifiedPeer | None = None

    def do_handshake(self, *block: bool, **named: bool) -> None:
        super().do_handshake(*block, **named)
        if self.attested is None:
            if not isinstance(self.context, ClientContext):
                raise NotAttested(ConfigError("the connection was given another context, which verifies nothing"))
            self.attested = self.context.verify_peer(self)

    def read(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - as the standard library's
        self._check_attested()
        return super().read(*given, **named)

    def write(self, data: Any) -> int:  # noqa: ANN401 - as the standard library's
        self._check_attested()
        return super().write(data)

    def _check_attested(self) -> None:
        if self.attested is None:
            advice = "Call do_handshake() to the end first."
            raise NotAttested(VerificationError("the handshake is not over, or was refused", step=STEP, advice=advice))

    @property
    def session(self) -> ssl.SSLSession | None:
        return super().session

    @session.setter
    def session(self, _: object) -> None:
        raise _session_refused()


class _AttestedObject(_Verifying, ssl.SSLObject):
    """For libraries that move the bytes themselves: asyncio and what is built on it."""


class _AttestedSocket(_Verifying, ssl.SSLSocket):  # type: ignore[misc, override]  # one implementation for both
    """Of a socket, `recv`, `sendall` and `sendfile` come here too, through `read` and `send`."""

    def send(self, data: Any, flags: int = 0) -> int:  # noqa: ANN401 - as the standard library's
        self._check_attested()
        return super().send(data, flags)


class PresentingContext(ssl.SSLContext):
    """A context that shows an issuer's current certificate in every handshake."""

    _serves: bool
    _issuer: Issuer | None
    _shown: IssuedCertificate | None = None

    def _present(self, issuer: Issuer | None) -> None:
        self._issuer, self._mutex = issuer, threading.Lock()
        self.minimum_version = self.maximum_version = ssl.TLSVersion.TLSv1_3
        self._show_current()

    def _show_current(self) -> None:
        if self._issuer is not None:
            current = self._issuer.current()
            if current is not self._shown:
                current.load_into(self)
                self._shown = current

    # The standard library makes OpenSSL's object of a connection in these two. It copies the certificate, and must
    # not do that while another thread replaces it.
    def _wrap_socket(self, *args: object, **options: object) -> object:
        with self._mutex:
            self._show_current()
            return super()._wrap_socket(*args, **options)  # type: ignore[misc]

    def _wrap_bio(self, *args: object, **options: object) -> object:
        with self._mutex:
            self._show_current()
            return super()._wrap_bio(*args, **options)  # type: ignore[misc]

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        """As the standard library's, on the context's own side, without `session`, TLS 1.3 alone."""
        name = self._check_use(server_side, server_hostname, session)
        return super().wrap_socket(
            sock, server_side, do_handshake_on_connect, suppress_ragged_eofs, server_hostname=name
        )

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As the standard library's, on the context's own side, without `session`, TLS 1.3 alone."""
        name = self._check_use(server_side, server_hostname, session)
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname=name)

    def _check_use(self, server_side: bool, name: str | bytes | None, session: object) -> str | bytes | None:
        """Refuse what the context is not for; the server's name to send."""
        if bool(server_side) is not self._serves:
            raise ConfigError(
                f"a {type(self).__name__} cannot {'serve' if server_side else 'connect'}",
                advice="Use ServerContext(issuer) for servers, ClientContext(policy, …) for clients.",
            )
        if session is not None:
            raise _session_refused()
        if self.minimum_version is not ssl.TLSVersion.TLSv1_3:
            raise ConfigError(
                "attested TLS is TLS 1.3 only: in earlier versions a handshake can be repeated or resumed unseen",
                advice="Leave minimum_version and maximum_version of the context alone.",
            )
        return name


class ClientContext(PresentingContext):
    """An `ssl.SSLContext` for clients: the server must show evidence for its key that `policy` accepts.

    `policy` must name who is expected. `collateral` is in memory: a `Collateral`, or a `RememberedCollateral` for
    servers of several platforms; what that does not hold is refused (`collateral-not-found`) until its `refresh` asked
    for it. `verifier` has the trusted roots, by default Intel's.

    `fresh` asks for evidence made for this very handshake, which servers with a `ServerContext` of ours can give: the
    nonce takes the place of the server's name in the handshake. `max_age` bounds how long ago a certificate became
    valid. `issuer` shows our own certificate to servers that ask for one.

    TLS 1.3 only, without resumption. The server's name is not checked. `verify_mode` and `check_hostname` cannot be
    changed; `verify_mode` reads `CERT_REQUIRED`, so that libraries do not warn of servers that were not verified.
    """

    _serves = False
    sslsocket_class = _AttestedSocket
    sslobject_class = _AttestedObject

    def __new__(cls, policy: Policy, collateral: Collateral | RememberedCollateral, **_: object) -> Self:  # noqa: ARG004
        """Make the context of the standard library."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(
        self,
        policy: Policy,
        collateral: Collateral | RememberedCollateral,
        *,
        verifier: QuoteVerifier | None = None,
        fresh: bool = False,
        max_age: timedelta | None = None,
        grace: timedelta = timedelta(),
        issuer: Issuer | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._policy = checked_identity(policy)
        if not isinstance(collateral, Collateral) and not hasattr(collateral, "held"):
            found = type(collateral).__name__
            raise TypeError(
                f"collateral: expected Collateral or RememberedCollateral, found {found}; load_bundle(path) reads one"
            )
        self._collateral = collateral
        self._verifier = QuoteVerifier(TrustRoots.intel()) if verifier is None else verifier
        self._known: Memory[AttestedCertificate] = Memory(_KNOWN)
        self._fresh, self._max_age, self._grace, self._clock = fresh, max_age, grace, clock
        ssl.SSLContext.check_hostname.__set__(self, False)  # type: ignore[attr-defined]
        ssl.SSLContext.verify_mode.fset(self, ssl.CERT_NONE)  # type: ignore[attr-defined]
        self._present(issuer)

    @property
    def verify_mode(self) -> ssl.VerifyMode:
        """Always `CERT_REQUIRED`; setting it has no effect. OpenSSL itself verifies nothing: the evidence counts."""
        return ssl.CERT_REQUIRED

    @verify_mode.setter
    def verify_mode(self, _: object) -> None:
        pass

    @property
    def check_hostname(self) -> bool:
        """Always false; setting it has no effect. A name in a self-signed certificate is the server's own word."""
        return False

    @check_hostname.setter
    def check_hostname(self, _: object) -> None:
        pass

    def _check_use(self, server_side: bool, name: str | bytes | None, session: object) -> str | bytes | None:
        name = super()._check_use(server_side, name, session)
        return name_of_nonce(secrets.token_bytes(NONCE_SIZE)) if self._fresh else name

    def verify_peer(self, connection: ssl.SSLSocket | ssl.SSLObject) -> VerifiedPeer:
        """The peer of a finished handshake; `NotAttested` if it is not acceptable. Connections call it themselves."""
        try:
            return self._verify(connection)
        except ConfcomError as error:
            raise NotAttested(error) from error

    def _verify(self, connection: ssl.SSLSocket | ssl.SSLObject) -> VerifiedPeer:
        if connection.session_reused or connection.version() != "TLSv1.3":
            raise VerificationError(
                "the handshake showed no evidence of its own",
                step=STEP,
                expected="TLSv1.3, a session of its own",
                found=f"{connection.version()}{', resumed' if connection.session_reused else ''}",
            )
        der = connection.getpeercert(binary_form=True)
        if der is None:
            raise VerificationError("the server showed no certificate", step=STEP)
        digest, held = sha256(der).digest(), self._collateral
        known = self._known.get(digest)
        certificate = known or read_attested_certificate(der)
        peer = verify_attested(
            certificate,
            self._policy,
            held if isinstance(held, Collateral) else held.held(certificate.quote),
            now=self._clock(),
            verifier=self._verifier,
            nonce=_nonce_of(connection) if self._fresh else None,
            max_age=self._max_age,
            grace=self._grace,
            known=known is not None,
        )
        if known is None and not self._fresh:
            self._known.add(digest, certificate)
        return peer


def name_of_nonce(nonce: bytes) -> str:
    """32 bytes as a DNS name under `.invalid` (RFC 6761), in two labels of hexadecimal digits."""
    digits = nonce.hex()
    return f"{digits[:NONCE_SIZE]}.{digits[NONCE_SIZE:]}{_SUFFIX}"


def nonce_of_name(name: str | None) -> bytes | None:
    """The nonce in a name that `name_of_nonce` made; None for others, and where the client sent no name."""
    if name is None or len(name) != 2 * NONCE_SIZE + 1 + len(_SUFFIX) or not name.endswith(_SUFFIX):
        return None
    try:
        nonce = bytes.fromhex(name.removesuffix(_SUFFIX).replace(".", ""))
    except ValueError:
        return None
    return nonce if name_of_nonce(nonce) == name else None


def _nonce_of(connection: ssl.SSLSocket | ssl.SSLObject) -> bytes:
    nonce = nonce_of_name(connection.server_hostname)
    if nonce is None:
        raise VerificationError("the handshake was made without the nonce that `fresh` needs", step=STEP)
    return nonce


# What leads from an object of a library to the connection below it: attributes, tried in this order.
_WAYS = (
    "extensions", "network_stream", "transport", "_transport", "connection", "_connection", "raw", "fp", "sock",
    "_sock", "socket", "peer",
)  # fmt: skip
_MAX_STEPS = 64


def attested_peer(connection: object) -> VerifiedPeer:
    """The verified peer behind a socket, an asyncio transport or stream, or a response that is still being read.

    `ConfigError` where no attested connection can be reached: it is over (read responses as streams), or none of a
    `ClientContext`.
    """
    queue, seen = [connection], set[int]()
    while queue and len(seen) < _MAX_STEPS:
        found = queue.pop(0)
        if isinstance(found, _Verifying):
            if found.attested is not None:
                return found.attested
        elif found is not None and id(found) not in seen:
            seen.add(id(found))
            queue += _next_of(found)
    raise ConfigError(
        f"no attested connection is behind this {type(connection).__name__}",
        advice="Ask while the connection is open (read the response as a stream), and make it with a ClientContext.",
    )


def _next_of(found: object) -> list[object]:
    if isinstance(found, dict):
        return [found.get("network_stream")]
    ask = getattr(found, "get_extra_info", None)
    reached = [ask("ssl_object")] if callable(ask) else []
    for way in _WAYS:
        try:
            reached.append(getattr(found, way, None))
        except Exception:  # noqa: BLE001, S112 - properties of other people's objects may raise anything
            continue
    return reached


@dataclass(frozen=True, slots=True)
class PinnedPeer:
    """An attested server's certificate (PEM) to trust alone from now on, and the name in it to expect."""

    peer: VerifiedPeer
    pem: bytes = field(repr=False)
    name: str


def fetch_and_pin(
    host: str, port: int, context: ClientContext, *, timeout: float = TIMEOUT, server_hostname: str | None = None
) -> PinnedPeer:
    """Attest a server and return its certificate, for libraries that take a root certificate and no context (grpcio).

    Its key is pinned: when the server renews its certificate, connections fail until it is fetched again. Raises
    `NotAttested`; `PlatformUnavailable` where there is no TLS server. `timeout`, in seconds, is for connecting to each
    address of the host, and for connection and handshake together.
    """
    end = time.monotonic() + timeout
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = cast("_AttestedObject", context.wrap_bio(incoming, outgoing, server_hostname=server_hostname or host))
    try:
        with socket.create_connection((host, port), timeout=timeout) as stream:
            _shake_hands(connection, stream, incoming, outgoing, end)
    except NotAttested:
        raise
    except (OSError, UnicodeError) as error:
        raise PlatformUnavailable(
            f"no TLS connection to {host} port {port}: {getattr(error, 'strerror', None) or error}",
            advice="Check the address, and that the server speaks TLS 1.3 there.",
        ) from error
    peer = attested_peer(connection)
    return PinnedPeer(peer, ssl.DER_cert_to_PEM_cert(peer.certificate.der).encode(), _name_in(peer))


def _shake_hands(
    connection: _AttestedObject, stream: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, end: float
) -> None:
    while True:
        try:
            connection.do_handshake()
        except ssl.SSLWantReadError:
            stream.settimeout(_left(end))
            stream.sendall(outgoing.read())
            stream.settimeout(_left(end))
            received = stream.recv(_READ)
            if not received:
                raise ConnectionResetError("the server ended the connection during the handshake") from None
            incoming.write(received)
        else:
            stream.settimeout(_left(end))
            stream.sendall(outgoing.read())
            return


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the handshake took too long")
    return left


def _name_in(peer: VerifiedPeer) -> str:
    """The name by which clients of other libraries know the certificate: its first alternative name, else its CN."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    certificate = x509.load_der_x509_certificate(peer.certificate.der)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return str(names[0].value)
    except (x509.ExtensionNotFound, IndexError):
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(common[0].value) if common else ""


# HTTP libraries.


class _Done:
    """What both synchronous and asynchronous clients can ignore: it can be awaited, and need not be."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


def https_only(request: Any, handler: Callable[[Any], Awaitable[Any]] | None = None) -> Any:  # noqa: ANN401 - of several libraries
    """Refuse requests that are not https, redirected ones too; `NotAttested`.

    For httpx and httpx2 an event hook: `event_hooks={"request": [https_only]}`; for aiohttp a middleware:
    `middlewares=(https_only,)`.
    """
    if request.url.scheme not in ("https", "wss"):
        refuse_plain(str(request.url))
    return _Done() if handler is None else handler(request)


def https_opener(context: ClientContext) -> OpenerDirector:
    """An opener of `urllib.request` that knows https alone, and no proxy of the environment."""
    opener = OpenerDirector()
    for handler in (
        HTTPSHandler(context=context),
        _NoHttp(),
        HTTPRedirectHandler(),
        HTTPErrorProcessor(),
        HTTPDefaultErrorHandler(),
        UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _NoHttp(HTTPHandler):
    def http_open(self, req: Request) -> NoReturn:
        refuse_plain(req.full_url)


def https_session(context: ClientContext) -> Session:
    """A session of `requests` that speaks https alone, and uses no proxy of the environment."""
    from requests import Session
    from requests.adapters import HTTPAdapter

    class Attested(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - as in requests
            # urllib3 would compare names, of which an attested certificate has none that counts.
            super().init_poolmanager(*args, ssl_context=context, assert_hostname=False, **options)

        def proxy_manager_for(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as in requests
            return super().proxy_manager_for(*args, ssl_context=context, assert_hostname=False, **options)

        def cert_verify(self, *_: object) -> None:
            """Nothing to load: the context verifies."""

    class Refusing(HTTPAdapter):
        def send(self, request: Any, *_: object, **__: object) -> NoReturn:  # noqa: ANN401 - as in requests
            refuse_plain(request.url)

    session = Session()
    session.trust_env = False
    session.mount("https://", Attested())
    session.mount("http://", Refusing())
    return session


def refuse_plain(url: str) -> NoReturn:
    """Raise `NotAttested` for a URL that is not https; its path and query stay out of the message."""
    parts = urlsplit(url)
    raise NotAttested(
        ConfigError(
            f"{parts.scheme}://{parts.hostname} is not https: nothing there would be attested",
            advice="Ask for https. If a server redirected there, it must not.",
        )
    )
