"""The administrators of the attestation service: a file names them, and by what they are known.

An administrator is known by a bearer token (its SHA-512), by claims of an OIDC token of the one issuer that the file
pins, or by a TLS client certificate of the authority that the file names. The file is read again when it changes.

What they read and change, by the rules of the trust model, are policies and their signers (`PolicyAdministration`).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx2
import msgspec
import structlog
from cryptography import x509

from confcom.errors import ConfcomError, ConfigError, FormatError
from confcom.formats.arguments import check_members_once, encode_base64url, explain_settings
from confcom.http_client import verifying_context
from confcom.input_file import read_bounded
from confcom.pki.der import UNREADABLE
from confcom.services.attestation.appraiser import Appraiser
from confcom.services.attestation.attestation_store import AttestationStore, thumbprint
from confcom.services.runtime.process import read_toml
from confcom.tokens.azure import DEFAULT_POLICIES, AttestationType, AzureError, SentPolicy
from confcom.tokens.jws import ReadJws
from confcom.tokens.policy_jws import certificate_jwk, certificate_of, read_policy, signer_of, wrap
from confcom.tokens.verification import MAX_KEY_SET, KeySet, TokenError, VerifiedToken, verify_token

KEYS_FOR = timedelta(hours=1)
"""How long fetched keys of the issuer count."""
ASK_AGAIN = timedelta(seconds=30)
"""Between two fetches of the issuer's keys, whatever key ids tokens name."""
FETCH_TIMEOUT = 10.0
"""Seconds for all answers of the issuer together."""
TokenHash = Annotated[str, msgspec.Meta(pattern="^[0-9A-Fa-f]{128}$")]


