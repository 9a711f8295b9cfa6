"""What operators do to a run: pause, resume, terminate, restart, retry, rerun, skip and more."""

from typing import Any

import pytest

from cluster.engine import control
from cluster.engine.events import (
    CallbacksReset,
    Event,
    Paused,
    Rerun,
    Restarted,
    Resumed,
    Retried,
    TaskSkipped,
    TasksRequeued,
    TaskUpdated,
    Terminated,
    VariablesUpdated,
)
from cluster.engine.model import Execution
from cluster.engine.rows import load
from cluster.engine.step import Surroundings
from cluster.engine.transitions import TaskStatus
from cluster.errors import ClusterError, Conflict, NotFound
from cluster.ids import NUMBER_MAX
from tests.support.engine import Json, Runs, assert_same, input_of, output_of, plan_of, statuses
from tests.support.engine import step as one


def never(*names: str) -> list[Json]:
    return [{"name": name, "retryCount": 0} for name in names]


def chain(*refs: str, **fields: Any) -> tuple[Runs, Execution]:
    runs = Runs()
    return runs, runs.start(plan_of([one(ref) for ref in refs], task_defs=never(*refs), **fields))


def refused(runs: Runs, run: Execution, event: Event, error: type[ClusterError], text: str) -> None:
    """The command is refused, and nothing has changed."""
    with pytest.raises(error, match=text):
        runs.apply(run, event)
    assert_same(run, load(run.id, runs.rows[run.id].items(), lambda _: run.plan))


# -- pause, resume, terminate


def test_a_paused_run_takes_results_and_schedules_nothing() -> None:
    runs, run = chain("a", "b")
    runs.apply(run, Paused(runs.now_ms))
    runs.apply(run, Paused(runs.now_ms))
    runs.work(run, "a")
    assert statuses(run) == {"a": "COMPLETED"}
    runs.advance(5_000)
    runs.apply(run, Resumed(runs.now_ms))
    assert statuses(run) == {"a": "COMPLETED", "b": "SCHEDULED"}
    assert run.header.last_retried_ms == runs.now_ms


def test_a_paused_run_retries_when_it_is_resumed() -> None:
    runs = Runs()
    run = runs.start(plan_of([one("a")], task_defs=[{"name": "a", "retryDelaySeconds": 0}]))
    runs.apply(run, Paused(runs.now_ms))
    runs.work(run, "a", "FAILED")
    assert len(run.tasks) == 1
    runs.apply(run, Resumed(runs.now_ms))
    assert run.by_ref["a"].number == 2


def test_what_fails_while_the_scan_after_a_pause_goes_on_is_retried_once() -> None:
    runs = Runs(surroundings=Surroundings(tasks_per_step_max=5))
    branches = [[one(f"p{i}"), one(f"q{i}")] for i in range(5)]
    fork = [
        one("f", "FORK_JOIN", forkTasks=[*branches, [one("x")]]),
        one("j", "JOIN", joinOn=["x"]),
    ]
    run = runs.start(plan_of(fork, task_defs=[{"name": "x", "retryDelaySeconds": 0}]))
    runs.apply(run, Paused(runs.now_ms))
    for i in range(5):
        runs.work(run, f"p{i}")
    runs.poll(run, "x")
    settle, runs.settle = runs.settle, lambda: None  # type: ignore[method-assign]
    runs.apply(run, Resumed(runs.now_ms))
    assert [kind for kind, _, _ in run.header.work] == ["walk"]
    runs.update(run, "x", "FAILED")
    runs.settle = settle  # type: ignore[method-assign]
    runs.settle()
    assert [task.retry_count for task in run.tasks.values() if task.ref == "x"] == [0, 1]
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_a_loop_goes_on_after_a_pause_between_two_rounds() -> None:
    runs = Runs()
    loop = one("l", "DO_WHILE", loopCondition="$.l['iteration'] < 2", loopOver=[one("a")])
    run = runs.start(plan_of([loop]))
    runs.apply(run, Paused(runs.now_ms))
    runs.work(run, "a__1")
    runs.apply(run, Resumed(runs.now_ms))
    assert statuses(run)["a__2"] == "SCHEDULED"


