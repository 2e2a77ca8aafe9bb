"""Kubernetes' notation of amounts, such as `10Mi` or `1k`; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from confcom.errors import FormatError

_SUFFIXES: Mapping[str, Fraction] = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12), "P": Fraction(10**15),
    "E": Fraction(10**18), "Ki": Fraction(1 << 10), "Mi": Fraction(1 << 20), "Gi": Fraction(1 << 30),
    "Ti": Fraction(1 << 40), "Pi": Fraction(1 << 50), "Ei": Fraction(1 << 60),
}  # fmt: skip
_QUANTITY = re.compile(
    r"([+-]?)([0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32})(?:[eE]([+-]?[0-9]{1,2})|([numkMGTPE]|[KMGTPE]i)?)"
)


def parse_quantity(text: str) -> Fraction:
    """A Kubernetes Quantity, such as `1k` for 1000 or `512Gi`; `FormatError` for anything else."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise FormatError(f"{text[:40]!r} is no quantity", structure="Quantity", field="")
    sign, digits, exponent, suffix = match.groups()
    scale = Fraction(10) ** int(exponent) if exponent else _SUFFIXES[suffix or ""]
    return Fraction(digits) * scale * (-1 if sign == "-" else 1)
