"""Revocation lists in every encoding, and what makes one worthless."""

from __future__ import annotations

from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

import pki_builder as intel
from confcom.errors import FormatError, MismatchError, SignatureError
from confcom.formats import der
from confcom.pki.certificate import MAX_CRL, Crl, load_certificate

DER = intel.crl(revoked=(3, 0xFFEE))
PEM = x509.load_der_x509_crl(DER).public_bytes(Encoding.PEM)
ROOT = load_certificate(intel.ROOT_CERTIFICATE.build(), structure="root", field="")


AKI = (x509.AuthorityKeyIdentifier(bytes(20), None, None), False)
STRANGER = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
DISTRIBUTION_POINT = x509.IssuingDistributionPoint(
    full_name=[x509.UniformResourceIdentifier("https://example.test/crl")],
    relative_name=None,
    only_contains_user_certs=False,
    only_contains_ca_certs=False,
    only_some_reasons=None,
    indirect_crl=False,
    only_contains_attribute_certs=False,
)


def _crl(*extensions: tuple[x509.ExtensionType, bool], number: bool = False) -> bytes:
    """A list of the root with a CRL number, critical if so said, and these extensions."""
    builder = x509.CertificateRevocationListBuilder(intel.name(intel.ROOT_NAME), intel.ISSUE, intel.NEXT)
    for value, critical in ((x509.CRLNumber(7), number), *extensions):
        builder = builder.add_extension(value, critical)
    return builder.sign(intel.ROOT, hashes.SHA256()).public_bytes(Encoding.DER)


def _numbered(number: bytes) -> bytes:
    """A list with any INTEGER as its number, as the content of the DER."""
    value = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.20"), der.write(der.INTEGER, number))
    builder = x509.CertificateRevocationListBuilder(intel.name(intel.ROOT_NAME), intel.ISSUE, intel.NEXT)
    builder = builder.add_extension(AKI[0], critical=False).add_extension(value, critical=False)
    return builder.sign(intel.ROOT, hashes.SHA256()).public_bytes(Encoding.DER)


def test_a_number_has_up_to_20_bytes() -> None:
    assert Crl.parse(_numbered(b"\0" + b"\xff" * 20)).number == (1 << 160) - 1


@pytest.mark.parametrize(("size", "taken"), [(16_000, True), (17_000, False)])
def test_names_that_no_certificate_can_have_are_not_read(size: int, taken: bool) -> None:
    """Names are remembered: forty lists of strangers with names of 7 MB kept a gigabyte."""
    long = x509.NameAttribute(x509.ObjectIdentifier("1.2.3"), "x" * size)
    builder = x509.CertificateRevocationListBuilder(x509.Name([long]), intel.ISSUE, intel.NEXT)
    for value in (x509.CRLNumber(7), AKI[0]):
        builder = builder.add_extension(value, critical=False)
    data = builder.sign(intel.ROOT, hashes.SHA256()).public_bytes(Encoding.DER)
    if taken:
        assert Crl.parse(data).issuer_text == "1.2.3=" + "x" * size
        return
    with pytest.raises(FormatError, match="longer name than any certificate"):
        Crl.parse(data)


@pytest.mark.parametrize(
    "extensions", [[AKI], [(AKI[0], True)], [AKI, (STRANGER, False)]], ids=["plain", "critical", "unknown"]
)
def test_what_the_reference_verifiers_take_is_taken(extensions: list[tuple[x509.ExtensionType, bool]]) -> None:
    assert Crl.parse(_crl(*extensions, number=True)).number == 7


@pytest.mark.parametrize(
    "data",
    [
        DER,
        DER + b"\0",
        PEM,
        PEM + b"\0",
        PEM + b" \n",
        PEM.replace(b"\n", b"\r\n"),
        b"Certificate Revocation List (CRL):\n    Version 2 (0x1)\n" + PEM,
        DER.hex().encode(),
        DER.hex().encode() + b"\0",
        DER.hex().upper().encode() + b"\n\0",
        b"\n".join(DER.hex().encode()[start : start + 64] for start in range(0, 2 * len(DER), 64)),
    ],
)
def test_every_encoding_gives_the_same_list(data: bytes) -> None:
    crl = Crl.parse(data)
    assert crl == Crl.parse(DER)
    assert bytes(crl) == DER
    assert (crl.number, crl.this_update, crl.next_update) == (7, intel.ISSUE, intel.NEXT)
    assert crl.issuer == intel.name(intel.ROOT_NAME).public_bytes()


def test_a_listed_serial_is_revoked() -> None:
    crl = Crl.parse(DER)
    assert [crl.revoked(serial) for serial in (3, 0xFFEE, 4, 0)] == [True, True, False, False]


