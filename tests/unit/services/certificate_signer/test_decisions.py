"""Decisions on hostile requests: each is denied with its reason, and none by an exception."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from confcom.appraisal.quote import QuoteVerifier
from confcom.errors import CollateralNotFound, ConfigError, PlatformUnavailable
from confcom.formats import der
from confcom.formats.arguments import decode_base64
from confcom.formats.attested_certificate import DICE_EVIDENCE, write_claims, write_ra_tls
from confcom.manifests.addon_config import AddonConfig
from confcom.pki.chain import TrustRoots
from confcom.pki.serving_pair import Authority
from confcom.platforms.pod_certificate import make_evidence, signing_request
from confcom.protocols.certificate_requests import MAX_REQUEST, SIGNER, Requester, SigningRequest, name_for, nonce_of
from confcom.services.certificate_signer.certificate_signer import CertificateSignerConfig
from confcom.services.certificate_signer.decisions import Decisions, Denial, Grant, PodPolicies
from no_descriptors import no_descriptors
from running_certificate_signer import enclave, now, policy_of, world

NOW = now()
RANDOM = bytes(range(16))
CA = Authority.make("test", now=NOW, lifetime=timedelta(days=30), names=("svc", "svc.cluster.local"))
KEY = ec.derive_private_key(4711, ec.SECP256R1())
ACCOUNT: dict[str, Any] = {
    "username": "system:serviceaccount:shop:web",
    "groups": ["system:serviceaccounts", "system:serviceaccounts:shop"],
    "extra": {
        "authentication.kubernetes.io/pod-name": ["web-1"],
        "authentication.kubernetes.io/pod-uid": ["4c1a"],
    },
}


@pytest.fixture(scope="module")
def decisions(tmp_path_factory: pytest.TempPathFactory) -> Decisions:
    folder: Path = tmp_path_factory.mktemp("policies")
    (folder / "shop.web.toml").write_text(policy_of())
    return Decisions(
        PodPolicies(folder, simulated=True),
        QuoteVerifier(world().trust_roots),
        lambda _, at: world().publish(at),
        trust_domain="cluster.local",
        lifetime=timedelta(days=1),
        simulated=True,
    )


def request(content: bytes, name: str = "r", **more: Any) -> SigningRequest:
    """An object of the API with this request in PEM."""
    spec = {"signerName": SIGNER, "usages": ["server auth"], "request": b64encode(content).decode()} | ACCOUNT | more
    metadata = {"name": name, "uid": "u", "resourceVersion": "1"}
    return SigningRequest.parse({"metadata": metadata, "spec": spec})


def decide(decisions: Decisions, asked: SigningRequest, *, later: timedelta = timedelta(0)) -> Grant:
    return decisions.decide(asked, CA, now=NOW + later, random=RANDOM)


def denied(decisions: Decisions, asked: SigningRequest, *, later: timedelta = timedelta(0)) -> tuple[str, str]:
    with pytest.raises(Denial) as caught:
        decide(decisions, asked, later=later)
    assert caught.value.message.isprintable()
    return caught.value.reason, caught.value.message


def nonce(decisions: Decisions, key: Any = KEY) -> bytes:
    reason, message = denied(decisions, request(signing_request(key)))
    assert reason == "NonceIssued"
    return decode_base64(nonce_of(message))


def plain(key: Any) -> bytes:
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, digest).public_bytes(
        Encoding.PEM
    )  # fmt: skip


def with_evidence(evidence: bytes) -> bytes:
    """A request with any bytes in the place of evidence."""
    return signing_request(KEY, evidence)


def test_good_evidence_gets_a_certificate(decisions: Decisions) -> None:
    given = nonce(decisions)
    found = decide(decisions, request(signing_request(KEY, make_evidence(enclave(), KEY, given)), name_for(given)))
    made = x509.load_pem_x509_certificate(found.issued.pem)
    assert made.public_key() == KEY.public_key()
    assert found.issued.expires == made.not_valid_after_utc


@pytest.mark.parametrize("lifetime", [600, 3600, 10**9])
def test_a_request_may_ask_for_less_life_and_not_for_more(decisions: Decisions, lifetime: int) -> None:
    given = nonce(decisions)
    asked = request(
        signing_request(KEY, make_evidence(enclave(), KEY, given)), name_for(given), expirationSeconds=lifetime
    )
    expected = timedelta(seconds=min(lifetime, 86400))
    assert abs(decide(decisions, asked).issued.expires - NOW - expected) < timedelta(seconds=2)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-256", "P-384", "RSA-2048", "Ed25519"],
)
def test_usual_keys_are_certified(decisions: Decisions, key: Any) -> None:
    assert denied(decisions, request(plain(key)))[0] == "NonceIssued"


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024),
        rsa.generate_private_key(3, 2048),
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
        dsa.generate_private_key(2048),
    ],
    ids=["RSA-1024", "RSA with exponent 3", "P-521", "secp256k1", "DSA"],
)
def test_other_keys_are_not(decisions: Decisions, key: Any) -> None:
    reason, message = denied(decisions, request(plain(key)))
    assert reason == "MalformedRequest"
    assert "P-256, P-384, Ed25519, or RSA" in message


def test_what_is_no_request_is_denied(decisions: Decisions) -> None:
    good = signing_request(KEY)
    middle = len(good) // 2
    hostile = {
        "nothing": b"",
        "text": b"hello",
        "two": good + good,
        "certificate": CA.certificate,
        "no base64": good.replace(b"\nM", b"\n!", 1),
        "cut off": good[:middle] + good[middle + 64 :],
        "huge": b" " * (MAX_REQUEST + 1),
    }
    for name, content in hostile.items():
        assert denied(decisions, request(content))[0] == "MalformedRequest", name


def test_the_signature_is_checked(decisions: Decisions) -> None:
    raw = x509.load_pem_x509_csr(signing_request(KEY)).public_bytes(Encoding.DER)
    forged = raw[:-1] + bytes((raw[-1] ^ 1,))
    text = b"-----BEGIN CERTIFICATE REQUEST-----\n" + b64encode(forged) + b"\n-----END CERTIFICATE REQUEST-----\n"
    reason, message = denied(decisions, request(text))
    assert reason == "MalformedRequest"
    assert "request" in message


@pytest.mark.parametrize(
    "usages",
    [
        ["\x1b[2J"],
        [],
        ["digital signature"],
        ["server auth", "cert sign"],
        ["any"],
        ["code signing"],
        ["client auth", "crl sign"],
    ],
)
def test_other_usages_are_denied(decisions: Decisions, usages: list[str]) -> None:
    assert denied(decisions, request(signing_request(KEY), usages=usages))[0] == "UsageNotAllowed"


@pytest.mark.parametrize(
    "account",
    [
        {"username": "admin"},
        {"username": "system:serviceaccount:shop:web:more"},
        {"username": "system:serviceaccount:shop:../web"},
        {"username": "system:serviceaccount:Shop:web"},
        {"username": "system:serviceaccount:shop:web\n"},
        {"username": ""},
        {"groups": []},
        {"groups": ["system:serviceaccounts", "system:serviceaccounts:other"]},
        {"extra": {}},
        {"extra": None},
        {"extra": {"authentication.kubernetes.io/pod-name": ["a"]}},
        {"extra": {key: ["a", "b"] for key in ACCOUNT["extra"]}},
        {"extra": []},
        {"extra": dict.fromkeys(ACCOUNT["extra"], 5)},
        {"groups": 5},
        *({"extra": {key: [word] for key in ACCOUNT["extra"]}} for word in ("", "\ud800", "a\n", "\x1b[2J", "a" * 254)),
    ],
)
def test_only_pods_are_served(decisions: Decisions, account: dict[str, Any]) -> None:
    assert denied(decisions, request(signing_request(KEY), **account))[0] == "NotAPod"


def test_a_nonce_expires(decisions: Decisions) -> None:
    given = nonce(decisions)
    asked = request(signing_request(KEY, make_evidence(enclave(), KEY, given)), name_for(given))
    assert decide(decisions, asked, later=timedelta(minutes=4)).issued
    assert denied(decisions, asked, later=timedelta(minutes=6))[0] == "NonceExpired"


def test_a_nonce_of_another_ca_or_pod_does_not_count(decisions: Decisions) -> None:
    given = nonce(decisions)
    content = signing_request(KEY, make_evidence(enclave(), KEY, given))
    other = Authority.make("test", now=NOW, lifetime=timedelta(days=30))
    with pytest.raises(Denial) as caught:
        decisions.decide(request(content, name_for(given)), other, now=NOW, random=RANDOM)
    assert caught.value.reason == "NonceUnknown"
    extra = ACCOUNT["extra"] | {"authentication.kubernetes.io/pod-uid": ["4c1b"]}
    assert denied(decisions, request(content, name_for(given), extra=extra))[0] == "NonceUnknown"


def evidence_of(claims: bytes, report_data: bytes | None = None) -> bytes:
    digest = hashlib.sha256(claims).digest() if report_data is None else report_data
    return write_ra_tls(enclave().quote(digest.ljust(64, b"\0")).quote, claims)


def test_evidence_for_another_use_is_refused(decisions: Decisions) -> None:
    public = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest, given = hashlib.sha256(public).digest(), nonce(decisions)
    signer = SIGNER.encode()
    good = write_claims(digest, given, purpose=signer)
    cases = {
        "attested TLS": (evidence_of(write_claims(digest, given)), "purpose"),
        "another purpose": (evidence_of(write_claims(digest, given, purpose=b"tls")), "purpose"),
        "another key": (evidence_of(write_claims(bytes(32), given, purpose=signer)), "another key"),
        "report data": (evidence_of(good, bytes(32)), "report data"),
        "report data with a tail": (evidence_of(good, hashlib.sha256(good).digest() + b"\1"), "report data"),
    }
    for name, (evidence, word) in cases.items():
        reason, message = denied(decisions, request(with_evidence(evidence), name_for(given)))
        assert reason == "EvidenceRefused", name
        assert word in message, message
    no_nonce = evidence_of(write_claims(digest, purpose=signer))
    assert denied(decisions, request(with_evidence(no_nonce), name_for(given)))[0] == "NonceUnknown"
    assert decide(decisions, request(with_evidence(evidence_of(good)), name_for(given)))


def test_missing_collateral_is_not_the_requesters_fault(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text(policy_of())

    def missing(*_: object) -> Any:
        raise CollateralNotFound("there is none")

    found = Decisions(
        PodPolicies(tmp_path, simulated=True), QuoteVerifier(world().trust_roots), missing, trust_domain="x",
        lifetime=timedelta(days=1), simulated=True,
    )  # fmt: skip
    given = nonce(found)
    with pytest.raises(CollateralNotFound):
        decide(found, request(signing_request(KEY, make_evidence(enclave(), KEY, given)), name_for(given)))


def test_an_instance_for_hardware_accepts_no_simulated_evidence(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text(policy_of())
    found = Decisions(
        PodPolicies(tmp_path, simulated=False), QuoteVerifier(TrustRoots.intel()), lambda _, at: world().publish(at),
        trust_domain="x", lifetime=timedelta(days=1), simulated=False,
    )  # fmt: skip
    given = nonce(found)
    asked = request(signing_request(KEY, make_evidence(enclave(), KEY, given)), name_for(given))
    assert denied(found, asked)[0] == "EvidenceRefused"


@given(st.binary(max_size=300))
def test_any_bytes_as_evidence_are_denied(decisions: Decisions, content: bytes) -> None:
    assert denied(decisions, request(with_evidence(content)))[0] in ("MalformedRequest", "NonceUnknown")


@given(st.data())
def test_a_changed_request_is_never_signed(decisions: Decisions, data: st.DataObject) -> None:
    """Every byte of the request is covered by its signature, and every byte of the evidence by the quote's."""
    given = nonce(decisions)
    raw = bytearray(_good_request(given))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    text = b"-----BEGIN CERTIFICATE REQUEST-----\n" + b64encode(raw) + b"\n-----END CERTIFICATE REQUEST-----\n"
    reason, _ = denied(decisions, request(text, name_for(given)))
    assert re.fullmatch("[A-Z][A-Za-z]+", reason)


