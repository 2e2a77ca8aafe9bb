"""`confcom verify` as a person and a script meet it: exit codes, one clear message, JSON, no traceback ever."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import struct
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from msgspec import structs

import attested_certificates as attested
from confcom.cli.root import run
from confcom.collateral.bundle import save_bundle
from confcom.formats.attested_certificate import AttestedCertificate
from confcom.formats.quote import CertificationData, CertificationDataType, PpidEncryptedRsa3072, Quote
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.enclaves import td_report_1_5
from confcom.simulator.world import SimulatedWorld
from report_reader import Page, assert_inert

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
AT = "2026-06-01T12:00:00Z"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A quote, its collateral and its root; the person has no store."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CONFCOM_COLLATERAL_STORE", raising=False)
    world = SimulatedWorld.from_seed(b"seed of the cli tests", now=NOW)
    world.export_collateral(tmp_path / "collateral")
    declaration = EnclaveDeclaration.from_names("app", "vendor", isv_prod_id=3, isv_svn=2)
    report = world.machine.launch(declaration).create_report(world.platform.init_quote().target_info, bytes(64))
    (tmp_path / "quote.bin").write_bytes(world.platform.quote(report).quote)
    return tmp_path


class Outcome:
    """What one command line did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict:
        return json.loads(self.out)


@pytest.fixture
def verify(folder: Path, capsys: pytest.CaptureFixture[str]):
    def call(*words: object, evidence: object = None, collateral: object = None, root: bool = True) -> Outcome:
        arguments = ["verify", str(evidence or folder / "quote.bin")]
        if collateral != "none":
            arguments += ["--collateral", str(collateral or folder / "collateral")]
        if root:
            arguments += ["--trust-root", str(folder / "collateral" / "root_ca.pem")]
        if "--at" not in words:
            arguments += ["--at", AT]
        code = run([*arguments, *map(str, words)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Outcome(code, out, err)

    return call


def test_a_genuine_quote_is_accepted(verify) -> None:
    outcome = verify()
    assert outcome.code == 0
    assert "ACCEPTED" in outcome.out
    assert "SIMULATED" in outcome.out


def test_json_says_the_same(verify) -> None:
    outcome = verify("--json")
    assert outcome.code == 0
    assert outcome.json["verdict"] == "accepted"
    assert outcome.json["simulated"] is True


def test_html_says_the_same(verify, folder: Path) -> None:
    target = folder / "report.html"
    outcome = verify("--html", target, "--isv-prod-id", 4, "--json")
    assert outcome.code == 5
    assert outcome.json["verdict"] == "refused"
    page = Page(target.read_text())
    assert_inert(page)
    assert "REFUSED" in page.words
    for check in outcome.json["checks"]:
        assert check["id"] in page.text
    assert verify("--html", folder / "none" / "report.html").code == 2


@pytest.mark.parametrize("encode", [bytes.hex, lambda data: base64.b64encode(data).decode()])
def test_text_encodings_are_recognised(verify, folder: Path, encode) -> None:
    text = folder / "quote.txt"
    text.write_text(encode((folder / "quote.bin").read_bytes()) + "\n")
    assert verify("--json", evidence=text).json["verdict"] == "accepted"


@pytest.mark.parametrize(
    ("words", "code", "verdict"),
    [
        ((), 0, "accepted"),
        (("--isv-prod-id", 3, "--min-isv-svn", 2, "--report-data", "00" * 32), 0, "accepted"),
        (("--isv-prod-id", 4), 5, "refused"),
        (("--min-isv-svn", 3), 5, "refused"),
        (("--mr-signer", "ab" * 32), 5, "refused"),
        (("--mr-enclave", "ab" * 32), 5, "refused"),
        (("--report-data", "01"), 5, "refused"),
        (("--accept-tcb", "OutOfDate"), 5, "refused"),
        (("--at", "2026-12-01T00:00:00Z"), 6, "undecided"),
        (("--at", "2020-01-01T00:00:00Z"), 6, "undecided"),
        (("--at", "yesterday"), 2, None),
        (("--at", "2026-06-01T12:00:00"), 2, None),
        (("--accept-tcb", "Revoked"), 2, None),
        (("--accept-tcb", "Fine"), 2, None),
        (("--mr-signer", "xyz"), 2, None),
        (("--held-data", "/nonexistent"), 2, None),
    ],
)
def test_every_expectation_has_its_exit_code(verify, words, code: int, verdict: str | None) -> None:
    outcome = verify("--json", *words)
    assert (outcome.code, outcome.json["verdict"]) == (code, verdict)
    if code:
        assert outcome.json["error"]["message"]
        assert outcome.json["error"]["advice"]
    plain = verify(*words)
    assert plain.code == code


def test_a_simulated_root_is_not_trusted_unless_named(verify) -> None:
    outcome = verify("--json", root=False)
    assert (outcome.code, outcome.json["verdict"]) == (4, "invalid")
    assert outcome.json["error"]["code"] == "root-untrusted"
    assert "--trust-root" in outcome.json["error"]["advice"]


def test_no_collateral_names_the_option(verify) -> None:
    outcome = verify(collateral="none")
    assert outcome.code == 6
    assert "--collateral" in outcome.out


def test_a_missing_piece_of_collateral_is_named(verify, folder: Path) -> None:
    (folder / "collateral" / "tcb_info.json").unlink()
    outcome = verify()
    assert outcome.code == 6
    assert "tcb_info.json" in outcome.out


def test_collateral_of_another_fmspc_says_both(verify, folder: Path, tmp_path: Path) -> None:
    world = SimulatedWorld.from_seed(b"seed of the cli tests", now=NOW)
    world.authority.add_tcb_info(bytes.fromhex("00aabbccddee"))
    other = tmp_path / "other"
    save_bundle(world.authority.collateral(bytes.fromhex("00aabbccddee"), world.machine.pck_ca), other)
    outcome = verify(collateral=other)
    assert outcome.code == 6
    assert "tcb_info.json: is not for this platform: FMSPC is 00aabbccddee" in outcome.out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(500), "JPEG"),
        (b"\x03\x00\x02\x00" + bytes(20), "byte"),
        (b"-----BEGIN CERTIFICATE-----\n", "PEM"),
        (b"\x1b[31mred\x1b[0m" * 20, "bytes that begin with 1b 5b"),
    ],
)
def test_what_is_no_evidence_gets_one_clear_message(verify, folder: Path, content: bytes, says: str) -> None:
    file = folder / "strange"
    file.write_bytes(content)
    outcome = verify(evidence=file)
    assert outcome.code == 3
    assert says in outcome.out
    assert "\x1b[31m" not in outcome.out
    assert verify("--json", evidence=file).code == 3


