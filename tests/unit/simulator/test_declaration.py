from __future__ import annotations

import json

import pytest

from confcom.errors import ConfigError, FormatError
from confcom.formats.sgx import AttributeFlags, Attributes
from confcom.simulator.declaration import EnclaveDeclaration, measure


def test_the_same_names_measure_the_same_and_other_names_differently():
    first = EnclaveDeclaration.from_names("shop", "Contoso")
    assert first == EnclaveDeclaration.from_names("shop", "Contoso")
    assert first.mr_enclave != EnclaveDeclaration.from_names("ship", "Contoso").mr_enclave
    assert first.mr_signer == EnclaveDeclaration.from_names("ship", "Contoso").mr_signer
    assert first.mr_enclave not in {first.mr_signer, EnclaveDeclaration.from_names("Contoso").mr_signer}
    assert measure(b"image") == measure("image") != measure(b"other image")


def test_debug_shows_in_the_attributes():
    assert EnclaveDeclaration.from_names("shop", debug=True).attributes.debug
    assert not EnclaveDeclaration.from_names("shop").attributes.debug


def test_the_report_body_says_what_was_declared():
    declaration = EnclaveDeclaration(
        mr_enclave=b"E" * 32,
        mr_signer=b"S" * 32,
        isv_prod_id=1,
        isv_svn=2,
        attributes=Attributes(int(AttributeFlags.INIT | AttributeFlags.KSS), 3),
        misc_select=4,
        config_id=b"C" * 64,
        config_svn=5,
        isv_ext_prod_id=b"X" * 16,
        isv_family_id=b"F" * 16,
    )
    body = bytes(declaration.report_body(b"V" * 16, b"D" * 64))
    assert len(body) == 384
    assert body[0:16] == b"V" * 16
    assert body[16:20] == b"\4\0\0\0"
    assert body[32:48] == b"X" * 16
    assert body[48:64] == bytes.fromhex("8100000000000000 0300000000000000")
    assert body[64:96] == b"E" * 32
    assert body[128:160] == b"S" * 32
    assert body[192:256] == b"C" * 64
    assert body[256:262] == bytes.fromhex("0100 0200 0500")
    assert body[304:320] == b"F" * 16
    assert body[320:] == b"D" * 64
    assert not any(body[20:32] + body[96:128] + body[160:192] + body[262:304])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"mr_enclave": b"short"}, "mr_enclave"),
        ({"isv_svn": 65536}, "isv_svn"),
        ({"isv_prod_id": -1}, "isv_prod_id"),
        ({"attributes": Attributes(0, 3)}, "attributes"),
        ({"config_id": b"C" * 64}, "attributes"),
        ({"isv_family_id": b"F" * 16}, "attributes"),
    ],
)
def test_an_identity_that_hardware_could_not_have_is_refused(fields, field):
    valid = {"mr_enclave": bytes(32), "mr_signer": bytes(32)}
    with pytest.raises(FormatError) as error:
        EnclaveDeclaration(**valid | fields)
    assert error.value.field == field


def test_a_file_in_toml_or_json_declares_an_enclave(tmp_path):
    toml = tmp_path / "enclave.toml"
    toml.write_text('enclave = "shop"\nsigner = "Contoso"\nisv_prod_id = 1\nisv_svn = 1\n')
    as_json = tmp_path / "enclave.json"
    as_json.write_text(json.dumps({"enclave": "shop", "signer": "Contoso", "isv_prod_id": 1, "isv_svn": 1}))
    expected = EnclaveDeclaration.from_names("shop", "Contoso")
    assert EnclaveDeclaration.load(toml) == expected
    assert EnclaveDeclaration.load(as_json) == expected


def test_a_file_may_give_measurements_and_kss_fields(tmp_path):
    path = tmp_path / "enclave.toml"
    path.write_text(
        f'mr_enclave = "{"ab" * 32}"\nmr_signer = "{"CD" * 32}"\ndebug = true\nconfig_id = "0102"\nconfig_svn = 7\n'
    )
    declaration = EnclaveDeclaration.load(path)
    assert declaration.mr_enclave == b"\xab" * 32
    assert declaration.mr_signer == b"\xcd" * 32
    assert declaration.config_id == b"\1\2" + bytes(62)
    assert declaration.config_svn == 7
    assert declaration.attributes.flag_names == ("INIT", "DEBUG", "MODE64BIT", "KSS")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "mr_enclave"),
        ('enclave = "a"\nmr_enclave = "' + "00" * 32 + '"', "one of enclave"),
        ('mr_enclave = "' + "00" * 32 + '"', "signer"),
        ('enclave = "a"\nmr_signer = "zz"', "hexadecimal"),
        ('enclave = "a"\nmr_signer = "00"', "32 bytes"),
        ('enclave = "a"\nconfig_id = "' + "00" * 65 + '"', "64 bytes"),
        ('enclave = "a"\nisv_svn = "1"', "isv_svn"),
        ('enclave = "a"\nisv_svn = 70000', "EnclaveDeclaration.isv_svn"),
        ('enclave = "a"\nmrenclave = 1', "mrenclave"),
        ("enclave = ", "TOML"),
        ("\0\0", "TOML"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(tmp_path, content, said):
    path = tmp_path / "enclave.toml"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        EnclaveDeclaration.load(path)
    assert str(path) in error.value.message
    assert said in error.value.message


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"[1]", b"1", b"\0" * 70_000])
def test_no_content_of_a_file_gets_out_of_the_error_family(tmp_path, content):
    for suffix in (".toml", ".json"):
        path = tmp_path / f"enclave{suffix}"
        path.write_bytes(content)
        with pytest.raises(ConfigError):
            EnclaveDeclaration.load(path)


def test_a_missing_file_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        EnclaveDeclaration.load(tmp_path / "none.toml")
