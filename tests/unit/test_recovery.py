"""What a process finds that starts where another died: each test one thing that was under way."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster.errors import Conflict, StoreFault
from cluster.ids import ShardId, WorkflowId, derived_workflow_id
from cluster.node.router import StartWorkflow
from cluster.sharding.requeue import Requeue
from tests.support.lives import Death, Json, Life, new_stores
from tests.support.virtual_time import VirtualClock, run_virtual

HOUR_S = 3600


def step(ref: str, type: str = "SIMPLE", **fields: Any) -> Json:
    return {"name": f"t_{ref}", "taskReferenceName": ref, "type": type, **fields}


def child(ref: str, name: str) -> Json:
    return step(ref, "SUB_WORKFLOW", subWorkflowParam={"name": name, "version": 1})


DEFINITIONS: dict[str, list[Json]] = {
    "one": [step("a")],
    "two": [step("a"), step("b")],
    "limited": [step("x")],
    "waits": [step("w", "WAIT", inputParameters={"duration": "100 seconds"}), step("a")],
    "parent": [child("s", "one"), step("z")],
    "family": [
        step("f", "FORK_JOIN", forkTasks=[[child("s1", "one")], [child("s2", "two")]]),
        step("j", "JOIN", joinOn=["s1", "s2"]),
    ],
    "compensated": [step("a")],
    "wide": [
        step(
            "f",
            "FORK_JOIN_DYNAMIC",
            dynamicForkTasksParam="tasks",
            dynamicForkTasksInputParamName="inputs",
            inputParameters={"tasks": "${workflow.input.tasks}", "inputs": {}},
        ),
        step("j", "JOIN"),
    ],
}
BODIES = [
    {
        "name": name,
        "version": 1,
        "tasks": tasks,
        **({"failureWorkflow": "one"} if name == "compensated" else {}),
    }
    for name, tasks in DEFINITIONS.items()
]
TASK_DEFS = [
    {
        "name": "t_a",
        "retryCount": 1,
        "retryDelaySeconds": 0,
        "responseTimeoutSeconds": 60,
        "timeoutSeconds": 0,
    },
    {"name": "t_x", "concurrentExecLimit": 1, "responseTimeoutSeconds": HOUR_S},
]


Test = Callable[[Life], Awaitable[None]]


def in_lives(*tests: Test, held: Test | None = None, **settings: Any) -> None:
    """Each test is a life over the stores that the one before it left when it died.

    In the life of `held` recovery waits until the test lets "scan" go.
    """

    async def run() -> None:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register(BODIES, TASK_DEFS)
        for test in tests:
            death = Death()
            if test is held:
                death.hold("scan")
            async with Life(stores, death=death, audit_interval_ms=1 << 40, **settings) as life:
                await test(life)

    run_virtual(run())


async def status_of(life: Life, workflow_id: str) -> str:
    status: str = (await life.show(workflow_id))["status"]
    return status


def test_a_task_that_nobody_polled_is_offered_once() -> None:
    ids: list[str] = []

    async def first(life: Life) -> None:
        ids.append(await life.start("one"))

    async def second(life: Life) -> None:
        await life.recovered()
        await life.parts.recovery.run(tuple(life.parts.shards.epochs))
        [task] = await life.poll("t_a")
        assert task["workflowInstanceId"] == ids[0]
        assert task["pollCount"] == 1
        assert await life.poll("t_a") == []
        await life.report(task)
        assert await status_of(life, ids[0]) == "COMPLETED"

    in_lives(first, second)


def test_a_task_in_a_workers_hands_stays_there_until_its_response_timeout() -> None:
    held: list[Json] = []

    async def first(life: Life) -> None:
        await life.start("one")
        held.extend(await life.poll("t_a"))
        # Nobody waits for the row of a hand-over; here it is durable.
        await life.parts.commit_log.drain()
        await asyncio.sleep(50)

    async def second(life: Life) -> None:
        await life.recovered()
        assert await life.poll("t_a") == []
        await asyncio.sleep(9)
        assert await life.poll("t_a") == []
        await asyncio.sleep(2)
        [again] = await life.poll("t_a")
        assert again["retryCount"] == 1
        [task] = held
        await life.report(task, output={"too": "late"})
        await life.report(again, output={"in": "time"})
        shown = await life.show(task["workflowInstanceId"])
        assert [(t["status"], t["outputData"]) for t in shown["tasks"]] == [
            ("TIMED_OUT", {}),
            ("COMPLETED", {"in": "time"}),
        ]

    in_lives(first, second)


def test_a_hand_over_that_was_not_durable_is_repeated_and_one_result_taken() -> None:
    async def run() -> None:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register(BODIES, TASK_DEFS)
            workflow_id = await life.start("two")
        death = Death(applied=False)
        async with Life(stores, death=death) as life:
            await life.recovered()
            death.left = 1
            [task] = await life.poll("t_a", timeout_ms=1000)
            await death.has_come.wait()
        async with Life(stores) as life:
            [again] = await life.poll("t_a", timeout_ms=1000)
            assert again["taskId"] == task["taskId"]
            await life.report(task, output={"by": "the first"})
            await life.report(again, output={"by": "the second"})
            shown = await life.show(workflow_id)
            assert [t["outputData"] for t in shown["tasks"]] == [{"by": "the first"}, {}]

    run_virtual(run())


def test_a_limited_type_waits_until_the_tasks_in_workers_hands_are_counted() -> None:
    held: list[Json] = []

    async def first(life: Life) -> None:
        for _ in range(3):
            await life.start("limited")
        held.extend(await life.poll("t_x"))
        assert len(held) == 1
        await life.parts.commit_log.drain()

    async def second(life: Life) -> None:
        await life.start("limited")
        poll = asyncio.create_task(life.poll("t_x", timeout_ms=5000))
        await asyncio.sleep(1)
        assert not poll.done(), "who has the one slot is not known yet"
        life.death.let_go("scan")
        await life.recovered()
        await asyncio.sleep(1)
        assert not poll.done(), "the one slot is taken"
        began_ms = VirtualClock().now_ms()
        await life.report(held[0])
        [task] = await poll
        assert VirtualClock().now_ms() - began_ms < 100
        assert task["taskId"] != held[0]["taskId"]
        assert await life.poll("t_x") == []

    in_lives(first, second, held=second)


def test_what_comes_before_a_workflow_is_recovered_is_taken() -> None:
    ids: list[WorkflowId] = []

    async def first(life: Life) -> None:
        ids.append(await life.start("two"))
        ids.append(await life.start("two"))

    async def second(life: Life) -> None:
        tasks = [(await life.show(one))["tasks"][0] for one in ids]
        await life.report(tasks[0], output={"v": 1})
        await life.terminate(ids[1])
        assert life.node.services.is_ready()
        assert not life.is_recovered()
        life.death.let_go("scan")
        await life.recovered()
        assert await life.poll("t_a") == []
        [task] = await life.poll("t_b")
        await life.report(task)
        assert await status_of(life, ids[0]) == "COMPLETED"
        assert await status_of(life, ids[1]) == "TERMINATED"

    in_lives(first, second, held=second)


def test_a_time_that_came_while_nobody_was_there_comes_at_once() -> None:
    ids: list[WorkflowId] = []

    async def first(life: Life) -> None:
        ids.append(await life.start("waits"))

    async def second(life: Life) -> None:
        began_ms = VirtualClock().now_ms()
        [task] = await life.poll("t_a", timeout_ms=5000)
        assert VirtualClock().now_ms() - began_ms < 200
        assert task["workflowInstanceId"] == ids[0]

    async def run() -> None:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register(BODIES, TASK_DEFS)
            await first(life)
        await asyncio.sleep(500)
        async with Life(stores) as life:
            await second(life)

    run_virtual(run())


def test_a_key_is_remembered_through_checkpoints_and_crashes() -> None:
    found: list[str] = []

    async def start(life: Life) -> str:
        return await life.start("one", idempotency_key="k")

    async def life_of(life: Life) -> None:
        found.append(await start(life))
        await life.node.services.catch_up()
        found.append(await start(life))
        await asyncio.sleep(3)
        found.append(await start(life))

    async def last(life: Life) -> None:
        await life_of(life)
        assert len(await life.ids(["one"])) == 1
        await life.terminate(found[0])
        try:
            await life.start("one", idempotency_key="k", idempotency_strategy="FAIL")
        except Conflict:
            pass
        else:
            raise AssertionError("FAIL lets a known key pass")
        # Of two starts one after the other, the later row counts, whatever a checkpoint does.
        second = await life.start(
            "one", idempotency_key="k", idempotency_strategy="FAIL_ON_RUNNING"
        )
        assert second != found[0]
        await life.node.services.catch_up()
        assert await start(life) == second

    in_lives(life_of, life_of, last)
    assert len(set(found)) == 1


def test_a_wide_run_that_was_being_cancelled_is_cancelled_to_the_end() -> None:
    branches = 450
    tasks = [step(f"b{number}") | {"name": "t_a"} for number in range(branches)]

    async def sweep(appends: int) -> bool:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register(BODIES, TASK_DEFS)
            workflow_id = await life.start("wide", {"tasks": tasks})
        death = Death()
        async with Life(stores, death=death) as life:
            await life.recovered()
            death.left = appends
            assert len(await life.poll("t_a", count=1)) == 1
            ending = asyncio.create_task(life.terminate(workflow_id))
            dying = asyncio.create_task(death.has_come.wait())
            await asyncio.wait((ending, dying), return_when=asyncio.FIRST_COMPLETED)
            for task in (ending, dying):
                task.cancel()
            has_died = death.has_come.is_set()
        async with Life(stores) as life:
            await life.recovered()
            if await status_of(life, workflow_id) == "RUNNING":
                await life.terminate(workflow_id)
            await asyncio.sleep(1)
            shown = await life.show(workflow_id)
            assert shown["status"] == "TERMINATED"
            assert {t["status"] for t in shown["tasks"] if t["taskType"] == "t_a"} == {"CANCELED"}
            assert await life.poll("t_a") == []
            assert await life.queues.sizes() == {}
        return has_died

    async def run() -> None:
        deaths = 0
        while await sweep(deaths + 1):
            deaths += 1
        assert deaths >= 3, "to cancel so many takes several turns"

    run_virtual(run())


@pytest.mark.parametrize("is_told", [False, True], ids=["all", "marked"])
def test_a_child_that_was_not_told_of_its_parents_end_is_told(
    is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With little memory a parent is there without its child: to tell it that all is over takes a
    message after the commit, and the crash comes between the two. Queues that outlived the process
    were told of the child long ago, so nothing but the message is marked."""

    async def none(*_: object) -> set[ShardId]:
        return set()

    async def run() -> None:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register(BODIES, TASK_DEFS)
            await life.recovered()
            ids = [await life.start("parent") for _ in range(150)]
            await life.node.services.catch_up()
        death = Death()
        async with Life(stores, death=death, execution_cache_bytes=1 << 20) as life:
            await life.recovered()
            await life.node.services.catch_up()
            life.parts.residents.relieve(life.parts.commit_log.last_committed)
            for parent_id in ids:
                parent = await life.router.view(parent_id)
                child_id = WorkflowId(parent.by_ref["s"].sub_workflow_id)
                if life.parts.shards.resident(child_id) is None:
                    break
            else:
                raise AssertionError("all children are in memory")
            death.left = 1
            ending = asyncio.create_task(life.terminate(parent_id))
            await death.has_come.wait()
            ending.cancel()
        if is_told:
            monkeypatch.setattr(Requeue, "untold", none)
        async with Life(stores, audit_interval_ms=1 << 40) as life:
            assert await status_of(life, parent_id) == "TERMINATED"
            await life.recovered()
            assert await status_of(life, child_id) == "TERMINATED"

    run_virtual(run())


