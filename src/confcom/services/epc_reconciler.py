"""Keeps EPC in the node's status at what it should be, whoever resets it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from confcom.cluster.node_values import NodeStatus
from confcom.devices.epc_node_status import EpcAmount
from confcom.devices.interface import NodeStatusPublisher
from confcom.errors import ConfcomError
from confcom.services.device_plugin_events import Observer, PluginEvent

WATCH_LIFE = 600.0
"""Seconds after which the watch is made anew, and the state with it looked at afresh."""
RETRY_MAX = 30.0
"""Most seconds between two attempts after failures; the first is `settle`, and it doubles."""


class EpcReconciler:
    """Compares every state of the node that the API shows with the wanted amount, and patches what differs.

    `settle` is the seconds between two patches at least, so that a quarrel with somebody else stays slow.
    """

    def __init__(self, publisher: NodeStatusPublisher, amount: EpcAmount, observe: Observer, *, settle: float) -> None:
        self.trouble = "the API has not shown the node's status yet"
        """Why the amount may be missing from the node's status, as a clause; empty when it is there."""
        self._publisher = publisher
        self._amount = amount
        self._observe = observe
        self._settle = settle
        self._status: NodeStatus | None = None
        self._wake = asyncio.Event()

    def update(self, amount: EpcAmount) -> None:
        """Want another amount from now on."""
        if amount != self._amount:
            self._amount = amount
            self._wake.set()

    async def run(self) -> None:
        """For ever; failures are told and tried again."""
        failures = 0
        while True:
            try:
                if await self._follow():
                    failures = 0
                    continue
                reason = "the node is not in the API"
            except ConfcomError as error:
                reason = f"{error.code}: {error.message}"
            self.trouble = reason
            fields = {"outcome": "failed", "reason": reason}
            self._observe(PluginEvent("epc.published", self._amount.resource, fields, trouble=True))
            await asyncio.sleep(min(self._settle * 2 ** min(failures, 30), RETRY_MAX))
            failures += 1

    async def _follow(self) -> bool:
        """One watch; says whether it ever showed the node."""
        self._status = None
        try:
            async with asyncio.timeout(WATCH_LIFE), asyncio.TaskGroup() as group:
                patching = group.create_task(self._patch_all(), name="epc-patch")
                async with aclosing(self._publisher.watch()) as states:
                    async for status in states:
                        self._status = status
                        self._wake.set()
                patching.cancel()
        except TimeoutError:
            return True
        except BaseExceptionGroup as group_error:
            # One cause is enough: the other task was only cancelled because of it.
            raise group_error.exceptions[0] from None
        return self._status is not None

    async def _patch_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._status is None:
                continue
            if (patch := self._amount.patch_for(self._status)) is None:
                self.trouble = ""
                continue
            wanted = self._amount
            await self._publisher.patch(patch)
            self.trouble = ""
            fields = {"outcome": "published", "units": wanted.units, "true_mib": wanted.true_mib}
            self._observe(PluginEvent("epc.published", wanted.resource, fields))
            await asyncio.sleep(self._settle)