def test_pause_and_resume_where_they_do_not_fit() -> None:
    runs, run = chain("a")
    refused(runs, run, Resumed(runs.now_ms), Conflict, "is not PAUSED so cannot resume")
    runs.work(run, "a")
    refused(runs, run, Paused(runs.now_ms), Conflict, "status cannot be updated")


def test_terminate() -> None:
    runs, run = chain("a", outputParameters={"was": "${workflow.status}"})
    runs.poll(run, "a")
    runs.apply(run, Terminated(runs.now_ms, "enough"))
    assert (run.header.status, run.header.reason) == ("TERMINATED", "enough")
    assert (statuses(run), runs.queue[run.id]) == ({"a": "CANCELED"}, {})
    assert run.workflow_output() == {"was": "TERMINATED"}
    end_ms = run.header.end_ms
    runs.now_ms += 5
    runs.apply(run, Terminated(runs.now_ms, "again"))
    assert (run.header.reason, run.header.end_ms) == ("enough", end_ms)


def test_terminate_after_the_end() -> None:
    runs, run = chain("a")
    runs.work(run, "a", "FAILED")
    runs.apply(run, Terminated(runs.now_ms, "enough"))
    assert run.header.status == "TERMINATED"
    runs, run = chain("a")
    runs.work(run, "a")
    refused(runs, run, Terminated(1, "x"), Conflict, "Cannot terminate a COMPLETED workflow.")


# -- restart


def test_restart_begins_at_the_top_under_the_same_id() -> None:
    runs, run = chain("a", "b", variables={"n": 1})
    runs.work(run, "a")
    runs.apply(run, VariablesUpdated(runs.now_ms, {"n": 2}))
    runs.work(run, "b", "FAILED")
    runs.now_ms += 1_000
    runs.apply(run, Restarted(runs.now_ms))
    header = run.header
    assert (header.status, header.reason, header.create_ms) == ("RUNNING", "", runs.now_ms)
    assert (header.last_retried_ms, header.failed_number, run.output) == (0, 0, b"{}")
    # Ids are never given out twice, the order of tasks begins anew.
    assert [(task.ref, task.number, task.seq) for task in run.tasks.values()] == [("a", 3, 1)]
    assert run.workflow_variables() == {"n": 2}
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_restart_where_it_does_not_fit() -> None:
    runs, run = chain("a", restartable=False)
    refused(runs, run, Restarted(runs.now_ms), Conflict, "not in terminal state, unable to restart")
    runs.work(run, "a")
    refused(runs, run, Restarted(runs.now_ms), NotFound, "is non-restartable")
    runs, run = chain("a", restartable=False)
    runs.work(run, "a", "FAILED")
    runs.apply(run, Restarted(runs.now_ms))
    assert run.header.status == "RUNNING"


# -- retry


def test_retry_gives_what_failed_another_attempt() -> None:
    runs, run = chain("a", "b")
    runs.work(run, "a", output={"n": 1})
    runs.work(run, "b", "FAILED", {"e": 1}, reason="no")
    runs.now_ms += 1_000
    runs.apply(run, Retried(runs.now_ms))
    task = run.by_ref["b"]
    assert (task.number, task.retry_count, task.retried_number) == (3, 1, 2)
    assert (task.reason, task.output, task.visible_ms) == ("", b"{}", runs.now_ms)
    assert (run.header.status, run.header.reason) == ("RUNNING", "")
    assert run.header.last_retried_ms == runs.now_ms
    runs.work(run, "b", "FAILED")
    runs.apply(run, Retried(runs.now_ms))
    assert run.by_ref["b"].retry_count == 2
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_retry_of_a_terminated_run() -> None:
    runs, run = chain("a")
    runs.apply(run, Terminated(runs.now_ms, "enough"))
    runs.apply(run, Retried(runs.now_ms))
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_retry_of_a_run_that_timed_out_between_two_steps() -> None:
    runs, run = chain("a", "b", timeoutSeconds=5, timeoutPolicy="TIME_OUT_WF")
    runs.apply(run, Paused(runs.now_ms))
    runs.work(run, "a")
    runs.advance(5_000)
    assert run.header.status == "TIMED_OUT"
    runs.apply(run, Retried(runs.now_ms))
    assert statuses(run) == {"a": "COMPLETED", "b": "SCHEDULED"}
    runs.advance(4_999)
    assert run.header.status == "RUNNING"


