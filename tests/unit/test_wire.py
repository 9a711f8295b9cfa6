"""Conductor's JSON of runs and tasks: the fields a real server shows, users' bytes untouched."""

import json
from typing import Any

import orjson
import pytest

from cluster.engine import payloads
from cluster.engine.definitions import parse_task_def, parse_workflow_def
from cluster.engine.model import Execution, Header, Task
from cluster.engine.plan import Plan
from cluster.engine.transitions import TaskStatus, WorkflowStatus
from cluster.ids import WorkflowId
from cluster.node import wire

WORKFLOW = WorkflowId("01970000-0000-8000-8000-000000100000")
NOW_MS = 1_000_000

# Keys of a fresh run of Conductor 3.32.3, with a correlation id.
RUN_KEYS = set(
    "ownerApp createTime updateTime status endTime workflowId tasks input output correlationId"
    " taskToDomain failedReferenceTaskNames workflowDefinition priority variables lastRetriedTime"
    " failedTaskNames history rateLimited startTime workflowName workflowVersion".split()
)
# Keys of a worker task of that run, polled by a worker with a name.
POLLED_KEYS = set(
    "taskType status inputData referenceTaskName retryCount seq correlationId pollCount taskDefName"
    " scheduledTime startTime endTime updateTime startDelayInSeconds retried executed"
    " callbackFromWorker responseTimeoutSeconds workflowInstanceId workflowType taskId"
    " callbackAfterSeconds workerId outputData workflowTask rateLimitPerFrequency"
    " rateLimitFrequencyInSeconds workflowPriority iteration subworkflowChanged firstStartTime"
    " executionMetadata taskDefinition loopOverTask queueWaitTime".split()
)


def a_plan(**step: Any) -> Plan:
    task_def = parse_task_def(
        {"name": "pack", "retryCount": 0, "rateLimitPerFrequency": 5, **step.pop("task_def", {})}
    )[1]
    tasks = [{"name": "pack", "taskReferenceName": "p", **step}]
    body = parse_workflow_def({"name": "order", "version": 3, "tasks": tasks, "mine": [1.0]})[1]
    for task in body["tasks"]:
        task["taskDefinition"] = task_def
    return Plan("hash", payloads.dump(body))


def a_run(plan: Plan, *tasks: Task, **header: Any) -> Execution:
    known: dict[str, Any] = {
        "snapshot": "hash",
        "name": "order",
        "version": 3,
        "status": WorkflowStatus.RUNNING,
        "create_ms": 500,
    }
    execution = Execution(WORKFLOW, Header(**{**known, **header}), plan)
    for task in tasks:
        execution.add_task(task)
    return execution


def a_task(**fields: Any) -> Task:
    known: dict[str, Any] = {
        "number": 1,
        "ref": "p",
        "base_ref": "p",
        "type": "pack",
        "name": "pack",
        "status": TaskStatus.SCHEDULED,
        "seq": 1,
        "scheduled_ms": 600,
    }
    return Task(**{**known, **fields})


def polled(execution: Execution, task: Task) -> dict[str, Any]:
    """A poll's answer, put together as the poll desk does."""
    key = wire.fragment_key(execution, task)
    fragment = wire.task_fragment(execution.node_of(task)) if key else wire.COMMON_FRAGMENT
    set_by_poll = (
        b',"status":"IN_PROGRESS","startTime":7,"updateTime":8,"pollCount":1,"workerId":"w",'
        b'"callbackAfterSeconds":0,"queueWaitTime":3,'
    )
    encoded = wire.poll_payload(execution, task) + set_by_poll + fragment + b"}"
    decoded: dict[str, Any] = orjson.loads(encoded)
    return decoded


def test_a_fresh_run_has_the_fields_of_conductor() -> None:
    run = a_run(a_plan(), a_task(), correlation_id="c")
    shown = orjson.loads(wire.workflow_json(run, include_tasks=True))
    assert set(shown) == RUN_KEYS
    assert shown["startTime"] == shown["createTime"] == 500
    assert shown["endTime"] == 0
    assert shown["ownerApp"] == ""
    assert shown["workflowDefinition"]["mine"] == [1.0]
    assert [task["taskId"] for task in shown["tasks"]] == [f"{WORKFLOW[:31]}00001"]


def test_tasks_can_be_left_out() -> None:
    shown = orjson.loads(wire.workflow_json(a_run(a_plan(), a_task()), include_tasks=False))
    assert shown["tasks"] == []


