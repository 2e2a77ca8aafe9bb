"""Appraisal policies: what Intel's tool puts comes back to Intel's appraisal library, the default of each FMSPC."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from confcom.simulator.world import SimulatedWorld
from running_collateral_service import NOW, SEED, Clock, Reply, RunningService, running_service

ADMIN = "the admin's token"
FMSPC = "00606A000000"
SGX = "3123ec35-8d38-4ea5-87a5-d6c48b567570"
TDX = "F708B97F-0FB2-4E6B-8B03-8A5BCD1221D3"
TD_QE = "3769258c-75e6-4bc7-8d72-d2b0e224cad2"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    hashes = {"admin_token_hash": hashlib.sha512(ADMIN.encode()).hexdigest()}
    roots = SimulatedWorld.from_seed(SEED, now=NOW).trust_roots
    with running_service(tmp_path / "s.sqlite", None, roots, Clock(NOW), mode="offline", **hashes) as service:
        yield service


def jwt(*classes: str, payload: Any = None) -> str:
    entries = [{"environment": {"class_id": name}, "reference": {}} for name in classes]
    content = {"policy_payload": json.dumps({"policy_array": entries})} if payload is None else payload
    parts = [{"alg": "none"}, content]
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), ""])


def put(service: RunningService, policy: Any, *, default: Any = True, fmspc: Any = FMSPC, version: int = 4) -> Reply:
    body = {"policy": policy, "is_default": default, "fmspc": fmspc}
    path = f"/sgx/certification/v{version}/appraisalpolicy"
    return service.ask(path, method="PUT", headers={"admin-token": ADMIN}, body=body)


def get(service: RunningService, fmspc: str = FMSPC, version: int = 4) -> Reply:
    return service.ask(f"/sgx/certification/v{version}/appraisalpolicy?fmspc={fmspc}")


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("policy", [jwt(SGX), jwt(TD_QE, TDX), jwt(SGX) + "c2lnbmVk\n"])
def test_a_default_policy_comes_back_as_it_was_put(service: RunningService, policy: str, version: int) -> None:
    stored = put(service, policy, version=version)
    found = [get(service, fmspc, version) for fmspc in (FMSPC, FMSPC.lower())]

    assert (stored.status, stored.body.decode()) == (200, hashlib.sha384(policy.encode()).hexdigest())
    assert [(reply.status, reply.body.decode()) for reply in found] == [(200, policy)] * 2
    assert found[0].header("Cache-Control") == "max-age=3600"


def test_each_fmspc_has_one_default_and_others_are_kept_beside_it(service: RunningService) -> None:
    first, second, other = jwt(SGX), jwt(SGX, SGX), jwt(TDX)
    put(service, first)
    put(service, second)
    put(service, other, default=False)
    put(service, first, fmspc="00906ED50000")

    assert get(service).body.decode() == second
    assert get(service, "00906ed50000").body.decode() == first
    put(service, other)
    assert get(service).body.decode() == other
    put(service, other, default=False)
    assert get(service).status == 404


@pytest.mark.parametrize(
    "policy",
    [
        "",
        "a.b",
        "a.!!!.c",
        jwt(),
        jwt(TD_QE),
        jwt("00000000-0000-0000-0000-000000000000"),
        jwt(payload={}),
        jwt(payload={"policy_payload": "{}"}),
        jwt(payload={"policy_payload": "[" * 100_000}),
        jwt(payload=[]),
        "." * 1000,
        7,
        None,
        "x" * 300_000,
    ],
)
def test_what_is_no_policy_is_refused(service: RunningService, policy: Any) -> None:
    reply = put(service, policy)

    assert (reply.status, reply.json["error"]) == (400, "Invalid request parameters.")
    assert get(service).status == 404


@pytest.mark.parametrize(
    "change", [{"default": 1}, {"default": None}, {"fmspc": "00606A"}, {"fmspc": "zz" * 6}], ids=str
)
def test_the_other_fields_are_held_to_their_form(service: RunningService, change: dict[str, Any]) -> None:
    assert put(service, jwt(SGX), **change).status == 400


def test_putting_wants_the_admin_token_and_reading_the_fmspc(service: RunningService) -> None:
    path = "/sgx/certification/v4/appraisalpolicy"
    assert service.ask(path, method="PUT", body={}).status == 401
    assert service.ask(path, method="POST", body={}).status == 405
    assert service.ask(path).json["field"] == "fmspc"
    assert get(service).status == 404
