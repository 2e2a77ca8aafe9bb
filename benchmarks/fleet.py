"""A fleet over one PostgreSQL: taken in, registered again, shown; then a TCB recovery and a wave of reboots.

    python -m benchmarks.fleet                        10,000 and 100,000 platforms
    python -m benchmarks.fleet --platforms 10000

Every platform has a certificate of its own. What is measured ends with the recovery: `RECOVERED` platforms of the fleet
ask two replicas for their new certificates, of an upstream that answers at once. The wave is calculated from that: so
many nodes that reboot within ten minutes, and an upstream that takes as long as Intel's.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import http.client
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from multiprocessing.queues import Queue
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote

from benchmarks.collateral_service import CONTEXT, V4, Connection, get, simulated_service
from benchmarks.collateral_uploads import TIMEOUT, USER, put, resident, tool_output
from benchmarks.engines import new_database, postgresql
from benchmarks.measure import Row, show, spread
from benchmarks.simulated import SEED, simulated_world
from benchmarks.webhook import Server
from confcom.collateral.store.migrations import CHAIN
from confcom.collateral.store.status import fleet_counts, store_status
from confcom.collateral.store.store import CollateralStore
from confcom.protocols.pcs import PckCertificateAnswer
from confcom.protocols.pcs_service import parse_request, pck_certificate_response
from confcom.services.runtime.http_server import Listener, Message, Page, serve_http
from confcom.simulator.documents import pem
from confcom.simulator.machine import SimulatedMachine
from confcom.simulator.world import SimulatedWorld

SIZES = (10_000, 100_000)
UPLOADED = 5_000
"""Platforms in one upload."""
REGISTERED, TURNS = 100, 9
ASKED = 4_000
RECOVERED = 2_000
CLIENTS = 32
REPLICAS = 2
STATUS_LIMIT, MEMORY_LIMIT = 2.0, 256
WAVE = 600.0
"""Seconds within which all nodes ask."""
UPSTREAM_SECONDS = 0.5
"""Of one answer of Intel's service (measured elsewhere: fractions of a second to a second)."""
WAITING, AGAIN = 256, 30.0
"""Questions to upstream that may wait in a replica; seconds until a node whose question was refused asks again."""
THREADS = (8, 64)
"""Questions to upstream at a time: the default of `upstream_threads`, and the most that it can be."""
DAY, EARLIER = 86_400.0, 0.2
"""Age of certificates at clients, and the largest part of it that is taken off by chance."""


def rows(sizes: Sequence[int] = SIZES) -> Iterator[Row]:
    with postgresql() as server:
        for size in sizes:
            yield from _fleet(size, server)


def _fleet(size: int, server: Any) -> Iterator[Row]:  # noqa: ANN401 - a module of the tests
    name, said = f"fleet_{size}", f"{size:,} platforms"
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder, url, empty_url = Path(temporary), *(new_database(server, one, CHAIN) for one in (name, f"{name}_empty"))
        (address, service, world), (empty, _, _) = (
            stack.enter_context(simulated_service(folder, "--mode", "offline", settings={"store": one}))
            for one in (url, empty_url)
        )
        put(address, tool_output(world, 1))
        put(empty, tool_output(world, 1))
        begin = time.perf_counter()
        for first in range(0, size, UPLOADED):
            put(address, _upload(world, range(first, min(first + UPLOADED, size))))
        took = time.perf_counter() - begin
        kilobytes = server.execute(f"SELECT pg_database_size('{name}')")[0][0] / size / 1000
        note = f"{took:,.0f} s with making their certificates; {kilobytes:.1f} kB each in PostgreSQL"
        yield Row(f"{said}: uploaded", size / took, note=note)
        full, few = _registered(address, empty)
        yield Row(f"{said}: registrations", full, "/s", few, "1 platform", "in turns; flat: 0.80 or more")
        seconds = _status(url, world)
        yield Row(f"{said}: status", seconds, "s", STATUS_LIMIT, "limit")
        begin = time.perf_counter()
        for path in ("/metrics", "/readyz"):
            Connection(address).ask(get(path))
        pages = time.perf_counter() - begin
        note = f"after uploads, /metrics and /readyz ({pages:.2f} s)"
        yield Row(f"{said}: resident memory of the service", resident(service.pid), "MiB", MEMORY_LIMIT, "limit", note)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        upstream = stack.enter_context(_authority())
        root = folder / "root.pem"
        root.write_bytes(world.root_pem())
        settings = {"store": url, "upstream": upstream, "trust_roots": str(root), "simulated_machine": ""}
        started = [stack.enter_context(simulated_service(folder, settings=settings)) for _ in range(REPLICAS)]
        addresses, replicas = [one[0] for one in started], [Server(one[0][1], "", one[1].pid) for one in started]
        chosen = random.Random(1).sample(range(size), min(ASKED, size))
        per_second, latencies, _ = _ask(addresses, [_path(world, number, 0) for number in chosen[:ASKED]])
        yield Row(f"{said}: PCK certificates from the store", per_second, note=spread(latencies))
        used, database = sum(one.cpu() for one in replicas), _cpu_of_database(server)
        before = _transactions(server, name)
        per_second, latencies, refused = _ask(addresses, [_path(world, number, 1) for number in chosen[:RECOVERED]])
        used, database = (
            value / RECOVERED
            for value in (sum(one.cpu() for one in replicas) - used, _cpu_of_database(server) - database)
        )
        transactions = (_transactions(server, name) - before) / RECOVERED
        note = f"{spread(latencies)}; {refused} refused; each {used * 1e3:.1f} ms of CPU of a replica, and"
        note += f" {database * 1e3:.1f} of PostgreSQL in {transactions:.1f} transactions"
        yield Row(f"{said}: recovery, new certificates", per_second, note=note)
    for one in (name, f"{name}_empty"):
        server.execute(f"DROP DATABASE {one} WITH (FORCE)")
    for threads in THREADS:
        wave = reboot_wave(size, threads=threads * REPLICAS, waiting=WAITING * REPLICAS)
        note = f"{size / WAVE:,.0f}/s ask, upstream gives {threads * REPLICAS / UPSTREAM_SECONDS:,.0f}/s; "
        note += f"{wave.refused / size:.1f} refusals a node; longest wait {wave.longest / 60:,.1f} minutes"
        yield Row(f"{said}: wave, {threads} questions at a time, calculated", wave.ended / 60, "minutes", note=note)
    busy = size / WAVE * used
    limits = (
        "upstream is the limit" if size / WAVE * UPSTREAM_SECONDS > THREADS[0] * REPLICAS else "nothing is at its limit"
    )
    note = f"at {size / WAVE:,.0f}/s: {busy:.2f} cores of replicas, {size / WAVE * database:.2f} of PostgreSQL"
    yield Row(f"{said}: PostgreSQL bears in recovery", 1 / database, "/s a core", note=f"{note}; {limits}")
    spreading = size / (DAY * EARLIER)
    yield Row(f"{said}: asked for again a day later", spreading, "/s", size / WAVE, "without the chance in max-age")


