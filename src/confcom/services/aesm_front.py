"""The front of the quote helper: takes connections, reads requests, answers them or has them answered.

One process holds every connection from its first byte to its last, so that no other's end costs a client its answer,
and so that the limits are those of the node. A request that is there when its connection is taken needs four system
calls (accept, receive, send, close, and one to learn whose it is) and never meets the event loop; only clients that
keep us waiting do. Nothing here blocks on a client.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from pathlib import Path

from confcom.errors import PlatformBusy, ProtocolError
from confcom.protocols.aesm import CLOSED, NEED_DATA
from confcom.protocols.aesm_messages import GetQuoteExRequest, GetQuoteExResponse
from confcom.protocols.aesm_reader import RequestReader
from confcom.services.aesm_acceptor import Acceptor
from confcom.services.aesm_broker import AesmBroker, Answer
from confcom.services.aesm_conversation import Conversation, Observer, RequestEvent
from confcom.services.fair_queue import FairQueue
from confcom.services.file_descriptors import available_descriptors
from confcom.services.peers import Peer, Peers
from confcom.services.pending_request import PendingRequest
from confcom.services.quote_helper_config import QuoteHelperConfig
from confcom.services.quoting import Quoting
from confcom.services.self_test import ClientQuote

DRAIN_STEP = 0.01
"""Seconds between two looks at whether all conversations have ended."""
TICK = 0.25
"""Seconds between two looks at deadlines."""


class AesmFront:
    """All conversations of one helper."""

    def __init__(
        self,
        broker: AesmBroker,
        config: QuoteHelperConfig,
        observer: Observer,
    ) -> None:
        self._broker = broker
        self._config = config
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._reader = RequestReader(config.max_request)
        self._limit = max(1, min(config.max_connections, available_descriptors() - config.fd_reserve))
        self._acceptor = Acceptor(self._welcome, self._welcomed, self._make_room)
        self._deadline: asyncio.TimerHandle | None = None
        self._ticks: asyncio.TimerHandle | None = None
        self._quoting: Quoting | None = None
        self.last_quote: ClientQuote | None = None
        self.peers = Peers(
            Path(config.host_root),
            max_connections=config.max_connections_per_peer,
            rate=config.peer_rate,
            burst=config.peer_burst,
            monotonic=self._loop.time,
        )
        self.queue: FairQueue[PendingRequest] = FairQueue()
        # Those whose request has not arrived, in the order in which they came; and those who do not take their answer.
        self._silent: dict[Conversation, None] = {}
        self._writing: dict[asyncio.Task[None], Conversation] = {}
        self._early: list[Conversation] = []
        self._in_hand: dict[Conversation, None] = {}
        self._welcoming = False
        self._ended: list[RequestEvent] = []

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._silent) + len(self._in_hand) + len(self._writing)

    def start(self, quoting: Quoting) -> None:
        """Name who answers what only the platform can, and begin to look after the deadlines."""
        self._quoting = quoting
        self._tick()

    def listen(self, listener: socket.socket) -> None:
        """Begin to accept there."""
        self._acceptor.listen(listener)

    async def drain(self, listener: socket.socket) -> None:
        """Accept nothing there beyond the present backlog.

        When no other listener is left, also let every conversation end within the deadline.
        """
        await self._acceptor.drain(listener)
        deadline = self._loop.time() + self._config.drain_timeout
        while self.open and not self._acceptor.listens and self._loop.time() < deadline:
            await asyncio.sleep(DRAIN_STEP)

    def close(self) -> None:
        """End what is still open."""
        for timer in (self._deadline, self._ticks):
            if timer is not None:
                timer.cancel()
        for task in self._writing:
            task.cancel()
        for conversation in [*self._silent, *self._in_hand, *self._writing.values()]:
            self._finish(conversation, "the helper stops")
        self._tell()

    def deliver(self, pending: PendingRequest, answer: Answer, duration: float | None = None) -> None:
        """Take the answer to a pending request and send it."""
        conversation = pending.conversation
        self._in_hand.pop(conversation, None)
        if duration is not None:
            self._observer.quoted(duration)
        if conversation.is_closed:
            return
        try:
            rest = self._write(pending, answer)
        except OSError as error:
            self._end(conversation, str(error))
        else:
            self._end_or_wait(conversation, rest)

    def _write(self, pending: PendingRequest, answer: Answer) -> bytes:
        request, response = pending.call.request, answer.response
        if isinstance(request, GetQuoteExRequest) and isinstance(response, GetQuoteExResponse) and response.quote:
            self.last_quote = ClientQuote(request.report, response.quote)
        return pending.conversation.write(answer)

    def _welcome(self, client: socket.socket) -> None:
        """Begin a conversation; mostly the request is there already."""
        self._welcoming = True
        if self.open >= self._limit:
            self._make_room(1)
        conversation = Conversation(client, self.peers, self._reader, self._now())
        peer = conversation.peer
        if self.peers.over_connections(peer):
            self._observer.over_limit("connections")
            conversation.over_limit = not self._make_room_of(peer)
        if self._advance(conversation):
            return
        if self._deadline is None:
            self._deadline = self._loop.call_later(self._config.read_timeout, self._expire)
        self._silent[conversation] = None
        peer.silent[conversation] = None
        self._early.append(conversation)

    def _welcomed(self) -> None:
        """Look again at clients that we were faster than: by now most have sent their request too."""
        if self._early:
            early, self._early = self._early, []
            for conversation in early:
                if conversation in self._silent and not self._advance(conversation):
                    self._loop.add_reader(conversation, self._readable, conversation)
        self._pump()
        self._welcoming = False
        if len(self._ended) > 1:
            self._loop.call_soon(self._tell)
        else:  # a turn of the loop costs more than one line
            self._tell()

    def _readable(self, conversation: Conversation) -> None:
        if self._advance(conversation):
            self._pump()

    def _pump(self) -> None:
        if self.queue and self._quoting is not None:
            self._quoting.pump()

    def _make_room(self, count: int) -> None:
        """End the conversations that have waited for their request for longest."""
        for conversation in list(itertools.islice(self._silent, count)):
            if not self._advance(conversation):
                self._finish(conversation, "made room for another connection")

    def _make_room_of(self, peer: Peer) -> bool:
        """End the oldest silent conversation of a peer; one whose request has come after all is not silent."""
        for conversation in list(peer.silent):
            if not self._advance(conversation):
                self._finish(conversation, "made room for another connection of the same peer")
                return True
        return False

    def _expire(self) -> None:
        """End the conversations whose request is overdue. One timer is enough: they are due in their order."""
        due = self._loop.time() - self._config.read_timeout
        while (oldest := next(iter(self._silent), None)) is not None and oldest.started <= due:
            self._finish(oldest, "no request within the deadline")
        next_due = None if oldest is None else oldest.started + self._config.read_timeout
        self._deadline = None if next_due is None else self._loop.call_at(next_due, self._expire)

    def _advance(self, conversation: Conversation) -> bool:
        """Read on; once the request is whole, answer it or have it answered. Says whether it was."""
        try:
            request = conversation.read()
            if request is NEED_DATA:
                return False
            self._hear(conversation)
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
        self._enqueue(PendingRequest(conversation, plan, self._loop.time()))
        return True

    def _hear(self, conversation: Conversation) -> None:
        """Stop waiting for its request, if we do."""
        if conversation in self._silent:
            self._loop.remove_reader(conversation)
            del self._silent[conversation]
            del conversation.peer.silent[conversation]

    def _enqueue(self, pending: PendingRequest) -> None:
        conversation = pending.conversation
        peer = conversation.peer
        self._in_hand[conversation] = None
        if conversation.over_limit:
            self._refuse(pending, f"{peer.name} has {self._config.max_connections_per_peer} connections already")
        elif not self.peers.take_token(peer):
            self._observer.over_limit("rate")
            self._refuse(pending, f"{peer.name} asks more than {self._config.peer_rate:g} times a second")
        else:
            in_hand = 0 if self._quoting is None else self._quoting.in_hand
            displaced = self.queue.push(peer.name, pending, limit=self._config.max_waiting - in_hand)
            if displaced is not None:
                self._observer.over_limit("waiting")
                self._refuse(displaced, f"{len(self.queue) + in_hand} requests wait for the platform already")

    def _refuse(self, pending: PendingRequest, reason: str) -> None:
        self.deliver(pending, self._broker.refuse(pending.call.request, PlatformBusy(reason)))

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
        """End a conversation in whatever state it is."""
        if not conversation.is_closed:
            self._hear(conversation)
            self._in_hand.pop(conversation, None)
            self._end(conversation, reason)

    def _end(self, conversation: Conversation, reason: str = "") -> None:
        """End one that is in none of our lists."""
        # What is told of it waits until those beside it have their answers too.
        if not self._ended and not self._welcoming:
            self._loop.call_soon(self._tell)
        self._ended.append(conversation.close(self._now(), reason))
        self.peers.leave(conversation.peer)

    def _tell(self) -> None:
        ended, self._ended = self._ended, []
        for event in ended:
            self._observer.request(event)

    def _tick(self) -> None:
        self._ticks = self._loop.call_later(TICK, self._tick)
        due = self._loop.time() - self._config.answer_timeout
        for pending in self.queue.remove_if(lambda pending: pending.since <= due):
            self._refuse(pending, f"the platform did not answer within {self._config.answer_timeout:g} s")
        self.peers.forget()
        if self._quoting is not None:
            self._quoting.pump()
