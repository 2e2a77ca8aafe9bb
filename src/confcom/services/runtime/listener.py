"""Listening sockets; a Unix socket replaces its predecessor without a moment at which the path leads nowhere.

Beside them what bounds those who connect: descriptors, and a queue in which they take turns.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import secrets
import socket
import stat
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog

from confcom.errors import ConfigError, PlatformUnavailable

DIRECTORY_MODE = 0o755
SOCKET_MODE = 0o666
"""Connecting needs write permission; a client may run as any user."""
MAX_PATH = 107
"""`sun_path` without its NUL."""

SOCKET_BUFFER = 128 * 1024
"""Bytes of the kernel's buffers for each direction of a TCP connection."""
_SO_PASSRIGHTS = 83  # not in Python's socket module


class _Listening(socket.socket):
    """A Unix stream socket that knows its family and type: `accept` asks for both, and by default that is slow."""

    family = socket.AF_UNIX
    type = socket.SOCK_STREAM


class UnixListener:
    """A bound and listening stream socket (`socket`, non-blocking) for `path`.

    It is bound under a temporary name beside the path (`place`), where it can be tested; `take_path` renames it over
    the path, so clients find either the old or the new service, never none. `close` removes the path if it is its own.
    """

    def __init__(self, path: Path, *, backlog: int, replace: bool = False) -> None:
        self.path = path
        _make_directory(path.parent)
        _check_directory(path.parent)
        _check_vacant(path, replace=replace)
        _remove_remains(path)
        self.place = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        if len(os.fsencode(self.place)) > MAX_PATH:
            raise ConfigError(f"{path} is too long for a socket: {MAX_PATH - 10} bytes at most")
        self.socket: socket.socket = _Listening(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _refuse_descriptors(self.socket)
            self.socket.bind(os.fspath(self.place))
            _set_socket_mode(self.place)
            self.socket.listen(backlog)
            self._inode = inode(self.place)
        except OSError as error:
            self.close()
            raise _cannot_listen(path, error) from error

    def take_path(self) -> None:
        """Rename the socket to its path."""
        try:
            self.place.rename(self.path)
        except OSError as error:
            raise _cannot_listen(self.path, error) from error
        self.place = self.path

    @property
    def owns_path(self) -> bool:
        """Whether the path leads to this socket, not to a successor's."""
        return inode(self.path) == self._inode

    def remove_path(self) -> None:
        """Remove the path, if it is still its own; connections in the backlog stay."""
        remove_own(self.place, self._inode)

    def close(self) -> None:
        self.remove_path()
        self.socket.close()

    _inode: tuple[int, int] | None = None


def _refuse_descriptors(listener: socket.socket) -> None:
    """Have the kernel refuse descriptors that clients pass along; closing the last of a socket may block for minutes.

    Linux before 6.16 cannot.
    """
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def is_served(path: Path) -> bool:
    """Whether something listens at the path now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its backlog is full
        except OSError:
            return False
    return True


def clear_path(path: Path) -> None:
    """Make room for a socket at a path: remove an empty folder; refuse what else is there and no socket.

    Container engines and the kubelet make a folder where a volume names a path that does not exist.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if stat.S_ISSOCK(mode):
        return
    if not stat.S_ISDIR(mode):
        raise ConfigError(
            f"{path} exists and is not a socket", advice="Name another path, or remove it if it is in the way."
        )
    try:
        path.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        advice = (
            "A container engine makes such a folder when a volume names the socket before it exists. Remove it, and "
            "mount the folder that holds the socket instead."
        )
        raise ConfigError(
            f"{path} is a folder where the socket belongs, and cannot be removed: {error.strerror}", advice=advice
        ) from error


def _check_vacant(path: Path, *, replace: bool) -> None:
    clear_path(path)
    if not replace and is_served(path):
        raise ConfigError(
            f"another service answers on {path}",
            advice="Stop it first (Intel's is called aesmd), or take over from it with --replace.",
        )


def _make_directory(directory: Path) -> None:
    if os.path.isdir(directory):  # noqa: PTH112 - what may not be looked at is reported when it is made
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, DIRECTORY_MODE)  # mkdir's mode is subject to the umask
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _cannot_listen(directory, error) from error


def _check_directory(directory: Path) -> None:
    """Refuse a directory in which any user could replace the socket."""
    try:
        status = directory.stat()
    except OSError as error:
        raise _cannot_listen(directory, error) from error
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise ConfigError(
            f"every user may write in {directory} (mode {stat.S_IMODE(status.st_mode):04o}), and so replace the socket",
            advice=f"Remove that right: chmod 0755 {directory}",
        )


def _set_socket_mode(place: Path) -> None:
    # Not by name: a user who can write in the directory could have put a symbolic link there meanwhile.
    descriptor = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise OSError(errno.EEXIST, "another process replaced the new socket")
        Path(f"/proc/self/fd/{descriptor}").chmod(SOCKET_MODE)
    finally:
        os.close(descriptor)


def _remove_remains(path: Path) -> None:
    """Remove sockets that predecessors left under temporary names when they were killed."""
    with suppress(OSError):
        for entry in path.parent.glob(f".{path.name}.????????"):
            if stat.S_ISSOCK(entry.lstat().st_mode) and not is_served(entry):
                entry.unlink()


def inode(path: Path) -> tuple[int, int] | None:
    """Device and inode of what is at a path, links not followed; None where nothing is.

    A listening socket keeps its inode from being reused, so the numbers identify it.
    """
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def remove_own(path: Path, own: tuple[int, int] | None) -> None:
    """Remove the socket of that inode, unless a successor's stands at its path by now."""
    with suppress(OSError):
        if inode(path) == own:
            path.unlink()


