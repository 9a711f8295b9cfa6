"""Which open workflows the next owner has to ask again for, as their checkpoints tell it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.ids import WorkflowId, shard_of
from cluster.store.ports import Stores
from cluster.store.queue_ports import QueueItem
from tests.support.lives import SHARD_COUNT, Json, Life, Scripts, new_stores
from tests.support.virtual_time import run_virtual

SCRIPT = "(function () { for (;;) return $.v })()"


def step(ref: str, type: str = "SIMPLE", **fields: Any) -> Json:
    return {"name": f"t_{ref}", "taskReferenceName": ref, "type": type, **fields}


BODIES: list[Json] = [
    {"name": "one", "version": 1, "tasks": [step("a")]},
    {
        "name": "asks",
        "version": 1,
        "tasks": [step("i", "INLINE", inputParameters={"expression": SCRIPT, "v": 1}), step("b")],
    },
]


async def marks(stores: Stores) -> dict[WorkflowId, bool]:
    """What the open set says of every open workflow."""
    found = {}
    for row in await stores.shards.rows():
        for entry in await stores.open_set.scan(row.shard, after=None, limit=100):
            found[entry.workflow_id] = entry.has_unfinished_effects
    return found


def living(stores: Stores, scripts: Scripts | None = None) -> Life:
    return Life(stores, scripts=scripts, audit_interval_ms=1 << 40)


async def two_starts(stores: Stores) -> tuple[WorkflowId, WorkflowId]:
    """A life that starts two workflows, of which a checkpoint has seen only the first."""
    async with living(stores) as life:
        await life.register(BODIES)
        await life.recovered()
        early = await life.start("one")
        await life.node.services.catch_up()
        return early, await life.start("one")


def test_a_workflow_whose_task_waits_in_its_queue_needs_nothing() -> None:
    async def run() -> None:
        stores = await new_stores()
        async with living(stores) as life:
            await life.register(BODIES)
            await life.recovered()
            workflow_id = await life.start("one")
            await life.node.services.catch_up()
            assert await marks(stores) == {workflow_id: False}

    run_virtual(run())


def test_what_the_queue_has_not_taken_is_marked_until_its_next_checkpoint() -> None:
    async def run() -> None:
        stores = await new_stores()
        async with living(stores) as life:
            await life.register(BODIES)
            await life.recovered()
            push, is_open = life.queues.push, asyncio.Event()

            async def slow(batch: Mapping[str, Sequence[QueueItem]], *, now_ms: int) -> None:
                await is_open.wait()
                await push(batch, now_ms=now_ms)

            life.queues.push = slow  # type: ignore[method-assign]
            workflow_id = await life.start("one")
            await life.node.services.catch_up()
            assert await marks(stores) == {workflow_id: True}
            is_open.set()
            [task] = await life.poll("t_a", timeout_ms=1_000)
            await life.report(task, "IN_PROGRESS")
            await life.node.services.catch_up()
            assert await marks(stores) == {workflow_id: False}

    run_virtual(run())


def test_a_workflow_that_waits_for_a_script_is_marked() -> None:
    async def run() -> None:
        stores = await new_stores()
        scripts = Scripts()
        scripts.answers[SCRIPT] = lambda value: value["v"]
        async with living(stores, scripts) as life:
            await life.register(BODIES)
            await life.recovered()
            scripts.free.clear()
            starting = asyncio.ensure_future(life.start("asks"))
            await life.until(lambda: scripts.asked == 1)
            await asyncio.sleep(2)
            [(workflow_id, is_marked)] = (await marks(stores)).items()
            assert is_marked
            scripts.free.set()
            assert await starting == workflow_id
            await life.node.services.catch_up()
            assert await marks(stores) == {workflow_id: False}

    run_virtual(run())


def test_what_only_a_dead_process_knew_is_marked() -> None:
    async def run() -> None:
        stores = await new_stores()
        early, late = await two_starts(stores)
        async with living(stores) as life:
            assert await marks(stores) == {early: False, late: True}
            await life.recovered()

    run_virtual(run())


def test_only_marked_workflows_are_recovered_where_the_queues_have_lost_nothing() -> None:
    async def run() -> None:
        stores = await new_stores()
        early, late = await two_starts(stores)
        async with living(stores) as life:
            await life.recovered()
            tasks = await life.poll("t_a")
            assert {task["workflowInstanceId"] for task in tasks} == {early, late}
            # Now as with queues that outlived the process: what is not marked is not touched.
            shards = tuple(life.parts.shards.epochs)
            pushed: list[str] = []
            apply_now = life.parts.shards.apply_now

            def noted(execution: Any, event: Any) -> int:
                pushed.append(execution.id)
                return apply_now(execution, event)

            life.parts.shards.apply_now = noted  # type: ignore[method-assign]
            await life.parts.recovery.run(shards, marked_only=True)
            assert pushed == [late]

    run_virtual(run())


def test_only_what_belongs_to_a_shard_still_to_be_recovered_is_marked() -> None:
    async def run() -> None:
        stores = await new_stores()
        async with living(stores) as life:
            await life.register(BODIES)
            await life.recovered()
            first = await life.start("one")
            other = await life.start("one")
            while shard_of(other, shard_count=SHARD_COUNT) == shard_of(
                first, shard_count=SHARD_COUNT
            ):
                other = await life.start("one")
            life.parts.recovery.pending.add(shard_of(first, shard_count=SHARD_COUNT))
            await life.node.services.catch_up()
            found = await marks(stores)
            assert (found[first], found[other]) == (True, False)

    run_virtual(run())


def test_a_shard_is_recovered_once_what_was_decided_for_it_is_durable() -> None:
    async def run() -> None:
        stores = await new_stores()
        await two_starts(stores)
        async with living(stores) as life:
            await life.recovered()
            recovery, shards = life.parts.recovery, tuple(life.parts.shards.epochs)
            log = life.parts.commit_log
            drain, is_open = log.drain, asyncio.Event()

            async def slow() -> None:
                await is_open.wait()
                await drain()

            recovery.settled = slow
            running = asyncio.ensure_future(recovery.run(shards))
            await asyncio.sleep(1)
            late = {shard_of(one, shard_count=SHARD_COUNT) for one in await marks(stores)}
            assert recovery.pending == late
            is_open.set()
            await running
            assert not recovery.pending

    run_virtual(run())