@pytest.mark.parametrize("listed", [(), (3, 0xFFEE)])
@pytest.mark.parametrize("change", [lambda byte: byte ^ 1, lambda byte: byte ^ 0x80, lambda byte: (byte + 2) & 0xFF])
def test_every_byte_changed_a_list_is_what_the_library_reads(listed: tuple[int, ...], change) -> None:
    """Lists without entries are read without `cryptography`: it must read what is taken, to the same values."""
    whole, taken = intel.crl(revoked=listed), 0
    for offset in range(len(whole)):
        changed = bytearray(whole)
        changed[offset] = change(changed[offset])
        try:
            ours = Crl.parse(bytes(changed))
        except FormatError:
            continue
        full = x509.load_der_x509_crl(ours.der)
        number = full.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        assert (ours.this_update, ours.next_update) == (full.last_update_utc, full.next_update_utc), offset
        assert (ours.number, ours.issuer) == (number, full.issuer.public_bytes()), offset
        assert (ours.signature, ours.signed_digest) == (full.signature, sha256(full.tbs_certlist_bytes).digest())
        # No certificate has a negative number.
        serials = {entry.serial_number for entry in full if entry.serial_number >= 0}
        assert {one for one in {*listed, *serials} if ours.revoked(one)} == serials, offset
        taken += 1
    # Names, times, number, key identifier, entries and signature.
    assert taken > 90


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", ""),
        (b"\0", ""),
        (DER[:-1], ""),
        (DER + b"\0\0", ""),
        (DER + b"\n", ""),
        (DER.hex().encode() + b"\0\0", ""),
        (PEM + PEM, ""),
        (PEM + b"\0" + PEM, ""),
        (DER.hex().encode()[:-1], ""),
        (PEM[:100], ""),
        (intel.pem(intel.ROOT_CERTIFICATE), ""),
        (intel.ROOT_CERTIFICATE.build(), ""),
        (bytes(MAX_CRL + 1), ""),
        (intel.crl(number=None), "cRLNumber"),
        (_numbered(b"\x7f" + bytes(4000)), "cRLNumber"),
        (_numbered(b"\x01" + bytes(20)), "cRLNumber"),
        (_numbered(b"\xff"), "cRLNumber"),
        (intel.crl(critical=True), "2.5.29.27"),
        (_crl(AKI, (x509.DeltaCRLIndicator(1), False)), "2.5.29.27"),
        (_crl(AKI, (DISTRIBUTION_POINT, True)), "2.5.29.28"),
        (_crl(AKI, (DISTRIBUTION_POINT, False)), "2.5.29.28"),
        (_crl(AKI, (STRANGER, True)), "1.2.3.4"),
        (_crl(), "authorityKeyIdentifier"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        Crl.parse(data, structure="root CA CRL")
    assert (caught.value.structure, caught.value.field) == ("root CA CRL", field)


def test_its_issuer_vouches_for_it() -> None:
    Crl.parse(DER).verify_signature(ROOT, step="(2)", what="the root CA CRL")


def test_a_list_of_another_ca_is_a_mismatch() -> None:
    with pytest.raises(MismatchError) as caught:
        Crl.parse(intel.crl(intel.PLATFORM_NAME, intel.PLATFORM_CA)).verify_signature(ROOT, step="(2)", what="the CRL")
    assert intel.ROOT_NAME in caught.value.expected
    assert intel.PLATFORM_NAME in caught.value.found


def test_a_list_in_the_name_of_the_ca_by_another_key_is_forged() -> None:
    with pytest.raises(SignatureError) as caught:
        Crl.parse(intel.crl(signer=intel.STRANGER)).verify_signature(ROOT, step="(2)", what="the CRL")
    assert caught.value.step == "(2)"


def test_a_changed_list_is_forged() -> None:
    unlisted = DER.replace(b"\x02\x01\x03\x17", b"\x02\x01\x05\x17")
    assert unlisted != DER
    crl = Crl.parse(unlisted)
    assert not crl.revoked(3)
    with pytest.raises(SignatureError):
        crl.verify_signature(ROOT, step="(2)", what="the CRL")


def _with_entry(serial: int, extension: x509.ExtensionType, *, critical: bool) -> Crl:
    entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(intel.ISSUE)
    builder = x509.CertificateRevocationListBuilder(intel.name(intel.ROOT_NAME), intel.ISSUE, intel.NEXT)
    builder = builder.add_extension(x509.CRLNumber(7), critical=False).add_extension(*AKI)
    builder = builder.add_revoked_certificate(entry.add_extension(extension, critical).build())
    return Crl.parse(builder.sign(intel.ROOT, hashes.SHA256()).public_bytes(Encoding.DER))


def test_a_list_with_a_critical_extension_in_an_entry_says_nothing() -> None:
    """RFC 5280, section 5.3: it must not be used to determine the status of any certificate."""
    usual = _with_entry(0x0101FF, STRANGER, critical=False)
    usual.verify_signature(ROOT, step="(2)", what="the CRL")
    assert usual.revoked(0x0101FF)
    with pytest.raises(FormatError, match=r"the CRL\.revokedCertificates: has an entry with a critical extension"):
        _with_entry(3, STRANGER, critical=True).verify_signature(ROOT, step="(2)", what="the CRL")


def test_an_entry_that_cannot_be_read_makes_no_traceback() -> None:
    reason = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.21"), b"\x05\x00")
    with pytest.raises(FormatError, match=r"the CRL\.revokedCertificates: cannot be read"):
        _with_entry(3, reason, critical=True).verify_signature(ROOT, step="(2)", what="the CRL")


def test_a_signature_with_unused_bits_is_malformed() -> None:
    der = next(der for der in (intel.crl(number=number) for number in range(1, 50)) if der[-1] % 2 == 0)
    size = len(x509.load_der_x509_crl(der).signature)
    with pytest.raises(FormatError, match="whole bytes"):
        Crl.parse(der[: -size - 1] + b"\x01" + der[-size:])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "CRL: not a revocation list: the bytes end before the DER does: they are cut off, or no DER"),
        (DER[:-1], "CRL: not a revocation list: the bytes end before the DER does: they are cut off, or no DER"),
        (b"\x30\x03\x02\x01\x01", "CRL: not a revocation list: the bytes are not its DER"),
        (b"\x02\x01\x01", "CRL: not a revocation list: the bytes are not its DER"),
    ],
)
def test_what_is_wrong_with_the_der_is_a_sentence(data: bytes, said: str) -> None:
    with pytest.raises(FormatError) as error:
        Crl.parse(data)
    assert str(error.value) == said