def test_a_truncated_quote_says_where_it_ends(verify, folder: Path) -> None:
    quote = folder / "quote.bin"
    quote.write_bytes(quote.read_bytes()[:1000])
    outcome = verify()
    assert outcome.code == 3
    assert "signature_data" in outcome.out


def test_a_missing_evidence_file_is_a_usage_error(verify, folder: Path) -> None:
    outcome = verify(evidence=folder / "nowhere.bin")
    assert outcome.code == 2
    assert "nowhere.bin" in outcome.err


CASES = Path(__file__).resolve().parents[1] / "cases" / "quote-kinds"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (
            "tcb_info.json",
            lambda data: json.dumps(json.loads(data), indent=2).encode(),
            "not the bytes that were signed",
        ),
        ("qe_identity.json", lambda data: data.replace(b":", b": ", 3), "not the bytes that were signed"),
        ("tcb_info.json", lambda data: data[:500], "not JSON"),
        ("pck_crl.der", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "pck_crl.der"),
        ("root_ca_crl.der", lambda _: b"garbage", "not a revocation list"),
        ("tcb_info_issuer_chain.pem", lambda _: b"no chain", "CERTIFICATE"),
        ("pck_crl_issuer_chain.pem", lambda data: data.replace(b"A", b"B", 40), "pck_crl_issuer_chain.pem"),
    ],
)
def test_a_fault_in_the_collateral_names_its_file_and_blames_no_evidence(
    verify, folder: Path, name: str, change, says: str
) -> None:
    path = folder / "collateral" / name
    path.write_bytes(change(path.read_bytes()))
    outcome = verify("--json")
    assert (outcome.code, outcome.json["verdict"]) == (6, "undecided")
    error = outcome.json["error"]
    assert error["code"] == "collateral-invalid"
    assert error["document"] == str(path)
    assert error["message"].startswith(f"{path}: ")
    assert says in error["message"]
    plain = verify()
    assert plain.code == 6
    assert str(path) in plain.out
    assert "fresh quote" not in plain.out + error["advice"]
    assert "do not trust this evidence" not in (plain.out + error["advice"]).lower()


