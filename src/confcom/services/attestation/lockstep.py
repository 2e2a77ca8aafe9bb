"""Runs attest calls that come together step by step, each step for all of them.

Code and data of a step are then in the processor's caches for all calls but the first: a call takes a seventh less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator

from confcom.errors import ConfcomError
from confcom.services.attestation.attestation_store import AuditRecord

LOCKSTEP = 32
"""Most calls that run step by step together; everything else in the event loop waits for one such batch."""

Outcome = tuple[AuditRecord, str | ConfcomError]
Steps = Generator[None, None, Outcome]
"""An attest call, which yields between its steps."""


class Lockstep:
    """Runs the calls that come together; their outcomes are awaited."""

    def __init__(self, ended: Callable[[Outcome, asyncio.Future[Outcome]], None]) -> None:
        """`ended` gets the outcome of each call that ended without an exception, and where it is awaited."""
        self._ended = ended
        self._waiting: list[tuple[Steps, asyncio.Future[Outcome]]] = []
        self._waited = 1
        """How many calls waited a turn ago, at least one."""

    def run(self, steps: Steps) -> asyncio.Future[Outcome]:
        """The outcome of the steps, or their exception."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Outcome] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._run)
        self._waiting.append((steps, outcome))
        return outcome

    def _run(self) -> None:
        # A call that is alone runs at once; several wait a turn, and another one as long as each brings further calls.
        if self._waited < len(self._waiting) < LOCKSTEP:
            self._waited = len(self._waiting)
            asyncio.get_running_loop().call_soon(self._run)
            return
        self._waited = 1
        running, self._waiting = self._waiting[:LOCKSTEP], self._waiting[LOCKSTEP:]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        while running:
            running = [call for call in running if self._take_step(*call)]

    def _take_step(self, steps: Steps, outcome: asyncio.Future[Outcome]) -> bool:
        """Take one step; whether there are more."""
        try:
            next(steps)
        except StopIteration as ended:
            if not outcome.done():
                self._ended(ended.value, outcome)
        except Exception as error:  # noqa: BLE001 - raised where the outcome is awaited
            if not outcome.done():
                # Without this frame, which holds the outcome: the error would hold itself. Python 3.13 keeps it as
                # the caller of the next frame, too.
                outcome.set_exception(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
                del outcome
        else:
            return not outcome.done()
        return False