_GOOD: dict[bytes, bytes] = {}


def _good_request(given: bytes) -> bytes:
    if given not in _GOOD:
        text = signing_request(KEY, make_evidence(enclave(), KEY, given))
        _GOOD[given] = x509.load_pem_x509_csr(text).public_bytes(Encoding.DER)
    return _GOOD[given]


@given(st.binary(max_size=400))
def test_any_bytes_are_a_request_or_an_error(content: bytes) -> None:
    try:
        der.read_request_parts(content)
    except der.DerError:
        return


def test_requests_for_extensions_are_read_once() -> None:
    made = x509.load_pem_x509_csr(signing_request(KEY, b"evidence")).public_bytes(Encoding.DER)
    found = der.read_request_parts(made)
    assert found.extensions == {der.oid(DICE_EVIDENCE): (False, b"evidence")}
    assert der.read_request_parts(x509.load_pem_x509_csr(plain(KEY)).public_bytes(Encoding.DER)).extensions == {}


# Another signer signs what a request says.

OTHER = "clusterissuers.cert-manager.io/ca"
NAMES = ("web.shop.svc", "web.shop.svc.cluster.local", "spiffe://cluster.local/ns/shop/sa/web")


def named(*names: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(name) if "://" in name else x509.DNSName(name) for name in names]
    )


