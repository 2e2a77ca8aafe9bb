"""Short-lived certificates of an enclave, each with a new key and a quote for it.

The key never leaves this process: OpenSSL reads it from memory (memfd), encrypted with a password that exists in this
process alone. Where there is no memfd, as under Gramine, a file takes its place for a moment, encrypted alike.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from confcom.appraisal.peer import check_binding
from confcom.appraisal.quote import pck_chain_of
from confcom.errors import ConfcomError, ConfigError, PlatformError
from confcom.formats.attested_certificate import (
    DICE_EVIDENCE,
    GRAMINE_EVIDENCE,
    AttestedCertificate,
    write_claims,
    write_ra_tls,
)
from confcom.pki.certificate import load_certificate, parse_certificates
from confcom.pki.chain import INTEL_ROOT_PUBLIC_KEY
from confcom.pki.serving_pair import certificate_builder, general_name, key_usage

if TYPE_CHECKING:
    from confcom.platforms.quoting import QuoteSource

MAX_LIFE = timedelta(hours=24)
MIN_LIFE = timedelta(minutes=10)
BACKDATE = timedelta(minutes=5)
"""How far a certificate reaches back, for peers with clocks that are behind."""
RETRY = timedelta(seconds=30)
"""Between two attempts at renewing, while the present certificate is still valid."""
DEFAULT_NAME = "attested.invalid"
"""The name in certificates that were given none. It proves nothing: the evidence does."""

_log = logging.getLogger("confcom.atls")


def utc_now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - TLS contexts are called by libraries that know no time parameter


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate (DER) with its key; `simulated` says that no hardware protects that key."""

    der: bytes = field(repr=False)
    key: EllipticCurvePrivateKey = field(repr=False)
    not_before: datetime
    not_after: datetime
    renew_at: datetime
    simulated: bool
    process: int

    def load_into(self, context: ssl.SSLContext) -> None:
        """Let a context of the standard library show this certificate in handshakes from now on."""
        pem = ssl.DER_cert_to_PEM_cert(self.der).encode()
        # The base class's: contexts of ours refuse other certificates.
        _load(partial(ssl.SSLContext.load_cert_chain, context), pem, self.key)


def load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Let a context show a certificate with its chain and use its key, PEM both, which are in memory and stay there.

    The standard library reads files alone. A pair that is none is a `ConfigError`.
    """
    try:
        _load(context.load_cert_chain, certificate, load_pem_private_key(key, None))
    except (ValueError, TypeError, UnsupportedAlgorithm, ssl.SSLError) as error:
        raise ConfigError(f"certificate and key cannot be used: {error}") from error


def _load(load: Callable[..., None], certificate: bytes, key: Any) -> None:  # noqa: ANN401 - of any kind of key
    password = secrets.token_hex(32)
    locked = BestAvailableEncryption(password.encode())
    with _file_in_memory(certificate + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)) as path:
        load(path, password=password)


class Issuer:
    """Makes and renews the certificates of this process, which must run in an enclave (or beside a simulated one).

    `quotes` is a `QuoteSource`; `Issuer.of_this_process` opens the one that `confcom quote` would use. A certificate
    lives for `life`, at most 24 hours, and is replaced after two thirds of it, with a new key. `names` go into it, for
    clients that pin it by name. `gramine_legacy` makes certificates for Gramine before 1.8.
    """

    def __init__(
        self,
        quotes: QuoteSource,
        *,
        names: Sequence[str] = (DEFAULT_NAME,),
        life: timedelta = MAX_LIFE,
        gramine_legacy: bool = False,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        if not MIN_LIFE <= life <= MAX_LIFE:
            raise ConfigError(f"the life of a certificate is {MIN_LIFE} to {MAX_LIFE}, found {life}")
        if not callable(getattr(quotes, "quote", None)):
            raise TypeError(f"quotes: expected a QuoteSource, found {type(quotes).__name__}")
        self._quotes, self._names, self._life, self._legacy = quotes, _checked_names(names), life, gramine_legacy
        self._clock = clock
        self._present: IssuedCertificate | None = None
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._not_before_retry = datetime.min.replace(tzinfo=UTC)

    @classmethod
    def of_this_process(
        cls,
        *,
        machine: Path | str | None = None,
        enclave: Path | str | None = None,
        names: Sequence[str] = (DEFAULT_NAME,),
        life: timedelta = MAX_LIFE,
        gramine_legacy: bool = False,
    ) -> Self:
        """With quotes of the enclave of this process (Gramine), or of a simulated one on the machine of `machine`.

        `enclave` declares the simulated enclave. `PlatformUnavailable` where this process is in no enclave.
        """
        # Here, because they need packages that clients do without.
        from confcom.platforms.quoting import process_mode
        from confcom.wiring import own_quote_source

        quotes = own_quote_source(machine=machine, enclave=enclave)
        _log.info("%s", process_mode().decision)
        return cls(quotes, names=names, life=life, gramine_legacy=gramine_legacy)

    def current(self) -> IssuedCertificate:
        """The certificate to show now.

        The first one, that of a forked process and one after the end of its predecessor are made here, which takes as
        long as a quote; a renewal that is due is made in a thread meanwhile. Raises what the platform raises.
        """
        now, present = self._clock(), self._present
        if present is None or present.process != os.getpid() or not present.not_before <= now < present.not_after:
            return self._replace(present)
        if now >= max(present.renew_at, self._not_before_retry) and self._renewing.acquire(blocking=False):
            threading.Thread(target=self._renew, args=(present,), name="confcom-atls-renewal", daemon=True).start()
        return present

    def fresh(self, nonce: bytes) -> IssuedCertificate:
        """A certificate of its own for one handshake: the enclave vouches for the nonce (at most 1,024 bytes) too."""
        return self._make(nonce)

    def _replace(self, old: IssuedCertificate | None) -> IssuedCertificate:
        if old is not None and old.process != os.getpid():
            # A thread of the parent may have held them.
            self._lock, self._renewing = threading.Lock(), threading.Lock()
        with self._lock:
            if self._present is None or self._present is old:
                self._present = self._make(None)
                self._note(self._present)
            return self._present

    def _renew(self, old: IssuedCertificate) -> None:
        self._not_before_retry = self._clock() + RETRY
        try:
            self._replace(old)
        except ConfcomError as error:
            _log.warning(
                "the attested certificate cannot be renewed and ends at %s (%s): %s", old.not_after, error.code, error
            )
        finally:
            self._renewing.release()

    def _make(self, nonce: bytes | None) -> IssuedCertificate:
        now = self._clock().replace(microsecond=0)
        begin, end = now - BACKDATE, now + self._life
        key = generate_private_key(SECP256R1())
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        digest = sha256(public).digest()
        if self._legacy and nonce is None:
            oid, evidence = GRAMINE_EVIDENCE, self._quote(digest)
        else:
            claims = write_claims(digest, nonce)
            oid, evidence = DICE_EVIDENCE, write_ra_tls(self._quote(sha256(claims).digest()), claims)
        name = _subject(self._names)
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        der = (
            certificate_builder(name, name, key.public_key(), begin, end)
            .add_extension(key_usage(authority=False), critical=True)
            .add_extension(usages, critical=False)
            .add_extension(x509.SubjectAlternativeName([general_name(one) for one in self._names]), critical=False)
            .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), evidence), critical=False)
            .sign(key, SHA256())
            .public_bytes(Encoding.DER)
        )
        simulated = _checked(der)
        return IssuedCertificate(der, key, begin, end, now + self._life * 2 / 3, simulated, os.getpid())

    def _quote(self, digest: bytes) -> bytes:
        return self._quotes.quote(digest.ljust(64, b"\0")).quote

    def _note(self, made: IssuedCertificate) -> None:
        _log.info("attested certificate for %s until %s", ", ".join(self._names), made.not_after)
        if made.simulated:
            _log.warning(
                "SIMULATED: this process is in no enclave, nothing protects the key of its certificate, and clients "
                "refuse it unless they trust the simulated root"
            )


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names that a certificate can carry; a `ConfigError` for others."""
    found = () if isinstance(names, str) else tuple(names)
    try:
        _subject(found)
        for one in found:
            general_name(one)
    except (ValueError, TypeError, IndexError) as error:
        raise ConfigError(f"names: expected DNS names (ASCII) and addresses, at least one, found {names!r}") from error
    return found


def _subject(names: tuple[str, ...]) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])


def _checked(der: bytes) -> bool:
    """Whether the evidence is simulated; a `PlatformError` where no client could take it."""
    try:
        certificate = AttestedCertificate.parse(der)
        check_binding(certificate)
        chain = parse_certificates(pck_chain_of(certificate.quote, None), structure="PCK chain")
        points = [load_certificate(one, structure="PCK chain", field="certificate").point for one in chain]
    except ConfcomError as error:
        raise PlatformError(f"the quote does not make an attested certificate: {error}") from error
    return INTEL_ROOT_PUBLIC_KEY not in points


@contextlib.contextmanager
def _file_in_memory(content: bytes) -> Iterator[str]:
    """A path to read the content at: of a memfd, else of a file that only this user can read."""
    try:
        descriptor = os.memfd_create("confcom")
    except (OSError, AttributeError):
        descriptor = -1
    try:
        path = Path(f"/proc/self/fd/{descriptor}")
        if descriptor >= 0 and path.exists():
            os.write(descriptor, content)
            yield str(path)
            return
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    with tempfile.NamedTemporaryFile(prefix="confcom-") as file:
        file.write(content)
        file.flush()
        yield file.name
