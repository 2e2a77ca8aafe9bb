"""`confcom policy from`: from the file that a vendor signed to a verdict on the enclave that runs (M12)."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from confcom.cli.root import run
from confcom.errors import ExitCode
from signed_enclaves import enclave_file, signing_key, sigstruct

AT = "2026-03-01T12:00:00Z"
Judge = Callable[[Path, Path], tuple[int, dict[str, object]]]


@pytest.fixture
def judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Judge:
    """Run an enclave file on a simulated machine, take its quote, and judge it by a policy file."""
    machine, collateral = str(tmp_path / "machine.json"), tmp_path / "collateral"
    assert run(["simulate", "machine", "-o", machine, "--at", AT]) == ExitCode.OK
    assert run(["simulate", "collateral", machine, "-o", str(collateral), "--at", AT]) == ExitCode.OK

    def verdict(policy: Path, enclave: Path) -> tuple[int, dict[str, object]]:
        quote = str(tmp_path / "quote.bin")
        words = ["--machine", machine, "--enclave", str(enclave), "--report-data", "00", "-o", quote]
        assert run(["quote", *words]) == ExitCode.OK
        capsys.readouterr()
        root = str(collateral / "root_ca.pem")
        words = ["--collateral", str(collateral), "--trust-root", root, "--policy", str(policy), "--at", AT, "--json"]
        code = run(["verify", quote, *words])
        return code, json.loads(capsys.readouterr().out)

    return verdict


@pytest.mark.promise("M12")
def test_mrsigner_proves_who_signed_the_code(judge: Judge, tmp_path: Path) -> None:
    ours, theirs, update = (tmp_path / f"{name}.signed.so" for name in ("ours", "theirs", "update"))
    ours.write_bytes(enclave_file(sigstruct("app")))
    theirs.write_bytes(enclave_file(sigstruct("app", key=signing_key("somebody else"))))
    update.write_bytes(enclave_file(sigstruct("app 2", svn=4)))
    policy = tmp_path / "policy.toml"
    assert run(["policy", "from", str(ours), "-o", str(policy)]) == ExitCode.OK

    assert judge(policy, ours)[0] == ExitCode.OK
    code, result = judge(policy, theirs)
    assert code == ExitCode.REFUSED
    assert "mr-signer" in json.dumps(result)

    # The line of the build taken out, as the file says: later versions of the same signer, and of no other.
    assert judge(policy, update)[0] == ExitCode.REFUSED
    policy.write_text("\n".join(line for line in policy.read_text().splitlines() if "mr_enclave" not in line))
    assert judge(policy, update)[0] == ExitCode.OK
    assert judge(policy, theirs)[0] == ExitCode.REFUSED


def test_the_policy_goes_to_standard_output_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "app.sig"
    path.write_bytes(bytes(sigstruct("app", prod_id=9)))
    assert run(["policy", "from", str(path)]) == ExitCode.OK
    assert "isv_prod_id = 9\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["policy", "from"], ["inspect"]])
def test_a_program_that_nobody_signed(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "program"
    path.write_bytes(b"\x7fELF" + bytes(4000))
    assert run([*command, str(path)]) == ExitCode.MALFORMED
    said = capsys.readouterr().err
    assert "no SIGSTRUCT" in said
    assert command == ["inspect"] or str(path) in said
    assert "Traceback" not in said


def test_inspect_shows_the_signer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "app.signed.so"
    path.write_bytes(enclave_file(sigstruct("app", svn=12)))
    assert run(["inspect", "--json", str(path)]) == ExitCode.OK
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["fields"]["isv_svn"]) == ("signed-enclave", 12)
    assert len(shown["fields"]["mr_signer"]) == 64


def test_a_policy_of_the_enclave_in_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer, image = tmp_path / "layer.tar", tmp_path / "image.tar"
    for name in ("app", "qe"):
        (tmp_path / f"{name}.so").write_bytes(enclave_file(sigstruct(name)))
    with tarfile.open(layer, "w") as archive:
        archive.add(tmp_path / "app.so", "opt/app.so")
        archive.add(tmp_path / "qe.so", "usr/lib/qe.so")
    (tmp_path / "manifest.json").write_text('[{"Layers": ["layer.tar"]}]')
    with tarfile.open(image, "w") as archive:
        for name in ("layer.tar", "manifest.json"):
            archive.add(tmp_path / name, name)
    assert run(["policy", "from", str(image)]) == ExitCode.MALFORMED
    assert "Name one with --file: /opt/app.so, /usr/lib/qe.so." in capsys.readouterr().err
    assert run(["policy", "from", str(image), "--file", "/opt/app.so"]) == ExitCode.OK
    of_image = capsys.readouterr().out
    assert run(["policy", "from", str(tmp_path / "app.so")]) == ExitCode.OK
    assert capsys.readouterr().out == of_image
    assert run(["policy", "from", str(tmp_path / "app.so"), "--file", "x"]) == ExitCode.USAGE
