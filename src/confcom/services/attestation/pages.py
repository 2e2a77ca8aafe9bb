"""The pages for people: judge an input, try and set policies, look at the record of appraisals.

Evidence, certificates and tokens are judged, every other input is decoded (`Examiner`).

Everything that is shown may be hostile: templates escape it, and the content security policy allows the service's own
two files and no inline script or style. What changes something needs an administrator and a token against forged
requests: a random cookie that no other site can read or set, repeated in the form.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from confcom.appraisal.findings import Check, Verdict
from confcom.appraisal.inspection.explain import inspect, other_than_evidence
from confcom.appraisal.inspection.items import Inspection, Item
from confcom.appraisal.peer import read_attested_certificate
from confcom.appraisal.result import failed, timestamp
from confcom.errors import ConfcomError, ConfigError, DatabaseError, FormatError, PolicyError, UntrustedRootError
from confcom.formats.arguments import decode_base64, encode_base64url
from confcom.formats.attested_certificate import AttestedCertificate
from confcom.formats.evidence import EvidenceFile, decode_text
from confcom.pki.chain import ChainKind, TrustRoots, VerifiedChain, Window, verify_chain
from confcom.report.html import FOLDER as REPORT
from confcom.report.html import Report, templates, time_line
from confcom.report.summary import Summary
from confcom.services.attestation.administrators import from_another_site
from confcom.services.attestation.appraiser import Appraiser
from confcom.services.attestation.attestation_http import AttestationApp, HttpRefusal, internal_error, record_filter
from confcom.services.attestation.signing_keys import SigningKeys
from confcom.services.runtime.allowances import Network, forwarded
from confcom.services.runtime.process import Overloaded
from confcom.tokens.azure import AttestationType, type_of
from confcom.tokens.jws import token_in
from confcom.tokens.policy_evaluation import Decision
from confcom.tokens.policy_jws import read_policy
from confcom.tokens.policy_language import PolicyTextError
from confcom.tokens.verification import KeySet, TokenPolicy, VerifiedToken, verify_token

_CHAINS: tuple[ChainKind, ...] = ("pck", "tcb-signing", "ca")
_IDENTITY = ("x-ms-sgx-mrenclave", "x-ms-sgx-mrsigner", "x-ms-sgx-product-id", "x-ms-sgx-svn", "tdx_mrtd", "nonce")


@dataclass(frozen=True, slots=True)
class Examination:
    """The verdict on an input with all of its fields; `decision` is of the policy in force, on accepted evidence."""

    title: str
    report: Report
    items: Sequence[Item] = ()
    decision: Decision | None = None


class Examiner:
    """Examines an input of the page. Blocks while collateral is fetched; records nothing."""

    def __init__(
        self,
        appraiser: Appraiser,
        roots: TrustRoots,
        *,
        issuer: str,
        keys: Callable[[], SigningKeys],
        clock: Callable[[], datetime],
    ) -> None:
        self._appraiser = appraiser
        self._roots = roots
        self._issuer = issuer
        self._keys = keys
        self._clock = clock

    def examine(self, data: bytes) -> Examination:
        """The verdict on an input in any form that `confcom inspect` knows."""
        now = self._clock()
        if (answer := data.strip()).startswith(b"{"):
            data = (token_in(answer.decode("utf-8", "replace")) or "").encode() or data
        try:
            found = inspect(data)
        except ConfcomError as error:
            return Examination("unknown input", Report.of(failed(error), now, identity_expected=True))
        try:
            given: EvidenceFile | AttestedCertificate
            if found.kind == "attested-certificate":
                given = read_attested_certificate(data if b"-----BEGIN" in data else decode_text(data)[0])
                evidence = given.evidence
            else:
                given = evidence = EvidenceFile.parse(data)
        except FormatError as error:
            return self._other(data, found, error, now)
        result, sets, decision = self._appraiser.examine(given, now)
        report = Report.of(result, now, identity_expected=True, sets=sets)
        if decision is not None:
            report = _with_decision(report, f"the policy of {type_of(evidence)}", decision)
        return Examination(found.title, report, found.items, decision)

    def _other(self, data: bytes, found: Inspection, error: FormatError, now: datetime) -> Examination:
        if found.kind == "attestation-token":
            return Examination(found.title, self._token(data.decode("ascii", "replace").strip(), now), found.items)
        if found.kind in ("certificate", "certificate-chain"):
            return Examination(found.title, self._certificates(data, now), found.items)
        result = failed(other_than_evidence(data, error) or error)
        return Examination(found.title, Report.of(result, now, identity_expected=True), found.items)

    def _token(self, text: str, now: datetime) -> Report:
        """Whether it is a token of this instance that a relying party with the default policy takes."""
        published = msgspec.json.encode({"keys": self._keys().published})
        simulated = any(root.simulated for root in self._roots.roots)
        verified: VerifiedToken | None = None
        try:
            verified = verify_token(text, KeySet.parse(published, fetched=now), issuer=self._issuer, now=now)
            TokenPolicy(allow_simulated=simulated).check(verified)
        except PolicyError as error:
            return _token_report(verified, now, error, Verdict.REFUSED, "the token is authentic, but not acceptable")
        except ConfcomError as error:
            meaning = "this is no token of this service that is in force: trust nothing that it says"
            return _token_report(verified, now, error, Verdict.INVALID, meaning)
        return _token_report(verified, now, None, Verdict.ACCEPTED, "a token of this service, authentic and in force")

    def _certificates(self, data: bytes, now: datetime) -> Report:
        """Whether the certificates are of Intel's PKI under a trusted root, and valid now."""
        failures: list[ConfcomError] = []
        for kind in _CHAINS:
            try:
                return _chain_report(verify_chain(data, roots=self._roots, kind=kind, step="chain"), now)
            except ConfcomError as error:
                failures.append(error)
        # A sound chain to another root says more than that it is of another kind.
        cause = next((each for each in failures if isinstance(each, UntrustedRootError)), failures[0])
        meaning = "these certificates do not lead to a trusted root"
        return _plain_report(Verdict.INVALID, meaning, [("Judged", f"as of {timestamp(now)}")], cause)


