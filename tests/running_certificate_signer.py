"""A certificate signer over a stand-in of the Kubernetes API, with the simulated world that its requesters are in."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client import CollectorRegistry

from certificate_requests_api import CONFIG_MAP, SECRET, CertificateRequestsApi
from confcom.platforms.pod_certificate import PodCertificate, request_certificate
from confcom.platforms.quoting import EnclaveQuoteSource
from confcom.services.certificate_signer.certificate_signer import CertificateSignerConfig, serve
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld


def now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


@cache
def world() -> SimulatedWorld:
    """The world of all requesters."""
    return SimulatedWorld.from_seed(b"seed of the attested certificates", now=now() - timedelta(hours=1))


def declaration(name: str = "web", *, debug: bool = False) -> EnclaveDeclaration:
    return EnclaveDeclaration.from_names(name, "vendor", isv_prod_id=3, isv_svn=2, debug=debug)


def enclave(name: str = "web", *, debug: bool = False) -> EnclaveQuoteSource:
    """The quotes of an enclave."""
    return EnclaveQuoteSource(world().platform, world().machine.launch(declaration(name, debug=debug)))


def policy_of(name: str = "web") -> str:
    """A policy that accepts this enclave alone."""
    return f'mr_enclave = ["{declaration(name).mr_enclave.hex()}"]\n'


class SignerStage:
    """What surrounds a signer. Use `running()`."""

    def __init__(self, folder: Path, api: CertificateRequestsApi) -> None:
        self.folder = folder
        self.api = api
        self.registry = CollectorRegistry()
        self.policies = folder / "policies"
        self.policies.mkdir()
        (self.policies / "shop.web.toml").write_text(policy_of())
        self.export_collateral()
        api.put_signer()

    def export_collateral(self) -> None:
        world().export_collateral(self.folder / "collateral")

    def config(self, **settings: Any) -> CertificateSignerConfig:
        return CertificateSignerConfig(
            **{
                "http": f"unix:{self.folder / 'page'}",
                "policies": str(self.policies),
                "collateral": str(self.folder / "collateral"),
                "kubeconfig": self.api.kubeconfig(self.folder),
                "ca_look_every": 0.1,
            }
            | settings
        )

    @asynccontextmanager
    async def running(self, *, registry: CollectorRegistry | None = None, **settings: Any) -> AsyncIterator[None]:
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(
            serve(
                self.config(**settings),
                roots=world().trust_roots,
                clock=now,
                stop=stop,
                started=ready.set_result,
                registry=registry or self.registry,
            )
        )
        try:
            done, _ = await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
            assert ready in done, serving.exception()
            yield
        finally:
            stop.set()
            await serving

    def requester(self, account: str = "web", namespace: str = "shop", pod: str = "web-1", **extra: Any) -> str:
        """Credentials of a pod."""
        return self.api.account(self.folder, namespace, account, pod, **extra)

    async def certificate(self, credentials: str, quotes: Any = None, **more: Any) -> PodCertificate:
        """What the library call gives to the holder of credentials."""
        more = {"kubeconfig": credentials, "timeout": 60.0} | more
        return await asyncio.to_thread(lambda: request_certificate(quotes or enclave(), **more))

    async def denied(self, name: str) -> tuple[str, str]:
        """Reason and message once a request is denied."""
        async with asyncio.timeout(60):
            while not (found := self.api.denial(name))[0]:
                await asyncio.sleep(0.02)
        return found

    def published(self) -> bytes:
        """The CAs that relying parties are told."""
        data: dict[str, str] = self.api.objects["configmaps", "confcom-system", CONFIG_MAP].get("data", {})
        return data.get("ca-certificates.crt", "").encode()

    def secret(self) -> dict[str, bytes]:
        data = self.api.objects["secrets", "confcom-system", SECRET].get("data", {})
        return {name: base64.b64decode(value) for name, value in data.items()}

    async def page(self, path: str) -> str:
        async with httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(self.folder / "page"))) as client:
            return (await client.get(f"http://page/{path}")).text
