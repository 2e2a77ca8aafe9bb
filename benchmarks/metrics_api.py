"""The metrics API: answers per second, p99 and memory by the number of pods; and how soon HPA follows EPC on a cluster.

    python -m benchmarks.metrics_api                        on stand-ins: API server, exporters of 250 pods a node
    python -m benchmarks.metrics_api --cluster KUBECONFIG   ten scalings, on a cluster with --enable-autoscaling

Server, clients and stand-ins share the machine. Each client is a process with a connection that it keeps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from benchmarks.device_plugin import from_tests
from benchmarks.measure import Row, percentile, show
from confcom.protocols.custom_metrics import EXPORTER_PORT, EXPORTERS, PATH
from confcom.services.runtime.http_server import Page
from confcom.services.runtime.status_page import serve_issued_page

Files = dict[str, str]
"""What a client needs: authority, its certificate, and a kubeconfig of the stand-in."""
Kubectl = Any
Request = Any
"""Of the tests."""
CONTEXT = multiprocessing.get_context("fork")
SIZES = (1000, 5000)
PER_NODE = 250
CLIENTS = 2
SECONDS = 4.0
AIM_SECONDS, AIM_MIB = 0.2, 100
DEPLOYMENT = 10
"""Pods of a Deployment; all pods are in one namespace."""
FILLER = "x" * 4000
"""What real pods have besides, in managed fields and elsewhere."""
SCALINGS = 10
SYNC = 15.0
"""Seconds between two turns of HPA."""


class Load(NamedTuple):
    """Answers per second of all clients, and the 99th percentile in seconds."""

    per_second: float
    p99: float


def rows() -> Iterator[Row]:
    for size in SIZES:
        with running(size) as (address, files, pid):
            one = f"{PATH}/namespaces/default/pods/%2A/sgx_epc_used_ratio?labelSelector=app%3Dapp-7"
            every = f"{PATH}/namespaces/default/pods/%2A/sgx_epc_used_ratio"
            total = f"{PATH}/namespaces/default/metrics/sgx_epc_used_bytes"
            for name, path in ((f"{DEPLOYMENT} pods", one), ("all pods", every), ("sum of the namespace", total)):
                before = cpu_seconds(pid)
                found = load(address, files, path)
                taken = (cpu_seconds(pid) - before) / (found.per_second * SECONDS)
                what = f"{name} of {size:,}"
                note = f"{CLIENTS} clients; {taken * 1000:.1f} ms of processor each"
                yield Row(f"{what}: answers", found.per_second, note=note)
                yield Row(f"{what}: p99", found.p99 * 1000, "ms", AIM_SECONDS * 1000, "aim")
            before, begin = cpu_seconds(pid), time.monotonic()
            time.sleep(15)
            share = (cpu_seconds(pid) - before) / (time.monotonic() - begin)
            yield Row(f"{size:,} pods: processor for reading exporters", share * 100, "%", note="every 5 s, unasked")
            yield Row(f"{size:,} pods: memory, at most", peak_mib(pid), "MiB", AIM_MIB, "aim")


@contextmanager
def running(pods: int) -> Iterator[tuple[tuple[str, int], Files, int]]:
    """A metrics API with that many pods: its address, files of a client, and its process id."""
    with tempfile.TemporaryDirectory(prefix="ma-") as name:
        ready = CONTEXT.Queue()
        surroundings = CONTEXT.Process(target=_surround, args=(Path(name), pods, ready), daemon=True)
        surroundings.start()
        files = ready.get(timeout=120)
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        command = [sys.executable, "-m", "confcom", "metrics-api", "--listen", "127.0.0.1:0", "--ca", f"{name}/ca"]
        command += ["--http", f"unix:{name}/page", "--exporters-ca", f"{name}/exporters/ca.crt"]
        command += ["--kubeconfig", files["kubeconfig"]]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            assert process.stdout is not None
            found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert found
            address = ("127.0.0.1", int(found[1]))
            _wait_for_figures(address, files, pods)
            yield address, files, process.pid
        finally:
            process.terminate()
            process.wait(60)
            surroundings.terminate()
            surroundings.join()


def _surround(folder: Path, pods: int, ready: Queue[Any]) -> None:
    """The stand-ins, until the process is ended."""
    stage_module, api_module = from_tests("running_metrics_api"), from_tests("epc_api")

    class PagedApi(api_module.EpcApi):  # type: ignore[misc, name-defined]  # of the tests
        """Lists in parts, as the real one does."""

        def _pods(self, request: Request, path: str, query: dict[str, str]) -> None:
            if query.get("watch") == "true" or "limit" not in query:
                super()._pods(request, path, query)
                return
            begin, size = int(query.get("continue", "0")), int(query["limit"])
            items = list(self.pods.values())[begin : begin + size]
            more = {"continue": str(begin + size)} if begin + size < len(self.pods) else {}
            metadata = {"resourceVersion": str(self._version), **more}
            from_tests("node_api").reply(request, 200, {"kind": "PodList", "metadata": metadata, "items": items})

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))

    async def run() -> None:
        with PagedApi() as api:
            stage = stage_module.MetricsApiStage(folder, api)
            pages: dict[str, list[str]] = {}
            for number in range(pods):
                node, deployment = f"n{number // PER_NODE}", f"app-{number // DEPLOYMENT}"
                labels = {"app": deployment, "pod-template-hash": "5d4f6b7c8d", "tier": "backend"}
                pod = api_module.make_pod(f"{deployment}-5d4f6b7c8d-{number:05}", node=node, mib=20, labels=labels)
                owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{deployment}-5d4f6b7c8d"}
                pod["metadata"]["ownerReferences"] = [owner | {"uid": "u", "controller": True}]
                pod["metadata"]["managedFields"] = [{"manager": FILLER}]
                api.pods[pod["metadata"]["name"]] = pod
                pages.setdefault(node, []).append(_lines(node, pod["metadata"]["name"]))
            serving = []
            for number, (node, lines) in enumerate(pages.items()):
                address = f"127.0.1.{number + 1}"
                text = f'confcom_epc_pass_age_seconds{{node="{node}"}} 1.0\n' + "".join(lines)
                api.pods[f"metrics-{node}"] = stage_module.exporter_pod("metrics", node, address)
                serving.append(asyncio.create_task(_export(address, folder / "exporters", text.encode())))
            client = stage.clients.write(folder / "client.pem", "front-proxy-client")
            authority = stage.authority.certificate.decode()
            ready.put({"kubeconfig": api.kubeconfig(folder), "client": str(client), "authority": authority})
            await asyncio.gather(*serving)

    asyncio.run(run())


def _lines(node: str, name: str) -> str:
    """What an exporter shows of one container."""
    labels = f'{{node="{node}",namespace="default",pod="{name}",container="app"}}'
    values = {"requested_bytes": 20 << 20, "mapped_bytes": 14 << 20, "reserved_address_bytes": 0, "processes": 1,
              "over_limit_seconds": 0}  # fmt: skip
    return "".join(f"confcom_epc_{metric}{labels} {value}\n" for metric, value in values.items())


async def _export(address: str, ca: Path, page: bytes) -> None:
    async def show_page() -> Page:
        return Page(200, page)

    await serve_issued_page(f"{address}:{EXPORTER_PORT}", {"/metrics": show_page}, ca, EXPORTERS["metrics"])


def _connect(address: tuple[str, int], files: Files) -> HTTPConnection:
    context = ssl.create_default_context(cadata=files["authority"])
    context.load_cert_chain(files["client"])
    connection = HTTPConnection(*address)
    plain = socket.create_connection(address)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sock = context.wrap_socket(plain, server_hostname="confcom-metrics-api.confcom-system.svc")
    return connection


def _get(connection: HTTPConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def _wait_for_figures(address: tuple[str, int], files: Files, pods: int) -> None:
    connection, deadline = _connect(address, files), time.monotonic() + 120
    while time.monotonic() < deadline:
        status, body = _get(connection, f"{PATH}/namespaces/default/pods/%2A/sgx_epc_used_ratio")
        if status == 200 and len(json.loads(body)["items"]) == pods:
            return
        time.sleep(0.2)
    raise SystemExit("the figures did not come")


def load(address: tuple[str, int], files: Files, path: str) -> Load:
    """Ask from `CLIENTS` processes for `SECONDS` seconds."""
    results: Queue[list[float]] = CONTEXT.Queue()
    clients = [CONTEXT.Process(target=_ask, args=(address, files, path, results)) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    taken = [one for _ in clients for one in results.get()]
    for client in clients:
        client.join()
    return Load(len(taken) / SECONDS, percentile(taken, 99))


def _ask(address: tuple[str, int], files: Files, path: str, results: Queue[list[float]]) -> None:
    connection, taken, end = _connect(address, files), [], time.monotonic() + SECONDS
    while time.monotonic() < end:
        begin = time.perf_counter()
        status, _ = _get(connection, path)
        taken.append(time.perf_counter() - begin)
        assert status == 200
    results.put(taken)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    """The most memory that a process had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


