"""The admission webhook: reviews per second over HTTPS, and what its configuration costs pods that are not for it.

    python -m benchmarks.webhook                       reviews/s and p99, beside an empty webhook on the same server
    python -m benchmarks.webhook --cluster KUBECONFIG  latency of ordinary pods at a real API server, with and without

Client and server share the machine; each connection is a process that keeps it alive. The empty webhook reads the body
and answers with a constant, so the difference is what the decision takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import cycle
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NamedTuple

from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration, ValidatingWebhookConfiguration
from lightkube.resources.core_v1 import Namespace, Pod, ServiceAccount
from prometheus_client import CollectorRegistry

from benchmarks.measure import Row, percentile, show, spread
from confcom.admission.decision import AdmissionContext
from confcom.cluster.client import open_client
from confcom.errors import ClusterError
from confcom.pki.serving_pair import make_serving_pair
from confcom.protocols.admission import ServiceClient, allowance, mutating_webhooks, validating_webhooks
from confcom.services.runtime.http_server import Listener, serve_http
from confcom.services.runtime.process import configure_logging
from confcom.services.runtime.tls import HeldTls
from confcom.services.webhook.webhook import WebhookApp, WebhookMetrics

SECONDS = 2.0
ROUNDS = 3
CONNECTIONS = (1, 4, 16)
EMPTY = "empty webhook"
CONTEXT = multiprocessing.get_context("fork")
NAMESPACE = "confcom-bench-webhook"
TURNS = 12
"""Each with every state, in random order."""
STATES = {
    "without the configurations": "none",
    "without them, again": "none",
    "with them, for all namespaces": "all",
    "with them, for labelled namespaces": "labelled",
}
PODS = 100
"""In each state of a turn."""
Message = MutableMapping[str, Any]
Client = Any
"""lightkube's; what its signatures say does not fit what its `from_dict` gives."""


def rows() -> Iterator[Row]:
    bodies = {"refused": review(pod("10Mi")), "patched": review(pod("10")), "complete": review(pod("10", "1"))}
    with serving("empty") as empty, serving("webhook") as webhook:
        for count in CONNECTIONS:
            cases = {EMPTY: (empty, bodies["patched"])}
            cases |= {f"a pod that is {what}": (webhook, body) for what, body in bodies.items()}
            # Noise only ever slows, so the best of some rounds counts; in turns, so that it meets all alike.
            rounds = [
                {name: load([server], [body], count) for name, (server, body) in cases.items()} for _ in range(ROUNDS)
            ]
            limit = 0.0
            for name in cases:
                best = max((round_[name] for round_ in rounds), key=lambda outcome: outcome.per_second)
                beside = None if name == EMPTY else limit
                limit = limit or best.per_second
                note = f"{best.cpu * 1e6:,.0f} µs of CPU each, {spread(best.latencies)}"
                yield Row(f"{name}, {count} connections", best.per_second, beside=beside, peer=EMPTY, note=note)


