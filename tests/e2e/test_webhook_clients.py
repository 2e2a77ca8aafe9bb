"""Where an operator names the authority of the API server's certificate, the webhook answers the API server alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from cluster_addon import Addon
from cluster_jobs import EPC, job, limits, one_container, pod
from cluster_plugin import own_cluster
from kubectl import ADDON_NAMESPACE, Kubectl

AUTHORITY = "e2e-client-ca"
ASK = """
import http.client, ssl, sys
connection = http.client.HTTPSConnection(sys.argv[1], timeout=60, context=ssl._create_unverified_context())
try:
    connection.request("POST", "/mutate-pods", "{}")
    print("answered", connection.getresponse().status)
except OSError as error:
    print("refused", error)
"""


@pytest.fixture
def authority(cluster: Kubectl, enabled: Addon) -> Iterator[str]:
    """A ConfigMap with the authority of the certificate that the test cluster's API server presents to the webhook."""
    if own_cluster(cluster) is None:
        pytest.skip("whether the API server of this cluster presents a certificate is not known")
    published = cluster.get("configmap", "extension-apiserver-authentication", "-n", "kube-system")["data"]
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": AUTHORITY, "namespace": ADDON_NAMESPACE},
            "data": {"ca.crt": published["requestheader-client-ca-file"]},
        }
    )
    yield AUTHORITY
    enabled.enable()
    cluster("delete", "configmap", AUTHORITY, "-n", ADDON_NAMESPACE)


def test_only_the_api_server_is_answered(
    authority: str, enabled: Addon, cluster: Kubectl, run: Callable[..., str], image: str
) -> None:
    address = cluster.get("service", "sgx-webhook", "-n", ADDON_NAMESPACE)["spec"]["clusterIP"]
    stranger = one_container(image, "python3", "-c", ASK, address)
    assert run(job("stranger", "e2e", stranger)).split() == ["answered", "400"]
    enabled.enable(f"--webhook-client-ca={authority}")
    # The replica before answers until the node sends it nothing any more.
    answers = (run(job("stranger", "e2e", stranger)) for _ in range(10))
    assert any(answer.startswith("refused") for answer in answers)
    # If the webhook did not answer the API server, the API server would refuse the pod.
    limits_of_intel = {"sgx.intel.com/epc": "10Mi", "sgx.intel.com/enclave": "1"}
    asked = pod("asked", "e2e", one_container(image, "true", resources={"limits": limits_of_intel}))
    made = json.loads(cluster("create", "--dry-run=server", "-o", "json", "-f", "-", given=json.dumps(asked)))
    assert made["spec"]["containers"][0]["resources"]["limits"][EPC] == "10"
    too_much = pod("asked", "e2e", one_container(image, "true", resources=limits(1000)))
    refused = cluster.attempt("create", "--dry-run=server", "-f", "-", given=json.dumps(too_much))
    assert "the largest node of this cluster has 168 MiB" in refused.err
