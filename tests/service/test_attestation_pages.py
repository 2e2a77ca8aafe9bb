"""The pages of the attestation service, by plain HTTP: what they say, who may change what, and that text stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

import attested_certificates as certificates
from confcom.formats.arguments import encode_base64url
from confcom.formats.evidence import OeReportHeader, OeReportType
from confcom.services.attestation.attestation_store import AttestationStore, AuditRecord
from confcom.simulator.enclaves import td_report
from confcom.simulator.world import SimulatedWorld
from confcom.tokens.azure import AttestationType
from report_reader import SCRIPT, Page, assert_inert
from running_attestation_service import (
    NOW,
    TOKEN,
    Answer,
    RunningAttestation,
    enclave_quote,
    make_world,
    running_attestation,
)

PERMIT = "version=1.0;\nauthorizationrules{=> permit();};\nissuancerules{};"
DENY = "version=1.0; authorizationrules{=> deny();};"


@dataclass
class Browser:
    """Keeps cookies and fills forms, without a browser's protections."""

    service: RunningAttestation
    cookies: dict[str, str] = field(default_factory=dict)

    def get(self, path: str = "") -> Answer:
        return self.keep(self.service.ask(f"/ui{path}", Cookie=self.cookie))

    def post(
        self, path: str = "", *, twin: str | None = None, headers: dict[str, str] | None = None, **form: str
    ) -> Answer:
        if not self.cookies:
            self.get()
        sent = {**form, "twin": self.cookies.get("confcom-form", "") if twin is None else twin}
        kind = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": self.cookie} | (headers or {})
        return self.keep(self.service.ask(f"/ui{path}", urlencode(sent), **kind))

    @property
    def cookie(self) -> str:
        return "; ".join(f"{name}={value}" for name, value in self.cookies.items())

    def keep(self, answer: Answer) -> Answer:
        if set_cookie := answer.headers.get("set-cookie", ""):
            name, _, value = set_cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return answer

    def judge(self, data: bytes) -> Page:
        return page_of(self.post(evidence=base64.b64encode(data).decode()))

    def sign_in(self, token: str = TOKEN) -> Answer:
        self.get()
        return self.post("/sign-in", token=token)


def page_of(answer: Answer, status: int = 200) -> Page:
    """The page, after what holds of every one."""
    assert answer.status == status
    policy = answer.headers["content-security-policy"]
    assert "'unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    page = Page(answer.body.decode())
    assert_inert(page, scripts=1)
    assert not page.all("style")
    return page


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return make_world()


@pytest.fixture
def service(tmp_path: Path, world: SimulatedWorld) -> Iterator[RunningAttestation]:
    with running_attestation(tmp_path, world) as running:
        yield running


@pytest.fixture
def browser(service: RunningAttestation) -> Browser:
    return Browser(service)


def test_the_root_leads_to_the_page_and_the_api_stays(browser: Browser) -> None:
    answer = browser.service.ask("//")
    assert (answer.status, answer.headers["location"]) == (303, "/simulated/ui")
    assert "Judge evidence" in page_of(browser.get()).words
    for name, kind in (("report.css", "text/css"), ("page.css", "text/css"), ("page.js", "text/javascript")):
        found = browser.get(f"/{name}")
        assert found.headers["content-type"].startswith(kind)
        assert found.body
    assert browser.service.ask("/certs").json["keys"]
    assert browser.get("/nothing").status == 404
    assert "content-security-policy" not in browser.service.ask("/uistics").headers


def test_a_slash_at_the_end_leads_to_no_other_host(browser: Browser) -> None:
    page_of(browser.service.ask("/ui/", Host="other.example"))
    page_of(browser.service.ask("/ui/sign-in/", Host="other.example"))


