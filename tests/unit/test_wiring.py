from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from confcom import wiring
from confcom.errors import ConfigError, FormatError, PlatformUnavailable
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.simulator.world import SimulatedWorld
from software_qe import COMPILER, build_libraries

NOW = datetime(2026, 11, 21, tzinfo=UTC)
SEED = bytes(range(32))


@pytest.fixture
def machine_file(tmp_path):
    path = tmp_path / "machine.json"
    wiring.create_machine_file(path, SEED, NOW)
    return path


@pytest.fixture
def host(tmp_path):
    """A host that has everything for Intel's platform."""
    root = tmp_path / "host"
    for path in ("dev/sgx_enclave", "dev/sgx_provision", "usr/lib/x86_64-linux-gnu/libsgx_dcap_ql.so.1"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_auto_never_simulates_by_itself(tmp_path):
    assert wiring.choose_platform("auto").name == "intel"
    with pytest.raises(PlatformUnavailable):
        wiring.open_platform("auto", host=tmp_path)


def test_auto_takes_the_simulated_platform_when_a_machine_file_is_given(machine_file):
    choice = wiring.choose_platform("auto", machine=machine_file)
    assert choice.name == "simulated"
    assert str(machine_file) in choice.reason
    assert wiring.open_platform("auto", machine=machine_file).simulated


def test_an_unknown_name_is_a_configuration_error():
    with pytest.raises(ConfigError) as error:
        wiring.open_platform("amd")
    assert "intel or simulated" in error.value.advice()


def test_simulated_needs_a_machine_file_and_says_so():
    with pytest.raises(ConfigError) as error:
        wiring.open_platform("simulated")
    assert "--machine" in error.value.advice()


def test_intel_takes_no_machine_file(machine_file):
    with pytest.raises(ConfigError, match="no machine file"):
        wiring.open_platform("intel", machine=machine_file)


def test_intel_says_what_is_missing(tmp_path, host):
    with pytest.raises(PlatformUnavailable) as error:
        wiring.open_platform("intel", host=tmp_path / "bare")
    for thing in ("/dev/sgx_enclave", "/dev/sgx_provision", "libsgx_dcap_ql.so.1"):
        assert thing in error.value.message
    (host / "dev/sgx_provision").unlink()
    with pytest.raises(PlatformUnavailable) as error:
        wiring.open_platform("intel", host=host)
    assert "/dev/sgx_provision" in error.value.message
    assert "/dev/sgx_enclave" not in error.value.message


def test_a_host_with_devices_and_a_library_that_cannot_be_loaded(host):
    with pytest.raises(PlatformUnavailable, match=r"cannot load libsgx_dcap_ql.so.1"):
        wiring.open_platform("intel", host=host)


def test_devices_without_a_library(host):
    (host / "usr/lib/x86_64-linux-gnu/libsgx_dcap_ql.so.1").unlink()
    with pytest.raises(PlatformUnavailable, match=r"libsgx_dcap_ql.so.1 is not installed"):
        wiring.open_platform("intel", host=host)


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_a_complete_host_is_opened_and_auto_says_why(host):
    folder = host / "usr/lib/x86_64-linux-gnu"
    (folder / "libsgx_dcap_ql.so.1").unlink()
    build_libraries(folder)
    choice = wiring.choose_platform("auto", host=host)
    assert choice == ("intel", "SGX devices and Intel's library are here, and no simulated machine was given")
    platform = wiring.open_platform("auto", host=host)
    assert (platform.name, platform.simulated) == ("intel-dcap", False)
    assert platform.key_ids() == (ECDSA_P256_KEY_ID,)
    platform.close()


def test_auto_says_what_is_missing_too(tmp_path):
    reason = wiring.choose_platform("auto", host=tmp_path).reason
    assert reason.startswith("no simulated machine was given, although /dev/sgx_enclave does not exist")


def test_a_machine_file_wins_over_hardware(host, machine_file):
    assert wiring.choose_platform("auto", machine=machine_file, host=host).name == "simulated"


def test_a_broken_machine_file_is_malformed_input(tmp_path):
    path = tmp_path / "machine.json"
    path.write_text("{}")
    with pytest.raises(FormatError) as error:
        wiring.open_platform("simulated", machine=path)
    assert "machine file" in error.value.advice()


def test_an_enclave_and_the_platform_share_a_machine_by_its_file(machine_file):
    platform = wiring.open_platform("simulated", machine=machine_file)
    enclave = wiring.launch_enclave(machine_file, wiring.declare_enclave("shop", "Contoso", isv_svn=4))
    quote = platform.quote(enclave.create_report(platform.init_quote().target_info, b"D" * 64)).quote
    assert quote[368:432] == b"D" * 64
    assert quote[306:308] == b"\4\0"


def test_a_declaration_comes_from_a_file_too(tmp_path):
    path = tmp_path / "enclave.toml"
    path.write_text('enclave = "shop"\nsigner = "Contoso"\nisv_prod_id = 1\nisv_svn = 1\n')
    assert wiring.load_declaration(path) == wiring.declare_enclave("shop", "Contoso")


def test_collateral_is_exported_as_of_a_time(tmp_path, machine_file):
    later = NOW + timedelta(days=90)
    wiring.export_simulated_collateral(machine_file, tmp_path / "collateral", later)
    world = SimulatedWorld.from_seed(SEED, now=NOW)
    assert (tmp_path / "collateral" / "root_ca.pem").read_bytes() == world.root_pem()
    assert (tmp_path / "collateral" / "tcb_info.json").read_bytes() == world.publish(later).tcb_info


def test_exported_collateral_can_play_a_change_of_mind(tmp_path, machine_file):
    wiring.export_simulated_collateral(
        machine_file, tmp_path, NOW, tcb_status="OutOfDate", advisory_ids=["SIMULATED-SA-5"], revoke_pck=True
    )
    world = SimulatedWorld.from_seed(SEED, now=NOW)
    world.authority.set_status("OutOfDate", ["SIMULATED-SA-5"])
    world.authority.revoke_pck(world.machine)
    assert (tmp_path / "tcb_info.json").read_bytes() == world.publish().tcb_info
    assert (tmp_path / "pck_crl.der").read_bytes() == world.publish().pck_crl
