"""Watches an object of the Kubernetes API and repairs it whenever it differs from what it should be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

from confcom.errors import ConfcomError

WATCH_LIFE = 600.0
"""Seconds after which the object is read and watched again."""
RETRY_MAX = 30.0
"""Most seconds between two attempts after failures; the first is `settle`, and it doubles."""

State = TypeVar("State")


class Reconciler(Generic[State]):
    """Hands every state that `watch` shows to `repair`, which says whether it wrote something.

    `settle`: least seconds between two writes, the backoff between conflicting writers. `failed` gets the reason of
    each failed attempt.
    """

    def __init__(
        self,
        watch: Callable[[], AsyncGenerator[State, None]],
        repair: Callable[[State], Awaitable[bool]],
        failed: Callable[[str], None],
        *,
        settle: float,
    ) -> None:
        self.unhealthy_reason = "the API has not shown it yet"
        """Why the object may differ from what it should be, as a clause; empty when it does not."""
        self._show = watch
        self._repair = repair
        self._failed = failed
        self._settle = settle
        self._state: State | None = None
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Have the last state repaired again: what it should be has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Watch and repair until cancelled; failed attempts are repeated."""
        failures = 0
        while True:
            try:
                if await self._follow():
                    failures = 0
                    continue
                self.unhealthy_reason = "it is not in the API"
            except ConfcomError as error:
                self.unhealthy_reason = f"{error.code}: {error.message}"
            self._failed(self.unhealthy_reason)
            await asyncio.sleep(min(self._settle * 2 ** min(failures, 30), RETRY_MAX))
            failures += 1

    async def _follow(self) -> bool:
        """One watch; says whether it ever showed anything."""
        self._state = None
        try:
            async with asyncio.timeout(WATCH_LIFE), asyncio.TaskGroup() as group:
                repairing = group.create_task(self._repair_all(), name="repair")
                async with aclosing(self._show()) as states:
                    async for state in states:
                        self._state = state
                        self._wake.set()
                repairing.cancel()
        except TimeoutError:
            return True
        except BaseExceptionGroup as group_error:
            # One cause is enough: the other task was only cancelled because of it.
            raise group_error.exceptions[0] from None
        return self._state is not None

    async def _repair_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._state is not None:
                wrote = await self._repair(self._state)
                self.unhealthy_reason = ""
                if wrote:
                    await asyncio.sleep(self._settle)
