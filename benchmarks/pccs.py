"""Intel's caching service (PCCS) as a peer, built from its source; PCCS_SOURCE names the folder `service` of that.

It needs Node with npm. Its SQLite is compiled here, because the compiled one comes from a host that not every machine
reaches; that takes some minutes, and none where the folder has been built already (`npm ci` and its `sqlite3`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.collateral_service import TOKEN
from benchmarks.webhook import Server

ADDON = Path("node_modules/sqlite3/build/Release/node_sqlite3.node")
WAIT = 60


@contextmanager
def pccs(authority: bytes, certificate: bytes, key: bytes) -> Iterator[Server | str]:
    """The service, offline over its own SQLite, on a free port; or why it is not there."""
    source = os.environ.get("PCCS_SOURCE", "")
    if not source:
        yield "PCCS_SOURCE names no folder with its source"
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "service"
        shutil.copytree(source, folder)
        if reason := _build(folder):
            yield reason
            return
        (folder / "ssl_key").mkdir()
        (folder / "ssl_key" / "private.pem").write_bytes(key)
        (folder / "ssl_key" / "file.crt").write_bytes(certificate)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        hashed = hashlib.sha512(TOKEN.encode()).hexdigest()
        settings = {
            "HTTPS_PORT": port,
            "CachingFillMode": "OFFLINE",
            "LogLevel": "error",
            "MaxRequestBodySize": "256MB",
        }
        settings |= {"UserTokenHash": hashed, "AdminTokenHash": hashed}
        environment = os.environ | {"NODE_ENV": "production", "NODE_CONFIG": json.dumps(settings)}
        with (Path(name) / "log").open("wb") as log:
            command = ["node", "pccs_server.js"]
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            if _listens(process, port):
                yield Server(port, authority.decode(), process.pid)
            else:
                yield f"it did not start: {(Path(name) / 'log').read_text()[-500:]}"
        finally:
            process.terminate()
            process.wait(WAIT)


def _build(folder: Path) -> str:
    """Install what it requires and compile its SQLite; why that failed."""
    if (folder / ADDON).exists():
        return ""
    if not (shutil.which("npm") and shutil.which("npx")):
        return "there is no npm"
    headers = Path(shutil.which("node") or "/usr/bin/node").resolve().parent.parent
    commands = (
        (["npm", "ci", "--omit=dev", "--ignore-scripts"], folder),
        (["npx", "--yes", "node-gyp", "rebuild", f"--nodedir={headers}"], folder / "node_modules" / "sqlite3"),
    )
    for command, where in commands:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{' '.join(command)} failed: {(done.stderr or done.stdout)[-500:]}"
    return ""


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + WAIT
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False
