"""Whether somebody, in this process or another, has written to a collateral store."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from confcom.errors import CollateralError


class StoreWatch:
    """Notices writes to the file of a store. One thread at a time."""

    def __init__(self, path: Path) -> None:
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._version = self._read()
            except BaseException:
                self.close()
                raise
        except sqlite3.Error as error:
            raise CollateralError(f"the collateral store {path} cannot be watched: {error}") from error

    def changed(self) -> bool:
        """Whether there was a write since the last call; a file that cannot be read counts as changed."""
        try:
            version = self._read()
        except sqlite3.Error:
            return True
        changed = version != self._version
        self._version = version
        return changed

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _read(self) -> int:
        # SQLite changes this number for every commit that another connection made.
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