def test_retry_where_it_does_not_fit() -> None:
    runs, run = chain("a")
    refused(runs, run, Retried(runs.now_ms), NotFound, "still running.  status=RUNNING")
    runs.work(run, "a")
    refused(runs, run, Retried(runs.now_ms), Conflict, "There are no retryable tasks!")
    run = runs.start(plan_of([one("d", "DYNAMIC", dynamicTaskNameParam="n")]))
    refused(runs, run, Retried(runs.now_ms), Conflict, "Workflow has not started yet")


def test_retry_reopens_what_waits() -> None:
    runs = Runs()
    fork = [
        one("f", "FORK_JOIN", forkTasks=[[one("a")], [one("b")], [one("c")]]),
        one("j", "JOIN", joinOn=["a", "b", "c"]),
    ]
    run = runs.start(plan_of(fork, task_defs=never("a", "b", "c")))
    runs.work(run, "c", output={"n": "c"})
    runs.work(run, "a", "FAILED")
    runs.apply(run, Retried(runs.now_ms))
    assert statuses(run) == {
        "f": "COMPLETED",
        "a": "SCHEDULED",
        "b": "SCHEDULED",
        "c": "COMPLETED",
        "j": "IN_PROGRESS",
    }
    assert run.waiting == {5: 2}
    runs.work(run, "a", output={"n": "a"})
    runs.work(run, "b", output={"n": "b"})
    assert output_of(run, "j") == {ref: {"n": ref} for ref in "abc"}
    assert run.header.status == "COMPLETED"


def test_retry_of_a_permissive_failure_makes_its_join_wait_again() -> None:
    runs = Runs()
    fork = [
        one("f", "FORK_JOIN", forkTasks=[[one("a", permissive=True)], [one("b")]]),
        one("j", "JOIN", joinOn=["a", "b"]),
    ]
    run = runs.start(plan_of(fork, task_defs=never("a")))
    runs.work(run, "b")
    runs.work(run, "a", "FAILED", reason="one")
    assert statuses(run)["j"] == "FAILED"
    runs.apply(run, Retried(runs.now_ms))
    assert statuses(run)["j"] == "IN_PROGRESS"
    runs.work(run, "a")
    assert run.header.status == "COMPLETED"


def test_retry_inside_a_loop_goes_on_in_its_round() -> None:
    runs = Runs()
    loop = one("l", "DO_WHILE", loopCondition="$.l['iteration'] < 3", loopOver=[one("a"), one("b")])
    run = runs.start(plan_of([loop], task_defs=never("a", "b")))
    runs.work(run, "a__1", output={"n": 1})
    runs.work(run, "b__1")
    runs.work(run, "a__2", "FAILED")
    assert statuses(run)["l"] == "CANCELED"
    runs.apply(run, Retried(runs.now_ms))
    task = run.by_ref["l"]
    assert (task.status, task.number, task.rounds) == ("IN_PROGRESS", 1, 2)
    runs.work_all()
    assert run.header.status == "COMPLETED"
    assert list(output_of(run, "l")) == ["iteration", "1", "2", "3"]


def test_retry_of_a_loop_whose_condition_failed_asks_again() -> None:
    answers = iter((ValueError("boom"), True, False))

    def script(*_: Any) -> Any:
        answer = next(answers)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    runs = Runs(scripts=script)
    run = runs.start(plan_of([one("l", "DO_WHILE", loopCondition="f()", loopOver=[one("a")])]))
    runs.work(run, "a__1")
    assert statuses(run)["l"] == "FAILED_WITH_TERMINAL_ERROR"
    runs.apply(run, Retried(runs.now_ms))
    assert run.by_ref["l"].retry_count == 1
    runs.work(run, "a__2")
    assert run.header.status == "COMPLETED"


