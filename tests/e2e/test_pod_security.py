"""Pods that ask the quote helper in namespaces whose Pod Security forbids volumes of the host."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_jobs import AESMD, CONFINED, QUOTE, attesting, job, limits, one_container, pod, with_aesmd
from kubectl import ADDON_NAMESPACE, Kubectl
from relying_party import RelyingParty, quote_in

HELPER = "sgx.confcom.dev/quote-helper"
OUT_OF_PROC = {"confcom.dev/quote-mode": "out-of-proc"}
VARIABLE = [{"name": "SGX_AESM_ADDR", "value": "1"}]
LEVELS = ("restricted", "baseline", "privileged")


@pytest.fixture(scope="module")
def namespaces(cluster: Kubectl) -> Iterator[dict[str, str]]:
    """A namespace for each level that is enforced."""
    found = {level: f"e2e-{level}" for level in LEVELS}
    for level, name in found.items():
        cluster("delete", "namespace", name, "--ignore-not-found", "--wait")
        labels = {"pod-security.kubernetes.io/enforce": level}
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        words = ("serviceaccount", "default", "-n", name)
        cluster.wait("the namespace's service account", lambda words=words: cluster.find(*words))
    yield found
    cluster("delete", "namespace", *found.values(), "--ignore-not-found", "--wait=false")


def sleeping(image: str, name: str, namespace: str, **spec: Any) -> Any:
    """A pod that may do what `restricted` allows, and asks the helper when it is told to."""
    found = one_container(
        image, "sleep", "600", resources=limits(5), env=VARIABLE, securityContext=CONFINED, workingDir="/tmp"
    )
    return pod(name, namespace, found | spec)


def ready(cluster: Kubectl, name: str, namespace: str) -> None:
    cluster("wait", "pod", name, "-n", namespace, "--for=condition=Ready", "--timeout=60s")


def quote_of(cluster: Kubectl, name: str, namespace: str, report_data: str) -> bytes:
    return quote_in(cluster("exec", name, "-n", namespace, "-c", "application", "--", "sh", "-c", QUOTE, report_data))


@pytest.mark.promise("M9")
@pytest.mark.parametrize("level", LEVELS)
def test_an_annotation_is_all_that_it_takes_to_attest(
    enabled: Addon,
    namespaces: dict[str, str],
    run: Callable[..., str],
    relying_party: RelyingParty,
    image: str,
    level: str,
) -> None:
    spec = attesting(image, "0a", securityContext=CONFINED)
    log = run(job("attest", namespaces[level], spec, annotations=OUT_OF_PROC))
    assert "quotes out-of-proc" in log
    assert relying_party.verify(quote_in(log), "0a")["exit_code"] == 0


@pytest.mark.promise("M11")
def test_the_sample_job_with_its_volume_is_for_namespaces_that_allow_it(
    enabled: Addon,
    namespaces: dict[str, str],
    cluster: Kubectl,
    run: Callable[..., str],
    relying_party: RelyingParty,
    image: str,
) -> None:
    spec = with_aesmd(attesting(image, "0b", securityContext=CONFINED))
    assert relying_party.verify(quote_in(run(job("sample", namespaces["privileged"], spec))), "0b")["exit_code"] == 0
    for level in ("baseline", "restricted"):
        refused = cluster.attempt("create", "-f", "-", given=json.dumps(pod("sample", namespaces[level], spec)))
        assert f'violates PodSecurity "{level}' in refused.err
        assert "hostPath" in refused.err


@pytest.mark.promise("M9")
def test_a_helper_that_is_replaced_is_reached_by_pods_that_run(
    enabled: Addon, namespaces: dict[str, str], cluster: Kubectl, made: Callable[..., Any], relying_party: RelyingParty
) -> None:
    place = ("app", namespaces["restricted"])
    made(sleeping(enabled.image, *place))
    ready(cluster, *place)
    assert relying_party.verify(quote_of(cluster, *place, "0c"), "0c")["exit_code"] == 0
    before = cluster("exec", place[0], "-n", place[1], "--", "stat", "-c", "%i", f"{AESMD}/aesm.socket")
    cluster("rollout", "restart", "daemonset/sgx-quote-helper", "-n", ADDON_NAMESPACE)
    cluster.rollout("daemonset", "sgx-quote-helper")
    assert cluster("exec", place[0], "-n", place[1], "--", "stat", "-c", "%i", f"{AESMD}/aesm.socket") != before
    assert relying_party.verify(quote_of(cluster, *place, "0d"), "0d")["exit_code"] == 0


@pytest.mark.promise("M10")
def test_nobody_can_put_another_socket_in_the_helpers_place(
    enabled: Addon, namespaces: dict[str, str], run: Callable[..., str], image: str
) -> None:
    """Root with what `baseline` leaves it: the folder is the helper's on the node, and read-only here."""
    attempts = (
        f"exec 2>/dev/null; id -u; rm -f {AESMD}/aesm.socket || echo stays; touch {AESMD}/other || echo nothing added"
    )
    spec = one_container(
        image, "sh", "-c", f"{attempts}; mount -o remount,rw {AESMD} || echo read-only", resources=limits(5)
    )
    spec["containers"][0]["securityContext"] = {"runAsUser": 0}
    log = run(job("vandal", namespaces["baseline"], spec, annotations=OUT_OF_PROC))
    assert log.splitlines() == ["0", "stays", "nothing added", "read-only"]


