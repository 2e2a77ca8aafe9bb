"""The keys that sign tokens: of a folder or a PKCS#11 token, published before they sign and for as long as tokens live.

Every key has a certificate. A key is published in the store, which all replicas share, before it signs; of several
the newest certificate signs, once its key has been published for the overlap. A key that was taken away stops signing
and stays published until its last tokens have expired; one that was revoked is in no key set any more.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from confcom.errors import ConfcomError, ConfigError, DatabaseUnavailable
from confcom.input_file import read_bounded
from confcom.services.attestation.attestation_store import AttestationStore, PublishedKey
from confcom.tokens.attested_key import attested_certificate, self_signed
from confcom.tokens.azure import TOKEN_LIFE
from confcom.tokens.jws import SigningKey

MAX_FILE = 64 << 10
"""Bytes of a key file."""
LIFETIME = timedelta(days=730)
"""Of a certificate that the service makes."""
RENEW_BEFORE = timedelta(days=60)
"""How long before its end a key that the service made gets a successor."""
RENEWING = timedelta(minutes=10)
"""For how long one replica alone may make successors, which the others see in the folder by then."""
PUBLISHED_FOR = timedelta(seconds=TOKEN_LIFE) + timedelta(minutes=10)
"""How long a key that no replica has any more stays published."""
MAX_AGE = 30.0
"""Seconds after which keys no longer sign, unless the store has said again which are revoked."""
ALGORITHMS = ("RS256", "ES256")
_IN_MEMORY = (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)
SIMULATED_NAME = "confcom attestation (SIMULATED)"
HARDWARE_NAME = "confcom attestation"


class KeySource(Protocol):
    """Where signing keys are."""

    def load(self) -> Sequence[SigningKey]:
        """All keys of the source now; `ConfigError` if one cannot be used."""


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """What signs, by algorithm, and the key set that is published (RFC 7517)."""

    signing: Mapping[str, SigningKey]
    published: tuple[dict[str, Any], ...]
    elsewhere: bool
    """Whether a device signs, which may take its time."""
    as_of: float = 0.0
    """Monotonic time at which the store was read: what others revoked before is not among them."""

    def of(self, algorithm: str) -> SigningKey:
        """The key that signs; `ConfigError` where there is none, `DatabaseUnavailable` where it may be revoked."""
        if (age := time.monotonic() - self.as_of) > MAX_AGE:
            raise DatabaseUnavailable(
                f"the store of the signing keys has not answered for {age:.0f} seconds: one may have been revoked"
            )
        try:
            return self.signing[algorithm]
        except KeyError:
            raise ConfigError(
                f"no valid {algorithm} key is among the signing keys", advice="Add a key and its certificate (--keys)."
            ) from None

    @property
    def missing(self) -> str:
        """The algorithms without a key, as a sentence; empty where all are there."""
        names = [name for name in ALGORITHMS if name not in self.signing]
        return f"no valid {' and no '.join(names)} key is among the signing keys" if names else ""


class KeptKeys:
    """The signing keys, looked at again every few seconds.

    A source that became unusable keeps the keys it had, because what is published must not vanish while tokens are in
    use; `problem` then says why, and readiness with it.
    """

    def __init__(
        self,
        source: KeySource,
        store: AttestationStore,
        *,
        overlap: timedelta,
        simulated: bool,
        clock: Callable[[], datetime],
        quote: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """`quote` makes quotes of this enclave over 64 bytes, for certificates that attest the keys."""
        self._source, self._store, self._overlap = source, store, overlap
        self._simulated, self._clock, self._quote = simulated, clock, quote
        self._attested: dict[str, x509.Certificate] = {}
        self._held = self._load()
        self._keys = self._publish(renew=True)
        self._looking = threading.Lock()
        self.problem = ""
        for algorithm in ALGORITHMS:
            self._keys.of(algorithm)

    def __call__(self) -> SigningKeys:
        """The keys as of the last look."""
        return self._keys

    def look(self) -> None:
        with self._looking:  # what an earlier look read never replaces what a later one did
            before, problem = self.problem, ""
            try:
                self._held = self._load()
            except ConfcomError as error:
                problem = error.message
            try:
                self._keys = self._publish()
            except ConfigError as error:
                problem = problem or error.message
            self.problem = problem or self._keys.missing
            if self.problem != before:
                structlog.get_logger().warning("attestation.keys", reason=self.problem or "usable again")

    def _load(self) -> tuple[SigningKey, ...]:
        keys = self._source.load()
        for key in keys:
            if (_common_name(key.certificate) == SIMULATED_NAME) is not self._simulated:
                world = "simulated evidence" if self._simulated else "hardware"
                raise ConfigError(
                    f"{key.name} is a signing key for another world: this instance judges {world}",
                    advice="Give each instance a folder of its own; `confcom attestation new-keys` makes keys for "
                    "hardware, with --simulated for simulated evidence.",
                )
        return tuple(key if self._quote is None else self._attest(key, self._quote) for key in keys)

    def _attest(self, key: SigningKey, quote: Callable[[bytes], bytes]) -> SigningKey:
        if not isinstance(key.private, _IN_MEMORY):
            raise ConfigError(
                f"{key.name} is in a PKCS#11 token, and an enclave attests only keys that it holds",
                advice="Leave out --attest-keys, or keep the keys in files.",
            )
        if key.key_id not in self._attested:
            self._attested[key.key_id] = attested_certificate(key.private, key.certificate, quote)
        return replace(key, attested=self._attested[key.key_id])

    def _publish(self, *, renew: bool = False) -> SigningKeys:
        """Publish what is held; whatever signs afterwards is in the store."""
        now, as_of = self._clock(), time.monotonic()
        mine = {key.key_id: msgspec.json.encode(key.jwk()).decode() for key in self._held}
        published = self._store.publish_keys(mine, now, since=now - PUBLISHED_FOR, renew=renew)
        # RSA first, because Gramine's client gives up at another kind before its own.
        jwks = sorted((msgspec.json.decode(key.jwk) for key in published.values()), key=lambda jwk: jwk["kty"] != "RSA")
        chosen = self._choose(published, now)
        elsewhere = any(not isinstance(key.private, _IN_MEMORY) for key in chosen.values())
        return SigningKeys(chosen, tuple(jwks), elsewhere, as_of)

    def _choose(self, published: Mapping[str, PublishedKey], now: datetime) -> dict[str, SigningKey]:
        """By algorithm, the newest that has been published long enough; the first published where none has."""
        chosen = {}
        for algorithm in ALGORITHMS:
            usable = [
                key
                for key in self._held
                if key.algorithm == algorithm
                and key.key_id in published
                and key.valid_from <= now < key.certificate.not_valid_after_utc
            ]
            settled = [key for key in usable if published[key.key_id].published + self._overlap <= now]
            if settled:
                chosen[algorithm] = max(settled, key=lambda key: key.valid_from)
            elif usable:
                chosen[algorithm] = min(usable, key=lambda key: (published[key.key_id].published, key.valid_from))
        return chosen


class KeyFolder:
    """PEM files with a private key and its certificate each; an empty folder gets an RSA and a P-256 key at first.

    One that is empty later is a volume that went away: keys made then would sign before any client knows them. Keys
    that were made here get successors before their certificates end.
    """

    def __init__(
        self,
        folder: Path,
        *,
        simulated: bool,
        clock: Callable[[], datetime],
        alone: Callable[[], bool] = lambda: True,
    ) -> None:
        """`alone`: whether this replica, and no other one of the folder, may make keys now."""
        self._folder, self._simulated, self._clock = folder, simulated, clock
        self._alone = alone
        self._seen = False

    def load(self) -> Sequence[SigningKey]:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            files = sorted(self._folder.glob("*.pem"))
            if not files and self._seen:
                raise ConfigError(
                    f"the folder of signing keys is empty: {self._folder}",
                    advice="Put its keys back, or start the service again to have it make new ones.",
                )
            if not files:
                files = make_pair(self._folder, self._clock(), simulated=self._simulated)
            self._seen = True
            return self._with_successors([SigningKey.from_pem(_read(file), str(file)) for file in files])
        except OSError as error:
            raise ConfigError(
                f"the folder of signing keys cannot be used: {self._folder}: {error.strerror}",
                advice="Name a folder that can be read and written (--keys DIR).",
            ) from error

    def _with_successors(self, keys: list[SigningKey]) -> list[SigningKey]:
        now = self._clock()
        for algorithm, kind in zip(ALGORITHMS, ("rsa", "ec"), strict=True):
            ends = [
                (key.certificate.not_valid_after_utc, _common_name(key.certificate))
                for key in keys
                if key.algorithm == algorithm and key.valid_from <= now + RENEWING  # not made by a clock that was ahead
            ]
            last, name = max(ends, default=(None, ""))
            made_here = name in (SIMULATED_NAME, HARDWARE_NAME)
            if last is None or not made_here or last - now > RENEW_BEFORE:
                continue
            if not os.access(self._folder, os.W_OK) or not self._alone():
                continue
            with suppress(OSError):  # keys of a read-only folder are renewed where they come from
                file = make_key(self._folder, kind, now, simulated=self._simulated)
                keys.append(SigningKey.from_pem(_read(file), str(file)))
        return keys


def make_pair(folder: Path, now: datetime, *, simulated: bool) -> list[Path]:
    """Put a new key for each algorithm into the folder."""
    return [make_key(folder, kind, now, simulated=simulated) for kind in ("rsa", "ec")]


def make_key(folder: Path, kind: str, now: datetime, *, simulated: bool) -> Path:
    """Make a key with its certificate and put the file into the folder in one step."""
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = (
        rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SIMULATED_NAME if simulated else HARDWARE_NAME)])
    certificate = self_signed(private, name, now, now + LIFETIME)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem += certificate.public_bytes(Encoding.PEM)
    target = folder / f"{now:%Y%m%dT%H%M%SZ}-{kind}.pem"
    # Of its own name and of mode 0600: replicas that share the folder may make their first keys in the same second.
    descriptor, part = tempfile.mkstemp(".part", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(pem)
            stream.flush()
            os.fsync(stream.fileno())
        Path(part).rename(target)
    except OSError:
        Path(part).unlink(missing_ok=True)  # what was written of the key
        raise
    return target


def _read(file: Path) -> bytes:
    data = read_bounded(file, MAX_FILE, patience=0)
    if len(data) > MAX_FILE:
        raise ConfigError(f"{file} has more than {MAX_FILE} bytes", advice="Remove it from the folder of signing keys.")
    return data


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
