"""The client against a real server over HTTP and TLS: what operators are promised when services misbehave."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from confcom.appraisal.collateral import verify_collateral
from confcom.collateral.documents import DocumentKey
from confcom.collateral.pcs_client import HttpLimits, PcsClient
from confcom.collateral.sources import AzureThim
from confcom.errors import CollateralNotFound, CollateralUnavailable, ConfigError, FormatError
from confcom.protocols.pcs import Dialect, PckCertRequest
from confcom.simulator.world import SimulatedWorld
from late_server import late_server
from pcs_server import PcsServer, cut_off, drip, endless, silent, status

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
FAST = HttpLimits(timeout=60, deadline=60, retries=2, backoff=0.5, max_wait=20)


@pytest.fixture(scope="module")
def world() -> SimulatedWorld:
    return SimulatedWorld.from_seed(b"seed of the client tests", now=NOW)


@pytest.fixture
def server(world) -> Iterator[PcsServer]:
    with PcsServer(world.pcs) as running:
        yield running


class Naps(list[float]):
    """A sleep that only takes notes."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def naps() -> Naps:
    return Naps()


@pytest.fixture
def client(server, naps) -> PcsClient:
    return PcsClient(server.url, dialect=Dialect.PCCS, limits=FAST, sleep=naps, chance=lambda: 0.0)


@pytest.fixture
def key(world) -> DocumentKey:
    return DocumentKey.tcb_info("sgx", world.machine.fmspc)


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("dialect", [Dialect.PCS, Dialect.PCCS])
def test_collateral_comes_whole_and_verifies(world, server, dialect, version):
    client = PcsClient(
        server.url,
        api_version=version,
        dialect=dialect,
        limits=FAST,
        root_ca_crl_url=f"{server.url}/IntelSGXRootCA.der" if dialect is Dialect.PCS else None,
    )
    got = client.fetch(world.machine.fmspc, "platform", "sgx")
    assert got.source == server.url
    assert got.digest() == world.publish().digest()
    verify_collateral(got, roots=world.trust_roots)


def test_the_early_and_a_pinned_set_are_asked_for_by_name_and_number(world, server, client):
    client.fetch(world.machine.fmspc, "processor", "sgx", update="early")
    client.fetch(world.machine.fmspc, "processor", "sgx", update=17)
    asked = [path for path, _ in server.requests]
    assert f"/sgx/certification/v4/tcb?fmspc={world.machine.fmspc.hex()}&update=early" in asked
    assert f"/sgx/certification/v4/tcb?fmspc={world.machine.fmspc.hex()}&tcbEvaluationDataNumber=17" in asked
    assert "/sgx/certification/v4/qe/identity?tcbEvaluationDataNumber=17" in asked


def test_a_service_that_ignores_the_number_is_not_believed(world, server, client, key):
    honest = server.answer(f"/sgx/certification/v4/tcb?fmspc={world.machine.fmspc.hex()}")
    server.always = lambda handler: status(200, honest.body, TCB_Info_Issuer_Chain=honest.headers[-1][1])(handler)
    with pytest.raises(CollateralNotFound, match="that has set 17"):
        client.fetch_document(DocumentKey.tcb_info("sgx", world.machine.fmspc, 16))


def test_what_is_not_there_says_what_was_asked_and_what_the_service_said(client):
    with pytest.raises(CollateralNotFound) as caught:
        client.fetch_document(DocumentKey.tcb_info("sgx", b"\xaa" * 6))
    message = str(caught.value)
    assert "aaaaaaaaaaaa" in message
    assert "No cache data for this platform." in message
    assert "Request-ID r-404" in message
    assert "filled" in caught.value.advice()


def test_a_service_that_is_busy_is_asked_again(server, client, naps, key):
    server.behaviours = [status(503), status(429, Retry_After="7")]
    assert client.fetch_document(key).key == key
    assert naps == [0.5, 7.0]
    assert len(server.requests) == 3


def test_patience_ends(server, client, naps, key):
    server.always = status(502, b"PCS failed")
    with pytest.raises(CollateralUnavailable, match="502, 'PCS failed'"):
        client.fetch_document(key)
    assert naps == [0.5, 1.0]


def test_a_service_that_wants_a_long_pause_is_left_alone(server, client, naps, key):
    server.always = status(429, Retry_After="3600")
    with pytest.raises(CollateralUnavailable, match="fewer requests"):
        client.fetch_document(key)
    assert naps == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 460, 461, 462])
def test_what_cannot_change_is_asked_once(server, client, naps, key, code):
    server.always = status(code, Error_Code="x", Error_Message="because")
    with pytest.raises((CollateralNotFound, CollateralUnavailable), match=f"{code}, 'x because'"):
        client.fetch_document(key)
    assert naps == []
    assert len(server.requests) == 1


