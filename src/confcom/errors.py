"""Every failure of the project, one family, and the exit codes of commands.

An error says what failed in its message, carries a stable kebab-case `code` for machines, and `advice()` says
what a person can do next. Third-party exceptions are translated where the library is called, so above that line
only `ConfcomError` exists. A TCB that is out of date is not an error: it is a status in the result.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import Any, ClassVar, Self


class ConfcomError(Exception):
    """The base of all errors. Every error can be pickled with all its fields, to cross processes."""

    code: ClassVar[str] = "confcom-error"
    default_advice: ClassVar[str] = "Run the command again with --verbose and report what it prints."

    def __init__(self, message: str, *, advice: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self._advice = advice

    def advice(self) -> str:
        """What the user can do next: one or two sentences."""
        return self._advice if self._advice is not None else self.default_advice

    def as_dict(self) -> dict[str, str]:
        """The error for machines: `code`, `message`, `advice`."""
        return {"code": self.code, "message": self.message, "advice": self.advice()}

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args`, which lack the keyword arguments of the constructor.
        return self._restored, self.args, self.__dict__

    @classmethod
    def _restored(cls, *args: object) -> Self:
        return cls.__new__(cls, *args)


class FormatError(ConfcomError, ValueError):
    """Bytes or JSON are not the documented layout; says in which structure and field, and where.

    `offset` counts bytes from the start of the structure's input; None where a position has no meaning.
    """

    code = "malformed-input"
    default_advice = "Check that the file is complete and of the kind named here; `confcom inspect` shows what it is."

    def __init__(
        self,
        message: str,
        *,
        structure: str,
        field: str,
        offset: int | None = None,
        advice: str | None = None,
    ) -> None:
        where = f"{structure}.{field}" if field else structure
        at = f" at byte {offset}" if offset is not None else ""
        super().__init__(f"{where}{at}: {message}", advice=advice)
        self.structure = structure
        self.field = field
        self.offset = offset

    def as_dict(self) -> dict[str, str]:
        """The error for machines, with `structure`, `field`, and `offset` where there is one."""
        found = super().as_dict() | {"structure": self.structure, "field": self.field}
        return found if self.offset is None else found | {"offset": str(self.offset)}


class ProtocolError(ConfcomError):
    """A message violates its protocol."""

    code = "protocol-error"
    default_advice = "Check that both sides speak the same protocol and version."


class LocalProtocolError(ProtocolError):
    """Our side used the protocol wrongly."""

    code = "protocol-misuse"


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow."""

    code = "protocol-violation"


class VerificationError(ConfcomError):
    """Evidence, or a document by itself, is not authentic. Never worth a retry with the same input.

    `step` names the numbered step of the verification, `expected` and `found` what was compared there.
    """

    code = "not-authentic"
    default_advice = "Do not trust this evidence; ask the attester for a fresh quote."

    def __init__(
        self,
        message: str,
        *,
        step: str = "",
        expected: str = "",
        found: str = "",
        advice: str | None = None,
    ) -> None:
        super().__init__(message, advice=advice)
        self.step = step
        self.expected = expected
        self.found = found


class CertificateError(VerificationError):
    """A certificate or a chain is not acceptable."""

    code = "certificate-invalid"


class UntrustedRootError(CertificateError):
    """A chain is valid but ends at a root that is not trusted."""

    code = "root-untrusted"
    default_advice = (
        "Only Intel's root is trusted by default. If this is a simulated platform of your own, "
        "name its root with --trust-root FILE; its results are then marked as simulated."
    )


class SignatureError(VerificationError):
    """A signature does not match what it is said to sign."""

    code = "signature-invalid"


class RevokedError(VerificationError):
    """A certificate is on the revocation list of its issuer."""

    code = "certificate-revoked"
    default_advice = "Intel revoked this key: the platform must not be trusted until it has been provisioned again."


class BindingError(VerificationError):
    """A hash does not bind what it should: the key to the QE report, or the data to the report data."""

    code = "binding-mismatch"


class MismatchError(VerificationError):
    """Evidence and identity, or a PCK certificate and the request for it, are of different platforms or enclaves."""

    code = "mismatch"
    default_advice = "Fetch the collateral that belongs to this platform (its FMSPC, PCE-ID and CA) and verify again."


