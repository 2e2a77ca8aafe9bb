"""JSON Web Signatures of tokens and policies (RFC 7515), and the keys that make them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry

from confcom.errors import ConfigError, FormatError
from confcom.formats.arguments import decode_base64, decode_json, encode_base64url
from confcom.pki.der import UNREADABLE, der_reason

MAX_TOKEN = 256 << 10
"""Characters of a compact JWS."""
_SHA256 = hashes.SHA256()
Claims: TypeAlias = Mapping[str, Any] | msgspec.Raw
"""The claims of a token, or their JSON."""
_ECDSA, _PKCS1 = ec.ECDSA(_SHA256), padding.PKCS1v15()


class HeldKey(Protocol):
    """A private key that does not leave the device that holds it."""

    def public_key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        """Its public half."""

    def sign_jws(self, data: bytes) -> bytes:
        """A signature of RS256, or of ES256 as R ‖ S (RFC 7518, section 3.4)."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, RSA for RS256 or P-256 for ES256, and the certificate by which clients know it.

    `attested` is a certificate of the same key in which an enclave vouches for it; `name` says where the key is.
    """

    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | HeldKey
    certificate: x509.Certificate
    name: str = ""
    attested: x509.Certificate | None = None
    algorithm: str = field(init=False)
    """RS256 or ES256."""
    key_id: str = field(init=False)
    """Base64url of SHA-256 over the certificate's DER."""
    _sign: Callable[[bytes], bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        is_rsa = isinstance(self.private.public_key(), rsa.RSAPublicKey)
        object.__setattr__(self, "algorithm", "RS256" if is_rsa else "ES256")
        object.__setattr__(self, "key_id", encode_base64url(hashlib.sha256(_der(self.certificate)).digest()))
        object.__setattr__(self, "_sign", _signature_of(self.private))

    @classmethod
    def from_pem(cls, data: bytes, name: str) -> SigningKey:
        """A private key and its certificate from one PEM file; anything else is a `ConfigError` with its name."""
        try:
            private, certificate = _loaded(data)
        except UNREADABLE as error:
            raise ConfigError(
                f"{name} is no signing key: {der_reason(error)}",
                advice="Put an unencrypted private key and its certificate there.",
            ) from error
        return cls.checked(private, certificate, name)

    @classmethod
    def checked(
        cls,
        private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | HeldKey,
        certificate: x509.Certificate,
        name: str,
    ) -> SigningKey:
        """A key that can sign tokens with its certificate; anything else is a `ConfigError` with its name."""
        public = private.public_key()
        usable = isinstance(public, rsa.RSAPublicKey) and public.key_size >= 2048
        if not usable and not (
            isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1)
        ):
            raise ConfigError(f"{name}: a signing key is RSA of 2048 bits or more, or on the curve P-256")
        if certificate.public_key() != public:
            raise ConfigError(f"{name}: the certificate is of another key")
        return cls(private, certificate, name)

    @property
    def valid_from(self) -> datetime:
        """When the certificate begins."""
        return self.certificate.not_valid_before_utc

    def jwk(self) -> dict[str, Any]:
        """The public half with its certificate; `x5c` is standard base64 (RFC 7517, section 4.7)."""
        more = {"kid": self.key_id, "use": "sig", "alg": self.algorithm}
        return (
            _key(self.private.public_key()).as_dict(private=False)
            | more
            | {"x5c": [base64.b64encode(_der(self.attested or self.certificate)).decode()]}
        )

    def sign(self, claims: Claims, header: Mapping[str, Any]) -> str:
        """A compact JWS; `alg` and `kid` join the header."""
        signed = _signed_part({"alg": self.algorithm, "kid": self.key_id, **header}, claims)
        return f"{signed}.{encode_base64url(self._sign(signed.encode()))}"


def token_in(text: str) -> str | None:
    """The token of a service's answer (`{"token": …}`), or the text itself; None for JSON without a token."""
    if not text.startswith("{"):
        return text
    try:
        return _ANSWER.decode(text).token
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class _Answer(msgspec.Struct):
    token: str


_ANSWER = msgspec.json.Decoder(_Answer)


