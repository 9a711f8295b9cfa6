"""Task queues in this process: what embedded mode runs, and the readable model of the port.

One lane per queue. A lane keeps its waiting tasks in levels, one per priority; a level is a deque
of what came in order of its due time, which is nearly all, and a heap of the rest (delayed, handed
back, late). An entry whose task has moved on stays behind as a ghost until it comes to the front
or there are more ghosts than tasks.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import repeat

from cluster.ids import ShardId, TaskId
from cluster.store.queue_ports import (
    HAND_OUT_MS,
    Limits,
    Popped,
    QueueItem,
    QueueNews,
    QueueSize,
    Wake,
    task_type_of,
)

_IDLE_LANES = 64
_GHOSTS = 64
_NEVER = 1 << 62
_COUNTING_MS = 250
"""How often a poll looks whether the tasks in workers' hands were counted after a loss."""
_NOTHING_SIZE = QueueSize(0, 0, None)


class MemoryTaskQueues:
    """TaskQueues and QueueUpkeep for one event loop: no call ever suspends."""

    def __init__(self, *, shard_count: int = 0) -> None:
        """`shard_count` shards must be counted before concurrency limits hand anything out."""
        self._shard_count = shard_count
        self._lanes: dict[str, _Lane] = {}
        self._groups: dict[str, _Group] = {}
        self._sweep_at = _IDLE_LANES
        self._now_ms = 0
        self._wake: Wake = lambda queue, at_ms: None
        self._watchers: list[Wake] = []
        self._losses = 0
        self._counted: set[ShardId] = set()

    async def push(self, batch: Mapping[str, Sequence[QueueItem]], *, now_ms: int) -> None:
        self._now_ms = now_ms
        for queue, items in batch.items():
            lane = self._lanes.get(queue)
            if lane is None:
                lane = self._open(queue)
            first_ms, freed = lane.push(items, now_ms)
            if first_ms != _NEVER:
                self._wake(queue, first_ms)
            if freed:
                self._free(lane.group, freed)

    async def pop(
        self, queue: str, *, count: int, now_ms: int, limits: Limits | None = None
    ) -> Popped:
        self._now_ms = now_ms
        lane = self._lanes.get(queue)
        if lane is None:
            return Popped([], None)
        if limits is None:
            items = lane.take(count, now_ms)
            lane.group.held += len(items)
            return Popped(items, lane.next_ms())
        if limits.concurrent is not None and len(self._counted) < self._shard_count:
            next_ms = lane.next_ms()
            if next_ms is None or next_ms > now_ms:
                return Popped([], next_ms)
            return Popped([], now_ms + _COUNTING_MS, "concurrent")
        return self._pop_within(limits, lane, count, now_ms)

    def _pop_within(self, limits: Limits, lane: "_Lane", count: int, now_ms: int) -> Popped:
        group = lane.group
        items = lane.take(min(count, group.room(limits, now_ms)), now_ms)
        if items:
            group.held += len(items)
            if limits.rate:
                group.stamps.extend(repeat(now_ms, len(items)))
            # The lane that was served goes last, so that no domain starves the others.
            del group.lanes[lane.queue]
            group.lanes[lane.queue] = lane
        next_ms = lane.next_ms()
        if next_ms is None:
            return Popped(items, None)
        is_due = next_ms <= now_ms
        if limits.concurrent is not None and group.held >= limits.concurrent:
            group.starved = True
            return Popped(items, None, "concurrent" if is_due else None)
        opens_ms = group.window_opens_ms(limits, now_ms)
        return Popped(
            items, max(next_ms, opens_ms), "rate" if is_due and opens_ms > now_ms else None
        )

    async def hand_back(self, queue: str, items: Sequence[QueueItem]) -> None:
        lane = self._lanes.get(queue)
        if lane is not None:
            freed = lane.put_back(items)
            if freed:
                self._wake(queue, 0)
                self._free(lane.group, freed)

    async def acknowledge(self, batch: Mapping[str, Sequence[TaskId]]) -> None:
        for queue, task_ids in batch.items():
            lane = self._lanes.get(queue)
            if lane is not None:
                freed = lane.forget(task_ids)
                if freed:
                    self._free(lane.group, freed)

    async def hold(self, batch: Mapping[str, Mapping[TaskId, int]]) -> None:
        for queue, deliveries in batch.items():
            lane = self._lanes.get(queue) or self._open(queue)
            lane.group.held += lane.hold(deliveries)

    async def tell(self, news: QueueNews, *, now_ms: int) -> None:
        await self.push(news.pushed, now_ms=now_ms)
        await self.hold(news.held)
        await self.acknowledge(news.acknowledged)

    async def unknown(self, batch: Mapping[str, Sequence[TaskId]]) -> Sequence[TaskId]:
        found: list[TaskId] = []
        for queue, task_ids in batch.items():
            lane = self._lanes.get(queue)
            found += task_ids if lane is None else lane.unknown(task_ids)
        return found

    async def sizes(self, queues: Sequence[str] | None = None) -> dict[str, QueueSize]:
        lanes = self._lanes
        if queues is None:
            return {name: lane.size() for name, lane in lanes.items() if not lane.is_empty}
        return {name: lanes[name].size() if name in lanes else _NOTHING_SIZE for name in queues}

    def watch(self, wake: Wake) -> None:
        self._watchers.append(wake)
        self._wake = wake if len(self._watchers) == 1 else self._wake_all

    def _wake_all(self, queue: str, at_ms: int) -> None:
        for wake in self._watchers:
            wake(queue, at_ms)

    async def expired(self, *, now_ms: int, count: int) -> dict[str, dict[TaskId, int]]:
        found: dict[str, dict[TaskId, int]] = {}
        for queue, lane in self._lanes.items():
            if count > 0 and (expired := lane.expired(now_ms, count)):
                found[queue] = expired
                count -= len(expired)
        return found

    async def refuse(self, queue: str, items: Sequence[QueueItem]) -> None:
        lane = self._lanes.get(queue)
        if lane is not None:
            freed = lane.forget(
                item.task_id for item in items if lane.held.get(item.task_id) == item.delivery
            )
            if freed:
                self._free(lane.group, freed)

    async def generation(self) -> str:
        return str(self._losses)

    async def counted(self, generation: str, shards: Sequence[ShardId]) -> None:
        if generation == str(self._losses):
            self._counted.update(shards)

    async def uncounted(self, generation: str, shards: Sequence[ShardId]) -> list[ShardId]:
        is_over = generation != str(self._losses)
        return [shard for shard in shards if is_over or shard not in self._counted]

    def lose(self) -> None:
        """Forget everything, as a server does that was flushed."""
        self._lanes.clear()
        self._groups.clear()
        self._counted.clear()
        self._losses += 1

    def _free(self, group: "_Group", slots: int) -> None:
        group.held -= slots
        if group.starved:
            group.starved = False
            for queue, lane in group.lanes.items():
                if lane.waiting:
                    self._wake(queue, 0)

    def _open(self, queue: str) -> "_Lane":
        if len(self._lanes) >= self._sweep_at:
            self._sweep()
        task_type = task_type_of(queue)
        group = self._groups.get(task_type)
        if group is None:
            group = self._groups[task_type] = _Group()
        lane = self._lanes[queue] = group.lanes[queue] = _Lane(queue, group)
        return lane

    def _sweep(self) -> None:
        """Drop empty lanes. Run when there are twice as many as were in use the last time, so it
        costs little per lane, and what idle queues keep is bounded."""
        for queue, lane in list(self._lanes.items()):
            if lane.is_empty:
                del self._lanes[queue], lane.group.lanes[queue]
        for task_type, group in list(self._groups.items()):
            if not group.lanes and group.quiet_ms < self._now_ms:
                del self._groups[task_type]
        self._sweep_at = 2 * len(self._lanes) + _IDLE_LANES


