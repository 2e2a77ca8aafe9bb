"""The JSON result: its shape is a promise to machines."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256

import pytest

from confcom.appraisal.findings import Verdict
from confcom.appraisal.policy import safe_defaults
from confcom.appraisal.quote import STEPS
from confcom.appraisal.result import CUSTOM_CLAIMS_STEP, judge, read_evidence
from confcom.errors import FormatError
from confcom.formats.evidence import FORMAT_SGX_ECDSA, OeCustomClaims

KEYS = [
    "verdict",
    "error",
    "simulated",
    "tee",
    "quote_version",
    "tcb_status",
    "tcb_date",
    "advisory_ids",
    "launch_tcb",
    "current_tcb",
    "tcb_evaluation_data_number",
    "fmspc",
    "identity",
    "report_data",
    "collateral",
    "checks",
]

POLICY = safe_defaults(accept_simulated=True)


@pytest.fixture
def result(world, verifier, now):
    def run(evidence: bytes, *, days: int = 0):
        return judge(evidence, world.publish(), verifier=verifier, policy=POLICY, now=now + timedelta(days=days))

    return run


def test_an_accepted_quote_tells_everything(result, make_quote, world) -> None:
    found = result(make_quote(bytes(range(64)))).as_dict()
    assert list(found) == KEYS
    assert json.loads(json.dumps(found)) == found
    assert (found["verdict"], found["error"], found["simulated"]) == ("accepted", None, True)
    assert (found["tee"], found["quote_version"], found["tcb_status"]) == ("sgx", 3, "UpToDate")
    assert found["fmspc"] == world.machine.fmspc.hex()
    assert found["report_data"] == bytes(range(64)).hex()
    assert found["identity"]["debug"] is False
    assert all(check["ok"] for check in found["checks"])
    assert {"pck-chain", "quote-signature", "tcb-status", "collateral-fresh"} <= {c["id"] for c in found["checks"]}


def test_nothing_unproven_is_shown_of_a_forgery(result, make_quote) -> None:
    quote = bytearray(make_quote())
    quote[48 + 320] ^= 1
    found = result(bytes(quote)).as_dict()
    assert list(found) == KEYS
    assert found["verdict"] == "invalid"
    assert found["error"]["code"] == "signature-invalid"
    assert found["identity"] is None
    assert found["tcb_status"] is None
    assert found["report_data"] is None
    assert [check["id"] for check in found["checks"] if not check["ok"]] == ["quote-signature"]
    assert [check["id"] for check in found["checks"]] == [step for step in STEPS if not step.startswith("tdx-")]


def test_stale_collateral_is_named_by_where_it_came_from_this_time(world, verifier, make_quote, now) -> None:
    """Whatever the name under which the same collateral was verified before."""
    collateral, quote = world.publish(), make_quote()
    for days, source in ((0, "the store"), (400, "folder a"), (400, "folder b")):
        given = replace(collateral, source=source)
        found = judge(quote, given, verifier=verifier, policy=POLICY, now=now + timedelta(days=days)).as_dict()
        assert found["collateral"]["source"] == source
        assert days == 0 or f", from {source}" in found["error"]["message"]


def test_stale_collateral_is_undecided_with_the_status_it_would_have(result, make_quote) -> None:
    found = result(make_quote(), days=90).as_dict()
    assert found["verdict"] == "undecided"
    assert found["error"]["code"] == "collateral-stale"
    assert found["tcb_status"] == "UpToDate"


@pytest.mark.parametrize("junk", [b"", b"\xff\xd8\xff\xe0 JFIF", b"\x03\x00\x02\x00" + bytes(100), b"hello world"])
def test_what_is_no_evidence_is_invalid_with_a_position(result, junk: bytes) -> None:
    found = result(junk)
    assert found.verdict is Verdict.INVALID
    assert found.as_dict()["error"]["code"] == "malformed-input"
    assert found.as_dict()["error"]["structure"]


def test_a_position_is_named_where_there_is_one() -> None:
    nowhere, at_start = (FormatError("x", structure="Quote", field="version", offset=at) for at in (None, 0))
    assert nowhere.as_dict().keys() == {"code", "message", "advice", "structure", "field"}
    assert at_start.as_dict()["offset"] == "0"


def oe_evidence(quote: bytes, claims: bytes) -> bytes:
    data = quote + claims
    return (3).to_bytes(4, "little") + FORMAT_SGX_ECDSA.bytes + bytes(4) + len(data).to_bytes(8, "little") + data


def test_custom_claims_of_open_enclave_evidence_are_bound_to_the_quote(result, make_quote) -> None:
    claims = bytes(OeCustomClaims((("Event", b"Attestation sample\0"),)))
    quote = make_quote(sha256(claims).digest() + bytes(32))
    assert result(oe_evidence(quote, claims)).verdict is Verdict.ACCEPTED
    other = result(oe_evidence(quote, claims.replace(b"sample", b"simple")))
    assert other.verdict is Verdict.INVALID
    assert other.checks[-1].id == CUSTOM_CLAIMS_STEP


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(5000), "a JPEG image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"PK\x03\x04\x14\0" + bytes(100), "a ZIP archive"),
        (b"\x1f\x8b\x08\0" + bytes(100), "a gzip file"),
        (b"SQLite format 3\0" + bytes(100), "an SQLite database"),
        (b"\x7fELF\x02\x01" + bytes(100), "an ELF program"),
        (b"-----BEGIN PRIVATE KEY-----\n", "PEM with a block of 'PRIVATE KEY'"),
        (b"-----BEGIN CERTIFICATE-----\n", "no whole CERTIFICATE block"),
        (b'{"hello": {}}', "a JSON object with 'hello'"),
        (b"<html><body>502 Bad Gateway</body></html>", "an XML or HTML document"),
        (b"# Readme\nHow to make a quote, and more.\n", "plain text, 40 bytes"),
        ("Grüße aus München, noch ohne Zitat.\n".encode(), "plain text"),
        ("text as Windows writes it\n".encode("utf-16"), "plain text"),
        (bytes(2000), "nothing but zero bytes"),
        (bytes(range(100, 256)) * 4, "624 bytes that begin with 64 65 66 67"),
    ],
)
def test_what_is_no_evidence_is_called_what_it_is(content: bytes, what: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_evidence(content)
    assert str(caught.value).startswith("Evidence at byte 0: this is no quote and no evidence: ")
    assert what in str(caught.value)
    assert "version" not in str(caught.value)
    assert "Give a quote" in caught.value.advice()


def test_damage_of_a_quote_is_said_as_such(make_quote) -> None:
    quote = make_quote(bytes(64))
    for damaged, field in ((quote[:40], "header"), (quote[:-1], "signature_data"), (b"\x06" + quote[1:], "version")):
        with pytest.raises(FormatError, match=rf"^Quote\.[a-z.]*{field}"):
            read_evidence(damaged)
