"""What the quote helper tells of its requests: metrics for Prometheus, and a log.

All is in one process, so no metric needs to be added up. The log has one line of JSON for each request, written by a
thread, with limits per peer. A slow or closed reader of the log does not delay clients: lines beyond `MAX_LINES` are
dropped and counted, and the count is logged. A peer that asks very often has a line for some of its requests only, so
that its flood does not displace the lines of other peers; the others are counted and summed up.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from bisect import bisect_left
from collections import Counter as Counts
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import msgspec
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from confcom.appraisal.quote import VerifiedQuote
from confcom.errors import ConfcomError
from confcom.formats.sgx import AttributeFlags
from confcom.formats.tcb_info import TcbStatus
from confcom.pki.certificate import load_certificate, parse_certificates
from confcom.services.quote_helper.connection import Conversation, RequestEvent
from confcom.services.quote_helper.peers import OURSELVES
from confcom.services.quote_helper.self_test import SelfTestResult
from confcom.services.runtime.status_page import Metrics

FLUSH_AFTER = 0.1
"""Seconds that a line may wait for company."""
MAX_LINES = 50_000
"""Lines that wait for a slow reader, about 15 MB; more are lost, and counted."""
BURST = 500
"""Lines that a peer may fill at once."""
RATE = 20.0
"""So many more a second; a log that is rotated at 50 MiB then holds two hours of one peer's flood."""
SUM_UP_AFTER = 10.0
"""Seconds between two lines that say how many requests of a peer had none."""
MAX_PEERS = 512
"""Peers that are counted apart, and have a share of the log of their own: more than a node has pods at a time. As pods
come and go, the latest ones are."""
OTHERS = "others"
"""All former ones together."""
_ATOMIC = 4096
"""Bytes that a pipe takes in one piece (PIPE_BUF), so that lines of other writers fall between ours."""

_encode = msgspec.json.Encoder(enc_hook=str).encode


class _Share:
    """What is left of a peer's lines, and what was left out: requests by kind and outcome."""

    __slots__ = ("left_out", "lines", "seen")

    def __init__(self, now: float) -> None:
        self.lines = float(BURST)
        self.seen = now
        self.left_out: dict[str, int] = {}

    def take(self, now: float) -> bool:
        """Whether there is a line left."""
        self.lines = min(float(BURST), self.lines + (now - self.seen) * RATE)
        self.seen = now
        if self.lines < 1:
            return False
        self.lines -= 1
        return True


def log_request(event: RequestEvent) -> None:
    """Write the one log event of a request; silent visits (a probe, say) only count as debug."""
    logger = structlog.get_logger()
    write = logger.debug if event.is_silent else logger.info
    write("aesm.request", **event.fields())


