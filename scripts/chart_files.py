"""What the Helm chart takes from `confcom.manifests` as it is: alerts, admission policies, which pods are reviewed.

What no value changes is a line of JSON, in which values of the chart stand as in a template.
"""

from __future__ import annotations

import json
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from confcom.addon.plan import NODE_RESOURCES
from confcom.manifests import account_policies, judging, metrics
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.tls_service import CA_KEY, SECRET_KEYS
from confcom.protocols.admission import DEBUG_CONDITION, POD_CONDITION
from confcom.protocols.certificate_requests import EVENTS_CONTROLLER

CHART = Path(__file__).resolve().parent.parent / "deploy" / "helm"
GENERATED = "Generated from confcom.manifests by scripts/chart_files.py; do not edit."
_RATIO, _EPC, _GRANTS = 1.25, "@simulatedEpc@", "@provisionGrants@"
_VALUES = {
    f"'{_RATIO}'": "'{{ .root.Values.epc.overcommit }}'",
    _EPC: "{{ .root.Values.simulatedEpc }}",
    _GRANTS: '{{ join "," .root.Values.provisionGrants }}',
    judging.CERTIFICATE_SIGNER.name: "{{ .name }}",
}
"""What stands in a rendered policy for values of the chart."""


def chart_files() -> dict[Path, bytes]:
    """Path to content of every file."""
    return {
        CHART / "files" / "rules.yaml": _rules().encode(),
        CHART / "templates" / "_generated.tpl": _templates().encode(),
    }


def _rules() -> str:
    lines = ["groups:"]
    for group in metrics.alert_groups():
        lines += [f"- name: {group['name']}", "  rules:", *(f"  - {json.dumps(rule)}" for rule in group["rules"])]
    return f"# {GENERATED}\n" + "\n".join(lines) + "\n"


def _templates() -> str:
    signer = judging.CERTIFICATE_SIGNER
    hardware, simulated = (
        AddonConfig(overcommit=_RATIO, simulated_epc=_EPC, provision_grants=(_GRANTS,), platform=platform)
        for platform in ("intel", "simulated")
    )
    found = {
        "own-data": account_policies.own_data(signer, (*SECRET_KEYS, CA_KEY)),
        "own-events": account_policies.own_events(),
        "own-marks": account_policies.own_marks(NODE_RESOURCES),
        "own-pod-events": account_policies.own_pod_events(signer, EVENTS_CONTROLLER),
        "own-slices": account_policies.own_slices(),
        "reserved": account_policies.reserved(hardware),
    }
    templates = {f"policy.{name}": _lines(policy["spec"]) for name, (policy, _) in found.items()}
    own_node = (_lines(account_policies.own_node(config)[0]["spec"]) for config in (hardware, simulated))
    templates["policy.own-node"] = _by_platform(*own_node)
    templates |= {"condition.pods": [json.dumps(POD_CONDITION)], "condition.debug": [json.dumps(DEBUG_CONDITION)]}
    lines = [f"{{{{/* {GENERATED} */}}}}"]
    for name, body in templates.items():
        lines += [f'{{{{- define "{name}" -}}}}', *body, "{{- end }}"]
    return "\n".join(lines) + "\n"


def _lines(spec: dict[str, Any]) -> list[str]:
    """A policy's fields, of which each entry of a list is a line, with values of the chart."""
    lines = []
    for field, value in spec.items():
        if isinstance(value, list) and len(value) > 1:
            lines += [f"{field}:", *(f"- {json.dumps(entry)}" for entry in value)]
        else:
            lines.append(f"{field}: {json.dumps(value)}")
    text = "\n".join(lines)
    if "{{" in text:
        raise ValueError("a policy has what Helm would take for a template")
    for word, value in _VALUES.items():
        text = text.replace(word, value)
    return text.split("\n")


def _by_platform(hardware: list[str], simulated: list[str]) -> list[str]:
    """Lines of both platforms, those of one alone in a condition."""
    found: list[str] = []
    for kind, start, end, other_start, other_end in SequenceMatcher(a=hardware, b=simulated).get_opcodes():
        if kind == "equal":
            found += hardware[start:end]
            continue
        for platform, lines in (("intel", hardware[start:end]), ("simulated", simulated[other_start:other_end])):
            if lines:
                found += [f'{{{{- if eq .root.Values.platform "{platform}" }}}}', *lines, "{{- end }}"]
    return found
