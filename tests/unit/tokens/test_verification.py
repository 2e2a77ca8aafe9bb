"""A token is believed only by pinned keys: nothing that it says of itself makes it good."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec as ec_keys
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric import rsa as rsa_keys
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, RSAKey

from confcom.errors import ConfcomError, FormatError
from confcom.formats.arguments import encode_base64url
from confcom.services.attestation.signing_keys import make_key
from confcom.tokens.jws import MAX_TOKEN, SigningKey, token_in, unsecured
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
    "list": [1],
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


def test_critical_and_unencoded_headers_are_refused_in_every_spelling(rsa: SigningKey, keys: KeySet) -> None:
    for header in ({"crit": []}, {"crit": None}, {"crit": ["exp"], "exp": 1}, {"b64": False}, {"b64": True}):
        with pytest.raises(TokenError, match="critical headers"):
            _verify(_signed(rsa, CLAIMS, header), keys)


def _signed(key: SigningKey, claims: dict[str, Any] | bytes, header: dict[str, Any]) -> str:
    """A token with any header, which is signed well."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    full = {"alg": "RS256", "kid": key.key_id} | header
    text = f"{encode_base64url(json.dumps(full).encode())}.{encode_base64url(payload)}"
    assert isinstance(key.private, rsa_keys.RSAPrivateKey)
    return f"{text}.{encode_base64url(key.private.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def test_a_member_that_stands_twice_is_refused(rsa: SigningKey, keys: KeySet) -> None:
    """Readers differ in which of the two counts."""
    plain = json.dumps(CLAIMS).encode()
    assert _verify(_signed(rsa, plain, {}), keys)
    for payload in (
        plain[:-1] + b', "x-ms-sgx-is-debuggable": false}',
        b'{"iss": "https://evil.example", ' + plain[1:],
        plain[:-1] + b', "x-ms-runtime": {"keys": [{"kid": 1, "kid": 2}]}}',
    ):
        with pytest.raises(FormatError, match="stands twice"):
            _verify(_signed(rsa, payload, {}), keys)
    header = encode_base64url(f'{{"alg": "none", "alg": "RS256", "kid": "{rsa.key_id}"}}'.encode())
    with pytest.raises(FormatError, match="stands twice"):
        _verify(".".join((header, *_signed(rsa, plain, {}).split(".")[1:])), keys)


def test_a_token_has_no_twins(rsa: SigningKey, ec: SigningKey, keys: KeySet) -> None:
    """Another spelling of the same bytes would be another token to whoever compares or revokes them as text."""
    for key in (rsa, ec):
        token = key.sign(CLAIMS, {})
        digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        twin = token[:-1] + digits[digits.index(token[-1]) ^ 1]
        for other in (twin, token + "=" * (-len(token.split(".")[2]) % 4), token.replace("-", "+").replace("_", "/")):
            if other != token:
                with pytest.raises(TokenError):
                    _verify(other, keys)


@pytest.mark.parametrize(
    "signature", [b"", b"\0" * 64, b"\xff" * 64, b"\1" * 63, b"\1" * 65, b"\0" * 31 + b"\1" + b"\0" * 32]
)
def test_malformed_signatures_of_p_256(ec: SigningKey, keys: KeySet, signature: bytes) -> None:
    text = ec.sign(CLAIMS, {}).rpartition(".")[0]
    with pytest.raises(TokenError, match=r"not signed|not of a pinned key"):
        _verify(f"{text}.{encode_base64url(signature)}", keys)


def test_a_signature_of_p_256_in_der_is_none(ec: SigningKey, keys: KeySet) -> None:
    text = ec.sign(CLAIMS, {}).rpartition(".")[0]
    assert isinstance(ec.private, ec_keys.EllipticCurvePrivateKey)
    der = ec.private.sign(text.encode(), ec_keys.ECDSA(hashes.SHA256()))
    with pytest.raises(TokenError, match="not of a pinned key"):
        _verify(f"{text}.{encode_base64url(der)}", keys)


