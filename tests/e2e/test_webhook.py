"""The admission webhook under a real API server: which pods it reviews, how it changes them, its life cycle."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lightkube.resources.core_v1 import Pod

from cluster_addon import Addon
from confcom.cluster.client import open_client
from confcom.pki.serving_pair import authorities_in
from kubectl import Kubectl, Outcome, encode
from sgx_pods import AESMD, ALIYUN, ENCLAVE, EPC, HELPER, HYBRID, INTEL, PROVISION
from webhook_on_cluster import CONFIGURATION, NAMESPACE, WebhookOnCluster, new_ca

VARIABLE = {"name": "SGX_AESM_ADDR", "value": "1"}
IMAGE = "localhost/pause:1"


def container(name: str = "app", limits: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    resources = {"resources": {"limits": limits}} if limits is not None else {}
    return {"name": name, "image": IMAGE} | resources | more


def pod(name: str, *containers: Any, annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE, "annotations": annotations or {}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": list(containers)} | spec}


ORDINARY = {
    "bare": pod("a", container()),
    "resources": pod("b", container(limits={"cpu": "1", "memory": "1Gi", "example.com/gpu": "1"})),
    "init": pod("c", container(), initContainers=[container("i"), container("s", restartPolicy="Always")]),
    "annotated": pod("d", container(), annotations={"sgx.intel.com/other": "x", "confcom.dev/x": "y"}),
    "variables": pod("e", container(env=[VARIABLE, {"name": "A"}])),
    "many-variables": pod("f", container(env=[{"name": f"V{i}", "value": ""} for i in range(60_000)])),
    "many-containers": pod("g", *(container(f"c{i}", {"cpu": "1"}) for i in range(5_000))),
    "many-annotations": pod("h", container(), annotations={f"a.b/{i}": "" for i in range(15_000)}),
}
"""The last three are nearly as large as the API server takes, and so are what the conditions cost."""

SGX = {
    "canonical": pod("a", container(limits={EPC: "1"})),
    "hybrid": pod("b", container(limits={HYBRID: "1"})),
    "intel": pod("c", container(limits={INTEL: "1Mi"})),
    "aliyun": pod("d", container(limits={ALIYUN: "1"})),
    "enclave": pod("e", container(limits={ENCLAVE: "1"})),
    "provision": pod("f", container(limits={PROVISION: "1"})),
    "init": pod("g", container(), initContainers=[container("i", {EPC: "1"})]),
    "mode": pod("h", container(), annotations={"confcom.dev/quote-mode": "out-of-proc"}),
    "container-mode": pod("i", container(), annotations={"quote-mode.confcom.dev/app": "in-proc"}),
    "intel-annotation": pod("j", container(), annotations={"sgx.intel.com/quote-provider": "aesmd"}),
    "claim": pod("k", container(env=[VARIABLE]), resourceClaims=[{"name": "epc", "resourceClaimName": "epc"}]),
}
CLAIM = pytest.param("claim", marks=pytest.mark.kubernetes("1.34"))
"""Before, an API server drops a pod's claims before anybody sees them."""


@pytest.fixture(scope="module")
def down(cluster: Kubectl, addon: Addon, image: str) -> Iterator[WebhookOnCluster]:
    """The webhook's configurations without a replica, and without those of the add-on."""
    outcome = addon("disable", "--yes", "-o", "none")
    assert outcome.code == 0, outcome.err
    webhook = WebhookOnCluster(cluster, image)
    webhook.prepare()
    yield webhook
    webhook.remove()


@pytest.fixture(scope="module")
def webhook(down: WebhookOnCluster) -> WebhookOnCluster:
    """Two replicas that serve. Tests that want it down stand before those that ask for this."""
    down.start()
    return down


@pytest.fixture
def attempt(cluster: Kubectl) -> Callable[..., Outcome]:
    """Have a pod admitted, but not made."""

    def attempt(thing: dict[str, Any]) -> Outcome:
        return cluster.attempt("create", "--dry-run=server", "-o", "json", "-f", "-", given=encode(thing))

    return attempt


@pytest.fixture
def admitted(attempt: Callable[..., Outcome]) -> Callable[..., dict[str, Any]]:
    """The spec of a pod as it was admitted."""

    def admitted(thing: dict[str, Any]) -> dict[str, Any]:
        outcome = attempt(thing)
        assert outcome.code == 0, outcome.err
        spec: dict[str, Any] = json.loads(outcome.out)["spec"]
        return spec

    return admitted


