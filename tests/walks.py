"""The five walks through the source that ARCHITECTURE.md names, recorded while the program runs.

    python tests/walks.py          prints them as JSON: name, modules in the order of their first call, changes

A walk is one real process on the simulated platform; who asks it, and the APIs that it uses, are in this one.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2

from confcom.pki.serving_pair import Authority
from kubelet_emulator import KubeletEmulator
from node_api import NodeApi
from object_api import ObjectApi
from sgx_pods import EPC, container, pod
from webhook_api import WebhookApi

RECORDER = Path(__file__).with_name("walk_recorder.py")
CONFCOM = [sys.executable, "-m", "confcom"]
GUARD = 120.0
"""Seconds after which a walk hangs."""


@dataclass(frozen=True)
class Walk:
    """`rooms` are modules below src/confcom in the order of their first call."""

    rooms: tuple[str, ...]
    changes: int


class Recorded:
    """A command that records; `stop` ends the recording and is the walk."""

    def __init__(self, folder: Path, *command: str, from_start: bool = False) -> None:
        self._record = folder / "walk.json"
        environment = os.environ | ({"WALK_FROM_START": "1"} if from_start else {})
        self.process = subprocess.Popen(
            [sys.executable, str(RECORDER), str(self._record), *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def start(self) -> None:
        self._say("start")
        until(self._record.exists)
        self._record.unlink()

    def stop(self) -> Walk:
        self._say("stop")
        until(self._record.exists)
        return self._walk()

    def end(self) -> Walk:
        """The walk of a command that ends by itself, with code 0."""
        _, said = self.process.communicate(timeout=GUARD)
        assert self.process.returncode == 0, said
        return self._walk()

    def _say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def _walk(self) -> Walk:
        found = json.loads(self._record.read_text())
        return Walk(tuple(found["rooms"]), found["changes"])


@contextmanager
def recorded(folder: Path, *command: str, from_start: bool = False) -> Iterator[Recorded]:
    one = Recorded(folder, *command, from_start=from_start)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


def until(seen: Callable[[], Any]) -> None:
    deadline = time.monotonic() + GUARD
    while not seen():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def confcom(*words: str) -> None:
    done = subprocess.run([*CONFCOM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def a_quote(folder: Path) -> Walk:
    """The quote helper, while a client gets one quote."""
    machine, socket = str(folder / "machine.json"), str(folder / "aesm.socket")
    confcom("simulate", "machine", "-o", machine)
    words = ["--platform", "simulated", "--machine", machine, "--socket", socket]
    with recorded(folder, "quote-helper", *words) as helper:
        assert "ready" in helper.line()
        helper.start()
        words = ["--mode", "out-of-proc", "--machine", machine, "--socket", socket]
        confcom("quote", "--report-data", "00", *words, "-o", str(folder / "quote"))
        return helper.stop()


def a_verdict(folder: Path) -> Walk:
    """`confcom verify`, of a simulated quote that it accepts."""
    machine, quote, collateral = (str(folder / name) for name in ("machine.json", "quote", "collateral"))
    confcom("simulate", "machine", "-o", machine)
    confcom("quote", "--report-data", "00", "--mode", "in-proc", "--machine", machine, "-o", quote)
    confcom("simulate", "collateral", machine, "-o", collateral)
    words = ["--collateral", collateral, "--trust-root", f"{collateral}/root_ca.pem"]
    with recorded(folder, "verify", quote, *words, from_start=True) as command:
        return command.end()


def a_pod(folder: Path) -> Walk:
    """The webhook, while the API server asks about one pod that it completes."""
    made = Authority.make("test", now=datetime.fromtimestamp(time.time(), UTC), lifetime=timedelta(days=1))
    (folder / "tls.crt").write_bytes(made.certificate)
    (folder / "tls.key").write_bytes(made.key)
    asked = pod(container(limits={EPC: "1"}))
    request = {"uid": "7", "operation": "CREATE", "namespace": "apps", "object": asked}
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    trust = ssl.create_default_context(cadata=made.certificate.decode())
    with WebhookApi() as api:
        words = ["--listen", "127.0.0.1:0", "--ca", str(folder), "--kubeconfig", api.kubeconfig(folder)]
        os.environ["CONFCOM_WEBHOOK_HOSTS"] = "127.0.0.1"
        with recorded(folder, "webhook", *words) as webhook:
            url = next(word for word in webhook.line().replace(",", " ").split() if word.startswith("https://"))
            until(lambda: api.watches)  # so that reading the nodes is no part of the walk
            with httpx2.Client(verify=trust, base_url=url, timeout=GUARD) as client:
                client.post("/mutate-pods", json=review).raise_for_status()  # what is made once
                webhook.start()
                answer = client.post("/mutate-pods", json=review).json()
                assert answer["response"]["patchType"] == "JSONPatch"
                return webhook.stop()


def epc(folder: Path) -> Walk:
    """The device plugin, from its start until the EPC is in the node's status."""
    machine = str(folder / "machine.json")
    confcom("simulate", "machine", "-o", machine)
    kubelet = KubeletEmulator(folder)
    kubelet.start()
    try:
        with NodeApi("worker-1") as api:
            words = ["--machine", machine, "--simulated-epc", "256Gi,256Gi"]
            words += ["--simulated-node", str(folder / "node"), "--plugin-dir", str(kubelet.plugin_dir)]
            words += ["--node-name", "worker-1", "--kubeconfig", api.kubeconfig(folder)]
            (folder / "plugin.toml").write_text(f'pod_resources_socket = "{kubelet.pod_resources_socket}"\n')
            words += ["--config", str(folder / "plugin.toml")]
            with recorded(folder, "device-plugin", *words, from_start=True) as plugin:
                api.wait(lambda: api.amount(EPC) == "524288", timeout=GUARD)
                return plugin.stop()
    finally:
        kubelet.stop()


def addon_enable(folder: Path) -> Walk:
    """`confcom addon enable` on an empty cluster."""
    with ObjectApi() as api:
        words = ["--enable-sgxquotehelper", "--image", "confcom:1", "--no-wait", "--kubeconfig", api.kubeconfig(folder)]
        with recorded(folder, "addon", "enable", *words, "-o", "none", from_start=True) as command:
            return command.end()


WALKS: dict[str, Callable[[Path], Walk]] = {
    "A quote": a_quote,
    "A verdict": a_verdict,
    "A pod": a_pod,
    "EPC": epc,
    "`confcom addon enable`": addon_enable,
}
"""By the words with which ARCHITECTURE.md begins each."""


def walk(name: str) -> Walk:
    # The path of a socket in it must be short.
    with tempfile.TemporaryDirectory(prefix="walk-") as folder:
        return WALKS[name](Path(folder))


if __name__ == "__main__":
    found = {name: walk(name) for name in WALKS}
    sys.stdout.write(json.dumps({name: {"rooms": one.rooms, "changes": one.changes} for name, one in found.items()}))
