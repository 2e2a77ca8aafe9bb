"""Opens every file that a user or an administrator names: options, settings, and what those lead to.

A pipe (`<(command)`, a FIFO) is read like a file, and given up when nothing comes: no input blocks without end. Callers
bound what they read. What was opened is remembered, so that no command writes over its own input.
"""

from __future__ import annotations

import errno
import io
import os
import select
from collections import deque
from pathlib import Path
from typing import Any

PATIENCE = 30.0
"""Seconds to wait for the next byte of a pipe. Daemons do not wait: it would block their event loop."""

opened: deque[tuple[int, int]] = deque(maxlen=1000)
"""Device and inode of the files that were opened last, the newest at the end."""


def open_input(path: Path | str, *, patience: float | None = None) -> io.BufferedReader:
    """Open a file to read, binary; what cannot be opened or read is an `OSError` with its `strerror`."""
    try:
        return io.BufferedReader(_Input(path, PATIENCE if patience is None else patience))
    except ValueError as error:
        raise OSError(errno.EINVAL, f"this is no file name: {error}", str(path)) from error


def read_bounded(path: Path | str, limit: int, *, patience: float | None = None) -> bytes:
    """The content of a file of at most `limit` bytes; of a larger one `limit + 1`, by which callers see it."""
    with open_input(path, patience=patience) as file:
        return file.read(limit + 1)


def remember(descriptor: int) -> None:
    """Count an open file among those that were opened here, standard input for one."""
    status = os.fstat(descriptor)
    opened.append((status.st_dev, status.st_ino))


def was_opened(path: Path) -> bool:
    """Whether the file was opened here, by whatever name; False for one that is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return (status.st_dev, status.st_ino) in opened


class _Input(io.FileIO):
    """A file that is not waited for without end."""

    def __init__(self, path: Path | str, patience: float) -> None:
        super().__init__(path, "rb", opener=_open)
        self._patience = patience
        try:
            self._wait()  # a pipe without a writer seems to be at its end
            remember(self.fileno())
        except OSError:
            self.close()
            raise

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - bytes of any kind
        """Read into a buffer; the number of bytes, 0 at the end."""
        while (count := super().readinto(buffer)) is None:
            self._wait()
        return count

    def _wait(self) -> None:
        ready = select.poll()
        ready.register(self, select.POLLIN)
        if not ready.poll(self._patience * 1000):
            raise TimeoutError(errno.ETIMEDOUT, f"it is a pipe, and gave nothing within {self._patience:g} s")


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
