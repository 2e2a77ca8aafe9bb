"""The collateral service over HTTP: documents and PCK certificates by the paths of PCS and PCCS, from memory if it can.

`CollateralApp` is the ASGI application. What is asked again and again is answered before any routing; everything else
goes through starlette.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import structlog
from starlette.requests import Request
from starlette.routing import Route, Router

from confcom.collateral.documents import DocumentKey, key_for, rfc3339
from confcom.collateral.pck_rules import chain_expires
from confcom.errors import CollateralNotFound, ConfcomError, FormatError
from confcom.protocols import pcs
from confcom.protocols.pcs_service import (
    AZURE_METADATA,
    ServedRequest,
    document_response,
    parse_request,
    pck_certificate_response,
)
from confcom.services.collateral.answers import (
    Answer,
    HotAnswers,
    Refused,
    answer_of,
    error_answer,
    request_id,
)
from confcom.services.collateral.cache import CollateralCache
from confcom.services.collateral.pck_certificates import PckCertificates
from confcom.services.runtime.allowances import address_of
from confcom.services.runtime.http_server import Message, Receive, Send
from confcom.services.runtime.process import Overloaded

if TYPE_CHECKING:
    from confcom.services.collateral.collateral_service import CollateralMetrics

STALE_FOR = 5.0
"""Seconds that a stale answer is repeated from memory before upstream may be asked again."""
FALLBACK_AGE = 600
"""Seconds that clients may keep a certificate that is not for their raw TCB: upstream may have a better one soon."""
_FALLBACK = '199 - "Chosen among old certificates: upstream gave none for this raw TCB"'
EARLIER = 0.2
"""Largest part of an age that is taken off by chance, so that nodes which started together do not ask together."""
DOCUMENT_FOR = 60.0
"""Seconds that a document stays in memory; it then gets another age."""
CONFIRMED_FOR = 30.0
"""Seconds that answers are given from memory after the store was last asked whether another replica changed it."""
STORE_WITHIN = 25.0
"""Seconds beside those for upstream after which a client gets 503: the server of the store is silent."""
MEMORY_FOR = 3600.0
"""Seconds that a PCK certificate stays in memory."""
MAX_AGE = 24 * 3600
"""Seconds that clients may keep an answer; the most that Azure's client library takes."""
MAX_QUERY = 4096
"""Bytes; the longest that clients send has some 900."""
MAX_PARAMETERS = 32
DISTRIBUTION_HOSTS = frozenset(
    {"api.trustedservices.intel.com", "certificates.trustedservices.intel.com", "simulated.confcom.invalid"}
)
"""Hosts of distribution points that `crl?uri=` may name."""

GROUP = "/group/"
"""Prefix of the paths of a group: /group/NAME/…"""
SET = "confcom.set"
"""Key of a request's scope: the set that `standard` stands for."""
CLIENTS = "confcom.group"
"""Key of a request's scope: the group of its client, empty for none."""

Handler = Callable[[Request], Awaitable[Answer]]
Routes = Mapping[str, Mapping[str, Handler]]
"""Path → method → handler."""


