"""Changes of the add-on beside each other and in trouble, against a stand-in of the Kubernetes API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from confcom.addon.changes import Addon, to_enable, to_update
from confcom.cli import root as main
from confcom.cluster.client import ClusterObjects
from confcom.errors import ClusterError, ExitCode
from confcom.manifests.addon import AddonState, parse_state, state_object
from confcom.manifests.addon_config import AddonConfig
from confcom.manifests.objects import namespace
from object_api import GUARD, ObjectApi

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STATE = ("configmaps", "confcom-system", "confcom-addon")
PLUGIN = ("daemonsets", "confcom-system", "sgx-device-plugin")


@pytest.fixture
def api() -> Iterator[ObjectApi]:
    with ObjectApi() as found:
        yield found


@pytest.fixture
def enabled(api: ObjectApi) -> ObjectApi:
    api.put("namespaces", namespace())
    api.put("configmaps", state_object(AddonState(True, "1", AddonConfig())))
    return api


async def run(api: ObjectApi, folder: Path, settle: Any, wait: float | None = None, **changes: Any) -> list[str]:
    """One command; what it told."""
    told: list[str] = []
    async with ClusterObjects.open(api.kubeconfig(folder), None, "confcom-addon") as cluster:
        addon = Addon(cluster, version="1", now=NOW, report=told.append)
        async with asyncio.timeout(GUARD):
            await addon.change(partial(settle, changes), wait=wait)
    return told


def remembered(api: ObjectApi) -> AddonConfig:
    return parse_state(api.objects[STATE]["data"]).config


def environment(api: ObjectApi) -> dict[str, str]:
    (one,) = api.objects[PLUGIN]["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value", "") for entry in one["env"]}


CHANGES: list[dict[str, Any]] = [
    {"epc_reserve_mib": 5},
    {"overcommit": 1.5},
    {"webhook_replicas": 3},
    {"metrics": True},
]


@pytest.mark.parametrize("first", [to_enable, to_update])
async def test_commands_beside_each_other_lose_nothing(api: ObjectApi, tmp_path: Path, first: Any) -> None:
    api.put("namespaces", namespace())
    if first is to_update:
        api.put("configmaps", state_object(AddonState(True, "1", AddonConfig())))
    await asyncio.gather(*(run(api, tmp_path, first, **changes) for changes in CHANGES))
    found = remembered(api)
    assert (found.epc_reserve_mib, found.overcommit, found.webhook_replicas, found.metrics) == (5, 1.5, 3, True)
    assert environment(api)["CONFCOM_DEVICE_PLUGIN_RESERVE_MIB"] == "5"
    assert environment(api)["CONFCOM_DEVICE_PLUGIN_OVERCOMMIT"] == "1.5"
    assert api.objects["deployments", "confcom-system", "sgx-webhook"]["spec"]["replicas"] == 3
    assert ("daemonsets", "confcom-system", "sgx-metrics") in api.objects


async def test_what_another_run_wrote_while_this_one_applied_counts(enabled: ObjectApi, tmp_path: Path) -> None:
    def interfere(verb: str, place: tuple[str, str, str]) -> None:
        if place == PLUGIN:
            enabled.before_write = lambda verb, place: None
            config = remembered(enabled).changed({"epc_reserve_mib": 7})
            enabled.put("configmaps", state_object(AddonState(True, "1", config)))

    enabled.before_write = interfere
    told = await run(enabled, tmp_path, to_update, overcommit=2.0)
    assert "another run changed the settings meanwhile: going on with those" in told
    assert environment(enabled)["CONFCOM_DEVICE_PLUGIN_RESERVE_MIB"] == "7"
    assert environment(enabled)["CONFCOM_DEVICE_PLUGIN_OVERCOMMIT"] == "2"


async def test_a_state_that_never_rests_ends_the_command(enabled: ObjectApi, tmp_path: Path) -> None:
    def interfere(verb: str, place: tuple[str, str, str]) -> None:
        if place == STATE:
            reserve = remembered(enabled).epc_reserve_mib + 1
            config = remembered(enabled).changed({"epc_reserve_mib": reserve})
            enabled.put("configmaps", state_object(AddonState(True, "1", config)))

    enabled.before_write = interfere
    with pytest.raises(ClusterError, match="other runs change the settings"):
        await run(enabled, tmp_path, to_update, overcommit=2.0)
    assert remembered(enabled).overcommit == 1.0


async def test_a_disable_in_between_is_said(enabled: ObjectApi, tmp_path: Path) -> None:
    def interfere(verb: str, place: tuple[str, str, str]) -> None:
        if place == PLUGIN:
            enabled.put("configmaps", state_object(AddonState(False, "1", remembered(enabled))))

    enabled.before_write = interfere
    with pytest.raises(ClusterError, match="another run disabled the add-on"):
        await run(enabled, tmp_path, to_update, overcommit=2.0)


async def test_a_disable_keeps_what_an_update_has_just_written(enabled: ObjectApi, tmp_path: Path) -> None:
    def interfere(verb: str, place: tuple[str, str, str]) -> None:
        if place == STATE:
            enabled.before_write = lambda verb, place: None
            config = remembered(enabled).changed({"epc_reserve_mib": 7})
            enabled.put("configmaps", state_object(AddonState(True, "1", config)))

    enabled.before_write = interfere
    async with ClusterObjects.open(enabled.kubeconfig(tmp_path), None, "confcom-addon") as cluster:
        await Addon(cluster, version="1", now=NOW, report=lambda line: None).disable(purge=False, wait=None)
    assert parse_state(enabled.objects[STATE]["data"]).enabled is False
    assert remembered(enabled).epc_reserve_mib == 7


@pytest.mark.parametrize("part", ["namespaces", "daemonsets"])
async def test_the_time_is_kept_also_while_something_ends(enabled: ObjectApi, tmp_path: Path, part: str) -> None:
    """The second is asked for, and far from the two minutes for which the command waits without it."""
    ending = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    if part == "namespaces":
        enabled.put(part, namespace() | {"metadata": namespace()["metadata"] | ending})
    else:
        await run(enabled, tmp_path, to_update)
        stuck = enabled.objects[PLUGIN]
        enabled.before_write = lambda verb, place: enabled.put(part, stuck | {"metadata": stuck["metadata"] | ending})
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(ClusterError, match="is still being deleted"):
        await run(enabled, tmp_path, to_update, wait=1.0, webhook_replicas=3)
    assert loop.time() - started < 60


def test_a_purge_that_cannot_ask_refuses_while_pods_use_the_add_on(
    enabled: ObjectApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"limits": {"kubernetes.azure.com/sgx_epc_mem_in_MiB": "5"}}
    metadata = {"name": "user", "namespace": "apps"}
    enabled.put("pods", {"metadata": metadata, "spec": {"containers": [{"name": "app", "resources": limits}]}})
    words = ["addon", "disable", "--purge", "--no-wait", "--kubeconfig", enabled.kubeconfig(tmp_path)]
    assert main.run(words) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "1 pods use the add-on, and there is no terminal to ask" in said
    assert parse_state(enabled.objects[STATE]["data"]).enabled
    assert main.run([*words, "--yes"]) == ExitCode.OK
    assert STATE not in enabled.objects
