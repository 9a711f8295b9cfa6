"""System tasks that executors carry out, as the decider sees them."""

import pytest

from cluster.engine.causes import causes_of
from cluster.engine.events import (
    Paused,
    Recovered,
    Resumed,
    TaskExecuted,
    TaskHandedBack,
    TaskHeld,
    TasksRequeued,
    Terminated,
)
from cluster.engine.model import Execution
from cluster.engine.step import Surroundings
from cluster.engine.tasks import with_custom_types
from cluster.engine.transitions import TaskStatus, WorkflowStatus
from cluster.errors import Conflict
from tests.support.engine import Json, Runs, plan_of, step

LEASE_MS = 30_000
CALL = {"http_request": {"uri": "http://a", "method": "GET"}}
RETRYING = {"name": "call", "retryCount": 1, "retryDelaySeconds": 5}


def http(**fields: object) -> Json:
    return step("call", "HTTP", inputParameters=CALL, **fields)


def executed(
    runs: Runs,
    run: Execution,
    status: str = "COMPLETED",
    *,
    delivery: int | None = None,
    output: bytes = b'{"a":1}',
    after_s: int = 0,
) -> None:
    task = run.by_ref["call"]
    event = TaskExecuted(
        runs.now_ms,
        task.number,
        "node",
        task.delivery if delivery is None else delivery,
        TaskStatus(status),
        output=output,
        callback_after_s=after_s,
    )
    runs.apply(run, event)


def test_it_waits_for_an_executor_and_ends_with_its_result() -> None:
    runs = Runs()
    run = runs.start(plan_of([http(), step("next")]))
    task = run.by_ref["call"]
    assert (task.status, task.type, task.domain) == (TaskStatus.SCHEDULED, "HTTP", "")
    runs.poll(run, "call", "node")
    assert task.status is TaskStatus.IN_PROGRESS
    executed(runs, run)
    assert (task.status, run.task_output(task)) == (TaskStatus.COMPLETED, {"a": 1})
    assert runs.queue[run.id].keys() == {run.by_ref["next"].number}


def test_a_domain_is_for_workers_only() -> None:
    runs = Runs()
    run = runs.start(plan_of([http()]), task_to_domain={"*": "mine"})
    assert run.by_ref["call"].domain == ""


def test_an_executor_that_dies_costs_a_lease_and_no_attempt() -> None:
    runs = Runs()
    run = runs.start(plan_of([http()]))
    task = runs.poll(run, "call", "dead")
    runs.advance(LEASE_MS - 1)
    assert task.status is TaskStatus.IN_PROGRESS
    runs.advance(1)
    assert (task.status, task.delivery, task.retry_count) == (TaskStatus.SCHEDULED, 2, 0)
    runs.poll(run, "call", "other")
    assert (task.worker_id, task.poll_count) == ("other", 2)
    executed(runs, run)
    assert run.header.status is WorkflowStatus.COMPLETED


def test_the_lease_survives_its_owner() -> None:
    runs = Runs()
    run = runs.start(plan_of([http()]))
    task = runs.poll(run, "call", "dead")
    runs.apply(run, Recovered(runs.now_ms))
    runs.advance(LEASE_MS)
    assert (task.status, task.delivery) == (TaskStatus.SCHEDULED, 2)


def test_an_executor_that_speaks_up_keeps_it() -> None:
    runs = Runs()
    run = runs.start(plan_of([http()]))
    task = runs.poll(run, "call", "node")
    for _ in range(5):
        runs.advance(LEASE_MS - 1)
        runs.apply(run, TaskHeld(runs.now_ms, task.number, "node", 1))
    assert (task.status, task.delivery) == (TaskStatus.IN_PROGRESS, 1)


def test_a_sign_of_life_may_come_before_the_note_of_the_hand_over() -> None:
    runs = Runs()
    run = runs.start(plan_of([http()]))
    task = run.by_ref["call"]
    runs.apply(run, TaskHeld(runs.now_ms, task.number, "node", 1))
    assert (task.status, task.worker_id, task.poll_count) == (TaskStatus.IN_PROGRESS, "node", 1)


def test_who_has_it_no_more_is_told_so() -> None:
    runs = Runs()
    run = runs.start(plan_of([http()]))
    task = runs.poll(run, "call", "slow")
    runs.advance(LEASE_MS)
    with pytest.raises(Conflict):
        runs.apply(run, TaskHeld(runs.now_ms, task.number, "slow", 1))
    runs.apply(run, Terminated(runs.now_ms, "enough"))
    with pytest.raises(Conflict):
        runs.apply(run, TaskHeld(runs.now_ms, task.number, "slow", 2))
    executed(runs, run)
    assert task.status is TaskStatus.CANCELED


def test_the_first_result_counts_whoever_has_it() -> None:
    runs = Runs()
    run = runs.start(plan_of([http()]))
    task = runs.poll(run, "call", "slow")
    runs.advance(LEASE_MS)
    runs.poll(run, "call", "other")
    executed(runs, run, delivery=1)
    assert task.status is TaskStatus.COMPLETED
    executed(runs, run, "FAILED", delivery=2, output=b"{}")
    assert (task.status, run.task_output(task)) == (TaskStatus.COMPLETED, {"a": 1})


