"""Whether the scheduler of the whole cluster is paused: one record, looked at by every node."""

import asyncio
from collections.abc import Callable

from cluster.clock import Clock
from cluster.errors import ClusterError
from cluster.logs import get_log
from cluster.sharding.insist import insist
from cluster.store.ports import RecordStore

log = get_log(__name__)

_KIND, _KEY = "scheduler", "paused"
_LOOK_S = 2
"""How long another node may take to hear of it."""


class SchedulerSwitch:
    """While it is off no schedule starts anything; what came meanwhile is due when it is on."""

    def __init__(self, records: RecordStore, clock: Clock, on_resumed: Callable[[], None]) -> None:
        """`on_resumed`: whatever was held back is to be looked at."""
        self._records = records
        self._clock = clock
        self._on_resumed = on_resumed
        self.is_off = False

    async def turn(self, *, off: bool) -> None:
        """Returns when it is durable; other nodes follow within seconds."""
        await self._records.put(_KIND, {_KEY: b"1" if off else None})
        self._set(off)

    async def read(self) -> None:
        """Look how it stands, as long as that takes."""
        found = await insist(
            lambda: self._records.get(_KIND, _KEY), clock=self._clock, deadline_ms=None
        )
        self._set(found is not None)

    async def run(self) -> None:
        """Follow what other nodes are told, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                self._set(await self._records.get(_KIND, _KEY) is not None)
            except ClusterError as failure:
                log.info("the switch of the scheduler cannot be seen", error=failure.message)

    def _set(self, is_off: bool) -> None:
        was_off, self.is_off = self.is_off, is_off
        if was_off and not is_off:
            self._on_resumed()
