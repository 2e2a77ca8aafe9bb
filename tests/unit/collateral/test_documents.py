"""Keys and documents: one name for each piece, and the pieces make up a collateral again."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from confcom.collateral.documents import (
    Document,
    DocumentKey,
    DocumentKind,
    assemble,
    document_from_answer,
    key_for,
    keys_for,
    request_for,
    take_apart,
)
from confcom.errors import CollateralNotFound, ConfigError, FormatError
from confcom.protocols import pcs

FMSPC = bytes.fromhex("00906ed50000")
KEYS = [
    DocumentKey.tcb_info("sgx", FMSPC),
    DocumentKey.tcb_info("tdx", FMSPC, 0),
    DocumentKey.qe_identity("tdx", "early"),
    DocumentKey.pck_crl("processor"),
    DocumentKey.root_ca_crl(),
    DocumentKey(DocumentKind.QVE_IDENTITY, update="standard"),
    DocumentKey(DocumentKind.QAE_IDENTITY, update=19),
    DocumentKey(DocumentKind.TCB_EVALUATION_DATA_NUMBERS, tee="tdx"),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_key_and_its_request_are_the_same_question(key):
    assert key_for(request_for(key)) == key
    assert str(key)


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("https://certificates.trustedservices.intel.com/IntelSGXRootCA.der", DocumentKey.root_ca_crl()),
        ("https://api.x/sgx/certification/v3/pckcrl?ca=processor", DocumentKey.pck_crl("processor")),
        ("https://api.x/sgx/certification/v4/pckcrl?ca=platform&encoding=der", DocumentKey.pck_crl("platform")),
        ("https://certificates.trustedservices.intel.com/intelsgxrootca.crl", DocumentKey.root_ca_crl()),
        ("https://certificates.trustedservices.intel.com/intelsgxpckprocessor.crl", DocumentKey.pck_crl("processor")),
        ("https://certificates.trustedservices.intel.com/IntelSGXPCKPlatform.crl", DocumentKey.pck_crl("platform")),
        ("https://simulated.confcom.invalid/rootcacrl", DocumentKey.root_ca_crl()),
        ("https://example.com/other.crl", None),
        ("https://api.x/sgx/certification/v4/pckcrl", None),
        ("https://api.x/sgx/certification/v4/pckcrl?ca=other", None),
        ("https://api.x/other?pckcrl&ca=platform&IntelSGXRootCA", None),
        ("https://[x/pckcrl?ca=platform", None),
    ],
)
def test_intels_distribution_points_are_known(uri, key):
    assert key_for(pcs.CrlRequest(uri)) == key


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": DocumentKind.TCB_INFO, "tee": "sgx", "update": "standard"},
        {"kind": DocumentKind.TCB_INFO, "tee": "sgx", "fmspc": FMSPC},
        {"kind": DocumentKind.TCB_INFO, "tee": "sgx", "fmspc": FMSPC[:5], "update": "standard"},
        {"kind": DocumentKind.TCB_INFO, "tee": "sgx", "fmspc": FMSPC, "update": -1},
        {"kind": DocumentKind.TCB_INFO, "tee": "sgx", "fmspc": FMSPC, "update": 1 << 32},
        {"kind": DocumentKind.PCK_CRL},
        {"kind": DocumentKind.PCK_CRL, "ca": "platform", "update": "standard"},
        {"kind": DocumentKind.ROOT_CA_CRL, "ca": "platform"},
        {"kind": DocumentKind.QVE_IDENTITY, "tee": "sgx", "update": "early"},
    ],
)
def test_a_key_has_exactly_the_fields_of_its_kind(fields):
    with pytest.raises(ConfigError):
        DocumentKey(**fields)


def test_a_collateral_is_its_documents(world, now):
    collateral = world.publish()
    parts = take_apart(collateral, fmspc=world.machine.fmspc, ca="platform", tee="sgx", update="early")
    assert tuple(part.key for part in parts) == keys_for(world.machine.fmspc, "platform", "sgx", "early")
    assert assemble(parts, source=collateral.source) == collateral
    assert assemble(reversed(parts), source="other") == replace(collateral, source="other")


def test_what_is_missing_is_named(world):
    parts = take_apart(world.publish(), fmspc=world.machine.fmspc, ca="platform", tee="sgx")
    with pytest.raises(CollateralNotFound, match="the shelf has no qe-identity and no pck-crl"):
        assemble([parts[0], parts[3]], source="the shelf")


def test_a_list_is_kept_as_der_however_it_came(world):
    der = world.publish().pck_crl
    pem = b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(der) + b"-----END X509 CRL-----\n"
    key = DocumentKey.pck_crl("platform")
    for body in (der, der.hex().encode(), der.hex().upper().encode(), pem):
        assert document_from_answer(key, pcs.Answer(body, b"chain")) == Document(key, der, b"chain")
    with pytest.raises(FormatError, match="PCK CRL of the platform CA"):
        document_from_answer(key, pcs.Answer(b"0\x01", b"chain"))


def test_a_digest_tells_body_and_chain_apart():
    key = DocumentKey.root_ca_crl()
    digests = {Document(key, *parts).digest() for parts in ((b"ab", b"c"), (b"a", b"bc"), (b"abc", b""), (b"ab", b"d"))}
    assert len(digests) == 4
