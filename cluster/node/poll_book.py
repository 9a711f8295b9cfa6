"""What is known of polls beyond this node and this process: saved, and read back."""

import asyncio

from cluster.clock import Clock
from cluster.errors import ClusterError
from cluster.logs import get_log
from cluster.node.poll import PollData, PollDesk
from cluster.store.ports import PollData as StoredPoll
from cluster.store.ports import RecordStore

log = get_log(__name__)

_SAVE_EVERY_S, _SHARE_EVERY_S = 5, 2
"""A long poll lasts 5 s, and a domain counts as served for 10 s: the other nodes hear in time."""
_READ_EVERY_S = 1
_LATELY_MS = 60_000


class PollBook:
    """Keeps the last poll of each queue, and tells this node's desk of polls on others."""

    def __init__(
        self, desk: PollDesk, records: RecordStore, clock: Clock, *, is_shared: bool
    ) -> None:
        """`is_shared`: other nodes are polled too."""
        self._desk = desk
        self._records = records
        self._clock = clock
        self._is_shared = is_shared

    async def run(self) -> None:
        """Save and read until cancelled."""
        save_every_ms = 1000 * (_SHARE_EVERY_S if self._is_shared else _SAVE_EVERY_S)
        look_every_s = _READ_EVERY_S if self._is_shared else _SAVE_EVERY_S
        saved_ms = self._clock.monotonic_ms()
        while True:
            news = self._desk.has_new_domain
            try:
                async with asyncio.timeout(look_every_s):
                    await news.wait()
            except TimeoutError:
                pass
            is_due = self._clock.monotonic_ms() - saved_ms >= save_every_ms
            try:
                if news.is_set() or is_due:
                    news.clear()
                    await self.save()
                    saved_ms = self._clock.monotonic_ms()
                if self._is_shared:
                    await self._read()
            except ClusterError as error:
                log.warning("poll data was not kept", error=error.message)
                await asyncio.sleep(look_every_s)

    async def save(self) -> None:
        """Bring the store up to now."""
        polls = [
            StoredPoll(poll.task_type, poll.domain or "", poll.worker_id or "", poll.last_poll_ms)
            for poll in self._desk.drain_poll_data()
        ]
        if polls:
            await self._records.put_poll_data(polls)

    async def _read(self) -> None:
        since_ms = self._clock.now_ms() - _LATELY_MS
        # Only with a domain it matters where a task is sent.
        self._desk.hear(
            PollData(poll.task_type, poll.domain, poll.worker_id, poll.last_poll_ms)
            for poll in await self._records.polls_with_domain()
            if poll.last_poll_ms >= since_ms
        )
