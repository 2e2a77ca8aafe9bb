"""The collateral and the attestation service on SQLite, on PostgreSQL with one and two replicas, and Intel's PCCS.

    ./dev bench engines
    PCCS_SOURCE=FOLDER ./dev bench engines      beside Intel's service (benchmarks/pccs.py)

All speak HTTPS with the same certificate, and take turns in one run. PostgreSQL is Debian's, started here. Servers,
database and clients share the machine, so two replicas have no more processors than one.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

from benchmarks import attestation
from benchmarks.collateral_service import TOKEN, V4, get, simulated_service
from benchmarks.collateral_uploads import TIMEOUT, tool_output
from benchmarks.device_plugin import from_tests
from benchmarks.measure import Row, show, spread
from benchmarks.pccs import pccs
from benchmarks.simulated import simulated_world
from benchmarks.webhook import Outcome, Server, load
from confcom.collateral.store.migrations import CHAIN as COLLATERAL
from confcom.database.engine import Database, DatabaseAddress
from confcom.database.revisions import Chain
from confcom.pki.serving_pair import make_serving_pair
from confcom.services.attestation.attestation_store import CHAIN as ATTESTATION
from confcom.simulator.world import SimulatedWorld

CONNECTIONS = 16
ROUNDS = 3
SQLITE, ONE, TWO, PCCS = "SQLite", "PostgreSQL", "PostgreSQL, 2 replicas", "Intel's PCCS"
Answering = dict[str, Sequence[Server]]
"""The servers that take turns, by name."""


def rows() -> Iterator[Row]:
    with postgresql() as server, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield from _collateral(folder / "collateral", server)
        yield from _attestation(folder / "attestation", server)


@contextmanager
def postgresql() -> Iterator[Any]:
    """A PostgreSQL of this run, as the tests have it; ends the benchmark where none is installed."""
    tests: Any = from_tests("postgres_server")
    if not tests.program("initdb").exists():
        raise SystemExit("engines: skipped: no PostgreSQL server (`./dev postgres` installs Debian's)")
    tests.NAMED = "start"
    with tests.postgres_server() as server:
        yield server


def new_database(server: Any, name: str, chain: Chain) -> str:  # noqa: ANN401 - a module of the tests
    """The URL of a database with the tables of a service."""
    server.execute(f"CREATE DATABASE {name}")
    url: str = server.of(name)
    with closing(Database(DatabaseAddress.parse(url))) as database:
        chain.upgrade(database)
    return url


def _collateral(folder: Path, server: Any) -> Iterator[Row]:  # noqa: ANN401 - as above
    now = datetime.now(UTC)  # noqa: TID251 - what is served must be fresh
    authority, pair = make_serving_pair(("127.0.0.1",), now=now, lifetime=timedelta(days=1), common_name="bench")
    folder.mkdir()
    files = {"tls_certificate": folder / "tls.crt", "tls_key": folder / "tls.key"}
    for file, content in zip(files.values(), (pair.certificate, pair.key), strict=True):
        file.write_bytes(content)
    tls = {name: str(file) for name, file in files.items()}
    url, world = new_database(server, "collateral", COLLATERAL), simulated_world()
    requests = _requests(world)
    for where, memory in (("memory", {}), ("the store", {"memory": "0"})):
        with ExitStack() as stack:

            def start(store: str, memory: dict[str, str] = memory, stack: ExitStack = stack) -> Server:
                settings = tls | memory | ({"store": store} if store else {})
                (_, port), process, _ = stack.enter_context(simulated_service(folder, settings=settings))
                return Server(port, authority.decode(), process.pid)

            first = start(url)
            answering: Answering = {SQLITE: [start("")], ONE: [first], TWO: [first, start(url)]}
            peer = stack.enter_context(pccs(authority, pair.certificate, pair.key))
            if isinstance(peer, Server):
                answering[PCCS] = [peer]
            else:
                print(f"  without {PCCS}: {peer}")
            for servers in answering.values():
                _upload(servers[0], tool_output(world, 1))
            for what, request in requests.items():
                yield from _compared(f"{what} from {where}", answering, [request])


def _requests(world: SimulatedWorld) -> dict[str, bytes]:
    tcb = world.machine.tcb
    svns = f"cpusvn={tcb.cpu_svn.hex()}&pcesvn={tcb.pce_svn.to_bytes(2, 'little').hex()}"
    return {
        "tcb": get(f"{V4}/tcb?fmspc={world.machine.fmspc.hex()}"),
        "pckcert": get(f"{V4}/pckcert?qeid={1:032x}&{svns}&pceid=0000"),
    }


def _upload(server: Server, body: bytes) -> None:
    context = ssl.create_default_context(cadata=server.authority)
    with closing(HTTPSConnection("127.0.0.1", server.port, timeout=TIMEOUT, context=context)) as connection:
        headers = {"admin-token": TOKEN, "Content-Type": "application/json"}
        connection.request("PUT", f"{V4}/platformcollateral", body=body, headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"engines: {answer.status} {answer.read()[:500]!r}")


def _attestation(folder: Path, server: Any) -> Iterator[Row]:  # noqa: ANN401 - as above
    folder.mkdir()
    quotes = attestation.prepared(attestation.make_world(), folder)
    url = new_database(server, "attestation", ATTESTATION)
    with ExitStack() as stack:

        def start(store: str) -> Server:
            return stack.enter_context(attestation.serving(partial(attestation.service, store=store), folder))

        first = start(url)
        answering: Answering = {SQLITE: [start("")], ONE: [first], TWO: [first, start(url)]}
        for what, accept in (("attest, RS256", ""), ("attest, ES256", "application/eat+jwt")):
            yield from _compared(what, answering, attestation.attest_calls(quotes, accept))


def _compared(what: str, answering: Answering, requests: Sequence[bytes]) -> Iterator[Row]:
    """The best round of each beside that of SQLite: noise only ever slows; in turns, so that it meets all alike."""
    for servers in answering.values():
        load(servers, requests, len(servers), seconds=0.3)  # into the store, then into memory
    rounds = [
        {name: load(servers, requests, CONNECTIONS) for name, servers in answering.items()} for _ in range(ROUNDS)
    ]
    best: dict[str, Outcome] = {name: max(found[name] for found in rounds) for name in answering}
    cpu = {name: min(found[name].cpu for found in rounds) for name in answering}
    limit = best.pop(SQLITE)
    yield Row(f"{what}: {SQLITE}", limit.per_second, note=spread(limit.latencies))
    for name, found in best.items():
        yield Row(f"{what}: {name}", found.per_second, "/s", limit.per_second, SQLITE, spread(found.latencies))
        # This says the same on a busy machine; that of the database itself is not in it.
        note = f"{cpu[name] * 1e6:,.0f} µs each"
        yield Row(f"{what}: {name}, by CPU", 1 / cpu[name], "/s of CPU", 1 / cpu[SQLITE], SQLITE, note)


if __name__ == "__main__":
    show(rows())
