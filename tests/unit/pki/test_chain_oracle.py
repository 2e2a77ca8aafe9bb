"""The reader of certificates against `cryptography`'s: no chain is accepted that only one of the two accepts.

Changed certificates are signed again, so that their structure alone decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

import pki_builder as intel
from chain_oracle import accepts
from confcom.errors import ConfcomError, FormatError
from confcom.formats import der
from confcom.pki.certificate import parse_certificates
from confcom.pki.chain import ChainKind, TrustRoot, TrustRoots, verify_chain
from confcom.pki.der import UNREADABLE, Certificate, CertificateFrame, read_certificate

OWN = TrustRoots((TrustRoot.from_pem(intel.pem(intel.ROOT_CERTIFICATE)),))
PCK, CA, ROOT = intel.PCK_CERTIFICATE.build(), intel.PLATFORM_CERTIFICATE.build(), intel.ROOT_CERTIFICATE.build()
CHAIN = (PCK, CA, ROOT)
SIGNERS = (intel.PLATFORM_CA, intel.ROOT, intel.ROOT)
ALGORITHM = bytes.fromhex("300a06082a8648ce3d040302")


def ours(ders: list[bytes] | tuple[bytes, ...], roots: TrustRoots, kind: ChainKind) -> bool:
    try:
        verify_chain(list(ders), roots=roots, kind=kind, step="test")
    except ConfcomError:
        return False
    return True


def tbs(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).tbs_certificate_bytes


def signed(content: bytes, signer: ec.EllipticCurvePrivateKey, algorithm: bytes = ALGORITHM) -> bytes:
    signature = signer.sign(content, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return intel.tlv(0x30, content + algorithm + intel.tlv(0x03, b"\0" + signature))


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("change", [lambda byte: byte ^ 1, lambda byte: byte ^ 0x80, lambda byte: (byte + 2) & 0xFF])
def test_every_byte_of_what_is_signed_changed_and_signed_again(place: int, change) -> None:
    content = tbs(CHAIN[place])
    # How the key is encoded: ours takes Intel's form alone, the library also compressed and hybrid ones.
    form = content.index(intel.point((intel.PCK, intel.PLATFORM_CA, intel.ROOT)[place]))
    accepted = 0
    for offset in range(len(content)):
        changed = bytearray(content)
        changed[offset] = change(changed[offset])
        chain = [*CHAIN]
        chain[place] = signed(bytes(changed), SIGNERS[place])
        verdict = ours(chain, OWN, "pck")
        assert verdict == accepts(chain, OWN, "pck") or (not verdict and offset == form), offset
        accepted += verdict
    # Serial numbers, dates, identifiers and the SGX extension's values are free: the comparison is of both verdicts.
    assert 0 < accepted < len(content)


@pytest.mark.parametrize("place", range(3))
def test_every_byte_changed_and_not_signed_again_is_refused(place: int) -> None:
    whole = CHAIN[place]
    for offset in range(len(whole)):
        changed = bytearray(whole)
        changed[offset] ^= 1 << offset % 8
        chain = [*CHAIN]
        chain[place] = bytes(changed)
        assert not ours(chain, OWN, "pck"), offset


# As Intel's: with a serial number that stands nowhere else in it.
FIRST = replace(intel.PCK_CERTIFICATE, serial=int.from_bytes(b"\x5a" * 10 + bytes(range(9)), "big")).build()


def _content(certificate: Certificate | None) -> list[object]:
    assert certificate is not None
    own = {"_key", "_sgx"}
    return [getattr(certificate, name) for name in certificate.__struct_fields__ if name not in own]


def _in_full(data: bytes) -> Certificate | None:
    try:
        return read_certificate(data)
    except UNREADABLE:
        return None


@pytest.mark.parametrize("change", [lambda byte: byte ^ 1, lambda byte: byte ^ 0x80, lambda byte: (byte + 2) & 0xFF])
def test_a_certificate_of_a_known_frame_is_what_the_whole_reader_finds(change) -> None:
    frame = CertificateFrame.of(read_certificate(FIRST))
    assert frame is not None
    read = 0
    for offset in range(len(FIRST)):
        changed = bytearray(FIRST)
        changed[offset] = change(changed[offset])
        found = frame.read(bytes(changed))
        if found is not None:
            read += 1
            assert _content(found) == _content(_in_full(bytes(changed))), offset
            assert found.public_key == read_certificate(bytes(changed)).public_key
    # Serial number, key identifier, dates, the SGX extension and the signature; of keys most are on no curve.
    assert read > 600


def test_another_platforms_certificate_is_read_by_its_frame_and_other_kinds_are_not() -> None:
    frame = CertificateFrame.of(read_certificate(FIRST))
    assert frame is not None
    serial = int.from_bytes(b"\x11" * 19, "big")
    other = intel.PCK_CERTIFICATE
    later = replace(other, serial=serial, key=intel.STRANGER, begin=other.begin.replace(day=2))
    for attempt in range(40):
        # Signatures take 70 to 72 bytes.
        data = replace(later, serial=serial + attempt).build()
        if (found := frame.read(data)) is not None:
            assert _content(found) == _content(read_certificate(data))
            break
    else:
        pytest.fail("no signature was of the same size")
    for stranger in (intel.PLATFORM_CERTIFICATE, replace(other, subject="Intel SGX PCK Certificat2"), other):
        assert frame.read(stranger.build()) is None
    assert CertificateFrame.of(read_certificate(CA)) is None
    assert CertificateFrame.of(read_certificate(PCK)) is None  # its serial number, 4, stands at many places


def test_a_certificate_read_by_the_frame_of_another_gets_the_verdict_of_the_library() -> None:
    assert ours([FIRST, CA, ROOT], OWN, "pck")
    content, accepted = tbs(FIRST), 0
    form = content.index(intel.point(intel.PCK))
    for offset in range(len(content)):
        changed = bytearray(content)
        changed[offset] ^= 1 << offset % 8
        chain = [signed(bytes(changed), intel.PLATFORM_CA), CA, ROOT]
        verdict = ours(chain, OWN, "pck")
        assert verdict == accepts(chain, OWN, "pck") or (not verdict and offset == form), offset
        accepted += verdict
    assert 0 < accepted < len(content)


def _tricks() -> Iterator[tuple[str, bytes]]:
    """A PCK certificate in other encodings, or with what the profile does not have; each is signed by its CA."""
    content = tbs(PCK)

    def again(changed: bytes) -> bytes:
        assert changed != content
        return signed(changed, intel.PLATFORM_CA)

    def patched(old: bytes, new: bytes, *, count: int = 1) -> bytes:
        """The content with bytes of another length in one of its innermost places; the lengths around are adapted."""
        assert content.count(old) >= 1, old.hex()
        return again(_grow(content, old, new, count))

    yield "unchanged", PCK
    yield "long form of a length", _long_length(PCK)
    yield "indefinite length", b"\x30\x80" + PCK[4:] + b"\0\0"
    yield "trailing byte", PCK + b"\0"
    yield "trailing in the outer sequence", intel.tlv(0x30, PCK[4:] + b"\x05\x00")
    yield "algorithm with NULL", signed(content, intel.PLATFORM_CA, intel.tlv(0x30, ALGORITHM[2:] + b"\x05\x00"))
    yield "other algorithm outside", signed(content, intel.PLATFORM_CA, ALGORITHM[:-1] + b"\x03")
    yield "version 1", patched(b"\xa0\x03\x02\x01\x02", b"")
    yield "version 2", patched(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01")
    yield "serial 0", patched(b"\x02\x01\x04\x30", b"\x02\x01\x00\x30")
    yield "negative serial", patched(b"\x02\x01\x04\x30", b"\x02\x01\x84\x30")
    yield "padded serial", patched(b"\x02\x01\x04\x30", b"\x02\x02\x00\x04\x30")
    yield "long serial", patched(b"\x02\x01\x04\x30", b"\x02\x16" + b"\x01" * 22 + b"\x30")
    yield "21 bytes of serial", patched(b"\x02\x01\x04\x30", b"\x02\x15" + b"\x00" + b"\xff" * 20 + b"\x30")
    yield "generalized time", patched(b"\x17\x0d260101", b"\x18\x0f20260101")
    yield "time with an offset", patched(b"260101000000Z", b"260101000000+0000")
    yield "no seconds", patched(b"260101000000Z", b"2601010000Z")
    critical = b"\x06\x03\x55\x1d\x0f\x01\x01\xff"
    yield "key usage not critical", patched(critical, critical[:5])
    yield "key usage critical FALSE", patched(critical, critical[:-1] + b"\x00")
    yield "key usage critical 1", patched(critical, critical[:-1] + b"\x01")
    yield (
        "key usage twice",
        patched(b"\x30\x0e" + critical, b"\x30\x0e" + critical + b"\x04\x04\x03\x02\x06\xc0" + b"\x30\x0e" + critical),
    )
    yield "basic constraints with FALSE", patched(b"\x04\x02\x30\x00", b"\x04\x05\x30\x03\x01\x01\x00")
    yield "path length of no CA", patched(b"\x04\x02\x30\x00", b"\x04\x05\x30\x03\x02\x01\x00")
    yield "trailing in basic constraints", patched(b"\x04\x02\x30\x00", b"\x04\x04\x30\x00\x05\x00")
    yield "empty key usage", patched(b"\x03\x02\x06\xc0", b"\x03\x01\x00")
    yield "key usage with unused bits set", patched(b"\x03\x02\x06\xc0", b"\x03\x02\x06\xff")
    for name, oid in (("client use", "2b06010505070302"), ("unknown", "2a030405")):
        extension = intel.tlv(0x30, intel.tlv(0x06, bytes.fromhex(oid)) + intel.tlv(0x04, b"\x05\x00"))
        yield f"one more extension, {name}", again(_with_extension(content, extension))
    names = {"30": "name constraints", "37": "extended usage", "17": "alternative names", "36": "policy constraints"}
    for number, name in names.items():
        for body in (b"\x05\x00", b"\x30\x00", bytes.fromhex("300a06082b06010505070302")):
            oid_ = intel.tlv(0x06, b"\x55\x1d" + bytes((int(number),)))
            yield (
                f"{name} {body.hex()}",
                again(_with_extension(content, intel.tlv(0x30, oid_ + intel.tlv(0x04, body)))),
            )
    utf8 = b"\x0c\x19Intel SGX PCK Certificate"
    if utf8 in content:
        for tag in (0x13, 0x16, 0x1E, 0x14):
            yield f"text of tag {tag:x}", patched(utf8, bytes((tag,)) + utf8[1:])
        yield "empty country", patched(b"\x13\x02US", b"\x13\x00", count=2)
        yield "bad UTF-8", patched(utf8, utf8[:-1] + b"\xff")
        yield "two common names", patched(b"\x06\x03\x55\x04\x06\x13\x02US", b"\x06\x03\x55\x04\x03\x13\x02US", count=2)
    key = intel.point(intel.PCK)
    yield "compressed key", patched(b"\x03\x42\x00" + key, b"\x03\x22\x00" + bytes((2 + (key[-1] & 1),)) + key[1:33])
    yield "key off the curve", patched(key, key[:-1] + bytes((key[-1] ^ 1,)))


def _elements(content: bytes) -> list[tuple[int, int, int]]:
    """Start, length of head and end of each element in the DER, constructed ones before their members."""
    found, todo = [], [(0, len(content))]
    while todo:
        start, end = todo.pop()
        while start < end:
            head, size = 2, content[start + 1]
            if size & 0x80:
                head, size = 2 + (size & 0x7F), int.from_bytes(content[start + 2 : start + 2 + (size & 0x7F)], "big")
            stop = start + head + size
            found.append((start, head, stop))
            if content[start] & 0x20 or content[start : start + 1] == b"\x04":
                inner = content[start + head : stop]
                if content[start] & 0x20 or _is_der(inner):
                    todo.append((start + head, stop))
            start = stop
    return found


def _is_der(data: bytes) -> bool:
    return len(data) >= 2 and data[0] in (0x30, 0x03, 0x04) and data[1] == len(data) - 2


def _grow(content: bytes, old: bytes, new: bytes, count: int) -> bytes:
    for _ in range(count):
        at = content.index(old) if count == 1 else content.rindex(old)
        around = sorted(one for one in _elements(content) if one[0] <= at and at + len(old) <= one[2])
        # Rebuilt from the innermost element out.
        around = [one for one in around if at >= one[0] + one[1] or one[0] == at]
        piece, start, stop = new, at, at + len(old)
        for begin, head, end in reversed(around):
            if begin + head > start:
                continue
            piece = content[begin + head : start] + piece + content[stop:end]
            piece, start, stop = intel.tlv(content[begin], piece), begin, end
        content = piece
    return content


def _with_extension(content: bytes, extension: bytes) -> bytes:
    outer = sorted(_elements(content))
    (tagged,) = [one for one in outer if content[one[0]] == 0xA3]
    (sequence,) = [one for one in outer if one[0] == tagged[0] + tagged[1]]
    members = content[sequence[0] + sequence[1] : sequence[2]] + extension
    whole = outer[0]
    return intel.tlv(0x30, content[whole[1] : tagged[0]] + intel.tlv(0xA3, intel.tlv(0x30, members)))


def _long_length(der: bytes) -> bytes:
    assert der[1] == 0x82
    return der[:1] + b"\x83\x00" + der[2:]


# Ours refuses these, the library takes them. None is in a certificate of Intel's.
STRICTER = {"compressed key", "name constraints 3000"}


@pytest.mark.parametrize(("name", "der"), [pytest.param(name, der, id=name) for name, der in _tricks()])
def test_tricks_of_der_get_one_verdict(name: str, der: bytes) -> None:
    chain = [der, CA, ROOT]
    verdict, other = ours(chain, OWN, "pck"), accepts(chain, OWN, "pck")
    assert verdict == other or (other and name in STRICTER), (verdict, other)


@pytest.mark.parametrize(
    "change",
    [
        {"ca": True},
        {"without": (x509.AuthorityKeyIdentifier,)},
        {"without": (x509.KeyUsage,)},
        {"critical_stranger": True},
        {"subject": "Intel SGX Root CA"},
        {"path_length": 0, "ca": True},
        {"serial": 2**159},
        {"serial": 2**160 - 1},
        {"key_usage": {"digital_signature": False}},
    ],
)
@pytest.mark.parametrize("place", range(3))
def test_certificates_against_the_profile_get_one_verdict(change: dict, place: int) -> None:
    made = [intel.PCK_CERTIFICATE, intel.PLATFORM_CERTIFICATE, intel.ROOT_CERTIFICATE]
    made[place] = replace(made[place], **change)
    ders = [one.build() for one in made]
    for chain in (ders, ders[:2], ders[::-1]):
        assert ours(chain, OWN, "pck") == accepts(chain, OWN, "pck")


@pytest.mark.parametrize("size", [1, 4, 5, 9, 20])
def test_path_lengths_get_one_verdict(size: int) -> None:
    length = intel.tlv(0x02, (1 << 8 * size - 2).to_bytes(size, "big"))
    changed = signed(_grow(tbs(CA), b"\x04\x08\x30\x06\x01\x01\xff\x02\x01\x00", _constraints(length), 1), intel.ROOT)
    verdict = ours([PCK, changed, ROOT], OWN, "pck")
    # From five bytes on ours refuses, the library from nine.
    assert verdict == (size < 5)
    assert verdict == accepts([PCK, changed, ROOT], OWN, "pck") or size == 5


def _constraints(length: bytes) -> bytes:
    return intel.tlv(0x04, intel.tlv(0x30, b"\x01\x01\xff" + length))


Node = tuple[int, "bytes | list[Node]"]
"""Tag and content, or the elements in it."""


def _tree(content: bytes) -> list[Node]:
    found: list[Node] = []
    for tag, inner, _ in der.elements(content):
        found.append((tag, _tree(inner) if tag & 0x20 or (tag == 0x04 and _is_der(inner)) else inner))
    return found


def _written(nodes: list[Node]) -> bytes:
    return b"".join(der.write(tag, inner if isinstance(inner, bytes) else _written(inner)) for tag, inner in nodes)


def _places(nodes: list[Node]) -> Iterator[tuple[list[Node], int]]:
    for index, (_, inner) in enumerate(nodes):
        yield nodes, index
        if not isinstance(inner, bytes):
            yield from _places(inner)


TREES = [_tree(tbs(one)) for one in CHAIN]
TAGS = st.sampled_from([0x01, 0x02, 0x03, 0x04, 0x06, 0x0C, 0x13, 0x17, 0x18, 0x1F, 0x30, 0x31, 0x80, 0x81, 0xA0, 0xA3])
CONTENTS = st.one_of(
    st.binary(max_size=10), st.sampled_from([b"\xff", b"\0", b"500101000000Z", b"20500101000000Z", b"20260101000000Z"])
)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2), st.data())
def test_no_other_structure_is_accepted_that_the_library_refuses(place: int, data: st.DataObject) -> None:
    nodes = deepcopy(TREES[place])
    for _ in range(data.draw(st.integers(1, 2))):
        members, index = data.draw(st.sampled_from(list(_places(nodes))))
        tag, inner = members[index]
        changed: list[list[Node]] = [[], [members[index]] * 2, [(data.draw(TAGS), inner)], [(tag, data.draw(CONTENTS))]]
        changed += [[members[index], (data.draw(TAGS), data.draw(CONTENTS))]]
        if isinstance(inner, bytes):
            changed += [[(tag, data.draw(CONTENTS) + inner)], [(tag, inner + data.draw(CONTENTS))]]
        members[index : index + 1] = data.draw(st.sampled_from(changed))
        if not nodes or isinstance(nodes[0][1], bytes):
            return
    chain = [*CHAIN]
    chain[place] = signed(_written(nodes), SIGNERS[place])
    assert not ours(chain, OWN, "pck") or accepts(chain, OWN, "pck")


@pytest.mark.vectors
def test_every_chain_of_the_vectors_gets_one_verdict(vectors: Path) -> None:
    roots, kinds, found = TrustRoots.intel(), ("pck", "tcb-signing", "ca"), 0
    for path in sorted(vectors.glob("*/*/*chain.pem")):
        try:
            ders = parse_certificates(path.read_bytes(), structure="chain")
        except FormatError:
            continue
        own = path.with_name("root_ca.pem")
        trusted = roots if not own.is_file() else TrustRoots((TrustRoot.from_pem(own.read_bytes()),))
        for kind in kinds:
            verdict = ours(ders, trusted, kind)
            assert verdict == accepts(ders, trusted, kind), (path, kind)
            found += verdict
    assert found > 300