class StaleCollateralError(VerificationError):
    """Collateral is expired or not yet valid at the time of verification."""

    code = "collateral-stale"
    default_advice = "Fetch fresh collateral (`confcom collateral fetch`), or state the time to judge at with --at."


class PolicyError(ConfcomError):
    """Evidence is authentic, but not acceptable under the policy; the message names every finding."""

    code = "policy-refused"
    default_advice = "Compare the findings with the policy; change the one that is wrong."


class TcbNotSupportedError(PolicyError):
    """No TCB level of the collateral is as low as this platform (Intel: TCB_NOT_SUPPORTED)."""

    code = "tcb-not-supported"
    default_advice = (
        "The platform is below every level that Intel still lists. Update its BIOS and microcode, "
        "then let it fetch a new PCK certificate."
    )


class TcbRevokedError(PolicyError):
    """Intel revoked the TCB level of this platform; no policy can accept it."""

    code = "tcb-revoked"
    default_advice = "The platform must not be trusted until its BIOS, microcode and PCK certificate have been updated."


class PlatformError(ConfcomError):
    """The platform could not make evidence. `native_code` keeps the number of the library underneath."""

    code = "platform-error"
    default_advice = "Run `confcom doctor` on the node."

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        native_code: int | None = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(message, advice=advice)
        self.retryable = retryable
        self.native_code = native_code


class PlatformUnavailable(PlatformError):
    """There is no platform here: a device, permission, library or service is missing."""

    code = "platform-unavailable"


class PlatformBusy(PlatformError):
    """The platform is overloaded; the same request may succeed later."""

    code = "platform-busy"
    default_advice = "Try again in a moment."

    def __init__(self, message: str, *, native_code: int | None = None, advice: str | None = None) -> None:
        super().__init__(message, retryable=True, native_code=native_code, advice=advice)


class KeyNotInitialized(PlatformError):
    """A quote or its size was asked before the attestation key was made."""

    code = "attestation-key-not-initialized"
    default_advice = (
        "Ask for the quoting enclave's target info again, make a new report for it, then ask for the quote."
    )


class UnsupportedKeyId(PlatformError):
    """The attestation key id names a quoting enclave that this platform does not have."""

    code = "attestation-key-id-unsupported"
    default_advice = "Use one of the ids that the platform lists."


class ReportRejected(PlatformError):
    """The report was not made on this machine for the present quoting enclave: its MAC is wrong."""

    code = "report-rejected"
    default_advice = "Ask for the quoting enclave's target info again and make a new report for it."


class NativeError(PlatformError):
    """A library or enclave returned an error; unknown numbers are kept."""

    code = "platform-native-error"


class CollateralError(ConfcomError):
    """Collateral is missing or cannot be fetched."""

    code = "collateral-error"
    default_advice = "Name collateral with --collateral, or check the collateral service."


class CollateralNotFound(CollateralError):
    """The source answered: it has no such collateral."""

    code = "collateral-not-found"


class CollateralUnavailable(CollateralError):
    """The source did not answer; the same request may succeed later."""

    code = "collateral-unavailable"


class ClockError(CollateralError):
    """The clock of this machine, or of the one that collateral comes from, is wrong."""

    code = "clock-wrong"
    default_advice = "Set the clock (`timedatectl`, or `chronyc makestep`) and run the command again."


class CollateralInvalid(CollateralError):
    """A document of the collateral is malformed, not genuine or not for this platform; no statement about the evidence.

    `document` names it (a file, a URL); `step`, `expected` and `found` are as in a `VerificationError`.
    """

    code = "collateral-invalid"
    default_advice = "Fetch it again, and keep it byte for byte as it was served: editors and jq change signed bytes."

    def __init__(
        self,
        message: str,
        *,
        document: str,
        step: str = "",
        expected: str = "",
        found: str = "",
        advice: str | None = None,
    ) -> None:
        super().__init__(f"{document}: {message}", advice=advice)
        self.document = document
        self.step = step
        self.expected = expected
        self.found = found

    @classmethod
    def of(cls, error: FormatError | VerificationError, document: str) -> Self:
        """The error of a document of the collateral, where `error` would blame the evidence."""
        if isinstance(error, FormatError):
            return cls(error.message, document=document, advice=error._advice)
        message, advice = error.message, None
        if isinstance(error, SignatureError):
            message += ": these are not the bytes that were signed"
        elif isinstance(error, (UntrustedRootError, RevokedError)):
            advice = error.advice()
        return cls(
            message, document=document, step=error.step, expected=error.expected, found=error.found, advice=advice
        )

    def as_dict(self) -> dict[str, str]:
        """The error for machines, with `document`."""
        return super().as_dict() | {"document": self.document}


