"""`./dev bench [NAME…]`: run the benchmarks; `python -m benchmarks.MODULE --help` tells of longer runs."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks import (
    collateral_outage,
    collateral_service,
    collateral_uploads,
    device_plugin,
    epc_use,
    kubelet,
    quote_helper,
    quote_helper_abuse,
    quote_helper_updates,
    scale,
    store_crash,
    verification,
    webhook,
)

BENCHMARKS: dict[str, Callable[[], None]] = {
    "verification": verification.main,
    "quote-helper": quote_helper.main,
    "quote-helper-abuse": quote_helper_abuse.main,
    "quote-helper-updates": quote_helper_updates.main,
    "collateral-outage": collateral_outage.main,
    "store-crash": store_crash.bench,
    "collateral-service": collateral_service.main,
    "collateral-uploads": collateral_uploads.main,
    "device-plugin": device_plugin.main,
    "kubelet": kubelet.main,
    "webhook": webhook.main,
    "epc-use": epc_use.main,
    "scale": scale.main,
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names or BENCHMARKS:
        print(f"== {name}")
        BENCHMARKS[name]()
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
