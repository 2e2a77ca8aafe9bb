"""Is the collateral that somebody verifies with genuine and fresh."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from confcom.appraisal.collateral import verify_collateral
from confcom.collateral.bundle import load_bundle
from confcom.errors import ConfcomError
from confcom.pki.roots import TrustRoots
from confcom.services.diagnosis import Finding, Level

_FETCH = "Fetch fresh collateral (docs/howto/get-collateral.md)."


def collateral_finding(path: Path | None, roots: TrustRoots, now: datetime) -> Finding:
    """For a bundle; the store has a command of its own."""
    if path is None:
        return Finding("collateral", Level.OK, "none was named (--collateral); only verifiers need it")
    try:
        verified = verify_collateral(load_bundle(path), roots=roots)
    except ConfcomError as error:
        said = str(error)
        found = said if str(path) in said else f"{path}: {said}"
        return Finding("collateral", Level.PROBLEM, found, error.advice())
    simulated = ", SIMULATED" if verified.simulated else ""
    found = f"{path}: first to expire {verified.earliest_expiration:%Y-%m-%dT%H:%M:%SZ}{simulated}"
    if verified.stale(now):
        return Finding("collateral", Level.PROBLEM, f"{found}, out of date at {now:%Y-%m-%dT%H:%M:%SZ}", _FETCH)
    return Finding("collateral", Level.OK, found)