def test_a_key_signs_with_its_own_algorithm_only(rsa: SigningKey) -> None:
    """PSS under a key that is for RS256; a key set that does not say takes both."""
    header = encode_base64url(json.dumps({"alg": "PS256", "kid": rsa.key_id}).encode())
    text = f"{header}.{encode_base64url(json.dumps(CLAIMS).encode())}"
    assert isinstance(rsa.private, rsa_keys.RSAPrivateKey)
    signature = rsa.private.sign(text.encode(), padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    token = f"{text}.{encode_base64url(signature)}"
    jwk = rsa.jwk()
    for more, good in (({"alg": "RS256"}, False), ({"alg": None}, True), ({"alg": "RSA-OAEP"}, False)):
        keys = KeySet.parse(json.dumps({"keys": [jwk | more]}).encode(), fetched=NOW)
        if good:
            assert _verify(token, keys)
        else:
            with pytest.raises(TokenError, match="not of a pinned key"):
                _verify(token, keys)
    for more in ({"use": "enc"}, {"key_ops": ["encrypt"]}):
        keys = KeySet.parse(json.dumps({"keys": [jwk | more]}).encode(), fetched=NOW)
        with pytest.raises(TokenError, match="no pinned key"):
            _verify(rsa.sign(CLAIMS, {}), keys)


@pytest.mark.parametrize("more", [{"kty": ["RSA"]}, {"key_ops": 5}, {"x5c": 5}, {"x5c": ["curve"]}])
def test_a_key_that_cannot_be_read_is_named(tmp_path: Path, more: dict[str, Any]) -> None:
    key = SigningKey.from_pem(make_key(tmp_path, "ec", NOW, simulated=False).read_bytes(), "")
    if more == {"x5c": ["curve"]}:
        p256, unknown = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030102")
        der = base64.b64decode(key.jwk()["x5c"][0]).replace(p256, unknown)
        more = {"x5c": [base64.b64encode(der).decode()]}
    with pytest.raises(FormatError, match=r"keys\[0\]"):
        KeySet.parse(json.dumps({"keys": [key.jwk() | more]}).encode(), fetched=NOW)


def test_short_keys_and_keys_of_the_future_do_not_count(rsa: SigningKey, keys: KeySet) -> None:
    private = rsa_keys.generate_private_key(65537, 1024)
    numbers = private.public_key().public_numbers()
    bare = {"kty": "RSA", "kid": "k", "e": "AQAB", "n": encode_base64url(numbers.n.to_bytes(128))}
    with pytest.warns(SecurityWarning):
        short = KeySet.parse(json.dumps({"keys": [bare]}).encode(), fetched=NOW)
    text = _signed(rsa, CLAIMS, {"kid": "k"}).rpartition(".")[0]
    signature = private.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    with pytest.raises(TokenError, match="1024 bits"):
        _verify(f"{text}.{encode_base64url(signature)}", short)
    early = NOW - timedelta(days=1)
    claims = CLAIMS | {"iat": int(early.timestamp()), "nbf": int(early.timestamp())}
    with pytest.raises(TokenError, match="begins on"):
        _verify(rsa.sign(claims, {}), KeySet(keys.keys, early), now=early)


def test_a_short_key_in_the_set_leaves_the_others_good(rsa: SigningKey) -> None:
    """A token that names no key is tried with each, and the first of a set may be an old one."""
    numbers = rsa_keys.generate_private_key(65537, 1024).public_key().public_numbers()
    short = {"kty": "RSA", "kid": "short", "e": "AQAB", "n": encode_base64url(numbers.n.to_bytes(128))}
    with pytest.warns(SecurityWarning):
        keys = KeySet.parse(json.dumps({"keys": [short, rsa.jwk()]}).encode(), fetched=NOW)
    assert _verify(_with_kid(rsa, None), keys).key.key_id == rsa.key_id


def _with_kid(key: SigningKey, kid: object) -> str:
    return _signed(key, CLAIMS, {"kid": kid})


def test_a_key_whose_certificate_is_of_another_key_is_refused(rsa: SigningKey, ec: SigningKey) -> None:
    """One reader of the set would take the members, another the certificate (RFC 7517, section 4.7)."""
    other = rsa_keys.generate_private_key(65537, 2048).public_key().public_numbers()
    for key, changes in (
        (rsa, {"n": encode_base64url(other.n.to_bytes(256))}),
        (ec, {"x": rsa.jwk()["n"][:43], "y": rsa.jwk()["n"][:43]}),
        (ec, {"x5c": rsa.jwk()["x5c"]}),
    ):
        with pytest.raises(FormatError, match=r"keys\[0\]"):
            KeySet.parse(json.dumps({"keys": [key.jwk() | changes]}).encode(), fetched=NOW)


@pytest.mark.parametrize("curve", [ec_keys.SECP256R1(), ec_keys.SECP384R1(), ec_keys.SECP521R1()])
def test_each_ecdsa_algorithm_has_one_curve(curve: ec_keys.EllipticCurve) -> None:
    """RFC 7518, section 3.4: ES256 is P-256 with SHA-256. A key of another curve never signs with it."""
    private = ec_keys.generate_private_key(curve)
    keys = KeySet.parse(json.dumps({"keys": [ECKey.import_key(private).as_dict(private=False)]}).encode(), fetched=NOW)
    payload, size = encode_base64url(json.dumps(CLAIMS).encode()), (curve.key_size + 7) // 8
    for name, digest, bits in (
        ("ES256", hashes.SHA256(), 256),
        ("ES384", hashes.SHA384(), 384),
        ("ES512", hashes.SHA512(), 521),
    ):
        signed = f"{encode_base64url(json.dumps({'alg': name}).encode())}.{payload}"
        r, s = decode_dss_signature(private.sign(signed.encode(), ec_keys.ECDSA(digest)))
        token = f"{signed}.{encode_base64url(r.to_bytes(size) + s.to_bytes(size))}"
        if bits == curve.key_size:
            assert _verify(token, keys).claims == CLAIMS
        else:
            with pytest.raises(TokenError, match="not of a pinned key"):
                _verify(token, keys)


def test_at_its_end_a_token_is_over(rsa: SigningKey, keys: KeySet) -> None:
    """RFC 7519, section 4.1.4: it is refused "on or after" `exp`, to which the leeway is added."""
    end = datetime.fromtimestamp(CLAIMS["exp"], UTC)
    token, second = rsa.sign(CLAIMS, {}), timedelta(seconds=1)
    for leeway in (timedelta(), timedelta(minutes=1)):
        assert _verify(token, keys, now=end + leeway - second, leeway=leeway)
        with pytest.raises(TokenError, match="expired"):
            _verify(token, keys, now=end + leeway, leeway=leeway)


def test_keys_on_curves_that_sign_no_tokens_are_passed_over(rsa: SigningKey) -> None:
    for curve in ("secp256k1", "BP-256", "Ed448", 5, None):
        other = {"kty": "EC", "crv": curve, "kid": "z", "x": "AA", "y": "AA"}
        (key,) = KeySet.parse(json.dumps({"keys": [other, rsa.jwk()]}).encode(), fetched=NOW).keys
        assert key.key_id == rsa.key_id


def test_a_member_of_a_key_set_that_stands_twice_is_refused(rsa: SigningKey) -> None:
    text = json.dumps({"keys": [rsa.jwk()]})
    for twice in (text.replace('"kid"', '"kid": "other", "kid"'), text[:-1] + ', "keys": []}'):
        with pytest.raises(FormatError, match="stands twice"):
            KeySet.parse(twice.encode(), fetched=NOW)


@pytest.mark.parametrize("wrong", [{"issuer": None}, {"token": b"a.b.c"}, {"keys": {"keys": []}}])
def test_arguments_of_another_type_verify_nothing(rsa: SigningKey, keys: KeySet, wrong: dict[str, Any]) -> None:
    """None as the issuer, of a variable that is not set, would match a token without one."""
    token = rsa.sign({name: value for name, value in CLAIMS.items() if name != "iss"}, {})
    with pytest.raises(TypeError, match=next(iter(wrong))):
        verify_token(**{"token": token, "keys": keys, "issuer": ISSUER, "now": NOW} | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mr_enclave": b"\xaa" * 32},
        {"mr_enclave": ("aa" * 32,)},
        {"mr_signer": ["bb" * 32]},
        {"accept_tcb": "OutOfDateConfigurationNeeded"},
        {"accept_tcb": (b"UpToDate",)},
        {"report_data": "cc" * 32},
    ],
)
def test_one_value_in_place_of_several_is_a_mistake_that_is_named(wrong: dict[str, Any]) -> None:
    """A text as the accepted statuses would accept each of its parts: OutOfDate, too."""
    with pytest.raises(TypeError, match=next(iter(wrong))):
        TokenPolicy(**wrong)


