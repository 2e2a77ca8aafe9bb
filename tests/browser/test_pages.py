"""The pages in a real browser: by keyboard alone, with hostile evidence, for screen readers, light and dark."""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from confcom.appraisal.findings import Check
from confcom.appraisal.policy_file import PolicyFile
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import judge
from confcom.pki.serving_pair import Authority
from confcom.report.html import Report, report_document
from confcom.services.attestation.attestation_store import AttestationStore, AuditRecord
from confcom.simulator.enclaves import td_report
from confcom.simulator.world import SimulatedWorld
from confcom.tokens.azure import AttestationType
from report_reader import SCRIPT
from running_attestation_service import NOW, TOKEN, RunningAttestation, enclave_quote, running_attestation

TAB, ENTER, CONTROL, SPACE = "\ue004", "\ue007", "\ue009", "\ue00d"
LOOKS = [(size, scheme) for size in ("desktop", "phone") for scheme in ("light", "dark")]
WATCH = "window.ran = []; window.alert = (what) => window.ran.push(what);"


def paste(browser, selector: str, text: str) -> None:
    browser.script("document.querySelector(arguments[0]).value = arguments[1]", selector, text)


def judged(browser, service: RunningAttestation, data: bytes | str) -> None:
    browser.open(f"{service.url}/ui")
    paste(browser, "#evidence", data if isinstance(data, str) else base64.b64encode(data).decode())
    with browser.leaving():
        browser.find("#drop button").click()


def sign_in(browser, service: RunningAttestation) -> None:
    browser.open(f"{service.url}/ui/sign-in")
    browser.find("#token").send_keys(TOKEN)
    with browser.leaving():
        browser.find("main button").click()
    assert "Policy of SgxEnclave" in browser.text


def wide(browser) -> list[str]:
    """What makes the page itself scroll sideways; pictures and tables scroll in their own frames."""
    return browser.script(
        """
        if (document.documentElement.scrollWidth <= document.documentElement.clientWidth) return [];
        return [...document.querySelectorAll("body *")]
          .filter((each) => !each.closest(".scroll") && each.getBoundingClientRect().right > innerWidth)
          .map((each) => each.outerHTML.slice(0, 200));
        """
    )


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_every_page_is_accessible(browser, service: RunningAttestation, world: SimulatedWorld, size, scheme) -> None:
    for debug in (False, True):
        service.attest(enclave_quote(world, debug=debug))
    service.attest(b"\0" * 100)
    browser.look(size, scheme)

    def check(name: str) -> None:
        loaded = browser.script("return performance.getEntriesByType('resource').map((each) => each.name)")
        assert loaded
        assert all(each.startswith(f"{service.url}/ui/") for each in loaded)
        assert browser.violations() == [], name
        assert wide(browser) == [], name
        browser.screenshot(f"{name}-{size}-{scheme}")
        browser.look(size, scheme)

    judged(browser, service, enclave_quote(world, debug=True))
    assert "REFUSED" in browser.text
    check("refused")
    judged(browser, service, world.platform.quote_td(td_report("td", bytes(64))))
    browser.script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    check("td")
    judged(browser, service, "nothing known")
    check("unknown")
    browser.open(f"{service.url}/ui/sign-in")
    check("sign-in")
    sign_in(browser, service)
    check("policies")
    paste(browser, "#text", "version=1.0; authorizationrules{=> permit();};")
    with browser.leaving():
        browser.find(".buttons button").click()
    browser.script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert "Outcome:" in browser.text
    check("tried")
    paste(browser, "#text", "version=1.0; authorizationrules{=> permit()};")
    with browser.leaving():
        browser.find(".buttons button").click()
    assert "column" in browser.text
    check("wrong-policy")
    browser.open(f"{service.url}/ui/audit")
    check("audit")
    # The answer with status 400 is the one complaint of the console.
    assert all("400" in message for message in browser.complaints())


