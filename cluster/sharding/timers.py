"""Due times of workflows: the near ones in memory, the rest in the open set till then."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from heapq import heappop, heappush

from cluster.clock import Clock
from cluster.engine.events import TimerFired
from cluster.errors import ClusterError, NotFound, NotOwner
from cluster.ids import ShardId, WorkflowId
from cluster.logs import get_log
from cluster.metrics import Metrics
from cluster.store.ports import OpenSet

log = get_log(__name__)

HORIZON_MS = 60_000
"""What is due later is read from the open set, where checkpoints put it, when it comes nearer."""

_READ_EVERY_MS = 20_000
_AGAIN_MS = 1_000
_PAGE = 1_000
_PAGE_MAX = 64_000
_SLEEP_MS_MAX = 1_000
_AT_ONCE_MAX = 256


class Timers:
    """One heap for all shards of a node. An entry that was overtaken is dropped when it comes."""

    def __init__(self, open_set: OpenSet, clock: Clock, metrics: Metrics) -> None:
        self._open_set = open_set
        self._clock = clock
        self._lateness = metrics.timer_lateness.of()
        self._heap: list[tuple[int, WorkflowId]] = []
        self._due: dict[WorkflowId, int] = {}
        self._earlier = asyncio.Event()
        self._shards: set[ShardId] = set()
        self._unread: set[ShardId] = set()
        self._reading: ShardId | None = None
        self._have_unread = asyncio.Event()
        self._held: set[WorkflowId] = set()
        self.fire: Callable[[WorkflowId, TimerFired], Awaitable[None]]
        self.holds: Callable[[WorkflowId], bool] = lambda _: False
        """Whether something that is due has to wait for `release`."""

    def serve(self, shards: Iterable[ShardId]) -> None:
        """Fire for these shards too; what is due soon is read at once."""
        self._unread.update(shards)
        self._shards |= self._unread
        self._have_unread.set()

    def give_up(self, shards: Iterable[ShardId], is_served: Callable[[WorkflowId], bool]) -> None:
        """Fire for these shards no more."""
        self._shards.difference_update(shards)
        self._unread.difference_update(shards)
        for workflow_id in [one for one in self._due if not is_served(one)]:
            del self._due[workflow_id]
        self._held = {one for one in self._held if is_served(one)}

    def has_read(self, shard: ShardId) -> bool:
        """Whether what is due soon on this shard has been read since it is served."""
        return shard in self._shards and shard not in self._unread and shard != self._reading

    def arm(self, workflow_id: WorkflowId, due_ms: int) -> None:
        """Fire at `due_ms`, in place of what was armed for this workflow."""
        self._held.discard(workflow_id)
        if due_ms - self._clock.now_ms() > HORIZON_MS:
            self._due.pop(workflow_id, None)
            return
        self._due[workflow_id] = due_ms
        heappush(self._heap, (due_ms, workflow_id))
        if self._heap[0][0] == due_ms:
            self._earlier.set()

    def is_armed(self, workflow_id: WorkflowId, due_ms: int) -> bool:
        """Whether a timer will fire at `due_ms` or before. What is far off counts as armed."""
        if due_ms - self._clock.now_ms() > HORIZON_MS // 2:
            # It may still be in the open set only; it is read well before it is due.
            return True
        if workflow_id in self._held:
            return True
        armed_ms = self._due.get(workflow_id)
        return armed_ms is not None and armed_ms <= due_ms

    def forget(self, workflow_id: WorkflowId) -> None:
        """The workflow has ended."""
        self._due.pop(workflow_id, None)
        self._held.discard(workflow_id)

    def release(self) -> None:
        """Fire what was held."""
        for workflow_id in tuple(self._held):
            self.arm(workflow_id, self._clock.now_ms())

    async def run(self) -> None:
        """Fire what is due until cancelled."""
        slots = asyncio.Semaphore(_AT_ONCE_MAX)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_ahead())
            while True:
                now_ms = self._clock.now_ms()
                while self._heap and self._heap[0][0] <= now_ms:
                    due_ms, workflow_id = heappop(self._heap)
                    if self._due.get(workflow_id) == due_ms:
                        del self._due[workflow_id]
                        if self.holds(workflow_id):
                            self._held.add(workflow_id)
                            continue
                        await slots.acquire()
                        group.create_task(self._fire(workflow_id, due_ms, slots))
                await self._sleep()

    async def _sleep(self) -> None:
        """Until the next due time; not too long, for the clock may be set."""
        wait_ms = _SLEEP_MS_MAX
        if self._heap:
            wait_ms = min(wait_ms, max(1, self._heap[0][0] - self._clock.now_ms()))
        self._earlier.clear()
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await self._earlier.wait()
        except TimeoutError:
            pass

    async def _fire(self, workflow_id: WorkflowId, due_ms: int, slots: asyncio.Semaphore) -> None:
        try:
            now_ms = self._clock.now_ms()
            self._lateness.observe(max(0, now_ms - due_ms) / 1000)
            await self.fire(workflow_id, TimerFired(now_ms))
        except NotFound:
            pass  # Removed meanwhile.
        except NotOwner:
            pass  # The next owner reads what is due.
        except ClusterError as failure:
            log.warning("a timer has to be fired again", error=failure.message)
            if failure.retryable:
                self.arm(workflow_id, self._clock.now_ms() + _SLEEP_MS_MAX)
        except Exception:
            log.exception("a timer failed", workflow_id=workflow_id)
        finally:
            slots.release()

    async def _read_ahead(self) -> None:
        all_ms = self._clock.monotonic_ms()
        while True:
            now_ms = self._clock.monotonic_ms()
            shards = list(self._unread)
            if now_ms >= all_ms:
                shards += self._shards - self._unread
                all_ms = now_ms + _READ_EVERY_MS
            self._have_unread.clear()
            for shard in shards:
                if shard in self._shards:
                    await self._read_one(shard)
            wait_ms = min(all_ms - now_ms, _AGAIN_MS if self._unread else _READ_EVERY_MS)
            try:
                async with asyncio.timeout(wait_ms / 1000):
                    await self._have_unread.wait()
            except TimeoutError:
                pass

    async def _read_one(self, shard: ShardId) -> None:
        self._unread.discard(shard)
        self._reading = shard
        try:
            await self._read(shard)
        except ClusterError as failure:
            log.warning("due times could not be read", error=failure.message)
            if shard in self._shards:
                self._unread.add(shard)
        finally:
            self._reading = None

    async def _read(self, shard: ShardId) -> None:
        before_ms = self._clock.now_ms() + HORIZON_MS
        limit = _PAGE
        while True:
            found = await self._open_set.due(shard, before_ms=before_ms, limit=limit)
            for entry in found:
                due_ms = entry.next_due_ms
                if shard not in self._shards:
                    return
                if due_ms is not None and entry.workflow_id not in self._due:
                    self.arm(entry.workflow_id, due_ms)
            if len(found) < limit or limit >= _PAGE_MAX:
                return
            # The first ones may all be known already: those behind them come into reach too.
            limit *= 4
