"""A listening Unix socket that replaces its predecessor without a moment at which the path leads nowhere."""

from __future__ import annotations

import os
import secrets
import socket
import stat
from contextlib import suppress
from pathlib import Path

from confcom.errors import ConfigError, PlatformUnavailable

DIRECTORY_MODE = 0o755
SOCKET_MODE = 0o666
"""Connecting needs write permission; a client may run as any user."""
MAX_PATH = 107
"""`sun_path` without its NUL."""


class UnixListener:
    """A bound and listening stream socket (`socket`, non-blocking) at `path`.

    It is bound under a temporary name and renamed over the path, so clients find either the old or the new
    service, never none. `close` removes the path only while it still leads to this socket.
    """

    def __init__(self, path: Path, *, backlog: int, replace: bool = False) -> None:
        self.path = path
        _check_vacant(path, replace=replace)
        _make_directory(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        if len(os.fsencode(temporary)) > MAX_PATH:
            raise ConfigError(f"{path} is too long for a socket: {MAX_PATH - 10} bytes at most")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self.socket.bind(os.fspath(temporary))
            temporary.chmod(SOCKET_MODE)
            self.socket.listen(backlog)
            self._inode = _inode(temporary)
            temporary.rename(path)
        except OSError as error:
            self.socket.close()
            with suppress(OSError):
                temporary.unlink()
            raise _cannot_listen(path, error) from error

    @property
    def owns_path(self) -> bool:
        """Whether the path still leads to this socket, not to a successor's."""
        return _inode(self.path) == self._inode

    def remove_path(self) -> None:
        """Take the path away, if it is still ours; connections that wait in the backlog stay."""
        with suppress(OSError):
            if self.owns_path:
                self.path.unlink()

    def close(self) -> None:
        """Stop listening."""
        self.remove_path()
        self.socket.close()


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


def _check_vacant(path: Path, *, replace: bool) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            f"{path} exists and is not a socket", advice="Name another path, or remove it if it is in the way."
        )
    if not replace and is_served(path):
        raise ConfigError(
            f"another service answers on {path}",
            advice="Stop it first (Intel's is called aesmd), or take over from it with --replace.",
        )


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(DIRECTORY_MODE)  # mkdir's mode is subject to the umask
    except OSError as error:
        raise _cannot_listen(directory, error) from error


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _cannot_listen(path: Path, error: OSError) -> PlatformUnavailable:
    return PlatformUnavailable(
        f"cannot listen at {path}: {error.strerror or error}",
        advice="Run as a user that may write in its directory, or name another path with --socket.",
    )
