"""Signing keys in a PKCS#11 token: SoftHSM, where it is installed."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from asn1crypto.keys import PublicKeyInfo, RSAPublicKey
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import NameOID
from pkcs11.exceptions import FunctionFailed, UserAlreadyLoggedIn
from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters
from pkcs11.util.rsa import encode_rsa_public_key

from confcom.errors import ConfigError
from confcom.services.attestation.pkcs11_keys import Pkcs11Keys, Pkcs11Uri
from confcom.services.attestation.signing_keys import SIMULATED_NAME
from confcom.simulator.world import SimulatedWorld
from confcom.tokens.jws import ReadJws
from running_attestation_service import API, NOW, enclave_quote, make_world, running_attestation

MODULE = next((str(path) for path in Path("/usr/lib").glob("**/libsofthsm2.so")), "")
PIN = "1234"
needs_softhsm = pytest.mark.skipif(not MODULE, reason="SoftHSM is not installed (Debian: softhsm2)")


class Token:
    """A token of SoftHSM with keys that the test makes."""

    def __init__(self, folder: Path) -> None:
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", "attestation", "--pin", PIN, "--so-pin", PIN],
            check=True,
            capture_output=True,
        )
        (folder / "pin").write_text(f"{PIN}\n")
        self.uri = f"pkcs11:token=attestation?module-path={MODULE}&pin-source={folder / 'pin'}"

    def add(self, kind: str, number: int, *, certified: bool = True) -> None:
        with _session() as session:
            identifier = bytes([number])
            if kind == "rsa":
                made, _ = session.generate_keypair(pkcs11.KeyType.RSA, 2048, id=identifier, label=kind, store=True)
                public: Any = load_der_public_key(_spki_rsa(made))
            else:
                curve = session.create_domain_parameters(
                    pkcs11.KeyType.EC,
                    {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
                    local=True,
                )
                made, _ = curve.generate_keypair(id=identifier, label=kind, store=True)
                public = load_der_public_key(encode_ec_public_key(made))
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SIMULATED_NAME)])
            certificate = (
                x509.CertificateBuilder()
                .subject_name(name)
                .issuer_name(name)
                .public_key(public)
                .serial_number(number)
                .not_valid_before(NOW - timedelta(days=2) + timedelta(hours=number))
                .not_valid_after(NOW + timedelta(days=30))
                .sign(ec.generate_private_key(ec.SECP256R1()), SHA256())
            )
            if certified:
                session.create_object(
                    {
                        pkcs11.Attribute.CLASS: pkcs11.ObjectClass.CERTIFICATE,
                        pkcs11.Attribute.CERTIFICATE_TYPE: pkcs11.CertificateType.X_509,
                        pkcs11.Attribute.TOKEN: True,
                        pkcs11.Attribute.ID: identifier,
                        pkcs11.Attribute.SUBJECT: name.public_bytes(),
                        pkcs11.Attribute.VALUE: certificate.public_bytes(Encoding.DER),
                    }
                )


def _session() -> Any:
    device = pkcs11.lib(MODULE).get_token(token_label="attestation")
    try:
        return device.open(rw=True, user_pin=PIN)
    except UserAlreadyLoggedIn:
        return device.open(rw=True)


def _spki_rsa(made: Any) -> bytes:
    return bytes(PublicKeyInfo.wrap(RSAPublicKey.load(encode_rsa_public_key(made)), "rsa").dump())


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))
        made = Token(folder)
        made.add("rsa", 1)
        made.add("ec", 2)
        made.add("ec", 9, certified=False)  # somebody else's
        yield made


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return make_world()


@needs_softhsm
def test_tokens_are_signed_in_the_device(tmp_path: Path, token: Token, world: SimulatedWorld) -> None:
    with running_attestation(tmp_path, world, keys=token.uri) as service:
        keys = {jwk["kid"]: jwk for jwk in service.ask("/certs").json["keys"]}
        assert sorted(jwk["alg"] for jwk in keys.values()) == ["ES256", "RS256"]
        for accept, algorithm in (("", "RS256"), ("application/eat+jwt", "ES256")):
            body = {"quote": base64.b64encode(enclave_quote(world)).decode()}
            answer = service.ask(f"/attest/SgxEnclave?{API}", body, Accept=accept)
            jws = ReadJws.parse(answer.body.decode() if accept else answer.json["token"])
            jwk = keys[jws.header["kid"]]
            certificate = x509.load_der_x509_certificate(base64.b64decode(jwk["x5c"][0]))
            assert jws.header["alg"] == algorithm
            assert jws.verify(certificate.public_key(), algorithm)
        assert not (tmp_path / "keys").exists()


@needs_softhsm
def test_keys_in_a_device_are_rotated(
    tmp_path: Path, token: Token, world: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.attestation.attestation_service.LOOK_AT_FILES", 0.05)
    with running_attestation(tmp_path, world, keys=token.uri) as service:

        def signer() -> str:
            return str(ReadJws.parse(service.attest(enclave_quote(world)).json["token"]).header["kid"])

        first, before = signer(), len(service.ask("/certs").json["keys"])
        # From another process, as administrators do: SoftHSM does not stand two threads of one at the same time.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
            # SoftHSM refuses now and then while another process reads its files; an administrator then asks again.
            for _ in range(5):
                with suppress(FunctionFailed):
                    other.submit(token.add, "rsa", 3).result()
                    break
        service.wait_until(lambda: len(service.ask("/certs").json["keys"]) > before)
        assert signer() == first
        service.clock.now += timedelta(hours=1, minutes=1)
        service.wait_until(lambda: signer() != first)
        assert signer() in [jwk["kid"] for jwk in service.ask("/certs").json["keys"]]


@needs_softhsm
def test_what_cannot_be_opened_is_named(token: Token) -> None:
    for changed, message in (
        (token.uri.replace("token=attestation", "token=other"), "'other'"),
        (token.uri.replace(MODULE, "/nowhere.so"), "cannot be used"),
    ):
        with pytest.raises(ConfigError, match=message):
            Pkcs11Keys(changed).load()


@needs_softhsm
@pytest.mark.usefixtures("token")
def test_a_wrong_pin_is_refused() -> None:
    """In a process of its own, because all sessions of a process share the login."""
    uri = f"pkcs11:token=attestation?module-path={MODULE}&pin-value=wrong"
    code = f"from confcom.services.attestation.pkcs11_keys import Pkcs11Keys; Pkcs11Keys({uri!r}).load()"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "cannot be used: PinIncorrect" in done.stderr


TRIES = """
import sys
from pathlib import Path
import pkcs11
from confcom.errors import ConfigError
from confcom.services.attestation import pkcs11_keys

