"""The sample as two real processes: they attest each other, and refuse whoever is not whom they expect."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from confcom.cli.exit_codes import ExitCode
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
    assert "A: received, encrypted: 'greetings from B'" in a.out
    assert "B: received, encrypted: 'greetings from A'" in b.out
    assert "product 1, security version 3, debug off" in a.out
    assert "product 1, security version 2, debug off" in b.out


@pytest.mark.promise("M9")
@pytest.mark.promise("M11")
@pytest.mark.promise("M12")
def test_two_enclaves_meet_out_of_proc(stage: Stage, helper: Path) -> None:
    a, b = both(stage, "--socket", helper, SGX_AESM_ADDR="1")
    assert_met(a, b)
    for side in (a, b):
        assert "quotes out-of-proc" in side.out
        assert "because SGX_AESM_ADDR is set" in side.out
        assert "SIMULATED" in side.out


@pytest.mark.promise("M8")
def test_two_enclaves_meet_in_proc(stage: Stage) -> None:
    a, b = both(stage)
    assert_met(a, b)
    assert "quotes in-proc" in a.out
    assert "because SGX_AESM_ADDR is not set" in b.out


@pytest.mark.promise("M8")
def test_one_side_in_proc_and_one_out_of_proc_meet_too(stage: Stage, helper: Path) -> None:
    a = stage.peer("A", "--listen", "--enclave", EXAMPLE / "enclave_a.toml", "--socket", helper, SGX_AESM_ADDR="")
    b = stage.peer("B", "--connect", "--enclave", EXAMPLE / "enclave_b.toml")
    assert_met(finish(a), finish(b))


@pytest.mark.promise("M8")
def test_two_enclaves_of_one_machine_meet_without_quotes(stage: Stage) -> None:
    for name in (stage.folder / "collateral").iterdir():
        name.unlink()  # nothing of it is needed
    a, b = both(stage, "--local")
    assert_met(a, b)
    assert "an enclave on this very machine" in a.out
    assert "quote" not in a.out


@pytest.mark.promise("M8")
def test_enclaves_of_two_machines_are_no_neighbours(stage: Stage) -> None:
    other = stage.folder / "other.json"
    create_machine_file(other, b"seed of another machine", NOW)
    a = stage.peer("A", "--listen", "--local")
    b = stage.peer("B", "--connect", "--local", "--machine", other)
    refusing, refused = finish(a), finish(b)
    assert refusing.code == ExitCode.PLATFORM
    assert "REFUSED (report-rejected)" in refusing.err
    assert "refused to go on: report-rejected" in refused.err


def test_they_meet_over_tcp(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    a = stage.peer("A", "--listen", "--listen", address, "--enclave", EXAMPLE / "enclave_a.toml")
    b = stage.peer("B", "--connect", "--connect", address, "--enclave", EXAMPLE / "enclave_b.toml")
    assert_met(finish(a), finish(b))


@pytest.mark.promise("M12")
@pytest.mark.parametrize("local", [False, True], ids=["remote", "local"])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"signer": "Mallory"}, f"mr-signer: expected {SIGNER}"),
        ({"isv_prod_id": 2}, "isv-prod-id"),
        ({"isv_svn": 1}, "min-isv-svn"),
        ({"debug": True}, "found debug on"),
        ({"isv_svn": 0, "debug": True}, "; "),
    ],
)
def test_whoever_is_not_expected_is_refused_with_every_reason(
    local: bool, fields: dict[str, object], words: str, stage: Stage
) -> None:
    kind = ["--local"] if local else []
    a = stage.peer("A", "--listen", *kind)
    b = stage.peer("B", "--connect", *kind, "--enclave", stage.declare("impostor", **fields))
    refusing, refused = finish(a), finish(b)
    assert refusing.code == ExitCode.REFUSED
    assert words in refusing.err
    assert "received, encrypted" not in refusing.out
    assert refused.code != ExitCode.OK
    # The one who called learns that it was refused, but not who would have been accepted, nor who we are.
    assert "refused to go on: policy-refused" in refused.err
    assert SIGNER not in refused.err
    assert "sent a" not in refusing.out


@pytest.mark.promise("M12")
def test_a_caller_refuses_too(stage: Stage) -> None:
    a = stage.peer("A", "--listen", "--enclave", stage.declare("impostor", signer="Mallory"))
    b = stage.peer("B", "--connect")
    refused, refusing = finish(a), finish(b)
    assert refusing.code == ExitCode.REFUSED
    assert "mr-signer" in refusing.err
    assert "refused to go on" in refused.err


def test_without_the_simulated_root_nothing_simulated_is_accepted(stage: Stage) -> None:
    a = stage.start(
        EXAMPLE / "peer.py", "--listen", "unix:meet", "--machine", stage.machine, "--collateral", "collateral",
        "--signer", SIGNER, "--product", "1", "--min-svn", "2",
    )  # fmt: skip
    b = stage.peer("B", "--connect")
    refusing, refused = finish(a), finish(b)
    assert refusing.code == ExitCode.NOT_AUTHENTIC
    assert "REFUSED (root-untrusted)" in refusing.err
    assert refused.code != ExitCode.OK


def test_a_tcb_that_is_not_up_to_date_is_accepted_only_on_purpose(stage: Stage) -> None:
    export_simulated_collateral(
        stage.machine, stage.folder / "collateral", NOW, tcb_status="SWHardeningNeeded", advisory_ids=["INTEL-SA-00001"]
    )
    a, _ = both(stage)
    assert a.code == ExitCode.REFUSED
    assert "SWHardeningNeeded" in a.err
    assert "INTEL-SA-00001" in a.err
    a, b = both(stage, "--accept-tcb", "UpToDate,SWHardeningNeeded")
    assert_met(a, b)


def test_stale_collateral_decides_nothing(stage: Stage) -> None:
    old = datetime(NOW.year - 1, 1, 1, tzinfo=UTC)
    stage.machine.unlink()
    create_machine_file(stage.machine, b"seed of the sample's tests", old)
    export_simulated_collateral(stage.machine, stage.folder / "collateral", old)
    a, b = both(stage)
    assert a.code == ExitCode.COLLATERAL
    assert "expired" in a.err
    assert b.code != ExitCode.OK


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--signer", "00"], ExitCode.USAGE),
        (["--collateral", "nowhere"], ExitCode.COLLATERAL),
        (["--trust-root", "nowhere.pem"], ExitCode.USAGE),
        (["--accept-tcb", "Revoked"], ExitCode.USAGE),
        (["--accept-tcb", "Splendid"], ExitCode.USAGE),
        (["--machine", "nowhere.json"], ExitCode.USAGE),
        (["--listen", "unix:nowhere/meet"], ExitCode.USAGE),
        (["--listen", "no-address"], ExitCode.USAGE),
    ],
)
def test_a_mistake_on_the_command_line_is_told_at_once(options: list[str], code: ExitCode, stage: Stage) -> None:
    ended = finish(stage.peer("A", "--listen", *options))
    assert ended.code == code, ended.err
    assert "what to do" in ended.err


def test_the_path_of_somebody_else_is_left_alone(stage: Stage) -> None:
    (stage.folder / "meet").write_text("not ours")
    ended = finish(stage.peer("A", "--listen"))
    assert ended.code == ExitCode.USAGE
    assert (stage.folder / "meet").read_text() == "not ours"


def meet(stage: Stage) -> socket.socket:
    """Connect to the waiting side as somebody who does not run the sample."""
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


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="silence"),
        pytest.param(b"\x01\xff\xff\xff\xff", id="a frame of 4 GiB"),
        pytest.param(b"\x02\0\0\0\0", id="another frame"),
        pytest.param(b"\x63\0\0\0\0", id="an unknown frame"),
        pytest.param(b"\x01\0\0\0\x04abcd", id="a short hello"),
        pytest.param(b"\x01\0\0\x02\x32" + bytes(562), id="a hello of zeros"),
        pytest.param(b"\x0f\0\0\0\x06\x1b[31mX", id="a refusal with escapes"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="HTTP"),
    ],
)
@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays"])
def test_what_is_no_peer_ends_with_a_message_and_in_time(sent: bytes, leaves: bool, stage: Stage) -> None:
    waiting = stage.peer("A", "--listen", "--timeout", "2")
    with meet(stage) as stream:
        stream.sendall(sent)
        if leaves:
            stream.shutdown(socket.SHUT_WR)
        ended = finish(waiting)
    assert ended.code in {ExitCode.MALFORMED, ExitCode.PLATFORM}
    assert "what to do" in ended.err
    assert "\x1b" not in ended.err
