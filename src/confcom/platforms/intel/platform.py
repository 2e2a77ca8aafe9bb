"""Intel's QE3 and PCE in a process of their own, which is replaced when it crashes, hangs or has lost its enclaves.

Every call ends within its time, because the parent only ever waits for a message. After a replacement the attestation
key is made again (it is the same key: Intel's QE derives it from the platform), and the failed request is repeated
once. That is safe: every request may be repeated, and the report of a quote stays valid for the same QE.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from confcom.errors import FormatError, NativeError, PlatformBusy, PlatformError, PlatformUnavailable
from confcom.formats.attestation_key_id import AttestationKeyId
from confcom.formats.sgx import QeReportInfo, Report, TargetInfo
from confcom.platforms.intel import process as m
from confcom.platforms.intel.dcap import RESTART_STATES
from confcom.platforms.intel.process import Surroundings, WorkerLost, WorkerProcess, worker_command
from confcom.platforms.interface import DEVICES_ADVICE, InitializedQuote, QuoteResult


class WorkerPool:
    """The workers of one platform: the present one, a spare that has loaded the libraries, and those that end.

    `close` may be called from another thread than the rest.
    """

    def __init__(self, start: Callable[[], WorkerProcess], *, spare: bool) -> None:
        self._start = start
        self._wants_spare = spare
        self._present: WorkerProcess | None = None
        self._spare: WorkerProcess | None = None
        self._ending: list[WorkerProcess] = []
        self._closed = False
        self._lock = threading.Lock()
        self.replaced = 0

    @property
    def present(self) -> WorkerProcess | None:
        """The worker that gets the next request, if there is one."""
        return self._present

    @property
    def is_complete(self) -> bool:
        """Whether there is a spare, unless none is wanted."""
        return self._spare is not None or not self._wants_spare

    def ready(self, deadline: float) -> WorkerProcess:
        """The present worker or a new one, its libraries loaded; raises what kept it from that, or `WorkerLost`."""
        with self._lock:
            if self._closed:
                raise PlatformUnavailable("this platform has been closed", advice="Open it again.")
            self._forget_strangers()
            if self._present is None:
                self._present, self._spare = self._spare or self._start(), None
            worker = self._present
        worker.wait_until_ready(deadline)
        return worker

    def replace(self) -> None:
        """End the present worker; the next request gets another."""
        with self._lock:
            if self._present is not None:
                self._end(self._present)
                self._present = None
                self.replaced += 1

    def prepare_spare(self) -> None:
        """Start the next worker ahead of its need, without waiting: loading libraries takes no enclave memory."""
        with self._lock:
            if self._wants_spare and self._spare is None and not self._closed:
                try:
                    self._spare = self._start()
                except PlatformBusy:
                    return

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            self._closed = True
            for worker in (self._present, self._spare):
                if worker is not None:
                    self._end(worker)
            self._present = self._spare = None

    def _end(self, worker: WorkerProcess) -> None:
        self._ending = [late for late in self._ending if not late.is_reaped()]
        if worker.close() is None:
            self._ending.append(worker)

    def _forget_strangers(self) -> None:
        # After a fork in this process's life the workers are our parent's.
        if self._present is not None and not self._present.is_ours:
            self._present.close()
            self._present = None
        if self._spare is not None and not self._spare.is_ours:
            self._spare.close()
            self._spare = None


MAX_TRIES = 2
"""Workers that one request may crash, or find without enclaves."""
MAX_LOST = 20
"""Workers that one call may use up, those included that were killed from outside or ended while they were idle."""
FIRST_PAUSE = 0.25
"""Seconds; doubles from failure to failure."""

_Answer = TypeVar("_Answer", bound=m.WorkerAnswer)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """Times in seconds. Intel's clients wait 15 s, so a call must be over before."""

    timeout: float = 12.5
    """For a call, with everything that it takes: start, key, second try."""
    attempt_timeout: float = 6.0
    """For the first try of a size or quote; it takes milliseconds, so a worker without answer hangs. Making the key
    may have the whole time: it waits for the collateral service."""
    failures_before_pause: int = 3
    """Calls that fail in a row before workers are no longer started at once."""
    longest_pause: float = 10.0
    """Between two starts then."""
    spare: bool = True
    """Keep a second worker at hand that has loaded the libraries (about 20 MB), so that a replacement is instant."""