def test_a_relative_that_refuses_does_not_undo_the_step() -> None:
    """A sibling that runs, though its parent took it for cancelled, cannot be retried."""
    ids: list[WorkflowId] = []

    async def first(life: Life) -> None:
        parent_id = await life.start("family")
        parent = await life.router.view(parent_id)
        one, two = (parent.by_ref[ref] for ref in ("s1", "s2"))
        two_id, two.sub_workflow_id = two.sub_workflow_id, ""
        polled = {task["workflowInstanceId"]: task for task in await life.poll("t_a")}
        await life.report(polled[one.sub_workflow_id], "FAILED_WITH_TERMINAL_ERROR")
        two.sub_workflow_id = two_id
        assert await status_of(life, parent_id) == "FAILED"
        await life.router.retry(WorkflowId(one.sub_workflow_id), resume_sub_workflows=False)
        assert await status_of(life, parent_id) == "RUNNING"
        ids.extend((parent_id, WorkflowId(one.sub_workflow_id), WorkflowId(two_id)))
        await life.report(polled[two_id])

    async def second(life: Life) -> None:
        await life.recovered()
        for _ in range(3):
            for task_type in ("t_a", "t_b"):
                for task in await life.poll(task_type):
                    await life.report(task)
        assert [await status_of(life, one) for one in ids] == ["COMPLETED"] * 3

    in_lives(first, second)


