"""Every daemon as a process of its own, on stand-ins of what it needs, and the metrics that its page then shows."""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from aesm_wire import request
from certificate_requests_api import CertificateRequestsApi
from confcom.pki.serving_pair import Authority
from epc_api import EpcApi, make_pod
from epc_host import UID, Node
from helper_process import quote_request
from kubelet_emulator import KubeletEmulator
from running_attestation_service import free_port
from running_helper import exchange
from running_metrics_api import MetricsApiStage
from running_plugin import EPC
from sgx_pods import container, pod
from webhook_api import WebhookApi

CONFCOM = [sys.executable, "-m", "confcom"]
FMSPC = "000053494d00"
CONTAINER = "0123456789abcdef" * 4
Exported = dict[str, set[str]]
"""Names of samples with the names of their labels; `UNKNOWN` for a counter that has counted nothing yet."""
UNKNOWN = "*"
SET_BY_SCRAPING = frozenset(("job", "instance", "node", "namespace", "pod", "container", "service", "endpoint"))
"""Labels that Prometheus gives to what it scrapes from pods, by our monitors or the usual configuration."""


def exported(page: bytes) -> Exported:
    """What a page has."""
    found: Exported = {}
    for family in text_string_to_metric_families(page.decode()):
        if not family.samples:
            found.setdefault(f"{family.name}_total" if family.type == "counter" else family.name, {UNKNOWN})
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


class Page(NamedTuple):
    """A daemon's page at HOST:PORT. `scrape` gives it once all is there; `use` has the daemon do something."""

    component: str
    address: str
    scrape: Callable[[], bytes]
    use: Callable[[int], object] = lambda turn: None
    https: bool = False


@contextmanager
def every_page(folder: Path) -> Iterator[list[Page]]:
    """The pages of all daemons. `folder` has a short name, for sockets in it."""
    with ExitStack() as stack:
        machine = folder / "machine.json"
        _run("simulate", "machine", "-o", str(machine))
        _run("simulate", "collateral", str(machine), "-o", str(folder / "collateral"))
        authority = Authority.make("tests", now=_now(), lifetime=timedelta(days=30))
        pair = authority.issue(("127.0.0.1",), now=_now(), lifetime=timedelta(days=20), common_name="tests")
        (folder / "tls.crt").write_bytes(pair.certificate)
        (folder / "tls.key").write_bytes(pair.key)
        starts = (
            _quote_helper, _device_plugin, _webhook, _metrics, _collateral, _attestation, _metrics_api,
            _certificate_signer,
        )  # fmt: skip
        yield [start(folder, machine, stack) for start in starts]


def _quote_helper(folder: Path, machine: Path, stack: ExitStack) -> Page:
    path, page = folder / "aesm.socket", _address()
    options = ["--socket", str(path), "--machine", str(machine), "--http", page]
    options += ["--collateral", str(folder / "collateral")]
    _daemon(stack, folder, "quote-helper", *options, EXPECTED_SIGNERS="11" * 32)
    frame, _ = quote_request(machine)

    def scrape() -> bytes:
        _eventually(lambda: get(page, "/readyz")[0] == 200)
        exchange(path, frame)
        exchange(path, request(22, (1, 5)))
        return _until(lambda: get(page, "/metrics")[1], b"tcb_status{")

    def use(turn: int) -> None:
        for _ in range(1 + turn % 20):
            exchange(path, frame)
        if turn % 7 == 0:
            exchange(path, request(17, (1, bytes(432)), (2, b""), (4, 10)))

    return Page("quote-helper", page, scrape, use)


def _certificate_signer(folder: Path, machine: Path, stack: ExitStack) -> Page:
    api, page, own = stack.enter_context(CertificateRequestsApi()), _address(), folder / "signer"
    own.mkdir()
    api.put_signer()
    (own / "apps.toml").write_text(f'mr_signer = ["{"11" * 32}"]\n')
    options = ["--policies", str(own), "--collateral", str(folder / "collateral"), "--http", page]
    options += ["--trust-root", str(folder / "collateral" / "root_ca.pem"), "--kubeconfig", api.kubeconfig(own)]
    _daemon(stack, folder, "certificate-signer", *options)

    def scrape() -> bytes:
        _eventually(lambda: get(page, "/readyz")[0] == 200)
        api.ask(own, "apps")
        return _until(lambda: get(page, "/metrics")[1], b'outcome="nonce"')

    return Page("certificate-signer", page, scrape, lambda turn: api.ask(own, "apps", f"pod{turn}"))