class ClusterError(ConfcomError):
    """The Kubernetes API did not answer, or answered with an error: HTTP's `status`, Kubernetes' `reason`."""

    code = "cluster-error"
    default_advice = (
        "Check that the cluster answers: `kubectl get --raw /readyz`, with the same kubeconfig and context."
    )

    def __init__(
        self, message: str, *, status: int | None = None, reason: str | None = None, advice: str | None = None
    ) -> None:
        super().__init__(message, advice=advice)
        self.status = status
        self.reason = reason


class ClusterRefused(ClusterError):
    """The Kubernetes API refused a request: forbidden, not found, in conflict, or invalid."""

    code = "cluster-refused"
    default_advice = "The message is the API server's; `kubectl auth can-i --list` shows what these credentials may do."


class ConfigError(ConfcomError):
    """Options, environment or a configuration file contradict each other or are incomplete.

    `setting` is the field that is wrong, with which the message begins.
    """

    code = "configuration-error"
    default_advice = "See `confcom COMMAND --help`."

    def __init__(self, message: str, *, setting: str = "", advice: str | None = None) -> None:
        super().__init__(f"{setting}: {message}" if setting else message, advice=advice)
        self.setting = setting

    def given_by(self, place: str) -> ConfigError:
        """The same error, which begins with the place where the setting was given, such as an option."""
        return ConfigError(self.message.removeprefix(f"{self.setting}: "), setting=place, advice=self._advice)


class OutputError(ConfigError):
    """Standard output, or a file that a command writes, did not take what was written."""

    code = "output-failed"


class DatabaseError(ConfigError):
    """The database refused a request of the service: it lacks rights, space or the schema."""

    code = "database-error"
    default_advice = "Check the address of the database (--store), and what its role or this user may do."


class DatabaseUnavailable(DatabaseError):
    """The database is busy or does not answer; the same request may succeed later."""

    code = "database-unavailable"


class DatabaseDamaged(DatabaseError):
    """The database holds data that no confcom wrote: a damaged disk or file."""

    code = "database-damaged"
    default_advice = "Stop the service, keep a copy of the database, and restore the last backup."


class ExitCode(IntEnum):
    """Exit codes of every command. For `verify`, 0 means accepted."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    MALFORMED = 3
    NOT_AUTHENTIC = 4
    REFUSED = 5
    COLLATERAL = 6
    PLATFORM = 7
    INTERRUPTED = 130


# The first class that fits decides, so subclasses stand before what they derive from.
ERROR_EXIT_CODES: tuple[tuple[type[ConfcomError], ExitCode], ...] = (
    (FormatError, ExitCode.MALFORMED),
    (StaleCollateralError, ExitCode.COLLATERAL),
    (VerificationError, ExitCode.NOT_AUTHENTIC),
    (PolicyError, ExitCode.REFUSED),
    (CollateralError, ExitCode.COLLATERAL),
    (PlatformError, ExitCode.PLATFORM),
    (ClusterError, ExitCode.PLATFORM),
    (ProtocolError, ExitCode.PLATFORM),
    (ConfigError, ExitCode.USAGE),
)


def exit_code(error: ConfcomError) -> ExitCode:
    """The exit code of an error: that of the first listed class that it belongs to."""
    for kind, code in ERROR_EXIT_CODES:
        if isinstance(error, kind):
            return code
    return ExitCode.UNEXPECTED


WANT = frozenset((errno.EMFILE, errno.ENFILE))
"""This process has no descriptor left, or the system has none."""


def check_want(error: OSError) -> None:
    """`PlatformUnavailable` for want of descriptors: what cannot be opened is not what is not there."""
    if error.errno in WANT:
        raise cannot_open(error) from error


def cannot_open(error: OSError) -> PlatformUnavailable:
    """A failure after which nothing is known of any file."""
    advice = "Raise the limit of open files, of this process or of the system (fs.file-max)."
    return PlatformUnavailable(f"no file can be opened: {error.strerror}", retryable=True, advice=advice)
