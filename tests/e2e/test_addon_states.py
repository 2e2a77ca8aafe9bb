"""The states of the add-on, command by command: what `az aks addon` does in each, without its traps.

Where ours differs on purpose: enabling what is enabled is no error; an update keeps what it does not mention; a disable
keeps the settings, and is no error where there is nothing; names and keys compare without case.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from cluster_addon import Addon
from kubectl import ADDON_NAMESPACE, Kubectl

NOT_ENABLED = 'Addon "confcom" is not enabled in this cluster.'
SIMULATED = ("--platform=simulated", "--simulated-epc=64Mi", "--webhook-replicas=1")
STATE = ("configmap", "confcom-addon", "-n", ADDON_NAMESPACE)
WORLD = ("secret", "confcom-simulated-world", "-n", ADDON_NAMESPACE)


@pytest.fixture
def absent(addon: Addon) -> Addon:
    """No add-on, and no memory of one."""
    outcome = addon("disable", "--purge", "--yes", "-o", "none")
    assert outcome.code == 0, outcome.err
    return addon


@pytest.fixture
def plain(absent: Addon) -> Addon:
    """Enabled as it comes, on simulated nodes."""
    outcome = absent("enable", *SIMULATED, f"--image={absent.image}", "-o", "none")
    assert outcome.code == 0, outcome.err
    return absent


def profile(text: str) -> Any:
    return json.loads(text)["addonProfiles"]["ACCSGXDevicePlugin"]


def helper(addon: Addon) -> str:
    shown = json.loads(addon("show").out)
    return str(shown["config"]["ACCSGXQuoteHelperEnabled"])


def bundles(cluster: Kubectl) -> list[str]:
    """The CA that each entry of both webhook configurations trusts."""
    kinds = ("mutatingwebhookconfiguration", "validatingwebhookconfiguration")
    found = [cluster.get(kind, "sgx-webhook.confcom.dev")["webhooks"] for kind in kinds]
    return [entry["clientConfig"].get("caBundle", "") for entries in found for entry in entries]


def rendered_manifests(*words: str) -> str:
    command = [sys.executable, "-m", "confcom", "addon", "manifests", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def versions(cluster: Kubectl) -> dict[str, int]:
    """Every object of the add-on, with the number of its changes."""
    kinds = "namespaces,configmaps,secrets,serviceaccounts,services,daemonsets,deployments,networkpolicies,"
    kinds += "clusterroles,clusterrolebindings,validatingadmissionpolicies,mutatingwebhookconfigurations"
    found = cluster.items(kinds, "-A", "-l", "app.kubernetes.io/managed-by=confcom-addon")
    return {f"{one['kind']}/{one['metadata']['name']}": one["metadata"].get("generation", 0) for one in found}


@pytest.mark.promise("M1")
def test_an_addon_that_is_absent(absent: Addon) -> None:
    assert json.loads(absent("list").out) == [{"name": "confcom", "api_key": "ACCSGXDevicePlugin", "enabled": False}]
    for command in (("show",), ("update",), ("update", "--enable-sgxquotehelper")):
        outcome = absent(*command)
        assert outcome.code == 2
        assert NOT_ENABLED in outcome.err
    for command in (("disable",), ("disable", "--purge")):
        outcome = absent(*command)
        assert outcome.code == 0
        assert "not installed" in outcome.err
        assert profile(outcome.out)["enabled"] is False


@pytest.mark.promise("M1")
def test_a_dry_run_changes_nothing(absent: Addon, cluster: Kubectl) -> None:
    outcome = absent("enable", *SIMULATED, f"--image={absent.image}", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "+ create DaemonSet confcom-system/sgx-device-plugin" in outcome.out
    assert cluster.find("namespace", ADDON_NAMESPACE) is None
    assert versions(cluster) == {}


@pytest.mark.promise("M1")
@pytest.mark.promise("M6")
def test_the_quote_helper_is_what_was_said_last(plain: Addon) -> None:
    assert helper(plain) == "false"
    outcome = plain("update", "--addon", "confcom", "--enable-sgxquotehelper", "-n", "cluster", "-g", "group")
    assert outcome.code == 0, outcome.err
    assert profile(outcome.out)["config"]["ACCSGXQuoteHelperEnabled"] == "true"
    assert profile(outcome.out)["enabled"] is True
    assert len(plain.pods("quote-helper")) == 1
    # The trap of az: there, an update that does not mention the helper switches it off.
    assert plain("update", "--quote-helper-epc-mib=5", "-o", "none").code == 0
    assert helper(plain) == "true"
    assert plain("enable", "-o", "none").code == 0
    assert helper(plain) == "true"
    outcome = plain("update", "--disable-sgxquotehelper")
    assert profile(outcome.out)["config"]["ACCSGXQuoteHelperEnabled"] == "false"
    assert "deleted DaemonSet confcom-system/sgx-quote-helper" in outcome.err
    assert plain.pods("quote-helper") == []


@pytest.mark.promise("M1")
def test_enabling_twice_writes_nothing_new(plain: Addon, cluster: Kubectl) -> None:
    assert all(bundles(cluster))
    before = versions(cluster)
    assert before
    outcome = plain("enable")
    assert outcome.code == 0
    assert profile(outcome.out)["enabled"] is True
    assert versions(cluster) == before
    planned = plain("update", "--dry-run").out.splitlines()
    assert planned[-1].startswith("0 to create, 0 to delete, 0 to change, ")


@pytest.mark.promise("M1")
def test_keys_compare_without_case(plain: Addon, cluster: Kubectl) -> None:
    assert plain("update", "--enable-sgxquotehelper", "--epc-reserve-mib=3", "-o", "none").code == 0
    data = cluster.get(*STATE)["data"]
    lower = {key: None for key in data if key != key.lower()} | {key.lower(): value for key, value in data.items()}
    cluster("patch", *STATE, "--type=merge", "-p", json.dumps({"data": lower}))
    assert helper(plain) == "true"
    outcome = plain("update", "-a", "ACCSGXDEVICEPLUGIN", "--epc-reserve-mib=2")
    assert outcome.code == 0, outcome.err
    config = profile(outcome.out)["config"]
    assert (config["ACCSGXQuoteHelperEnabled"], config["epcReserveMiB"]) == ("true", "2")


@pytest.mark.promise("M1")
def test_a_disabled_addon_remembers_until_it_is_purged(plain: Addon, cluster: Kubectl) -> None:
    assert plain("update", "--enable-sgxquotehelper", "-o", "none").code == 0
    world = cluster.get(*WORLD)["data"]
    outcome = plain("disable")
    assert outcome.code == 0, outcome.err
    assert profile(outcome.out)["enabled"] is False
    assert profile(outcome.out)["config"]["ACCSGXQuoteHelperEnabled"] == "true"
    assert cluster.items("pods", "-n", ADDON_NAMESPACE) == []
    assert NOT_ENABLED in plain("show").err
    assert NOT_ENABLED in plain("update").err
    assert plain("disable", "-o", "none").code == 0
    assert cluster.get(*WORLD)["data"] == world
    assert plain("enable", "-o", "none").code == 0
    assert helper(plain) == "true"
    assert cluster.get(*WORLD)["data"] == world
    assert plain("disable", "--purge", "-o", "none").code == 0
    assert plain("enable", *SIMULATED, f"--image={plain.image}", "-o", "none").code == 0
    assert helper(plain) == "false"
    assert cluster.get(*WORLD)["data"] != world


@pytest.mark.promise("M1")
def test_what_a_setting_no_longer_has_is_pruned(plain: Addon, cluster: Kubectl) -> None:
    assert plain("update", "--enable-collateral", "--publisher=devices", "-o", "none").code == 0
    names = versions(cluster)
    assert "Deployment/confcom-collateral" in names
    assert "ClusterRole/confcom:sgx-device-plugin" not in names
    outcome = plain("update", "--disable-collateral", "--disable-webhook", "--publisher=auto", "-o", "none")
    assert outcome.code == 0, outcome.err

    def left() -> list[str]:
        return [name for name in versions(cluster) if "collateral" in name or "webhook" in name]

    cluster.wait("what is disabled to be gone", lambda: not left())
    assert "ClusterRole/confcom:sgx-device-plugin" in versions(cluster)


def test_others_keep_their_part_of_an_object(plain: Addon, cluster: Kubectl) -> None:
    """The webhook's CA, and what an operator wrote beside our fields, outlive an update."""
    before = bundles(cluster)
    cluster("annotate", "-n", ADDON_NAMESPACE, "daemonset/sgx-device-plugin", "example.com/owner=us")
    assert plain("update", "-o", "none").code == 0
    assert bundles(cluster) == before
    words = ("daemonset/sgx-device-plugin", "-n", ADDON_NAMESPACE, "--show-managed-fields")
    metadata = cluster.get(*words)["metadata"]
    assert metadata["annotations"]["example.com/owner"] == "us"
    ours = [entry for entry in metadata["managedFields"] if entry["manager"] == "confcom-addon"]
    assert [entry["operation"] for entry in ours] == ["Apply"]


@pytest.mark.complaint("marblerun #199")
def test_the_rendered_manifests_are_the_addon_too(absent: Addon, cluster: Kubectl) -> None:
    """What another tool applied is known, shown, and can be changed and purged."""
    words = ("--publisher=devices", "--enable-sgxquotehelper", f"--image={absent.image}")
    rendered = rendered_manifests(*words)
    cluster("apply", "--server-side", "-f", "-", given=rendered)
    shown = json.loads(absent("show").out)
    assert shown["config"]["ACCSGXQuoteHelperEnabled"] == "true"
    assert set(shown["ready"]) == {"sgx-device-plugin", "sgx-quote-helper", "sgx-webhook"}
    planned = absent("update", "--dry-run")
    assert planned.out.splitlines()[-1].startswith("0 to create, 0 to delete, 0 to change, ")
    assert absent("disable", "--purge", "--yes", "-o", "none").code == 0
    assert versions(cluster) == {}
