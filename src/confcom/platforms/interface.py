"""Interfaces of what makes evidence on this machine: `Platform` (QE and PCE) and the enclave's side; what a process
needs of its host to be a platform itself (in-proc), and what of it is missing.
"""

from __future__ import annotations

import errno
import hmac
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from confcom.errors import BindingError, FormatError, ReportRejected
from confcom.formats.attestation_key_id import AttestationKeyId
from confcom.formats.codec import Cursor
from confcom.formats.sgx import QeReportInfo, Report, ReportBody, TargetInfo

REPORT_DATA_SIZE = 64
"""Bytes."""
NONCE_SIZE = 16
"""Bytes of the nonce that a QE report answers."""
SIGNATURE_LENGTH_OFFSET = 432
"""Offset of the length of a version 3 quote's signature data: uint32, little-endian; the data follows."""


@dataclass(frozen=True, slots=True)
class InitializedQuote:
    """What a caller needs before it can ask for a quote.

    `target_info` names the quoting enclave, for which the application makes its report. `pub_key_id` (32 bytes) is
    SHA-256(attestation public key ‖ QE authentication data).
    """

    target_info: TargetInfo
    pub_key_id: bytes


@dataclass(frozen=True, slots=True)
class QuoteResult:
    """A quote without padding and, when it was asked for, the QE's own report over it."""

    quote: bytes
    qe_report_info: QeReportInfo | None = None


def without_padding(quote: bytes) -> bytes:
    """A quote of version 3 up to the end of its signature data; `FormatError` if it is shorter."""
    cursor = Cursor(quote, "Quote", SIGNATURE_LENGTH_OFFSET)
    cursor.take(cursor.u32("signature_data_len"), "signature_data")
    return quote[: cursor.offset]


def check_sizes(report_data: bytes, nonce: bytes | None) -> None:
    """Refuse report data that is not 64 bytes and a nonce that is not 16, with a `FormatError`."""
    if len(report_data) != REPORT_DATA_SIZE:
        found = f"is {REPORT_DATA_SIZE} bytes, found {len(report_data)}"
        raise FormatError(found, structure="Report", field="report_data")
    if nonce is not None and len(nonce) != NONCE_SIZE:
        raise FormatError(f"is {NONCE_SIZE} bytes, found {len(nonce)}", structure="QeReportInfo", field="nonce")


class Platform(Protocol):
    """The platform software of one machine: QE and PCE. Calls block and may be made from one thread at a time.

    Every failure is a `PlatformError`: `KeyNotInitialized` before `init_quote` or when the TCB changed under the key,
    `ReportRejected` when the report's MAC is not for the present QE, `PlatformUnavailable` without device or
    library, `PlatformBusy` when the same call may succeed later.
    """

    @property
    def name(self) -> str:
        """Short name for logs and results: `simulated`, `intel-dcap`, `aesm`."""

    @property
    def simulated(self) -> bool:
        """Whether its quotes chain to a simulated root."""

    def key_ids(self) -> tuple[AttestationKeyId, ...]:
        """The attestation keys that this platform can sign with."""

    def init_quote(self, key_id: AttestationKeyId | None = None) -> InitializedQuote:
        """Make and certify the attestation key if need be; returns the target info that reports are made for."""

    def quote_size(self, key_id: AttestationKeyId | None = None) -> int:
        """Exact size in bytes of the quote that `quote` will return."""

    def quote(
        self,
        report: Report,
        key_id: AttestationKeyId | None = None,
        qe_report_info: QeReportInfo | None = None,
    ) -> QuoteResult:
        """Check the report's MAC and sign it into a quote."""


@runtime_checkable
class QuotesAhead(Protocol):
    """An optional part of a `Platform`: an event loop requests quotes without waiting, several at a time.

    Answers come in the order of the requests. No other call may be made while requests have no answer, except after
    `end_quote` has given None: then none of them will get one, and `quote` is called for each before a further
    `begin_quote`.
    """

    def begin_quote(self, report: bytes, key_id: bytes, qe_report_info: bytes | None) -> int:
        """Ask for a quote. Gives the descriptor that becomes readable with the answer, -1 where `quote` must be called.

        Report (432 bytes), key id (256) and QE report info (960) have their sizes.
        """

    def end_quote(self) -> QuoteResult | None:
        """The answer to the first request, once it is readable; raises what `quote` would.

        None when there will be none, and also when it is called before the answer is there.
        """


def sdk_simulation_refused() -> ReportRejected:
    """Why a platform on hardware refuses `Report.is_of_sdk_simulation`."""
    return ReportRejected(
        "the report is of an enclave in simulation mode of Intel's SDK (SGX_MODE=SIM): "
        "only simulated machines take those",
        advice="Build the enclave with SGX_MODE=HW; or ask the quote helper of a simulated machine: "
        "confcom quote-helper --platform simulated",
    )


