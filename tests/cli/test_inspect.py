"""`confcom inspect` as a person and a script meet it: one warning, a readable tree, JSON, one clear message."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from confcom.cli.root import run
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld
from made_quotes import quote_v3, quote_v5
from record_layout import distinct

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
WARNING = "decoded, not verified: use confcom verify"
HOSTILE = "\x1b]0;owned\x07\x1b[31m\r\n\x00\x7f\u202e[red]bold[/red] \u009b2J \\x"


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(b"seed of the inspect tests", now=NOW)


@pytest.fixture(scope="module")
def quote(world: SimulatedWorld) -> bytes:
    declaration = EnclaveDeclaration.from_names("app", "vendor", isv_prod_id=3, isv_svn=2)
    report = world.machine.launch(declaration).create_report(world.platform.init_quote().target_info, distinct(64))
    return world.platform.quote(report).quote


class Outcome:
    """What one command line did. Nothing in it may steer a terminal, and nothing may look like a crash."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        for text in (out, err):
            assert "Traceback" not in text
            assert all(char == "\n" or char.isprintable() for char in text)


Inspect = Callable[..., Outcome]


@pytest.fixture
def inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Inspect:
    def call(content: bytes, *words: str) -> Outcome:
        file = tmp_path / "input"
        file.write_bytes(content)
        code = run(["inspect", str(file), *words])
        return Outcome(code, *capsys.readouterr())

    return call


def token(claims: object, header: object = None) -> bytes:
    parts = [json.dumps(part).encode() for part in (header or {"alg": "none"}, claims)]
    return b".".join([*(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts), b"AAAA"])


def test_people_are_told_first_that_nothing_is_verified(inspect: Inspect, quote: bytes) -> None:
    of_token = WARNING.replace("verify", "token verify")
    for content, warning in ((quote, WARNING), (token({"iss": "someone"}), of_token), (distinct(432), WARNING)):
        outcome = inspect(content)
        assert outcome.code == 0
        assert outcome.out.splitlines()[0] == warning


def test_a_quote_shows_who_where_and_what_it_means(inspect: Inspect, quote: bytes) -> None:
    lines = inspect(quote).out.splitlines()
    assert "SGX quote, version 3" in lines[1]
    assert f"{len(quote)} bytes" in lines[1]

    def line(name: str) -> str:
        return next(text for text in lines if f" {name} " in text)

    assert quote[112:144].hex() in line("mr_enclave")
    assert "which build" in line("mr_enclave")
    assert "[112, 32 bytes]" in line("mr_enclave")
    assert "INIT, MODE64BIT" in line("flag_names")
    assert distinct(64).hex() in line("report_data")
    assert "zero" in line("config_id")
    assert "2026-05-31" in line("not_before") or "2026-06-01" in line("not_before")


def test_json_is_one_object_that_says_it_is_not_verified(inspect: Inspect, quote: bytes) -> None:
    outcome = inspect(quote, "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert (found["kind"], found["verified"], found["encoding"]) == ("quote", False, "binary")
    assert found["fields"]["body"]["mr_enclave"] == quote[112:144].hex()


def test_standard_input_is_read_for_a_dash(quote: bytes, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(quote)))
    assert run(["inspect", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "quote"


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity", "pck_crl", "root_ca_crl", "pck_crl_issuer_chain"])
def test_collateral_is_shown_in_both_forms(inspect: Inspect, world: SimulatedWorld, part: str) -> None:
    content = getattr(world.publish(), part)
    assert inspect(content).code == 0
    assert json.loads(inspect(content, "--json").out)["fields"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(4000), "a JPEG image"),
        (quote_v3()[:700], "signature_data"),
        (quote_v5()[:60], "body"),
        (b"-----BEGIN RSA PRIVATE KEY-----\nMIIEsecret\n-----END RSA PRIVATE KEY-----\n", "RSA PRIVATE KEY"),
        (b"just a few words of text, nothing else", "plain text"),
        (b'{"apiVersion": "v1"}', "apiVersion"),
        (HOSTILE.encode() * 20, "nothing that is known here"),
        (b"-----BEGIN " + HOSTILE.encode() + b"-----", "PEM"),
        (json.dumps({HOSTILE: 1}).encode(), "JSON object"),
        (b'{"' + HOSTILE.encode() + b'": 1}', "nothing that is known here"),
        (b'{"' + HOSTILE.translate({0: None, 7: None}).encode() + b'": 1}', "JSON"),
    ],
)
def test_what_cannot_be_decoded_gets_one_clear_message(inspect: Inspect, content: bytes, says: str) -> None:
    outcome = inspect(content)
    assert outcome.code == 3
    assert outcome.out == ""
    assert says in outcome.err
    assert "secret" not in outcome.err
    assert [line.split(":")[0] for line in outcome.err.splitlines()] == ["confcom", "  what to do"]
    as_json = inspect(content, "--json")
    assert as_json.code == 3
    found = json.loads(as_json.out)
    assert found["kind"] is None
    assert says in found["error"]["message"]
    assert found["error"]["code"] == "malformed-input"