def test_a_percent_encoded_chain_is_read(verify, folder: Path) -> None:
    for path in (folder / "collateral").glob("*_chain.pem"):
        path.write_text(quote(path.read_text(), safe=""))
    assert verify().code == 0


def test_what_has_one_cause_is_one_problem(verify) -> None:
    outcome = verify("--at", "2026-12-01T00:00:00Z")
    assert outcome.code == 6
    assert outcome.out.count("what to do") == 1
    for name in ("TCB info", "QE identity", "PCK CRL"):
        assert f"{name} at 2026-06-30T12:00:00Z" in outcome.out
    early = verify("--at", "2020-01-01T00:00:00Z")
    assert early.out.count("what to do") == 1
    assert "clock" in early.out


@pytest.mark.parametrize(
    ("name", "is_", "run"),
    [
        ("root_ca.pem", "certificate", "--trust-root"),
        ("tcb_info_issuer_chain.pem", "chain of 2 certificates", "--collateral"),
        ("pck_crl.der", "certificate revocation list", "--collateral"),
        ("tcb_info.json", "TCB info", "--collateral"),
        ("qe_identity.json", "enclave identity", "--collateral"),
        ("token", "attestation token", "confcom inspect"),
        ("report", "SGX report (not a quote)", "confcom quote"),
        ("sigstruct", "SIGSTRUCT", "confcom policy from"),
    ],
)
def test_what_is_something_else_is_named_with_what_to_run(verify, folder: Path, name: str, is_: str, run: str) -> None:
    (folder / "collateral" / "token").write_bytes(b"eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJub2JvZHkifQ.c2lnbmF0dXJl")
    (folder / "collateral" / "report").write_bytes(bytes(range(1, 217)) * 2)
    header = bytes.fromhex("06000000e10000000000010000000000")
    rest = bytes(8) + bytes.fromhex("01010000600000006000000001000000")
    (folder / "collateral" / "sigstruct").write_bytes((header + rest).ljust(1808, b"\0"))
    outcome = verify("--json", evidence=folder / "collateral" / name)
    assert outcome.code == 3
    assert is_ in outcome.json["error"]["message"]
    assert run in outcome.json["error"]["advice"]


@pytest.mark.parametrize("more", [0, 700], ids=["whole", "in a longer buffer"])
def test_a_fake_quote_of_the_simulation_mode_is_named(verify, tmp_path, more) -> None:
    """The layout of Intel's quoting_sim.cpp: EPID's, version 2, filled with 0xEE."""
    signature = bytes.fromhex("ee") * 696
    head = struct.pack("<HH4sHHI", 2, 1, b"\0\0\x0b\x6c", 0xEF, 0xEF, 0xEFEFEFEF) + bytes(32 + 384)
    quote = tmp_path / "fake.bin"
    quote.write_bytes(head + len(signature).to_bytes(4, "little") + signature + bytes(more))
    outcome = verify("--json", evidence=quote)
    assert "a fake of Intel's library for the simulation mode (-lsgx_quote_ex_sim)" in outcome.json["error"]["message"]
    assert "LD_PRELOAD=libsgx_quote_ex.so.1" in outcome.json["error"]["advice"]
    assert run(["inspect", str(quote)]) == 3


def test_an_epid_quote_is_named(verify) -> None:
    outcome = verify("--json", evidence=CASES / "epid.bin")
    assert outcome.code == 3
    assert "version 2 is an EPID quote" in outcome.json["error"]["message"]
    assert "DCAP" in outcome.json["error"]["advice"]
    assert run(["inspect", str(CASES / "epid.bin")]) == 3


@pytest.mark.parametrize("form", ["utf-8-sig", "utf-16"])
def test_text_with_a_byte_order_mark_is_read(verify, folder: Path, form: str) -> None:
    text, policy = folder / "quote.txt", folder / "policy.toml"
    text.write_bytes((folder / "quote.bin").read_bytes().hex().encode("ascii").decode().encode(form))
    policy.write_bytes("isv_prod_id = 3\n".encode(form))
    root = folder / "collateral" / "root_ca.pem"
    root.write_bytes(root.read_text().encode(form))
    assert verify("--policy", policy, evidence=text).code == 0
    text.write_bytes(base64.b64encode((folder / "quote.bin").read_bytes()).decode().encode(form))
    assert verify("--policy", policy, evidence=text).code == 0
    assert verify("--json", evidence=CASES / "bom.txt", root=False).json["quote_version"] == 3