def test_redirects_are_not_followed(world, client, server, key):
    with PcsServer(world.pcs) as other:
        server.always = status(302, Location=f"{other.url}/sgx/certification/v4/tcb?fmspc={world.machine.fmspc.hex()}")
        with pytest.raises(CollateralUnavailable, match="points elsewhere"):
            client.fetch_document(key)
        assert other.requests == []


def test_a_body_that_is_cut_off_is_asked_again(server, client, naps, key):
    server.behaviours = [cut_off]
    assert client.fetch_document(key).key == key
    assert naps == [0.5]


@pytest.mark.parametrize("behaviour", [silent, drip])
def test_a_service_that_is_slow_does_not_hold_anybody_up(server, naps, key, behaviour):
    limits = HttpLimits(timeout=0.2, deadline=0.4, retries=0)
    client = PcsClient(server.url, dialect=Dialect.PCCS, limits=limits, sleep=naps)
    server.always = behaviour
    with pytest.raises(CollateralUnavailable, match=r"in time|in 0\.4 s"):
        client.fetch_document(key)


def test_an_answer_that_comes_too_late_is_read_from_no_other_connection(tmp_path, naps, key):
    limits = HttpLimits(timeout=60, deadline=1, retries=0)
    with late_server(tmp_path) as server:
        client = PcsClient(server.url, dialect=Dialect.PCCS, limits=limits, sleep=naps, verify_tls=server.ca)
        with pytest.raises(CollateralUnavailable, match="did not finish its answer in 1 s"):
            client.fetch_document(key)
        server.check_other_connections()


def test_a_body_without_end_is_refused_at_the_limit(server, client, naps, key):
    server.always = endless
    with pytest.raises(FormatError, match="larger than 1048576 bytes"):
        client.fetch_document(key)
    assert naps == []


def test_a_compressed_body_is_refused_unread(server, client, key):
    server.always = status(200, b"\x1f\x8b", Content_Encoding="gzip")
    with pytest.raises(FormatError, match="compressed"):
        client.fetch_document(key)


@pytest.mark.parametrize("chain", [None, "not a chain", "%2D" * 40_000, "-----BEGIN CERTIFICATE-----"])
def test_wrong_issuer_chains_are_malformed_or_fail_verification(world, server, client, key, chain):
    honest = server.answer(f"/sgx/certification/v4/tcb?fmspc={world.machine.fmspc.hex()}")
    headers = {} if chain is None else {"TCB_Info_Issuer_Chain": chain}
    server.behaviours = [status(200, honest.body, **headers)] * 3
    if chain == "-----BEGIN CERTIFICATE-----":
        assert client.fetch_document(key).issuer_chain == chain.encode()  # for the verifier to refuse
    else:
        with pytest.raises((FormatError, CollateralUnavailable)):
            client.fetch_document(key)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"tcbInfo":{},"signature":"00"}', b"\xff\xfe"])
def test_a_body_that_is_no_document_is_malformed(server, client, key, body):
    server.always = status(200, body, TCB_Info_Issuer_Chain="-----BEGIN%20CERTIFICATE-----")
    with pytest.raises(FormatError):
        client.fetch_document(key)


def test_the_document_of_another_platform_is_not_taken(world, server, client):
    honest = server.answer(f"/sgx/certification/v4/tcb?fmspc={world.machine.fmspc.hex()}")
    server.always = status(200, honest.body, TCB_Info_Issuer_Chain=honest.headers[-1][1])
    with pytest.raises(CollateralNotFound, match="that has FMSPC"):
        client.fetch_document(DocumentKey.tcb_info("sgx", b"\x01" * 6))


def test_nobody_there_is_unavailable(naps, key):
    client = PcsClient("http://127.0.0.1:1", dialect=Dialect.PCCS, limits=FAST, sleep=naps, chance=lambda: 1.0)
    with pytest.raises(CollateralUnavailable, match=r"127\.0\.0\.1:1 cannot be asked"):
        client.fetch_document(key)
    assert naps == [0.75, 1.5]  # back-off, with half of it by chance


@pytest.mark.parametrize("url", ["", "ftp://x", "https://", "localhost:8081", "http://x/?a=1"])
def test_a_url_that_is_none_is_a_configuration_error(url):
    with pytest.raises(ConfigError):
        PcsClient(url)