def test_a_huge_token_is_not_read(keys: KeySet) -> None:
    with pytest.raises(FormatError, match="are read"):
        _verify("e30." + "A" * (MAX_TOKEN + 1) + ".AA", keys)


def test_an_answer_about_policies_is_no_attestation(rsa: SigningKey, keys: KeySet) -> None:
    """The service signs both with one key."""
    answer = _verify(rsa.sign({"iss": ISSUER, **TIMES, "x-ms-policy-result": "Updated"}, {}), keys)
    for policy in (TokenPolicy(), TokenPolicy(allow_debug=True, allow_simulated=True)):
        with pytest.raises(TokenRefused, match="debuggable"):
            policy.check(answer)


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
        ({"iss": "https://other.example"}, "the issuer"),
        ({"iss": ISSUER + "/"}, "the issuer"),
        ({"iss": None}, "the issuer"),
        ({"exp": TIMES["exp"] - 200}, "expired"),
        ({"exp": "never"}, "no number"),
        ({"exp": True}, "no number"),
        ({"exp": 10**400}, "no time"),
        ({"exp": 1e300}, "no time"),
        ({"iat": -1}, "no time"),
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
    # A clock that was set back does not make old keys good for longer.
    with pytest.raises(TokenError, match="ahead of now"):
        _verify(rsa.sign(CLAIMS, {}), KeySet(keys.keys, NOW + timedelta(days=100)))
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
        # By the names of the other kind of TEE, which a policy of the issuer may have added.
        {"tdx_td_attributes_debug": True},
        {"attester_tcb_status": "OutOfDate"},
        {"tdx_report_data": "dd" * 64},
        {"list": [True]},
        {"list": [1.0]},
        {"list": {"0": 1}},
    ],
)
def test_a_policy_for_claims(rsa: SigningKey, keys: KeySet, changes: dict[str, Any]) -> None:
    policy = replace(GOOD, more={"iss": ISSUER, "list": [1]})
    policy.check(_verify(rsa.sign(CLAIMS, {}), keys))
    with pytest.raises(TokenRefused):
        policy.check(_verify(rsa.sign(CLAIMS | changes, {}), keys))


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


