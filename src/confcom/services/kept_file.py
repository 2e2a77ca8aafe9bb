"""A small file that a daemon keeps for its successor, which only its owner may touch. Nothing here raises.

A file that is not of this user alone, or longer than it can be, counts as none: another user may have put it there.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import structlog

_MODE = 0o600


class KeptFile:
    """The file at a path; `event` names it in the log."""

    def __init__(self, path: Path, event: str, *, limit: int) -> None:
        self._path = path
        self._event = event
        self._limit = limit

    def read(self) -> bytes | None:
        """The content, `limit` bytes at most."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.ignore(error.strerror or str(error))
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                self.ignore("it is not a file of this user alone")
                return None
            content = os.read(descriptor, self._limit + 1)
        finally:
            os.close(descriptor)
        if len(content) > self._limit:
            self.ignore(f"it has more than {self._limit} bytes")
            return None
        return content

    def keep(self, content: bytes) -> None:
        """Write it in one step, unless it is there already."""
        if self.read() == content:
            return
        # With the process's number: a successor may write at the same time.
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            new.unlink(missing_ok=True)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            new.rename(self._path)
        except OSError as error:  # the daemon goes on from memory, and its successor begins with nothing
            structlog.get_logger().warning(self._event, outcome="not kept", reason=error.strerror)
        else:
            structlog.get_logger().info(self._event, outcome="kept", file=str(self._path))

    def drop(self, reason: str) -> None:
        """Remove it and say why."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        structlog.get_logger().warning(self._event, outcome="dropped", reason=reason)

    def ignore(self, reason: str) -> None:
        """Say why its content is not used."""
        structlog.get_logger().warning(self._event, outcome="ignored", reason=reason, file=str(self._path))