def test_retry_of_a_fork_that_still_looked_for_definitions() -> None:
    runs = Runs(task_defs={"w": {"name": "w"}})
    value = {"forkTaskInputs": [1, 2], "forkTaskName": "w"}
    fork = [one("f", "FORK_JOIN_DYNAMIC", inputParameters=value), one("j", "JOIN")]
    settle = runs.settle
    runs.settle = lambda: None  # type: ignore[method-assign]
    run = runs.start(plan_of(fork))
    runs.apply(run, Terminated(runs.now_ms, "enough"))
    assert statuses(run) == {"f": "CANCELED"}
    runs.apply(run, Retried(runs.now_ms))
    runs.settle = settle  # type: ignore[method-assign]
    runs.settle()
    runs.work_all()
    assert run.header.status == "COMPLETED"
    assert statuses(run)["_w_1"] == "COMPLETED"


def test_what_a_terminate_task_has_ended_it_ends_again() -> None:
    runs = Runs()
    ends = one("t", "TERMINATE", inputParameters={"terminationStatus": "FAILED"})
    fork = [
        one("f", "FORK_JOIN", forkTasks=[[one("a")], [one("b"), ends]]),
        one("j", "JOIN", joinOn=["a"]),
    ]
    run = runs.start(plan_of(fork))
    runs.work(run, "b")
    assert statuses(run)["a"] == "CANCELED"
    runs.apply(run, Retried(runs.now_ms))
    assert run.header.status == "FAILED"
    assert run.header.reason.startswith("Workflow is FAILED by TERMINATE task")
    assert not run.open


def test_retry_of_what_was_skipped_beside_it() -> None:
    runs, run = chain("a", "b", "c")
    runs.apply(run, TaskSkipped(runs.now_ms, "b"))
    runs.work(run, "a", "FAILED")
    runs.apply(run, Retried(runs.now_ms))
    assert "c" not in run.by_ref
    runs.work(run, "a")
    assert statuses(run) == {"a": "COMPLETED", "b": "SKIPPED", "c": "SCHEDULED"}


def test_the_child_a_retry_descends_to() -> None:
    definitions = {"c": plan_of([one("a")], task_defs=never("a"), name="c")}
    child = one("s", "SUB_WORKFLOW", subWorkflowParam={"name": "c", "version": 1})
    loop = one("l", "DO_WHILE", loopCondition="false", loopOver=[child])
    runs = Runs(definitions=definitions)
    for plan, found in ((plan_of([child]), "s"), (plan_of([loop]), "s__1")):
        run = runs.start(plan)
        assert control.failed_child(run) is None
        runs.work(runs.child_of(run, found), "a", "FAILED")
        assert control.failed_child(run) is run.by_ref[found]
    runs, run = chain("a")
    runs.work(run, "a", "FAILED")
    assert control.failed_child(run) is None


# -- rerun


def test_rerun_from_the_top() -> None:
    runs, run = chain("a", "b")
    runs.work(run, "a")
    runs.work(run, "b", "FAILED")
    runs.apply(run, Rerun(runs.now_ms, 0, workflow_input=b'{"n":2}', correlation_id="two"))
    assert (run.workflow_input(), run.header.correlation_id) == ({"n": 2}, "two")
    assert statuses(run) == {"a": "SCHEDULED"}
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_rerun_from_a_task_forgets_what_came_after_it() -> None:
    runs, run = chain("a", "b", "c")
    for ref in "abc":
        runs.work(run, ref, output={"n": 1})
    runs.apply(run, Rerun(runs.now_ms, 2, task_input=b'{"mine":1}'))
    task = run.by_ref["b"]
    assert statuses(run) == {"a": "COMPLETED", "b": "SCHEDULED"}
    assert (task.number, task.output, task.poll_count) == (2, b"{}", 0)
    assert input_of(run, "b") == {"mine": 1}
    assert run.header.next_seq == 3
    runs.work_all()
    assert run.header.status == "COMPLETED"
    assert [task.number for task in run.tasks.values()] == [1, 2, 4]