class TestDown:
    @pytest.mark.promise("M1")
    @pytest.mark.parametrize("name", ORDINARY)
    @pytest.mark.complaint("Azure/AKS #2214")
    def test_ordinary_pods_do_not_notice(
        self, down: WebhookOnCluster, attempt: Callable[..., Outcome], name: str
    ) -> None:
        """Azure/AKS 2214: an add-on must not be able to stop what has nothing to do with it."""
        outcome = attempt(ORDINARY[name])
        assert outcome.code == 0, outcome.err[:2000]

    @pytest.mark.promise("M1")
    @pytest.mark.parametrize("name", [CLAIM if name == "claim" else name for name in SGX])
    @pytest.mark.complaint("intel-device-plugins #1695")
    def test_sgx_pods_are_not_made_half_equipped(
        self, down: WebhookOnCluster, attempt: Callable[..., Outcome], name: str
    ) -> None:
        """intel 1695: a webhook that may be left out leaves pods without their device."""
        outcome = attempt(SGX[name])
        assert outcome.code != 0
        assert f'failed calling webhook "pods.{CONFIGURATION}"' in outcome.err

    def test_ordinary_pods_can_be_debugged(self, down: WebhookOnCluster, cluster: Kubectl) -> None:
        cluster.apply(pod("plain", container(), nodeSelector={"nowhere": "true"}))
        cluster("debug", "-n", NAMESPACE, "plain", f"--image={IMAGE}", "--container=d1", "--attach=false")
        refused = cluster.attempt(
            "debug",
            "-n",
            NAMESPACE,
            "plain",
            f"--image={IMAGE}",
            "--container=d2",
            "--attach=false",
            "--env=SGX_AESM_ADDR=1",
        )
        assert f'failed calling webhook "debug.{CONFIGURATION}"' in refused.err


@pytest.mark.promise("M2")
@pytest.mark.parametrize(
    ("limits", "mib"), [({EPC: "5"}, "5"), ({HYBRID: "5"}, "5"), ({INTEL: "5Mi"}, "5"), ({ALIYUN: "5"}, "5")]
)
@pytest.mark.complaint("intel-device-plugins #1943", "marblerun #575")
def test_every_dialect_is_admitted_in_the_canonical_form(
    webhook: WebhookOnCluster, admitted: Callable[..., Any], limits: dict[str, str], mib: str
) -> None:
    profile = {"appArmorProfile": {"type": "Unconfined"}}
    sidecar = container("i", limits, restartPolicy="Always")
    spec = admitted(pod("p", container("app", limits, securityContext=profile), initContainers=[sidecar]))
    wanted = {EPC: mib, ENCLAVE: "1"}
    for found in (spec["containers"][0], spec["initContainers"][0]):
        assert found["resources"] == {"limits": wanted, "requests": wanted}
    assert spec["containers"][0]["securityContext"] == profile


@pytest.mark.promise("M9")
@pytest.mark.parametrize(
    "how",
    [{"confcom.dev/quote-mode": "out-of-proc"}, {"sgx.intel.com/quote-provider": "aesmd"}, "variable", CLAIM],
    ids=["ours", "intel", "variable", "claim"],
)
def test_out_of_proc_pods_are_wired(webhook: WebhookOnCluster, admitted: Callable[..., Any], how: Any) -> None:
    if how == "claim":
        given = SGX["claim"]
    else:
        annotations, env = ({}, [VARIABLE]) if how == "variable" else (how, [])
        given = pod("p", container(limits={EPC: "5"}, env=env), annotations=annotations)
    spec = admitted(given)
    assert VARIABLE in spec["containers"][0]["env"]
    assert spec["containers"][0]["resources"]["limits"][HELPER] == "1"
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]


@pytest.mark.promise("M8")
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (pod("p", container(limits={EPC: "10Mi"})), "because this resource counts MiB already. Write 10."),
        (pod("p", container(limits={INTEL: "10"})), "because this resource counts bytes. Write 10Mi."),
        (pod("p", container(limits={EPC: "10", PROVISION: "1"})), "for the grant e2e-admission/default."),
        (pod("p", container(limits={EPC: "10"}, env=[VARIABLE]), annotations={"confcom.dev/quote-mode": "in-proc"}),
         "An application uses one of them: remove the other."),
        (pod("p", container(limits={EPC: "10"}, image="a/b: 1.0")), "has a blank in it. Write a/b:1.0."),
        (pod("p", container(resources={"limits": {EPC: "5"}, "requests": {EPC: "4"}})), "Leave the request out."),
    ],
)  # fmt: skip
@pytest.mark.complaint("marblerun #183")
def test_refusals_reach_whoever_makes_the_pod(
    webhook: WebhookOnCluster, attempt: Callable[..., Outcome], given: dict[str, Any], sentence: str
) -> None:
    outcome = attempt(given)
    assert outcome.code != 0
    assert sentence in outcome.err


