from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtensionOID, NameOID

from confcom.simulator.documents import der

DEMANDED = {
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER: False,
    ExtensionOID.CRL_DISTRIBUTION_POINTS: False,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER: False,
    ExtensionOID.KEY_USAGE: True,
    ExtensionOID.BASIC_CONSTRAINTS: True,
}


@pytest.fixture
def chain(world):
    return x509.load_pem_x509_certificates(world.authority.pck_chain(world.machine))


@pytest.fixture
def signing_chain(world):
    return x509.load_pem_x509_certificates(world.publish().tcb_info_issuer_chain)


def common_name(certificate):
    return certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind).value


def test_a_pck_chain_leads_from_the_machine_to_the_root(chain):
    assert [common_name(certificate) for certificate in chain] == [
        "confcom Simulated SGX PCK Certificate",
        "confcom Simulated SGX PCK Platform CA",
        "confcom Simulated SGX Root CA",
    ]
    leaf, ca, root = chain
    leaf.verify_directly_issued_by(ca)
    ca.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)


def test_tcb_signing_is_issued_by_the_root(signing_chain):
    assert common_name(signing_chain[0]) == "confcom Simulated SGX TCB Signing"
    signing_chain[0].verify_directly_issued_by(signing_chain[1])


def test_every_certificate_says_that_it_is_simulated(chain, signing_chain):
    for certificate in (*chain, *signing_chain):
        organization = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value
        assert organization == "confcom simulated platform"
        assert "Intel" not in certificate.subject.rfc4514_string()
        assert ".invalid/" in str(extension(certificate, x509.CRLDistributionPoints))


def test_every_certificate_has_the_extensions_that_intels_library_demands(chain, signing_chain):
    for certificate in (*chain, *signing_chain):
        found = {item.oid: item.critical for item in certificate.extensions}
        assert DEMANDED.items() <= found.items()


def test_key_identifiers_chain(chain, signing_chain):
    for issued, issuer in ((chain[0], chain[1]), (chain[1], chain[2]), (chain[2], chain[2]), signing_chain):
        authority = extension(issued, x509.AuthorityKeyIdentifier).key_identifier
        assert authority == extension(issuer, x509.SubjectKeyIdentifier).digest


def test_constraints_are_those_of_the_real_ones(chain, signing_chain):
    assert [extension(item, x509.BasicConstraints).ca for item in chain] == [False, True, True]
    assert [extension(item, x509.BasicConstraints).path_length for item in chain] == [None, 0, 1]
    for leaf in (chain[0], signing_chain[0]):
        usage = extension(leaf, x509.KeyUsage)
        assert (usage.digital_signature, usage.content_commitment, usage.key_cert_sign) == (True, True, False)
    for ca in chain[1:]:
        usage = extension(ca, x509.KeyUsage)
        assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)


def test_revocation_lists_have_number_and_authority_and_name_what_was_revoked(world, chain, now):
    ca = world.authority.pck_cas[world.machine.pck_ca]
    empty = ca.revocation_list()
    assert list(empty) == []
    world.authority.revoke_pck(world.machine)
    revoked = ca.revocation_list()
    assert revoked.is_signature_valid(chain[1].public_key())
    assert revoked.issuer == chain[1].subject
    assert extension(revoked, x509.AuthorityKeyIdentifier) == extension(chain[0], x509.AuthorityKeyIdentifier)
    assert extension(revoked, x509.CRLNumber).crl_number == extension(empty, x509.CRLNumber).crl_number + 1
    entry = revoked.get_revoked_certificate_by_serial_number(chain[0].serial_number)
    assert entry.revocation_date_utc == now
    assert extension(entry, x509.CRLReason).reason == x509.ReasonFlags.key_compromise


def test_windows_are_state(world, now):
    root = world.authority.root
    root.own.expire(now)
    root.crl.expire(now)
    assert world.authority.root_certificate().not_valid_after_utc == now - timedelta(seconds=1)
    assert root.revocation_list().next_update_utc == now - timedelta(seconds=1)


def test_equal_state_gives_equal_bytes(world):
    root = world.authority.root
    assert der(root.issue(root.own)) == der(root.issue(root.own))
    assert der(root.revocation_list()) == der(root.revocation_list())


def test_every_change_of_state_shows_in_the_next_certificate(world, now):
    root = world.authority.root
    seen = {der(root.issue(world.authority.tcb_signing))}
    changes = [
        ("common_name", "confcom Simulated SGX TCB Signing 2"),
        ("not_before", now - timedelta(days=9)),
        ("not_after", now + timedelta(days=9)),
        ("distribution_point", "https://other.invalid/"),
        ("path_length", 0),
        ("extra", (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"),)),
        ("public_key", world.authority.pck_cas[world.machine.pck_ca].own.public_key),
    ]
    for field, value in changes:
        setattr(world.authority.tcb_signing, field, value)
        seen.add(der(root.issue(world.authority.tcb_signing)))
    root.key = world.authority.pck_cas[world.machine.pck_ca].key
    forged = root.issue(world.authority.tcb_signing)
    seen.add(der(forged))
    assert len(seen) == len(changes) + 2
    with pytest.raises(InvalidSignature):
        forged.verify_directly_issued_by(root.issue(root.own))