def test_fetching_collateral_says_of_a_quote_what_verify_says(verify, folder: Path, capsys) -> None:
    damaged = folder / "damaged.bin"
    damaged.write_bytes((folder / "quote.bin").read_bytes()[:1000])
    for path in (CASES / "epid.bin", damaged, folder / "collateral" / "root_ca.pem"):
        said = verify("--json", evidence=path)
        code = run(["collateral", "fetch", "--quote", str(path), "--store", str(folder / "new.sqlite")])
        assert code == said.code == 3
        assert said.json["error"]["message"] in capsys.readouterr().err


def test_nothing_judged_has_no_verdict(verify, folder: Path) -> None:
    (folder / "root.pem").write_bytes(b"no root")
    for words, said in (
        (("--trust-root", folder / "root.pem"), "root.pem"),
        (("--trust-root", folder / "nowhere.pem"), "nowhere.pem"),
        (("--policy", folder / "nowhere.toml"), "nowhere.toml"),
        (("--mr-td", "ab"), "48 bytes"),
        (("--mr-td", "ab" * 48, "--mr-signer", "cd" * 32), "no evidence has both"),
    ):
        outcome = verify("--json", *words)
        assert (outcome.code, outcome.json["verdict"]) == (2, None)
        assert said in outcome.json["error"]["message"]
    missing = verify("--json", evidence=folder / "nowhere.bin")
    assert (missing.code, missing.json["verdict"]) == (2, None)


@pytest.fixture
def pinned_td(folder: Path):
    """A TD's quote (v5) in quote.bin, with the collateral that judges it; returns its body."""
    world = SimulatedWorld.from_seed(b"seed of the cli tests", now=NOW)
    body = td_report_1_5("td", bytes(64))
    (folder / "quote.bin").write_bytes(world.platform.quote_td(body))
    save_bundle(world.authority.collateral(world.machine.fmspc, world.machine.pck_ca, "tdx"), folder / "collateral")
    return body.base


def test_a_td_is_pinned_by_its_measurements(verify, folder: Path, pinned_td) -> None:
    td, plain = pinned_td, verify()
    assert plain.code == 0
    assert "Pin it with --mr-td and --rtmr0 to --rtmr3" in plain.out
    assert "enclave" not in plain.out
    attributes = td.td_attributes.to_bytes(8, "little")
    words = ["--mr-td", td.mr_td.hex(), "--td-attributes", f"{attributes.hex()}/{'ff' * 8}"]
    for name in ("rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_seam", "mr_signer_seam", "mr_config_id", "mr_owner"):
        words += [f"--{name.replace('_', '-')}", getattr(td, name).hex()]
    words += ["--mr-owner-config", td.mr_owner_config.hex(), "--xfam", td.xfam.to_bytes(8, "little").hex()]
    accepted = verify(*words)
    assert accepted.code == 0
    assert "Note" not in accepted.out
    policy = folder / "td.toml"
    policy.write_text(f'mr_td = ["{td.mr_td.hex()}"]\nrtmr1 = ["{"00" * 47}01"]\n')
    refused = verify("--json", "--policy", policy)
    assert refused.code == 5
    assert [check["id"] for check in refused.json["checks"] if not check["ok"]] == ["rtmr1"]
    assert verify("--policy", policy, "--rtmr1", td.rtmr1.hex()).code == 0


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("--mr-enclave", "ab" * 32), "MRENCLAVE"),
        (("--mr-signer", "ab" * 32), "MRSIGNER"),
        (("--isv-prod-id", 0), "ISVPRODID"),
        (("--min-isv-svn", 0), "ISVSVN"),
    ],
)
def test_expectations_of_an_enclave_refuse_a_td_and_name_its_own(verify, pinned_td, words, field: str) -> None:
    del pinned_td
    outcome = verify(*words)
    assert outcome.code == 5
    assert f"the quote of a TD, which has no {field}" in outcome.out
    assert "MRTD" in outcome.out