class Oidc(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The issuer of administrators' tokens. Paths are relative to the file of administrators."""

    issuer: Annotated[str, msgspec.Meta(pattern="^https://[^/]")]
    """Claim `iss`, and where the discovery document is: below it, at /.well-known/openid-configuration."""
    audience: Annotated[str, msgspec.Meta(min_length=1)]
    """Claim `aud`, or one of its values."""
    keys: str | None = None
    """JWKS file with the issuer's keys. Without one they are fetched from the issuer."""
    ca: str | None = None
    """PEM file of the authorities of the issuer's TLS certificate. Default: public ones."""


class Administrator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One administrator, or a group of them. Any one of the four ways identifies."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    role: Literal["reader", "contributor"] = "reader"
    """reader: read policies, signers and the audit record, try drafts. contributor: change them too."""
    token_hash: TokenHash | None = None
    """SHA-512 of a bearer token in hexadecimal digits."""
    claims: dict[str, str] = {}
    """Claims of an OIDC token: each has this value, or holds it in its list."""
    certificate: Annotated[str, msgspec.Meta(pattern="^[0-9A-Fa-f]{64}$")] | None = None
    """SHA-256 over the DER of a client certificate."""
    certificate_name: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    """A DNS name, URI or e-mail address in the certificate's subjectAltName."""


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    administrators: list[Administrator]
    oidc: Oidc | None = None
    client_ca: str | None = None


class NotAnAdministrator(ConfcomError):
    """The caller is not known; `guessed` if it brought a token."""

    code = "not-an-administrator"
    default_advice = "Send a bearer token or a client certificate of an administrator; the service's operator has them."

    def __init__(self, message: str, *, guessed: bool = False) -> None:
        super().__init__(message)
        self.guessed = guessed


class IssuerUnavailable(NotAnAdministrator):
    """An OIDC token cannot be judged now, because the keys of its issuer could not be fetched."""

    code = "issuer-unavailable"
    default_advice = "Try again in a minute, or use another way to identify; the service's log says what failed."


def from_another_site(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent the request for a page of another site. `headers` have names in lower case.

    Browsers of before 2023 send no `Sec-Fetch-Site`; the `Origin` of a change then has to be the host that they ask.
    """
    origin = headers.get("origin")
    own = origin is None or origin.partition("://")[2] == headers.get("host")
    return headers.get("sec-fetch-site", "same-origin" if own else "cross-site") not in ("same-origin", "none")


class Administrators:
    """Identifies callers by the file; `problem` says why its newest version is not in force."""

    def __init__(
        self, file: Path | None, token_hash: str | None, *, clock: Callable[[], datetime], optional: bool = False
    ) -> None:
        """`token_hash` is of one more administrator, a contributor; without both, administration is closed.

        `optional`: whether the file may be missing.
        """
        self._path, self._optional = file, optional
        own = [] if token_hash is None else [Administrator(name="token", role="contributor", token_hash=token_hash)]
        self._own, self._clock = own, clock
        self._file = _File(administrators=[])
        self._seen = self._fingerprint()
        self._file = self._read()
        self._issuer: _Issuer | None = None
        self.problem = ""

    @property
    def client_ca(self) -> Path | None:
        """PEM file of the authority of client certificates."""
        return self._beside(self._file.client_ca)

    def look(self) -> None:
        """Use the file if it changed, or the key set that it names, and can be used."""
        if (found := self._fingerprint()) == self._seen:
            self.problem = ""  # a version that could not be used is gone again
            return
        try:
            self._file, self.problem = self._read(), ""
            self._seen = found
        except ConfcomError as error:
            if error.message != self.problem:
                structlog.get_logger().warning("attestation.administrators", outcome="kept", reason=error.message)
            self.problem = error.message

    def by_certificate(self, certificate: str | None) -> Administrator | None:
        """The administrator with this client certificate (PEM), which TLS verified."""
        if certificate is None:
            return None
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()
        names = _names(certificate)
        for each in self._file.administrators:
            if each.certificate is not None and each.certificate.lower() == digest:
                return each
            if each.certificate_name is not None and each.certificate_name in names:
                return each
        return None

    async def by_token(self, authorization: str) -> Administrator:
        """The administrator with the bearer token of this header `Authorization`.

        Raises:
            IssuerUnavailable: whether the token is good cannot be said now.
            NotAnAdministrator: none has it.
        """
        file = self._file
        known = [*self._own, *file.administrators]
        if not known:
            raise NotAnAdministrator("no administrator is configured, so this path is closed")
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise NotAnAdministrator("the administrator's bearer token or client certificate is missing")
        digest = hashlib.sha512(token.encode("latin-1", "replace")).hexdigest()
        # All are compared, so that the time does not reveal which one matches.
        matching = [each for each in known if each.token_hash and hmac.compare_digest(digest, each.token_hash.lower())]
        if matching:
            return matching[0]
        if file.oidc is None or token.count(".") != 2:
            raise NotAnAdministrator("the administrator's bearer token is wrong", guessed=True)
        return await self._by_oidc(file.oidc, file.administrators, token)

    async def _by_oidc(self, oidc: Oidc, administrators: list[Administrator], token: str) -> Administrator:
        if self._issuer is None or self._issuer.oidc is not oidc:  # a file that is read again makes another
            self._issuer = _Issuer(oidc, keys=self._beside(oidc.keys), ca=self._beside(oidc.ca))
        try:
            claims = (await self._issuer.verified(token, self._clock())).claims
        except IssuerUnavailable:
            raise
        except ConfcomError as error:
            raise NotAnAdministrator(f"the bearer token: {error.message}", guessed=True) from error
        if oidc.audience not in _values(claims, "aud"):
            raise NotAnAdministrator(f"the bearer token is not for {oidc.audience!r} (claim aud)", guessed=True)
        for each in administrators:
            if each.claims and all(value in _values(claims, name) for name, value in each.claims.items()):
                return each
        raise NotAnAdministrator(f"{claims.get('sub')!r} of {oidc.issuer} is no administrator here", guessed=True)

    def _written(self) -> _File:
        """What the file holds; nothing where there is none, and need not be."""
        if self._path is None:
            return _File(administrators=[])
        try:
            return msgspec.convert(read_toml(self._path, patience=0), _File)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"{self._path}: {explain_settings(error, _File)}",
                advice="See docs/howto/run-the-attestation-service.md.",
            ) from error
        except ConfigError as error:
            if self._optional and isinstance(error.__cause__, FileNotFoundError):
                return _File(administrators=[])
            raise

    def _read(self) -> _File:
        file = self._written()
        for each in file.administrators:
            missing = ""
            if not (each.token_hash or each.claims or each.certificate or each.certificate_name):
                missing = "has neither token_hash, claims, certificate nor certificate_name"
            elif each.claims and file.oidc is None:
                missing = "is known by claims, and [oidc] is missing"
            elif (each.certificate or each.certificate_name) and file.client_ca is None:
                missing = "is known by a certificate, and client_ca is missing"
            if missing:
                raise ConfigError(f"{self._path}: the administrator {each.name!r} {missing}")
        if file.oidc is not None and (keys := self._beside(file.oidc.keys)) is not None:
            _key_file(keys, self._clock())
        return file

    def _fingerprint(self) -> list[tuple[int, int, int] | None]:
        """Of the file, and of the key set that the version in force names."""
        oidc = self._file.oidc
        return [_fingerprint(file) for file in (self._path, None if oidc is None else self._beside(oidc.keys))]

    def _beside(self, name: str | None) -> Path | None:
        return None if name is None or self._path is None else self._path.parent / name


class _Issuer:
    """The keys of an issuer. Known ones are used without waiting; who needs others waits for a fetch that all share."""

    def __init__(self, oidc: Oidc, *, keys: Path | None, ca: Path | None) -> None:
        self.oidc = oidc
        self._file, self._ca = keys, ca
        self._keys: KeySet | None = None
        self._asked: datetime | None = None
        self._failure = ""
        self._fetching: asyncio.Task[None] | None = None

    async def verified(self, token: str, now: datetime) -> VerifiedToken:
        """The token, signed by this issuer; `IssuerUnavailable` without keys, else as `verify_token` raises."""
        known = self._usable(now)
        if known is None:
            await self._ask(now)
            known = self._usable(now)
        elif self._file is None and abs(now - known.fetched) > KEYS_FOR / 2:
            self._start(now)
        if known is None:
            raise IssuerUnavailable(f"the keys of {self.oidc.issuer} could not be fetched: {self._failure}")
        try:
            return verify_token(token, known, issuer=self.oidc.issuer, now=now)
        except TokenError:
            # The issuer may have changed its keys.
            if self._file is None:
                await self._ask(now)
            again = self._usable(now)
            if again is None or again is known:
                raise
            return verify_token(token, again, issuer=self.oidc.issuer, now=now)

    def _usable(self, now: datetime) -> KeySet | None:
        keys = self._keys
        return None if keys is None or abs(now - keys.fetched) > keys.max_age else keys

    async def _ask(self, now: datetime) -> None:
        """Wait for a fetch, unless the last one began within `ASK_AGAIN` and has ended."""
        self._start(now)
        if self._fetching is not None:
            await asyncio.shield(self._fetching)

    def _start(self, now: datetime) -> None:
        if self._fetching is not None and not self._fetching.done():
            return
        self._fetching = None
        if self._file is not None or self._asked is None or abs(now - self._asked) >= ASK_AGAIN:
            self._asked = now
            self._fetching = asyncio.create_task(self._fetch(now), name="issuer-keys")

    async def _fetch(self, now: datetime) -> None:
        try:
            self._keys = await self._fetched(now) if self._file is None else _key_file(self._file, now)
        except ConfcomError as error:
            self._failure = error.message
            structlog.get_logger().warning("attestation.administrators", issuer=self.oidc.issuer, reason=str(error))

    async def _fetched(self, now: datetime) -> KeySet:
        tls = await asyncio.to_thread(verifying_context, self._ca)
        issuer = self.oidc.issuer
        where = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        try:
            # The client's own limit is for each step, of which a slow answer has any number.
            async with asyncio.timeout(FETCH_TIMEOUT), httpx2.AsyncClient(verify=tls, trust_env=False) as client:
                document = _discovery(await _get(client, where), where)
                if document.issuer != issuer:
                    raise ConfigError(f"{where} is of another issuer: expected {issuer!r}, found {document.issuer!r}")
                if not document.jwks_uri.startswith("https://"):
                    raise ConfigError(f"{where}: the keys are not at an https URL: {document.jwks_uri!r}")
                content = await _get(client, document.jwks_uri)
                # In a thread: a key of a megabyte takes 0.2 s.
                return await asyncio.to_thread(KeySet.parse, content, fetched=now, max_age=KEYS_FOR)
        except TimeoutError:
            raise ConfigError(f"{issuer} did not answer within {FETCH_TIMEOUT:g} seconds") from None


class _Discovery(msgspec.Struct):
    issuer: str
    jwks_uri: str


_DISCOVERY = msgspec.json.Decoder(_Discovery)


def _discovery(content: bytes, where: str) -> _Discovery:
    try:
        return _DISCOVERY.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{where} is no discovery document: {error}") from None


async def _get(client: httpx2.AsyncClient, url: str) -> bytes:
    content = bytearray()
    try:
        # Not compressed: a few bytes could stand for gigabytes.
        async with client.stream("GET", url, headers={"accept-encoding": "identity"}) as response:
            if response.status_code != 200:
                raise ConfigError(f"{url} answered {response.status_code}")
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise ConfigError(f"{url}: the answer is compressed, though that was not asked for")
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > MAX_KEY_SET:
                    raise ConfigError(f"{url}: the answer has over {MAX_KEY_SET} bytes")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ConfigError(f"{url}: {str(error) or type(error).__name__}") from error
    return bytes(content)


def _fingerprint(file: Path | None) -> tuple[int, int, int] | None:
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)


def _key_file(file: Path, now: datetime) -> KeySet:
    """A key set of any age."""
    try:
        content = read_bounded(file, MAX_KEY_SET, patience=0)
        return KeySet.parse(content, fetched=now, max_age=timedelta.max)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except FormatError as error:
        raise ConfigError(f"{file}: {error.message}") from error


def _values(claims: Mapping[str, Any], name: str) -> list[object]:
    found = claims.get(name)
    return found if isinstance(found, list) else [found]


def _names(pem: str) -> list[str]:
    try:
        extensions = x509.load_pem_x509_certificate(pem.encode()).extensions
        held = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return []
    kinds = (x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name)
    return [str(name) for kind in kinds for name in held.get_values_for_type(kind)]


TrustModel = Literal["open", "isolated", "shared"]


class PolicyAdministration:
    """Answers of the policy API, each a signed token."""

    def __init__(
        self, store: AttestationStore, appraiser: Appraiser, model: TrustModel, clock: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._appraiser = appraiser
        self._model = model
        self._clock = clock

    def current(self, kind: AttestationType) -> str:
        """The policy in force, as it was sent."""
        return self._appraiser.signed({"x-ms-policy": self.policy(kind).jws})

    def policy(self, kind: AttestationType) -> SentPolicy:
        """The policy in force."""
        default = DEFAULT_POLICIES[kind]
        return self._store.policy(kind) or SentPolicy(wrap(default), default, None)

    def set(self, kind: AttestationType, body: str | bytes, by: str) -> str:
        """Put a policy into force after it was parsed and its signer checked."""
        sent = self._checked(body)
        if not sent.text:
            raise AzureError("the policy is empty", "InvalidOperation", advice=f"Use /policies/{kind}:reset.")
        self._appraiser.checked(sent.text)
        self._store.set_policy(kind, sent, self._clock(), by=by)
        self._appraiser.policy_changed()
        return self._changed("Updated", sent)

    def reset(self, kind: AttestationType, body: str | bytes, by: str) -> str:
        """Return to the default."""
        sent = self._checked(body)
        if sent.text:
            raise AzureError("a reset carries an empty policy", "InvalidOperation")
        self._store.set_policy(kind, None, self._clock(), by=by)
        self._appraiser.policy_changed()
        return self._changed("Removed", sent)

    def signers(self) -> str:
        """The certificates of the accepted policy signers, as a JWKS."""
        keys = [certificate_jwk(certificate) for certificate in self._store.signers()]
        return self._appraiser.signed({"x-ms-policy-certificates": {"keys": keys}})

    def change_signer(self, body: bytes, by: str, *, add: bool) -> str:
        """Add or remove a signer; the request is signed by one that is known."""
        self._refuse_shared()
        jws = _certificate_request(body, "policyCertificateToAdd" if add else "policyCertificateToRemove")
        if certificate_of(jws) not in self._store.signers():
            raise AzureError("the request is not signed by a known policy signer", "InvalidOperation")
        certificate = _certificate_in(jws)
        if not self._store.change_signer(certificate, self._clock(), accepted=add, by=by):
            raise AzureError("the last policy signer cannot be removed", "InvalidOperation")
        return self._appraiser.signed(
            {
                "x-ms-certificate-thumbprint": thumbprint(certificate),
                "x-ms-policycertificates-result": "IsPresent" if add else "IsAbsent",
            }
        )

    def _checked(self, body: str | bytes) -> SentPolicy:
        self._refuse_shared()
        sent = read_policy(body)
        if self._model == "isolated":
            if sent.signer is None:
                raise AzureError("this instance takes signed policies only", "InvalidOperation")
            if sent.signer not in self._store.signers():
                raise AzureError("the signer of the policy is not known here", "InvalidOperation")
        return sent

    def _refuse_shared(self) -> None:
        if self._model == "shared":
            raise AzureError("policies of a shared instance are fixed", "InvalidOperation")

    def _changed(self, result: str, sent: SentPolicy) -> str:
        hashed = encode_base64url(hashlib.sha256(sent.jws.encode()).digest())
        claims: dict[str, Any] = {"x-ms-policy-result": result, "x-ms-policy-token-hash": hashed}
        if sent.signer is not None:
            claims["x-ms-policy-signer"] = certificate_jwk(sent.signer)
        return self._appraiser.signed(claims)


def _certificate_request(body: bytes, member: str) -> ReadJws:
    """The JWT of `certificates:add` or `:remove`: a JSON string, or since 2025-06-01 the `member` of an object."""
    try:
        value = msgspec.json.decode(body)
        check_members_once(body)
        if isinstance(value, dict):
            value = value.get(member)
        if not isinstance(value, str):
            raise AzureError(f"the body lacks the JWT with the certificate ({member})", "InvalidOperation")
        return ReadJws.parse(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise AzureError(f"the body is no JWT with a certificate: {error}", "InvalidOperation") from None


def _certificate_in(jws: ReadJws) -> x509.Certificate:
    try:
        claims = jws.claims()
    except FormatError as error:
        raise AzureError(f"the payload of the JWT cannot be read: {error}", "InvalidOperation") from None
    names = ("policyCertificate", "maa-policyCertificate", "x-ms-policyCertificate")
    held = next((claims[name] for name in names if name in claims), None)
    if not isinstance(held, dict):
        raise AzureError("the JWT lacks the claim policyCertificate", "InvalidOperation")
    return signer_of(held.get("x5c"), "policyCertificate")
