"""Bundles: what is saved is loaded again, and what is wrong is named by file and field."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import pki_builder as intel
from confcom.appraisal.collateral import Collateral, verify_collateral
from confcom.collateral.bundle import MAX_BUNDLE_JSON, from_json, load_bundle, save_bundle, to_json
from confcom.collateral.documents import (
    Document,
    DocumentKey,
    DocumentKind,
    assemble,
    document_from_answer,
    keys_for,
    request_for,
)
from confcom.errors import CollateralInvalid, CollateralNotFound, ConfigError, FormatError
from confcom.pki.certificate import MAX_PEM, Crl
from confcom.pki.chain import TrustRoot, TrustRoots
from confcom.protocols.pcs import HttpResponse
from confcom.protocols.pcs_service import parse_document

OWN = TrustRoots((TrustRoot.from_pem(intel.pem(intel.ROOT_CERTIFICATE)),))
CRL = intel.crl()
PARTS = {
    "tcb_info_issuer_chain.pem",
    "tcb_info.json",
    "qe_identity_issuer_chain.pem",
    "qe_identity.json",
    "root_ca_crl.der",
    "pck_crl.der",
    "pck_crl_issuer_chain.pem",
}


def _pem_crl(der: bytes) -> bytes:
    return x509.load_der_x509_crl(der).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("crl", "file"),
    [(CRL, "root_ca_crl.der"), (_pem_crl(CRL), "root_ca_crl.pem"), (CRL.hex().encode(), "root_ca_crl.hex")],
)
def test_a_saved_folder_is_loaded_as_it_was(tmp_path: Path, crl: bytes, file: str) -> None:
    collateral = intel.collateral(root_ca_crl=crl, source=str(tmp_path))
    save_bundle(collateral, tmp_path)
    assert (tmp_path / file).read_bytes() == crl
    assert load_bundle(tmp_path) == collateral


def test_the_platforms_own_chain_goes_along(tmp_path: Path) -> None:
    chain = intel.pem(intel.PCK_CERTIFICATE, intel.PLATFORM_CERTIFICATE, intel.ROOT_CERTIFICATE)
    save_bundle(intel.collateral(pck_certificate_chain=chain), tmp_path)
    assert load_bundle(tmp_path).pck_certificate_chain == chain
    assert from_json(to_json(load_bundle(tmp_path)), source="x").pck_certificate_chain == chain


def test_saving_replaces_what_an_earlier_bundle_left(tmp_path: Path) -> None:
    chain = intel.pem(intel.PCK_CERTIFICATE, intel.PLATFORM_CERTIFICATE)
    save_bundle(intel.collateral(root_ca_crl=_pem_crl(CRL), pck_certificate_chain=chain), tmp_path / "new")
    save_bundle(intel.collateral(), tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == PARTS


def test_a_folder_never_adds_trust(tmp_path: Path) -> None:
    save_bundle(intel.collateral(), tmp_path)
    before = load_bundle(tmp_path)
    for name in ("root_ca.pem", "root_ca.der", "quote.bin", "meta.json"):
        (tmp_path / name).write_bytes(b"anything")
    assert load_bundle(tmp_path) == before


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path, part: str) -> None:
    save_bundle(intel.collateral(), tmp_path)
    (tmp_path / part).unlink()
    with pytest.raises(CollateralNotFound, match=part) as caught:
        load_bundle(tmp_path)
    assert "confcom collateral" in caught.value.advice()


def test_a_place_without_collateral_is_named(tmp_path: Path) -> None:
    with pytest.raises(CollateralNotFound, match="nowhere"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(CollateralNotFound, match=str(tmp_path)):
        load_bundle(tmp_path)


@pytest.mark.parametrize("part", sorted(PARTS))
@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe"])
def test_a_malformed_file_is_named(tmp_path: Path, part: str, content: bytes) -> None:
    save_bundle(intel.collateral(), tmp_path)
    (tmp_path / part).write_bytes(content)
    with pytest.raises(CollateralInvalid, match=part):
        load_bundle(tmp_path)


@pytest.mark.parametrize("form", ["percent-encoded", "utf-8-sig", "utf-16"])
def test_text_is_read_as_people_keep_it(tmp_path: Path, form: str) -> None:
    save_bundle(intel.collateral(), tmp_path)
    expected = load_bundle(tmp_path)
    for path in tmp_path.iterdir():
        if form == "percent-encoded" and path.suffix == ".pem":
            path.write_text(quote(path.read_text(), safe=""))
        elif form != "percent-encoded" and path.suffix != ".der":
            path.write_bytes(path.read_text().encode(form))
    assert load_bundle(tmp_path) == expected
    whole = tmp_path / "collateral.json"
    whole.write_bytes(to_json(expected).decode().encode("utf-8" if form == "percent-encoded" else form))
    assert load_bundle(whole).tcb_info == expected.tcb_info


def test_a_document_is_known_by_its_file(tmp_path: Path) -> None:
    save_bundle(intel.collateral(), tmp_path)
    assert load_bundle(tmp_path).place("tcb_info") == str(tmp_path / "tcb_info.json")
    (tmp_path / "collateral.json").write_bytes(to_json(intel.collateral()))
    assert load_bundle(tmp_path / "collateral.json").place("pck_crl") == f"pck_crl in {tmp_path / 'collateral.json'}"
    assert intel.collateral().place("tcb_info") == "the TCB info from tests"


def test_a_file_over_its_limit_is_named(tmp_path: Path) -> None:
    save_bundle(intel.collateral(), tmp_path)
    (tmp_path / "pck_crl_issuer_chain.pem").write_bytes(b"\0" * (MAX_PEM + 1))
    with pytest.raises(CollateralInvalid, match=r"pck_crl_issuer_chain\.pem.*larger than"):
        load_bundle(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be written"):
        save_bundle(intel.collateral(), tmp_path / "file")


def test_json_carries_the_same_collateral() -> None:
    collateral = intel.collateral()
    again = from_json(to_json(collateral), source="tests")
    assert again.tcb_info == collateral.tcb_info
    assert verify_collateral(again, roots=OWN).tcb_info == verify_collateral(collateral, roots=OWN).tcb_info
    assert to_json(again) == to_json(collateral)


def test_json_keeps_signed_white_space() -> None:
    body = intel.compact(intel.tcb_info()).replace(b",", b" ,\n ")
    collateral = intel.collateral(tcb_info=intel.signed("tcbInfo", body))
    assert json.loads(to_json(collateral))["tcb_info"].encode() == body
    assert verify_collateral(from_json(to_json(collateral), source="x"), roots=OWN).tcb_info.version == 3


def test_a_json_file_or_a_folder_with_one_is_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "collateral.json").write_bytes(to_json(intel.collateral()))
    from_file = load_bundle(tmp_path / "collateral.json")
    assert from_file == load_bundle(tmp_path)
    assert from_file.source == str(tmp_path / "collateral.json")


def _json(**changes: object) -> bytes:
    return json.dumps(json.loads(to_json(intel.collateral())) | changes).encode()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"root_ca_crl": "3000"}, "root_ca_crl"),
        ({"pck_crl": 7}, "pck_crl"),
        ({"tcb_info": "{"}, "tcb_info"),
        ({"tcb_info": "[]"}, "tcb_info"),
        ({"tcb_info": '{},"signature":"' + "00" * 64 + '","more":{}'}, "tcb_info"),
        ({"tcb_info_signature": "00"}, "tcb_info_signature"),
        ({"tcb_info_signature": "0 " * 64}, "tcb_info_signature"),
        ({"qe_identity": ""}, "qe_identity"),
        ({"qe_identity_signature": "zz" * 64}, "qe_identity_signature"),
        ({"tcb_info_issuer_chain": ""}, "tcb_info_issuer_chain"),
        ({"pck_certificate_chain": "-----BEGIN"}, "pck_certificate_chain"),
        ({"qe_identity_issuer_chain": None}, "qe_identity_issuer_chain"),
    ],
)
def test_malformed_json_is_named_by_file_and_field(changes: dict[str, object], says: str) -> None:
    with pytest.raises(CollateralInvalid, match=says) as caught:
        from_json(_json(**changes), source="collateral.json")
    assert "collateral.json" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"pck_crl":' * 10_000, b'{"\\ud800":1}'])
def test_what_is_no_bundle_is_malformed(data: bytes) -> None:
    with pytest.raises(CollateralInvalid):
        from_json(data, source="collateral.json")


def test_a_bundle_over_the_limit_is_not_parsed() -> None:
    with pytest.raises(CollateralInvalid, match="over the limit"):
        from_json(bytes(MAX_BUNDLE_JSON + 1), source="collateral.json")


def test_an_absent_platform_chain_may_be_null() -> None:
    assert from_json(_json(pck_certificate_chain=None), source="x").pck_certificate_chain is None


def test_collateral_that_is_not_text_where_json_needs_it_is_malformed() -> None:
    with pytest.raises(FormatError, match="UTF-8"):
        to_json(replace(intel.collateral(), pck_crl_issuer_chain=b"\xff"))


@pytest.mark.vectors
def test_a_real_folder_and_its_json_say_the_same(vectors: Path) -> None:
    for folder in sorted((vectors / "real").glob("[st]*")):
        if not (folder / "collateral.json").exists():
            continue
        parts, whole = load_bundle(folder), load_bundle(folder / "collateral.json")
        roots = TrustRoots.intel()
        assert verify_collateral(parts, roots=roots).tcb_info == verify_collateral(whole, roots=roots).tcb_info, folder


def _text_around(pem: bytes) -> bytes:
    return b"Certificate:\n    Data:\n" + pem.replace(
        b"-----END CERTIFICATE-----\n", b"-----END CERTIFICATE-----\nNote\n"
    )


WRAPPED = {
    "text around": _text_around,
    "blanks": lambda pem: pem + b" \n\t\n",
    "CRLF": lambda pem: pem.replace(b"\n", b"\r\n"),
    "NUL": lambda pem: pem + b"\0",
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("form", ["folder", "collateral.json", "service"])
def test_wrapping_is_accepted_in_every_form_alike(tmp_path: Path, form: str, wrap) -> None:
    """Text, blanks and line ends around certificates; one NUL after PEM, JSON and CRLs in DER and hexadecimal."""
    plain = intel.collateral()
    parts = {name: wrap(getattr(plain, name)) for name in _chains(plain)}
    parts |= {"tcb_info": plain.tcb_info + b"\0", "qe_identity": plain.qe_identity + b"\n\0"}
    parts |= {"root_ca_crl": CRL + b"\0", "pck_crl": bytes(Crl.parse(plain.pck_crl)).hex().encode() + b"\0"}
    wrapped = replace(plain, **parts)
    match form:
        case "folder":
            save_bundle(wrapped, tmp_path)
            found = load_bundle(tmp_path)
        case "collateral.json":
            table = json.loads(to_json(plain))
            table |= {name: parts[name].decode() for name in _chains(plain)}
            table |= {name: table[name] + "\0" for name in ("tcb_info", "qe_identity", "root_ca_crl", "pck_crl")}
            found = from_json(json.dumps(table).encode() + b"\n\0", source="x")
        case _:
            found = assemble((_served(key, wrapped) for key in KEYS), source="x")
    assert found.digest() == plain.digest()
    assert verify_collateral(found, roots=OWN).root.simulated


def _chains(collateral: Collateral) -> list[str]:
    return [item.name for item in fields(collateral) if item.name.endswith("issuer_chain")]


KEYS = keys_for(bytes(6), "platform", "sgx")


def _served(key: DocumentKey, collateral: Collateral) -> Document:
    """The document as a service would send it: the chain percent-encoded in a header."""
    bodies = {
        DocumentKind.TCB_INFO: (collateral.tcb_info, "TCB-Info-Issuer-Chain", collateral.tcb_info_issuer_chain),
        DocumentKind.QE_IDENTITY: (
            collateral.qe_identity,
            "SGX-Enclave-Identity-Issuer-Chain",
            collateral.qe_identity_issuer_chain,
        ),
        DocumentKind.PCK_CRL: (collateral.pck_crl, "SGX-PCK-CRL-Issuer-Chain", collateral.pck_crl_issuer_chain),
        DocumentKind.ROOT_CA_CRL: (collateral.root_ca_crl, "", b""),
    }
    body, header, chain = bodies[key.kind]
    return document_from_answer(
        key, parse_document(request_for(key), HttpResponse(200, ((header, quote(chain)),), body))
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace(b'{"', b'{"tcb_info":"","', 1),
        lambda text: text[:-1] + b',"note":{"a":1,"a":2}}',
        lambda text: text[:-1] + b',"Tcb_Info":""}',
        lambda text: text[:-1] + b',"note":-0}',
    ],
)
def test_a_collateral_json_with_a_key_twice_is_refused(spoil) -> None:
    with pytest.raises(CollateralInvalid):
        from_json(spoil(to_json(intel.collateral())), source="x")
