"""Outages of the collateral service under load, on Intel's platform: failed quotes and latency of the others.

Intel's libraries are the stand-in of the tests, whose quote provider asks over HTTP under the library's one lock. The
certificate counts as expired throughout, which is the worst moment for an outage. With the helper's PCK endpoint one
helper serves through turns with the service up and with its outage, so that other work on the machine meets both alike;
beside it, failed quotes of a helper without the endpoint. About two minutes; `--turns` and `--seconds` change that.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import structlog

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from benchmarks.measure import Row, number, percentile, show, spread  # noqa: E402
from confcom.errors import PlatformError  # noqa: E402
from confcom.platforms.aesm_client import AesmPlatform  # noqa: E402
from confcom.platforms.intel.platform import IntelWorkerPlatform  # noqa: E402
from confcom.platforms.quoting import EnclaveQuoteSource  # noqa: E402
from confcom.services.quote_helper import pck_endpoint  # noqa: E402
from confcom.simulator.declaration import EnclaveDeclaration  # noqa: E402
from confcom.simulator.world import SimulatedWorld  # noqa: E402
from provider_stage import (  # type: ignore[import-not-found]  # noqa: E402
    Behaviour,
    PckService,
    install_provider,
    never_answers,
    refuses,
)
from running_helper import running_helper  # type: ignore[import-not-found]  # noqa: E402
from software_qe import Stub, build_libraries, software_qe  # type: ignore[import-not-found]  # noqa: E402

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
CLIENTS = 4
OUTAGES: dict[str, Behaviour | None] = {"503": refuses(503), "no answers": never_answers, "connections refused": None}
Turn = tuple[list[float], int]
"""Seconds of each quote, and failures."""


def rows(turns: int = 6, seconds: float = 2.5, only: str | None = None) -> Iterator[Row]:
    # Ask every second: by default once an hour, and after a failure once a minute.
    pck_endpoint.REFRESH = pck_endpoint.RETRY = 1.0
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    world = SimulatedWorld.from_seed(bytes(32), now=NOW)
    with tempfile.TemporaryDirectory() as folder:
        stub = Stub(Path(folder))
        libraries = build_libraries(stub.folder / "libraries")
        os.environ["DCAP_STUB"] = folder
        with software_qe(world.platform, stub):
            for name in (only,) if only else OUTAGES:
                _, [without] = _turns(world, stub, libraries, name, endpoint=False, turns=1, seconds=turns * seconds)
                up, out = _turns(world, stub, libraries, name, endpoint=True, turns=turns, seconds=seconds)
                yield from _compared(name, up, out, without)


def _compared(name: str, up: list[Turn], out: list[Turn], without: Turn) -> Iterator[Row]:
    quotes, failed = sum(len(turn[0]) for turn in out), sum(turn[1] for turn in out)
    note = f"of {quotes + failed:,}; without it, of {len(without[0]) + without[1]:,}"
    yield Row(f"failed quotes, {name}", failed, "", without[1], "without the endpoint", note)
    calm, outage = ([value for turn in turns for value in turn[0]] for turns in (up, out))
    p99s = [[percentile(turn[0], 0.99) for turn in turns if turn[0]] for turns in (up, out)]
    ratios = sorted(ours / other for other, ours in zip(*p99s, strict=True))
    note = (
        f"ratio of single turns {number(ratios[0])} to {number(ratios[-1])}; outage {spread(outage)}; up {spread(calm)}"
    )
    p99 = [percentile(values, 0.99) * 1e3 for values in (outage, calm)]
    yield Row(f"p99 of quotes, {name}", p99[0], "ms", p99[1], "service up, in turns", note)


def _turns(
    world: SimulatedWorld, stub: Stub, libraries: Path, name: str, *, endpoint: bool, turns: int, seconds: float
) -> tuple[list[Turn], list[Turn]]:
    """Turns with the service up (none without the endpoint) and with its outage."""
    enclave, up, out = world.machine.launch(EnclaveDeclaration.from_names("app", "us")), [], []
    with PckService(world, NOW) as service, _helper(world, stub, libraries, service.url, endpoint=endpoint) as path:
        EnclaveQuoteSource(AesmPlatform(path, simulated=True), enclave).quote(bytes(64))
        for number in range(turns):
            if number:
                service.behaviour = None
                if OUTAGES[name] is None:
                    service.reopen()
            if endpoint:
                up.append(_load(path, enclave, seconds))
            service.behaviour = OUTAGES[name]
            if OUTAGES[name] is None:
                service.close()
            out.append(_load(path, enclave, seconds))
    return up, out


@contextmanager
def _helper(world: SimulatedWorld, stub: Stub, libraries: Path, url: str, *, endpoint: bool) -> Iterator[Path]:
    settings = {"pck_cache_expire_hours": 0, "retry_times": 1, "retry_delay": 1}
    config = str(install_provider(stub, world, url, **settings))
    os.environ["QCNL_CONF_PATH"] = config
    surroundings = pck_endpoint.PckEndpoint.of_host(os.environ) if endpoint else None
    platform = IntelWorkerPlatform(libraries, surroundings=surroundings)
    with tempfile.TemporaryDirectory() as folder, running_helper(platform, Path(folder) / "s") as helper:
        yield helper.path
        platform.close()


def _load(path: Path, enclave: object, seconds: float) -> Turn:
    latencies: list[float] = []
    failures: list[float] = []
    end = time.monotonic() + seconds

    def ask() -> None:
        source = EnclaveQuoteSource(AesmPlatform(path, simulated=True), enclave)  # type: ignore[arg-type]
        while (begin := time.monotonic()) < end:
            try:
                source.quote(bytes(64))
                latencies.append(time.monotonic() - begin)
            except PlatformError:
                failures.append(time.monotonic() - begin)

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, len(failures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=6, help="with the service up and with the outage each")
    parser.add_argument("--seconds", type=float, default=2.5, help="of each turn")
    parser.add_argument("--only", choices=OUTAGES)
    given = parser.parse_args()
    show(rows(given.turns, given.seconds, given.only))
