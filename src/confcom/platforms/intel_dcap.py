"""Intel's QE3 and PCE in this process, through Intel's own libraries. The only module that loads native code.

The functions are those of `libsgx_qe3_logic.so`, which Intel's service uses too: unlike `libsgx_dcap_ql.so.1` they pass
a key id and give the QE's report. The latter must be loaded first, with its symbols global, because the former takes
its PCE functions from there. Certification data comes from whatever quote provider library (`libdcap_quoteprov.so.1`)
is installed; the libraries open it themselves on every call.

What crosses this border has a fixed size: key id 256 bytes, report 432, target info 512, QE report info 960. Quotes are
as long as the library says, within limits.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from confcom.errors import FormatError, NativeError, PlatformUnavailable, ReportRejected
from confcom.formats.attestation_key_id import AttestationKeyId
from confcom.formats.codec import Cursor
from confcom.formats.sgx import QeReportInfo, Report, TargetInfo
from confcom.platforms.intel_errors import SUCCESS, quote3_error
from confcom.platforms.interface import InitializedQuote, QuoteResult, sdk_simulation_refused
from confcom.platforms.quoting import AESM_VARIABLE
from confcom.platforms.sgx_host import QUOTE_LIBRARY, device_obstacles, find_library, obstacles_to_in_proc

QE3_LIBRARY = "libsgx_qe3_logic.so"
PUB_KEY_ID_SIZE = 32
MIN_QUOTE_SIZE = 436 + 576 + 2 + 32 + 6
"""Bytes of a quote of version 3 without certification data."""
MAX_QUOTE_SIZE = 64 * 1024
"""Bytes; with the longest PCK chain that Intel's library accepts a quote has 13,346."""

_SIGNATURE_LENGTH_OFFSET = 432
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

    @classmethod
    def load(cls, folder: Path | None = None) -> IntelDcapPlatform:
        """Load the libraries, from a folder or where the dynamic linker finds them; no enclave is loaded yet.

        Takes SGX_AESM_ADDR out of this process's environment: beside it the libraries would ask an AESM service, which
        may be this very process. `PlatformUnavailable` names what cannot be loaded.
        """
        os.environ.pop(AESM_VARIABLE, None)
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
        size = self.quote_size(key_id)
        quote = ctypes.create_string_buffer(size)
        info = _in(qe_report_info)
        try:
            self._call("sgx_ql_get_quote", _in(report), _in(key_id), info, quote, size)
        except ReportRejected as error:
            if report.is_of_sdk_simulation:
                raise sdk_simulation_refused() from error
            raise
        filled = QeReportInfo.parse(info.raw) if qe_report_info is not None else None
        return QuoteResult(_without_padding(quote.raw), filled)

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
    """Names at once all that is missing: who installs one package after the other learns of the next each time."""
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


def _without_padding(quote: bytes) -> bytes:
    try:
        cursor = Cursor(quote, "Quote", _SIGNATURE_LENGTH_OFFSET)
        cursor.take(cursor.u32("signature_data_len"), "signature_data")
    except FormatError as error:
        raise NativeError(f"sgx_ql_get_quote: what came back is no quote: {error}") from error
    return quote[: cursor.offset]