def _device_plugin(folder: Path, machine: Path, stack: ExitStack) -> Page:
    kubelet, page = KubeletEmulator(folder / "kubelet"), _address()
    kubelet.start()
    stack.callback(kubelet.stop)
    options = ["--machine", str(machine), "--simulated-epc", "64Mi", "--plugin-dir", str(kubelet.plugin_dir)]
    _daemon(stack, folder, "device-plugin", *options, "--simulated-node", str(folder / "sgx"), "--http", page)

    def scrape() -> bytes:
        kubelet.wait(lambda: bool(kubelet.allocatable(EPC)), 60, EPC)
        kubelet.admit("default/app", EPC, 10)
        return get(page, "/metrics")[1]

    def use(turn: int) -> None:
        if turn % 5 == 0:
            kubelet.admit(f"default/app-{turn}", EPC, 1)
            kubelet.remove(f"default/app-{turn}")

    return Page("device-plugin", page, scrape, use)


def _webhook(folder: Path, machine: Path, stack: ExitStack) -> Page:
    api, page, ca = stack.enter_context(WebhookApi()), _address(), folder / "admission" / "ca"
    ca.mkdir(parents=True)
    authority = Authority.make("tests", now=_now(), lifetime=timedelta(days=30))
    (ca / "tls.crt").write_bytes(authority.certificate)
    (ca / "tls.key").write_bytes(authority.key)
    port = free_port()
    options = ["--listen", f"127.0.0.1:{port}", "--kubeconfig", api.kubeconfig(ca.parent), "--ca", str(ca)]
    _daemon(stack, folder, "webhook", *options, "--hosts", "127.0.0.1", "--http", page)

    def scrape() -> bytes:
        _eventually(lambda: get(page, "/readyz")[0] == 200)
        assert _https(port, "/nothing")[0] == 404
        return get(page, "/metrics")[1]

    def use(turn: int) -> None:
        made = pod(container(limits={EPC: "10" if turn % 4 else "10Mi"}))
        review = {"uid": f"u{turn}", "operation": "CREATE", "namespace": "apps", "object": made}
        envelope = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": review}
        for path in ("/mutate-pods", "/validate-pods"):
            _https(port, path, json.dumps(envelope).encode())

    return Page("webhook", page, scrape, use)


def _metrics(folder: Path, machine: Path, stack: ExitStack) -> Page:
    """On a kernel that counts EPC in cgroups and pages it."""
    (folder / "epc").mkdir()
    node, api, page = Node(folder / "epc"), stack.enter_context(EpcApi()), _address()
    stack.callback(node.close)
    group = node.root / f"sys/fs/cgroup/kubepods/pod{UID}/{CONTAINER}"
    group.mkdir(parents=True)
    (node.root / "sys/fs/cgroup/misc.capacity").write_text("sgx_epc 176160768\n")
    (group / "misc.current").write_text(f"sgx_epc {20 << 20}\n")
    (group / "misc.max").write_text("sgx_epc max\n")
    (group / "misc.events").write_text("sgx_epc.max 3\n")
    thread = node.root / "proc" / "70"
    thread.mkdir()

    def ksgxd(ticks: int) -> str:
        return f"70 (ksgxd) S 2 {' '.join(['0'] * 9 + [str(ticks)] + ['0'] * 7 + ['5'] + ['0'] * 20)}\n"

    (thread / "stat").write_text(ksgxd(500))
    node.hold(20, CONTAINER)
    api.put(make_pod("greedy", uid=UID, mib=10, container=CONTAINER))
    file = folder / "metrics.toml"
    file.write_text("interval = 0.1\npatience = 0.1\n")
    options = ["--node-name", "n1", "--kubeconfig", api.kubeconfig(folder / "epc"), "--host-root", str(node.root)]
    options += ["--simulated-node", str(node.simulated), "--http", page, "--config", str(file)]
    _daemon(stack, folder, "metrics", *options)
    held: dict[int, int] = {}

    def use(turn: int) -> None:
        """Three pods more, one after another, and the reclaiming thread busy in the middle."""
        (thread / "stat").write_text(ksgxd(500 + max(0, turn - 20) * 10))
        if turn % 15 == 5 and len(held) < 3:
            identifier = f"{len(held) + 1:064x}"
            held[node.hold(8 + 6 * len(held), identifier)] = turn
            api.put(make_pod(f"web-{len(held)}", uid=f"uid-{len(held)}", mib=16, container=identifier))

    def scrape() -> bytes:
        return _until(lambda: get(page, "/metrics")[1], b'reports_total{node="n1",outcome="created"}')

    return Page("metrics", page, scrape, use)


