"""What the Helm chart takes from `confcom.manifests` as it is: alerts and bodies of admission policies.

Words between `@` are values of the chart. Each entry is a line of JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from confcom.addon.plan import NODE_RESOURCES
from confcom.manifests import account_policies, certificate_signer, monitoring
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.tls_service import CA_KEY, SECRET_KEYS
from confcom.protocols.certificate_requests import EVENTS_CONTROLLER

FILES = Path(__file__).resolve().parent.parent / "deploy" / "helm" / "files"
GENERATED = "# Generated from confcom.manifests by scripts/chart_files.py; do not edit.\n"
_RATIO = 1.25
_VALUES = AddonConfig(overcommit=_RATIO, simulated_epc="@simulatedEpc@", provision_grants=("@provisionGrants@",))
_SIMULATED = AddonConfig(overcommit=_RATIO, simulated_epc="@simulatedEpc@", platform="simulated")


def chart_files() -> dict[Path, bytes]:
    """Path to content of every file."""
    return {FILES / "rules.yaml": _rules().encode(), FILES / "policies.yaml": _policies().encode()}


def _rules() -> str:
    lines = ["groups:"]
    for group in monitoring.alert_groups():
        lines += [f"- name: {group['name']}", "  rules:", *_entries(group["rules"])]
    return GENERATED + "\n".join(lines) + "\n"


def _policies() -> str:
    signer = certificate_signer.HARDWARE
    bodies = {
        "own-data": account_policies.own_data(signer, (*SECRET_KEYS, CA_KEY)),
        "own-events": account_policies.own_events(),
        "own-marks": account_policies.own_marks(NODE_RESOURCES),
        "own-node": account_policies.own_node(_VALUES),
        "own-node-simulated": account_policies.own_node(_SIMULATED),
        "own-pod-events": account_policies.own_pod_events(signer, EVENTS_CONTROLLER),
        "own-slices": account_policies.own_slices(),
        "reserved": account_policies.reserved(_VALUES),
    }
    lines = []
    for name, (policy, _) in bodies.items():
        spec = policy["spec"]
        (rule,) = spec["matchConstraints"]["resourceRules"]
        lines += [f"{name}:", f"  rule: {json.dumps(rule)}"]
        lines += [line for part in ("variables", "validations") for line in (f"  {part}:", *_entries(spec[part]))]
    return GENERATED + "\n".join(lines).replace(f"'{_RATIO}'", "'@overcommit@'") + "\n"


def _entries(values: list[dict[str, Any]]) -> list[str]:
    return [f"  - {json.dumps(value)}" for value in values]