def test_a_failed_attempt_is_retried_as_its_definition_says() -> None:
    runs = Runs()
    run = runs.start(plan_of([http()], task_defs=[RETRYING]))
    runs.poll(run, "call", "node")
    executed(runs, run, "FAILED")
    second = run.by_ref["call"]
    assert (second.retry_count, second.status) == (1, TaskStatus.SCHEDULED)
    runs.advance(5_000)
    runs.poll(run, "call", "node")
    executed(runs, run, "FAILED")
    assert run.header.status is WorkflowStatus.FAILED


def test_without_a_definition_nothing_is_retried() -> None:
    runs = Runs()
    run = runs.start(plan_of([http()]))
    runs.poll(run, "call", "node")
    executed(runs, run, "FAILED")
    assert run.header.status is WorkflowStatus.FAILED


def test_async_complete_leaves_it_to_somebody_else() -> None:
    runs = Runs()
    run = runs.start(plan_of([http(asyncComplete=True)]))
    task = run.by_ref["call"]
    assert run.task_input(task)["asyncComplete"] is True
    runs.poll(run, "call", "node")
    executed(runs, run)
    assert (task.status, run.task_output(task)) == (TaskStatus.IN_PROGRESS, {"a": 1})
    runs.apply(run, TasksRequeued(runs.now_ms, "HTTP"))
    runs.advance(10 * LEASE_MS)
    assert (task.status, task.delivery) == (TaskStatus.IN_PROGRESS, 1)
    assert causes_of(run).due_ms == 0
    runs.update(run, "call", output={"b": 2})
    assert run.header.status is WorkflowStatus.COMPLETED


def test_async_complete_before_the_note_of_the_hand_over() -> None:
    runs = Runs()
    run = runs.start(plan_of([http(asyncComplete=True)]))
    task = run.by_ref["call"]
    executed(runs, run)
    assert (task.status, task.wake_ms) == (TaskStatus.IN_PROGRESS, 0)


def test_an_update_from_outside_does_not_begin_it() -> None:
    runs = Runs()
    run = runs.start(plan_of([http()]))
    task = run.by_ref["call"]
    runs.update(run, "call", "IN_PROGRESS")
    assert (task.status, task.delivery) == (TaskStatus.SCHEDULED, 1)
    runs.poll(run, "call", "node")
    runs.update(run, "call", "IN_PROGRESS")
    assert (task.status, task.delivery) == (TaskStatus.IN_PROGRESS, 1)
    runs.advance(LEASE_MS)
    assert task.delivery == 2


def test_work_that_is_not_done_comes_back_after_its_pause() -> None:
    runs = Runs()
    run = runs.start(plan_of([http()]))
    task = runs.poll(run, "call", "node")
    executed(runs, run, "IN_PROGRESS", after_s=60)
    runs.advance(59_999)
    assert (task.status, run.task_output(task)) == (TaskStatus.IN_PROGRESS, {"a": 1})
    runs.advance(1)
    assert (task.status, task.delivery) == (TaskStatus.SCHEDULED, 2)
    executed(runs, run, "IN_PROGRESS", delivery=1, after_s=60)
    assert task.status is TaskStatus.SCHEDULED, "a word of an older delivery"
    runs.poll(run, "call", "node")
    executed(runs, run)
    assert run.header.status is WorkflowStatus.COMPLETED


def test_a_task_handed_back_has_no_lease() -> None:
    runs = Runs()
    run = runs.start(plan_of([http()]))
    task = runs.poll(run, "call", "node")
    runs.apply(run, TaskHandedBack(runs.now_ms, task.number, 1))
    assert (task.status, task.wake_ms) == (TaskStatus.SCHEDULED, 0)


def test_a_paused_run_goes_on_with_what_died_meanwhile() -> None:
    runs = Runs()
    run = runs.start(plan_of([http()]))
    task = runs.poll(run, "call", "dead")
    runs.apply(run, Paused(runs.now_ms))
    runs.advance(2 * LEASE_MS)
    runs.apply(run, Resumed(runs.now_ms))
    runs.advance(1)
    assert (task.status, task.delivery) == (TaskStatus.SCHEDULED, 2)


def test_a_response_timeout_of_the_definition_holds() -> None:
    runs = Runs()
    definition = {"name": "call", "retryCount": 0, "responseTimeoutSeconds": 7}
    run = runs.start(plan_of([http()], task_defs=[definition]))
    runs.poll(run, "call", "node")
    runs.advance(7_000)
    assert run.header.status is WorkflowStatus.TIMED_OUT


def test_custom_types_are_the_executors_where_they_are_installed() -> None:
    runs = Runs(surroundings=Surroundings(types=with_custom_types(["SHOUT"])))
    run = runs.start(plan_of([step("call", "SHOUT")]))
    task = runs.poll(run, "call", "dead")
    runs.advance(LEASE_MS)
    assert (task.status, task.delivery) == (TaskStatus.SCHEDULED, 2)
    elsewhere = Runs()
    run = elsewhere.start(plan_of([step("call", "SHOUT")]))
    task = elsewhere.poll(run, "call", "worker")
    elsewhere.advance(LEASE_MS)
    assert task.status is TaskStatus.IN_PROGRESS
