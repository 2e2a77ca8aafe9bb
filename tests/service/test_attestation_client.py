"""Clients of the attestation service believe nothing but a token of its keys that says what is expected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from confcom.attestation_client import (
    AsyncAttestationClient,
    Attestation,
    AttestationClient,
    AttestationRefused,
    AttestationUnavailable,
)
from confcom.cli.root import run
from confcom.errors import ConfigError
from confcom.formats.quote import Quote
from confcom.services.attestation.signing_keys import make_key
from confcom.simulator.world import SimulatedWorld
from confcom.tokens.azure import AttestationType
from confcom.tokens.verification import KeySet, TokenError, TokenPolicy, TokenRefused
from running_attestation_service import NOW, RunningAttestation, enclave_quote, make_world, running_attestation

SIMULATED = TokenPolicy(allow_simulated=True)


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return make_world()


@pytest.fixture(scope="module")
def service(world: SimulatedWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAttestation]:
    with running_attestation(tmp_path_factory.mktemp("attestation"), world) as running:
        yield running


def test_attest(service: RunningAttestation, world: SimulatedWorld) -> None:
    attestation = Attestation(evidence=enclave_quote(world, b"held"), runtime_data=b"held", nonce="n")
    signer = Quote.parse(attestation.evidence).body.mr_signer
    policy = TokenPolicy(allow_simulated=True, mr_signer=(signer,), nonce="n")
    client = AttestationClient(service.url)
    for _ in range(2):
        token = client.attest(attestation, policy, now=NOW)
        assert token.claims["x-ms-sgx-mrsigner"] == signer.hex()
    with pytest.raises(TokenRefused, match="confcom-simulated"):
        client.attest(attestation, TokenPolicy(), now=NOW)
    with pytest.raises(TokenRefused, match="mrenclave"):
        client.attest(attestation, TokenPolicy(allow_simulated=True, mr_enclave=(bytes(32),)), now=NOW)


async def test_attest_awaited(service: RunningAttestation, world: SimulatedWorld) -> None:
    client = AsyncAttestationClient(service.url + "/")
    token = await client.attest(Attestation(evidence=enclave_quote(world)), SIMULATED, now=NOW)
    assert token.claims["iss"] == service.url
    with pytest.raises(AttestationRefused) as refused:
        await client.attest(Attestation(evidence=enclave_quote(world, debug=True)), SIMULATED, now=NOW)
    assert refused.value.azure_code == "InvalidParameter"
    assert refused.value.detail["checks"]


def test_pinned_keys_count_and_no_others(service: RunningAttestation, world: SimulatedWorld) -> None:
    attestation = Attestation(evidence=enclave_quote(world))
    keys = KeySet.parse(service.ask("/certs").body, fetched=NOW)
    assert AttestationClient(service.url, keys=keys).attest(attestation, SIMULATED, now=NOW)
    with pytest.raises(TokenError, match="no pinned key"):
        AttestationClient(service.url, keys=KeySet((), NOW)).attest(attestation, SIMULATED, now=NOW)


async def test_keys_are_fetched_again_at_an_unknown_id(
    tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.attestation.attestation_service.LOOK_AT_FILES", 0.05)
    attestation = Attestation(evidence=enclave_quote(world))
    with running_attestation(tmp_path, world) as service:
        client, awaited = AttestationClient(service.url), AsyncAttestationClient(service.url)
        first = client.attest(attestation, SIMULATED, now=NOW).key.key_id
        await awaited.attest(attestation, SIMULATED, now=NOW)
        # The key fell into the wrong hands: another takes its place at once.
        later = NOW + timedelta(minutes=2)
        service.clock.now = later
        make_key(tmp_path / "keys", "rsa", NOW + timedelta(minutes=1), simulated=True)
        service.wait_until(lambda: len(service.ask("/certs").json["keys"]) == 3)
        assert run(["attestation", "revoke-key", first, "--store", service.config.store]) == 0
        service.wait_until(lambda: len(service.ask("/certs").json["keys"]) == 2)
        with pytest.raises(TokenError, match="no pinned key"):
            client.attest(attestation, SIMULATED, now=NOW + timedelta(seconds=59))
        assert client.attest(attestation, SIMULATED, now=later).key.key_id != first
        assert (await awaited.attest(attestation, SIMULATED, now=later)).key.key_id != first


@pytest.mark.parametrize("client", [AttestationClient, AsyncAttestationClient])
async def test_keys_come_over_tls_or_are_pinned(client: Any, world: SimulatedWorld) -> None:
    """Whoever is on the way could give a token together with its keys."""
    attestation = Attestation(evidence=enclave_quote(world))
    with pytest.raises(ConfigError, match="without TLS: the network could replace them"):
        await client("http://attest.example").attest(attestation, SIMULATED, now=NOW)
    client("http://attest.example", keys=KeySet((), NOW))
    client("http://[::1]:8443")


def test_a_service_that_is_not_there(service: RunningAttestation, world: SimulatedWorld) -> None:
    attestation = Attestation(evidence=enclave_quote(world), kind=AttestationType.SGX_ENCLAVE)
    for url in ("http://127.0.0.1:1", service.url.removesuffix("/simulated"), service.url + "/certs"):
        with pytest.raises((AttestationUnavailable, AttestationRefused)):
            AttestationClient(url).attest(attestation, SIMULATED, now=NOW)


def test_verify_on_the_command_line(
    service: RunningAttestation, world: SimulatedWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = service.attest(enclave_quote(world))
    (tmp_path / "answer.json").write_bytes(answer.body)
    (tmp_path / "token.jwt").write_text(answer.json["token"] + "\n")
    (tmp_path / "keys.json").write_bytes(service.ask("/certs").body)
    at = f"{NOW:%Y-%m-%dT%H:%M:%SZ}"
    common = ["--keys", str(tmp_path / "keys.json"), "--issuer", service.url, "--at", at]

    def verify(*more: str, file: str = "token.jwt") -> tuple[int, str]:
        code = run(["token", "verify", str(tmp_path / file), *common, *more])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, said = verify("--allow-simulated")
    assert code == 0
    assert f"accepted: a token of {service.url}" in said
    assert "SIMULATED" in said
    assert verify("--allow-simulated", file="answer.json")[0] == 0
    for encoding in ("utf-8-sig", "utf-16"):  # as Windows writes files
        for name in ("keys.json", "token.jwt", "answer.json"):
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes().decode().encode(encoding))
        assert verify("--allow-simulated")[0] == verify("--allow-simulated", file="answer.json")[0] == 0
        for name in ("keys.json", "token.jwt", "answer.json"):
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes().decode(encoding).encode())
    over = NOW + timedelta(hours=8, seconds=30)  # eight hours are a token's life, clocks may differ by a minute
    code, said = verify("--allow-simulated", "--at", f"{over:%Y-%m-%dT%H:%M:%SZ}")
    assert (code, "over since 0:00:30, as far as clocks may differ" in said) == (0, True)
    code, said = verify("--json")
    assert code == 5
    assert json.loads(said)["error"]["code"] == "token-refused"
    assert verify("--allow-simulated", "--mr-enclave", "00" * 32)[0] == 5
    assert verify("--allow-simulated", "--issuer", "https://other.example")[0] == 4
    assert verify("--allow-simulated", "--at", "2027-01-01T00:00:00Z")[0] == 4
    (tmp_path / "token.jwt").write_text("no token")
    assert verify()[0] == 3
    assert run(["token", "inspect", str(tmp_path / "answer.json")]) in (0, 3)


def test_no_claim_reaches_the_terminal_as_it_is(
    tmp_path: Path, service: RunningAttestation, world: SimulatedWorld, capsys: Any
) -> None:
    hostile = service.url + "\x1b[2J"
    (tmp_path / "keys.json").write_bytes(service.ask("/certs").body)
    (tmp_path / "token.jwt").write_text(service.attest(enclave_quote(world)).json["token"])
    arguments = ["token", "verify", str(tmp_path / "token.jwt"), "--keys", str(tmp_path / "keys.json")]
    assert run([*arguments, "--issuer", hostile]) == 4
    assert "\x1b" not in capsys.readouterr().err