def test_warnings_reach_whoever_makes_the_pod(webhook: WebhookOnCluster, attempt: Callable[..., Outcome]) -> None:
    outcome = attempt(pod("p", container(limits={EPC: "5"}), container("beside", env=[VARIABLE])))
    assert outcome.code == 0, outcome.err
    assert "Warning: Container beside sets SGX_AESM_ADDR but requests no EPC" in outcome.err


@pytest.mark.promise("M3")
def test_a_grant_brings_the_provisioning_device(
    webhook: WebhookOnCluster, cluster: Kubectl, admitted: Callable[..., Any]
) -> None:
    cluster("create", "serviceaccount", "granted", "-n", NAMESPACE)
    annotations = {"confcom.dev/quote-mode": "in-proc"}
    spec = admitted(pod("p", container(limits={EPC: "5"}), annotations=annotations, serviceAccountName="granted"))
    assert spec["containers"][0]["resources"]["limits"] == {EPC: "5", ENCLAVE: "1", PROVISION: "1"}


def test_a_debug_container_can_ask_the_helper(webhook: WebhookOnCluster, cluster: Kubectl) -> None:
    """Where the pod has a volume for it: resources are nothing that it could have."""
    volume = {"name": "aesmd", "hostPath": {"path": AESMD}}
    cluster.apply(pod("wired", container(limits={EPC: "1"}), volumes=[volume], nodeSelector={"nowhere": "true"}))
    debug = ("debug", "-n", NAMESPACE, f"--image={IMAGE}", "--attach=false")
    cluster(*debug, "wired", "--container=d", "--env=SGX_AESM_ADDR=1")
    (found,) = cluster.get("pod", "wired", "-n", NAMESPACE)["spec"]["ephemeralContainers"]
    assert [mount["mountPath"] for mount in found["volumeMounts"]] == [AESMD]

    refused = cluster.attempt(*debug, "plain", "--container=d", "--env=SGX_AESM_ADDR=1")
    assert "Use `kubectl debug --copy-to`, which makes a new pod." in refused.err


class Load:
    """SGX pods that are admitted, but not made, all the time."""

    def __init__(self, kubeconfig: str, clients: int = 3) -> None:
        self._kubeconfig = kubeconfig
        self._clients = clients
        self.admitted = 0
        self.failures: list[str] = []

    async def during(self, work: Callable[[], None]) -> None:
        done = asyncio.Event()
        tasks = [asyncio.create_task(self._run(index, done)) for index in range(self._clients)]
        try:
            await asyncio.to_thread(work)
        finally:
            done.set()
            await asyncio.gather(*tasks)

    async def _run(self, index: int, done: asyncio.Event) -> None:
        client: Any = open_client(self._kubeconfig)
        thing = Pod.from_dict(pod(f"load-{index}", container(limits={INTEL: "1Mi"})))
        while not done.is_set():
            try:
                made = await client.create(thing, dry_run=True)
                assert made.spec.containers[0].resources.limits[ENCLAVE] == "1"
                self.admitted += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed review
                self.failures.append(f"{time.strftime('%H:%M:%S')} {error}")
            await asyncio.sleep(0.02)
        await client.close()


async def test_certificates_and_the_ca_change_under_load_without_a_failed_review(
    webhook: WebhookOnCluster, cluster: Kubectl
) -> None:
    def rotate() -> None:
        first = webhook.certificates()
        cluster.wait("two more certificates", lambda: min(webhook.certificates()) >= max(first) + 2, seconds=90)
        # As an installer does it: the API server trusts both before replicas have the new one.
        webhook.trust(after, *authorities_in(webhook.held()[0]))
        webhook.hold(after)
        cluster.wait("the kubelet to bring the CA", lambda: set(webhook.held()) == {after.certificate})
        issued = webhook.certificates()
        cluster.wait("certificates of it", lambda: min(webhook.certificates()) > max(issued), seconds=90)
        webhook.trust(after)
        time.sleep(3)

    after = new_ca()
    load = Load(cluster.kubeconfig)
    await load.during(rotate)
    assert not load.failures
    assert load.admitted > 100


async def test_a_rolling_update_fails_no_review(webhook: WebhookOnCluster, cluster: Kubectl) -> None:
    load = Load(cluster.kubeconfig)
    await load.during(webhook.restart)
    assert not load.failures
    assert load.admitted > 100