tried = []

class Counted:
    def __init__(self, inner): self.inner = inner
    def get_token(self, **named): return Counted(self.inner.get_token(**named))
    def open(self, **named):
        tried.append(named["user_pin"])
        return self.inner.open(**named)

real = pkcs11.lib
pkcs11_keys.pkcs11.lib = lambda module: Counted(real(module))
keys, file = pkcs11_keys.Pkcs11Keys(sys.argv[1]), Path(sys.argv[2])
for pin in ("wrong", "wrong", "worse", "wrong", sys.argv[3]):
    file.write_text(pin)
    try:
        print(len(keys.load()), "keys")
    except ConfigError as error:
        print(error.message)
print(tried)
"""


@needs_softhsm
def test_a_wrong_pin_is_tried_once_and_the_one_that_replaces_it_is_read(token: Token, tmp_path: Path) -> None:
    """Tokens lock themselves after a few wrong ones, and the service looks at its keys every few seconds."""
    (tmp_path / "pin").write_text("wrong")
    uri = f"pkcs11:token=attestation?module-path={MODULE}&pin-source={tmp_path / 'pin'}"
    command = [sys.executable, "-c", TRIES, uri, str(tmp_path / "pin"), PIN]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    *told, tried = done.stdout.splitlines()
    assert all("cannot be used: PinIncorrect" in line for line in told[:4])
    assert told[4].endswith(" keys")
    assert tried == str(["wrong", "worse", PIN])


@needs_softhsm
def test_a_pin_comes_from_a_pipe(token: Token, tmp_path: Path) -> None:
    """It gives the PIN once, and a session that was lost needs it again."""
    pipe = tmp_path / "pin"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_text, args=(PIN,), daemon=True).start()
    keys = Pkcs11Keys(f"pkcs11:token=attestation?module-path={MODULE}&pin-source={pipe}")
    for _ in range(2):
        assert len(keys.load()) >= 2
        keys._session = None  # as after an error of the device


@needs_softhsm
def test_a_certificate_in_the_device_that_is_none_is_a_fault_of_the_device(token: Token) -> None:
    identifier = b"\x63"
    with _session() as session:
        session.generate_keypair(pkcs11.KeyType.RSA, 2048, id=identifier, label="odd", store=True)
        made = session.create_object(
            {
                pkcs11.Attribute.CLASS: pkcs11.ObjectClass.CERTIFICATE,
                pkcs11.Attribute.CERTIFICATE_TYPE: pkcs11.CertificateType.X_509,
                pkcs11.Attribute.TOKEN: True,
                pkcs11.Attribute.ID: identifier,
                pkcs11.Attribute.SUBJECT: b"",
                pkcs11.Attribute.VALUE: b"no certificate",
            }
        )
        try:
            with pytest.raises(ConfigError, match="'attestation' cannot be used"):
                Pkcs11Keys(token.uri).load()
        finally:
            made.destroy()


@pytest.mark.parametrize(("content", "message"), [("1" * 257, "over 256 bytes are no PIN"), (" \n", "it is empty")])
def test_a_file_without_a_pin_is_refused(content: str, message: str, tmp_path: Path) -> None:
    """Before the token counts it as a wrong one."""
    (tmp_path / "pin").write_text(content)
    with pytest.raises(ConfigError, match=message):
        Pkcs11Uri.parse(f"pkcs11:token=a?module-path=/m.so&pin-source={tmp_path / 'pin'}")


@needs_softhsm
def test_an_enclave_attests_no_keys_that_it_does_not_hold(token: Token, tmp_path: Path, world: SimulatedWorld) -> None:
    with (
        pytest.raises(ConfigError, match="only keys that it holds"),
        running_attestation(tmp_path, world, keys=token.uri, quote=lambda data: data),
    ):
        pass


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("pkcs11:", "lacks 'token'"),
        ("pkcs11:token=a", "lacks 'module-path'"),
        ("pkcs11:object=a", "'object', which is not used"),
        ("pkcs11:token=a?module-path=/m&pin-source=/nowhere/pin", "PIN cannot be read"),
    ],
)
def test_a_uri_that_cannot_be_used(uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pkcs11Uri.parse(uri)


def test_a_uri_with_escapes() -> None:
    assert Pkcs11Uri.parse("pkcs11:token=a%20b?module-path=/m.so&pin-value=%26") == Pkcs11Uri("a b", "/m.so", "&")
