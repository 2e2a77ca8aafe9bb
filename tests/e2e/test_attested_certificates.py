"""Certificates for attested pods on a real cluster: issued, refused, and no more rights than to ask."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

import server_image
from api_rights import Account, Right, resources_of
from attested_servers import SERVERS, command, filled
from cluster_addon import Addon
from cluster_attestation import COLLATERAL, address_of
from cluster_jobs import DEVICE, job, limits, one_container, pod
from confcom.pki.serving_pair import Authority
from confcom.wiring import declare_enclave
from kubectl import ADDON_NAMESPACE, Kubectl

SIGNER = "confcom-certificate-signer-simulated"
BUNDLE = "confcom-attested-pods-ca-simulated"
REQUESTER = "confcom-certificate-requester"
POLICIES = "confcom-certificate-policies"
ASK = f"confcom certificate --machine {DEVICE} -o /tmp --timeout 60"
OTHER = "clusterissuers.cert-manager.io/simulated"
GROUP, REQUESTS = "certificates.k8s.io", "certificatesigningrequests"


def write_policy(cluster: Kubectl, mr_enclave: bytes) -> None:
    """Accept this enclave of every account of the namespace."""
    metadata = {"name": POLICIES, "namespace": ADDON_NAMESPACE}
    data = {"e2e.toml": f'mr_enclave = ["{mr_enclave.hex()}"]\n'}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


@pytest.fixture(scope="module")
def signing(enabled: Addon, cluster: Kubectl) -> Iterator[Addon]:
    """The add-on with the signer, a policy for the demo enclave, and an account that may ask."""
    write_policy(cluster, declare_enclave("demo enclave", "demo signer").mr_enclave)
    words = ("--enable-collateral", "--enable-attested-certificates", f"--approve-for={OTHER}", "-o", "none")
    outcome = enabled("update", *words, "--no-wait")
    assert outcome.code == 0, outcome.err
    # The cluster has no DNS.
    pod = {"hostAliases": [{"ip": address_of(cluster, "confcom-collateral"), "hostnames": [COLLATERAL]}]}
    patch = json.dumps({"spec": {"template": {"spec": pod}}})
    cluster("patch", "deployment", SIGNER, "-n", ADDON_NAMESPACE, "--type=strategic", "-p", patch)
    outcome = enabled("update", "-o", "none")
    assert outcome.code == 0, outcome.err
    accounts = [f"--serviceaccount=e2e:{name}" for name in ("default", "web", "client")]
    words = (f"--clusterrole={REQUESTER}", *accounts)
    cluster("create", "clusterrolebinding", "e2e-requester", *words)
    yield enabled
    cluster("delete", "clusterrolebinding", "e2e-requester")
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


ASK_OTHER = f"""
from confcom import own_quote_source, request_certificate
found = request_certificate(own_quote_source(machine="{DEVICE}"), signer="{OTHER}", timeout=120)
print(found.certificate.decode())
"""


def test_a_request_to_another_signer_is_approved_for_the_names_of_its_pod(
    signing: Addon, cluster: Kubectl, made: Callable[..., Any], image: str
) -> None:
    """The test signs, as cert-manager would: what the request says, once it is approved."""
    assert signing("show").code == 0
    before = {one["metadata"]["name"] for one in cluster.items("csr")}
    thing = job("other-signer", "e2e", one_container(image, "python3", "-c", ASK_OTHER, resources=limits(10)))
    thing["spec"]["template"]["metadata"]["annotations"]["confcom.dev/quote-mode"] = "out-of-proc"
    made(thing)

    def approved() -> Any:
        of_signer = [one for one in cluster.items("csr") if one["spec"]["signerName"] == OTHER]
        new = [one for one in of_signer if one["metadata"]["name"] not in before]
        return next((one for one in new if "Approved" in str(one["status"].get("conditions"))), None)

    found = cluster.wait("an approval", approved)
    request = x509.load_pem_x509_csr(base64.b64decode(found["spec"]["request"]))
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [
        "default.e2e.svc", "default.e2e.svc.cluster.local", "spiffe://cluster.local/ns/e2e/sa/default",
    ]  # fmt: skip
    begin = datetime.fromtimestamp(time.time(), UTC)
    authority = Authority.make("other", now=begin, lifetime=timedelta(days=1))
    issuer, key = x509.load_pem_x509_certificate(authority.certificate), load_pem_private_key(authority.key, None)
    end = begin + timedelta(seconds=found["spec"]["expirationSeconds"])
    builder = x509.CertificateBuilder(issuer.subject, request.subject, request.public_key(), 7, begin, end)
    signed = builder.add_extension(names, critical=True).sign(key, SHA256()).public_bytes(Encoding.PEM)
    patch = json.dumps({"status": {"certificate": base64.b64encode(signed).decode()}})
    cluster("patch", "csr", found["metadata"]["name"], "--subresource=status", "--type=merge", "-p", patch)
    words = ("job", "other-signer", "-n", "e2e")
    cluster.wait("the pod to have it", lambda: cluster.get(*words)["status"].get("succeeded"))
    assert cluster("logs", "-n", "e2e", "job/other-signer").strip() == signed.decode().strip()


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


# Asks each server again and again until it has shown as many certificates as are wanted; the last line is the count.
CLIENT = """
import socket, ssl, sys, time

