"""Enclave identities: the signed bytes stay as they are, masks in memory order, levels highest first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pki_builder as intel
from confcom.errors import FormatError
from confcom.formats.tcb_info import EnclaveIdentity, EnclaveIdentityId, SignedEnclaveIdentity


def _read(document: dict) -> EnclaveIdentity:
    return SignedEnclaveIdentity(intel.compact(document), bytes(64)).enclave_identity()


def test_content() -> None:
    found = _read(intel.enclave_identity(miscselect="01020304", unknownField=[]))
    assert (found.id, found.version, found.tcb_evaluation_data_number) == (EnclaveIdentityId.QE, 2, 20)
    assert (found.misc_select, found.misc_select_mask) == (b"\x01\x02\x03\x04", b"\xff" * 4)
    assert found.attributes == b"\x11" + bytes(15)
    assert found.attributes_mask == b"\xfb" + b"\xff" * 7 + bytes(8)
    assert (found.mr_signer, found.isv_prod_id) == (b"\x8c" * 32, 1)
    assert (found.issue_date, found.next_update) == (intel.ISSUE, intel.NEXT)
    assert [level.isv_svn for level in found.tcb_levels] == [8, 6]
    assert found.tcb_levels[1].advisory_ids == ("INTEL-SA-00002",)


def test_the_body_is_the_exact_bytes_between_its_braces() -> None:
    body = b'{ "b" : 1.0 ,\n "a":"\\/" }'
    found = SignedEnclaveIdentity.parse(b'{"enclaveIdentity" : %s,"signature":"%s"}' % (body, b"aB" * 64))
    assert (found.body, found.signature) == (body, b"\xab" * 64)
    assert SignedEnclaveIdentity.parse(bytes(found)) == found


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": "PCE"}, "id"),
        ({"version": 1}, "version"),
        ({"miscselect": "000000"}, "miscselect"),
        ({"attributesMask": "FF"}, "attributesMask"),
        ({"mrsigner": "8C" * 31}, "mrsigner"),
        ({"isvprodid": 65536}, "isvprodid"),
        ({"issueDate": "2026-13-01T00:00:00Z"}, "issueDate"),
        ({"tcbLevels": []}, "tcbLevels"),
        ({"tcbLevels": [intel.svn_level(8), intel.svn_level(8)]}, "tcbLevels"),
        ({"tcbLevels": [intel.svn_level(8, "Foo")]}, "tcbLevels[0].tcbStatus"),
        ({"tcbLevels": [intel.svn_level(8, "SWHardeningNeeded")]}, "tcbLevels[0].tcbStatus"),
        ({"tcbLevels": [intel.svn_level(8), intel.svn_level(6, "TDRelaunchAdvised")]}, "tcbLevels[1].tcbStatus"),
        ({"tcbLevels": [intel.svn_level(-1)]}, "tcbLevels[0].tcb.isvsvn"),
    ],
)
def test_what_is_wrong_is_named(change: dict, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        _read(intel.enclave_identity(**change))
    assert (caught.value.structure, caught.value.field) == ("EnclaveIdentity", field)


def test_a_document_of_another_kind_is_malformed() -> None:
    with pytest.raises(FormatError) as caught:
        SignedEnclaveIdentity.parse(intel.signed("tcbInfo", intel.tcb_info()))
    assert caught.value.field == "enclaveIdentity"


@pytest.mark.vectors
def test_every_identity_that_intel_signed_is_read(vectors: Path) -> None:
    for path in sorted((vectors / "real").glob("[st]*/qe_identity.json")):
        signed = SignedEnclaveIdentity.parse(path.read_bytes())
        assert SignedEnclaveIdentity.parse(bytes(signed)) == signed, path
        found, expected = signed.enclave_identity(), json.loads(signed.body)
        assert found.id.value == expected["id"], path
        assert found.attributes_mask.hex().upper() == expected["attributesMask"].upper(), path
        assert [level.isv_svn for level in found.tcb_levels] == [
            level["tcb"]["isvsvn"] for level in expected["tcbLevels"]
        ], path