def test_the_key_goes_to_the_service_alone(world, server, key):
    client = PcsClient(server.url, key="secret", limits=FAST, root_ca_crl_url=f"{server.url}/IntelSGXRootCA.der")
    client.fetch(world.machine.fmspc, "platform", "sgx")
    sent = {path.partition("?")[0]: headers.get("ocp-apim-subscription-key") for path, headers in server.requests}
    assert sent["/sgx/certification/v4/tcb"] == "secret"
    assert sent["/IntelSGXRootCA.der"] is None


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory) -> tuple[Path, Path, Path]:
    """CA, certificate and key of a server at 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    begin, end = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test CA")])

    def certificate(subject, public_key, *extensions) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            name, subject, public_key, x509.random_serial_number(), begin, end, [*extensions]
        )
        return builder.sign(ca_key, hashes.SHA256())

    def extension(value, critical: bool) -> x509.Extension:
        return x509.Extension(value.oid, critical, value)

    ca = certificate(
        name,
        ca_key.public_key(),
        extension(x509.BasicConstraints(ca=True, path_length=0), True),
        extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False),
    )
    leaf = certificate(
        x509.Name([]),
        key.public_key(),
        extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), True),
        extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False),
    )
    paths = folder / "ca.pem", folder / "leaf.pem", folder / "key.pem"
    paths[0].write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    paths[2].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


@pytest.fixture
def tls_server(world, tls_files) -> Iterator[PcsServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls_files[1], tls_files[2])
    with PcsServer(world.pcs, tls=context) as running:
        yield running


def test_tls_with_a_ca_of_ones_own(tls_server, tls_files, key):
    client = PcsClient(tls_server.url, dialect=Dialect.PCCS, verify_tls=tls_files[0], limits=FAST)
    assert client.fetch_document(key).key == key


def test_tls_of_a_stranger_is_refused_at_once(tls_server, naps, key):
    client = PcsClient(tls_server.url, dialect=Dialect.PCCS, limits=FAST, sleep=naps)
    with pytest.raises(CollateralUnavailable, match="not trusted") as caught:
        client.fetch_document(key)
    assert "--collateral-ca" in caught.value.advice()
    assert naps == []
    assert tls_server.requests == []


def test_tls_unchecked_only_when_asked_for(tls_server, key):
    client = PcsClient(tls_server.url, dialect=Dialect.PCCS, verify_tls=False, limits=FAST)
    assert client.fetch_document(key).key == key


@pytest.mark.parametrize("content", [None, b"no PEM"])
def test_an_unusable_file_of_cas_is_a_configuration_error(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="CA certificates"):
        PcsClient("https://127.0.0.1", verify_tls=path)


# --- Azure ----------------------------------------------------------------------------------------------------------


def test_thim_is_asked_in_its_own_words(world, server, naps):
    thim = AzureThim(imds=f"{server.url}/metadata/THIM", cache=server.url, limits=FAST, sleep=naps)
    got = thim.fetch(world.machine.fmspc, "platform", "sgx")
    verify_collateral(got, roots=world.trust_roots)
    asked = [path for path, _ in server.requests]
    assert all("clientid=production_client&api-version=2018-10-01-preview" in path for path in asked)
    assert sum("/sgx/certification/v4/pckcrl?uri=https%3A%2F%2F" in path for path in asked) == 2


def test_thim_gives_pck_certificates_as_json(world, server, naps):
    certificate, chain = b"-----BEGIN CERTIFICATE-----\nleaf", "-----BEGIN%20CERTIFICATE-----%0Achain"
    body = b'{"pckCert":"%s","sgx-Pck-Certificate-Issuer-Chain":"%s","sgx-Tcbm":"%s","cacheMaxAge":"86400"}' % (
        certificate.replace(b"\n", b"\\n"),
        chain.encode(),
        b"ab" * 18,
    )
    server.always = status(200, body, Content_Type="application/json")
    thim = AzureThim(imds=f"{server.url}/metadata/THIM", cache=server.url, limits=FAST, sleep=naps)
    answer = thim.fetch_pck_certificate(PckCertRequest(bytes(16), 0x0102, bytes(2), qe_id=b"\x11" * 16))
    assert answer.certificate == certificate
    assert answer.issuer_chain == b"-----BEGIN CERTIFICATE-----\nchain"
    assert answer.tcbm == b"\xab" * 18
    path, headers = server.requests[0]
    assert path.startswith("/metadata/THIM/sgx/certification/v4/pckcert?qeid=" + "11" * 16)
    assert "pcesvn=0201" in path
    assert headers["metadata"] == "true"


def test_thim_needs_a_region_for_tdx():
    with pytest.raises(ConfigError, match="region"):
        AzureThim().fetch_document(DocumentKey.qe_identity("tdx"))
    with pytest.raises(ConfigError, match="name of an Azure region"):
        AzureThim(region="evil.example/")