class CollateralApp:
    """The application. `more` are further routes: administration, health, metrics; no error shows `secrets`."""

    def __init__(
        self,
        cache: CollateralCache,
        certificates: PckCertificates,
        hot: HotAnswers,
        metrics: CollateralMetrics,
        *,
        more: Routes,
        secrets: re.Pattern[bytes],
        sets: pcs.TcbSets,
    ) -> None:
        self._sets = sets
        self._cache = cache
        self._certificates = certificates
        self._hot = hot
        self._metrics = metrics
        self._memory_hits = metrics.cache.labels("memory")
        rest = Endpoint({"GET": self._collateral}, metrics, secrets)
        routes = [Route(path, Endpoint(handlers, metrics, secrets)) for path, handlers in more.items()]
        self._router = Router([*routes, Route("/{path:path}", rest)], redirect_slashes=False, default=rest)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self._place(scope)
        if scope["method"] == "GET":
            answer = self._from_memory(scope)
            if answer is not None:
                self._memory_hits.inc()
                if answer.counter is not None:
                    answer.counter.inc()
                await answer.send(request_id(scope["headers"]), send)
                return
        await self._router(scope, receive, send)

    def _place(self, scope: Message) -> None:
        """Note a request's set, and leave its path without the name of the group."""
        scope[SET], scope[CLIENTS] = self._sets.default, ""
        if scope["path"].startswith(GROUP):
            name, found, rest = scope["path"].removeprefix(GROUP).partition("/")
            if found and name in self._sets.groups:
                scope.update({"path": f"/{rest}", SET: self._sets.groups[name], CLIENTS: name})

    def _now(self) -> float:
        return self._cache.clock().timestamp()

    def _from_memory(self, scope: Message) -> Answer | None:
        if time.monotonic() - self._cache.confirmed > CONFIRMED_FOR:
            return None
        try:
            served = _served(scope)
            key = None if served is None else _remembered_as(served)
        except ConfcomError:
            return None  # the endpoint reports the error
        return None if key is None else self._hot.get(key, self._now(), self._cache.generation)

    async def _collateral(self, request: Request) -> Answer:
        try:
            async with asyncio.timeout(self._cache.answer_timeout + STORE_WITHIN):
                return await self._find(request)
        except TimeoutError:
            raise Overloaded from None

    async def _find(self, request: Request) -> Answer:
        served = _served(request.scope)
        if served is None:
            if request.scope["path"].startswith(GROUP):
                raise Refused(404, "there is no such group of clients", advice="Name it in the setting tcb_sets.")
            raise Refused(404, "there is nothing at this path", advice=_SEE_REFERENCE)
        generation = self._cache.generation
        match served.request:
            case pcs.PckCertRequest() as wanted:
                found = await self._certificates.find(wanted, caller=address_of(request.scope))
                age, until = self._freshness(chain_expires(found.answer).timestamp())
                response = pck_certificate_response(served, found.answer, request_id="", max_age=age)
                # It identifies a machine, so shared caches do not keep it.
                headers = [("Cache-Control", f"private, max-age={age}")]
                if found.fallback:
                    headers = [("Cache-Control", f"private, max-age={min(age, FALLBACK_AGE)}"), ("Warning", _FALLBACK)]
                answer = answer_of(response, *headers)
                until = min(until, self._now() + MEMORY_FOR) if found.lasting else 0.0
            case pcs.PckCertsRequest() | pcs.FmspcsRequest():
                raise Refused(
                    404,
                    f"{pcs.describe(served.request)}: this service does not list these",
                    advice="Ask Intel's service; this one gives the certificate for one raw TCB at pckcert.",
                )
            case wanted:
                answer, until = await self._document(served, wanted, address_of(request.scope))
        answer.counter = self._metrics.requests.labels(_label(request.url.path), str(answer.status))
        if until > (now := self._now()):
            self._hot.put(_remembered_as(served), answer, now=now, until=until, generation=generation)
        return answer

    async def _document(self, served: ServedRequest, wanted: pcs.DocumentRequest, caller: str) -> tuple[Answer, float]:
        key = _key(wanted)
        try:
            found = await self._cache.document(key, caller=caller)
        except ConfcomError as error:
            raise _Missing(key, error) from error
        document = pcs.Answer(found.document.body, found.issuer_chain)
        response = document_response(served, document, request_id="")
        age, until = self._freshness(found.expires.timestamp())
        until = min(until, self._now() + DOCUMENT_FOR)
        headers = [("Cache-Control", f"max-age={age}")]
        if found.stale:
            headers.append(("Warning", f'110 - "Response is Stale: it expired at {rfc3339(found.expires)}"'))
            until = self._now() + STALE_FOR
        return answer_of(response, *headers), until

    def _freshness(self, expires: float) -> tuple[int, float]:
        """Seconds that a client may keep what expires then, and until when the same answer may be given from memory.

        Both together end before it expires. The age is never 0: Intel's library takes that for none given.
        """
        longest = max(1.0, min(MAX_AGE, (expires - self._now()) / 2))
        age = max(1, int(longest * (1 - EARLIER * random.random())))  # noqa: S311 - no secret
        return age, expires - age


class Endpoint:
    """An ASGI application for one path: handlers by method; every failure becomes an answer, counted and logged."""

    def __init__(self, handlers: Mapping[str, Handler], metrics: CollateralMetrics, secrets: re.Pattern[bytes]) -> None:
        self._handlers = {**handlers, "HEAD": handlers["GET"]} if "GET" in handlers else dict(handlers)
        self._metrics = metrics
        self._secrets = secrets
        self._log = structlog.get_logger()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        request, begin = Request(scope, receive), time.perf_counter()
        error: ConfcomError | None = None
        try:
            answer = await self._handler(request)(request)
        except Exception as failure:  # noqa: BLE001 - a mistake of ours must not leave a client without an answer
            error, answer = _failure(failure, request)
            if error.code == _MISTAKE:
                self._log.exception("collateral.failure", path=request.url.path)
        if answer.status >= 400:
            answer = answer.without(self._secrets)
        if answer.status >= 400 and request.method not in ("GET", "HEAD"):
            # The body may not have been read, and the server should not wait for it.
            answer = answer.closing()
        id_ = request_id(scope["headers"])
        self._observe(request, answer, id_, time.perf_counter() - begin, error)
        await answer.send(id_, send)

    def _handler(self, request: Request) -> Handler:
        if request.method in self._handlers:
            return self._handlers[request.method]
        raise Refused(
            405,
            f"this path takes {' and '.join(self._handlers)}, not {request.method[:16]}",
            advice=_SEE_REFERENCE,
            headers=(("Allow", ", ".join(self._handlers)),),
        )

    def _observe(
        self, request: Request, answer: Answer, id_: bytes, seconds: float, error: ConfcomError | None
    ) -> None:
        label = _label(request.url.path)
        self._metrics.requests.labels(label, str(answer.status)).inc()
        self._metrics.duration.labels(label).observe(seconds)
        write = self._log.info if error is not None or request.method not in ("GET", "HEAD") else self._log.debug
        write(
            "collateral.request",
            path=label,
            status=answer.status,
            duration_ms=round(seconds * 1000, 3),
            peer=None if request.client is None else request.client.host,
            request_id=id_.decode(),
            error=None if error is None else error.code,
            reason=None if error is None else error.message,
        )


