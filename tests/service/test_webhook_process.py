"""`confcom webhook` as processes: replicas with one CA, readiness, the largest node, leaving."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from confcom.pki.serving_pair import Authority
from sgx_pods import EPC, container, pod
from webhook_api import WebhookApi

QUICK = {"CONFCOM_WEBHOOK_LOOK_EVERY": "0.1", "CONFCOM_WEBHOOK_LEAVE_AFTER": "1", "CONFCOM_WEBHOOK_HOSTS": "127.0.0.1"}


class Replica:
    """One process, with its page at a Unix socket."""

    def __init__(self, folder: Path, kubeconfig: str, number: int, **settings: str) -> None:
        self.page = folder / f"page{number}"
        environment = (
            {"PATH": os.environ["PATH"]} | QUICK | {f"CONFCOM_WEBHOOK_{k.upper()}": v for k, v in settings.items()}
        )
        self.ca = folder / "ca"
        command = [sys.executable, "-m", "confcom", "webhook", "--listen", "127.0.0.1:0", "--kubeconfig", kubeconfig]
        command += [] if "ca" in settings else ["--ca", str(self.ca)]
        self.log = (folder / f"log{number}").open("w+")
        self.process = subprocess.Popen(
            [*command, "--http", f"unix:{self.page}"],
            env=environment, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip

    @functools.cached_property
    def url(self) -> str:
        assert self.process.stdout is not None
        found = re.search(r"https://127\.0\.0\.1:(\d+)", self.process.stdout.readline())
        assert found, self.said()
        return f"https://127.0.0.1:{found[1]}"

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def get(self, path: str) -> httpx2.Response:
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(self.page))) as client:
            return client.get(f"http://page{path}")

    def ready(self) -> bool:
        return self.page.exists() and self.get("/readyz").status_code == 200

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        return code


@pytest.fixture
def api() -> Iterator[WebhookApi]:
    with WebhookApi() as api:
        yield api


@pytest.fixture
def replica(api: WebhookApi, tmp_path: Path) -> Iterator[Callable[..., Replica]]:
    started: list[Replica] = []
    write_ca(tmp_path / "ca")

    def replica(**settings: str) -> Replica:
        started.append(Replica(tmp_path, api.kubeconfig(tmp_path), len(started), **settings))
        return started[-1]

    yield replica
    for one in started:
        one.end()


def until(seen: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return found


def write_ca(folder: Path) -> None:
    """As the kubelet mounts a Secret: all its files change at once."""
    made = Authority.make("test", now=datetime.fromtimestamp(time.time(), UTC), lifetime=timedelta(days=1))
    version = folder.parent / f"ca-{time.monotonic_ns()}"
    version.mkdir()
    (version / "tls.crt").write_bytes(made.certificate)
    (version / "tls.key").write_bytes(made.key)
    link = folder.parent / "next"
    link.symlink_to(version)
    link.replace(folder)


def client_of(replica: Replica) -> httpx2.Client:
    """One that trusts the CA, as the API server does."""
    bundle = (replica.ca / "tls.crt").read_text()
    return httpx2.Client(verify=ssl.create_default_context(cadata=bundle), base_url=replica.url)


def ask(client: httpx2.Client, mib: int, **annotations: str) -> httpx2.Response:
    asked = pod(container(limits={EPC: str(mib)}), annotations=annotations)
    request = {"uid": "7", "operation": "CREATE", "namespace": "apps", "object": asked}
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    return client.post("/mutate-pods", json=review)


def test_replicas_serve_what_one_ca_has_issued(replica: Callable[..., Replica]) -> None:
    replicas = [replica(), replica()]
    for one in replicas:
        until(one.ready)
        with client_of(one) as client:
            assert ask(client, 1).json()["response"]["patchType"] == "JSONPatch"
    event = json.loads([line for line in replicas[0].said().splitlines() if "admission.review" in line][-1])
    assert (event["outcome"], event["epc"], event["namespace"]) == ("patched", 1, "apps")
    assert "confcom_webhook_ready 1.0" in replicas[0].get("/metrics").text


def changes(replica: Replica) -> float:
    name = "confcom_webhook_certificate_changes_total "
    (line,) = [line for line in replica.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(line.split()[1])


def test_certificates_and_cas_change_while_reviews_go_on(replica: Callable[..., Replica]) -> None:
    one = replica(lifetime="4")
    until(one.ready)
    seen = changes(one)
    while changes(one) < seen + 2:
        with client_of(one) as client:
            assert ask(client, 1).status_code == 200
    write_ca(one.ca)

    def trusts_the_new_one() -> bool:
        try:
            with client_of(one) as client:
                return ask(client, 1).status_code == 200
        except httpx2.ConnectError:
            return False

    until(trusts_the_new_one)


def test_without_a_ca_a_replica_waits_and_says_who_makes_it(replica: Callable[..., Replica]) -> None:
    one = replica(ca="/nonexistent")
    until(lambda: one.page.exists() and "no usable CA in" in one.get("/readyz").text)
    assert "confcom addon update" in one.get("/readyz").text
    assert one.get("/healthz").status_code == 200
    assert "confcom_webhook_ready 0.0" in one.get("/metrics").text


def test_a_replica_that_loses_its_ca_serves_on(replica: Callable[..., Replica]) -> None:
    one = replica()
    until(one.ready)
    with client_of(one) as client:
        one.ca.unlink()
        until(lambda: not one.ready())
        assert ask(client, 1).status_code == 200
    write_ca(one.ca)
    until(one.ready)


def test_the_largest_node_is_followed(api: WebhookApi, replica: Callable[..., Replica]) -> None:
    one = replica()
    until(one.ready)
    with client_of(one) as client:

        def answer(mib: int) -> Any:
            return ask(client, mib).json()["response"]

        until(lambda: "No node of this cluster publishes EPC" in str(answer(1).get("warnings")))
        api.set_node("small", {EPC: "56"})
        api.set_node("large", {EPC: "1k", "cpu": "8"})
        until(lambda: not answer(1001)["allowed"])
        assert answer(1000)["allowed"]
        api.set_node("large", None)
        until(lambda: not answer(1000)["allowed"])
        assert answer(56)["allowed"]


def test_a_replica_lets_go_when_no_node_is_left_for_another(api: WebhookApi, replica: Callable[..., Replica]) -> None:
    """Else `kubectl drain` of the only node would wait for its disruption budget for ever."""
    api.set_node("other", {"cpu": "2"})
    one = replica()
    until(one.ready)
    api.cordon("plain", "other")
    until(lambda: not one.ready())
    assert "every node is being drained" in one.get("/readyz").text
    with client_of(one) as client:
        assert ask(client, 1).status_code == 200
    api.cordon()
    until(one.ready)


@pytest.mark.parametrize(("settings", "volumes"), [({}, 0), ({"wiring": "host-path"}, 1)], ids=["plugin", "host-path"])
def test_the_helpers_folder_comes_with_the_plugin_or_as_a_volume(
    api: WebhookApi, replica: Callable[..., Replica], settings: dict[str, str], volumes: int
) -> None:
    one = replica(**settings)
    until(one.ready)
    with client_of(one) as client:
        answer = ask(client, 1, **{"confcom.dev/quote-mode": "out-of-proc"}).json()["response"]
    patch = json.loads(b64decode(answer["patch"]))
    assert sum("/spec/volumes" in operation["path"] for operation in patch) == volumes
    assert ("sgx.confcom.dev~1quote-helper" in str(patch)) != bool(volumes)


def test_who_is_told_to_stop_leaves_in_good_order(api: WebhookApi, replica: Callable[..., Replica]) -> None:
    one = replica()
    until(one.ready)
    with client_of(one) as client:
        assert "connection" not in ask(client, 1).headers
        one.process.send_signal(signal.SIGTERM)
        until(lambda: not one.ready())
        answer = ask(client, 1)
        assert answer.json()["response"]["allowed"]
        assert answer.headers["connection"] == "close"
    assert one.process.wait(60) == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"CONFCOM_WEBHOOK_PROVISION_GRANTS": "nobody"}, "'nobody' is no grant"),
        ({"CONFCOM_WEBHOOK_LISTEN": "8443"}, "is not HOST:PORT"),
        ({"CONFCOM_WEBHOOK_LISTEN": f"[::]:{'9' * 5000}"}, "is not HOST:PORT"),
        ({"CONFCOM_WEBHOOK_KUBECONFIG": "/nonexistent"}, "no way to the Kubernetes API"),
    ],
)
def test_settings_that_cannot_be_are_said_at_once(settings: dict[str, str], sentence: str) -> None:
    command = [sys.executable, "-m", "confcom", "webhook", "--http", ""]
    done = subprocess.run(
        command, env={"PATH": os.environ["PATH"]} | settings, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