def _plain_report(
    verdict: Verdict,
    meaning: str,
    rows: Sequence[tuple[str, str]],
    error: ConfcomError | None = None,
    *,
    problems: Sequence[Check] = (),
    note: str = "",
) -> Report:
    problem, advice = ("", "") if error is None else (error.message, error.advice())
    return Report(Summary(verdict, meaning, tuple(rows), problem, advice, tuple(problems), note), checks=problems)


def _with_decision(report: Report, name: str, decision: Decision) -> Report:
    """The report with what the policy decided as its last check."""
    advice = "" if decision.permitted else "Compare the claims with the rules of the policy, which are listed here."
    found = "permitted" if decision.permitted else decision.reason
    check = Check("policy", decision.permitted, f"{name} permits", found, advice)
    summary = report.summary
    if not decision.permitted:
        meaning = "the evidence is authentic, and a policy of this service refuses it"
        problems = (*summary.problems, check)
        summary = replace(summary, verdict=Verdict.REFUSED, meaning=meaning, problems=problems)
    return replace(report, summary=summary, checks=(*report.checks, check))


def _token_report(
    verified: VerifiedToken | None, now: datetime, error: ConfcomError | None, verdict: Verdict, meaning: str
) -> Report:
    rows: list[tuple[str, str]] = []
    windows: list[Window] = []
    if verified is not None:
        claims = verified.stated if error is None else dict(verified.claims)
        rows += [("Issuer", str(claims["iss"])), ("Key", verified.key.key_id)]
        rows += [(name.rpartition("-")[2], str(claims[name])) for name in _IDENTITY if name in claims]
        status = claims.get("confcom-tcb-status", claims.get("attester_tcb_status"))
        rows.append(("TCB", str(status or "not stated")))
        start, end = (datetime.fromtimestamp(claims[name], UTC) for name in ("iat", "exp"))
        windows.append(Window("token", start, end))
    rows.append(("Judged", f"as of {timestamp(now)}"))
    report = _plain_report(verdict, meaning, rows, error)
    simulated = verified is not None and verified.claims.get("confcom-simulated") is True
    return replace(report, simulated=simulated, line=time_line(windows, now) if windows else None)