def pod(epc: str, enclave: str | None = None) -> dict[str, Any]:
    """A pod as the API server sends it, with what it fills in and the fields' managers."""
    amounts = {"cpu": "1", "kubernetes.azure.com/sgx_epc_mem_in_MiB": epc}
    amounts |= {"sgx.intel.com/enclave": enclave} if enclave else {}
    container = {
        "name": "app",
        "image": "registry.example.com/team/application@sha256:" + "0" * 64,
        "env": [{"name": f"SETTING_{number}", "value": "x" * 40} for number in range(12)],
        "resources": {"limits": amounts, "requests": amounts},
        "volumeMounts": [{"name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
        "terminationMessagePath": "/dev/termination-log",
        "imagePullPolicy": "IfNotPresent",
    }
    fields: dict[str, Any] = {f"f:field-{number}": {".": {}, "f:inner": {}} for number in range(40)}
    managers = [{"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": fields}]
    metadata = {"generateName": "app-", "namespace": "apps", "labels": {"app": "app"}, "managedFields": managers}
    spec = {"containers": [container], "volumes": [{"name": "kube-api-access", "projected": {"sources": []}}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {}}


def review(thing: dict[str, Any]) -> bytes:
    """A review as it goes over the wire."""
    request = {"uid": "0" * 36, "operation": "CREATE", "namespace": "apps", "object": thing, "oldObject": None}
    body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()
    head = f"POST /mutate-pods?timeout=5s HTTP/1.1\r\nHost: w\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body


# Servers.


class Server(NamedTuple):
    """A process that serves HTTPS on this machine."""

    port: int
    authority: str
    pid: int

    def cpu(self) -> float:
        """Seconds of CPU that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(name: str) -> Iterator[Server]:
    """The webhook, or the empty one, in a process of its own."""
    authority, pair = make_serving_pair(
        ("127.0.0.1",), now=datetime.fromtimestamp(time.time(), UTC), lifetime=timedelta(days=1), common_name="bench"
    )
    urls: Queue[str] = CONTEXT.Queue()
    server = CONTEXT.Process(target=_serve, args=(name, pair.certificate, pair.key, urls))
    server.start()
    try:
        port = int(urls.get(timeout=20).rpartition(":")[2])
        yield Server(port, authority.decode(), server.pid or 0)
    finally:
        server.terminate()
        server.join(20)


def _serve(name: str, certificate: bytes, key: bytes, urls: Queue[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the log is written, and not read
    configure_logging(pretty=False)
    app: Any = _empty
    if name == "webhook":
        metrics = WebhookMetrics(CollectorRegistry())
        app = WebhookApp(lambda namespace: AdmissionContext(namespace=namespace, largest_node=168), metrics)
    listener = Listener(address=("127.0.0.1", 0), tls=HeldTls(certificate, key))
    asyncio.run(serve_http(app, listener, stop=asyncio.Event(), started=urls.put))


async def _empty(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    del scope
    while (await receive()).get("more_body"):
        pass
    answer = allowance("0" * 36)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


# Load.


class Outcome(NamedTuple):
    """How much was answered, and how fast."""

    per_second: float
    cpu: float
    """Seconds of CPU that the server took for a review."""
    latencies: list[float]


def load(servers: Sequence[Server], requests: Sequence[bytes], connections: int, seconds: float = SECONDS) -> Outcome:
    """So many connections, to each server in turn; each asks again as soon as it has its answer, for so long.

    It sends one of the requests after the other.
    """
    results: Queue[list[float]] = CONTEXT.Queue()
    clients = []
    for number in range(connections):
        server = servers[number % len(servers)]
        first = number * len(requests) // connections
        turned = [*requests[first:], *requests[:first]]
        arguments = (server.port, server.authority, turned, seconds, results)
        clients.append(CONTEXT.Process(target=_client, args=arguments))
    start, cpu = time.perf_counter(), sum(server.cpu() for server in servers)
    for client in clients:
        client.start()
    latencies = [value for _ in clients for value in results.get(timeout=seconds + 60)]
    elapsed, cpu = time.perf_counter() - start, sum(server.cpu() for server in servers) - cpu
    for client in clients:
        client.join()
    return Outcome(len(latencies) / elapsed, cpu / len(latencies), latencies)


def _client(port: int, authority: str, requests: list[bytes], seconds: float, results: Queue[list[float]]) -> None:
    context, latencies, asked = ssl.create_default_context(cadata=authority), list[float](), cycle(requests)
    plain = socket.create_connection(("127.0.0.1", port), timeout=30)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            connection.sendall(next(asked))
            if not _answer(connection).startswith(b"HTTP/1.1 200"):
                os._exit(1)
            latencies.append(time.perf_counter() - begin)
    results.put(latencies)


def _answer(connection: ssl.SSLSocket) -> bytes:
    answer = connection.recv(65536)
    while (end := answer.find(b"\r\n\r\n")) < 0:
        answer += connection.recv(65536)
    found = re.search(rb"(?i)\r\ncontent-length: (\d+)", answer[: end + 2])
    while len(answer) < end + 4 + int(found[1] if found else 0):
        answer += connection.recv(65536)
    return answer


# A real API server.


async def on_cluster(kubeconfig: str) -> None:
    """Ordinary pods are created with dryRun, one after the other, with the configurations and without them, in turns.

    The webhook has no server: what is measured is the API server, which evaluates the conditions and calls none. Each
    turn has a second half without it, under another name: how far two equal things differ is what can be measured.
    """
    client: Client = open_client(kubeconfig)
    try:
        await client.create(Namespace.from_dict({"metadata": {"name": NAMESPACE}}))
        await _until(lambda: _there(client))
        found: dict[str, list[float]] = {name: [] for name in STATES}
        spent = dict.fromkeys(STATES, 0.0)
        await _measure(client)  # connections, caches
        for _ in range(TURNS):
            for state in random.sample(list(STATES), len(STATES)):
                await _configure(client, STATES[state])
                before = _admission(kubeconfig)
                found[state] += await _measure(client)
                spent[state] += _admission(kubeconfig) - before
        show(_report(found, spent))
    finally:
        await _configure(client, "none", wait=False)
        await client.delete(Namespace, NAMESPACE)
        await client.close()


def _report(found: dict[str, list[float]], spent: dict[str, float]) -> Iterator[Row]:
    for state, seconds in found.items():
        values = [value * 1e3 for value in seconds]
        note = (
            f"p99 {percentile(values, 0.99):.3f} ms, {len(values)} pods; in webhook admission, by the API server's own "
        )
        note += f"metric: {spent[state] / len(values) * 1e6:.0f} µs"
        yield Row(f"ordinary pod, {state}", statistics.median(values), "ms", note=note)
    base, *others = found
    for state in others:
        differences = sorted(
            statistics.median(random.choices(found[state], k=len(found[state])))
            - statistics.median(random.choices(found[base], k=len(found[base])))
            for _ in range(2000)
        )
        low, middle, high = (percentile(differences, share) * 1e6 for share in (0.025, 0.5, 0.975))
        note = f"95 % of resamples between {low:+.0f} and {high:+.0f} µs"
        yield Row(f"ordinary pod, {state}: median minus that {base}", middle, "µs", note=note)


def _admission(kubeconfig: str) -> float:
    """Seconds that the API server has spent on admission webhooks of creations, conditions included."""
    command = ["kubectl", "--kubeconfig", kubeconfig, "get", "--raw", "/metrics"]
    page = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    name = "apiserver_admission_controller_admission_duration_seconds_sum{"
    lines = [line for line in page.splitlines() if line.startswith(name) and 'operation="CREATE"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines if "AdmissionWebhook" in line)


async def _measure(client: Client) -> list[float]:
    thing, seconds = _pod(), []
    for _ in range(PODS):
        begin = time.perf_counter()
        await client.create(thing, dry_run=True)
        seconds.append(time.perf_counter() - begin)
    return seconds


def _pod(**limits: str) -> Any:  # noqa: ANN401 - lightkube's model
    container = {
        "name": "app",
        "image": "example.com/app:1",
        "env": [{"name": f"SETTING_{number}", "value": "x" * 40} for number in range(12)],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi", **limits}},
    }
    metadata = {"name": "ordinary", "namespace": NAMESPACE}
    spec = {"containers": [container, container | {"name": "beside"}]}
    return Pod.from_dict({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


async def _configure(client: Client, state: str, *, wait: bool = True) -> None:
    """Delete both configurations, or make them, and wait until the API server goes by them."""
    for kind, entries in (
        (MutatingWebhookConfiguration, mutating_webhooks),
        (ValidatingWebhookConfiguration, validating_webhooks),
    ):
        webhooks = entries(ServiceClient(), labelled=state == "labelled")
        for webhook in webhooks:
            only = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": [NAMESPACE]}
            webhook["namespaceSelector"]["matchExpressions"].append(only)
        try:
            await client.delete(kind, NAMESPACE)
        except Exception as error:  # noqa: BLE001 - it is gone already
            del error
        if state != "none":
            await client.create(kind.from_dict({"metadata": {"name": NAMESPACE}, "webhooks": webhooks}))
    if wait:
        sgx = _pod(**{"kubernetes.azure.com/sgx_epc_mem_in_MiB": "1"})
        await _until(lambda: _refuses(client, sgx, state == "all"))


async def _refuses(client: Client, thing: object, wanted: bool) -> bool:
    try:
        await client.create(thing, dry_run=True)
    except Exception as error:  # noqa: BLE001 - a refusal, by us or by another webhook
        return wanted and "127.0.0.1:1" in str(error)
    return not wanted


async def _there(client: Client) -> bool:
    try:
        await client.get(ServiceAccount, "default", namespace=NAMESPACE)
    except Exception:  # noqa: BLE001 - not yet
        return False
    return True


async def _until(seen: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(200):
        if await seen():
            await asyncio.sleep(0.3)
            return
        await asyncio.sleep(0.1)
    raise ClusterError("the API server does not apply the configuration")


def command_line(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.webhook", description=__doc__)
    parser.add_argument("--cluster", metavar="KUBECONFIG", help="measure ordinary pods at this API server")
    options = parser.parse_args(arguments)
    if options.cluster:
        asyncio.run(on_cluster(options.cluster))
    else:
        show(rows())
    return 0


if __name__ == "__main__":
    sys.exit(command_line(sys.argv[1:]))
