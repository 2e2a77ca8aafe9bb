"""The metrics API on real sockets: its CAs, a front proxy's client, the Kubernetes API, and exporters with pages.

Exporters stand on loopback addresses of their own, one for each node and component, and share a port.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from prometheus_client import CollectorRegistry

from confcom.pki.serving_pair import Authority
from confcom.protocols.custom_metrics import EXPORTERS, PATH
from confcom.services.metrics_api.metrics_api import MetricsApiConfig, serve
from confcom.services.runtime.http_server import Page
from confcom.services.runtime.process import background
from confcom.services.runtime.status_page import serve_issued_page
from epc_api import EpcApi, make_pod

NAME = "confcom-metrics-api.confcom-system.svc"


def now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


class Clients:
    """A CA of client certificates, as the API server's front proxy has one."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "front-proxy-ca")])
        self.authority = self._made(self._name, self._key, ca=True).public_bytes(Encoding.PEM)

    def write(self, file: Path, name: str, *, usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH) -> Path:
        """A file with a client certificate of that common name, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._made(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, ca=False, usage=usage)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file.write_bytes(made.public_bytes(Encoding.PEM) + private)
        return file

    def _made(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        ca: bool,
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now() - timedelta(hours=1))
        builder = builder.not_valid_after(now() + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def make_ca(folder: Path, *names: str) -> Authority:
    """A CA in a folder, as a mounted Secret has it."""
    made = Authority.make("test", now=now(), lifetime=timedelta(days=1), names=names)
    folder.mkdir(exist_ok=True)
    for file, content in (("tls.crt", made.certificate), ("tls.key", made.key), ("ca.crt", made.certificate)):
        (folder / file).write_bytes(content)
    return made


def exporter_pod(component: str, node: str, address: str) -> dict[str, Any]:
    """The pod of an exporter."""
    labels = {"app.kubernetes.io/part-of": "confcom", "app.kubernetes.io/component": component}
    pod = make_pod(f"{component}-{node}", namespace="confcom-system", node=node, labels=labels)
    pod["status"]["podIP"] = address
    return pod


class MetricsApiStage:
    """What surrounds a metrics API. Use `running()`."""

    def __init__(self, folder: Path, api: EpcApi) -> None:
        self.folder = folder
        self.api = api
        self.authority = make_ca(folder / "ca", NAME, f"{NAME}.cluster.local")
        self.exporters_ca = make_ca(folder / "exporters", *EXPORTERS.values())
        self.clients = Clients()
        self.trust(self.clients)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.registry = CollectorRegistry()
        self.url = ""
        self._files = 0

    def trust(self, clients: Clients, names: tuple[str, ...] = ("front-proxy-client",)) -> None:
        """Have the API server publish this CA as its front proxy's."""
        self.api.config_maps["kube-system", "extension-apiserver-authentication"] = {
            "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
            "data": {
                "requestheader-client-ca-file": clients.authority.decode(),
                "requestheader-allowed-names": json.dumps(names),
            },
        }

    @asynccontextmanager
    async def exporter(
        self, component: str, node: str, address: str, page: list[str], ca: str = "exporters"
    ) -> AsyncIterator[None]:
        """An exporter that serves the last text of `page`."""

        async def show() -> Page:
            return Page(200, page[-1].encode())

        self.api.put(exporter_pod(component, node, address))
        serve = partial(
            serve_issued_page, f"{address}:{self.port}", {"/metrics": show}, self.folder / ca, EXPORTERS[component]
        )
        async with background("page", serve):
            yield

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[None]:
        """A metrics API; `url` is its address then."""
        config = MetricsApiConfig(
            **{
                "listen": "127.0.0.1:0",
                "http": f"unix:{self.folder / 'page'}",
                "ca": str(self.folder / "ca"),
                "exporters_ca": str(self.folder / "exporters/ca.crt"),
                "kubeconfig": self.api.kubeconfig(self.folder),
                "interval": 0.2,
                "leave_after": 0.0,
            }
            | settings
        )
        stop, url = asyncio.Event(), asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(
            serve(
                config,
                clock=now,
                stop=stop,
                started=url.set_result,
                registry=self.registry,
                exporter_port=self.port,
            )
        )
        try:
            done, _ = await asyncio.wait({serving, url}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
            assert url in done, serving.exception()
            self.url = url.result()
            yield
        finally:
            stop.set()
            await serving

    def client(self, clients: Clients | None, name: str = "front-proxy-client", **more: Any) -> httpx2.AsyncClient:
        """A client of the metrics API; with a certificate of `clients`, if there are any."""
        context = ssl.create_default_context(cadata=self.authority.certificate.decode())
        if clients is not None:
            self._files += 1
            context.load_cert_chain(clients.write(self.folder / f"client{self._files}.pem", name, **more))
        return httpx2.AsyncClient(verify=context, base_url=self.url, timeout=60)

    async def get(self, client: httpx2.AsyncClient, path: str) -> httpx2.Response:
        """The answer to a path below the version's."""
        return await client.get(f"{PATH}{path}", extensions={"sni_hostname": NAME})

    async def ready(self) -> str:
        """What /readyz says."""
        async with httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(self.folder / "page"))) as client:
            return (await client.get("http://page/readyz")).text.strip()
