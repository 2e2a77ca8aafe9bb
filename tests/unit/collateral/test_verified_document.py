"""One document at a time: authentic or refused, and held to what was asked."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from confcom.collateral.documents import (
    Document,
    DocumentKey,
    DocumentKind,
    VerifiedDocument,
    check_answer,
    keys_for,
    read_document,
    take_apart,
    verify_document,
)
from confcom.errors import (
    CollateralNotFound,
    FormatError,
    MismatchError,
    SignatureError,
    UntrustedRootError,
    VerificationError,
)
from confcom.pki.chain import TrustRoots
from confcom.simulator.world import SimulatedWorld


@pytest.fixture
def documents(world) -> tuple[Document, ...]:
    return take_apart(world.publish(), fmspc=world.machine.fmspc, ca="platform", tee="sgx")


@pytest.fixture
def stranger(now) -> SimulatedWorld:
    return SimulatedWorld.from_seed(b"another world's seed", now=now)


def test_genuine_documents_are_verified_with_their_dates(world, documents, now):
    verified = [verify_document(document, roots=world.trust_roots) for document in documents]
    assert [document.facts.number for document in verified] == [17, 17, 1, 1]
    month = [now - timedelta(days=1) + timedelta(days=30)] * 3
    assert [document.expires for document in verified] == [*month, now + timedelta(days=364)]
    assert {document.root for document in verified} == set(world.trust_roots.roots)
    assert [document.facts for document in verified] == [read_document(document) for document in documents]


def test_a_certificate_that_ends_first_ends_the_document(world, documents, now):
    world.authority.tcb_signing.not_after = now + timedelta(days=3)
    parts = take_apart(world.publish(), fmspc=world.machine.fmspc, ca="platform", tee="sgx")
    verified = verify_document(parts[0], roots=world.trust_roots)
    assert verified.expires == now + timedelta(days=3)
    assert verified.facts.next_update > verified.expires


@pytest.mark.parametrize("index", range(4))
def test_nothing_of_another_root_is_accepted(world, stranger, documents, index):
    # Two simulated roots have one name, so for the root's own list it is the signature that tells them apart.
    with pytest.raises(SignatureError if index == 3 else UntrustedRootError):
        verify_document(documents[index], roots=stranger.trust_roots)
    with pytest.raises(UntrustedRootError):
        verify_document(documents[index], roots=TrustRoots.intel())
    both = TrustRoots((*stranger.trust_roots.roots, *world.trust_roots.roots))
    with_both = verify_document(documents[index], roots=both)
    assert with_both.root == world.trust_roots.roots[0]


@pytest.mark.parametrize("index", range(4))
def test_no_byte_of_a_body_can_change(world, documents, index):
    body = documents[index].body
    for offset in range(0, len(body), max(1, len(body) // 60)):
        changed = body[:offset] + bytes([body[offset] ^ 1]) + body[offset + 1 :]
        with pytest.raises((FormatError, VerificationError)):
            verify_document(replace(documents[index], body=changed), roots=world.trust_roots)


def test_the_chain_of_another_document_is_refused(world, documents):
    tcb_info, _, pck_crl, _ = documents
    with pytest.raises((VerificationError, SignatureError)):
        verify_document(replace(tcb_info, issuer_chain=pck_crl.issuer_chain), roots=world.trust_roots)
    with pytest.raises(VerificationError):
        verify_document(replace(pck_crl, issuer_chain=tcb_info.issuer_chain), roots=world.trust_roots)
    with pytest.raises(FormatError):
        verify_document(replace(tcb_info, issuer_chain=b""), roots=world.trust_roots)


@pytest.mark.parametrize(
    ("index", "key"),
    [
        (0, DocumentKey.tcb_info("sgx", b"\x01" * 6)),
        (0, DocumentKey.tcb_info("sgx", b"\x00\x00SIM\x00", 18)),
        (1, DocumentKey.qe_identity("tdx")),
        (1, DocumentKey.qe_identity("sgx", 16)),
        (2, DocumentKey.pck_crl("processor")),
    ],
)
def test_a_document_is_what_its_key_says(world, documents, index, key):
    document = replace(documents[index], key=key)
    with pytest.raises(MismatchError):
        verify_document(document, roots=world.trust_roots)
    if key.ca is None:
        with pytest.raises(CollateralNotFound, match="the shelf was asked for"):
            check_answer(document, source="the shelf")


def test_a_pinned_number_is_checked_and_right(world):
    keys = keys_for(world.machine.fmspc, "platform", "sgx", 17)
    parts = take_apart(world.publish(), fmspc=world.machine.fmspc, ca="platform", tee="sgx", update=17)
    for key, part in zip(keys, parts, strict=True):
        assert verify_document(part, roots=world.trust_roots).document.key == key


def test_only_verification_makes_a_verified_document(documents, world):
    verified = verify_document(documents[0], roots=world.trust_roots)
    with pytest.raises(TypeError):
        VerifiedDocument(documents[0], verified.facts, verified.root, verified.expires)


def test_the_list_of_the_other_kind_of_quotes_is_refused(world):
    keys = [DocumentKey(DocumentKind.TCB_EVALUATION_DATA_NUMBERS, tee=tee) for tee in ("sgx", "tdx")]
    for asked, other in (keys, keys[::-1]):
        given = world.pcs.fetch_document(asked)
        assert verify_document(given, roots=world.trust_roots).facts.number
        with pytest.raises(CollateralNotFound, match=f"has id {(asked.tee or '').upper()}"):
            check_answer(replace(given, key=other), source="there")
        with pytest.raises(MismatchError):
            verify_document(replace(given, key=other), roots=world.trust_roots)
