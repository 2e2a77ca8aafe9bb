"""The quote helper: serves quotes to every enclave of a node over the AESM socket.

This is the shell around `AesmBroker`: sockets, deadlines, limits, log. One request per connection; the answer leaves
in one write and the connection closes. What is not a request is closed in silence. No client can make another wait:
nothing here blocks on a client, slow ones have a deadline, and when connections run out, the one that has been silent
for longest makes room. The platform is called in a thread of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import structlog

from confcom.errors import ConfcomError, PlatformBusy, PlatformError, ProtocolError
from confcom.platforms.interface import Platform
from confcom.protocols.aesm import CLOSED, MAX_REQUEST, NEED_DATA
from confcom.services.aesm_broker import AesmBroker, Answer, PlatformCall
from confcom.services.aesm_conversation import Conversation, RequestEvent
from confcom.services.file_descriptors import available_descriptors
from confcom.services.platform_thread import PlatformThread
from confcom.services.unix_listener import UnixListener, is_served

ACCEPT_BATCH = 64
"""Connections accepted before other work gets its turn."""
DRAIN_STEP = 0.01
"""Seconds between two looks at whether all conversations have ended."""
ACCEPT_PAUSE = 0.05
"""Seconds without accepting after the system refused to."""
WARM_UP_RETRY = (1.0, 5.0, 30.0)
"""Seconds between attempts to make the attestation key; the last one repeats."""


class QuoteHelperConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the quote helper; the defaults are those for production."""

    socket: str = "/var/run/aesmd/aesm.socket"
    """Where clients look: Intel's and Fortanix's know no other path."""
    platform: Literal["auto", "intel", "simulated"] = "auto"
    """Who makes the quotes."""
    simulated_machine: str | None = None
    """File of the simulated machine; without one, a machine that is always the same."""
    replace: bool = False
    """Take the path over from a service that still answers there."""
    backlog: Annotated[int, msgspec.Meta(ge=128, le=65535)] = 1024
    """Connections that the kernel holds for us; Intel's client waits for ever when it is full."""
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 1024
    """Connections at a time; fewer when the process may not open as many files."""
    fd_reserve: Annotated[int, msgspec.Meta(ge=16)] = 64
    """File descriptors that connections leave to the platform and its collateral."""
    max_request: Annotated[int, msgspec.Meta(ge=4096)] = MAX_REQUEST
    """Longest request in bytes; one that announces more is closed at once."""
    read_timeout: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """Seconds from the connection to its whole request, and again for the answer to be taken."""
    answer_timeout: Annotated[float, msgspec.Meta(gt=0, lt=14)] = 13.0
    """Seconds for the platform; then the client is told BUSY, before its own 15 s are over."""
    max_waiting: Annotated[int, msgspec.Meta(ge=1)] = 64
    """Requests that may wait for the platform; one more is told BUSY at once."""
    drain_timeout: Annotated[float, msgspec.Meta(ge=0)] = 14.0
    """Seconds that requests under way get when the helper stops."""


async def serve(
    platform: Platform,
    config: QuoteHelperConfig,
    *,
    stop: asyncio.Event,
    started: Callable[[], None] | None = None,
    observe: Callable[[RequestEvent], None] | None = None,
) -> None:
    """Serve until `stop` is set, then answer what is under way and return.

    `started` is called once the socket stands and the attestation key has been tried for the first time. `observe`
    is told of every connection when it ends; by default it becomes a line in the log.
    """
    path = Path(config.socket)
    thread = PlatformThread(max_waiting=config.max_waiting, answer_timeout=config.answer_timeout)
    helper = QuoteHelper(AesmBroker(platform), thread, config, observe or log_request)
    warming = asyncio.create_task(helper.warm_up(), name="warm-up")
    try:
        # A predecessor keeps serving until our key is ready; without one, clients had better find somebody.
        if config.replace and is_served(path):
            await _either(helper.tried, stop)
        if not stop.is_set():
            await _serve_at(path, helper, config, stop, started)
    finally:
        warming.cancel()
        thread.close()


async def _serve_at(
    path: Path, helper: QuoteHelper, config: QuoteHelperConfig, stop: asyncio.Event, started: Callable[[], None] | None
) -> None:
    listener = UnixListener(path, backlog=config.backlog, replace=config.replace)
    try:
        helper.listen(listener.socket)
        await _either(helper.tried, stop)
        if started is not None and not stop.is_set():
            started()
        await stop.wait()
    finally:
        listener.remove_path()
        await helper.drain(listener.socket)
        listener.close()


