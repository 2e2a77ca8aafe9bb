"""Enabling, disabling and purging the add-on."""

from __future__ import annotations

import json

import pytest

from cluster_addon import Addon
from cluster_plugin import own_cluster
from kubectl import ADDON_NAMESPACE, Kubectl
from sgx_on_node import start_kubelet_again


@pytest.mark.promise("M1")
def test_enabling_again_changes_nothing(enabled: Addon, cluster: Kubectl) -> None:
    pods = {pod["metadata"]["uid"] for pod in cluster.items("pods", "-n", ADDON_NAMESPACE)}
    enabled.enable()
    assert {pod["metadata"]["uid"] for pod in cluster.items("pods", "-n", ADDON_NAMESPACE)} == pods


@pytest.mark.promise("M1")
def test_show_and_list_say_what_is_enabled(enabled: Addon) -> None:
    shown = json.loads(enabled("show", "-o", "json").out)
    assert (shown["name"], shown["api_key"]) == ("confcom", "ACCSGXDevicePlugin")
    assert shown["config"]["ACCSGXQuoteHelperEnabled"] == "true"
    listed = json.loads(enabled("list", "-o", "json").out)
    assert {"name": "confcom", "api_key": "ACCSGXDevicePlugin", "enabled": True} in listed


@pytest.mark.promise("M1")
@pytest.mark.promise("M6")
def test_the_helper_comes_and_goes_alone(enabled: Addon) -> None:
    assert enabled("update", "--disable-sgxquotehelper", "-o", "none").code == 0
    assert enabled.pods("quote-helper") == []
    assert len(enabled.pods("device-plugin")) == 1
    assert enabled("update", "--enable-sgxquotehelper", "-o", "none").code == 0
    assert len(enabled.pods("quote-helper")) == 1


@pytest.mark.promise("M7")
def test_a_helper_that_was_started_without_its_devices_is_replaced(enabled: Addon, cluster: Kubectl) -> None:
    """A kubelet that forgot who provides a resource takes it for a mere number, and starts pods with nothing for it."""
    home = own_cluster(cluster)
    if home is None:
        pytest.skip("the kubelet of this cluster is not ours to restart")
    assert enabled("disable", "--yes", "-o", "none").code == 0
    start_kubelet_again(home)
    cluster.wait("the amount that no plugin provides", lambda: enabled.allocatable() == 168)
    outcome = enabled("enable", "-o", "none")
    assert outcome.code == 0, outcome.err
    assert "CreateContainerConfigError" in outcome.err
    (helper,) = enabled.pods("quote-helper")
    assert cluster("exec", "-n", ADDON_NAMESPACE, helper["metadata"]["name"], "--", "ls", "/dev/sgx_enclave")


@pytest.mark.promise("M1")
@pytest.mark.complaint("marblerun #199", "emojivoto #26")
def test_disable_keeps_the_settings_and_purge_leaves_nothing(enabled: Addon, cluster: Kubectl) -> None:
    before = json.loads(enabled("show", "-o", "json").out)["config"]
    outcome = enabled("disable", "--yes", "-o", "none")
    assert outcome.code == 0, outcome.err
    assert cluster.items("pods", "-n", ADDON_NAMESPACE) == []
    cluster.wait("EPC to be gone", lambda: enabled.allocatable() == 0)
    assert enabled("enable", "-o", "none").code == 0
    assert json.loads(enabled("show", "-o", "json").out)["config"] == before
    assert enabled("disable", "--purge", "--yes", "-o", "none").code == 0
    assert enabled.objects() == []
    assert cluster.find("namespace", ADDON_NAMESPACE) is None
    enabled.enable()