NAME = "bench-enclaves"


def cluster_rows(kubeconfig: str, image: str) -> Iterator[Row]:
    """Seconds from a pod that fills its EPC until HPA wants another one, and back."""
    program = os.environ.get("KUBECTL") or shutil.which("kubectl")
    kubectl = from_tests("kubectl").Kubectl(program, kubeconfig)
    kubectl.apply(*_scaled(image))
    up, down = [], []
    try:
        for _ in range(SCALINGS):
            kubectl.wait("one replica", lambda: _desired(kubectl) == 1 and len(_pods(kubectl)) == 1)
            time.sleep(random.uniform(2, SYNC))  # any moment of HPA's turns and the exporter's looks
            (pod,) = _pods(kubectl)
            begin = time.monotonic()
            command = "confcom simulate hold --epc 14Mi >/dev/null 2>&1 & echo $! > /tmp/load"
            kubectl("exec", pod, "--", "sh", "-c", command)
            kubectl.wait("a second replica", lambda: _desired(kubectl) == 2)
            up.append(time.monotonic() - begin)
            time.sleep(random.uniform(2, SYNC))
            begin = time.monotonic()
            kubectl("exec", pod, "--", "sh", "-c", "kill $(cat /tmp/load)")
            kubectl.wait("one replica", lambda: _desired(kubectl) == 1)
            down.append(time.monotonic() - begin)
            print(f"  up {up[-1]:.1f} s, down {down[-1]:.1f} s", file=sys.stderr, flush=True)
    finally:
        kubectl("delete", f"hpa/{NAME}", f"deployment/{NAME}", "--ignore-not-found")
    for name, taken in (("EPC filled → another replica wanted", up), ("EPC free → one fewer wanted", down)):
        yield Row(f"{name}: p50", statistics.median(taken), "s")
        yield Row(f"{name}: most of {SCALINGS}", max(taken), "s", SYNC + 15, "aim: one turn of HPA and 15 s")


