from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from confcom.services.device_plugin.kubelet_plugin import PluginEvent
from confcom.services.device_plugin.plugin import PREFIX, DevicePluginMetrics

ROOT = Path(__file__).resolve().parents[4]
PLAN = {"numa_nodes": {"0": 100, "1": 68}, "units": 160, "reserve_mib": 8, "overcommit": 1.0, "publisher": "devices"}


def test_events_become_figures() -> None:
    registry = CollectorRegistry()
    metrics = DevicePluginMetrics(registry)
    for name, fields in [
        ("epc.plan", PLAN),
        ("devices.sent", {"devices": 160, "healthy": 160, "bytes": 2720}),
        ("kubelet.registered", {"outcome": "registered"}),
        ("devices.granted", {"units": 10, "devices": 2, "duration_ms": 0.1}),
        ("devices.granted", {"units": 5, "devices": 2, "duration_ms": 0.1}),
        ("kubelet.lost", {"reason": "the stream ended"}),
        ("devices.health", {"healthy": False, "reason": "gone"}),
        ("epc.published", {"outcome": "failed"}),
        ("claim.prepared", {"outcome": "prepared", "prepared": 3}),
        ("claim.unprepared", {"outcome": "unknown", "prepared": 2}),
        ("something.else", {}),
    ]:
        metrics.observe(PluginEvent(name, "a/b", fields))
    wanted = {
        "epc_mib": ({"numa_node": "1"}, 68),
        "epc_requestable_mib": ({}, 160),
        "epc_reserve_mib": ({}, 8),
        "publisher": ({"publisher": "devices"}, 1),
        "devices": ({"resource": "a/b"}, 160),
        "list_bytes": ({"resource": "a/b"}, 2720),
        "healthy": ({"resource": "a/b"}, 0),
        "registrations_total": ({"resource": "a/b", "outcome": "registered"}, 1),
        "granted_units_total": ({"resource": "a/b"}, 15),
        "grants_total": ({"resource": "a/b"}, 2),
        "kubelet_losses_total": ({"resource": "a/b"}, 1),
        "claims": ({}, 2),
        "claim_calls_total": ({"call": "unprepare", "outcome": "unknown"}, 1),
        "publications_total": ({"outcome": "failed"}, 1),
    }
    for name, (labels, value) in wanted.items():
        assert registry.get_sample_value(f"{PREFIX}_{name}", labels) == value, name


def test_every_metric_is_documented() -> None:
    registry = CollectorRegistry()
    DevicePluginMetrics(registry)
    page = (ROOT / "docs/reference/device-plugin.md").read_text()
    names = [line.split()[2] for line in generate_latest(registry).decode().splitlines() if line.startswith("# TYPE")]
    assert len(names) >= 12
    for name in names:
        if not name.endswith("_created"):
            assert f"`{name}`" in page, name
