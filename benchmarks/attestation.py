"""The attestation service: appraisals per second over HTTPS, beside what their parts imply.

    python -m benchmarks.attestation                       appraisals/s and p99 with 1, 4 and 16 connections
    python -m benchmarks.attestation --requests 1000000    resident memory while so many are answered

The implied rate is one verification, one signature and one empty request on the same server, each measured alone in the
same run. The rows "beside one process" compare with a server that does these three for each request, and nothing else.
Requests have quotes of several platforms and enclaves over other report data, as those of clients: what depends on
neither is kept by the service. Client and server share the machine; each connection is a process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import cycle
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, cpu_seconds, show, spread
from benchmarks.webhook import CONTEXT, Message, Outcome, Server, load
from confcom.appraisal.policy_file import PolicyFile
from confcom.appraisal.quote import QuoteVerifier
from confcom.appraisal.result import appraise
from confcom.formats.arguments import encode_base64url
from confcom.formats.evidence import EvidenceFile
from confcom.formats.quote import Quote
from confcom.pki.serving_pair import make_serving_pair
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.services.attestation.attestation_service import AttestationServiceConfig, serve
from confcom.services.attestation.attestation_store import AttestationStore, AuditRecord
from confcom.services.attestation.signing_keys import KeyFolder
from confcom.services.runtime.http_server import Listener, serve_http
from confcom.services.runtime.process import configure_logging
from confcom.services.runtime.tls import HeldTls
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld
from confcom.tokens.azure import (
    DEFAULT_POLICY,
    AttestationType,
    appraisal_claims,
    collateral_hashes,
    evidence_claims,
    policy_claims,
    policy_hash,
    quote_claims,
    read_request,
    request_claims,
)
from confcom.tokens.ear import ear_claims, trustworthiness_vector
from confcom.tokens.policy_evaluation import Decisions
from confcom.tokens.policy_language import parse_policy

CONNECTIONS = (1, 4, 16)
ROUNDS = 3
PLATFORMS = 4
QUOTES = 48
"""Of each enclave on each platform."""
ANSWER = b'{"token":"' + b"x" * 2600 + b'"}'
"""As long as a token."""
CLAIMS = {f"claim-{number}": "x" * 60 for number in range(30)}
"""As many and as long as those of a token."""
Serve = Callable[[Path, "Queue[str]", bytes, bytes], None]


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder, world = Path(name), make_world()
        quotes = prepared(world, folder)
        verifier, collateral, now = QuoteVerifier(world.trust_roots), world.publish(_now()), _now()
        turn = cycle(quotes)
        keys = {key.algorithm: key for key in KeyFolder(folder / "measured", simulated=True, clock=_now).load()}
        with (
            serving(_empty, folder) as empty,
            serving(_verifying, folder) as verifying,
            serving(service, folder) as running,
        ):
            for kind, accept in (("RS256", ""), ("ES256", "application/eat+jwt")):
                asked = attest_calls(quotes, accept)
                for count in CONNECTIONS:
                    # In turns, so that what else the machine does meets all alike.
                    bare, together, ours, parts = [], [], [], []
                    for _ in range(ROUNDS):
                        bare.append(load([empty], asked, count))
                        together.append(load([verifying], asked, count))
                        ours.append(load([running], asked, count))
                        parts += [
                            cpu_seconds(lambda: verifier.verify(Quote.parse(next(turn)), collateral, now=now))
                            + cpu_seconds(lambda: keys[kind].sign(CLAIMS, {}))  # noqa: B023
                        ]
                    yield from _compared(f"{kind}, {count} connections", bare, ours, min(parts))
                    yield _beside(f"{kind}, {count} connections, beside one process", together, ours)
        yield from _stages(folder, world, quotes[0])


def _stages(folder: Path, world: SimulatedWorld, quote: bytes) -> Iterator[Row]:
    """CPU of the parts of an attest call, each called again and again; HTTP, TLS and task switches are the rest."""
    kind, now, policy = AttestationType.SGX_ENCLAVE, _now(), PolicyFile().policy(accept_simulated=True)
    body = attest_calls([quote], "")[0].partition(b"\r\n\r\n")[2]
    keys = {key.algorithm: key for key in KeyFolder(folder / "measured", simulated=True, clock=_now).load()}
    verifier, collateral = QuoteVerifier(world.trust_roots), world.publish(now)
    given, evidence, rules = (
        read_request(body, kind),
        EvidenceFile.parse(quote),
        Decisions(parse_policy(DEFAULT_POLICY)),
    )
    verified = verifier.verify(evidence.quote, collateral, now=now)
    seen = policy_claims(quote_claims(evidence.quote))
    decision = rules.on(seen)

    def claims() -> dict[str, Any]:
        named, hashes = quote_claims(evidence.quote), collateral_hashes(collateral)
        of_request = request_claims(given, verified.tee, hashes)
        return decision.claims() | evidence_claims(named) | appraisal_claims(verified) | of_request

    stated = claims()
    record = AuditRecord(now, kind, "127.0.0.1", "accepted", "", policy_hash(DEFAULT_POLICY), "0" * 64,
                         json.dumps(seen))  # fmt: skip
    with closing(AttestationStore.open(folder / "measured.sqlite")) as store:
        stages: dict[str, Callable[[], object]] = {
            "read the request": lambda: read_request(body, kind),
            "read the quote": lambda: EvidenceFile.parse(quote),
            "verify it": lambda: verifier.verify(evidence.quote, collateral, now=now),
            "apply the policy of confcom verify": lambda: appraise(verified, policy),
            "evaluate the policy of the type": lambda: rules.on(policy_claims(quote_claims(evidence.quote))),
            "make the claims": claims,
            "make the claims of an EAR": lambda: ear_claims(
                verified.tee, trustworthiness_vector(verified), stated, policy_id="", nonce=None, issued=0, expires=0
            ),
            "sign with RS256": lambda: keys["RS256"].sign(stated, {"typ": "JWT"}),
            "sign with ES256": lambda: keys["ES256"].sign(stated, {"typ": "eat+jwt"}),
            "record one appraisal": lambda: store.record_at_once([record]),
            "record 16 appraisals": lambda: store.record_at_once([record] * 16),
        }
        for name, call in stages.items():
            yield Row(f"stage: {name}", cpu_seconds(call) * 1e6, "µs of CPU")


def _compared(name: str, bare: list[Outcome], ours: list[Outcome], parts: float) -> Iterator[Row]:
    """Rates of the best rounds, and the CPU of the server for a request: that says the same on a busy machine."""
    best = max(ours, key=lambda outcome: outcome.per_second)
    implied = 1 / (1 / max(outcome.per_second for outcome in bare) + parts)
    yield Row(name, best.per_second, beside=implied, peer="implied", note=spread(best.latencies))
    cpu, most = min(outcome.cpu for outcome in ours), min(outcome.cpu for outcome in bare) + parts
    yield Row(f"{name}, by CPU", 1 / cpu, "/s of CPU", 1 / most, "implied", f"{cpu * 1e6:,.0f} µs each")


def _beside(name: str, together: list[Outcome], ours: list[Outcome]) -> Row:
    """CPU beside that of a server that verifies, signs and answers, and nothing else.

    The three take longer in turn than each alone: a call that is repeated at once finds the caches filled.
    """
    bare, cpu = (min(outcome.cpu for outcome in outcomes) for outcomes in (together, ours))
    return Row(name, 1 / cpu, "/s of CPU", 1 / bare, "verify, sign, answer", f"{bare * 1e6:,.0f} µs for those")


def memory(requests: int) -> Iterator[Row]:
    """Resident memory after each tenth of the requests."""
    with tempfile.TemporaryDirectory() as name:
        folder, world = Path(name), make_world()
        quotes = prepared(world, folder)
        with serving(service, folder) as running:
            done, step = 0, requests / 10
            # In turns: a token for Azure's clients takes an RSA signature, an EAR does not.
            for accept in cycle(("application/eat+jwt", "")):
                if done >= requests:
                    break
                done += len(load([running], attest_calls(quotes, accept), 4, 20.0).latencies)
                if done >= step:
                    pages = int(Path(f"/proc/{running.pid}/statm").read_text().split()[1])
                    yield Row(f"after {done:,} requests", pages * os.sysconf("SC_PAGE_SIZE") / 2**20, "MiB resident")
                    step += requests / 10


def make_world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(bytes(range(32)), now=_now(), machines=PLATFORMS)


def prepared(world: SimulatedWorld, folder: Path) -> list[bytes]:
    """Quotes, all over other report data, of two enclaves on each platform; their collateral is then in the folder."""
    world.export_collateral(folder / "collateral")
    sources = [
        EnclaveQuoteSource(platform, machine.launch(EnclaveDeclaration.from_names(name, "us")))
        for machine, platform in zip(world.machines, world.platforms, strict=True)
        for name in ("app", "other")
    ]
    return [source.quote(bytes((number,)) * 64).quote for number in range(QUOTES) for source in sources]


def attest_calls(quotes: Sequence[bytes], accept: str) -> list[bytes]:
    """Attest calls as they go over the wire."""
    head = f"POST /simulated/attest/SgxEnclave?api-version=2022-08-01 HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n"
    bodies = [json.dumps({"quote": encode_base64url(quote)}) for quote in quotes]
    return [
        f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode() for body in bodies
    ]


@contextmanager
def serving(target: Serve, folder: Path) -> Iterator[Server]:
    authority, pair = make_serving_pair(("127.0.0.1",), now=_now(), lifetime=timedelta(days=1), common_name="bench")
    urls: Queue[str] = CONTEXT.Queue()
    server = CONTEXT.Process(target=target, args=(folder, urls, pair.certificate, pair.key))
    server.start()
    try:
        port = int(urls.get(timeout=60).removesuffix("/simulated").rpartition(":")[2])
        yield Server(port, authority.decode(), server.pid or 0)
    finally:
        server.terminate()
        server.join(20)


def service(folder: Path, urls: Queue[str], certificate: bytes, key: bytes, *, store: str = "") -> None:
    """The attestation service over a store, by default an SQLite file in the folder."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    configure_logging(pretty=False)
    files = folder / f"tls-{os.getpid()}.crt", folder / f"tls-{os.getpid()}.key"
    for file, content in zip(files, (certificate, key), strict=True):
        file.write_bytes(content)
    port = _free_port()
    config = AttestationServiceConfig(
        listen=f"127.0.0.1:{port}",
        tls_certificate=str(files[0]),
        tls_key=str(files[1]),
        store=store or str(folder / "attestation.sqlite"),
        keys=str(folder / "keys"),
        collateral=str(folder / "collateral"),
        attest_per_minute=10**9,
    )
    roots = make_world().trust_roots
    asyncio.run(serve(config, roots=roots, clock=_now, stop=asyncio.Event(), started=urls.put))