class ReportSource(Protocol):
    """An enclave, as the code beside it sees it: it can report on itself to another enclave of its machine."""

    def create_report(self, target_info: TargetInfo, report_data: bytes) -> Report:
        """EREPORT for the target, over 64 bytes of report data."""


# Local attestation: two enclaves of one machine prove their identity to each other with reports.
#
# The verifier gives its target info, the attester reports to it (EREPORT), and the verifier checks the MAC with its
# own report key (EGETKEY). The processor vouches, so there is neither certificate nor collateral; no other
# machine can check.


class LocalEnclave(ReportSource, Protocol):
    """An enclave that can also check what its neighbours report to it."""

    @property
    def target_info(self) -> TargetInfo:
        """Whom neighbours must name in their reports to this enclave."""

    def verify_report(self, report: Report) -> None:
        """Check the MAC with this enclave's report key; `ReportRejected` when it is wrong."""


def verify_local_report(enclave: LocalEnclave, report: Report | bytes, report_data: bytes) -> ReportBody:
    """Who made a report for `enclave`, once it is authentic and over exactly these 64 bytes.

    Raises `FormatError`, `ReportRejected` (another machine, another target, or altered) or `BindingError`. Authentic
    is not acceptable: MRSIGNER, product id, SVN and the debug flag of the result are the caller's to judge.
    """
    parsed = report if isinstance(report, Report) else Report.parse(report)
    enclave.verify_report(parsed)
    if not hmac.compare_digest(parsed.body.report_data, report_data):
        raise BindingError(
            "the report is about other data",
            step="report-data",
            expected=report_data.hex(),
            found=parsed.body.report_data.hex(),
        )
    return parsed.body


ENCLAVE_DEVICES = ("dev/sgx_enclave", "dev/sgx/enclave")
"""Creates enclaves. The second name is that of Intel's driver up to 1.33, and a link by udev's rules since."""
PROVISION_DEVICES = ("dev/sgx_provision", "dev/sgx/provision")
"""Grants the provisioning key, which QE and PCE need."""

DEVICES_ADVICE = (
    "Load the SGX driver. If its devices get other numbers, restart this container, which keeps the old ones; in a "
    "cluster the liveness probe at /healthz does."
)

QUOTE_LIBRARY = "libsgx_dcap_ql.so.1"

LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib64",
    "lib64",
    "usr/lib",
    "lib",
    "usr/local/lib",
    "opt/intel/sgxsdk/lib64",
)
"""Where distributions, images and Intel's packages put it."""

_SCARCITY = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR))
"""Of descriptors, memory or time: they say nothing of the device."""


def obstacles_to_in_proc(host: Path = Path("/")) -> tuple[str, ...]:
    """Each missing thing as a clause that names it: devices and their permissions, Intel's quote library."""
    found = list(device_obstacles(host))
    if find_library(host, QUOTE_LIBRARY) is None:
        found.append(f"{QUOTE_LIBRARY} is not installed")
    return tuple(found)


def device_obstacles(host: Path = Path("/")) -> tuple[str, ...]:
    """The same for the devices alone."""
    found = (device_obstacle(host, names) for names in (ENCLAVE_DEVICES, PROVISION_DEVICES))
    return tuple(clause for clause in found if clause)


def find_library(host: Path, name: str) -> Path | None:
    """Where a library is among the usual folders; the dynamic linker may know others."""
    paths = (host / folder / name for folder in LIBRARY_FOLDERS)
    return next((path for path in paths if path.exists()), None)


def present_device(host: Path, names: tuple[str, ...]) -> str | None:
    """The first of these names at which something stands."""
    return next((name for name in names if os.path.lexists(host / name)), None)


def device_obstacle(host: Path, names: tuple[str, ...]) -> str:
    """Why this process cannot open a device that has one of these names; empty when it can."""
    name = present_device(host, names)
    if name is None:
        return f"/{names[0]} does not exist"
    try:
        # Opening is the kernel's own test: device cgroups and capabilities count, which access(2) does not ask.
        os.close(os.open(host / name, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except FileNotFoundError:
        return f"/{name} is a link to nothing"
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            return f"no permission to open /{name}" + (" (group sgx_prv)" if "provision" in name else "")
        if error.errno in {errno.ENXIO, errno.ENODEV}:
            return f"/{name} cannot be opened: {error.strerror}: the SGX driver was unloaded or replaced"
        return "" if error.errno in _SCARCITY else f"/{name} cannot be opened: {error.strerror}"
    return ""
