"""TLS of a daemon: a renewed certificate is used from the next connection on, without a restart.

Its certificate stands in files, is kept in a Secret (`certificates`), or is issued here in memory by a CA in a folder
(a mounted Secret). Of the last, each replica issues its own, so replicas share only the CA and need no right at the
Kubernetes API for it; the installer makes the CA and publishes it to the API server.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakSet

import structlog
from cryptography import x509

from confcom.errors import ConfigError, PlatformUnavailable, check_want
from confcom.input_file import read_bounded
from confcom.pki.serving_pair import MAX_PEM, Authority, Pair

WATCH_INTERVAL = 2.0
"""Seconds between two looks at the files."""
MAX_PEM_FILE = 512 * 1024
"""Bytes of a file of certificates or keys. OpenSSL reads any size, and the event loop stands still meanwhile."""
LIFETIME = timedelta(days=30)
"""Of a certificate that is issued in memory."""
LOOK_EVERY = 5.0
"""Seconds between two reads of its CA."""
CERTIFICATE, KEY = "tls.crt", "tls.key"
"""The CA's files, named as in Secrets of type kubernetes.io/tls."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate chain and its private key, both PEM."""

    certificate: Path
    key: Path

    def fingerprint(self) -> tuple[tuple[int, int, int], ...]:
        """What changes when a file is replaced or rewritten, through symbolic links too; empty while one is missing."""
        try:
            found = [path.stat() for path in (self.certificate, self.key)]
        except OSError:
            return ()
        return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in found)

    def read(self) -> tuple[bytes, bytes]:
        """The content of both; `ConfigError` names the file that cannot be read."""
        return read_authorities(self.certificate, "the TLS certificate"), read_authorities(self.key, "the TLS key")


class HeldTls:
    """A server's certificate (PEM chain, leaf first, and its key), which its holder may replace.

    Each handshake uses the present one.
    """

    def __init__(self, certificate: bytes, key: bytes, *, place: str = "") -> None:
        """`place` is a part of messages."""
        self._place, self._ca_place = place, ""
        self._client_mode = ssl.CERT_OPTIONAL
        self._lock = Lock()
        """A certificate and an authority may be replaced by different threads; neither may bring back the other's."""
        self.client_ca: bytes | None = None
        """The authority of clients' certificates; None where they are not asked for any."""
        self._of_authority: WeakSet[ssl.SSLContext] = WeakSet()
        """The contexts, also former ones, that ask for certificates of the present authority."""
        self._set(certificate, key, None)
        self._beginning = self._begin()

    def use(self, certificate: bytes, key: bytes) -> None:
        """Use another pair from the next connection on; `ConfigError` if it cannot be used."""
        with self._lock:
            self._set(certificate, key, self.client_ca)

    def require_client(self, authority: bytes, *, optional: bool = False, place: str = "") -> None:
        """Accept only clients with a certificate of this authority (PEM) from now on, or `optional` with none at all.

        `ConfigError` if the authority is none; `place` is a part of it.
        """
        with self._lock:
            self._client_mode, self._ca_place = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED, place
            # Another context, because one cannot forget a former authority.
            self._set(*self._pair, authority)

    @property
    def context(self) -> ssl.SSLContext:
        """What a connection begins with; its handshake uses the present certificate and authority."""
        # Where clients show certificates, each connection has its own: with TLS 1.2 a context resumes sessions,
        # and does not verify them again.
        return self._beginning if self.client_ca is None else self._begin()

    def admits(self, connection: ssl.SSLObject) -> bool:
        """Whether a handshake would accept the client of this connection now too."""
        chain = connection._sslobj.get_verified_chain()  # type: ignore[attr-defined]  # public from Python 3.13 on
        if not chain:
            return self.client_ca is None or self._client_mode is ssl.CERT_OPTIONAL
        expires = min(ssl.cert_time_to_seconds(each.get_info()["notAfter"]) for each in chain)
        return time.time() < expires and connection.context in self._of_authority

    async def watch(self) -> None:
        """Watch what the certificate comes from, until cancelled; by default there is nothing to watch."""

    def _set(self, certificate: bytes, key: bytes, client_ca: bytes | None) -> None:
        context = _load(certificate, key, self._place)
        if client_ca is not None:
            try:
                context.load_verify_locations(cadata=client_ca.decode("ascii", "ignore"))
            except (ssl.SSLError, ValueError) as error:
                raise ConfigError(
                    f"the authority of clients{self._ca_place} cannot be used: {_words(error)}",
                    advice="Give its certificate in PEM.",
                ) from error
            self._ask_for_certificate(context)
        if client_ca != self.client_ca:
            self._of_authority.clear()
        self._of_authority.add(context)
        self._current, self._pair, self.client_ca = context, (certificate, key), client_ca
        self.expires = _expiry(certificate)
        """When the certificate in use expires; None if its dates cannot be read."""

    def _begin(self) -> ssl.SSLContext:
        context = _context()
        # Called for every handshake, with or without a name in it.
        context.sni_callback = self._choose
        if self.client_ca is not None:
            # The mode is that of the context with which a handshake begins.
            self._ask_for_certificate(context)
        return context

    def _ask_for_certificate(self, context: ssl.SSLContext) -> None:
        context.verify_mode = self._client_mode
        # A resumed session would not be verified again.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        del name, context
        connection.context = self._current