def test_rerun_where_it_does_not_fit() -> None:
    runs, run = chain("a")
    refused(runs, run, Rerun(runs.now_ms), Conflict, "not in terminal state, unable to rerun")
    runs.work(run, "a")
    refused(runs, run, Rerun(runs.now_ms, 77), NotFound, "not found")


def test_rerun_from_an_old_attempt_forgets_the_later_ones() -> None:
    runs = Runs()
    run = runs.start(plan_of([one("a")], task_defs=[{"name": "a", "retryDelaySeconds": 0}]))
    runs.work(run, "a", "FAILED")
    runs.work(run, "a")
    runs.apply(run, Rerun(runs.now_ms, 1))
    assert list(run.tasks) == [1]
    assert (run.by_ref["a"].status, run.by_ref["a"].retried) == ("SCHEDULED", False)
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_rerun_that_takes_the_retry_of_another_branch_away() -> None:
    runs = Runs()
    fork = [
        one("f", "FORK_JOIN", forkTasks=[[one("a")], [one("b"), one("c")]]),
        one("j", "JOIN", joinOn=["a", "c"]),
    ]
    run = runs.start(plan_of(fork, task_defs=[{"name": "a", "retryDelaySeconds": 0}]))
    runs.work(run, "b")
    runs.work(run, "a", "FAILED")
    runs.work(run, "a")
    runs.work(run, "c")
    c = run.by_ref["c"]
    assert run.by_ref["a"].number > c.number
    runs.apply(run, Rerun(runs.now_ms, c.number))
    # The first attempt is the last one again, and is begun again.
    assert statuses(run) == {
        "f": "COMPLETED",
        "a": "SCHEDULED",
        "b": "COMPLETED",
        "c": "SCHEDULED",
        "j": "IN_PROGRESS",
    }
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_rerun_inside_a_fork_opens_the_join_again() -> None:
    runs = Runs()
    fork = [
        one("f", "FORK_JOIN", forkTasks=[[one("a")], [one("b"), one("c")]]),
        one("j", "JOIN", joinOn=["a", "c"]),
        one("z"),
    ]
    run = runs.start(plan_of(fork))
    runs.work_all()
    assert run.header.status == "COMPLETED"
    runs.apply(run, Rerun(runs.now_ms, run.by_ref["c"].number))
    assert statuses(run) == {
        "f": "COMPLETED",
        "a": "COMPLETED",
        "b": "COMPLETED",
        "c": "SCHEDULED",
        "j": "IN_PROGRESS",
    }
    runs.work_all()
    assert run.header.status == "COMPLETED"
    runs.apply(run, Rerun(runs.now_ms, run.by_ref["a"].number))
    assert statuses(run) == {
        "f": "COMPLETED",
        "a": "SCHEDULED",
        "b": "SCHEDULED",
        "j": "IN_PROGRESS",
    }
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_rerun_from_a_fork_and_from_a_join() -> None:
    runs = Runs()
    fork = [
        one("f", "FORK_JOIN", forkTasks=[[one("a")], [one("b")]]),
        one("j", "JOIN", joinOn=["a", "b"]),
        one("z"),
    ]
    run = runs.start(plan_of(fork))
    runs.work_all()
    runs.apply(run, Rerun(runs.now_ms, run.by_ref["j"].number))
    assert statuses(run)["z"] == "SCHEDULED"
    runs.work_all()
    runs.apply(run, Rerun(runs.now_ms, run.by_ref["f"].number))
    assert statuses(run) == {
        "f": "COMPLETED",
        "a": "SCHEDULED",
        "b": "SCHEDULED",
        "j": "IN_PROGRESS",
    }
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_rerun_from_a_dynamic_fork_reads_its_branches_again() -> None:
    runs = Runs(task_defs={"w": {"name": "w"}})
    value = {"forkTaskInputs": "${workflow.variables.l}", "forkTaskName": "w"}
    fork = [one("f", "FORK_JOIN_DYNAMIC", inputParameters=value), one("j", "JOIN")]
    run = runs.start(plan_of(fork, variables={"l": [1]}))
    runs.work_all()
    run.set_variables(b'{"l":[1,2]}')
    runs.apply(run, Rerun(runs.now_ms, 1))
    assert input_of(run, "j") == {"joinOn": ["_w_0", "_w_1"]}
    runs.work_all()
    assert run.header.status == "COMPLETED"


