"""/healthz, /readyz and /metrics of the quote helper, over real HTTP."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from aesm_wire import KEY_ID, request
from confcom.cli.root import root
from confcom.errors import ConfigError, PlatformUnavailable
from confcom.protocols.custom_metrics import EXPORTERS
from confcom.services.quote_helper.peers import peer_name
from confcom.wiring import declare_enclave, export_simulated_collateral
from epc_api import EpcApi, component, make_pod
from helper_process import HelperProcess, eventually, get, make_machine, quote_request
from recording_platform import RecordingPlatform
from running_attestation_service import free_port
from running_helper import exchange, running_helper
from running_metrics_api import make_ca

pytestmark = pytest.mark.promise("M10")


def samples(metrics: bytes) -> dict[str, float]:
    lines = [line for line in metrics.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def helper(machine: Path) -> Iterator[HelperProcess]:
    folder = machine.parent
    running = HelperProcess(folder / "aesm.socket", machine, "--http", f"unix:{folder / 'http'}").ready()
    yield running
    running.end()


@pytest.fixture
def page(helper: HelperProcess) -> str:
    return f"unix:{helper.path.with_name('http')}"


def test_a_helper_that_serves_is_healthy_and_ready(page: str) -> None:
    assert get(page, "/healthz") == (200, b"ok\n")
    status, body = get(page, "/readyz")

    assert status == 200
    shown = json.loads(body)
    assert shown["ready"] is True
    assert [check["id"] for check in shown["checks"]] == ["attestation-key", "quote", "verification"]
    assert shown["checks"][2]["found"] == "TCB status UpToDate"


def test_metrics_tell_what_was_asked_and_how_the_platform_looks(
    page: str, helper: HelperProcess, machine: Path
) -> None:
    frame, _ = quote_request(machine)
    before = samples(get(page, "/metrics")[1])
    for _ in range(3):
        exchange(helper.path, frame)
    exchange(helper.path, request(22, (1, 5)))
    exchange(helper.path, b"\xff\xff\xff\xff")
    get(page, "/readyz")
    after = samples(get(page, "/metrics")[1])

    def grown(name: str) -> float:
        name = f"confcom_quote_helper_{name}"
        return after[name] - before.get(name, 0)

    assert grown('requests_total{kind="GetQuoteEx",outcome="answered"}') >= 3
    assert grown('requests_total{kind="GetSupportedAttKeyIds",outcome="refused"}') == 1
    assert grown('requests_total{kind="none",outcome="closed"}') >= 1
    assert grown('request_seconds_bucket{le="+Inf"}') >= 5
    assert grown("platform_seconds_count") >= 3
    ours = peer_name(Path("/"), os.getpid(), os.getuid())
    assert grown(f'quotes_total{{peer="{ours}"}}') == 3
    assert after['confcom_quote_helper_tcb_status{status="UpToDate"}'] == 1
    assert after['confcom_quote_helper_tcb_status{status="Revoked"}'] == 0
    assert after["confcom_quote_helper_self_test_ok"] == 1
    assert after["confcom_quote_helper_certification_data_age_seconds"] > 0
    assert after["confcom_quote_helper_collateral_expires_seconds"] > 0
    assert after["confcom_quote_helper_waiting"] == 0
    assert after["confcom_quote_helper_log_lines_lost_total"] == 0


def test_the_page_names_the_enclaves_that_had_quotes_and_counts_debug_and_unexpected_ones(
    tmp_path: Path, machine: Path
) -> None:
    ours, other = declare_enclave("web", "us"), declare_enclave("tool", "them", isv_svn=4, debug=True)
    frames = [quote_request(machine, enclave)[0] for enclave in (ours, other, ours)]
    forged = bytearray(frames[0])
    at = forged.index(ours.mr_enclave)
    forged[at : at + 32] = bytes(32)  # what a client merely sends, the QE refuses
    settings = f'expected_signers = ["{ours.mr_signer.hex()}"]'
    page = f"unix:{tmp_path / 'http'}"
    helper = HelperProcess(tmp_path / "aesm.socket", machine, "--http", page, settings=settings).ready()
    try:
        first = samples(get(page, "/metrics")[1])
        for frame in (*frames, bytes(forged)):
            exchange(helper.path, frame)
        assert get(page, "/readyz")[0] == 200  # its own test is a quote too
        found = samples(get(page, "/metrics")[1])
    finally:
        helper.end()

    prefix = "confcom_quote_helper_"
    assert (first[f"{prefix}debug_quotes_total"], first[f"{prefix}unexpected_signer_quotes_total"]) == (0, 0)
    assert (found[f"{prefix}debug_quotes_total"], found[f"{prefix}unexpected_signer_quotes_total"]) == (1, 1)
    peer = peer_name(Path("/"), os.getpid(), os.getuid())
    enclaves = {name: value for name, value in found.items() if name.startswith(f"{prefix}enclave_quotes_total")}
    assert enclaves == {
        f'{prefix}enclave_quotes_total{{debug="{debug}",isv_prod_id="1",isv_svn="{svn}",'
        f'mr_enclave="{one.mr_enclave.hex()}",mr_signer="{one.mr_signer.hex()}",peer="{peer}",'
        f'signer_expected="{expected}"}}': count
        for one, debug, svn, expected, count in ((ours, "false", 1, "true", 2), (other, "true", 4, "false", 1))
    }
    (when,) = {value for name, value in found.items() if "last_quote" in name and ours.mr_enclave.hex() in name}
    assert abs(when - time.time()) < 600


def test_top_shows_what_the_page_of_a_real_helper_says(tmp_path: Path, page: str, helper: HelperProcess) -> None:
    enclave = declare_enclave("shown", "signer", isv_svn=9, debug=True)
    exchange(helper.path, quote_request(helper.path.with_name("machine.json"), enclave)[0])
    get(page, "/readyz")
    with EpcApi() as api:
        api.put(make_pod("sgx-quote-helper-1", namespace="confcom-system", labels=component("quote-helper")))
        api.pages["sgx-quote-helper-1"] = get(page, "/metrics")[1]
        words = ["top", "--enclaves", "-o", "json", "--kubeconfig", api.kubeconfig(tmp_path)]
        found = json.loads(CliRunner().invoke(root, words).output)
    (line,) = [line for line in found["enclaves"] if line["mr_enclave"] == enclave.mr_enclave.hex()]
    peer = peer_name(Path("/"), os.getpid(), os.getuid())
    assert (line["name"], line["namespace"], line["node"]) == (peer, "", "n1")
    assert (line["mr_signer"], line["isv_prod_id"], line["isv_svn"]) == (enclave.mr_signer.hex(), 1, 9)
    assert (line["debug"], line["signer_expected"], line["quotes"]) == (True, None, 1)
    (node,) = found["nodes"]
    assert (node["tcb_status"], node["self_test_ok"]) == ("UpToDate", True)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("POST", "/readyz", 405), ("GET", "/healthz?probe=1", 200)]
)
def test_other_pages_and_methods_are_refused(page: str, method: str, path: str, status: int) -> None:
    assert get(page, path, method)[0] == status


@pytest.mark.parametrize(
    "nonsense", [b"\r\n\r\n", b"\xff" * 100 + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x" * 20000, b"GET"]
)
def test_nonsense_on_the_page_hurts_nobody(page: str, nonsense: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(page.removeprefix("unix:"))
        client.sendall(nonsense)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(60)
        assert client.recv(100)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431")

    assert get(page, "/healthz")[0] == 200


def test_readiness_names_what_fails(tmp_path: Path, machine: Path) -> None:
    folder = tmp_path / "collateral"
    export_simulated_collateral(machine, folder, datetime(2020, 1, 1, tzinfo=UTC))
    page = f"unix:{tmp_path / 'http'}"
    helper = HelperProcess(tmp_path / "aesm.socket", machine, "--http", page, "--collateral", str(folder)).ready()
    try:
        status, body = get(page, "/readyz")
        shown = json.loads(body)
        assert (status, shown["ready"]) == (503, False)
        assert shown["reason"].startswith("verification: not valid at present")
        assert "collateral" in shown["checks"][2]["advice"]
        assert samples(get(page, "/metrics")[1])["confcom_quote_helper_self_test_ok"] == 0
        # Quotes need no collateral: clients are served all the same.
        frame, _ = quote_request(machine)
        assert len(exchange(helper.path, frame)) > 1000
    finally:
        helper.end()


def test_a_helper_is_not_ready_before_its_key_is_made(tmp_path: Path) -> None:
    gate = threading.Event()
    platform = RecordingPlatform(before=lambda what: gate.wait(60) if what == "init_quote" else None)
    page = f"unix:{tmp_path / 'http'}"
    serving = running_helper(platform, tmp_path / "aesm.socket", http=page)
    opened = threading.Thread(target=lambda: serving.__enter__())
    opened.start()
    eventually("the page stands", (tmp_path / "http").exists)
    status, body = get(page, "/readyz")
    assert get(page, "/healthz")[0] == 200
    gate.set()
    opened.join(20)
    ready, _ = get(page, "/readyz")
    serving.__exit__(None, None, None)

    assert (status, json.loads(body)["ready"]) == (503, False)
    assert ready == 200


def test_a_platform_that_stops_working_is_not_ready(tmp_path: Path) -> None:
    platform = RecordingPlatform()
    page = f"unix:{tmp_path / 'http'}"
    with running_helper(platform, tmp_path / "aesm.socket", http=page):

        def fail(what: str) -> None:
            raise PlatformUnavailable("no /dev/sgx_enclave")

        platform.before = fail
        status, body = get(page, "/readyz")

    assert status == 503
    assert "attestation-key: " in json.loads(body)["reason"]


def test_an_address_that_is_taken_is_waited_for(tmp_path: Path) -> None:
    """An old helper on the same node may still have it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        page = f"127.0.0.1:{taken.getsockname()[1]}"
        with running_helper(RecordingPlatform(), tmp_path / "aesm.socket", http=page) as helper:
            assert len(exchange(helper.path, request(16, (1, KEY_ID)))) > 4
            taken.close()
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                try:
                    assert get(page, "/healthz")[0] == 200
                    break
                except OSError:
                    time.sleep(0.05)
            else:
                pytest.fail("the page never came")


