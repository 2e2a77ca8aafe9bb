"""An outage of the collateral service does not reach quotes on Intel's platform.

The stand-in for Intel's libraries has a quote provider that asks over HTTP, under the library's one lock.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import structlog
from msgspec import structs

from confcom.errors import NativeError, PlatformError
from confcom.formats.qcnl import QcnlFile
from confcom.platforms.intel.platform import IntelWorkerPlatform, WorkerLimits
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.protocols.pcs import PckCertRequest
from confcom.protocols.pcs_service import ServedRequest
from confcom.services.quote_helper import pck_endpoint
from confcom.services.quote_helper.pck_endpoint import PckEndpoint, PckMemory, ProviderServices
from confcom.services.quote_helper.self_test import KeptFile
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import MachineFile, SimulatedEnclave
from confcom.simulator.world import SimulatedWorld
from confcom.wiring import open_platform
from provider_stage import (
    Behaviour,
    PckService,
    honest_answer,
    install_provider,
    never_answers,
    platform_identity,
    refuses,
    says,
)
from sgx_host_folder import write
from software_qe import COMPILER, Stub, software_qe

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
DATA = bytes(range(64))


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(bytes(32), now=NOW)


@pytest.fixture
def enclave(world: SimulatedWorld) -> SimulatedEnclave:
    return world.machine.launch(EnclaveDeclaration.from_names("app", "us"))


@pytest.fixture
def service(world: SimulatedWorld) -> Iterator[PckService]:
    with PckService(world, NOW) as service:
        yield service


@pytest.fixture(autouse=True)
def always_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer from memory has a refresh begun behind it, as after an hour."""
    monkeypatch.setattr(pck_endpoint, "REFRESH", 0.0)
    monkeypatch.setattr(pck_endpoint, "RETRY", 0.0)


@pytest.fixture
def platform(
    libraries: Path, stub: Stub, world: SimulatedWorld, service: PckService, tmp_path: Path
) -> Iterator[IntelWorkerPlatform]:
    config = install_provider(stub, world, service.url)
    endpoint = PckEndpoint.of_host({"QCNL_CONF_PATH": str(config)}, tmp_path / "memory")
    assert endpoint is not None
    with software_qe(world.platform, stub):
        platform = IntelWorkerPlatform(libraries, WorkerLimits(timeout=60, attempt_timeout=30), surroundings=endpoint)
        yield platform
        platform.close()


