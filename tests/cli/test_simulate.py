"""Simulated machines in files: made, exported, declared; never mistaken for real ones."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from confcom.appraisal.policy import AllOf, MrSigner, safe_defaults
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import appraise
from confcom.cli.root import run
from confcom.collateral.bundle import load_bundle
from confcom.errors import ExitCode, PolicyError, RevokedError
from confcom.formats.tcb_info import TcbStatus
from confcom.pki.chain import TrustRoot, TrustRoots
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.wiring import load_declaration, open_machine, open_platform

AT = "2026-03-01T12:00:00Z"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SEED = "5e" * 16


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "machine.json"
    assert run(["simulate", "machine", "-o", str(path), "--seed", SEED, "--at", AT]) == ExitCode.OK
    return path


def quote_of(machine: Path, declaration: Path | None = None) -> bytes:
    platform = open_platform("simulated", machine=machine)
    path = declaration or machine.parent / "enclave.toml"
    if declaration is None:
        path.write_text('enclave = "tested"\n')
    return EnclaveQuoteSource(platform, open_machine(machine).launch(load_declaration(path))).quote(bytes(64)).quote


def roots(folder: Path) -> TrustRoots:
    return TrustRoots((TrustRoot.from_pem((folder / "root_ca.pem").read_bytes()),))


def test_a_machine_file_is_for_its_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "machine.json"
    assert run(["simulate", "machine", "-o", str(path)]) == ExitCode.OK
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "simulated" in capsys.readouterr().out


def test_seed_and_time_make_the_machine_and_chance_makes_another(machine: Path, tmp_path: Path) -> None:
    again, other, third = (tmp_path / name for name in ("again.json", "other.json", "third.json"))
    assert run(["simulate", "machine", "-o", str(again), "--seed", SEED, "--at", AT]) == ExitCode.OK
    assert again.read_bytes() == machine.read_bytes()
    for path in (other, third):
        assert run(["simulate", "machine", "-o", str(path), "--at", AT]) == ExitCode.OK
    assert len({path.read_bytes() for path in (machine, other, third)}) == 3


def test_a_machine_is_never_overwritten(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = machine.read_bytes()
    assert run(["simulate", "machine", "-o", str(machine)]) == ExitCode.USAGE
    assert machine.read_bytes() == before
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["00", "zz", "00" * 65])
def test_a_bad_seed_is_refused_without_a_file(seed: str, tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    assert run(["simulate", "machine", "-o", str(path), "--seed", seed]) == ExitCode.USAGE
    assert not path.exists()


def test_exported_collateral_verifies_the_machines_quotes(
    machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "collateral"
    assert run(["simulate", "collateral", str(machine), "-o", str(folder), "--at", AT]) == ExitCode.OK
    assert "simulated" in capsys.readouterr().out
    verified = QuoteVerifier(roots(folder)).verify(quote_of(machine), load_bundle(folder), now=NOW)
    assert verified.simulated
    assert verified.tcb_status is TcbStatus.UP_TO_DATE


def test_a_change_of_the_authoritys_mind_can_be_played(machine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "collateral"
    options = ["--at", AT, "--tcb-status", "OutOfDate", "--advisory", "INTEL-SA-00001"]
    assert run(["simulate", "collateral", str(machine), "-o", str(folder), *options]) == ExitCode.OK
    verified = QuoteVerifier(roots(folder)).verify(quote_of(machine), load_bundle(folder), now=NOW)
    assert verified.tcb_status is TcbStatus.OUT_OF_DATE
    assert verified.tcb.advisory_ids == ("INTEL-SA-00001",)
    with pytest.raises(PolicyError, match="INTEL-SA-00001"):
        appraise(verified, safe_defaults(accept_simulated=True)).require()


def test_a_revoked_machine_is_revoked(machine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "collateral"
    assert run(["simulate", "collateral", str(machine), "-o", str(folder), "--at", AT, "--revoke"]) == ExitCode.OK
    with pytest.raises(RevokedError):
        QuoteVerifier(roots(folder)).verify(quote_of(machine), load_bundle(folder), now=NOW)


def test_a_declared_enclave_is_who_it_was_declared_to_be(
    machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "payment.toml", tmp_path / "collateral"
    options = ["--name", 'pay "ment" \\ überall', "--signer", "Contoso", "--product", "7", "--svn", "3"]
    assert run(["simulate", "enclave", "-o", str(path), *options]) == ExitCode.OK
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    run(["simulate", "collateral", str(machine), "-o", str(folder), "--at", AT])
    verified = QuoteVerifier(roots(folder)).verify(quote_of(machine, path), load_bundle(folder), now=NOW)
    body = verified.quote.body
    assert printed == {"MRENCLAVE": body.mr_enclave.hex(), "MRSIGNER": body.mr_signer.hex()}
    assert (body.isv_prod_id, body.isv_svn, body.attributes.debug) == (7, 3, False)
    policy = AllOf(safe_defaults(accept_simulated=True), MrSigner((bytes.fromhex(printed["MRSIGNER"]),)))
    assert appraise(verified, policy).require() is verified


def test_a_debug_enclave_is_refused_by_default(machine: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "debug.toml", tmp_path / "collateral"
    assert run(["simulate", "enclave", "-o", str(path), "--name", "x", "--debug"]) == ExitCode.OK
    run(["simulate", "collateral", str(machine), "-o", str(folder), "--at", AT])
    verified = QuoteVerifier(roots(folder)).verify(quote_of(machine, path), load_bundle(folder), now=NOW)
    with pytest.raises(PolicyError, match="debug on"):
        appraise(verified, safe_defaults(accept_simulated=True)).require()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--name", "two\nlines"],
        ["--name", "x", "--product", "65536"],
        ["--name", "x", "--svn", "-1"],
        [],
    ],
)
def test_a_bad_declaration_is_a_usage_error_without_a_file(arguments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "enclave.toml"
    assert run(["simulate", "enclave", "-o", str(path), *arguments]) == ExitCode.USAGE
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xd8\xff", b"[" * 10_000])
def test_what_is_no_machine_file_is_told_so(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "machine.json"
    path.write_bytes(content)
    code = run(["simulate", "collateral", str(path), "-o", str(tmp_path / "out")])
    assert code == ExitCode.MALFORMED
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_is_one_machine_of_a_world(machine: Path, tmp_path: Path) -> None:
    one, again, other = (tmp_path / name for name in ("one.json", "again.json", "other.json"))
    for path, name in ((one, "node-1"), (again, "node-1"), (other, "node-2"), (again, "node-1")):
        assert run(["simulate", "machine", "--world", str(machine), "--name", name, "-o", str(path)]) == ExitCode.OK
    assert one.read_bytes() == again.read_bytes() != other.read_bytes()
    assert stat.S_IMODE(again.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "machine.json", "one.json", "other.json"]
    folder = tmp_path / "collateral"
    assert run(["simulate", "collateral", str(machine), "-o", str(folder), "--at", AT]) == ExitCode.OK
    quote = quote_of(other)
    result = QuoteVerifier(roots(folder)).verify(quote, load_bundle(folder), now=NOW)
    assert result.simulated


def test_a_named_machine_takes_all_of_its_world_and_needs_one(machine: Path, tmp_path: Path) -> None:
    output = ["-o", str(tmp_path / "new.json")]
    for words in (["--name", "node-1"], ["--world", str(machine)], ["--world", str(machine), "--name", ""]):
        assert run(["simulate", "machine", *output, *words]) == ExitCode.USAGE
    named = ["--world", str(machine), "--name", "node-1"]
    assert run(["simulate", "machine", *output, *named, "--seed", SEED]) == ExitCode.USAGE
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize("at", [f"{day}T00:00:00Z" for day in ("1949-12-31", "1999-12-31", "2201-01-01", "9999-12-31")])
def test_a_world_of_another_age_is_refused(at: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine, other = tmp_path / "machine.json", tmp_path / "other"
    assert run(["simulate", "machine", "-o", str(machine)]) == ExitCode.OK
    for words in (["machine"], ["collateral", str(machine)]):
        capsys.readouterr()
        assert run(["simulate", *words, "-o", str(other), "--at", at]) == ExitCode.USAGE
        assert "2000 to 2200" in capsys.readouterr().err
        assert not other.exists()
