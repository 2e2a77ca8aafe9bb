"""Quotes per second through the socket, by 1, 4 and 16 clients, each with a new connection per request as real ones do.

Client and server share the machine. Beside the limit: one P-256 signature per quote, at the speed of the OpenSSL inside
`cryptography`, on one core (the platform is called by one thread at a time, as on hardware).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from benchmarks.measure import percentile, rate, row
from benchmarks.simulated import simulated_world
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.platforms.aesm_client import AesmPlatform
from confcom.protocols import aesm_messages as m
from confcom.protocols.aesm import ClientConnection
from confcom.simulator.declaration import EnclaveDeclaration

SECONDS = 4.0
CLIENTS = (1, 4, 16)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = simulated_world()
        machine = folder / "machine.json"
        world.write_first(machine)
        path = folder / "aesm.socket"
        helper = _start(path, machine)
        try:
            frames = _frames(path, world.machine.launch(EnclaveDeclaration.from_names("bench", "bench")))
            limit = _limit()
            print(row("limit: P-256 signatures of one core", limit))
            for kind, frame in frames.items():
                for clients in CLIENTS:
                    _report(kind, clients, *_load(path, frame, clients), limit)
        finally:
            helper.send_signal(signal.SIGTERM)
            helper.wait(20)


def _start(path: Path, machine: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "confcom", "quote-helper", "--socket", str(path)]
    command += ["--platform", "simulated", "--simulated-machine", str(machine)]
    helper = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert helper.stdout is not None
    if "ready" not in helper.stdout.readline():
        sys.exit("bench: the quote helper did not start")
    return helper


def _frames(path: Path, enclave: object) -> dict[str, bytes]:
    """One request of each kind as it goes over the wire."""
    platform = AesmPlatform(path, simulated=True)
    target = platform.init_quote().target_info
    report = enclave.create_report(target, bytes(64))  # type: ignore[attr-defined]
    size = platform.quote_size()
    key = bytes(ECDSA_P256_KEY_ID)
    return {
        "quotes": ClientConnection().send(m.GetQuoteExRequest(report=bytes(report), att_key_id=key, buf_size=size)),
        "quote sizes": ClientConnection().send(m.GetQuoteSizeExRequest(att_key_id=key)),
    }


def _load(path: Path, frame: bytes, clients: int) -> tuple[float, list[float]]:
    context = multiprocessing.get_context("fork")
    results: Queue[list[float]] = context.Queue()
    start = time.perf_counter()
    workers = [context.Process(target=_client, args=(str(path), frame, results)) for _ in range(clients)]
    for worker in workers:
        worker.start()
    latencies = [value for _ in workers for value in results.get()]
    elapsed = time.perf_counter() - start
    for worker in workers:
        worker.join()
    return len(latencies) / elapsed, latencies


def _client(path: str, frame: bytes, results: Queue[list[float]]) -> None:
    latencies = []
    end = time.perf_counter() + SECONDS
    while (begin := time.perf_counter()) < end:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(path)
            connection.sendall(frame)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        if len(answer) < 8:
            os._exit(1)
        latencies.append(time.perf_counter() - begin)
    results.put(latencies)


def _report(kind: str, clients: int, per_second: float, latencies: list[float], limit: float) -> None:
    p50, p99 = (percentile(latencies, share) * 1e6 for share in (0.5, 0.99))
    share = f"{per_second / limit:.0%} of the limit, " if kind == "quotes" else ""
    print(row(f"{kind}, {clients} clients", per_second, beside=f"{share}p50 {p50:,.0f} µs, p99 {p99:,.0f} µs"))


def _limit() -> float:
    key = ec.generate_private_key(ec.SECP256R1())
    algorithm = ec.ECDSA(SHA256())
    return rate(lambda: key.sign(bytes(432), algorithm))
