"""Signing keys that an enclave vouches for, and what `confcom token verify` asks of it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from confcom.cli.root import run
from confcom.errors import ConfigError
from confcom.formats.attested_certificate import AttestedCertificate
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.services.attestation.attestation_service import AttestationServiceConfig
from confcom.services.attestation.signing_keys import make_key
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld
from confcom.tokens.attested_key import OPEN_ENCLAVE_REPORT, attested_certificate, report_data_of
from confcom.tokens.jws import SigningKey
from running_attestation_service import NOW, RunningAttestation, enclave_quote, make_world, running_attestation

AT = f"{NOW:%Y-%m-%dT%H:%M:%SZ}"


class Verifying:
    """A token of a service with attested keys, and what verifies it offline."""

    def __init__(self, folder: Path, world: SimulatedWorld, service: RunningAttestation, mr_enclave: bytes) -> None:
        self.folder = folder
        world.export_collateral(folder / "collateral")
        self.service = service
        self.keys = service.ask("/certs").json
        (folder / "token").write_text(service.attest(enclave_quote(world)).json["token"])
        self.policy(f'mr_enclave = ["{mr_enclave.hex()}"]')

    def policy(self, text: str) -> None:
        (self.folder / "issuer.toml").write_text(text)

    def verify(self, keys: Any = None, *more: str) -> int:
        path = self.folder / "keys.json"
        path.write_text(json.dumps(self.keys if keys is None else keys))
        words = ["token", "verify", str(self.folder / "token"), "--keys", str(path), "--issuer", self.service.url]
        words += ["--allow-simulated", "--at", AT, "--issuer-policy", str(self.folder / "issuer.toml")]
        folder = self.folder / "collateral"
        return run([*words, "--collateral", str(folder), "--trust-root", str(folder / "root_ca.pem"), *more])


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return make_world()


@pytest.fixture
def verifying(tmp_path: Path, world: SimulatedWorld) -> Iterator[Verifying]:
    enclave = world.machine.launch(EnclaveDeclaration.from_names("attestation", "us"))
    source = EnclaveQuoteSource(world.platform, enclave)
    quote = lambda data: source.quote(data).quote  # noqa: E731
    with running_attestation(tmp_path, world, quote=quote) as service:
        yield Verifying(tmp_path, world, service, EnclaveDeclaration.from_names("attestation", "us").mr_enclave)


def _certificate(jwk: dict[str, Any]) -> x509.Certificate:
    return x509.load_der_x509_certificate(base64.b64decode(jwk["x5c"][0]))


def test_the_enclave_vouches_for_every_published_key(verifying: Verifying, capsys: pytest.CaptureFixture[str]) -> None:
    for jwk in verifying.keys["keys"]:
        certificate = _certificate(jwk)
        report = certificate.extensions.get_extension_for_oid(OPEN_ENCLAVE_REPORT).value
        assert isinstance(report, x509.UnrecognizedExtension)
        assert report.value[:8] == bytes.fromhex("0100000002000000")
        assert report_data_of(certificate.public_key()) in report.value  # type: ignore[arg-type]
    capsys.readouterr()
    assert verifying.verify() == 0
    assert "attested by the enclave" in capsys.readouterr().out
    assert verifying.verify(None, "--json") == 0
    assert (
        json.loads(capsys.readouterr().out)["key_attested_by"]["mr_enclave"]
        in verifying.folder.joinpath("issuer.toml").read_text()
    )


def test_another_enclave_is_refused(verifying: Verifying, capsys: pytest.CaptureFixture[str]) -> None:
    verifying.policy(f'mr_enclave = ["{"ab" * 32}"]')
    assert verifying.verify() == 5
    assert "MRENCLAVE" in capsys.readouterr().err.upper()


def test_a_key_without_a_quote_is_refused(verifying: Verifying, capsys: pytest.CaptureFixture[str]) -> None:
    bare = [{name: value for name, value in jwk.items() if name != "x5c"} for jwk in verifying.keys["keys"]]
    assert verifying.verify({"keys": bare}) == 4
    assert "no enclave vouches" in capsys.readouterr().err


def test_a_quote_over_another_key_is_refused(
    verifying: Verifying, world: SimulatedWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quote is taken from the issuer's certificate into one of a key that the enclave never had."""
    (tmp_path / "forged").mkdir()
    own = SigningKey.from_pem(make_key(tmp_path / "forged", "rsa", NOW, simulated=True).read_bytes(), "")
    copied = AttestedCertificate.parse(base64.b64decode(verifying.keys["keys"][0]["x5c"][0])).quote
    forged = attested_certificate(own.private, own.certificate, lambda _: bytes(copied))  # type: ignore[arg-type]
    jwk = {"kty": "RSA", "kid": own.key_id, "x5c": [base64.b64encode(forged.public_bytes(Encoding.DER)).decode()]}
    times = {"iat": int(NOW.timestamp()), "exp": int(NOW.timestamp()) + 60}
    claims = {"iss": verifying.service.url, "x-ms-sgx-is-debuggable": False, **times}
    (verifying.folder / "token").write_text(own.sign(claims, {}))
    assert verifying.verify({"keys": [jwk]}) == 4
    assert "not for this certificate" in capsys.readouterr().err


def test_keys_attested_in_other_forms_are_read(vectors: Path) -> None:
    """The certificate of Azure Attestation that its samples publish: a quote in an OCTET STRING, over the key."""
    path = vectors / "azure-attestation" / "exchange" / "get.certs.response.body.json"
    found = 0
    for jwk in json.loads(path.read_text())["keys"]:
        certificate = _certificate(jwk)
        if "1.2.840.113556.10.1.1" in [each.oid.dotted_string for each in certificate.extensions]:
            quote = AttestedCertificate.parse(certificate.public_bytes(Encoding.DER)).quote
            assert quote.report_data == report_data_of(certificate.public_key())  # type: ignore[arg-type]
            found += 1
    assert found == 1


def test_a_new_key_is_attested_too(tmp_path: Path, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confcom.services.attestation.attestation_service.LOOK_AT_FILES", 0.05)
    enclave = world.machine.launch(EnclaveDeclaration.from_names("attestation", "us"))
    source = EnclaveQuoteSource(world.platform, enclave)
    with running_attestation(tmp_path, world, quote=lambda data: source.quote(data).quote) as service:
        make_key(tmp_path / "keys", "ec", NOW + timedelta(seconds=1), simulated=True)
        service.wait_until(lambda: len(service.ask("/certs").json["keys"]) == 3)
        for jwk in service.ask("/certs").json["keys"]:
            AttestedCertificate.parse(base64.b64decode(jwk["x5c"][0]))


def test_a_simulated_enclave_vouches_for_no_keys_of_hardware(tmp_path: Path) -> None:
    words = ["attestation", "serve", "--insecure-http", "--store", str(tmp_path / "s"), "--keys", str(tmp_path / "k")]
    assert run([*words, "--machine", str(tmp_path / "machine.toml")]) == 2


def test_an_enclave_that_gives_no_quote_stops_the_start(tmp_path: Path, world: SimulatedWorld) -> None:
    def quote(_: bytes) -> bytes:
        raise ConfigError("no quote to be had")

    with pytest.raises(ConfigError, match="no quote"), running_attestation(tmp_path, world, quote=quote):
        pass
    assert not AttestationServiceConfig().attest_keys
