"""How costs grow with their sizes: each at three sizes, held against n log n. Ends with 1 if one grows faster.

    python -m benchmarks.scale [WORD…]     those with one of the words in their names; all of them by default

What asks the Kubernetes API asks a stand-in with prepared answers in a process of its own, and only the processor time
of this process counts.
"""

from __future__ import annotations

import asyncio
import io
import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import parse_qs, urlsplit

from rich.console import Console

from benchmarks.collateral_uploads import tool_output
from benchmarks.device_plugin import EPC, from_tests
from benchmarks.measure import Row, growth
from benchmarks.measure import show as print_rows
from benchmarks.simulated import NOW, SEED, simulated_world
from benchmarks.verification import enclave_quote
from benchmarks.webhook import pod as sgx_pod
from confcom.addon.changes import Addon
from confcom.addon.overview import overview
from confcom.admission.decision import AdmissionContext
from confcom.appraisal.quote import QuoteVerifier
from confcom.cli.top_view import show
from confcom.cluster.client import ClusterObjects
from confcom.cluster.nodes import ClusterEpc
from confcom.collateral.archive import write_archive
from confcom.collateral.documents import DocumentFacts, DocumentKey, VerifiedDocument, take_apart, verify_document
from confcom.collateral.platform_collateral import PlatformCollateral, take_platform_collateral
from confcom.collateral.store.platforms import PlatformTcb, PlatformUpdate
from confcom.collateral.store.registrations import Registration
from confcom.collateral.store.rows import Sighting, served_as
from confcom.collateral.store.status import store_status
from confcom.collateral.store.store import CollateralStore
from confcom.devices.processes import CgroupOwner, EnclaveProcess, count_use
from confcom.devices.resources import check_holder
from confcom.devices.sgx_node import EpcSection, plan_pool, prefer_one_node
from confcom.manifests.addon import AddonState, state_object
from confcom.manifests.addon_config import AddonConfig
from confcom.pki.proof import PROOF
from confcom.protocols.epc import parse_pod
from confcom.protocols.kubelet import ListPodResourcesResponse, holders, parse
from confcom.protocols.pcs import PckCertRequest
from confcom.services.collateral.refresh import needs_in
from confcom.services.device_plugin.epc_in_api import CHECKPOINT, remembered
from confcom.services.metrics.page import Seen, put_together
from confcom.services.webhook.webhook import review
from confcom.simulator.enclaves import QuotingEnclave
from confcom.simulator.world import SimulatedUpstream, SimulatedWorld

Prepare: TypeAlias = Callable[[int], Callable[[], object]]
Json: TypeAlias = dict[str, Any]
MIB = 1 << 20
ADDON_NAMESPACE = "confcom-system"
PART_OF = {"app.kubernetes.io/part-of": "confcom"}
_METRICS_PAGE = re.compile(r"/api/v1/namespaces/[^/]+/pods/([^/]+)/proxy/metrics")


class Cost(NamedTuple):
    """What is measured: `prepare` makes the call for a size, of which the unit is `of`."""

    name: str
    of: str
    prepare: Prepare
    sizes: tuple[int, ...]
    rounds: int = 5