class _Group:
    """What the queues of one task type share: its limits."""

    __slots__ = ("held", "lanes", "quiet_ms", "stamps", "starved")

    def __init__(self) -> None:
        self.lanes: dict[str, _Lane] = {}
        self.held = 0
        self.stamps: deque[int] = deque()
        """When each task of the present rate window was handed out."""
        self.quiet_ms = 0
        """When the last rate window that matters has passed."""
        self.starved = False
        """A pop left tasks behind because all slots were taken."""

    def room(self, limits: Limits, now_ms: int) -> int:
        """How many tasks may be handed out now."""
        room = _NEVER
        if limits.concurrent is not None:
            room = limits.concurrent - self.held
        if limits.rate:
            stamps = self.stamps
            if stamps and stamps[-1] > now_ms:
                # The clock was set back: let the window pass once more instead of waiting for
                # the clock to catch up.
                self.stamps = stamps = deque(min(stamp, now_ms) for stamp in stamps)
            while stamps and stamps[0] <= now_ms - limits.rate_window_ms:
                stamps.popleft()
            room = min(room, limits.rate - len(stamps))
            self.quiet_ms = now_ms + limits.rate_window_ms
        return max(room, 0)

    def window_opens_ms(self, limits: Limits, now_ms: int) -> int:
        if limits.rate and len(self.stamps) >= limits.rate:
            return self.stamps[-limits.rate] + limits.rate_window_ms
        return now_ms