@pytest.mark.parametrize("type", ["SWITCH", "DECISION"])
def test_rerun_from_a_switch_chooses_again(type: str) -> None:
    switch = one(
        "s",
        type,
        evaluatorType="value-param",
        expression="v",
        caseValueParam="v",
        inputParameters={"v": "${workflow.input.v}"},
        decisionCases={"x": [one("a")], "y": []},
    )
    runs = Runs()
    run = runs.start(plan_of([switch, one("z")]), {"v": "x"})
    runs.work_all()
    runs.apply(run, Rerun(runs.now_ms, 1, workflow_input=b'{"v":"y"}'))
    assert statuses(run) == {"s": "COMPLETED", "z": "SCHEDULED"}
    assert "hasChildren" not in input_of(run, "s")


def test_rerun_inside_a_loop_goes_back_to_that_round() -> None:
    runs = Runs()
    loop = one("l", "DO_WHILE", loopCondition="$.l['iteration'] < 3", loopOver=[one("a"), one("b")])
    run = runs.start(plan_of([loop, one("z")]))
    runs.work_all(lambda run, task: {"ref": task.ref})
    assert run.header.status == "COMPLETED"
    runs.apply(run, Rerun(runs.now_ms, run.by_ref["a__2"].number))
    assert statuses(run) == {
        "l": "IN_PROGRESS",
        "a__1": "COMPLETED",
        "b__1": "COMPLETED",
        "a__2": "SCHEDULED",
    }
    assert run.by_ref["l"].rounds == 2
    runs.work_all(lambda run, task: {"again": task.ref})
    assert run.header.status == "COMPLETED"
    assert output_of(run, "l") == {
        "iteration": 3,
        "1": {"b": {"ref": "b__1"}, "a": {"ref": "a__1"}},
        "2": {"b": {"again": "b__2"}, "a": {"again": "a__2"}},
        "3": {"b": {"again": "b__3"}, "a": {"again": "a__3"}},
    }


def test_rerun_beside_a_loop_begins_the_loop_again_where_it_has_lost_its_tasks() -> None:
    runs = Runs()
    loop = one("l", "DO_WHILE", loopCondition="$.l['iteration'] < 2", loopOver=[one("b")])
    fork = [
        one("f", "FORK_JOIN", forkTasks=[[loop], [one("a")]]),
        one("j", "JOIN", joinOn=["l", "a"]),
    ]
    run = runs.start(plan_of(fork))
    runs.work_all()
    assert run.by_ref["l"].number < run.by_ref["a"].number < run.by_ref["b__1"].number
    runs.apply(run, Rerun(runs.now_ms, run.by_ref["a"].number))
    assert statuses(run) == {
        "f": "COMPLETED",
        "l": "IN_PROGRESS",
        "a": "SCHEDULED",
        "j": "IN_PROGRESS",
        "b__1": "SCHEDULED",
    }
    assert run.by_ref["l"].rounds == 1
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_rerun_from_a_loop_begins_with_its_first_round() -> None:
    runs = Runs()
    loop = one("l", "DO_WHILE", loopCondition="$.l['iteration'] < 2", loopOver=[one("b")])
    run = runs.start(plan_of([one("a"), loop]))
    runs.work_all()
    runs.apply(run, Rerun(runs.now_ms, run.by_ref["l"].number))
    assert (run.by_ref["l"].rounds, statuses(run)["b__1"]) == (1, "SCHEDULED")
    runs.work_all()
    assert run.header.status == "COMPLETED"
    assert list(output_of(run, "l")) == ["iteration", "1", "2"]


