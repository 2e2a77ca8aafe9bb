from __future__ import annotations

import struct

import pytest
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.cmac import CMAC

from confcom.errors import NativeError
from confcom.formats.sgx import AttributeFlags, Attributes, TargetInfo
from confcom.simulator.declaration import EnclaveDeclaration
from confcom.simulator.processor import PKCS1_PADDING, KeyDependencies, KeyName, KeyPolicy, KeyRequest, Processor

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


def test_a_seal_key_by_signer_outlives_a_new_build_and_one_by_enclave_does_not(processor):
    builds = [enclave(mr_enclave=b"1" * 32), enclave(mr_enclave=b"2" * 32)]
    by_signer = {processor.get_key(build, KeyRequest(KeyName.SEAL)) for build in builds}
    request = KeyRequest(KeyName.SEAL, KeyPolicy.MRENCLAVE)
    by_enclave = {processor.get_key(build, request) for build in builds}
    assert len(by_signer) == 1
    assert len(by_enclave) == 2


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
    request = KeyRequest(KeyName.SEAL)
    assert processor.get_key(other, request) != processor.get_key(enclave(), request)


def test_seal_keys_depend_on_key_id_svn_cpu_and_machine(processor, seed):
    keys = {
        processor.get_key(enclave(), KeyRequest(KeyName.SEAL)),
        processor.get_key(enclave(), KeyRequest(KeyName.SEAL, key_id=b"k" * 32)),
        processor.get_key(enclave(), KeyRequest(KeyName.SEAL, isv_svn=9)),
        processor.get_key(enclave(), KeyRequest(KeyName.SEAL, cpu_svn=bytes(16))),
        Processor.from_seed(seed, 1).get_key(enclave(), KeyRequest(KeyName.SEAL)),
        Processor.from_seed(b"another seed of this test", 0).get_key(enclave(), KeyRequest(KeyName.SEAL)),
    }
    assert len(keys) == 6


def test_policies_of_key_separation_and_sharing_bind_what_they_name(processor):
    flags = FLAGS | AttributeFlags.KSS
    plain = {"config_id": b"c" * 64, "config_svn": 2, "isv_ext_prod_id": b"x" * 16, "isv_family_id": b"f" * 16}
    others = {
        KeyPolicy.CONFIGID: {"config_id": b"d" * 64},
        KeyPolicy.ISVEXTPRODID: {"isv_ext_prod_id": b"y" * 16},
        KeyPolicy.ISVFAMILYID: {"isv_family_id": b"g" * 16},
    }
    for policy, change in others.items():
        request = KeyRequest(KeyName.SEAL, KeyPolicy.MRSIGNER | policy)
        first = processor.get_key(enclave(flags, **plain), request)
        assert first != processor.get_key(enclave(flags, **plain | change), request)
        unbound = KeyRequest(KeyName.SEAL)
        assert processor.get_key(enclave(flags, **plain), unbound) == processor.get_key(
            enclave(flags, **plain | change), unbound
        )
    without_product = KeyRequest(KeyName.SEAL, KeyPolicy.MRSIGNER | KeyPolicy.NOISVPRODID)
    assert processor.get_key(enclave(flags), without_product) == processor.get_key(
        enclave(flags, isv_prod_id=8), without_product
    )


def test_a_provisioning_key_needs_the_attribute_and_ignores_the_owner(processor):
    granted = enclave(FLAGS | AttributeFlags.PROVISIONKEY)
    request = KeyRequest(KeyName.PROVISION)
    assert processor.get_key(granted, request) == processor.get_key(
        granted, KeyRequest(KeyName.PROVISION, key_id=b"k" * 32)
    )
    with pytest.raises(NativeError, match="SGX_INVALID_ATTRIBUTE"):
        processor.get_key(enclave(), request)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (KeyRequest(KeyName.SEAL, isv_svn=10), "SGX_INVALID_ISVSVN"),
        (KeyRequest(KeyName.SEAL, cpu_svn=b"\xff" * 16), "SGX_INVALID_CPUSVN"),
        (KeyRequest(KeyName.EINITTOKEN), "SGX_INVALID_KEYNAME"),
        (KeyRequest(KeyName.SEAL, KeyPolicy.CONFIGID), "KSS"),
    ],
)
def test_egetkey_refuses_what_the_sdm_forbids(processor, request_, reason):
    with pytest.raises(NativeError, match=reason):
        processor.get_key(enclave(), request_)


def test_secrets_do_not_show(processor):
    assert processor.device_key.hex() not in repr(processor)
    assert str(processor.device_key) not in repr(processor)