def test_a_child_that_failed_names_its_parent_and_its_failed_tasks() -> None:
    run = a_run(
        a_plan(),
        a_task(status=TaskStatus.FAILED),
        status=WorkflowStatus.FAILED,
        parent_id="01970000-0000-8000-8000-000000200000",
        parent_number=0x1F,
        reason="why",
        end_ms=900,
        shows_failures=True,
    )
    shown = orjson.loads(wire.workflow_json(run, include_tasks=True))
    assert shown["parentWorkflowId"] == "01970000-0000-8000-8000-000000200000"
    assert shown["parentWorkflowTaskId"] == "01970000-0000-8000-8000-00000020001f"
    assert shown["reasonForIncompletion"] == "why"
    assert shown["failedReferenceTaskNames"] == ["p"]
    assert shown["failedTaskNames"] == ["pack"]


def test_payload_bytes_go_out_as_they_came_in() -> None:
    payload = b'{"big": 123456789012345678901234567890, "n": 1.50, "e": 1E5,"t":"\xc3\xa9"}'
    run = a_run(a_plan(), a_task(input=payload, output=payload))
    run.set_input(payload)
    run.set_output(payload)
    run.set_variables(payload)
    assert wire.workflow_json(run, include_tasks=True).count(payload) == 5
    assert wire.poll_payload(run, run.tasks[1]).count(payload) == 2


def test_a_polled_task_has_the_fields_of_conductor() -> None:
    task = a_task()
    run = a_run(a_plan(), task, correlation_id="c")
    shown = polled(run, task)
    assert set(shown) == POLLED_KEYS
    assert shown["executionMetadata"] == {
        "additionalContext": {},
        "additionalContextMap": {},
        "empty": True,
    }
    assert shown["responseTimeoutSeconds"] == 3600
    assert (shown["rateLimitPerFrequency"], shown["rateLimitFrequencyInSeconds"]) == (5, 1)
    assert shown["workflowTask"]["taskDefinition"] == shown["taskDefinition"]
    assert shown["callbackFromWorker"] is True


def test_a_polled_task_shows_what_a_read_of_it_shows() -> None:
    task = a_task(
        status=TaskStatus.IN_PROGRESS,
        start_ms=7,
        update_ms=8,
        poll_count=1,
        worker_id="w",
        scheduled_ms=4,
        retry_count=1,
        retried_number=9,
        reason="before",
        domain="d",
        iteration=2,
    )
    run = a_run(a_plan(), task, priority=4)
    assert polled(run, task) == orjson.loads(wire.task_json(run, task))


def test_no_field_is_said_twice() -> None:
    pairs: list[str] = []

    def note(found: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in found]
        pairs.extend(key for key in keys if keys.count(key) > 1)
        return dict(found)

    for step in ({}, {"type": "DYNAMIC", "dynamicTaskNameParam": "t"}):
        task = a_task()
        run = a_run(a_plan(**step), task)
        key = wire.fragment_key(run, task)
        fragment = wire.task_fragment(run.node_of(task)) if key else wire.COMMON_FRAGMENT
        encoded = wire.poll_payload(run, task) + b"," + fragment + b"}"
        json.loads(encoded, object_pairs_hook=note)
    assert pairs == []


def test_the_constant_part_is_encoded_once_per_step() -> None:
    task = a_task()
    run = a_run(a_plan(), task)
    assert wire.fragment_key(run, task) == "hash/p"
    first = wire.task_fragment(run.node_of(task))
    assert wire.task_fragment(run.node_of(task)) is first


def test_a_dynamic_step_shows_the_name_it_was_resolved_to() -> None:
    task = a_task(type="chosen", name="chosen")
    run = a_run(a_plan(type="DYNAMIC", dynamicTaskNameParam="t"), task)
    assert wire.fragment_key(run, task) == ""
    assert polled(run, task)["workflowTask"]["name"] == "chosen"
    assert orjson.loads(wire.task_json(run, task))["workflowTask"]["name"] == "chosen"


@pytest.mark.parametrize(
    ("fields", "wait_ms"),
    [
        ({}, 0),
        ({"start_ms": 650}, 50),
        ({"start_ms": 650, "update_ms": NOW_MS - 5_000, "callback_after_s": 2}, 3_000),
        ({"start_ms": 650, "update_ms": NOW_MS - 1_000, "callback_after_s": 2}, 0),
    ],
)
def test_queue_wait_time(fields: dict[str, Any], wait_ms: int) -> None:
    assert wire.queue_wait_ms(a_task(**fields), NOW_MS) == wait_ms


def test_an_ended_loop_task_keeps_its_fields() -> None:
    task = a_task(status=TaskStatus.COMPLETED, iteration=1, sub_workflow_id="child", executed=True)
    shown = orjson.loads(wire.task_json(a_run(a_plan(), task), task))
    assert shown["loopOverTask"] is True
    assert shown["subWorkflowId"] == "child"
    assert shown["executed"] is True
    assert "workerId" not in shown
    assert "domain" not in shown


