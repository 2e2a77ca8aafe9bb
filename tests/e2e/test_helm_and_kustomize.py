"""The other ways to install: real Helm, and kubectl with kustomize, from what lies in `deploy/`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster_addon import Addon
from cluster_jobs import attesting, job, limits, one_container, pod, with_aesmd
from confcom.addon.plan import PLUGIN_MARKS
from confcom.pki.serving_pair import Authority
from helm import CHART, helm_program
from kubectl import ADDON_NAMESPACE, Kubectl, Outcome
from relying_party import RelyingParty, quote_in

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SIMULATED = {
    "platform": "simulated",
    "simulatedEpc": "176Mi",
    "quoteHelper": {"enabled": True},
    "webhook": {"replicas": 1},
}


@pytest.fixture(scope="module")
def helm(cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Helm with the cluster's kubeconfig; `values` are those of the chart."""
    folder = tmp_path_factory.mktemp("helm")
    program = helm_program(required=True)
    environment = os.environ | {f"HELM_{kind}_HOME": str(folder / kind) for kind in ("CACHE", "CONFIG", "DATA")}

    def helm(*words: str, values: dict[str, Any] | None = None, namespace: str = "default") -> Outcome:
        given = [] if values is None else ["--values", "-"]
        command = [program, *words, *given, "--kubeconfig", cluster.kubeconfig, "--namespace", namespace]
        standard_input = None if values is None else json.dumps(values)
        done = subprocess.run(
            command, input=standard_input, capture_output=True, text=True, env=environment, timeout=600, check=False
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return helm


@pytest.fixture
def bare(addon: Addon, cluster: Kubectl) -> Iterator[Addon]:
    """A cluster without the add-on, before and after; later tests enable it again."""
    _purge(addon, cluster)
    cluster.wait("EPC to be gone", lambda: addon.allocatable() == 0)
    yield addon
    _purge(addon, cluster)


def _purge(addon: Addon, cluster: Kubectl) -> None:
    """Whoever installed it; releases of Helm are Secrets."""
    outcome = addon("disable", "--purge", "--yes", "-o", "none")
    assert outcome.code == 0, outcome.err
    cluster("delete", "secret", "-n", "default", "-l", "name=confcom,owner=helm")
    cluster("delete", "pod", "-n", "default", "-l", "app.kubernetes.io/component=test")


@pytest.fixture
def simulated(bare: Addon, tmp_path: Path) -> list[dict[str, Any]]:
    """The add-on for simulated nodes, world included, as `confcom addon manifests` writes it for other tools."""
    machine = tmp_path / "world.json"
    _confcom("simulate", "machine", "-o", str(machine))
    options = (
        "--platform=simulated",
        "--simulated-epc=176Mi",
        f"--simulated-world={machine}",
        "--enable-sgxquotehelper",
    )
    written = _confcom("addon", "manifests", *options, "--webhook-replicas=1", f"--image={bare.image}")
    return list(yaml.safe_load_all(written))


def _confcom(*words: str) -> str:
    command = [sys.executable, "-m", "confcom", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def attest(bare: Addon, cluster: Kubectl, run: Callable[..., str], tmp_path: Path, image: str) -> Callable[[str], None]:
    """Wait until all of it runs, then have a Job attest and its quote verified."""

    def attest(report_data: str) -> None:
        for kind in ("daemonset", "deployment"):
            for one in cluster.items(kind, "-n", ADDON_NAMESPACE):
                name = f"{kind}/{one['metadata']['name']}"
                cluster("rollout", "status", name, "-n", ADDON_NAMESPACE, "--timeout=150s", seconds=160)
        cluster.wait("EPC", lambda: bare.allocatable() == 168)
        quote = quote_in(run(job("attesting", "e2e", with_aesmd(attesting(image, report_data)))))
        assert RelyingParty.of(cluster, tmp_path).verify(quote, report_data)["exit_code"] == 0

    return attest


def nothing_is_left(addon: Addon, cluster: Kubectl) -> None:
    """Of objects; the namespace takes its content along, which may take a while."""
    cluster.wait("everything to be gone", lambda: not addon.objects(), seconds=120)
    assert cluster.find("namespace", ADDON_NAMESPACE) is None
    cluster.wait("EPC to be gone", lambda: addon.allocatable() == 0)


def _is_asked(cluster: Kubectl) -> None:
    """The API server trusts the webhook."""
    asked = json.dumps(pod("asked", "default", one_container("x", "true", resources=limits(1))))
    words = ("create", "--dry-run=server", "-f", "-", "-o", "name")
    cluster.wait("an answer of the webhook", lambda: cluster.attempt(*words, given=asked).code == 0, seconds=60)


def _made_once(cluster: Kubectl) -> list[Any]:
    """What an installation makes, and no upgrade may change."""
    words = ("get", "-n", ADDON_NAMESPACE, "-o", "jsonpath={.data}")
    names = ("secret/sgx-webhook-ca", "secret/confcom-simulated-world", "configmap/confcom-simulated-root")
    return [json.loads(cluster(*words, name)) for name in names]


def _values(image: str, **more: Any) -> dict[str, Any]:
    repository, _, tag = image.rpartition(":")
    return SIMULATED | {"image": {"repository": repository, "tag": tag}} | more


@pytest.mark.promise("M1")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("namespace", ["default", ADDON_NAMESPACE])
def test_helm_installs_tests_upgrades_and_uninstalls(
    bare: Addon,
    helm: Callable[..., Outcome],
    cluster: Kubectl,
    run: Callable[..., str],
    attest: Callable[[str], None],
    image: str,
    namespace: str,
) -> None:
    """With Helm alone: the simulated world, certificates and leftovers on nodes need no other program."""
    chart = str(CHART)
    outcome = helm(
        "install", "confcom", chart, "--create-namespace", "--wait", values=_values(bare.image), namespace=namespace
    )
    assert outcome.code == 0, outcome.err
    attest("0a")
    made = _made_once(cluster)
    assert "BEGIN CERTIFICATE" in made[2]["root_ca.pem"]
    outcome = helm("test", "confcom", namespace=namespace)
    assert outcome.code == 0, outcome.out + outcome.err

    running = {pod["metadata"]["uid"] for pod in bare.pods("device-plugin")}
    assert bare.pods("metrics") == []
    metrics_values = {"enabled": True, "podLabels": {"e2e": "metrics"}}
    values = _values(bare.image, metrics=metrics_values, autoscaling={"enabled": True})
    outcome = helm("upgrade", "confcom", chart, "--wait", values=values, namespace=namespace)
    assert outcome.code == 0, outcome.err
    (metrics,) = bare.pods("metrics")
    assert metrics["metadata"]["labels"]["e2e"] == "metrics"
    api = ("get", "--raw", "/apis/custom.metrics.k8s.io/v1beta2")
    cluster.wait("the metrics API", lambda: "pods/sgx_epc_used_ratio" in cluster.attempt(*api).out)
    # What did not change was not restarted, and what is made once is what it was.
    assert {pod["metadata"]["uid"] for pod in bare.pods("device-plugin")} == running
    assert _made_once(cluster) == made
    attest("0b")
    shown = bare("show", "-o", "json")
    assert '"metricsEnabled": "true"' in shown.out, shown.err

    outcome = helm("uninstall", "confcom", "--wait", namespace=namespace)
    assert outcome.code == 0, outcome.err
    cluster("delete", "namespace", ADDON_NAMESPACE, "--ignore-not-found", seconds=120)  # `--create-namespace` made it
    nothing_is_left(bare, cluster)
    node = bare.node()
    marks = {**node["metadata"].get("labels", {}), **node["metadata"].get("annotations", {})}
    assert not {*PLUGIN_MARKS} & marks.keys()
    look = one_container(image, "ls", "-A", "/confcom", volumeMounts=[{"name": "confcom", "mountPath": "/confcom"}])
    folder = {"path": "/var/lib/confcom", "type": "DirectoryOrCreate"}
    seen = run(job("look", "e2e", look | {"volumes": [{"name": "confcom", "hostPath": folder}]}))
    assert "simulated-node" not in seen


@pytest.mark.promise("M1")
def test_kubectl_applies_and_deletes_a_folder_of_the_rendered_add_on(
    bare: Addon,
    simulated: list[dict[str, Any]],
    cluster: Kubectl,
    attest: Callable[[str], None],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "simulated"
    folder.mkdir()
    (folder / "addon.yaml").write_text(yaml.safe_dump_all(simulated))
    (folder / "kustomization.yaml").write_text("resources: [addon.yaml]\n")
    for _ in range(2):  # the second time with all that the add-on's programs wrote in between
        cluster("apply", "-k", str(folder))
        attest("0c")
    cluster("delete", "-k", str(folder), seconds=240)
    nothing_is_left(bare, cluster)


@pytest.mark.promise("M1")
def test_kubectl_applies_and_deletes_the_base_with_an_image_of_ones_own(
    bare: Addon, cluster: Kubectl, tmp_path: Path
) -> None:
    """On a node without SGX its plugin says so; the webhook runs all the same."""
    name, _, tag = bare.image.rpartition(":")
    base = tmp_path / "base"
    shutil.copytree(DEPLOY / "kustomize", base)
    ca = Authority.make("e2e", now=datetime.fromtimestamp(time.time(), UTC), lifetime=timedelta(days=1))
    (base / "webhook-ca.crt").write_bytes(ca.certificate)
    (base / "webhook-ca.key").write_bytes(ca.key)
    overlay = {"resources": ["base"], "images": [{"name": "confcom/confcom", "newName": name, "newTag": tag}]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    cluster("apply", "-k", str(tmp_path))
    words = ("deployment/sgx-webhook", "-n", ADDON_NAMESPACE)
    cluster("rollout", "status", *words, "--timeout=150s", seconds=160)
    plugin = ("logs", "daemonset/sgx-device-plugin", "-n", ADDON_NAMESPACE, "--all-containers")
    _is_asked(cluster)
    cluster.wait("its word", lambda: "SGX" in cluster.attempt(*plugin).out)
    cluster("delete", "-k", str(tmp_path), seconds=240)
    nothing_is_left(bare, cluster)
