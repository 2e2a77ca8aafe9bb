"""Runs in a pod: a client of the two services, each request over a connection of its own and with no second try.

    replica_client.py load SETTINGS             asks both again and again, until SIGTERM; a line of figures a second
    replica_client.py policies SETTINGS COUNT   sets so many policies, each by the next replica, and has every replica
                                                judge after the stated time; a line for each policy

SETTINGS is JSON; the quote is in /tmp/quote. Tokens and documents are compared with what was seen before.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from confcom.formats.arguments import decode_base64, encode_base64url

CLIENTS = 2
"""Of each kind."""
PAUSE = 0.02
SECONDS = 20
TRUST = "/etc/confcom/client/ca.pem"
API = "api-version=2022-08-01"
OK = 200
Target = tuple[str, str, int]
"""Address, the name in the certificate, port."""

ended = threading.Event()
answered: Counter[str] = Counter()
failures: list[str] = []
seen: dict[str, set[str]] = {}
slowest = 0.0


def ask(target: Target, method: str, path: str, body: bytes | None = None, token: str = "") -> tuple[int, bytes]:
    address, name, port = target
    connection = http.client.HTTPConnection(name, port)
    raw = socket.create_connection((address, port), SECONDS)
    connection.sock = ssl.create_default_context(cafile=TRUST).wrap_socket(raw, server_hostname=name)
    try:
        headers = {"Content-Type": "application/json" if method == "POST" else "text/plain", "Connection": "close"}
        connection.request(method, path, body, headers | ({"Authorization": f"Bearer {token}"} if token else {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def attest(target: Target) -> tuple[int, bytes]:
    body = json.dumps({"quote": encode_base64url(Path("/tmp/quote").read_bytes())}).encode()
    return ask(target, "POST", f"/simulated/attest/SgxEnclave?{API}", body)


def claims(answer: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(decode_base64(json.loads(answer)["token"].split(".")[1]))
    return found


def work(kind: str, target: Target, path: str) -> None:
    """One client: asks until the end, and notes what differs."""
    global slowest
    while not ended.wait(PAUSE):
        begin = time.monotonic()
        try:
            status, body = ask(target, "GET", path) if path else attest(target)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{time.time():.3f} {kind}: {type(error).__name__}: {error}")
            continue
        finally:
            slowest = max(slowest, time.monotonic() - begin)
        if status != OK:
            failures.append(f"{time.time():.3f} {kind}: {status} {body[:200]!r}")
            continue
        answered[kind] += 1
        said = claims(body)["x-ms-sgx-mrenclave"].encode() if kind == "attest" else body
        seen.setdefault(kind, set()).add(hashlib.sha256(said).hexdigest()[:16])


def load(settings: dict[str, Any]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    kinds = [("attest", settings["attestation"], "")]
    kinds += [(kind, settings["collateral"], path) for kind, path in settings["documents"].items()]
    for kind in kinds * CLIENTS:
        threading.Thread(target=work, args=kind, daemon=True).start()
    while not ended.wait(1):
        figures = {"answered": answered, "failed": len(failures), "last": failures[-5:], "slowest_s": round(slowest, 2)}
        say(figures | {"different": {kind: len(found) for kind, found in seen.items()}})


def policies(settings: dict[str, Any], count: int) -> None:
    replicas = [(address, settings["attestation"][1], 8443) for address in settings["replicas"]]
    for number in range(count):
        issued = f'=> issue(type="e2e", value="{number}");'
        text = f"version=1.0; authorizationrules{{=> permit();}}; issuancerules{{{issued}}};"
        setter = replicas[number % len(replicas)]
        path = f"/simulated/policies/SgxEnclave?{API}"
        status, answer = ask(setter, "PUT", path, text.encode(), settings["token"])
        time.sleep(settings["stated"])
        found = [claims(body)["e2e"] if code == OK else body.decode() for code, body in map(attest, replicas)]
        say({"set": status, "answer": answer.decode()[:300], "number": str(number), "found": found})


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    if sys.argv[1] == "load":
        load(given)
    else:
        policies(given, int(sys.argv[3]))