def _empty(folder: Path, urls: Queue[str], certificate: bytes, key: bytes) -> None:
    del folder
    listener = Listener(address=("127.0.0.1", 0), tls=HeldTls(certificate, key))
    asyncio.run(serve_http(_empty_application, listener, stop=asyncio.Event(), started=urls.put))


def _verifying(folder: Path, urls: Queue[str], certificate: bytes, key: bytes) -> None:
    """A server that verifies the quote of the benchmark and signs claims before it answers."""
    world, now = make_world(), _now()
    verifier, collateral = QuoteVerifier(world.trust_roots), world.publish(now)
    turn = cycle(prepared(world, folder / "beside"))
    keys = {key.algorithm: key for key in KeyFolder(folder / "measured", simulated=True, clock=_now).load()}
    listener = Listener(address=("127.0.0.1", 0), tls=HeldTls(certificate, key))

    async def application(scope: Message, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        verifier.verify(Quote.parse(next(turn)), collateral, now=now)
        keys["ES256" if (b"accept", b"application/eat+jwt") in scope["headers"] else "RS256"].sign(CLAIMS, {})
        await _empty_application(scope, receive, send)

    asyncio.run(serve_http(application, listener, stop=asyncio.Event(), started=urls.put))


async def _empty_application(scope: Message, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
    del scope
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


def _now() -> datetime:
    return datetime.fromtimestamp(int(time.time()), UTC)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, help="answer so many and print the memory")
    options = parser.parse_args(arguments)
    show(rows() if options.requests is None else memory(options.requests))


if __name__ == "__main__":
    main()
