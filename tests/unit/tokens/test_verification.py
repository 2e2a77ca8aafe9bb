"""A token is believed only by pinned keys: nothing that it says of itself makes it good."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import RSAKey

from confcom.errors import ConfcomError, FormatError
from confcom.formats.text import encode_base64url
from confcom.services.attestation.signing_keys import make_key
from confcom.tokens.jws import SigningKey, unsecured
from confcom.tokens.verification import KeySet, TokenError, TokenPolicy, TokenRefused, VerifiedToken, verify_token

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
ISSUER = "https://attest.example"
TIMES = {"iat": int(NOW.timestamp()), "nbf": int(NOW.timestamp()), "exp": int(NOW.timestamp()) + 60}
CLAIMS = {
    "iss": ISSUER,
    **TIMES,
    "x-ms-sgx-is-debuggable": False,
    "x-ms-sgx-mrenclave": "aa" * 32,
    "x-ms-sgx-mrsigner": "bb" * 32,
    "x-ms-sgx-product-id": 1,
    "x-ms-sgx-svn": 7,
    "x-ms-sgx-report-data": "cc" * 64,
    "confcom-tcb-status": "UpToDate",
    "nonce": "n",
}


def _key(folder: Path, kind: str) -> SigningKey:
    return SigningKey.from_pem(make_key(folder, kind, NOW, simulated=False).read_bytes(), kind)


@pytest.fixture(scope="module")
def rsa(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return _key(tmp_path_factory.mktemp("rsa"), "rsa")


@pytest.fixture(scope="module")
def ec(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return _key(tmp_path_factory.mktemp("ec"), "ec")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return _key(tmp_path_factory.mktemp("stranger"), "rsa")


@pytest.fixture(scope="module")
def keys(rsa: SigningKey, ec: SigningKey) -> KeySet:
    return KeySet.parse(json.dumps({"keys": [rsa.jwk(), ec.jwk()]}).encode(), fetched=NOW)


def _verify(token: str, keys: KeySet, **more: Any) -> VerifiedToken:
    return verify_token(token, keys, **({"issuer": ISSUER, "now": NOW} | more))


def test_a_token_of_a_pinned_key(rsa: SigningKey, ec: SigningKey, keys: KeySet) -> None:
    for key in (rsa, ec):
        assert _verify(key.sign(CLAIMS, {}), keys).claims == CLAIMS


def test_azures_keys_are_bare_certificates(rsa: SigningKey) -> None:
    bare = {name: rsa.jwk()[name] for name in ("kty", "kid", "x5c")}
    assert _verify(rsa.sign(CLAIMS, {}), KeySet.parse(json.dumps({"keys": [bare]}).encode(), fetched=NOW))


def test_no_token_makes_itself_good(rsa: SigningKey, stranger: SigningKey, keys: KeySet) -> None:
    own = {"jwk": stranger.jwk(), "x5c": stranger.jwk()["x5c"], "jku": "https://evil.example/certs"}
    signed = rsa.sign(CLAIMS, {}).split(".")
    other = json.dumps(CLAIMS | {"x-ms-sgx-mrenclave": "00" * 32}).encode()
    forged = {
        "not signed": [unsecured(CLAIMS, {"kid": rsa.key_id}), ".".join((*signed[:2], ""))],
        "no pinned key": [stranger.sign(CLAIMS, own), rsa.sign(CLAIMS, {"kid": "other"})],
        "not of a pinned key": [
            stranger.sign(CLAIMS, own | {"kid": rsa.key_id}),
            ".".join((signed[0], encode_base64url(other), signed[2])),
            # The public key as an HMAC secret, and an algorithm of the other kind.
            _with_header(signed, {"alg": "HS256", "kid": rsa.key_id}),
            _with_header(signed, {"alg": "ES256", "kid": rsa.key_id}),
            _with_header(signed, {"alg": "PS256", "kid": rsa.key_id}),
            _with_header(signed, {"alg": ["RS256"], "kid": rsa.key_id}),
        ],
        "critical headers": [_with_header(signed, {"alg": "RS256", "kid": rsa.key_id, "crit": ["b64"]})],
    }
    for message, tokens in forged.items():
        for token in tokens:
            with pytest.raises(TokenError, match=message):
                _verify(token, keys)


def _with_header(signed: list[str], header: dict[str, Any]) -> str:
    return ".".join((encode_base64url(json.dumps(header).encode()), signed[1], signed[2]))


def test_a_token_that_names_no_key_is_tried_with_the_pinned_ones(
    rsa: SigningKey, stranger: SigningKey, keys: KeySet
) -> None:
    for key, good in ((rsa, True), (stranger, False)):
        header = {"alg": "RS256", "jwk": {"kty": "RSA", **key.jwk()}}
        secret = RSAKey.import_key(key.private)  # type: ignore[arg-type]
        token = jws.serialize_compact(header, json.dumps(CLAIMS), secret)
        if good:
            assert _verify(token, keys)
        else:
            with pytest.raises(TokenError, match="not of a pinned key"):
                _verify(token, keys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iss": "https://other.example"}, "another issuer"),
        ({"iss": ISSUER + "/"}, "another issuer"),
        ({"iss": None}, "another issuer"),
        ({"exp": TIMES["exp"] - 200}, "expired"),
        ({"exp": "never"}, "no number"),
        ({"exp": True}, "no number"),
        ({"nbf": TIMES["nbf"] + 100}, "not valid yet"),
        ({"iat": TIMES["iat"] + 100}, "not valid yet"),
    ],
)
def test_issuer_and_time(rsa: SigningKey, keys: KeySet, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenError, match=message):
        _verify(rsa.sign(CLAIMS | changes, {}), keys)


def test_a_token_without_an_end_is_refused(rsa: SigningKey, keys: KeySet) -> None:
    with pytest.raises(TokenError, match="no end"):
        _verify(rsa.sign({name: value for name, value in CLAIMS.items() if name != "exp"}, {}), keys)


def test_old_keys_and_ended_certificates_do_not_count(rsa: SigningKey, keys: KeySet) -> None:
    with pytest.raises(TokenError, match="older than"):
        _verify(rsa.sign(CLAIMS, {}), keys, now=NOW + timedelta(days=2))
    later = NOW + timedelta(days=1000)
    fresh = KeySet(keys.keys, later)
    claims = CLAIMS | {"exp": int(later.timestamp()) + 60}
    with pytest.raises(TokenError, match="certificate of key"):
        _verify(rsa.sign(claims, {}), fresh, now=later)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"keys": 5}', b'{"keys": [{"kty": "RSA"}]}', b'{"keys": [{"kty": "RSA", "x5c": ["AAAA"]}]}',
     b'{"keys": [{"kty": "RSA", "x5c": "AAAA"}]}', b'{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}',
     b'{"keys": [' + b",".join([b"{}"] * 100) + b"]}", b" " * (2 << 20)],
)  # fmt: skip
def test_what_is_no_key_set_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        KeySet.parse(data, fetched=NOW)


GOOD = TokenPolicy(
    mr_enclave=(b"\xaa" * 32,),
    mr_signer=(b"\x00" * 32, b"\xbb" * 32),
    isv_prod_id=1,
    min_isv_svn=7,
    nonce="n",
    report_data=b"\xcc" * 32,
    more={"iss": ISSUER},
)


@pytest.mark.parametrize(
    "changes",
    [
        {"x-ms-sgx-mrenclave": "dd" * 32},
        {"x-ms-sgx-mrsigner": "dd" * 32},
        {"x-ms-sgx-product-id": 2},
        {"x-ms-sgx-product-id": True},
        {"x-ms-sgx-svn": 6},
        {"x-ms-sgx-svn": "9"},
        {"x-ms-sgx-is-debuggable": True},
        {"x-ms-sgx-is-debuggable": None},
        {"x-ms-sgx-is-debuggable": 0},
        {"x-ms-sgx-report-data": "dd" * 64},
        {"confcom-tcb-status": "OutOfDate"},
        {"confcom-simulated": True},
        {"confcom-simulated": "yes"},
        {"nonce": "m"},
    ],
)
def test_a_policy_for_claims(rsa: SigningKey, keys: KeySet, changes: dict[str, Any]) -> None:
    GOOD.check(_verify(rsa.sign(CLAIMS, {}), keys))
    with pytest.raises(TokenRefused):
        GOOD.check(_verify(rsa.sign(CLAIMS | changes, {}), keys))


def test_azures_tokens_state_no_tcb(rsa: SigningKey, keys: KeySet) -> None:
    token = _verify(rsa.sign({name: value for name, value in CLAIMS.items() if "tcb" not in name}, {}), keys)
    TokenPolicy().check(token)
    with pytest.raises(TokenRefused):
        TokenPolicy(require_tcb=True).check(token)


def test_results_for_clients_of_rats(ec: SigningKey, keys: KeySet) -> None:
    module = {"ear.status": 2, "ear.veraison.annotated-evidence": {k: v for k, v in CLAIMS.items() if "-" in k}}
    ear = {"iss": ISSUER, **TIMES, "submods": {"sgx": module}, "eat_nonce": "n"}
    GOOD.check(_verify(ec.sign(ear, {}), keys))
    for wrong in ({"sgx": module | {"ear.status": 96}}, {"a": module, "b": module}, {"sgx": 5}, {}):
        with pytest.raises(TokenRefused):
            GOOD.check(_verify(ec.sign(ear | {"submods": wrong}, {}), keys))


@given(st.text(max_size=100) | st.lists(st.binary(max_size=30), min_size=3, max_size=3).map(
    lambda parts: ".".join(encode_base64url(part) for part in parts)
))  # fmt: skip
def test_no_text_is_a_token_by_chance(text: str) -> None:
    with pytest.raises(ConfcomError):
        _verify(text, KeySet((), NOW))
