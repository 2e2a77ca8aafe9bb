"""TLS of a daemon: a renewed certificate is used from the next connection on, without a restart."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from cryptography import x509

from confcom.errors import ConfigError
from confcom.pki.serving_pair import Pair

WATCH_INTERVAL = 2.0
"""Seconds between two looks at the files."""
MAX_PEM_FILE = 512 * 1024
"""Bytes of a file of certificates or keys. OpenSSL reads any size, and the event loop stands still meanwhile."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate chain and its private key, both PEM, and the authority of clients' certificates.

    With an authority, a client may bring a certificate; one of another authority ends the handshake.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def fingerprint(self) -> tuple[tuple[int, int, int], ...]:
        """What changes when a file is replaced or rewritten, through symbolic links too; empty while one is missing."""
        try:
            found = [path.stat() for path in (self.certificate, self.key, self.client_ca) if path is not None]
        except OSError:
            return ()
        return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in found)


class ServerTls:
    """A server's TLS context, with which each handshake uses the `_current` one."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = self._current = context
        # Called for every handshake, with or without a name in it.
        context.sni_callback = self._choose

    @property
    def expires(self) -> datetime | None:
        """When the certificate in use expires; None if its dates cannot be read."""
        raise NotImplementedError

    async def watch(self) -> None:
        """Watch what the certificate comes from, until cancelled; by default there is nothing to watch."""

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        del name, context
        connection.context = self._current


class ReloadingTls(ServerTls):
    """Follows its files. A pair that cannot be used (half a file, another's key) leaves the former one in force."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = files.fingerprint()
        super().__init__(_load(files))
        self._expires = _expiry(files.certificate)

    @property
    def expires(self) -> datetime | None:
        """When the certificate in use expires; None if its dates cannot be read."""
        return self._expires

    def reload(self) -> bool:
        """Use the files if they changed and fit together; returns whether they are used."""
        found = self._files.fingerprint()
        if not found or found == self._seen:
            return False
        self._seen = found
        try:
            self._current = _load(self._files)
            self._expires = _expiry(self._files.certificate)
        except ConfigError as error:
            structlog.get_logger().warning("tls.reload", outcome="failed", reason=error.message)
            return False
        structlog.get_logger().info("tls.reload", outcome="reloaded", certificate=str(self._files.certificate))
        return True

    async def watch(self) -> None:
        """Look at the files every `WATCH_INTERVAL` seconds, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            self.reload()


class HeldTls(ServerTls):
    """A certificate that its holder sets and replaces. Its key is in no file."""

    def __init__(self, certificate: bytes, key: bytes) -> None:
        self._client_ca: str | None = None
        self._pair = (certificate, key)
        self._client_mode = ssl.CERT_REQUIRED
        super().__init__(_load_held(certificate, key))

    @property
    def expires(self) -> datetime | None:
        """When the certificate in use expires; None if its dates cannot be read."""
        return _expiry(self._pair[0])

    def use(self, certificate: bytes, key: bytes) -> None:
        """Use another pair (PEM) from the next connection on; `ConfigError` if it cannot be used."""
        self._current = self._asking(_load_held(certificate, key), self._client_ca)
        self._pair = (certificate, key)

    def require_client(self, authority: bytes, *, optional: bool = False) -> None:
        """Accept only clients with a certificate of this authority (PEM) from now on, or `optional` with none at all.

        `ConfigError` if the authority is none.
        """
        found = authority.decode("ascii", "ignore")
        self._client_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
        # Another context, because one cannot forget a former authority.
        self._current = self._asking(_load_held(*self._pair), found)
        self._client_ca = found
        # The mode is that of the context with which a handshake begins.
        _ask_for_certificate(self.context, self._client_mode)

    def _asking(self, context: ssl.SSLContext, authority: str | None) -> ssl.SSLContext:
        if authority is not None:
            try:
                context.load_verify_locations(cadata=authority)
            except (ssl.SSLError, ValueError) as error:
                raise ConfigError(
                    f"the authority of clients cannot be used: {error}", advice="Give its certificate in PEM."
                ) from error
            _ask_for_certificate(context, self._client_mode)
        return context


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


def read_authorities(path: Path, what: str) -> bytes:
    """A PEM file of certificates, of at most `MAX_PEM_FILE` bytes; `ConfigError` names `what` it is."""
    try:
        return _read(path)
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from error


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_PEM_FILE + 1)
    if len(content) > MAX_PEM_FILE:
        raise ConfigError(
            f"{path} has more than {MAX_PEM_FILE} bytes, too many for a file of certificates or a key",
            advice="Name a PEM file with the certificates that are needed alone.",
        )
    return content


def _ask_for_certificate(context: ssl.SSLContext, mode: ssl.VerifyMode) -> None:
    context.verify_mode = mode
    # A resumed session would not be verified again.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET


def _load_held(certificate: bytes, key: bytes) -> ssl.SSLContext:
    # The ssl module reads files only; these are in memory, and vanish with this call.
    with _memory_file(certificate) as first, _memory_file(key) as second:
        return _load(TlsFiles(first, second))


@contextmanager
def _memory_file(content: bytes) -> Iterator[Path]:
    with os.fdopen(os.memfd_create("confcom-tls", os.MFD_CLOEXEC), "wb") as file:
        file.write(content)
        file.flush()
        yield Path(f"/proc/self/fd/{file.fileno()}")


def _load(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    refuse_password: Any = _refuse_password
    try:
        for path in files.certificate, files.key:
            _read(path)
        context.load_cert_chain(files.certificate, files.key, password=refuse_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"the TLS certificate {files.certificate} with the key {files.key} cannot be used: {_words(error)}",
            advice="Give a PEM certificate chain, leaf first, and its unencrypted private key.",
        ) from error
    if files.client_ca is not None:
        try:
            _read(files.client_ca)
            context.load_verify_locations(files.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"the authority of clients {files.client_ca} cannot be used: {_words(error)}",
                advice="Give its PEM file.",
            ) from error
        _ask_for_certificate(context, ssl.CERT_OPTIONAL)
    return context


def _words(error: Exception) -> str:
    # A file that cannot be read has a number before its words; OpenSSL's errors have none.
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        return str(error.strerror)
    return "no PEM stands in one of them" if "PEM lib" in str(error) else str(error)


def _expiry(chain: Path | bytes) -> datetime | None:
    # OpenSSL serves certificates that this parser refuses.
    try:
        pem = chain if isinstance(chain, bytes) else _read(chain)
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc
    except (OSError, ValueError, ConfigError):
        return None


def _refuse_password() -> str:
    # Without this, OpenSSL would ask on the terminal.
    raise ValueError("the private key is encrypted")