def _chain_report(chain: VerifiedChain, now: datetime) -> Report:
    rows = [("Genuine", f"a chain of kind {chain.kind}: every signature leads to {chain.root.name}")]
    if chain.kind == "pck":
        pck = chain.extension
        svns = " ".join(map(str, pck.tcb.sgx_components))
        rows += [
            ("Platform", f"FMSPC {pck.fmspc.hex().upper()}, PCE-ID {pck.pce_id.hex()}, {chain.ca} CA"),
            ("", f"SVNs of its components {svns}; PCE SVN {pck.tcb.pce_svn}"),
        ]
    rows.append(("Judged", f"as of {timestamp(now)}"))
    stale = [window for window in chain.windows if not window.contains(now)]
    problems = [
        Check(
            "validity",
            False,
            f"{window.what} valid at {timestamp(now)}",
            f"valid from {timestamp(window.not_before)} to {timestamp(window.not_after) or 'no end'}",
            "Get a certificate that is valid now.",
        )
        for window in stale
    ]
    verdict = Verdict.REFUSED if stale else Verdict.ACCEPTED
    meaning = "the certificates lead to a trusted root" + (", but not all are valid now" if stale else "")
    note = "Revocation is judged with evidence of the platform, not for certificates alone."
    report = _plain_report(verdict, meaning, rows, problems=problems, note=note)
    return replace(report, simulated=chain.root.simulated, line=time_line(chain.windows, now))


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
Form = Mapping[str, str]
Handler = Callable[[Request, Form, str], Response]
"""Answers a request with its form; the text is the name of the administrator."""


