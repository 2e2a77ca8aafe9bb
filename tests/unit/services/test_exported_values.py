"""Values that alerts are about: absent while unknown, 0 before the first, and of the certificate that is in use."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from confcom.collateral.store.store import CollateralStore
from confcom.errors import CollateralError, ConfigError
from confcom.pki.serving_pair import Authority
from confcom.services.attestation.attestation_store import AttestationStore
from confcom.services.collateral.collateral_service import CollateralMetrics
from confcom.services.device_plugin.kubelet_plugin import PluginEvent
from confcom.services.device_plugin.plugin import DevicePluginMetrics
from confcom.services.quote_helper.telemetry import QuoteHelperMetrics
from confcom.services.runtime.status_page import Reading, component_registry
from confcom.services.runtime.tls import HeldTls, ReloadingTls, TlsFiles
from confcom.services.webhook.webhook import WebhookMetrics
from confcom.tokens.azure import AttestationType
from running_attestation_service import make_world

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def test_every_registry_names_component_and_version() -> None:
    (family,) = component_registry("webhook").collect()
    (sample,) = family.samples
    assert sample.name == "confcom_build_info"
    assert sample.labels["component"] == "webhook"
    assert sample.labels["version"]


def test_a_reading_is_absent_until_there_is_one() -> None:
    registry, values = CollectorRegistry(), {}
    registry.register(Reading("seconds_left", "Text.", lambda: values.get("left")))
    registry.register(Reading("failures", "Text.", lambda: values.get("failed", 0), counter=True))
    assert registry.get_sample_value("seconds_left") is None
    assert registry.get_sample_value("failures_total") == 0
    values |= {"left": 0.0, "failed": 2}
    assert registry.get_sample_value("seconds_left") == 0
    assert registry.get_sample_value("failures_total") == 2


def test_a_helper_without_verified_quotes_shows_no_age_of_collateral_and_its_state() -> None:
    """An age of 0 and an expiry in 0 seconds would be false, and the latter an alarm."""
    registry = CollectorRegistry()
    metrics = QuoteHelperMetrics(registry, lambda _: None)
    for name in ("collateral_expires_seconds", "collateral_age_seconds", "certification_data_age_seconds"):
        assert registry.get_sample_value(f"confcom_quote_helper_{name}") is None
    metrics.state = "replaced"
    states = {state: registry.get_sample_value("confcom_quote_helper_state", {"state": state})
              for state in ("starting", "serving", "replaced")}  # fmt: skip
    assert states == {"starting": 0, "serving": 0, "replaced": 1}


def test_counters_of_a_closed_set_are_there_from_0() -> None:
    registry = CollectorRegistry()
    CollateralMetrics(registry)
    WebhookMetrics(registry)
    QuoteHelperMetrics(registry, lambda _: None)
    plugin = DevicePluginMetrics(registry)
    plugin.observe(PluginEvent("kubelet.registered", "epc", {"outcome": "failed"}))
    found = {
        "confcom_webhook_refusals_total": {"code": "provision-not-granted"},
        "confcom_quote_helper_over_limit_total": {"limit": "rate"},
        "confcom_collateral_service_upstream_errors_total": {"code": "signature-invalid"},
        "confcom_collateral_service_certificate_events_total": {"event": "failed"},
        "confcom_device_plugin_kubelet_losses_total": {"resource": "epc"},
        "confcom_device_plugin_publications_total": {"outcome": "failed"},
    }
    assert {name: registry.get_sample_value(name, labels) for name, labels in found.items()} == dict.fromkeys(found, 0)


def test_a_service_without_rounds_of_refreshing_shows_no_time_of_one() -> None:
    registry = CollectorRegistry()
    metrics = CollateralMetrics(registry)
    name = "confcom_collateral_service_last_refresh_timestamp_seconds"
    assert registry.get_sample_value(name) is None
    metrics.last_refresh = 0.0  # it has rounds, and none has ended
    assert registry.get_sample_value(name) == 0


def write(folder: Path, days: int) -> None:
    authority = Authority.make("tests", now=NOW, lifetime=timedelta(days=900))
    pair = authority.issue(("localhost",), now=NOW, lifetime=timedelta(days=days), common_name="tests")
    (folder / "tls.crt").write_bytes(pair.certificate)
    (folder / "tls.key").write_bytes(pair.key)


def test_the_expiry_is_that_of_the_certificate_in_use(tmp_path: Path) -> None:
    write(tmp_path, 10)
    files = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    tls = ReloadingTls(files)
    assert tls.expires == NOW + timedelta(days=10)
    files.certificate.write_bytes(b"half a certifi")
    assert not tls.reload()
    assert tls.expires == NOW + timedelta(days=10)
    write(tmp_path, 20)
    assert tls.reload()
    assert tls.expires == NOW + timedelta(days=20)
    held = HeldTls(files.certificate.read_bytes(), files.key.read_bytes())
    write(tmp_path, 30)
    held.use(files.certificate.read_bytes(), files.key.read_bytes())
    assert held.expires == NOW + timedelta(days=30)


def test_failures_of_the_stores_are_counted(tmp_path: Path) -> None:
    with CollateralStore(tmp_path / "collateral.sqlite", roots=make_world().trust_roots) as store:
        assert store.document_keys() == ()
        assert store.failures == 0
        _drop_tables(tmp_path / "collateral.sqlite")
        with pytest.raises(CollateralError):
            store.document_keys()
        assert store.failures == 1
    attestation = AttestationStore.open(tmp_path / "attestation.sqlite")
    assert attestation.database.failures == 0
    _drop_tables(tmp_path / "attestation.sqlite")
    with pytest.raises(ConfigError):
        attestation.policy(AttestationType.SGX_ENCLAVE)
    assert attestation.database.failures == 1
    attestation.close()


def _drop_tables(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA foreign_keys = OFF")
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        if not name.startswith("sqlite_"):
            connection.execute(f'DROP TABLE "{name}"')
    connection.commit()
    connection.close()
