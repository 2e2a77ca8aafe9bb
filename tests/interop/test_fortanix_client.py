"""Fortanix' AESM client (crate aesm-client) against our quote helper over the simulated platform."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from confcom.appraisal.quote import verify_quote
from confcom.errors import PlatformBusy, PlatformUnavailable
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.formats.sgx import Report, TargetInfo
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import SimulatedEnclave
from confcom.simulator.world import SimulatedWorld
from recording_platform import RecordingPlatform
from running_helper import RunningHelper, running_helper

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

SOURCE = Path(__file__).parent / "fortanix"
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
KEY_ID = bytes(ECDSA_P256_KEY_ID).hex()
NONCE = b"sixteen bytes ok".hex()
DATA = bytes(range(64))

Client = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built by cargo into its own target folder; a second build is a matter of moments."""
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip("cargo is not installed: Fortanix' client cannot be built")
    tools = tmp_path_factory.mktemp("tools")
    if shutil.which("protoc") is None:
        # Its build script calls protoc; the one in grpcio-tools has no program of its own.
        protoc = tools / "protoc"
        protoc.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m grpc_tools.protoc "$@"\n')
        protoc.chmod(0o755)
    built = subprocess.run(
        [cargo, "build", "--quiet", "--locked"],
        cwd=SOURCE,
        env=os.environ | {"PATH": f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{tools}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return SOURCE / "target" / "debug" / "fortanix-aesm"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "aesm.socket"


@pytest.fixture
def client(program: Path, path: Path) -> Client:
    def call(command: str, *values: str) -> dict[str, Any]:
        done = subprocess.run(
            [program, str(path), command, *values], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return call


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(bytes(32), now=NOW)


@pytest.fixture
def enclave(world: SimulatedWorld) -> SimulatedEnclave:
    return world.machine.launch(EnclaveDeclaration.from_names("app", "us"))


@pytest.fixture
def helper(world: SimulatedWorld, path: Path) -> Iterator[RunningHelper]:
    with running_helper(world.platform, path) as running:
        yield running


def test_the_whole_flow_ends_in_a_quote_that_verifies(
    helper: RunningHelper, client: Client, world: SimulatedWorld, enclave: SimulatedEnclave
) -> None:
    assert client("ids") == {"att_key_ids": [KEY_ID]}
    info = client("init", KEY_ID)
    report = enclave.create_report(TargetInfo.parse(bytes.fromhex(info["target_info"][0])), DATA)
    result = client("quote", KEY_ID, bytes(report).hex(), NONCE, bytes(enclave.target_info).hex())

    quote = bytes.fromhex(result["quote"][0])
    assert verify_quote(quote, world.publish(NOW), roots=world.trust_roots, now=NOW).simulated
    assert DATA in quote
    qe_report = Report.parse(bytes.fromhex(result["qe_report"][0]))
    enclave.verify_report(qe_report)
    assert qe_report.body.report_data == hashlib.sha256(bytes.fromhex(NONCE) + quote).digest() + bytes(32)
    assert len(info["pub_key_id"][0]) == 64
    kinds = [event.kind for event in helper.wait_for_events(6)]
    assert kinds == [
        "GetSupportedAttKeyIdNum",
        "GetSupportedAttKeyIds",
        "InitQuoteEx",
        "InitQuoteEx",
        "GetQuoteSizeEx",
        "GetQuoteEx",
    ]


def test_it_derives_the_target_of_the_qe_report_by_itself(
    helper: RunningHelper, client: Client, enclave: SimulatedEnclave
) -> None:
    info = client("init", KEY_ID)
    report = enclave.create_report(TargetInfo.parse(bytes.fromhex(info["target_info"][0])), DATA)

    result = client("quote", KEY_ID, bytes(report).hex(), NONCE)

    enclave.verify_report(Report.parse(bytes.fromhex(result["qe_report"][0])))


def test_a_forged_report_is_refused_as_invalid(
    helper: RunningHelper, client: Client, enclave: SimulatedEnclave
) -> None:
    info = client("init", KEY_ID)
    report = bytearray(bytes(enclave.create_report(TargetInfo.parse(bytes.fromhex(info["target_info"][0])), DATA)))
    report[64] ^= 1

    assert client("quote", KEY_ID, report.hex(), NONCE) == {"error": "AesmCode(InvalidReport_47)"}


def test_an_unknown_key_is_unsupported(helper: RunningHelper, client: Client) -> None:
    assert client("init", bytes(256).hex()) == {"error": "AesmCode(UnsupportedAttKeyId_38)"}


def test_a_short_key_is_a_parameter_error(helper: RunningHelper, client: Client) -> None:
    assert client("init", KEY_ID[:-2]) == {"error": "AesmCode(ParameterError_3)"}


def test_epid_is_unavailable(helper: RunningHelper, client: Client) -> None:
    assert client("legacy") == {"error": "AesmCode(ServiceUnavailable_30)"}


def test_its_connection_test_is_harmless(helper: RunningHelper, client: Client) -> None:
    assert client("connect") == {}
    assert client("ids") == {"att_key_ids": [KEY_ID]}


@pytest.mark.parametrize(
    ("error", "told"),
    [(PlatformBusy("later"), "Busy_18"), (PlatformUnavailable("no QE"), "ServiceUnavailable_30")],
)
def test_a_platform_in_trouble_is_an_error_code(client: Client, path: Path, error: Exception, told: str) -> None:
    platform = RecordingPlatform()
    with running_helper(platform, path):

        def fail(_: str) -> None:
            raise error

        platform.before = fail

        assert client("init", KEY_ID) == {"error": f"AesmCode({told})"}


def test_before_the_key_is_made_it_is_not_initialized(client: Client, path: Path) -> None:
    platform = RecordingPlatform()
    with running_helper(platform, path):
        platform.initialized = False

        assert client("quote", KEY_ID, bytes(432).hex(), NONCE) == {"error": "AesmCode(AttKeyNotInitialized_42)"}