def unsecured(claims: Claims, header: Mapping[str, Any]) -> str:
    """A JWS without a signature (`alg: none`), as answers to draft policies are."""
    return _signed_part({"alg": "none", **header}, claims) + "."


@dataclass(frozen=True, slots=True)
class ReadJws:
    """A compact JWS taken apart; nothing of it is verified."""

    header: dict[str, Any]
    payload: bytes
    signed: bytes
    signature: bytes
    encoded_signature: str

    @classmethod
    def parse(cls, text: str) -> ReadJws:
        """Take a compact JWS apart; anything else is a `FormatError`."""
        if len(text) > MAX_TOKEN:
            raise FormatError(f"{len(text)} characters, at most {MAX_TOKEN} are read", structure="JWS", field="")
        parts = text.strip().split(".")
        if len(parts) != 3:
            raise FormatError(f"has {len(parts)} parts between dots, not 3", structure="JWS", field="")
        decoded = []
        for part, name in zip(parts, ("header", "payload", "signature"), strict=True):
            try:
                decoded.append(decode_base64(part))
            except ValueError as error:
                raise FormatError(str(error), structure="JWS", field=name) from None
        header = decode_json(decoded[0], _OBJECT, "JWS", "header", once=True, problem="is no JSON object")
        return cls(header, decoded[1], f"{parts[0]}.{parts[1]}".encode(), decoded[2], parts[2])

    @property
    def exact(self) -> bool:
        """Whether each part is the one base64url of its bytes (RFC 7515, section 2): else a token has two spellings."""
        header, payload = self.signed.decode().split(".")
        written = header, payload, self.encoded_signature
        return all(encode_base64url(decode_base64(part)) == part for part in written)

    @property
    def critical(self) -> str:
        """The headers that a reader has to understand (RFC 7515, section 4.1.11, and RFC 7797), or an empty text."""
        return ", ".join(f"{name}: {str(self.header[name])[:80]}" for name in ("b64", "crit") if name in self.header)

    def claims(self) -> dict[str, Any]:
        """The payload as a JSON object, unverified; anything else is a `FormatError`."""
        return decode_json(self.payload, _OBJECT, "JWS", "payload", once=True, problem="is no JSON object")

    def verify(self, public: object, algorithm: str) -> bool:
        """Whether the signature is of this key under this algorithm, which the caller chose and the header repeats."""
        try:
            key, model = _key(public), JWSRegistry.algorithms[algorithm]
            model.check_key(key)  # its kind and, for ECDSA, its curve (RFC 7518, section 3.4)
            return model.verify(self.signed, self.signature, key)
        except (ValueError, KeyError, JoseError):  # KeyError: of a curve that JOSE has no name for
            return False


_OBJECT = msgspec.json.Decoder(dict[str, Any])


def _signature_of(private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | HeldKey) -> Callable[[bytes], bytes]:
    """What signs with the key: cryptography itself, because joserfc looks for its key again at every signature."""
    if isinstance(private, rsa.RSAPrivateKey):
        return lambda data: private.sign(data, _PKCS1, _SHA256)
    if isinstance(private, ec.EllipticCurvePrivateKey):

        def raw(data: bytes) -> bytes:
            r, s = decode_dss_signature(private.sign(data, _ECDSA))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")

        return raw
    return private.sign_jws


def joined(first: bytes, second: bytes) -> bytes:
    """JSON of one object with the members of two, each written without blanks; no name may stand in both."""
    between = b"" if b"{}" in (first, second) else b","
    return first[:-1] + between + second[1:]


def _signed_part(header: Mapping[str, Any], claims: Claims) -> str:
    return f"{encode_base64url(msgspec.json.encode(header))}.{encode_base64url(msgspec.json.encode(claims))}"


@lru_cache(maxsize=64)
def _loaded(data: bytes) -> tuple[Any, x509.Certificate]:
    """Key and certificate of a PEM file. The check of an RSA key takes as long as a hundred signatures."""
    return load_pem_private_key(data, password=None), x509.load_pem_x509_certificate(data)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _key(key: object) -> RSAKey | ECKey:
    if isinstance(key, rsa.RSAPublicKey):
        return RSAKey.import_key(key)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return ECKey.import_key(key)
    raise ValueError("neither an RSA nor an elliptic-curve key")
