from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from confcom.addon import changes
from confcom.addon.changes import LIFETIME, RENEW
from confcom.manifests.addon import issuers
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import IssuingCa
from confcom.pki.serving_pair import Authority, authorities_in, make_serving_pair

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SERVICE = "sgx-webhook.confcom-system.svc"


def next_ca(data: Mapping[str, bytes], in_force: bytes, now: datetime) -> IssuingCa:
    (issuer,) = issuers(AddonConfig())
    return changes.next_ca(issuer, data, in_force, now)


def data(ca: IssuingCa) -> dict[str, bytes]:
    return {"tls.crt": ca.certificate, "tls.key": ca.key, "ca.crt": ca.bundle}


def test_a_ca_is_made_once_and_kept() -> None:
    first = next_ca({}, b"", START)
    assert first.bundle == first.certificate
    assert next_ca(data(first), first.bundle, START + LIFETIME - RENEW - DAY) == first


@pytest.mark.parametrize("broken", ["tls.crt", "tls.key"])
def test_what_cannot_be_used_is_replaced(broken: str) -> None:
    first = next_ca({}, b"", START)
    for damaged in (b"", b"x", next_ca({}, b"", START).certificate if broken == "tls.crt" else b"\0"):
        second = next_ca(data(first) | {broken: damaged}, first.bundle, START)
        assert Authority.parse(second.certificate, second.key) is not None
        assert second.certificate != first.certificate


def test_a_ca_that_ends_within_a_year_has_a_successor_beside_it() -> None:
    first = next_ca({}, b"", START)
    late = START + LIFETIME - RENEW + DAY
    second = next_ca(data(first), first.bundle, late)
    assert authorities_in(second.bundle) == (second.certificate, first.certificate)
    assert next_ca(data(second), second.bundle, late + DAY) == second
    third = next_ca(data(second), second.bundle, START + LIFETIME + DAY)
    assert third == second._replace(bundle=second.certificate)


def test_a_secret_that_was_deleted_ends_the_trust_in_its_ca() -> None:
    first = next_ca({}, b"", START)
    second = next_ca({}, first.bundle, START)
    assert second.bundle == second.certificate != first.certificate


def test_what_an_earlier_version_serves_stays_trusted_until_it_ends() -> None:
    """Its replicas made CAs of 90 days, and put them into the configurations themselves."""
    before, _ = make_serving_pair((SERVICE,), now=START, lifetime=90 * DAY, common_name="confcom admission webhook")
    first = next_ca({}, before, START + DAY)
    assert authorities_in(first.bundle) == (first.certificate, before)
    assert next_ca(data(first), first.bundle, START + 91 * DAY).bundle == first.certificate


def test_the_ca_is_good_for_the_webhooks_service_alone() -> None:
    ca = next_ca({}, b"", START)
    found = x509.load_pem_x509_certificate(ca.certificate).extensions
    constraints = found.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    allowed = {one.value for one in constraints.value.permitted_subtrees or ()}
    assert allowed == {SERVICE, f"{SERVICE}.cluster.local"}
    authority = Authority.parse(ca.certificate, ca.key)
    assert authority is not None
    for names, fits in (((SERVICE, f"{SERVICE}.cluster.local"), True), (("kubernetes.default.svc",), False)):
        pair = authority.issue(names, now=START, lifetime=DAY, common_name="x")
        assert _trusted(ca.bundle, pair.certificate, names[0]) == fits


def _trusted(bundle: bytes, leaf: bytes, name: str) -> bool:
    store = x509.verification.Store(x509.load_pem_x509_certificates(bundle))
    verifier = (
        x509.verification.PolicyBuilder().store(store).time(START + DAY / 2).build_server_verifier(x509.DNSName(name))
    )
    try:
        verifier.verify(x509.load_pem_x509_certificate(leaf), [])
    except x509.verification.VerificationError:
        return False
    return True
