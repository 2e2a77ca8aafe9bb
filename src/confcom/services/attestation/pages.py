"""The pages for people: judge an input, try and set policies, look at the record of appraisals.

Everything that is shown may be hostile: templates escape it, and the content security policy allows the service's own
two files and no inline script or style. What changes something needs an administrator and a token against forged
requests: a random cookie that no other site can read or set, repeated in the form.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from confcom.errors import ConfcomError, FormatError
from confcom.formats.text import decode_base64, encode_base64url
from confcom.report.html import FOLDER as REPORT
from confcom.report.html import templates
from confcom.services.attestation.administration import PolicyAdministration
from confcom.services.attestation.appraiser import Appraiser
from confcom.services.attestation.attestation_http import AttestationApp, Handler, HttpRefusal, record_filter
from confcom.services.attestation.attestation_store import Row
from confcom.services.attestation.examination import Examiner
from confcom.services.runtime.process import Overloaded, WorkerThreads
from confcom.tokens.azure import AttestationType, AzureError
from confcom.tokens.policy_jws import read_policy
from confcom.tokens.policy_language import PolicyTextError

FOLDER = Path(__file__).parent
UI = "/ui"
MAX_FIELDS = 12
"""Fields of a form."""
MAX_CREDENTIAL = 3000
"""Characters of a bearer token that fits into a cookie."""
TRIED = 100
"""Records that a policy is tried on."""
LISTED = 50
"""Records of one page."""
FILTERS = ("kind", "verdict", "caller", "policy_hash", "evidence_hash", "since", "until")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FILES = {
    "report.css": (REPORT, "text/css"),
    "page.css": (FOLDER, "text/css"),
    "page.js": (FOLDER, "text/javascript"),
    "icon.svg": (FOLDER, "image/svg+xml"),
}


class Pages:
    """The ASGI application: pages under `prefix`, and the API for every other path.

    Cookies are for TLS alone where `secure`.
    """

    def __init__(
        self,
        api: AttestationApp,
        examiner: Examiner,
        appraiser: Appraiser,
        administration: PolicyAdministration,
        records: Callable[..., list[Row]],
        workers: WorkerThreads,
        *,
        prefix: str,
        secure: bool,
        max_body: int,
    ) -> None:
        self._examiner = examiner
        self._appraiser = appraiser
        self._administration = administration
        self._records = records
        self._workers = workers
        self._api = api
        self._base = prefix + UI
        self._secure = secure
        self._max_body = max_body
        # Browsers take a cookie of this prefix from this host alone, and over TLS.
        host = "__Host-" if secure else ""
        self._session, self._twin = f"{host}confcom-admin", f"{host}confcom-form"
        self._templates = templates(FOLDER / "templates")
        routes = [
            self._route("", self._judge, "GET", "POST"),
            self._route("/sign-in", self._sign_in, "GET", "POST"),
            self._route("/sign-out", self._sign_out, "POST"),
            self._route("/policies", self._policies, "GET", "POST"),
            self._route("/audit", self._audit, "GET"),
            *(self._route(f"/{name}", self._file(name), "GET") for name in _FILES),
            Route("/", lambda _: RedirectResponse(self._base, 303, HEADERS)),
        ]
        self._pages = Starlette(routes=routes)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        """Answer one request."""
        path = scope.get("path", "")
        ours = path in ("/", self._base) or path.startswith(f"{self._base}/")
        await (self._pages if ours else self._api)(scope, receive, send)

    def _route(self, path: str, handler: Handler, *methods: str) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                return await handler(request)
            except Overloaded:
                return self._failed(request, _refusal(503, "too many requests wait"))
            except ConfcomError as error:
                return self._failed(request, error)

        return Route(self._base + path, endpoint, methods=list(methods))

    def _file(self, name: str) -> Handler:
        folder, media_type = _FILES[name]
        content = (folder / name).read_bytes()

        async def handler(request: Request) -> Response:
            del request
            return Response(content, media_type=media_type, headers=HEADERS)

        return handler

    # What everybody may do.

    async def _judge(self, request: Request) -> Response:
        if request.method == "GET":
            return self._page(request, "judge.html", found=None, text="")
        self._api.limit(request)
        text = (await self._form(request)).get("evidence", "")
        found = await self._workers.run(lambda: self._examiner.examine(text.encode("utf-8", "replace")))
        return self._page(request, "judge.html", found=found, text=text)

    async def _sign_in(self, request: Request) -> Response:
        if request.method == "GET":
            return self._page(request, "sign_in.html", problem="")
        form = await self._form(request, checked=True)
        credential = form.get("token", "").strip()
        if len(credential) > MAX_CREDENTIAL:
            raise _refusal(400, f"the token has over {MAX_CREDENTIAL} characters")
        try:
            await self._api.require_admin(_authorized(request, credential))
        except ConfcomError as error:
            return self._page(request, "sign_in.html", getattr(error, "status", 401), problem=error.message)
        answer = RedirectResponse(f"{self._base}/policies", 303, HEADERS)
        self._set_cookie(answer, self._session, encode_base64url(credential.encode()))
        return answer

    async def _sign_out(self, request: Request) -> Response:
        await self._form(request, checked=True)
        answer = RedirectResponse(self._base, 303, HEADERS)
        answer.delete_cookie(self._session, path="/", secure=self._secure, httponly=True, samesite="strict")
        return answer

    # What administrators may do.

    async def _policies(self, request: Request) -> Response:
        by = await self._require_admin(request)
        if by is None:
            return self._to_sign_in()
        if request.method == "GET":
            kind = _kind(request.query_params.get("kind", AttestationType.SGX_ENCLAVE))
            text = await self._workers.run(lambda: self._administration.text(kind))
            return self._page(request, "policies.html", kind=kind, text=text, tried=None, error=None, done="")
        form = await self._form(request, checked=True)
        kind, text = _kind(form.get("kind", "")), form.get("text", "").replace("\r\n", "\n")
        action = form.get("action", "")
        if action in ("activate", "default"):
            await self._require_admin(request, change=True)
        try:
            tried, done = await self._workers.run(lambda: self._change(kind, text, action, by))
        except AzureError as error:
            shown = _with_place(error)
            return self._page(request, "policies.html", 400, kind=kind, text=text, tried=None, error=shown, done="")
        return self._page(request, "policies.html", kind=kind, text=text, tried=tried, error=None, done=done)

    def _change(self, kind: AttestationType, text: str, action: str, by: str) -> tuple[Mapping[str, Any] | None, str]:
        """The outcome of a dry run, or a sentence about what was changed."""
        if action == "activate":
            self._administration.set(kind, text, by)
            return None, f"This policy is in force for {kind}."
        if action == "default":
            self._administration.reset(kind, EMPTY_POLICY, by)
            return None, f"The default policy is in force for {kind}."
        return self._appraiser.dry_run(kind, read_policy(text).text, limit=TRIED), ""

    async def _audit(self, request: Request) -> Response:
        if await self._require_admin(request) is None:
            return self._to_sign_in()
        wanted = {name: request.query_params.get(name, "").strip()[:128] for name in FILTERS}
        given = {name: value for name, value in wanted.items() if value}
        before = request.query_params.get("before", "")
        below = int(before) if before.isascii() and before.isdigit() and len(before) < 19 else None
        error: ConfcomError | None = None
        rows: list[Row] = []
        try:
            chosen = record_filter(given)
            rows = await self._workers.run(lambda: self._records(chosen, before=below, limit=LISTED + 1))
        except ConfcomError as refused:
            error = refused
        more = urlencode(given | {"before": rows[LISTED - 1]["id"]}) if len(rows) > LISTED else ""
        status = 200 if error is None else getattr(error, "status", 400)
        shown = rows[:LISTED]
        return self._page(request, "audit.html", status, rows=shown, wanted=wanted, more=more, error=error)

    # Requests and answers.

    async def _require_admin(self, request: Request, *, change: bool = False) -> str | None:
        """The administrator of the request or of its cookie; None where one has to sign in."""
        kept = request.cookies.get(self._session, "")
        try:
            credential = decode_base64(kept).decode() if kept else ""
        except (ValueError, FormatError):
            credential = ""
        try:
            asking = _authorized(request, credential) if credential else request
            return await self._api.require_admin(asking, change=change)
        except ConfcomError as error:
            if getattr(error, "status", 0) == 401:
                return None
            raise

    def _to_sign_in(self) -> Response:
        return RedirectResponse(f"{self._base}/sign-in", 303, HEADERS)

    async def _form(self, request: Request, *, checked: bool = False) -> dict[str, str]:
        """The fields of a form; `checked` ones must come from a page of this instance."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
            raise _refusal(415, "this is not the form of a page")
        body = await self._api.body(request)
        try:
            fields = parse_qs(body.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
        except ValueError:
            raise _refusal(400, f"the form has over {MAX_FIELDS} fields") from None
        form = {name: values[0] for name, values in fields.items()}
        if checked:
            twin = request.cookies.get(self._twin, "")
            same_site = request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
            if not same_site or not twin or not hmac.compare_digest(twin.encode(), form.get("twin", "").encode()):
                raise _refusal(403, "the form did not come from a page of this service, or its cookie is gone")
        return form

    def _page(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:  # noqa: ANN401
        kept = request.cookies.get(self._twin, "")
        twin = kept or secrets.token_hex(16)
        shared = {
            "base": self._base,
            "twin": twin,
            "signed_in": self._session in request.cookies,
            "kinds": list(AttestationType),
            "max_body": self._max_body,
        }
        html = self._templates.get_template(template).render(shared | values)
        answer = Response(html, status, HEADERS, media_type="text/html")
        if not kept:
            self._set_cookie(answer, self._twin, twin)
        return answer

    def _failed(self, request: Request, error: ConfcomError) -> Response:
        return self._page(request, "error.html", getattr(error, "status", 400), error=error)

    def _set_cookie(self, answer: Response, name: str, value: str) -> None:
        answer.set_cookie(name, value, path="/", secure=self._secure, httponly=True, samesite="strict")


def _refusal(status: int, message: str) -> HttpRefusal:
    return HttpRefusal(status, "FormRefused", message, advice="Open the page again and send its form from there.")


EMPTY_POLICY = "eyJhbGciOiJub25lIn0.."
"""A JWS without content, which asks for the default."""


def _authorized(request: Request, credential: str) -> Request:
    """The request as an API client with this bearer token sends it."""
    others = [pair for pair in request.scope["headers"] if pair[0] != b"authorization"]
    bearer = (b"authorization", b"Bearer " + credential.encode("latin-1", "replace"))
    return Request({**request.scope, "headers": [*others, bearer]})


def _kind(name: str) -> AttestationType:
    try:
        return AttestationType(name)
    except ValueError:
        raise _refusal(400, f"the attestation type {name[:40]!r} is not served") from None


def _with_place(error: AzureError) -> Mapping[str, Any]:
    """Message and advice of a refused policy, and where its text is wrong."""
    cause = error.__cause__
    place = cause.defect.as_dict() if isinstance(cause, PolicyTextError) else {}
    return {"message": error.message, "advice": error.advice()} | place
