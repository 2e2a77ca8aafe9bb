"""What every daemon's process needs around its `serve`."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import time

import structlog

AT_ONCE = 5
"""Restarts without a pause; after that they are 1 s apart, 2 s, 4 s and so on."""
LONGEST_PAUSE = 30.0
FORGIVEN_AFTER = 60.0
"""Seconds that a process has to live for its predecessors' deaths to be forgotten."""
_PASSED_ON = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set, in the running loop. Only a process's entry point calls this."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def restart_when_killed() -> int:
    """Go on in a child process that is started again whenever a signal has ended it; gives the restarts so far.

    The parent only waits, passes signals on and reaps, and ends with the child's exit code when the child ends by
    itself or was told to. As a container's first process it spares the supervisor's growing pauses: what is imported
    before this call is there at once after a restart. Call it before there are threads or an event loop.
    """
    signals = _PASSED_ON | {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    logger = structlog.get_logger()
    restarts = deaths = 0
    told = False
    while True:
        started = time.monotonic()
        ends, held = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(held)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            _stop_with_parent(ends)
            return restarts
        os.close(ends)
        while (status := _reap(child)) is None:
            number = signal.sigwaitinfo(signals).si_signo
            if number != signal.SIGCHLD:
                told = told or number in (signal.SIGTERM, signal.SIGINT)
                os.kill(child, number)
        os.close(held)
        code = os.waitstatus_to_exitcode(status)
        if code >= 0 or told:
            raise SystemExit(code if code >= 0 else 128 - code)
        deaths = 1 if time.monotonic() - started >= FORGIVEN_AFTER else deaths + 1
        pause = restart_pause(deaths)
        logger.warning("process.restart", reason=f"killed by {signal.Signals(-code).name}", restart_in=pause)
        end = time.monotonic() + pause
        while (left := end - time.monotonic()) > 0:
            found = signal.sigtimedwait(signals, left)
            if found is not None and found.si_signo in (signal.SIGTERM, signal.SIGINT):
                raise SystemExit(0)
        restarts += 1


def restart_pause(deaths: int) -> float:
    """Seconds before the next start, after so many deaths in a row."""
    return 0.0 if deaths <= AT_ONCE else min(2.0 ** min(deaths - AT_ONCE - 1, 5), LONGEST_PAUSE)


def _reap(child: int) -> int | None:
    """Reap every process that has ended; the status of the child, if it is among them."""
    found = None
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                found = ended[1]
    except ChildProcessError:
        pass
    return found


def _stop_with_parent(ends: int) -> None:
    # The kernel sends the signal when the pipe ends, that is when the parent does.
    fcntl.fcntl(ends, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(ends, fcntl.F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(ends, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
