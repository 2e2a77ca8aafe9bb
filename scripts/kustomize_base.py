"""The kustomize base: what `confcom addon manifests` writes with every setting at its default."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from confcom.cli.addon_change import yaml_documents
from confcom.manifests.addon import render
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import NAMESPACE, WEBHOOK, labels
from confcom.manifests.objects import VERSION as VERSION_LABEL
from confcom.manifests.webhook import CA_SECRET

KUSTOMIZE = Path(__file__).resolve().parent.parent / "deploy" / "kustomize"
VERSION = version("confcom")
GENERATED = "Generated from confcom.manifests by scripts/generate.py; do not edit."


def kustomize_files() -> dict[Path, bytes]:
    """Path to content of every file of the base."""
    objects = yaml_documents(render(AddonConfig(), version=VERSION))
    return {
        KUSTOMIZE / "kustomization.yaml": kustomization().encode(),
        KUSTOMIZE / "addon.yaml": f"# {GENERATED}\n{objects}".encode(),
    }


def kustomization() -> str:
    """The base's index; the webhook's CA comes from two files beside it."""
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
