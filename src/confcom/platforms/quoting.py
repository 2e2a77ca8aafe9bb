"""How this process gets quotes: QE and PCE in itself (in-proc), in the quote helper (out-of-proc), or through Gramine.

`choose_mode` reads the same signs as Intel's libraries, Open Enclave and Gramine, and gives its reason in one line.
`ProcessMode` holds the decision: a process has one mode, never both. `open_quote_source` then gives a `QuoteSource`,
which is the same call in every mode.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

from msgspec import structs

from confcom.errors import (
    BindingError,
    ConfigError,
    KeyNotInitialized,
    PlatformError,
    PlatformUnavailable,
    ReportRejected,
)
from confcom.formats.quote import MAX_QUOTE, Quote
from confcom.formats.sgx import QeReportInfo, Report, ReportBody, TargetInfo
from confcom.platforms.aesm_client import DEFAULT_SOCKET, AesmPlatform
from confcom.platforms.interface import (
    InitializedQuote,
    Platform,
    QuoteResult,
    ReportSource,
    check_sizes,
    sdk_simulation_refused,
)
from confcom.protocols.aesm import VARIABLE

RequestedMode = Literal["auto", "in-proc", "out-of-proc"]


class QuoteMode(StrEnum):
    """Where QE and PCE are. Under Gramine they are outside too, but Gramine does the asking."""

    IN_PROC = "in-proc"
    OUT_OF_PROC = "out-of-proc"
    GRAMINE = "gramine"


@dataclass(frozen=True, slots=True)
class ModeDecision:
    """A mode and why it is that one; `str` is the line to print at the start of a program."""

    mode: QuoteMode
    reason: str

    def __str__(self) -> str:
        return f"quotes {_WHENCE[self.mode]}, because {self.reason}"

    def fulfils(self, requested: RequestedMode) -> bool:
        """Whether this mode satisfies the requested one."""
        match requested:
            case "auto":
                return True
            case "in-proc":
                return self.mode is QuoteMode.IN_PROC
            case "out-of-proc":
                return self.mode is not QuoteMode.IN_PROC


_WHENCE = {
    QuoteMode.IN_PROC: "in-proc (QE and PCE inside this process)",
    QuoteMode.OUT_OF_PROC: "out-of-proc (QE and PCE in the quote helper)",
    QuoteMode.GRAMINE: "through Gramine (out-of-proc, /dev/attestation)",
}


def choose_mode(requested: RequestedMode, environ: Mapping[str, str], host: Path = Path("/")) -> ModeDecision:
    """Decide from the request, the environment and the host's `/dev/attestation`; contradictions are `ConfigError`s.

    The order is the one of attestation-service.md §5: Gramine where it attests, else the presence of SGX_AESM_ADDR.
    An explicit out-of-proc needs no variable; an explicit in-proc beside it is a contradiction, because Intel's
    libraries in this process would follow the variable.
    """
    gramine = attestation_type(host)
    if gramine == "dcap":
        return _under_gramine(requested)
    if VARIABLE in environ:
        return _with_variable(requested, environ[VARIABLE])
    if requested == "out-of-proc":
        return ModeDecision(QuoteMode.OUT_OF_PROC, "it was asked for")
    asked = "it was asked for" if requested == "in-proc" else f"{VARIABLE} is not set"
    without = "" if gramine is None else f" and Gramine's attestation type is {gramine!r}"
    return ModeDecision(QuoteMode.IN_PROC, asked + without)


def _under_gramine(requested: RequestedMode) -> ModeDecision:
    if requested == "in-proc":
        raise ConfigError(
            "in-proc was asked for, but this process runs under Gramine, whose quotes always come from outside",
            advice="Leave the mode to auto: Gramine asks the quote helper by itself.",
        )
    return ModeDecision(QuoteMode.GRAMINE, "Gramine's attestation type is 'dcap'")


def _with_variable(requested: RequestedMode, value: str) -> ModeDecision:
    if requested == "in-proc":
        raise ConfigError(
            f"in-proc was asked for, but {VARIABLE} is set, which means out-of-proc whatever its value is",
            advice=f"Remove {VARIABLE} from the environment (an empty value counts as set), or ask for "
            "out-of-proc or auto.",
        )
    shown = "to the empty string; any value counts" if not value else "in the environment"
    return ModeDecision(QuoteMode.OUT_OF_PROC, f"{VARIABLE} is set {shown}")


class ProcessMode:
    """The one decision of a process. Programs take theirs from `process_mode()`; a fresh one is for tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decision: ModeDecision | None = None

    @property
    def decision(self) -> ModeDecision | None:
        """What was decided; None before the first `decide`."""
        return self._decision

    def decide(self, requested: RequestedMode, environ: Mapping[str, str], host: Path = Path("/")) -> ModeDecision:
        """Decide, once: later calls get the first decision, whatever the environment is by then.

        Asking explicitly for the other mode is a `ConfigError`.
        """
        with self._lock:
            if self._decision is None:
                self._decision = choose_mode(requested, environ, host)
            if not self._decision.fulfils(requested):
                raise ConfigError(
                    f"{requested} was asked for, but this process has decided already: {self._decision}",
                    advice="A process has one mode, decided once and never both: start another process for the other.",
                )
            return self._decision