# Platforms.


def _machine(world: SimulatedWorld, number: int, recoveries: int) -> SimulatedMachine:
    """One of the fleet, after so many recoveries of its TCB."""
    machine = SimulatedMachine(SEED, number + 1)
    machine.tcb = machine.tcb.with_component(0, world.machine.tcb.sgx_components[0] + recoveries)
    return machine


def _certificate(world: SimulatedWorld, number: int, recoveries: int) -> PckCertificateAnswer:
    machine, authority = _machine(world, number, recoveries), world.authority
    ca = authority.pck_cas[machine.pck_ca]
    leaf = pem(ca.issue(authority.pck_certificate(machine)))
    tcbm = machine.tcb.cpu_svn + machine.tcb.pce_svn.to_bytes(2, "little")
    return PckCertificateAnswer(leaf, authority.ca_chain(machine.pck_ca), tcbm, machine.fmspc, machine.pck_ca.value)


def _upload(world: SimulatedWorld, numbers: range) -> bytes:
    """What Intel's tool writes of these platforms."""
    whole = json.loads(tool_output(world, 1))
    platform, certs = whole["platforms"][0], whole["collaterals"]["pck_certs"][0]["certs"][0]
    platforms, found = [], []
    for number in numbers:
        answer, qe_id = _certificate(world, number, 0), f"{number + 1:032x}"
        platforms.append(platform | {"qe_id": qe_id})
        certificate = certs | {"tcbm": answer.tcbm.hex(), "cert": quote(answer.certificate)}
        found.append({"qe_id": qe_id, "pce_id": "0000", "enc_ppid": "", "certs": [certificate]})
    whole["platforms"], whole["collaterals"]["pck_certs"] = platforms, found
    return json.dumps(whole).encode()


def _path(world: SimulatedWorld, number: int, recoveries: int) -> bytes:
    tcb = _machine(world, number, recoveries).tcb
    svns = f"cpusvn={tcb.cpu_svn.hex()}&pcesvn={tcb.pce_svn.to_bytes(2, 'little').hex()}"
    return get(f"{V4}/pckcert?qeid={number + 1:032x}&{svns}&pceid=0000")


@contextmanager
def _authority() -> Iterator[str]:
    """The URL of an upstream that gives each platform its certificate after the recovery, at once."""
    urls: Queue[str] = CONTEXT.Queue()
    server = CONTEXT.Process(target=_serve, args=(urls,))
    server.start()
    try:
        yield urls.get(timeout=60)
    finally:
        server.terminate()
        server.join(20)


