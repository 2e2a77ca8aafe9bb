"""What goes wrong while the add-on is enabled is said with the pod and the reason; what was cut off goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from cluster_addon import Addon
from kubectl import ADDON_NAMESPACE, Kubectl

SETTINGS = ("--platform=simulated", "--simulated-epc=64Mi", "--disable-webhook", "-o", "none")


@pytest.fixture
def absent(addon: Addon) -> Iterator[Addon]:
    assert addon("disable", "--purge", "--yes", "-o", "none").code == 0
    yield addon
    assert addon("disable", "--purge", "--yes", "-o", "none").code == 0


@pytest.mark.promise("M1")
def test_an_image_that_cannot_be_had(absent: Addon) -> None:
    outcome = absent("enable", *SETTINGS, "--image=localhost/nothing:1", "--timeout=60")
    assert outcome.code == 7
    assert "not ready: sgx-device-plugin 0/1. pod sgx-device-plugin-" in outcome.err
    assert "ImagePull" in outcome.err
    assert "localhost/nothing:1" in outcome.err
    assert "what to do: Name an image that the nodes can pull, with --image" in outcome.err
    # And it goes on with one that can.
    assert absent("enable", *SETTINGS, f"--image={absent.image}").code == 0


@pytest.mark.promise("M1")
@pytest.mark.promise("M7")
def test_a_quote_helper_that_finds_no_epc(absent: Addon) -> None:
    words = (f"--image={absent.image}", "--enable-sgxquotehelper", "--quote-helper-epc-mib=65", "--timeout=15")
    outcome = absent("enable", *SETTINGS, *words)
    assert outcome.code == 7
    assert "Unschedulable" in outcome.err
    assert "Insufficient sgx.confcom.dev/quote-helper-epc" in outcome.err
    assert "nothing is left of 64 MiB of EPC beside a reserve of 130 MiB" in outcome.err
    assert "Lower reserve_mib, or helper_epc_mib" in outcome.err
    assert absent("update", "--quote-helper-epc-mib=4", "-o", "none").code == 0


@pytest.mark.promise("M1")
def test_a_plugin_that_ends_says_its_last_line(absent: Addon) -> None:
    words = (f"--image={absent.image}", "--epc-reserve-mib=64", "--timeout=90")
    outcome = absent("enable", *SETTINGS, *words)
    assert outcome.code == 7
    assert "CrashLoopBackOff" in outcome.err
    assert "Lower reserve_mib" in outcome.err


@pytest.mark.promise("M1")
@pytest.mark.parametrize("seconds", [0.9, 1.3, 1.8, 2.5])
def test_whoever_is_killed_in_the_middle_runs_the_same_command_again(
    absent: Addon, cluster: Kubectl, seconds: float
) -> None:
    """At whatever point: while objects are made, while they come up, and while they are deleted."""
    enable = ("enable", *SETTINGS, f"--image={absent.image}", "--enable-sgxquotehelper")
    _killed(absent, seconds, *enable)
    outcome = absent(*enable)
    assert outcome.code == 0, outcome.err
    assert json.loads(absent("show").out)["ready"] == {"sgx-device-plugin": "1/1", "sgx-quote-helper": "1/1"}
    purge = ("disable", "--purge", "--yes", "-o", "none")
    _killed(absent, seconds, *purge)
    outcome = absent(*purge)
    assert outcome.code == 0, outcome.err
    assert cluster.find("namespace", ADDON_NAMESPACE) is None
    left = "clusterroles,clusterrolebindings,validatingadmissionpolicies,priorityclasses"
    assert cluster.items(left, "-l", "app.kubernetes.io/part-of=confcom") == []


def _killed(addon: Addon, seconds: float, *words: str) -> None:
    command = [sys.executable, "-m", "confcom", "addon", *words, "--kubeconfig", addon.cluster.kubeconfig]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        time.sleep(seconds)
        running.send_signal(signal.SIGKILL)


def test_uses_are_named_before_anything_is_deleted(absent: Addon, cluster: Kubectl) -> None:
    assert absent("enable", *SETTINGS, f"--image={absent.image}").code == 0
    cluster.wait("EPC to be allocatable", absent.allocatable)
    cluster.apply(_user(absent.image))
    cluster.wait("the pod to run", lambda: cluster.get("pod", "user", "-n", "e2e")["status"]["phase"] == "Running")
    outcome = absent("disable", "--dry-run")
    node = absent.node()["metadata"]["name"]
    assert f"in use by e2e/user on {node}: kubernetes.azure.com/sgx_epc_mem_in_MiB=7" in outcome.err
    assert "- delete DaemonSet confcom-system/sgx-device-plugin" in outcome.out
    assert len(absent.pods("device-plugin")) == 1
    assert "in use by e2e/user" in absent("disable", "-o", "none").err
    assert cluster.get("pod", "user", "-n", "e2e")["status"]["phase"] == "Running"
    cluster("delete", "pod", "user", "-n", "e2e", "--now")


def _user(image: str) -> dict[str, object]:
    container = {
        "name": "main",
        "image": image,
        "command": ["sleep", "600"],
        "resources": {"limits": {"kubernetes.azure.com/sgx_epc_mem_in_MiB": "7"}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "user", "namespace": "e2e"},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }
