"""The program of `examples/remote_attestation` as two processes: they attest each other, and refuse other peers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from confcom.errors import ExitCode
from confcom.wiring import create_machine_file, export_simulated_collateral
from sample_stage import EXAMPLE, NOW, SIGNER, Ended, Stage, both, finish


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    stage.prepare()
    yield stage
    stage.end()


@pytest.fixture
def helper(stage: Stage) -> Path:
    """The real quote helper of that machine."""
    path = stage.folder / "aesm.socket"
    process = stage.start("-m", "confcom", "quote-helper", "--socket", path, "--machine", stage.machine)
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()
    return path


def assert_met(a: Ended, b: Ended) -> None:
    assert (a.code, b.code) == (0, 0), a.err + b.err
    assert "A: received, encrypted: 'hello from B'" in a.out
    assert "B: received, encrypted: 'hello from A'" in b.out
    assert "product 1, version 3," in a.out
    assert "product 1, version 2," in b.out


@pytest.mark.promise("M9")
@pytest.mark.promise("M11")
@pytest.mark.promise("M12")
def test_two_enclaves_meet_out_of_proc(stage: Stage, helper: Path) -> None:
    a, b = both(stage, "--socket", helper, SGX_AESM_ADDR="1")
    assert_met(a, b)
    for side in (a, b):
        assert "quotes out-of-proc" in side.out
        assert "because SGX_AESM_ADDR is set" in side.out
        assert "simulated" in side.out


@pytest.mark.promise("M8")
def test_two_enclaves_meet_in_proc(stage: Stage) -> None:
    a, b = both(stage)
    assert_met(a, b)
    assert "quotes in-proc" in a.out
    assert "because SGX_AESM_ADDR is not set" in b.out


@pytest.mark.promise("M8")
def test_one_side_in_proc_and_one_out_of_proc_meet_too(stage: Stage, helper: Path) -> None:
    a = stage.peer("A", "--listen", "--socket", helper, SGX_AESM_ADDR="")
    b = stage.peer("B", "--connect")
    assert_met(finish(a), finish(b))


def test_they_meet_over_tcp(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    a = stage.peer("A", "--listen", "--listen", address)
    b = stage.peer("B", "--connect", "--connect", address)
    assert_met(finish(a), finish(b))


@pytest.mark.promise("M12")
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"signer": "Mallory"}, [f"mr-signer: expected {SIGNER}"]),
        ({"isv_prod_id": 2}, ["isv-prod-id"]),
        ({"isv_svn": 1}, ["min-isv-svn"]),
        ({"debug": True}, ["found debug on"]),
        ({"isv_svn": 0, "debug": True}, ["min-isv-svn", "found debug on"]),
    ],
)
def test_who_is_not_expected_is_refused_with_every_reason(
    fields: dict[str, object], words: list[str], stage: Stage
) -> None:
    a = stage.peer("A", "--listen")
    b = stage.peer("B", "--connect", "--enclave", stage.declare("impostor", **fields))
    refusing, refused = finish(a), finish(b)
    assert refusing.code == ExitCode.REFUSED
    assert [word for word in words if word not in refusing.err] == []
    assert "received, encrypted" not in refusing.out
    assert "sent a quote" not in refusing.out
    # The caller does not learn who would have been accepted, nor who we are.
    assert refused.code == ExitCode.PLATFORM
    assert SIGNER not in refused.err


@pytest.mark.promise("M12")
def test_a_caller_refuses_too(stage: Stage) -> None:
    a = stage.peer("A", "--listen", "--enclave", stage.declare("impostor", signer="Mallory"))
    b = stage.peer("B", "--connect")
    refused, refusing = finish(a), finish(b)
    assert refusing.code == ExitCode.REFUSED
    assert "mr-signer" in refusing.err
    assert refused.code == ExitCode.PLATFORM
    assert "no conversation at meet" in refused.err


def test_without_the_simulated_root_nothing_simulated_is_accepted(stage: Stage) -> None:
    a = stage.start(
        EXAMPLE / "peer.py", "--listen", "unix:meet", "--machine", stage.machine, "--collateral", "collateral",
        "--policy", EXAMPLE / "policy.toml",
    )  # fmt: skip
    b = stage.peer("B", "--connect")
    refusing, refused = finish(a), finish(b)
    assert refusing.code == ExitCode.NOT_AUTHENTIC
    assert "root-untrusted" in refusing.err
    assert refused.code != ExitCode.OK


def test_a_tcb_that_is_not_up_to_date_is_accepted_only_on_purpose(stage: Stage) -> None:
    export_simulated_collateral(
        stage.machine, stage.folder / "collateral", NOW, tcb_status="SWHardeningNeeded", advisory_ids=["INTEL-SA-00001"]
    )
    a, _ = both(stage)
    assert a.code == ExitCode.REFUSED
    assert "SWHardeningNeeded" in a.err
    assert "INTEL-SA-00001" in a.err
    lenient = stage.folder / "lenient.toml"
    lenient.write_text((EXAMPLE / "policy.toml").read_text() + 'accept_tcb = ["UpToDate", "SWHardeningNeeded"]\n')
    a, b = both(stage, "--policy", lenient)
    assert_met(a, b)


def test_stale_collateral_decides_nothing_unless_the_policy_gives_it_grace(stage: Stage) -> None:
    old = datetime.fromtimestamp(NOW.timestamp() - 45 * 86400, UTC)
    stage.machine.unlink()
    create_machine_file(stage.machine, b"seed of the sample's tests", old)
    export_simulated_collateral(stage.machine, stage.folder / "collateral", old)
    a, b = both(stage)
    assert a.code == ExitCode.COLLATERAL
    assert "expired" in a.err
    assert b.code != ExitCode.OK
    patient = stage.folder / "patient.toml"
    patient.write_text((EXAMPLE / "policy.toml").read_text() + "collateral_grace_days = 90\n")
    assert_met(*both(stage, "--policy", patient))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--collateral", "nowhere"], ExitCode.COLLATERAL),
        (["--trust-root", "nowhere.pem"], ExitCode.USAGE),
        (["--trust-root", "machine.json"], ExitCode.USAGE),
        (["--trust-root", "."], ExitCode.USAGE),
        (["--policy", "nowhere.toml"], ExitCode.USAGE),
        (["--policy", "/dev/null"], ExitCode.USAGE),
        (["--policy", "machine.json"], ExitCode.USAGE),
        (["--machine", "nowhere.json"], ExitCode.USAGE),
        (["--enclave", "machine.json"], ExitCode.USAGE),
        (["--listen", "no-address"], ExitCode.USAGE),
        (["--listen", "127.0.0.1:99999"], ExitCode.PLATFORM),
        (["--listen", "unix:nowhere/meet"], ExitCode.PLATFORM),
        (["--listen", "unix:machine.json"], ExitCode.PLATFORM),
    ],
)
def test_a_mistake_on_the_command_line_is_reported_at_once(options: list[str], code: ExitCode, stage: Stage) -> None:
    before = stage.machine.read_bytes()
    ended = finish(stage.peer("A", "--listen", *options))
    assert ended.code == code, ended.err
    assert options[1].removeprefix("unix:") in ended.err
    assert stage.machine.read_bytes() == before


def test_no_enclave_here_is_a_sentence(stage: Stage) -> None:
    options = ["--listen", "unix:meet", "--collateral", "collateral", "--policy", EXAMPLE / "policy.toml"]
    ended = finish(stage.start(EXAMPLE / "peer.py", *options))
    assert ended.code == ExitCode.PLATFORM
    assert "this process is in no enclave" in ended.err
    assert "name a simulated machine" in ended.err


def meet(stage: Stage) -> socket.socket:
    """Connect to the waiting side as another program."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(60)
    deadline = time.monotonic() + 60
    while True:
        try:
            stream.connect(str(stage.folder / "meet"))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return stream


HELLO = b"confcom sample 2"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="silence"),
        pytest.param(b"abcd", id="a short hello"),
        pytest.param(bytes(48), id="a hello of zeros"),
        pytest.param(HELLO + bytes(32), id="a key of zeros and no quote"),
        pytest.param(HELLO + bytes(32) + b"\xff\xff\xff\xff", id="a quote of 4 GiB"),
        pytest.param(HELLO + bytes(32) + b"\0\0\0\0", id="an empty quote"),
        pytest.param(HELLO + bytes(32) + b"\0\0\0\x06\x1b[31mX", id="a quote with escapes"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n", id="HTTP"),
    ],
)
@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays"])
def test_what_is_no_peer_ends_with_a_message_and_in_time(sent: bytes, leaves: bool, stage: Stage) -> None:
    waiting = stage.peer("A", "--listen", "--timeout", "3")
    with meet(stage) as stream:
        stream.sendall(sent)
        if leaves:
            stream.shutdown(socket.SHUT_WR)
        ended = finish(waiting)
    assert ended.code in {ExitCode.MALFORMED, ExitCode.PLATFORM}
    assert ended.err.startswith("A: ")
    assert "\x1b" not in ended.err