def _serve(urls: Queue[str]) -> None:
    world = simulated_world()

    async def answer(scope: Message, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        del receive
        query = dict(parse_qsl(scope["query_string"].decode()))
        if "qeid" not in query:  # the early set, which the services look for by themselves
            await Page(404, b"").send(send)
            return
        served = parse_request(scope["path"], query)
        assert served is not None
        found = _certificate(world, int(query["qeid"], 16) - 1, 1)
        response = pck_certificate_response(served, found, request_id="1", max_age=3600)
        headers = [(name.encode(), value.encode()) for name, value in response.headers]
        headers.append((b"content-length", str(len(response.body)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    asyncio.run(serve_http(answer, Listener(address=("127.0.0.1", 0)), stop=asyncio.Event(), started=urls.put))


# Measurements.


def _registered(*addresses: tuple[str, int]) -> list[float]:
    """Registrations per second of one client at each service: the medians of `TURNS`."""
    rates: list[list[float]] = [[] for _ in addresses]
    for turn in range(TURNS):
        for address, found in zip(addresses, rates, strict=True):
            with closing(http.client.HTTPConnection(*address, timeout=TIMEOUT)) as connection:
                begin = time.perf_counter()
                for number in range(REGISTERED):
                    _register(connection, f"ff{turn:02x}{number:028x}")
                found.append(REGISTERED / (time.perf_counter() - begin))
    return [median(found) for found in rates]


def _register(connection: http.client.HTTPConnection, qe_id: str) -> None:
    body = {"qe_id": qe_id, "pce_id": "0000", "platform_manifest": "ab" * 1000}
    connection.request("POST", f"{V4}/platforms", body=json.dumps(body), headers=USER)
    if (answer := connection.getresponse()).status != 200:
        raise SystemExit(f"fleet: {answer.read()[:300]!r}")
    answer.read()


def _status(url: str, world: SimulatedWorld) -> float:
    """Seconds of `collateral status`, and of the counts that the service shows."""
    now = datetime.now(UTC)  # noqa: TID251 - documents of the fleet are of today
    with CollateralStore(url, roots=world.trust_roots) as store:
        begin = time.perf_counter()
        store_status(store, now)
        fleet_counts(store, now)
        return time.perf_counter() - begin


def _ask(addresses: Sequence[tuple[str, int]], requests: list[bytes]) -> tuple[float, list[float], int]:
    """Each request once, over `CLIENTS` connections: per second, seconds of each, and how many were refused."""
    results: Queue[tuple[list[float], int]] = CONTEXT.Queue()
    begin = time.perf_counter()
    clients = [
        CONTEXT.Process(target=_client, args=(addresses[number % len(addresses)], requests[number::CLIENTS], results))
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    found = [results.get(timeout=TIMEOUT) for _ in clients]
    took = time.perf_counter() - begin
    for client in clients:
        client.join()
    return len(requests) / took, [value for latencies, _ in found for value in latencies], sum(one for _, one in found)


def _client(address: tuple[str, int], requests: list[bytes], results: Queue[tuple[list[float], int]]) -> None:
    connection, latencies, refused = Connection(address), [], 0
    for request in requests:
        begin = time.perf_counter()
        refused += connection.ask(request) != 200
        latencies.append(time.perf_counter() - begin)
    results.put((latencies, refused))


def _transactions(server: Any, name: str) -> int:  # noqa: ANN401 - as above
    time.sleep(1.5)  # its sessions report once a second
    server.execute("SELECT pg_stat_clear_snapshot()")
    return int(server.execute(f"SELECT xact_commit FROM pg_stat_database WHERE datname = '{name}'")[0][0])


def _cpu_of_database(server: Any) -> float:  # noqa: ANN401 - as above
    """Seconds of CPU of the server's processes, with those that have ended."""
    parent, total = server._process.pid, 0.0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        own = int(entry.parent.name) == parent
        if own or int(fields[1]) == parent:
            total += sum(map(int, fields[11:15] if own else fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return total


# The wave.


class Wave(NamedTuple):
    """Until the last node has its certificate: seconds from the first reboot, refused questions, the longest wait."""

    ended: float
    refused: int
    longest: float


def reboot_wave(nodes: int, *, threads: int, waiting: int, seed: int = 1) -> Wave:
    """Nodes ask evenly over `WAVE`; each answer of upstream takes `UPSTREAM_SECONDS` of one of `threads`.

    A question that finds `waiting` others before it is refused, and asked again after `AGAIN` seconds, more or less.
    """
    chance = random.Random(seed)
    asked = [(number * WAVE / nodes, number * WAVE / nodes) for number in range(nodes)]
    free = [0.0] * threads
    begins: list[float] = []
    """When upstream begins with what waits."""
    ended = longest = 0.0
    refused = 0
    while asked:
        now, first = heapq.heappop(asked)
        while begins and begins[0] <= now:
            heapq.heappop(begins)
        if len(begins) >= waiting:
            refused += 1
            heapq.heappush(asked, (now + AGAIN * chance.uniform(0.8, 1.2), first))
            continue
        begin = max(now, heapq.heappop(free))
        heapq.heappush(free, begin + UPSTREAM_SECONDS)
        if begin > now:
            heapq.heappush(begins, begin)
        ended, longest = max(ended, begin + UPSTREAM_SECONDS), max(longest, begin + UPSTREAM_SECONDS - first)
    return Wave(ended, refused, longest)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--platforms", default=",".join(map(str, SIZES)), help="sizes of fleets, with commas between")
    show(rows([int(size) for size in parser.parse_args().platforms.split(",")]))