def test_a_start_that_is_repeated_at_once_happens_once() -> None:
    async def test(life: Life) -> None:
        launched = derived_workflow_id(at_ms=VirtualClock().now_ms(), slot=9, origin="o")
        request = StartWorkflow("one", 1)
        await asyncio.gather(*(life.router.launch(launched, request) for _ in range(3)))
        await life.node.services.catch_up()
        await life.router.launch(launched, request)
        assert await life.ids(["one"]) == [launched]
        [task] = await life.poll("t_a")
        await life.report(task)
        assert len((await life.show(launched))["tasks"]) == 1

    in_lives(test)


def test_memory_is_not_freed_of_what_a_checkpoint_has_yet_to_write() -> None:
    """A checkpoint of several batches: who is in the last one must not be read back too early."""
    count = 1_500

    async def test(life: Life) -> None:
        ids = [await life.start("two") for _ in range(count)]
        await life.node.services.catch_up()
        await life.node.services.catch_up()
        for task in await life.poll("t_a", count=1000) + await life.poll("t_a", count=1000):
            await life.report(task)
        # From here on the first batch of the checkpoint is written, and the second one waits.
        # What is written to the index of the first batch passes as well.
        life.death.hold("write", after=2)
        checkpoint = asyncio.ensure_future(life.node.services.catch_up())
        await asyncio.sleep(1)
        assert not checkpoint.done()
        seen = [(await life.show(one))["tasks"][0]["status"] for one in reversed(ids)]
        life.death.let_go("write")
        await checkpoint
        assert seen == ["COMPLETED"] * count

    in_lives(test, execution_cache_bytes=1 << 20)


def test_an_effect_that_fails_for_a_while_is_repeated() -> None:
    async def first(life: Life) -> None:
        await life.recovered()
        life.death.faults["get"] = StoreFault("busy")
        [task] = await life.poll("t_a")
        began_ms = VirtualClock().now_ms()
        # The answer waits for the look-up, as long as it is repeated in time.
        await life.report(task, "FAILED_WITH_TERMINAL_ERROR")
        assert life.death.faults == {}
        assert 100 <= VirtualClock().now_ms() - began_ms < 300
        assert len(await life.ids(["one"])) == 1

    async def start(life: Life) -> None:
        await life.start("compensated")

    in_lives(start, first)
