"""Accepts connections, reads requests, and answers them or queues them for the platform.

One process holds every connection from its first byte to its last, so the limits are those of the node. A request that
has arrived when its connection is accepted takes six system calls: accept, two for the socket and its peer, receive,
send, close. Only connections whose request has not arrived are watched. Nothing here blocks on a client.

All peers share one backlog, so it is emptied first, with accept and the peer's credentials only. Then peers take
turns: one connection of each is read before the second of any. A peer with many connections that carry no request has
further ones closed unread.
"""

from __future__ import annotations

import _socket
import asyncio
import itertools
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from confcom.errors import PlatformBusy, ProtocolError
from confcom.protocols.aesm import CLOSED, NEED_DATA, GetQuoteExRequest, GetQuoteExResponse
from confcom.services.quote_helper.broker import AesmBroker, Answer
from confcom.services.quote_helper.connection import Conversation
from confcom.services.quote_helper.helper_quoting import AheadQuoting, QuickQuoting
from confcom.services.quote_helper.peers import GONE, MAX_REMEMBERED, Peer, Peers
from confcom.services.quote_helper.self_test import ClientQuote
from confcom.services.quote_helper.telemetry import EnclaveInventory, QuoteHelperMetrics
from confcom.services.runtime.listener import FairQueue, Want, available_descriptors

if TYPE_CHECKING:
    from confcom.services.quote_helper.helper import QuoteHelperConfig

ACCEPT_BATCH = 8
"""Connections accepted before other work gets its turn: longer batches keep good clients waiting in a flood."""
ACCEPT_PAUSE = 0.05
"""Seconds without accepting after the system refused to."""
SHORT_BACKLOG = 8
"""Connections that may wait in a flood."""
SHORT_FOR = 8
"""Looks at the flood before the backlog is as long as before and the next one decides again."""


class Acceptor:
    """Accepts connections of listening sockets in batches, and pauses while the system refuses descriptors.

    While connections of several peers come faster than they are accepted, the backlog is made short: a good client then
    waits in the kernel's queue of connecting processes, which is first come, first served, instead of behind a full
    backlog. One peer alone keeps the long one, which saves its clients that wait.

    `welcome` gets each connection, `done` is called after each batch, and
    `make_room` gives so many file descriptors back when the system refuses new ones.
    """

    def __init__(
        self,
        welcome: Callable[[_socket.socket], None],
        done: Callable[[], None],
        make_room: Callable[[int], None],
        *,
        backlog: int,
    ) -> None:
        self._welcome = welcome
        self._done = done
        self._make_room = make_room
        self._want = Want("aesm.accept")
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[socket.socket, None] = {}
        self._full_backlog = backlog
        self._backlog = backlog
        self._short_for = 0
        self._accepted = 0
        self._full_batches = 0

    @property
    def listens(self) -> bool:
        return bool(self._listeners)

    def listen(self, listener: socket.socket) -> None:
        listener.listen(self._backlog)
        self._listeners[listener] = None
        self._resume(listener)

    async def drain(self, listener: socket.socket) -> None:
        """Stop accepting beyond the present backlog."""
        self._listeners.pop(listener, None)
        self._loop.remove_reader(listener)
        while self.accept(listener):
            await asyncio.sleep(0)

    def accept(self, listener: socket.socket) -> bool:
        """Accept one batch; returns whether there may be more."""
        # What Python's own `accept` and `socket` add costs a quarter more, which a flood multiplies.
        accept, new = listener._accept, _socket.socket  # type: ignore[attr-defined]
        accepted = 0
        while accepted < ACCEPT_BATCH:
            try:
                client = new(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, accept()[0])
            except BlockingIOError:
                self._want.note(None)
                break
            except OSError as error:
                self._pause(listener, error)
                break
            accepted += 1
            self._welcome(client)
        self._accepted += accepted
        self._full_batches += accepted == ACCEPT_BATCH
        self._done()
        return accepted == ACCEPT_BATCH

    def adapt_backlog(self, *, new: int, peers: int) -> None:
        """Make the backlog short or long; to be called several times a second.

        The connections since the last call are of so many `peers`; `new` of them were the first of their process.
        """
        # A flood of new processes needs the long one: each of them would wait in the kernel's queue before a good one.
        # Connections are compared and not batches: a burst is few batches among many of one connection each.
        flood = peers > 1 and 2 * ACCEPT_BATCH * self._full_batches > self._accepted > 2 * new
        self._accepted = self._full_batches = 0
        self._short_for = SHORT_FOR if flood else max(0, self._short_for - 1)
        backlog = SHORT_BACKLOG if self._short_for else self._full_backlog
        if backlog != self._backlog:
            self._backlog = backlog
            for listener in self._listeners:
                listener.listen(backlog)

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        # The connection stays in the backlog. Trying again at once would only burn the processor.
        self._want.note(error)
        self._make_room(ACCEPT_BATCH)
        self._loop.remove_reader(listener)
        self._loop.call_later(ACCEPT_PAUSE, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener, self.accept, listener)