TRUSTEE = {
    "sgx": {
        "header": {"version": "0300"},
        "body": {
            "attributes.flags": "0500000000000000",
            "mr_enclave": "aa" * 32,
            "mr_signer": "bb" * 32,
            "isv_prod_id": "0100",
            "isv_svn": "0700",
            "report_data": "cc" * 64,
        },
        "tcb_status": "UpToDate",
    },
    "report_data": "cc" * 64,
}


def test_results_of_trustee(ec: SigningKey, stranger: SigningKey, keys: KeySet) -> None:
    """They name no key id, bring their key along in the header, and give the fields of the quote in hex."""
    module = {"ear.status": "affirming", "ear.veraison.annotated-evidence": TRUSTEE}
    ear = {"iss": ISSUER, **TIMES, "submods": {"cpu0": module}, "eat_nonce": "n"}
    header = {"alg": "ES256", "typ": "JWT", "jwk": ec.jwk()}
    secret = ECKey.import_key(ec.private)  # type: ignore[arg-type]

    def token(evidence: dict[str, Any]) -> str:
        claims = ear | {"submods": {"cpu0": module | {"ear.veraison.annotated-evidence": evidence}}}
        return jws.serialize_compact(header, json.dumps(claims), secret, ["ES256"])

    GOOD.check(_verify(token(TRUSTEE), keys))
    body = TRUSTEE["sgx"]["body"]  # type: ignore[index]
    for changes in (
        {"mr_enclave": "00" * 32},
        {"attributes.flags": "0700000000000000"},
        {"isv_svn": "0600"},
        {"isv_prod_id": "0001"},
        {"isv_svn": 7},
        {"attributes.flags": "x"},
    ):
        wrong = {"sgx": TRUSTEE["sgx"] | {"body": body | changes}}  # type: ignore[operator]
        with pytest.raises(TokenRefused):
            GOOD.check(_verify(token(wrong), keys))
    for evidence in ({}, {"sgx": {}}, {"sgx": 5}, {"tdx": {"quote": {}}}, {"sgx": {"body": []}}):
        with pytest.raises(TokenRefused):
            TokenPolicy(allow_debug=True).check(_verify(token(evidence), keys))
    td = {"quote": {"body": {"mr_td": "dd" * 48, "report_data": "cc" * 64}}, "td_attributes": {"debug": False}}
    TokenPolicy(report_data=b"\xcc" * 32, more={"tdx_mrtd": "dd" * 48}).check(_verify(token({"tdx": td}), keys))
    other = KeySet.parse(json.dumps({"keys": [stranger.jwk()]}).encode(), fetched=NOW)
    with pytest.raises(TokenError, match="not of a pinned key"):
        _verify(token(TRUSTEE), other)


@given(st.text(max_size=100) | st.lists(st.binary(max_size=30), min_size=3, max_size=3).map(
    lambda parts: ".".join(encode_base64url(part) for part in parts)
))  # fmt: skip
def test_no_text_is_a_token_by_chance(text: str) -> None:
    with pytest.raises(ConfcomError):
        _verify(text, KeySet((), NOW))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.b.c", "a.b.c"),
        ('{"token": "a.b.c", "more": 1}', "a.b.c"),
        ('{"error": {}}', None),
        ('{"token": 1}', None),
        ('{"token": ', None),
        ('{"a":' * 100_000, None),
    ],
)
def test_the_token_of_an_answer(text: str, found: str | None) -> None:
    assert token_in(text) == found
