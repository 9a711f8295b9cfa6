"""Messages to a workflow, and the tasks that take them."""

from typing import Any

import orjson
import pytest

from cluster.engine.events import MessageSent, Paused, Recovered, TaskUpdated, Terminated
from cluster.engine.model import Execution
from cluster.engine.step import Surroundings
from cluster.engine.transitions import TaskStatus, WorkflowStatus
from cluster.errors import Conflict, Overloaded
from tests.support.engine import Json, Runs, output_of, plan_of, step


def pull(ref: str = "pull", **value: Any) -> Json:
    return step(ref, "PULL_WORKFLOW_MESSAGES", inputParameters=value)


def send(runs: Runs, run: Execution, name: str, **payload: Any) -> None:
    runs.apply(run, MessageSent(runs.now_ms, name, orjson.dumps(payload or {"name": name})))


def names(run: Execution, ref: str = "pull") -> list[str]:
    output = output_of(run, ref)
    assert output["count"] == len(output["messages"])
    return [message["id"] for message in output["messages"]]


def test_a_task_waits_for_a_message_and_ends_with_it() -> None:
    runs = Runs()
    run = runs.start(plan_of([pull()]))
    assert run.by_ref["pull"].status is TaskStatus.IN_PROGRESS
    runs.now_ms = 1_700_000_000_123
    send(runs, run, "m1", amount=3)
    assert run.header.status is WorkflowStatus.COMPLETED
    assert output_of(run, "pull") == {
        "count": 1,
        "messages": [
            {
                "id": "m1",
                "workflowId": run.id,
                "payload": {"amount": 3},
                "receivedAt": "2023-11-14T22:13:20.123Z",
            }
        ],
    }
    assert not run.messages


def test_messages_wait_for_their_task_and_come_in_order() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("first"), pull(batchSize=2), pull("rest", batchSize=500)]))
    for name in ("m1", "m2", "m3", "m4"):
        send(runs, run, name)
    runs.apply(run, Recovered(runs.now_ms))
    assert len(run.messages) == 4
    runs.work(run, "first")
    assert (names(run), names(run, "rest")) == (["m1", "m2"], ["m3", "m4"])
    assert run.header.status is WorkflowStatus.COMPLETED


def test_without_blocking_there_may_be_none() -> None:
    runs = Runs()
    run = runs.start(plan_of([pull(blocking=False)]))
    assert output_of(run, "pull") == {"messages": [], "count": 0}
    assert run.header.status is WorkflowStatus.COMPLETED


@pytest.mark.parametrize("batch_size", [None, 0, -3, "x", 1.0])
def test_a_batch_is_one_message_unless_it_says_more(batch_size: Any) -> None:
    runs = Runs()
    run = runs.start(plan_of([step("first"), pull(batchSize=batch_size)]))
    send(runs, run, "m1")
    send(runs, run, "m2")
    runs.work(run, "first")
    assert names(run) == ["m1"]
    assert [message.id for message in run.messages.values()] == ["m2"]


def test_of_two_that_wait_the_first_gets_it() -> None:
    runs = Runs()
    fork = step("fork", "FORK_JOIN", forkTasks=[[pull("a")], [pull("b")]])
    run = runs.start(plan_of([fork, step("join", "JOIN", joinOn=["a", "b"])]))
    send(runs, run, "m1")
    assert run.by_ref["b"].status is TaskStatus.IN_PROGRESS
    send(runs, run, "m2")
    assert (names(run, "a"), names(run, "b")) == (["m1"], ["m2"])
    assert run.header.status is WorkflowStatus.COMPLETED


def test_a_task_that_was_completed_otherwise_takes_none() -> None:
    runs = Runs()
    run = runs.start(plan_of([pull(), pull("next")]))
    task = run.by_ref["pull"]
    runs.apply(run, TaskUpdated(runs.now_ms, task.number, TaskStatus.COMPLETED, output=b"{}"))
    send(runs, run, "m1")
    assert (output_of(run, "pull"), names(run, "next")) == ({}, ["m1"])


def test_a_message_that_is_sent_twice_is_kept_once() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("first"), pull(batchSize=9)]))
    send(runs, run, "m1")
    send(runs, run, "m1")
    runs.work(run, "first")
    assert names(run) == ["m1"]


def test_a_full_queue_takes_no_more() -> None:
    runs = Runs(surroundings=Surroundings(messages_max=2, payload_bytes_max=100))
    run = runs.start(plan_of([step("first"), pull()]))
    send(runs, run, "m1")
    with pytest.raises(Overloaded):
        send(runs, run, "long", text="x" * 100)
    send(runs, run, "m2")
    with pytest.raises(Overloaded):
        send(runs, run, "m3")
    assert len(run.messages) == 2


def test_only_running_workflows_take_messages() -> None:
    runs = Runs()
    run = runs.start(plan_of([pull()]))
    runs.apply(run, Paused(runs.now_ms))
    with pytest.raises(Conflict):
        send(runs, run, "m1")
    runs.apply(run, Terminated(runs.now_ms, "enough"))
    with pytest.raises(Conflict):
        send(runs, run, "m1")