def client_of(connection: ssl.SSLObject) -> dict[str, Any]:
    """ASGI's TLS extension: the client's certificate, and the last common name in it, which Go reads too."""
    certificate = connection.getpeercert(binary_form=True)
    if not certificate:
        return {"client_common_name": None}
    subject: Any = (connection.getpeercert() or {}).get("subject", ())
    names = [value for pairs in subject for key, value in pairs if key == "commonName"]
    return {
        "client_common_name": names[-1] if names else None,
        "client_cert_chain": [ssl.DER_cert_to_PEM_cert(certificate)],
    }


class ReloadingTls(HeldTls):
    """Follows its files. A pair that cannot be used (half a file, another's key) leaves the former one in force."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = files.fingerprint()
        super().__init__(*files.read(), place=f" {files.certificate} with the key {files.key}")

    def reload(self) -> bool:
        """Use the files if they changed and fit together; returns whether they are used."""
        found = self._files.fingerprint()
        if not found or found == self._seen:
            return False
        try:
            self.use(*self._files.read())
        except PlatformUnavailable as error:
            structlog.get_logger().warning("tls.reload", outcome="waits", reason=error.message)
            return False
        except ConfigError as error:
            self._seen = found
            structlog.get_logger().warning("tls.reload", outcome="failed", reason=error.message)
            return False
        self._seen = found
        structlog.get_logger().info("tls.reload", outcome="reloaded", certificate=str(self._files.certificate))
        return True

    async def watch(self) -> None:
        """Look at the files every `WATCH_INTERVAL` seconds, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            self.reload()


class OwnCertificate:
    """A certificate that a server makes or keeps itself, and replaces."""

    def __init__(self) -> None:
        self.not_ready = "no certificate yet"
        """Why clients would not trust the server; empty if they do."""
        self.served: Pair | None = None
        """The certificate of new connections."""
        self._tls: HeldTls | None = None
        self._first: asyncio.Future[HeldTls] = asyncio.get_running_loop().create_future()

    async def first(self) -> HeldTls:
        """Wait for the first certificate."""
        return await asyncio.shield(self._first)

    def expiry(self) -> float | None:
        """When the certificate in use expires, in Unix seconds; None before the first."""
        return None if self.served is None else self.served.expires.timestamp()

    def _use(self, pair: Pair) -> None:
        if self._tls is None:
            self._tls = HeldTls(pair.certificate, pair.key)
            self._first.set_result(self._tls)
        else:
            self._tls.use(pair.certificate, pair.key)
        self.served = pair


