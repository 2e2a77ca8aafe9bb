"""Asks an attestation service (ours or Azure's) for a token, and believes it only after verification.

`AttestationClient` blocks, and gets login tokens too; `AsyncAttestationClient` awaits. Keys are pinned by the caller,
or taken from the service over TLS when the first token comes, and again after half an hour, or at an unknown key id.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from confcom.errors import ConfigError, FormatError, PlatformError, PolicyError
from confcom.formats.arguments import encode_base64url, on_this_machine, parse_http_url
from confcom.formats.evidence import EvidenceFile
from confcom.http_client import verifying_context, within
from confcom.tokens import login
from confcom.tokens.azure import AttestationType, type_of
from confcom.tokens.jws import ReadJws
from confcom.tokens.verification import KeySet, TokenPolicy, VerifiedToken, verify_token

__all__ = [
    "AsyncAttestationClient",
    "Attestation",
    "AttestationClient",
    "AttestationRefused",
    "AttestationUnavailable",
]

API_VERSION = "2022-08-01"
MAX_ANSWER = 1 << 20
"""Bytes."""
KEYS_FOR = timedelta(minutes=30)
"""How long fetched keys count; shorter than a new key of ours is published before it signs."""
KEYS_AT_LEAST = timedelta(minutes=1)
"""Between two fetches of keys, whatever key ids tokens name."""
TIMEOUT = 15.0
"""Seconds within which a whole answer must arrive."""


class AttestationRefused(PolicyError):
    """The service gave no token: `azure_code` and `detail` are those of its answer."""

    code = "attestation-refused"
    default_advice = "The message is the service's; `detail` has every check or rule, if the service is ours."

    def __init__(self, message: str, azure_code: str, detail: Mapping[str, Any]) -> None:
        super().__init__(message, advice=detail.get("advice") if isinstance(detail.get("advice"), str) else None)
        self.azure_code = azure_code
        self.detail = detail


class AttestationUnavailable(PlatformError):
    """The service cannot be reached, or its answer is none."""

    code = "attestation-unavailable"
    default_advice = "Check the URL and the service; then try again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """What is to be attested: evidence, the data that it vouches for, and a nonce for the token."""

    evidence: bytes
    kind: AttestationType = AttestationType.SGX_ENCLAVE
    runtime_data: bytes | None = None
    runtime_is_json: bool = False
    nonce: str | None = None
    login_for: str | None = None
    """The audience of a login token, with `nonce` bound; `AttestationClient.login_token` fills both in."""

    def body(self) -> bytes:
        """The JSON of the attest call."""
        found: dict[str, Any] = {self.kind.evidence_field: encode_base64url(self.evidence)}
        if self.runtime_data is not None:
            kind = "JSON" if self.runtime_is_json else "Binary"
            found["runtimeData"] = {"data": encode_base64url(self.runtime_data), "dataType": kind}
        if self.nonce is not None:
            found["nonce"] = self.nonce
        if self.login_for is not None:
            found |= {"bindNonce": True, "loginFor": self.login_for}
        return msgspec.json.encode(found)


class _Client:
    """What both clients share: where to ask, what an answer means, which keys count."""

    def __init__(self, url: str, *, keys: KeySet | None = None, ca: Path | None = None) -> None:
        """`url` is the base URL and the issuer; `ca` a PEM file of the authorities of its TLS certificate."""
        parts = parse_http_url(url, "an attestation service", advice="Write https://HOST[:PORT].")
        self._authentic = parts.scheme == "https" or on_this_machine(parts.hostname or "")
        self._url = url.rstrip("/")
        self._pinned = keys is not None
        self._keys = keys
        self._tls = verifying_context(ca)

    def _where(self, attestation: Attestation) -> str:
        return f"{self._url}/attest/{attestation.kind}?api-version={API_VERSION}"

    def _require_keys(self) -> None:
        """Refuse to ask where the keys that verify the answer are neither pinned nor fetched over TLS."""
        if not (self._authentic or self._pinned):
            raise ConfigError(
                f"the keys of {self._url} would come without TLS: the network could replace them",
                advice="Write https://, or pin the keys (keys=KeySet.parse(…)).",
            )

    def _token(self, status: int, content: bytes) -> str:
        return self._member("token", status, content)

    def _member(self, name: str, status: int, content: bytes) -> str:
        """A member of an answer, which is text."""
        try:
            answer = _ANSWER.decode(content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise AttestationUnavailable(f"{self._url} answered {status} with no JSON object") from None
        if status == 200 and isinstance(found := answer.get(name), str):
            return found
        error = answer.get("error")
        error = error if isinstance(error, dict) else {}
        detail = error.get("innererror")
        message = error.get("message") or f"{self._url} answered {status}"
        raise AttestationRefused(str(message), str(error.get("code", "")), detail if isinstance(detail, dict) else {})

    def _needs_keys(self, token: str, now: datetime) -> bool:
        """Whether there are no keys, old ones, or none of the id that the token names, as after a revocation."""
        if self._keys is None or self._pinned:
            return self._keys is None
        age = now - self._keys.fetched
        named = ReadJws.parse(token).header.get("kid")
        unknown = all(key.key_id != named for key in self._keys.keys)
        # A clock that is set back leaves keys of the future.
        return abs(age) > self._keys.max_age or (unknown and abs(age) > KEYS_AT_LEAST)

    def _take_keys(self, status: int, content: bytes, now: datetime) -> None:
        if status != 200:
            raise AttestationUnavailable(f"{self._url}/certs answered {status}")
        try:
            self._keys = KeySet.parse(content, fetched=now, max_age=KEYS_FOR)
        except FormatError as error:
            raise AttestationUnavailable(f"{self._url}/certs: {error}") from error

    def _verified(self, token: str, policy: TokenPolicy, now: datetime) -> VerifiedToken:
        assert self._keys is not None  # noqa: S101 - for the type checker
        verified = verify_token(token, self._keys, issuer=self._url, now=now)
        policy.check(verified)
        return verified


class AttestationClient(_Client):
    """A blocking client; safe to use from one thread at a time."""

    def attest(self, attestation: Attestation, policy: TokenPolicy, *, now: datetime) -> VerifiedToken:
        """A verified token that the policy accepts.

        Raises:
            ConfigError: keys are neither pinned nor fetched over TLS.
            AttestationRefused: the service refused the evidence.
            AttestationUnavailable: the service cannot be reached.
            TokenError, TokenRefused: the token is not authentic, or says something else than expected.
        """
        self._require_keys()
        with httpx2.Client(timeout=TIMEOUT, verify=self._tls) as client:
            token = self._token(*ask(client, "POST", self._where(attestation), attestation.body()))
            if self._needs_keys(token, now):
                self._take_keys(*ask(client, "GET", f"{self._url}/certs"), now)
        return self._verified(token, policy, now)

    def login_token(self, audience: str, quote: Callable[[bytes], bytes]) -> str:
        """A token that logs this enclave in where `audience` is expected (Vault, OpenBao), for five minutes.

        `quote` gives a quote over 64 bytes of report data. The answer is encrypted to a key that does not leave this
        call. The token is not verified here: the server that it is shown to does that.

        Raises:
            AttestationRefused: the service refused the evidence.
            AttestationUnavailable: the service cannot be reached, or its answer is none.
        """
        private, runtime = login.new_key()
        with httpx2.Client(timeout=TIMEOUT, verify=self._tls) as client:
            status, content = ask(client, "POST", f"{self._url}/nonces?api-version={API_VERSION}")
            nonce = self._member("nonce", status, content)
            evidence = quote(hashlib.sha256(nonce.encode() + runtime).digest() + bytes(32))
            attestation = Attestation(
                evidence=evidence, kind=type_of(EvidenceFile.parse(evidence)),
                runtime_data=runtime, runtime_is_json=True, nonce=nonce, login_for=audience,
            )  # fmt: skip
            sealed = self._token(*ask(client, "POST", self._where(attestation), attestation.body()))
        try:
            return login.unseal(sealed, private)
        except ValueError as error:
            raise AttestationUnavailable(f"{self._url}: {error}") from None


class AsyncAttestationClient(_Client):
    """The same, awaited."""

    async def attest(self, attestation: Attestation, policy: TokenPolicy, *, now: datetime) -> VerifiedToken:
        """As of `AttestationClient.attest`."""
        self._require_keys()
        async with httpx2.AsyncClient(timeout=TIMEOUT, verify=self._tls) as client:
            token = self._token(*await self._ask(client, "POST", self._where(attestation), attestation.body()))
            if self._needs_keys(token, now):
                self._take_keys(*await self._ask(client, "GET", f"{self._url}/certs"), now)
        return self._verified(token, policy, now)

    async def _ask(
        self, client: httpx2.AsyncClient, method: str, url: str, body: bytes | None = None
    ) -> tuple[int, bytes]:
        answer = _Bounded(url)
        try:
            async with asyncio.timeout(TIMEOUT), client.stream(method, url, content=body, headers=_HEADERS) as response:
                async for piece in response.aiter_bytes():
                    answer.take(piece)
                return response.status_code, bytes(answer)
        except httpx2.HTTPError as error:
            raise AttestationUnavailable(f"{url}: {error}") from error
        except TimeoutError:
            raise _too_slow(url) from None


def ask(
    client: httpx2.Client, method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of an answer of at most `MAX_ANSWER` bytes, within `TIMEOUT`; else `AttestationUnavailable`."""

    def exchange(extensions: dict[str, Any]) -> tuple[int, bytes]:
        answer = _Bounded(url)
        sent = {**(_HEADERS if headers is None else headers), "Connection": "close"}
        with client.stream(method, url, content=body, headers=sent, extensions=extensions) as response:
            for piece in response.iter_bytes():
                answer.take(piece)
            return response.status_code, bytes(answer)

    try:
        return within(TIMEOUT, exchange)
    except httpx2.HTTPError as error:
        raise AttestationUnavailable(f"{url}: {error}") from error
    except TimeoutError:
        raise _too_slow(url) from None


def _too_slow(url: str) -> AttestationUnavailable:
    return AttestationUnavailable(f"{url}: the answer was not whole within {TIMEOUT:g} s")


_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
_ANSWER = msgspec.json.Decoder(dict[str, Any])


class _Bounded(bytearray):
    """An answer as it comes, refused beyond its limit."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def take(self, piece: bytes) -> None:
        if len(self) + len(piece) > MAX_ANSWER:
            raise AttestationUnavailable(f"{self._url}: the answer has over {MAX_ANSWER} bytes")
        self.extend(piece)