def test_rerun_from_an_exclusive_join() -> None:
    switch = one(
        "s",
        "SWITCH",
        evaluatorType="value-param",
        expression="v",
        inputParameters={"v": "x"},
        decisionCases={"x": [one("a")]},
    )
    runs = Runs()
    run = runs.start(plan_of([switch, one("e", "EXCLUSIVE_JOIN", joinOn=["a", "b"]), one("z")]))
    runs.work_all()
    for ref in ("e", "a", "s"):
        runs.apply(run, Rerun(runs.now_ms, run.by_ref[ref].number))
        runs.work_all()
        assert run.header.status == "COMPLETED"
    assert statuses(run)["z"] == "COMPLETED"


# -- skip


def test_the_flow_jumps_over_a_skipped_step() -> None:
    runs, run = chain("a", "b", "c", "d")
    runs.apply(run, TaskSkipped(runs.now_ms, "b", input=b'{"i":1}', output=b'{"o":1}'))
    runs.apply(run, TaskSkipped(runs.now_ms, "c"))
    task = run.by_ref["b"]
    assert (task.status, task.seq, task.type) == ("SKIPPED", 0, "b")
    assert (task.input, task.output) == (b'{"i":1}', b'{"o":1}')
    runs.work(run, "a")
    assert statuses(run)["d"] == "SCHEDULED"
    runs.work(run, "d")
    assert run.header.status == "COMPLETED"


def test_to_skip_the_last_step_is_to_end_with_the_one_before() -> None:
    runs, run = chain("a", "b")
    runs.apply(run, TaskSkipped(runs.now_ms, "b"))
    runs.work(run, "a", output={"n": 1})
    assert run.header.status == "COMPLETED"


def test_a_join_does_not_wait_for_what_is_skipped() -> None:
    runs = Runs()
    fork = [
        one("f", "FORK_JOIN", forkTasks=[[one("a"), one("b")], [one("c")]]),
        one("j", "JOIN", joinOn=["b", "c"]),
    ]
    run = runs.start(plan_of(fork))
    runs.apply(run, TaskSkipped(runs.now_ms, "b"))
    runs.work(run, "c")
    assert statuses(run)["j"] == "COMPLETED"
    runs.work(run, "a")
    assert run.header.status == "COMPLETED"


def test_a_skipped_step_of_a_loop_is_that_of_no_round() -> None:
    runs = Runs()
    loop = one("l", "DO_WHILE", loopCondition="$.l['iteration'] < 2", loopOver=[one("a")])
    run = runs.start(plan_of([one("first"), loop]))
    runs.apply(run, TaskSkipped(runs.now_ms, "a"))
    runs.work_all()
    assert run.header.status == "COMPLETED"
    assert statuses(run)["a__2"] == "COMPLETED"


def test_a_dynamic_fork_whose_join_is_skipped() -> None:
    runs = Runs(task_defs={"w": {"name": "w"}})
    value = {"forkTaskInputs": [1], "forkTaskName": "w"}
    fork = [one("f", "FORK_JOIN_DYNAMIC", inputParameters=value), one("j", "JOIN"), one("z")]
    run = runs.start(plan_of([one("a"), *fork]))
    runs.apply(run, TaskSkipped(runs.now_ms, "j"))
    runs.work(run, "a")
    assert statuses(run)["z"] == "SCHEDULED"
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_skip_where_it_does_not_fit() -> None:
    runs, run = chain("a", "b")
    refused(runs, run, TaskSkipped(1, "a"), Conflict, "has already been processed")
    refused(runs, run, TaskSkipped(1, "x"), NotFound, "does not exist in the WorkflowDefinition")
    number, run.header.next_number = run.header.next_number, NUMBER_MAX + 1
    with pytest.raises(Conflict, match="at most 1048575 tasks"):
        runs.apply(run, TaskSkipped(1, "b"))
    run.header.next_number = number
    runs.apply(run, Paused(runs.now_ms))
    refused(runs, run, TaskSkipped(1, "b"), Conflict, "is not running")


def test_rerun_from_a_skipped_step_does_not_fit() -> None:
    runs, run = chain("a", "b")
    runs.apply(run, TaskSkipped(runs.now_ms, "b"))
    runs.work(run, "a")
    refused(runs, run, Rerun(1, run.by_ref["b"].number), Conflict, "was skipped")


# -- the rest


