"""Requests to the certificate signer: a mutation at each depth, signed and quoted again above it.

Whatever is signed is for the pod, the key and the evidence of a seed: everything else is refused with a documented
reason (`docs/reference/certificate-signer.md`), or malformed.
"""

from __future__ import annotations

import json
import re
import tempfile
from base64 import b64encode
from datetime import timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confcom.appraisal.peer import PURPOSE_CLAIM
from confcom.appraisal.quote import QuoteVerifier
from confcom.errors import ConfcomError
from confcom.formats import der
from confcom.formats.arguments import decode_base64
from confcom.formats.attested_certificate import AttestedRequest, RaTlsEvidence, write_claims, write_ra_tls
from confcom.pki.serving_pair import Authority
from confcom.platforms.pod_certificate import signing_request
from confcom.protocols.certificate_requests import SERVER_AUTH, SIGNER, SigningRequest, name_for
from confcom.services.certificate_signer.decisions import (
    Decisions,
    Denial,
    Grant,
    PodPolicies,
    nonce_context,
    nonce_secret,
)
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.tokens.azure import make_nonce
from fuzzing import seeds

KEY = ec.derive_private_key(7, ec.SECP256R1())
ENCLAVE = EnclaveDeclaration.from_names("fuzzed", "vendor")
_POD = "authentication.kubernetes.io/pod"
SPEC: dict[str, Any] = {
    "signerName": SIGNER,
    "usages": [SERVER_AUTH],
    "username": "system:serviceaccount:shop:web",
    "groups": ["system:serviceaccounts", "system:serviceaccounts:shop"],
    "extra": {f"{_POD}-name": ["web-1"], f"{_POD}-uid": ["4c1a"]},
}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "certificate-signer.md"


class Refused(ConfcomError):
    """A documented denial."""


@cache
def _authority() -> Authority:
    return Authority.make("fuzzed", now=seeds.NOW, lifetime=timedelta(days=30), names=("svc", "svc.cluster.local"))


@cache
def _decisions() -> Decisions:
    policies = Path(tempfile.mkdtemp(prefix="fuzz-"))
    (policies / "shop.toml").write_text(f'mr_enclave = ["{ENCLAVE.mr_enclave.hex()}"]\n')
    return Decisions(
        PodPolicies(policies, simulated=True), QuoteVerifier(seeds.world().trust_roots),
        lambda *_: seeds.collateral(), trust_domain="cluster.local", lifetime=timedelta(days=1), simulated=True,
    )  # fmt: skip


@cache
def _reasons() -> frozenset[str]:
    """Those of the page's table."""
    table = PAGE.read_text().partition("| reason |")[2].partition("\n\n")[0]
    return frozenset(re.findall(r"`([A-Z]\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:])))


@cache
def _nonce() -> bytes:
    public = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    document = {"metadata": {"name": "n", "uid": "u", "resourceVersion": "1"}, "spec": SPEC | {"request": ""}}
    context = nonce_context(SigningRequest.parse(document).requester(), public)
    return decode_base64(make_nonce(nonce_secret(_authority()), seeds.NOW, bytes(range(16)), context))


@cache
def _claims() -> bytes:
    public = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return write_claims(sha256(public).digest(), _nonce(), **{PURPOSE_CLAIM: SIGNER.encode()})


def _evidence(claims: bytes) -> bytes:
    enclave = seeds.world().machine.launch(ENCLAVE)
    target = seeds.world().platform.init_quote().target_info
    report = enclave.create_report(target, sha256(claims).digest() + bytes(32))
    return write_ra_tls(seeds.world().platform.quote(report).quote, claims)


@cache
def _good() -> bytes:
    """The evidence that gets a certificate."""
    return _evidence(_claims())


def _object(request: bytes) -> dict[str, Any]:
    """As the API server has it."""
    metadata = {"name": name_for(_nonce()), "uid": "u", "resourceVersion": "1"}
    return {"metadata": metadata, "spec": SPEC | {"request": b64encode(request).decode()}}


def _decide(document: dict[str, Any]) -> tuple[SigningRequest, Grant]:
    request = SigningRequest.parse(document)
    if request.signer != SIGNER:
        raise Refused("left alone: it is for another signer", advice="-")
    try:
        return request, _decisions().decide(request, _authority(), now=seeds.NOW, random=bytes(16))
    except Denial as denial:
        if denial.reason not in _reasons() or not denial.message.isprintable():
            raise AssertionError(f"undocumented, or not for terminals: {denial.reason} {denial.message!r}") from denial
        raise Refused(f"{denial.reason}: {denial.message}", advice="-") from denial


def _pem(content: bytes) -> bytes:
    text = b64encode(content)
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + text + b"\n-----END CERTIFICATE REQUEST-----\n"


def requests() -> list[bytes]:
    """DER."""
    made = [signing_request(KEY), signing_request(KEY, _good())]
    return [x509.load_pem_x509_csr(one).public_bytes(Encoding.DER) for one in made]


@cache
def _signed() -> bytes:
    """What the seed with evidence says."""
    return der.read_request_parts(requests()[1]).signed


def request(data: bytes) -> None:
    """A request in DER: its own signature covers everything."""
    _, grant = _decide(_object(_pem(data)))
    assert grant.issued is not None
    attested = AttestedRequest.of(der.read_request_parts(data))
    assert attested is not None
    assert attested.ra_tls == RaTlsEvidence.parse(_good())


def evidence() -> list[bytes]:
    return [_good()]


def signed_evidence(data: bytes) -> None:
    """Evidence, in a request that the key has signed."""
    _decide(_object(signing_request(KEY, data)))
    found, good = RaTlsEvidence.parse(data), RaTlsEvidence.parse(_good())
    assert (found.claims, found.quote[:432]) == (good.claims, good.quote[:432])


def claims() -> list[bytes]:
    return [_claims()]


def quoted_claims(data: bytes) -> None:
    """Claims that the enclave vouches for, in a request that the key has signed."""
    _decide(_object(signing_request(KEY, _evidence(data))))
    found, good = RaTlsEvidence.parse(_evidence(data)), RaTlsEvidence.parse(_good())
    assert (found.key_hash, found.nonce, found.further[PURPOSE_CLAIM]) == (good.key_hash, good.nonce, SIGNER.encode())


def objects() -> list[bytes]:
    made = [_object(signing_request(KEY, *more)) for more in ((), (_good(),), (_good(),))]
    made[-1]["spec"]["expirationSeconds"] = 3600
    return [json.dumps(one).encode() for one in made]


def api_object(data: bytes) -> None:
    """What a signer reads of the API."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(f"no JSON: {error}", advice="-") from error
    if not isinstance(document, dict):
        raise Refused("no object", advice="-")
    found, grant = _decide(document)
    seed = SigningRequest.parse(_object(signing_request(KEY))).requester()
    assert found.requester()._replace(pod="", node="") == seed._replace(pod="", node="")
    assert grant.facts["uri"] == "spiffe://cluster.local/ns/shop/sa/web"
