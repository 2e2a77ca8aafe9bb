"""End-to-end tests on a real Kubernetes: `./dev e2e` starts one, $CONFCOM_E2E_KUBECONFIG names another.

The nodes are simulated ones: real kubelet, real devices, no SGX. Without a cluster the tests of this folder skip.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_addon import GRANTED, Addon
from kubectl import ADDON_NAMESPACE, Kubectl, encode
from relying_party import RelyingParty

FOLDER = Path(__file__).resolve().parent
KUBECONFIG = os.environ.get("CONFCOM_E2E_KUBECONFIG", "")
NAMESPACES = ("e2e", GRANTED)


FIRST = (
    "test_node_status.py",
    "test_dra.py",
    "test_webhook.py",
    "test_intel_node.py",
    "test_intel_platform.py",
    "test_large_node.py",
)
"""Without the add-on, which others have; then the node whose kubelet must not know EPC as devices."""
LAST = (
    "test_autoscaling.py",
    "test_node_pools.py",
    "test_why.py",
    "test_epc_use.py",
    "test_claims.py",
    "test_without_a_gap.py",
    "test_one_node.py",
)
"""With the exporter of EPC, two on a smaller node; then those that restart the kubelet, at last with rarer statuses."""
PLACES = {name: place for place, name in enumerate(FIRST, -len(FIRST))} | {
    name: place for place, name in enumerate(LAST, 1)
}
"""Before and after the others, which are at 0: a state of the add-on that takes long to come to serves several."""


LONG = (
    "test_addon_failures.py",
    "test_addon_states.py",
    "test_attested_service.py",
    "test_come_from_others.py",
    "test_helm_and_kustomize.py",
    "test_install_in_five_minutes.py",
    "test_replicas.py",
)
"""Most take the add-on away and bring it back, twenty minutes together; `./dev e2e --thorough` runs them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if KUBECONFIG:
        items.sort(key=lambda item: (FOLDER in item.path.parents, PLACES.get(item.path.name, 0)))
    for item in items:
        if FOLDER not in item.path.parents:
            continue
        item.add_marker(pytest.mark.e2e)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(420))
        if not KUBECONFIG:
            reason = "needs a cluster: `./dev e2e` starts one, CONFCOM_E2E_KUBECONFIG names another"
            item.add_marker(pytest.mark.skip(reason=reason))
        elif item.path.name in LONG and os.environ.get("CONFCOM_E2E_THOROUGH") != "1":
            item.add_marker(pytest.mark.skip(reason="takes long: `./dev e2e --thorough` runs it"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not KUBECONFIG:
        return
    marker = item.get_closest_marker("kubernetes")
    if marker is not None and _numbers(_version()) < _numbers(marker.args[0]):
        pytest.skip(f"needs Kubernetes {marker.args[0]} or later, and this cluster is {_version()}")
    if item.get_closest_marker("claims") and not _keeps_amounts_of_claims():
        pytest.skip(f"needs claims of a part of a device, which this cluster, Kubernetes {_version()}, does not have")


@functools.cache
def _version() -> str:
    found = json.loads(_cluster()("version", "-o", "json"))["serverVersion"]["gitVersion"]
    return str(found).removeprefix("v")


@functools.cache
def _keeps_amounts_of_claims() -> bool:
    exactly = {"deviceClassName": "any", "capacity": {"requests": {"any": "1"}}}
    trial = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": "trial", "namespace": "default"},
        "spec": {"spec": {"devices": {"requests": [{"name": "any", "exactly": exactly}]}}},
    }
    words = ("apply", "-f", "-", "--server-side", "--dry-run=server", "-o", "json")
    return '"capacity"' in _cluster().attempt(*words, given=json.dumps(trial)).out


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report: pytest.TestReport = yield
    if report.failed and KUBECONFIG and item.get_closest_marker("e2e"):
        report.sections.append(("the cluster", _cluster().diagnosis(*NAMESPACES, ADDON_NAMESPACE)))
    return report


def _cluster() -> Kubectl:
    program = os.environ.get("KUBECTL") or shutil.which("kubectl")
    assert program, "kubectl is on no PATH, and $KUBECTL names none"
    return Kubectl(program, KUBECONFIG)


@pytest.fixture(scope="session")
def image() -> str:
    """The image of the add-on, which applications use as well."""
    return os.environ.get("CONFCOM_E2E_IMAGE", "localhost/confcom:dev")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Kubectl]:
    """The cluster, with one node that is labelled as one with SGX, and empty namespaces."""
    found = _cluster()
    node = found.items("nodes")[0]["metadata"]["name"]
    found("label", "node", node, "confcom.dev/sgx=true", "--overwrite")
    for namespace in NAMESPACES:
        found("delete", "namespace", namespace, "--ignore-not-found", "--wait")
        found("create", "namespace", namespace)
        words = ("serviceaccount", "default", "-n", namespace)
        found.wait("the namespace's service account", lambda words=words: found.find(*words))
    yield found
    found("delete", "namespace", *NAMESPACES, "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="session")
def addon(cluster: Kubectl, image: str) -> Addon:
    """The add-on in whatever state it is."""
    return Addon(cluster, image)


@pytest.fixture(scope="module")
def enabled(addon: Addon) -> Addon:
    """The add-on with the usual settings, ready; a module need not take back the settings that it changes."""
    addon.enable()
    return addon


@pytest.fixture(scope="module")
def relying_party(cluster: Kubectl, enabled: Addon, tmp_path_factory: pytest.TempPathFactory) -> RelyingParty:
    """Verifies quotes of this cluster."""
    return RelyingParty.of(cluster, tmp_path_factory.mktemp("relying-party"))


@pytest.fixture
def made(cluster: Kubectl) -> Iterator[Callable[..., Any]]:
    """Make an object that is deleted, with what belongs to it, after the test."""
    objects: list[dict[str, Any]] = []

    def make(thing: dict[str, Any]) -> dict[str, Any]:
        objects.append(thing)
        cluster.apply(thing)
        return thing

    yield make
    # What still runs holds EPC, which the next test counts on. Jobs have ended.
    for wait in ("false", "true"):
        left = [thing for thing in reversed(objects) if (thing["kind"] != "Job") == (wait == "true")]
        if left:
            words = ("--ignore-not-found", "--cascade=foreground", f"--wait={wait}")
            cluster("delete", "-f", "-", *words, given=encode(*left))


@pytest.fixture
def run(cluster: Kubectl, made: Callable[..., Any]) -> Callable[..., str]:
    """Run a Job to its end and return its log."""

    def run(job: dict[str, Any], seconds: float = 180) -> str:
        job["metadata"]["name"] += f"-{secrets.token_hex(3)}"
        made(job)
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        ended = cluster.wait(f"job {name} to end", lambda: _ended(cluster, name, namespace), seconds)
        log = cluster("logs", "-n", namespace, f"job/{name}")
        assert ended == "Complete", log
        return log

    return run


def _ended(cluster: Kubectl, name: str, namespace: str) -> str | None:
    conditions = cluster.get("job", name, "-n", namespace)["status"].get("conditions", [])
    ended = [c["type"] for c in conditions if c["status"] == "True" and c["type"] in ("Complete", "Failed")]
    return ended[0] if ended else None
