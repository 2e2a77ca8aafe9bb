"""`confcom collateral status`: what expires, what is missing, who falls behind; its exit code can page someone."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import click

from confcom.cli.collateral import store_option, trust_root_option
from confcom.cli.exit_codes import ExitCode
from confcom.cli.inputs import parse_hex, parse_time
from confcom.cli.printable import printable
from confcom.cli.trust_options import trust_roots
from confcom.collateral.store.status import MissingDocument, PlatformStatus, StoreStatus, as_dict, store_status
from confcom.collateral.store.store import CollateralStore
from confcom.errors import ConfigError

DEFAULT_MIN_VALIDITY = "7d"
"""Intel's documents last 30 days: under 7, refreshing has failed for three weeks, and a week is left to act."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@click.command()
@store_option
@click.option(
    "--min-validity",
    metavar="DURATION",
    default=DEFAULT_MIN_VALIDITY,
    show_default=True,
    help="Exit 6 when a document in force is valid for less: 90m, 36h, 7d, 2w.",
)
@click.option("--fail-on-promotion", is_flag=True, help="Exit 6 also when the coming set leaves a platform behind.")
@click.option("--fmspc", metavar="HEX", multiple=True, help="Look at these alone. Repeatable.")
@click.option("--at", metavar="RFC3339", help="Look as of this time. Default: now.")
@trust_root_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(
    store: Path,
    min_validity: str,
    fail_on_promotion: bool,
    fmspc: tuple[str, ...],
    at: str | None,
    trust_root: tuple[str, ...],
    as_json: bool,
) -> int:
    """Show when each document in force expires, which documents are missing, and which known platforms the coming TCB
    promotion (the early set) would turn out of date, with the first component that is too low.

    Exit 6 when a document has less time left than --min-validity, when one is missing (of an empty store all are), or
    when the clock is wrong; 0 otherwise.
    """
    threshold = parse_duration(min_validity, "--min-validity")
    fmspcs = frozenset(parse_hex(digits, "--fmspc", most=6) for digits in fmspc)
    now = parse_time(at, "--at")
    with CollateralStore(store, roots=trust_roots(trust_root), create=False) as opened:
        found = store_status(opened, now, fmspcs=fmspcs)
    if as_json:
        click.echo(json.dumps(as_dict(found, min_validity=threshold, clock=at is None), indent=2))
    else:
        _show(found, threshold, clock=at is None)
    alarms = [found.expiring(threshold), found.missing, found.not_yet_valid]
    alarms += [found.falling_behind] if fail_on_promotion else []
    return ExitCode.COLLATERAL if any(alarms) else ExitCode.OK


def parse_duration(text: str, option: str) -> timedelta:
    """A duration such as `90m`, `36h` or `7d`."""
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if match is None:
        raise ConfigError(f"{option}: {text!r} is not a duration such as 90m, 36h, 7d or 2w")
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


def _show(found: StoreStatus, threshold: timedelta, *, clock: bool) -> None:
    if clock and found.clock_problem:
        click.echo(f"CLOCK: {found.clock_problem}; the times below are by this clock")
    if not found.documents:
        click.echo("the store holds no documents of a trusted root (--trust-root names others)")
    for document in found.documents:
        low = "  LOW" if document.seconds_left < threshold.total_seconds() else ""
        left = "not yet valid" if document in found.not_yet_valid else _left(document.seconds_left)
        click.echo(f"{left:>14}  {document.key!s:<60} number {document.number}{low}")
    for entry in found.missing:
        click.echo(f"{'missing':>14}  {_missing(entry)}")
    for platform in found.platforms:
        click.echo(f"platform {platform.platform.id[:16]}  FMSPC {platform.platform.fmspc.hex()}  {_judged(platform)}")


def _missing(entry: MissingDocument) -> str:
    if entry.key is None or entry.fmspc is None:
        return "every TCB info: fetch that of your platforms (confcom collateral fetch --quote FILE, or --fmspc HEX)"
    return f"{entry.key} (for {entry.tee.upper()} quotes of FMSPC {entry.fmspc.hex()})"


def _judged(platform: PlatformStatus) -> str:
    now = _set("standard", platform.standard_number, platform.standard_status)
    then = _set("early", platform.early_number, platform.early_status)
    words = f"{now}, {then}"
    if platform.falls_behind:
        words += "  FALLS BEHIND with the coming set"
    if platform.shortfall is not None and (platform.falls_behind or platform.out_of_date):
        words += f"\n  {printable(platform.shortfall.sentence())}"
    return words


def _set(name: str, number: int | None, status_then: str | None) -> str:
    if number is None:
        return f"{name}: no TCB info"
    return f"{name} ({number}): {status_then or 'below every level'}"


def _left(seconds: int) -> str:
    if seconds < 0:
        return f"expired {_span(-seconds)}"
    return f"{_span(seconds)} left"


def _span(seconds: int) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