def test_large_forms_count_until_their_pages_are_answered(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confcom.services.attestation.attestation_http.MAX_LARGE", 0)
    for path in ("", "/sign-out", "", ""):
        assert browser.post(path, evidence="A" * (600 << 10)).status < 500


def test_evidence_of_every_kind_is_judged(browser: Browser, world: SimulatedWorld) -> None:
    quote = enclave_quote(world)
    page = browser.judge(quote)
    assert "✓ ACCEPTED" in page.words
    assert "the policy of SgxEnclave permits" in page.words
    assert "Rules of the policy" in page.words
    assert "SIMULATED: no hardware vouches" in page.words
    assert len(page.all("svg")) == 3
    report = bytes(OeReportHeader(1, OeReportType.REMOTE, len(quote))) + quote
    assert "the policy of OpenEnclave permits" in browser.judge(report).words
    assert "the policy of TdxVm permits" in browser.judge(world.platform.quote_td(td_report("td", bytes(64)))).words
    debug = browser.judge(enclave_quote(world, debug=True))
    assert "✗ REFUSED" in debug.words
    assert "DEBUG ON" in debug.words
    forged = bytearray(quote)
    forged[200] ^= 1
    assert "✗ INVALID" in browser.judge(bytes(forged)).words
    # Nothing of this is recorded.
    assert browser.service.administer("/audit").body == b""


def test_what_a_policy_denies_is_not_accepted(browser: Browser, world: SimulatedWorld) -> None:
    browser.service.administer("/policies/SgxEnclave", DENY, method="PUT")
    page = browser.judge(enclave_quote(world))
    assert "✗ REFUSED" in page.words
    assert "a policy of this service refuses it" in page.words
    assert "=> deny();" in page.words


def test_tokens_are_verified_with_the_keys_of_this_instance(
    browser: Browser, world: SimulatedWorld, tmp_path: Path
) -> None:
    service = browser.service
    token = service.attest(enclave_quote(world)).json["token"]
    page = page_of(browser.post(evidence=token))
    assert "✓ ACCEPTED a token of this service, authentic and in force" in page.words
    assert "UpToDate" in page.words
    assert "✓ ACCEPTED" in page_of(browser.post(evidence=json.dumps({"token": token}))).words
    header, claims, signature = token.split(".")
    unsigned = encode_base64url(b'{"alg":"none"}')
    for forged in (f"{header}.{claims}.{signature[:-8]}AAAAAAAA", f"{unsigned}.{claims}."):
        assert "✗ INVALID" in page_of(browser.post(evidence=forged)).words
    claimed = {"iss": "<script>alert(1)</script>", "exp": 1e308, "<img src=x onerror=alert(1)>": [SCRIPT]}
    hostile = encode_base64url(json.dumps(claimed).encode())
    page = page_of(browser.post(evidence=f"{header}.{hostile}.{signature}"))
    assert "✗ INVALID" in page.words
    assert "<script>alert(1)</script>" in page.words


def test_certificates_are_verified_under_the_roots_of_this_instance(browser: Browser, world: SimulatedWorld) -> None:
    chain = world.authority.pck_chain(world.machine)
    page = page_of(browser.post(evidence=chain.decode()))
    assert "✓ ACCEPTED" in page.words
    assert "FMSPC 000053494D00" in page.words
    assert "Revocation is judged with evidence" in page.words
    stranger = SimulatedWorld.from_seed(b"another seed, another world", now=NOW)
    other = stranger.authority.pck_chain(stranger.machine).decode()
    page = page_of(browser.post(evidence=other))
    assert "✗ INVALID" in page.words
    assert "root that is not trusted" in page.words
    browser.service.clock.now = NOW.replace(year=NOW.year + 30)
    assert "✗ REFUSED" in page_of(browser.post(evidence=chain.decode())).words


def test_a_certificate_with_evidence_shows_the_enclave_behind_its_key(browser: Browser, world: SimulatedWorld) -> None:
    mine, other = certificates.key(1), certificates.key(2)
    evidence = certificates.oe_report(enclave_quote(world, certificates.pem(mine)))
    dates = {"not_before": NOW - timedelta(days=1), "not_after": NOW + timedelta(days=1)}
    made = certificates.Certificate(((certificates.OE_REPORT, evidence),), key=mine, **dates).build()
    armored = x509.load_der_x509_certificate(made).public_bytes(Encoding.PEM).decode()
    for page in (browser.judge(made), page_of(browser.post(evidence=armored))):
        assert "✓ ACCEPTED" in page.words
        assert "certificate with evidence" in page.words
        assert "bound by SHA-256 of the key in PEM" in page.words
        assert "the attested certificate itself2026-11-20 09:302026-11-22 09:30valid" in page.text
        assert "the policy of OpenEnclave permits" in page.words
    stolen = certificates.Certificate(((certificates.OE_REPORT, evidence),), key=other, **dates).build()
    page = browser.judge(stolen)
    assert "✗ INVALID" in page.words
    assert "is not for this certificate" in page.words
    damaged = certificates.Certificate(((certificates.OE_REPORT, evidence[:100]),), key=mine, **dates).build()
    assert "✗ INVALID" in browser.judge(damaged).words


def test_verdicts_under_several_sets_stand_beside_the_first(tmp_path: Path, world: SimulatedWorld) -> None:
    with running_attestation(tmp_path, world, update="standard,early") as service:
        page = Browser(service).judge(enclave_quote(world))
    assert "Under each set of collateral" in page.words
    assert "earlyaccepted" in page.text


@pytest.mark.parametrize(
    "text",
    ["", " ", SCRIPT, "\0" * 50, "A" * 5000, f"-----BEGIN CERTIFICATE-----\n{SCRIPT}\n-----END", "{}", "é" * 9],
)
def test_what_is_nothing_known_is_invalid_and_stays_text(browser: Browser, text: str) -> None:
    assert "✗ INVALID" in page_of(browser.post(evidence=text)).words


def test_forms_are_bounded(browser: Browser) -> None:
    assert "at most" in page_of(browser.post(evidence="A" * (1 << 20)), 413).words
    assert "over 12 fields" in page_of(browser.post(**{f"f{number}": "" for number in range(20)}), 400).words
    page_of(browser.post(evidence="x", headers={"Content-Type": "text/plain"}), 415)


def test_one_address_judges_so_often(tmp_path: Path, world: SimulatedWorld) -> None:
    with running_attestation(tmp_path, world, attest_per_minute=2) as service:
        browser = Browser(service)
        assert [browser.post(evidence="x").status for _ in range(3)] == [200, 200, 429]


def test_administrators_sign_in(browser: Browser) -> None:
    for path in ("/policies", "/audit"):
        answer = browser.get(path)
        assert (answer.status, answer.headers["location"]) == (303, "/simulated/ui/sign-in")
    assert "token is wrong" in page_of(browser.sign_in("wrong"), 401).words
    assert not browser.cookies["confcom-admin"].strip(chr(34))
    assert browser.post("/sign-in", token="x" * 4000).status == 400
    answer = browser.sign_in()
    assert answer.status == 303
    kept = answer.headers["set-cookie"]
    assert "HttpOnly" in kept
    assert "SameSite=strict" in kept
    assert "Max-Age" not in kept
    assert "Policy of SgxEnclave" in page_of(browser.get("/policies")).words
    browser.post("/sign-out")
    assert browser.get("/policies").status == 303


def test_a_token_of_other_letters_signs_in(tmp_path: Path, world: SimulatedWorld) -> None:
    """The file of administrators has the hash of its bytes, as sha512sum prints it."""
    hashed = hashlib.sha512("пароль-ü".encode()).hexdigest()
    with running_attestation(tmp_path, world, admin_token_hash=hashed) as service:
        browser = Browser(service)
        assert browser.sign_in("пароль-ß").status == 401
        assert browser.sign_in("пароль-ü").status == 303
        assert "Policy of SgxEnclave" in page_of(browser.get("/policies")).words


def test_a_session_that_is_over_does_not_count_as_guessing(browser: Browser) -> None:
    browser.sign_in()
    browser.cookies["confcom-admin"] = encode_base64url(b"a token of yesterday")
    for _ in range(8):
        assert browser.get("/policies").status == 303
    assert not browser.cookies["confcom-admin"].strip('"')
    assert browser.sign_in().status == 303


def test_a_store_that_fails_is_the_fault_of_the_service(browser: Browser) -> None:
    browser.sign_in()
    store = Path(browser.service.config.store)
    with closing(sqlite3.connect(store)) as database, database:
        database.execute("ALTER TABLE appraisal RENAME TO gone")
    page = page_of(browser.get("/audit"), 503)
    assert "cannot be used: no such table" in page.words


def test_wrong_tokens_are_not_guessed_here_either(browser: Browser) -> None:
    assert [browser.sign_in(f"wrong {number}").status for number in range(6)] == [401] * 5 + [429]


def test_cookies_are_for_tls_and_this_host_alone(tmp_path: Path, world: SimulatedWorld) -> None:
    with running_attestation(tmp_path, world, url="https://attest.example.org") as service:
        host = service.config.listen
        service.url = f"http://{host}/simulated"
        kept = Browser(service).get().headers["set-cookie"]
    assert kept.startswith("__Host-confcom-form=")
    assert "; Secure" in kept
    assert "Path=/;" in kept


def test_without_an_administrator_nobody_signs_in(tmp_path: Path, world: SimulatedWorld) -> None:
    with running_attestation(tmp_path, world, admin_token_hash=None) as service:
        assert "no administrator is configured" in page_of(Browser(service).sign_in(), 401).words


def in_force(service: RunningAttestation) -> str:
    return str(service.administer("/policies/SgxEnclave").claims["x-ms-policy"])


def test_forged_requests_change_nothing(browser: Browser) -> None:
    browser.sign_in()
    before = in_force(browser.service)
    change = {"kind": "SgxEnclave", "text": PERMIT}
    assert browser.post("/policies/activate", twin="", **change).status == 403
    assert browser.post("/policies/activate", twin="0" * 32, **change).status == 403
    assert browser.post("/policies/activate", **change, headers={"Sec-Fetch-Site": "cross-site"}).status == 403
    assert browser.post("/policies/activate", **change, headers={"Sec-Fetch-Site": "same-site"}).status == 403
    assert browser.post("/policies/activate", **change, headers={"Origin": "https://evil.example"}).status == 403
    for path in ("", "/policies", "/policies/reset", "/sign-in", "/sign-out"):
        assert browser.post(path, twin="0" * 32, **change).status == 403
    stranger = Browser(browser.service)
    stranger.get()
    assert stranger.post("/policies/activate", **change).status == 303
    assert in_force(browser.service) == before
    assert browser.post("/policies/activate", **change).status == 200
    assert in_force(browser.service) != before


def test_readers_try_policies_and_change_none(tmp_path: Path, world: SimulatedWorld) -> None:
    file = tmp_path / "administrators.toml"
    digest = hashlib.sha512(b"a reader's").hexdigest()
    file.write_text(f'[[administrators]]\nname = "reader"\nrole = "reader"\ntoken_hash = "{digest}"\n')
    with running_attestation(tmp_path, world, administrators=str(file)) as service:
        browser = Browser(service)
        assert browser.sign_in("a reader's").status == 303
        form = {"kind": "SgxEnclave", "text": PERMIT}
        assert "Outcome: 0 of 0" in page_of(browser.post("/policies", **form)).words
        for path in ("/policies/activate", "/policies/reset"):
            assert "changes nothing" in page_of(browser.post(path, **form), 403).words
        assert "No appraisal is recorded" in page_of(browser.get("/audit")).words


def test_a_policy_is_tried_then_put_into_force(browser: Browser, world: SimulatedWorld) -> None:
    for debug in (False, False, True):
        browser.service.attest(enclave_quote(world, debug=debug))
    browser.sign_in()
    shown = page_of(browser.get("/policies?kind=SgxEnclave"))
    assert "x-ms-sgx-is-debuggable" in shown.words
    assert "Put into force" not in shown.words
    tried = page_of(browser.post("/policies", kind="SgxEnclave", text=DENY))
    assert "Outcome: 2 of 2 would change" in tried.words
    assert "accepted before, denied now (changed)" in tried.words
    assert "=> deny();" in tried.words
    same = page_of(browser.post("/policies", kind="SgxEnclave", text=PERMIT))
    assert "Outcome: 0 of 2 would change" in same.words
    assert "=> permit();" in same.words.partition("Outcome")[2]
    assert (
        "is in force for SgxEnclave"
        in page_of(browser.post("/policies/activate", kind="SgxEnclave", text=DENY.replace(";", ";\r\n"))).words
    )
    assert DENY.replace(";", ";\n") in page_of(browser.get("/policies")).text
    assert browser.service.attest(enclave_quote(world)).error["code"] == "PolicyEvaluationError"
    page_of(browser.post("/policies/reset", kind="SgxEnclave", text=""))
    assert browser.service.attest(enclave_quote(world)).status == 200


def test_a_policy_that_breaks_the_grammar_is_shown_with_its_place(browser: Browser) -> None:
    browser.sign_in()
    for path in ("/policies", "/policies/activate"):
        text = f'version=1.0;\nauthorizationrules{{ [type=="{SCRIPT}" => permit(); }};'
        page = page_of(browser.post(path, kind="SgxEnclave", text=text), 400)
        assert "line 2, column" in page.words
        assert "authorizationrules" in page.text
    page = page_of(browser.post("/policies", kind=SCRIPT, text=PERMIT), 400)
    assert "is not served" in page.words


def test_isolated_instances_take_signed_policies_only(tmp_path: Path, world: SimulatedWorld) -> None:
    with running_attestation(tmp_path, world, trust_model="isolated") as service:
        browser = Browser(service)
        browser.sign_in()
        answer = browser.post("/policies/activate", kind="SgxEnclave", text=PERMIT)
        assert "takes signed policies only" in page_of(answer, 400).words


def test_the_audit_list_has_filters_and_pages_and_no_stored_script(
    browser: Browser, tmp_path: Path, world: SimulatedWorld
) -> None:
    service = browser.service
    service.attest(enclave_quote(world))
    hostile = AuditRecord(
        at=NOW,
        kind=AttestationType.TDX_VM,
        caller=SCRIPT[:64],
        verdict="refused",
        reason=SCRIPT,
        policy_hash=SCRIPT[:64],
        evidence_hash="ab" * 32,
        claims=f'{{"{"<script>"}": 1}}',
    )
    store = AttestationStore.open(Path(service.config.store))
    store.record([hostile] * 60)
    store.close()
    browser.sign_in()
    page = page_of(browser.get("/audit"))
    assert "<script>alert(1)</script>" in page.words
    [older] = [link["href"] for link in page.all("a") if (link["href"] or "").startswith("?")]
    rest = page_of(browser.get(f"/audit{older}"))
    assert "accepted" in rest.words.partition("newest first")[2]
    assert not [link for link in rest.all("a") if (link["href"] or "").startswith("?")]

    def listed(query: str) -> int:
        found = page_of(browser.get(f"/audit?{query}"))
        return len(re.findall(r"[✓✗] (?:accepted|refused)", found.words))

    assert listed("verdict=accepted") == 1
    assert listed("kind=TdxVm&verdict=refused") == 50
    assert listed("caller=127.0.0.1&since=2026-01-01T00:00:00Z") == 1
    assert listed("evidence_hash=" + "ab" * 32) == 50
    assert listed("until=2020-01-01T00:00:00Z") == 0
    assert listed("kind=&verdict=&caller=&since=") == 50
    page = page_of(browser.get(f"/audit?{urlencode({'since': SCRIPT})}"), 400)
    assert "since" in page.words
    assert page_of(browser.get(f"/audit?{urlencode({'kind': SCRIPT})}"), 400)
    assert browser.get("/audit?before=" + "9" * 40).status == 200


def test_what_is_no_page_and_what_fails_are_answered_by_a_page(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_attestation(tmp_path, world) as service:
        browser = Browser(service)

        def shown(answer: Answer, status: int, text: str) -> Answer:
            assert (answer.status, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert text in answer.body.decode()
            return answer

        shown(browser.get("/nowhere"), 404, "there is no page here")
        shown(browser.get("/page.css/more"), 404, "there is no page here")
        for path in ("/policies/reset", "/sign-out"):
            assert shown(browser.get(path), 405, "this page takes POST, not GET").headers["allow"] == "POST"
        shown(browser.post("/audit", a="b"), 405, "not POST")
        shown(browser.post("/page.js", a="b"), 405, "not POST")

        def broken(*_: object) -> None:
            raise RuntimeError("a secret of the service")

        monkeypatch.setattr("confcom.services.attestation.pages.inspect", broken)
        answer = shown(browser.post(evidence="x"), 500, "the service failed; its log says why")
        assert "secret" not in answer.body.decode()


def test_what_fails_in_the_api_has_its_error_body(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the service")

    with capture_logs() as log, running_attestation(tmp_path, world) as service:
        monkeypatch.setattr("confcom.services.attestation.appraiser.Appraiser.appraise", broken)
        monkeypatch.setattr("confcom.services.attestation.appraiser.Appraiser.nonce", broken)
        for answer in (service.attest(enclave_quote(world)), service.ask("/nonces?api-version=2022-08-01", "")):
            assert (answer.status, answer.error["code"]) == (500, "InternalError")
            assert "secret" not in answer.body.decode()
            assert answer.headers["x-ms-request-id"]
    assert [event["event"] for event in log].count("attestation.mistake") == 2
