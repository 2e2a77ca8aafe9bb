from __future__ import annotations

import pytest

from confcom import errors
from confcom.protocols.aesm_status import (
    ERROR_STATUS,
    QUOTE3_STATUS,
    STATUS_ERROR,
    AesmStatus,
    error_of,
    status_of,
)


def subclasses(kind: type) -> list[type]:
    return [kind, *(found for child in kind.__subclasses__() for found in subclasses(child))]


PROJECT_ERRORS = [kind for kind in subclasses(errors.ConfcomError) if kind.__module__ == "confcom.errors"]


def make(kind: type[errors.ConfcomError]) -> errors.ConfcomError:
    if issubclass(kind, errors.FormatError):
        return kind("wrong", structure="S", field="f")
    if issubclass(kind, errors.CollateralInvalid):
        return kind("wrong", document="D")
    return kind("wrong")


# Numbers and names of Intel's aesm_error.h that clients print and act upon.
@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "SUCCESS"),
        (1, "UNEXPECTED_ERROR"),
        (2, "NO_DEVICE_ERROR"),
        (3, "PARAMETER_ERROR"),
        (12, "NETWORK_ERROR"),
        (17, "SERVICE_STOPPED"),
        (18, "BUSY"),
        (19, "BACKEND_SERVER_BUSY"),
        (21, "OUT_OF_MEMORY_ERROR"),
        (29, "OUT_OF_EPC"),
        (30, "SERVICE_UNAVAILABLE"),
        (38, "UNSUPPORTED_ATT_KEY_ID"),
        (42, "ATT_KEY_NOT_INITIALIZED"),
        (44, "NO_PLATFORM_CERT_DATA"),
        (45, "ERROR_REPORT"),
        (46, "ENCLAVE_LOST"),
        (47, "INVALID_REPORT"),
        (49, "UNABLE_TO_GENERATE_QE_REPORT"),
        (50, "KEY_CERTIFICATION_ERROR"),
        (51, "CONFIG_UNSUPPORTED"),
    ],
)
def test_numbers_have_intels_names(number: int, name: str) -> None:
    assert AesmStatus(number).name == name


def test_every_number_up_to_51_is_named() -> None:
    assert sorted(AesmStatus) == list(range(52))


def test_an_unknown_number_is_kept_and_does_not_make_the_enumeration_grow() -> None:
    status = AesmStatus(4711)

    assert (status, status.name) == (4711, "UNKNOWN_4711")
    assert 4711 not in list(AesmStatus)
    assert AesmStatus(0xFFFFFFFF) == 0xFFFFFFFF


@pytest.mark.parametrize("number", [-1, 1 << 32])
def test_what_is_no_uint32_is_no_status(number: int) -> None:
    with pytest.raises(ValueError, match="not a valid AesmStatus"):
        AesmStatus(number)


@pytest.mark.parametrize("kind", [kind for kind in PROJECT_ERRORS if issubclass(kind, errors.PlatformError)])
def test_every_platform_error_has_its_own_entry(kind: type[errors.PlatformError]) -> None:
    assert kind in ERROR_STATUS


@pytest.mark.parametrize("kind", PROJECT_ERRORS)
def test_every_error_of_the_family_has_a_status_that_is_not_success(kind: type[errors.ConfcomError]) -> None:
    assert status_of(make(kind)) in range(1, 52)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.FormatError("x", structure="S", field="f"), 3),
        (errors.PlatformUnavailable("x"), 30),
        (errors.PlatformBusy("x"), 18),
        (errors.UnsupportedKeyId("x"), 38),
        (errors.KeyNotInitialized("x"), 42),
        (errors.ReportRejected("x"), 47),
        (errors.CollateralUnavailable("x"), 12),
        (errors.CollateralNotFound("x"), 44),
        (errors.NativeError("x"), 1),
        (errors.NativeError("x", native_code=0xE014), 46),
        (errors.NativeError("x", native_code=0xE017), 49),
        (errors.NativeError("x", native_code=0xE019), 12),
        (errors.NativeError("x", native_code=0xE035), 1),
        (errors.NativeError("x", native_code=46), 46),
        (errors.NativeError("x", native_code=0x1_0000_0000), 1),
        (errors.NativeError("x", native_code=-1), 1),
        (errors.PlatformUnavailable("x", native_code=0xE00D), 30),
    ],
)
def test_what_a_client_is_told(error: errors.ConfcomError, status: int) -> None:
    assert status_of(error) == status


def test_quote3_errors_become_what_intels_plugin_makes_of_them() -> None:
    told = {number & 0xFF: int(status) for number, status in QUOTE3_STATUS.items()}

    assert told == {
        0x01: 1, 0x02: 3, 0x03: 21, 0x04: 32, 0x05: 33, 0x06: 15, 0x07: 34, 0x08: 35, 0x09: 36, 0x0A: 37, 0x0B: 38,
        0x0C: 39, 0x0D: 40, 0x0E: 41, 0x0F: 42, 0x10: 43, 0x11: 44, 0x12: 29, 0x13: 45, 0x14: 46, 0x15: 47, 0x16: 48,
        0x17: 49, 0x18: 50, 0x19: 12, 0x1A: 22,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (42, errors.KeyNotInitialized, False),
        (45, errors.ReportRejected, False),
        (47, errors.ReportRejected, False),
        (18, errors.PlatformBusy, True),
        (19, errors.PlatformBusy, True),
        (30, errors.PlatformUnavailable, False),
        (38, errors.UnsupportedKeyId, False),
        (12, errors.NativeError, True),
        (46, errors.NativeError, False),
        (4711, errors.NativeError, False),
    ],
)
def test_what_a_client_of_ours_raises(status: int, kind: type[errors.PlatformError], retryable: bool) -> None:
    error = error_of(AesmStatus(status), "GetQuoteEx")

    assert type(error) is kind
    assert error.native_code == status
    assert error.retryable is retryable
    assert str(status) in error.message
    assert "GetQuoteEx" in error.message
    assert error.advice()


@pytest.mark.parametrize("status", [status for status in AesmStatus if status in STATUS_ERROR or status > 40])
def test_a_status_survives_a_service_behind_a_service(status: AesmStatus) -> None:
    # Those that share an error class come out as the one that is told for the class.
    merged = {2: 30, 17: 30, 19: 18, 27: 30, 45: 47}

    assert status_of(error_of(status, "GetQuoteEx")) == merged.get(status, status)
