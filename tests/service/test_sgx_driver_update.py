"""The quote helper over Intel's libraries while the SGX driver is unloaded and comes back.

The devices are true ones: of /dev/zero, and of a number without a driver. The libraries are the stand-in, which opens
no device: the test lets it fail as Intel's do.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from confcom.appraisal.quote import verify_quote
from confcom.errors import PlatformError, PlatformUnavailable
from confcom.platforms.aesm_client import AesmPlatform
from confcom.platforms.intel.platform import IntelWorkerPlatform, WorkerLimits
from confcom.platforms.interface import device_obstacles
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.services.quote_helper.self_test import SelfTestKit
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld
from helper_process import eventually, get
from running_helper import RunningHelper, running_helper
from software_qe import COMPILER, Stub, software_qe

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="needs a C compiler"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices"),
    pytest.mark.promise("M10"),
    pytest.mark.promise("M14"),
]

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
LOADED, GONE = (1, 5), (240, 7)
LOST = "/dev/sgx_enclave cannot be opened: No such device or address: the SGX driver was unloaded or replaced"


class Node:
    """A container's devices, and the helper that has them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.world = SimulatedWorld.from_seed(bytes(32), now=NOW)
        (root / "dev").mkdir()
        for device in ("sgx_enclave", "sgx_provision"):
            self.set(device, LOADED)

    def set(self, device: str, number: tuple[int, int]) -> None:
        path = self.root / "dev" / device
        path.unlink(missing_ok=True)
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(*number))

    def client(self, path: Path) -> EnclaveQuoteSource:
        enclave = self.world.machine.launch(EnclaveDeclaration.from_names("app"))
        return EnclaveQuoteSource(AesmPlatform(path, simulated=True), enclave)

    def quote(self, path: Path) -> None:
        quote = self.client(path).quote(bytes(range(64))).quote
        verified = verify_quote(quote, self.world.publish(NOW), roots=self.world.trust_roots, now=NOW)
        assert verified.report_data == bytes(range(64))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def platform(libraries: Path, stub: Stub, node: Node) -> Iterator[IntelWorkerPlatform]:
    limits = WorkerLimits(timeout=60, attempt_timeout=30)
    with software_qe(node.world.platform, stub):
        platform = IntelWorkerPlatform(libraries, limits, devices=lambda: device_obstacles(node.root))
        yield platform
        platform.close()


@pytest.fixture
def helper(platform: IntelWorkerPlatform, node: Node, stub: Stub) -> Iterator[RunningHelper]:
    kit = SelfTestKit(None, None, node.world.trust_roots, simulated=True, devices=platform.device_obstacles)
    path = stub.folder / "aesm.socket"
    with running_helper(platform, path, self_test=kit, http=f"unix:{path}.http") as helper:
        yield helper


def ready(helper: RunningHelper) -> tuple[bool, str]:
    status, body = get(f"unix:{helper.path}.http", "/readyz")
    shown = json.loads(body)
    assert (status == 200) is shown["ready"]
    return shown["ready"], shown["reason"]


def test_a_driver_that_returns_with_the_same_numbers_needs_no_other_container(
    helper: RunningHelper, platform: IntelWorkerPlatform, node: Node, stub: Stub
) -> None:
    page = f"unix:{helper.path}.http"
    node.quote(helper.path)
    before = platform.worker_pid
    assert get(page, "/healthz") == (200, b"ok\n")
    assert ready(helper) == (True, "")

    with capture_logs() as logs:
        node.set("sgx_enclave", GONE)
        stub.always("get_quote_size", "e001")
        assert get(page, "/healthz") == (503, f"{LOST}\n".encode())
        assert get(page, "/healthz")[0] == 503
        eventually("the helper is not ready", lambda: ready(helper) == (False, f"devices: {LOST}"))
        with pytest.raises(PlatformError):
            node.quote(helper.path)

        node.set("sgx_enclave", LOADED)
        stub.relent()
        assert get(page, "/healthz") == (200, b"ok\n")
        node.quote(helper.path)
        eventually("the helper is ready", lambda: ready(helper) == (True, ""))
    assert platform.worker_pid != before
    told = [(line["outcome"], line["reason"]) for line in logs if line["event"] == "aesm.devices"]
    assert told == [("lost", LOST), ("returned", LOST)]


def test_another_number_keeps_the_container_unhealthy_until_it_is_made_again(helper: RunningHelper, node: Node) -> None:
    """The new driver's number exists on the host; this container's device has the old one for ever."""
    for device in ("sgx_enclave", "sgx_provision"):
        node.set(device, GONE)
    os.mknod(node.root / "dev/of_the_new_driver", stat.S_IFCHR | 0o666, os.makedev(*LOADED))
    both = f"{LOST}; {LOST.replace('enclave', 'provision')}\n".encode()
    for _ in range(3):
        assert get(f"unix:{helper.path}.http", "/healthz") == (503, both)


def test_a_call_that_fails_says_that_the_device_is_lost(platform: IntelWorkerPlatform, node: Node, stub: Stub) -> None:
    platform.init_quote()
    node.set("sgx_enclave", GONE)
    for native in ("e001", "e016", "e03f"):
        stub.always("get_quote_size", native)
        with pytest.raises(PlatformUnavailable) as caught:
            platform.quote_size()
        assert caught.value.message == LOST
        assert caught.value.retryable
        assert "/healthz" in caught.value.advice()
    stub.relent()
    node.set("sgx_enclave", LOADED)
    replaced = platform.replaced
    assert platform.quote_size() > 1000  # at once, although calls before have failed in a row
    assert platform.quote_size() > 1000
    assert platform.replaced <= replaced + 1


def test_a_worker_that_opened_the_old_drivers_device_is_replaced(platform: IntelWorkerPlatform, node: Node) -> None:
    platform.init_quote()
    before = platform.worker_pid
    node.set("sgx_enclave", GONE)
    assert platform.device_obstacles() == (LOST,)
    node.set("sgx_enclave", LOADED)
    assert platform.quote_size() > 1000
    assert platform.worker_pid != before
