"""SUB_WORKFLOW, START_WORKFLOW and failure workflows: runs that have to do with each other."""

from typing import Any

import pytest

from cluster.engine.events import (
    ChildEnded,
    ChildRevived,
    Paused,
    Recovered,
    Rerun,
    Restarted,
    Retried,
    SubWorkflowResolved,
    Terminated,
    WorkflowLaunched,
)
from cluster.engine.plan import Plan
from tests.support.engine import Json, Runs, input_of, output_of, plan_of, statuses, step


def sub(ref: str = "s", name: str = "c", params: Json | None = None, **fields: Any) -> Json:
    wanted = {"name": name, "version": 1, **(params or {})}
    return step(ref, "SUB_WORKFLOW", subWorkflowParam=wanted, **fields)


def child_plan(*tasks: Json, **fields: Any) -> Plan:
    names = [{"name": task["name"], "retryCount": 0} for task in tasks]
    return plan_of(list(tasks) or [step("a")], task_defs=names or [{"name": "a", "retryCount": 0}],
                   **{"name": "c", **fields})  # fmt: skip


def family(*tasks: Json, child: Plan | None = None, **fields: Any) -> Runs:
    return Runs(definitions={"c": child or child_plan(), **fields})


def test_a_child_runs_and_its_end_is_the_tasks_end() -> None:
    runs = family()
    run = runs.start(
        plan_of([sub(inputParameters={"x": "${workflow.input.n}"}), step("z")]),
        {"n": 5},
        correlation_id="corr",
        priority=7,
    )
    child = runs.child_of(run, "s")
    assert (child.workflow_input(), child.header.parent_id) == ({"x": 5}, run.id)
    assert (child.header.correlation_id, child.header.priority) == ("corr", 0)
    assert output_of(run, "s") == {"subWorkflowId": child.id}
    assert statuses(run)["s"] == "IN_PROGRESS"
    runs.work(child, "a", output={"y": 1})
    assert output_of(run, "s") == {"y": 1, "subWorkflowId": child.id}
    assert statuses(run) == {"s": "COMPLETED", "z": "SCHEDULED"}


def test_what_the_task_shows_of_its_child() -> None:
    runs = family()
    params = {"priority": 9, "taskToDomain": {"*": "d"}}
    run = runs.start(plan_of([sub(params=params)]), task_to_domain={"*": "e"})
    shown = input_of(run, "s")
    assert len(shown) == 8
    assert (shown["subWorkflowName"], shown["subWorkflowVersion"]) == ("c", 1)
    child = runs.child_of(run, "s")
    assert (child.header.priority, child.header.task_to_domain) == (9, {"*": "d"})
    # Without an input of its own the child sees that of the task.
    assert child.workflow_input() == shown


@pytest.mark.parametrize(
    ("status", "task_status", "run_status"),
    [("FAILED", "FAILED", "FAILED"), ("CANCELED", "CANCELED", "TERMINATED")],
)
def test_a_child_that_fails(status: str, task_status: str, run_status: str) -> None:
    runs = family()
    run = runs.start(plan_of([sub()]))
    child = runs.child_of(run, "s")
    runs.work(child, "a", status, reason="no")
    task = run.by_ref["s"]
    assert (task.status, run.header.status) == (task_status, run_status)
    assert task.reason == f"Sub workflow c.1/{child.id} failure reason: {child.header.reason}"
    assert output_of(run, "s") == {"subWorkflowId": child.id}


def test_a_child_that_times_out() -> None:
    runs = family(child=child_plan(timeoutSeconds=5, timeoutPolicy="TIME_OUT_WF"))
    run = runs.start(plan_of([sub()]))
    runs.advance(5_000)
    assert (statuses(run)["s"], run.header.status) == ("TIMED_OUT", "TIMED_OUT")


def test_a_failed_child_is_retried_as_its_task_definition_says() -> None:
    runs = family()
    plan = plan_of([sub()], task_defs=[{"name": "s", "retryCount": 1, "retryDelaySeconds": 3}])
    run = runs.start(plan)
    first = runs.child_of(run, "s")
    runs.work(first, "a", "FAILED")
    assert run.by_ref["s"].status == "SCHEDULED"
    runs.advance(3_000)
    second = runs.child_of(run, "s")
    assert second.id != first.id
    runs.work(second, "a")
    assert run.header.status == "COMPLETED"


def test_the_end_of_a_superseded_child_is_ignored() -> None:
    runs = family()
    run = runs.start(plan_of([sub()]))
    runs.apply(run, ChildEnded(runs.now_ms, 1, "somebody", "COMPLETED", b"{}", ""))
    assert statuses(run)["s"] == "IN_PROGRESS"


