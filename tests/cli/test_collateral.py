"""`confcom collateral` as a person and a pager meet it: exit codes, what is printed, and no traceback ever."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from confcom.appraisal.collateral import verify_collateral
from confcom.cli.options import parse_time
from confcom.cli.root import run
from confcom.collateral.bundle import load_bundle
from confcom.collateral.store.registrations import Registration
from confcom.collateral.store.store import CollateralStore
from confcom.protocols.pcs import PckCertRequest
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import MachineTcb
from confcom.simulator.world import SimulatedWorld
from pcs_server import PcsServer, status

OTHER = "0123456789ab"


class Outcome:
    """What one command line did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict:
        return json.loads(self.out)


@pytest.fixture
def now() -> datetime:
    # `fetch` takes the present as the time at which it saw what it got.
    return parse_time(None, "")


@pytest.fixture
def world(now) -> SimulatedWorld:
    return SimulatedWorld.from_seed(b"seed of the collateral commands", now=now)


@pytest.fixture
def server(world) -> Iterator[PcsServer]:
    with PcsServer(world.pcs) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path, world) -> Path:
    path = tmp_path / "root_ca.pem"
    path.write_bytes(world.root_pem())
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "new" / "store.sqlite"


@pytest.fixture
def quote(tmp_path: Path, world) -> Path:
    declaration = EnclaveDeclaration.from_names("app", "vendor")
    report = world.machine.launch(declaration).create_report(world.platform.init_quote().target_info, bytes(64))
    path = tmp_path / "quote.bin"
    path.write_bytes(world.platform.quote(report).quote)
    return path


@pytest.fixture
def call(root: Path, store: Path, capsys: pytest.CaptureFixture[str]):
    def collateral(*words: object, trusted: bool = True, to: object = None) -> Outcome:
        arguments = ["collateral", *map(str, words)]
        arguments += ["--trust-root", str(root)] if trusted else []
        arguments += ["--store", str(to or store)]
        code = run(arguments)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Outcome(code, out, err)

    return collateral


@pytest.fixture
def fetched(call, world, server) -> None:
    done = call("fetch", "--fmspc", world.machine.fmspc.hex(), "--source", server.url, "--update", "standard,early")
    assert done.code == 0


def opened(store: Path, world) -> CollateralStore:
    return CollateralStore(store, roots=world.trust_roots, create=False)


# --- fetch ----------------------------------------------------------------------------------------------------------


def test_fetch_keeps_what_verifies_and_says_until_when(call, server, store, world, now):
    done = call("fetch", "--fmspc", world.machine.fmspc.hex().upper(), "--source", server.url)
    assert (done.code, done.err) == (0, "")
    until = f"{now - timedelta(days=1) + timedelta(days=30):%Y-%m-%dT%H:%M:%SZ}"
    (line,) = [line for line in done.out.splitlines() if "TCB info" in line]
    assert world.machine.fmspc.hex() in line
    assert "number 17" in line
    assert until in line
    assert f"5 new versions in {store}" in done.out
    assert len(server.requests) == 5  # TCB info, identity, two PCK lists, the root's list: each once
    with opened(store, world) as found:
        for ca in ("platform", "processor"):
            verify_collateral(found.collateral(world.machine.fmspc, ca, "sgx", at=now), roots=world.trust_roots)


def test_fetch_again_finds_nothing_new(call, fetched, server, world):
    done = call("fetch", "--fmspc", world.machine.fmspc.hex(), "--source", server.url, "--json")
    assert done.json["new_versions"] == 0
    assert done.json["errors"] == []
    assert {entry["number"] for entry in done.json["documents"]} == {17, 1}


def test_fetch_takes_the_platform_from_a_quote_and_remembers_it(call, server, store, world, quote):
    assert call("fetch", "--quote", quote, "--source", server.url).code == 0
    assert not any("processor" in path for path, _ in server.requests)
    with opened(store, world) as found:
        (platform,) = found.platforms.groups()
    assert platform.fmspc == world.machine.fmspc