def test_callbacks_are_reset() -> None:
    runs, run = chain("a", "b")
    runs.poll(run, "a")
    runs.update(run, "a", "IN_PROGRESS", callback_after_s=600)
    runs.apply(run, CallbacksReset(runs.now_ms))
    task = run.by_ref["a"]
    assert (task.callback_after_s, task.visible_ms, task.delivery) == (0, runs.now_ms, 3)
    runs.work(run, "a")
    runs.work(run, "b")
    refused(runs, run, CallbacksReset(1), Conflict, "Workflow is in terminal state. Status")


def test_tasks_are_put_back_into_their_queue() -> None:
    runs, run = chain("a")
    runs.poll(run, "a")
    runs.apply(run, TasksRequeued(runs.now_ms, "other"))
    assert run.by_ref["a"].status == "IN_PROGRESS"
    runs.apply(run, TasksRequeued(runs.now_ms, "a"))
    task = run.by_ref["a"]
    assert (task.status, task.delivery) == ("SCHEDULED", 2)
    # The worker that had it may still report.
    runs.update(run, "a")
    assert run.header.status == "COMPLETED"


def test_variables_are_updated_key_by_key() -> None:
    runs, run = chain("a", variables={"x": 1, "y": 1})
    runs.apply(run, VariablesUpdated(runs.now_ms, {"y": 2}))
    assert run.workflow_variables() == {"x": 1, "y": 2}


def test_an_unknown_task_cannot_be_updated() -> None:
    runs, run = chain("a")
    event = TaskUpdated(runs.now_ms, 9, TaskStatus.COMPLETED)
    refused(runs, run, event, NotFound, "No such task found by id")


def test_a_loop_that_is_ended_from_outside_lets_its_round_end() -> None:
    runs = Runs()
    fork = [
        one("f", "FORK_JOIN", forkTasks=[[one("a"), one("b")], [one("c")]]),
        one("j", "JOIN", joinOn=["b"]),
    ]
    loop = one("l", "DO_WHILE", loopCondition="true", loopOver=fork)
    outer = one("m", "DO_WHILE", loopCondition="false", loopOver=[loop])
    run = runs.start(plan_of([outer]))
    runs.update(run, "l__1", output={"mine": 1})
    assert run.header.status == "RUNNING"
    runs.work_all()
    assert run.header.status == "COMPLETED"
    run = runs.start(plan_of([loop]))
    runs.update(run, "l", output={"mine": 1})
    assert run.header.status == "RUNNING"
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_what_has_not_begun_cannot_be_called_in_progress() -> None:
    definitions = {"c": plan_of([one("a")], name="c")}
    runs = Runs(definitions=definitions)
    settle, runs.settle = runs.settle, lambda: None  # type: ignore[method-assign]
    child = one("s", "SUB_WORKFLOW", subWorkflowParam={"name": "c", "version": 1})
    run = runs.start(plan_of([child]))
    runs.update(run, "s", "IN_PROGRESS")
    assert statuses(run)["s"] == "SCHEDULED"
    runs.settle = settle  # type: ignore[method-assign]
    runs.settle()
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_an_output_that_is_too_large_fails_the_task() -> None:
    runs = Runs(surroundings=Surroundings(task_output_bytes_max=2048))
    run = runs.start(plan_of([one("a")]))
    runs.work(run, "a", output={"x": "y" * 3000})
    assert (statuses(run)["a"], run.by_ref["a"].output) == ("FAILED_WITH_TERMINAL_ERROR", b"{}")
    assert "permissible limit: 2 kilobytes" in run.by_ref["a"].reason


def test_a_report_may_name_a_child_of_its_own() -> None:
    runs, run = chain("a")
    runs.work(run, "a", "IN_PROGRESS", sub_workflow_id="other")
    assert run.by_ref["a"].sub_workflow_id == "other"


def test_the_engines_own_executors_keep_what_is_in_progress() -> None:
    runs, run = chain("a")
    runs.poll(run, "a")
    runs.update(run, "a", "IN_PROGRESS", by_worker=False)
    assert run.by_ref["a"].status == "IN_PROGRESS"
