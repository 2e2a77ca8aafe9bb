"""The attestation service over HTTP: the API of Azure Attestation, api-versions 2020-10-01 to 2025-06-01."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, partial
from http import HTTPStatus
from importlib.resources import files
from typing import Any

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, Router

from confcom.errors import CollateralError, ConfcomError, ConfigError, DatabaseError, DatabaseUnavailable
from confcom.services.attestation.administrators import (
    ASK_AGAIN,
    Administrator,
    Administrators,
    IssuerUnavailable,
    NotAnAdministrator,
    PolicyAdministration,
    from_another_site,
)
from confcom.services.attestation.appraiser import Appraiser, Denied, Refused, WouldBlock
from confcom.services.attestation.attestation_store import AttestationStore, AuditWriter, RecordFilter, Row, as_line
from confcom.services.attestation.lockstep import Lockstep, Outcome
from confcom.services.attestation.signing_keys import SigningKeys
from confcom.services.runtime.allowances import Allowance, address_of
from confcom.services.runtime.http_server import Message, Receive, Send
from confcom.services.runtime.process import Overloaded, T, WorkerThreads
from confcom.services.runtime.status_page import Reading
from confcom.tokens.azure import NONCE_LIFE, AttestationType, AzureError
from confcom.tokens.ear import MEDIA_TYPE, accepts_ear
from confcom.tokens.policy_jws import read_policy
from confcom.tokens.policy_language import PolicyTextError

API_VERSIONS = ("2020-10-01", "2022-08-01", "2025-06-01")
_PLAIN_VERSIONS = frozenset(f"api-version={version}".encode() for version in API_VERSIONS)
"""The query strings that clients send."""
MAX_IN_LOOP = 32 << 10
"""Bytes of a body that is judged in the event loop, if its platform's collateral is in memory."""
MAX_LARGE = 64 << 20
"""Bytes of all bodies over `MAX_IN_LOOP` until they are answered. One address may use a quarter."""
_LARGE = "confcom.large"
"""In the scope of a request: the bytes of its body that count towards `MAX_LARGE`."""
WRONG_TOKENS = 5
"""Of one address in a minute; beyond it administration waits."""
REFUSED_RECORDED = 60
"""Refused appraisals of one address in a minute that are recorded; further ones are counted: garbage costs nothing."""
CALM = 10.0
"""Seconds without a failure of the service after which it has recovered."""
_JSON = "application/json"
_EAR = MEDIA_TYPE.encode()
Handler = Callable[[Request], Awaitable[Response]]


class HttpRefusal(ConfcomError):
    """A request that is refused before it is looked into; `status` and `azure_code` go into the answer."""

    code = "request-refused"
    default_advice = "See docs/reference/attestation-service.md for what each path takes."

    def __init__(
        self, status: int, azure_code: str, message: str, *, advice: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message, advice=advice)
        self.status, self.azure_code, self.retry_after = status, azure_code, retry_after


def internal_error() -> HttpRefusal:
    """What a client gets for a mistake of the service, which the log explains."""
    advice = "Report it to the operator with the time of the request."
    return HttpRefusal(500, "InternalError", "the service failed; its log says why", advice=advice)


class _PlainName(StringConvertor):
    """A part of a path without the colon that begins an action, such as `:reset`."""

    regex = "[^/:]+"


register_url_convertor("plain", _PlainName())


class AttestationMetrics(Collector):
    """What the service counts. `docs/reference/attestation-service.md` explains each."""

    def __init__(self, registry: CollectorRegistry, keys: Callable[[], SigningKeys], store: AttestationStore) -> None:
        self.registry = registry
        self._keys = keys
        registry.register(self)
        registry.register(
            Reading("confcom_attestation_store_failures", "Transactions that the store refused.",
                    lambda: store.database.failures, counter=True)
        )  # fmt: skip
        self.requests = Counter(
            "confcom_attestation_requests", "Attest calls by outcome.", ["type", "outcome"], registry=registry
        )
        self.unrecorded = Counter(
            "confcom_attestation_unrecorded", "Refused appraisals beyond those that are recorded.", registry=registry
        )
        self.seconds = Histogram("confcom_attestation_seconds", "Time of an attest call.", ["type"], registry=registry)
        self.ready = Gauge("confcom_attestation_ready", "Whether tokens can be signed.", registry=registry)
        # Beforehand, so that a rate has a beginning.
        for kind in AttestationType:
            self.requests.labels(kind, "accepted")

    def collect(self) -> Iterator[Metric]:
        """The expiry of the keys that sign."""
        family = GaugeMetricFamily(
            "confcom_attestation_signing_key_expiry_timestamp_seconds",
            "When the certificate of the key that signs expires.",
            labels=["algorithm"],
        )
        for algorithm, key in self._keys().signing.items():
            family.add_metric([algorithm], key.certificate.not_valid_after_utc.timestamp())
        yield family


