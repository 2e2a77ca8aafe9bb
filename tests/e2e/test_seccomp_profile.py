"""The quote helper under the profile that is shipped for it, put in place by the kubelet and the container runtime."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster_addon import Addon
from cluster_jobs import attesting, job, with_aesmd
from cluster_plugin import own_cluster
from kubectl import ADDON_NAMESPACE, Kubectl
from relying_party import RelyingParty, quote_in

PROFILE = Path(__file__).resolve().parents[2] / "deploy" / "seccomp" / "quote-helper.json"
WHERE = "localhost/confcom/quote-helper.json"
ASK = """
import ctypes, errno
syscall = ctypes.CDLL(None, use_errno=True).syscall
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("Seccomp:")))
for name, arguments in {"setuid": (105, 65532), "semget": (64, 0, 1, 0)}.items():
    ctypes.set_errno(0)
    print(name, "refused" if syscall(*arguments) < 0 and ctypes.get_errno() == errno.EPERM else "allowed")
"""
"""To become the user that one is, and to make semaphores: the runtime's own profile allows both."""


@pytest.fixture
def profile_on_node(cluster: Kubectl) -> Iterator[Path]:
    home = own_cluster(cluster)
    if home is None:
        pytest.skip("the node of this cluster is not ours to put a profile on")
    folder = home / "data" / "node" / "var" / "lib" / "kubelet" / "seccomp" / "confcom"
    folder.mkdir(parents=True, exist_ok=True)
    yield Path(shutil.copy(PROFILE, folder))
    shutil.rmtree(folder)


def asked(cluster: Kubectl, addon: Addon) -> dict[str, str]:
    """What a process in the helper's container may do, and the kernel's word for its filter (2)."""
    (helper,) = addon.pods("quote-helper")
    words = (
        "exec",
        "-n",
        ADDON_NAMESPACE,
        helper["metadata"]["name"],
        "-c",
        "quote-helper",
        "--",
        "python3",
        "-c",
        ASK,
    )
    mode, *lines = cluster(*words).splitlines()
    assert mode == "2"
    return dict(line.split() for line in lines)


@pytest.mark.promise("M9")
def test_it_attests_under_it_and_can_do_less_than_under_the_runtimes_own(
    enabled: Addon,
    cluster: Kubectl,
    profile_on_node: Path,
    run: Callable[..., str],
    relying_party: RelyingParty,
    image: str,
) -> None:
    assert asked(cluster, enabled)["setuid"] == "allowed"
    outcome = enabled("update", f"--quote-helper-seccomp={WHERE}", "-o", "none")
    assert outcome.code == 0, outcome.err
    refused = asked(cluster, enabled)
    assert refused["setuid"] == "refused"
    assert refused["semget"] == "refused"
    quote = quote_in(run(job("under", "e2e", with_aesmd(attesting(image, "5e")))))
    assert relying_party.verify(quote, "5e")["exit_code"] == 0


def test_a_profile_that_is_not_on_the_node_is_named_and_the_present_helper_goes_on(
    enabled: Addon, cluster: Kubectl, run: Callable[..., str], relying_party: RelyingParty, image: str
) -> None:
    enabled.fails("update", "--quote-helper-seccomp=localhost/confcom/absent.json", saying="absent.json")
    quote = quote_in(run(job("beside", "e2e", with_aesmd(attesting(image, "5f")))))
    assert relying_party.verify(quote, "5f")["exit_code"] == 0
    enabled.enable("--quote-helper-seccomp=runtime/default")