class _Level:
    """Waiting tasks of one priority, and ghosts."""

    __slots__ = ("late", "order", "ordered")

    def __init__(self, priority: int) -> None:
        self.order = -priority
        self.ordered: deque[QueueItem] = deque()
        self.late: list[tuple[int, int, QueueItem]] = []
        """(due ms, arrival, task); a task that was handed back has a negative arrival."""

    def __lt__(self, other: "_Level") -> bool:
        return self.order < other.order


class _Lane:
    """One queue."""

    __slots__ = (
        "arrivals",
        "by_priority",
        "ghosts",
        "group",
        "handed",
        "held",
        "levels",
        "queue",
        "returns",
        "waiting",
    )

    def __init__(self, queue: str, group: _Group) -> None:
        self.queue = queue
        self.group = group
        self.waiting: dict[TaskId, QueueItem] = {}
        self.held: dict[TaskId, int] = {}
        """Task → the delivery that is in a worker's hands; the payload is not needed any more."""
        self.handed: dict[TaskId, int] = {}
        """Of these, when each was handed out, the earliest first; without those whose owner has
        said that a worker has them."""
        self.levels: list[_Level] = []
        self.by_priority: dict[int, _Level] = {}
        self.ghosts = 0
        self.arrivals = 0
        self.returns = -_NEVER

    @property
    def is_empty(self) -> bool:
        return not self.waiting and not self.held

    def push(self, items: Iterable[QueueItem], now_ms: int) -> tuple[int, int]:
        """(earliest due time of what is new, slots freed)."""
        waiting, held, by_priority = self.waiting, self.held, self.by_priority
        first_ms, freed = _NEVER, 0
        for item in items:
            task_id = item.task_id
            known = waiting.get(task_id)
            if known is not None:
                if item.delivery <= known.delivery:
                    continue
                self.ghosts += 1
            elif task_id in held:
                if item.delivery <= held[task_id]:
                    continue
                del held[task_id]
                self.handed.pop(task_id, None)
                freed += 1
            waiting[task_id] = item
            level = by_priority.get(item.priority)
            if level is None:
                level = self._level(item.priority)
            due_ms, ordered = item.due_ms, level.ordered
            # A delayed task stays out of the deque, else all that follow would be late.
            if due_ms <= now_ms and (not ordered or ordered[-1].due_ms <= due_ms):
                ordered.append(item)
            else:
                self.arrivals += 1
                heappush(level.late, (due_ms, self.arrivals, item))
            if due_ms < first_ms:
                first_ms = due_ms
        self._compact()
        return first_ms, freed

    def take(self, count: int, now_ms: int) -> list[QueueItem]:
        taken: list[QueueItem] = []
        waiting, held = self.waiting, self.held
        for level in self.levels:
            while len(taken) < count:
                item = self._head(level)
                if item is None or item.due_ms > now_ms:
                    break
                if level.ordered and level.ordered[0] is item:
                    level.ordered.popleft()
                else:
                    heappop(level.late)
                del waiting[item.task_id]
                held[item.task_id] = item.delivery
                self.handed[item.task_id] = now_ms
                taken.append(item)
        return taken

    def next_ms(self) -> int | None:
        """The earliest due time of a waiting task."""
        if not self.waiting:
            return None
        heads = [item.due_ms for level in self.levels if (item := self._head(level)) is not None]
        return min(heads)

    def put_back(self, items: Iterable[QueueItem]) -> int:
        """Tasks that wait again."""
        before = len(self.waiting)
        for item in items:
            if self.held.get(item.task_id) == item.delivery:
                del self.held[item.task_id]
                self.handed.pop(item.task_id, None)
                self.waiting[item.task_id] = item
                self.returns += 1
                level = self.by_priority.get(item.priority) or self._level(item.priority)
                heappush(level.late, (item.due_ms, self.returns, item))
        return len(self.waiting) - before

    def forget(self, task_ids: Iterable[TaskId]) -> int:
        """Slots freed."""
        held, waiting, handed = self.held, self.waiting, self.handed
        freed = 0
        for task_id in task_ids:
            if task_id in held:
                del held[task_id]
                handed.pop(task_id, None)
                freed += 1
            elif task_id in waiting:
                del waiting[task_id]
                self.ghosts += 1
        self._compact()
        return freed

    def hold(self, deliveries: Mapping[TaskId, int]) -> int:
        """Slots taken."""
        before = len(self.held)
        for task_id, delivery in deliveries.items():
            if self.waiting.pop(task_id, None) is not None:
                self.ghosts += 1
            self.held[task_id] = delivery
            self.handed.pop(task_id, None)
        self._compact()
        return len(self.held) - before

    def expired(self, now_ms: int, count: int) -> dict[TaskId, int]:
        """Hand-outs of which nothing was heard; each counts as handed out again."""
        found: dict[TaskId, int] = {}
        for task_id, at_ms in self.handed.items():
            if at_ms > now_ms - HAND_OUT_MS or len(found) >= count:
                break
            found[task_id] = self.held[task_id]
        for task_id in found:
            del self.handed[task_id]
            self.handed[task_id] = now_ms
        return found

    def unknown(self, task_ids: Iterable[TaskId]) -> Iterable[TaskId]:
        known, held = self.waiting, self.held
        return [one for one in task_ids if one not in known and one not in held]

    def size(self) -> QueueSize:
        return QueueSize(len(self.waiting), len(self.held), self.next_ms())

    def _level(self, priority: int) -> _Level:
        level = self.by_priority[priority] = _Level(priority)
        insort(self.levels, level)
        return level

    def _head(self, level: _Level) -> QueueItem | None:
        """The first waiting task of a level; ghosts before it are dropped."""
        ordered, late, waiting = level.ordered, level.late, self.waiting
        while ordered or late:
            if not late or (ordered and not _goes_first(late[0], ordered[0])):
                item = ordered[0]
                if waiting.get(item.task_id) is item:
                    return item
                ordered.popleft()
            else:
                item = late[0][2]
                if waiting.get(item.task_id) is item:
                    return item
                heappop(late)
            self.ghosts -= 1
        return None

    def _compact(self) -> None:
        if self.ghosts <= _GHOSTS or self.ghosts <= len(self.waiting):
            return
        waiting = self.waiting
        for level in self.levels:
            level.ordered = deque(i for i in level.ordered if waiting.get(i.task_id) is i)
            level.late = [
                entry for entry in level.late if waiting.get(entry[2].task_id) is entry[2]
            ]
            heapify(level.late)
        self.ghosts = 0


def _goes_first(late: tuple[int, int, QueueItem], ordered: QueueItem) -> bool:
    """Ties go to what came in order, which came earlier, unless the other was handed back."""
    return late[0] < ordered.due_ms or (late[0] == ordered.due_ms and late[1] < 0)
