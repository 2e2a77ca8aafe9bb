"""The attestation service of the add-on: a pod attests itself by Microsoft's client, and its token is verified."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

from cluster_addon import Addon
from cluster_attestation import ATTESTATION, address_of, start_attestation
from cluster_jobs import DEVICE, job, limits, one_container
from cluster_plugin import own_cluster
from cluster_volumes import volume_by_hand
from derived_image import derive
from kubectl import ADDON_NAMESPACE, Kubectl

HOST = f"{ATTESTATION}.{ADDON_NAMESPACE}.svc"
ISSUER = f"https://{HOST}/simulated"
CLAIM = f"{ATTESTATION}-state"
CLIENT = "localhost/azure-client:e2e"
TRUST = "/etc/confcom/trust"
TOKEN = "the first administrator's"
POLICY = (
    'version=1.0; authorizationrules{[type=="x-ms-sgx-is-debuggable", value==false] => permit();}; '
    'issuancerules{=> issue(type="e2e", value="of this test");};'
)

PROGRAM = """
import sys
from pathlib import Path
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.security.attestation import AttestationAdministrationClient, AttestationClient, AttestationType

url, authority, held = sys.argv[1:4]

class Bearer(SansIOHTTPPolicy):
    def on_request(self, request):
        if len(sys.argv) > 4:
            request.http_request.headers["Authorization"] = "Bearer " + sys.argv[4]

common = {"authentication_policy": Bearer(), "connection_verify": authority}
if len(sys.argv) > 5:
    administration = AttestationAdministrationClient(url, object(), **common)
    result, _ = administration.set_policy(AttestationType.SGX_ENCLAVE, sys.argv[5])
    assert result.policy_resolution == "Updated", result
client = AttestationClient(url, object(), **common)
quote = Path("/tmp/quote").read_bytes()
_, token = client.attest_sgx_enclave(quote, runtime_data=Path(held).read_bytes(), validate_issuer=True, issuer=url)
print(token.to_jwt_string())
"""
SCRIPT = (
    f"printf held > /tmp/held && confcom quote --machine {DEVICE} --held-data /tmp/held -o /tmp/quote >/dev/null && "
    'exec python3 -c "$0" "$@"'
)


@pytest.fixture(scope="module")
def client(cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The cluster's image with azure-security-attestation and what it needs, as the environment of the tests has it."""
    pytest.importorskip("azure.security.attestation")
    home = own_cluster(cluster)
    if home is None:
        pytest.skip("images of this cluster are not ours to make")
    work = tmp_path_factory.mktemp("client")
    for name in ("azure-security-attestation", "six"):  # the second is required by the first, which does not say so
        copy_distributions(name, work / "tree" / "srv" / "client", set())
    derive(home, work, CLIENT, work / "tree", ["PYTHONPATH=/srv/client"])
    return CLIENT


def copy_distributions(name: str, target: Path, copied: set[str]) -> None:
    """Copy the files of a distribution, and of all it requires that the image does not have already."""
    if name in copied or name in ("cryptography", "cffi", "pycparser"):
        return
    copied.add(name)
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return  # a requirement of another Python
    for file in found.files or ():
        if file.suffix in (".py", ".pem", ".json", ".typed") and ".." not in file.parts:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(file.locate()), target / file)
    for line in found.requires or ():
        if "extra ==" not in line:
            copy_distributions(re.split(r"[^A-Za-z0-9._-]", line)[0].lower(), target, copied)


@pytest.fixture(scope="module")
def storage(enabled: Addon, cluster: Kubectl) -> Iterator[str]:
    with volume_by_hand(enabled, cluster, "e2e-attestation") as found:
        yield found


@pytest.fixture(scope="module")
def serving(enabled: Addon, cluster: Kubectl, storage: str) -> Iterator[Addon]:
    """The add-on with the service on a volume, and with an administrator."""
    hashed = hashlib.sha512(TOKEN.encode()).hexdigest()
    file = f'[[administrators]]\nname = "first"\nrole = "contributor"\ntoken_hash = "{hashed}"\n'
    metadata = {"name": "confcom-attestation-admin", "namespace": ADDON_NAMESPACE}
    data = {"administrators.toml": file}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})
    start(enabled, cluster, storage)
    yield enabled
    assert enabled("update", "--disable-attestation-service", "--disable-collateral", "-o", "none").code == 0
    cluster("delete", "secret", metadata["name"], "-n", ADDON_NAMESPACE)
    cluster("delete", "persistentvolumeclaim", CLAIM, "-n", ADDON_NAMESPACE, "--ignore-not-found")