def test_expectations_of_a_td_refuse_an_enclave_and_name_its_own(verify) -> None:
    for words in (("--mr-td", "ab" * 48), ("--rtmr3", "ab" * 48), ("--xfam", "00" * 8), ("--td-attributes", "00" * 8)):
        outcome = verify(*words)
        assert outcome.code == 5
        assert "the quote of an SGX enclave" in outcome.out
        assert "MRENCLAVE" in outcome.out


def test_a_policy_file_is_applied(verify, folder: Path) -> None:
    policy = folder / "policy.toml"
    policy.write_text('isv_prod_id = 9\naccept_tcb = ["UpToDate"]\n')
    assert verify("--policy", policy).code == 5
    assert verify("--policy", policy, "--isv-prod-id", 3).code == 0
    policy.write_text("nonsense = 1\n")
    assert verify("--policy", policy).code == 2
    policy.write_bytes(b"isv_prod_id = 3 # \xff")
    message = verify("--json", "--policy", policy).json["error"]["message"]
    assert message == f"the policy file {policy} is not UTF-8 (byte 18)"
    policy.write_text('accept_tcb = ["UptoDate"]\n')
    message = verify("--json", "--policy", policy).json["error"]["message"]
    assert message.startswith(f"the policy file {policy} is not valid")
    assert message.endswith("did you mean 'UpToDate'?")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mr-enclave", "12"), "--mr-enclave: expected 32 bytes (64 hexadecimal digits), found 1"),
        (("--mr-td", "zz"), "--mr-td: 'zz' is not hexadecimal"),
        (("--td-attributes", f"{0:016x}/1"), "mask of --td-attributes: '1' is not hexadecimal"),
        (
            ("--mr-enclave", "0" * 64, "--mr-td", "0" * 96),
            "--mr-enclave belong to SGX enclaves, --mr-td to TDs: no evidence has both",
        ),
    ],
)
def test_errors_name_the_option_that_is_wrong(verify, options: tuple[str, ...], message: str) -> None:
    assert verify("--json", *options).json["error"]["message"] == message


def test_errors_tell_keys_of_the_file_from_options(verify, folder: Path) -> None:
    policy = folder / "policy.toml"
    policy.write_text(f'mr_td = ["{"0" * 96}"]\n')
    found = verify("--json", "--policy", policy, "--mr-enclave", "0" * 64).json["error"]["message"]
    assert found == "--mr-enclave belong to SGX enclaves, mr_td to TDs: no evidence has both"


def test_held_data_is_compared_by_its_hash(verify, folder: Path) -> None:
    held = folder / "key.pem"
    held.write_bytes(b"a key")
    assert verify("--held-data", held).code == 5


@pytest.fixture
def store(folder: Path) -> Path:
    """A store with the standard set, and an early one that turns the platform out of date."""
    from confcom.collateral.documents import take_apart
    from confcom.collateral.store.store import CollateralStore

    world = SimulatedWorld.from_seed(b"seed of the cli tests", now=NOW)
    path = folder / "store.sqlite"
    with CollateralStore(path, roots=world.trust_roots) as opened:
        standard = world.publish()
        top = world.tcb_info.levels[0].tcb
        world.authority.raise_tcb(top.with_component(0, top.sgx_components[0] + 1), advisory_ids=["SIMULATED-SA-00002"])
        for update, collateral in (("standard", standard), ("early", world.publish())):
            documents = take_apart(
                collateral, fmspc=world.machine.fmspc, ca=world.machine.pck_ca.value, tee="sgx", update=update
            )
            opened.add(documents, seen=NOW, source="test")
    return path


def test_a_store_judges_under_several_sets_in_one_call(verify, store: Path) -> None:
    outcome = verify("--json", "--update", "standard,early", collateral=store)
    assert (outcome.code, outcome.json["verdict"], outcome.json["tcb_status"]) == (0, "accepted", "UpToDate")
    assert [(one["update"], one["verdict"], one["tcb_status"]) for one in outcome.json["sets"]] == [
        ("standard", "accepted", "UpToDate"),
        ("early", "refused", "OutOfDate"),
    ]
    early = verify("--update", "early,standard", collateral=store)
    assert early.code == 5
    assert "component 1" in early.out
    assert "Under each set" in early.out


