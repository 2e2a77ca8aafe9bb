"""Intel's SGX extension: what the certificate says about its platform, to the byte."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from cryptography import x509
from msgspec import structs

import pki_builder as intel
from confcom.errors import FormatError
from confcom.formats import pck_extension
from confcom.formats.pck_extension import MAX_PCK_EXTENSION, PCK_EXTENSION_OID, PckConfiguration, PckExtension, SgxType


def test_a_certificate_of_the_platform_ca() -> None:
    der = intel.sgx_extension()
    found = PckExtension.parse(der)
    assert found.ppid == bytes(range(16))
    assert found.tcb.sgx_components == (11, 11, 2, 2, 255, 128, 1, *bytes(9))
    assert (found.tcb.pce_svn, found.tcb.cpu_svn) == (13, bytes(found.tcb.sgx_components))
    assert (found.pce_id, found.fmspc) == (b"\x00\x00", bytes.fromhex("00606a000000"))
    assert found.sgx_type is SgxType.SCALABLE
    assert found.platform_instance_id == bytes(range(16, 32))
    assert found.configuration == PckConfiguration(dynamic_platform=True, cached_keys=False, smt_enabled=True)
    assert bytes(found) == der


def test_a_certificate_of_the_processor_ca() -> None:
    der = intel.sgx_extension(platform=False, sgx_type=0)
    found = PckExtension.parse(der)
    assert (found.sgx_type, found.platform_instance_id, found.configuration) == (SgxType.STANDARD, None, None)
    assert bytes(found) == der


def test_a_platform_may_be_silent_on_smt() -> None:
    found = PckExtension.parse(intel.sgx_extension())
    quiet = structs.replace(found, configuration=structs.replace(found.configuration, smt_enabled=None))
    assert PckExtension.parse(bytes(quiet)) == quiet


@pytest.mark.parametrize("platform", [True, False])
def test_what_is_read_by_an_earlier_extension_is_what_its_bytes_say(platform: bool) -> None:
    whole = intel.sgx_extension(platform=platform)
    first, read = PckExtension.parse(whole), 0
    for offset in range(len(whole)):
        for change in (0x01, 0x40, 0x80, 0xFF):
            changed = bytearray(whole)
            changed[offset] ^= change
            assert PckExtension.parse(whole) == first
            try:
                found = PckExtension.parse(bytes(changed))
            except FormatError:
                continue
            assert bytes(found) == bytes(changed), offset
            read += 1
    assert read > 4 * 32


def _with(suffix: str, old: bytes, new: bytes, *, as_suffix: str | None = None) -> bytes:
    """The extension with one element changed to another of the same size."""
    whole = intel.sgx_extension()
    changed = whole.replace(intel.element(suffix, old), intel.element(as_suffix or suffix, new))
    assert changed != whole
    assert len(changed) == len(whole)
    return changed


@pytest.mark.parametrize(
    ("der", "field"),
    [
        (intel.sgx_extension(pce_svn=65536), "tcb.pce_svn"),
        (intel.sgx_extension(sgx_type=3), "sgx_type"),
        (_with("5", b"\x0a\x01\x01", b"\x02\x01\x01"), "sgx_type"),
        (_with("2.3", b"\x02\x01\x02", b"\x02\x01\x02", as_suffix="2.4"), "tcb.sgx_components[2]"),
        (_with("2.3", b"\x02\x01\x02", b"\x02\x01\xff"), "tcb.sgx_components[2]"),
        (_with("2.3", b"\x02\x01\x02", b"\x04\x01\x02"), "tcb.sgx_components[2]"),
        (_with("2.5", b"\x02\x02\x00\xff", b"\x02\x02\x01\x00"), "tcb.sgx_components[4]"),
        (_with("7.1", b"\x01\x01\xff", b"\x01\x01\x01"), "configuration.dynamic_platform"),
        (_with("3", b"\x04\x02\x00\x00", b"\x04\x02\x00\x00", as_suffix="4"), "pce_id"),
        (intel.sgx_extension()[:-1], ""),
        (intel.sgx_extension() + b"\x00", ""),
        (bytes(MAX_PCK_EXTENSION + 1), ""),
        (b"", ""),
        (b"\x30\x00", "ppid"),
        (b"\x30\x84\xff\xff\xff\xff", ""),
    ],
)
def test_what_is_wrong_is_named(der: bytes, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        PckExtension.parse(der)
    assert (caught.value.structure, caught.value.field) == ("PckExtension", field)


def _members(der: bytes) -> list[bytes]:
    """The elements of a SEQUENCE, each with its tag and length."""
    found, rest = [], der[2 if der[1] < 0x80 else 2 + (der[1] & 0x7F) :]
    while rest:
        size = 2 + rest[1] if rest[1] < 0x80 else 2 + (rest[1] & 0x7F)
        size += 0 if rest[1] < 0x80 else int.from_bytes(rest[2:size], "big")
        found.append(rest[:size])
        rest = rest[size:]
    return found


def _shuffled(der: bytes, seed: int) -> bytes:
    """The extension with its elements, and those of TCB and configuration, in another order."""
    chance = Random(seed)
    outer = []
    for member in _members(der):
        oid, value = _members(member)
        if value[0] == 0x30:
            inner = _members(value)
            chance.shuffle(inner)
            value = intel.tlv(0x30, b"".join(inner))
        outer.append(intel.tlv(0x30, oid + value))
    chance.shuffle(outer)
    return intel.tlv(0x30, b"".join(outer))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("platform", [True, False])
def test_the_order_of_the_elements_says_nothing(seed: int, platform: bool) -> None:
    der = intel.sgx_extension(platform=platform)
    other = _shuffled(der, seed)
    assert other != der
    assert PckExtension.parse(other) == PckExtension.parse(der)


@pytest.mark.parametrize("extra", ["1", "5", "8"])
def test_an_element_twice_or_unknown_is_refused(extra: str) -> None:
    members = _members(intel.sgx_extension())
    with pytest.raises(FormatError, match="has 8 elements, expected 5 or 7"):
        PckExtension.parse(intel.tlv(0x30, b"".join([*members, intel.element(extra, intel.tlv(0x04, bytes(16)))])))


def test_six_elements_are_neither_ca() -> None:
    seven = PckExtension.parse(intel.sgx_extension())
    with pytest.raises(FormatError, match="5 or 7"):
        PckExtension.parse(bytes(structs.replace(seven, configuration=None)))


@pytest.mark.parametrize("data", [b"", b"junk", b"\x30\x03\x02\x01\x01", bytes(40), intel.sgx_extension()[:-1]])
def test_what_is_wrong_with_the_der_is_a_sentence(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"not the DER of an SGX extension: the bytes (end before|are not)") as error:
        PckExtension.parse(data)
    assert "{" not in str(error.value)


@pytest.mark.vectors
def test_every_real_certificate_is_written_again_to_the_same_bytes(vectors: Path) -> None:
    seen = set()
    for path in sorted((vectors / "real").glob("[st]*/pck_chain.pem")):
        leaf = x509.load_pem_x509_certificates(path.read_bytes())[0]
        value = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(PCK_EXTENSION_OID)).value.public_bytes()
        found = PckExtension.parse(value)
        assert bytes(found) == value, path
        assert found.tcb.cpu_svn == bytes(found.tcb.sgx_components), path
        seen.add(found.sgx_type)
    assert seen == set(SgxType)


def test_extensions_of_any_number_of_kinds_are_read_and_few_are_kept() -> None:
    for pce_svn in range(200):
        assert PckExtension.parse(intel.sgx_extension(pce_svn=pce_svn)).tcb.pce_svn == pce_svn
    assert len(pck_extension._MODELS) <= 64