class IssuedCertificate(OwnCertificate):
    """The certificate in use: replaced after half of its lifetime, and when the folder holds another CA.

    One that was made by a clock that was ahead is replaced when the clock is set right: peers do not take it yet.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        lifetime: timedelta = LIFETIME,
        common_name: str,
        clock: Callable[[], datetime],
    ) -> None:
        super().__init__()
        self.changes = 0
        """Certificates that were taken into use."""
        self._folder = folder
        self._names = names
        self._lifetime = lifetime
        self._common_name = common_name
        self._clock = clock
        self._authority: Authority | None = None

    async def run(self, every: float = LOOK_EVERY) -> None:
        """Read the CA every `every` seconds, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(every)

    def look(self) -> None:
        """Read the CA, and issue a certificate if one is due. Without a CA the present certificate stays."""
        try:
            self._look()
        except PlatformUnavailable as error:
            # The next look may find another CA; what is served is as good as it was.
            self._note(self.not_ready if self.served is not None else error.message)

    def _look(self) -> None:
        now, authority = self._clock(), self._read()
        if authority is None or authority.expires <= now:
            state = "no usable CA in" if authority is None else "the CA has expired in"
            self._note(f"{state} {self._folder}: `confcom addon update` makes one")
            return
        if authority != self._authority or self.served is None or not self.served.made <= now < _middle(self.served):
            pair = authority.issue(self._names, now=now, lifetime=self._lifetime, common_name=self._common_name)
            self._use(pair)
            self._authority = authority
            self.changes += 1
            structlog.get_logger().info("certificate.served", expires=pair.expires.isoformat())
        self._note("")

    def _read(self) -> Authority | None:
        try:
            certificate, key = (read_bounded(self._folder / name, MAX_PEM, patience=0) for name in (CERTIFICATE, KEY))
        except OSError as error:
            check_want(error)
            return None
        return Authority.parse(certificate, key)

    def _note(self, reason: str) -> None:
        if reason != self.not_ready:
            structlog.get_logger().info("certificate.ready", ready=not reason, reason=reason)
        self.not_ready = reason


def _middle(pair: Pair) -> datetime:
    return pair.made + (pair.expires - pair.made) / 2


def read_authorities(path: Path, what: str) -> bytes:
    """A PEM file of at most `MAX_PEM_FILE` bytes; `ConfigError` names `what` it is.

    `PlatformUnavailable` for want of descriptors.
    """
    try:
        content = read_bounded(path, MAX_PEM_FILE, patience=0)
    except OSError as error:
        check_want(error)
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}", advice="Name its PEM file.") from error
    if len(content) > MAX_PEM_FILE:
        raise ConfigError(
            f"{path} has more than {MAX_PEM_FILE} bytes, too many for a file of certificates or a key",
            advice="Name a PEM file with the certificates that are needed alone.",
        )
    return content


@contextmanager
def _memory_file(content: bytes) -> Iterator[Path]:
    with os.fdopen(os.memfd_create("confcom-tls", os.MFD_CLOEXEC), "wb") as file:
        file.write(content)
        file.flush()
        yield Path(f"/proc/self/fd/{file.fileno()}")


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _load(certificate: bytes, key: bytes, place: str) -> ssl.SSLContext:
    context = _context()
    refuse_password: Any = _refuse_password
    try:
        # The ssl module reads files only; these are in memory, and vanish with this call.
        with _memory_file(certificate) as first, _memory_file(key) as second:
            context.load_cert_chain(first, second, password=refuse_password)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            check_want(error)
        raise ConfigError(
            f"the TLS certificate{place} cannot be used: {_words(error)}",
            advice="Give a PEM certificate chain, leaf first, and its unencrypted private key.",
        ) from error
    return context


def _words(error: Exception) -> str:
    return "no PEM stands in one of them" if "PEM lib" in str(error) else str(error)


def _expiry(chain: bytes) -> datetime | None:
    # OpenSSL serves certificates that this parser refuses.
    try:
        return x509.load_pem_x509_certificate(chain).not_valid_after_utc
    except ValueError:
        return None


def _refuse_password() -> str:
    # Without this, OpenSSL would ask on the terminal.
    raise ValueError("the private key is encrypted")