def _cannot_listen(path: Path, error: OSError) -> PlatformUnavailable:
    advice = "Run as a user that may write in its directory, or name another path with --socket."
    directory = path if os.path.isdir(path) else path.parent  # noqa: PTH112 - as above
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and os.path.isdir(directory):  # noqa: PTH112
        advice = _directory_advice(directory)
    return PlatformUnavailable(f"cannot listen at {path}: {error.strerror or error}", advice=advice)


def _directory_advice(directory: Path) -> str:
    status, uid = directory.stat(), os.geteuid()
    return (
        f"{directory} belongs to user {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}; this process is user "
        f"{uid}. The kubelet makes a hostPath directory as root: let an init container that runs as root do "
        f"`chown {uid} {directory}` (as Intel's aesmd does when it starts), or name another path with --socket."
    )


def bind_unix(path: Path, backlog: int, cleaning: AsyncExitStack) -> socket.socket:
    """A socket that listens at a path, in the place of one that was left there; closed and removed with the stack."""
    bound = cleaning.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        clear_path(path)
        if not is_served(path):
            path.unlink(missing_ok=True)
        bound.bind(str(path))
        path.chmod(0o666)  # what it serves is public, and what changes something needs a token
        bound.listen(backlog)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {path}: {error.strerror or error}",
            advice="Name a path in a folder that can be written, where nothing else listens.",
        ) from error
    cleaning.callback(remove_own, path, inode(path))
    return bound


def bind_tcp(host: str, port: int, backlog: int, cleaning: AsyncExitStack) -> socket.socket:
    """A socket that listens on a host's port (0: any; `::`: on every address); closed with the stack."""
    try:
        bound = cleaning.enter_context(_open_socket(host, port))
        bound.listen(backlog)
    except (OSError, UnicodeError) as error:  # UnicodeError: it cannot be a host's name
        message = f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}"
        raise ConfigError(message, advice="Name another address with --listen.") from error
    return bound


def _open_socket(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # With the protocol's number: asyncio sets TCP_NODELAY only on sockets that know theirs, and without it a body
        # waits 40 ms for the acknowledgement of its head.
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        if host != "::" or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        # [::] means every address, on a machine without IPv6 too.
        return _open_socket("0.0.0.0", port)  # noqa: S104 - every address was asked for
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        # Accepted connections inherit it; asyncio reads as much at a time as the kernel holds.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


TURNS = 4
"""Turns of the event loop after which connections accepted before are served, and those ended before are closed.

asyncio accepts a connection in one turn and makes its transport in a later one. If the server is closed in between,
that fails silently, and the connection stays open until garbage collection.
"""


class Listening(Protocol):
    """A listening socket, or what asyncio shows of one."""

    def fileno(self) -> int:
        """Its descriptor; negative once it is closed."""


async def stop_accepting(listeners: Iterable[Listening]) -> None:
    """Stop accepting, and wait until accepted connections are served. Close the server then."""
    for listener in listeners:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(listener.fileno())
    await settle()


async def settle() -> None:
    """Let the event loop finish what is scheduled."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


class Want:
    """Says in the log once that connections wait in the kernel, for want of descriptors, and once that none do."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._reason: str | None = None

    def note(self, error: OSError | None) -> None:
        """What a turn of accepting ended with: an error, or None where the queue is empty."""
        reason = None if error is None else error.strerror
        if reason != self._reason:
            structlog.get_logger().warning(self._event, outcome="waits" if reason else "goes on", reason=reason or "")
            self._reason = reason


def available_descriptors() -> int:
    """The soft limit of open files less those that are open; the limit alone where /proc cannot be read."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        used = 3
    return (1 << 20 if soft == resource.RLIM_INFINITY else soft) - used


Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """A queue of many owners: the owners take turns, and the items of one keep their order.

    When it is full, one more item displaces the newest of the owner that has most.
    """

    def __init__(self) -> None:
        self._items: OrderedDict[str, deque[Item]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, owner: str, item: Item, *, limit: int = sys.maxsize) -> Item | None:
        """Add an item behind the owner's others; beyond `limit` items, gives the one that must leave: maybe this."""
        displaced: Item | None = None
        if self._size >= limit:
            longest = max(self._items, key=lambda key: len(self._items[key]), default=owner)
            if len(self._items.get(longest, ())) <= len(self._items.get(owner, ())) + 1:
                return item
            displaced = self._items[longest].pop()  # it has others
            self._size -= 1
        own = self._items.get(owner)
        if own is None:
            self._items[owner] = deque((item,))
        else:
            own.append(item)
        self._size += 1
        return displaced

    def peek(self) -> Item:
        """The item that `pop` would take."""
        return self._items[next(iter(self._items))][0]

    def pop(self) -> Item:
        """Take the next item; its owner goes behind all others."""
        owner, items = self._items.popitem(last=False)
        item = items.popleft()
        if items:
            self._items[owner] = items
        self._size -= 1
        return item

    def remove_if(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Remove and return all items for which `unwanted` is true."""
        removed: list[Item] = []
        for owner in list(self._items):
            kept = deque[Item]()
            for item in self._items[owner]:
                (removed if unwanted(item) else kept).append(item)
            if kept:
                self._items[owner] = kept
            else:
                del self._items[owner]
        self._size -= len(removed)
        return removed
