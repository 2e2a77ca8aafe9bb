"""Every error number of Intel's libraries, and what a client of the quote helper is told for it."""

from __future__ import annotations

import pytest

from confcom.errors import KeyNotInitialized, NativeError, ReportRejected, UnsupportedKeyId
from confcom.platforms.intel.dcap import QUOTE3_ERRORS, quote3_error
from confcom.protocols.aesm_status import status_of

# What Intel's ECDSA plugin makes of the numbers of its libraries; every other number becomes 1.
ON_THE_WIRE = {
    0xE001: 1, 0xE002: 3, 0xE003: 21, 0xE004: 32, 0xE005: 33, 0xE006: 15, 0xE007: 34, 0xE008: 35, 0xE009: 36,
    0xE00A: 37, 0xE00B: 38, 0xE00C: 39, 0xE00D: 40, 0xE00E: 41, 0xE00F: 42, 0xE010: 43, 0xE011: 44, 0xE012: 29,
    0xE013: 45, 0xE014: 46, 0xE015: 47, 0xE016: 48, 0xE017: 49, 0xE018: 50, 0xE019: 12, 0xE01A: 22,
}  # fmt: skip
OTHERS = (0xE01B, 0xE035, 0xE03E, 0xE03F, *range(0xE040, 0xE04A), 0xE063, 0xE065, 0xE067, 0xE0FF, 0xFFFFFFFF)


@pytest.mark.parametrize(("number", "code"), [*ON_THE_WIRE.items(), *((number, 1) for number in OTHERS)])
def test_clients_are_told_what_intels_service_tells(number: int, code: int) -> None:
    error = quote3_error(number, "sgx_ql_get_quote")
    assert status_of(error) == code
    assert error.native_code == number
    assert f"0x{number:04x}" in error.message
    assert "sgx_ql_get_quote" in error.message


def test_the_errors_that_callers_act_on_have_a_class_of_their_own() -> None:
    kinds = {number: type(quote3_error(number, "x")) for number in QUOTE3_ERRORS}
    assert {number: kind for number, kind in kinds.items() if kind is not NativeError} == {
        0xE00B: UnsupportedKeyId,
        0xE00F: KeyNotInitialized,
        0xE015: ReportRejected,
    }


@pytest.mark.parametrize(
    ("number", "named"),
    [(0xE035, "/dev/sgx_provision"), (0xE03F, "/dev/sgx_enclave"), (0xE016, "libsgx-ae-qe3"), (0xE00D, "libsgx-ae-pce"),
     (0xE019, "pccs_url"), (0xE011, "register"), (0xE03E, "SGX_AESM_ADDR"), (0xE067, "QCNL_CONF_PATH")],
)  # fmt: skip
def test_advice_names_what_is_missing(number: int, named: str) -> None:
    assert named in quote3_error(number, "x").advice()


def test_what_may_pass_is_retryable() -> None:
    assert {number for number in QUOTE3_ERRORS if quote3_error(number, "x").retryable} == {
        0xE003, 0xE012, 0xE014, 0xE019, 0xE041, 0xE042, 0xE043, 0xE063,
    }  # fmt: skip


def test_a_number_that_nobody_knows_is_kept() -> None:
    error = quote3_error(0xE0AB, "sgx_ql_init_quote")
    assert type(error) is NativeError
    assert error.native_code == 0xE0AB
    assert "does not know" in error.message