def test_status_shows_output_and_variables_only_when_asked() -> None:
    run = a_run(a_plan())
    short = wire.workflow_status_json(run, include_output=False, include_variables=False)
    assert orjson.loads(short) == {"workflowId": WORKFLOW, "status": "RUNNING"}
    run.header.correlation_id = "c"
    long = wire.workflow_status_json(run, include_output=True, include_variables=True)
    assert orjson.loads(long) == {
        "workflowId": WORKFLOW,
        "status": "RUNNING",
        "correlationId": "c",
        "output": {},
        "variables": {},
    }


def test_sync_answers_have_the_fields_of_conductor() -> None:
    task = a_task(type="WAIT", status=TaskStatus.IN_PROGRESS, input=b'{"zz":1}')
    run = a_run(a_plan(), task, correlation_id="c")
    answer = wire.Signalled("BLOCKING_TASK", "t", "RUNNING", "r", False)
    whole = orjson.loads(wire.workflow_run_json(answer, run))
    assert set(whole) == set(
        "responseType targetWorkflowId targetWorkflowStatus requestId workflowId correlationId"
        " input output signalTimeout priority variables tasks createTime status updateTime".split()
    )
    one = orjson.loads(wire.task_run_json(answer, run, task))
    assert set(one) == set(
        "responseType targetWorkflowId targetWorkflowStatus requestId workflowId correlationId"
        " input output signalTimeout taskType taskId referenceTaskName retryCount taskDefName"
        " workflowType priority createTime updateTime status".split()
    )
    assert one["input"] == {"zz": 1}
    assert one["createTime"] == 600


def test_secrets_and_runtime_metadata_are_filled_in_at_hand_over() -> None:
    name = "${workflow.secrets.%s}"
    inputs = {"whole": name % "A", "part": [f"x{name % 'A'}y{name % 'NO'}"], "none": name % "NO"}
    task = a_task(input=orjson.dumps(inputs))
    run = a_run(a_plan(task_def={"runtimeMetadata": ["A", "E", "NO"]}), task)
    assert wire.needs_completion(run, task)
    completed = wire.complete_payload(
        wire.poll_payload(run, task), secrets={"A": "sesame"}, environment={"E": "prod", "A": "-"}
    )
    shown = orjson.loads(completed + b"}")
    assert shown["inputData"] == {"whole": "sesame", "part": ["xsesamey"], "none": None}
    assert shown["runtimeMetadata"] == {"A": "sesame", "E": "prod"}
    assert b"runtimeMetadata" not in wire.task_json(run, task).split(b'"workflowTask"')[0]


def test_a_task_without_secrets_needs_no_completion() -> None:
    task = a_task()
    assert not wire.needs_completion(a_run(a_plan(), task), task)


def test_a_queue_item_carries_what_a_poll_needs() -> None:
    task = a_task(domain="d", delivery=4, visible_ms=77)
    run = a_run(a_plan(), task, priority=9)
    items = wire.QueueItems()
    queue, item = items.item(run, 1)
    assert queue == "d:pack"
    assert (item.task_id, item.delivery, item.priority, item.due_ms, item.incomplete) == (
        run.task_id(1),
        4,
        9,
        77,
        False,
    )
    assert items.fragment(item.fragment) == wire.task_fragment(run.node_of(task))


def test_fragments_are_kept_within_their_limit() -> None:
    items = wire.QueueItems(bytes_max=3_000)
    for n in range(20):
        plan = a_plan()
        plan.hash = f"hash{n}"
        items.item(a_run(plan, a_task()), 1)
    assert items.fragment("hash0/p") == wire.COMMON_FRAGMENT
    assert b"workflowTask" in items.fragment("hash19/p")


@pytest.mark.parametrize(
    ("step", "timeout_s", "window_s"),
    [
        ({}, 77, 1),
        ({"type": "DYNAMIC", "dynamicTaskNameParam": "t"}, 77, 0),
        ({"type": "OF_MINE"}, 0, 1),
        ({"type": "INLINE"}, 0, 0),
        ({"type": "DO_WHILE", "loopCondition": "true"}, 0, 1),
    ],
)
def test_limits_are_shown_by_the_type_of_the_step(
    step: dict[str, Any], timeout_s: int, window_s: int
) -> None:
    task = a_task()
    run = a_run(a_plan(task_def={"responseTimeoutSeconds": 77}, **step), task)
    shown = orjson.loads(wire.task_json(run, task))
    assert shown["responseTimeoutSeconds"] == timeout_s
    assert shown["rateLimitFrequencyInSeconds"] == window_s
