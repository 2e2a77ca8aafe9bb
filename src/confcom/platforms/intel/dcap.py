"""Intel's QE3 and PCE in this process, through Intel's own libraries. The only module that loads native code.

The functions are those of `libsgx_qe3_logic.so`, which Intel's service uses too: unlike `libsgx_dcap_ql.so.1` they pass
a key id and give the QE's report. The latter must be loaded first, with its symbols global, because the former takes
its PCE functions from there. Certification data comes from whatever quote provider library (`libdcap_quoteprov.so.1`)
is installed; the libraries open it themselves on every call.

What crosses this border has a fixed size: key id 256 bytes, report 432, target info 512, QE report info 960. Quotes are
as long as the library states, within limits.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from confcom.errors import (
    FormatError,
    KeyNotInitialized,
    NativeError,
    PlatformError,
    PlatformUnavailable,
    ReportRejected,
    UnsupportedKeyId,
)
from confcom.formats.attestation_key_id import AttestationKeyId
from confcom.formats.sgx import QeReportInfo, Report, TargetInfo
from confcom.platforms.interface import (
    QUOTE_LIBRARY,
    InitializedQuote,
    QuoteResult,
    device_obstacles,
    find_library,
    obstacles_to_in_proc,
    sdk_simulation_refused,
    without_padding,
)
from confcom.protocols.aesm import VARIABLE

# `quote3_error_t`, the error numbers of Intel's DCAP libraries (`sgx_ql_lib_common.h`)
#
# The class of an error decides the AESM status that a client of the quote helper gets; for a `NativeError` its number
# does, by `QUOTE3_STATUS` of the AESM status table. An unknown number is kept and becomes UNEXPECTED.


SUCCESS = 0
INVALID_PARAMETER = 0xE002
"""Also the status for a buffer that is too small."""
ENCLAVE_LOST = 0xE014
"""The QE is gone (sleep, migration of the machine); the library never loads it again."""

LOAD_ERROR = 0xE016
"""Also for a process that still holds the device of a driver that has been replaced."""
NO_DEVICE = 0xE03F

RESTART_STATES: frozenset[int] = frozenset({0xE00E, ENCLAVE_LOST, LOAD_ERROR, NO_DEVICE})
"""Errors that a new process, which loads libraries and enclaves again, may not have."""


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
        INVALID_PARAMETER: Quote3Error("ERROR_INVALID_PARAMETER", "an argument is not acceptable"),
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
            "The machine slept or was migrated: the process must load its enclaves again.",
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


QE3_LIBRARY = "libsgx_qe3_logic.so"
PUB_KEY_ID_SIZE = 32
MIN_QUOTE_SIZE = 436 + 576 + 2 + 32 + 6
"""Bytes of a quote of version 3 without certification data."""
MAX_QUOTE_SIZE = 64 * 1024
"""Bytes; with the longest PCK chain that Intel's library accepts a quote has 13,346."""

_Buffer = Any
"""What ctypes passes for a `uint8_t *`."""

_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    # key id or NULL, target info out, refresh, size of pub_key_id in/out, pub_key_id out or NULL
    "sgx_ql_init_quote": (
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_bool,
        ctypes.POINTER(ctypes.c_size_t),
        ctypes.c_void_p,
    ),
    # key id or NULL, size out
    "sgx_ql_get_quote_size": (ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)),
    # report, key id or NULL, QE report info in/out or NULL, quote out, its size
    "sgx_ql_get_quote": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32),
    # key id out
    "sgx_ql_get_keyid": (ctypes.c_void_p,),
}
"""Arguments; all return `quote3_error_t`, a uint32."""

_PACKAGES = {
    QUOTE_LIBRARY: "libsgx-dcap-ql",
    QE3_LIBRARY: "libsgx-qe3-logic",
    "libsgx_pce_logic.so.1": "libsgx-pce-logic",
    "libsgx_urts.so.2": "libsgx-urts",
    "libsgx_enclave_common.so.1": "libsgx-enclave-common",
}
"""Intel's libraries, in the order in which they are needed, and Debian's names of the packages that have them."""


_ADVICE = (
    "Give this process these devices and Intel's libsgx-dcap-ql; or set SGX_AESM_ADDR=1 and use the node's quote "
    "helper, which takes neither. `confcom doctor` looks closer."
)


def library_folder(host: Path) -> Path | None:
    """Where below another root than `/` the libraries are; None leaves it to the dynamic linker."""
    if host == Path("/"):
        return None
    found = find_library(host, QUOTE_LIBRARY)
    if found is None:
        raise PlatformUnavailable(f"{QUOTE_LIBRARY} is not installed below {host}", advice=_ADVICE)
    return found.parent


