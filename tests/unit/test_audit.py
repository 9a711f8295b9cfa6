"""The audit: nothing is found where all is well, and whatever is broken on purpose goes on."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from cluster.engine.events import Paused, TaskUpdated
from cluster.engine.model import Execution
from cluster.engine.transitions import TaskStatus
from cluster.ids import TaskId, WorkflowId
from cluster.metrics import AUDIT_KINDS
from tests.support.lives import Json, Life, Scripts, new_stores
from tests.support.virtual_time import VirtualClock, run_virtual

SCRIPT = "(function () { for (;;) return $.v })()"
NEVER = 24 * 3600


def step(ref: str, type: str = "SIMPLE", **fields: Any) -> Json:
    return {"name": f"t_{ref}", "taskReferenceName": ref, "type": type, **fields}


def fork(*branches: list[Json]) -> list[Json]:
    ends = [branch[-1]["taskReferenceName"] for branch in branches]
    return [step("f", "FORK_JOIN", forkTasks=list(branches)), step("j", "JOIN", joinOn=ends)]


def child(ref: str, name: str) -> Json:
    return step(ref, "SUB_WORKFLOW", subWorkflowParam={"name": name, "version": 1})


DEFINITIONS: dict[str, list[Json]] = {
    "one": [step("a")],
    "forked": [*fork([step("a")], [step("b")]), step("c")],
    "parent": [child("s", "one"), step("z")],
    "waits": [step("w", "WAIT", inputParameters={"duration": "100 seconds"}), step("a")],
    "asks": [step("i", "INLINE", inputParameters={"expression": SCRIPT, "v": 1}), step("a")],
    "compensated": [step("a")],
    "compensation": [step("u")],
    "signal": [step("h", "HUMAN"), step("a")],
    "looped": [
        step(
            "l",
            "DO_WHILE",
            loopCondition="if ($.l['iteration'] < 2) { true } else { false }",
            loopOver=[step("a")],
        )
    ],
    "delayed": [step("d", startDelay=NEVER)],
    "for_ever": [step("w", "WAIT", inputParameters={"duration": f"{NEVER} seconds"})],
}
BODIES = [
    {
        "name": name,
        "version": 1,
        "tasks": tasks,
        **({"failureWorkflow": "compensation"} if name == "compensated" else {}),
    }
    for name, tasks in DEFINITIONS.items()
]
TASK_DEFS = [
    {"name": "t_a", "retryCount": 0, "responseTimeoutSeconds": 3600, "timeoutSeconds": 0},
    {"name": "t_b", "retryCount": 0, "pollTimeoutSeconds": 3600, "timeoutSeconds": 0},
]


def with_life(test: Callable[[Life], Awaitable[None]], *, scripts: Scripts | None = None) -> None:
    """Run a test in a life that knows the definitions. The audit does not walk by itself."""

    async def run() -> None:
        stores = await new_stores()
        found = scripts or Scripts()
        found.answers.setdefault(SCRIPT, lambda value: value["v"])
        async with Life(stores, scripts=found, audit_interval_ms=1 << 40) as life:
            await life.register(BODIES, TASK_DEFS)
            await life.recovered()
            await test(life)

    run_virtual(run())


def resident(life: Life, workflow_id: str) -> Execution:
    execution = life.parts.shards.resident(WorkflowId(workflow_id))
    assert execution is not None
    return execution


async def checkpointed(life: Life) -> None:
    """The audit walks over the open set, which checkpoints write."""
    await life.node.services.catch_up()


def repairs(life: Life) -> dict[str, int]:
    found = {kind: int(life.node.metrics.audit_repairs.of(kind).value) for kind in AUDIT_KINDS}
    return {kind: count for kind, count in found.items() if count}


async def found_and_repaired(life: Life, kind: str, *, count: int = 1) -> None:
    """A walk finds that much of one kind; the next one finds nothing."""
    await checkpointed(life)
    assert await life.audit.walk() == count
    assert repairs(life) == {kind: count}
    assert life.node.metrics.stuck_workflows.of().value == count
    await checkpointed(life)
    assert await life.audit.walk() == 0
    assert life.node.metrics.stuck_workflows.of().value == 0
    assert repairs(life) == {kind: count}


async def finish(life: Life, workflow_id: str, *task_types: str) -> None:
    """Complete whatever is polled until a run has ended."""
    for _ in range(50):
        for task_type in task_types:
            for task in await life.poll(task_type):
                await life.report(task)
        if (await life.show(workflow_id))["status"] == "COMPLETED":
            return
        await asyncio.sleep(0.1)
    raise AssertionError(await life.show(workflow_id))


def test_nothing_is_found_where_all_is_well() -> None:
    async def test(life: Life) -> None:
        held_scripts = life.scripts
        ids = {name: await life.start(name) for name in DEFINITIONS if name != "asks"}
        held_scripts.free.clear()
        asking = asyncio.create_task(life.start("asks"))
        paused = await life.start("waits")
        await life.router.submit(paused, Paused(VirtualClock().now_ms()))
        held = await life.start("one")
        [task] = [t for t in await life.poll("t_a") if t["workflowInstanceId"] == held]
        [late, *_] = await life.poll("t_b")
        event = TaskUpdated(
            VirtualClock().now_ms(),
            resident(life, ids["forked"]).by_ref["b"].number,
            TaskStatus.IN_PROGRESS,
            callback_after_s=500,
        )
        await life.router.submit(ids["forked"], event)
        assert late["referenceTaskName"] == "b"
        assert task["referenceTaskName"] == "a"
        await checkpointed(life)
        for _ in range(3):
            assert await life.audit.walk() == 0
            await asyncio.sleep(7)
        assert repairs(life) == {}
        held_scripts.free.set()
        await asking

    with_life(test)


def test_the_audit_walks_by_itself() -> None:
    async def run() -> None:
        stores = await new_stores()
        async with Life(stores, audit_interval_ms=60_000, audit_grace_ms=1_000) as life:
            await life.register(BODIES, TASK_DEFS)
            ids = [await life.start("one") for _ in range(100)]
            for workflow_id in ids[:7]:
                await lose_in_queue(life, workflow_id)
            began_ms = VirtualClock().now_ms()
            await life.until(lambda: repairs(life) == {"queue": 7}, timeout_s=120)
            # 100 workflows at 50 per second, behind the first interval and before the grace.
            assert 62_900 <= VirtualClock().now_ms() - began_ms <= 64_500
            assert len(await life.poll("t_a")) == 100

    run_virtual(run())


async def lose_in_queue(life: Life, workflow_id: str) -> None:
    execution = resident(life, workflow_id)
    [task] = execution.open_tasks()
    await life.queues.acknowledge({task.type: [TaskId(execution.task_id(task.number))]})


def test_a_task_that_its_queue_has_lost_is_pushed_again() -> None:
    async def test(life: Life) -> None:
        workflow_id = await life.start("one")
        await lose_in_queue(life, workflow_id)
        assert await life.poll("t_a") == []
        await found_and_repaired(life, "queue")
        await finish(life, workflow_id, "t_a")

    with_life(test)


def test_a_task_in_a_workers_hands_that_its_queue_has_lost_is_held_again() -> None:
    async def test(life: Life) -> None:
        await life.start("one")
        [task] = await life.poll("t_a")
        await life.queues.acknowledge({"t_a": [TaskId(task["taskId"])]})
        await found_and_repaired(life, "queue")
        assert await life.poll("t_a") == [], "it is not handed out a second time"
        assert (await life.queues.sizes(["t_a"]))["t_a"].held == 1

    with_life(test)


def test_a_lost_timer_is_armed_again() -> None:
    async def test(life: Life) -> None:
        workflow_id = await life.start("waits")
        # Before that it would be read again from the open set.
        await asyncio.sleep(82)
        life.parts.timers.forget(workflow_id)
        await found_and_repaired(life, "timer")
        await asyncio.sleep(20)
        await finish(life, workflow_id, "t_a")

    with_life(test)


def test_an_answer_that_never_came_is_asked_for_again() -> None:
    scripts = Scripts()
    scripts.faults.append(RuntimeError("the answer is lost on its way"))

    async def test(life: Life) -> None:
        workflow_id = await life.start("asks")
        assert scripts.asked == 1
        await found_and_repaired(life, "effect")
        assert scripts.asked == 2
        await finish(life, workflow_id, "t_a")

    with_life(test, scripts=scripts)


def test_a_script_that_takes_long_is_not_taken_for_lost() -> None:
    scripts = Scripts()
    scripts.free.clear()

    async def test(life: Life) -> None:
        workflow_id = await life.start("asks")
        await checkpointed(life)
        assert await life.audit.walk() == 0
        assert scripts.asked == 1
        scripts.free.set()
        await finish(life, workflow_id, "t_a")

    with_life(test, scripts=scripts)


def test_a_failure_workflow_that_was_not_started_is_started() -> None:
    async def run() -> None:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register(BODIES, TASK_DEFS)
            workflow_id = await life.start("compensated")
        async with Life(stores, audit_interval_ms=1 << 40) as life:
            await life.recovered()
            [task] = await life.poll("t_a")
            # This process has not looked the definition up yet, and fails to.
            life.death.faults["get"] = RuntimeError("the look-up is lost")
            await life.report(task, "FAILED")
            assert await life.ids(["compensation"]) == []
            await found_and_repaired(life, "effect")
            [compensation] = await life.ids(["compensation"])
            await finish(life, compensation, "t_u")
            assert (await life.show(workflow_id))["status"] == "FAILED"

    run_virtual(run())


def test_a_parent_hears_of_a_child_that_ended() -> None:
    async def test(life: Life) -> None:
        workflow_id = await life.start("parent")
        [task] = await life.poll("t_a")
        child_id = task["workflowInstanceId"]
        header = resident(life, child_id).header
        header.parent_id, parent_id = None, header.parent_id
        await life.report(task, output={"x": 1})
        header.parent_id = parent_id
        shown = await life.show(workflow_id)
        assert [t["status"] for t in shown["tasks"]] == ["IN_PROGRESS"]
        await found_and_repaired(life, "child")
        shown = await life.show(workflow_id)
        assert shown["tasks"][0]["outputData"] == {"x": 1, "subWorkflowId": child_id}
        await finish(life, workflow_id, "t_z")

    with_life(test)


def test_a_child_hears_that_its_parent_ended() -> None:
    async def test(life: Life) -> None:
        workflow_id = await life.start("parent")
        [sub] = resident(life, workflow_id).open_tasks()
        child_id, sub.sub_workflow_id = sub.sub_workflow_id, ""
        await life.terminate(workflow_id)
        sub.sub_workflow_id = child_id
        assert (await life.show(child_id))["status"] == "RUNNING"
        await found_and_repaired(life, "child")
        shown = await life.show(child_id)
        assert shown["status"] == "TERMINATED"
        assert shown["reasonForIncompletion"] == (
            "Parent workflow has been terminated with reason: enough"
        )
        assert await life.poll("t_a") == []

    with_life(test)


def test_a_join_that_was_not_told_looks_again() -> None:
    async def test(life: Life) -> None:
        workflow_id = await life.start("forked")
        execution = resident(life, workflow_id)
        execution.waiting[execution.by_ref["j"].number] += 1
        for task_type in ("t_a", "t_b"):
            [task] = await life.poll(task_type)
            await life.report(task)
        assert execution.by_ref["j"].status is TaskStatus.IN_PROGRESS
        await found_and_repaired(life, "walk")
        await finish(life, workflow_id, "t_c")

    with_life(test)


def test_a_loop_whose_count_is_wrong_goes_on() -> None:
    async def test(life: Life) -> None:
        workflow_id = await life.start("looped")
        execution = resident(life, workflow_id)
        execution.hold(execution.by_ref["l"].number)
        [task] = await life.poll("t_a")
        await life.report(task)
        assert execution.by_ref["l"].rounds == 1
        await found_and_repaired(life, "walk")
        await finish(life, workflow_id, "t_a")
        shown = await life.show(workflow_id)
        assert shown["tasks"][0]["outputData"]["iteration"] == 2

    with_life(test)


def test_a_run_in_which_nothing_is_open_goes_on() -> None:
    async def test(life: Life) -> None:
        workflow_id = await life.start("signal")
        execution = resident(life, workflow_id)
        [task] = execution.open_tasks()
        task.status = TaskStatus.COMPLETED
        execution.open.clear()
        execution.release(task.scope)
        execution.touch(task)
        await found_and_repaired(life, "walk")
        await finish(life, workflow_id, "t_a")

    with_life(test)


def test_what_is_gone_or_ended_or_quarantined_is_left_alone() -> None:
    async def test(life: Life) -> None:
        ended, gone, sick = [await life.start("one") for _ in range(3)]
        await checkpointed(life)
        await lose_in_queue(life, sick)
        life.parts.shards.quarantined[sick] = "on purpose"
        await life.terminate(ended)
        await life.router.remove(gone, archive=False)
        for workflow_id in (ended, gone, sick):
            assert await life.audit.look(workflow_id) is None
        assert await life.audit.walk() == 0

    with_life(test)