def test_init_containers_without_epc_come_to_the_helper_too(
    enabled: Addon, namespaces: dict[str, str], cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    first = one_container(image, "ls", AESMD, env=VARIABLE, securityContext=CONFINED)["containers"][0]
    place = ("starts", namespaces["restricted"])
    made(sleeping(image, *place, initContainers=[first | {"name": "first"}]))
    ready(cluster, *place)
    assert "aesm.socket" in cluster("logs", place[0], "-n", place[1], "-c", "first").split()


def test_to_debug_a_pod_takes_a_copy_of_it(
    enabled: Addon, namespaces: dict[str, str], cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    """Ephemeral containers have no resources; a copy's container has."""
    place = ("odd", namespaces["restricted"])
    made(sleeping(image, *place))
    ready(cluster, *place)
    words = ("debug", place[0], "-n", place[1], f"--image={image}", "--container=d", "--env=SGX_AESM_ADDR=1")
    words += ("--profile=restricted", "--attach=false")
    refused = cluster.attempt(*words, "--", "ls", AESMD)
    assert refused.code != 0
    assert "Use `kubectl debug --copy-to`" in refused.err
    try:
        cluster(*words, "--copy-to=copy", "--", "sh", "-c", f"ls {AESMD}; sleep 600")
        ready(cluster, "copy", place[1])
        assert "aesm.socket" in cluster("logs", "copy", "-n", place[1], "-c", "d").split()
    finally:
        cluster("delete", "pod", "copy", "-n", place[1], "--ignore-not-found", "--now")


@pytest.mark.parametrize("volume", [{"hostPath": {"path": AESMD}}, {"emptyDir": {}}], ids=["host", "own"])
def test_what_a_pod_mounts_there_itself_wins(
    enabled: Addon, namespaces: dict[str, str], run: Callable[..., str], image: str, volume: dict[str, Any]
) -> None:
    """Even in a container that requests the way to the helper besides: both are mounted, its own on top."""
    spec = one_container(image, "sh", "-c", f"ls -A {AESMD}; touch {AESMD}/own && rm {AESMD}/own && echo writable")
    mount = {"name": "own", "mountPath": AESMD}
    spec["containers"][0] |= {"resources": limits(5, **{HELPER: "1"}), "volumeMounts": [mount]}
    spec["containers"][0]["securityContext"] = {"runAsUser": 0}
    spec["volumes"] = [{"name": "own"} | volume]
    *found, last = run(job("own", namespaces["privileged"], spec)).split()
    assert last == "writable"
    assert "aesm.socket" in found if "hostPath" in volume else not found


@pytest.mark.promise("M6")
def test_pods_wait_where_there_is_no_helper(
    enabled: Addon, namespaces: dict[str, str], cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    assert enabled("update", "--disable-sgxquotehelper", "-o", "none").code == 0
    cluster.wait("the way to be closed", lambda: enabled.allocatable(HELPER) == 0)
    place = ("early", namespaces["restricted"])
    made(sleeping(image, *place))

    def waits() -> bool:
        conditions = cluster.get("pod", place[0], "-n", place[1])["status"].get("conditions", [])
        return any(f"Insufficient {HELPER}" in condition.get("message", "") for condition in conditions)

    cluster.wait("the reason", waits)
    assert enabled("update", "--enable-sgxquotehelper", "-o", "none").code == 0
    ready(cluster, *place)
