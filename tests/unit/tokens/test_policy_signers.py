"""The certificates with which policies are signed: chains to a root that is a CA, as Azure Attestation wants them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from confcom.errors import FormatError
from confcom.formats.arguments import encode_base64url
from confcom.tokens.azure import AzureError
from confcom.tokens.jws import SigningKey, unsecured
from confcom.tokens.policy_jws import MAX_CHAIN, check_signer_chain, read_policy, wrap
from confcom.tokens.verification import KeySet, TokenError, verify_token

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") >> 1, ec.SECP256R1())


def certificate(
    name: str, issuer: str = "", *, ca: bool | None = None, path_length: int | None = None, usage: str = ""
) -> x509.Certificate:
    """A certificate of `name`, issued by itself unless an issuer is named; `usage` is the one that keyUsage has."""

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer or name))
        .public_key(key(name).public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    if usage:
        names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                 "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
        builder = builder.add_extension(x509.KeyUsage(**{each: each == usage for each in names}), critical=True)
    return builder.sign(key(issuer or name), SHA256())


ROOT = certificate("root", ca=True, usage="key_cert_sign")
CHAIN = (certificate("signer", "middle", usage="digital_signature"), certificate("middle", "root", ca=True), ROOT)


@pytest.mark.parametrize(
    "chain",
    [
        [certificate("signer", ca=True)],
        [certificate("signer", ca=True, path_length=0, usage="digital_signature")],
        [certificate("signer", "root"), ROOT],
        [certificate("signer", "root", ca=False), ROOT],
        [certificate("signer", "root", ca=True), ROOT],
        CHAIN,
        [*CHAIN[:2], certificate("root", ca=True, path_length=1)],
    ],
)
def test_chains_to_a_root_that_is_a_ca_are_accepted(chain: Sequence[x509.Certificate]) -> None:
    check_signer_chain(chain)


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        ([certificate("signer")], "'CN=signer' of a policy signer is no CA"),
        ([certificate("signer", ca=False)], "'CN=signer' of a policy signer is no CA"),
        ([certificate("signer", "root"), certificate("root")], "'CN=root' of a policy signer is no CA"),
        ([CHAIN[0], certificate("middle", "root"), ROOT], "'CN=middle' of a policy signer is no CA"),
        ([certificate("signer", ca=True, usage="key_cert_sign")], "lacks digitalSignature in its keyUsage"),
        ([certificate("signer", "root"), certificate("root", ca=True, usage="crl_sign")], "lacks keyCertSign"),
        ([*CHAIN[:2], certificate("root", ca=True, path_length=0)], "has 1 CAs below it, and its path length is 0"),
        ([certificate("signer", "root", ca=True)], "is of the issuer 'CN=root', which is not the next"),
        (CHAIN[:2], "is of the issuer 'CN=root', which is not the next"),
        ([CHAIN[0], ROOT], "is of the issuer 'CN=middle', which is not the next"),
        ([ROOT, *CHAIN[:2]], "lacks digitalSignature"),
        ([certificate("signer", "other", ca=True), certificate("other", "root", ca=True), ROOT][::2], "'CN=other'"),
    ],
)
def test_other_chains_are_an_invalid_parameter_that_names_the_certificate(
    chain: Sequence[x509.Certificate], reason: str
) -> None:
    with pytest.raises(AzureError) as caught:
        check_signer_chain(chain)
    assert reason in caught.value.message
    assert caught.value.azure_code == "InvalidParameter"


def test_an_issuer_of_the_right_name_and_another_key_is_no_issuer() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key("thief").public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    thief = builder.add_extension(x509.BasicConstraints(True, None), critical=True).sign(key("thief"), SHA256())
    with pytest.raises(AzureError, match="not the next certificate"):
        check_signer_chain([certificate("signer", "root"), thief])


def signed_policy(chain: Sequence[x509.Certificate]) -> str:
    x5c = [base64.b64encode(each.public_bytes(Encoding.DER)).decode() for each in chain]
    signer = SigningKey(key("signer"), chain[0])
    return signer.sign({"AttestationPolicy": encode_base64url(b"version=1.0;")}, {"x5c": x5c})


def test_signed_policies_bring_the_chain_of_their_signer() -> None:
    assert read_policy(signed_policy(CHAIN)).signer == CHAIN[0]
    for chain, reason in (
        ([certificate("signer")], "no CA"),
        (CHAIN[:1], "not the next certificate"),
        ([CHAIN[0]] * (MAX_CHAIN + 1), f"{MAX_CHAIN + 1} certificates, at most {MAX_CHAIN}"),
    ):
        with pytest.raises(AzureError, match=reason) as caught:
            read_policy(signed_policy(chain))
        assert caught.value.azure_code == "InvalidParameter"


@pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"b64": False, "crit": ["b64"]}, {"crit": []}])
@pytest.mark.parametrize("signed", [True, False])
def test_what_a_header_says_is_critical_is_not_passed_over(header: dict[str, Any], signed: bool) -> None:
    claims = {"AttestationPolicy": encode_base64url(b"version=1.0;")}
    x5c = {"x5c": [base64.b64encode(_der(ROOT)).decode()]}
    sent = SigningKey(key("root"), ROOT).sign(claims, x5c | header) if signed else unsecured(claims, header)
    with pytest.raises(AzureError, match="critical headers that are not known here") as refused:
        read_policy(sent)
    assert refused.value.azure_code == "InvalidOperation"


BARE = 'version=1.0;\nauthorizationrules{=> permit();};\nissuancerules{=> issue(type="a", value="\u00fc");};'


@pytest.mark.parametrize(
    "body",
    [
        BARE,
        BARE.encode(),
        b"\xef\xbb\xbf" + BARE.encode(),
        BARE.encode("utf-16"),
        f"  \n{BARE}\n",
        wrap(BARE),
        f'"{wrap(BARE)}"',
        unsecured({"AttestationPolicy": BARE}, {}),
    ],
)
def test_a_policy_is_read_as_text_or_as_jws(body: str | bytes) -> None:
    assert read_policy(body).text == BARE


def test_a_policy_may_begin_with_a_comment() -> None:
    text = f"// reviewed on 2026-11-30\n{BARE}"
    for body in (text, text.encode(), wrap(text), unsecured({"AttestationPolicy": text}, {})):
        assert read_policy(body).text == text


@pytest.mark.parametrize("text", ["version= 1.1", "\ufeffVersion=1.1\nauthorizationrules"])
def test_a_text_that_ends_too_early_is_no_broken_jws(text: str) -> None:
    """The parser then names the place."""
    for body in (text, text.encode(), unsecured({"AttestationPolicy": text}, {})):
        assert read_policy(body).text == text.lstrip("\ufeff" if isinstance(body, bytes) else "")


def test_bytes_that_are_no_text_are_not_replaced() -> None:
    with pytest.raises(AzureError, match="no text in UTF-8: invalid start byte at byte 87") as refused:
        read_policy(BARE.encode("latin-1"))
    assert refused.value.azure_code == "PolicyParsingError"


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _of_a_curve_without_a_name() -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "brainpool")])
    private = ec.generate_private_key(ec.BrainpoolP256R1())
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
    built = built.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    return _der(built.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
        private, SHA256()
    ))  # fmt: skip


def _verify(token: str, jwks: bytes) -> None:
    verify_token(token, KeySet.parse(jwks, fetched=NOW, max_age=timedelta(days=1)), issuer="i", now=NOW)


VERSION = bytes.fromhex("a003020102")
HOSTILE = {
    "a version that X.509 does not have": _der(ROOT).replace(VERSION, bytes.fromhex("a003020104")),
    "an extension twice": _der(ROOT).replace(bytes.fromhex("0603551d0f"), bytes.fromhex("0603551d13")),
    "a curve that JOSE does not name": _of_a_curve_without_a_name(),
    "cut off": _der(ROOT)[:-5],
}


@pytest.mark.parametrize("der", HOSTILE.values(), ids=HOSTILE)
def test_a_certificate_that_cannot_be_used_is_refused_and_no_failure_of_the_service(der: bytes) -> None:
    assert der != _der(ROOT)
    x5c = {"x5c": [base64.b64encode(der).decode()]}
    text = {"AttestationPolicy": encode_base64url(b"version=1.0;authorizationrules{=>permit();};")}
    signed = SigningKey(key("root"), ROOT).sign(text, x5c)
    with pytest.raises(AzureError) as refused:
        read_policy(signed)
    assert refused.value.azure_code in ("InvalidOperation", "InvalidParameter")
    # In a key set that others publish it is an error of ours too.
    jwks = json.dumps({"keys": [{"kty": "EC", "kid": "a"} | x5c]}).encode()
    with pytest.raises((FormatError, TokenError)):
        _verify(SigningKey(key("other"), ROOT).sign({"iss": "i"}, {"kid": "a"}), jwks)
