"""Certificates for attested pods on a real cluster: issued, refused, and no more rights than to ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography import x509

from api_rights import Account, Right, resources_of
from cluster_addon import Addon
from cluster_attestation import COLLATERAL, address_of
from cluster_jobs import DEVICE, job, limits, one_container
from confcom.wiring import declare_enclave
from kubectl import ADDON_NAMESPACE, Kubectl

SIGNER = "confcom-certificate-signer-simulated"
BUNDLE = "confcom-attested-pods-ca-simulated"
REQUESTER = "confcom-certificate-requester"
POLICIES = "confcom-certificate-policies"
ASK = f"confcom certificate --machine {DEVICE} -o /tmp --timeout 60"
GROUP, REQUESTS = "certificates.k8s.io", "certificatesigningrequests"


def write_policy(cluster: Kubectl, mr_enclave: bytes) -> None:
    """Accept this enclave of the account e2e/default."""
    metadata = {"name": POLICIES, "namespace": ADDON_NAMESPACE}
    data = {"e2e.default.toml": f'mr_enclave = ["{mr_enclave.hex()}"]\n'}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


@pytest.fixture(scope="module")
def signing(enabled: Addon, cluster: Kubectl) -> Iterator[Addon]:
    """The add-on with the signer, a policy for the demo enclave, and an account that may ask."""
    write_policy(cluster, declare_enclave("demo enclave", "demo signer").mr_enclave)
    words = ("--enable-collateral", "--enable-attested-certificates", "-o", "none")
    outcome = enabled("update", *words, "--no-wait")
    assert outcome.code == 0, outcome.err
    # The cluster has no DNS.
    pod = {"hostAliases": [{"ip": address_of(cluster, "confcom-collateral"), "hostnames": [COLLATERAL]}]}
    patch = json.dumps({"spec": {"template": {"spec": pod}}})
    cluster("patch", "deployment", SIGNER, "-n", ADDON_NAMESPACE, "--type=strategic", "-p", patch)
    outcome = enabled("update", "-o", "none")
    assert outcome.code == 0, outcome.err
    words = (f"--clusterrole={REQUESTER}", "--serviceaccount=e2e:default")
    cluster("create", "clusterrolebinding", "e2e-requester", *words)
    yield enabled
    cluster("delete", "clusterrolebinding", "e2e-requester")
    assert enabled("update", "--disable-attested-certificates", "--disable-collateral", "-o", "none").code == 0
    cluster("delete", "configmap", POLICIES, "-n", ADDON_NAMESPACE)


def asking(name: str, image: str, script: str) -> Any:
    spec = one_container(image, "sh", "-c", script, resources=limits(10))
    return job(name, "e2e", spec, annotations={"confcom.dev/quote-mode": "out-of-proc"})


def test_a_pod_gets_a_certificate_and_another_enclave_a_reason(
    signing: Addon, cluster: Kubectl, run: Callable[..., str], image: str
) -> None:
    other = "printf 'enclave = \"another\"\\n' > /tmp/other.toml"
    refused = f"{other} && ! {ASK} --enclave /tmp/other.toml >/tmp/said 2>&1; cat /tmp/said"
    script = f"{ASK} >&2 && {{ {refused}; }} && cat /tmp/tls.crt"
    log = run(asking("certificate", image, script))
    said, begin, rest = log.partition("-----BEGIN CERTIFICATE-----")
    assert "EvidenceRefused" in said, log
    (found,) = x509.load_pem_x509_certificates((begin + rest).encode())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [
        "default.e2e.svc", "default.e2e.svc.cluster.local", "spiffe://cluster.local/ns/e2e/sa/default",
    ]  # fmt: skip
    published = cluster.get("configmap", BUNDLE, "-n", ADDON_NAMESPACE)["data"]["ca-certificates.crt"]
    found.verify_directly_issued_by(x509.load_pem_x509_certificates(published.encode())[0])
    assert signing("show").code == 0


def test_a_requester_may_make_requests_and_read_one_by_name_and_nothing_else(
    signing: Addon, cluster: Kubectl, tmp_path: Any
) -> None:
    """By a token of the account itself, each verb of each resource of the group."""
    cluster("create", "serviceaccount", "requester", "-n", ADDON_NAMESPACE)
    words = (f"--clusterrole={REQUESTER}", f"--serviceaccount={ADDON_NAMESPACE}:requester")
    cluster("create", "clusterrolebinding", "e2e-rights", *words)
    try:
        of_group = [one for one in resources_of(cluster) if one[1] == GROUP]
        with Account(cluster, "requester", tmp_path) as account:
            assert account.rights(of_group) == {Right("create", GROUP, REQUESTS), Right("get", GROUP, REQUESTS)}
        with Account(cluster, SIGNER, tmp_path) as account:
            assert account.rights(of_group) == {
                *(Right(verb, GROUP, REQUESTS) for verb in ("get", "list", "watch")),
                *(Right("update", GROUP, f"{REQUESTS}/{part}") for part in ("approval", "status")),
            }
    finally:
        cluster("delete", "clusterrolebinding", "e2e-rights")
        cluster("delete", "serviceaccount", "requester", "-n", ADDON_NAMESPACE)
