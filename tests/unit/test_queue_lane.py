"""The lane to the queues: whatever is asked for about a task reaches them in that order."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, cast

import pytest

from cluster.errors import Unavailable
from cluster.ids import TaskId
from cluster.sharding.queue_lane import QueueLane
from cluster.store.queue_ports import QueueItem, TaskQueues
from tests.support.virtual_time import VirtualClock, run_virtual


class Notes:
    """Queues that note what they are told of each task, and how often they are called."""

    def __init__(self) -> None:
        self.told: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        self.calls = 0
        self.faults = 0
        self.under_way = self.under_way_most = 0

    async def push(self, batch: Mapping[str, Sequence[QueueItem]], *, now_ms: int) -> None:
        await self._called()
        for items in batch.values():
            for item in items:
                self.told[item.task_id].append(("push", item.delivery))

    async def hold(self, batch: Mapping[str, Mapping[TaskId, int]]) -> None:
        await self._called()
        for held in batch.values():
            for task, delivery in held.items():
                self.told[task].append(("hold", delivery))

    async def acknowledge(self, batch: Mapping[str, Sequence[TaskId]]) -> None:
        await self._called()
        for tasks in batch.values():
            for task in tasks:
                self.told[task].append(("acknowledge", 0))

    async def _called(self) -> None:
        self.calls += 1
        self.under_way += 1
        self.under_way_most = max(self.under_way, self.under_way_most)
        await asyncio.sleep(0.01)
        self.under_way -= 1
        if self.faults:
            self.faults -= 1
            raise Unavailable("away")


def with_lane(test: Any, *, together: bool = False) -> None:
    async def main() -> None:
        notes = Notes()
        lane = QueueLane(cast(TaskQueues, notes), VirtualClock(), together=together)
        running = asyncio.create_task(lane.run())
        await test(lane, notes)
        running.cancel()

    run_virtual(main())


def item(task: str, delivery: int) -> QueueItem:
    return QueueItem(TaskId(task), delivery, 0, 0, b"{", "")


async def done(lane: QueueLane) -> None:
    marker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    lane.mark(marker)
    await marker


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_each_task_is_told_in_order_however_calls_are_grouped(seed: int, together: bool) -> None:
    async def test(lane: QueueLane, notes: Notes) -> None:
        random = Random(seed)
        notes.faults = random.randrange(3)
        expected: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for number in range(200):
            task = f"task-{random.randrange(8)}"
            queue = f"queue-{task[-1]}"
            kind = random.choice(("push", "hold", "acknowledge"))
            expected[task].append((kind, 0 if kind == "acknowledge" else number))
            match kind:
                case "push":
                    lane.push(queue, item(task, number))
                case "hold":
                    lane.hold(queue, TaskId(task), number)
                case _:
                    lane.acknowledge(queue, TaskId(task))
            if random.random() < 0.05:
                await asyncio.sleep(random.random() / 20)
        await done(lane)
        assert notes.told == expected

    with_lane(test, together=together)


@pytest.mark.parametrize("together", [False, True])
def test_calls_about_different_tasks_go_together(together: bool) -> None:
    async def test(lane: QueueLane, notes: Notes) -> None:
        for number in range(100):
            lane.push("q", item(f"new-{number}", 1))
            lane.acknowledge("q", TaskId(f"old-{number}"))
        await done(lane)
        assert notes.calls == 2
        assert notes.under_way_most == (2 if together else 1)
        assert len(notes.told) == 200

    with_lane(test, together=together)


def test_a_mark_is_set_when_all_before_it_is_done_and_not_earlier() -> None:
    async def test(lane: QueueLane, notes: Notes) -> None:
        lane.push("q", item("a", 1))
        marker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane.mark(marker)
        await asyncio.sleep(0.005)
        assert not marker.done()
        await marker
        assert notes.told["a"] == [("push", 1)]
        await done(lane)

    with_lane(test)