class TestOutage:
    """Quotes while the services misbehave, each with the certificate from memory."""

    @pytest.mark.promise("M10")
    @pytest.mark.parametrize(
        "behaviour",
        [never_answers, refuses(503), refuses(500), refuses(404), refuses(461), refuses(429)],
        ids=["never answers", "503", "500", "404", "461", "429"],
    )
    def test_quotes_go_on(
        self, platform: IntelWorkerPlatform, enclave: SimulatedEnclave, service: PckService, behaviour: Behaviour
    ) -> None:
        source = EnclaveQuoteSource(platform, enclave)
        source.quote(DATA)
        service.behaviour = behaviour
        for _ in range(20):
            source.quote(DATA)
        assert platform.replaced == 0

    def test_quotes_go_on_when_nobody_listens_and_with_another_worker(
        self, platform: IntelWorkerPlatform, enclave: SimulatedEnclave, service: PckService, stub: Stub
    ) -> None:
        source = EnclaveQuoteSource(platform, enclave)
        source.quote(DATA)
        service.close()
        stub.once("get_quote", "crash")
        for _ in range(5):
            source.quote(DATA)
        assert platform.replaced == 1

    def test_without_it_the_library_stands_still(
        self, libraries: Path, stub: Stub, world: SimulatedWorld, enclave: SimulatedEnclave, service: PckService,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """The stand-in has the trap that the endpoint is for: an expired certificate stops the next quote."""
        settings = {"pck_cache_expire_hours": 0, "retry_times": 0}
        monkeypatch.setenv("QCNL_CONF_PATH", str(install_provider(stub, world, service.url, **settings)))
        with software_qe(world.platform, stub):
            platform = IntelWorkerPlatform(libraries, WorkerLimits(timeout=2, attempt_timeout=0.5))
            source = EnclaveQuoteSource(platform, enclave)
            source.quote(DATA)
            service.behaviour = never_answers
            with pytest.raises(PlatformError):
                source.quote(DATA)
            platform.close()

    def test_the_next_helper_begins_with_what_this_one_learned(
        self, platform: IntelWorkerPlatform, libraries: Path, stub: Stub, enclave: SimulatedEnclave,
        service: PckService, tmp_path: Path,
    ) -> None:  # fmt: skip
        EnclaveQuoteSource(platform, enclave).quote(DATA)
        service.close()
        endpoint = PckEndpoint.of_host({"QCNL_CONF_PATH": str(stub.folder / "qcnl.conf")}, tmp_path / "memory")
        successor = IntelWorkerPlatform(libraries, surroundings=endpoint)
        EnclaveQuoteSource(successor, enclave).quote(DATA)
        successor.close()

    def test_an_unknown_platform_is_told_as_that(self, platform: IntelWorkerPlatform, service: PckService) -> None:
        service.behaviour = refuses(461)
        with pytest.raises(NativeError) as error:
            platform.init_quote()
        assert error.value.native_code == 0xE047


def test_the_helpers_platform_has_it(
    libraries: Path, stub: Stub, world: SimulatedWorld, service: PckService, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("QCNL_CONF_PATH", str(install_provider(stub, world, service.url)))
    host = tmp_path / "host"
    for name in ("dev/sgx_enclave", "dev/sgx_provision"):
        write(host, name, "")
    (host / "usr").mkdir()
    (host / "usr/lib").symlink_to(libraries)
    with software_qe(world.platform, stub):
        platform = open_platform("intel", host=host, pck_memory=tmp_path / "memory")
        platform.init_quote()
        service.behaviour = never_answers
        platform.quote_size()
        platform.close()
    assert (tmp_path / "memory").is_file()


class TestMemory:
    """What is kept, what is refused, and what is told."""

    @pytest.fixture
    def request_(self, world: SimulatedWorld) -> PckCertRequest:
        return platform_identity(world)

    def ask(self, memory: PckMemory, *requests: PckCertRequest) -> list[int]:
        async def run() -> list[int]:
            found = []
            for request in requests:
                answer = await memory.answer(ServedRequest(4, request), request)
                found.append(answer.status)
                for known in memory._known.values():
                    if known.under_way is not None:
                        await asyncio.wait_for(asyncio.shield(known.under_way), 60)
            return found

        return asyncio.run(run())

    def test_the_encrypted_ppid_of_the_first_request_goes_with_every_later_one(
        self, service: PckService, request_: PckCertRequest
    ) -> None:
        memory = PckMemory(ProviderServices((service.url,), True).fetch)
        zeros = replace(request_, encrypted_ppid=bytes(384))
        assert self.ask(memory, request_, zeros, replace(request_, encrypted_ppid=None)) == [200] * 3
        assert [("&encrypted_ppid=" + "A5" * 384) in target for target in service.asked] == [True] * 3

    def test_parameters_and_headers_of_the_operator_go_along(self, service: PckService, request_) -> None:
        options = {"get_cert": {"headers": {"metadata": "true"}, "params": {"api-version": "2021-07-22-preview"}}}
        conf = {"local_pck_url": service.url, "pccs_url": "ftp://x/", "custom_request_options": options}
        services = ProviderServices.of(QcnlFile.parse(json.dumps(conf).encode()))
        assert services.urls == (service.url,)
        assert self.ask(PckMemory(services.fetch), request_) == [200]
        assert service.asked[0].endswith("&pceid=0000&api-version=2021-07-22-preview")
        assert service.headers[0]["metadata"] == "true"

    @pytest.mark.parametrize("how", ["html", "cut", "no chain", "another machine", "another world"])
    def test_a_wrong_answer_neither_counts_nor_replaces(self, world, service: PckService, request_, how: str) -> None:
        wrong = honest_answer(world, NOW)
        match how:
            case "html":
                wrong = structs.replace(wrong, body=b"<html>")
            case "cut":
                wrong = structs.replace(wrong, body=wrong.body[:900])
            case "no chain":
                wrong = structs.replace(wrong, headers=tuple(item for item in wrong.headers if "Chain" not in item[0]))
            case "another machine":
                wrong = honest_answer(SimulatedWorld((MachineFile(bytes(32), NOW, index=1),)), NOW)
            case _:
                wrong = honest_answer(SimulatedWorld.from_seed(b"\1" * 32, now=NOW), NOW)
        memory = PckMemory(ProviderServices((service.url,), True).fetch)
        assert self.ask(memory, request_) == [200]
        (before,) = [known.answer for known in memory._known.values()]
        service.behaviour = says(wrong)
        assert self.ask(memory, request_, request_) == [200, 200]
        assert [known.answer for known in memory._known.values()] == [before]

    def test_the_next_service_is_asked_where_the_first_gives_something_wrong(
        self, world, service: PckService, request_
    ) -> None:
        with PckService(world, NOW) as first:
            memory = PckMemory(ProviderServices((first.url, service.url), True).fetch)
            for wrong in (refuses(503), says(honest_answer(SimulatedWorld.from_seed(b"\1" * 32, now=NOW), NOW))):
                assert self.ask(memory, request_) == [200]
                first.behaviour = wrong
        assert self.ask(memory, request_) == [200]
        assert len(service.asked) == 2

    def test_a_first_answer_of_another_pce_is_told_as_nonsense(self, world, service: PckService, request_) -> None:
        service.behaviour = says(honest_answer(world, NOW))
        memory = PckMemory(ProviderServices((service.url,), True).fetch)
        assert self.ask(memory, replace(request_, pce_id=b"\1\0")) == [502]

    def test_a_chain_without_its_last_line_end_is_completed(self, service: PckService, request_) -> None:
        """Intel's library loses the last characters of a chain that does not end with an escape."""
        memory = PckMemory(ProviderServices((service.url,), True).fetch)
        self.ask(memory, request_)
        (known,) = memory._known.values()
        assert known.answer is not None
        stripped = replace(known.answer, issuer_chain=known.answer.issuer_chain.rstrip())
        assert pck_endpoint.check_certificate(request_, stripped, None).issuer_chain.endswith(b"-----\n")

    def test_without_room_for_a_thread_what_is_known_is_served(
        self, service: PckService, request_, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = PckMemory(ProviderServices((service.url,), True).fetch)

        def no_room(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_room)
            assert self.ask(memory, request_) == [403]
        for known in memory._known.values():
            known.retry_at = 0.0
        assert self.ask(memory, request_) == [200]
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_room)
            assert self.ask(memory, request_, request_) == [200, 200]

    def test_what_is_remembered_is_bounded(self, service: PckService, request_) -> None:
        memory = PckMemory(ProviderServices((), True).fetch)
        many = [replace(request_, cpu_svn=bytes([number]) * 16) for number in range(100)]
        assert set(self.ask(memory, *many)) == {403}
        assert len(memory._known) == pck_endpoint.MAX_PLATFORMS

    def test_the_file_holds_no_ppid_and_a_damaged_one_counts_as_none(
        self, service: PckService, request_, tmp_path: Path
    ) -> None:
        file = KeptFile(tmp_path / "memory", "pck.memory", limit=pck_endpoint.MAX_KEPT)
        self.ask(PckMemory(ProviderServices((service.url,), True).fetch, file), request_)
        content = file.read()
        assert content is not None
        assert (tmp_path / "memory").stat().st_mode & 0o077 == 0
        assert b"\xa5" * 8 not in content
        assert b"a5" * 8 not in content.lower()
        assert len(PckMemory(ProviderServices((), True).fetch, file)._known) == 1
        for damaged in (content[:-9], b"{}", b"\xff", content.replace(b"MII", b"MIJ"), b""):
            file.keep(damaged)
            assert len(PckMemory(ProviderServices((), True).fetch, file)._known) == 0

    def test_neither_ppid_nor_path_is_logged(self, service: PckService, request_, stub, world) -> None:
        config = install_provider(stub, world, service.url)
        with structlog.testing.capture_logs() as log:
            endpoint = PckEndpoint.of_host({"QCNL_CONF_PATH": str(config)})
            assert endpoint is not None
            service.behaviour = refuses(500)
            _get(endpoint, f"{endpoint.url}pckcert?qeid=00&encrypted_ppid={'A5' * 384}&cpusvn={'00' * 16}"
                           "&pcesvn=0000&pceid=0000")  # fmt: skip
            endpoint.close()
        text = repr(log).lower()
        assert "not fetched" in text
        assert [one["qe_id"] for one in log if one["event"] == "platform.identity"] == ["00"]
        assert "a5a5a5" not in text
        assert urlsplit(endpoint.url).path.strip("/").lower() not in text


class TestServer:
    """Any local process can connect."""

    @pytest.fixture
    def endpoint(self, stub: Stub, world: SimulatedWorld, service: PckService) -> Iterator[PckEndpoint]:
        endpoint = PckEndpoint.of_host({"QCNL_CONF_PATH": str(install_provider(stub, world, service.url))})
        assert endpoint is not None
        yield endpoint
        endpoint.close()

    def test_only_the_secret_path_gets_anything(self, endpoint: PckEndpoint, service: PckService) -> None:
        port = urlsplit(endpoint.url).port
        query = f"qeid=00&cpusvn={'00' * 16}&pcesvn=0000&pceid=0000"
        for path in ("/", "/sgx/certification/v4/pckcert", "/é/pckcert", "//pckcert", "/" + "x" * 32 + "/pckcert"):
            assert _get(endpoint, f"http://127.0.0.1:{port}{path}?{query}").startswith(b"HTTP/1.1 404")
        assert service.asked == []

    @pytest.mark.parametrize(
        "query", ["", "qeid=00", "qeid=zz&cpusvn=00&pcesvn=0&pceid=0", "a=b&" * 100, "qeid=" + "0" * 4000]
    )
    def test_what_is_no_request_is_refused(self, endpoint: PckEndpoint, service: PckService, query: str) -> None:
        assert _get(endpoint, f"{endpoint.url}pckcert?{query}").startswith(b"HTTP/1.1 400")
        assert service.asked == []

    @pytest.mark.parametrize("target", [b"http://[", b"/\xff", b"//[x", b"*", b"%"])
    def test_a_target_that_is_none_is_no_mistake_of_ours(self, endpoint: PckEndpoint, target: bytes) -> None:
        address = ("127.0.0.1", urlsplit(endpoint.url).port)
        with structlog.testing.capture_logs() as log, socket.create_connection(address, 60) as client:
            client.sendall(b"GET %s HTTP/1.1\r\n\r\n" % target)
            assert client.recv(100).startswith(b"HTTP/1.1 404")
        assert log == []

    def test_connections_that_say_nothing_give_way(self, endpoint: PckEndpoint, world: SimulatedWorld) -> None:
        identity = platform_identity(world)
        query = f"qeid={(identity.qe_id or b'').hex()}&cpusvn={identity.cpu_svn.hex()}&pcesvn=0d00&pceid=0000"
        address = ("127.0.0.1", urlsplit(endpoint.url).port)
        silent = [socket.create_connection(address) for _ in range(100)]
        for one in silent[::2]:
            one.sendall(b"GET /")
        assert _get(endpoint, f"{endpoint.url}pckcert?{query}").startswith(b"HTTP/1.1 200")
        for one in silent:
            one.close()

    def test_a_head_without_an_end_is_cut_off(self, endpoint: PckEndpoint) -> None:
        with socket.create_connection(("127.0.0.1", urlsplit(endpoint.url).port), 60) as client:
            client.sendall(b"x" * (pck_endpoint.MAX_HEAD + 1))
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""

    def test_a_worker_gets_the_operators_settings_with_the_endpoint_in_front(self, endpoint: PckEndpoint) -> None:
        given = QcnlFile.parse(os.pread(endpoint.descriptors[0], 9999, 0))
        assert given.value("local_pck_url") == given.value("pccs_url") == endpoint.url
        assert given.value("retry_times") == 0
        assert endpoint.environment["QCNL_CONF_PATH"] == f"/proc/self/fd/{endpoint.descriptors[0]}"
        assert "127.0.0.1" in endpoint.environment["no_proxy"]

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "No such file"),
            ("PCCS_URL=https://x", "line 1, column 1"),
            ('{"pccs_url": "x"}', "names no pccs_url"),
            ('{"pccs_url": "https://[::1"}', "names no pccs_url"),
            ('{"pccs_url": "https://x:99999"}', "names no pccs_url"),
            ('{"pccs_url": "https://x/", "local_cache_only": true}', "local_cache_only"),
        ],
    )
    def test_a_configuration_that_names_no_service_is_left_to_the_library(
        self, tmp_path: Path, content: str | None, reason: str
    ) -> None:
        if content is not None:
            (tmp_path / "conf").write_text(content)
        with structlog.testing.capture_logs() as log:
            assert PckEndpoint.of_host({"QCNL_CONF_PATH": str(tmp_path / "conf")}) is None
        assert reason in log[0]["reason"]


def _get(endpoint: PckEndpoint, url: str) -> bytes:
    parts = urlsplit(url)
    assert parts.hostname is not None
    with socket.create_connection((parts.hostname, parts.port or 80), 60) as client:
        client.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
    return answer
