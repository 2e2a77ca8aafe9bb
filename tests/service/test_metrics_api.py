"""The metrics API over TLS: whom it answers, whom it believes, and what it says when figures are missing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from confcom.protocols.custom_metrics import EXPORTERS
from confcom.services.metrics.exporter import MetricsConfig, MetricsExporter
from confcom.services.runtime.process import run_until
from epc_api import EpcApi, make_pod
from running_metrics_api import Clients, MetricsApiStage, exporter_pod, make_ca

MIB = 1 << 20
WEB = "/namespaces/default/pods/%2A/sgx_epc_used_ratio?labelSelector=app%3Dweb"


def epc_page(**mapped: int) -> str:
    lines = ['confcom_epc_pass_age_seconds{node="x"} 0.5']
    for name, size in mapped.items():
        labels = f'{{node="x",namespace="default",pod="{name}",container="app"}}'
        lines += [f"confcom_epc_requested_bytes{labels} {10 * MIB}", f"confcom_epc_mapped_bytes{labels} {size}"]
    return "\n".join(lines) + "\n"


@pytest.fixture
def stage() -> Iterator[MetricsApiStage]:
    with TemporaryDirectory(prefix="api-") as name, EpcApi() as api:
        for pod, node in (("web1", "n1"), ("web2", "n2")):
            api.put(make_pod(pod, node=node, mib=10, labels={"app": "web"}))
        yield MetricsApiStage(Path(name), api)


async def eventually(call: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(60):
        while not (found := await call()):
            await asyncio.sleep(0.05)
    return found


def values(answer: httpx2.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {one["describedObject"]["name"]: one["value"] for one in answer.json()["items"]}


async def test_hpa_gets_the_pods_of_every_node(stage: MetricsApiStage) -> None:
    first, second = [epc_page(web1=7 * MIB)], [epc_page(web2=12 * MIB)]
    async with (
        stage.exporter("metrics", "n1", "127.0.0.2", first),
        stage.exporter("metrics", "n2", "127.0.0.3", second),
        stage.running(),
        stage.client(stage.clients) as client,
    ):

        async def both() -> bool:
            answer = await stage.get(client, WEB)
            return answer.status_code == 200 and len(answer.json()["items"]) == 2

        await eventually(both)
        assert values(await stage.get(client, WEB)) == {"web1": "700m", "web2": "1200m"}
        assert await stage.ready() == "ok"
        found = await stage.get(client, "")
        assert "pods/sgx_epc_used_ratio" in [one["name"] for one in found.json()["resources"]]
        first.append(epc_page(web1=1 * MIB))

        async def fallen() -> bool:
            return values(await stage.get(client, WEB))["web1"] == "100m"

        await eventually(fallen)
        assert (await stage.get(client, "/namespaces/default/pods/%2A/cpu")).status_code == 404
        assert (await stage.get(client, WEB + "%3D%3D%3D")).json()["reason"] == "BadRequest"
        answer = await client.post("/apis", extensions={"sni_hostname": "confcom-metrics-api.confcom-system.svc"})
        assert answer.status_code == 405
        assert stage.registry.get_sample_value(
            "confcom_metrics_api_exporters", {"component": "metrics", "answered": "true"}
        ) == 2.0  # fmt: skip


async def test_only_the_front_proxy_is_answered(stage: MetricsApiStage) -> None:
    """Whatever a client says of itself in X-Remote-User."""
    async with stage.running():
        async with stage.client(None) as nobody:
            with pytest.raises(httpx2.HTTPError):
                await stage.get(nobody, "")
        async with stage.client(Clients()) as stranger:
            with pytest.raises(httpx2.HTTPError):
                await stage.get(stranger, "")
        async with stage.client(stage.clients, usage=ExtendedKeyUsageOID.SERVER_AUTH) as server:
            with pytest.raises(httpx2.HTTPError):
                await stage.get(server, "")
        async with stage.client(stage.clients, "somebody") as other:
            other.headers["X-Remote-User"] = "admin"
            for path in ("", WEB):
                assert (await stage.get(other, path)).status_code == 401
        async with stage.client(stage.clients) as proxy:
            assert (await stage.get(proxy, "")).status_code == 200


async def test_a_renewed_front_proxy_ca_replaces_the_former(
    stage: MetricsApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confcom.services.metrics_api.metrics_api.FRONT_PROXY_EVERY", 0.1)
    async with stage.running():
        renewed = Clients()
        stage.trust(renewed, ("proxy-2",))

        async def known() -> bool:
            async with stage.client(renewed, "proxy-2") as client:
                try:
                    return (await stage.get(client, "")).status_code == 200
                except httpx2.HTTPError:
                    return False

        await eventually(known)
        async with stage.client(stage.clients) as former:
            with pytest.raises(httpx2.HTTPError):
                await stage.get(former, "")


async def test_an_exporter_is_believed_by_its_certificate_alone(stage: MetricsApiStage) -> None:
    make_ca(stage.folder / "foreign", *EXPORTERS.values())
    async with (
        stage.exporter("metrics", "n1", "127.0.0.2", [epc_page(web1=9 * MIB)], ca="foreign"),
        stage.running(),
        stage.client(stage.clients) as client,
    ):

        async def refused() -> str:
            answer = await stage.get(client, WEB)
            message: str = answer.json()["message"]
            return message if answer.status_code == 503 and "certificate" in message else ""

        message = await eventually(refused)
        assert "n1" in message
        first = stage.registry.get_sample_value("confcom_metrics_api_oldest_figures_seconds")

        async def older() -> bool:
            return (stage.registry.get_sample_value("confcom_metrics_api_oldest_figures_seconds") or 0) > (first or 0)

        await eventually(older)
        # Of our CA, but of another component.
        stage.api.put(exporter_pod("metrics", "n1", "127.0.0.4"))
        async with stage.exporter("quote-helper", "n9", "127.0.0.4", [epc_page(web1=9 * MIB)]):

            async def at_the_other() -> bool:
                return "127.0.0.4" in (message := await refused()) and "mismatch" in message

            await eventually(at_the_other)


async def test_stale_figures_are_left_out_and_the_reason_is_said(stage: MetricsApiStage) -> None:
    async with stage.running(stale_after=1.0), stage.client(stage.clients) as client:
        async with stage.exporter("metrics", "n1", "127.0.0.2", [epc_page(web1=7 * MIB)]):

            async def there() -> bool:
                return (await stage.get(client, WEB)).status_code == 200

            await eventually(there)

        async def gone() -> str:
            answer = await stage.get(client, WEB)
            return answer.json()["message"] if answer.status_code == 503 else ""

        message = await eventually(gone)
        assert "no fresh figures of 2 pods" in message
        assert "node n1 (127.0.0.2) last gave figures" in message
        assert "no exporter of EPC use runs on node n2" in message


@pytest.mark.parametrize("page", ["", "x" * (5 << 20), epc_page(web1=1).replace("mapped_bytes{", "mapped_bytes{{")])
async def test_a_page_that_is_none_does_not_stop_the_others(stage: MetricsApiStage, page: str) -> None:
    async with (
        stage.exporter("metrics", "n1", "127.0.0.2", [page]),
        stage.exporter("metrics", "n2", "127.0.0.3", [epc_page(web2=5 * MIB)]),
        stage.running(),
        stage.client(stage.clients) as client,
    ):

        async def there() -> bool:
            return (await stage.get(client, WEB)).status_code == 200

        await eventually(there)
        assert values(await stage.get(client, WEB)) == {"web2": "500m"}


async def test_without_aggregation_it_is_not_ready_and_says_so(stage: MetricsApiStage) -> None:
    stage.api.config_maps.clear()
    serving = asyncio.create_task(_until_ready(stage))
    try:

        async def said() -> bool:
            return (stage.folder / "page").exists() and "no aggregation" in await stage.ready()

        await eventually(said)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def _until_ready(stage: MetricsApiStage) -> None:
    async with stage.running():
        pass


async def test_the_exporter_of_epc_use_serves_its_page_over_tls(stage: MetricsApiStage) -> None:
    config = MetricsConfig(
        node_name="n1",
        kubeconfig=stage.api.kubeconfig(stage.folder),
        host_root=str(stage.folder),
        http=f"unix:{stage.folder / 'exporter'}",
        https=f"127.0.0.2:{stage.port}",
        https_ca=str(stage.folder / "exporters"),
        interval=0.2,
        enforce="off",
    )
    stop = asyncio.Event()
    exporting = asyncio.create_task(run_until(stop, *MetricsExporter(config).actors()))
    stage.api.put(exporter_pod("metrics", "n1", "127.0.0.2"))
    try:
        async with stage.running(), stage.client(stage.clients) as client:

            async def there() -> bool:
                answer = await stage.get(client, "/namespaces/default/pods/%2A/sgx_epc_used_ratio")
                return answer.status_code == 200 and bool(answer.json()["items"])

            await eventually(there)
            found = await stage.get(client, "/namespaces/default/pods/%2A/sgx_epc_used_ratio")
            assert values(found) == {"web1": "0"}
    finally:
        stop.set()
        await exporting
