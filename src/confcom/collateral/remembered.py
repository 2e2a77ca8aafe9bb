"""Collateral for whoever verifies quotes of the same few platforms again and again: from a source, with a memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from confcom.appraisal.collateral import Collateral
from confcom.collateral.for_quote import platform_of
from confcom.collateral.pcs_client import HttpLimits
from confcom.collateral.resolve import SourceOptions, resolve
from confcom.errors import CollateralError
from confcom.formats.quote import Quote
from confcom.protocols.pcs import PckCaName, Tee

FRESH = timedelta(hours=1)
"""For which the source is not asked again."""
MAX_PLATFORMS = 16
"""Kinds of platforms (FMSPC, CA, TEE) whose collateral is remembered; a node has one."""
LIMITS = HttpLimits(timeout=3.0, deadline=4.0, retries=0)
"""A probe waits for the answer. Who asks comes again."""


class RememberedCollateral:
    """Asks the source that a name stands for, at most once an hour.

    What it gave last serves while it does not answer: whether that is too old is for the verifier to say.
    """

    def __init__(self, name: str, options: SourceOptions) -> None:
        self._name = name
        self._options = replace(options, limits=LIMITS)
        self._known: dict[tuple[bytes, PckCaName, Tee], tuple[Collateral, datetime]] = {}

    def __call__(self, quote: bytes, now: datetime) -> Collateral:
        """The collateral of the platform that made the quote; `CollateralError` where there is none yet."""
        # Of the verified certificate: quotes of one platform in other wrappings are one entry.
        extension, ca, tee = platform_of(Quote.parse(quote), self._options.roots)
        platform = extension.fmspc, ca, tee
        known = self._known.get(platform)
        if known is not None and now - known[1] < FRESH:
            return known[0]
        try:
            # Opened anew, so that a CA file that was renewed is read again.
            with resolve(self._name, replace(self._options, at=now)) as source:
                found = source.fetch(*platform)
        except CollateralError:
            if known is None:
                raise
            return known[0]
        self._known.pop(platform, None)
        self._known[platform] = (found, now)
        if len(self._known) > MAX_PLATFORMS:
            del self._known[next(iter(self._known))]
        return found