def test_a_set_that_is_not_there_is_undecided_and_leaves_the_first_verdict(verify, store: Path) -> None:
    outcome = verify("--json", "--update", "standard,99", collateral=store)
    assert outcome.code == 0
    assert outcome.json["sets"][1]["verdict"] == "undecided"
    assert verify("--update", "99", collateral=store).code == 6
    between = verify("--json", "--update", "standard,99,early", collateral=store).json["sets"]
    assert [one["verdict"] for one in between] == ["accepted", "undecided", "refused"]


def test_a_folder_is_the_set_of_its_own_number_and_of_no_other(verify) -> None:
    number = verify("--json").json["tcb_evaluation_data_number"]
    assert verify("--json", "--update", str(number)).json["verdict"] == "accepted"
    other = verify("--json", "--update", f"standard,{number + 1}")
    assert (other.code, [one["verdict"] for one in other.json["sets"]]) == (0, ["accepted", "undecided"])


def test_the_own_store_is_asked_when_no_collateral_is_named(verify, store: Path, monkeypatch) -> None:
    monkeypatch.setenv("CONFCOM_COLLATERAL_STORE", str(store))
    assert verify(collateral="none").code == 0


def test_a_service_that_does_not_answer_is_exit_code_6(verify) -> None:
    outcome = verify("--json", collateral="http://127.0.0.1:1")
    assert (outcome.code, outcome.json["verdict"]) == (6, "undecided")
    assert outcome.json["error"]["code"] == "collateral-unavailable"


@pytest.mark.vectors
@pytest.mark.promise("M12")
def test_a_folder_of_the_vectors_and_its_collateral_json_work_as_they_are(vectors: Path, capsys) -> None:
    folder = vectors / "real" / "sgx3-00606A000000-teepot-3bfe5ad8-20230512"
    at = datetime.fromtimestamp(1683923096, UTC)
    for collateral in (folder, folder / "collateral.json"):
        words = ["verify", str(folder / "quote.bin"), "--collateral", str(collateral), "--at", at.isoformat(), "--json"]
        assert run(words) == 5
        found = json.loads(capsys.readouterr().out)
        assert (found["verdict"], found["tcb_status"], found["simulated"]) == ("refused", "SWHardeningNeeded", False)
        assert found["identity"]["debug"] is True
        assert run([*words, "--allow-debug", "--accept-tcb", "SWHardeningNeeded"]) == 0
        capsys.readouterr()
        later = (at + timedelta(days=400)).isoformat()
        words[words.index(at.isoformat())] = later
        assert run(words) == 6
        assert json.loads(capsys.readouterr().out)["tcb_status"] == "SWHardeningNeeded"


@pytest.fixture
def td(folder: Path) -> SimulatedWorld:
    """The same machine with a TD: `td.bin` was launched by a module that is OutOfDate and runs on one that is not."""
    world = SimulatedWorld.from_seed(b"seed of the cli tests", now=NOW)
    below, old, new = (bytes([svn, 1, 3]).ljust(16, b"\0") for svn in (1, 4, 6))
    collateral = world.authority.collateral(world.machine.fmspc, world.machine.pck_ca, "tdx")
    save_bundle(collateral, folder / "tdx")
    (folder / "td.bin").write_bytes(world.platform.quote_td(td_report_1_5("td", bytes(64), old, new)))
    (folder / "below.bin").write_bytes(world.platform.quote_td(td_report_1_5("td", bytes(64), new, below)))
    return world


def test_a_td_is_shown_at_its_launch_and_now(verify, td: SimulatedWorld, folder: Path) -> None:
    given = {"evidence": folder / "td.bin", "collateral": folder / "tdx"}
    text = verify(**given)
    assert text.code == 5
    assert "TCB TDRelaunchAdvised" in text.out
    assert "TDX module at launch: TCB OutOfDate" in text.out
    assert "TDX module now: TCB UpToDate" in text.out
    found = verify("--json", "--accept-tcb", "TDRelaunchAdvised", **given).json
    assert (found["verdict"], found["tcb_status"]) == ("accepted", "TDRelaunchAdvised")
    assert [found[when]["tcb_status"] for when in ("launch_tcb", "current_tcb")] == ["OutOfDate", "UpToDate"]