_PROCESS_MODE = ProcessMode()


def process_mode() -> ProcessMode:
    """The decision of this process."""
    return _PROCESS_MODE


class QuoteSource(Protocol):
    """Gives quotes of one enclave. Calls block and may be made from any thread."""

    def quote(self, report_data: bytes, *, nonce: bytes | None = None) -> QuoteResult:
        """A quote over exactly 64 bytes of report data, without padding.

        With a nonce (16 bytes) the QE reports on the quote, for the enclave itself: proof that the quote is the
        QE's and was not exchanged on its way. Failures are `PlatformError`s.
        """


def open_quote_source(
    decision: ModeDecision,
    *,
    enclave: Callable[[], ReportSource],
    in_proc: Callable[[], Platform],
    socket: Path = DEFAULT_SOCKET,
    simulated: bool = False,
    host: Path = Path("/"),
) -> QuoteSource:
    """The source of quotes for a decided mode.

    `enclave` gives the enclave to be quoted and `in_proc` the platform inside this process; each is called only
    where the mode needs it; `simulated`: that enclave is on a simulated machine. Under Gramine the
    process is the enclave.
    """
    match decision.mode:
        case QuoteMode.GRAMINE:
            return GramineQuoteSource(host)
        case QuoteMode.OUT_OF_PROC:
            return EnclaveQuoteSource(AesmPlatform(socket, simulated=simulated), enclave())
        case QuoteMode.IN_PROC:
            return EnclaveQuoteSource(in_proc(), enclave())


class EnclaveQuoteSource:
    """A `QuoteSource` over any platform. The platform is used from one thread at a time.

    The QE's target info is remembered from quote to quote. An updated or restarted quote helper may have another QE
    or no attestation key yet: then the platform is initialized again and the enclave makes a new report, once.
    """

    def __init__(self, platform: Platform, enclave: ReportSource) -> None:
        self.platform = platform
        self._enclave = enclave
        self._initialized: InitializedQuote | None = None
        self._lock = threading.Lock()

    def quote(self, report_data: bytes, *, nonce: bytes | None = None) -> QuoteResult:
        """A quote over 64 bytes; a nonce (16 bytes) asks for the QE's report on it, which is checked but for its MAC.

        The MAC of `qe_report_info.qe_report` can only be checked by the enclave.
        """
        check_sizes(report_data, nonce)
        with self._lock:
            try:
                return self._quote(report_data, nonce)
            except (KeyNotInitialized, ReportRejected):
                self._initialized = None
                return self._quote(report_data, nonce)

    def _quote(self, report_data: bytes, nonce: bytes | None) -> QuoteResult:
        if self._initialized is None:
            self._initialized = self.platform.init_quote()
        report = self._enclave.create_report(self._initialized.target_info, report_data)
        asked = None if nonce is None else _ask_for_qe_report(nonce, report)
        try:
            result = self.platform.quote(report, qe_report_info=asked)
        except ReportRejected as error:
            # An AESM service gives no reason.
            if report.is_of_sdk_simulation:
                raise sdk_simulation_refused() from error
            raise
        if Quote.parse(result.quote).body != report.body:
            raise PlatformError(
                "the platform answered with a quote of another report",
                advice="Do not use that quote. Restart the quote helper; if it happens again, distrust it.",
            )
        if asked is not None:
            _check_qe_report(result, asked)
        return result