def start(addon: Addon, cluster: Kubectl, storage: str) -> None:
    """Enable the service, and copy what its clients in another namespace trust."""
    start_attestation(addon, cluster, "--attestation-storage", storage)
    data = {}
    for name in (f"{ATTESTATION}-ca", "confcom-simulated-root"):
        data |= cluster.get("configmap", name, "-n", ADDON_NAMESPACE)["data"]
    metadata = {"name": "attestation-trust", "namespace": "e2e"}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def attested(cluster: Kubectl, run: Callable[..., str], image: str, *words: str) -> str:
    """The token of a pod that got a quote for a file that it holds, and sent both to the service."""
    command = ("sh", "-c", SCRIPT, PROGRAM, ISSUER, f"{TRUST}/ca-certificates.crt", "/tmp/held", *words)
    spec = one_container(image, *command, resources=limits(10))
    spec["hostAliases"] = [{"ip": address_of(cluster, ATTESTATION), "hostnames": [HOST]}]
    spec["volumes"] = [{"name": "trust", "configMap": {"name": "attestation-trust"}}]
    spec["containers"][0]["volumeMounts"] = [{"name": "trust", "mountPath": TRUST}]
    made = job("attested", "e2e", spec, annotations={"confcom.dev/quote-mode": "out-of-proc"})
    return run(made).strip().splitlines()[-1]


def page(cluster: Kubectl, path: str) -> str:
    return cluster(
        "get", "--raw", f"/api/v1/namespaces/{ADDON_NAMESPACE}/services/https:{ATTESTATION}:https/proxy/{path}"
    )


def keys(cluster: Kubectl) -> Any:
    return json.loads(page(cluster, "simulated/certs"))["keys"]


def verified(cluster: Kubectl, token: str, folder: Path) -> Any:
    """The claims of a token that `confcom token verify` accepts with the keys of the service."""
    (folder / "token").write_text(token)
    (folder / "keys.json").write_text(json.dumps({"keys": keys(cluster)}))
    words = ("token", "verify", "token", "--keys", "keys.json", "--issuer", ISSUER)
    for trust, code in ((("--allow-simulated",), 0), ((), 1)):
        command = [sys.executable, "-m", "confcom", *words, *trust, "--json"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ)
        assert bool(done.returncode) == bool(code), done.stdout + done.stderr
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


def test_a_pod_attests_itself_by_an_unmodified_client(
    serving: Addon, cluster: Kubectl, run: Callable[..., str], client: str, tmp_path: Path
) -> None:
    claims = verified(cluster, attested(cluster, run, client), tmp_path)
    assert claims["iss"] == ISSUER
    assert claims["confcom-simulated"] is True
    assert base64.urlsafe_b64decode(claims["x-ms-sgx-ehd"] + "==") == b"held"
    assert 'confcom_attestation_requests_total{outcome="accepted",type="SgxEnclave"} 1.0' in page(cluster, "metrics")
    ready = json.loads(serving("show").out)["ready"]
    assert ready[ATTESTATION] == "1/1"


def test_policy_and_keys_outlive_the_pod(
    serving: Addon, cluster: Kubectl, run: Callable[..., str], client: str, tmp_path: Path
) -> None:
    before = attested(cluster, run, client, TOKEN, POLICY)
    published, trusted = keys(cluster), cluster.get("configmap", f"{ATTESTATION}-ca", "-n", ADDON_NAMESPACE)["data"]
    assert verified(cluster, before, tmp_path)["e2e"] == "of this test"
    cluster("delete", "pod", "-n", ADDON_NAMESPACE, "-l", "app.kubernetes.io/component=attestation", "--wait")
    cluster.rollout("deployment", ATTESTATION)
    assert keys(cluster) == published
    assert cluster.get("configmap", f"{ATTESTATION}-ca", "-n", ADDON_NAMESPACE)["data"] == trusted
    verified(cluster, before, tmp_path)
    assert verified(cluster, attested(cluster, run, client), tmp_path)["e2e"] == "of this test"


def test_keys_are_rotated_from_within_the_pod(serving: Addon, cluster: Kubectl) -> None:
    before = {key["kid"] for key in keys(cluster)}
    words = ("confcom", "attestation", "new-keys", "/var/lib/confcom/attestation-keys", "--simulated")
    cluster("exec", "-n", ADDON_NAMESPACE, f"deployment/{ATTESTATION}", "--", *words)
    both = cluster.wait("the new keys", lambda: {key["kid"] for key in keys(cluster)} - before)
    assert before | both == {key["kid"] for key in keys(cluster)}


def left(addon: Addon) -> list[str]:
    """What the service has in the cluster, without what controllers make of it."""
    made = ("pod/", "replicaset", "endpoint")
    return [name for name in addon.objects() if "attestation" in name and not name.startswith(made)]


def test_a_disable_leaves_the_state_alone_and_says_so(serving: Addon, cluster: Kubectl, storage: str) -> None:
    published = keys(cluster)
    outcome = serving("update", "--disable-attestation-service", "-o", "none")
    assert outcome.code == 0, outcome.err
    assert f"kept PersistentVolumeClaim {ADDON_NAMESPACE}/{CLAIM}: policies, audit record and signing" in outcome.err
    cluster.wait("all but the claim to end", lambda: left(serving) == [f"persistentvolumeclaim/{CLAIM}"])
    start(serving, cluster, storage)
    assert keys(cluster) == published