def test_a_td_whose_running_module_is_below_every_level_says_so(verify, td: SimulatedWorld, folder: Path) -> None:
    given = {"evidence": folder / "below.bin", "collateral": folder / "tdx"}
    assert "judged by the TDX module that runs now" in verify(**given).out
    found = verify("--json", "--accept-tcb", "UpToDate,OutOfDate", **given).json
    assert (found["verdict"], found["error"]["code"], found["tcb_status"]) == ("refused", "tcb-not-supported", None)
    assert found["launch_tcb"]["tcb_status"] == "UpToDate"
    assert found["current_tcb"]["tcb_status"] is None


@pytest.fixture
def named(folder: Path) -> Path:
    """The quote with certification data of type 3, and the chain of its platform in `pck.pem`."""
    world = SimulatedWorld.from_seed(b"seed of the cli tests", now=NOW)
    quote = Quote.parse((folder / "quote.bin").read_bytes())
    tcb = world.machine.tcb
    entry = CertificationData(
        CertificationDataType.PPID_ENCRYPTED_RSA_3072,
        bytes(PpidEncryptedRsa3072(bytes(384), tcb.cpu_svn, tcb.pce_svn, 0)),
    )
    certification = structs.replace(quote.signature.certification, certification_data=entry)
    (folder / "named.bin").write_bytes(
        bytes(structs.replace(quote, signature=structs.replace(quote.signature, certification=certification)))
    )
    (folder / "pck.pem").write_bytes(world.authority.pck_chain(world.machine))
    return folder / "named.bin"


def test_a_quote_without_a_chain_is_verified_by_the_one_beside(verify, named: Path, folder: Path) -> None:
    without = verify("--json", evidence=named)
    assert without.json["error"]["field"] == "certification_data.type"
    assert "--pck-chain" in without.json["error"]["advice"]
    assert verify("--json", "--pck-chain", folder / "pck.pem", evidence=named).json["verdict"] == "accepted"
    (folder / "collateral" / "pck_chain.pem").write_bytes((folder / "pck.pem").read_bytes())
    assert verify("--json", evidence=named).json["verdict"] == "accepted"


def test_a_wrong_chain_beside_a_quote_is_not_blamed_on_the_quote(verify, named: Path, folder: Path) -> None:
    for wrong in (folder / "quote.bin", folder / "collateral" / "pck_crl_issuer_chain.pem"):
        refused = verify("--json", "--pck-chain", wrong, evidence=named)
        assert (refused.code, refused.json["verdict"]) == (6, "undecided")
        assert refused.json["error"]["code"] == "collateral-invalid"
        assert refused.json["error"]["document"] == "the PCK chain beside the quote"
        (folder / "collateral" / "pck_chain.pem").write_bytes(wrong.read_bytes())
        refused = verify("--json", evidence=named)
        assert (refused.code, refused.json["verdict"]) == (6, "undecided")
        assert refused.json["error"]["document"].endswith("pck_chain.pem")
        (folder / "collateral" / "pck_chain.pem").unlink()


def test_another_chain_than_the_quote_carries_is_not_ignored(verify, named: Path, folder: Path) -> None:
    own, issuer = folder / "pck.pem", folder / "collateral" / "pck_crl_issuer_chain.pem"
    assert verify("--json", "--pck-chain", own).json["verdict"] == "accepted"
    refused = verify("--json", "--pck-chain", issuer)
    assert (refused.code, refused.json["verdict"]) == (2, None)
    assert "the quote carries its own PCK certificate chain" in refused.json["error"]["message"]
    assert "Leave --pck-chain out" in refused.json["error"]["advice"]
    refused = verify("--json", "--pck-chain", folder / "quote.bin")
    assert (refused.code, refused.json["error"]["document"]) == (6, "the PCK chain beside the quote")


