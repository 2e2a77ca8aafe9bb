"""The host's file system: how everything here reads /dev, /proc and /sys of a node.

Paths are given as the host knows them (`/dev/sgx_enclave`); `root` is where this process sees the host's root. Symlinks
are resolved inside that root, so an absolute link of the host never leads out of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from confcom.errors import check_want

MAX_TEXT = 1 << 20
"""Bytes read of one file; /proc/cpuinfo of 512 processors has about 800 KB, of which the first entry is enough."""
_MAX_LINKS = 40
_KINDS = (
    (stat.S_ISREG, "an ordinary file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISFIFO, "a pipe"),
)


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """A device of the host: `path` is the true one, free of symlinks; `number` is None for a stand-in."""

    path: str
    number: tuple[int, int] | None
    mode: int
    uid: int
    gid: int

    @property
    def is_stand_in(self) -> bool:
        """Whether it is an ordinary file that plays a device on a simulated node."""
        return self.number is None


@dataclass(frozen=True, slots=True)
class Host:
    """A host with its root mounted at `root`. `stand_ins`: ordinary files count as devices (simulated nodes only).

    Everything that opens files raises `PlatformUnavailable` for want of descriptors (`check_want`).
    """

    root: Path = Path("/")
    stand_ins: bool = False

    def outside(self, path: str) -> str:
        """The path under which the node's own programs (kubelet, container runtime) find a device.

        A simulated node is a folder of the real one; otherwise `root` is only where this process has the host's root.
        """
        return str(self.root / path.lstrip("/")) if self.stand_ins else path

    def read(self, path: str) -> str | None:
        """A file's text, `MAX_TEXT` bytes at most, or None if it cannot be read."""
        content = self.read_at(path, MAX_TEXT, 0)
        return None if content is None else content.decode("utf-8", "replace")

    def read_at(self, path: str, size: int, position: int) -> bytes | None:
        """Up to `size` bytes from `position`, or None if that cannot be read."""
        true = self.resolve(path)
        if true is None:
            return None
        try:
            descriptor = os.open(self._inside(true), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            check_want(error)
            return None
        try:
            pieces = []
            while size > 0 and (piece := os.pread(descriptor, size, position)):
                pieces.append(piece)
                position += len(piece)
                size -= len(piece)
            return b"".join(pieces)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def why_unreadable(self, path: str) -> str:
        """Why a file cannot be read, in the system's words; empty if it can."""
        try:
            descriptor = os.open(self._inside(self.resolve(path) or path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            return error.strerror or str(error)
        try:
            os.read(descriptor, 1)
        except OSError as error:
            return error.strerror or str(error)
        finally:
            os.close(descriptor)
        return ""

    def kind(self, path: str) -> str:
        """What is at a path or at the end of its symlinks, in words."""
        status = self.status(path)
        if status is None:
            return "a link to nothing" if self._inside(path).is_symlink() else "not there"
        return next((words for is_kind, words in _KINDS if is_kind(status.st_mode)), "of an unknown kind")

    def names(self, path: str) -> Iterator[str]:
        """Names in a directory, sorted; none where it cannot be read."""
        try:
            yield from sorted(entry.name for entry in self._inside(path).iterdir())
        except OSError as error:
            check_want(error)

    def folders(self, path: str) -> Iterator[str]:
        """Names of the directories in a directory, sorted, links not followed; none where it cannot be read."""
        try:
            with os.scandir(self._inside(path)) as entries:
                yield from sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError as error:
            check_want(error)

    def write(self, path: str, text: str) -> None:
        """Write into a file of the kernel that is there, in one call; `OSError` where that is not allowed."""
        true = self.resolve(path)
        if true is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        descriptor = os.open(self._inside(true), os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def device(self, path: str) -> DeviceFile | None:
        """The character device (or stand-in) at a path or at the end of its symlinks; None if there is none."""
        true, status = self.resolve(path), self.status(path)
        if true is None or status is None:
            return None
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISCHR(status.st_mode):
            number = (os.major(status.st_rdev), os.minor(status.st_rdev))
            return DeviceFile(true, number, mode, status.st_uid, status.st_gid)
        if self.stand_ins and stat.S_ISREG(status.st_mode):
            return DeviceFile(true, None, mode, status.st_uid, status.st_gid)
        return None

    def status(self, path: str) -> os.stat_result | None:
        """The status of the file at a path or at the end of its symlinks; None if there is none."""
        true = self.resolve(path)
        if true is None:
            return None
        try:
            return os.lstat(self._inside(true))
        except OSError:
            return None

    def resolve(self, path: str) -> str | None:
        """The path free of symlinks, as the host would resolve it; None if it leads nowhere or in circles."""
        done = PurePosixPath("/")
        waiting = list(reversed(PurePosixPath(path).parts))
        for _ in range(_MAX_LINKS * 8):
            if not waiting:
                return str(done)
            part = waiting.pop()
            if part in ("/", ".."):
                done = PurePosixPath("/") if part == "/" else done.parent
                continue
            try:
                mode = os.lstat(self._inside(str(done / part))).st_mode
                target = str(self._inside(str(done / part)).readlink()) if stat.S_ISLNK(mode) else None
            except OSError:
                return None
            if target is None:
                done /= part
            else:
                waiting += reversed(PurePosixPath(target).parts)
        return None

    def _inside(self, path: str) -> Path:
        return self.root / path.lstrip("/")
