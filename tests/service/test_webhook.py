"""The webhook over HTTPS: reviews, hostile requests, and certificates that change under load."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from prometheus_client import CollectorRegistry

from confcom.admission.decision import AdmissionContext
from confcom.admission.pod_json import Grants
from confcom.errors import ConfigError
from confcom.pki.serving_pair import make_serving_pair
from confcom.protocols.admission import MAX_REVIEW
from confcom.services.runtime.http_server import Listener, serve_http
from confcom.services.runtime.tls import HeldTls
from confcom.services.webhook.webhook import WebhookApp, WebhookMetrics
from json_patch_apply import apply_patch
from sgx_pods import ENCLAVE, EPC, INTEL, PROVISION, canonical, container, labelled, pod

HERE = AdmissionContext(namespace="apps", grants=Grants.parse("granted/*"), largest_node=168)


def new_pair() -> tuple[bytes, Any]:
    now = datetime.fromtimestamp(time.time(), UTC)
    return make_serving_pair(("127.0.0.1",), now=now, lifetime=timedelta(days=1), common_name="test")


def trusting(*authorities: bytes) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=b"".join(authorities).decode())


@dataclass
class Running:
    app: WebhookApp
    tls: HeldTls
    authority: bytes
    url: str
    registry: CollectorRegistry

    def client(self, *further: bytes, **more: Any) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(verify=trusting(self.authority, *further), base_url=self.url, **more)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"confcom_webhook_{name}", labels) or 0.0


@asynccontextmanager
async def running(**limits: Any) -> AsyncIterator[Running]:
    authority, pair = new_pair()
    registry = CollectorRegistry()
    memory = limits.pop("body_memory", 64 << 20)
    app = WebhookApp(lambda namespace: HERE, WebhookMetrics(registry), body_memory=memory)
    tls = HeldTls(pair.certificate, pair.key)
    stop, url = asyncio.Event(), asyncio.get_running_loop().create_future()
    listener = Listener(address=("127.0.0.1", 0), tls=tls, **limits)
    serving = asyncio.create_task(serve_http(app, listener, stop=stop, started=url.set_result))
    try:
        yield Running(app, tls, authority, await url, registry)
    finally:
        stop.set()
        await serving


def review_of(thing: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    request = {"uid": "7", "operation": "CREATE", "namespace": "apps", "object": thing} | more
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


async def ask(client: httpx2.AsyncClient, path: str, thing: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    answer = await client.post(path, json=review_of(thing, **more))
    assert answer.status_code == 200, answer.text
    assert answer.json()["response"]["uid"] == "7"
    return answer.json()["response"]


def patched(thing: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    return apply_patch(thing, json.loads(base64.b64decode(response["patch"])))


@pytest.mark.complaint("intel-device-plugins #1943")
async def test_a_pod_is_completed_and_then_valid() -> None:
    """intel 1943: whatever a later Kubernetes puts into a pod stays there."""
    given = pod(
        container(limits={INTEL: "10Mi"}, securityContext={"appArmorProfile": {"type": "Unconfined"}, "new": 1})
    )
    async with running() as webhook, webhook.client() as client:
        response = await ask(client, "/mutate-pods", given)
        found = patched(given, response)
        assert found["spec"]["containers"][0]["resources"] == canonical(10)
        found["spec"]["containers"][0]["resources"] = given["spec"]["containers"][0]["resources"]
        assert found == labelled(given)

        complete = patched(given, response)
        assert (await ask(client, "/validate-pods", complete))["allowed"]
        assert "patch" not in await ask(client, "/mutate-pods", complete)
        assert webhook.count("reviews_total", task="mutate", outcome="patched") == 1


@pytest.mark.promise("M3")
async def test_what_is_incomplete_or_not_granted_is_refused() -> None:
    async with running() as webhook, webhook.client() as client:
        incomplete = await ask(client, "/validate-pods", pod(container(limits={EPC: "10"})))
        assert not incomplete["allowed"]
        assert "another admission webhook has changed it since" in incomplete["status"]["message"]
        secret = {"name": "PASSWORD", "value": "hunter2"}
        ungranted = pod(container(limits={EPC: "10", ENCLAVE: "1", PROVISION: "1"}, env=[secret]))
        for path in ("/mutate-pods", "/validate-pods"):
            response = await ask(client, path, ungranted)
            assert response["status"]["code"] == 403
            assert "hunter2" not in json.dumps(response)
        assert webhook.count("refusals_total", code="provision-not-granted") == 2


@pytest.mark.parametrize(
    "asked",
    [
        {"operation": "UPDATE"},
        {"operation": "DELETE"},
        {"operation": "UPDATE", "subResource": "status"},
        {"operation": "UPDATE", "subResource": "resize"},
        {"operation": "CONNECT", "subResource": "exec"},
        {"operation": "CREATE", "subResource": "eviction"},
        {"operation": "CREATE", "resource": {"group": "apps", "version": "v1", "resource": "deployments"}},
        {"operation": "CREATE", "resource": {"group": "x.io", "version": "v1", "resource": "pods"}},
    ],
    ids=lambda asked: " ".join(map(str, asked.values())),
)
async def test_what_cannot_bring_sgx_to_a_pod_is_let_through_as_it_is(asked: dict[str, Any]) -> None:
    """Where rules are wider than ours, a pod whose grant was taken back could not be changed or deleted any more."""
    ungranted = pod(container(limits={EPC: "10", PROVISION: "1"}))
    async with running() as webhook, webhook.client() as client:
        for path in ("/mutate-pods", "/validate-pods"):
            for thing in (ungranted, None):
                response = await ask(client, path, thing, oldObject=ungranted, **asked)
                assert response == {"uid": "7", "allowed": True}
        named = {"resource": {"group": "", "version": "v1", "resource": "pods"}}
        assert not (await ask(client, "/mutate-pods", ungranted, **named))["allowed"]


async def test_a_pod_that_is_none_is_refused_with_its_place() -> None:
    async with running() as webhook, webhook.client() as client:
        response = await ask(client, "/mutate-pods", {"spec": {"containers": [{"name": "a", "env": [{"name": 1}]}]}})
    assert not response["allowed"]
    assert "Pod.spec.containers[0].env.name" in response["status"]["message"]


@pytest.mark.complaint("azure-docs #72148")
async def test_what_is_no_review_is_rejected() -> None:
    async with running() as webhook, webhook.client() as client:
        assert (await client.get("/mutate-pods")).status_code == 405
        assert (await client.post("/elsewhere", content=b"{}")).status_code == 404
        for body in (b"", b"{}", b"[" * 100_000, b"\xff" * 1000, json.dumps(review_of({})).encode()[:-5]):
            answer = await client.post("/mutate-pods", content=body)
            assert answer.status_code == 400
            assert "Traceback" not in answer.text
        assert webhook.count("rejected_requests_total", status="400") == 5
        assert (await ask(client, "/mutate-pods", pod()))["allowed"]


async def test_a_body_without_end_is_cut_off() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65536

    async with running() as webhook, webhook.client() as client:
        with suppress(httpx2.HTTPError):  # the answer may come too late for somebody who still sends
            assert (await client.post("/mutate-pods", content=endless())).status_code == 413
        assert webhook.count("rejected_requests_total", status="413") == 1


async def test_bodies_together_are_bounded_and_small_ones_are_answered() -> None:
    """Whoever fills the memory with bodies that do not end loses them; the API server's reviews are small."""

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(16):
            yield b" " * (MAX_REVIEW // 16 - 1)
        await asyncio.sleep(30)

    async with running(body_memory=MAX_REVIEW + 1000) as webhook, webhook.client(timeout=60) as client:
        hostile = [asyncio.create_task(client.post("/mutate-pods", content=slow())) for _ in range(4)]
        await asyncio.sleep(0.5)
        for _ in range(20):
            assert (await ask(client, "/mutate-pods", pod()))["allowed"]
        assert webhook.count("rejected_requests_total", status="503") >= 1
        for task in hostile:
            task.cancel()
        await asyncio.gather(*hostile, return_exceptions=True)


async def test_a_silent_client_is_cut_off_and_holds_up_nobody() -> None:
    async with running(head_timeout=0.3, body_timeout=0.3) as webhook, webhook.client() as client:
        port = int(webhook.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as silent:
            assert (await ask(client, "/mutate-pods", pod()))["allowed"]
            silent.settimeout(60)
            assert await asyncio.to_thread(silent.recv, 1) == b""


async def test_a_certificate_changes_under_load_without_a_failure() -> None:
    async with running() as webhook:
        further = [new_pair() for _ in range(3)]
        authorities = [authority for authority, _ in further]
        done = asyncio.Event()
        seen: set[bytes] = set()

        async def load(reconnect: bool) -> int:
            count = 0
            while not done.is_set():
                # With and without a new connection each time: both meet the change.
                async with webhook.client(*authorities) as client:
                    for _ in range(1 if reconnect else 20):
                        assert (await ask(client, "/mutate-pods", pod(container(limits={EPC: "1"}))))["allowed"]
                        count += 1
            return count

        tasks = [asyncio.create_task(load(index % 2 == 0)) for index in range(4)]
        for _, pair in further:
            await asyncio.sleep(0.2)
            webhook.tls.use(pair.certificate, pair.key)
            port = int(webhook.url.rpartition(":")[2])
            pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
            seen.add(pem.encode())
            assert pem.encode() == pair.certificate
        done.set()
        assert min(await asyncio.gather(*tasks)) > 0
        assert len(seen) == 3


def client_pair(folder: Path) -> tuple[bytes, Path]:
    """An authority (PEM), and a file with a client certificate of its and the key."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    now = datetime.fromtimestamp(time.time(), UTC)
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("clients", "api-server")]
    found = []
    for key, name, is_authority in zip(keys, names, (True, False), strict=True):
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(names[0]).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
        builder = builder.not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        found.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(Encoding.PEM))
    private = keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file = folder / "client.pem"
    file.write_bytes(found[1] + private)
    return found[0], file


async def test_where_clients_need_a_certificate_nobody_else_is_answered(tmp_path: Path) -> None:
    """Also after the webhook's own certificate has changed."""
    authority, file = client_pair(tmp_path)
    async with running() as webhook:
        webhook.tls.require_client(authority)
        next_authority, pair = new_pair()
        for trusted in (webhook.authority, next_authority):
            known = trusting(trusted)
            known.load_cert_chain(file)
            async with httpx2.AsyncClient(verify=known, base_url=webhook.url) as client:
                assert (await ask(client, "/mutate-pods", pod()))["allowed"]
            async with httpx2.AsyncClient(verify=trusting(trusted), base_url=webhook.url) as stranger:
                with pytest.raises(httpx2.HTTPError):
                    await stranger.post("/mutate-pods", json=review_of(pod()))
            webhook.tls.use(pair.certificate, pair.key)


@pytest.mark.parametrize("authority", [b"", b"nothing", b"\xff"])
async def test_an_authority_that_is_none_does_not_open_the_door(authority: bytes) -> None:
    _, pair = new_pair()
    with pytest.raises(ConfigError, match="authority of clients"):
        HeldTls(pair.certificate, pair.key).require_client(authority)