class RequestLog:
    """Collects lines and writes them in a thread of its own. Call `close` to have the last ones written."""

    def __init__(
        self,
        *,
        verbose: bool = False,
        write: Callable[[bytes], object] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verbose = verbose
        self._write = write if write is not None else _write_to_stderr
        self._monotonic = monotonic
        self._lines: deque[bytes] = deque()  # appended to by one thread, emptied by another
        self._lost = 0
        self._lost_before = 0
        self._shares: dict[str, _Share] = {}
        self._shares_lock = threading.Lock()
        self._summed_up = monotonic()
        self.left_out = 0
        """Requests without a line of their own so far."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="request-log", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Lines that could not be written so far."""
        return self._lost_before + self._lost

    def record(self, event: RequestEvent) -> None:
        """Take an event; never blocks."""
        level = "info"
        if event.is_silent:
            if not self._verbose:
                return
            level = "debug"
        if self._is_left_out(event):
            return
        if len(self._lines) >= MAX_LINES:
            self._lost += 1
            return
        self._lines.append(_line("aesm.request", level, event.fields(), event.ended))

    def _is_left_out(self, event: RequestEvent) -> bool:
        now = self._monotonic()
        with self._shares_lock:
            name = event.peer if event.peer in self._shares or len(self._shares) < MAX_PEERS else OTHERS
            share = self._shares.get(name)
            if share is None:
                share = self._shares[name] = _Share(now)
            if share.take(now):
                return False
            what = f"{event.kind or 'none'} {event.outcome}"
            share.left_out[what] = share.left_out.get(what, 0) + 1
            self.left_out += 1
        return True

    def _sum_up(self) -> None:
        now = self._monotonic()
        self._summed_up = now
        with self._shares_lock:
            for peer, share in list(self._shares.items()):
                if share.left_out:
                    fields = {"peer": peer, "requests": share.left_out, "reason": "too many for a line each"}
                    self._lines.append(_line("aesm.left_out", "info", fields, time.time()))
                    share.left_out = {}
                elif share.lines + (now - share.seen) * RATE >= BURST:
                    del self._shares[peer]

    def close(self) -> None:
        """Write what is left; waits two seconds for a reader at most."""
        self._stop.set()
        self._thread.join(2)

    def _work(self) -> None:
        # With nothing to write this wakes up ten times a second and does nothing; that is cheaper than being woken.
        while not self._stop.wait(FLUSH_AFTER):
            if self._monotonic() - self._summed_up >= SUM_UP_AFTER:
                self._sum_up()
            self._flush()
        self._sum_up()
        self._flush()

    def _flush(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            self._lost_before += lost
            fields = {"lost": lost, "reason": "the log's reader is too slow"}
            self._lines.append(_line("aesm.log", "warning", fields, time.time()))
        batch: list[bytes] = []
        size = 0
        while self._lines:
            line = self._lines.popleft()
            if batch and size + len(line) > _ATOMIC:
                self._put(batch)
                batch, size = [], 0
            batch.append(line)
            size += len(line)
        if batch:
            self._put(batch)

    def _put(self, batch: list[bytes]) -> None:
        try:
            self._write(b"".join(batch))
        except OSError:  # its reader is gone
            self._lost += len(batch)


def _line(name: str, level: str, fields: Mapping[str, object], at: float) -> bytes:
    timestamp = datetime.fromtimestamp(at, UTC)
    return _encode({**fields, "event": name, "level": level, "timestamp": timestamp}) + b"\n"


def _write_to_stderr(data: bytes) -> None:
    while data:
        data = data[os.write(2, data) :]


PREFIX = "confcom_quote_helper"
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds; a simulated quote takes 0.05 ms, a real one some ms, one with a certificate to fetch seconds."""
QUOTES = frozenset(("GetQuote", "GetQuoteEx"))
"""Kinds of requests that are for a quote."""
NOT_SUPPORTED = "NotSupported"
"""Stands for a platform below every level that Intel lists."""


STATES = ("starting", "serving", "replaced")
"""A helper that was replaced waits for its end, or until its successor fails."""
_OF_SELF_TEST = {
    "certification_data_age_seconds": "Since the PCK certificate in our quotes was issued.",
    "collateral_age_seconds": "Since the oldest part of the collateral was issued.",
    "collateral_expires_seconds": "Until the first part of the collateral expires.",
    "tcb_evaluation_number": "The number of the set of TCB levels that the collateral is of.",
}
"""As of the last self-test that verified a quote; absent before."""


class Durations:
    """A histogram of seconds that costs half a microsecond per value."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def family(self) -> HistogramMetricFamily:
        bounds = [*map(str, BUCKETS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(f"{PREFIX}_{self._name}", self._text, buckets=buckets, sum_value=self._sum)


class QuoteHelperMetrics(Metrics, Collector):
    """Every metric of the quote helper; also an observer of the front, beside `observe`."""

    def __init__(
        self, registry: CollectorRegistry, observe: Callable[[RequestEvent], None], log: RequestLog | None = None
    ) -> None:
        super().__init__(registry, PREFIX)
        self._observe = observe if log is None else log.record
        # Counted by the thousand each second, so without the library's locks; one thread counts.
        self._requests: dict[tuple[str | None, str], int] = {}
        self._ended: list[Conversation] = []
        self._quotes: dict[str, int] = {}
        self._throttled: dict[str, int] = {}
        self._request_seconds = Durations("request_seconds", "From the connection to its end.")
        self._platform_seconds = Durations("platform_seconds", "What the platform (QE and PCE) took for a request.")
        registry.register(self)
        over = "Requests over the limit of a peer (connections, rate) or of all (waiting)."
        self._over_limit = self.counter("over_limit", over, "limit")
        self._self_test = self.gauge("self_test_ok", "1 when the last self-test succeeded.")
        seen = "1 for the TCB status of this platform as our verifier sees it."
        self._tcb = self.gauge("tcb_status", seen, "status")
        lost = "Lines of the log that its reader was too slow for."
        self.reading("log_lines_lost", lost, lambda: log.lost if log else 0, counter=True)
        left_out = "Requests without a line of their own, because their peer had too many."
        self.reading("log_lines_left_out", left_out, lambda: log.left_out if log else 0, counter=True)
        self.state = "starting"
        """Of `STATES`."""
        self._known: dict[str, float] = {}
        for name, text in _OF_SELF_TEST.items():
            self.reading(name, text, partial(self._known.get, name))
        # Beforehand, so that the first is an increase.
        for limit in ("connections", "rate", "waiting"):
            self._over_limit.labels(limit)

    def ended(self, conversation: Conversation) -> None:
        """Have a connection that has ended counted by the next `settle`, or before the next scrape."""
        self._ended.append(conversation)

    def settle(self, least: int = 1) -> None:
        """Count and log the connections that have ended, once there are so many."""
        if len(self._ended) >= least:
            ended, self._ended = self._ended, []
            for conversation in ended:
                self.request(conversation.event())

    def request(self, event: RequestEvent) -> None:
        """Count the end of a connection, and log it."""
        key = event[:2]  # of a closed set: the kinds are ours, not the client's
        self._requests[key] = self._requests.get(key, 0) + 1
        self._request_seconds.observe(event.duration)
        if event.kind in QUOTES and event.outcome == "answered":
            _count(self._quotes, event.peer, 1)
        self._observe(event)

    def collect(self) -> Iterator[Metric]:
        self.settle()
        requests = CounterMetricFamily(
            f"{PREFIX}_requests", "Connections that ended, by what was asked and what came of it.",
            labels=["kind", "outcome"],
        )  # fmt: skip
        for (kind, outcome), count in self._requests.items():
            requests.add_metric([kind or "none", outcome], count)
        yield requests
        yield _by_peer("quotes", "Quotes made, by the pod (or container, or user) that asked.", self._quotes)
        yield _by_peer(
            "throttled_connections", "Connections closed unread, because too many of the same peer came to nothing.",
            self._throttled,
        )  # fmt: skip
        states = GaugeMetricFamily(f"{PREFIX}_state", "1 for the state of this helper.", labels=["state"])
        for state in STATES:
            states.add_metric([state], state == self.state)
        yield states
        yield self._request_seconds.family()
        yield self._platform_seconds.family()

    def quoted(self, duration: float) -> None:
        """Count a request that the platform answered."""
        self._platform_seconds.observe(duration)

    def over_limit(self, limit: str) -> None:
        self._over_limit.labels(limit).inc()

    def turned_away(self, peer: str, count: int) -> None:
        """Count connections that were closed unread."""
        _count(self._throttled, peer, count)

    def self_tested(self, result: SelfTestResult) -> None:
        self._self_test.set(1 if result.ok else 0)
        if result.verified is not None:
            self._platform(result.verified)

    def _platform(self, verified: VerifiedQuote) -> None:
        found = verified.tcb_status or NOT_SUPPORTED
        for status in (*TcbStatus, NOT_SUPPORTED):
            self._tcb.labels(str(status)).set(1 if status == found else 0)
        now, collateral = verified.verified_at, verified.collateral
        self._known |= {
            "collateral_age_seconds": (now - collateral.earliest_issue).total_seconds(),
            "collateral_expires_seconds": (collateral.earliest_expiration - now).total_seconds(),
            "tcb_evaluation_number": verified.tcb_evaluation_data_number,
        }
        issued = _pck_issued(verified)
        if issued is not None:
            self._known["certification_data_age_seconds"] = (now - issued).total_seconds()


def _by_peer(name: str, text: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=["peer"])
    for peer, count in counts.items():
        family.add_metric([peer], count)
    return family


def _count(peers: dict[str, int], peer: str, count: int) -> None:
    """Count for a peer, in the order of the last counts; of more than `MAX_PEERS` the first one joins the others."""
    peers[peer] = peers.pop(peer, 0) + count
    if len(peers) > MAX_PEERS:
        former = next(one for one in peers if one not in (OURSELVES, OTHERS))
        peers[OTHERS] = peers.get(OTHERS, 0) + peers.pop(former)


def _pck_issued(verified: VerifiedQuote) -> datetime | None:
    chain = verified.quote.signature.certification.certification_data.data.rstrip(b"\0")
    try:
        leaf = parse_certificates(chain, structure="PCK chain")[0]
        return load_certificate(leaf, structure="PCK chain", field="leaf").not_before
    except (ConfcomError, IndexError):  # pragma: no cover - it has just been verified
        return None


MAX_PER_PEER = 8
"""Enclaves of one peer that are counted separately; all further ones are counted together, as `OTHERS`."""
MAX_ENCLAVES = 512
"""Entries of all peers. Beyond them the peer that has had no quote for longest is dropped."""

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
    """The enclaves that had quotes, by the pod that asked, in bounded memory; filled by the event loop of the helper.

    Everything is read from the quote, which the QE made after it had checked the MAC of the enclave's report; nothing
    that a client merely sent is kept. A peer has room for `MAX_PER_PEER` enclaves and displaces no other peer's with
    more of them. The two counters for alerts, debug enclaves and unexpected signers, also count what has no room.
    `expected_signers` are MRSIGNERs in hex, none means any.
    """

    def __init__(self, expected_signers: Collection[str] = ()) -> None:
        self._expected = frozenset(signer.lower() for signer in expected_signers)
        self._peers: dict[str, dict[_Enclave, _Quotes]] = {}
        self._latest: dict[str, _Quotes] = {}
        self._size = 0
        self._dropped_peers = 0
        self._dropped_quotes: Counts[_Enclave] = Counts()  # by what decides on an alert, so of a few keys

    def record(self, peer: str, quote: bytes, now: float) -> None:
        """Count a quote that `peer` was given; `now` is of the monotonic clock."""
        # Done for each quote, so the usual case, the enclave of the peer's last one, compares one slice.
        quotes = self._latest.get(peer)
        if quotes is None or quotes.known_by != quote[_FROM:_TO]:
            quotes = self._find(peer, quote[_FROM:_TO])
        quotes.number += 1
        quotes.last = now

    def collect(self) -> Iterator[Metric]:
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
