"""The collateral service as a process on a host: TLS, limits on clients, the command line."""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import http.client
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from confcom.cli.root import run as cli_run
from confcom.collateral.store.store import CollateralStore
from confcom.errors import ConfigError
from confcom.services.runtime import tls
from confcom.simulator.world import SimulatedWorld
from confcom.wiring import create_machine_file
from running_collateral_service import (
    BUILT_NOW,
    BUILT_ROOTS,
    FMSPC,
    BuiltUpstream,
    Clock,
    RunningService,
    running_service,
)

CONFCOM = [sys.executable, "-c", "from confcom.cli import main; main()"]
PATH = "/sgx/certification/v4/rootcacrl"
TOKEN = "token"
TOKEN_HASH = hashlib.sha512(TOKEN.encode()).hexdigest()


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """The command sets the process's logging up; other tests keep theirs."""
    yield
    structlog.reset_defaults()


def write_certificate(folder: Path, serial: int, *, key_of_another: bool = False) -> ssl.SSLContext:
    """A server certificate of its own CA in the folder; gives the context that trusts it."""
    ca, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test CA {serial}")])
    start, end = (dt.datetime(year, 1, 1, tzinfo=dt.UTC) for year in (2020, 2090))
    root = (
        x509.CertificateBuilder(name, name, ca.public_key(), 1, start, end)
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(x509.KeyUsage(*[False] * 5, True, *[False] * 3), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca.public_key()), critical=False)
        .sign(ca, hashes.SHA256())
    )
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = (
        x509.CertificateBuilder(name, x509.Name([]), key.public_key(), serial, start, end)
        .add_extension(addresses, critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key()), critical=False)
        .sign(ca, hashes.SHA256())
    )
    written = ec.generate_private_key(ec.SECP256R1()) if key_of_another else key
    (folder / "key.pem").write_bytes(written.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "cert.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    return ssl.create_default_context(cadata=root.public_bytes(Encoding.PEM).decode())


def serial_of(service: RunningService) -> int:
    context = ssl._create_unverified_context()
    with (
        socket.create_connection(service.address, timeout=60) as plain,
        context.wrap_socket(plain) as connection,
    ):
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"").serial_number


@contextmanager
def service_in(folder: Path, **settings: object) -> Iterator[RunningService]:
    with running_service(
        folder / "collateral.sqlite", BuiltUpstream(), BUILT_ROOTS, Clock(BUILT_NOW), **settings
    ) as service:
        yield service


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "WATCH_INTERVAL", 0.1)
    first = write_certificate(tmp_path, 101)
    files = {"tls_certificate": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    with service_in(tmp_path, **files) as service:
        service.tls = first
        assert service.url.startswith("https://")
        assert service.ask(PATH).status == 200
        kept = http.client.HTTPSConnection(*service.address, context=first, timeout=60)
        kept.request("GET", PATH)
        assert kept.getresponse().read()

        second = write_certificate(tmp_path, 102)
        service.wait_until(lambda: serial_of(service) == 102)
        service.tls = second
        assert service.ask(PATH).status == 200
        kept.request("GET", PATH)  # who was connected stays so
        assert kept.getresponse().status == 200
        kept.close()

        # A key that does not fit: half of a rotation, or a mistake.
        write_certificate(tmp_path, 103, key_of_another=True)
        time.sleep(0.3)
        assert serial_of(service) == 102


def test_a_certificate_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    write_certificate(tmp_path, 1, key_of_another=True)
    files = {"tls_certificate": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}

    with pytest.raises(ConfigError, match="cannot be used"), service_in(tmp_path, **files):
        pass


def test_tls_is_at_least_version_1_2(tmp_path: Path) -> None:
    context = write_certificate(tmp_path, 1)
    files = {"tls_certificate": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    with service_in(tmp_path, **files) as service:
        service.tls = context
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(OSError, match=r"SSL|reset|closed"):
            service.ask(PATH)


# --- limits -----------------------------------------------------------------------------------------------------------


def exchange(service: RunningService, data: bytes, *, pause: float = 0.0) -> bytes:
    """Send bytes one by one with a pause between, or at once, and read until the end."""
    with socket.create_connection(service.address, timeout=60) as connection:
        answer = b""
        try:
            if pause:
                for byte in data:
                    connection.sendall(bytes([byte]))
                    time.sleep(pause)
            else:
                connection.sendall(data)
            while part := connection.recv(65536):
                answer += part
        except (ConnectionResetError, BrokenPipeError):
            pass
        return answer


def test_slow_and_silent_clients_are_sent_away_while_others_are_served(tmp_path: Path) -> None:
    with service_in(tmp_path, head_timeout=0.5, body_timeout=0.5, user_token_hash=TOKEN_HASH) as service:
        assert exchange(service, b"") == b""
        assert exchange(service, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200, pause=0.02) == b""
        assert service.ask(PATH).status == 200
        head = f"POST /sgx/certification/v4/platforms HTTP/1.1\r\nHost: a\r\nuser-token: {TOKEN}\r\n"
        answer = exchange(service, head.encode() + b"Content-Length: 500\r\n\r\n{")
        assert not answer or answer.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", (400, 414, 431)),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", (400, 431)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", (400,)),
        (b"GET /sgx/certification/v4/%ff%00 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", (404,)),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\nConnection: close\r\n\r\n", (200,)),
    ],
)
def test_hostile_requests_get_an_answer_and_nothing_else(tmp_path: Path, request_: bytes, status: tuple[int]) -> None:
    with service_in(tmp_path) as service:
        answer = exchange(service, request_)
        assert service.ask("/healthz").status == 200

    assert int(answer.split(b" ")[1]) in status
    assert b"Traceback" not in answer


