"""A quote helper over Intel's libraries (the stand-in) from its start to its end: `FOLDER-OF-THE-STUB LIBRARIES`.

For tests that run it under restrictions. Workers crash, hang, lose their enclaves and are killed on the way.
"""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from confcom.errors import PlatformBusy
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.intel.platform import IntelWorkerPlatform, WorkerLimits
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld
from running_helper import running_helper
from software_qe import Stub, software_qe


def quoted(source: EnclaveQuoteSource, **asked: bytes) -> bytes:
    """A quote from a helper that may say, on a machine with other work, that it is busy: clients then ask again."""
    for _ in range(200):
        with contextlib.suppress(PlatformBusy):
            return source.quote(bytes(64), **asked).quote
    raise AssertionError("busy for 200 requests")


def main(folder: Path, libraries: Path) -> None:
    stub, world = Stub(folder), SimulatedWorld.from_seed(bytes(32), now=datetime(2026, 11, 21, tzinfo=UTC))
    enclave = world.machine.launch(EnclaveDeclaration.from_names("app", "us"))
    platform = IntelWorkerPlatform(libraries, WorkerLimits(timeout=5, attempt_timeout=0.5))
    with software_qe(world.platform, stub), running_helper(platform, folder / "aesmd" / "aesm.socket") as helper:
        source = EnclaveQuoteSource(AesmPlatform(helper.path, simulated=True), enclave)
        for what in ("crash", "hang", "lose"):
            stub.once("get_quote", what)
            assert quoted(source, nonce=bytes(16))
        assert platform.worker_pid is not None
        os.kill(platform.worker_pid, 9)
        assert quoted(source)
    platform.close()
    sys.stdout.write(f"replaced {platform.replaced}\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
