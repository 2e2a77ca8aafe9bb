"""The workers of one platform: the present one, a spare that has loaded the libraries, and those that end."""

from __future__ import annotations

import threading
from collections.abc import Callable

from confcom.errors import PlatformBusy, PlatformUnavailable
from confcom.platforms.worker_process import WorkerProcess


class WorkerPool:
    """Gives a worker and replaces it. `close` may come from another thread than the rest."""

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