async def _either(one: asyncio.Event, other: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in (one, other)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def log_request(event: RequestEvent) -> None:
    """Write the one log event of a request; silent visits (a probe, say) only count as debug."""
    logger = structlog.get_logger()
    write = logger.debug if event.kind is None and event.outcome == "closed" else logger.info
    write("aesm.request", **event.fields())


class QuoteHelper:
    """All conversations of one helper."""

    def __init__(
        self,
        broker: AesmBroker,
        thread: PlatformThread,
        config: QuoteHelperConfig,
        observe: Callable[[RequestEvent], None],
    ) -> None:
        self._broker = broker
        self._thread = thread
        self._config = config
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._limit = max(1, min(config.max_connections, available_descriptors() - config.fd_reserve))
        self._accepting = False
        self._deadline: asyncio.TimerHandle | None = None
        self.tried = asyncio.Event()
        # Those whose request has not arrived, in the order in which they came, and those whose answer is being made.
        self._waiting: dict[Conversation, None] = {}
        self._answering: dict[asyncio.Task[None], Conversation] = {}

    async def warm_up(self) -> None:
        """Have the attestation key made, and try again until it is; `tried` is set after the first attempt."""
        logger = structlog.get_logger()
        for attempt in itertools.count():
            started = self._loop.time()
            try:
                await self._thread.run(self._broker.warm_up)
            except ConfcomError as error:
                logger.warning("aesm.warm_up", outcome="failed", error=error.code, reason=error.message)
            except Exception:  # a mistake in a platform must not end the attempts
                logger.exception("aesm.warm_up", outcome="failed")
            else:
                duration = self._loop.time() - started
                logger.info("aesm.warm_up", outcome="ready", duration_ms=round(duration * 1000, 3))
                break
            finally:
                self.tried.set()
            await asyncio.sleep(WARM_UP_RETRY[min(attempt, len(WARM_UP_RETRY) - 1)])

    def listen(self, listener: socket.socket) -> None:
        """Begin to accept."""
        self._accepting = True
        self._resume(listener)

    async def drain(self, listener: socket.socket) -> None:
        """Accept no more than what waits in the backlog now, and let every conversation end within the deadline."""
        self._accepting = False
        self._loop.remove_reader(listener)
        while self._accept(listener):
            await asyncio.sleep(0)
        deadline = self._loop.time() + self._config.drain_timeout
        while (self._waiting or self._answering) and self._loop.time() < deadline:
            await asyncio.sleep(DRAIN_STEP)
        late = [*self._waiting, *self._answering.values()]
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        for conversation in late:
            self._finish(conversation, "the helper stops")
        if self._deadline is not None:
            self._deadline.cancel()

    def _accept(self, listener: socket.socket) -> bool:
        """Take connections from the backlog; says whether there may be more."""
        for _ in range(ACCEPT_BATCH):
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                self._pause(listener, error)
                return False
            client.setblocking(False)
            if len(self._waiting) + len(self._answering) >= self._limit:
                self._make_room(1)
            self._welcome(Conversation(client, self._config.max_request, self._loop.time()))
        return True

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        # The connection stays in the backlog. Trying again at once would only burn the processor.
        structlog.get_logger().warning("aesm.accept", reason=error.strerror)
        self._make_room(ACCEPT_BATCH)
        self._loop.remove_reader(listener)
        self._loop.call_later(ACCEPT_PAUSE, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if self._accepting:
            self._loop.add_reader(listener, self._accept, listener)

    def _make_room(self, count: int) -> None:
        """End the conversations that have waited for their request for longest."""
        for conversation in list(itertools.islice(self._waiting, count)):
            self._finish(conversation, "made room for another connection")

    def _welcome(self, conversation: Conversation) -> None:
        if self._deadline is None:
            self._deadline = self._loop.call_later(self._config.read_timeout, self._expire)
        self._waiting[conversation] = None
        # Most clients have sent their request by now.
        self._advance(conversation)
        if conversation in self._waiting:
            self._loop.add_reader(conversation, self._advance, conversation)

    def _expire(self) -> None:
        """End the conversations whose request is overdue. One timer is enough: they are due in their order."""
        due = self._loop.time() - self._config.read_timeout
        while (oldest := next(iter(self._waiting), None)) is not None and oldest.started <= due:
            self._finish(oldest, "no request within the deadline")
        next_due = None if oldest is None else oldest.started + self._config.read_timeout
        self._deadline = None if next_due is None else self._loop.call_at(next_due, self._expire)

    def _advance(self, conversation: Conversation) -> None:
        """Read on; once the request is whole, answer it or have it answered."""
        try:
            request = conversation.read()
            if request is NEED_DATA:
                return
            self._loop.remove_reader(conversation)
            if request is CLOSED:
                self._finish(conversation)
                return
            plan = self._broker.plan(request)
            rest = conversation.write(plan) if isinstance(plan, Answer) else b""
        except (ProtocolError, OSError) as error:
            self._finish(conversation, str(error))
            return
        if isinstance(plan, Answer) and not rest:
            self._finish(conversation)
        else:
            del self._waiting[conversation]
            task = self._loop.create_task(self._answer(conversation, plan, rest))
            self._answering[task] = conversation
            task.add_done_callback(self._answering.pop)

    async def _answer(self, conversation: Conversation, plan: Answer | PlatformCall, rest: bytes) -> None:
        try:
            if isinstance(plan, PlatformCall):
                rest = conversation.write(await self._perform(conversation, plan))
            async with asyncio.timeout(self._config.read_timeout):
                await conversation.write_rest(rest)
        except TimeoutError:
            self._finish(conversation, "the answer was not taken within the deadline")
        except OSError as error:
            self._finish(conversation, str(error))
        else:
            self._finish(conversation)

    async def _perform(self, conversation: Conversation, call: PlatformCall) -> Answer:
        try:
            return await self._thread.run(lambda: self._broker.perform(call), wanted=conversation.is_wanted)
        except PlatformBusy as error:
            return self._broker.refuse(call.request, error)
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave the client without an answer
            structlog.get_logger().exception("aesm.failure", kind=type(call.request).__name__)
            return self._broker.refuse(call.request, PlatformError(f"{type(error).__name__}: {error}"))

    def _finish(self, conversation: Conversation, reason: str = "") -> None:
        if conversation.is_closed:
            return
        self._loop.remove_reader(conversation)
        self._waiting.pop(conversation, None)
        self._observe(conversation.close(self._loop.time(), reason))
