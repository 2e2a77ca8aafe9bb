"""What the index of the vectors says about each row, in this project's words."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from confcom.appraisal.findings import Verdict
from confcom.formats.tcb_info import TcbStatus

QVL_STATUS: dict[str, TcbStatus | None] = {
    "OK": TcbStatus.UP_TO_DATE,
    "TCB_SW_HARDENING_NEEDED": TcbStatus.SW_HARDENING_NEEDED,
    "TCB_CONFIGURATION_NEEDED": TcbStatus.CONFIGURATION_NEEDED,
    "TCB_CONFIGURATION_AND_SW_HARDENING_NEEDED": TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
    "TCB_OUT_OF_DATE": TcbStatus.OUT_OF_DATE,
    "TCB_OUT_OF_DATE_CONFIGURATION_NEEDED": TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
    "TCB_REVOKED": TcbStatus.REVOKED,
    "TCB_NOT_SUPPORTED": None,
}
"""Verdicts of Intel's library on authentic quotes; every other one means: not authentic."""

# Rows where the reference verifiers differ, or the label leaves the choice open, and what ours does.
OUR_CHOICE: dict[str, tuple[str, TcbStatus | None]] = {
    # The signature is over other bytes than those transmitted: only a re-serialising verifier accepts it.
    "tcb-whitespace": ("invalid", None),
    # One byte of the signature section is accounted for by no field.
    "certsize-minus1": ("invalid", None),
    # The chains lead to the pinned root key without the root certificate in them.
    "chain-no-root": ("authentic", None),
    "tcb-chain-leaf-only": ("authentic", None),
    # Signed over the transmitted bytes, with white space: exactly what the rule says.
    "sgx3-tcbinfo-pretty-signed-raw": ("authentic", TcbStatus.UP_TO_DATE),
}

# Beginnings of the rows whose collateral is not genuine, malformed, or another platform's.
COLLATERAL_AT_FAULT = (
    "tcb-",
    "pckcrl-",
    "rootcrl-",
    "chain-of-other-platform",
    "dup-levels",
    "unknown-status",
    "fmspc-mismatch",
    "qeid-tdqe",
    "qe-identity-sgx",
    "sgx-tcbinfo",
    "tcbsign-revoked",
    "tcbinfo-foreign-sig",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One vector: `authentic` with the status of `tcb_status` (None: no level matches), or not authentic.

    Where it is the collateral that is not genuine or not for the platform, nothing is decided about the evidence.
    """

    folder: Path
    time: int
    authentic: bool
    tcb_status: TcbStatus | None
    stale: bool
    advisory_ids: frozenset[str] | None
    collateral_at_fault: bool

    def verdict(self, *, acceptable: bool) -> Verdict:
        """What `judge` must say when everything but the TCB status is or is not acceptable."""
        if not self.authentic:
            return Verdict.UNDECIDED if self.collateral_at_fault else Verdict.INVALID
        if self.stale:
            return Verdict.UNDECIDED
        return Verdict.ACCEPTED if acceptable and self.tcb_status is TcbStatus.UP_TO_DATE else Verdict.REFUSED


def real_rows(vectors: Path) -> list[Row]:
    """Real quotes with collateral."""
    return [_row(vectors / "real", row, row["name"]) for row in _read(vectors / "index.tsv") if row["verify_time"]]


def negative_rows(vectors: Path) -> list[Row]:
    """Mutations of real quotes and collateral."""
    return [_row(vectors / "negative", row, row["mutation"]) for row in _read(vectors / "negative" / "index.tsv")]


def simulated_rows(vectors: Path) -> list[Row]:
    """Quotes below a simulated root."""
    return [_row(vectors / "sim", row, row["name"]) for row in _read(vectors / "sim" / "index.tsv")]


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def _row(folder: Path, row: dict[str, str], key: str) -> Row:
    status = row["qvl_1.27"]
    authentic = status in QVL_STATUS
    tcb_status = QVL_STATUS.get(status)
    if key in OUR_CHOICE:
        word, chosen = OUR_CHOICE[key]
        authentic = word == "authentic"
        tcb_status = chosen or _baseline_status(row)
    expected = row.get("expected", "")
    stale = row["qvl_expired"] == "1" or "tcbinfo-future" in key or expected in ("reject:EXPIRED", "reject:NOT_YET")
    listed = row.get("qvl_advisories")
    advisories = frozenset(listed.split(",")) if listed else None
    at_fault = key.removeprefix("sgx3-").removeprefix("tdx4-").startswith(COLLATERAL_AT_FAULT)
    return Row(folder / row["name"], int(row["verify_time"]), authentic, tcb_status, stale, advisories, at_fault)


def _baseline_status(row: dict[str, str]) -> TcbStatus | None:
    words = row["dcap_qvl_0.7.0"].removeprefix("OK:").split()
    return TcbStatus(words[0]) if row["dcap_qvl_0.7.0"].startswith("OK:") else None