_MISTAKE = "service-mistake"
_SEE_REFERENCE = "See docs/reference/collateral-service.md for the paths that there are."


class _Mistake(Refused):
    """An exception that should not have been; the log has its stack."""

    code = _MISTAKE


class _Missing(Exception):
    """A document that could not be served, and the error."""

    def __init__(self, key: DocumentKey, error: ConfcomError) -> None:
        super().__init__(str(error))
        self.key = key
        self.error = error


def _failure(failure: Exception, request: Request) -> tuple[ConfcomError, Answer]:
    key = failure.key if isinstance(failure, _Missing) else None
    error = failure.error if isinstance(failure, _Missing) else failure
    if key is not None and key.update == request.scope[SET] != "standard" and isinstance(error, CollateralNotFound):
        error = _not_by_pin(error, request.scope[SET], request.scope[CLIENTS])
    if isinstance(error, Overloaded):
        error = Refused(503, "the answer is not here yet", advice="Ask again in a moment: it is being fetched.")
    elif not isinstance(error, ConfcomError):
        error = _Mistake(500, "a mistake in the service", advice="Report it with what the service logged.")
    return error, error_answer(error, missing=key, plain=_wants_text(request))


def _not_by_pin(error: CollateralNotFound, update: pcs.Update, group: str) -> CollateralNotFound:
    return CollateralNotFound(
        f"{pcs.clients_of(group)} are pinned to set {update}, which is not available: {error.message}",
        advice=f"Have the administrator of the service move the pin (--tcb-set {f'{group}=' if group else ''}SET): "
        "Intel takes a set off its service about a year after the next one.",
    )


def _wants_text(request: Request) -> bool:
    accepted = request.headers.get("accept", "*/*").lower()
    return "text/plain" in accepted and "json" not in accepted


def _served(scope: Message) -> ServedRequest | None:
    """The request; `standard` is the set of its clients. None at a path that is not served."""
    served = parse_request(scope["path"], _query(scope))
    if served is not None and getattr(served.request, "update", None) == "standard" != scope[SET]:
        return replace(served, request=replace(served.request, update=scope[SET]))
    return served


def _query(scope: Message) -> dict[str, str]:
    """The decoded parameters; one given twice is refused, since two readers would take another one."""
    raw: bytes = scope["query_string"]
    if len(raw) > MAX_QUERY:
        raise Refused(414, f"the query is longer than {MAX_QUERY} bytes")
    found: dict[str, str] = {}
    try:
        fields = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError as error:
        raise FormatError(
            f"has more than {MAX_PARAMETERS} parameters", structure="PCS request", field="query"
        ) from error
    for name, value in fields:
        if name in found:
            raise FormatError("is given twice", structure="PCS request", field=name[:64])
        found[name] = value
    return found


def _remembered_as(served: ServedRequest) -> Hashable:
    """All that an answer from memory depends on: other spellings of a request must not push answers out."""
    match served.request:
        case pcs.CrlRequest() as wanted:
            return served.version, served.azure, _key(wanted), wanted.encoding
        case pcs.PckCertRequest() as wanted:
            return replace(served, request=replace(wanted, encrypted_ppid=None, platform_manifest=None))
    return served


def _key(wanted: pcs.DocumentRequest) -> DocumentKey:
    if isinstance(wanted, pcs.CrlRequest):
        try:
            parts = urlsplit(wanted.uri)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme != "https" or parts.hostname not in DISTRIBUTION_HOSTS:
            raise FormatError("is no distribution point of Intel's", structure="PCS request", field="uri")
    key = key_for(wanted)
    if key is None:
        raise CollateralNotFound(f"there is no revocation list known by {pcs.describe(wanted)}")
    return key


def _label(path: str) -> str:
    """The path as a metric's label: those that exist, and one word for the rest."""
    tee, found, rest = path.strip("/").removeprefix(AZURE_METADATA).partition("/certification/")
    if found and tee in ("sgx", "tdx"):
        version, _, name = rest.partition("/")
        if version in ("v2", "v3", "v4") and name in _NAMES:
            return f"{tee}/{version}/{name}"
    return path.strip("/") if path.strip("/") in ("healthz", "readyz", "metrics") else "other"


_NAMES = frozenset(
    {
        *("tcb", "qe/identity", "qve/identity", "qae/identity", "pckcrl", "rootcacrl", "crl", "pckcert", "pckcerts"),
        *("fmspcs", "tcbevaluationdatanumbers", "platforms", "platformcollateral", "refresh", "appraisalpolicy"),
    }
)