def quote_judged(platforms: int) -> Callable[[], object]:
    """A quote of each of ten platforms, of so many that the verifier knows."""
    world = SimulatedWorld.from_seed(SEED, now=NOW, machines=platforms)
    verifier, collateral = QuoteVerifier(world.trust_roots, cache_size=platforms), world.publish()
    quotes = [enclave_quote(world, number) for number in range(platforms)]
    for quote in quotes:
        verifier.verify(quote, collateral, now=NOW)
    return lambda: [verifier.verify(quote, collateral, now=NOW) for quote in quotes[:: platforms // 10]]


# Device plugin and exporter: a node has 110 pods by default; sizes beyond show the curve.


def holders_checked(pods: int) -> Callable[[], object]:
    """Whether the pod that holds a device may have it, from the kubelet's list."""
    message = ListPodResourcesResponse()
    for number in range(pods):
        container = message.pod_resources.add(namespace="apps", name=f"pod-{number}").containers.add(name="main")
        for unit in range(4):
            container.devices.add(resource_name=EPC, device_ids=[f"{number}-{unit}"])
    data, ids = message.SerializeToString(), [f"{pods - 1}-{unit}" for unit in range(4)]

    def check() -> str:
        held = holders(parse(ListPodResourcesResponse, data), EPC)
        return check_holder(ids, held, resource=EPC, namespaces={"apps"})

    return check


def checkpoint_read(pods: int) -> Callable[[], object]:
    """Who holds devices by the kubelet's checkpoint."""
    folder = tempfile.TemporaryDirectory()
    entries = [
        {"PodUID": f"uid-{number}", "ContainerName": "main", "ResourceName": EPC, "DeviceIDs": {"-1": ["a", "b"]}}
        for number in range(pods)
    ]
    content = {"Data": {"PodDeviceEntries": entries, "RegisteredDevices": {EPC: ["a"]}}, "Checksum": 1}
    (Path(folder.name) / CHECKPOINT).write_text(json.dumps(content))
    return lambda: (remembered(Path(folder.name), EPC), folder)


def units_preferred(units: int) -> Callable[[], object]:
    """Which half of the free units of two NUMA nodes a container gets."""
    pool = plan_pool([EpcSection(node, units * MIB // 2) for node in (0, 1)])
    ids = [unit for section in pool.sections for unit in section.ids]
    return lambda: prefer_one_node(ids, (), len(ids) // 2)


def use_matched(pods: int) -> Callable[[], object]:
    """One look of the exporter, after the kernel has answered: what each container maps and requested."""
    processes = [
        EnclaveProcess(
            number, 1, CgroupOwner(f"uid-{number}", f"{number:064x}"), (1, 2), ((0, MIB), (2 * MIB, 3 * MIB))
        )
        for number in range(2, pods + 2)
    ]
    known = [parse_pod(node_pod(number, "n1")) for number in range(2, pods + 2)]

    def look() -> object:
        return put_together(known, Seen(count_use(processes), {}, None, None, pods, 0, 0.0), {})

    return look


def pod_reviewed(containers: int) -> Callable[[], object]:
    """A review of the webhook, from bytes to bytes."""
    pod = sgx_pod("10")
    (container,) = pod["spec"]["containers"]
    small = {"name": "", "image": container["image"], "resources": container["resources"]}
    pod["spec"]["containers"] = [small | {"name": f"app-{number}"} for number in range(containers)]
    request = {"uid": "0" * 36, "operation": "CREATE", "namespace": "apps", "object": pod, "oldObject": None}
    body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()
    _, event = review(body, "mutate", lambda name: AdmissionContext(namespace=name, largest_node=10 * containers))
    assert event.outcome == "patched", event
    return lambda: review(body, "mutate", lambda name: AdmissionContext(namespace=name, largest_node=10 * containers))


# The collateral store and its service. What is stored is one verified thing under many names.


def collateral_found(versions: int) -> Callable[[], object]:
    """The collateral in force a third back in a history of so many daily versions of each document."""
    world, store = simulated_world(), _store()
    machine = world.machine
    documents = take_apart(world.publish(), fmspc=machine.fmspc, ca="platform", tee="sgx")
    verified = [verify_document(document, roots=store.roots) for document in documents]
    day = timedelta(days=1)
    store.add_seen(_version(one, number * day) for number in range(versions) for one in verified)
    at = NOW + versions * day * 2 / 3
    return lambda: (store.collateral(machine.fmspc, "platform", "sgx", at=at), store.in_force(documents[0].key, at=at))


def status_shown(fmspcs: int) -> Callable[[], object]:
    """`collateral status` of a store with the documents of so many FMSPCs."""
    store, world = _store(), simulated_world()
    documents = take_apart(world.publish(), fmspc=world.machine.fmspc, ca="platform", tee="sgx")
    store.add(documents, seen=NOW, source="benchmark")
    tcb_info = verify_document(documents[0], roots=store.roots)
    keys = (DocumentKey.tcb_info("sgx", number.to_bytes(6, "big")) for number in range(fmspcs))
    named = (replace(tcb_info, document=replace(documents[0], key=key), proof=PROOF) for key in keys)
    store.add_verified(named, seen=NOW, source="benchmark")
    return lambda: store_status(store, NOW)


def platforms_uploaded(platforms: int) -> Callable[[], object]:
    """What Intel's tool wrote of so many platforms, taken into an empty store."""
    world = simulated_world()
    body = tool_output(world, platforms)

    def take() -> object:
        store = _store()
        taken = take_platform_collateral(store, PlatformCollateral(body), now=datetime.now(UTC))  # noqa: TID251
        assert taken.platforms == platforms
        return store

    return take


def certificate_found(platforms: int) -> Callable[[], object]:
    """A PCK certificate for a raw TCB, of one among so many platforms."""
    store, last = _fleet(platforms)
    return lambda: (store.platforms.pck_certificate(last), store.platforms.pck_certificates(last.qe_id, last.pce_id))


def fleet_exported(platforms: int) -> Callable[[], object]:
    """An archive with so many platforms."""
    store, _ = _fleet(platforms)
    return lambda: write_archive(store, io.BytesIO(), platforms=True)


def needs_listed(platforms: int) -> Callable[[], object]:
    """Which documents the service needs for its platforms, and a page of these, as it looks every minute."""
    store, _ = _fleet(platforms)
    register = store.registrations
    return lambda: (needs_in(store, (), {"standard"}), register.page("cached"), register.count("cached"))


class _Store(CollateralStore):
    """A store in a folder that goes with it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        super().__init__(Path(self._folder.name) / "store", roots=simulated_world().trust_roots)


def _store() -> CollateralStore:
    return _Store()


def _version(verified: VerifiedDocument, later: timedelta) -> tuple[VerifiedDocument, tuple[Sighting]]:
    document, facts = verified.document, verified.facts
    other = replace(document, body=document.body + b" " * later.days)
    moved = DocumentFacts(facts.issue_date + later, facts.next_update + later, facts.number)
    made = replace(verified, document=other, facts=moved, expires=verified.expires + later, proof=PROOF)
    seen = NOW + later
    return made, (Sighting(served_as(verified), "benchmark", seen),)


def _fleet(platforms: int) -> tuple[CollateralStore, PlatformTcb]:
    """A store with so many platforms, and the last of them."""
    store, world = _store(), simulated_world()
    tcb, upstream = world.machine.tcb, SimulatedUpstream(world, lambda: NOW)
    qe_id = QuotingEnclave(world.machine, world.authority.pck_chain(world.machine)).qe_id
    first = PckCertRequest(tcb.cpu_svn, tcb.pce_svn, bytes(2), qe_id, b"\x01" * 384)
    verified = store.platforms.verify(upstream.fetch_pck_certificate(first), bytes(2))
    updates = []
    for number in range(platforms):
        request = replace(first, qe_id=number.to_bytes(16, "big"))
        raw = PlatformTcb(request.qe_id or b"", request.pce_id, request.cpu_svn, request.pce_svn)
        registration = Registration(request, "cached", NOW, world.machine.fmspc)
        updates.append(PlatformUpdate(((raw, verified),), (registration,), verified))
    store.platforms.keep(updates, seen=NOW, source="benchmark")
    return store, raw


# `addon show` and `top`: each node has the pods of the add-on's three DaemonSets, and two of applications.


def addon_shown(nodes: int) -> Callable[[], object]:
    """`addon show`."""

    async def ask() -> None:
        async with ClusterObjects.open(kubeconfig(nodes), None, "benchmark") as cluster:
            shown = await Addon(cluster, version="1.0.0", now=NOW, report=print).show()
        assert [one.wanted for one in shown.progress] == [nodes] * 3

    return lambda: asyncio.run(ask())


def top_shown(nodes: int) -> Callable[[], object]:
    """`top`, with the lines as text."""

    async def ask() -> None:
        async with ClusterEpc.open(kubeconfig(nodes), None, "confcom-top") as source:
            found = await overview(source)
        assert len(found.nodes) == nodes
        assert len(found.pods) == nodes * 3
        Console(file=io.StringIO(), width=200).print(show(found))

    return lambda: asyncio.run(ask())


def node_pod(number: int, node: str) -> Json:
    """A pod of an application, with 2 MiB of EPC."""
    amounts = {EPC: "2"}
    return {
        "metadata": {"name": f"app-{number}", "namespace": "apps", "uid": f"uid-{number}"},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "app", "resources": {"limits": amounts, "requests": amounts}}],
        },
        "status": {
            "phase": "Running",
            "containerStatuses": [{"name": "app", "ready": True, "containerID": f"containerd://{number:064x}"}],
        },
    }


def _addon_pod(component: str, number: int, node: str) -> Json:
    pod = node_pod(number, node)
    pod["metadata"] = {
        "name": f"sgx-{component}-{number}",
        "namespace": ADDON_NAMESPACE,
        "uid": f"uid-{component}-{number}",
        "labels": PART_OF | {"app.kubernetes.io/component": component},
    }
    if component != "quote-helper":
        pod["spec"]["containers"] = [{"name": component}]
    return pod


def _answers(nodes: int) -> dict[str, list[Json]]:
    """What the stand-in lists, by path."""
    components = ("device-plugin", "metrics", "quote-helper")
    names = [f"node-{number}" for number in range(nodes)]
    addon_pods = [_addon_pod(one, number, name) for number, name in enumerate(names) for one in components]
    counts = dict.fromkeys(
        ("desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable", "numberReady"), nodes
    )
    workloads = [
        {
            "metadata": {"name": f"sgx-{one}", "namespace": ADDON_NAMESPACE, "generation": 1, "labels": PART_OF},
            "spec": {},
            "status": counts | {"observedGeneration": 1},
        }
        for one in components
    ]
    applications = [node_pod(2 * number + more, name) for number, name in enumerate(names) for more in (0, 1)]
    state = state_object(AddonState(True, "1.0.0", AddonConfig()))
    base = f"/namespaces/{ADDON_NAMESPACE}"
    return {
        "/api/v1/nodes": [{"metadata": {"name": name}, "status": {"allocatable": {EPC: "168"}}} for name in names],
        "/api/v1/pods": addon_pods + applications,
        f"/api/v1{base}/pods": addon_pods,
        f"/apis/apps/v1{base}/daemonsets": workloads,
        f"/api/v1{base}/configmaps/{state['metadata']['name']}": [state],
    }


_PAGE = (
    'confcom_epc_mapped_bytes{{container="app",namespace="apps",node="n",pod="app-{0}"}} 2097152\n'
    'confcom_epc_mapped_bytes{{container="app",namespace="apps",node="n",pod="app-{1}"}} 1048576\n'
    'confcom_epc_node_mapped_bytes{{node="n"}} 3145728\nconfcom_epc_pods_known{{node="n"}} 1\n'
    'confcom_quote_helper_quotes_total{{peer="pod uid-{0}"}} 7\n'
)


_kubeconfigs: dict[int, str] = {}


def kubeconfig(nodes: int) -> str:
    """That of the stand-in with so many nodes; `main` starts them."""
    return _kubeconfigs[nodes]


def _serve(nodes: int, folder: str, ready: Any, end: Any) -> None:  # noqa: ANN401 - multiprocessing's
    class Cluster(from_tests("api_stand_in").ApiStandIn):  # type: ignore[misc]  # known at run time
        lists = _answers(nodes)

        def answer(self, handler: BaseHTTPRequestHandler) -> None:
            url = urlsplit(handler.path)
            query = {
                name: int(values[0]) for name, values in parse_qs(url.query).items() if name in ("limit", "continue")
            }
            if page := _METRICS_PAGE.fullmatch(url.path):
                number = int(page[1].rpartition("-")[2])
                _send(handler, _PAGE.format(2 * number, 2 * number + 1).encode(), "text/plain")
                return
            items = self.lists.get(url.path, [])
            begin = query.get("continue", 0)
            end = begin + query.get("limit", len(items))
            metadata = {"resourceVersion": "1"} | ({"continue": str(end)} if end < len(items) else {})
            one = "configmaps/" in url.path
            _send(handler, json.dumps(items[0] if one else {"metadata": metadata, "items": items[begin:end]}).encode())

    with Cluster() as api:
        ready.put(api.kubeconfig(Path(folder)))
        end.get()


def _send(handler: BaseHTTPRequestHandler, content: bytes, kind: str = "application/json") -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


@contextmanager
def clusters(sizes: tuple[int, ...]) -> Iterator[None]:
    """Stand-ins of those sizes, each in a process of its own."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        ends, servers = context.Queue(), []
        for nodes in sizes:
            folder = Path(name, str(nodes))
            folder.mkdir()
            ready: Any = context.Queue()
            servers.append(context.Process(target=_serve, args=(nodes, str(folder), ready, ends), daemon=True))
            servers[-1].start()
            _kubeconfigs[nodes] = ready.get(timeout=60)
        try:
            yield
        finally:
            for _ in servers:
                ends.put(None)
            for server in servers:
                server.join(60)


NODES = (50, 500, 5000)
COSTS = (
    Cost("verification: quotes judged", "platforms known", quote_judged, (20, 200, 2_000)),
    Cost("device plugin: holder of a device checked", "pods", holders_checked, (100, 1_000, 10_000)),
    Cost("device plugin: checkpoint of the kubelet read", "pods", checkpoint_read, (100, 1_000, 10_000)),
    Cost("device plugin: units of a container preferred", "units", units_preferred, (300, 3_000, 30_000)),
    Cost("metrics: use of containers matched", "pods", use_matched, (100, 1_000, 10_000)),
    Cost("webhook: pod reviewed", "containers", pod_reviewed, (4, 24, 128)),
    Cost("collateral store: collateral found", "versions", collateral_found, (30, 300, 3_000)),
    Cost("collateral store: status", "FMSPCs", status_shown, (10, 100, 1_000), 2),
    Cost("collateral store: export", "platforms", fleet_exported, (100, 1_000, 10_000), 2),
    Cost("collateral service: upload", "platforms", platforms_uploaded, (30, 300, 3_000), 2),
    Cost("collateral service: PCK certificate found", "platforms", certificate_found, (100, 1_000, 10_000)),
    Cost("collateral service: needs listed", "platforms", needs_listed, (100, 1_000, 10_000)),
    Cost("addon show", "nodes", addon_shown, NODES, 2),
    Cost("top", "nodes", top_shown, NODES, 2),
)


def rows(words: list[str] | None = None) -> Iterator[Row]:
    """Exponents; `SystemExit` at the end when a cost grows faster than n log n."""
    faster = []
    chosen = [cost for cost in COSTS if not words or any(word in cost.name for word in words)]
    with clusters(NODES if any(cost.sizes is NODES for cost in chosen) else ()):
        for name, of, prepare, sizes, rounds in chosen:
            found = growth(prepare, sizes, rounds=rounds, clock=time.process_time)
            yield found.row(f"{name}, by {of}")
            if not found.acceptable:
                faster.append(name)
    if faster:
        sys.exit(f"grows faster than n log n: {', '.join(faster)}")


if __name__ == "__main__":
    print_rows(rows(sys.argv[1:]))