def test_bodies_are_bounded_whether_announced_or_not(tmp_path: Path) -> None:
    head = f"POST /sgx/certification/v4/platforms HTTP/1.1\r\nHost: a\r\nuser-token: {TOKEN}\r\n".encode()
    with service_in(tmp_path, user_token_hash=TOKEN_HASH, max_body=1024) as service:
        announced = exchange(service, head + b"Content-Length: 5000000000\r\n\r\n{")
        chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
        chunked = exchange(service, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 64)
        assert service.ask("/healthz").status == 200

    assert announced.startswith(b"HTTP/1.1 413 ")
    assert not chunked or chunked.startswith(b"HTTP/1.1 413 ")


def test_an_answer_on_a_kept_connection_does_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    with service_in(tmp_path) as service:
        connection = http.client.HTTPConnection(*service.address, timeout=60)
        times = []
        for _ in range(10):
            begin = time.monotonic()
            connection.request("GET", PATH)
            assert connection.getresponse().read()
            times.append(time.monotonic() - begin)
        connection.close()

    # The kernel delays an acknowledgement by 40 ms, and a body held back for it comes no sooner. A busy machine may
    # delay any one, and the first ones are acknowledged at once in any case.
    assert min(times[5:]) < 0.03


def test_when_connections_run_out_the_longest_silent_one_makes_room(tmp_path: Path) -> None:
    with service_in(tmp_path, max_connections=4, head_timeout=30) as service:
        idle = [socket.create_connection(service.address, timeout=60) for _ in range(12)]
        assert service.ask(PATH).status == 200
        for connection in idle:
            connection.close()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "machine.json"
    create_machine_file(path, bytes(32), dt.datetime(2026, 11, 21, tzinfo=dt.UTC))
    return path


