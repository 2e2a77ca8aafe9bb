"""The Helm chart and the kustomize base, made from what `confcom.manifests` renders.

Every object is rendered for every combination of those settings that decide whether it is there or what it looks like;
combinations that come out the same share one text. All other settings are rendered as marks, which become expressions
over the chart's values. So the chart has no second description of the add-on that could go out of step with the first.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from helm_marks import (
    CA_MARK,
    EXPRESSIONS,
    GENERATED,
    MARKS,
    STORAGE_MARK,
    URL_MARK,
    WEBHOOK_CA,
    value_of,
    with_expressions,
)

from confcom.addon.plan import OLDEST
from confcom.cli.addon_output import yaml_documents
from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import NAMESPACE, WEBHOOK, labels
from confcom.manifests.objects import VERSION as VERSION_LABEL
from confcom.manifests.webhook import CA_SECRET

ROOT = Path(__file__).resolve().parent.parent
HELM = ROOT / "deploy" / "helm"
KUSTOMIZE = ROOT / "deploy" / "kustomize"
VERSION = version("confcom")

# The settings that shape objects, and the values of each that can make a difference.
SHAPES: dict[str, tuple[Any, ...]] = {
    "platform": ("intel", "simulated"),
    "publisher": ("auto", "node-status", "devices", "dra"),
    "epc_enforcement": (False, True),
    "collateral": (False, True),
    "collateral_storage": ("", STORAGE_MARK),
    "collateral_url": ("", URL_MARK),
    "webhook_namespaces": ("all", "labelled"),
}
# Components that are there only if a setting says so.
SWITCHES = {"quote-helper": "quote_helper", "webhook": "webhook", "collateral": "collateral", "metrics": "metrics"}
Shape = tuple[tuple[str, Any], ...]


def generated() -> dict[Path, bytes]:
    """Every generated file of both folders."""
    files = {
        HELM / "Chart.yaml": _chart(),
        HELM / "values.yaml": _values(),
        HELM / "values.schema.json": _schema(),
        HELM / "templates" / "_expressions.tpl": EXPRESSIONS,
        HELM / "templates" / "NOTES.txt": _NOTES,
        KUSTOMIZE / "kustomization.yaml": _kustomization(),
        KUSTOMIZE / "addon.yaml": f"# {GENERATED}\n{yaml_documents(render(AddonConfig(), version=VERSION))}",
    }
    for component, text in _templates().items():
        files[HELM / "templates" / f"{component}.yaml"] = text
    return {path: text.encode() for path, text in files.items()}


# --- templates --------------------------------------------------------------------------------------------------------


def _templates() -> dict[str, str]:
    """One file per component."""
    rendered = {shape: _by_name(shape) for shape in _shapes()}
    names = list(dict.fromkeys(itertools.chain.from_iterable(_ordered(rendered))))
    files: dict[str, list[str]] = {}
    for component, kind, name in names:
        texts = {shape: found.get((component, kind, name), "") for shape, found in rendered.items()}
        files.setdefault(component, []).append(_object_template(texts))
    return {component: _file(component, "".join(parts)) for component, parts in files.items()}


def _file(component: str, text: str) -> str:
    if component == "webhook":
        text = f"{WEBHOOK_CA}{text}"
    if component in SWITCHES:
        text = f"{{{{- if .Values.{value_of(SWITCHES[component])} }}}}\n{text}{{{{- end }}}}\n"
    return f"{{{{- /* {GENERATED} */}}}}\n{text}"


def _shapes() -> Iterator[Shape]:
    for values in itertools.product(*SHAPES.values()):
        yield tuple(zip(SHAPES, values, strict=True))


def _ordered(rendered: dict[Shape, dict[tuple[str, str, str], str]]) -> Iterator[list[tuple[str, str, str]]]:
    # The fullest first: it has nearly all, in the order in which they are applied.
    yield from sorted((list(found) for found in rendered.values()), key=len, reverse=True)


def _by_name(shape: Shape) -> dict[tuple[str, str, str], str]:
    everything: dict[str, Any] = dict.fromkeys(SWITCHES.values(), True)
    config = msgspec.structs.replace(AddonConfig(), **(MARKS | everything | dict(shape)))
    found = {}
    for one in render(config, version="mark-version", webhook_ca=CA_MARK):
        component = one["metadata"]["labels"]["app.kubernetes.io/component"]
        found[component, one["kind"], one["metadata"]["name"]] = _text(json.dumps(one))
    return found


@functools.cache
def _text(one: str) -> str:
    """An object's text; most are the same for most shapes."""
    return with_expressions(yaml_documents([json.loads(one)]))


def _object_template(texts: dict[Shape, str]) -> str:
    """One object: a text, behind the conditions under which it is there, or several of them."""
    matter = [name for name in SHAPES if _matters(name, texts)]
    by_text: dict[str, set[Shape]] = {}
    for shape, text in texts.items():
        by_text.setdefault(text, set()).add(tuple(pair for pair in shape if pair[0] in matter))
    parts = []
    for text, shapes in by_text.items():
        if text:
            condition = _condition(shapes, matter)
            parts.append(text if condition is None else f"{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n")
    return "".join(parts)


