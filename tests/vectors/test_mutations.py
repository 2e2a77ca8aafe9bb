"""Every authenticated byte of ten real quotes of different kinds, changed in turn: none is accepted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from confcom.appraisal.quote import QuoteVerifier
from confcom.collateral.bundle import load_bundle
from confcom.errors import ConfcomError
from confcom.pki.chain import TrustRoots
from vectors.expectations import real_rows

pytestmark = [pytest.mark.vectors, pytest.mark.promise("M12")]

QUOTES = 10
END = b"-----END CERTIFICATE-----\n"


def ten_quotes(vectors: Path) -> list[tuple[str, Path]]:
    """Quotes of all versions, spread over FMSPCs and sources."""
    # A name ends with the date of its collateral; one quote comes with several.
    rows = {row.folder.name.rsplit("-", 1)[0]: row.folder for row in real_rows(vectors) if row.authentic}
    chosen: list[tuple[str, Path]] = []
    for version, count in (("sgx3", 4), ("tdx4", 4), ("tdx5", 2)):
        found = [(name, folder) for name, folder in sorted(rows.items()) if name.startswith(version)]
        chosen += found[:: max(1, len(found) // count)][:count]
    return chosen


@pytest.mark.parametrize("number", range(QUOTES))
def test_no_authenticated_byte_can_change(vectors: Path, number: int) -> None:
    _, folder = ten_quotes(vectors)[number]
    quote, collateral = (folder / "quote.bin").read_bytes(), load_bundle(folder)
    verifier, now = QuoteVerifier(TrustRoots.intel()), datetime(2026, 1, 1, tzinfo=UTC)
    verifier.verify(quote, collateral, now=now)
    accepted = []
    # What follows the last certificate is wrapping, where any blank may stand.
    for offset in range(quote.rindex(END) + len(END)):
        changed = bytearray(quote)
        changed[offset] ^= 1 << offset % 8
        try:
            verifier.verify(bytes(changed), collateral, now=now)
        except ConfcomError:
            continue
        accepted.append(offset)
    assert accepted == []