def test_evidence_is_judged_by_keyboard_alone(browser, service: RunningAttestation, world: SimulatedWorld) -> None:
    browser.open(f"{service.url}/ui")
    browser.keys(TAB)
    assert browser.focused() == "A Skip to the content"
    browser.keys(ENTER)
    browser.tab_to("TEXTAREA evidence")
    quote = base64.b64encode(enclave_quote(world)).decode()
    browser.keys(quote)
    browser.keys(TAB)
    assert browser.focused() == "INPUT file"
    browser.keys(TAB)
    assert browser.focused() == "BUTTON Judge"
    with browser.leaving():
        browser.keys(ENTER)
    assert "ACCEPTED" in browser.driver.title
    # Where a screen reader goes on reading.
    assert browser.focused() == "H2 verdict"
    browser.tab_to("SUMMARY The whole identity")
    browser.keys(ENTER)
    assert browser.find("details[open] summary").text == "The whole identity"
    # A picture that is wider than the screen scrolls by keyboard.
    browser.tab_to(browser.script("const e = document.querySelector('.scroll'); return 'DIV ' + e.textContent.trim()"))


def test_policies_are_changed_by_keyboard_alone(browser, service: RunningAttestation, world: SimulatedWorld) -> None:
    service.attest(enclave_quote(world))
    browser.open(f"{service.url}/ui/policies")
    browser.tab_to("INPUT token")
    with browser.leaving():
        browser.keys(TOKEN, ENTER)
    browser.tab_to("TEXTAREA text")
    browser.chord(CONTROL, "a")
    browser.keys("version=1.0; authorizationrules{=> deny();};")
    browser.tab_to("BUTTON Try on recorded evidence")
    with browser.leaving():
        browser.keys(SPACE)
    assert browser.focused() == "H2 outcome"
    assert "1 of 1 would change" in browser.text
    browser.script("document.getElementById('text').focus()")
    browser.tab_to("BUTTON Put into force")
    with browser.leaving():
        browser.keys(ENTER)
    assert "This policy is in force for SgxEnclave." in browser.text
    assert service.attest(enclave_quote(world)).error["code"] == "PolicyEvaluationError"
    browser.open(f"{service.url}/ui/audit")
    browser.tab_to("SELECT verdict")
    browser.keys("denied")
    browser.tab_to("BUTTON Filter")
    with browser.leaving():
        browser.keys(ENTER)
    assert "✗ denied" in browser.text
    assert "✓ accepted" not in browser.text
    browser.tab_to("BUTTON Sign out")
    with browser.leaving():
        browser.keys(ENTER)
    assert "Sign out" not in browser.text


