"""What several tests of services stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kubelet_emulator import KubeletEmulator
from software_qe import Stub, build_libraries


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for Intel's libraries."""
    return build_libraries(tmp_path_factory.mktemp("libraries"))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """The folder in which a test says what they do."""
    # Not tmp_path: the path of a socket in it must be short.
    with TemporaryDirectory() as folder:
        monkeypatch.setenv("DCAP_STUB", folder)
        yield Stub(Path(folder))


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