def test_fetch_into_a_folder_that_verify_reads(call, server, world, root, quote, tmp_path, capsys):
    folder = tmp_path / "bundle"
    assert call("fetch", "--quote", quote, "--source", server.url, "-o", folder).code == 0
    assert load_bundle(folder).digest() == world.publish().digest()
    code = run(["verify", str(quote), "--collateral", str(folder), "--trust-root", str(root)])
    assert code == 0, capsys.readouterr().out


def test_one_failing_platform_does_not_stop_the_others(call, server, store, world, now):
    done = call("fetch", "--fmspc", OTHER, "--fmspc", world.machine.fmspc.hex(), "--source", server.url)
    assert done.code == 6
    assert OTHER in done.err
    assert done.err.count("what to do") == 1  # asked for once, though both CAs need it
    with opened(store, world) as found:
        found.collateral(world.machine.fmspc, "platform", "sgx", at=now)


def test_what_intel_did_not_sign_is_not_kept(call, server, store, world, tmp_path):
    done = call("fetch", "--fmspc", world.machine.fmspc.hex(), "--source", server.url, trusted=False)
    assert done.code == 6
    assert "not trusted" in done.err
    assert "--trust-root" in done.err
    assert not store.parent.exists()


def test_a_signer_that_was_revoked_is_noticed_before_anything_is_kept(call, server, store, world):
    world.authority.revoke_tcb_signing()
    done = call("fetch", "--fmspc", world.machine.fmspc.hex(), "--source", server.url)
    assert done.code == 6
    assert f"the issuer chain of the TCB info from {server.url}" in done.err
    assert not store.parent.exists()


def test_a_fetch_under_a_clock_that_is_behind_is_refused_by_name(call, server, store, world, monkeypatch):
    wrong = datetime.fromisoformat("1990-01-01T00:00:00Z")
    monkeypatch.setattr("confcom.cli.collateral_store.parse_time", lambda *_: wrong)
    done = call("fetch", "--fmspc", world.machine.fmspc.hex(), "--source", server.url)
    assert done.code == 6
    assert "clock says 1990-01-01T00:00:00Z" in done.err
    assert not store.parent.exists()


def test_a_service_that_refuses_is_explained(call, server, world):
    server.always = status(401, Error_Code="Unauthorized")
    done = call("fetch", "--fmspc", world.machine.fmspc.hex(), "--source", server.url)
    assert done.code == 6
    assert "Unauthorized" in done.err
    assert "subscription key" in done.err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--fmspc", "xyz"],
        ["--fmspc", "0011"],
        ["--fmspc", OTHER, "--update", "late"],
        ["--fmspc", OTHER, "--update", ""],
        ["--fmspc", OTHER, "--ca", "root"],
        ["--fmspc", OTHER, "--source", "ftp://x"],
        ["--fmspc", OTHER, "--fmspc", "0123456789ac", "-o", "folder"],
        ["--fmspc", OTHER, "--source", "thim", "--azure-region", "../x"],
        ["--quote", "missing.bin"],
    ],
)
def test_wrong_options_are_usage_errors(call, words):
    assert call("fetch", *words).code == 2


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_is_quiet_while_all_is_well(call, fetched):
    done = call("status")
    assert done.code == 0
    assert "27 d left" in done.out or "28 d left" in done.out
    assert "LOW" not in done.out


@pytest.mark.parametrize(
    ("days", "threshold", "code"),
    [(0, "7d", 0), (23, "7d", 6), (23, "120h", 0), (28, "7d", 6), (40, "1s", 6), (0, "5w", 6)],
)
def test_status_pages_when_something_runs_out(call, fetched, now, days, threshold, code):
    at = f"{now + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"
    done = call("status", "--min-validity", threshold, "--at", at)
    assert done.code == code
    assert ("LOW" in done.out) == (code == 6)
    assert call("status", "--min-validity", threshold, "--at", at, "--json").code == code


