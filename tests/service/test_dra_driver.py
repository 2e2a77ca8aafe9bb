"""EPC by claims: the driver between a kubelet and the API, both on real sockets."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from confcom.errors import ConfigError, PlatformUnavailable
from dra_emulator import DraEmulator, PrepareError
from kubelet_emulator import wait_until
from running_plugin import ENCLAVE, EPC, RunningPlugin
from slice_api import NODE_UID, SLICES, SliceApi

DRIVER = "sgx.confcom.dev"
NODE = "worker-1"
SLICE = f"{NODE}-{DRIVER}"
MIB = 1 << 20


@pytest.fixture
def kubelet(sockets: Path) -> Iterator[DraEmulator]:
    emulator = DraEmulator(sockets)
    emulator.start()
    yield emulator
    emulator.stop()


@pytest.fixture
def api() -> Iterator[SliceApi]:
    with SliceApi(NODE) as api:
        yield api


def driver(folder: Path, kubelet: DraEmulator, api: SliceApi, **settings: Any) -> RunningPlugin:
    settings = {"epc": "64Gi,64Gi", "cdi_dir": str(folder / "cdi")} | settings
    settings |= {"node_name": NODE, "kubeconfig": api.kubeconfig(folder), "publisher": "dra"}
    return RunningPlugin(folder, kubelet, **settings)


def result(amount: str | None, *, device: str = "epc-node0", request: str = "epc", **more: Any) -> dict[str, Any]:
    found = {"driver": DRIVER, "pool": NODE, "device": device, "request": request} | more
    return found if amount is None else found | {"consumedCapacity": {"epc": amount}, "shareID": f"share-{request}"}


def claim(api: SliceApi, number: int, *results: dict[str, Any], namespace: str = "default") -> dict[str, Any]:
    made = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": f"claim-{number}", "namespace": namespace, "uid": f"{number:08x}-1111"},
        "spec": {"devices": {}},
        "status": {"allocation": {"devices": {"results": list(results)}}},
    }
    api.put_claim(made)
    return made


def cdi(folder: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in (folder / "cdi").glob("*")}


def edits(folder: Path, device: str) -> dict[str, Any]:
    """What a runtime that knows nothing but the folder gives a container for a CDI device."""
    kind, _, name = device.partition("=")
    found = [
        entry["containerEdits"]
        for spec in cdi(folder).values()
        if spec["kind"] == kind
        for entry in spec["devices"]
        if entry["name"] == name
    ]
    assert len(found) == 1
    return dict(found[0])


@pytest.mark.promise("M2")
def test_each_numa_node_is_one_device_that_claims_share_by_amount(
    tmp_path: Path, kubelet: DraEmulator, api: SliceApi
) -> None:
    with driver(tmp_path, kubelet, api, epc="64Gi,32Gi", reserve_mib=1024, overcommit=1.5) as plugin:
        api.wait(lambda: api.devices() == ["epc-node0", "epc-node1"])
        kubelet.wait(lambda: DRIVER in kubelet.drivers)
        wait_until(lambda: plugin.started)
        assert plugin.started == [f"{DRIVER} = {63 * 1536 + 48 * 1024} (98304 MiB of EPC), as dra"]
        made = api.slices[SLICE]
        assert made["metadata"]["ownerReferences"] == [
            {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": NODE_UID}
        ]
        assert made["spec"]["nodeName"] == NODE
        first, second = made["spec"]["devices"]
        assert first["allowMultipleAllocations"]
        assert first["capacity"] == {
            "epc": {
                "value": f"{63 * 1536}Mi",
                "requestPolicy": {"default": "1Mi", "validRange": {"min": "1Mi", "step": "1Mi"}},
            }
        }
        assert first["attributes"] == {
            "kind": {"string": "epc"},
            "driver": {"string": "in-kernel"},
            "simulated": {"bool": True},
            "trueMiB": {"int": 65536},
            "overcommit": {"string": "1.5"},
            "numaNode": {"int": 0},
        }
        assert second["capacity"]["epc"]["value"] == f"{48 * 1024}Mi"
        assert second["attributes"]["numaNode"] == {"int": 1}
        # Nothing of it is counted a second time.
        assert not kubelet.endpoints
        assert api.amount(EPC) is None
        api.wait(lambda: api.node["metadata"]["labels"].get("confcom.dev/sgx-epc-mib") == "98304")


@pytest.mark.promise("M3")
def test_two_claims_share_a_device_and_each_container_learns_its_own_amount(
    tmp_path: Path, kubelet: DraEmulator, api: SliceApi
) -> None:
    with driver(tmp_path, kubelet, api) as plugin:
        kubelet.wait(lambda: DRIVER in kubelet.drivers)
        one, two = claim(api, 1, result("10Mi")), claim(api, 2, result("1Gi"))
        answers = kubelet.prepare(DRIVER, one, two)
        device = answers["00000001-1111"].devices[0]
        assert (device.pool_name, device.device_name, device.share_id) == (NODE, "epc-node0", "share-epc")
        assert list(device.request_names) == ["epc"]
        assert edits(tmp_path, device.cdi_device_ids[0]) == {
            "env": ["SGX_EPC_MIB=10"],
            "mounts": [
                {
                    "hostPath": str(plugin.root / "dev/sgx_enclave"),
                    "containerPath": path,
                    "options": ["bind", "nosuid", "nodev", "ro"],
                }
                for path in ("/dev/sgx_enclave", "/dev/sgx/enclave")
            ],
        }
        assert edits(tmp_path, answers["00000002-1111"].devices[0].cdi_device_ids[0])["env"] == ["SGX_EPC_MIB=1024"]
        kubelet.unprepare(DRIVER, one)
        assert list(cdi(tmp_path)) == [f"{DRIVER}-claim_00000002-1111.json"]
        kubelet.unprepare(DRIVER, two)
        assert not cdi(tmp_path)


def test_devices_of_one_request_say_its_whole_amount(tmp_path: Path, kubelet: DraEmulator, api: SliceApi) -> None:
    """A request for two NUMA nodes comes as one thing; other requests of the claim have amounts of their own."""
    with driver(tmp_path, kubelet, api):
        kubelet.wait(lambda: DRIVER in kubelet.drivers)
        wide = claim(
            api,
            1,
            result("1Gi", request="both"),
            result("2Gi", request="both", device="epc-node1"),
            result("5Mi", request="small/first-choice"),
            {"driver": "gpu.example.com", "pool": "x", "device": "gpu", "request": "gpu"},
        )
        devices = kubelet.prepare(DRIVER, wide)["00000001-1111"].devices
        assert [list(device.request_names) for device in devices] == [["both"], ["both"], ["small"]]
        amounts = [edits(tmp_path, device.cdi_device_ids[0])["env"] for device in devices]
        assert amounts == [["SGX_EPC_MIB=3072"], ["SGX_EPC_MIB=3072"], ["SGX_EPC_MIB=5"]]


def test_calls_may_be_repeated_and_survive_every_restart(tmp_path: Path, kubelet: DraEmulator, api: SliceApi) -> None:
    one, stranger = claim(api, 1, result("10Mi")), claim(api, 9, result("1Mi"))
    with driver(tmp_path, kubelet, api):
        kubelet.wait(lambda: DRIVER in kubelet.drivers)
        first = kubelet.prepare(DRIVER, one)
        written = cdi(tmp_path)
        kubelet.forget_claims()
        assert kubelet.prepare(DRIVER, one) == first
        assert cdi(tmp_path) == written
        kubelet.restart()
        kubelet.wait(lambda: DRIVER in kubelet.drivers)
        assert kubelet.prepared
        assert cdi(tmp_path) == written
    # The plugin is gone, its claims are not: containers may be restarted without it.
    assert cdi(tmp_path) == written
    with driver(tmp_path, kubelet, api) as plugin:
        assert plugin.wait_event("claims.known") == {"prepared": 1}
        kubelet.wait(lambda: kubelet.registrations[DRIVER] == 3)
        kubelet.unprepare(DRIVER, stranger)
        assert plugin.wait_event("claim.unprepared")["outcome"] == "unknown"
        assert plugin.wait_event("claim.unprepared")["prepared"] == 1
        kubelet.unprepare(DRIVER, one)
        kubelet.unprepare(DRIVER, one)
        assert not cdi(tmp_path)


@pytest.mark.promise("M10")
def test_provisioning_is_nobodys_unless_granted_and_then_of_named_namespaces(
    tmp_path: Path, kubelet: DraEmulator, api: SliceApi
) -> None:
    wanted = result(None, device="provision", request="provision", consumedCapacity={"holders": "1"})
    helper, curious = claim(api, 1, wanted, namespace="confcom-system"), claim(api, 2, wanted)
    with driver(tmp_path, kubelet, api):
        api.wait(lambda: api.devices() == ["epc-node0", "epc-node1"])
        kubelet.wait(lambda: DRIVER in kubelet.drivers)
        for refused in (helper, curious):
            with pytest.raises(PrepareError, match="may not have the provisioning device"):
                kubelet.prepare(DRIVER, refused)
    settings = {"provision_limit": 2, "provision_namespaces": "confcom-system"}
    with driver(tmp_path, kubelet, api, **settings) as plugin:
        api.wait(lambda: api.devices() == ["epc-node0", "epc-node1", "provision"])
        kubelet.wait(lambda: kubelet.registrations[DRIVER] == 2)
        found = api.slices[SLICE]["spec"]["devices"][2]
        assert found["attributes"]["kind"] == {"string": "provision"}
        assert found["capacity"]["holders"]["value"] == "2"
        device = kubelet.prepare(DRIVER, helper)["00000001-1111"].devices[0]
        mounts = edits(tmp_path, device.cdi_device_ids[0])["mounts"]
        assert {mount["hostPath"] for mount in mounts} == {str(plugin.root / "dev/sgx_provision")}
        with pytest.raises(PrepareError, match="claims of namespace default"):
            kubelet.prepare(DRIVER, curious)
        assert len(cdi(tmp_path)) == 1


def test_what_cannot_be_had_is_told_per_claim(tmp_path: Path, kubelet: DraEmulator, api: SliceApi) -> None:
    with driver(tmp_path, kubelet, api) as plugin:
        kubelet.wait(lambda: DRIVER in kubelet.drivers)
        replaced = claim(api, 1, result("10Mi"))
        api.put_claim({**replaced, "metadata": replaced["metadata"] | {"uid": "another"}})
        for number, wrong, said in (
            (2, result("1Mi", device="gpu"), "there is no device 'gpu' here"),
            (3, result("1Mi", pool="worker-2"), "has none of this node's devices"),
            (4, result(None, adminAccess=True), "admin access brings no EPC"),
            (5, result("lots"), "is no quantity"),
            (6, {"driver": DRIVER}, "unexpected content"),
        ):
            with pytest.raises(PrepareError, match=said):
                kubelet.prepare(DRIVER, claim(api, number, wrong))
        with pytest.raises(PrepareError, match="is another claim by now"):
            kubelet.prepare(DRIVER, replaced)
        with pytest.raises(PrepareError, match=r"cluster-refused.*not found"):
            kubelet.prepare(DRIVER, {"metadata": {"namespace": "default", "name": "none", "uid": "7"}})
        evil = claim(api, 8, result("1Mi"))
        evil["metadata"]["uid"] = "../../etc/cron"
        with pytest.raises(PrepareError, match="is no UID"):
            kubelet.prepare(DRIVER, evil)
        assert not cdi(tmp_path)
        device = plugin.root / "dev/sgx_enclave"
        device.rename(device.with_name("gone"))
        api.wait(lambda: api.devices() == [])
        with pytest.raises(PrepareError, match="no enclave device"):
            kubelet.prepare(DRIVER, claim(api, 10, result("1Mi")))


@pytest.mark.promise("M2")
def test_a_slice_that_goes_or_changes_comes_back(tmp_path: Path, kubelet: DraEmulator, api: SliceApi) -> None:
    with driver(tmp_path, kubelet, api):
        api.wait(lambda: api.devices() == ["epc-node0", "epc-node1"])
        seen = [api.slices[SLICE]["spec"]["pool"]["generation"]]
        for _ in range(3):
            api.wipe_slices()
            api.wait(lambda: api.devices() == ["epc-node0", "epc-node1"])
            seen.append(api.slices[SLICE]["spec"]["pool"]["generation"])
        assert seen == sorted(set(seen))
        changed = json.loads(json.dumps(api.slices[SLICE]))
        changed["spec"]["devices"][0]["capacity"]["epc"]["value"] = "1Ti"
        api.put_slice(changed)
        api.wait(lambda: api.slices[SLICE]["spec"]["devices"][0]["capacity"]["epc"]["value"] == "65536Mi")
        # Another slice of ours, from a plugin with other names say, would count EPC twice.
        api.put_slice({**json.loads(json.dumps(changed)), "metadata": {"name": "old"}})
        api.wait(lambda: set(api.slices) == {SLICE})
        api.cut_watches()
        api.wipe_slices()
        api.wait(lambda: api.devices() == ["epc-node0", "epc-node1"])
        writes = len([line for line in api.requests if line.startswith(("POST", "PUT"))])
        api.put_slice({**json.loads(json.dumps(api.slices[SLICE])), "kind": "ResourceSlice"})
        time.sleep(0.1)
        assert len([line for line in api.requests if line.startswith(("POST", "PUT"))]) == writes


@pytest.mark.promise("M3")
def test_a_device_that_vanishes_is_offered_to_nobody_and_said_to_be_ill(
    tmp_path: Path, kubelet: DraEmulator, api: SliceApi
) -> None:
    with driver(tmp_path, kubelet, api) as plugin:
        api.wait(lambda: len(api.devices()) == 2)
        kubelet.wait(lambda: DRIVER in kubelet.drivers and len(kubelet.drivers[DRIVER].healthy) == 2)
        found = kubelet.drivers[DRIVER]
        assert found.healthy == {"epc-node0": True, "epc-node1": True}
        device = plugin.root / "dev/sgx_enclave"
        device.rename(device.with_name("gone"))
        api.wait(lambda: api.devices() == [])
        kubelet.wait(lambda: found.healthy == {"epc-node0": False, "epc-node1": False})
        assert "no driver is loaded" in found.messages["epc-node0"]
        device.with_name("gone").rename(device)
        api.wait(lambda: len(api.devices()) == 2)
        kubelet.wait(lambda: found.healthy == {"epc-node0": True, "epc-node1": True})


def test_a_kubelet_that_watches_no_health_is_enough(tmp_path: Path, sockets: Path, api: SliceApi) -> None:
    kubelet = DraEmulator(sockets)
    kubelet.health_wanted = False
    kubelet.start()
    with driver(tmp_path, kubelet, api, register_timeout=1) as plugin:
        kubelet.wait(lambda: DRIVER in kubelet.drivers)
        wait_until(lambda: plugin.started)
        kubelet.prepare(DRIVER, claim(api, 1, result("10Mi")))
        for number in range(3):
            kubelet.restart()
            kubelet.wait(lambda: DRIVER in kubelet.drivers)
            kubelet.prepare(DRIVER, claim(api, 10 + number, result("10Mi")))
        time.sleep(1.5)  # longer than the kubelet has time to ask
        assert kubelet.registrations[DRIVER] == 4
    kubelet.stop()


def test_an_api_server_without_shared_devices_gets_no_slice(
    tmp_path: Path, kubelet: DraEmulator, api: SliceApi
) -> None:
    api.sharing = False
    with driver(tmp_path, kubelet, api) as plugin:
        # Before the kubelet has said who holds EPC, an empty slice is published.
        wait_until(lambda: any("reason" in fields for fields in plugin.fields("epc.published", DRIVER)))
        reason = next(fields["reason"] for fields in plugin.fields("epc.published", DRIVER) if "reason" in fields)
        assert PlatformUnavailable.code in reason
        assert "a claim would get a whole NUMA node" in reason
        api.wait(lambda: not api.slices)
        api.sharing = True
        api.wait(lambda: len(api.devices()) == 2)


@pytest.mark.promise("M2")
def test_an_amount_in_the_nodes_status_is_taken_back(tmp_path: Path, kubelet: DraEmulator, api: SliceApi) -> None:
    """A node that published EPC otherwise before must not offer it twice."""
    amounts = {"cpu": "2", EPC: "128k"}
    api.change({"status": {"capacity": amounts, "allocatable": amounts}})
    with driver(tmp_path, kubelet, api):
        api.wait(lambda: api.amount(EPC) is None and api.amount(EPC, "capacity") is None)
        assert api.amount("cpu") == "2"
        # What the kubelet remembers of an earlier plugin can be requested by nobody: no quarrel about that.
        count = len(api.patches)
        api.change({"status": {"capacity": {EPC: "128k"}, "allocatable": {EPC: "0"}}})
        api.change({"metadata": {"labels": {"confcom.dev/sgx-epc-mib": None}}})
        api.wait(lambda: "confcom.dev/sgx-epc-mib" in api.node["metadata"]["labels"])
        assert len(api.patches) == count + 1


def test_only_objects_of_the_own_node_are_written(tmp_path: Path, kubelet: DraEmulator, api: SliceApi) -> None:
    with driver(tmp_path, kubelet, api):
        api.wait(lambda: len(api.devices()) == 2)
        kubelet.wait(lambda: DRIVER in kubelet.drivers)
        kubelet.prepare(DRIVER, claim(api, 1, result("10Mi")))
        api.wipe_slices()
        api.wait(lambda: len(api.devices()) == 2)
    paths = {line.partition("?")[0] for line in api.requests}
    assert paths <= {
        f"GET {SLICES}",
        f"POST {SLICES}",
        f"PUT {SLICES}/{NODE}-{DRIVER}",  # where its first list was of before the wipe
        f"GET /api/v1/nodes/{NODE}",
        "GET /api/v1/nodes",
        f"PATCH /api/v1/nodes/{NODE}/status",
        "GET /apis/resource.k8s.io/v1/namespaces/default/resourceclaims/claim-1",
    }


def test_a_driver_without_a_node_is_told_what_to_do(tmp_path: Path, kubelet: DraEmulator) -> None:
    with RunningPlugin(tmp_path, kubelet, publisher="dra") as plugin:
        error = plugin.failure()
    assert isinstance(error, ConfigError)
    assert "--node-name" in error.advice()


def test_epc_that_pods_hold_as_devices_is_held_back_until_they_end(
    tmp_path: Path, kubelet: DraEmulator, api: SliceApi
) -> None:
    with RunningPlugin(tmp_path, kubelet, epc="100Mi,60Mi"):
        kubelet.wait_allocatable(EPC, 160)
        kubelet.admit("default/app", EPC, 35)
    with driver(tmp_path, kubelet, api, epc="100Mi,60Mi"):
        wait_until(lambda: offered(api) == 125)
        kubelet.remove("default/app")
        wait_until(lambda: offered(api) == 160)


def test_nothing_is_offered_while_pods_hold_epc_of_the_nodes_status(
    tmp_path: Path, kubelet: DraEmulator, api: SliceApi
) -> None:
    with RunningPlugin(tmp_path, kubelet):
        kubelet.wait_allocatable(ENCLAVE, 110)
        kubelet.admit("default/app", ENCLAVE, 1)
    with driver(tmp_path, kubelet, api, epc="168Mi") as plugin:
        wait_until(lambda: any(event.name == "epc.held_back" and event.warning for event in plugin.events))
        assert offered(api) == 0
        kubelet.remove("default/app")
        wait_until(lambda: offered(api) == 168)


@pytest.mark.parametrize("ids", [["/dev/sgx-1"], ["17"], ["7abc"], [""]])
def test_nothing_is_offered_while_pods_hold_devices_of_another_plugin(
    tmp_path: Path, kubelet: DraEmulator, api: SliceApi, ids: list[str]
) -> None:
    kubelet.pods["default/app"] = {EPC: ids}
    with driver(tmp_path, kubelet, api, epc="168Mi") as plugin:
        wait_until(lambda: any(event.name == "epc.held_back" and event.warning for event in plugin.events))
        assert offered(api) == 0
        kubelet.remove("default/app")
        wait_until(lambda: offered(api) == 168)


def offered(api: SliceApi) -> int:
    """MiB in the slice."""
    devices = [device for found in api.slices.values() for device in found["spec"].get("devices", [])]
    amounts = [device["capacity"]["epc"]["value"] for device in devices if "epc" in device["capacity"]]
    return sum(int(amount.removesuffix("Mi")) for amount in amounts)