DRAIN_STEP = 0.01
"""Seconds between two looks at whether all conversations have ended."""
TICK = 0.25
"""Seconds between two looks at deadlines."""
MAX_UNREAD = 8192
"""Connections of throttled peers that are kept unread until their deadline, where there are descriptors for them."""
READS = 16
"""Connections read before new ones are accepted again."""
ARRIVALS = 256
"""Connections on which something has arrived that are looked at together."""
EVENTS = 16
"""Ended connections that wait for log and metrics, until the next tick at the latest: no client waits for those."""
REPORT_THROTTLED = 10.0
"""Seconds between two reports in the log of which peers are throttled."""
MOST_THROTTLED = 5
"""Peers that such a report names."""


class AesmFront:
    """All conversations of one helper."""

    def __init__(
        self,
        broker: AesmBroker,
        config: QuoteHelperConfig,
        metrics: QuoteHelperMetrics,
    ) -> None:
        self._broker = broker
        self._config = config
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._now = time.monotonic  # the loop's clock, called directly
        available = available_descriptors() - config.fd_reserve
        remembered = max(1, min(MAX_REMEMBERED, available // 8))
        self._descriptors = available - remembered
        self._limit = max(1, min(config.max_connections, self._descriptors))
        self._acceptor = Acceptor(self._on_connect, self._turn, self._give_back, backlog=config.backlog)
        self._ticks: asyncio.TimerHandle | None = None
        self._quoting: AheadQuoting | QuickQuoting | None = None
        self.last_quote: ClientQuote | None = None
        self.enclaves = EnclaveInventory(config.expected_signers)
        self.peers = Peers(
            Path(config.host_root),
            max_connections=config.max_connections_per_peer,
            rate=config.peer_rate,
            burst=config.peer_burst,
            monotonic=time.monotonic,
            remembered=remembered,
        )
        self.queue: FairQueue[Conversation] = FairQueue()
        # Connections whose request has not arrived, oldest first. Of these, `_turns` are to be read now, and `_watched`
        # wait for more bytes. `_writing` wait for the client to read.
        self._silent: dict[Conversation, None] = {}
        self._turns: FairQueue[Conversation] = FairQueue()
        self._watched: dict[int, Conversation] = {}
        self._arrivals = select.epoll()
        self._loop.add_reader(self._arrivals, self._look_at_arrivals)
        self._loop.add_reader(self.peers.ended, self.peers.forget_ended)
        self._unread: deque[tuple[float, _socket.socket]] = deque()
        self._writing: dict[asyncio.Task[None], Conversation] = {}
        self._in_hand: dict[Conversation, None] = {}
        self._turn_due = False
        self._throttled: dict[str, int] = {}
        self._report_throttled = 0.0

    @property
    def open(self) -> int:
        return len(self._silent) + len(self._in_hand) + len(self._writing)

    def start(self, quoting: AheadQuoting | QuickQuoting) -> None:
        """Set what answers for the platform, and begin to enforce deadlines."""
        self._quoting = quoting
        self._tick()

    def listen(self, listener: socket.socket) -> None:
        self._acceptor.listen(listener)

    async def drain(self, listener: socket.socket) -> None:
        """Stop accepting beyond the present backlog.

        When no other listener is left, also let every conversation end within the deadline.
        """
        await self._acceptor.drain(listener)
        deadline = self._now() + self._config.drain_timeout
        while self.open and not self._acceptor.listens and self._now() < deadline:
            await asyncio.sleep(DRAIN_STEP)

    def close(self) -> None:
        if self._ticks is not None:
            self._ticks.cancel()
        for task in self._writing:
            task.cancel()
        for conversation in [*self._silent, *self._in_hand, *self._writing.values()]:
            self._finish(conversation, "the helper stops")
        self._metrics.settle()
        while self._unread:
            self._unread.popleft()[1].close()
        for watcher in (self._arrivals, self.peers.ended):
            self._loop.remove_reader(watcher)
        self._arrivals.close()
        self.peers.close()

    def deliver(self, conversation: Conversation, answer: Answer, duration: float | None = None) -> None:
        """Send the answer to a request that waited."""
        self._in_hand.pop(conversation, None)
        if not conversation.is_closed:
            try:
                rest = conversation.write(answer)
            except OSError as error:
                self._end(conversation, str(error))
            else:
                self._end_or_wait(conversation, rest)
            request, response = conversation.request, answer.response
            if isinstance(request, GetQuoteExRequest) and isinstance(response, GetQuoteExResponse) and response.quote:
                self.last_quote = ClientQuote(request.report, response.quote)
                self.enclaves.record(conversation.peer.name, response.quote, conversation.started)
        if duration is not None:
            self._metrics.quoted(duration)

    def _on_connect(self, client: _socket.socket) -> None:
        """Begin a conversation, unless too many of its peer came to nothing."""
        now = self._now()
        peer, credentials = self.peers.of(client, now)
        if not self.peers.is_welcome(peer, now):
            peer.turned_away += 1
            if peer.name == GONE:
                client.close()
                return
            # Closed at once, it would come back at once.
            self._unread.append((now, client))
            if len(self._unread) > MAX_UNREAD or 2 * len(self._unread) > self._descriptors:
                self._unread.popleft()[1].close()
            return
        if self._unread and self.open + len(self._unread) >= self._descriptors:
            self._unread.popleft()[1].close()
        if self.open >= self._limit:
            self._make_room(1)
        conversation = Conversation(client, peer, credentials, self._config.max_request, now)
        peer.connections += 1
        if self.peers.over_connections(peer):
            self._metrics.over_limit("connections")
            conversation.over_limit = not self._make_room_of(peer)
        self._silent[conversation] = None
        peer.silent[conversation] = None
        self._turns.push(peer.name, conversation)

    def _look_at_arrivals(self) -> None:
        """Queue the connections that have new bytes, and read some."""
        for descriptor, _ in self._arrivals.poll(0, ARRIVALS):
            conversation = self._watched.get(descriptor)
            if conversation is not None and not conversation.has_turn:
                conversation.has_turn = True
                self._turns.push(conversation.peer.name, conversation)
        self._turn()

    def _turn(self) -> None:
        """Read some connections, peer by peer, and answer or queue their requests."""
        turns = self._turns
        if turns:
            # Mostly the request has arrived; where it has not, reading it after the others often saves watching it.
            early = []
            for _ in range(min(READS, len(turns))):
                conversation = turns.pop()
                if not self._read(conversation):
                    early.append(conversation)
            for conversation in early:
                if not self._advance(conversation):
                    self._wait_for(conversation)
        self._pump()
        if turns and not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._next_turn)
        self._metrics.settle(EVENTS)

    def _next_turn(self) -> None:
        self._turn_due = False
        self._turn()

    def _read(self, conversation: Conversation) -> bool:
        """Read a connection; False when its request has not arrived and it is not watched yet."""
        conversation.has_turn = False
        if conversation.is_closed or self._advance(conversation):
            return True
        if conversation.fileno() not in self._watched:
            return False
        # A request comes in one piece or two. More cost their peer as much as connections that come to nothing.
        if not self.peers.take_futile(conversation.peer):
            self._finish(conversation, "its peer sends too many small pieces")
        return True

    def _wait_for(self, conversation: Conversation) -> None:
        try:
            self._arrivals.register(conversation, select.EPOLLIN | select.EPOLLET)
        except OSError as error:  # the kernel limits what a user watches
            self._finish(conversation, str(error))
        else:
            self._watched[conversation.fileno()] = conversation

    def _pump(self) -> None:
        if self.queue and self._quoting is not None:
            self._quoting.pump()

    def _give_back(self, count: int) -> None:
        """Close so many connections: of throttled peers first, then the oldest without a request."""
        if not self._unread:
            self._make_room(count)
        for _ in range(min(count, len(self._unread))):
            self._unread.popleft()[1].close()

    def _make_room(self, count: int) -> None:
        """Close the oldest connections without a request."""
        for conversation in list(itertools.islice(self._silent, count)):
            if not self._advance(conversation):
                self._finish(conversation, "made room for another connection")

    def _make_room_of(self, peer: Peer) -> bool:
        """Close the peer's oldest connection without a request; False when all have sent theirs meanwhile."""
        for conversation in list(peer.silent):
            if not self._advance(conversation):
                self._finish(conversation, "made room for another connection of the same peer")
                return True
        return False

    def _expire(self) -> None:
        """Close the connections past the deadline of their request."""
        due = self._now() - self._config.read_timeout
        while (oldest := next(iter(self._silent), None)) is not None and oldest.started <= due:
            self._finish(oldest, "no request within the deadline")
        gone = self.peers.gone()
        while self.peers.over_connections(gone) and self._make_room_of(gone):
            pass
        while self._unread and self._unread[0][0] <= due:
            self._unread.popleft()[1].close()

    def _advance(self, conversation: Conversation) -> bool:
        """Read on; True once the request is whole, and answered or queued, or the connection has ended."""
        try:
            request = conversation.read()
            if request is NEED_DATA:
                return False
            self._mark_received(conversation)
            if request is CLOSED:
                self._finish(conversation)
                return True
            plan = self._broker.plan(request)
            if isinstance(plan, Answer):
                self._end_or_wait(conversation, conversation.write(plan))
                return True
        except (ProtocolError, OSError) as error:
            self._finish(conversation, str(error))
            return True
        conversation.call, conversation.since = plan, self._now()
        self._enqueue(conversation)
        return True

    def _mark_received(self, conversation: Conversation) -> None:
        """Stop waiting for its request."""
        if conversation in self._silent:
            # The kernel forgets the descriptor when it is closed; what arrives until then is not looked at.
            self._watched.pop(conversation.fileno(), None)
            del self._silent[conversation]
            del conversation.peer.silent[conversation]

    def _enqueue(self, conversation: Conversation) -> None:
        peer = conversation.peer
        self._in_hand[conversation] = None
        if conversation.over_limit:
            self._refuse(conversation, f"{peer.name} has {self._config.max_connections_per_peer} connections already")
        elif not self.peers.take_token(peer):
            self._metrics.over_limit("rate")
            self._refuse(conversation, f"{peer.name} asks more than {self._config.peer_rate:g} times a second")
        else:
            in_hand = 0 if self._quoting is None else self._quoting.in_hand
            displaced = self.queue.push(peer.name, conversation, limit=self._config.max_waiting - in_hand)
            if displaced is not None:
                self._metrics.over_limit("waiting")
                self._refuse(displaced, f"{len(self.queue) + in_hand} requests wait for the platform already")

    def _refuse(self, conversation: Conversation, reason: str) -> None:
        self.deliver(conversation, self._broker.refuse(conversation.call.request, PlatformBusy(reason)))

    def _end_or_wait(self, conversation: Conversation, rest: bytes) -> None:
        if not rest:
            self._end(conversation)
            return
        task = self._loop.create_task(self._write_rest(conversation, rest))
        self._writing[task] = conversation
        task.add_done_callback(self._writing.pop)

    async def _write_rest(self, conversation: Conversation, rest: bytes) -> None:
        try:
            async with asyncio.timeout(self._config.read_timeout):
                await conversation.write_rest(rest)
        except TimeoutError:
            self._finish(conversation, "the answer was not taken within the deadline")
        except OSError as error:
            self._finish(conversation, str(error))
        else:
            self._finish(conversation)

    def _finish(self, conversation: Conversation, reason: str = "") -> None:
        """End a conversation in any state."""
        if not conversation.is_closed:
            self._mark_received(conversation)
            self._in_hand.pop(conversation, None)
            self._end(conversation, reason)

    def _end(self, conversation: Conversation, reason: str = "") -> None:
        """End a conversation that is in none of the lists."""
        answered = conversation.close(self._now(), reason)
        self._metrics.ended(conversation)
        conversation.peer.connections -= 1
        if not answered:
            self.peers.take_futile(conversation.peer)

    def _tick(self) -> None:
        self._ticks = self._loop.call_later(TICK, self._tick)
        due = self._now() - self._config.answer_timeout
        for late in self.queue.remove_if(lambda waiting: waiting.since <= due):
            self._refuse(late, f"the platform did not answer within {self._config.answer_timeout:g} s")
        self._expire()
        self._look_at_floods()
        self.peers.forget()
        if self._quoting is not None:
            self._quoting.pump()
        self._metrics.settle()

    def _look_at_floods(self) -> None:
        self._acceptor.adapt_backlog(new=self.peers.looked_up, peers=self.peers.active())
        self.peers.looked_up = 0
        for peer, count in self.peers.turned_away():
            self._metrics.turned_away(peer, count)
            self._throttled[peer] = self._throttled.get(peer, 0) + count
        if self._throttled and self._now() >= self._report_throttled:
            self._report_throttled = self._now() + REPORT_THROTTLED
            most = sorted(self._throttled.items(), key=lambda item: item[1], reverse=True)
            for peer, count in most[:MOST_THROTTLED]:
                structlog.get_logger().warning(
                    "aesm.throttled", peer=peer, connections=count,
                    reason="too many of its connections come to nothing; these were closed unread",
                )  # fmt: skip
            self._throttled.clear()
