"""The certificate signer: certificates per second, beside the decision alone and a bare signature.

    python -m benchmarks.certificate_signer      over a stand-in of the Kubernetes API, which shares the machine

The signer is a process of its own with its usual two threads. Every pod's second request waits, with evidence of the
simulated platform over a good nonce; the time is that from the first write of the signer to its last certificate.
"""

from __future__ import annotations

import base64
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from benchmarks.device_plugin import from_tests
from benchmarks.measure import Row, show
from confcom.appraisal.quote import QuoteVerifier
from confcom.pki.serving_pair import Authority, CertifiedPod, issue_to_pod
from confcom.platforms.pod_certificate import make_evidence, signing_request
from confcom.protocols.certificate_requests import SIGNER, SigningRequest, name_for
from confcom.services.certificate_signer.decisions import Decisions, PodPolicies, nonce_context, nonce_secret
from confcom.tokens.azure import make_nonce

Stage = Any
"""Of the tests, as are the other `Any`."""
Api = Any
World = Any
Quotes = Any
REQUESTS = 400
DECISIONS = 200
LIMIT = 120.0
"""Seconds after which a run is given up."""


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


def _spec(number: int) -> dict[str, Any]:
    """What the API server says of the pod with this number."""
    place = "authentication.kubernetes.io/pod"
    return {
        "signerName": SIGNER,
        "usages": ["server auth", "client auth"],
        "username": "system:serviceaccount:shop:web",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:shop"],
        "extra": {f"{place}-name": [f"web-{number}"], f"{place}-uid": [f"uid-{number}"]},
    }


def _request(authority: Authority, quotes: Quotes, number: int) -> tuple[str, dict[str, Any]]:
    """Name and spec of the second request of a pod."""
    key, spec = ec.generate_private_key(ec.SECP256R1()), _spec(number)
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    metadata = {"name": "x", "uid": "u", "resourceVersion": "1"}
    requester = SigningRequest.parse({"metadata": metadata, "spec": spec | {"request": ""}}).requester()
    context = nonce_context(requester, public)
    text = make_nonce(nonce_secret(authority), _now(), number.to_bytes(16), context)
    nonce = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    content = signing_request(key, make_evidence(quotes, key, nonce))
    return name_for(nonce), spec | {"request": base64.b64encode(content).decode()}


def _signed(stage: Stage, api: Api, folder: Path) -> float:
    """Certificates per second of a signer process."""
    command = [sys.executable, "-m", "confcom", "certificate-signer", "--policies", str(stage.policies), "--http", ""]
    command += ["--collateral", str(folder / "collateral"), "--trust-root", str(folder / "collateral" / "root_ca.pem")]
    command += ["--kubeconfig", api.kubeconfig(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as signer:
        try:
            assert signer.stdout is not None
            assert "ready" in signer.stdout.readline()
            secret = stage.secret()
            authority = Authority.parse(secret["tls.crt"], secret["tls.key"])
            assert authority is not None
            made = [_request(authority, stage.quotes, number) for number in range(REQUESTS)]
            begin = time.perf_counter()
            for name, spec in made:
                api.add(name, spec)
            while len(api.writes) < 2 * REQUESTS:  # an approval and a certificate each
                assert time.perf_counter() - begin < LIMIT, f"{len(api.writes)} writes"
                time.sleep(0.005)
            return REQUESTS / (time.perf_counter() - begin)
        finally:
            signer.terminate()


def _decided(stage: Stage, world: World) -> tuple[float, float]:
    """Decisions per second in one thread, and signatures of certificates alone."""
    authority = Authority.make("benchmark", now=_now(), lifetime=timedelta(days=30), names=("svc",))
    published = world.publish(_now())
    decisions = Decisions(
        PodPolicies(stage.policies, simulated=True),
        QuoteVerifier(world.trust_roots),
        lambda *_: published,
        trust_domain="cluster.local",
        lifetime=timedelta(days=1),
        simulated=True,
    )
    made = []
    for number in range(DECISIONS):
        name, spec = _request(authority, stage.quotes, number)
        metadata = {"name": name, "uid": "u", "resourceVersion": "1"}
        made.append(SigningRequest.parse({"metadata": metadata, "spec": spec}))
    begin = time.perf_counter()
    for request in made:
        decisions.decide(request, authority, now=_now(), random=bytes(16))
    decided = DECISIONS / (time.perf_counter() - begin)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    public = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    wanted = CertifiedPod(public, SIGNER, "uid", "spiffe://cluster.local/ns/shop/sa/web", ("web.shop.svc",), True, True)
    begin = time.perf_counter()
    for _ in range(DECISIONS):
        issue_to_pod(authority, wanted, now=_now(), lifetime=timedelta(days=1))
    return decided, DECISIONS / (time.perf_counter() - begin)


def rows() -> list[Row]:
    """Certificates per second."""
    running, stand_in = from_tests("running_certificate_signer"), from_tests("certificate_requests_api")
    with tempfile.TemporaryDirectory(prefix="signer-") as name, stand_in.CertificateRequestsApi() as api:
        folder = Path(name)
        stage = running.SignerStage(folder, api)
        stage.quotes = running.enclave()
        (stage.policies / "shop.toml").write_text(running.policy_of())
        decided, alone = _decided(stage, running.world())
        signed = _signed(stage, api, folder)
    return [
        Row("certificates", signed, beside=decided, peer="the decision alone, one thread",
            note="three calls of the API each: read, approve, certificate"),
        Row("decisions with evidence", decided, beside=alone, peer="a bare signature"),
    ]  # fmt: skip


if __name__ == "__main__":
    show(rows())
