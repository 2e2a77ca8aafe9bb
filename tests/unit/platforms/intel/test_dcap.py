"""Intel's libraries in this process: a stand-in with their names and sizes is loaded, and misbehaves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from confcom.appraisal.quote import verify_quote
from confcom.errors import KeyNotInitialized, NativeError, PlatformUnavailable, ReportRejected, UnsupportedKeyId
from confcom.formats.attestation_key_id import ECDSA_P256_KEY_ID
from confcom.formats.quote import Quote
from confcom.formats.sgx import QeReportInfo, Report
from confcom.platforms.intel.dcap import IntelDcapPlatform
from confcom.platforms.quoting import EnclaveQuoteSource, choose_mode, open_quote_source
from confcom.simulator.machine import SimulatedEnclave
from confcom.simulator.world import SimulatedWorld
from software_qe import COMPILER, Stub, build_libraries, software_qe

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
REPORT = Report.parse(bytes(range(216)) * 2)
INFO = QeReportInfo.parse(bytes(range(240)) * 4)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_libraries(tmp_path_factory.mktemp("libraries"))


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    (tmp_path / "stub").mkdir()
    monkeypatch.setenv("DCAP_STUB", str(tmp_path / "stub"))
    monkeypatch.delenv("SGX_AESM_ADDR", raising=False)
    return Stub(tmp_path / "stub")


@pytest.fixture
def platform(libraries: Path, stub: Stub) -> IntelDcapPlatform:
    return IntelDcapPlatform.load(libraries)


def test_the_id_is_the_one_that_clients_hard_code(platform: IntelDcapPlatform) -> None:
    assert platform.key_ids() == (ECDSA_P256_KEY_ID,)


def test_before_the_key_there_is_neither_size_nor_quote(platform: IntelDcapPlatform) -> None:
    with pytest.raises(KeyNotInitialized):
        platform.quote_size()
    with pytest.raises(KeyNotInitialized):
        platform.quote(REPORT)


@pytest.mark.parametrize("key_id", [None, ECDSA_P256_KEY_ID])
def test_target_info_key_id_size_and_quote(platform: IntelDcapPlatform, key_id: object) -> None:
    initialized = platform.init_quote(key_id)
    assert bytes(initialized.target_info) == b"\x11" * 512
    assert initialized.pub_key_id == b"\x22" * 32
    assert platform.quote_size(key_id) == 4700
    result = platform.quote(REPORT, key_id)
    assert len(result.quote) == 4700
    assert result.quote[48:432] == bytes(REPORT.body)
    assert result.qe_report_info is None


def test_the_qe_report_comes_back_in_a_copy(platform: IntelDcapPlatform) -> None:
    platform.init_quote()
    before = bytes(INFO)
    filled = platform.quote(REPORT, None, INFO).qe_report_info
    assert filled is not None
    assert bytes(filled) == before[:528] + b"\x77" * 432
    assert bytes(INFO) == before


def test_another_key_is_not_supported(platform: IntelDcapPlatform) -> None:
    with pytest.raises(UnsupportedKeyId):
        platform.init_quote(ECDSA_P256_KEY_ID.with_algorithm(3))


@pytest.mark.parametrize("size", [0, 1, 31, 33, 1 << 40])
def test_only_a_key_id_of_32_bytes_is_taken(platform: IntelDcapPlatform, stub: Stub, size: int) -> None:
    stub.always("init_quote_size", f"size {size}")
    with pytest.raises(NativeError, match="instead of 32"):
        platform.init_quote()


@pytest.mark.parametrize("size", [1, 1051, 64 * 1024 + 1, 0xFFFFFFFF])
def test_no_buffer_is_made_for_a_size_that_no_quote_has(platform: IntelDcapPlatform, stub: Stub, size: int) -> None:
    platform.init_quote()
    stub.always("get_quote_size", f"size {size}")
    with pytest.raises(NativeError, match=f"{size} bytes is no size"):
        platform.quote(REPORT)


def test_a_quote_is_cut_where_it_ends(platform: IntelDcapPlatform, stub: Stub) -> None:
    platform.init_quote()
    stub.always("get_quote", "size 4000")
    assert len(platform.quote(REPORT).quote) == 4436


def test_a_quote_that_claims_to_be_longer_than_its_buffer_is_none(platform: IntelDcapPlatform, stub: Stub) -> None:
    platform.init_quote()
    stub.always("get_quote", "size 4265")
    with pytest.raises(NativeError, match="no quote"):
        platform.quote(REPORT)


@pytest.mark.parametrize(
    ("call", "ask"),
    [
        ("get_keyid", lambda platform: platform.key_ids()),
        ("init_quote_size", lambda platform: platform.init_quote()),
        ("init_quote", lambda platform: platform.init_quote()),
        ("get_quote_size", lambda platform: platform.quote_size()),
        ("get_quote_size", lambda platform: platform.quote(REPORT)),
        ("get_quote", lambda platform: platform.quote(REPORT)),
    ],
)
def test_an_error_of_each_function_is_told_with_its_number(
    platform: IntelDcapPlatform, stub: Stub, call: str, ask: Callable[[IntelDcapPlatform], object]
) -> None:
    platform.init_quote()
    stub.always(call, "e012")
    with pytest.raises(NativeError, match="sgx_ql_") as error:
        ask(platform)
    assert error.value.native_code == 0xE012


def test_the_size_is_asked_for_when_the_last_one_is_too_small(platform: IntelDcapPlatform, stub: Stub) -> None:
    platform.init_quote()
    stub.once("get_quote_size", "size 5000")
    assert len(platform.quote(REPORT).quote) == 4700
    stub.always("get_quote_size", "e012")
    assert len(platform.quote(REPORT).quote) == 4700  # without a second request for the certificate
    stub.once("get_quote", "e002")
    with pytest.raises(NativeError, match="sgx_ql_get_quote_size"):
        platform.quote(REPORT)
    stub.relent()
    stub.once("get_quote", "e002")
    assert len(platform.quote(REPORT).quote) == 4700


def test_a_rejected_report(platform: IntelDcapPlatform, stub: Stub) -> None:
    platform.init_quote()
    stub.always("get_quote", "e015")
    with pytest.raises(ReportRejected, match="0xe015"):
        platform.quote(REPORT)
    with pytest.raises(ReportRejected, match="only simulated machines take those"):
        platform.quote(replace(REPORT, key_id=b"\xff\x00" * 8 + bytes(16)))


def test_quotes_of_a_simulated_qe_behind_the_libraries(
    platform: IntelDcapPlatform, stub: Stub, world: SimulatedWorld, enclave: SimulatedEnclave
) -> None:
    with software_qe(world.platform, stub):
        result = EnclaveQuoteSource(platform, enclave).quote(b"D" * 64, nonce=b"N" * 16)
    assert Quote.parse(result.quote).report_data == b"D" * 64
    assert result.qe_report_info is not None
    enclave.verify_report(result.qe_report_info.qe_report)


class TestLoading:
    def test_sgx_aesm_addr_is_taken_away_first(self, libraries: Path, stub: Stub) -> None:
        # In a process of its own: a library looks at the environment when it is loaded, and that happens once.
        program = (
            "import os, sys, pathlib\n"
            "from confcom.platforms.intel.dcap import IntelDcapPlatform\n"
            "platform = IntelDcapPlatform.load(pathlib.Path(sys.argv[1]))\n"
            "print(len(platform.init_quote().pub_key_id), 'SGX_AESM_ADDR' in os.environ)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(libraries)],
            env=os.environ | {"SGX_AESM_ADDR": ""}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == "32 False\n", done.stderr

    def test_the_stand_in_is_as_particular_as_the_real_library(self, libraries: Path) -> None:
        # Without the first library the second one lacks its PCE functions, as measured with Intel's.
        program = f"import ctypes; ctypes.CDLL({str(libraries / 'libsgx_qe3_logic.so')!r})"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "undefined symbol: sgx_pce_sign_report" in done.stderr

    def test_a_missing_library_is_named_with_its_package(self, tmp_path: Path) -> None:
        with pytest.raises(PlatformUnavailable, match=r"cannot load libsgx_dcap_ql\.so\.1") as error:
            IntelDcapPlatform.load(tmp_path)
        assert "libsgx-dcap-ql" in error.value.advice()

    def test_a_file_that_is_no_library(self, tmp_path: Path) -> None:
        (tmp_path / "libsgx_dcap_ql.so.1").write_bytes(b"")
        with pytest.raises(PlatformUnavailable, match="file too short"):
            IntelDcapPlatform.load(tmp_path)

    def test_a_library_without_the_functions_is_too_old(self, libraries: Path, tmp_path: Path) -> None:
        assert COMPILER is not None
        (tmp_path / "empty.c").write_text("int nothing;")
        for name in ("libsgx_dcap_ql.so.1", "libsgx_qe3_logic.so"):
            subprocess.run(
                [COMPILER, "-shared", "-fPIC", "-o", str(tmp_path / name), str(tmp_path / "empty.c")], check=True
            )
        with pytest.raises(PlatformUnavailable, match="has no function sgx_ql_init_quote") as error:
            IntelDcapPlatform.load(tmp_path)
        assert "newer" in error.value.advice()


class TestInProc:
    def test_names_everything_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(PlatformUnavailable) as error:
            IntelDcapPlatform.open_in_proc(tmp_path)
        for thing in ("/dev/sgx_enclave", "/dev/sgx_provision", "libsgx_dcap_ql.so.1"):
            assert thing in error.value.message
        assert "SGX_AESM_ADDR=1" in error.value.advice()

    def test_an_application_quotes_with_intels_libraries(
        self, stub: Stub, world: SimulatedWorld, enclave: SimulatedEnclave, tmp_path: Path
    ) -> None:
        host = tmp_path / "host"
        (host / "dev").mkdir(parents=True)
        for device in ("sgx_enclave", "sgx_provision"):
            (host / "dev" / device).touch()
        with pytest.raises(PlatformUnavailable, match="is not installed"):
            IntelDcapPlatform.open_in_proc(host)
        build_libraries(host / "usr/lib64")
        decision = choose_mode("auto", {}, host)
        source = open_quote_source(
            decision, enclave=lambda: enclave, in_proc=lambda: IntelDcapPlatform.open_in_proc(host), host=host
        )
        with software_qe(world.platform, stub):
            quote = source.quote(b"D" * 64).quote
        verified = verify_quote(quote, world.publish(), roots=world.trust_roots, now=NOW)
        assert verified.report_data == b"D" * 64
