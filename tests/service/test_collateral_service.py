"""The collateral service as its clients meet it: paths, headers, encodings, statuses, over real HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

import pki_builder as pki
from confcom.collateral.documents import DocumentKey
from running_collateral_service import (
    BUILT_FMSPC,
    BUILT_NOW,
    BUILT_ROOTS,
    BuiltUpstream,
    Clock,
    RunningService,
    running_service,
)

SGX, TDX = "/sgx/certification", "/tdx/certification"
SIGNING_CHAIN = pki.pem(pki.SIGNING_CERTIFICATE, pki.ROOT_CERTIFICATE)
PLATFORM_CHAIN = pki.pem(pki.PLATFORM_CERTIFICATE, pki.ROOT_CERTIFICATE)
UPSTREAM = BuiltUpstream()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    store = tmp_path_factory.mktemp("store") / "collateral.sqlite"
    with running_service(store, UPSTREAM, BUILT_ROOTS, Clock(BUILT_NOW)) as service:
        yield service


def body_of(key: DocumentKey) -> bytes:
    return UPSTREAM.fetch_document(key).body


TCB, TDX_TCB = (DocumentKey.tcb_info(tee, bytes.fromhex(BUILT_FMSPC)) for tee in ("sgx", "tdx"))
PLATFORM_CRL = quote("https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca=platform", safe="")
EARLY = DocumentKey.tcb_info("sgx", bytes.fromhex(BUILT_FMSPC), "early")
NUMBERED = DocumentKey.tcb_info("sgx", bytes.fromhex(BUILT_FMSPC), 19)
IDENTITY = "SGX-Enclave-Identity-Issuer-Chain"

# Path → the document behind it, its chain's header, and the content type.
DOCUMENTS = {
    f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC}": (TCB, "TCB-Info-Issuer-Chain"),
    f"{SGX}/v3/tcb?fmspc={BUILT_FMSPC}": (TCB, "SGX-TCB-Info-Issuer-Chain"),
    f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC.upper()}&update=standard": (TCB, "TCB-Info-Issuer-Chain"),
    f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC}&update=early": (EARLY, "TCB-Info-Issuer-Chain"),
    f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC}&tcbEvaluationDataNumber=19": (NUMBERED, "TCB-Info-Issuer-Chain"),
    f"{TDX}/v4/tcb?fmspc={BUILT_FMSPC}": (TDX_TCB, "TCB-Info-Issuer-Chain"),
    f"{SGX}/v4/qe/identity": (DocumentKey.qe_identity("sgx"), IDENTITY),
    f"{SGX}/v3/qe/identity": (DocumentKey.qe_identity("sgx"), IDENTITY),
    f"{TDX}/v4/qe/identity?update=early": (DocumentKey.qe_identity("tdx", "early"), IDENTITY),
    # az-dcap-client adds parameters of its own.
    f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC}&clientid=production_client&api-version=2018-10-01-preview": (
        TCB,
        "TCB-Info-Issuer-Chain",
    ),
}


@pytest.mark.parametrize("path", DOCUMENTS)
@pytest.mark.parametrize("time", ["first", "again"])
def test_gives_signed_documents_byte_for_byte_with_their_chain(service: RunningService, path: str, time: str) -> None:
    key, chain = DOCUMENTS[path]
    reply = service.ask(path)

    assert (reply.status, reply.body) == (200, body_of(key))
    assert unquote(reply.header(chain) or "").encode() == SIGNING_CHAIN
    assert "\n" not in (reply.header(chain) or "")
    assert reply.header("Content-Type") == "application/json"
    assert ("Warning" in dict(reply.headers)) == ("/v3/" in path)


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize(
    ("query", "kind", "written"),
    [
        ("", "text/plain", lambda der: der.hex().encode()),
        ("&encoding=der", "application/pkix-crl", lambda der: der),
        ("&encoding=pem", "application/x-pem-file", None),
    ],
)
def test_gives_pck_crls_in_the_encoding_asked_for(service: RunningService, version, query, kind, written) -> None:
    der = body_of(DocumentKey.pck_crl("platform"))
    reply = service.ask(f"{SGX}/v{version}/pckcrl?ca=platform{query}")

    assert (reply.status, reply.header("Content-Type")) == (200, kind)
    assert unquote(reply.header("SGX-PCK-CRL-Issuer-Chain") or "").encode() == PLATFORM_CHAIN
    if written is None:
        assert reply.body.startswith(b"-----BEGIN X509 CRL-----")
    else:
        assert reply.body == written(der)


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("pckcrl?ca=platform&encoding=der", "pckcrl?ca=PLATFORM&encoding=DER"),
        ("pckcrl?ca=platform&encoding=pem", "pckcrl?ca=Platform&encoding=Pem"),
        (f"tcb?fmspc={BUILT_FMSPC}", f"tcb?fmspc={BUILT_FMSPC.upper()}&update=STANDARD"),
        ("qe/identity?update=early", "qe/identity?update=Early"),
        (f"crl?uri={PLATFORM_CRL}", f"crl?uri={PLATFORM_CRL.upper()}"),
    ],
)
def test_values_are_taken_whatever_their_case(service: RunningService, path: str, same: str) -> None:
    replies = [service.ask(f"/sgx/certification/v4/{written}") for written in (path, same)]

    assert [reply.status for reply in replies] == [200, 200]
    assert replies[0].body == replies[1].body


def test_gives_the_root_crl_in_hexadecimal_and_by_its_distribution_point(service: RunningService) -> None:
    der = body_of(DocumentKey.root_ca_crl())
    point = "https%3A%2F%2Fcertificates.trustedservices.intel.com%2FIntelSGXRootCA.der"

    assert service.ask(f"{SGX}/v4/rootcacrl").body == der.hex().encode()
    assert service.ask(f"{SGX}/v4/crl?uri={point}").body == der
    # THIM's dialect, as az-dcap-client speaks it.
    assert service.ask(f"{SGX}/v4/pckcrl?uri={point}&clientid=x&api-version=2018-10-01-preview").body == der


@pytest.mark.parametrize(
    "path",
    [
        *DOCUMENTS,
        f"{SGX}/v4/pckcrl?ca=platform",
        f"{SGX}/v4/rootcacrl",
        f"{SGX}/v3/qve/identity",
        f"{SGX}/v4/pckcrl?uri=https%253a%252f%252fcertificates.trustedservices.intel.com%252fintelsgxrootca.crl",
    ],
)
def test_clients_may_keep_every_document_for_a_day(service: RunningService, path: str) -> None:
    value = service.ask(path).header("Cache-Control") or ""
    assert 0.8 * 86400 <= int(value.removeprefix("max-age=")) <= 86400


def test_what_clients_keep_ends_before_the_document_does(tmp_path: Path) -> None:
    clock, path = Clock(BUILT_NOW), f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC}"
    with running_service(tmp_path / "s.sqlite", UPSTREAM, BUILT_ROOTS, clock) as service:
        for left in (3 * 86400, 86400, 3600, 3500, 100, 61, 7, 2):
            clock.now = pki.NEXT - timedelta(seconds=left)
            value = service.ask(path).header("Cache-Control") or ""
            assert 0 < int(value.removeprefix("max-age=")) < left
        clock.now = pki.NEXT + timedelta(days=1)
        stale = service.ask(path)

    # 0 would be "no age" to Intel's library, which then keeps it for a week.
    assert stale.header("Cache-Control") == "max-age=1"
    assert stale.header("Warning") is not None


def test_no_cache_keeps_an_error_or_health(service: RunningService) -> None:
    for path in ("/healthz", "/readyz", f"{SGX}/v4/tcb?fmspc=ffffffffffff", f"{SGX}/v4/nothing", f"{SGX}/v4/platforms"):
        assert service.ask(path).header("Cache-Control") == "no-store"


def test_the_root_crl_has_the_root_as_its_chain(service: RunningService) -> None:
    chain = service.ask(f"{SGX}/v4/rootcacrl").header("SGX-PCK-CRL-Issuer-Chain") or ""
    assert unquote(chain).encode() == pki.pem(pki.ROOT_CERTIFICATE)


def test_a_request_id_is_made_up_or_repeated(service: RunningService) -> None:
    path = f"{SGX}/v4/qe/identity"
    made_up = {service.ask(path).header("Request-ID") for _ in range(3)}

    assert len(made_up) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one or "") for one in made_up)
    assert service.ask(path, headers={"Request-ID": "abc-123"}).header("Request-ID") == "abc-123"
    assert service.ask(path, headers={"Request-ID": "<script>"}).header("Request-ID") != "<script>"
    assert service.ask("/nowhere", headers={"Request-ID": "abc-123"}).header("Request-ID") == "abc-123"


WRONG = {
    f"{SGX}/v4/tcb": "fmspc",
    f"{SGX}/v4/tcb?fmspc=12": "fmspc",
    f"{SGX}/v4/tcb?fmspc=00606a00000g": "fmspc",
    f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC}&update=late": "update",
    f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC}&tcbEvaluationDataNumber=x": "tcbEvaluationDataNumber",
    f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC}&update=early&tcbEvaluationDataNumber=9": "tcbEvaluationDataNumber",
    f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC}&fmspc={BUILT_FMSPC}": "fmspc",
    f"{SGX}/v4/pckcrl": "ca",
    f"{SGX}/v4/pckcrl?ca=root": "ca",
    f"{SGX}/v4/pckcrl?ca=platform&encoding=xml": "encoding",
    f"{SGX}/v4/crl?uri=https%3A%2F%2Fexample.com%2FIntelSGXRootCA.der": "uri",
    f"{SGX}/v4/crl?uri=http%3A%2F%2Fcertificates.trustedservices.intel.com%2FIntelSGXRootCA.der": "uri",
    f"{SGX}/v4/crl?uri=https%3A%2F%2F%5Bx": "uri",
    f"{SGX}/v4/pckcrl?uri=https%253a%252f%252f%255bx&api-version=2020-02-12-preview": "uri",
    f"{SGX}/v4/pckcrl?uri=": "uri",
    f"{SGX}/v4/pckcert?qeid=00&cpusvn=00&pcesvn=0000&pceid=0000": "cpusvn",
    f"{SGX}/v4/pckcert?qeid=00&cpusvn={'00' * 16}&pceid=0000": "pcesvn",
    f"{SGX}/v4/pckcert?qeid={'00' * 131}&cpusvn={'00' * 16}&pcesvn=0000&pceid=0000": "qeid",
    f"{SGX}/v4/pckcert?qeid=00&cpusvn={'00' * 16}&pcesvn=0000&pceid=0000&encrypted_ppid=00": "encrypted_ppid",
    f"{SGX}/v4/tcb?" + "&".join(f"p{n}=1" for n in range(40)): "query",
}


@pytest.mark.parametrize("path", WRONG)
def test_names_the_parameter_that_is_wrong(service: RunningService, path: str) -> None:
    reply = service.ask(path)

    assert reply.status == 400
    assert reply.json["error"] == "Invalid request parameters."
    assert reply.json["code"] == "malformed-input"
    assert reply.json["field"] == WRONG[path]
    assert "offset" not in reply.json
    assert reply.header("Error-Code") == "malformed-input"


def test_says_what_is_missing_and_what_to_do(service: RunningService) -> None:
    path = f"{SGX}/v4/tcb?fmspc=ffffffffffff"
    reply, plain = service.ask(path), service.ask(path, headers={"Accept": "text/plain"})

    assert reply.status == plain.status == 404
    assert reply.json["error"] == "No cache data for this platform."
    assert reply.json["code"] == "collateral-not-found"
    assert reply.json["advice"]
    assert reply.json["missing"] == {
        "document": "tcb-info",
        "tee": "sgx",
        "fmspc": "ffffffffffff",
        "update": "standard",
    }
    assert plain.body == b"No cache data for this platform."


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 404),
        (f"{SGX}/v1/tcb?fmspc={BUILT_FMSPC}", "GET", 404),
        (f"{TDX}/v3/tcb?fmspc={BUILT_FMSPC}", "GET", 404),
        (f"{SGX}/v4/fmspcs", "GET", 404),
        (f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC}", "POST", 405),
        ("/healthz", "DELETE", 405),
        (f"{SGX}/v4/tcb?fmspc=" + "0" * 5000, "GET", 414),
    ],
)
def test_refuses_what_it_does_not_serve(service: RunningService, path: str, method: str, status: int) -> None:
    reply = service.ask(path, method=method)

    assert reply.status == status
    assert reply.json["code"] == "request-refused"


def test_answers_head_without_a_body(service: RunningService) -> None:
    path = f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC}"
    head, whole = service.ask(path, method="HEAD"), service.ask(path)

    assert (head.status, head.body) == (200, b"")
    assert head.header("Content-Length") == str(len(whole.body))


def test_counts_requests_and_where_answers_came_from(tmp_path: Path) -> None:
    with running_service(tmp_path / "s.sqlite", BuiltUpstream(), BUILT_ROOTS, Clock(BUILT_NOW)) as service:
        for _ in range(4):
            service.ask(f"{SGX}/v4/rootcacrl")
        service.ask(f"{SGX}/v4/tcb?fmspc=ffffffffffff")
        text = service.ask("/metrics").body.decode()

        assert 'requests_total{path="sgx/v4/rootcacrl",status="200"} 4.0' in text
        assert 'requests_total{path="sgx/v4/tcb",status="404"} 1.0' in text
        # The memory is emptied when the store changes, and this one just has.
        assert service.metric("cache_total", result="memory") >= 1
        assert service.metric("cache_total", result="memory") + service.metric("cache_total", result="store") == 3
        assert 'cache_total{result="upstream"} 1.0' in text
        assert 'cache_total{result="missing"} 1.0' in text
        assert 'upstream_errors_total{code="collateral-not-found"} 1.0' in text
        days = re.search(r'seconds_to_expiry\{ca="",fmspc="",kind="root-ca-crl",tee="",update=""\} ([\d.e+]+)', text)
        assert days is not None
        assert float(days[1]) == 20 * 24 * 3600


def test_spellings_of_one_request_are_one_answer_in_memory(tmp_path: Path) -> None:
    with running_service(
        tmp_path / "s.sqlite", BuiltUpstream(), BUILT_ROOTS, Clock(BUILT_NOW), memory_entries=2
    ) as service:
        tcb, root = f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC}", f"{SGX}/v4/rootcacrl"
        expected = service.ask(tcb).body
        service.ask(root)
        service.ask(tcb)  # now from the store, which the first answers changed
        service.ask(root)
        before = service.metric("cache_total", result="memory")
        spellings = [f"{tcb}&note={number}" for number in range(20)]
        spellings += [
            f"{SGX}/v4/tcb?fmspc={BUILT_FMSPC.swapcase()}&update=STANDARD",
            f"{SGX}/v4/tcb/?fmspc={BUILT_FMSPC}",
        ]
        for path in (*spellings, root):
            assert service.ask(path).status == 200, path
        assert service.ask(spellings[3]).body == expected
        assert service.metric("cache_total", result="memory") == before + len(spellings) + 2