class IntelWorkerPlatform:
    """A `Platform` (see `confcom.platforms.interface`) over worker processes; `close` ends them.

    `folder` is where Intel's libraries are, by default where the dynamic linker finds them. Nothing is started before
    the first call, or `start`. `surroundings` are closed with it. `devices` returns why the SGX devices cannot be
    opened, each as a clause: it is called when a call fails.
    """

    name = "intel-dcap"
    simulated = False

    def __init__(
        self,
        folder: Path | None = None,
        limits: WorkerLimits | None = None,
        *,
        command: Sequence[str] | None = None,
        surroundings: Surroundings | None = None,
        devices: Callable[[], tuple[str, ...]] = tuple,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        words = tuple(command) if command is not None else worker_command(folder)
        self._limits = limits or WorkerLimits()
        self._monotonic = monotonic
        self._pool = WorkerPool(lambda: WorkerProcess(words, monotonic, surroundings), spare=self._limits.spare)
        self._key: m.Initialize | None = None
        self._key_holder: WorkerProcess | None = None
        self._failures = 0
        self._last_failure: m.Failed | None = None
        self._pause_until = 0.0
        self._devices = devices
        self._devices_lost = False
        self._begun = 0  # requests of `begin_quote` without an answer
        self._finalizer = weakref.finalize(self, _close, self._pool, surroundings)

    @property
    def worker_pid(self) -> int | None:
        """The process id of the present worker."""
        worker = self._pool.present
        return None if worker is None else worker.pid

    @property
    def replaced(self) -> int:
        """How many workers have been replaced so far."""
        return self._pool.replaced

    def device_obstacles(self) -> tuple[str, ...]:
        """Why the SGX devices cannot be opened, each as a clause; may be called from any thread."""
        found = self._devices()
        self._devices_lost = self._devices_lost or bool(found)
        return found

    def start(self) -> None:
        """Start the worker and load the libraries, to learn at once whether they are here; no enclave is loaded yet."""
        try:
            self._pool.ready(self._monotonic() + self._limits.timeout)
        except (PlatformError, WorkerLost) as error:
            self._pool.replace()
            raise _given_up(error) if isinstance(error, WorkerLost) else error from error

    def close(self) -> None:
        """End the workers; a call under way fails. May be called from any thread, more than once."""
        self._finalizer()

    def key_ids(self) -> tuple[AttestationKeyId, ...]:
        """The one id of Intel's QE."""
        answer = self._call(m.ListKeyIds(), m.KeyIds)
        return tuple(_record(AttestationKeyId, key_id) for key_id in answer.key_ids)

    def init_quote(self, key_id: AttestationKeyId | None = None) -> InitializedQuote:
        """Load QE and PCE, make and certify the attestation key."""
        request = m.Initialize(_bytes(key_id))
        answer = self._call(request, m.Initialized)
        self._key, self._key_holder = request, self._pool.present
        return InitializedQuote(_record(TargetInfo, answer.target_info), answer.pub_key_id)

    def quote_size(self, key_id: AttestationKeyId | None = None) -> int:
        """Exact size of the next quote in bytes."""
        return self._call(m.AskSize(_bytes(key_id)), m.Size).size

    def quote(
        self,
        report: Report,
        key_id: AttestationKeyId | None = None,
        qe_report_info: QeReportInfo | None = None,
    ) -> QuoteResult:
        """Have the QE check the report's MAC and sign it into a quote."""
        answer = self._call(m.MakeQuote(bytes(report), _bytes(key_id), _bytes(qe_report_info)), m.Quoted)
        return _result(answer)

    def begin_quote(self, report: bytes, key_id: bytes, qe_report_info: bytes | None) -> int:
        """Send a request for a quote to the worker, if it has the key and nothing is wrong; see `QuotesAhead`."""
        worker = self._pool.present
        if worker is None or worker is not self._key_holder or not self._pool.is_complete:
            return -1
        if self._devices_lost or self._last_failure is not None:
            return -1
        descriptor = worker.send(m.MakeQuote(report, key_id, qe_report_info))
        self._begun += descriptor >= 0
        return descriptor

    def end_quote(self) -> QuoteResult | None:
        """The answer to the first request that has none; None when its worker is lost."""
        answer = None if self._key_holder is None or not self._begun else self._key_holder.receive()
        if isinstance(answer, m.Failed) and answer.native_code not in RESTART_STATES:
            self._begun -= 1
            raise self._explained(answer.error())
        if not isinstance(answer, m.Quoted):
            # It may answer yet: nothing more is begun there, where the next client would get that answer.
            self._key_holder = None
            return None
        self._begun -= 1
        return _result(answer)

    def _call(self, request: m.WorkerRequest, kind: type[_Answer]) -> _Answer:
        if self._devices_lost and not self._devices():
            # What the worker has open belongs to the driver that is gone.
            self._pool.replace()
            self._devices_lost, self._pause_until = False, 0.0
        try:
            return self._call_worker(request, kind)
        except PlatformError as error:
            if (explained := self._explained(error)) is error:
                raise
            raise explained from error

    def _explained(self, error: PlatformError) -> PlatformError:
        """The error, or its cause if the devices are lost."""
        if obstacles := self.device_obstacles():
            return PlatformUnavailable("; ".join(obstacles), retryable=True, advice=DEVICES_ADVICE)
        return error

    def _call_worker(self, request: m.WorkerRequest, kind: type[_Answer]) -> _Answer:
        if self._last_failure is not None and self._monotonic() < self._pause_until:
            raise self._last_failure.error()
        try:
            answer = self._ask(request, self._monotonic() + self._limits.timeout)
        except WorkerLost as lost:
            error = _given_up(lost)
            self._count_failure(m.Failed.of(error))
            raise error from lost
        if isinstance(answer, m.Failed) and self._pool.present is None:
            self._count_failure(answer)
            raise answer.error()
        self._failures, self._last_failure = 0, None
        if isinstance(answer, m.Failed):
            raise answer.error()
        self._pool.prepare_spare()
        if not isinstance(answer, kind):
            self._pool.replace()
            raise NativeError(f"the worker answered {type(request).__name__} with {type(answer).__name__}")
        return answer

    def _ask(self, request: m.WorkerRequest, deadline: float) -> m.WorkerAnswer:
        """Ask, and ask another worker when this one is lost or has lost its enclaves."""
        tries = lost = 0
        if self._begun:
            # The worker did not answer a request of `begin_quote`, most likely this one: that was its first try.
            self._pool.replace()
            tries, self._begun = 1, 0
            deadline -= self._limits.attempt_timeout
        while True:
            try:
                answer = self._ask_once(request, deadline, is_last=tries + 1 == MAX_TRIES)
            except WorkerLost as error:
                self._pool.replace()
                tries, lost = tries + error.to_blame, lost + 1
                if tries == MAX_TRIES or lost == MAX_LOST or self._monotonic() >= deadline:
                    raise
                continue
            if not (isinstance(answer, m.Failed) and answer.native_code in RESTART_STATES):
                return answer
            self._pool.replace()
            tries += 1
            if tries == MAX_TRIES:
                return answer

    def _ask_once(self, request: m.WorkerRequest, deadline: float, *, is_last: bool) -> m.WorkerAnswer:
        try:
            worker = self._pool.ready(deadline)
        except PlatformError as error:
            self._pool.replace()
            return m.Failed.of(error)
        if self._key is not None and self._key_holder is not worker and isinstance(request, (m.AskSize, m.MakeQuote)):
            initialized = worker.ask(self._key, deadline)
            if isinstance(initialized, m.Failed):
                return initialized
            self._key_holder = worker
        patient = is_last or isinstance(request, m.Initialize)
        return worker.ask(request, deadline if patient else min(deadline, self._attempt_deadline()))

    def _attempt_deadline(self) -> float:
        return self._monotonic() + self._limits.attempt_timeout

    def _count_failure(self, failure: m.Failed) -> None:
        self._failures += 1
        excess = self._failures - self._limits.failures_before_pause
        if excess >= 0:
            pause = min(self._limits.longest_pause, FIRST_PAUSE * 2.0 ** min(excess, 30))
            self._pause_until, self._last_failure = self._monotonic() + pause, failure


_Record = TypeVar("_Record", AttestationKeyId, TargetInfo, QeReportInfo)


def _record(kind: type[_Record], data: bytes) -> _Record:
    try:
        return kind.parse(data)
    except FormatError as error:
        raise NativeError(f"the worker answered nonsense: {error}") from error


def _result(answer: m.Quoted) -> QuoteResult:
    filled = None if answer.qe_report_info is None else _record(QeReportInfo, answer.qe_report_info)
    return QuoteResult(answer.quote, filled)


def _bytes(record: AttestationKeyId | QeReportInfo | None) -> bytes | None:
    return None if record is None else bytes(record)


def _close(pool: WorkerPool, surroundings: Surroundings | None) -> None:
    pool.close()
    if surroundings is not None:
        surroundings.close()


def _given_up(lost: WorkerLost) -> PlatformError:
    if lost.hung:
        return PlatformBusy(
            f"Intel's libraries did not answer in time: {lost.reason}",
            advice="Most often the collateral service does not answer: set retry_times to 0 or 1 in the quote provider "
            "library's configuration, and check its pccs_url.",
        )
    return PlatformUnavailable(
        f"Intel's libraries ended their process: {lost.reason}",
        retryable=True,
        advice="See the log for what the libraries wrote; `confcom doctor` checks what they need.",
    )
