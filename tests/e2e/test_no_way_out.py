"""A cluster that nothing leaves: no route, no names, and network policies that are enforced behind the Services."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster_addon import Addon
from cluster_jobs import attesting, job, one_container, with_aesmd
from cluster_plugin import own_cluster
from kubectl import ADDON_NAMESPACE, Kubectl
from network_walls import walls
from relying_party import RelyingParty, quote_in

ASK = """
import socket, sys
for host in sys.argv[1:]:
    try:
        socket.create_connection((host, 443), 5).close()
        print(host, "answers")
    except OSError as error:
        print(host, "is away:", error)
"""
API = "10.96.0.1"
OUTSIDE = ("192.0.2.1", "api.trustedservices.intel.com")


@pytest.fixture(autouse=True)
def behind_walls(cluster: Kubectl) -> None:
    if own_cluster(cluster) is None:
        pytest.skip("the network of this cluster is not ours to close")


def api_ports(cluster: Kubectl) -> set[int]:
    """The Service's port and those behind it."""
    slices = cluster.items("endpointslices", "-n", "default", "-l", "kubernetes.io/service-name=kubernetes")
    service = cluster.get("service", "kubernetes", "-n", "default")["spec"]
    return {port["port"] for one in (service, *slices) for port in one["ports"]}


def opened(cluster: Kubectl, name: str) -> set[int]:
    """The ports to which a policy lets its pods."""
    (rule,) = cluster.get("networkpolicy", name, "-n", ADDON_NAMESPACE)["spec"]["egress"]
    return {port["port"] for port in rule["ports"]}


def answers(run: Callable[..., str], image: str, *hosts: str) -> str:
    return run(job("ask", "e2e", one_container(image, "python3", "-c", ASK, *hosts)))


def test_policies_open_the_ports_where_the_api_server_really_is(enabled: Addon, cluster: Kubectl) -> None:
    for name in ("sgx-webhook", "sgx-device-plugin"):
        assert opened(cluster, name) == {443, 6443} | api_ports(cluster)


def test_the_walls_are_where_network_plugins_have_theirs(run: Callable[..., str], cluster: Kubectl, image: str) -> None:
    """Who opens the Service's port alone reaches no API server that listens at another one."""
    with walls({443}):
        assert f"{API} is away" in answers(run, image, API)
    with walls(api_ports(cluster)):
        assert f"{API} answers" in answers(run, image, API)


@pytest.mark.complaint("Azure/AKS #2363")
def test_the_addon_comes_up_and_serves_where_nothing_leaves_the_cluster(
    enabled: Addon, cluster: Kubectl, run: Callable[..., str], relying_party: RelyingParty, image: str
) -> None:
    with walls(opened(cluster, "sgx-webhook")):
        seen = answers(run, image, API, *OUTSIDE)
        assert f"{API} answers" in seen
        assert all(f"{host} is away" in seen for host in OUTSIDE)
        before = {pod["metadata"]["uid"] for pod in cluster.items("pods", "-n", ADDON_NAMESPACE)}
        cluster("delete", "pods", "--all", "-n", ADDON_NAMESPACE, "--wait")
        # The kubelet rejects helpers until the scheduler knows that the plugin is away; enabling clears them away.
        outcome = enabled("enable", "-o", "none")
        assert outcome.code == 0, outcome.err
        after = {pod["metadata"]["uid"] for pod in cluster.items("pods", "-n", ADDON_NAMESPACE)}
        assert not before & after
        assert not any(pod["status"]["phase"] == "Failed" for pod in enabled.pods("quote-helper"))
        quote = quote_in(run(job("walled", "e2e", with_aesmd(attesting(image, "0b")))))
    assert relying_party.verify(quote, "0b")["exit_code"] == 0