def _desired(kubectl: Kubectl) -> int:
    found: int = kubectl.get("hpa", NAME).get("status", {}).get("desiredReplicas", 0)
    return found


def _pods(kubectl: Kubectl) -> list[str]:
    found = kubectl.items("pods", "-l", f"app={NAME}")
    alive = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
    return [pod["metadata"]["name"] for pod in alive if pod["status"]["phase"] == "Running"]


def _scaled(image: str) -> list[Any]:
    jobs, labels = from_tests("cluster_jobs"), {"app": NAME}
    spec = jobs.one_container(image, "confcom", "simulate", "hold", "--epc", "4Mi", resources=jobs.limits(20))
    template = {"metadata": {"labels": labels}, "spec": spec | {"restartPolicy": "Always"}}
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME}
    target = {"type": "AverageValue", "averageValue": "700m"}
    metric = {"type": "Pods", "pods": {"metric": {"name": "sgx_epc_used_ratio"}, "target": target}}
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": NAME},
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": NAME},
            "spec": {
                "scaleTargetRef": reference,
                "minReplicas": 1,
                "maxReplicas": 4,
                "metrics": [metric],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
            },
        },
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", metavar="KUBECONFIG", help="a cluster whose add-on has --enable-autoscaling")
    parser.add_argument("--image", default="localhost/confcom:dev", help="of the enclaves")
    options = parser.parse_args()
    show(cluster_rows(options.cluster, options.image) if options.cluster else rows())