def to_other(
    decisions: Decisions,
    names: x509.SubjectAlternativeName | None = named(*NAMES),  # noqa: B008 - constant
    *,
    purpose: str = OTHER,
    subject: str = "",
    more: x509.ExtensionType | None = None,
    attribute: str | None = None,
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> SigningRequest:
    """A request to another signer, with good evidence."""
    given = nonce(decisions)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else [])
    evidence = make_evidence(enclave(), KEY, given, purpose)
    content = x509.UnrecognizedExtension(x509.ObjectIdentifier(DICE_EVIDENCE), evidence)
    builder = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(content, critical=False)
    for extension in filter(None, (names, more)):
        builder = builder.add_extension(extension, critical=True)
    if attribute is not None:
        builder = builder.add_attribute(x509.ObjectIdentifier(attribute), b"bank.example")
    text = b64encode(builder.sign(KEY, SHA256()).public_bytes(Encoding.PEM)).decode()
    spec = {"signerName": OTHER, "usages": ["server auth"], "request": text, "expirationSeconds": 3600} | ACCOUNT | spec
    metadata = {"name": name_for(given), "uid": "u", "resourceVersion": "1", "annotations": annotations}
    return SigningRequest.parse({"metadata": metadata, "spec": spec})


def test_a_request_to_another_signer_is_approved_and_not_signed(decisions: Decisions) -> None:
    grant = decide(decisions, to_other(decisions))
    assert grant.issued is None
    assert grant.facts["uri"] == NAMES[2]
    client = decide(decisions, to_other(decisions, named(NAMES[2]), usages=["client auth"]))
    assert client.facts["dns_names"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": None},
        {"names": named(*NAMES, "bank.example")},
        {"names": named("bank.example")},
        {"names": named(NAMES[0], NAMES[2])},
        {"names": named(*reversed(NAMES))},
        {"names": named(NAMES[0], *NAMES)},
        {"names": named(*NAMES[:2], "spiffe://cluster.local/ns/shop/sa/db")},
        {"names": named(*NAMES), "usages": ["client auth"]},
        {"subject": "bank.example"},
        {"more": x509.BasicConstraints(ca=True, path_length=None)},
        {"more": x509.NameConstraints([x509.DNSName("example")], None)},
        {"more": x509.ExtendedKeyUsage([x509.OID_CODE_SIGNING])},
        {"attribute": "1.3.6.1.4.1.311.2.1.14"},  # Microsoft's request for extensions, which some services take too
        {"attribute": "1.2.840.113549.1.9.7"},  # a password for the service
        {"annotations": {"experimental.cert-manager.io/request-is-ca": "true"}},
        {"annotations": {"experimental.cert-manager.io/request-duration": "87600h"}},
        {"annotations": {"any": ""}},
        {"expirationSeconds": None},
        {"expirationSeconds": 86401},
    ],
)
def test_what_another_signer_would_copy_is_checked(decisions: Decisions, wrong: dict[str, Any]) -> None:
    assert denied(decisions, to_other(decisions, **wrong))[0] == "ContentNotAllowed"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("confcom.dev/attested", "is no signer"),
        ("*", "is no signer"),
        ("clusterissuers.cert-manager.io/*", "is no signer"),
        ("kubernetes.io/kube-apiserver-client", "signer of Kubernetes itself"),
        ("kubernetes.io/legacy-unknown", "signer of Kubernetes itself"),
        ("a.kubernetes.io/b", "signer of Kubernetes itself"),
        ("node.k8s.io/b", "signer of Kubernetes itself"),
    ],
)
def test_no_signer_of_the_clusters_own_identities_is_approved_for(name: str, why: str) -> None:
    for take in (
        lambda: CertificateSignerConfig(approve_for=(OTHER, name)).check(),
        lambda: AddonConfig().changed({"approve_for": (OTHER, name)}),
    ):
        with pytest.raises(ConfigError, match=why):
            take()
    CertificateSignerConfig(approve_for=("notkubernetes.io/kubernetes.io", OTHER)).check()


