"""TCB info, version 2 and 3: the signed bytes stay as they are, and the content is what Intel wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pki_builder as intel
from confcom.errors import FormatError
from confcom.formats.tcb_info import SignedTcbInfo, TcbInfo, TcbStatus


def _read(document: dict) -> TcbInfo:
    return SignedTcbInfo(intel.compact(document), bytes(64)).tcb_info()


def test_the_body_is_the_exact_bytes_between_its_braces() -> None:
    body = b'{ "b" : 1.0 ,\n "a":"\\/" }'
    found = SignedTcbInfo.parse(b' {"signature": "%s" , "tcbInfo" : %s }\n' % (b"aB" * 64, body))
    assert found.body == body
    assert found.signature == b"\xab" * 64
    assert SignedTcbInfo.parse(bytes(found)) == found


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (b'{"signature":"%s"}' % (b"00" * 64), "tcbInfo"),
        (b'{"tcbInfo":{}}', "signature"),
        (b'{"tcbInfo":[],"signature":"%s"}' % (b"00" * 64), "tcbInfo"),
        (b'{"tcbInfo":{},"signature":"%s"}' % (b"00" * 63), "signature"),
        (b'{"tcbInfo":{},"signature":"%s"}' % (b"0g" * 64), "signature"),
        (b'{"tcbInfo":{},"signature":7}', "signature"),
    ],
)
def test_a_document_without_body_or_signature_is_malformed(document: bytes, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        SignedTcbInfo.parse(document)
    assert caught.value.field == field


def test_sgx_of_version_3() -> None:
    found = _read(intel.tcb_info(unknownField={"is": "tolerated"}))
    assert (found.id, found.version, found.tcb_type, found.tcb_evaluation_data_number) == ("SGX", 3, 0, 20)
    assert (found.fmspc, found.pce_id) == (bytes.fromhex("00606A000000"), b"\x00\x00")
    assert (found.issue_date, found.next_update) == (intel.ISSUE, intel.NEXT)
    assert found.tdx_module is None
    assert found.tdx_module_identities == ()
    assert [level.tcb_status for level in found.tcb_levels] == [TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE]


def test_hexadecimal_digits_may_have_either_case() -> None:
    assert _read(intel.tcb_info(fmspc="00a067110000")) == _read(intel.tcb_info(fmspc="00A067110000"))


def test_tdx_of_version_3() -> None:
    found = _read(intel.tdx_tcb_info())
    assert found.tdx_module is not None
    assert found.tdx_module.attributes_mask == b"\xff" * 8
    (identity,) = found.tdx_module_identities
    assert (identity.id, [level.isv_svn for level in identity.tcb_levels]) == ("TDX_01", [11, 2])
    assert found.tcb_levels[0].tdx_components == (5, *bytes(15))
    assert found.tcb_levels[0].tdx_component_details[0].type == "TDX Module"


def _without(document: dict, field: str) -> dict:
    return {key: value for key, value in document.items() if key != field}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (_without(intel.tdx_tcb_info(), "tdxModule"), "tdxModule"),
        (intel.tcb_info(tdxModule=intel.tdx_tcb_info()["tdxModule"]), "tdxModule"),
        (intel.tcb_info(tdxModuleIdentities=[]), "tdxModuleIdentities"),
        (
            intel.tdx_tcb_info(tdxModuleIdentities=intel.tdx_tcb_info()["tdxModuleIdentities"] * 2),
            "tdxModuleIdentities",
        ),
        (intel.tcb_info(version=4), "version"),
        (intel.tcb_info(version="3"), "version"),
        (_without(intel.tcb_info(), "version"), "version"),
        (_without(intel.tcb_info(), "id"), "id"),
        (intel.tcb_info(id="SEV"), "id"),
        (intel.tcb_info(fmspc="00606A00000"), "fmspc"),
        (intel.tcb_info(pceId="000000"), "pceId"),
        (intel.tcb_info(tcbType=1), "tcbType"),
        (intel.tcb_info(tcbEvaluationDataNumber=-1), "tcbEvaluationDataNumber"),
        (intel.tcb_info(issueDate="2026-03-01"), "issueDate"),
        (intel.tcb_info(nextUpdate="2026-02-30T00:00:00Z"), "nextUpdate"),
        (intel.tcb_info(tcbLevels=[]), "tcbLevels"),
        (intel.tcb_info(tcbLevels=[intel.level(svn=256)]), "tcbLevels[0].tcb.sgxtcbcomponents[0].svn"),
        (intel.tcb_info(tcbLevels=[intel.level(pce_svn=65536)]), "tcbLevels[0].tcb.pcesvn"),
        (intel.tcb_info(tcbLevels=[intel.level(), intel.level()]), "tcbLevels"),
    ],
)
def test_what_is_wrong_is_named(document: dict, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        _read(document)
    assert (caught.value.structure, caught.value.field) == ("TcbInfo", field)


def test_module_ids_that_differ_in_case_alone_are_one_id() -> None:
    identity = intel.tdx_tcb_info()["tdxModuleIdentities"][0]
    with pytest.raises(FormatError, match="one id twice"):
        _read(intel.tdx_tcb_info(tdxModuleIdentities=[identity, identity | {"id": "tdx_01"}]))


@pytest.mark.vectors
def test_every_tcb_info_that_intel_signed_is_read(vectors: Path) -> None:
    for path in sorted((vectors / "real").glob("[st]*/tcb_info.json")):
        signed = SignedTcbInfo.parse(path.read_bytes())
        assert SignedTcbInfo.parse(bytes(signed)) == signed, path
        found, expected = signed.tcb_info(), json.loads(signed.body)
        assert found.version == expected["version"], path
        assert found.fmspc.hex() == expected["fmspc"].lower(), path
        assert len(found.tcb_levels) == len(expected["tcbLevels"]), path
        # Intel writes them highest first already.
        statuses = [level["tcbStatus"] for level in expected["tcbLevels"]]
        assert [level.tcb_status.value for level in found.tcb_levels] == statuses, path
