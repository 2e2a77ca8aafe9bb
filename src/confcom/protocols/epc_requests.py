"""How pods say how much EPC they want: every resource name in use, and its unit; pure."""

from __future__ import annotations

from collections.abc import Mapping

from confcom.errors import FormatError
from confcom.protocols.quantity import parse_quantity

MIB = 1 << 20
CANONICAL = "kubernetes.azure.com/sgx_epc_mem_in_MiB"
"""What the device plugin publishes, and into which admission translates the others."""
EPC_UNITS: Mapping[str, int] = {
    CANONICAL: MIB,
    "sgx.intel.com/sgx_epc_mem_in_MiB": MIB,
    "sgx.intel.com/epc": 1,
    "alibabacloud.com/sgx_epc_MiB": MIB,
}
"""Name of the resource to bytes per unit."""
HELPER_EPC = "sgx.confcom.dev/quote-helper-epc"
"""EPC of the quote helper's own enclaves, in MiB, beside the pool of applications; it brings both devices."""


def requested_epc(amounts: Mapping[str, str], units: Mapping[str, int] = EPC_UNITS) -> int | None:
    """Bytes of EPC in a list of resources such as a container's limits; None if there is nothing of it.

    Several names in one list are the same EPC under several names, so the largest counts. An amount that is no Quantity
    counts as none: the API server would not have taken it.
    """
    found = [bytes_of(name, amount, units) for name, amount in amounts.items() if name in units]
    return max((size for size in found if size is not None), default=None)


def bytes_of(name: str, amount: str, units: Mapping[str, int] = EPC_UNITS) -> int | None:
    """Bytes that an amount of one resource means, rounded up; None if it is no Quantity, or negative."""
    try:
        size = parse_quantity(amount) * units[name]
    except FormatError:
        return None
    return None if size < 0 else -int(-size // 1)
