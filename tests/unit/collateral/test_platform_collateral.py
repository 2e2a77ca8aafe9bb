"""The JSON of Intel's client tool: documents come out with the bytes that were signed, nonsense is a `FormatError`."""

from __future__ import annotations

import json
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pki_builder as pki
from confcom.collateral.documents import Document, DocumentKey
from confcom.collateral.platform_collateral import MAX_PLATFORM, PlatformCertificates, PlatformCollateral
from confcom.errors import FormatError

FMSPC = bytes.fromhex("00606a000000")
CHAIN = pki.pem(pki.SIGNING_CERTIFICATE, pki.ROOT_CERTIFICATE)
CERTIFICATES = {
    "SGX-PCK-Certificate-Issuer-Chain": {"PLATFORM": quote(pki.pem(pki.PLATFORM_CERTIFICATE, pki.ROOT_CERTIFICATE))},
    "SGX-Enclave-Identity-Issuer-Chain": quote(CHAIN),
}
TCB, TDX = pki.signed("tcbInfo", pki.tcb_info()), pki.signed("tcbInfo", pki.tdx_tcb_info())
IDENTITY = pki.signed("enclaveIdentity", pki.enclave_identity())


def read(data: bytes) -> tuple[list[Document], list[PlatformCertificates]]:
    """Everything, with the first failure raised."""
    found = PlatformCollateral(data)
    documents = filter(None, (item() for _, item in found.documents()))
    return list(documents), [item() for _, item in found.platforms()]


def written(collaterals: dict[str, Any], platforms: list[Any] | None = None, **layout: Any) -> bytes:
    return json.dumps({"platforms": platforms or [], "collaterals": collaterals}, **layout).encode()


@pytest.mark.parametrize("layout", [{}, {"indent": 4}, {"separators": (",", ":")}])
def test_gives_the_bytes_that_were_signed_whatever_the_layout(layout: dict[str, Any]) -> None:
    tcb_infos = [{"fmspc": FMSPC.hex(), "sgx_tcbinfo": json.loads(TCB), "tdx_tcbinfo_early": json.loads(TDX)}]
    chains = CERTIFICATES | {"TCB-Info-Issuer-Chain": quote(CHAIN)}
    documents, _ = read(written({"certificates": chains, "tcbinfos": tcb_infos}, **layout))

    assert [(document.key, document.body, document.issuer_chain) for document in documents] == [
        (DocumentKey.tcb_info("sgx", FMSPC), TCB, CHAIN),
        (DocumentKey.tcb_info("tdx", FMSPC, "early"), TDX, CHAIN),
    ]


def test_reads_version_3_too_and_identities_as_text_or_object() -> None:
    chains = CERTIFICATES | {"SGX-TCB-Info-Issuer-Chain": quote(CHAIN)}
    collaterals = {
        "certificates": chains,
        "tcbinfos": [{"fmspc": FMSPC.hex(), "tcbinfo": json.loads(TCB)}],
        "qeidentity": IDENTITY.decode(),
        "qeidentity_early": json.loads(IDENTITY),
        "tdqeidentity": "",
    }
    found = {document.key: document.body for document in read(written(collaterals))[0]}

    assert found == {
        DocumentKey.tcb_info("sgx", FMSPC): TCB,
        DocumentKey.qe_identity("sgx"): IDENTITY,
        DocumentKey.qe_identity("sgx", "early"): IDENTITY,
    }


def test_reads_crls_and_platforms_and_leaves_out_what_intel_did_not_have() -> None:
    raw = {"cpu_svn": "01" * 16, "pce_svn": "0d00", "enc_ppid": "", "platform_manifest": None}
    platform = {"qe_id": "AB" * 16, "pce_id": "0000"}
    certs = [
        {"tcbm": "0b" * 18, "cert": quote(pki.pem(pki.PCK_CERTIFICATE))},
        {"tcbm": "00" * 18, "cert": "Not available"},
    ]
    collaterals = {
        "certificates": CERTIFICATES,
        "pck_certs": [{"qe_id": "ab" * 16, "pce_id": "0000", "certs": certs}],
        "pckcacrl": {"platformCrl": pki.crl(pki.PLATFORM_NAME, pki.PLATFORM_CA).hex()},
        "rootcacrl": pki.crl().hex(),
    }
    documents, platforms = read(written(collaterals, [platform | raw]))

    assert [document.key for document in documents] == [
        DocumentKey.pck_crl("platform"),
        DocumentKey.root_ca_crl(),
    ]
    (entry,) = platforms
    assert (entry.qe_id, entry.requests[0].pce_svn) == (b"\xab" * 16, 13)
    assert [answer.tcbm for answer in entry.certificates] == [b"\x0b" * 18]
    assert entry.certificates[0].issuer_chain == pki.pem(pki.PLATFORM_CERTIFICATE, pki.ROOT_CERTIFICATE)


