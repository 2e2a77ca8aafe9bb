"""The collateral service's certificate in a cluster: made, published, renewed; or given by somebody else."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from certificate_api import CertificateApi
from confcom.appraisal.quote import verify_quote
from confcom.cli.root import run
from confcom.collateral.sources import RememberedCollateral, SourceOptions
from confcom.errors import ConfcomError, ConfigError
from confcom.pki.serving_pair import make_serving_pair
from confcom.services.collateral.collateral_service import CollateralServiceConfig
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld
from running_collateral_service import SEED, Clock, RecordedUpstream, RunningService

NAMES = ("confcom-collateral.confcom-system.svc", "127.0.0.1")
DAY = timedelta(days=1)


@pytest.fixture
def api() -> Iterator[CertificateApi]:
    with CertificateApi("confcom-collateral-tls", "confcom-collateral-ca") as api:
        yield api


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime.now(UTC))  # noqa: TID251 - clients judge certificates by the real time


@pytest.fixture
def service(api: CertificateApi, tmp_path: Path, clock: Clock) -> Iterator[RunningService]:
    service = make(api, tmp_path, clock)
    service.start()
    yield service
    service.stop()


def make(api: CertificateApi, folder: Path, clock: Clock, **settings: Any) -> RunningService:
    world = SimulatedWorld.from_seed(SEED, now=clock.now)
    usual = {
        "insecure_http": False,
        "tls_secret": "confcom-collateral-tls",
        "tls_hosts": "127.0.0.1",
        "tls_look_every": 0.05,
        "kubeconfig": api.kubeconfig(folder),
    }
    upstream = RecordedUpstream(world, clock)
    return RunningService(folder / "s.sqlite", upstream, world.trust_roots, clock, **usual | settings)


def trusting(api: CertificateApi) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=api.published)


def test_clients_that_trust_what_is_published_are_served(api: CertificateApi, service: RunningService) -> None:
    service.wait_until(lambda: "BEGIN CERTIFICATE" in api.published)
    assert service.url.startswith("https://")
    service.tls = trusting(api)
    assert service.ask("/sgx/certification/v4/rootcacrl").status == 200
    service.wait_until(lambda: service.ask("/readyz").status == 200)
    assert service.metric("certificate_events_total", event="served") == 1


def test_a_restart_serves_the_same_certificate(api: CertificateApi, tmp_path: Path, clock: Clock) -> None:
    found = []
    for _ in range(2):
        service = make(api, tmp_path, clock)
        service.start()
        service.wait_until(lambda: bool(api.published))
        found.append(ssl.get_server_certificate(service.address))
        service.stop()
    assert found[0] == found[1]


def test_a_successor_is_published_long_before_it_is_used(
    api: CertificateApi, service: RunningService, clock: Clock
) -> None:
    """Copies of the ConfigMap that were made at any time in between go on to work."""
    service.wait_until(lambda: bool(api.published))
    first, served = api.published, ssl.get_server_certificate(service.address)
    clock.now += 641 * DAY
    service.wait_until(lambda: api.published.count("BEGIN") == 2)
    assert first in api.published
    assert ssl.get_server_certificate(service.address) == served
    clock.now += 15 * DAY
    service.wait_until(lambda: ssl.get_server_certificate(service.address) != served)
    clock.now += 15 * DAY
    service.wait_until(lambda: api.published.count("BEGIN") == 1)
    assert first not in api.published


def test_who_took_the_published_authority_away_sees_it_come_back(api: CertificateApi, service: RunningService) -> None:
    service.wait_until(lambda: bool(api.published))
    before = api.published
    with api.changed:
        api.objects[api.config_map]["data"] = {}
    service.wait_until(lambda: api.published == before)


def test_without_the_config_map_it_is_not_ready(api: CertificateApi, tmp_path: Path, clock: Clock) -> None:
    with api.changed:
        del api.objects[api.config_map]
    service = make(api, tmp_path, clock)
    service.start()
    service.tls = ssl._create_unverified_context()
    service.wait_until(lambda: "there is no ConfigMap" in service.ask("/readyz").json["reason"])
    assert service.ask("/readyz").status == 503
    service.stop()


def test_a_given_certificate_is_served_followed_and_never_changed(
    api: CertificateApi, tmp_path: Path, clock: Clock
) -> None:
    def give() -> dict[str, Any]:
        authority, pair = make_serving_pair(NAMES, now=clock.now, lifetime=DAY, common_name="cert-manager")
        api.give(ca_crt=authority, tls_crt=pair.certificate, tls_key=pair.key)
        return api.secret()

    given = give()
    service = make(api, tmp_path, clock, tls_given=True)
    service.start()
    try:
        service.wait_until(lambda: api.published.encode() == base64.b64decode(given["ca.crt"]))
        service.tls = trusting(api)
        assert service.ask("/healthz").status == 200
        served = ssl.get_server_certificate(service.address)

        api.give(ca_crt=b"", tls_crt=b"junk", tls_key=b"")  # half a change: what was good stays in use
        service.wait_until(lambda: service.metric("certificate_events_total", event="failed") > 0)
        assert ssl.get_server_certificate(service.address) == served

        given = give()
        service.wait_until(lambda: ssl.get_server_certificate(service.address) != served)
        service.wait_until(lambda: api.published.encode() == base64.b64decode(given["ca.crt"]))
        assert api.secret() == given
    finally:
        service.stop()


def test_without_an_api_there_is_nothing_to_serve_with(api: CertificateApi, tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(ConfcomError, match="no way to the Kubernetes API"):
        make(api, tmp_path, clock, kubeconfig=str(tmp_path / "none")).start()


@pytest.fixture
def quote(tmp_path: Path, clock: Clock) -> bytes:
    world = SimulatedWorld.from_seed(SEED, now=clock.now)
    (tmp_path / "root.pem").write_bytes(world.root_pem())
    enclave = world.machine.launch(EnclaveDeclaration.from_names("tls"))
    return world.platform.quote(enclave.create_report(world.platform.init_quote().target_info, bytes(64))).quote


def test_our_own_clients_take_its_authority(
    api: CertificateApi, service: RunningService, quote: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.wait_until(lambda: bool(api.published))
    evidence, authority = tmp_path / "quote", tmp_path / "ca.pem"
    evidence.write_bytes(quote)
    authority.write_text(api.published)
    words = ["verify", str(evidence), "--collateral", service.url, "--trust-root", str(tmp_path / "root.pem")]
    assert run([*words, "--collateral-ca", str(authority)]) == 0
    capsys.readouterr()
    assert run(words) != 0
    assert "certificate" in capsys.readouterr().out


def test_a_helper_asks_once_and_outlives_the_service(
    api: CertificateApi, service: RunningService, quote: bytes, tmp_path: Path, clock: Clock
) -> None:
    service.wait_until(lambda: bool(api.published))
    authority = tmp_path / "ca.pem"
    roots = SimulatedWorld.from_seed(SEED, now=clock.now).trust_roots
    collateral = RememberedCollateral(service.url, SourceOptions(roots=roots, at=clock.now, ca_certificates=authority))
    authority.write_text("")
    with pytest.raises(ConfcomError):
        collateral(quote, clock.now)
    authority.write_text(api.published)  # what is mounted there is renewed
    first = collateral(quote, clock.now)
    verify_quote(quote, first, roots=roots, now=clock.now)
    asked = service.metric("requests_total", path="sgx/v4/tcb", status="200")
    assert asked == 1
    assert collateral(quote, clock.now + timedelta(minutes=59)) is first
    assert collateral(quote, clock.now + timedelta(minutes=61)) is not first
    assert service.metric("requests_total", path="sgx/v4/tcb", status="200") == asked + 1
    service.stop()
    assert collateral(quote, clock.now + timedelta(hours=3)).tcb_info == first.tcb_info


@pytest.mark.parametrize(
    "wrong", [{"insecure_http": True}, {"unix_socket": "/x"}, {"tls_certificate": "x"}, {"tls_overlap": 9e6}]
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CollateralServiceConfig(tls_secret="s", **wrong).check()