def test_an_optional_child_is_forgiven() -> None:
    runs = family()
    run = runs.start(plan_of([sub(optional=True), step("z")]))
    runs.work(runs.child_of(run, "s"), "a", "FAILED")
    assert statuses(run) == {"s": "COMPLETED_WITH_ERRORS", "z": "SCHEDULED"}


@pytest.mark.parametrize("version", [1, 0])
def test_a_child_that_is_not_defined(version: int) -> None:
    runs = Runs()
    run = runs.start(plan_of([sub(name="nobody", params={"version": version})]))
    assert run.header.status == "FAILED"
    assert run.by_ref["s"].reason == (
        f"No such workflow defined. name=nobody, version={version or 'null'}"
    )


def test_a_child_without_a_version_that_is_not_defined_leaves_no_task() -> None:
    runs = Runs()
    value = {"forkTaskInputs": [{}], "forkTaskWorkflow": "nobody"}
    run = runs.start(
        plan_of([step("f", "FORK_JOIN_DYNAMIC", inputParameters=value), step("j", "JOIN")])
    )
    assert run.header.status == "FAILED"
    assert run.header.reason == (
        "The Task nobody defined as a sub-workflow has no workflow definition available "
    )


def test_a_start_that_may_work_later_is_tried_again() -> None:
    runs = Runs()
    asked: list[Any] = []
    carry_out = runs._resolved

    def resolved(effect: Any) -> SubWorkflowResolved:
        asked.append(effect)
        if len(asked) == 1:
            return SubWorkflowResolved(
                runs.now_ms, effect.number, effect.token, name="c", error="busy", transient=True
            )
        return carry_out(effect)

    runs._resolved = resolved  # type: ignore[method-assign]
    runs.definitions["c"] = child_plan()
    run = runs.start(plan_of([sub()]))
    task = run.by_ref["s"]
    assert task.status == "SCHEDULED"
    assert task.reason == "Transient error starting sub workflow c: busy"
    assert output_of(run, "s") == {"subWorkflowLaunchError": "busy"}
    runs.advance(5_000)
    assert (task.status, task.reason) == ("IN_PROGRESS", "")


def test_an_inline_definition() -> None:
    runs = Runs()
    inline = {"name": "inner", "version": 2, "tasks": [step("a")]}
    params = {"workflowDefinition": inline}
    run = runs.start(plan_of([sub(params=params, inputParameters={"_systemMetadata": {"m": 1}})]))
    child = runs.child_of(run, "s")
    assert child.header.name == "inner"
    assert child.workflow_input() == {"_systemMetadata": {"m": 1, "dynamic": True}}


def test_an_inline_definition_out_of_the_input() -> None:
    inline = {"name": "inner", "version": 2, "tasks": [step("a")]}
    params = {"workflowDefinition": "${workflow.input.d}"}
    runs = family()
    run = runs.start(plan_of([sub(params=params)]), {"d": inline})
    assert runs.child_of(run, "s").header.name == "inner"
    run = runs.start(plan_of([sub(params=params)]), {"d": [1]})
    assert statuses(run)["s"] == "FAILED"
    run = runs.start(plan_of([sub(params=params)]), {"d": None})
    assert runs.child_of(run, "s").header.name == "c"


def test_a_priority_out_of_bounds() -> None:
    runs = family()
    run = runs.start(plan_of([sub(params={"priority": "${workflow.input.p}"})]), {"p": 200})
    assert run.by_ref["s"].reason == "priority MUST be between 0 and 99 (inclusive)"


def test_a_sub_workflow_that_names_none() -> None:
    plan = plan_of([step("d", "DYNAMIC", dynamicTaskNameParam="n",
                         inputParameters={"n": "SUB_WORKFLOW"})])  # fmt: skip
    run = Runs().start(plan)
    assert "missing subWorkflowParams" in run.header.reason


# -- downwards: terminate


def test_the_end_of_a_parent_ends_its_children() -> None:
    middle = plan_of([sub("t", "c")], name="m")
    runs = Runs(definitions={"c": child_plan(), "m": middle})
    run = runs.start(plan_of([sub("s", "m")]))
    child = runs.child_of(run, "s")
    grandchild = runs.child_of(child, "t")
    runs.apply(run, Terminated(runs.now_ms, "enough"))
    assert child.header.reason == "Parent workflow has been terminated with reason: enough"
    assert grandchild.header.status == "TERMINATED"
    assert statuses(run) == {"s": "CANCELED"}
    # It ends once: its own word does not come back to the parent.
    assert run.header.reason == "enough"
    rows = dict(runs.rows[child.id])
    runs.apply(child, Terminated(runs.now_ms, "again", by_parent=True))
    assert runs.rows[child.id] == rows


