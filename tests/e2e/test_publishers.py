"""EPC however it is published: large nodes write it to the node's status, and pods notice no difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cluster_addon import Addon
from cluster_jobs import attesting, job, with_aesmd
from kubectl import Kubectl
from relying_party import RelyingParty, quote_in


@pytest.fixture
def large_node(enabled: Addon, cluster: Kubectl) -> Iterator[Addon]:
    enabled.enable("--simulated-epc=32Gi,32Gi")
    cluster.wait("the large node", lambda: enabled.allocatable() == 65536)
    yield enabled
    enabled.enable()
    cluster.wait("the small node", lambda: enabled.allocatable() == 168)


@pytest.mark.promise("M2")
def test_a_node_of_64_gib_serves_the_same_job(
    large_node: Addon, run: Callable[..., str], relying_party: RelyingParty, image: str
) -> None:
    assert large_node.allocatable("sgx.intel.com/enclave") == 110
    quote = quote_in(run(job("large", "e2e", with_aesmd(attesting(image, "0f", mib=40_000)))))
    assert relying_party.verify(quote, "0f")["exit_code"] == 0
