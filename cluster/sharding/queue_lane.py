"""What goes to the task queues, in as few calls as keep its order per task."""

import asyncio
from collections import deque

from cluster.clock import Clock
from cluster.ids import TaskId
from cluster.sharding.insist import insist
from cluster.store.queue_ports import QueueItem, QueueNews, TaskQueues

LANE_BYTES_MAX = 64 << 20
"""Of what waits for queues that are away. Beyond it the queues are filled again later."""

_CALL_BYTES = 300
"""What a call takes beside its payload."""


class _Batch:
    """Calls about tasks of which each is named once, so that their order does not matter; only
    pushes of one task follow each other."""

    __slots__ = ("acknowledged", "held", "markers", "pushed", "pushes", "size", "told")

    def __init__(self) -> None:
        self.pushes: dict[str, list[QueueItem]] = {}
        self.acknowledged: dict[str, list[TaskId]] = {}
        self.held: dict[str, dict[TaskId, int]] = {}
        self.pushed: set[TaskId] = set()
        self.told: set[TaskId] = set()
        """Acknowledged or held."""
        self.markers: list[asyncio.Future[None]] = []
        self.size = 0


class QueueLane:
    """Runs on its own: while the queues are away timers fire and scripts run all the same."""

    def __init__(self, queues: TaskQueues, clock: Clock) -> None:
        self._queues = queues
        self._clock = clock
        self._batches: deque[_Batch] = deque()
        """In order; the last one is being filled."""
        self._bytes = 0
        self._is_away = False
        self.has_dropped = False
        self._news = asyncio.Event()

    def push(self, queue: str, item: QueueItem) -> None:
        """Push a task, after all that was asked for before."""
        if not self._has_room(_CALL_BYTES + len(item.payload)):
            return
        batch = self._filling()
        if item.task_id in batch.told:
            batch = self._next_batch()
        batch.pushed.add(item.task_id)
        batch.size += _CALL_BYTES + len(item.payload)
        items = batch.pushes.get(queue)
        if items is None:
            batch.pushes[queue] = [item]
        else:
            items.append(item)

    def acknowledge(self, queue: str, task: TaskId) -> None:
        """Acknowledge a task, after all that was asked for before."""
        if self._has_room(_CALL_BYTES):
            self._batch_without(task).acknowledged.setdefault(queue, []).append(task)

    def hold(self, queue: str, task: TaskId, delivery: int) -> None:
        """Hold a task, after all that was asked for before."""
        if self._has_room(_CALL_BYTES):
            self._batch_without(task).held.setdefault(queue, {})[task] = delivery

    def mark(self, marker: asyncio.Future[None]) -> None:
        """Set `marker` once all that was asked for before is done."""
        self._filling().markers.append(marker)

    async def run(self) -> None:
        """Call the queues until cancelled; a call is repeated until it is answered."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._batches:
                batch = self._batches.popleft()
                await self._carry_out(batch)
                self._bytes -= batch.size
                for marker in batch.markers:
                    if not marker.done():
                        marker.set_result(None)

    def _has_room(self, size: int) -> bool:
        if self._is_away and self._bytes + size > LANE_BYTES_MAX:
            self.has_dropped = True
            return False
        self._bytes += size
        return True

    def _filling(self) -> _Batch:
        return self._batches[-1] if self._batches else self._next_batch()

    def _batch_without(self, task: TaskId) -> _Batch:
        batch = self._filling()
        if task in batch.pushed or task in batch.told:
            batch = self._next_batch()
        batch.told.add(task)
        batch.size += _CALL_BYTES
        return batch

    def _next_batch(self) -> _Batch:
        batch = _Batch()
        self._batches.append(batch)
        self._news.set()
        return batch

    async def _carry_out(self, batch: _Batch) -> None:
        if batch.size:
            news = QueueNews(batch.pushes, batch.held, batch.acknowledged)
            await insist(lambda: self._attempt(news), clock=self._clock, deadline_ms=None)

    async def _attempt(self, news: QueueNews) -> None:
        try:
            await self._queues.tell(news, now_ms=self._clock.now_ms())
        except BaseException:
            # Cancelled: no answer in time.
            self._is_away = True
            raise
        self._is_away = False