class IntelDcapPlatform:
    """A `Platform` (see `confcom.platforms.interface`) of real enclaves. Calls release the interpreter's lock.

    A lost enclave stays lost for this process: `IntelWorkerPlatform` runs this class in a process that can be replaced.
    """

    name = "intel-dcap"
    simulated = False

    def __init__(self, functions: dict[str, Callable[..., int]]) -> None:
        self._functions = functions
        self._last_size = 0

    @classmethod
    def load(cls, folder: Path | None = None) -> IntelDcapPlatform:
        """Load the libraries, from a folder or where the dynamic linker finds them; no enclave is loaded yet.

        Takes SGX_AESM_ADDR out of this process's environment: beside it the libraries would ask an AESM service, which
        may be this very process. `PlatformUnavailable` names what cannot be loaded.
        """
        os.environ.pop(VARIABLE, None)
        _load(QUOTE_LIBRARY, folder, ctypes.RTLD_GLOBAL)
        library = _load(QE3_LIBRARY, folder, ctypes.RTLD_LOCAL)
        return cls({name: _function(library, name, arguments) for name, arguments in _PROTOTYPES.items()})

    @classmethod
    def open_in_proc(cls, host: Path = Path("/")) -> IntelDcapPlatform:
        """For an application that is its own quote helper: first say what device, permission or library is missing."""
        if device_obstacles(host):
            missing = "; ".join(obstacles_to_in_proc(host))
            raise PlatformUnavailable(f"no in-proc quotes here: {missing}", advice=_ADVICE)
        return cls.load(library_folder(host))

    def key_ids(self) -> tuple[AttestationKeyId, ...]:
        """The one id of this QE."""
        out = ctypes.create_string_buffer(AttestationKeyId.size())
        self._call("sgx_ql_get_keyid", out)
        return (AttestationKeyId.parse(out.raw),)

    def init_quote(self, key_id: AttestationKeyId | None = None) -> InitializedQuote:
        """Load QE and PCE, make and certify the attestation key: seconds at first, when the collateral is far."""
        target_info = ctypes.create_string_buffer(TargetInfo.size())
        size = ctypes.c_size_t(0)
        self._call("sgx_ql_init_quote", _in(key_id), target_info, False, ctypes.byref(size), None)
        if size.value != PUB_KEY_ID_SIZE:
            raise NativeError(f"sgx_ql_init_quote: a key id of {size.value} bytes instead of {PUB_KEY_ID_SIZE}")
        pub_key_id = ctypes.create_string_buffer(PUB_KEY_ID_SIZE)
        self._call("sgx_ql_init_quote", _in(key_id), target_info, False, ctypes.byref(size), pub_key_id)
        return InitializedQuote(TargetInfo.parse(target_info.raw), pub_key_id.raw)

    def quote_size(self, key_id: AttestationKeyId | None = None) -> int:
        """Exact size of the next quote in bytes."""
        size = ctypes.c_uint32(0)
        self._call("sgx_ql_get_quote_size", _in(key_id), ctypes.byref(size))
        if not MIN_QUOTE_SIZE <= size.value <= MAX_QUOTE_SIZE:
            raise NativeError(f"sgx_ql_get_quote_size: {size.value} bytes is no size of a quote")
        return size.value

    def quote(
        self,
        report: Report,
        key_id: AttestationKeyId | None = None,
        qe_report_info: QeReportInfo | None = None,
    ) -> QuoteResult:
        """Have the QE check the report's MAC and sign it into a quote."""
        arguments = (_in(report), _in(key_id), info := _in(qe_report_info))
        try:
            quote = self._quote(arguments, key_id)
        except ReportRejected as error:
            if report.is_of_sdk_simulation:
                raise sdk_simulation_refused() from error
            raise
        filled = QeReportInfo.parse(info.raw) if qe_report_info is not None else None
        try:
            return QuoteResult(without_padding(quote), filled)
        except FormatError as error:
            raise NativeError(f"sgx_ql_get_quote: what came back is no quote: {error}") from error

    def _quote(self, arguments: tuple[_Buffer, ...], key_id: AttestationKeyId | None) -> bytes:
        """Get a quote in a buffer that may be longer than it."""
        # The size changes with the PCK certificate alone, and asking for it makes the library fetch that once more.
        if self._last_size:
            try:
                return self._fill(arguments, self._last_size)
            except PlatformError as error:
                if error.native_code != INVALID_PARAMETER:
                    raise
        self._last_size = self.quote_size(key_id)
        return self._fill(arguments, self._last_size)

    def _fill(self, arguments: tuple[_Buffer, ...], size: int) -> bytes:
        quote = ctypes.create_string_buffer(size)
        self._call("sgx_ql_get_quote", *arguments, quote, size)
        return quote.raw

    def _call(self, name: str, *arguments: object) -> None:
        status = self._functions[name](*arguments)
        if status != SUCCESS:
            raise quote3_error(status, name)


def _in(record: AttestationKeyId | Report | QeReportInfo | None) -> _Buffer:
    """A copy of a record in memory of its own, or NULL: the library may write to it."""
    if record is None:
        return None
    content = bytes(record)
    return ctypes.create_string_buffer(content, len(content))


def _load(name: str, folder: Path | None, mode: int) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name if folder is None else str(folder / name), mode=mode)
    except OSError as error:
        raise PlatformUnavailable(f"cannot load {name}: {error}", advice=_loading_advice(str(error), folder)) from error


def _loading_advice(reason: str, folder: Path | None) -> str:
    """Names all missing packages at once, instead of one at each attempt."""
    # The linker names the library that is missing, which may be one that ours depends on.
    named = Path(reason.partition(":")[0]).name
    packages = [package for library, package in _PACKAGES.items() if library == named or _is_absent(library, folder)]
    install = f"Install Intel's {', '.join(packages)}" if packages else "Check that Intel's DCAP packages are complete"
    return (
        f"{install}; libraries outside the system's folders are found through LD_LIBRARY_PATH. How to make an image "
        "with all of them: deploy/Containerfile.intel."
    )


def _is_absent(library: str, folder: Path | None) -> bool:
    return find_library(Path("/"), library) is None if folder is None else not (folder / library).exists()


def _function(library: ctypes.CDLL, name: str, arguments: Sequence[Any]) -> Callable[..., int]:
    try:
        function = getattr(library, name)
    except AttributeError as error:
        raise PlatformUnavailable(
            f"{QE3_LIBRARY} has no function {name}", advice="Install a newer release of Intel's DCAP packages."
        ) from error
    function.argtypes, function.restype = list(arguments), ctypes.c_uint32
    called: Callable[..., int] = function
    return called