def test_pause_does_not_reach_children() -> None:
    runs = family()
    run = runs.start(plan_of([sub()]))
    runs.apply(run, Paused(runs.now_ms))
    child = runs.child_of(run, "s")
    runs.work(child, "a")
    assert child.header.status == "COMPLETED"
    assert (statuses(run)["s"], run.header.status) == ("COMPLETED", "PAUSED")


def test_a_task_completed_from_outside_leaves_its_child_alone() -> None:
    runs = family()
    run = runs.start(plan_of([sub()]))
    runs.update(run, "s", output={"mine": 1})
    assert run.header.status == "COMPLETED"
    assert run.workflow_output() == {"mine": 1}
    child = runs.child_of(run, "s")
    assert child.header.status == "RUNNING"
    runs.work(child, "a")
    assert run.workflow_output() == {"mine": 1}


# -- upwards: revival


def three_levels(**fields: Any) -> tuple[Runs, list[Any]]:
    middle = plan_of([sub("t", "c", **fields)], name="m")
    runs = Runs(definitions={"c": child_plan(), "m": middle})
    top = plan_of(
        [
            step("f", "FORK_JOIN", forkTasks=[[sub("s", "m")], [step("b")]]),
            step("j", "JOIN", joinOn=["s", "b"]),
        ]
    )
    run = runs.start(top)
    child = runs.child_of(run, "s")
    return runs, [run, child, runs.child_of(child, "t")]


@pytest.mark.parametrize("command", [Retried, Restarted, Rerun])
def test_a_grandchild_that_goes_on_brings_all_above_back(command: Any) -> None:
    runs, (run, child, grandchild) = three_levels()
    runs.work(grandchild, "a", "FAILED")
    assert [each.header.status for each in (run, child, grandchild)] == ["FAILED"] * 3
    assert statuses(run) == {"f": "COMPLETED", "s": "FAILED", "b": "CANCELED", "j": "CANCELED"}
    runs.apply(grandchild, command(runs.now_ms))
    assert [each.header.status for each in (run, child, grandchild)] == ["RUNNING"] * 3
    assert statuses(run) == {
        "f": "COMPLETED",
        "s": "IN_PROGRESS",
        "b": "SCHEDULED",
        "j": "IN_PROGRESS",
    }
    # The sibling goes on under its own id.
    assert (run.by_ref["b"].number, run.by_ref["b"].retry_count) == (3, 1)
    runs.work_all()
    assert [each.header.status for each in (run, child, grandchild)] == ["COMPLETED"] * 3


def test_an_optional_parent_task_stops_the_revival() -> None:
    runs, (run, child, grandchild) = three_levels(optional=True)
    runs.work(grandchild, "a", "FAILED")
    assert child.header.status == "COMPLETED"
    runs.apply(grandchild, Retried(runs.now_ms))
    assert (grandchild.header.status, child.header.status) == ("RUNNING", "COMPLETED")
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_a_superseded_child_lives_on_alone() -> None:
    runs = family()
    run = runs.start(plan_of([sub()]))
    first = runs.child_of(run, "s")
    runs.work(first, "a", "FAILED")
    runs.apply(run, Retried(runs.now_ms))
    second = runs.child_of(run, "s")
    runs.apply(first, Retried(runs.now_ms))
    assert run.by_ref["s"].sub_workflow_id == second.id
    runs.work(first, "a")
    assert statuses(run)["s"] == "IN_PROGRESS"
    runs.apply(run, ChildRevived(runs.now_ms, 99, first.id))
    runs.work(second, "a")
    assert run.header.status == "COMPLETED"


