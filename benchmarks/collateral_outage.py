"""Outages of the collateral service under load, on Intel's platform: failed quotes, with and without the PCK endpoint.

Intel's libraries are the stand-in of the tests, whose quote provider asks over HTTP under the library's one lock. The
certificate counts as expired throughout, which is the worst moment for an outage. About three minutes; `--seconds` is
for each row.
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

from benchmarks.measure import percentile  # noqa: E402
from confcom.errors import PlatformError  # noqa: E402
from confcom.platforms.aesm_client import AesmPlatform  # noqa: E402
from confcom.platforms.enclave_quotes import EnclaveQuoteSource  # noqa: E402
from confcom.platforms.intel.platform import IntelWorkerPlatform  # noqa: E402
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
OUTAGES: dict[str, Behaviour | None] = {"up": None, "503": refuses(503), "never answers": never_answers, "down": None}


def main(seconds: float = 20.0, only: str | None = None) -> None:
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
                for endpoint in (False, True):
                    _row(world, stub, libraries, name, endpoint=endpoint, seconds=seconds)


def _row(world: SimulatedWorld, stub: Stub, libraries: Path, name: str, *, endpoint: bool, seconds: float) -> None:
    enclave = world.machine.launch(EnclaveDeclaration.from_names("app", "us"))
    with PckService(world, NOW) as service, _helper(world, stub, libraries, service.url, endpoint=endpoint) as path:
        EnclaveQuoteSource(AesmPlatform(path, simulated=True), enclave).quote(bytes(64))
        service.behaviour = OUTAGES[name]
        if name == "down":
            service.close()
        latencies, failed = _load(path, enclave, seconds)
    figures = "no quote"
    if latencies:
        p50, p99, worst = (percentile(latencies, share) * 1e3 for share in (0.5, 0.99, 1))
        figures = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {worst:,.0f} ms"
    which = f"{name}, {'with' if endpoint else 'without'} the endpoint"
    print(
        f"  {which:<36} {failed} of {len(latencies) + failed:,} quotes failed in {seconds:g} s; {figures}", flush=True
    )


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


def _load(path: Path, enclave: object, seconds: float) -> tuple[list[float], int]:
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
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--only", choices=OUTAGES)
    given = parser.parse_args()
    main(given.seconds, given.only)
