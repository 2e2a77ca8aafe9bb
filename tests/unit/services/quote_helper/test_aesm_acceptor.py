"""How many connections wait in the backlog, in a flood and without one."""

from __future__ import annotations

import _socket
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from confcom.services.quote_helper.connections import ACCEPT_BATCH, SHORT_BACKLOG, SHORT_FOR, Acceptor

LONG = 64


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.setblocking(False)
        yield listener


def room(listener: socket.socket) -> int:
    """How many more connections the backlog takes; they stay in it."""
    return connect(listener, 10 * LONG)


def connect(listener: socket.socket, most: int) -> int:
    for count in range(most):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
            try:
                client.connect(listener.getsockname())
            except BlockingIOError:
                return count
    return most


def acceptor_for(listener: socket.socket) -> Acceptor:
    acceptor = Acceptor(_socket.socket.close, lambda: None, lambda count: None, backlog=LONG)
    acceptor.listen(listener)
    return acceptor


def empty(acceptor: Acceptor, listener: socket.socket) -> None:
    while acceptor.accept(listener):
        pass


async def test_a_flood_makes_it_short_for_a_while(listener: socket.socket) -> None:
    acceptor = acceptor_for(listener)
    assert room(listener) == LONG + 1
    acceptor.accept(listener)
    acceptor.adapt_backlog(new=0, peers=2)
    empty(acceptor, listener)
    assert room(listener) == SHORT_BACKLOG + 1
    for _ in range(SHORT_FOR + 1):  # the first look sees what was just taken
        acceptor.adapt_backlog(new=0, peers=2)
    empty(acceptor, listener)

    assert room(listener) == LONG + 1


async def test_what_is_taken_as_fast_as_it_comes_is_no_flood(listener: socket.socket) -> None:
    acceptor = acceptor_for(listener)
    for _ in range(3):
        connect(listener, ACCEPT_BATCH - 1)
        acceptor.accept(listener)
    acceptor.adapt_backlog(new=0, peers=2)
    acceptor.adapt_backlog(new=0, peers=2)  # and none comes at all

    assert room(listener) == LONG + 1


async def test_a_burst_among_many_single_connections_is_a_flood(listener: socket.socket) -> None:
    acceptor = acceptor_for(listener)
    for _ in range(3 * ACCEPT_BATCH):
        connect(listener, 1)
        acceptor.accept(listener)
    connect(listener, 4 * ACCEPT_BATCH)
    empty(acceptor, listener)
    acceptor.adapt_backlog(new=0, peers=2)

    assert room(listener) == SHORT_BACKLOG + 1


async def test_one_peer_alone_keeps_it_long(listener: socket.socket) -> None:
    acceptor = acceptor_for(listener)
    room(listener)
    acceptor.accept(listener)
    acceptor.adapt_backlog(new=0, peers=1)
    empty(acceptor, listener)

    assert room(listener) == LONG + 1


async def test_a_flood_of_new_processes_leaves_it_long(listener: socket.socket) -> None:
    acceptor = acceptor_for(listener)
    room(listener)
    acceptor.accept(listener)
    acceptor.adapt_backlog(new=ACCEPT_BATCH, peers=2)
    empty(acceptor, listener)

    assert room(listener) == LONG + 1