def test_status_pages_when_something_is_missing(call, fetched, world):
    assert call("status", "--fmspc", OTHER).code == 6
    found = call("status", "--fmspc", OTHER, "--json").json
    assert [entry["for_fmspc"] for entry in found["missing"]] == [OTHER]
    assert call("status", "--fmspc", world.machine.fmspc.hex()).code == 0


def test_status_without_a_store_is_missing_collateral(call):
    done = call("status")
    assert done.code == 6
    assert "no collateral store" in done.err


def test_status_of_a_store_that_lacks_everything_pages(call, store, world):
    store.parent.mkdir()
    CollateralStore(store, roots=world.trust_roots).close()
    done = call("status")
    assert done.code == 6
    assert "missing  every TCB info" in done.out
    assert call("status", "--json").json["missing"][0]["kind"] == "tcb-info"


def test_status_of_documents_of_another_root_names_the_option(call, fetched):
    done = call("status", trusted=False)
    assert done.code == 6
    assert "no documents of a trusted root" in done.out
    assert "--trust-root" in done.out


@pytest.mark.parametrize(("year", "words"), [("1990", "behind"), ("2050", "ahead")])
def test_status_names_a_wrong_clock(call, fetched, monkeypatch, year, words):
    wrong = datetime.fromisoformat(f"{year}-01-01T00:00:00Z")
    monkeypatch.setattr("confcom.cli.collateral_store.parse_time", lambda *_: wrong)
    done = call("status")
    assert done.code == 6
    assert done.out.startswith(f"CLOCK: this machine's clock says {year}-01-01T00:00:00Z")
    assert words in done.out.splitlines()[0]
    assert "d left" not in done.out


def test_status_as_of_a_time_before_the_store_blames_no_clock(call, fetched):
    done = call("status", "--at", "1990-01-01T00:00:00Z")
    assert done.code == 6
    assert "CLOCK" not in done.out
    assert "not yet valid" in done.out


def test_status_of_another_file_says_so(call, quote):
    assert call("status", to=quote).code == 6


@pytest.mark.parametrize("duration", ["", "7", "d", "-1d", "1.5d", "7 d", "9999999d"])
def test_a_wrong_duration_is_a_usage_error(call, fetched, duration):
    assert call("status", "--min-validity", duration).code == 2


def test_status_warns_of_a_promotion(call, server, store, world, quote):
    assert call("fetch", "--quote", quote, "--source", server.url).code == 0
    tcb = world.machine.tcb
    raised = MachineTcb((*tcb.sgx_components[:2], tcb.sgx_components[2] + 1, *tcb.sgx_components[3:]), tcb.pce_svn)
    world.authority.raise_tcb(raised, advisory_ids=["SIMULATED-SA-7"])
    assert call("fetch", "--quote", quote, "--source", server.url, "--update", "early").code == 0
    done = call("status")
    assert done.code == 0
    assert "FALLS BEHIND" in done.out
    assert f"SGX component 3: is {tcb.sgx_components[2]}" in done.out
    assert call("status", "--fail-on-promotion").code == 6
    found = call("status", "--json").json
    assert len(found["falling_behind"]) == 1
    assert found["platforms"][0]["early"] == {"number": 18, "tcb_status": "OutOfDate"}


# --- remove ---------------------------------------------------------------------------------------------------------


def test_platforms_are_removed_by_name_or_age(call, server, store, world, quote, now):
    call("fetch", "--quote", quote, "--source", server.url)
    (platform,) = call("status", "--json").json["platforms"]
    assert call("remove", "--platform", "00" * 32).code == 6
    assert call("remove", "--qe-id", "ab").code == 6
    assert "1 platforms removed" in call("remove", "--platform", platform["id"].upper()).out
    call("fetch", "--quote", quote, "--source", server.url)
    assert "0 platforms removed" in call("remove", "--not-seen-since", "1d").out
    assert (
        "1 platforms removed" in call("remove", "--not-seen-since", f"{now + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}").out
    )
    assert call("status", "--json").json["platforms"] == []