@contextmanager
def command(
    *arguments: str, log: int = subprocess.PIPE, output: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*CONFCOM, "collateral", "serve", *arguments], stdout=output, stderr=log, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CONFCOM, "collateral", "serve", *arguments],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment,
    )  # fmt: skip


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(str(self.path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_serves_the_simulated_authority_until_a_signal(tmp_path: Path, machine: Path, number: signal.Signals) -> None:
    path, store = tmp_path / "service.socket", tmp_path / "new" / "collateral.sqlite"
    arguments = ["--unix-socket", str(path), "--store", str(store), "--upstream", "simulated"]
    with command(*arguments, "--machine", str(machine)) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        connection = UnixConnection(path)
        connection.request("GET", f"/sgx/certification/v4/tcb?fmspc={FMSPC}")
        response = connection.getresponse()
        document = response.read()
        connection.request("GET", "/nowhere")
        connection.getresponse().read()
        process.send_signal(number)
        rest, log = process.communicate(timeout=60)
        connection.close()

    assert ready == f"collateral service: ready on http+unix://{path}, upstream simulated, SIMULATED\n"
    assert (response.status, json.loads(document)["tcbInfo"]["fmspc"]) == (200, FMSPC.upper())
    assert (process.returncode, rest) == (0, "")
    assert not path.exists()
    events = [json.loads(line) for line in log.splitlines()]
    assert any(event["event"] == "collateral.request" and event["status"] == 404 for event in events)
    with CollateralStore(store, roots=SimulatedWorld.load(machine).trust_roots, create=False) as kept:
        assert kept.document_keys()


@pytest.mark.parametrize("where", ["a full disk", "a pipe that nobody reads any more"])
def test_requests_are_answered_where_the_log_cannot_be_written(tmp_path: Path, machine: Path, where: str) -> None:
    if where == "a full disk":
        log = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, log = os.pipe()
        os.close(reader)
    path = tmp_path / "service.socket"
    arguments = ["--unix-socket", str(path), "--store", str(tmp_path / "store.sqlite"), "--upstream", "simulated"]
    with command(*arguments, "--machine", str(machine), "--debug", log=log) as process:
        os.close(log)
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        connection = UnixConnection(path)
        for asked, status in ((f"/sgx/certification/v4/tcb?fmspc={FMSPC}", 200), ("/nowhere", 404)) * 100:
            connection.request("GET", asked)
            response = connection.getresponse()
            assert response.status == status
            response.read()
        connection.close()
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize("where", ["a full disk", "a pipe that nobody reads any more", "a pipe that is full"])
def test_it_serves_where_nothing_can_be_printed(tmp_path: Path, machine: Path, where: str) -> None:
    reader, output = os.pipe()
    if where == "a full disk":
        os.dup2(os.open("/dev/full", os.O_WRONLY), output)
    elif where == "a pipe that is full":
        os.set_blocking(output, False)
        with suppress(BlockingIOError):
            while True:
                os.write(output, bytes(4096))
        os.set_blocking(output, True)
    if where != "a pipe that is full":
        os.close(reader)
    path = tmp_path / "service.socket"
    arguments = ["--unix-socket", str(path), "--store", str(tmp_path / "store.sqlite"), "--upstream", "simulated"]
    with command(*arguments, "--machine", str(machine), output=output) as process:
        os.close(output)
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.05)
        connection = UnixConnection(path)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()
        process.terminate()
        assert process.wait(60) == 0


def test_requests_are_answered_while_nobody_reads_the_log_and_then_it_says_what_was_lost(
    tmp_path: Path, machine: Path
) -> None:
    reader, log = os.pipe()
    fcntl.fcntl(log, fcntl.F_SETPIPE_SZ, 4096)
    path = tmp_path / "service.socket"
    arguments = ["--unix-socket", str(path), "--store", str(tmp_path / "store.sqlite"), "--upstream", "simulated"]
    with command(*arguments, "--machine", str(machine), log=log) as process, os.fdopen(reader, "rb") as lines:
        os.close(log)
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        connection = UnixConnection(path)
        for _ in range(60):
            connection.request("GET", "/nowhere")
            response = connection.getresponse()
            assert response.status == 404
            response.read()
        written = [json.loads(lines.readline())]
        while len(written) < 60 and written[-1]["event"] != "process.log":
            connection.request("GET", "/nowhere")
            connection.getresponse().read()
            written.append(json.loads(lines.readline()))
        assert written[-1]["lost"] > 20
        connection.close()
        process.terminate()
        assert process.wait(60) == 0


def test_prints_the_configuration_in_force(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text('mode = "offline"\nfmspcs = ["00606a000000"]\nmax_body = 4096\n')

    done = run(
        "--print-config", "--config", str(file), "--listen", "0.0.0.0:1", CONFCOM_COLLATERAL_SERVICE_MAX_BODY="8192"
    )

    assert done.returncode == 0
    config = json.loads(done.stdout)
    assert config.items() >= {"mode": "offline", "max_body": 8192, "listen": "0.0.0.0:1"}.items()
    assert config["fmspcs"] == ["00606a000000"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "--insecure-http"),
        (["--tls-certificate", "c.pem"], "come together"),
        (["--tls-certificate", "c.pem", "--tls-key", "k.pem", "--insecure-http"], "plain HTTP too"),
        (["--insecure-http", "--listen", "8081"], "HOST:PORT"),
        (["--insecure-http", "--upstream", "simulated"], "machine file"),
        (["--insecure-http", "--upstream", "simulated", "--machine", "/nowhere"], "/nowhere"),
        (["--insecure-http", "--upstream-key-file", "/nowhere"], "/nowhere"),
        (["--insecure-http", "--fmspc", "12", "--listen", "127.0.0.1:0"], "FMSPC"),
        (["--insecure-http", "--store", "/proc/nowhere/s.sqlite", "--listen", "127.0.0.1:0"], "/proc/nowhere"),
        (["--insecure-http", "--listen", "192.0.2.1:1"], "192.0.2.1:1"),
    ],
)
def test_a_wrong_configuration_is_a_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    # In this process: starting one for each takes a second.
    assert cli_run(["collateral", "serve", "--store", str(tmp_path / "s.sqlite"), *arguments]) == 2

    said = capsys.readouterr().err
    assert why in said
    assert "Traceback" not in said
