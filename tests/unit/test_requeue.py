"""Queues that lose what they hold, and tasks that were handed out to nobody."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster.errors import Unavailable
from cluster.ids import TaskId
from cluster.sharding import queue_lane
from cluster.store.queue_ports import HAND_OUT_MS
from tests.support.lives import SHARD_COUNT, Death, Json, Life, new_stores
from tests.support.virtual_time import VirtualClock, run_virtual

HOUR_S = 3600
BODIES: list[Json] = [
    {"name": name, "version": 1, "tasks": tasks}
    for name, tasks in {
        "one": [{"name": "t_a", "taskReferenceName": "a", "type": "SIMPLE"}],
        "limited": [{"name": "t_x", "taskReferenceName": "x", "type": "SIMPLE"}],
        "waits": [
            {
                "name": "w",
                "taskReferenceName": "w",
                "type": "WAIT",
                "inputParameters": {"duration": "1 hours"},
            }
        ],
    }.items()
]
TASK_DEFS: list[Json] = [
    {"name": "t_a", "retryCount": 0, "responseTimeoutSeconds": HOUR_S},
    {"name": "t_x", "concurrentExecLimit": 2, "responseTimeoutSeconds": HOUR_S},
]


def in_life(test: Callable[[Life], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        stores = await new_stores()
        async with Life(stores, death=Death(), **settings) as life:
            await life.register(BODIES, TASK_DEFS)
            await life.recovered()
            await test(life)

    run_virtual(run())


async def all_there(life: Life, count: int) -> None:
    """Wait until the queues hold that many tasks, waiting or with workers."""

    async def known() -> int:
        sizes = await life.queues.sizes()
        return sum(size.waiting + size.held for size in sizes.values())

    async with asyncio.timeout(60):
        while await known() < count:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert await known() == count


def test_what_waited_waits_again_after_a_loss() -> None:
    async def test(life: Life) -> None:
        ids = [await life.start("one") for _ in range(50)]
        await life.start("waits")
        taken = await life.poll("t_a", 10)
        life.queues.lose()
        assert await life.poll("t_a", 100) == []
        await all_there(life, 50)
        rest = await life.poll("t_a", 100)
        polled = Counter(task["workflowInstanceId"] for task in taken + rest)
        assert polled == Counter(ids), "each task once: what a worker has is held"
        for task in taken + rest:
            await life.report(task)
        assert await life.queues.sizes() == {}
        assert life.node.metrics.queue_losses.of().value == 1

    in_life(test)


def test_what_was_started_in_the_last_moment_is_pushed_again_too() -> None:
    """It is in no open set yet: no checkpoint was written since."""

    async def test(life: Life) -> None:
        await life.start("one")
        life.queues.lose()
        await all_there(life, 1)

    in_life(test, checkpoint_interval_ms=3_600_000)


def test_limits_hold_over_a_loss() -> None:
    async def test(life: Life) -> None:
        for _ in range(5):
            await life.start("limited")
        taken = await life.poll("t_x", 5)
        assert len(taken) == 2
        life.queues.lose()
        for _ in range(200):
            assert await life.poll("t_x", 5) == [], "two workers are at it already"
            await asyncio.sleep(0.05)
        await all_there(life, 5)
        await life.report(taken[0])
        assert len(await life.poll("t_x", 5, timeout_ms=1_000)) == 1

    in_life(test)


def test_losses_in_a_row_are_all_made_good() -> None:
    async def test(life: Life) -> None:
        for _ in range(30):
            await life.start("one")
        for _ in range(10):
            life.queues.lose()
            await asyncio.sleep(0.26)
        await all_there(life, 30)

    in_life(test)


def test_evicted_workflows_are_told_as_well() -> None:
    async def test(life: Life) -> None:
        for _ in range(300):
            await life.start("one", {"x": "y" * 10_000})
        await asyncio.sleep(5)
        life.queues.lose()
        await all_there(life, 300)

    in_life(test, execution_cache_bytes=1024 * 1024)


def test_a_hand_out_that_no_owner_was_told_of_goes_out_again() -> None:
    async def test(life: Life) -> None:
        workflow_id = await life.start("one")
        # The node that pops it dies before it can tell.
        (lost,) = (await life.queues.pop("t_a", count=1, now_ms=VirtualClock().now_ms())).items
        assert await life.poll("t_a", 5) == []
        await asyncio.sleep(HAND_OUT_MS / 1000 + 3)
        (task,) = await life.poll("t_a", 5)
        assert task["workflowInstanceId"] == workflow_id
        assert task["taskId"] == lost.task_id
        await life.report(task)
        assert await life.queues.sizes() == {}

    in_life(test)


def test_what_a_worker_has_for_long_stays_with_it() -> None:
    async def test(life: Life) -> None:
        await life.start("one")
        (task,) = await life.poll("t_a", 5)
        for _ in range(5):
            await asyncio.sleep(HAND_OUT_MS / 1000)
            assert await life.poll("t_a", 5) == []
        assert life.node.metrics.tasks_unheard.of().value == 1, "asked once, then it is held"
        await life.report(task)

    in_life(test)


def test_the_queue_forgets_what_nobody_owns() -> None:
    async def test(life: Life) -> None:
        gone = TaskId("01890000-0000-8000-8000-000000000001")
        await life.queues.hold({"t_a": {gone: 1}})
        ended = await life.start("one")
        (task,) = await life.poll("t_a", 5)
        await life.report(task)
        assert await life.queues.sizes(["t_a"]) != {}
        now_ms = VirtualClock().now_ms()
        await life.queues.acknowledge({"t_a": [gone]})
        for task_id in (gone, TaskId(task["taskId"])):
            await life.queues.push({"t_a": [_stale(task_id)]}, now_ms=now_ms)
        await life.queues.pop("t_a", count=2, now_ms=now_ms)
        await asyncio.sleep(HAND_OUT_MS / 1000 + 3)
        assert await life.queues.sizes() == {}
        assert (await life.show(ended))["status"] == "COMPLETED"

    in_life(test)


def _stale(task_id: TaskId) -> Any:
    from cluster.store.queue_ports import QueueItem

    return QueueItem(task_id, 1, 0, 0, b"{", "")


def test_shards_are_counted_when_they_have_been_told() -> None:
    async def test(life: Life) -> None:
        life.queues.lose()
        assert len(life.queues._counted) == 0
        await asyncio.sleep(2)
        assert len(life.queues._counted) == SHARD_COUNT

    in_life(test)


def test_what_had_no_room_while_the_queues_were_away_is_pushed_when_they_are_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_lane, "LANE_BYTES_MAX", 20_000)

    async def test(life: Life) -> None:
        async def away(*_: object, **__: object) -> Any:
            raise Unavailable("away")

        before = [await life.start("one") for _ in range(5)]
        await all_there(life, 5)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("push", "acknowledge", "hold", "generation"):
                patch.setattr(life.queues, name, away)
            ids = [await life.start("one") for _ in range(200)]
            await life.terminate(before[0])
            # Timers and checkpoints do not wait for queues.
            await asyncio.sleep(30)
            assert life.parts.dispatcher.has_dropped
        await all_there(life, 204)
        await life.until(lambda: not life.parts.dispatcher.has_dropped)
        polled = {task["workflowInstanceId"] for task in await life.poll("t_a", 1000)}
        assert polled == {*before[1:], *ids}, "the owner lets nothing go that has ended"

    in_life(test)


def test_the_audit_does_not_take_a_loss_for_a_workflow_that_stands_still() -> None:
    async def test(life: Life) -> None:
        for _ in range(20):
            await life.start("one")
        await life.node.services.catch_up()
        life.queues.lose()
        assert await life.audit.walk() == 0
        await all_there(life, 20)
        assert await life.audit.walk() == 0
        assert life.node.metrics.queue_losses.of().value == 1

    in_life(test, audit_grace_ms=0, audit_workflows_per_s=100_000)