def test_the_answer_of_a_service_is_the_token_in_it(inspect: Inspect) -> None:
    bare = inspect(token({"iss": "someone"}), "--json").out
    answer = inspect(json.dumps({"token": token({"iss": "someone"}).decode()}).encode(), "--json").out
    assert json.loads(answer)["fields"] == json.loads(bare)["fields"]
    assert inspect(b'{"token": 5}').code == 3


def test_what_is_no_token_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("my public key\n")
    assert run(["token", "inspect", str(path)]) == 3


def test_a_member_of_a_token_that_stands_twice_is_named(inspect: Inspect) -> None:
    """Readers differ in which of the two counts."""
    payload = base64.urlsafe_b64encode(b'{"iss": "good", "iss": "evil"}').rstrip(b"=")
    outcome = inspect(b".".join((token({}).split(b".")[0], payload, b"AA")))
    assert outcome.code == 3
    assert "'iss' stands twice" in outcome.err


def test_text_of_a_token_cannot_steer_the_terminal(inspect: Inspect) -> None:
    outcome = inspect(token({HOSTILE: HOSTILE, "[bold]": ["[link=http://x]y[/link]"]}))
    assert outcome.code == 0
    assert "[red]bold[/red]" in outcome.out
    assert "[link=http://x]y[/link]" in outcome.out
    assert "\\x1b" in outcome.out
    found = json.loads(inspect(token({HOSTILE: HOSTILE}), "--json").out)
    assert found["fields"]["claims"] == {HOSTILE: HOSTILE}


def test_names_in_a_certificate_cannot_steer_the_terminal(inspect: Inspect) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "\x1b[31m[red]evil[/red]")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, SHA256())
    )
    outcome = inspect(certificate.public_bytes(Encoding.PEM))
    assert outcome.code == 0
    assert "[red]evil[/red]" in outcome.out


def test_a_long_list_is_cut_for_people_and_whole_in_json(inspect: Inspect) -> None:
    content = token({"numbers": [{"n": n} for n in range(500)]})
    assert "and 436 more" in inspect(content).out
    assert len(json.loads(inspect(content, "--json").out)["fields"]["claims"]["numbers"]) == 500


def test_a_missing_file_is_a_usage_error(tmp_path: Path, capsys) -> None:
    assert run(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_missing_file_is_told_in_json_too(tmp_path: Path, capsys) -> None:
    assert run(["inspect", str(tmp_path / "nowhere"), "--json"]) == 2
    assert "nowhere" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_folder_is_a_usage_error(tmp_path: Path, capsys) -> None:
    assert run(["inspect", str(tmp_path)]) == 2
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.vectors
def test_real_files_are_shown_in_both_forms(vectors: Path, capsys) -> None:
    folder = next(path for path in sorted((vectors / "real").glob("tdx4-*")) if (path / "tcb_info.json").is_file())
    files = [*sorted(path for path in folder.iterdir() if path.name != "meta.json")]
    assert len(files) > 8
    for file in files:
        assert run(["inspect", str(file)]) == 0, file
        assert run(["inspect", str(file), "--json"]) == 0, file
        Outcome(0, *capsys.readouterr())
