"""A PostgreSQL server of the tests: Debian's, in a folder of its own, on a free port of 127.0.0.1.

CONFCOM_TEST_POSTGRES is `start`, as `./dev postgres` sets it, or the URL of a database of a server that is there,
with a role that may make databases and roles.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from running_attestation_service import free_port

NAMED = os.environ.get("CONFCOM_TEST_POSTGRES", "")
WAIT = 120
LOOPBACK = "127.0.0.1"
OWNER = "confcom_owner"


class PostgresServer:
    """Databases of the server at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def execute(self, statement: str, database: str = "") -> list[Any]:
        """Rows of a statement, in its own transaction."""
        with psycopg.connect(self.of(database) if database else self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def of(self, database: str, *, role: str = "", port: int = 0) -> str:
        """The URL of a database, for another role, or through another port."""
        parts = urlsplit(self.url)
        user = role or parts.netloc.rpartition("@")[0]
        host = f"127.0.0.1:{port}" if port else parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{user}@{host}" if user else host, path=f"/{database}"))

    @contextmanager
    def database(self) -> Iterator[str]:
        """The name of a new database, removed at the end."""
        name = f"confcom_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield name
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")


class OwnServer(PostgresServer):
    """A server that this process starts; it ends with it.

    At another `address` than that of this machine, in the network namespace `network`, clients need TLS and a password;
    this process then uses its socket.
    """

    def __init__(self, folder: Path, *, address: str = LOOPBACK, network: str = "") -> None:
        self.port, self.address = free_port(), address
        here = f"{OWNER}@{LOOPBACK}:{self.port}/postgres"
        by_socket = f"{OWNER}@/postgres?host={folder}&port={self.port}"
        super().__init__(f"postgresql://{by_socket if network else here}")
        self._folder, self._data = folder, folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self.settings: dict[str, str] = {
            "listen_addresses": address, "port": str(self.port), "unix_socket_directories": str(folder),
            "fsync": "off", "max_connections": "60",
        }  # fmt: skip
        as_user = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups"] if os.geteuid() == 0 else []
        within = ["nsenter", f"--net=/run/netns/{network}", "--"] if network else []
        self._run_as = [*within, "setpriv", *as_user, "--pdeathsig", "TERM"]
        if as_user:
            shutil.chown(folder, "postgres", "postgres")
        made = [str(program("initdb")), "-D", str(self._data), "-U", OWNER, "-A", "trust", "-E", "UTF8", "--no-locale"]
        subprocess.run([*self._run_as, *made, "-N"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.write("hostssl all all all scram-sha-256\n")
        self._certify()

    def _certify(self) -> None:
        """Make a certificate for `localhost`, or for the address elsewhere, which is its own authority."""
        key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "db")])
        begin = datetime.fromtimestamp(time.time(), UTC) - timedelta(days=1)
        made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        made = made.serial_number(1).not_valid_before(begin).not_valid_after(begin + timedelta(days=9))
        here = self.address == LOOPBACK
        known_as = x509.DNSName("localhost") if here else x509.IPAddress(ip_address(self.address))
        made = made.add_extension(x509.SubjectAlternativeName([known_as]), critical=False)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.authority = self._folder / "server.crt"
        self.authority.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
        private = self._folder / "server.key"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        private.chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(private, "postgres", "postgres")
        self.settings |= {"ssl": "on", "ssl_cert_file": str(self.authority), "ssl_key_file": str(private)}

    @property
    def folder(self) -> Path:
        """Its socket, and what tests put beside it."""
        return self._folder

    def start(self) -> None:
        """Start it and wait until it answers."""
        words = [str(program("postgres")), "-D", str(self._data)]
        words += [word for name, value in self.settings.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*self._run_as, *words], stdout=log, stderr=log, cwd=self._folder)
        deadline = time.monotonic() + WAIT
        while True:
            with suppress(psycopg.Error):
                self.execute("SELECT 1")
                return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends connections and stops, SIGQUIT stops as a crash does."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(WAIT)
            self._process = None


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """The server that CONFCOM_TEST_POSTGRES names, or one of its own."""
    if NAMED != "start":
        yield PostgresServer(NAMED)
        return
    folder = Path(tempfile.mkdtemp(prefix="confcom-pg-", dir="/tmp"))
    server = OwnServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def program(name: str) -> Path:
    """Of the newest version that Debian's packages installed, or of the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    return found[-1] if found else Path(shutil.which(name) or name)
