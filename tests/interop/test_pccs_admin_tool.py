"""Intel's administrator tool of its caching service works with ours: CONFCOM_PCCS_ADMIN names its pccsadmin.py.

The Python that runs the tests needs its requirement `requests`; CONFCOM_PCCS_ADMIN_PYTHON names another one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from confcom.simulator.enclaves import QuotingEnclave
from confcom.simulator.world import SimulatedWorld
from running_collateral_service import FMSPC, NOW, SEED, Clock, RecordedUpstream, RunningService, running_service

TOOL = os.environ.get("CONFCOM_PCCS_ADMIN")
PYTHON = os.environ.get("CONFCOM_PCCS_ADMIN_PYTHON", sys.executable)
ADMIN, USER = "the admin's token", "the user's token"
V4 = "/sgx/certification/v4"

pytestmark = pytest.mark.skipif(TOOL is None, reason="set CONFCOM_PCCS_ADMIN to Intel's pccsadmin.py")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    world = SimulatedWorld.from_seed(SEED, now=NOW)
    hashes = {f"{kind}_token_hash": hashlib.sha512(word.encode()).hexdigest() for kind, word in TOKENS.items()}
    upstream = RecordedUpstream(world, Clock(NOW))
    with running_service(tmp_path / "s.sqlite", upstream, world.trust_roots, Clock(NOW), **hashes) as service:
        machine = world.machine
        platform = {
            "qe_id": QuotingEnclave(machine, world.authority.pck_chain(machine)).qe_id.hex(),
            "pce_id": "0000",
            "cpu_svn": machine.tcb.cpu_svn.hex(),
            "pce_svn": "0d00",
            "enc_ppid": "ab" * 384,
        }
        path, headers = f"{V4}/platforms", {"user-token": USER}
        assert service.ask(path, method="POST", headers=headers, body=platform).status == 200
        yield service


TOKENS = {"admin": ADMIN, "user": USER}


@pytest.fixture
def run(tmp_path: Path, service: RunningService) -> Callable[..., str]:
    def run(command: str, path: str, *options: str) -> str:
        arguments = [PYTHON, str(TOOL), command, "-u", f"{service.url}{V4}/{path}", *options]
        ran = subprocess.run(
            arguments, cwd=tmp_path, input=f"{ADMIN}\nn\n", capture_output=True, text=True, timeout=120, check=True
        )
        return ran.stdout

    return run


def test_it_lists_platforms(run, tmp_path: Path) -> None:
    assert "saved successfully" in run("get", "platforms", "-s", f"[{FMSPC}]", "-o", "found.json")
    assert len(json.loads((tmp_path / "found.json").read_text())) == 1
    assert "saved successfully" in run("get", "platforms", "-o", "queue.json")
    assert json.loads((tmp_path / "queue.json").read_text()) == []


@pytest.mark.parametrize("fmspc", [[], ["-f", "all"], ["-f", f"[{FMSPC}, 00906ED50000]"]])
def test_it_refreshes(run, fmspc) -> None:
    assert "refreshed successfully" in run("refresh", "refresh", *fmspc)


def test_it_puts_a_policy(run, service, tmp_path: Path) -> None:
    entry = {"environment": {"class_id": "3123ec35-8d38-4ea5-87a5-d6c48b567570"}}
    payload = {"policy_payload": json.dumps({"policy_array": [entry]})}
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, payload))
    policy = ".".join([*parts, ""])
    (tmp_path / "policy.jwt").write_text(policy)

    said = run("put", "appraisalpolicy", "-d", "-f", FMSPC, "-i", "policy.jwt")

    assert hashlib.sha384(policy.encode()).hexdigest() in said
    assert service.ask(f"{V4}/appraisalpolicy?fmspc={FMSPC}").body.decode() == policy


def test_it_shows_what_a_refusal_says(run, tmp_path: Path) -> None:
    (tmp_path / "nothing.json").write_text("{}")
    said = run("put", "platformcollateral", "-i", "nothing.json")
    assert "Status code is : 400" in said
    assert "Invalid request parameters." in said
