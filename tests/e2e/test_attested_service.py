"""`examples/attested_service` on a cluster, unchanged: passwords and answers for attested enclaves only.

    ./dev e2e --thorough -k test_attested_service

PostgreSQL is Debian's, at the node's address. The server of secrets is `jwt_login_server`, with the API of Vault.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster_addon import Addon
from cluster_attestation import ATTESTATION, address_of, start_attestation
from cluster_plugin import own_cluster
from confcom.wiring import declare_enclave
from jwt_login_server import JwtLoginServer, jwt_login_server
from kubectl import ADDON_NAMESPACE, Kubectl
from postgres_server import OwnServer, program
from relying_party import RelyingParty

pytestmark = pytest.mark.timeout(900)

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "attested_service"
HOST = f"{ATTESTATION}.{ADDON_NAMESPACE}.svc"
ISSUER = f"https://{HOST}/simulated"
SIGNER = declare_enclave("", "Contoso").mr_signer.hex()
PASSWORD = "correct horse"
ASK = """
import ssl, sys, urllib.error, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], context=ssl._create_unverified_context(), timeout=60) as answer:
        print(answer.status, answer.read().decode().strip())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode().strip())
"""


@dataclass(frozen=True)
class Shop:
    """What the example needs on the cluster."""

    cluster: Kubectl
    image: str
    database: OwnServer
    secrets: JwtLoginServer

    def objects(self) -> dict[str, Any]:
        """The objects of stock.yaml by kind and name: with the addresses of this cluster, which has no DNS."""
        postgres = f"{self.database.address}:{self.database.port}"
        text = (EXAMPLE / "stock.yaml").read_text()
        for shown, here in (
            ("confcom/confcom:0.1.0", self.image),
            ("postgres:5432", postgres),
            ("https://openbao:8200", self.secrets.url),
        ):
            assert shown in text
            text = text.replace(shown, here)
        found = {f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(text)}
        for one in found.values():
            one["metadata"]["namespace"] = "e2e"
        return found

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply them; pods find the attestation service and the store by name."""
        names = {HOST: address_of(self.cluster, ATTESTATION)}
        if store := self.cluster.find("service", "store", "-n", "e2e"):
            names["store"] = store["spec"]["clusterIP"]
        for one in objects:
            if one["kind"] == "Deployment":
                aliases = [{"ip": address, "hostnames": [name]} for name, address in names.items()]
                one["spec"]["template"]["spec"]["hostAliases"] = aliases
        self.cluster.apply(*objects)

    def replace(self, deployment: dict[str, Any]) -> None:
        """Apply it in the place of one that may have failed, whose next attempt may be minutes away."""
        self.cluster(
            "delete", "deployment", deployment["metadata"]["name"], "-n", "e2e", "--cascade=foreground", "--wait"
        )
        self.apply(deployment)

    def log(self, name: str) -> str:
        """What the pods of the Deployment printed, in their present and former containers."""
        found = self.cluster.items("pods", "-n", "e2e", "-l", f"app={name}")
        words = [("logs", "-n", "e2e", one["metadata"]["name"]) for one in found]
        return "".join(
            self.cluster.attempt(*each).out + self.cluster.attempt(*each, "--previous").out for each in words
        )

    def until_ready(self, name: str) -> None:
        """Wait until the Deployment's pod serves."""
        words = ("rollout", "status", f"deployment/{name}", "-n", "e2e", "--timeout=240s")
        self.cluster(*words, seconds=260)

    def ask(self, name: str) -> str:
        """Status and answer of an instance to somebody in its pod, who does not verify it."""
        url = "https://127.0.0.1:8443/stock/apples"
        return self.cluster("exec", "-n", "e2e", f"deployment/{name}", "--", "python3", "-c", ASK, url).strip()