@pytest.mark.parametrize(
    "words", [[], ["--qe-id", "xyz"], ["--qe-id", "ab", "--platform", "ab"], ["--not-seen-since", "soon"]]
)
def test_which_platforms_to_remove_must_be_said(call, fetched, words):
    assert call("remove", *words).code == 2


# --- import and export ----------------------------------------------------------------------------------------------


def test_a_store_crosses_an_air_gap(call, fetched, tmp_path, store, world, now):
    archive, far = tmp_path / "archive.jsonl", tmp_path / "far" / "store.sqlite"
    assert call("export", "-o", archive).code == 0
    assert not (tmp_path / "archive.jsonl.part").exists()
    done = call("import", archive, to=far)
    assert done.code == 0
    assert "5 documents verified, 5 new" in done.out
    with opened(store, world) as ours, opened(far, world) as theirs:
        for key in ours.document_keys():
            assert [ours.load(v) for v in ours.history(key)] == [theirs.load(v) for v in theirs.history(key)]
        theirs.collateral(world.machine.fmspc, "processor", "sgx", at=now, update="early")


def test_a_bundle_is_imported_too(call, tmp_path, world, store, now):
    world.export_collateral(tmp_path / "bundle")
    assert call("import", tmp_path / "bundle", "--update", "early").code == 0
    with opened(store, world) as found:
        assert found.collateral(world.machine.fmspc, "platform", "sgx", at=now, update="early")


def test_fetch_from_a_store_and_from_a_folder(call, fetched, store, tmp_path, world):
    far, folder = tmp_path / "far.sqlite", tmp_path / "bundle"
    fmspc = world.machine.fmspc.hex()
    assert call("fetch", "--fmspc", fmspc, "--source", store, to=far).code == 0
    assert call("fetch", "--fmspc", fmspc, "--source", store, "-o", folder).code == 0
    assert call("fetch", "--fmspc", fmspc, "--ca", "platform", "--source", folder, to=tmp_path / "x.sqlite").code == 0


@pytest.mark.parametrize("content", [b"", b"hello", b'{"format":"confcom-collateral-archive","version":1}\n'])
def test_what_cannot_be_imported_is_malformed(call, tmp_path, content):
    path = tmp_path / "thing"
    path.write_bytes(content)
    done = call("import", path)
    assert done.code == 6
    assert str(path) in done.err
    assert not (tmp_path / "new").exists()


def test_an_import_that_fails_in_the_middle_leaves_no_store(call, fetched, tmp_path, store):
    archive, far = tmp_path / "archive.jsonl", tmp_path / "a" / "b" / "store.sqlite"
    assert call("export", "-o", archive).code == 0
    archive.write_bytes(archive.read_bytes()[:-20])
    done = call("import", archive, to=far)
    assert done.code == 6
    assert "export or copy it again" in done.err
    assert not (tmp_path / "a").exists()
    before = store.read_bytes()
    assert call("import", archive).code == 6
    assert store.read_bytes() == before
    assert {entry.name for entry in store.parent.iterdir()} == {"store.sqlite"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the input is empty"),
        (b"\n\n", "nothing but zero bytes or white space"),
        (b"hello\n", "this looks like plain text, 6 bytes, and is nothing that is known here"),
        (b"\x7fELF" + bytes(60), "this is an ELF program with no SIGSTRUCT"),
        (b"PK\x03\x04" + bytes(60), "this is a ZIP archive"),
        (b"[1]", "this looks like plain text, 3 bytes"),
        (b'{"a": 1}', "Object missing required field `pck_crl_issuer_chain`"),
        (b'{"a": ', "truncated"),
    ],
)
def test_an_import_of_something_else_says_what_it_is_and_what_is_expected(call, tmp_path, store, content, said):
    path = tmp_path / "other"
    path.write_bytes(content)
    done = call("import", path)
    assert done.code == 6
    assert f"{path}: not a collateral bundle: " in done.err
    assert said in done.err
    assert "Name a folder of collateral files or a collateral.json" in done.err
    assert "the archive of an export" in done.err
    assert "byte for byte" not in done.err
    assert not store.exists()


