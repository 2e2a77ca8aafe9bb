"""Handshakes of attested TLS beside plain TLS 1.3 on the same stack: `ssl` of the standard library over loopback.

Servers run in a process of their own; the client's handshakes take turns, one of each kind, so that a busy machine
slows all alike. Verification alone is measured by processor time. Plain TLS verifies a P-256 certificate of a CA and
its name. The kinds of attested handshakes:

- `certificate known`: the same server again;
- `platform known`: a certificate that is new, on a platform whose collateral and quoting enclave are known;
- `cold`: a new context, which knows nothing; the process has read the certificates and documents before;
- `fresh`: a certificate made for this handshake, with a quote of the simulated platform, on a known platform.
"""

from __future__ import annotations

import multiprocessing
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.measure import Row, cpu_seconds, number, percentile, rate, show, spread
from confcom.appraisal.policy import AllOf, MrEnclave, safe_defaults
from confcom.appraisal.quote import QuoteVerifier
from confcom.atls import ClientContext, Issuer, ServerContext
from confcom.pki.proof import Memory
from confcom.pki.serving_pair import Authority, ServingPair
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld

HANDSHAKES = 400
AIM = 0.5
"""Milliseconds that attested TLS may add where the peer's platform is known."""
SEED = b"seed of the attested TLS benchmark".ljust(32)
WAIT = 60
ENCLAVE = EnclaveDeclaration.from_names("bench", "bench")


def rows() -> Iterator[Row]:
    now = datetime.now(UTC)  # noqa: TID251 - a benchmark may read the clock
    world = SimulatedWorld.from_seed(SEED, now=now)
    collateral, policy = world.publish(), AllOf(safe_defaults(accept_simulated=True), MrEnclave((ENCLAVE.mr_enclave,)))
    authority = Authority.make("bench", now=now, lifetime=timedelta(days=1))
    pair = authority.issue(["localhost"], now=now, lifetime=timedelta(days=1), common_name="localhost")

    def attested(*, fresh: bool = False) -> ClientContext:
        return ClientContext(policy, collateral, verifier=QuoteVerifier(world.trust_roots), fresh=fresh)

    plain = ssl.create_default_context(cadata=authority.certificate.decode())
    plain.minimum_version = ssl.TLSVersion.TLSv1_3
    known, platform, fresh = attested(), attested(), attested(fresh=True)

    def platform_known() -> ClientContext:
        platform._known = Memory(1)
        return platform

    with _servers(world, pair) as (plain_port, attested_port):
        kinds: dict[str, tuple[int, Callable[[], ssl.SSLContext]]] = {
            "plain TLS 1.3": (plain_port, lambda: plain),
            "attested, certificate known": (attested_port, lambda: known),
            "attested, platform known": (attested_port, platform_known),
            "attested, cold": (attested_port, attested),
            "attested, fresh": (attested_port, lambda: fresh),
        }
        taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for turn in range(HANDSHAKES + 5):
            for kind, (port, context) in kinds.items():
                figures = _handshake(port, context())
                if turn >= 5:
                    taken[kind].append(figures)
        with socket.create_connection(("127.0.0.1", attested_port), WAIT) as stream:
            connection = known.wrap_socket(stream)
            alone = {
                "certificate known": cpu_seconds(lambda: known.verify_peer(connection)),
                "platform known": cpu_seconds(lambda: platform_known().verify_peer(connection)),
                "cold": cpu_seconds(lambda: attested().verify_peer(connection)),
            }
            connection.close()
    for kind, seconds in alone.items():
        aim = AIM if "known" in kind else None
        note = "processor, the best of ten rounds"
        yield Row(f"verification alone, {kind}", seconds * 1e3, "ms", aim, "aim", note)
    yield from _figures(taken)
    issuer = Issuer(EnclaveQuoteSource(world.platform, world.machine.launch(ENCLAVE)))
    yield Row("certificates issued, one thread", rate(lambda: issuer.fresh(bytes(32))), note="quotes are simulated")


def _figures(taken: dict[str, list[tuple[float, float]]]) -> Iterator[Row]:
    wall = {kind: [one for one, _ in figures] for kind, figures in taken.items()}
    processor = {kind: [one for _, one in figures] for kind, figures in taken.items()}
    plain, *attested = taken
    base = len(wall[plain]) / sum(wall[plain])
    yield Row(plain, base, note=spread(wall[plain]))
    for kind in attested:
        yield Row(kind, len(wall[kind]) / sum(wall[kind]), beside=base, peer=plain, note=spread(wall[kind]))
    for kind in attested:
        added = (percentile(wall[kind], 0.5) - percentile(wall[plain], 0.5)) * 1e3
        client = (percentile(processor[kind], 0.5) - percentile(processor[plain], 0.5)) * 1e3
        aim = AIM if "known" in kind else None
        yield Row(f"{kind}: added p50", added, "ms", aim, "aim", f"{number(client)} ms of the client's processor")


def _handshake(port: int, context: ssl.SSLContext) -> tuple[float, float]:
    """Seconds, and seconds of this process's CPU, that one handshake takes after the connection is there."""
    with socket.create_connection(("127.0.0.1", port), WAIT) as stream:
        started, used = time.perf_counter(), time.process_time()
        connection = context.wrap_socket(stream, server_hostname="localhost")
        figures = time.perf_counter() - started, time.process_time() - used
        connection.close()
    return figures


@contextmanager
def _servers(world: SimulatedWorld, pair: ServingPair) -> Iterator[tuple[int, int]]:
    """A plain and an attested server in another process; yields their ports."""
    forked = multiprocessing.get_context("fork")
    ours, theirs = forked.Pipe()
    process = forked.Process(target=_serve, args=(world, pair, theirs), daemon=True)
    process.start()
    try:
        if not ours.poll(WAIT):
            raise SystemExit("the servers did not start")
        yield ours.recv()
    finally:
        process.terminate()
        process.join(WAIT)


def _serve(world: SimulatedWorld, pair: ServingPair, ready: Connection) -> None:
    plain = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    plain.minimum_version, plain.num_tickets = ssl.TLSVersion.TLSv1_3, 0
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(pair.certificate + pair.key)
        plain.load_cert_chain(file.name)
    source = EnclaveQuoteSource(world.platform, world.machine.launch(ENCLAVE))
    attested = ServerContext(Issuer(source), fresh_per_second=1e6)
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    threads = [
        threading.Thread(target=partial(_answer, listener, context), daemon=True)
        for listener, context in zip(listeners, (plain, attested), strict=True)
    ]
    for thread in threads:
        thread.start()
    ready.send(tuple(listener.getsockname()[1] for listener in listeners))
    for thread in threads:
        thread.join()


def _answer(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        stream, _ = listener.accept()
        try:
            context.wrap_socket(stream, server_side=True).close()
        except OSError:
            stream.close()


if __name__ == "__main__":
    show(rows())