def test_fetching_for_a_quote_without_a_chain_says_what_verifying_says(
    verify, named: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = verify("--json", evidence=named).json["error"]["message"]
    root = str(folder / "collateral" / "root_ca.pem")
    assert run(["collateral", "fetch", "--quote", str(named), "--source", str(folder), "--trust-root", root]) == 3
    shown = capsys.readouterr().err
    assert said in shown
    # What it advises is there: `fetch` has no --pck-chain.
    assert "`confcom verify --pck-chain`" in shown
    assert "To fetch its collateral, name --fmspc and --ca" in shown


@pytest.fixture
def certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`confcom verify` for certificates: the collateral and the root of their world are given."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    attested.world().export_collateral(tmp_path / "collateral")

    def call(*words: object) -> Outcome:
        own = ["--collateral", tmp_path / "collateral", "--trust-root", tmp_path / "collateral" / "root_ca.pem"]
        code = run(["verify", *map(str, (*words, *own, "--at", AT))])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Outcome(code, out, err)

    return call


CERTIFICATE, _, _ = attested.every_format()["ra-tls, Gramine's"]
ENCLAVE = AttestedCertificate.parse(CERTIFICATE).quote.body.mr_enclave.hex()


def test_a_certificate_is_judged_for_its_key(certified, tmp_path: Path) -> None:
    file = tmp_path / "server.der"
    file.write_bytes(CERTIFICATE)
    outcome = certified("--certificate", file, "--mr-enclave", ENCLAVE)
    assert outcome.code == 0
    digest = hashlib.sha256(AttestedCertificate.parse(CERTIFICATE).parts.public_key).hexdigest()
    assert "ACCEPTED" in outcome.out
    assert f"SHA-256 {digest}, bound by SHA-256 of the claims" in outcome.out
    shown = certified("--certificate", file, "--mr-enclave", ENCLAVE, "--json").json
    assert (shown["certificate"]["format"], shown["certificate"]["public_key_sha256"]) == ("ra-tls", digest)


def test_a_copied_quote_in_another_certificate_is_not_authentic(certified, tmp_path: Path) -> None:
    file = tmp_path / "server.pem"
    thief = attested.key(2)
    stolen = attested.Certificate((attested.dice(),), key=thief).build()
    file.write_bytes(attested.x509.load_der_x509_certificate(stolen).public_bytes(attested.Encoding.PEM))
    outcome = certified("--certificate", file, "--mr-enclave", ENCLAVE)
    assert outcome.code == 4
    assert "certificate-key" in outcome.out
    assert "not proven to be the enclave's" in outcome.out


def test_a_certificate_needs_an_identity_and_one_input_is_judged(certified, tmp_path: Path) -> None:
    file = tmp_path / "server.der"
    file.write_bytes(CERTIFICATE)
    outcome = certified("--certificate", file)
    assert (outcome.code, "does not say who is expected" in outcome.err) == (2, True)
    for words in ((file, "--certificate", file), ("--certificate", file, "--connect", "localhost:1")):
        outcome = certified(*words, "--mr-enclave", ENCLAVE)
        assert (outcome.code, "one input is judged at a time" in outcome.err) == (2, True)
    outcome = certified("--mr-enclave", ENCLAVE)
    assert (outcome.code, "there is nothing to judge" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    "address",
    ["localhost", "localhost:", ":443", "localhost:x", "localhost:70000", "localhost:0", "localhost:" + "9" * 5000],
)
def test_an_address_is_host_and_port(certified, address: str) -> None:
    outcome = certified("--connect", address, "--mr-enclave", ENCLAVE)
    assert (outcome.code, "is not HOST:PORT" in outcome.err) == (2, True)


@contextlib.contextmanager
def tls_server(certificate: bytes, key: object):
    """A TLS server on the loopback that shows a certificate, and what it received after the handshake."""
    with tempfile.NamedTemporaryFile() as pem:
        one = attested.x509.load_der_x509_certificate(certificate)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pem.write(one.public_bytes(Encoding.PEM) + private)
        pem.flush()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem.name)
        received: list[bytes] = []
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
                received.append(tls.recv(1000))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", received
        finally:
            listener.close()
            thread.join(60)


def test_a_server_is_judged_by_the_certificate_that_it_shows(certified) -> None:
    good = attested.Certificate((attested.dice(),)).build()
    with tls_server(good, attested.key()) as (address, received):
        outcome = certified("--connect", address, "--mr-enclave", ENCLAVE)
    assert outcome.code == 0
    assert b"".join(received) == b""


def test_a_server_without_evidence_is_told_apart_from_none(certified) -> None:
    with tls_server(attested.Certificate(()).build(), attested.key()) as (address, _):
        outcome = certified("--connect", address, "--mr-enclave", ENCLAVE)
    assert (outcome.code, "carries no evidence" in outcome.out) == (3, True)
    outcome = certified("--connect", address, "--mr-enclave", ENCLAVE)
    assert (outcome.code, "no TLS connection" in outcome.err) == (7, True)
