"""Whatever the values, they are written and read again; whatever byte changes, it is noticed."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import pki_builder as intel
from confcom.appraisal.collateral import verify_collateral
from confcom.collateral.documents import key_for
from confcom.collateral.store.store import platform_class
from confcom.errors import ConfcomError, FormatError
from confcom.formats.pck_extension import PckConfiguration, PckExtension, PckTcb, SgxType
from confcom.formats.tcb_info import SignedEnclaveIdentity, SignedTcbInfo
from confcom.pki.certificate import MAX_PEM, Crl, parse_certificates
from confcom.pki.chain import TrustRoot, TrustRoots
from confcom.protocols import pcs
from confcom.protocols.pcs_service import ServedRequest, parse_request

EXTENSION = intel.sgx_extension()
CHAIN = intel.pem(intel.SIGNING_CERTIFICATE, intel.ROOT_CERTIFICATE) + b"\0"
COLLATERAL = intel.collateral()
OWN = TrustRoots((TrustRoot.from_pem(intel.pem(intel.ROOT_CERTIFICATE)),))


def flipped(data: bytes, position: int, bit: int) -> bytes:
    position %= len(data)
    return data[:position] + bytes((data[position] ^ 1 << bit,)) + data[position + 1 :]


positions = st.integers(min_value=0, max_value=1 << 20)
bits = st.integers(min_value=0, max_value=7)
svns = st.integers(min_value=0, max_value=255)
u16 = st.integers(min_value=0, max_value=0xFFFF)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


tcbs = st.builds(PckTcb, st.tuples(*[svns] * 16), u16, exactly(16))
configurations = st.builds(PckConfiguration, st.booleans(), st.booleans(), st.none() | st.booleans())
of_processor_ca = st.builds(PckExtension, exactly(16), tcbs, exactly(2), exactly(6), st.sampled_from(SgxType))
of_platform_ca = st.builds(
    PckExtension, exactly(16), tcbs, exactly(2), exactly(6), st.sampled_from(SgxType), exactly(16), configurations
)


@given(of_processor_ca | of_platform_ca)
def test_every_extension_is_read_as_it_was_written(extension: PckExtension) -> None:
    assert PckExtension.parse(bytes(extension)) == extension


@given(positions, bits)
def test_a_changed_extension_is_malformed_or_says_something_else(position: int, bit: int) -> None:
    changed = flipped(EXTENSION, position, bit)
    try:
        found = PckExtension.parse(changed)
    except FormatError:
        return
    assert bytes(found) == changed
    assert found != PckExtension.parse(EXTENSION)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_extension_or_malformed(data: bytes) -> None:
    with pytest.raises(FormatError):
        PckExtension.parse(data)


@given(st.lists(st.binary(min_size=60, max_size=400), min_size=1, max_size=4), st.sampled_from([b"\n", b"\r\n"]))
def test_every_pem_chain_gives_its_blocks(ders: list[bytes], line_end: bytes) -> None:
    data = b""
    for der in ders:
        text = base64.b64encode(der)
        lines = [text[start : start + 64] for start in range(0, len(text), 64)]
        data += line_end.join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])
    assert parse_certificates(data, structure="chain") == tuple(ders)


@given(
    st.lists(st.binary(min_size=60, max_size=400), min_size=1, max_size=4),
    st.lists(st.sampled_from(["\n", "\r\n", " \n", "\n\n"]), min_size=9, max_size=9),
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30), min_size=5, max_size=5),
    st.integers(1, 300),
)
def test_a_pem_chain_is_the_same_however_it_is_wrapped(
    ders: list[bytes], line_ends: list[str], notes: list[str], width: int
) -> None:
    assume(not any("-----" in note for note in notes))
    text = ""
    for number, der in enumerate(ders):
        digits = base64.b64encode(der).decode()
        lines = [digits[start : start + width] for start in range(0, len(digits), width)]
        block = ["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""]
        text += "\n" + notes[number] + "\n" + line_ends[number].join(block)
    assume(len(text.encode()) <= MAX_PEM)
    assert parse_certificates(text.encode(), structure="chain") == tuple(ders)


def test_no_single_byte_of_a_pem_chain_has_another_value_but_white_space() -> None:
    original = parse_certificates(CHAIN, structure="chain")
    for position in range(len(CHAIN)):
        for value in b"\0\n\r =-Aa+/\xff":
            # At the very end, and only there, a NUL stands for nothing.
            blanks = b"\n\r \0" if position >= len(CHAIN) - 2 else b"\n\r "
            if value == CHAIN[position] or (value in blanks and CHAIN[position] in blanks):
                continue
            changed = CHAIN[:position] + bytes((value,)) + CHAIN[position + 1 :]
            try:
                assert parse_certificates(changed, structure="chain") != original, (position, value)
            except FormatError:
                continue


@given(st.binary(max_size=400))
def test_any_bytes_are_a_chain_or_malformed(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_certificates(data, structure="chain")


statuses = st.sampled_from(["UpToDate", "OutOfDate", "Revoked"])
times = st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)).map(  # noqa: DTZ001
    lambda time: time.replace(microsecond=0, tzinfo=UTC)
)


@given(
    levels=st.dictionaries(
        st.tuples(svns, u16), st.sampled_from(["UpToDate", "OutOfDate", "Revoked"]), min_size=1, max_size=8
    ),
    issue=times,
    fmspc=exactly(6),
    spaces=st.sampled_from([b"", b" ", b"\n\t "]),
)
def test_every_tcb_info_is_read_as_it_was_written(
    levels: dict[tuple[int, int], str], issue: datetime, fmspc: bytes, spaces: bytes
) -> None:
    listed = [intel.level(status, svn=svn, pce_svn=pce_svn) for (svn, pce_svn), status in levels.items()]
    content = intel.tcb_info(tcbLevels=listed, issueDate=intel.date(issue), fmspc=fmspc.hex())
    body = intel.compact(content).replace(b",", spaces + b"," + spaces)
    signed = SignedTcbInfo.parse(b'{"tcbInfo":%s,"signature":"%s"}' % (spaces + body + spaces, b"ab" * 64))
    assert signed.body == body
    assert SignedTcbInfo.parse(bytes(signed)) == signed
    found = signed.tcb_info()
    assert (found.issue_date, found.fmspc) == (issue, fmspc)
    order = [(level.sgx_components[0], level.pce_svn) for level in found.tcb_levels]
    assert order == sorted(levels, reverse=True)
    assert [level.tcb_status.value for level in found.tcb_levels] == [levels[key] for key in order]


@given(positions, bits)
def test_a_changed_byte_never_leaves_the_family_of_errors(position: int, bit: int) -> None:
    for read in (
        lambda data: SignedTcbInfo.parse(data).tcb_info(),
        lambda data: SignedEnclaveIdentity.parse(data).enclave_identity(),
    ):
        for document in (COLLATERAL.tcb_info, COLLATERAL.qe_identity):
            try:
                read(flipped(document, position, bit))
            except FormatError:
                continue


@given(st.binary(max_size=300))
def test_any_bytes_are_a_revocation_list_or_malformed(data: bytes) -> None:
    for candidate in (data, data.hex().encode(), b"-----BEGIN X509 CRL-----" + data, b"\x30" + data):
        with pytest.raises(FormatError):
            Crl.parse(candidate)


PARTS = ("tcb_info", "qe_identity", "root_ca_crl", "pck_crl", "tcb_info_issuer_chain", "pck_crl_issuer_chain")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PARTS), positions, bits)
def test_collateral_with_a_changed_byte_is_refused(part: str, position: int, bit: int) -> None:
    original: bytes = getattr(COLLATERAL, part)
    changed = replace(COLLATERAL, **{part: flipped(original, position, bit)})
    try:
        verified = verify_collateral(changed, roots=OWN)
    except ConfcomError:
        return
    # The one thing that nobody signs: the case of the digits that spell a signature.
    noise: bytes = getattr(changed, part)
    assert part in ("tcb_info", "qe_identity")
    assert noise.lower() == original.lower()
    assert verified.tcb_info == verify_collateral(COLLATERAL, roots=OWN).tcb_info


PARAMETERS = ["fmspc", "update", "tcbEvaluationDataNumber", "ca", "encoding", "uri", "api-version", "qeid", "cpusvn"]
PARAMETERS += ["pcesvn", "pceid", "encrypted_ppid", "platform"]
PATHS = ["tcb", "qe/identity", "qve/identity", "pckcrl", "rootcacrl", "crl", "pckcert", "pckcerts", "fmspcs"]
written = st.one_of(
    st.text(), st.text("0123456789abcdefABCDEF", max_size=40), st.sampled_from(["platform", "der", "17"])
)
points = st.builds("https{}api.trustedservices.intel.com/{}".format, st.sampled_from(["://", "%3a%2f%2f"]), st.text())


@given(
    st.sampled_from(PATHS),
    st.sampled_from(["sgx", "tdx"]),
    st.dictionaries(st.sampled_from(PARAMETERS), st.one_of(written, points)),
)
def test_a_request_is_read_or_refused_by_the_name_of_its_parameter(path, tee, query) -> None:
    read = request_or_field(f"/{tee}/certification/v4/{path}", query)
    if isinstance(read, str):
        assert read in {*PARAMETERS, "enclave"}
    elif read is not None and not isinstance(
        read.request, pcs.PckCertRequest | pcs.PckCertsRequest | pcs.FmspcsRequest
    ):
        key_for(read.request)


def request_or_field(path: str, query: dict[str, str]) -> ServedRequest | str | None:
    try:
        return parse_request(path, query)
    except FormatError as error:
        return error.field


@given(st.one_of(st.text(), st.builds("a.{}.b".format, st.text("ABCDEFGHabcdefgh0123456789-_", max_size=60))))
def test_a_text_is_an_appraisal_policy_or_refused(text) -> None:
    with pytest.raises(FormatError):
        platform_class(text)