class Pages:
    """The ASGI application: pages under `prefix`, and the API for every other path.

    Cookies are for TLS alone where `secure`.
    """

    def __init__(
        self,
        api: AttestationApp,
        examiner: Examiner,
        *,
        prefix: str,
        secure: bool,
        proxies: Sequence[Network] = (),
    ) -> None:
        self._examiner = examiner
        self._api = api
        self._base = prefix + UI
        self._secure = secure
        self._proxies = proxies
        # Browsers take a cookie of this prefix from this host alone, and over TLS.
        host = "__Host-" if secure else ""
        self._session, self._twin = f"{host}confcom-admin", f"{host}confcom-form"
        self._templates = templates(FOLDER / "templates")
        routes = [
            self._route("GET", "", self._empty),
            self._route("POST", "", self._judge),
            self._route("POST", "/sign-out", self._sign_out),
            self._route("GET", "/policies", self._policy, "reader"),
            self._route("POST", "/policies", self._try, "reader"),
            self._route("POST", "/policies/activate", self._activate, "contributor"),
            self._route("POST", "/policies/reset", self._reset, "contributor"),
            self._route("GET", "/audit", self._audit, "reader"),
            Route(f"{self._base}/sign-in", self._sign_in, methods=["GET", "POST"]),
            *(Route(f"{self._base}/{name}", _always(_file(name))) for name in _FILES),
            Route("/", _always(RedirectResponse(self._base, 303, HEADERS))),
        ]
        handlers: Any = {HTTPException: self._no_page, Exception: self._mistaken}
        self._pages = Starlette(routes=routes, exception_handlers=handlers)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        """Answer one request."""
        if self._proxies:
            scope = forwarded(scope, self._proxies)
        path = scope.get("path", "")
        ours = path in ("/", self._base) or path.startswith(f"{self._base}/")
        if ours and path != "/":
            # Not by Starlette's redirection, which goes to whatever host and scheme the request names.
            scope = {**scope, "path": path.rstrip("/")}
        try:
            await (self._pages if ours else self._api)(scope, receive, send)
        finally:
            self._api.answered(scope)

    def _route(
        self, method: str, path: str, handler: Handler, role: Literal["", "reader", "contributor"] = ""
    ) -> Route:
        """Reads the form, and answers in a thread: a client decides how much there is to parse and to render."""

        async def endpoint(request: Request) -> Response:
            try:
                found = await self._require_admin(request, change=role == "contributor") if role else ""
                if found is None:
                    return self._without_session("/sign-in")
                by = found
                if method == "GET":
                    return await self._api.in_thread(request.scope, lambda: handler(request, {}, by))
                if not role:
                    self._api.limit(request.scope)
                body = await self._body(request)
                return await self._api.in_thread(request.scope, lambda: handler(request, self._form(request, body), by))
            except Overloaded:
                return self._failed(request, _refusal(503, "too many requests wait"))
            except ConfcomError as error:
                return self._failed(request, error)

        return Route(self._base + path, endpoint, methods=[method])

    # Pages without sign-in.

    def _empty(self, request: Request, _form: Form, _by: str) -> Response:
        return self._page(request, "judge.html", found=None, text="")

    def _judge(self, request: Request, form: Form, _by: str) -> Response:
        text = form.get("evidence", "")
        found = self._examiner.examine(text.encode("utf-8", "replace"))
        return self._page(request, "judge.html", found=found, text=text)

    async def _sign_in(self, request: Request) -> Response:
        if request.method == "GET":
            return self._page(request, "sign_in.html", problem="")
        try:
            body = await self._body(request)
            # Parsed in the event loop, so it has to be small: percent-encoding takes three characters for one.
            form = self._form(request, body[: 4 * MAX_CREDENTIAL])
            credential = form.get("token", "").strip()
            if len(credential) > MAX_CREDENTIAL:
                raise _refusal(400, f"the token has over {MAX_CREDENTIAL} characters")
            await self._api.require_admin(_authorized(request, credential))
        except ConfcomError as error:
            if _status(error) not in (401, 429):
                return self._failed(request, error)
            return self._page(request, "sign_in.html", _status(error), problem=error.message)
        answer = RedirectResponse(f"{self._base}/policies", 303, HEADERS)
        self._set_cookie(answer, self._session, encode_base64url(credential.encode()))
        return answer

    def _sign_out(self, _request: Request, _form: Form, _by: str) -> Response:
        return self._without_session("")

    # Pages of administrators.

    def _policy(self, request: Request, _form: Form, _by: str) -> Response:
        kind = _kind(request.query_params.get("kind", AttestationType.SGX_ENCLAVE))
        return self._policy_page(request, kind, self._api.administration.policy(kind).text)

    def _try(self, request: Request, form: Form, _by: str) -> Response:
        return self._changed(
            request, form, lambda kind, text: self._api.appraiser.dry_run(kind, read_policy(text).text, limit=TRIED)
        )

    def _activate(self, request: Request, form: Form, by: str) -> Response:
        return self._changed(request, form, lambda kind, text: self._api.administration.set(kind, text, by))

    def _reset(self, request: Request, form: Form, by: str) -> Response:
        return self._changed(request, form, lambda kind, _: self._api.administration.reset(kind, EMPTY_POLICY, by))

    def _changed(self, request: Request, form: Form, act: Callable[[AttestationType, str], object]) -> Response:
        """The page after an act: the outcome of a dry run, or the policy that is in force now."""
        kind, text = _kind(form.get("kind", "")), form.get("text", "").replace("\r\n", "\n")
        try:
            found = act(kind, text)
        except ConfcomError as error:
            if _status(error) != 400:
                raise
            return self._policy_page(request, kind, text, 400, error=_with_place(error))
        if isinstance(found, dict):
            return self._policy_page(request, kind, text, tried=found)
        done = f"This policy is in force for {kind}."
        return self._policy_page(request, kind, self._api.administration.policy(kind).text, done=done)

    def _policy_page(
        self, request: Request, kind: AttestationType, text: str, status: int = 200, **found: object
    ) -> Response:
        shown = {"tried": None, "error": None, "done": ""} | found
        return self._page(request, "policies.html", status, kind=kind, text=text, **shown)

    def _audit(self, request: Request, _form: Form, _by: str) -> Response:
        wanted = {name: request.query_params.get(name, "").strip()[:128] for name in FILTERS}
        given = {name: value for name, value in wanted.items() if value}
        before = request.query_params.get("before", "")
        below = int(before) if before.isascii() and before.isdigit() and len(before) < 19 else None
        try:
            rows = self._api.records(record_filter(given), before=below, limit=LISTED + 1)
        except ConfcomError as error:
            return self._page(request, "audit.html", _status(error), rows=[], wanted=wanted, more="", error=error)
        more = urlencode(given | {"before": rows[LISTED - 1]["id"]}) if len(rows) > LISTED else ""
        return self._page(request, "audit.html", rows=rows[:LISTED], wanted=wanted, more=more, error=None)

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
            if _status(error) == 401:
                return None
            raise

    def _without_session(self, path: str) -> Response:
        """The way to another page, without the cookie: one that is over would count as a guess at each page."""
        answer = RedirectResponse(self._base + path, 303, HEADERS)
        answer.delete_cookie(self._session, path="/", secure=self._secure, httponly=True, samesite="strict")
        return answer

    async def _body(self, request: Request) -> bytes:
        if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
            raise _refusal(415, "this is not the form of a page")
        return await self._api.body(request.scope, request.receive)

    def _form(self, request: Request, body: bytes) -> Form:
        """The fields of a form that came from a page of this instance."""
        try:
            fields = parse_qs(body.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
        except ValueError:
            raise _refusal(400, f"the form has over {MAX_FIELDS} fields") from None
        form = {name: values[0] for name, values in fields.items()}
        twin = request.cookies.get(self._twin, "")
        forged = not twin or not hmac.compare_digest(twin.encode(), form.get("twin", "").encode())
        if forged or from_another_site(request.headers):
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
            "max_body": self._api.max_body,
        }
        html = self._templates.get_template(template).render(shared | values)
        answer = Response(html, status, HEADERS, media_type="text/html")
        if not kept:
            # Lax, so that a link from elsewhere does not replace it under the forms of other tabs.
            self._set_cookie(answer, self._twin, twin, "lax")
        return answer

    def _failed(self, request: Request, error: ConfcomError) -> Response:
        return self._page(request, "error.html", _status(error), error=error)

    def _no_page(self, request: Request, error: HTTPException) -> Response:
        """No path, or a path without this method."""
        allowed = (error.headers or {}).get("Allow")
        message = f"this page takes {allowed}, not {request.method[:16]}" if allowed else "there is no page here"
        advice = f"Go to {self._base}, where the pages begin."
        answer = self._failed(request, HttpRefusal(error.status_code, "NoPage", message, advice=advice))
        if allowed:
            answer.headers["Allow"] = allowed
        return answer

    def _mistaken(self, request: Request, _error: Exception) -> Response:
        """A mistake of ours; the server logs it, because Starlette raises it again."""
        return self._failed(request, internal_error())

    def _set_cookie(
        self, answer: Response, name: str, value: str, same_site: Literal["lax", "strict"] = "strict"
    ) -> None:
        answer.set_cookie(name, value, path="/", secure=self._secure, httponly=True, samesite=same_site)


