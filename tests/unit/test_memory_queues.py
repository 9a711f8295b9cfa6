"""What the in-process queues keep in memory, beyond the contract."""

import asyncio
import gc

from cluster.ids import TaskId
from cluster.store.memory.queues import MemoryTaskQueues
from cluster.store.queue_ports import Limits, QueueItem

T0 = 1_800_000_000_000


def item(name: str, *, delivery: int = 1, due_ms: int = T0) -> QueueItem:
    return QueueItem(TaskId(name), delivery, 0, due_ms, b"{", "plan")


def alive() -> int:
    gc.collect()
    return sum(type(thing).__name__ in ("_Lane", "_Group") for thing in gc.get_objects())


def test_queues_that_came_and_went_leave_nothing_behind() -> None:
    async def main() -> None:
        before = alive()
        queues = MemoryTaskQueues()
        limits = Limits(rate=5, rate_window_ms=1000)
        for n in range(5000):
            queue, now_ms = f"type{n}", T0 + n * 10
            await queues.push({queue: [item("a", due_ms=now_ms)]}, now_ms=now_ms)
            await queues.pop(queue, count=1, now_ms=now_ms, limits=limits)
            await queues.acknowledge({queue: [TaskId("a")]})
        assert alive() - before < 600

    asyncio.run(main())


def test_a_rate_window_outlives_its_queue() -> None:
    async def main() -> None:
        queues = MemoryTaskQueues()
        limits = Limits(rate=1, rate_window_ms=1000)
        for n in range(1000):
            await queues.push({f"type{n}": []}, now_ms=T0)
            await queues.push({"mail": [item(f"t{n}")]}, now_ms=T0)
            popped = await queues.pop("mail", count=1, now_ms=T0, limits=limits)
            assert len(popped.items) == (n == 0)
            await queues.acknowledge({"mail": [TaskId(f"t{n}")]})

    asyncio.run(main())


def test_replaced_and_cancelled_tasks_do_not_pile_up() -> None:
    """At the back of a queue that nobody polls, where no pop would ever find them."""

    async def main() -> None:
        queues = MemoryTaskQueues()
        await queues.push({"mail": [item("first")]}, now_ms=T0)
        payload = b"x" * 1000
        for n in range(20_000):
            new = QueueItem(TaskId("again"), n, 0, T0 + n % 3 * 100, payload, "plan")
            await queues.push({"mail": [new]}, now_ms=T0)
            await queues.push({"mail": [item(f"t{n}")]}, now_ms=T0)
            await queues.acknowledge({"mail": [TaskId(f"t{n}")]})
        lane = queues._lanes["mail"]
        kept = sum(len(level.ordered) + len(level.late) for level in lane.levels)
        assert kept < 200
        popped = await queues.pop("mail", count=9, now_ms=T0 + 1000)
        assert [(i.task_id, i.delivery) for i in popped.items] == [("first", 1), ("again", 19_999)]

    asyncio.run(main())
