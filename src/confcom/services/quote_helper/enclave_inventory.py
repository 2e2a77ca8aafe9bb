"""The enclaves that had quotes, by the pod that asked: an inventory in bounded memory, with its metrics.

Everything is read from the quote, which the QE made after it had checked the MAC of the enclave's report; nothing that
a client merely sent is kept. A peer has room for `MAX_PER_PEER` enclaves and displaces no other peer's with more of
them. The two counters for alerts, debug enclaves and unexpected signers, also count what the inventory has no room for.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from confcom.formats.sgx import AttributeFlags
from confcom.services.quote_helper.peers import OURSELVES

PREFIX = "confcom_quote_helper"
MAX_PER_PEER = 8
"""Enclaves of one peer that are counted separately; all further ones are counted together, as `OTHERS`."""
MAX_ENCLAVES = 512
"""Entries of all peers. Beyond them the peer that has had no quote for longest is dropped."""
OTHERS = "others"

_FROM, _TO = 96, 308
"""Of a quote of version 3, a header of 48 bytes and the report body (`formats.sgx.ReportBody`): from ATTRIBUTES to
ISVSVN."""
_IDENTITY = struct.Struct("<B15x32s32x32s96xHH")
"""There: the first byte of ATTRIBUTES, MRENCLAVE, MRSIGNER, ISVPRODID, ISVSVN; little-endian."""


class _Enclave(NamedTuple):
    """An enclave as the labels of the metrics have it; what is not known is empty."""

    mr_enclave: str
    mr_signer: str
    isv_prod_id: str
    isv_svn: str
    debug: str
    signer_expected: str


class _Quotes:
    """Quotes of one enclave: how many, when the last was asked for (monotonic), and the bytes that it was known by."""

    __slots__ = ("known_by", "last", "number")

    def __init__(self) -> None:
        self.number = 0
        self.last = 0.0
        self.known_by = b""


class EnclaveInventory(Collector):
    """Filled by the event loop of the helper; `expected_signers` are MRSIGNERs in hex, none means any."""

    def __init__(self, expected_signers: Collection[str] = ()) -> None:
        self._expected = frozenset(signer.lower() for signer in expected_signers)
        self._peers: dict[str, dict[_Enclave, _Quotes]] = {}
        self._latest: dict[str, _Quotes] = {}
        self._size = 0
        self._dropped_peers = 0
        self._dropped_quotes: Counter[_Enclave] = Counter()  # by what decides on an alert, so of a few keys

    def record(self, peer: str, quote: bytes, now: float) -> None:
        """Count a quote that `peer` was given; `now` is of the monotonic clock."""
        # Done for each quote, so the usual case, the enclave of the peer's last one, compares one slice.
        quotes = self._latest.get(peer)
        if quotes is None or quotes.known_by != quote[_FROM:_TO]:
            quotes = self._find(peer, quote[_FROM:_TO])
        quotes.number += 1
        quotes.last = now

    def collect(self) -> Iterator[Metric]:
        """The present state, for Prometheus."""
        labels = ("peer", *_Enclave._fields)
        made = CounterMetricFamily(
            f"{PREFIX}_enclave_quotes", "Quotes made, by the peer that asked and the enclave in the quote.",
            labels=labels,
        )  # fmt: skip
        last = GaugeMetricFamily(
            f"{PREFIX}_enclave_last_quote_timestamp_seconds", "When the last of them was asked for.", labels=labels
        )
        started = time.time() - time.monotonic()
        kinds = self._dropped_quotes.copy()
        for peer, enclaves in self._peers.items():
            for enclave, quotes in enclaves.items():
                kinds[_others(enclave)] += quotes.number
                made.add_metric([peer, *enclave], quotes.number)
                last.add_metric([peer, *enclave], round(started + quotes.last, 3))
        yield made
        yield last
        yield CounterMetricFamily(
            f"{PREFIX}_debug_quotes", "Quotes of debug enclaves, which protect nothing.",
            value=sum(number for kind, number in kinds.items() if kind.debug == "true"),
        )  # fmt: skip
        if self._expected:
            yield CounterMetricFamily(
                f"{PREFIX}_unexpected_signer_quotes", "Quotes of enclaves of other signers than were expected.",
                value=sum(number for kind, number in kinds.items() if kind.signer_expected == "false"),
            )  # fmt: skip
        yield CounterMetricFamily(
            f"{PREFIX}_enclave_peers_dropped", "Peers that left the inventory of enclaves, because it was full.",
            value=self._dropped_peers,
        )  # fmt: skip

    def _find(self, peer: str, known_by: bytes) -> _Quotes:
        if peer == OURSELVES or len(known_by) < _IDENTITY.size:
            return _Quotes()  # not counted
        enclave = self._read(known_by)
        enclaves = self._peers.setdefault(peer, {})
        if enclave not in enclaves and len(enclaves) >= MAX_PER_PEER:
            enclave = _others(enclave)
        quotes = enclaves.get(enclave)
        if quotes is None:
            quotes = enclaves[enclave] = _Quotes()
            self._size += 1
            if self._size > MAX_ENCLAVES:
                self._drop_oldest(but=peer)
        quotes.known_by = known_by
        self._latest[peer] = quotes
        return quotes

    def _read(self, known_by: bytes) -> _Enclave:
        flags, mr_enclave, mr_signer, isv_prod_id, isv_svn = _IDENTITY.unpack(known_by)
        signer = mr_signer.hex()
        expected = _word(signer in self._expected) if self._expected else ""
        debug = _word(flags & AttributeFlags.DEBUG)
        return _Enclave(mr_enclave.hex(), signer, str(isv_prod_id), str(isv_svn), debug, expected)

    def _drop_oldest(self, *, but: str) -> None:
        oldest = min(self._latest.keys() - {but}, key=lambda peer: self._latest[peer].last)
        dropped = self._peers.pop(oldest)
        del self._latest[oldest]
        self._size -= len(dropped)
        self._dropped_peers += 1
        for enclave, quotes in dropped.items():
            self._dropped_quotes[_others(enclave)] += quotes.number


def _others(enclave: _Enclave) -> _Enclave:
    """The labels of an enclave that is not counted separately: those that alerts use."""
    return _Enclave(OTHERS, "", "", "", enclave.debug, enclave.signer_expected)


def _word(value: object) -> str:
    return "true" if value else "false"