@pytest.fixture(scope="module")
def shop(enabled: Addon, cluster: Kubectl, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    if own_cluster(cluster) is None:
        pytest.skip("servers in the network of the nodes are needed, which only the cluster of `./dev e2e` lets be")
    if not program("initdb").exists():
        pytest.skip("needs a PostgreSQL server: `./dev postgres` installs Debian's")
    network = os.environ.get("KUBE_NAME", "kube")
    addresses = cluster.items("nodes")[0]["status"]["addresses"]
    address = next(one["address"] for one in addresses if one["type"] == "InternalIP")
    folder = tmp_path_factory.mktemp("shop")
    data = Path(tempfile.mkdtemp(prefix="confcom-pg-", dir="/tmp"))
    database = OwnServer(data, address=address, network=network)

    def keys() -> Any:
        path = f"/api/v1/namespaces/{ADDON_NAMESPACE}/services/https:{ATTESTATION}:https/proxy/simulated/certs"
        return json.loads(cluster("get", "--raw", path))

    def clock() -> datetime:
        return datetime.now(UTC)  # noqa: TID251 - the cluster's time

    try:
        database.start()
        database.execute(f"CREATE ROLE stock LOGIN PASSWORD '{PASSWORD}'")
        database.execute("CREATE DATABASE stock")
        database.execute("CREATE TABLE stock (name text PRIMARY KEY, number int)", "stock")
        database.execute("INSERT INTO stock VALUES ('apples', 3)", "stock")
        database.execute("GRANT SELECT ON stock TO stock", "stock")
        start_attestation(enabled, cluster, "--attestation-storage", "", "--collateral-storage", "")
        with jwt_login_server(folder, ISSUER, clock, keys=keys, address=address, network=network) as secrets:
            secrets.secrets["secret/data/stock"] = {"password": PASSWORD}
            secrets.roles["stock"] = {"mrsigner": SIGNER, "debug": False}
            found = Shop(cluster, image, database, secrets)
            found.apply(settings(found, RelyingParty.of(cluster, folder).folder))
            yield found
    finally:
        cluster("delete", "deployment,service", "store", "shop", "-n", "e2e", "--ignore-not-found", "--wait")
        cluster("delete", "configmap", "stock", "-n", "e2e", "--ignore-not-found")
        enabled("update", "--disable-attestation-service", "--disable-collateral", "-o", "none")
        database.stop()
        shutil.rmtree(data, ignore_errors=True)


def settings(shop: Shop, folder: Path) -> dict[str, Any]:
    """The ConfigMap of the documentation: nothing in it is secret."""
    attestation = shop.cluster.get("configmap", f"{ATTESTATION}-ca", "-n", ADDON_NAMESPACE)["data"]
    authorities = [attestation["ca-certificates.crt"], shop.secrets.ca.read_text()]
    data = {
        "service.py": (EXAMPLE / "service.py").read_text(),
        "stock.toml": 'enclave = "stock"\nsigner = "Contoso"\nisv_prod_id = 1\nisv_svn = 1\n',
        "stranger.toml": 'enclave = "stock"\nsigner = "Mallory"\nisv_prod_id = 1\nisv_svn = 1\n',
        "policy.toml": f'mr_signer = ["{SIGNER}"]\nisv_prod_id = 1\nmin_isv_svn = 1\n',
        "ca.pem": "".join([*authorities, shop.database.authority.read_text()]),
        **{path.name: path.read_text() for path in (folder / "collateral").iterdir() if path.suffix != ".der"},
    }
    binary = {path.name: base64.b64encode(path.read_bytes()).decode() for path in folder.glob("collateral/*.der")}
    metadata = {"name": "stock", "namespace": "e2e"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data, "binaryData": binary}


def as_stranger(deployment: dict[str, Any]) -> dict[str, Any]:
    """The same, in an enclave of another signer."""
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["args"] = [word.replace("stock.toml", "stranger.toml") for word in container["args"]]
    return deployment


def test_the_password_is_released_and_an_attested_peer_is_asked(shop: Shop) -> None:
    objects = shop.objects()
    shop.apply(objects["Service/store"])
    shop.apply(objects["Deployment/store"], objects["Deployment/shop"])
    for name, answer in (("store", "200 3"), ("shop", "200 6")):
        shop.until_ready(name)
        assert "attested: the database's password was released" in shop.log(name)
        assert shop.ask(name) == answer
    verified = (
        "--collateral",
        "/etc/stock",
        "--trust-root",
        "/etc/stock/root_ca.pem",
        "--policy",
        "/etc/stock/policy.toml",
    )
    words = ("confcom", "verify", "--connect", "store:8443", *verified)
    assert "ACCEPTED" in shop.cluster("exec", "-n", "e2e", "deployment/shop", "--", *words)
    shown = shop.cluster("get", "deployments,pods,configmaps", "-n", "e2e", "-o", "json")
    assert PASSWORD not in shown
    in_use = shop.database.execute("SELECT DISTINCT usename, ssl FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) "
                                   "WHERE datname = 'stock' AND backend_type = 'client backend'")  # fmt: skip
    assert set(in_use) <= {("stock", True)}


def test_another_enclave_gets_no_password(shop: Shop) -> None:
    shop.replace(as_stranger(shop.objects()["Deployment/store"]))
    said = shop.cluster.wait("the refusal", lambda: "claim 'mrsigner'" in (log := shop.log("store")) and log)
    assert "does not match" in said
    assert PASSWORD not in said


def test_a_peer_of_another_signer_is_not_asked(shop: Shop) -> None:
    """The server of secrets lets it in, so only attestation stands between it and the shop."""
    shop.secrets.roles["stock"] = {}
    try:
        shop.replace(as_stranger(shop.objects()["Deployment/store"]))
        shop.until_ready("store")
        assert shop.ask("store") == "200 3"
        assert shop.ask("shop") == "502 the peer did not answer as expected"
        assert "not attested (policy-refused)" in shop.log("shop")
    finally:
        shop.secrets.roles["stock"] = {"mrsigner": SIGNER, "debug": False}
