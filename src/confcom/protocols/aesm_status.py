"""Status numbers of the AESM socket, and the two tables between them and the errors of this project.

Numbers and names are those of Intel's `aesm_error.h`; `QUOTE3_STATUS` is what Intel's ECDSA plugin makes of the
`quote3_error_t` of the DCAP libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Self

from confcom.errors import (
    CollateralError,
    CollateralNotFound,
    ConfcomError,
    FormatError,
    KeyNotInitialized,
    NativeError,
    PlatformBusy,
    PlatformError,
    PlatformUnavailable,
    ReportRejected,
    UnsupportedKeyId,
)


class AesmStatus(IntEnum):
    """`aesm_error_t`, the errorCode of every response. A number that Intel has not named becomes `UNKNOWN_n`."""

    SUCCESS = 0
    UNEXPECTED_ERROR = 1
    NO_DEVICE_ERROR = 2
    PARAMETER_ERROR = 3
    EPIDBLOB_ERROR = 4
    EPID_REVOKED_ERROR = 5
    GET_LICENSETOKEN_ERROR = 6
    SESSION_INVALID = 7
    MAX_NUM_SESSION_REACHED = 8
    PSDA_UNAVAILABLE = 9
    EPH_SESSION_FAILED = 10
    LONG_TERM_PAIRING_FAILED = 11
    NETWORK_ERROR = 12
    NETWORK_BUSY_ERROR = 13
    PROXY_SETTING_ASSIST = 14
    FILE_ACCESS_ERROR = 15
    SGX_PROVISION_FAILED = 16
    SERVICE_STOPPED = 17
    BUSY = 18
    BACKEND_SERVER_BUSY = 19
    UPDATE_AVAILABLE = 20
    OUT_OF_MEMORY_ERROR = 21
    MSG_ERROR = 22
    THREAD_ERROR = 23
    SGX_DEVICE_NOT_AVAILABLE = 24
    ENABLE_SGX_DEVICE_FAILED = 25
    PLATFORM_INFO_BLOB_INVALID_SIG = 26
    SERVICE_NOT_AVAILABLE = 27
    KDF_MISMATCH = 28
    OUT_OF_EPC = 29
    SERVICE_UNAVAILABLE = 30
    UNRECOGNIZED_PLATFORM = 31
    ECDSA_ID_MISMATCH = 32
    PATHNAME_BUFFER_OVERFLOW_ERROR = 33
    ERROR_STORED_KEY = 34
    PUB_KEY_ID_MISMATCH = 35
    INVALID_PCE_SIG_SCHEME = 36
    ATT_KEY_BLOB_ERROR = 37
    UNSUPPORTED_ATT_KEY_ID = 38
    UNSUPPORTED_LOADING_POLICY = 39
    INTERFACE_UNAVAILABLE = 40
    PLATFORM_LIB_UNAVAILABLE = 41
    ATT_KEY_NOT_INITIALIZED = 42
    ATT_KEY_CERT_DATA_INVALID = 43
    NO_PLATFORM_CERT_DATA = 44
    ERROR_REPORT = 45
    ENCLAVE_LOST = 46
    INVALID_REPORT = 47
    ENCLAVE_LOAD_ERROR = 48
    UNABLE_TO_GENERATE_QE_REPORT = 49
    KEY_CERTIFICATION_ERROR = 50
    CONFIG_UNSUPPORTED = 51

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, int) or not 0 <= value < 1 << 32:
            return None
        # Not registered in the enumeration: a peer must not be able to make it grow.
        status = int.__new__(cls, value)
        status._name_ = f"UNKNOWN_{value}"
        status._value_ = value
        return status


QUOTE3_STATUS: Mapping[int, AesmStatus] = {
    0xE001: AesmStatus.UNEXPECTED_ERROR,
    0xE002: AesmStatus.PARAMETER_ERROR,
    0xE003: AesmStatus.OUT_OF_MEMORY_ERROR,
    0xE004: AesmStatus.ECDSA_ID_MISMATCH,
    0xE005: AesmStatus.PATHNAME_BUFFER_OVERFLOW_ERROR,
    0xE006: AesmStatus.FILE_ACCESS_ERROR,
    0xE007: AesmStatus.ERROR_STORED_KEY,
    0xE008: AesmStatus.PUB_KEY_ID_MISMATCH,
    0xE009: AesmStatus.INVALID_PCE_SIG_SCHEME,
    0xE00A: AesmStatus.ATT_KEY_BLOB_ERROR,
    0xE00B: AesmStatus.UNSUPPORTED_ATT_KEY_ID,
    0xE00C: AesmStatus.UNSUPPORTED_LOADING_POLICY,
    0xE00D: AesmStatus.INTERFACE_UNAVAILABLE,
    0xE00E: AesmStatus.PLATFORM_LIB_UNAVAILABLE,
    0xE00F: AesmStatus.ATT_KEY_NOT_INITIALIZED,
    0xE010: AesmStatus.ATT_KEY_CERT_DATA_INVALID,
    0xE011: AesmStatus.NO_PLATFORM_CERT_DATA,
    0xE012: AesmStatus.OUT_OF_EPC,
    0xE013: AesmStatus.ERROR_REPORT,
    0xE014: AesmStatus.ENCLAVE_LOST,
    0xE015: AesmStatus.INVALID_REPORT,
    0xE016: AesmStatus.ENCLAVE_LOAD_ERROR,
    0xE017: AesmStatus.UNABLE_TO_GENERATE_QE_REPORT,
    0xE018: AesmStatus.KEY_CERTIFICATION_ERROR,
    0xE019: AesmStatus.NETWORK_ERROR,
    0xE01A: AesmStatus.MSG_ERROR,
}
"""`quote3_error_t` to the number on the wire; what is not here is 1."""

QUOTE3_QE_REPORT = 0xE017
"""SGX_QL_UNABLE_TO_GENERATE_QE_REPORT, for a platform that was asked for a QE report and gave none."""

ERROR_STATUS: Mapping[type[ConfcomError], AesmStatus] = {
    ConfcomError: AesmStatus.UNEXPECTED_ERROR,
    FormatError: AesmStatus.PARAMETER_ERROR,
    PlatformError: AesmStatus.UNEXPECTED_ERROR,
    PlatformUnavailable: AesmStatus.SERVICE_UNAVAILABLE,
    PlatformBusy: AesmStatus.BUSY,
    KeyNotInitialized: AesmStatus.ATT_KEY_NOT_INITIALIZED,
    UnsupportedKeyId: AesmStatus.UNSUPPORTED_ATT_KEY_ID,
    ReportRejected: AesmStatus.INVALID_REPORT,
    NativeError: AesmStatus.UNEXPECTED_ERROR,
    CollateralError: AesmStatus.NETWORK_ERROR,
    CollateralNotFound: AesmStatus.NO_PLATFORM_CERT_DATA,
}
"""The status that a client of the helper gets for each class of error; other classes have that of their base."""

STATUS_ERROR: Mapping[AesmStatus, type[PlatformError]] = {
    AesmStatus.NO_DEVICE_ERROR: PlatformUnavailable,
    AesmStatus.SERVICE_STOPPED: PlatformUnavailable,
    AesmStatus.BUSY: PlatformBusy,
    AesmStatus.BACKEND_SERVER_BUSY: PlatformBusy,
    AesmStatus.SERVICE_NOT_AVAILABLE: PlatformUnavailable,
    AesmStatus.SERVICE_UNAVAILABLE: PlatformUnavailable,
    AesmStatus.UNSUPPORTED_ATT_KEY_ID: UnsupportedKeyId,
    AesmStatus.ATT_KEY_NOT_INITIALIZED: KeyNotInitialized,
    AesmStatus.ERROR_REPORT: ReportRejected,
    AesmStatus.INVALID_REPORT: ReportRejected,
}
"""What a client of an AESM service raises for each status; every other one is a `NativeError` with its number."""

STATUS_ADVICE: Mapping[AesmStatus, str] = {
    AesmStatus.NETWORK_ERROR: "The service cannot reach its collateral service (PCCS): check its address and log.",
    AesmStatus.SERVICE_UNAVAILABLE: "The service runs, but has no quoting enclave: see its log for the reason.",
    AesmStatus.UNSUPPORTED_ATT_KEY_ID: (
        "Most often the service could not load its quoting enclave at start: see its log, then restart it. "
        "Otherwise use one of the ids that it lists."
    ),
    AesmStatus.NO_PLATFORM_CERT_DATA: (
        "The collateral service has no PCK certificate for this machine: register the platform."
    ),
    AesmStatus.ENCLAVE_LOST: (
        "The machine slept or was migrated; Intel's service does not reload its enclaves: restart it."
    ),
}

_RETRYABLE = frozenset({AesmStatus.NETWORK_ERROR, AesmStatus.NETWORK_BUSY_ERROR})
_AESM_NUMBERS = range(1, 1 << 8)


def status_of(error: ConfcomError) -> AesmStatus:
    """The status that a client gets for this error.

    A `PlatformError` of no more special class is mapped by its `native_code`, a `quote3_error_t` or an AESM
    number (from another service behind this one).
    """
    status = next(ERROR_STATUS[kind] for kind in type(error).__mro__ if kind in ERROR_STATUS)
    if status is AesmStatus.UNEXPECTED_ERROR and isinstance(error, PlatformError) and error.native_code is not None:
        return _native_status(error.native_code)
    return status


def _native_status(number: int) -> AesmStatus:
    return AesmStatus(number) if number in _AESM_NUMBERS else QUOTE3_STATUS.get(number, AesmStatus.UNEXPECTED_ERROR)


def error_of(status: AesmStatus, request: str) -> PlatformError:
    """The error that a client raises when a request of this name was answered with this status."""
    kind = STATUS_ERROR.get(status, NativeError)
    message = f"the AESM service answered {request} with {status.value} ({status.name})"
    advice = STATUS_ADVICE.get(status)
    if kind is PlatformBusy:
        return PlatformBusy(message, native_code=status.value, advice=advice)
    return kind(message, retryable=status in _RETRYABLE, native_code=status.value, advice=advice)