def test_a_file_is_chosen_or_dropped(
    browser, service: RunningAttestation, world: SimulatedWorld, tmp_path: Path
) -> None:
    quote = tmp_path / "<img src=x onerror=alert(1)>.bin"
    quote.write_bytes(enclave_quote(world))
    browser.open(f"{service.url}/ui")
    browser.script(WATCH)
    browser.find("#file").send_keys(str(quote))
    browser.wait("document.getElementById('state').textContent.includes('onerror')")
    assert browser.script("return window.ran") == []
    with browser.leaving():
        browser.find("#drop button").click()
    assert "ACCEPTED" in browser.text
    browser.script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (char) => char.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "debug.bin"));
        document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
        """,
        base64.b64encode(enclave_quote(world, debug=True)).decode(),
    )
    browser.wait("document.title.startsWith('REFUSED')")
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(1 << 20))
    browser.find("#file").send_keys(str(large))
    browser.wait("document.getElementById('state').textContent.includes('too large')")


def test_over_tls_cookies_are_of_this_host_alone(browser, tmp_path: Path, world: SimulatedWorld) -> None:
    now = datetime.fromtimestamp(time.time(), UTC)
    authority = Authority.make("servers", now=now, lifetime=timedelta(days=1))
    pair = authority.issue(("127.0.0.1",), now=now, lifetime=timedelta(days=1), common_name="server")
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    certificate.write_bytes(pair.certificate)
    key.write_bytes(pair.key)
    tls = {"insecure_http": False, "tls_certificate": str(certificate), "tls_key": str(key)}
    with running_attestation(tmp_path, world, **tls) as service:
        assert service.url.startswith("https://")
        sign_in(browser, service)
        cookies = {cookie["name"]: cookie for cookie in browser.driver.get_cookies()}
        with browser.leaving():
            browser.find("nav button").click()
        left = {cookie["name"] for cookie in browser.driver.get_cookies()}
    assert set(cookies) == {"__Host-confcom-admin", "__Host-confcom-form"}
    assert all(each["secure"] and each["httpOnly"] and each["path"] == "/" for each in cookies.values())
    assert [cookies[name]["sameSite"] for name in sorted(cookies)] == ["Strict", "Lax"]
    assert left == {"__Host-confcom-form"}


def test_hostile_strings_run_nowhere(browser, service: RunningAttestation, world: SimulatedWorld) -> None:
    store = AttestationStore.open(Path(service.config.store))
    claims = f'{{"x-ms-attestation-type": "sgx", "{"<script>alert(3)</script>"}": "<img src=x onerror=alert(4)>"}}'
    record = AuditRecord(
        at=NOW,
        kind=AttestationType.SGX_ENCLAVE,
        caller=SCRIPT[:64],
        verdict="accepted",
        reason=SCRIPT,
        policy_hash=SCRIPT[:64],
        evidence_hash=SCRIPT[:64],
        claims=claims,
    )
    store.record([record])
    store.close()
    for before in ("", "</textarea>", "-----BEGIN CERTIFICATE-----\n", "{"):
        judged(browser, service, before + SCRIPT)
        assert "INVALID" in browser.text
    sign_in(browser, service)
    browser.open(f"{service.url}/ui/audit")
    assert "<script>alert(1)</script>" in browser.text
    policy = 'version=1.0; authorizationrules{ => permit(); }; issuancerules{ => issue(type="%s", value="%s"); };'
    browser.open(f"{service.url}/ui/policies")
    paste(browser, "#text", policy % ("<script>alert(5)</script>", "<img src=x onerror=alert(6)>"))
    with browser.leaving():
        browser.find(".buttons button").click()
    assert "<script>alert(5)</script>" in browser.text
    # An alert that had opened would have failed every command since, and what the policy stopped is a complaint.
    assert browser.script("return document.querySelectorAll('img, script:not([src])').length") == 0


def test_the_policy_of_content_stops_scripts_and_styles(browser, service: RunningAttestation) -> None:
    browser.open(f"{service.url}/ui")
    browser.script(
        "window.blocked = [];"
        "document.addEventListener('securitypolicyviolation', (event) => blocked.push(event.violatedDirective))"
    )
    browser.script("const s = document.createElement('style'); s.textContent = 'body{}'; document.head.append(s)")
    assert browser.script("try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true }")
    browser.wait("blocked.length >= 2")
    assert set(browser.script("return blocked")) == {"style-src-elem", "require-trusted-types-for"}
    assert browser.complaints()


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_the_report_as_a_file(browser, world: SimulatedWorld, tmp_path: Path, size: str, scheme: str) -> None:
    evidence = enclave_quote(world, debug=True)
    collateral = replace(world.authority.collateral_for(world.machine), source=SCRIPT)
    policy, now = PolicyFile().policy(accept_simulated=True), NOW + timedelta(days=40)
    result = judge(evidence, collateral, verifier=QuoteVerifier(world.trust_roots), policy=policy, now=now)
    report = Report.of(result, now, identity_expected=False)
    report = replace(report, checks=[*report.checks, Check(SCRIPT, False, SCRIPT, SCRIPT, SCRIPT)])
    file = tmp_path / "report.html"
    file.write_bytes(report_document(report))
    browser.look(size, scheme)
    browser.open(file.as_uri())
    assert "<script>alert(1)</script>" in browser.text
    assert browser.script("return getComputedStyle(document.body).fontSize") == "16px"
    assert browser.violations() == []
    assert wide(browser) == []
    assert browser.script("return performance.getEntriesByType('resource').length") == 0
    browser.screenshot(f"file-{size}-{scheme}")