@pytest.mark.parametrize("address", ["nowhere", ":80", "host:99999", "unix:"])
def test_a_wrong_address_is_explained(tmp_path: Path, address: str) -> None:
    with (
        pytest.raises(ConfigError, match="is not HOST:PORT"),
        running_helper(RecordingPlatform(), tmp_path / "aesm.socket", http=address),
    ):
        pass


def test_a_page_at_a_path_is_gone_with_its_helper(tmp_path: Path, machine: Path) -> None:
    page = tmp_path / "http"
    helper = HelperProcess(tmp_path / "aesm.socket", machine, "--http", f"unix:{page}").ready()
    eventually("the page is there", page.is_socket)
    helper.end()

    assert not page.exists()


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_the_metrics_are_served_over_tls_too_with_a_certificate_of_the_exporters_ca(machine: Path) -> None:
    """And nothing else is there: readiness is the kubelet's business."""
    folder = machine.parent
    authority = make_ca(folder / "exporters", *EXPORTERS.values())
    port = free_port()
    settings = f'https = "127.0.0.1:{port}"\nhttps_ca = "{folder / "exporters"}"\n'
    running = HelperProcess(folder / "tls.socket", machine, settings=settings).ready()
    try:
        context = ssl.create_default_context(cadata=authority.certificate.decode())
        eventually("the port is open", lambda: is_open(port))  # it is opened beside the socket, not before it
        plain = socket.create_connection(("127.0.0.1", port), timeout=60)
        with context.wrap_socket(plain, server_hostname=EXPORTERS["quote-helper"]) as secured:
            connection = http.client.HTTPConnection("127.0.0.1")
            connection.sock = secured
            for path, status, part in (("/metrics", 200, b"confcom_quote_helper_"), ("/readyz", 404, b"")):
                connection.request("GET", path)
                answer = connection.getresponse()
                assert (answer.status, part in answer.read()) == (status, True)
    finally:
        running.end()
