"""`./dev bench [--write] [NAME…]`: run benchmarks; `python -m benchmarks.MODULE --help` describes longer runs.

With `--write` the section of each benchmark that ran replaces its predecessor in docs/explanation/performance.md, with
the command, the machine and the load it ran under.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import (
    attestation,
    attested_tls,
    certificate_signer,
    cluster,
    collateral_outage,
    collateral_service,
    collateral_uploads,
    device_plugin,
    engines,
    epc_use,
    fleet,
    kubelet,
    metrics_api,
    process_start,
    quote_helper,
    quote_helper_abuse,
    quote_helper_peer,
    quote_helper_updates,
    scale,
    scrape,
    store_crash,
    verification,
    webhook,
)
from benchmarks.measure import Row

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "explanation" / "performance.md"
BENCHMARKS: dict[str, Callable[[], Iterable[Row]]] = {
    "verification": verification.rows,
    "process-start": process_start.rows,
    "quote-helper": quote_helper.rows,
    "quote-helper-peer": quote_helper_peer.rows,
    "quote-helper-abuse": quote_helper_abuse.rows,
    "quote-helper-updates": quote_helper_updates.rows,
    "collateral-outage": collateral_outage.rows,
    "store-crash": store_crash.rows,
    "collateral-service": collateral_service.rows,
    "collateral-uploads": collateral_uploads.rows,
    "engines": engines.rows,
    "fleet": fleet.rows,
    "device-plugin": device_plugin.rows,
    "kubelet": kubelet.rows,
    "cluster": cluster.rows,
    "webhook": webhook.rows,
    "attestation": attestation.rows,
    "attested-tls": attested_tls.rows,
    "certificate-signer": certificate_signer.rows,
    "epc-use": epc_use.rows,
    "metrics-api": metrics_api.rows,
    "scrape": scrape.rows,
    "scale": scale.rows,
}
HEAD = """# Performance

Written by `./dev bench --write`; `./dev bench --write NAME` renews one section. *Beside* is the peer's figure, or the
limit's, from the same run; *ratio* is ours divided by it. For times less is better, for rates more.
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="./dev bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"all if none is given: {', '.join(BENCHMARKS)}")
    parser.add_argument("--write", action="store_true", help=f"write the figures into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    failed: list[str] = []
    for name in options.names or BENCHMARKS:
        print(f"== {name}")
        rows: list[Row] = []
        try:
            for row in BENCHMARKS[name]():
                print(row, flush=True)
                rows.append(row)
        except SystemExit as ended:
            failed.append(f"{name}: {ended}")
        if options.write and rows:
            write(PAGE, section(name, rows))
        print()
    for failure in failed:
        print(failure, file=sys.stderr)
    return 1 if failed else 0


def section(name: str, rows: list[Row]) -> str:
    """A section of the page: under what it was measured, and a table."""
    lines = [f"## {name}", "", machine(f"./dev bench {name}"), ""]
    lines += ["| what | ours | beside | ratio | details |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row.cells()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(page: Path, new: str) -> None:
    """Put one section into the page, in the order of the table of benchmarks."""
    old = page.read_text().split("\n## ")[1:] if page.exists() else []
    sections = {part.split("\n", 1)[0]: f"## {part.rstrip()}\n" for part in old}
    sections[new.split("\n", 1)[0].removeprefix("## ")] = new
    page.write_text("\n".join([HEAD, *(sections[name] for name in BENCHMARKS if name in sections)]))


def machine(command: str) -> str:
    """Command, date, commit, processor, Python and load, in one sentence."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(": ")[2] if models else platform.machine()
    now = datetime.now(UTC)  # noqa: TID251 - when it was measured
    return (
        f"`{command}`, {now:%Y-%m-%d}, commit {described.stdout.strip() or 'unknown'};\n{os.cpu_count()} x {model}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
