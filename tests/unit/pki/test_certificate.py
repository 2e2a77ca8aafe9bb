"""One certificate: readable in all its parts, on P-256, signed with ECDSA and SHA-256."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

import pki_builder as intel
from confcom.errors import CertificateError, FormatError
from confcom.pki.certificate import MAX_CERTIFICATE, check_p256, load_certificate
from confcom.pki.der import read_certificate


def _load(der: bytes):
    return load_certificate(der, structure="PCK chain", field="certificate 1")


def test_a_certificate_of_the_profile() -> None:
    certificate = _load(intel.PCK_CERTIFICATE.build())
    assert certificate.common_name == intel.PCK_NAME
    assert certificate.point == intel.point(intel.PCK)
    check_p256(certificate)


def test_certificates_are_equal_when_their_der_is_however_they_came() -> None:
    der = intel.PCK_CERTIFICATE.build()
    certificate, stranger = read_certificate(der), read_certificate(intel.PLATFORM_CERTIFICATE.build())
    for same in (read_certificate(der), copy.copy(certificate), copy.deepcopy(certificate),
                 pickle.loads(pickle.dumps(certificate))):  # fmt: skip
        assert (same == certificate, same != certificate, hash(same) == hash(certificate)) == (True, False, True)
    assert (stranger == certificate, stranger != certificate) == (False, True)
    assert (certificate == der, certificate != der) == (False, True)


@pytest.mark.parametrize("der", [b"", b"\x30\x00", bytes(MAX_CERTIFICATE + 1), intel.PCK_CERTIFICATE.build() + b"\0"])
def test_what_is_no_certificate_is_malformed_and_named(der: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        _load(der)
    assert (caught.value.structure, caught.value.field) == ("PCK chain", "certificate 1")


def test_another_curve_or_digest_is_refused() -> None:
    p384 = ec.derive_private_key(7, ec.SECP384R1())
    with pytest.raises(CertificateError, match="P-256"):
        check_p256(_load(replace(intel.PCK_CERTIFICATE, key=p384).build()))
    with pytest.raises(CertificateError, match="another algorithm"):
        check_p256(_load(replace(intel.PCK_CERTIFICATE, digest=hashes.SHA384()).build()))


def _with_an_unused_bit(der: bytes) -> bytes:
    """The same signature value, in a BIT STRING that claims one bit less."""
    signature = load_certificate(der, structure="", field="").signature
    head = der[: -len(signature) - 1]
    return head + b"\x01" + signature


def test_a_signature_with_unused_bits_is_malformed() -> None:
    # The count of unused bits is signed by nobody: a certificate that differs there alone would verify as well.
    evens = (replace(intel.PCK_CERTIFICATE, serial=serial).build() for serial in range(1, 50))
    der = next(der for der in evens if der[-1] % 2 == 0)
    with pytest.raises(FormatError, match="whole bytes"):
        _load(_with_an_unused_bit(der))


@pytest.mark.parametrize("data", [b"", b"junk", intel.PCK_CERTIFICATE.build()[:-1], bytes(40)])
def test_what_is_wrong_with_the_der_is_a_sentence(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"not an X\.509 certificate: the bytes (end before|are not)") as error:
        _load(data)
    assert "{" not in str(error.value)