def test_siblings_that_were_terminated_go_on_with_the_one_that_is_retried() -> None:
    runs = family()
    fork = [
        step("f", "FORK_JOIN", forkTasks=[[sub("s")], [sub("t")]]),
        step("j", "JOIN", joinOn=["s", "t"]),
    ]
    run = runs.start(plan_of(fork))
    first, second = runs.child_of(run, "s"), runs.child_of(run, "t")
    runs.work(first, "a", "FAILED")
    assert second.header.status == "TERMINATED"
    runs.apply(first, Retried(runs.now_ms))
    assert (second.header.status, statuses(run)["t"]) == ("RUNNING", "IN_PROGRESS")
    assert runs.child_of(run, "t") is second
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_a_sibling_that_cannot_go_on_tells_its_end_again() -> None:
    runs = family()
    fork = [
        step("f", "FORK_JOIN", forkTasks=[[sub("s")], [sub("t")]]),
        step("j", "JOIN", joinOn=["s", "t"]),
    ]
    run = runs.start(plan_of(fork))
    second = runs.child_of(run, "t")
    # Somebody calls the task failed while its child goes on and completes.
    runs.update(run, "t", "FAILED", reason="said so")
    runs.work(second, "a", output={"n": 2})
    assert (second.header.status, statuses(run)["t"]) == ("COMPLETED", "FAILED")
    first = runs.child_of(run, "s")
    runs.apply(first, Restarted(runs.now_ms))
    assert output_of(run, "t") == {"n": 2, "subWorkflowId": second.id}
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_a_child_in_a_loop_opens_the_loop_again() -> None:
    runs = family()
    loop = step("l", "DO_WHILE", loopCondition="$.l['iteration'] < 2", loopOver=[sub()])
    run = runs.start(plan_of([loop, step("z")]))
    runs.work(runs.child_of(run, "s__1"), "a")
    runs.work(runs.child_of(run, "s__2"), "a")
    runs.work(run, "z")
    assert run.header.status == "COMPLETED"
    runs.apply(runs.child_of(run, "s__1"), Restarted(runs.now_ms))
    assert statuses(run) == {
        "l": "IN_PROGRESS",
        "s__1": "IN_PROGRESS",
        "s__2": "COMPLETED",
        "z": "COMPLETED",
    }
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_a_parent_that_still_runs_waits_for_its_child_again() -> None:
    runs = family()
    fork = [
        step("f", "FORK_JOIN", forkTasks=[[sub("s", permissive=True)], [step("b")]]),
        step("j", "JOIN", joinOn=["s", "b"]),
    ]
    run = runs.start(plan_of(fork))
    child = runs.child_of(run, "s")
    runs.work(child, "a", "FAILED")
    assert run.header.status == "RUNNING"
    runs.apply(child, Retried(runs.now_ms))
    assert run.waiting == {4: 2}
    runs.work(run, "b")
    assert statuses(run)["j"] == "IN_PROGRESS"
    runs.work(child, "a")
    assert run.header.status == "COMPLETED"


def test_retry_of_a_parent_starts_a_new_child() -> None:
    runs = family()
    run = runs.start(plan_of([sub()]))
    first = runs.child_of(run, "s")
    runs.work(first, "a", "FAILED")
    runs.apply(run, Retried(runs.now_ms))
    assert runs.child_of(run, "s") is not first
    assert input_of(run, "s")["subWorkflowName"] == "c"
    assert "subWorkflowId" not in output_of(run, "s") or (
        output_of(run, "s")["subWorkflowId"] != first.id
    )


def test_rerun_from_a_child_keeps_what_runs_beside_it() -> None:
    runs = family()
    fork = [
        step("f", "FORK_JOIN", forkTasks=[[sub("s")], [step("b"), step("c")]]),
        step("j", "JOIN", joinOn=["s", "c"]),
    ]
    run = runs.start(plan_of(fork))
    first = runs.child_of(run, "s")
    runs.work(run, "b")
    runs.work(first, "a", "FAILED")
    runs.apply(run, Rerun(runs.now_ms, run.by_ref["s"].number, task_input=b'{"ignored":1}'))
    assert statuses(run) == {
        "f": "COMPLETED",
        "s": "IN_PROGRESS",
        "b": "COMPLETED",
        "j": "IN_PROGRESS",
        "c": "SCHEDULED",
    }
    assert runs.child_of(run, "s") is not first
    runs.work_all()
    assert run.header.status == "COMPLETED"


# -- failure workflows


def test_a_failed_run_starts_its_failure_workflow() -> None:
    runs = Runs(definitions={"fix": child_plan(name="fix")})
    plan = plan_of([step("a")], task_defs=[{"name": "a", "retryCount": 0}], failureWorkflow="fix")
    run = runs.start(plan, {"n": 1, "reason": "mine"}, correlation_id="corr")
    runs.work(run, "a", "FAILED", reason="no")
    fix = runs.executions[run.header.failure_workflow]
    value = fix.workflow_input()
    assert (value["workflowId"], value["failureStatus"]) == (run.id, "FAILED")
    assert value["failureTaskId"] == run.task_id(1)
    assert value["n"] == 1
    assert (fix.header.parent_id, fix.header.correlation_id) == (None, "corr")
    assert run.workflow_output() == {"conductor.failure_workflow": fix.id}
    # Failing again, it has another one.
    runs.apply(run, Retried(runs.now_ms))
    assert run.header.failure_workflow == ""
    runs.work(run, "a", "FAILED")
    assert run.header.failure_workflow not in ("", "?", fix.id)
    assert len(runs.executions) == 3


