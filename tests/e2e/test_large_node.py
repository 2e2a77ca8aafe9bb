"""A node too large for one device per MiB writes its EPC to its status, and pods notice no difference."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from cluster_addon import Addon
from cluster_jobs import attesting, job, with_aesmd
from cluster_plugin import forget_devices, own_cluster
from kubectl import Kubectl
from relying_party import RelyingParty, quote_in


@pytest.fixture(scope="module")
def enabled(addon: Addon, cluster: Kubectl) -> Addon:
    """The add-on on a node of 64 GiB, whose kubelet never knew EPC as devices.

    One that did refuses pods for five minutes after the last device was gone.
    """
    addon("disable", "--yes", "-o", "none")
    home = own_cluster(cluster)
    if home is not None:
        forget_devices(home, cluster)
    addon.enable("--simulated-epc=32Gi,32Gi")
    return addon


@pytest.mark.promise("M2")
@pytest.mark.complaint("kubernetes #109304", "HAMi #99", "HAMi #140")
def test_a_node_of_64_gib_serves_the_same_job(
    enabled: Addon, cluster: Kubectl, run: Callable[..., str], relying_party: RelyingParty, image: str
) -> None:
    assert enabled.allocatable() == 65536 - 8  # those of the quote helpers
    assert enabled.allocatable("sgx.intel.com/enclave") == 110
    quote = quote_in(run(job("large", "e2e", with_aesmd(attesting(image, "0f", mib=40_000)))))
    assert relying_party.verify(quote, "0f")["exit_code"] == 0
    # Kubelets name every device of a container in its pod's status: 40,000 of them would be 1.6 MB.
    (made,) = cluster.items("pods", "-n", "e2e", "-l", "app=large")
    assert len(json.dumps(made["status"])) < 10_000
