"""Signing keys in a PKCS#11 token (an HSM), named by a URI of RFC 7512.

    pkcs11:token=attestation?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/confcom/pin

A key pair counts with the certificate that has the same CKA_ID. Private keys never leave the token.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pkcs11
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.exceptions import (
    PinExpired,
    PinIncorrect,
    PinInvalid,
    PinLenRange,
    PinLocked,
    PKCS11Error,
    UserAlreadyLoggedIn,
)

from confcom.errors import ConfigError
from confcom.input_file import read_bounded
from confcom.pki.der import UNREADABLE, der_reason
from confcom.tokens.jws import SigningKey

MAX_PIN = 256
"""Bytes of a file with a PIN."""
_WRONG_PIN = (PinIncorrect, PinInvalid, PinLenRange, PinLocked, PinExpired)


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """What of RFC 7512 is used: the token, the module, and the user's PIN."""

    token: str
    module: str
    pin: str | None

    @classmethod
    def parse(cls, text: str, *, patience: float | None = None) -> Pkcs11Uri:
        """Read a URI and the file with the PIN; `ConfigError` for what is missing or not known here."""
        path, _, query = text.removeprefix("pkcs11:").partition("?")
        given: dict[str, str] = {}
        for part in [*path.split(";"), *query.split("&")]:
            name, found, value = part.partition("=")
            if name in ("token", "module-path", "pin-value", "pin-source") and found:
                given[name] = unquote(value)
            elif part:
                raise ConfigError(
                    f"the PKCS#11 URI has {name!r}, which is not used here",
                    advice="Write pkcs11:token=NAME?module-path=FILE&pin-source=FILE.",
                )
        for name in ("token", "module-path"):
            if name not in given:
                raise ConfigError(f"the PKCS#11 URI lacks {name!r}", advice="See RFC 7512, section 2.3.")
        pin = given.get("pin-value")
        if (source := given.get("pin-source")) is not None:
            pin = _pin(Path(source.removeprefix("file:")), patience)
        return cls(given["token"], given["module-path"], pin)


class TokenKey:
    """A private key in a token; signs as `SigningKey` needs it."""

    def __init__(self, key: Any, public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, lock: threading.Lock) -> None:  # noqa: ANN401 - of the library
        self._key, self._public, self._lock = key, public, lock

    def public_key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        """That of the certificate."""
        return self._public

    def sign_jws(self, data: bytes) -> bytes:
        """A signature as JWS has it: RS256, or ES256 as R ‖ S."""
        try:
            with self._lock:
                if isinstance(self._public, rsa.RSAPublicKey):
                    return bytes(self._key.sign(data, mechanism=Mechanism.SHA256_RSA_PKCS))
                return bytes(self._key.sign(hashlib.sha256(data).digest(), mechanism=Mechanism.ECDSA))
        except PKCS11Error as error:
            raise ConfigError(f"the PKCS#11 token does not sign: {_words(error)}") from error


class Pkcs11Keys:
    """The keys of a token. One session serves all threads, one call at a time.

    A PIN that the token refused is not tried again: few wrong ones lock it.
    """

    def __init__(self, uri: str) -> None:
        self._text = uri
        self._uri = Pkcs11Uri.parse(uri)
        self._lock = threading.Lock()
        self._session: Any = None
        self._refused: dict[str | None, type[PKCS11Error]] = {}

    def load(self) -> Sequence[SigningKey]:
        """The key pairs that have a certificate; a session that was lost is opened again."""
        try:
            with self._lock:
                try:
                    return self._read(self._opened())
                except _WRONG_PIN:
                    raise
                except PKCS11Error:
                    self._session = None
                    return self._read(self._opened())
        except (PKCS11Error, RuntimeError, OSError, *UNREADABLE) as error:
            raise ConfigError(
                f"the keys of the PKCS#11 token {self._uri.token!r} cannot be used: {_words(error)}",
                advice="Check token, module-path and PIN of the URI (--keys).",
            ) from error

    def _opened(self) -> Any:  # noqa: ANN401 - of the library
        if self._session is None:
            token = pkcs11.lib(self._uri.module).get_token(token_label=self._uri.token)
            with suppress(ConfigError):  # the file may hold another PIN by now; a pipe gave it once
                self._uri = Pkcs11Uri.parse(self._text, patience=0)
            pin = self._uri.pin
            if pin in self._refused:
                raise self._refused[pin]
            try:
                self._session = token.open(user_pin=pin)
            except UserAlreadyLoggedIn:  # a session of this process has done it for all
                self._session = token.open()
            except _WRONG_PIN as error:
                self._refused[pin] = type(error)
                raise
        return self._session

    def _read(self, session: Any) -> list[SigningKey]:  # noqa: ANN401 - of the library
        certificates = {
            held[Attribute.ID]: held[Attribute.VALUE]
            for held in session.get_objects({Attribute.CLASS: ObjectClass.CERTIFICATE})
        }
        keys = []
        for private in session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}):
            if private.id not in certificates or private.key_type not in (KeyType.RSA, KeyType.EC):
                continue
            name = f"key {private.label!r} of the token {self._uri.token!r}"
            certificate = x509.load_der_x509_certificate(certificates[private.id])
            public: Any = certificate.public_key()
            keys.append(SigningKey.checked(TokenKey(private, public, self._lock), certificate, name))
        if not keys:
            raise ConfigError(f"the PKCS#11 token {self._uri.token!r} has no key with a certificate of the same id")
        return keys


def _pin(file: Path, patience: float | None) -> str:
    try:
        read = read_bounded(file, MAX_PIN, patience=patience)
        if len(read) > MAX_PIN:
            raise ValueError(f"over {MAX_PIN} bytes are no PIN")
        pin = read.decode().strip()
        if not pin:
            raise ValueError("it is empty")
        return pin
    except (OSError, ValueError) as error:
        raise ConfigError(f"the file with the PIN cannot be read: {file}: {error}") from error


def _words(error: Exception) -> str:
    return der_reason(error) or type(error).__name__
