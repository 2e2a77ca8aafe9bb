"""PcsClient: collateral over HTTP from Intel's PCS, from a caching service (PCCS), or from anything that speaks so.

The only importer of the HTTP library. Every answer is bounded in bytes and in time, redirects are never followed, and
only failures that can pass are asked again. Nothing of what comes is trusted: it is held to what was asked, and
`verify_collateral` proves the rest.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec import structs

from confcom.appraisal.collateral import Collateral
from confcom.collateral.documents import (
    CRLS,
    Document,
    DocumentKey,
    assemble,
    check_answer,
    document_from_answer,
    keys_for,
    request_for,
)
from confcom.errors import CollateralError, CollateralUnavailable, ConfcomError, ConfigError, FormatError
from confcom.formats.arguments import parse_http_url
from confcom.formats.signed_json import MAX_SIGNED_JSON
from confcom.http_client import verifying_context, within
from confcom.pki.certificate import MAX_CRL
from confcom.protocols import pcs
from confcom.protocols.pcs import Api, Dialect, HttpRequest, HttpResponse, PckCaName, Tee, Update, build_request
from confcom.protocols.pcs_service import (
    MAX_LIST,
    RETRYABLE,
    PckCertificateEntry,
    parse_document,
    parse_pck_certificate,
    parse_pck_certificates,
    pck_issuer_chain,
    retry_after,
    status_error,
)

if TYPE_CHECKING:
    import httpx2

# httpx2 is imported by functions: it takes longer than all other imports here, and stores and folders do without it.

MAX_PCK_CERTIFICATE = 64 * 1024
"""Bytes of an answer with one PCK certificate; Intel's take 2 kB."""

_KEY_HEADERS = {Dialect.PCS: "Ocp-Apim-Subscription-Key", Dialect.PCCS: "user-token", Dialect.THIM: ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """How long one question may take. All in seconds, but `retries`, which counts the tries after the first."""

    timeout: float = 10.0
    """For a connection, and for each wait for bytes."""
    deadline: float = 30.0
    """For one whole answer, however steadily it drips."""
    retries: int = 3
    backoff: float = 0.5
    """Before the first retry; it doubles each time, and up to half of it is added by chance."""
    max_wait: float = 30.0
    """The longest wait between two tries. A service that asks for more (Retry-After) is not asked again."""


DEFAULT_LIMITS = HttpLimits()


@dataclass(frozen=True, slots=True)
class _Failure:
    error: ConfcomError
    retryable: bool
    wait: float | None = None


@dataclass(slots=True, kw_only=True)
class HttpExchange:
    """Asks one HTTP service: bounded, with retries. `sleep` and `chance` (0 to 1) are parameters for tests."""

    service: str
    verify_tls: bool | Path = True
    limits: HttpLimits = DEFAULT_LIMITS
    proxy: str | None = None
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random
    _tls: ssl.SSLContext = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            import httpx2
        except ModuleNotFoundError as error:
            raise ConfigError(f"a service needs the package {error.name!r}", advice="Install confcom[cli].") from error

        if self.proxy is not None:
            self.proxy = self.proxy if "://" in self.proxy else f"http://{self.proxy}"  # as curl reads it
            parse_http_url(self.proxy, "a proxy", advice="Correct HTTPS_PROXY, or the option: http://HOST:PORT.")
        if isinstance(self.verify_tls, Path):
            self._tls = verifying_context(self.verify_tls)
        else:
            self._tls = httpx2.create_ssl_context(verify=self.verify_tls, trust_env=False)

    def ask(self, request: pcs.Request, http: HttpRequest, limit: int) -> HttpResponse:
        """The response with status 200; every other outcome is an error, after the retries that make sense.

        `http` has the whole URL; an answer of more than `limit` bytes is refused.
        """
        wait = self.limits.backoff
        for left in range(self.limits.retries, -1, -1):
            outcome = self._exchange(request, http, limit)
            if isinstance(outcome, HttpResponse):
                if outcome.status == 200:
                    return outcome
                error = status_error(request, outcome, service=self.service)
                outcome = _Failure(error, outcome.status in RETRYABLE, retry_after(outcome))
            pause = outcome.wait if outcome.wait is not None else min(wait, self.limits.max_wait)
            if not outcome.retryable or left == 0 or pause > self.limits.max_wait:
                raise outcome.error
            self.sleep(pause + self.chance() * wait / 2)
            wait *= 2
        raise AssertionError("the last try returns or raises")  # pragma: no cover

    def ask_once(self, request: pcs.Request, http: HttpRequest, limit: int) -> HttpResponse:
        """The response to one try, whatever its status; raises what kept it from coming."""
        response = self._exchange(request, http, limit)
        if isinstance(response, _Failure):
            raise response.error
        return response

    def _exchange(self, request: pcs.Request, http: HttpRequest, limit: int) -> HttpResponse | _Failure:
        import httpx2

        question = _Question(pcs.describe(request), self.service, http, limit)
        with httpx2.Client(verify=self._tls, timeout=self.limits.timeout, proxy=self.proxy, trust_env=False) as client:
            try:
                return within(self.limits.deadline, lambda extensions: question.ask(client, extensions))
            except TimeoutError:
                return _Failure(question.unavailable(f"did not finish its answer in {self.limits.deadline:g} s"), True)


@dataclass(frozen=True, slots=True)
class _Question:
    """One try."""

    what: str
    service: str
    http: HttpRequest
    limit: int

    def ask(self, client: httpx2.Client, extensions: dict[str, Any]) -> HttpResponse | _Failure:
        import httpx2

        # Not compressed: a limit on the bytes that come is then a limit on the bytes that there are.
        headers = {"accept-encoding": "identity", "user-agent": "confcom", **dict(self.http.headers)}
        try:
            with client.stream(
                self.http.method,
                self.http.url or "",
                headers=headers,
                content=self.http.body or None,
                follow_redirects=False,
                extensions=extensions,
            ) as response:
                return self._read(response)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, ValueError) as error:
            return self._failed(error)

    def _read(self, response: httpx2.Response) -> HttpResponse | _Failure:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            return self._malformed("is compressed, though that was not asked for")
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > self.limit:
                return self._malformed(f"is larger than {self.limit} bytes")
        return HttpResponse(response.status_code, tuple(response.headers.multi_items()), bytes(body))

    def _malformed(self, message: str) -> _Failure:
        error = FormatError(f"the answer of {self.service} {message}", structure=self.what, field="body")
        return _Failure(error, retryable=False)

    def _failed(self, error: Exception) -> _Failure:
        import httpx2

        if _caused_by(error, ssl.SSLCertVerificationError):
            return _Failure(
                CollateralUnavailable(
                    f"{self.what}: the TLS certificate of {self.service} is not trusted: {error}",
                    advice="Name the CA that issued it (--collateral-ca FILE).",
                ),
                retryable=False,
            )
        if isinstance(error, httpx2.TimeoutException):
            return _Failure(self.unavailable("did not answer in time"), retryable=True)
        retryable = isinstance(error, (httpx2.NetworkError, httpx2.RemoteProtocolError, OSError))
        return _Failure(self.unavailable(f"cannot be asked: {str(error) or type(error).__name__}"), retryable)

    def unavailable(self, message: str) -> CollateralError:
        return CollateralUnavailable(
            f"{self.what}: {self.service} {message}",
            advice="Check the network and the URL, ask again later, or use what the store holds.",
        )


