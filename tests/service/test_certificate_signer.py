"""The certificate signer: attested pods get ordinary certificates with names that the API server vouches for."""

from __future__ import annotations

import asyncio
import ssl
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from certificate_requests_api import CertificateRequestsApi
from confcom.cluster.certificate_requests import CertificateRequests
from confcom.errors import ClusterError, ClusterRefused, ConfigError
from confcom.formats.arguments import decode_base64
from confcom.pki.serving_pair import Authority
from confcom.platforms.pod_certificate import PodCertificate, make_evidence, signing_request
from confcom.protocols.certificate_requests import SIGNER, name_for, nonce_of
from confcom.services.certificate_signer import decisions
from running_certificate_signer import SignerStage, enclave, now, policy_of, world

ENCLAVE = 'enclave = "web"\nsigner = "vendor"\nisv_prod_id = 3\nisv_svn = 2\n'
USAGES = ("server auth", "client auth")


@pytest.fixture
def stage() -> Iterator[SignerStage]:
    with TemporaryDirectory(prefix="signer-") as name, CertificateRequestsApi() as api:
        yield SignerStage(Path(name), api)


async def eventually(call: Callable[[], Any]) -> Any:
    async with asyncio.timeout(60):
        while not (found := call()):
            await asyncio.sleep(0.02)
    return found


def context(purpose: ssl.Purpose, issued: PodCertificate, folder: Path, name: str) -> ssl.SSLContext:
    """An ordinary context, as every TLS stack makes one of three files."""
    found = ssl.create_default_context(purpose, cadata=issued.authorities.decode())
    found.verify_mode = ssl.CERT_REQUIRED
    (folder / f"{name}.crt").write_bytes(issued.certificate)
    (folder / f"{name}.key").write_bytes(issued.key)
    found.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    return found


async def exchanged(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> Any:
    """What the server sees of the client, by mutual TLS."""
    seen = asyncio.get_running_loop().create_future()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(writer.get_extra_info("peercert"))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server) as listening:
        port = listening.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
        await reader.read()
        writer.close()
        return await seen


def leaf(issued: PodCertificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.certificate)


async def test_two_attested_pods_speak_ordinary_mutual_tls(stage: SignerStage) -> None:
    (stage.policies / "shop.db.toml").write_text(policy_of("db"))
    async with stage.running():
        with capture_logs() as logs:
            web = await stage.certificate(stage.requester())
            db = await stage.certificate(stage.requester("db", pod="db-1"), enclave("db"))
        server = context(ssl.Purpose.CLIENT_AUTH, db, stage.folder, "db")
        client = context(ssl.Purpose.SERVER_AUTH, web, stage.folder, "web")
        peer = await exchanged(server, client, "db.shop.svc")
        assert ("URI", "spiffe://cluster.local/ns/shop/sa/web") in peer["subjectAltName"]
        with pytest.raises(ssl.SSLCertVerificationError):
            await exchanged(server, client, "web.shop.svc")
        assert web.authorities == db.authorities == stage.published()
        assert await stage.page("readyz") == "ok\n"
        assert 'decisions_total{outcome="signed",reason="EvidenceAccepted"} 2.0' in await stage.page("metrics")
    record = next(one for one in logs if one.get("outcome") == "signed")
    assert record["pod"] == "web-1"
    assert record["uri"] == "spiffe://cluster.local/ns/shop/sa/web"
    assert record["serial"] == f"{leaf(web).serial_number:x}"
    assert record["identity"]["mr_enclave"] in policy_of()


async def test_a_certificate_says_what_the_api_server_vouches_for_and_nothing_else(stage: SignerStage) -> None:
    async with stage.running():
        found = leaf(await stage.certificate(stage.requester(), usages=("client auth",), lifetime=timedelta(hours=1)))
        server = leaf(await stage.certificate(stage.requester(pod="web-2"), usages=("server auth",)))
    assert found.subject.rfc4514_string() == "2.5.4.5=uid-of-shop-web-1,O=confcom.dev/attested (SIMULATED)"
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["spiffe://cluster.local/ns/shop/sa/web"]
    usages = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [*usages] == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert found.not_valid_after_utc - found.not_valid_before_utc == timedelta(hours=1, minutes=5)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names][:2] == ["web.shop.svc", "web.shop.svc.cluster.local"]


