"""Attestation goes on while everything around it is restarted or updated: not one quote fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import attesting, job, with_aesmd
from cluster_load import Load
from cluster_plugin import own_cluster, restart_kubelet
from kubectl import ADDON_NAMESPACE, Kubectl
from relying_party import RelyingParty, quote_in


@pytest.fixture(scope="module")
def load(cluster: Kubectl, enabled: Addon, image: str) -> Iterator[Load]:
    """A pod that attests from the first test to the last, without one failure."""
    load = Load.start(cluster, image)
    yield load
    load.end()


def _no_failure(load: Load) -> None:
    load.more()
    figures = load.cluster.wait("figures", load.figures)
    assert figures["failures"] == []


@pytest.mark.promise("M10")
@pytest.mark.complaint("gramine #1881")
def test_a_rolling_update_of_the_helper(cluster: Kubectl, enabled: Addon, load: Load) -> None:
    before = {pod["metadata"]["name"] for pod in enabled.pods("quote-helper")}
    cluster("rollout", "restart", "daemonset/sgx-quote-helper", "-n", ADDON_NAMESPACE)
    cluster.rollout("daemonset", "sgx-quote-helper")
    after = {pod["metadata"]["name"] for pod in enabled.pods("quote-helper")}
    assert not before & after
    _no_failure(load)


@pytest.mark.promise("M10")
@pytest.mark.promise("M1")
def test_an_update_of_the_add_on_keeps_what_it_does_not_mention(enabled: Addon, load: Load) -> None:
    outcome = enabled("update", "--quote-helper-epc-mib", "5", "-o", "none")
    assert outcome.code == 0, outcome.err
    helper = enabled.pods("quote-helper")[0]["spec"]["containers"][0]
    assert helper["resources"]["limits"]["sgx.confcom.dev/quote-helper-epc"] == "5"
    _no_failure(load)
    enabled.enable()
    _no_failure(load)


@pytest.mark.promise("M10")
def test_an_update_that_cannot_prove_itself(cluster: Kubectl, enabled: Addon, load: Load) -> None:
    wrong = {"name": "CONFCOM_QUOTE_HELPER_TRUST_ROOT", "value": "/nowhere.pem"}
    path = "/spec/template/spec/containers/0/env/-"
    patch = f'[{{"op": "add", "path": "{path}", "value": {{"name": "{wrong["name"]}", "value": "{wrong["value"]}"}}}}]'
    cluster("patch", "daemonset", "sgx-quote-helper", "-n", ADDON_NAMESPACE, "--type=json", "-p", patch)
    try:
        cluster.wait("the new helper to fail", lambda: _restarts(enabled))
        ready = [pod for pod in enabled.pods("quote-helper") if _ready(pod)]
        assert len(ready) == 1
        _no_failure(load)
    finally:
        cluster("rollout", "undo", "daemonset/sgx-quote-helper", "-n", ADDON_NAMESPACE)
        cluster.rollout("daemonset", "sgx-quote-helper")
    _no_failure(load)


@pytest.mark.promise("M10")
def test_an_image_that_cannot_be_pulled(cluster: Kubectl, enabled: Addon, load: Load) -> None:
    """Pods of the image before it stay, of every component, and the update says which image is missing where."""
    components = ("device-plugin", "quote-helper", "metrics", "webhook")
    assert enabled("update", "--enable-metrics", "-o", "none").code == 0
    before = {component: _ready_names(enabled, component) for component in components}
    assert all(len(names) == 1 for names in before.values())
    missing = "localhost/nothing:1"
    try:
        outcome = enabled.fails("update", f"--image={missing}", saying="ImagePull")
        node = enabled.node()["metadata"]["name"]
        for word in (f"on {node}: ", "ImagePull", missing, "Name an image that the nodes can pull, with --image"):
            assert word in outcome.err
        assert enabled("update", f"--image={missing}", "-o", "none", "--no-wait").code == 0
        cluster.wait("successors that have no image", lambda: all(map(partial(_lacks_image, enabled), components)))
        assert {component: _ready_names(enabled, component) for component in components} == before
        _no_failure(load)
    finally:
        enabled.enable()
    _no_failure(load)


def _ready_names(addon: Addon, component: str) -> list[str]:
    return sorted(pod["metadata"]["name"] for pod in addon.pods(component) if _ready(pod))


def _lacks_image(addon: Addon, component: str) -> bool:
    kinds = ("initContainerStatuses", "containerStatuses")
    statuses = [status for pod in addon.pods(component) for kind in kinds for status in pod["status"].get(kind, [])]
    return any("ImagePull" in status["state"].get("waiting", {}).get("reason", "") for status in statuses)


def _restarts(addon: Addon) -> int:
    statuses = [status for pod in addon.pods("quote-helper") for status in pod["status"].get("containerStatuses", [])]
    return sum(status["restartCount"] for status in statuses)


def _ready(pod: Any) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


@pytest.mark.promise("M2")
@pytest.mark.promise("M10")
def test_a_restart_of_the_device_plugin(
    cluster: Kubectl, enabled: Addon, load: Load, run: Callable[..., str], relying_party: RelyingParty, image: str
) -> None:
    old = enabled.pods("device-plugin")[0]["metadata"]["name"]
    cluster("delete", "pod", old, "-n", ADDON_NAMESPACE, "--wait")
    cluster.rollout("daemonset", "sgx-device-plugin")
    cluster.wait("EPC to be back", lambda: enabled.allocatable() == 168)
    _no_failure(load)
    quote = quote_in(run(job("after", "e2e", with_aesmd(attesting(image, "0d")))))
    assert relying_party.verify(quote, "0d")["exit_code"] == 0


@pytest.mark.promise("M2")
def test_a_restart_of_the_kubelet(
    cluster: Kubectl, enabled: Addon, load: Load, run: Callable[..., str], relying_party: RelyingParty, image: str
) -> None:
    home = own_cluster(cluster)
    if home is None:
        pytest.skip("the kubelet of this cluster is not ours to restart")
    restart_kubelet(home)
    cluster.wait("EPC to be back", lambda: enabled.allocatable() == 168)
    _no_failure(load)
    quote = quote_in(run(job("after", "e2e", with_aesmd(attesting(image, "0e")))))
    assert relying_party.verify(quote, "0e")["exit_code"] == 0
    assert _restarts(enabled) == 0


KILL_SERVER = """
import os, signal
from pathlib import Path

def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

def is_helper(entry):
    return entry.stat().st_uid == os.getuid() and b"quote-helper" in (entry / "cmdline").read_bytes()

own = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and is_helper(entry)]
os.kill(next(pid for pid in own if parent(pid) in own), signal.SIGKILL)
"""


@pytest.mark.promise("M10")
@pytest.mark.complaint("linux-sgx #1022")
def test_a_helper_that_is_killed_three_times(cluster: Kubectl, enabled: Addon, load: Load) -> None:
    """Its container's first process starts it again, so the kubelet's pauses between restarts do not apply.

    The last test of the load: quotes under way fail when their helper is killed.
    """
    name = enabled.pods("quote-helper")[0]["metadata"]["name"]
    for _ in range(3):
        cluster("exec", name, "-n", ADDON_NAMESPACE, "--", "python3", "-c", KILL_SERVER)
        load.more()
    pod = enabled.pods("quote-helper")[0]
    assert pod["metadata"]["name"] == name
    assert [status["restartCount"] for status in pod["status"]["containerStatuses"]] == [0]