def test_a_failure_workflow_that_is_not_defined() -> None:
    runs = Runs()
    plan = plan_of([step("a")], failureWorkflow="nobody")
    run = runs.start(plan)
    runs.work(run, "a", "FAILED_WITH_TERMINAL_ERROR")
    assert run.workflow_output() == {
        "conductor.failure_workflow": "Error workflow nobody failed to start.  reason: No such "
        "workflow defined. name=nobody, version=null"
    }


@pytest.mark.parametrize("name", ["${workflow.input.x}", "$workflow.input.x"])
@pytest.mark.parametrize("given", ["fix", None, 5])
def test_the_name_of_a_failure_workflow_may_come_from_the_input(name: str, given: Any) -> None:
    runs = Runs(definitions={"fix": child_plan(name="fix")})
    run = runs.start(plan_of([step("a")], failureWorkflow=name), {"x": given})
    runs.work(run, "a", "FAILED_WITH_TERMINAL_ERROR")
    assert bool(run.header.failure_workflow) is (given == "fix")


def test_nothing_is_compensated_after_an_operator_or_a_completion() -> None:
    runs = Runs(definitions={"fix": child_plan(name="fix")})
    ends = step("t", "TERMINATE", inputParameters={"terminationStatus": "COMPLETED"})
    plan = plan_of([step("a"), ends], failureWorkflow="fix")
    run = runs.start(plan)
    runs.apply(run, Terminated(runs.now_ms, "enough"))
    other = runs.start(plan)
    runs.work(other, "a")
    assert run.header.failure_workflow == other.header.failure_workflow == ""
    assert len(runs.executions) == 2


# -- START_WORKFLOW


def start(value: Any) -> Json:
    return step("s", "START_WORKFLOW", inputParameters={"startWorkflow": value})


def test_start_workflow_goes_on_without_waiting() -> None:
    runs = Runs()
    run = runs.start(
        plan_of([start({"name": "o", "input": {"a": 1}})]),
        task_to_domain={"*": "d"},
        correlation_id="corr",
    )
    (launched,) = runs.launched
    assert launched.request == {
        "name": "o",
        "input": {"a": 1},
        "taskToDomain": {"*": "d"},
        "correlationId": "corr",
    }
    assert output_of(run, "s") == {"workflowId": launched.workflow_id}
    assert run.header.status == "COMPLETED"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "Missing 'startWorkflow' in input data."),
        ("abc", "Error reading StartWorkflowRequest."),
        ({}, "startWorkflow validation failed. 'name' -> Workflow name cannot be null or empty. "),
        (
            {"name": "o", "priority": 200},
            "startWorkflow validation failed. 'priority' -> priority: 200 should be maximum 99. ",
        ),
        ({"name": "o", "priority": -1}, "startWorkflow validation failed. 'priority' -> "),
        ({"name": "o", "priority": "high"}, "Error reading StartWorkflowRequest."),
        ({"name": "o", "input": None}, "NULL input passed when starting workflow"),
    ],
)
def test_what_cannot_be_started(value: Any, reason: str) -> None:
    runs = Runs()
    run = runs.start(plan_of([start(value)]))
    assert run.by_ref["s"].reason.startswith(reason)
    assert (statuses(run)["s"], runs.launched) == ("FAILED", [])


def test_a_start_that_is_refused_fails_the_task() -> None:
    runs = Runs()
    runs.settle = lambda: None  # type: ignore[method-assign]
    run = runs.start(plan_of([start({"name": "o", "correlationId": "own"})]))
    runs.apply(run, WorkflowLaunched(runs.now_ms, 1, 99, error="late"))
    assert statuses(run)["s"] == "SCHEDULED"
    runs.apply(run, WorkflowLaunched(runs.now_ms, 1, 1, error="No such workflow defined."))
    assert (statuses(run)["s"], run.by_ref["s"].reason) == ("FAILED", "No such workflow defined.")


def test_after_a_crash_the_same_workflow_is_started() -> None:
    runs = Runs()
    asked: list[Any] = []
    runs._carry_out = lambda execution, effect: asked.append(effect)  # type: ignore[method-assign]
    run = runs.start(plan_of([start({"name": "o"})]))
    runs.apply(run, Recovered(runs.now_ms + 9))
    first, second = asked
    assert first.workflow_id == second.workflow_id
    assert first.token != second.token