async def test_names_in_a_request_are_ignored(stage: SignerStage) -> None:
    credentials = stage.requester()
    key = ec.generate_private_key(ec.SECP256R1())
    async with stage.running():
        nonce = await first_nonce(stage, credentials, key)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bank.example")])
        names = x509.SubjectAlternativeName([x509.DNSName("bank.example")])
        evidence = x509.UnrecognizedExtension(
            x509.ObjectIdentifier("2.23.133.5.4.9"), make_evidence(enclave(), key, nonce)
        )
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        builder = builder.add_extension(names, critical=False).add_extension(evidence, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        await create(credentials, name_for(nonce), builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
        text = await eventually(lambda: stage.api.requests[name_for(nonce)]["status"].get("certificate"))
    found = x509.load_pem_x509_certificates(decode_base64(text))[0]
    assert b"bank.example" not in found.public_bytes(Encoding.DER)
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


async def first_nonce(stage: SignerStage, credentials: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """What the first request of a pod gets."""
    name = f"first-{len(stage.api.requests)}"
    await create(credentials, name, signing_request(key))
    reason, message = await stage.denied(name)
    assert reason == "NonceIssued", message
    return decode_base64(nonce_of(message))


async def create(credentials: str, name: str, request: bytes, usages: tuple[str, ...] = USAGES) -> None:
    client = CertificateRequests(credentials, "test")
    try:
        await client.create(name, request, usages, None)
    finally:
        await client.close()


async def test_a_nonce_is_of_one_pod_and_one_key_and_used_once(stage: SignerStage) -> None:
    mine, other = stage.requester(), stage.requester(pod="web-2")
    key, second = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    async with stage.running():
        nonce = await first_nonce(stage, mine, key)
        good = signing_request(key, make_evidence(enclave(), key, nonce))
        await create(other, "by-another-pod", good)
        assert (await stage.denied("by-another-pod"))[0] == "NonceUnknown"
        await create(mine, "another-key", signing_request(second, make_evidence(enclave(), second, nonce)))
        assert (await stage.denied("another-key"))[0] == "NonceUnknown"
        await create(mine, "another-name", good)
        reason, message = await stage.denied("another-name")
        assert reason == "NameNotOfNonce"
        assert name_for(nonce) in message
        await create(mine, name_for(nonce), good)
        await eventually(lambda: stage.api.requests[name_for(nonce)]["status"].get("certificate"))
        with pytest.raises(ClusterRefused):  # the API server has this name
            await create(mine, name_for(nonce), good)


async def test_evidence_of_another_enclave_or_key_is_refused_with_a_reason(stage: SignerStage) -> None:
    async with stage.running():
        with pytest.raises(ClusterRefused, match=r"EvidenceRefused.*mr-enclave: expected"):
            await stage.certificate(stage.requester(), enclave("other"))
        with pytest.raises(ClusterRefused, match="EvidenceRefused"):
            await stage.certificate(stage.requester(pod="web-2"), enclave(debug=True))
        key, stolen = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        credentials = stage.requester(pod="web-3")
        nonce = await first_nonce(stage, credentials, key)
        await create(credentials, name_for(nonce), signing_request(key, make_evidence(enclave(), stolen, nonce)))
        reason, message = await stage.denied(name_for(nonce))
        assert reason == "EvidenceRefused"
        assert "another key" in message
        events = await eventually(lambda: [*stage.api.events] if len(stage.api.events) >= 3 else None)
    assert events[0]["regarding"]["name"] == "web-1"
    assert events[0]["reason"] == "CertificateDenied"
    assert "EvidenceRefused" in events[0]["note"]


async def test_requests_of_other_signers_are_left_alone(stage: SignerStage) -> None:
    spec = {"signerName": "kubernetes.io/kubelet-serving", "request": "", "username": "system:node:n1"}
    stage.api.add("of-a-kubelet", spec)
    async with stage.running():
        await stage.certificate(stage.requester())
    assert stage.api.requests["of-a-kubelet"]["status"] == {}
    assert {name for _, name in stage.api.writes} == stage.api.requests.keys() - {"of-a-kubelet"}


async def test_approval_by_hand_replaces_no_evidence(stage: SignerStage) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    stage.requester()
    (spec,) = stage.api.accounts.values()
    text = b64encode(signing_request(key)).decode()
    approved = {"conditions": [{"type": "Approved", "status": "True", "reason": "ByHand"}]}
    stage.api.add("by-hand", spec | {"signerName": SIGNER, "request": text, "usages": [*USAGES]}, approved)
    async with stage.running():
        status = await eventually(
            lambda: (found := stage.api.requests["by-hand"]["status"])["conditions"][1:] and found
        )
    assert status["conditions"][1]["type"] == "Failed"
    assert "certificate" not in status


async def test_people_and_unbound_tokens_get_nothing(stage: SignerStage) -> None:
    request = signing_request(ec.generate_private_key(ec.SECP256R1()))
    accounts = {
        "admin": {"username": "admin", "groups": ["system:masters"], "extra": {}},
        "unbound": {"extra": {}},
        "two-pods": {"extra": {f"authentication.kubernetes.io/pod-{part}": ["a", "b"] for part in ("name", "uid")}},
        "no-group": {"groups": ["system:authenticated"]},
    }
    async with stage.running():
        for name, account in accounts.items():
            await create(stage.requester(**account), name, request)
            assert (await stage.denied(name))[0] == "NotAPod"
        await create(stage.requester("stranger"), "no-policy", request)
        reason, message = await stage.denied("no-policy")
        assert reason == "NoPolicy"
        assert "shop.stranger.toml" in message
        (stage.policies / "shop.stranger.toml").write_text("isv_svn = 3")
        await create(stage.requester("stranger"), "bad-policy", request)
        assert (await stage.denied("bad-policy"))[0] == "PolicyUnusable"
        (stage.policies / "shop.stranger.toml").write_text("min_isv_svn = 3")  # accepts any enclave of anyone
        await create(stage.requester("stranger"), "no-identity", request)
        assert (await stage.denied("no-identity"))[0] == "PolicyUnusable"


async def test_one_pod_has_an_allowance(stage: SignerStage) -> None:
    request = signing_request(ec.generate_private_key(ec.SECP256R1()))
    async with stage.running(requests_per_minute=4):
        credentials, names = stage.requester(), [f"r{number}" for number in range(8)]
        for name in names:
            await create(credentials, name, request)
        reasons = [(await stage.denied(name))[0] for name in names]
        assert sorted(reasons) == ["NonceIssued"] * 4 + ["TooManyRequests"] * 4
        (event,) = stage.api.events  # one in a minute, however many requests are denied
        assert "TooManyRequests: The pod made more than 4 requests in a minute" in event["note"]
        await stage.certificate(stage.requester(pod="web-2"))


async def test_a_pod_with_a_thousand_requests_delays_no_other_pod_of_its_account(stage: SignerStage) -> None:
    stage.requester(pod="flood")
    text = b64encode(signing_request(ec.generate_private_key(ec.SECP256R1()))).decode()
    spec = stage.api.accounts.popitem()[1] | {"signerName": SIGNER, "request": text, "usages": [*USAGES]}
    for number in range(1000):
        stage.api.add(f"r{number}", spec)
    async with stage.running(threads=1):
        assert await stage.certificate(stage.requester(pod="web-2"))
        decided = [name for _, name in stage.api.writes if name.startswith("r")]
    assert len(decided) < 500


async def test_replicas_sign_each_request_once(stage: SignerStage) -> None:
    async with AsyncExitStack() as stack:
        for number in range(2):
            page = f"unix:{stage.folder / f'page{number}'}"
            await stack.enter_async_context(stage.running(registry=CollectorRegistry(), http=page))
        found = await asyncio.gather(*(stage.certificate(stage.requester(pod=f"p{n}")) for n in range(4)))
    assert len({one.authorities for one in found}) == 1
    signed = [name for part, name in stage.api.writes if part == "status"]
    assert len(signed) == len(set(signed)) == 4


async def test_without_collateral_requests_wait(stage: SignerStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confcom.services.certificate_signer.certificate_signer.WAIT", 0.1)
    place, waits = stage.folder / "later", {"outcome": "waits", "reason": "collateral-not-found"}
    # That a request is looked at again does not count against its pod.
    async with stage.running(collateral=str(place), requests_per_minute=2):
        asked = asyncio.create_task(stage.certificate(stage.requester()))
        counted = "confcom_certificate_signer_decisions_total"
        await eventually(lambda: asked.done() or (stage.registry.get_sample_value(counted, waits) or 0) > 2)
        assert not asked.done()
        (stage.folder / "collateral").rename(place)
        assert leaf(await asked)


async def test_a_request_that_cannot_be_handled_stops_no_other(stage: SignerStage) -> None:
    """The API server takes names of anything but "/" and "%": in a URL, "?" would make a list of a single request."""
    stage.requester()
    text = b64encode(signing_request(ec.generate_private_key(ec.SECP256R1()))).decode()
    spec = stage.api.accounts.popitem()[1] | {"signerName": SIGNER, "request": text, "usages": [*USAGES]}
    for name in ("?", "?watch=true&x", "#", "a b", "\n", "é", "x" * 254):
        stage.api.add(name, spec)
    stage.api.add("without-sense", spec | {"extra": {"authentication.kubernetes.io/pod-name": 5}})
    async with stage.running(threads=1):
        with capture_logs() as logs:
            await eventually(lambda: [one for one in logs if one.get("request") == "without-sense"])
            assert await stage.certificate(stage.requester(pod="web-2"))
    assert not [one for one in logs if str(one.get("request", "")).strip("?#\n é").startswith(("watch", "a b", "xxx"))]
    lists = [one for one in stage.api.asked if one.startswith("GET ") and not one.startswith("GET /")]
    assert all("fieldSelector=spec.signerName" in one.replace("%3D", "=") for one in lists)
    assert any(one.startswith("GET ?") and "limit=8" in one for one in lists)  # of 1.5 MiB each, at most


async def test_a_requester_begins_again_where_the_ca_has_changed_in_between(
    stage: SignerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secret of nonces follows from the CA's key; it changes while the enclave makes its quote."""
    source, asked = enclave(), []

    class Quotes:
        def quote(self, report_data: bytes) -> Any:
            if not asked:
                monkeypatch.setattr(decisions, "nonce_secret", lambda _: b"of the next CA")
            asked.append(report_data)
            return source.quote(report_data)

    async with stage.running():
        issued = await stage.certificate(stage.requester(), Quotes())
    assert len(asked) == 2
    assert issued.authorities == stage.published()


async def test_the_ca_outlives_the_signer_and_is_rotated_with_overlap(stage: SignerStage) -> None:
    async with stage.running():
        before = await stage.certificate(stage.requester())
    async with stage.running(registry=CollectorRegistry()):
        again = await stage.certificate(stage.requester(pod="web-2"))
    assert before.authorities == again.authorities
    assert b"PRIVATE KEY" not in stage.published()
    # A CA whose life is nearly over: its successor is published before it signs.
    soon = {"ca_lifetime": 800 * 86400.0, "ca_renew_before": 790 * 86400.0}
    async with stage.running(registry=CollectorRegistry(), **soon):
        await eventually(lambda: stage.published().count(b"BEGIN CERTIFICATE") == 2)
        during = await stage.certificate(stage.requester(pod="web-3"))
    assert before.authorities in during.authorities
    assert during.authorities == stage.published()
    leaf(during).verify_directly_issued_by(x509.load_pem_x509_certificate(before.authorities))
    assert stage.secret()["next.key"] != stage.secret()["tls.key"]


OTHER = "clusterissuers.cert-manager.io/simulated"


async def test_requests_to_other_signers_are_approved_and_signed_by_them(stage: SignerStage) -> None:
    """A signer that copies what the request says, once it is approved, as cert-manager does."""
    authority = Authority.make("other", now=now(), lifetime=timedelta(days=30))
    other = x509.load_pem_x509_certificate(authority.certificate)

    def approved() -> list[dict[str, Any]]:
        found = [one for one in stage.api.requests.values() if one["spec"]["signerName"] == OTHER]
        return [
            one for one in found
            if any(condition["type"] == "Approved" for condition in one["status"].get("conditions", ()))
        ]  # fmt: skip

    async with stage.running(approve_for=(OTHER,)):
        asked = asyncio.create_task(stage.certificate(stage.requester(), signer=OTHER, trust_domain="cluster.local"))
        await eventually(lambda: asked.done() or approved())
        assert not asked.done(), asked.exception()
        (found,) = approved()
        request = x509.load_pem_x509_csr(decode_base64(found["spec"]["request"]))
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        end = now() + timedelta(seconds=found["spec"]["expirationSeconds"])
        builder = x509.CertificateBuilder(other.subject, request.subject, request.public_key(), 7, now(), end)
        key: Any = load_pem_private_key(authority.key, None)
        made = builder.add_extension(names.value, names.critical).sign(key, SHA256()).public_bytes(Encoding.PEM)
        chain = b64encode(made + authority.certificate).decode()
        stage.api.requests[found["metadata"]["name"]]["status"]["certificate"] = chain
        issued = await asked
        unsolicited = stage.requester(pod="web-2")
        with pytest.raises(ClusterRefused, match="EvidenceRefused"):
            await stage.certificate(unsolicited, enclave("other"), signer=OTHER)
    assert issued.certificate == made + authority.certificate
    assert issued.authorities == b""
    names = leaf(issued).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName)[0] == "web.shop.svc"
    assert {part for part, _ in stage.api.writes} == {"approval"}
    assert stage.registry.get_sample_value(
        "confcom_certificate_signer_decisions_total", {"outcome": "approved", "reason": "EvidenceAccepted"}
    ) == 1  # fmt: skip


async def test_requests_to_signers_that_are_not_named_are_left_alone(stage: SignerStage) -> None:
    async with stage.running(approve_for=(OTHER,)):
        with pytest.raises(ClusterError, match="no certificate within"):
            await stage.certificate(
                stage.requester(), signer="clusterissuers.cert-manager.io/simulated-else", timeout=2.0
            )
        assert await stage.certificate(stage.requester(pod="web-2"))
    requests = stage.api.requests.values()
    assert not [one for one in requests if one["spec"]["signerName"].endswith("-else") and one["status"]]


async def test_no_other_signer_signs_for_simulated_enclaves_unmarked(stage: SignerStage) -> None:
    with pytest.raises(ConfigError, match="would sign for simulated enclaves"):
        async with stage.running(approve_for=("clusterissuers.cert-manager.io/ca",)):
            pass


async def test_the_command_writes_files_for_a_simulated_pod(stage: SignerStage) -> None:
    machine, enclave_file, made = stage.folder / "machine.json", stage.folder / "enclave.toml", stage.folder / "made"
    world().write_first(machine)
    enclave_file.write_text(ENCLAVE)
    made.mkdir()
    words = [
        "certificate",
        "--machine",
        str(machine),
        "--enclave",
        str(enclave_file),
        "-o",
        str(made),
        "--usage",
        "server",
    ]
    words += ["--kubeconfig", stage.requester(), "--lifetime"]
    command = [sys.executable, "-m", "confcom", *words, "1h"]
    async with stage.running():
        done = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, said = await done.communicate()
    assert done.returncode == 0, said
    assert b"SIMULATED" in said
    found = PodCertificate(*((made / name).read_bytes() for name in ("tls.crt", "ca.crt", "tls.key")))
    context(ssl.Purpose.CLIENT_AUTH, found, stage.folder, "written")
    assert (made / "tls.key").stat().st_mode & 0o777 == 0o640
    life = leaf(found).not_valid_after_utc - leaf(found).not_valid_before_utc
    assert found.renew_at == leaf(found).not_valid_before_utc + life * 2 / 3
    assert found.authorities == stage.published()


async def test_the_command_keeps_a_certificate_and_renews_it(stage: SignerStage) -> None:
    """Of two minutes and the five that it reaches back, two thirds are over at once: the next comes in ten seconds."""
    machine, enclave_file, made = stage.folder / "machine.json", stage.folder / "enclave.toml", stage.folder / "made"
    world().write_first(machine)
    enclave_file.write_text(ENCLAVE)
    made.mkdir()
    words = ["--machine", machine, "--enclave", enclave_file, "-o", made, "--lifetime", "2m", "--keep"]
    words += ["--kubeconfig", stage.requester()]
    keeping = await asyncio.create_subprocess_exec(sys.executable, "-m", "confcom", "certificate", *map(str, words))
    shown: set[bytes] = set()

    def renewed() -> bool:
        assert keeping.returncode is None
        if (made / "tls.crt").exists() and (made / "tls.crt").read_bytes() not in shown:
            # The last of the three files: when it changes, what is beside it belongs to it.
            found = PodCertificate(*((made / name).read_bytes() for name in ("tls.crt", "ca.crt", "tls.key")))
            context(ssl.Purpose.CLIENT_AUTH, found, stage.folder, "kept")
            shown.add(found.certificate)
        return len(shown) > 1

    async with stage.running():
        await eventually(renewed)
        keeping.terminate()
        assert await keeping.wait() == 0