class PcsClient:
    """A `CollateralSource` over HTTP. Safe to use from several threads; each request has a connection of its own."""

    def __init__(
        self,
        base_url: str = pcs.INTEL_PCS,
        *,
        api_version: Literal[3, 4] = 4,
        dialect: Dialect = Dialect.PCS,
        verify_tls: bool | Path = True,
        limits: HttpLimits = DEFAULT_LIMITS,
        key: str | None = None,
        proxy: str | None = None,
        root_ca_crl_url: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`key` is Intel's subscription key or the PCCS's user token; most documents need none.

        `root_ca_crl_url` replaces Intel's distribution point of the root CA CRL, which PCS has no path for.
        """
        parts = parse_http_url(base_url, "a collateral service")
        if parts.query or parts.fragment:
            raise ConfigError("the URL of a collateral service has no ? and no #", advice="Write https://HOST:PORT.")
        self.base_url = base_url.rstrip("/")
        self.source = self.base_url.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)
        """Its URL without user and password."""
        self.api = Api(dialect, api_version)
        self._key = key
        self._root_ca_crl_url = root_ca_crl_url
        self._http = HttpExchange(
            service=self.source, verify_tls=verify_tls, limits=limits, proxy=proxy, sleep=sleep, chance=chance
        )

    def fetch(self, fmspc: bytes, ca: PckCaName, tee: Tee, *, update: Update = "standard") -> Collateral:
        """The collateral of a platform, of one set."""
        return assemble(map(self.fetch_document, keys_for(fmspc, ca, tee, update)), source=self.source)

    def fetch_document(self, key: DocumentKey) -> Document:
        """One document, held to its key."""
        request = request_for(key)
        limit = MAX_CRL if key.kind in CRLS else MAX_SIGNED_JSON
        document = document_from_answer(key, parse_document(request, self._ask(request, limit)))
        check_answer(document, source=self.source)
        return document

    def fetch_pck_certificate(self, request: pcs.PckCertRequest) -> pcs.PckCertificateAnswer:
        """The PCK certificate for a platform's raw TCB."""
        return parse_pck_certificate(self._ask(request, MAX_PCK_CERTIFICATE))

    def fetch_pck_certificates(self, request: pcs.PckCertsRequest) -> tuple[tuple[PckCertificateEntry, ...], bytes]:
        """All PCK certificates of a platform, and their issuer chain in PEM (PCS with a subscription key)."""
        response = self._ask(request, MAX_LIST)
        return parse_pck_certificates(response.body), pck_issuer_chain(response)

    def _ask(self, request: pcs.Request, limit: int) -> HttpResponse:
        http = build_request(request, self.api)
        if isinstance(request, pcs.RootCaCrlRequest) and self._root_ca_crl_url is not None:
            http = HttpRequest("", url=self._root_ca_crl_url)
        if http.url is None:  # else another host, which must not see the key
            name = _KEY_HEADERS[self.api.dialect]
            key = () if self._key is None or not name else ((name, self._key),)
            http = structs.replace(http, url=self.base_url + http.target, headers=(*key, *http.headers))
        return self._http.ask(request, http, limit)


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False