def _collateral(folder: Path, machine: Path, stack: ExitStack) -> Page:
    port = free_port()
    options = ["--listen", f"127.0.0.1:{port}", "--store", str(folder / "store.sqlite"), "--fmspc", FMSPC]
    options += ["--tls-certificate", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key")]
    options += ["--upstream", "simulated", "--machine", str(machine)]
    _daemon(stack, folder, "collateral", "serve", *options)

    def scrape() -> bytes:
        _eventually(lambda: _https(port, "/readyz")[0] == 200)
        assert _https(port, f"/sgx/certification/v4/tcb?fmspc={FMSPC}")[0] == 200
        assert _https(port, "/sgx/certification/v4/tcb?fmspc=aabbccddeeff")[0] == 404
        return _https(port, "/metrics")[1]

    def use(turn: int) -> None:
        for fmspc in (FMSPC, f"aabb{turn:08x}")[: 1 + (turn % 3 == 0)]:
            _https(port, f"/sgx/certification/v4/tcb?fmspc={fmspc}")

    return Page("collateral", f"127.0.0.1:{port}", scrape, use, https=True)


def _attestation(folder: Path, machine: Path, stack: ExitStack) -> Page:
    port = free_port()
    options = ["--listen", f"127.0.0.1:{port}", "--store", str(folder / "attestation.sqlite")]
    options += ["--tls-certificate", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key")]
    options += ["--keys", str(folder / "keys"), "--collateral", str(folder / "collateral")]
    options += ["--trust-root", str(folder / "collateral" / "root_ca.pem")]
    _daemon(stack, folder, "attestation", "serve", *options)

    def scrape() -> bytes:
        _eventually(lambda: _https(port, "/readyz")[0] == 200)
        path = "/simulated/attest/SgxEnclave?api-version=2022-08-01"
        assert _https(port, path, b'{"quote": "AAAA"}')[0] == 400
        return _https(port, "/metrics")[1]

    quote = base64.urlsafe_b64encode(quote_request(machine)[1]).rstrip(b"=").decode()

    def use(turn: int) -> None:
        path = "/simulated/attest/SgxEnclave?api-version=2022-08-01"
        for _ in range(1 + turn % 9):
            _https(port, path, json.dumps({"quote": quote if turn % 6 else quote[:-40]}).encode())

    return Page("attestation", f"127.0.0.1:{port}", scrape, use, https=True)


def _metrics_api(folder: Path, machine: Path, stack: ExitStack) -> Page:
    (folder / "api").mkdir()
    api, page = stack.enter_context(EpcApi()), _address()
    stage = MetricsApiStage(folder / "api", api)
    options = ["--listen", f"127.0.0.1:{free_port()}", "--kubeconfig", api.kubeconfig(folder / "api"), "--http", page]
    settings = {"CA": str(stage.folder / "ca"), "EXPORTERS_CA": str(stage.folder / "exporters" / "ca.crt")}
    _daemon(stack, folder, "metrics-api", *options, **settings)

    def scrape() -> bytes:
        _eventually(lambda: get(page, "/readyz")[0] == 200)
        return get(page, "/metrics")[1]

    return Page("metrics-api", page, scrape)


def _run(*arguments: str) -> None:
    done = subprocess.run([*CONFCOM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _daemon(stack: ExitStack, folder: Path, *arguments: str, **settings: str) -> None:
    log = stack.enter_context((folder / f"{arguments[0]}.log").open("wb"))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    environment |= {
        f"CONFCOM_{arguments[0].upper().replace('-', '_')}_{name}": value for name, value in settings.items()
    }
    process = subprocess.Popen([*CONFCOM, *arguments], stdout=log, stderr=log, env=environment)
    stack.callback(process.wait, 60)
    stack.callback(process.terminate)


def get(address: str, path: str) -> tuple[int, bytes]:
    """The answer of a page at HOST:PORT."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _address() -> str:
    return f"127.0.0.1:{free_port()}"


def _https(port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
    try:
        connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while True:
        with suppress(OSError):
            if condition():
                return
        assert time.monotonic() < deadline, "it did not get ready"
        time.sleep(0.1)


def _until(scrape: Callable[[], bytes], part: bytes) -> bytes:
    page = b""

    def seen() -> bool:
        nonlocal page
        page = scrape()
        return part in page

    _eventually(seen)
    return page


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)
