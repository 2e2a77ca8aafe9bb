"""A service in an event loop of its own thread, as tests run it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

WAIT = 120
"""Seconds: against hanging only."""


class RunningInThread:
    """A service that serves from `start` until `stop`; subclasses say how in `serve`."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    async def serve(self, stop: asyncio.Event, started: Callable[..., None]) -> None:
        """Serve until `stop` is set; call `started` once there is a socket."""
        raise NotImplementedError

    def on_started(self, *where: str) -> None:
        """Called with what the service says when it is ready."""

    def start(self) -> None:
        """Return when it is ready; raises what kept it from that."""
        self._thread.start()
        assert self._ready.wait(WAIT), "the service did not get ready"
        if self._failure is not None:
            raise self._failure

    def ask_to_stop(self) -> None:
        """As SIGTERM does."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        """Ask, and wait for the end."""
        if self._thread.is_alive():
            with suppress(RuntimeError):  # its loop has ended by itself
                self.ask_to_stop()
            self._thread.join(WAIT)
        assert not self._thread.is_alive(), "the service did not stop"

    def wait_until(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        """Return once it is true."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, "it did not come to that"
            time.sleep(0.02)

    def pass_time(self, seconds: float) -> None:
        """Set the clock of its event loop forward: what is due by then happens now."""
        now = self._loop.time

        def shift() -> None:
            self._loop.time = lambda: now() + seconds  # type: ignore[method-assign]

        self._loop.call_soon_threadsafe(shift)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # noqa: BLE001 - raised again in start()
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        await self.serve(self._stop, self._started)

    def _started(self, *where: str) -> None:
        self.on_started(*where)
        self._ready.set()


@asynccontextmanager
async def leaving(service: RunningInThread) -> AsyncIterator[None]:
    """The service in this event loop, told to stop; the block is what happens before it ends."""
    stop, ready = asyncio.Event(), asyncio.Event()

    def started(*where: str) -> None:
        service.on_started(*where)
        ready.set()

    serving = asyncio.create_task(service.serve(stop, started))
    async with asyncio.timeout(WAIT):
        await ready.wait()
        stop.set()
        yield
    serving.cancel()
    await asyncio.wait([serving])
