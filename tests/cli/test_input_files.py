"""Every option that names a file takes a pipe, and gives up one that no process writes, with the file's name."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from confcom import input_file
from confcom.cli.root import run
from confcom.errors import ExitCode
from signed_enclaves import enclave_file, sigstruct

AT = "2026-03-01T12:00:00Z"
LINES = (
    "verify PIPE",
    "verify --certificate PIPE --isv-prod-id 1 --mr-signer " + "00" * 32,
    "verify FILE --policy PIPE",
    "verify FILE --held-data PIPE",
    "verify FILE --pck-chain PIPE",
    "verify FILE --trust-root PIPE",
    "verify QUOTE --collateral PIPE",
    "verify QUOTE --collateral https://127.0.0.1:1 --collateral-ca PIPE",
    "inspect PIPE",
    "policy from PIPE",
    "policy lint PIPE",
    "policy try PIPE FILE",
    "policy try FILE PIPE",
    "quote --held-data PIPE",
    "quote --report-data 00 --machine PIPE",
    "quote --report-data 00 --machine MACHINE --enclave PIPE",
    "check-pods PIPE",
    "collateral import --store STORE PIPE",
    "collateral fetch --store STORE --quote PIPE",
    "collateral fetch --store STORE --fmspc 000000000000 --source https://127.0.0.1:1 --collateral-ca PIPE",
    "collateral fetch --store STORE --fmspc 000000000000 --source PIPE",
    "collateral status --store PIPE",
    "collateral serve --config PIPE",
    "collateral serve --store STORE --listen 127.0.0.1:0 --tls-certificate PIPE --tls-key FILE",
    "collateral serve --store STORE --insecure-http --listen 127.0.0.1:0 --upstream-key-file PIPE",
    "token verify PIPE --keys FILE --issuer https://issuer.example",
    "token verify FILE --keys PIPE --issuer https://issuer.example",
    "simulate collateral PIPE -o OUT",
    "simulate machine -o OUT --world PIPE --name node",
    "addon manifests --platform simulated --simulated-world PIPE",
    "quote-helper --platform simulated --socket OUT --machine PIPE",
)

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    names = {name: str(tmp_path / name.lower()) for name in ("PIPE", "FILE", "QUOTE", "MACHINE", "STORE", "OUT")}
    os.mkfifo(names["PIPE"])
    Path(names["FILE"]).write_bytes(b"version= 1.0;\nauthorizationrules\n{\n=> permit();\n};\nissuancerules\n{\n};\n")
    assert run(["simulate", "machine", "-o", names["MACHINE"], "--at", AT]) == ExitCode.OK
    words = ["--machine", names["MACHINE"], "--report-data", "00", "-o", names["QUOTE"]]
    assert run(["quote", *words]) == ExitCode.OK
    return names


@pytest.mark.parametrize("line", LINES)
def test_a_pipe_that_no_process_writes_is_given_up(
    line: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(input_file, "PATIENCE", 0.1)
    capsys.readouterr()
    code = run([places.get(word, word) for word in line.split()])
    said = "".join(capsys.readouterr())
    assert code not in (ExitCode.OK, ExitCode.UNEXPECTED), said
    assert places["PIPE"] in said
    assert "Traceback" not in said


OVER_INPUTS = (
    "verify QUOTE --collateral COLLATERAL --trust-root ROOT --html QUOTE",
    "verify QUOTE --collateral COLLATERAL --trust-root ROOT --html LINK",
    "verify QUOTE --collateral COLLATERAL --trust-root ROOT --html ROOT",
    "verify QUOTE --collateral COLLATERAL --trust-root ROOT --html CRL",
    "verify - --collateral COLLATERAL --trust-root ROOT --html QUOTE",
    "quote --report-data 00 --machine MACHINE -o MACHINE",
    "policy from ENCLAVE -o ENCLAVE",
    "policy lint FILE -o FILE",
    "simulate machine --world MACHINE --name node -o MACHINE",
    "collateral export --store STORE --trust-root ROOT -o STORE",
)


@pytest.mark.parametrize("line", OVER_INPUTS)
def test_no_command_writes_over_its_own_input(line: str, places: dict[str, str], tmp_path: Path) -> None:
    collateral = tmp_path / "collateral"
    assert run(["simulate", "collateral", places["MACHINE"], "-o", str(collateral), "--at", AT]) == ExitCode.OK
    places |= {"COLLATERAL": str(collateral), "ROOT": str(collateral / "root_ca.pem"), "LINK": str(tmp_path / "link")}
    places |= {"CRL": str(collateral / "root_ca_crl.der"), "ENCLAVE": str(tmp_path / "enclave.so")}
    assert Path(places["CRL"]).exists()
    Path(places["LINK"]).symlink_to(places["QUOTE"])
    Path(places["ENCLAVE"]).write_bytes(enclave_file(sigstruct("app")))
    if "STORE" in line:
        words = ["--store", places["STORE"], "--trust-root", places["ROOT"]]
        assert run(["collateral", "import", *words, str(collateral)]) == ExitCode.OK
    words = [places.get(word, word) for word in line.split()]
    output = Path(words[-1])
    before = output.read_bytes()
    with Path(places["QUOTE"]).open("rb") as quote:
        done = subprocess.run(
            [sys.executable, "-m", "confcom", *words], stdin=quote, capture_output=True, text=True, check=False
        )
    assert done.returncode == ExitCode.USAGE
    assert f"{output} is " in done.stderr
    assert "would be overwritten" in done.stderr
    assert output.read_bytes() == before


def test_an_output_that_was_another_commands_input_is_replaced(places: dict[str, str], tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    assert run(["policy", "lint", places["FILE"], "-o", str(mended)]) == ExitCode.OK
    assert run(["policy", "lint", str(mended)]) == ExitCode.OK
    assert run(["policy", "lint", places["FILE"], "-o", str(mended)]) == ExitCode.OK


@pytest.mark.parametrize(
    "line",
    [
        "verify QUOTE --collateral COLLATERAL --trust-root ROOT --html -",
        "policy lint FILE -o -",
        "simulate machine -o -",
        "simulate machine --world MACHINE --name node -o -",
        "simulate enclave --name app -o -",
        "simulate collateral MACHINE -o -",
        "collateral fetch --store STORE --fmspc 000000000000 -o -",
        "certificate --machine MACHINE -o -",
        "attestation new-keys -",
        "demo --keep -",
        "quote --report-data 00 --machine - -o OUT",
    ],
)
def test_a_dash_is_no_file(
    line: str,
    places: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["simulate", "collateral", places["MACHINE"], "-o", "collateral", "--at", AT]) == ExitCode.OK
    capsys.readouterr()
    places |= {"COLLATERAL": "collateral", "ROOT": "collateral/root_ca.pem"}
    assert run([places.get(word, word) for word in line.split()]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert "standard input or output" in err
    assert not Path("-").exists()


def test_a_policy_of_an_enclave_goes_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("enclave.so").write_bytes(enclave_file(sigstruct("app")))
    for words in ([], ["-o", "-"]):
        assert run(["policy", "from", "enclave.so", *words]) == ExitCode.OK
        assert "mr_enclave" in capsys.readouterr().out
    assert not Path("-").exists()


def piped(path: Path, content: bytes) -> threading.Thread:
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_bytes, args=(content,), daemon=True)
    thread.start()
    return thread


def test_a_policy_comes_from_an_image_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enclave, layer, image, pipe = (tmp_path / name for name in ("app.signed.so", "layer.tar", "image.tar", "pipe"))
    enclave.write_bytes(enclave_file(sigstruct("app")))
    with tarfile.open(layer, "w") as archive:
        archive.add(enclave, "opt/app.signed.so")
    (tmp_path / "manifest.json").write_text('[{"Layers": ["layer.tar"]}]')
    with tarfile.open(image, "w") as archive:
        archive.add(layer, "layer.tar")
        archive.add(tmp_path / "manifest.json", "manifest.json")
    assert run(["policy", "from", str(image)]) == ExitCode.OK
    expected = capsys.readouterr().out

    piped(pipe, image.read_bytes())
    assert run(["policy", "from", str(pipe)]) == ExitCode.OK
    assert capsys.readouterr().out == expected


def test_an_archive_is_imported_from_a_pipe(
    tmp_path: Path, places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, archive, copy, pipe = (tmp_path / name for name in ("collateral", "archive", "copy.sqlite", "arriving"))
    assert run(["simulate", "collateral", places["MACHINE"], "-o", str(folder)]) == ExitCode.OK
    root = ["--trust-root", str(folder / "root_ca.pem")]
    assert run(["collateral", "import", str(folder), "--store", places["STORE"], *root]) == ExitCode.OK
    assert run(["collateral", "export", "-o", str(archive), "--store", places["STORE"], *root]) == ExitCode.OK
    capsys.readouterr()

    piped(pipe, archive.read_bytes())
    assert run(["collateral", "import", str(pipe), "--store", str(copy), *root]) == ExitCode.OK
    assert "documents verified" in capsys.readouterr().out


def test_the_machine_comes_from_a_pipe(tmp_path: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_file, "PATIENCE", 1)
    piped(tmp_path / "arriving", Path(places["MACHINE"]).read_bytes())
    line = ["quote", "--machine", str(tmp_path / "arriving"), "--report-data", "00", "-o", places["OUT"]]
    assert run(line) == ExitCode.OK
    assert Path(places["OUT"]).stat().st_size == Path(places["QUOTE"]).stat().st_size


LONG = "n" * 300
"""No file system has such a name."""


@pytest.mark.parametrize(
    "line",
    [
        f"policy from {LONG}",
        f"attestation migrate --store STORE --from {LONG}",
        f"attestation audit --store {LONG}",
        f"collateral serve --store STORE --insecure-http --listen 127.0.0.1:0 --upstream-key-file {LONG}",
    ],
)
def test_a_name_that_no_file_can_have_is_explained(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONFCOM_COLLATERAL_SERVICE_UPSTREAM_KEY_OPTIONAL", "true")
    code = run([word.replace("STORE", str(tmp_path / "store.sqlite")) for word in line.split()])
    assert code == ExitCode.USAGE
    assert f"{LONG}: File name too long" in capsys.readouterr().err


def test_a_dash_is_standard_input_beside_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("enclave.so").write_bytes(enclave_file(sigstruct("app")))
    with tarfile.open("-", "w") as archive:
        archive.add("enclave.so")
    with Path("enclave.so").open("rb") as raw:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
        assert run(["policy", "from", "-"]) == ExitCode.OK
    assert "mr_enclave" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["collateral import --store STORE PIPE", "inspect PIPE", "policy from PIPE"])
def test_a_pipe_that_stops_halfway_is_given_up(
    line: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(input_file, "PATIENCE", 0.3)
    held = os.open(places["PIPE"], os.O_RDWR)
    os.write(held, b"some bytes")
    try:
        code = run([places.get(word, word) for word in line.split()])
    finally:
        os.close(held)
    assert code == ExitCode.USAGE
    assert f"{places['PIPE']}: it is a pipe, and gave nothing" in capsys.readouterr().err


@pytest.mark.parametrize("opened", ["<&-", "0>>/dev/null"])
@pytest.mark.parametrize("line", ["inspect -", "policy from -", "collateral import --store STORE -", "verify -"])
def test_standard_input_that_cannot_be_read_is_no_mistake_of_ours(line: str, opened: str, tmp_path: Path) -> None:
    words = [word.replace("STORE", str(tmp_path / "store.sqlite")) for word in line.split()]
    shell = ["/bin/sh", "-c", f'exec "$@" {opened}', "sh", sys.executable, "-m", "confcom", *words]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode not in (ExitCode.OK, ExitCode.UNEXPECTED), done.stderr
    assert "what to do" in done.stderr + done.stdout


@pytest.mark.parametrize("store", [LONG, f"{LONG}/store.sqlite"])
def test_a_store_that_cannot_be_made_is_explained(
    store: str, tmp_path: Path, places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "collateral"
    assert run(["simulate", "collateral", places["MACHINE"], "-o", str(folder)]) == ExitCode.OK
    words = ["collateral", "import", str(folder), "--trust-root", str(folder / "root_ca.pem")]
    capsys.readouterr()
    assert run([*words, "--store", str(tmp_path / store)]) in (ExitCode.USAGE, ExitCode.COLLATERAL)
    assert LONG in (said := capsys.readouterr().err)
    assert "File name too long" in said


def test_a_document_that_cannot_be_looked_at_is_named(
    tmp_path: Path, places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a folder that may be listed and not entered."""
    folder = tmp_path / "collateral"
    assert run(["simulate", "collateral", places["MACHINE"], "-o", str(folder)]) == ExitCode.OK
    (folder / "tcb_info.json").unlink()
    (folder / "tcb_info.json").symlink_to(LONG)
    capsys.readouterr()
    assert run(["collateral", "import", str(folder), "--store", places["STORE"]]) == ExitCode.COLLATERAL
    assert "tcb_info.json cannot be read: File name too long" in capsys.readouterr().err
