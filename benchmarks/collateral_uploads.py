"""The collateral service while a large upload is taken in, and registrations with a long queue.

python -m benchmarks.collateral_uploads            10,000 platforms put at once: answers meanwhile, memory; and
registrations per second with 0 and with 100,000 queued
"""

from __future__ import annotations

import http.client
import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from benchmarks.collateral_service import TOKEN, V4, Connection, get, simulated_service
from benchmarks.measure import Row, percentile, show, spread
from confcom.collateral.documents import keys_for
from confcom.collateral.store.registrations import Registration, put_registration
from confcom.collateral.store.store import CollateralStore
from confcom.protocols.pcs import PckCertRequest
from confcom.simulator.enclaves import QuotingEnclave
from confcom.simulator.world import SimulatedUpstream, SimulatedWorld

PLATFORMS = 10_000
QUEUED = 100_000
REGISTERED = 300
TIMEOUT = 1200
ADMIN, USER = {"admin-token": TOKEN}, {"user-token": TOKEN}


def rows() -> Iterator[Row]:
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        running = [stack.enter_context(simulated_service(folder, "--mode", "offline")) for folder in folders]
        (address, service, world), (elsewhere, _, _) = running
        body = tool_output(world, PLATFORMS)
        for one, _, _ in running:
            put(one, tool_output(world, 1))
        paths = {"cached": f"{V4}/tcb?fmspc={world.machine.fmspc.hex()}"}
        paths["of the store"] = f"{paths['cached']}&client="
        for what, path in paths.items():
            # The machine is as busy then, so what is above it is the service's own.
            calm, _ = during_upload(address, path, elsewhere, body)
            before = resident(service.pid)
            during, took = during_upload(address, path, address, body)
            name = f"answers {what}, upload of {len(body) >> 20} MiB: worst"
            note = f"{spread(during)}; {len(during):,} answers; p99 beside {percentile(calm, 0.99) * 1e3:.1f} ms"
            yield Row(name, max(during) * 1e3, "ms", max(calm) * 1e3, "upload into another service", note)
            note = f"{took:.0f} s; resident {before:.0f} MiB before, at most {peak(service.pid):.0f} MiB"
            yield Row(f"{PLATFORMS:,} platforms uploaded", PLATFORMS / took, note=note)
    none, many = (registrations(queued) for queued in (0, QUEUED))
    yield Row(f"registrations with {QUEUED:,} queued", many, "/s", none, "none queued")


def tool_output(world: SimulatedWorld, count: int) -> bytes:
    """What Intel's tool writes of so many platforms, each with the certificate of the one machine."""
    machine, now = world.machine, datetime.now(UTC)  # noqa: TID251 - what is served must be fresh
    source = SimulatedUpstream(world, lambda: now)
    qe_id = QuotingEnclave(machine, world.authority.pck_chain(machine)).qe_id
    raw = PckCertRequest(machine.tcb.cpu_svn, machine.tcb.pce_svn, bytes(2), qe_id)
    answer = source.fetch_pck_certificate(raw)
    tcb, identity, crl, root = map(source.fetch_document, keys_for(machine.fmspc, "platform", "sgx"))
    names = [f"{number:032x}" for number in range(1, count + 1)]
    certs = [{"tcb": {}, "tcbm": answer.tcbm.hex(), "cert": quote(answer.certificate)}]
    svns = {"cpu_svn": raw.cpu_svn.hex(), "pce_svn": raw.pce_svn.to_bytes(2, "little").hex()}
    platforms = [svns | {"qe_id": name, "pce_id": "0000", "enc_ppid": "ab" * 384} for name in names]
    chains = {
        "SGX-PCK-Certificate-Issuer-Chain": {"PLATFORM": quote(answer.issuer_chain)},
        "TCB-Info-Issuer-Chain": quote(tcb.issuer_chain),
        "SGX-Enclave-Identity-Issuer-Chain": quote(identity.issuer_chain),
    }
    collaterals = {
        "version": 4,
        "pck_certs": [{"qe_id": name, "pce_id": "0000", "enc_ppid": "", "certs": certs} for name in names],
        "tcbinfos": [{"fmspc": machine.fmspc.hex(), "sgx_tcbinfo": json.loads(tcb.body)}],
        "pckcacrl": {"platformCrl": crl.body.hex()},
        "qeidentity": identity.body.decode(),
        "certificates": chains,
        "rootcacrl": root.body.hex(),
    }
    return json.dumps({"platforms": platforms, "collaterals": collaterals}).encode()


def put(address: tuple[str, int], body: bytes) -> None:
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT)
    connection.request("PUT", f"{V4}/platformcollateral", body=body, headers=ADMIN)
    answer = connection.getresponse()
    if answer.status != 200:
        print(answer.status, answer.read()[:500])
    connection.close()


def during_upload(
    address: tuple[str, int], path: str, uploaded_to: tuple[str, int], body: bytes
) -> tuple[list[float], float]:
    """Seconds that each answer took to one client that asks again and again, and seconds of the upload meanwhile."""
    connection, upload = Connection(address), threading.Thread(target=put, args=(uploaded_to, body))
    latencies: list[float] = []
    start = time.perf_counter()
    upload.start()
    while upload.is_alive():
        target = f"{path}{len(latencies)}" if path.endswith("=") else path
        begin = time.perf_counter()
        if connection.ask(get(target)) != 200:
            raise SystemExit("bench: another answer than meanwhile")
        latencies.append(time.perf_counter() - begin)
        time.sleep(0.002)
    return latencies, time.perf_counter() - start


def registrations(queued: int) -> float:
    """Registrations per second of one client, with so many queued before."""
    with tempfile.TemporaryDirectory() as name:
        folder, now = Path(name), datetime.now(UTC)  # noqa: TID251 - as above
        with simulated_service(folder, "--mode", "offline") as (_, _, world):
            pass
        with CollateralStore(folder / "collateral.sqlite", roots=world.trust_roots) as store:
            store.write(partial(_queue, number=number, now=now) for number in range(queued))
        with simulated_service(folder, "--mode", "offline") as (address, _, _):
            connection = http.client.HTTPConnection(*address, timeout=TIMEOUT)
            begin = time.perf_counter()
            for number in range(REGISTERED):
                body = {"qe_id": f"ff{number:030x}", "pce_id": "0000", "platform_manifest": "ab" * 1000}
                connection.request("POST", f"{V4}/platforms", body=json.dumps(body), headers=USER)
                if (answer := connection.getresponse()).status != 200:
                    raise SystemExit(f"bench: {answer.read()[:300]!r}")
                answer.read()
            took = time.perf_counter() - begin
    return REGISTERED / took


def _queue(connection: sa.Connection, *, number: int, now: datetime) -> bool:
    request = PckCertRequest(bytes(16), 1, bytes(2), number.to_bytes(16, "big"), b"\x01" * 384)
    put_registration(connection, Registration(request, "waiting", now))
    return True


def resident(pid: int) -> float:
    return _status(pid, "VmRSS")


def peak(pid: int) -> float:
    return _status(pid, "VmHWM")


def _status(pid: int, field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    show(rows())
