"""An enclave reads a secret by what it is, and anything else is refused in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from confcom.attestation_client import (
    AsyncAttestationClient,
    Attestation,
    AttestationClient,
    AttestationRefused,
    AttestationUnavailable,
    ask,
)
from confcom.errors import ConfigError
from confcom.formats.quote import Quote
from confcom.http_client import verifying_context
from confcom.secret_client import read_secret
from confcom.simulator.world import SimulatedWorld
from confcom.tokens.verification import TokenPolicy
from jwt_login_server import JwtLoginServer, jwt_login_server
from late_server import late_server
from running_attestation_service import (
    NOW,
    RunningAttestation,
    enclave_quote,
    make_world,
    quote_over,
    running_attestation,
)

PASSWORD = {"password": "correct horse"}


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return make_world()


@pytest.fixture(scope="module")
def service(world: SimulatedWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAttestation]:
    with running_attestation(tmp_path_factory.mktemp("attestation"), world) as running:
        yield running


@pytest.fixture
def server(service: RunningAttestation, world: SimulatedWorld, tmp_path: Path) -> Iterator[JwtLoginServer]:
    with jwt_login_server(tmp_path, service.url, service.clock) as running:
        running.secrets["secret/data/payroll"] = PASSWORD
        running.roles["payroll"] = {"mrsigner": Quote.parse(enclave_quote(world)).body.mr_signer.hex(), "debug": False}
        yield running


def read(running: JwtLoginServer, service: RunningAttestation, world: SimulatedWorld, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "path": "secret/data/payroll",
        "server": running.url,
        "role": "payroll",
        "ca": running.ca,
    }
    options |= {"attestation": AttestationClient(service.url), "quote": quote_over(world)} | changes
    return read_secret(options.pop("path"), **options)


def test_it_reads_the_secret(server: JwtLoginServer, service: RunningAttestation, world: SimulatedWorld) -> None:
    assert read(server, service, world) == {"data": PASSWORD}
    assert read(server, service, world, server=f"{server.url}/", path="/secret/data/payroll") == {"data": PASSWORD}


def test_who_is_not_expected_gets_nothing(
    server: JwtLoginServer, service: RunningAttestation, world: SimulatedWorld
) -> None:
    server.roles["payroll"]["mrsigner"] = "00" * 32
    with pytest.raises(AttestationRefused, match=r"/v1/auth/jwt/login answered 400: claim 'mrsigner' does not match"):
        read(server, service, world)
    server.roles["payroll"] = {}
    with pytest.raises(AttestationRefused, match=r"secret/data/other answered 403: permission denied"):
        read(server, service, world, path="secret/data/other")


def test_nothing_is_said_in_clear_or_to_another_server(
    server: JwtLoginServer, service: RunningAttestation, world: SimulatedWorld
) -> None:
    with pytest.raises(ConfigError, match="over https"):
        read(server, service, world, server=server.url.replace("https", "http"))
    with pytest.raises(AttestationUnavailable, match="certificate verify failed"):
        read(server, service, world, ca=None)


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        ((200, b"{}"), AttestationUnavailable, "no client_token"),
        ((200, b'{"auth": []}'), AttestationUnavailable, "no client_token"),
        ((200, b"[" * 100_000), AttestationUnavailable, "no client_token"),
        ((200, b'"\xff"'), AttestationUnavailable, "no client_token"),
        ((200, b" " * (2 << 20)), AttestationUnavailable, "over 1048576 bytes"),
        ((500, b"<html>"), AttestationRefused, "answered 500: no reason"),
        ((302, b""), AttestationRefused, "answered 302"),
        ((200, b'{"auth": {"client_token": "a\\r\\nHost: b"}}'), AttestationUnavailable, "no client_token"),
        ((200, b'{"auth": {"client_token": "t"}, "data": 1}'), AttestationUnavailable, "has no data"),
    ],
)
def test_a_strange_answer_is_an_error_with_its_reason(
    server: JwtLoginServer,
    service: RunningAttestation,
    world: SimulatedWorld,
    answer: tuple[int, bytes],
    error: type[Exception],
    reason: str,
) -> None:
    server.answer = answer
    with pytest.raises(error, match=reason):
        read(server, service, world)


def test_an_answer_that_comes_too_late_is_read_from_no_other_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.attestation_client.TIMEOUT", 1)
    with (
        late_server(tmp_path) as server,
        httpx2.Client(timeout=60, verify=verifying_context(server.ca)) as client,
    ):
        with pytest.raises(AttestationUnavailable, match="the answer was not whole within 1 s"):
            ask(client, "GET", server.url)
        server.check_other_connections()


async def test_a_server_that_drips_is_left(
    server: JwtLoginServer, service: RunningAttestation, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time, and the answer never ends."""
    monkeypatch.setattr("confcom.attestation_client.TIMEOUT", 0.5)
    server.drips = True
    try:
        with pytest.raises(AttestationUnavailable, match=r"nonces.*: the answer was not whole within 0\.5 s"):
            read(server, service, world, attestation=AttestationClient(server.url, ca=server.ca))
        evidence = Attestation(evidence=enclave_quote(world))
        with pytest.raises(AttestationUnavailable, match=r"attest.*: the answer was not whole within 0\.5 s"):
            await AsyncAttestationClient(server.url, ca=server.ca).attest(evidence, TokenPolicy(), now=NOW)
    finally:
        server.drips = False