def ask(address, context):
    with context.wrap_socket(socket.create_connection((address, 8443), 30), server_hostname="web.e2e.svc") as stream:
        stream.sendall(b"GET / HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n")
        answer = b"".join(iter(lambda: stream.recv(4096), b""))
        return b"hello" in answer, stream.getpeercert()["serialNumber"]

context = ssl.create_default_context(cafile="/tls/ca.crt")
context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
shown, asked, end = {address: set() for address in sys.argv[2:]}, 0, time.monotonic() + 900
while any(len(one) < int(sys.argv[1]) for one in shown.values()):
    assert time.monotonic() < end, shown
    for address, serials in shown.items():
        good, serial = ask(address, context)
        assert good, address
        serials.add(serial)
        asked += 1
    time.sleep(0.2)
for address in shown:
    try:
        good, _ = ask(address, ssl.create_default_context(cafile="/tls/ca.crt"))
    except OSError:
        good = False
    assert not good, f"{address} serves clients without a certificate"
print("asked", asked)
"""


def with_certificate(account: str, image: str, name: str, main: dict[str, Any], life: str) -> Any:
    """A pod with the files of a certificate in /tls, which a sidecar keeps."""
    ask = f"confcom certificate --machine {DEVICE} -o /tls --lifetime {life} --keep --timeout 60"
    probe = {"exec": {"command": ["test", "-e", "/tls/tls.crt"]}, "periodSeconds": 1, "failureThreshold": 90}
    probe |= {"timeoutSeconds": 10}
    tls = {"name": "tls", "mountPath": "/tls"}
    sidecar = {
        "name": "certificate", "image": image, "imagePullPolicy": "IfNotPresent", "command": ask.split(),
        "restartPolicy": "Always", "startupProbe": probe, "resources": limits(10), "volumeMounts": [tls],
    }  # fmt: skip
    main = main | {"name": "application", "imagePullPolicy": "IfNotPresent"}
    main["volumeMounts"] = [*main.get("volumeMounts", []), tls]
    spec = {
        "serviceAccountName": account, "initContainers": [sidecar], "containers": [main], "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 2, "securityContext": {"runAsUser": 65532, "runAsGroup": 65532},
        "volumes": [{"name": "tls", "emptyDir": {"medium": "Memory"}}],
    }  # fmt: skip
    return pod(name, "e2e", spec, annotations={"confcom.dev/quote-mode": "out-of-proc"})


@pytest.mark.skipif(os.environ.get("CONFCOM_E2E_THOROUGH") != "1", reason="takes long: `./dev e2e --thorough` runs it")
@pytest.mark.skipif("KUBE_HOME" not in os.environ, reason="the image of the servers is for the cluster of `./dev e2e`")
@pytest.mark.timeout(1500)
def test_unmodified_servers_miss_no_connection_while_their_certificates_are_renewed(
    signing: Addon, cluster: Kubectl, made: Callable[..., Any], image: str, tmp_path: Path
) -> None:
    """nginx, stunnel and Envoy; certificates for ten minutes, no fewer in Kubernetes, which are renewed after five."""
    assert signing("show").code == 0
    programs = server_image.provide(tmp_path)
    for account in ("web", "client"):
        metadata = {"name": account, "namespace": "e2e"}
        made({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    values = {"run": "/run", "tls": "/tls", "host": "0.0.0.0", "port": "8443", "address": "0.0.0.0:8443"}
    values |= {"namespace": "e2e", "client": "client", "backend": "127.0.0.1:8080"} | programs
    assert programs.keys() >= SERVERS.keys(), "./dev run pip install -r requirements/interop.txt has Envoy"
    for name, server in SERVERS.items():
        files = {file: filled(text, values) for file, text in server.files.items()}
        metadata = {"name": f"files-of-{name}", "namespace": "e2e"}
        made({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": files})
        main = {
            "image": server_image.NAME,
            "volumeMounts": [{"name": "files", "mountPath": "/files"}, {"name": "run", "mountPath": "/run"}],
            "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
            "command": ["/bin/sh", "-c", 'cp /files/* /run && exec "$@"', "sh", *command(name, values)],
        }  # fmt: skip
        wanted = with_certificate("web", image, name, main, "10m")
        volumes = [{"name": "files", "configMap": {"name": metadata["name"]}}, {"name": "run", "emptyDir": {}}]
        wanted["spec"]["volumes"] += volumes
        made(wanted)

    def address(name: str) -> str:
        status = cluster.get("pod", name, "-n", "e2e")["status"]
        ready = [one for one in status.get("containerStatuses", ()) if one["ready"]]
        return status["podIP"] if ready else ""

    addresses = [cluster.wait(f"{name} to run", lambda name=name: address(name)) for name in SERVERS]
    main = {"image": image, "command": ["python3", "-c", CLIENT, "2", *addresses]}
    made(with_certificate("client", image, "client", main, "24h"))

    def ended() -> str:
        phase: str = cluster.get("pod", "client", "-n", "e2e")["status"]["phase"]
        return phase if phase in ("Succeeded", "Failed") else ""

    phase = cluster.wait("the client to end", ended, 1000)
    log = cluster("logs", "-n", "e2e", "client", "-c", "application")
    assert phase == "Succeeded", log
    asked = int(log.split()[-1])
    assert asked > 100, log
