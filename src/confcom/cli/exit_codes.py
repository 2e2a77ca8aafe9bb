"""Exit codes of every command, and the table from the error family to them."""

from __future__ import annotations

from enum import IntEnum

from confcom import errors
from confcom.appraisal.findings import Verdict


class ExitCode(IntEnum):
    """What a command's exit code means; for `verify`, 0 is: accepted."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    MALFORMED = 3
    NOT_AUTHENTIC = 4
    REFUSED = 5
    COLLATERAL = 6
    PLATFORM = 7


# The first class that fits decides, so subclasses stand before what they derive from.
ERROR_EXIT_CODES: tuple[tuple[type[errors.ConfcomError], ExitCode], ...] = (
    (errors.FormatError, ExitCode.MALFORMED),
    (errors.StaleCollateralError, ExitCode.COLLATERAL),
    (errors.VerificationError, ExitCode.NOT_AUTHENTIC),
    (errors.PolicyError, ExitCode.REFUSED),
    (errors.CollateralError, ExitCode.COLLATERAL),
    (errors.PlatformError, ExitCode.PLATFORM),
    (errors.ClusterError, ExitCode.PLATFORM),
    (errors.ProtocolError, ExitCode.PLATFORM),
    (errors.ConfigError, ExitCode.USAGE),
)

VERDICT_EXIT_CODES: dict[Verdict, ExitCode] = {
    Verdict.ACCEPTED: ExitCode.OK,
    Verdict.REFUSED: ExitCode.REFUSED,
    Verdict.INVALID: ExitCode.NOT_AUTHENTIC,
    Verdict.UNDECIDED: ExitCode.COLLATERAL,
}


def exit_code(error: errors.ConfcomError) -> ExitCode:
    """The exit code of an error."""
    for kind, code in ERROR_EXIT_CODES:
        if isinstance(error, kind):
            return code
    return ExitCode.UNEXPECTED