def _check_qe_report(result: QuoteResult, asked: QeReportInfo) -> None:
    """Check that the QE's report answers the nonce for this very quote: SHA-256(nonce ‖ quote) ‖ 32 zero bytes."""
    info = result.qe_report_info
    if info is None:
        raise PlatformError("the platform gave no QE report, although it was asked for one")
    expected = hashlib.sha256(asked.nonce + result.quote).digest() + bytes(32)
    found = info.qe_report.body.report_data
    same_request = info.nonce == asked.nonce and info.app_enclave_target_info == asked.app_enclave_target_info
    if not same_request or not hmac.compare_digest(expected, found):
        raise BindingError(
            "the QE's report is not about this quote and nonce",
            step="qe-report-info",
            expected=expected.hex(),
            found=found.hex(),
        )


def _ask_for_qe_report(nonce: bytes, report: Report) -> QeReportInfo:
    empty = Report(body=ReportBody.parse(bytes(ReportBody.size())), key_id=bytes(32), mac=bytes(16))
    return QeReportInfo(nonce=nonce, app_enclave_target_info=TargetInfo.of(report.body), qe_report=empty)


# Quotes under Gramine: the process is the enclave, and `/dev/attestation` is its EREPORT and its quote helper in one.
#
# Gramine's manifest switches it on with `sgx.remote_attestation = "dcap"`. Gramine asks the node's quote helper itself,
# so the folder `/var/run/aesmd` must be in the pod; SGX_AESM_ADDR has no meaning there.

GRAMINE_FOLDER = "dev/attestation"
MAX_GRAMINE_TYPE = 64
"""Bytes of `attestation_type`; Gramine's longest word has four."""

# The pseudo-files are the process's, not the opener's: what one thread writes, another one's quote would speak of.
_GRAMINE_LOCK = threading.Lock()


def attestation_type(host: Path = Path("/")) -> str | None:
    """Gramine's kind of attestation (`none`, `dcap`); None outside Gramine."""
    path = host / GRAMINE_FOLDER / "attestation_type"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_GRAMINE_TYPE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PlatformUnavailable(
            f"cannot read {path}: {error.strerror}", advice="Under Gramine every process may read it: check the image."
        ) from error
    return content.decode("ascii", "replace").strip("\0\n ")


class GramineQuoteSource:
    """A `QuoteSource` over `/dev/attestation` below `host`."""

    def __init__(self, host: Path = Path("/")) -> None:
        self._folder = host / GRAMINE_FOLDER

    def quote(self, report_data: bytes, *, nonce: bytes | None = None) -> QuoteResult:
        """A quote of this process over 64 bytes; Gramine has no way to ask for the QE's report."""
        check_sizes(report_data, nonce)
        if nonce is not None:
            raise ConfigError("Gramine cannot give the QE's report on a quote", advice="Ask without a nonce.")
        with _GRAMINE_LOCK:
            self._write("user_report_data", report_data)
            quote = Quote.parse(self._read("quote"))
        if quote.report_data != report_data:
            raise PlatformError(
                f"{self._folder}/quote is over other report data than was written",
                retryable=True,
                advice="Something else in this process uses /dev/attestation too: let only one place do so.",
            )
        return QuoteResult(bytes(structs.replace(quote, trailing=b"")))

    def _write(self, name: str, content: bytes) -> None:
        path = self._folder / name
        try:
            # One write and no creation: these are Gramine's pseudo-files, or they are nothing.
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                written = os.write(descriptor, content)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unavailable(path, "write", error) from error
        if written != len(content):
            raise PlatformError(f"{path} took {written} of {len(content)} bytes")

    def _read(self, name: str) -> bytes:
        path = self._folder / name
        try:
            with path.open("rb") as file:
                content = file.read(MAX_QUOTE + 1)
        except OSError as error:
            raise _unavailable(path, "read", error) from error
        return content


def _unavailable(path: Path, verb: str, error: OSError) -> PlatformUnavailable:
    return PlatformUnavailable(
        f"cannot {verb} {path}: {error.strerror}",
        native_code=error.errno,
        advice="Gramine asks the quote helper of the node for the quote: check that /var/run/aesmd is mounted, that a "
        'helper listens there, and that the manifest has sgx.remote_attestation = "dcap".',
    )
