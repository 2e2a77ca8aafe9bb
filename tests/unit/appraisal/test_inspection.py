"""Everything of this world is recognised and explained; what is not is called by its name, and never believed."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote as percent_encode

import pytest

from confcom.appraisal.inspection.explain import MAX_INSPECTED, inspect
from confcom.appraisal.inspection.items import Inspection
from confcom.collateral.bundle import to_json
from confcom.errors import FormatError
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID, AttestationKeyIdList
from confcom.formats.sgx import QeReportInfo, Report
from confcom.pki.certificate import parse_certificates
from confcom.protocols.aesm import (
    ClientConnection,
    GetQuoteExRequest,
    GetQuoteExResponse,
    GetQuoteSizeExRequest,
    GetQuoteSizeExResponse,
    InitQuoteExRequest,
    InitQuoteExResponse,
    SelectAttKeyIdRequest,
    ServerConnection,
)
from confcom.protocols.aesm_status import AesmStatus
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.world import SimulatedWorld
from made_quotes import quote_v3, quote_v4, quote_v5, u32
from record_layout import distinct

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
WORLD = SimulatedWorld.from_seed(b"seed of the inspection tests", now=NOW)
ENCLAVE = WORLD.machine.launch(EnclaveDeclaration.from_names("app", "vendor", isv_prod_id=3, isv_svn=5, debug=True))
REPORT = ENCLAVE.create_report(WORLD.platform.init_quote().target_info, distinct(64))
RESULT = WORLD.platform.quote(REPORT, None, QeReportInfo(bytes(16), ENCLAVE.target_info, Report.parse(bytes(432))))
QUOTE = RESULT.quote
COLLATERAL = WORLD.publish()
CHAIN = WORLD.authority.pck_chain(WORLD.machine)
PCK = parse_certificates(CHAIN, structure="test")[0]


def fields(found: Inspection) -> dict[str, Any]:
    document = found.as_dict()
    assert document["verified"] is False
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    return document["fields"]


def test_a_report_says_who_and_what() -> None:
    found = inspect(bytes(REPORT))
    assert (found.kind, found.encoding, found.size) == ("report", "binary", 432)
    body = fields(found)["body"]
    assert body["mr_enclave"] == REPORT.body.mr_enclave.hex()
    assert body["mr_signer"] == REPORT.body.mr_signer.hex()
    assert (body["isv_prod_id"], body["isv_svn"]) == (3, 5)
    assert body["report_data"] == distinct(64).hex()
    assert body["attributes"]["flag_names"] == ["INIT", "DEBUG", "MODE64BIT"]
    assert body["attributes"]["debug"] is True
    assert fields(found)["mac"] == REPORT.mac.hex()


def test_the_structs_of_enclaves_are_known_by_their_size() -> None:
    info = RESULT.qe_report_info
    assert info
    kinds = {
        "report-body": bytes(REPORT.body),
        "target-info": bytes(ENCLAVE.target_info),
        "qe-report-info": bytes(info),
        "attestation-key-id": bytes(ECDSA_P256_KEY_ID),
        "attestation-key-id-list": bytes(AttestationKeyIdList((ECDSA_P256_KEY_ID,) * 2)),
    }
    for kind, data in kinds.items():
        assert inspect(data).kind == kind
        assert inspect(data.hex().encode()).kind == kind
    assert fields(inspect(kinds["target-info"]))["mr_enclave"] == REPORT.body.mr_enclave.hex()
    assert fields(inspect(kinds["qe-report-info"]))["qe_report"]["body"]["isv_prod_id"] == 1
    assert fields(inspect(kinds["attestation-key-id"]))["base"]["mr_signer"].startswith("8c4f5775")
    assert len(fields(inspect(kinds["attestation-key-id-list"]))["ids"]) == 2


def test_a_quote_is_shown_whole() -> None:
    found = inspect(QUOTE)
    assert (found.kind, found.title) == ("quote", "SGX quote, version 3")
    shown = fields(found)
    assert shown["header"]["version"] == 3
    assert shown["body"]["mr_enclave"] == REPORT.body.mr_enclave.hex()
    assert shown["signature"] == QUOTE[436:500].hex()
    assert shown["qe_report"]["mr_signer"] == QUOTE[564 + 128 : 564 + 160].hex()
    assert shown["qe_authentication_data"] == QUOTE[1014:1046].hex()
    assert shown["certification_data"]["type"] == 5
    subjects = [certificate["subject"] for certificate in shown["certification_data"]["certificates"]]
    assert ["PCK Certificate" in subjects[0], "Platform CA" in subjects[1], "Root CA" in subjects[2]] == [True] * 3
    assert shown["certification_data"]["certificates"][0]["sgx_extension"]["fmspc"] == WORLD.machine.fmspc.hex()


@pytest.mark.parametrize("data", [quote_v3(), quote_v4(0), quote_v4(), *(quote_v5(number) for number in (1, 2, 3, 4))])
def test_every_place_that_is_named_holds_what_is_shown(data: bytes) -> None:
    """Hexadecimal values with a place in the quote are the bytes at that place."""
    waiting, seen = list(inspect(data).items), 0
    while waiting:
        item = waiting.pop()
        waiting += item.children or ()
        if item.offset is None or item.size is None:
            continue
        there = data[item.offset : item.offset + item.size]
        assert len(there) == item.size
        if isinstance(item.value, str) and item.name not in {"flags", "xfrm", "td_attributes", "xfam"}:
            assert item.value == there.hex(), item.name
            seen += 1
        elif isinstance(item.value, (int, str)):
            number = int(item.value, 16) if isinstance(item.value, str) else item.value
            assert number == int.from_bytes(there, "little"), item.name
            seen += 1
    assert seen > 35


def test_td_quotes_show_the_td() -> None:
    body = fields(inspect(quote_v5(4)))["body"]
    assert body["mr_td"] == distinct(885)[136:184].hex()
    assert body["tee_tcb_svn2"] == distinct(885)[584:600].hex()
    assert body["vm_id"] == distinct(885)[648]
    assert inspect(distinct(584, 250)).kind == "td-report-body"


def test_padding_and_platform_ids_are_explained() -> None:
    shown = fields(inspect(quote_v3(1, distinct(36)) + bytes(10)))
    assert shown["trailing"] == 10
    assert shown["certification_data"]["platform"]["pce_svn"] == int.from_bytes(distinct(36)[32:34], "little")


def test_a_damaged_part_does_not_hide_the_others() -> None:
    shown = fields(inspect(quote_v3(5, b"no chain")))
    assert "CERTIFICATE" in shown["certification_data"]["certificates"]["unreadable"]
    assert shown["body"]["mr_enclave"]


@pytest.mark.parametrize("encode", [bytes.hex, lambda data: base64.b64encode(data).decode()])
def test_open_enclave_wrappings_show_what_is_in_them(encode) -> None:
    report = u32(1) + u32(2) + len(QUOTE).to_bytes(8, "little") + QUOTE
    local = u32(1) + u32(1) + (432).to_bytes(8, "little") + bytes(REPORT)
    claims = b"".join(n.to_bytes(8, "little") for n in (1, 1, 5, 3)) + b"name\0abc"
    content = QUOTE + claims
    format_id = bytes.fromhex("a3a21e871b4d4014b70aa125d2fbcd8c")
    evidence = u32(3) + format_id + bytes(4) + len(content).to_bytes(8, "little") + content
    for data in (report, encode(report).encode()):
        assert fields(inspect(data))["quote"]["body"]["isv_prod_id"] == 3
    assert fields(inspect(local))["report"]["body"]["isv_prod_id"] == 3
    shown = fields(inspect(encode(evidence).encode()))
    assert shown["quote"]["body"]["isv_prod_id"] == 3
    assert shown["custom_claims"] == [{"name": "name", "value": b"abc".hex()}]


def test_a_pck_certificate_is_explained_in_pem_der_and_hex() -> None:
    pem = CHAIN.split(b"-----END CERTIFICATE-----")[0] + b"-----END CERTIFICATE-----\n"
    shown = [fields(inspect(data)) for data in (pem, PCK, PCK.hex().encode())]
    assert all(each == shown[0] for each in shown)
    extension = shown[0]["sgx_extension"]
    assert extension["fmspc"] == WORLD.machine.fmspc.hex()
    assert len(extension["sgx_components"]) == 16
    assert extension["pce_svn"] == WORLD.machine.tcb.pce_svn
    assert "PCK Certificate" in shown[0]["subject"]
    assert shown[0]["not_before"].endswith("Z")


def test_a_chain_is_a_list_of_certificates() -> None:
    found = inspect(CHAIN)
    assert found.kind == "certificate-chain"
    assert len(fields(found)["certificates"]) == 3
    percent = inspect(percent_encode(CHAIN).encode())
    assert (percent.kind, percent.encoding) == ("certificate-chain", "percent-encoded PEM")
    assert fields(percent) == fields(found)


def test_a_revocation_list_is_explained_in_every_encoding() -> None:
    world = SimulatedWorld.from_seed(b"seed of the inspection tests", now=NOW)
    world.authority.revoke_pck(world.machine)
    der = world.publish().pck_crl
    pem = b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(der) + b"-----END X509 CRL-----\n"
    shown = [fields(inspect(data)) for data in (der, der.hex().encode(), pem, base64.b64encode(der))]
    assert all(each == shown[0] for each in shown)
    assert "Platform CA" in shown[0]["issuer"]
    serial = world.authority.pck_certificate(world.machine).serial_number
    assert [entry["serial"] for entry in shown[0]["revoked"]] == [f"{serial:x}"]


def test_tcb_info_and_enclave_identity_are_explained_with_and_without_signature() -> None:
    signed = inspect(COLLATERAL.tcb_info)
    assert signed.kind == "tcb-info"
    assert fields(signed)["fmspc"] == WORLD.machine.fmspc.hex()
    assert fields(signed)["tcb_levels"][0]["tcb_status"] == "UpToDate"
    assert len(fields(signed)["signature"]) == 128
    inner = json.dumps(json.loads(COLLATERAL.tcb_info)["tcbInfo"], indent=1).encode()
    assert fields(inspect(inner)) | {"signature": fields(signed)["signature"]} == fields(signed)
    identity = inspect(COLLATERAL.qe_identity)
    assert identity.kind == "enclave-identity"
    assert fields(identity)["id"] == "QE"
    inner = json.dumps(json.loads(COLLATERAL.qe_identity)["enclaveIdentity"]).encode()
    assert fields(inspect(inner))["tcb_levels"] == fields(identity)["tcb_levels"]


def test_a_set_of_collateral_is_explained_part_by_part() -> None:
    document = json.loads(to_json(COLLATERAL))
    found = inspect(json.dumps(document).encode())
    assert found.kind == "collateral"
    shown = fields(found)
    assert shown["tcb_info"]["fmspc"] == WORLD.machine.fmspc.hex()
    assert shown["qe_identity"]["id"] == "QE"
    assert "Root CA" in shown["root_ca_crl"]["issuer"]
    assert len(shown["pck_crl_issuer_chain"]) == 2
    document |= {"pck_crl": "zz", "tcb_info": "{}"}
    damaged = fields(inspect(json.dumps(document).encode()))
    assert damaged["pck_crl"]["unreadable"]
    assert damaged["tcb_info"]["unreadable"]
    assert damaged["qe_identity"] == shown["qe_identity"]


def answered(request: Any, response: Any) -> bytes:
    connection = ServerConnection()
    connection.receive_data(ClientConnection().send(request))
    connection.next_event()
    return connection.send(response)


def test_aesm_requests_are_explained_with_what_they_carry() -> None:
    found = inspect(ClientConnection().send(GetQuoteExRequest(bytes(REPORT), 5000, bytes(ECDSA_P256_KEY_ID))))
    assert (found.kind, found.title) == ("aesm-request", "AESM request GetQuoteEx")
    shown = fields(found)
    assert shown["report"]["body"]["isv_prod_id"] == 3
    assert shown["att_key_id"]["base"]["prod_id"] == 1
    assert shown["buf_size"] == 5000
    ids = bytes(AttestationKeyIdList((ECDSA_P256_KEY_ID,)))
    assert len(fields(inspect(ClientConnection().send(SelectAttKeyIdRequest(ids))))["att_key_id_list"]["ids"]) == 1
    damaged = fields(inspect(ClientConnection().send(GetQuoteExRequest(b"short", 5000))))
    assert "432" in damaged["report"]["unreadable"]


@pytest.mark.parametrize(
    ("request_value", "response", "field", "value"),
    [
        (InitQuoteExRequest(b_pub_key_id=True), InitQuoteExResponse(AesmStatus.BUSY), "status", 18),
        (
            GetQuoteSizeExRequest(),
            GetQuoteSizeExResponse(AesmStatus.SUCCESS, 4600),
            "quote_size",
            4600,
        ),
        (GetQuoteExRequest(bytes(432), 9), GetQuoteExResponse(AesmStatus.SUCCESS, b"\0\0"), "quote", "0000"),
    ],
)
def test_aesm_requests_and_responses_are_told_apart(request_value, response, field: str, value: object) -> None:
    assert inspect(ClientConnection().send(request_value)).kind == "aesm-request"
    found = inspect(answered(request_value, response))
    assert found.kind == "aesm-response"
    assert fields(found)[field] == value


def test_a_quote_inside_an_aesm_response_is_shown() -> None:
    frame = answered(GetQuoteExRequest(bytes(REPORT), 5000), GetQuoteExResponse(AesmStatus.SUCCESS, QUOTE))
    assert fields(inspect(frame))["quote"]["body"]["isv_svn"] == 5


def token(header: object, claims: object, signature: bytes = b"signature") -> bytes:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)


def test_a_token_is_decoded_and_marked_as_unverified() -> None:
    found = inspect(
        token({"alg": "RS256"}, {"iss": "https://x", "exp": 1625199189, "n": {"a": [1, None, True]}}) + b"\n"
    )
    assert found.kind == "attestation-token"
    assert fields(found)["claims"] == {"iss": "https://x", "exp": 1625199189, "n": {"a": [1, None, True]}}
    claims = next(item for item in found.items if item.name == "claims")
    assert "NOT verified" in claims.meaning
    expiry = next(item for item in claims.children or () if item.name == "exp")
    assert "2021-07-02T04:13:09Z" in expiry.meaning


def test_a_token_without_signature_says_so() -> None:
    signature = inspect(token({"alg": "none"}, {}, b"")).items[-1]
    assert "not signed at all" in signature.meaning


@pytest.mark.parametrize("time", [1e300, -1e18, 10**30, True, "soon", None, [1]])
def test_any_value_may_stand_where_a_time_should(time: object) -> None:
    assert fields(inspect(token({}, {"exp": time})))["claims"]["exp"] == time


@pytest.mark.parametrize("claims", [b"[]", b'"x"', b"{", b'{"a":NaN}', b'{"a":1e999}', b"\xff", b"[" * 50_000])
def test_a_token_of_other_content_is_refused(claims: bytes) -> None:
    parts = [base64.urlsafe_b64encode(part).rstrip(b"=") for part in (b"{}", claims)]
    with pytest.raises(FormatError) as caught:
        inspect(b".".join([*parts, b"AAAA"]).replace(parts[0], b"e30g"))
    assert caught.value.structure == "token"


def test_deeply_nested_claims_are_cut() -> None:
    nested: object = 1
    for _ in range(100):
        nested = [nested]
    assert "…" in json.dumps(fields(inspect(token({}, {"deep": nested}))), ensure_ascii=False)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b" \n\0", "nothing but"),
        (bytes(432), "nothing but"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(5000), "a JPEG image"),
        (b"\x7fELF\2\1\1" + bytes(500), "an ELF program"),
        (b"<!doctype html><html></html>", "an XML or HTML document"),
        (b"-----BEGIN RSA PRIVATE KEY-----\nMIIE\n", "'RSA PRIVATE KEY'"),
        (b"-----BEGIN CERTIFICATE-----\nMIIE\n", "no whole CERTIFICATE block"),
        (b'{"hello": 1, "\\u001b[31m": 2}', "'hello'"),
        (b'{"hello": 1', "looks like JSON, but is not"),
        (b"A quick brown fox jumps over the lazy dog. " * 10, "plain text"),
        (b"x" * 432, "324 bytes that begin with c7 1c 71"),
        (b"word " * 5, "plain text"),
        (b"0" * 512, "nothing but zero bytes, written in hex"),
        (b"1.2.3", "plain text"),
        (distinct(1000), "1000 bytes that begin with"),
        (b"\x30\x82\x01\x00" + bytes(256), "neither a certificate nor a revocation list"),
        (PCK[:-1], f"DER of {len(PCK)} bytes, but {len(PCK) - 1} are here"),
        (QUOTE[:1000], "Quote.signature_data"),
        (QUOTE[:40], "Quote.header"),
        (quote_v4()[:500], "Quote.body"),
        (COLLATERAL.tcb_info.replace(b'"fmspc"', b'"other"'), "fmspc"),
        (bytes(MAX_INSPECTED + 1), "nothing but"),
        (distinct(MAX_INSPECTED + 1), "over the limit"),
    ],
)
def test_what_is_not_known_or_damaged_gets_one_clear_message(data: bytes, says: str) -> None:
    with pytest.raises(FormatError) as caught:
        inspect(data)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    if caught.value.structure == "input":
        assert "attestation token" in caught.value.advice()


@pytest.mark.vectors
def test_every_file_of_the_real_vectors_is_known(vectors: Path) -> None:
    kinds = {
        "quote.bin": {"quote"},
        "pck_chain.pem": {"certificate-chain"},
        "tcb_info.json": {"tcb-info"},
        "tcb_info_issuer_chain.pem": {"certificate-chain"},
        "qe_identity.json": {"enclave-identity"},
        "qe_identity_issuer_chain.pem": {"certificate-chain"},
        "root_ca.pem": {"certificate"},
        "root_ca.der": {"certificate"},
        "root_ca_crl.der": {"crl"},
        "pck_crl.der": {"crl"},
        "pck_crl_issuer_chain.pem": {"certificate-chain", "certificate"},
        "collateral.json": {"collateral"},
        "evidence.bin": {"quote", "open-enclave-report"},
        "token.jwt": {"attestation-token"},
    }
    seen = set()
    for folder in [*sorted((vectors / "real").iterdir())[::6], *(vectors / "maa").glob("*/")]:
        for path in sorted(folder.iterdir()):
            if path.name in kinds:
                found = inspect(path.read_bytes())
                assert found.kind in kinds[path.name], path
                fields(found)
                seen.add(path.name)
    assert seen == set(kinds)


def test_pem_after_lines_of_text_is_recognised() -> None:
    assert inspect(b"Bag Attributes\n    friendlyName: pck\n" + CHAIN).kind == "certificate-chain"