def _matters(name: str, texts: dict[Shape, str]) -> bool:
    rest: dict[Shape, set[str]] = {}
    for shape, text in texts.items():
        rest.setdefault(tuple(pair for pair in shape if pair[0] != name), set()).add(text)
    return any(len(found) > 1 for found in rest.values())


def _condition(shapes: set[Shape], matter: list[str]) -> str | None:
    """The condition for these shapes; they are a product of values, or are written as alternatives."""
    if not matter:
        return None
    allowed = {name: {dict(shape)[name] for shape in shapes} for name in matter}
    if len(shapes) == _size(allowed):
        words = [_clause(name, allowed[name]) for name in matter if len(allowed[name]) < len(SHAPES[name])]
        return words[0] if len(words) == 1 else f"and {' '.join(f'({word})' for word in words)}"
    alternatives = [_condition({shape}, matter) for shape in sorted(shapes, key=str)]
    return f"or {' '.join(f'({word})' for word in alternatives)}"


def _size(allowed: dict[str, set[Any]]) -> int:
    size = 1
    for values in allowed.values():
        size *= len(values)
    return size


def _clause(name: str, allowed: set[Any]) -> str:
    value = f".Values.{value_of(name)}"
    if allowed == {True}:
        return value
    if allowed in ({False}, {""}):
        return f"not {value}"
    if "" in SHAPES[name]:
        return value
    words = " ".join(f'"{word}"' for word in SHAPES[name] if word in allowed)
    return f"eq {value} {words}"


# --- everything else --------------------------------------------------------------------------------------------------


def _chart() -> str:
    return f"""# {GENERATED}
apiVersion: v2
name: confcom
description: Intel SGX on Kubernetes nodes - EPC as a resource, quotes for every enclave, admission of SGX pods
type: application
version: {VERSION}
appVersion: {VERSION}
kubeVersion: ">={OLDEST}.0-0"
"""


_NOTES = """\
The add-on's pods start in namespace confcom-system, on nodes that node feature discovery found SGX on, and on those
with the label confcom.dev/sgx=true. How far they are, and what is in the way:

    confcom addon show -o table
    kubectl get pods -n confcom-system
{{- if eq .Values.platform "simulated" }}

Simulated nodes wait for their world, Secret confcom-simulated-world, which belongs to one cluster and so to no chart.
This makes it, once:

    confcom addon update
{{- end }}

The webhook's CA is made by the installation and kept by upgrades. With tools that only render the chart (helm template,
Argo CD) each rendering would have another one: use `confcom addon enable` there, or Flux, which installs as Helm does.

After `helm uninstall` the nodes keep labels and amounts that the device plugin wrote: `confcom addon disable --purge`
takes them away.
"""


def _values() -> str:
    """Every setting with its default, under the sentence that describes it in the source."""
    source = (ROOT / "src" / "confcom" / "manifests" / "addon_config.py").read_text()
    lines = [f"# {GENERATED}"]
    for field in AddonConfig.__struct_fields__:
        words = re.search(rf'\n    {field}: [^\n]*\n    """(.*?)"""', source, re.DOTALL)
        lines += ["", *(f"# {line.strip()}" for line in words[1].splitlines())] if words else [""]
        lines.append(f"{value_of(field)}: {json.dumps(_plain(getattr(AddonConfig(), field)))}")
    return "\n".join(lines) + "\n"


def _schema() -> str:
    (found,) = msgspec.json.schema_components([AddonConfig])[1].values()
    properties = {value_of(name): rest for name, rest in found["properties"].items()}
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Settings of the confcom add-on",
        "type": "object",
        "additionalProperties": False,
        # What Helm itself puts among the values.
        "properties": properties | {"global": {"type": "object"}},
    }
    return json.dumps(schema, indent=2) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _kustomization() -> str:
    return f"""# {GENERATED}
# The webhook's CA comes from two files beside this one, which are made once and kept like a password:
#   openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=sgx-webhook-ca \\
#     -addext keyUsage=critical,keyCertSign -keyout webhook-ca.key -out webhook-ca.crt
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
- addon.yaml
secretGenerator:
- name: {CA_SECRET}
  namespace: {NAMESPACE}
  type: kubernetes.io/tls
  files:
  - tls.crt=webhook-ca.crt
  - tls.key=webhook-ca.key
  - ca.crt=webhook-ca.crt
  options:
    disableNameSuffixHash: true
    labels: {json.dumps(labels(WEBHOOK.component) | {VERSION_LABEL: VERSION})}
replacements:
- source:
    kind: Secret
    name: {CA_SECRET}
    fieldPath: data.[ca.crt]
  targets:
  - select:
      kind: MutatingWebhookConfiguration
    fieldPaths:
    - webhooks.*.clientConfig.caBundle
    options:
      create: true
  - select:
      kind: ValidatingWebhookConfiguration
    fieldPaths:
    - webhooks.*.clientConfig.caBundle
    options:
      create: true
"""
