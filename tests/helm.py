"""The Helm program, that of the machine or one built once per checkout from tests/interop; what it renders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "helm"
MODULE = ROOT / "tests" / "interop" / "helm"
BUILT = ROOT / "build" / "helm"
KUBERNETES = "1.36.0"
KEEP = "helm.sh/resource-policy"

Objects = dict[str, dict[str, Any]]
Helm = Callable[..., subprocess.CompletedProcess[str]]


def helm_program(*, required: bool) -> str:
    """$HELM, else `helm` of the PATH, else what was built here; the first build takes minutes, others seconds.

    Where none can be had, the test fails if Helm is `required`, and else is skipped.
    """
    found = os.environ.get("HELM") or shutil.which("helm")
    if found:
        return found
    problem = "" if BUILT.exists() else _build()
    if problem and required:
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)
    return str(BUILT)


def _build() -> str:
    """What prevents it, or an empty word."""
    go = shutil.which("go")
    if go is None:
        return "there is no Helm here, and no Go to build it with"
    # By a name of its own first: several tests may build it at the same time.
    made = BUILT.with_name(f"helm.{os.getpid()}")
    command = [go, "build", "-mod=readonly", "-trimpath", "-o", str(made), "helm.sh/helm/v3/cmd/helm"]
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
    built = subprocess.run(command, cwd=MODULE, env=environment, capture_output=True, text=True, check=False)
    if built.returncode:
        return f"Helm cannot be built: {built.stderr}"
    made.rename(BUILT)
    return ""


def helm_command() -> Helm:
    """A function that runs `helm WORD … CHART … -f VALUES`."""
    program = helm_program(required=os.environ.get("CONFCOM_INTEROP") == "1")

    def run(*words: str, values: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
        command = [program, words[0], *words[1:2], str(CHART), "--kube-version", KUBERNETES, "-f", "-", *words[2:]]
        given = json.dumps(values)
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=False)

    return run


def rendered_by(helm: Helm, values: Mapping[str, Any], *more: str) -> list[dict[str, Any]]:
    """Every object; Helm's own label, which all have, is taken off."""
    done = helm("template", "confcom", *more, values=values)
    assert done.returncode == 0, done.stderr
    found = [one for one in yaml.load_all(done.stdout, yaml.CSafeLoader) if one]
    for one in found:
        assert one["metadata"]["labels"].pop("helm.sh/chart") == f"confcom-{version('confcom')}"
        if one["metadata"].get("annotations", {}).get(KEEP):
            assert one["kind"] == "PersistentVolumeClaim"
            del one["metadata"]["annotations"]
    return found


def by_name(objects: list[dict[str, Any]]) -> Objects:
    """Objects by KIND/NAME."""
    found = {f"{one['kind']}/{one['metadata']['name']}": one for one in objects}
    assert len(found) == len(objects)
    return found


def with_all_components(values: Mapping[str, Any]) -> dict[str, Any]:
    """These values, with every component that they do not name enabled."""
    names = ("quoteHelper", "collateral", "attestation", "attestedCertificates", "metrics", "autoscaling")
    return {name: {"enabled": True} for name in names} | dict(values)


def pods_of(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What controllers make pods of."""
    for one in objects:
        if "template" in one.get("spec", {}):
            yield one["spec"]["template"]["spec"]


def in_order(one: dict[str, Any]) -> dict[str, Any]:
    """The object, with lists sorted of which the order says nothing: volumes, mounts, variables, ports."""
    for pod in pods_of([one]):
        pod["volumes"].sort(key=lambda volume: volume["name"])
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            for part, key in (("volumeMounts", "mountPath"), ("env", "name"), ("ports", "name")):
                container.get(part, []).sort(key=lambda entry, key=key: entry[key])
    if one["kind"] == "NetworkPolicy":
        for opened in (*one["spec"].get("ingress", ()), *one["spec"].get("egress", ())):
            opened["ports"].sort(key=lambda port: (port["port"], port["protocol"]))
    return one


COMPONENTS = {
    "devicePlugin": "DaemonSet/sgx-device-plugin",
    "quoteHelper": "DaemonSet/sgx-quote-helper",
    "metrics": "DaemonSet/sgx-metrics",
    "webhook": "Deployment/sgx-webhook",
    "collateral": "Deployment/confcom-collateral",
    "attestation": "Deployment/confcom-attestation",
    "attestedCertificates": "Deployment/confcom-certificate-signer",
    "autoscaling": "Deployment/confcom-metrics-api",
}
"""Section of the values to its workload."""
MADE_ANEW = {
    "Secret/sgx-webhook-ca",
    "Secret/confcom-metrics-api-ca",
    "Secret/confcom-exporters-ca",
    "APIService/v1beta2.custom.metrics.k8s.io",
    *(f"{kind}WebhookConfiguration/sgx-webhook.confcom.dev" for kind in ("Mutating", "Validating")),
}
"""CAs of their own in each rendering, and what trusts them."""