class AttestationApp:
    """The ASGI application; the API stands under `prefix`. `problem` says why tokens should not be asked for."""

    def __init__(
        self,
        appraiser: Appraiser,
        administration: PolicyAdministration,
        administrators: Administrators,
        records: Callable[..., list[Row]],
        keys: Callable[[], SigningKeys],
        problem: Callable[[], str],
        workers: WorkerThreads,
        audit: AuditWriter,
        metrics: AttestationMetrics,
        *,
        issuer: str,
        prefix: str,
        max_body: int,
        attest_per_minute: int,
        simulated: bool,
    ) -> None:
        self.appraiser = appraiser
        self.administration = administration
        self.records = records
        self._problem = problem
        self._workers = workers
        self._audit = audit
        self._lockstep = Lockstep(self._ended)
        self.metrics = metrics
        self._issuer = issuer
        self._administrators = administrators
        self.max_body = max_body
        self._large: dict[str, int] = {}  # by address
        self._allowed = attest_per_minute
        self._appraisals = Allowance(attest_per_minute, time.monotonic)
        self._wrong_tokens = Allowance(WRONG_TOKENS, time.monotonic)
        self._refused = Allowance(REFUSED_RECORDED, time.monotonic)
        self._failed_at: float | None = None
        self._simulated = simulated
        calls = {f"/attest/{kind}": _AttestCall(self, kind) for kind in AttestationType}
        self._calls = {prefix + path: call for path, call in calls.items()}
        """What is asked most is not routed, which takes as long as a signature of P-256."""
        api = [
            *(Route(path, call, methods=["POST"]) for path, call in calls.items()),
            self._route("/attest/{kind:plain}", self._attest_other, "POST"),
            self._value("/.well-known/openid-configuration", self._openid),
            # Not application/jwk+json, which @azure/attestation asks for and does not read as JSON.
            self._value("/certs", lambda: {"keys": keys().published}),
            self._value("/certs/", lambda: {"keys": keys().published}),
            self._route("/policies/{kind:plain}:reset", self._reset, "POST"),
            self._route("/policies/{kind:plain}:dryRun", self._dry_run, "POST"),
            self._route("/policies/{kind:plain}", self._policies, "GET", "PUT"),
            self._route("/tcbbaselines/{kind:plain}", self._baselines),
            self._value("/nonces", self._nonce, "POST", versioned=True),
            self._route("/revoke", self._revoke, "POST", versioned=False),
            self._value("/openapi.json", lambda: _OPENAPI | {"servers": [{"url": issuer}]}),
            self._route("/audit", self._records),
            self._route("/certificates", self._certificates),
            self._route("/certificates:add", partial(self._change_signers, add=True), "POST"),
            self._route("/certificates:remove", partial(self._change_signers, add=False), "POST"),
        ]
        own = [
            self._value("/healthz", lambda: {"status": "alive"}),
            self._route("/readyz", self._readyz, versioned=False),
            self._route("/metrics", self._metrics_page, versioned=False),
        ]
        # Without redirections of paths with a further slash: they go to the host and scheme that the request names.
        routes = [*([Mount(prefix, Router(api, redirect_slashes=False))] if prefix else api), *own]
        handlers: Any = {HTTPException: self._no_route}
        self._app = Starlette(routes=routes, exception_handlers=handlers)
        self._app.router.redirect_slashes = False

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:  # noqa: ANN401 - ASGI
        """Answer one request."""
        call = self._calls.get(scope["path"]) if scope["method"] == "POST" else None
        return (self._app if call is None else call)(scope, receive, send)

    def answered(self, scope: Message) -> None:
        """Stop counting the body of a request that has ended."""
        if large := scope.get(_LARGE):
            self._held(address_of(scope), -large)

    def _route(self, path: str, handler: Handler, *methods: str, versioned: bool = True) -> Route:
        return Route(path, self._endpoint(handler, versioned=versioned), methods=list(methods) or ["GET"])

    def _value(self, path: str, value: Callable[[], object], *methods: str, versioned: bool = False) -> Route:
        """A path that answers every request with this value."""

        async def handler(_request: Request) -> Response:
            return _json(value())

        return self._route(path, handler, *methods, versioned=versioned)

    def _endpoint(self, handler: Handler, *, versioned: bool = True) -> Handler:
        """Every failure of the handler becomes an answer; those that should not have been are logged."""

        async def endpoint(request: Request) -> Response:
            try:
                if versioned:
                    _check_version(request.scope)
                response = await handler(request)
            except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave a client without an answer
                response = self.failure(error, request.scope)
            return _marked(response)

        return endpoint

    def failure(self, error: Exception, scope: Message) -> Response:
        """The answer to a request that failed; a failure of the service, or a mistake of ours, is logged."""
        if isinstance(error, Overloaded):
            error = HttpRefusal(503, "ServerBusy", "too many appraisals wait", retry_after=1)
        if not isinstance(error, ConfcomError):
            structlog.get_logger().error("attestation.mistake", path=scope["path"][:100], exc_info=error)
            error = internal_error()
        elif isinstance(error, ConfigError):
            self._failed(error)
        return _error_answer(error)

    async def appraise(self, body: bytes, kind: AttestationType, scope: Message, *, ear: bool) -> str | ConfcomError:
        """The token for an attest call, or the reason why there is none, once the record of it is committed.

        In the event loop where it takes a millisecond: a thread would keep every socket waiting for its turn. The
        reason is not raised again: with its traceback it would hold this call's frame, and be freed late.
        """
        caller = scope["client"][0] if scope.get("client") else ""
        try:
            if len(body) > MAX_IN_LOOP:
                raise WouldBlock
            steps = self.appraiser.steps(body, kind, caller, ear=ear, may_block=False)
            entry, found = await self._lockstep.run(steps)
            recorded = entry.verdict != "refused"
        except WouldBlock:
            entry, found = await self.in_thread(scope, lambda: self.appraiser.appraise(body, kind, caller, ear=ear))
            recorded = False
        if not recorded and (entry.verdict != "refused" or self._is_recorded(scope)):
            await self._audit.record(entry)
        if self._failed_at is not None and isinstance(found, str):
            self._worked(self._failed_at)
        return found

    def _ended(self, found: Outcome, awaited: asyncio.Future[Outcome]) -> None:
        """Answer a call of the event loop when its record is committed; refusals are recorded by `appraise`."""
        if found[0].verdict == "refused":
            awaited.set_result(found)
        else:
            self._audit.record_for(found[0], awaited, found)

    def _is_recorded(self, scope: Message) -> bool:
        """Whether this refusal of the address is within those that are recorded; others are counted."""
        if self._refused.spend(address_of(scope)):
            self.metrics.unrecorded.inc()
            return False
        return True

    def _failed(self, error: ConfigError) -> None:
        """A failure of the service, such as of its store: the log has a line when they begin, and when they end."""
        if self._failed_at is None:
            structlog.get_logger().error("attestation.failed", reason=error.message)
        self._failed_at = time.monotonic()

    def _worked(self, failed_at: float) -> None:
        if time.monotonic() - failed_at >= CALM:
            structlog.get_logger().info("attestation.recovered")
            self._failed_at = None

    async def _attest_other(self, request: Request) -> Response:
        """An attest call for a type that this service does not know."""
        raise HttpRefusal(404, "NotFound", _not_served(request.path_params["kind"]))

    async def _policies(self, request: Request) -> Response:
        if request.method != "GET":
            return await self._change(request, self.administration.set)
        kind = _kind(request)
        await self.require_admin(request)
        return _json({"token": await self.in_thread(request.scope, lambda: self.administration.current(kind))})

    async def _reset(self, request: Request) -> Response:
        return await self._change(request, self.administration.reset)

    async def _change(self, request: Request, change: Callable[[AttestationType, bytes, str], str]) -> Response:
        """Have an administrator change a policy; the answer is a token with its outcome."""
        kind = _kind(request)
        by = await self.require_admin(request, change=True)
        body = await self.body(request.scope, request.receive)
        return _json({"token": await self.in_thread(request.scope, lambda: change(kind, body, by))})

    async def _dry_run(self, request: Request) -> Response:
        kind = _kind(request)
        await self.require_admin(request)
        text = read_policy(await self.body(request.scope, request.receive)).text
        limit = _number(request, "limit", default=100, most=1000)
        return _json(await self.in_thread(request.scope, lambda: self.appraiser.dry_run(kind, text, limit=limit)))

    async def _baselines(self, request: Request) -> Response:
        kind = _kind(request)
        self.limit(request.scope)
        return _json(await self.in_thread(request.scope, lambda: self.appraiser.baselines(kind)))

    def _nonce(self) -> dict[str, Any]:
        return {"nonce": self.appraiser.nonce(), "seconds": int(NONCE_LIFE.total_seconds())}

    async def _records(self, request: Request) -> Response:
        """Records as JSON lines, the newest first; `before` continues after the last id."""
        wanted = record_filter(request.query_params)
        await self.require_admin(request)
        before = _number(request, "before", default=0, most=1 << 62) or None
        limit = _number(request, "limit", default=100, most=1000)
        rows = await self.in_thread(request.scope, lambda: self.records(wanted, before=before, limit=limit))
        lines = [msgspec.json.encode(as_line(row)) + b"\n" for row in rows]
        return Response(b"".join(lines), media_type="application/x-ndjson")

    async def _certificates(self, request: Request) -> Response:
        await self.require_admin(request)
        return _json({"token": await self.in_thread(request.scope, self.administration.signers)})

    async def _change_signers(self, request: Request, *, add: bool) -> Response:
        by = await self.require_admin(request, change=True)
        body = await self.body(request.scope, request.receive)
        changed = self.in_thread(request.scope, lambda: self.administration.change_signer(body, by, add=add))
        return _json({"token": await changed})

    def _openid(self) -> dict[str, Any]:
        return {
            "response_types_supported": ["token", "none"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "revocation_endpoint": f"{self._issuer}/revoke",
            "issuer": self._issuer,
            "jwks_uri": f"{self._issuer}/certs",
            "claims_supported": _CLAIMS,
        }

    async def _revoke(self, request: Request) -> Response:
        """RFC 7009: a token that is verified offline cannot be revoked, and the answer says so (section 2.2.1)."""
        del request
        reason = "tokens are verified offline and end after eight hours; revoke the signing key instead"
        return _json({"error": "unsupported_token_type", "error_description": reason}, status=400)

    async def _readyz(self, request: Request) -> Response:
        del request
        reason = self._problem()
        state = {"ready": not reason, "simulated": self._simulated} | ({"reason": reason} if reason else {})
        return _json(state, status=503 if reason else 200)

    async def _metrics_page(self, request: Request) -> Response:
        del request
        self.metrics.ready.set(not self._problem())
        return Response(generate_latest(self.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _no_route(self, request: Request, error: HTTPException) -> Response:
        """No path, or a path without this method."""
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "")
            answer = _error_answer(HttpRefusal(405, "MethodNotAllowed", f"{request.method} is not one of {allowed}"))
            answer.headers["Allow"] = allowed
            return _marked(answer)
        prefix = " The API of this instance, which judges SIMULATED evidence, is under /simulated." * self._simulated
        return _marked(_error_answer(HttpRefusal(404, "NotFound", f"there is nothing at this path.{prefix}")))

    async def body(self, scope: Message, receive: Receive) -> bytes:
        """The body of a request, at most `max_body` bytes. A large one counts until the request is answered."""
        body, more = bytearray(), True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise HttpRefusal(400, "InvalidParameter", "the request ended before its body")
            body += event.get("body", b"")
            if len(body) > self.max_body:
                raise HttpRefusal(413, "RequestTooLarge", f"a body has at most {self.max_body} bytes")
            if len(body) > MAX_IN_LOOP:
                own = self._held(address_of(scope), len(body) - scope.get(_LARGE, 0))
                scope[_LARGE], every = len(body), sum(self._large.values())
                if own > max(MAX_LARGE // 4, self.max_body) or every > max(MAX_LARGE, self.max_body):
                    raise HttpRefusal(503, "ServerBusy", "too many large bodies are under way", retry_after=1)
            more = event.get("more_body", False)
        return bytes(body)

    def _held(self, address: str, change: int) -> int:
        """The bytes of an address's large bodies, after a change."""
        if held := self._large.pop(address, 0) + change:
            self._large[address] = held
        return held

    async def in_thread(self, scope: Message, call: Callable[[], T]) -> T:
        """The result of a call that may block; the addresses that make requests take turns."""
        return await self._workers.run(call, address_of(scope))

    def limit(self, scope: Message) -> None:
        """Count an appraisal that an address asks for; beyond its share it is refused."""
        if wait := self._appraisals.spend(address_of(scope)):
            reason = f"one address may make {self._allowed} attest calls in a minute"
            raise HttpRefusal(429, "TooManyRequests", reason, retry_after=wait)

    async def require_admin(self, request: Request, *, change: bool = False) -> str:
        """The name of the administrator who asks; to `change` something the role of a contributor is needed."""
        # Browsers send a client certificate with the requests of any page, and a POST needs no leave of ours.
        if change and from_another_site(request.headers):
            raise HttpRefusal(403, "Forbidden", "a page of another site asks for this change")
        chain = request.scope.get("extensions", {}).get("tls", {}).get("client_cert_chain", [None])
        found = self._administrators.by_certificate(chain[0]) or await self._by_token(request)
        if change and found.role != "contributor":
            raise HttpRefusal(403, "Forbidden", f"{found.name!r} is a {found.role} and changes nothing")
        return found.name

    async def _by_token(self, request: Request) -> Administrator:
        # The right token is refused too: otherwise its answer would distinguish it from guesses.
        address = address_of(request.scope)
        if wait := self._wrong_tokens.wait(address):
            reason = f"{WRONG_TOKENS} wrong tokens came from this address"
            raise HttpRefusal(429, "TooManyRequests", reason, retry_after=wait)
        try:
            return await self._administrators.by_token(request.headers.get("authorization", ""))
        except IssuerUnavailable as error:
            again = int(ASK_AGAIN.total_seconds())
            raise HttpRefusal(
                503, "IssuerUnavailable", error.message, advice=error.advice(), retry_after=again
            ) from error
        except NotAnAdministrator as error:
            if error.guessed:
                self._wrong_tokens.spend(address)
            raise HttpRefusal(401, "Unauthorized", error.message, advice=error.advice()) from error


class _AttestCall:
    """`POST /attest/{type}` as an ASGI application: starlette's requests and responses take much longer."""

    def __init__(self, app: AttestationApp, kind: AttestationType) -> None:
        self._app, self._kind = app, kind
        self._seconds = app.metrics.seconds.labels(kind)
        self._count = cache(partial(app.metrics.requests.labels, kind))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one call."""
        try:
            _check_version(scope)
            self._app.limit(scope)
            body = await self._app.body(scope, receive)
            ear = any(name == b"accept" and accepts_ear(value) for name, value in scope["headers"])
            found = await self._timed(body, scope, ear=ear)
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave a client without an answer
            await _marked(self._app.failure(error, scope))(scope, receive, send)
            return
        if not isinstance(found, str):
            await _marked(self._app.failure(found, scope))(scope, receive, send)
            return
        answer = found.encode() if ear else msgspec.json.encode({"token": found})
        headers = [
            (b"content-type", _EAR if ear else _JSON.encode()),
            (b"content-length", b"%d" % len(answer)),
            (b"x-ms-request-id", str(uuid.uuid4()).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _timed(self, body: bytes, scope: Message, *, ear: bool) -> str | ConfcomError:
        """The token, or why there is none; counts and times the call by its outcome."""
        begun, outcome = time.perf_counter(), "error"
        try:
            found = await self._app.appraise(body, self._kind, scope, ear=ear)
            outcome = "accepted" if isinstance(found, str) else getattr(found, "azure_code", outcome)
        except AzureError as error:
            outcome = error.azure_code
            raise
        finally:
            self._seconds.observe(time.perf_counter() - begun)
            self._count(outcome).inc()
        return found


_CLAIMS = [
    "iss", "jti", "iat", "nbf", "exp", "nonce", "x-ms-ver", "x-ms-attestation-type", "x-ms-policy-hash",
    "x-ms-policy-signer", "x-ms-policy", "x-ms-runtime", "x-ms-inittime", "x-ms-sgx-is-debuggable",
    "x-ms-sgx-product-id", "x-ms-sgx-mrsigner", "x-ms-sgx-mrenclave", "x-ms-sgx-svn", "x-ms-sgx-report-data",
    "x-ms-sgx-ehd", "x-ms-sgx-collateral", "confcom-tcb-status", "confcom-advisory-ids", "confcom-simulated",
]  # fmt: skip

_OPENAPI: dict[str, Any] = msgspec.json.decode(files(__package__).joinpath("openapi.json").read_bytes())


def _marked(response: Response) -> Response:
    response.headers["x-ms-request-id"] = str(uuid.uuid4())
    return response


def _kind(request: Request) -> AttestationType:
    return _attestation_type(request.path_params["kind"])


def _attestation_type(name: str) -> AttestationType:
    try:
        return AttestationType(name)
    except ValueError:
        raise AzureError(_not_served(name)) from None


def _not_served(name: str) -> str:
    return f"the attestation type {name[:40]!r} is not served: {', '.join(AttestationType)} are"


def record_filter(parameters: Mapping[str, str]) -> RecordFilter:
    """The records that query parameters name: kind, verdict, caller, policy_hash, evidence_hash, since, until."""
    given = {name: parameters.get(name) or None for name in ("verdict", "caller", "policy_hash", "evidence_hash")}
    if wrong := [name for name, value in given.items() if value is not None and not value.isprintable()]:
        raise HttpRefusal(400, "InvalidParameter", f"the query parameter {wrong[0]} has characters of no record")
    since, until = (parameters.get(name) and _time(name, parameters[name]) for name in ("since", "until"))
    kind = parameters.get("kind")
    return RecordFilter(
        kind=_attestation_type(kind) if kind else None, since=since or None, until=until or None, **given
    )


def _time(name: str, text: str) -> datetime:
    # Near the years 1 and 9999 the same time in UTC may be out of range.
    with suppress(ValueError, OverflowError):
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    raise HttpRefusal(400, "InvalidParameter", f"{name} is a time as 2026-11-21T09:30:00Z, found {text[:40]!r}")


def _number(request: Request, name: str, *, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise HttpRefusal(
            400, "InvalidParameter", f"the query parameter {name} is a number up to {most}, found {text!r}"
        )
    return int(text)


def _check_version(scope: Message) -> None:
    if scope["query_string"] in _PLAIN_VERSIONS:
        return
    given = Request(scope).query_params
    version = given.get("api-version")
    if twice := next((name for name in given if len(given.getlist(name)) > 1), None):
        raise HttpRefusal(400, "InvalidParameter", f"the query parameter {twice[:40]!r} is given twice")
    if version not in API_VERSIONS:
        found, served = "missing" if version is None else repr(version), ", ".join(API_VERSIONS)
        raise HttpRefusal(400, "InvalidParameter", f"the query parameter api-version is {found}: {served} are served")


def _json(value: object, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type=_JSON)


def _error_answer(error: ConfcomError) -> Response:
    """The error body of the API; `innererror` has the reason for machines, with every check or rule."""
    status, code = 400, getattr(error, "azure_code", "InvalidParameter")
    cause = error.cause if isinstance(error, Refused) else error
    if isinstance(error, HttpRefusal):
        status = error.status
    elif isinstance(cause, CollateralError):
        status, code = 503, "CollateralUnavailable"
    elif isinstance(error, ConfigError):
        status, code = (503, "StoreUnavailable") if isinstance(error, DatabaseError) else (500, "InternalError")
    inner: dict[str, Any] = dict(cause.as_dict())
    if isinstance(error, Refused):
        inner["checks"] = error.checks
    if isinstance(error, Denied):
        inner["trace"] = error.trace
    if isinstance(error.__cause__, PolicyTextError):
        inner |= error.__cause__.defect.as_dict()
    answer = _json({"error": {"code": code, "message": error.message, "innererror": inner}}, status=status)
    answer.headers["x-ms-error-code"] = code
    if retry_after := getattr(error, "retry_after", 1 if isinstance(error, DatabaseUnavailable) else 0):
        answer.headers["Retry-After"] = str(retry_after)
    return answer
