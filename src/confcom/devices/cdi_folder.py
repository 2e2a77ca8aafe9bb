"""The directory where a container runtime looks for CDI files: one file of ours per claim, there or not, never half."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from confcom.errors import PlatformUnavailable, RemoteProtocolError

_UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,62}")


@dataclass(frozen=True, slots=True)
class CdiFolder:
    """Files named after `prefix` and the claim's UID. What is there survives this process: it is its memory too."""

    path: Path
    prefix: str

    def write(self, uid: str, content: bytes) -> None:
        """Make the claim's file, or replace it, in one step; `PlatformUnavailable` if that cannot be done."""
        target = self._file(uid)
        # The runtime reads *.json only: a draft is nothing to it, even after a crash.
        draft = target.with_name(f".{target.stem}.{secrets.token_hex(4)}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.chmod(0o644)
            draft.rename(target)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            raise PlatformUnavailable(
                f"cannot write {target}: {error.strerror}",
                retryable=True,
                advice="The runtime's CDI directory (/var/run/cdi) has to be mounted where cdi_dir says.",
            ) from error

    def remove(self, uid: str) -> bool:
        """Take the claim's file away; says whether there was one."""
        target = self._file(uid)
        try:
            target.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise PlatformUnavailable(f"cannot remove {target}: {error.strerror}", retryable=True) from error
        return True

    def uids(self) -> frozenset[str]:
        """The claims that have a file."""
        found = (path.name for path in self.path.glob(f"{self.prefix}_*.json"))
        return frozenset(name.removeprefix(f"{self.prefix}_").removesuffix(".json") for name in found)

    def _file(self, uid: str) -> Path:
        if _UID.fullmatch(uid) is None:
            raise RemoteProtocolError(f"{uid[:64]!r} is no UID of a claim")
        return self.path / f"{self.prefix}_{uid}.json"
