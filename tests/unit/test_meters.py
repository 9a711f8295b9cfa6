"""What becomes of workflows and tasks is counted: once, after the commit, by type and status."""

import asyncio
from collections.abc import Awaitable, Callable

from tests.support.lives import Life, new_stores
from tests.support.virtual_time import run_virtual

ONE = {
    "name": "one",
    "version": 1,
    "tasks": [{"name": "t_a", "taskReferenceName": "a", "type": "SIMPLE"}],
}
TASK_DEF = {"name": "t_a", "retryCount": 2, "retryDelaySeconds": 0, "responseTimeoutSeconds": 60}


def with_life(test: Callable[[Life], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Life(await new_stores(), audit_interval_ms=1 << 40) as life:
            await life.register([ONE], [TASK_DEF])
            await life.recovered()
            await test(life)

    run_virtual(run())


def executions(life: Life, *labels: str) -> tuple[int, float]:
    """How many attempts, and the sum of their seconds."""
    histogram = life.node.metrics.task_execution.of("t_a", *labels)
    return sum(histogram.counts), histogram.sum


def test_an_attempt_is_measured_for_itself_and_with_those_before_it() -> None:
    async def test(life: Life) -> None:
        await life.start("one")
        (task,) = await life.poll("t_a")
        await asyncio.sleep(5)
        await life.report(task, "FAILED")
        await asyncio.sleep(1)
        (task,) = await life.poll("t_a")
        await asyncio.sleep(3)
        await life.report(task)
        await life.parts.dispatcher.all_out()
        assert executions(life, "false", "FAILED") == (1, 5)
        assert executions(life, "false", "COMPLETED") == (1, 3)
        assert executions(life, "true", "COMPLETED") == (1, 9)

    with_life(test)


def test_a_worker_that_falls_silent_is_a_timeout_and_its_late_result_a_conflict() -> None:
    async def test(life: Life) -> None:
        metrics = life.node.metrics
        await life.start("one")
        (late,) = await life.poll("t_a")
        await life.until(lambda: metrics.task_timeout.of("t_a").value == 1, timeout_s=90)
        assert metrics.task_response_timeout.of("t_a").value == 1
        assert executions(life, "false", "TIMED_OUT")[0] == 1
        await life.report(late)
        conflicts = metrics.task_update_conflict.of("one", "t_a", "TIMED_OUT", "RUNNING")
        assert conflicts.value == 1
        (task,) = await life.poll("t_a")
        await life.report(task)
        assert executions(life, "false", "COMPLETED")[0] == 1
        await life.report(task)
        assert metrics.task_update_conflict.of("one", "t_a", "COMPLETED", "COMPLETED").value == 1
        assert executions(life, "false", "COMPLETED")[0] == 1
        assert conflicts.value == 1

    with_life(test)


def test_what_an_operator_ends_while_nobody_works_on_it_took_no_time() -> None:
    async def test(life: Life) -> None:
        workflow_id = await life.start("one")
        await life.terminate(workflow_id)
        await life.parts.dispatcher.all_out()
        assert executions(life, "false", "CANCELED") == (0, 0)

    with_life(test)


def test_decisions_entries_and_checkpoints_are_measured() -> None:
    async def test(life: Life) -> None:
        metrics = life.node.metrics
        await asyncio.gather(*(life.start("one") for _ in range(10)))
        assert sum(metrics.workflow_decision.of().counts) >= 10
        entries = metrics.commit_log_entries.of().value
        assert 1 <= entries <= 10
        assert sum(metrics.commit_log_append.of().counts) == entries
        assert metrics.commit_log_transitions.of().sum >= 10
        assert metrics.commit_log_bytes.of().value > 1_000
        await life.node.services.catch_up()
        assert sum(metrics.checkpoint_duration.of().counts) >= 1
        assert metrics.checkpoint_rows.of().value >= 20, "header and task of each"
        assert metrics.checkpoint_bytes.of().value > 1_000

    with_life(test)


def test_the_audit_counts_the_open_workflows_of_each_definition() -> None:
    async def test(life: Life) -> None:
        running = life.node.metrics.workflow_running.of
        ids = [await life.start("one") for _ in range(3)]
        await life.node.services.catch_up()
        await life.audit.walk()
        assert running("one", "").value == 3
        for workflow_id in ids:
            await life.terminate(workflow_id)
        await life.node.services.catch_up()
        await life.audit.walk()
        assert running("one", "").value == 0

    with_life(test)