@pytest.mark.parametrize(
    "collaterals",
    [
        {},
        {"certificates": []},
        {"certificates": CERTIFICATES, "tcbinfos": [{"sgx_tcbinfo": {"a": 1}}]},
        {"certificates": CERTIFICATES, "tcbinfos": [{"fmspc": "00"}, {"fmspc": "0", "tcbinfo": {"a": 1}}]},
        {"certificates": CERTIFICATES, "tcbinfos": [{"fmspc": "00", "tcbinfo": {"a": 1}}]},
        {"certificates": CERTIFICATES, "rootcacrl": "3082"},
        {"certificates": CERTIFICATES, "pck_certs": [{"qe_id": "z", "pce_id": "", "certs": []}]},
        {
            "certificates": CERTIFICATES,
            "pck_certs": [{"qe_id": "", "pce_id": "", "certs": [{"tcbm": "", "cert": "%00"}]}],
        },
    ],
)
def test_nonsense_is_a_format_error(collaterals: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        read(written(collaterals))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_names = st.sampled_from(
    ["certificates", "tcbinfos", "pck_certs", "pckcacrl", "rootcacrl", "qeidentity", "tdqeidentity_early"]
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_names, _json, max_size=4), st.lists(_json, max_size=2))
def test_no_json_gets_out_as_anything_else(collaterals: dict[str, Any], platforms: list[Any]) -> None:
    try:
        documents, found = read(written({"certificates": {}} | collaterals, platforms))
    except FormatError:
        return
    assert not documents or collaterals
    assert not found or collaterals["pck_certs"]


def test_what_is_wrong_with_one_says_nothing_about_the_others() -> None:
    good = {
        "qe_id": "ab" * 16,
        "pce_id": "0000",
        "certs": [{"tcbm": "0b" * 18, "cert": quote(pki.pem(pki.PCK_CERTIFICATE))}],
    }
    bad = [
        {**good, "qe_id": "cd" * 16, "certs": [{"tcbm": "0b" * 18, "cert": "nonsense"}]},
        {"qe_id": 5},
        {**good, "qe_id": "xy"},
        {**good, "qe_id": "ef" * 16, "padding": "x" * MAX_PLATFORM},
        {**good, "qe_id": "12" * 16},
    ]
    asked = [{"qe_id": "12" * 16, "pce_id": "0000", "cpu_svn": f"{svn:032x}", "pce_svn": "0b00"} for svn in range(150)]
    collaterals = {"certificates": CERTIFICATES, "pck_certs": [bad[0], good, *bad[1:], good], "rootcacrl": "00"}
    found = PlatformCollateral(written(collaterals, asked))
    names, outcomes = [], []
    for name, item in found.platforms():
        names.append(name)
        try:
            outcomes.append(item().qe_id.hex())
        except FormatError:
            outcomes.append("")

    assert names == ["cd" * 16, "ab" * 16, "pck_certs[2]", "xy", "pck_certs[4]", "12" * 16, "ab" * 16]
    assert outcomes == ["", "ab" * 16, "", "", "", "", "ab" * 16]
    with pytest.raises(FormatError):
        read(written(collaterals))


def test_revocation_lists_of_another_form_say_nothing_about_other_documents() -> None:
    for wrong, refused in (
        ({"pckcacrl": []}, 2),
        ({"rootcacrl": 5}, 1),
        ({"pckcacrl": {"platformCrl": "00"}}, 1),
        ({"pckcacrl": {"platformCrl": 5}}, 1),
    ):
        chains = CERTIFICATES | {"TCB-Info-Issuer-Chain": quote(CHAIN)}
        collaterals = {"certificates": chains, "qeidentity": IDENTITY.decode(), "rootcacrl": pki.crl().hex()} | wrong
        found: list[object] = []
        for name, item in PlatformCollateral(written(collaterals)).documents():
            try:
                found.append(item() and name)
            except FormatError:
                found.append(FormatError)
        assert found.count(FormatError) == refused, wrong
        assert "qeidentity" in found
        assert ("rootcacrl" in found) == ("rootcacrl" not in wrong)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"collaterals":{"certificates":{}}} {}',
        b'{"collaterals":{"certificates":{},"certificates":{}}}',
        b'{"platforms":[{"qe_id":1}],"collaterals":{"certificates":{}}}',
        b'{"platforms":[',
    ],
)
def test_json_of_another_structure_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(FormatError):
        PlatformCollateral(data)


def test_the_parts_may_come_in_any_order(tmp_path: Path) -> None:
    text = written({"pck_certs": [], "rootcacrl": pki.crl().hex(), "certificates": CERTIFICATES})
    mixed = b'{"collaterals":' + json.dumps(json.loads(text)["collaterals"]).encode() + b',"platforms":[]}'
    path = tmp_path / "body"
    path.write_bytes(mixed)
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
        (document,) = filter(None, [item() for _, item in PlatformCollateral(mapped).documents()])
    assert document.key == DocumentKey.root_ca_crl()