def _status(error: ConfcomError) -> int:
    if isinstance(error, HttpRefusal):
        return error.status
    if isinstance(error, DatabaseError):
        return 503
    return 500 if isinstance(error, ConfigError) else 400


def _refusal(status: int, message: str) -> HttpRefusal:
    return HttpRefusal(status, "FormRefused", message, advice="Open the page again and send its form from there.")


def _file(name: str) -> Response:
    folder, media_type = _FILES[name]
    return Response((folder / name).read_bytes(), media_type=media_type, headers=HEADERS)


def _always(answer: Response) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_request: Request) -> Response:
        return answer

    return endpoint


EMPTY_POLICY = "eyJhbGciOiJub25lIn0.."
"""A JWS without content, which asks for the default."""


def _authorized(request: Request, credential: str) -> Request:
    """The request as an API client with this bearer token sends it."""
    others = [pair for pair in request.scope["headers"] if pair[0] != b"authorization"]
    bearer = (b"authorization", b"Bearer " + credential.encode())
    return Request({**request.scope, "headers": [*others, bearer]})


def _kind(name: str) -> AttestationType:
    try:
        return AttestationType(name)
    except ValueError:
        raise _refusal(400, f"the attestation type {name[:40]!r} is not served") from None


def _with_place(error: ConfcomError) -> Mapping[str, Any]:
    """Message and advice of a refused policy, and where its text is wrong."""
    cause = error.__cause__
    place = cause.defect.as_dict() if isinstance(cause, PolicyTextError) else {}
    return {"message": error.message, "advice": error.advice()} | place
