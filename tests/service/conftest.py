"""What several tests of services stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kubelet_emulator import KubeletEmulator


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder with a short name: the path of a socket has 107 bytes at most."""
    with TemporaryDirectory(prefix="kubelet-") as name:
        yield Path(name)


@pytest.fixture
def kubelet(sockets: Path) -> Iterator[KubeletEmulator]:
    emulator = KubeletEmulator(sockets)
    emulator.start()
    yield emulator
    emulator.stop()
