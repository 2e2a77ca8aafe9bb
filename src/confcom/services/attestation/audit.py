"""Writes the records of appraisals: many that come together in one transaction, each before its caller is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from confcom.services.attestation.attestation_store import AuditRecord
from confcom.services.runtime.process import WorkerThreads


class AuditWriter:
    """One transaction at a time; what comes meanwhile goes into the next."""

    def __init__(self, write: Callable[[Sequence[AuditRecord]], None]) -> None:
        self._write = write
        self._thread = WorkerThreads("audit", threads=1, max_waiting=1)
        self._pending: list[tuple[AuditRecord, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def record(self, entry: AuditRecord) -> None:
        """Return once the record is kept; what keeps it from that is raised for every record of its transaction."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((entry, kept))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._run())
        await kept

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    async def _run(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            entries = [entry for entry, _ in batch]
            outcome: Exception | None = None
            try:
                await self._thread.run(lambda entries=entries: self._write(entries))  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001 - raised again by every waiting call
                outcome = error
            for _, kept in batch:
                if kept.done():
                    continue
                if outcome is None:
                    kept.set_result(None)
                else:
                    kept.set_exception(outcome)