def test_an_import_of_one_document_of_a_bundle_names_its_kind(call, tmp_path, world):
    world.export_collateral(tmp_path / "bundle")
    for name, kind in (("tcb_info.json", "TCB info"), ("root_ca.pem", "certificate")):
        assert f"not a collateral bundle: this is {kind}" in call("import", tmp_path / "bundle" / name).err


@pytest.mark.parametrize("year", ["1990", "2000"])
def test_an_import_under_a_clock_that_is_behind_is_refused_by_name(call, fetched, tmp_path, world, monkeypatch, year):
    archive, far, bundle = tmp_path / "archive.jsonl", tmp_path / "far.sqlite", tmp_path / "bundle"
    call("export", "-o", archive)
    world.export_collateral(bundle)
    wrong = datetime.fromisoformat(f"{year}-01-01T00:00:00Z")
    monkeypatch.setattr("confcom.cli.collateral_store.parse_time", lambda *_: wrong)
    for path in (archive, bundle):
        done = call("import", path, to=far)
        assert done.code == 6
        assert f"clock says {year}-01-01T00:00:00Z" in done.err
        assert not far.exists()


def test_an_import_from_a_clock_some_minutes_ahead_is_taken_and_said(call, fetched, tmp_path, now, monkeypatch):
    archive, far = tmp_path / "archive.jsonl", tmp_path / "far.sqlite"
    call("export", "-o", archive)
    monkeypatch.setattr("confcom.cli.collateral_store.parse_time", lambda *_: now - timedelta(minutes=9))
    done = call("import", archive, to=far)
    assert done.code == 0
    assert "the clock of the machine that wrote the archive was 5" in done.err  # 540 s


def test_an_import_of_what_has_expired_says_so(call, fetched, tmp_path, now, monkeypatch):
    archive, far = tmp_path / "archive.jsonl", tmp_path / "far.sqlite"
    call("export", "-o", archive)
    monkeypatch.setattr("confcom.cli.collateral_store.parse_time", lambda *_: now + timedelta(days=60))
    done = call("import", archive, to=far)
    assert done.code == 0
    assert done.err.count("has expired, at") == 6  # all but the root's list: two sets of two, and two PCK lists


def test_an_export_says_what_it_leaves_out(call, fetched, tmp_path, store, world, now):
    request = PckCertRequest(bytes(16), 1, bytes(2), b"\x01" * 16)
    with opened(store, world) as found:
        found.registrations.put(Registration(request, "waiting", now))
    done = call("export", "-o", tmp_path / "without.jsonl")
    assert (done.code, "left out: 0 PCK certificates and 1 registrations" in done.err) == (0, True)
    whole = tmp_path / "whole.jsonl"
    (tmp_path / "whole.jsonl.part").write_bytes(b"of a killed process")
    done = call("export", "-o", whole, "--platforms")
    assert (done.code, done.err) == (0, "")
    assert whole.stat().st_mode & 0o777 == 0o600
    far = tmp_path / "far.sqlite"
    assert "1 entries of platforms and appraisal policies, 1 new" in call("import", whole, to=far).out
    with opened(far, world) as found:
        assert found.registrations.count("waiting") == 1


def test_an_export_of_nothing_is_refused_and_writes_no_file(call, fetched, tmp_path):
    archive = tmp_path / "archive.jsonl"
    done = call("export", "-o", archive, trusted=False)
    assert done.code == 6
    assert "nothing to export" in done.err
    assert "--trust-root" in done.err
    assert not archive.exists()


def test_missing_files_are_named(call, fetched, tmp_path):
    assert call("import", tmp_path / "missing").code == 2
    done = call("export", "-o", tmp_path / "missing" / "archive")
    assert done.code == 2
    assert "missing" in done.err


def test_help_lists_what_is_there(capsys):
    assert run(["collateral", "--help"]) == 0
    out = capsys.readouterr().out
    for command in ("fetch", "status", "import", "export"):
        assert f"  {command} " in out
