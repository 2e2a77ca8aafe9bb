"""A request that only the platform can answer, from its arrival to its answer."""

from __future__ import annotations

from confcom.services.aesm_broker import PlatformCall
from confcom.services.aesm_conversation import Conversation


class PendingRequest:
    """Its connection, what it asks, and since when it waits."""

    __slots__ = ("call", "conversation", "since")

    def __init__(self, conversation: Conversation, call: PlatformCall, since: float) -> None:
        self.conversation = conversation
        self.call = call
        self.since = since
