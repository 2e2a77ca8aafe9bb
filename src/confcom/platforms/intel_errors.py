"""`quote3_error_t`, the error numbers of Intel's DCAP libraries (`sgx_ql_lib_common.h`), as errors of this project.

The class of an error decides what a client of the quote helper is told; a `NativeError` is told by its number, through
`QUOTE3_STATUS` of the AESM status table. A number that is not here is kept and told as UNEXPECTED.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from confcom.errors import KeyNotInitialized, NativeError, PlatformError, ReportRejected, UnsupportedKeyId

SUCCESS = 0
ENCLAVE_LOST = 0xE014
"""The QE is gone (sleep, migration of the machine); the library never loads it again."""

LOAD_ERROR = 0xE016
"""Also what a process is told that still holds the device of a driver that has been replaced."""
NO_DEVICE = 0xE03F

RESTART_STATES: frozenset[int] = frozenset({0xE00E, ENCLAVE_LOST, LOAD_ERROR, NO_DEVICE})
"""What may be answered otherwise by a process that loads libraries and enclaves anew."""


@dataclass(frozen=True, slots=True)
class Quote3Error:
    """One number: its name without `SGX_QL_`, what it means in words, what to do, and how it is raised."""

    name: str
    meaning: str
    advice: str | None = None
    kind: type[PlatformError] = NativeError
    retryable: bool = False


_LOG = "See the log of the process that loaded Intel's libraries; they write to its standard error and to syslog."
_ENCLAVES = (
    "Install Intel's enclaves (libsgx-ae-qe3, libsgx-ae-pce, libsgx-ae-id-enclave); `confcom doctor` says which file "
    "is missing. They need /dev/sgx_enclave, /dev/sgx_provision and free EPC, and a /dev without noexec."
)
_PROVISION = "Let this process open /dev/sgx_provision: it takes the group of that file (sgx_prv), or the device grant."
_COLLATERAL = (
    "The quote provider library asks a collateral service for this machine's PCK certificate: check its configuration "
    "(QCNL_CONF_PATH, else /etc/sgx_default_qcnl.conf: pccs_url, use_secure_cert) and the network."
)
_REGISTER = (
    "The collateral service has no PCK certificate for this machine: register the platform with it, then try again."
)
_KEY_STORE = "Remove what the quote provider library stores, then restart."
_UPDATE = "Use libraries and enclaves of one DCAP release together."

QUOTE3_ERRORS: Mapping[int, Quote3Error] = MappingProxyType(
    {
        0xE001: Quote3Error("ERROR_UNEXPECTED", "an unexpected error", _LOG),
        0xE002: Quote3Error("ERROR_INVALID_PARAMETER", "an argument is not acceptable"),
        0xE003: Quote3Error("ERROR_OUT_OF_MEMORY", "there is not enough memory", retryable=True),
        0xE004: Quote3Error("ERROR_ECDSA_ID_MISMATCH", "the stored key belongs to another platform", _KEY_STORE),
        0xE005: Quote3Error("PATHNAME_BUFFER_OVERFLOW_ERROR", "the path of an enclave file is too long"),
        0xE006: Quote3Error("FILE_ACCESS_ERROR", "an enclave file cannot be read", _ENCLAVES),
        0xE007: Quote3Error("ERROR_STORED_KEY", "the stored attestation key is invalid", _KEY_STORE),
        0xE008: Quote3Error("ERROR_PUB_KEY_ID_MISMATCH", "the stored attestation key is another one", _KEY_STORE),
        0xE009: Quote3Error("ERROR_INVALID_PCE_SIG_SCHEME", "the PCE signs in an unknown scheme", _UPDATE),
        0xE00A: Quote3Error("ATT_KEY_BLOB_ERROR", "the attestation key's blob cannot be unsealed", _KEY_STORE),
        0xE00B: Quote3Error("UNSUPPORTED_ATT_KEY_ID", "this QE has no such attestation key", kind=UnsupportedKeyId),
        0xE00C: Quote3Error("UNSUPPORTED_LOADING_POLICY", "the load policy of the enclaves is unknown"),
        0xE00D: Quote3Error("INTERFACE_UNAVAILABLE", "the PCE cannot be loaded", _ENCLAVES),
        0xE00E: Quote3Error("PLATFORM_LIB_UNAVAILABLE", "a quote provider library cannot be loaded", _COLLATERAL),
        0xE00F: Quote3Error(
            "ATT_KEY_NOT_INITIALIZED",
            "the attestation key has not been made, or was certified for another TCB",
            kind=KeyNotInitialized,
        ),
        0xE010: Quote3Error("ATT_KEY_CERT_DATA_INVALID", "the certification data cannot be used", _COLLATERAL),
        0xE011: Quote3Error("NO_PLATFORM_CERT_DATA", "there is no PCK certificate for this platform", _REGISTER),
        0xE012: Quote3Error(
            "OUT_OF_EPC",
            "there is not enough enclave memory",
            "QE and PCE take about 1 MiB of EPC: end other enclaves, or ask for more EPC.",
            retryable=True,
        ),
        0xE013: Quote3Error("ERROR_REPORT", "the QE could not check the report"),
        ENCLAVE_LOST: Quote3Error(
            "ENCLAVE_LOST",
            "the quoting enclave is lost",
            "The machine slept or was migrated: the process must load its enclaves anew.",
            retryable=True,
        ),
        0xE015: Quote3Error(
            "INVALID_REPORT", "the report's MAC is not for this QE on this machine", kind=ReportRejected
        ),
        LOAD_ERROR: Quote3Error("ENCLAVE_LOAD_ERROR", "an enclave cannot be loaded", _ENCLAVES),
        0xE017: Quote3Error(
            "UNABLE_TO_GENERATE_QE_REPORT",
            "the QE could not report on the quote",
            "Check the target info in qe_report_info: it must be the one of an enclave on this machine.",
        ),
        0xE018: Quote3Error("KEY_CERTIFICATION_ERROR", "the PCE could not certify the attestation key", _COLLATERAL),
        0xE019: Quote3Error("NETWORK_ERROR", "the collateral service cannot be reached", _COLLATERAL, retryable=True),
        0xE01A: Quote3Error("MESSAGE_ERROR", "the collateral service answered nonsense", _COLLATERAL),
        0xE01B: Quote3Error("NO_QUOTE_COLLATERAL_DATA", "there is no collateral for this platform", _REGISTER),
        0xE035: Quote3Error("ERROR_INVALID_PRIVILEGE", "no permission to use the provisioning key", _PROVISION),
        0xE03E: Quote3Error(
            "UNSUPPORTED_MODE",
            "the libraries were loaded for out-of-proc",
            "SGX_AESM_ADDR was set when they were loaded: start a process without it.",
        ),
        NO_DEVICE: Quote3Error(
            "NO_DEVICE",
            "there is no SGX device",
            "Let this process have /dev/sgx_enclave and /dev/sgx_provision.",
        ),
        0xE040: Quote3Error("SERVICE_UNAVAILABLE", "a service behind the library is not available", _LOG),
        0xE041: Quote3Error("NETWORK_FAILURE", "the network failed", _COLLATERAL, retryable=True),
        0xE042: Quote3Error("SERVICE_TIMEOUT", "a service behind the library did not answer", _LOG, retryable=True),
        0xE043: Quote3Error("ERROR_BUSY", "a service behind the library is busy", retryable=True),
        0xE044: Quote3Error("UNKNOWN_MESSAGE_RESPONSE", "the collateral service answered nonsense", _COLLATERAL),
        0xE045: Quote3Error("PERSISTENT_STORAGE_ERROR", "the quote provider library could not store data", _KEY_STORE),
        0xE046: Quote3Error("ERROR_MESSAGE_PARSING_ERROR", "the collateral service answered nonsense", _COLLATERAL),
        0xE047: Quote3Error("PLATFORM_UNKNOWN", "the collateral service does not know this platform", _REGISTER),
        0xE048: Quote3Error(
            "UNKNOWN_API_VERSION",
            "the collateral service speaks another version",
            "Set pccs_api_version in the quote provider library's configuration.",
        ),
        0xE049: Quote3Error("CERTS_UNAVAILABLE", "the PCK certificate is not available", _REGISTER),
        0xE063: Quote3Error("INTERNAL_SERVER_ERROR", "the collateral service failed", _COLLATERAL, retryable=True),
        0xE065: Quote3Error("ROOT_CA_UNTRUSTED", "the certificates end at a root that is not trusted", _COLLATERAL),
        0xE067: Quote3Error(
            "CONFIG_INVALID_JSON",
            "the quote provider library's configuration is no JSON",
            "Correct /etc/sgx_default_qcnl.conf, or the file that QCNL_CONF_PATH names.",
        ),
    }
)

_UNKNOWN = Quote3Error("", "an error that this version does not know", _LOG)


def quote3_error(number: int, call: str) -> PlatformError:
    """The error for what a library call of this name returned; `native_code` is the number."""
    known = QUOTE3_ERRORS.get(number, _UNKNOWN)
    name = f" SGX_QL_{known.name}" if known.name else ""
    return known.kind(
        f"{call}: {known.meaning} (0x{number:04x}{name})",
        retryable=known.retryable,
        native_code=number,
        advice=known.advice,
    )
