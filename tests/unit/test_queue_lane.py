"""The lane to the queues: whatever is asked for about a task reaches them in that order."""

import asyncio
from collections import defaultdict
from random import Random
from typing import Any, cast

import pytest

from cluster.errors import Unavailable
from cluster.ids import TaskId
from cluster.sharding.queue_lane import QueueLane
from cluster.store.queue_ports import QueueItem, QueueNews, TaskQueues
from tests.support.virtual_time import VirtualClock, run_virtual


class Notes:
    """Queues that note what they are told of each task, and how often they are called."""

    def __init__(self) -> None:
        self.told: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        self.calls = 0
        self.faults = 0

    async def tell(self, news: QueueNews, *, now_ms: int) -> None:
        self.calls += 1
        await asyncio.sleep(0.01)
        if self.faults:
            self.faults -= 1
            raise Unavailable("away")
        # As they like: whoever relies on an order between the three is found out here.
        for tasks in news.acknowledged.values():
            for task in tasks:
                self.told[task].append(("acknowledge", 0))
        for held in news.held.values():
            for task, delivery in held.items():
                self.told[task].append(("hold", delivery))
        for items in news.pushed.values():
            for item in items:
                self.told[item.task_id].append(("push", item.delivery))


def with_lane(test: Any) -> None:
    async def main() -> None:
        notes = Notes()
        lane = QueueLane(cast(TaskQueues, notes), VirtualClock())
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


@pytest.mark.parametrize("seed", range(30))
def test_each_task_is_told_in_order_however_calls_are_grouped(seed: int) -> None:
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

    with_lane(test)


def test_what_is_told_of_different_tasks_is_one_call() -> None:
    async def test(lane: QueueLane, notes: Notes) -> None:
        for number in range(100):
            lane.push("q", item(f"new-{number}", 1))
            lane.acknowledge("q", TaskId(f"old-{number}"))
        await done(lane)
        assert notes.calls == 1
        assert len(notes.told) == 200

    with_lane(test)


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
