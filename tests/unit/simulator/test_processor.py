from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.cmac import CMAC

from confcom.formats.sgx import AttributeFlags, Attributes, TargetInfo
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.machine import PKCS1_PADDING, KeyDependencies, Processor

CPU_SVN = bytes(range(1, 17))
FLAGS = AttributeFlags.INIT | AttributeFlags.MODE64BIT


def enclave(flags=FLAGS, **fields):
    declaration = EnclaveDeclaration(
        **{"mr_enclave": b"E" * 32, "mr_signer": b"S" * 32, "isv_prod_id": 7, "isv_svn": 9} | fields,
        attributes=Attributes(int(flags), 0xE7),
    )
    return declaration.report_body(CPU_SVN, bytes(64))


@pytest.fixture
def processor(seed):
    return Processor.from_seed(seed, 0)


def test_the_dependencies_have_the_size_and_the_padding_of_the_sdm():
    assert KeyDependencies.size() == 642
    assert len(PKCS1_PADDING) == 352
    assert PKCS1_PADDING[:3] == b"\x00\x01\xff"
    assert PKCS1_PADDING[332:].hex() == "003031300d060960864801650304020105000420"


def test_a_report_key_is_the_cmac_of_the_documented_layout(processor):
    body = enclave(FLAGS | AttributeFlags.KSS, config_id=b"C" * 64, config_svn=3, misc_select=1)
    layout = b"".join(
        (
            struct.pack("<H", 3),  # KEYNAME: report
            bytes(16 + 16),  # ISVFAMILYID, ISVEXTPRODID
            struct.pack("<HH", 0, 0),  # ISVPRODID, ISVSVN
            processor.owner_epoch,
            struct.pack("<QQ", int(FLAGS | AttributeFlags.KSS), 0xE7),  # ATTRIBUTES
            bytes(16),  # ATTRIBUTESMASK
            b"E" * 32,  # MRENCLAVE
            bytes(32),  # MRSIGNER
            b"K" * 32,  # KEYID
            processor.seal_key_fuses,
            CPU_SVN,
            PKCS1_PADDING,
            struct.pack("<IIH", 1, 0, 0),  # MISCSELECT, MISCMASK, KEYPOLICY
            b"C" * 64,  # CONFIGID
            struct.pack("<H", 3),  # CONFIGSVN
        )
    )
    mac = CMAC(AES128(processor.device_key))
    mac.update(layout)
    assert processor.report_key(TargetInfo.of(body), b"K" * 32, CPU_SVN) == mac.finalize()


def sealed(processor, body, key_id=b"K" * 32, *, isv_svn=0, cpu_svn=CPU_SVN):
    return processor.seal_key(body, key_id, isv_svn=isv_svn, cpu_svn=cpu_svn)


def test_a_seal_key_is_the_cmac_of_the_documented_layout(processor):
    layout = b"".join(
        (
            struct.pack("<H", 4),  # KEYNAME: seal
            bytes(16 + 16),  # ISVFAMILYID, ISVEXTPRODID
            struct.pack("<HH", 7, 5),  # ISVPRODID, ISVSVN
            processor.owner_epoch,
            struct.pack("<QQ", int(AttributeFlags.INIT), 0),  # ATTRIBUTES under the required mask
            bytes(16),  # ATTRIBUTESMASK
            bytes(32),  # MRENCLAVE
            b"S" * 32,  # MRSIGNER
            b"K" * 32,  # KEYID
            processor.seal_key_fuses,
            CPU_SVN,
            PKCS1_PADDING,
            struct.pack("<IIH", 0, 0xFFFFFFFF, 2),  # MISCSELECT, MISCMASK, KEYPOLICY: MRSIGNER
            bytes(64),  # CONFIGID
            struct.pack("<H", 0),  # CONFIGSVN
        )
    )
    mac = CMAC(AES128(processor.device_key))
    mac.update(layout)
    assert sealed(processor, enclave(), isv_svn=5) == mac.finalize()


def test_a_seal_key_outlives_a_new_build(processor):
    assert len({sealed(processor, enclave(mr_enclave=build * 32)) for build in (b"1", b"2")}) == 1


@pytest.mark.parametrize(
    "other",
    [
        enclave(mr_signer=b"T" * 32),
        enclave(isv_prod_id=8),
        enclave(FLAGS | AttributeFlags.DEBUG),
    ],
    ids=["signer", "product", "debug"],
)
def test_a_seal_key_is_not_shared_with_another_signer_product_or_debug_enclave(processor, other):
    assert sealed(processor, other) != sealed(processor, enclave())


def test_seal_keys_depend_on_key_id_svn_cpu_and_machine(processor, seed):
    keys = {
        sealed(processor, enclave()),
        sealed(processor, enclave(), b"k" * 32),
        sealed(processor, enclave(), isv_svn=9),
        sealed(processor, enclave(), cpu_svn=bytes(16)),
        sealed(Processor.from_seed(seed, 1), enclave()),
        sealed(Processor.from_seed(b"another seed of this test", 0), enclave()),
    }
    assert len(keys) == 6


def test_a_provisioning_key_depends_on_the_tcb_and_not_on_the_owner(processor):
    key = processor.provisioning_key(enclave())
    owned = replace(processor, owner_epoch=bytes(16), seal_key_fuses=bytes(16))
    assert owned.provisioning_key(enclave()) == key
    assert processor.provisioning_key(enclave(isv_svn=8)) != key


def test_secrets_do_not_show(processor):
    assert processor.device_key.hex() not in repr(processor)
    assert str(processor.device_key) not in repr(processor)