def test_the_addon_refuses_an_unmarked_signer_for_simulated_enclaves() -> None:
    simulated = AddonConfig().changed({"platform": "simulated"})
    with pytest.raises(ConfigError, match="would sign for simulated enclaves"):
        simulated.changed({"approve_for": (OTHER,)})
    assert simulated.changed({"approve_for": (f"{OTHER}-simulated",)}).approve_for


def test_evidence_is_for_one_signer(decisions: Decisions) -> None:
    assert denied(decisions, to_other(decisions, purpose=SIGNER))[0] == "EvidenceRefused"
    given = nonce(decisions)
    ours = request(signing_request(KEY, make_evidence(enclave(), KEY, given, OTHER)), name_for(given))
    assert denied(decisions, ours)[0] == "EvidenceRefused"


def test_without_descriptors_nobody_is_denied(tmp_path: Path) -> None:
    """The policy could not be opened, so it was said to be unusable, and the pod got no certificate."""
    (tmp_path / "shop.web.toml").write_text(policy_of())
    policies, requester = PodPolicies(tmp_path, simulated=True), Requester("shop", "web", "web-1", "4c1a", "")
    with no_descriptors(), pytest.raises(PlatformUnavailable, match="Too many open files"):
        policies.of(requester)
    assert policies.of(requester)[0] == "shop.web.toml"
