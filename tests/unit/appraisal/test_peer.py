"""Attested certificates: every known format is accepted by its own rule, and every rule of the verifier holds."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA512
from hypothesis import given, settings
from hypothesis import strategies as st

import attested_certificates as made
from attested_certificates import DAY, DICE, NOW, Certificate, bstr, claims, dice, head, key, key_hash, quote, spki
from confcom import AllOf, AnyOf, IsvProdId, MinIsvSvn, MrEnclave, MrSigner, NoDebug, QuoteVerifier, safe_defaults
from confcom.appraisal.findings import Verdict
from confcom.appraisal.inspection.explain import inspect
from confcom.appraisal.peer import check_binding, check_certificate, read_attested_certificate
from confcom.appraisal.policy import HeldData, MrTd, Policy, ReportData
from confcom.appraisal.result import VerifiedPeer, judge, read_evidence, verify_certificate
from confcom.errors import (
    BindingError,
    CertificateError,
    ConfcomError,
    ConfigError,
    FormatError,
    PolicyError,
    SignatureError,
    UntrustedRootError,
)
from confcom.formats.attested_certificate import MAX_ATTESTED_CERTIFICATE, AttestedCertificate
from confcom.formats.quote import TeeType
from confcom.pki.chain import TrustRoots

FORMATS = made.every_format()
DEFAULTS = safe_defaults(accept_simulated=True)


def expected(certificate: bytes) -> Policy:
    """The policy that accepts exactly this enclave or TD."""
    body = AttestedCertificate.parse(certificate).quote
    if body.tee is TeeType.TDX:
        return AllOf(MrTd((body.body.mr_td,)), DEFAULTS)
    return AllOf(MrEnclave((body.body.mr_enclave,)), DEFAULTS)


def accept(certificate: bytes, policy: Policy | None = None, **changes) -> VerifiedPeer:
    world = made.world()
    parsed = AttestedCertificate.parse(certificate) if policy is None else None
    tdx = parsed is not None and parsed.quote.tee is TeeType.TDX
    collateral = (
        world.authority.collateral(world.machine.fmspc, world.machine.pck_ca, "tdx") if tdx else world.publish()
    )
    asked = {"now": NOW, "verifier": QuoteVerifier(world.trust_roots)} | changes
    return verify_certificate(certificate, policy or expected(certificate), collateral, **asked)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_accepted_by_its_rule(name: str) -> None:
    certificate, kind, binding = FORMATS[name]
    peer = accept(certificate)
    assert (peer.certificate.format, peer.binding) == (kind, binding)
    assert peer.public_key == AttestedCertificate.parse(certificate).parts.public_key
    assert peer.quote.simulated


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_evidence_with_another_key_is_refused(name: str) -> None:
    parts = AttestedCertificate.parse(FORMATS[name][0]).parts
    thief = ec.derive_private_key(4711, ec.SECP256R1())
    extensions = tuple((made.der.oid_text(oid), value) for oid, (_, value) in parts.extensions.items())
    stolen = Certificate(tuple(one for one in extensions if not one[0].startswith("2.5.29.")), key=thief).build()
    with pytest.raises(BindingError, match=r"not for this certificate|of another key"):
        accept(stolen)


@pytest.mark.parametrize("name", [name for name in FORMATS if "TD" not in name])
def test_report_data_beyond_the_hash_is_zero(name: str) -> None:
    """The other half could hold anything that the enclave was asked to sign for another purpose."""
    certificate, _, _ = FORMATS[name]
    parsed = AttestedCertificate.parse(certificate)
    digest = parsed.quote.report_data[:32]
    other = quote(digest + b"\1")
    values = [v for k, (_, v) in parsed.parts.extensions.items() if made.der.oid_text(k) in (DICE, *_LEGACY)]
    value = next(one for one in values if bytes(parsed.quote) in one)
    changed = value.replace(bytes(parsed.quote), other)
    assert changed != value
    oid = next(made.der.oid_text(k) for k, v in parsed.parts.extensions.items() if v[1] == value)
    private = ec.derive_private_key(77, ec.SECP384R1()) if "384" in name else key()
    with pytest.raises(BindingError, match="not for this certificate"):
        accept(Certificate(((oid, changed),), key=private).build())


_LEGACY = (made.GRAMINE, made.INTEL, made.OE_REPORT, made.OE_EVIDENCE, made.OLD_OE_REPORT, made.OLD_OE_EVIDENCE)


def test_sha_384_is_a_rule_for_tds_alone() -> None:
    found = made.standard_claims()
    certificate = Certificate(((DICE, made.ra_tls(quote(hashlib.sha384(found).digest()), found)),)).build()
    with pytest.raises(BindingError):
        accept(certificate)


KEY_HASH = key_hash(spki(key()))
BAD_CLAIMS = {
    "without pubkey-hash": claims(("nonce", b"1")),
    "empty": claims(),
    "a prefix of the name": claims(("pubkey-has", KEY_HASH)),
    "more than the name": claims(("pubkey-hash2", KEY_HASH)),
    "another case": claims(("Pubkey-Hash", KEY_HASH)),
    "twice": claims(("pubkey-hash", KEY_HASH), ("pubkey-hash", KEY_HASH)),
    "trailing byte": claims(("pubkey-hash", KEY_HASH)) + b"\0",
    "indefinite map": b"\xbf" + made.text("pubkey-hash") + bstr(KEY_HASH) + b"\xff",
    "long form of the count": b"\xb8\x01" + made.text("pubkey-hash") + bstr(KEY_HASH),
    "long form of a length": b"\xa1\x78\x0bpubkey-hash" + bstr(KEY_HASH),
    "16 bits for 36": b"\xa1" + made.text("pubkey-hash") + b"\x59\x00\x24" + KEY_HASH,
    "text for the hash": b"\xa1" + made.text("pubkey-hash") + b"\x78\x24" + KEY_HASH,
    "an array": head(4, 1) + made.text("pubkey-hash"),
    "unknown hash": claims(("pubkey-hash", key_hash(spki(key()), 2))),
    "short hash": claims(("pubkey-hash", head(4, 2) + head(0, 1) + bstr(bytes(31)))),
    "three members": claims(("pubkey-hash", head(4, 3) + KEY_HASH[1:] + b"\0")),
    "hash with a trailing byte": claims(("pubkey-hash", KEY_HASH + b"\0")),
    "too many": claims(("pubkey-hash", KEY_HASH), *((f"claim {n}", b"") for n in range(40))),
    "a count that is not there": head(5, 1 << 40),
    "a name that is not UTF-8": b"\xa2" + made.text("pubkey-hash") + bstr(KEY_HASH) + b"\x61\xff" + bstr(b""),
    "no CBOR": b"",
}


@pytest.mark.parametrize("name", BAD_CLAIMS)
def test_claims_have_one_form_and_exactly_one_hash_of_the_key(name: str) -> None:
    found = BAD_CLAIMS[name]
    good = quote(made.sha256(spki(key())))
    # With sound older evidence beside it: what is newest counts, and nothing is tried instead.
    certificate = Certificate(((DICE, made.ra_tls(quote(made.sha256(found)), found)), (made.GRAMINE, good))).build()
    with pytest.raises(FormatError):
        accept(certificate, MrSigner((bytes(32),)))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xd9\xea\x61" + head(4, 2),
        head(6, 60000) + head(4, 3),
        head(6, 60000) + b"\x9f",
        head(4, 2),
        made.ra_tls(quote(bytes(32)), made.standard_claims()) + b"\0",
        made.ra_tls(b"", made.standard_claims()),
        b"\x82\x1a\x00\x00\xea\x60" + bstr(b"x"),
    ],
)
def test_other_cbor_is_refused(value: bytes) -> None:
    with pytest.raises(FormatError):
        AttestedCertificate.parse(Certificate(((DICE, value),)).build())


@pytest.mark.parametrize(
    "extensions",
    [
        (),
        ((made.OE_REPORT, made.oe_report(quote(bytes(32)))), (made.OLD_OE_REPORT, made.oe_report(quote(bytes(32))))),
        ((made.GRAMINE, quote(bytes(32))), (made.INTEL, quote(bytes(32)))),
        (dice(), (made.OE_REPORT, made.oe_report(quote(bytes(32))))),
    ],
)
def test_exactly_one_evidence(extensions) -> None:
    with pytest.raises(FormatError, match="carries"):
        AttestedCertificate.parse(Certificate(extensions).build())


@pytest.mark.parametrize(
    ("oid", "value"),
    [
        (made.GRAMINE, made.oe_report(quote(bytes(32)))),
        (made.OE_EVIDENCE, made.oe_report(quote(bytes(32)))),
        (made.OE_REPORT, made.oe_evidence(quote(bytes(32)), b"")),
        (made.INTEL, quote(bytes(32))[:-1]),
        (made.GRAMINE, quote(bytes(32)) + b"\1"),
        (made.GRAMINE, quote(bytes(32)).hex().encode()),
    ],
)
def test_an_extension_holds_its_own_format_and_nothing_else(oid: str, value: bytes) -> None:
    with pytest.raises(FormatError):
        AttestedCertificate.parse(Certificate(((oid, value),)).build())


def test_a_pck_certificate_carries_no_evidence_under_intels_oid() -> None:
    chain = AttestedCertificate.parse(FORMATS["gramine"][0]).quote.signature.certification.certification_data.data
    leaf = made.x509.load_pem_x509_certificates(chain)[0].public_bytes(made.Encoding.DER)
    with pytest.raises(FormatError, match="carries no evidence"):
        AttestedCertificate.parse(leaf)


def test_sizes_are_bounded_first() -> None:
    with pytest.raises(FormatError, match="over the limit"):
        AttestedCertificate.parse(bytes(MAX_ATTESTED_CERTIFICATE + 1))
    with pytest.raises(FormatError, match="over the limit"):
        AttestedCertificate.parse(Certificate((dice(None, ("nonce", bytes(1025))),)).build())


def test_the_certificate_signed_itself_and_is_not_another_ones() -> None:
    with pytest.raises(SignatureError, match="did not sign itself"):
        accept(Certificate((dice(),), signer=key(2)).build())
    with pytest.raises(CertificateError, match="not self-signed"):
        accept(Certificate((dice(),), issuer="somebody").build())
    other = made.with_null_parameters(Certificate((dice(),)).build()).replace(
        made.ECDSA_SHA256, bytes.fromhex("06082a8648ce3d040303")
    )
    with pytest.raises(SignatureError):
        accept(other)


@pytest.mark.parametrize(
    ("private", "algorithm"),
    [
        (rsa.generate_private_key(65537, 2048), SHA512()),
        (ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)), None),
        (ec.derive_private_key(5, ec.SECP521R1()), SHA512()),
    ],
)
def test_other_keys_are_as_good(private, algorithm) -> None:
    assert accept(Certificate((dice(private),), key=private, algorithm=algorithm).build()).binding


def test_an_algorithm_of_another_key_is_refused() -> None:
    def change(members: list[bytes]) -> None:
        members[2] = made.der.write(made.der.SEQUENCE, bytes.fromhex("06092a864886f70d01010b"), b"\x05\x00")

    with pytest.raises(CertificateError, match="algorithm"):
        accept(made.resigned(Certificate((dice(),)).build(), change))


@pytest.mark.parametrize(
    "algorithm",
    [
        b"",
        made.ECDSA_SHA256 + b"\x05\x01\x00",
        made.ECDSA_SHA256 + b"\x30\x00",
        made.ECDSA_SHA256 + b"\x05\x00\x05\x00",
        b"\x04" + made.ECDSA_SHA256[1:],
        made.ECDSA_SHA256[:-1],
    ],
)
def test_an_algorithm_is_an_identifier_without_parameters_or_with_null(algorithm: bytes) -> None:
    def change(members: list[bytes]) -> None:
        members[2] = made.der.write(made.der.SEQUENCE, algorithm)

    with pytest.raises(CertificateError, match="algorithm") as raised:
        accept(made.resigned(Certificate((dice(),)).build(), change))
    assert raised.value.expected
    assert (algorithm.hex() or "empty") in raised.value.found


def extended(oid: bytes, critical: bytes = b"") -> bytes:
    """An attested certificate with one more extension, its OID given as bytes."""
    row = made.der.write(
        made.der.SEQUENCE, made.der.write(made.der.OID, oid), critical, made.der.write(made.der.OCTET_STRING, b"\5\0")
    )

    def change(members: list[bytes]) -> None:
        ((_, extensions, _),) = made.der.elements(made.der.elements(members[7])[0][1])
        members[7] = made.der.write(0xA3, made.der.write(made.der.SEQUENCE, extensions, row))

    return made.resigned(Certificate((dice(),)).build(), change)


def test_a_critical_extension_that_is_not_known_is_refused() -> None:
    unknown, critical = bytes.fromhex("2a030405"), bytes.fromhex("0101ff")
    assert accept(extended(unknown))
    with pytest.raises(CertificateError, match="critical") as raised:
        accept(extended(unknown, critical))
    assert (raised.value.step, raised.value.found) == ("certificate-validity", "1.2.3.4.5")
    # Name constraints are known elsewhere, and not applied here.
    with pytest.raises(CertificateError, match="critical"):
        accept(extended(bytes.fromhex("551d1e"), critical))
    assert accept(extended(bytes.fromhex("551d0f"), critical))
    assert accept(Certificate((dice(),), critical=True).build())


@pytest.mark.parametrize("oid", [b"", b"\x2a\x80\x03", b"\x80\x2a", b"\x2a\x83", b"\x2a" * 64, b"\xff" * 40000 + b"\1"])
def test_an_extension_with_an_identifier_of_another_spelling_is_malformed(oid: bytes) -> None:
    hostile = extended(oid)
    with pytest.raises(FormatError, match="object identifier"):
        AttestedCertificate.parse(hostile)
    with pytest.raises(FormatError):
        inspect(hostile)


@pytest.mark.parametrize(
    ("change", "why"),
    [({"not_after": NOW - timedelta(seconds=1)}, "expired"), ({"not_before": NOW + DAY / 2}, "not valid yet")],
)
def test_the_certificate_is_valid_now(change: dict, why: str) -> None:
    with pytest.raises(CertificateError, match=why):
        accept(Certificate((dice(),), **change).build())


def test_age_is_bounded_by_the_verifier_and_not_by_the_certificate() -> None:
    decades = Certificate((dice(),), not_before=NOW - 9000 * DAY, not_after=NOW + 9000 * DAY).build()
    assert accept(decades)
    with pytest.raises(CertificateError, match="older"):
        accept(decades, max_age=DAY)
    assert accept(Certificate((dice(),)).build(), max_age=DAY)


def test_a_nonce_is_the_one_that_was_asked_for() -> None:
    fresh = Certificate((dice(None, ("nonce", b"of today"), ("other", b"x")),)).build()
    assert accept(fresh, nonce=b"of today").certificate.ra_tls.further == {"other": b"x"}
    with pytest.raises(BindingError, match="another nonce"):
        accept(fresh, nonce=b"of yesterday")
    for name in ("ra-tls", "gramine", "oe evidence"):
        with pytest.raises(BindingError, match="no nonce"):
            accept(FORMATS[name][0], nonce=b"")


@pytest.mark.parametrize(
    "policy",
    [
        NoDebug(),
        DEFAULTS,
        IsvProdId(3),
        AllOf(IsvProdId(3), MinIsvSvn(1), ReportData(b"x")),
        HeldData(b"x"),
        AnyOf(MrSigner((bytes(32),)), NoDebug()),
    ],
)
def test_an_identity_is_required(policy: Policy) -> None:
    with pytest.raises(ConfigError, match="does not say who is expected"):
        accept(FORMATS["ra-tls"][0], policy)
    with pytest.raises(TypeError):
        verify_certificate(FORMATS["ra-tls"][0], collateral=made.world().publish(), now=NOW)


def test_policy_debug_and_root_decide_as_for_every_quote() -> None:
    with pytest.raises(PolicyError, match="mr-enclave"):
        accept(FORMATS["gramine"][0], AllOf(MrEnclave((bytes(32),)), DEFAULTS))
    with pytest.raises(PolicyError, match=r"simulated|hardware"):
        accept(FORMATS["gramine"][0], expected(FORMATS["gramine"][0]).policies[0])
    open_one = Certificate(((made.GRAMINE, quote(made.sha256(spki(key())), debug=True)),)).build()
    with pytest.raises(PolicyError, match="debug"):
        accept(open_one)
    with pytest.raises(ConfcomError) as caught:
        accept(FORMATS["gramine"][0], verifier=QuoteVerifier(TrustRoots.intel()))
    assert isinstance(caught.value.__cause__ or caught.value, UntrustedRootError)


def test_the_result_names_format_rule_and_binding() -> None:
    certificate, policy = AttestedCertificate.parse(FORMATS["ego"][0]), expected(FORMATS["ego"][0])
    world = made.world()
    result = judge(
        certificate,
        world.publish(),
        verifier=QuoteVerifier(world.trust_roots),
        policy=policy,
        now=NOW,
    )
    assert result.verdict is Verdict.ACCEPTED
    facts = result.as_dict()["certificate"]
    assert facts == {
        "format": "open-enclave-report",
        "binding": "SHA-256 of the key",
        "public_key_sha256": made.sha256(spki(key())).hex(),
        "not_before": "0001-01-01T00:00:00Z",
        "not_after": "2026-06-02T12:00:00Z",
        "nonce": None,
    }
    assert {"certificate-signature", "certificate-validity", "certificate-binding"} <= {c.id for c in result.checks}


def test_a_result_of_evidence_alone_says_nothing_of_certificates() -> None:
    world = made.world()
    result = judge(
        quote(bytes(32)), world.publish(), verifier=QuoteVerifier(world.trust_roots), policy=NoDebug(), now=NOW
    )
    assert "certificate" not in result.as_dict()


def test_pem_is_read_with_one_block() -> None:
    der = FORMATS["gramine"][0]
    pem = made.x509.load_der_x509_certificate(FORMATS["ra-tls"][0]).public_bytes(made.Encoding.PEM)
    assert read_attested_certificate(b"text\n" + pem).format == "ra-tls"
    assert read_attested_certificate(der).der == der
    with pytest.raises(FormatError, match="more than 1"):
        read_attested_certificate(pem + pem)
    for nothing in (b"", b"junk", pem[:-40]):
        with pytest.raises(FormatError):
            read_attested_certificate(nothing)


@pytest.mark.parametrize("name", FORMATS)
def test_inspection_decodes_it_to_the_last_field(name: str) -> None:
    certificate, kind, binding = FORMATS[name]
    found = inspect(certificate)
    fields = found.as_dict()["fields"]
    assert (found.kind, fields["binding"]) == ("attested-certificate", binding)
    assert fields["public_key"] == AttestedCertificate.parse(certificate).parts.public_key.hex()
    assert kind == AttestedCertificate.parse(certificate).format
    assert AttestedCertificate.parse(certificate).quote.report_data.hex() in json.dumps(fields)


def test_inspection_shows_what_is_wrong_and_the_rest() -> None:
    found = Certificate(((DICE, made.ra_tls(quote(bytes(32)), b"\xa0")), (made.GRAMINE, quote(bytes(32))))).build()
    fields = inspect(found).as_dict()["fields"]
    assert "pubkey-hash" in fields["binding"]["unreadable"]
    assert "pubkey-hash" in fields[DICE]["unreadable"]
    assert fields[made.GRAMINE]["quote"]["header"]["version"] == 3
    stolen = inspect(Certificate((dice(),), key=key(2)).build()).as_dict()["fields"]
    assert stolen["binding"] == "SHA-256 of the claims"
    with pytest.raises(FormatError, match="certificate with evidence"):
        read_evidence(Certificate((dice(),)).build())


@pytest.mark.parametrize("name", ["ra-tls, Gramine's", "oe evidence"])
def test_every_byte_of_a_certificate_counts(name: str) -> None:
    whole, _, _ = FORMATS[name]
    policy, world = expected(whole), made.world()
    verifier, collateral = QuoteVerifier(world.trust_roots), world.publish()
    assert verify_certificate(whole, policy, collateral, now=NOW, verifier=verifier)
    for offset in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[offset] ^= 1 << offset % 8
        with pytest.raises(ConfcomError):
            verify_certificate(bytes(changed), policy, collateral, now=NOW, verifier=verifier)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_hostile_certificates_are_refused_without_surprises(data: st.DataObject) -> None:
    whole, _, _ = FORMATS[data.draw(st.sampled_from(sorted(FORMATS)))]
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    changed = whole[:start] + data.draw(st.binary(max_size=40)) + whole[end:]
    try:
        found = AttestedCertificate.parse(changed)
    except FormatError:
        return
    if changed != whole:
        with pytest.raises(ConfcomError):
            accept(changed, replace_policy(found))


def replace_policy(found: AttestedCertificate) -> Policy:
    return AllOf(MrSigner((bytes(32),)), DEFAULTS) if found.quote.tee is TeeType.SGX else MrTd((bytes(48),))


@pytest.mark.vectors
def test_the_recorded_signing_key_of_azure_attestation_is_bound(vectors: Path) -> None:
    answer = json.loads((vectors / "azure-attestation/exchange/get.certs.response.body.json").read_text())
    certificates = [base64.b64decode(text) for key in answer["keys"] for text in key["x5c"]]
    attested = [der for der in certificates if inspect(der).kind == "attested-certificate"]
    assert len(certificates) > 1
    found = read_attested_certificate(attested[0])
    assert len(attested) == 1
    assert [one.id for one in check_binding(found)] == ["certificate-binding"]
    assert check_certificate(found, found.not_before + DAY)


@pytest.mark.vectors
@pytest.mark.parametrize("name", ["gramine", "rats-tls"])
def test_public_samples_are_read_and_bind_their_keys(vectors: Path, name: str) -> None:
    """They are of debug enclaves and expired; their collateral is not published, so the binding alone is judged."""

    def check(der: bytes) -> list[str]:
        certificate = AttestedCertificate.parse(der)
        checks = check_certificate(certificate, datetime(2023, 6, 1, tzinfo=UTC)) + check_binding(certificate)
        return [check.id for check in checks]

    found = read_attested_certificate((vectors / "certificates" / f"{name}.pem").read_bytes())
    assert found.format == "ra-tls"
    steps = ["signature", "validity", "binding", "key"]
    assert check(found.der) == [f"certificate-{step}" for step in steps]
    assert found.quote.body.attributes.debug
    whole = found.der
    for offset in range(0, len(whole), 11):
        changed = bytearray(whole)
        changed[offset] ^= 1 << offset % 8
        with pytest.raises(ConfcomError):
            check(bytes(changed))
