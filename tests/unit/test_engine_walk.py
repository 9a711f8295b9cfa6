"""The walk over a definition: what follows what, branches chosen, endings, variables."""

from typing import Any

import pytest

from cluster.engine.definitions import make_snapshot
from cluster.engine.events import Paused, Resumed, WorkflowStarted
from cluster.engine.plan import Plan
from cluster.engine.step import Surroundings
from cluster.ids import NUMBER_MAX
from tests.support.engine import Json, Runs, input_of, output_of, plan_of, statuses, step


def switch(ref: str, cases: Json, default: list[Json] | None = None, **fields: Any) -> Json:
    fields = {"evaluatorType": "value-param", "expression": "v", **fields}
    return step(ref, "SWITCH", decisionCases=cases, defaultCase=default or [], **fields)


def test_steps_run_one_after_the_other() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("a"), step("b")]), {"x": 1})
    assert statuses(run) == {"a": "SCHEDULED"}
    runs.work(run, "a", output={"n": 1})
    assert statuses(run) == {"a": "COMPLETED", "b": "SCHEDULED"}
    runs.work(run, "b", output={"n": 2})
    assert run.header.status == "COMPLETED"
    assert run.workflow_output() == {"n": 2}
    assert runs.ended == [run.id]
    # As in Conductor: nothing was scheduled behind the last one.
    assert [task.executed for task in run.tasks.values()] == [True, False]


def test_a_definition_without_tasks_ends_at_once() -> None:
    snapshot = make_snapshot({"name": "w", "version": 1, "tasks": []}, {}, {})
    run = Runs().start(Plan(snapshot.hash, snapshot.body))
    assert (run.header.status, run.header.reason) == ("COMPLETED", "No tasks found to be executed")


def test_inputs_are_resolved_when_a_step_is_scheduled() -> None:
    runs = Runs()
    late = step("b", inputParameters={"was": "${a.output.n}", "id": "${CPEWF_TASK_ID}"})
    run = runs.start(plan_of([step("a"), late]))
    runs.work(run, "a", output={"n": 7})
    assert input_of(run, "b") == {"was": 7, "id": run.task_id(2)}


def test_the_input_template_of_a_task_definition_fills_gaps_and_nulls() -> None:
    runs = Runs()
    given = step("a", inputParameters={"x": "${workflow.input.none}", "y": 2})
    template = {"x": "${workflow.input.n}", "y": 3, "z": 4}
    run = runs.start(
        plan_of([given], task_defs=[{"name": "a", "inputTemplate": template}]), {"n": 1}
    )
    assert input_of(run, "a") == {"x": 1, "y": 2, "z": 4}


def test_output_parameters_make_the_output() -> None:
    runs = Runs()
    outputs = {"a": "${a.output.n}", "status": "${workflow.status}"}
    run = runs.start(plan_of([step("a")], outputParameters=outputs))
    runs.work(run, "a", output={"n": 3})
    assert run.workflow_output() == {"a": 3, "status": "RUNNING"}


def test_an_ad_hoc_type_is_work_for_whoever_polls_for_it() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("a", "HTTP_LIKE", name="n")]))
    task = run.by_ref["a"]
    assert (task.type, task.name) == ("HTTP_LIKE", "n")
    assert task.number in runs.queue[run.id]


@pytest.mark.parametrize(
    ("value", "ran"),
    [("one", "in_one"), ("two", "in_two"), ("other", "in_default"), (None, "in_default")],
)
def test_a_switch_runs_one_branch_and_goes_on_behind_it(value: Any, ran: str) -> None:
    runs = Runs()
    cases = {"one": [step("in_one")], "two": [step("in_two"), step("more")]}
    plan = plan_of(
        [switch("s", cases, [step("in_default")], inputParameters={"v": value}), step("after")]
    )
    run = runs.start(plan)
    assert statuses(run) == {"s": "COMPLETED", ran: "SCHEDULED"}
    assert output_of(run, "s")["selectedCase"] == ("null" if value is None else value)
    assert input_of(run, "s")["hasChildren"] == "true"
    runs.work_all()
    assert statuses(run)["after"] == "COMPLETED"
    assert ("more" in run.by_ref) == (value == "two")


def test_an_empty_case_of_a_switch_runs_nothing() -> None:
    runs = Runs()
    run = runs.start(
        plan_of([switch("s", {"x": []}, [step("d")], inputParameters={"v": "x"}), step("after")])
    )
    assert statuses(run) == {"s": "COMPLETED", "after": "SCHEDULED"}
    assert "hasChildren" not in input_of(run, "s")


def test_a_switch_without_anything_to_run_is_the_end_too() -> None:
    run = Runs().start(plan_of([switch("s", {"x": [step("a")]}, inputParameters={"v": "y"})]))
    assert run.header.status == "COMPLETED"


def test_a_switch_may_ask_a_script() -> None:
    runs = Runs(scripts=lambda language, source, value: value["v"].upper())
    by_script: Json = {"evaluatorType": "javascript", "expression": "$.v.toUpperCase()"}
    run = runs.start(
        plan_of([switch("s", {"X": [step("a")]}, inputParameters={"v": "x"}, **by_script)])
    )
    assert statuses(run) == {"s": "COMPLETED", "a": "SCHEDULED"}


def bad_script(language: str, source: str, value: Any) -> Any:
    raise ValueError("Error evaluating the script `boom`")


def test_a_switch_whose_script_fails_ends_the_run_unless_it_is_optional() -> None:
    by_script: Json = {"evaluatorType": "javascript", "expression": "throw 'boom'"}
    failing = switch("s", {"x": [step("a")]}, **by_script)
    runs = Runs(scripts=bad_script)
    run = runs.start(plan_of([failing, step("after")]))
    assert run.header.status == "FAILED"
    assert run.header.reason.endswith("reason: 'Error evaluating the script `boom`'")
    run = runs.start(plan_of([{**failing, "optional": True}, step("after")]))
    assert statuses(run) == {"s": "COMPLETED_WITH_ERRORS", "after": "SCHEDULED"}


def test_an_unknown_evaluator_leaves_no_task() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("a"), switch("s", {"x": [step("b")]}, evaluatorType="magic")]))
    runs.work(run, "a")
    assert run.header.status == "FAILED"
    assert run.header.reason == "No evaluator registered for type: magic"
    assert statuses(run) == {"a": "COMPLETED"}


def test_hundreds_of_switches_in_a_row_do_not_fill_the_stack() -> None:
    runs = Runs()
    chain = [switch(f"s{i}", {"x": [step(f"n{i}", "NOOP")]}) for i in range(500)]
    run = runs.start(plan_of(chain))
    assert run.header.status == "COMPLETED"
    assert len(run.tasks) == 500


@pytest.mark.parametrize(("value", "ran"), [("one", "a"), ("empty", "d"), ("other", "d")])
def test_a_decision_takes_an_empty_case_for_none(value: str, ran: str) -> None:
    decision = step(
        "s",
        "DECISION",
        caseValueParam="v",
        inputParameters={"v": value, "more": 1},
        decisionCases={"one": [step("a")], "empty": []},
        defaultCase=[step("d")],
    )
    run = Runs().start(plan_of([decision]))
    assert statuses(run) == {"s": "COMPLETED", ran: "SCHEDULED"}
    assert input_of(run, "s") == {"case": value, "hasChildren": "true"}
    assert output_of(run, "s") == {"caseOutput": [value]}


def test_a_decision_by_a_script() -> None:
    decision = step(
        "s", "DECISION", caseExpression="f($)", decisionCases={"1": [step("a")]}, defaultCase=[]
    )
    run = Runs(scripts=lambda *_: 1).start(plan_of([decision]))
    assert statuses(run) == {"s": "COMPLETED", "a": "SCHEDULED"}
    run = Runs(scripts=bad_script).start(plan_of([decision]))
    assert run.header.status == "FAILED"
    assert run.header.reason == "Error while evaluating script: f($)"
    assert not run.tasks


def test_a_decision_by_a_simple_expression() -> None:
    decision = step(
        "s",
        "DECISION",
        caseExpression="$.v",
        inputParameters={"v": "x"},
        decisionCases={"x": [step("a")]},
    )
    assert "a" in Runs().start(plan_of([decision])).by_ref


def test_set_variable_replaces_key_by_key() -> None:
    runs = Runs()
    sets = step("v", "SET_VARIABLE", inputParameters={"x": [1], "y": "${workflow.input.n}"})
    run = runs.start(plan_of([sets], variables={"x": {"old": 1}, "z": 0}), {"n": 5})
    assert run.workflow_variables() == {"x": [1], "y": 5, "z": 0}


def test_too_large_variables_fail_the_run_and_change_nothing() -> None:
    runs = Runs(surroundings=Surroundings(variables_bytes_max=2048))
    sets = step("v", "SET_VARIABLE", inputParameters={"x": "y" * 3000})
    run = runs.start(plan_of([sets], variables={"x": 1}))
    assert run.by_ref["v"].status == "FAILED_WITH_TERMINAL_ERROR"
    assert "greater than the permissible limit: 2 kilobytes" in run.header.reason
    assert run.workflow_variables() == {"x": 1}


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "TERMINATED"])
def test_terminate_has_the_last_word(status: str) -> None:
    runs = Runs()
    given = {"terminationStatus": status, "workflowOutput": {"x": "${workflow.input.n}"}}
    plan = plan_of(
        [step("t", "TERMINATE", inputParameters=given), step("never")],
        outputParameters={"not": "this"},
    )
    run = runs.start(plan, {"n": 1})
    assert run.header.status == status
    assert run.header.reason == f"Workflow is {status} by TERMINATE task: {run.task_id(1)}"
    assert run.workflow_output() == {"x": 1}
    assert run.header.failed_number == (0 if status == "COMPLETED" else 1)
    assert statuses(run) == {"t": "COMPLETED"}


@pytest.mark.parametrize(("given", "shown"), [(None, {}), ("abc", {"output": "abc"})])
def test_an_output_of_terminate_that_is_no_map(given: Any, shown: Json) -> None:
    value = {"terminationStatus": "COMPLETED", "terminationReason": 5, "workflowOutput": given}
    run = Runs().start(plan_of([step("t", "TERMINATE", inputParameters=value)]))
    assert (run.workflow_output(), run.header.reason) == (shown, "5")


def test_terminate_with_an_invalid_status_fails() -> None:
    value = {"terminationStatus": "${workflow.input.nothing}"}
    run = Runs().start(plan_of([step("t", "TERMINATE", inputParameters=value)]))
    assert statuses(run) == {"t": "FAILED"}
    assert run.header.status == "FAILED"


def dynamic(name: Any) -> Json:
    return step("d", "DYNAMIC", dynamicTaskNameParam="n", inputParameters={"n": name, "q": 1})


def test_a_dynamic_task_becomes_what_its_input_names() -> None:
    runs = Runs(task_defs={"work": {"name": "work", "retryCount": 0}})
    run = runs.start(plan_of([dynamic("work")]))
    task = run.by_ref["d"]
    assert (task.type, task.name, task.status) == ("work", "work", "SCHEDULED")
    runs.work(run, "d")
    assert run.header.status == "COMPLETED"


def test_a_dynamic_task_may_name_a_system_task() -> None:
    run = Runs().start(plan_of([dynamic("NOOP")]))
    assert (run.by_ref["d"].type, run.header.status) == ("NOOP", "COMPLETED")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (None, "Cannot map a dynamic task based on the parameter and input. Parameter= n, input="),
        ("DYNAMIC", "A dynamic task cannot become a DYNAMIC"),
        ("FORK_JOIN_DYNAMIC", "A dynamic task cannot become a FORK_JOIN_DYNAMIC"),
    ],
)
def test_a_dynamic_task_that_cannot_be_made_fails_the_run(name: Any, reason: str) -> None:
    run = Runs().start(plan_of([dynamic(name)]))
    assert run.header.status == "FAILED"
    assert run.header.reason.startswith(reason)
    assert not run.tasks


def test_a_dynamic_task_needs_no_task_definition() -> None:
    run = Runs().start(plan_of([dynamic({"a": 1})]))
    assert (run.by_ref["d"].type, run.by_ref["d"].status) == ("{a=1}", "SCHEDULED")


def test_a_late_or_unknown_event_changes_nothing() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("a")]))
    runs.work(run, "a")
    rows = dict(runs.rows[run.id])
    runs.update(run, "a", "FAILED", {"late": True})
    assert runs.rows[run.id] == rows
    assert run.header.status == "COMPLETED"


def test_a_run_has_a_bounded_number_of_open_tasks() -> None:
    runs = Runs(surroundings=Surroundings(open_tasks_max=3))
    fork = [
        step("f", "FORK_JOIN", forkTasks=[[step(f"b{i}")] for i in range(5)]),
        step("j", "JOIN", joinOn=["b0"]),
    ]
    run = runs.start(plan_of(fork))
    assert run.header.status == "FAILED"
    assert run.header.reason == "A workflow can have at most 3 open tasks"


def test_starting_again_what_has_started_schedules_nothing_twice() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("a")]))
    runs.apply(run, WorkflowStarted(runs.now_ms))
    assert len(run.tasks) == 1


def test_the_domain_of_a_task() -> None:
    seen = {("a", "first"): True}
    runs = Runs(
        surroundings=Surroundings(is_polled=lambda kind, domain, _: seen.get((kind, domain), False))
    )
    plan = plan_of([step("f", "FORK_JOIN", forkTasks=[[step("a")], [step("b")], [step("c")]]),
                    step("j", "JOIN", joinOn=["a"])])  # fmt: skip
    domains = {"a": "other , first", "b": "one,NO_DOMAIN", "*": "all"}
    run = runs.start(plan, task_to_domain=domains)
    assert [run.by_ref[ref].domain for ref in "abc"] == ["first", "", "all"]
    run = runs.start(plan, task_to_domain={"a": "", "b": ","})
    assert [run.by_ref[ref].domain for ref in "abc"] == ["", "", ""]


def test_a_run_ends_when_its_numbers_have_run_out() -> None:
    reason = "A workflow can have at most 1048575 tasks"
    runs = Runs()
    definition = {"name": "a", "retryDelaySeconds": 0}
    run = runs.start(plan_of([step("a"), step("b")], task_defs=[definition]))
    run.header.next_number = NUMBER_MAX + 1
    runs.work(run, "a", "FAILED")
    assert (run.header.status, run.header.reason) == ("FAILED", reason)
    assert not run.by_ref["a"].retried
    run = runs.start(plan_of([step("a"), step("b")]))
    run.header.next_number = NUMBER_MAX + 1
    runs.work(run, "a")
    assert (run.header.status, run.header.reason) == ("FAILED", reason)


def test_a_switch_that_is_answered_while_the_run_is_paused_goes_on_at_resume() -> None:
    runs = Runs(scripts=lambda *_: "x")
    runs.settle, settle = lambda: None, runs.settle  # type: ignore[method-assign]
    by_script: Json = {"evaluatorType": "javascript", "expression": "f($)"}
    run = runs.start(plan_of([switch("s", {"x": [step("a")]}, **by_script)]))
    runs.apply(run, Paused(runs.now_ms))
    runs.settle = settle  # type: ignore[method-assign]
    runs.settle()
    assert statuses(run) == {"s": "COMPLETED"}
    runs.apply(run, Resumed(runs.now_ms))
    assert statuses(run) == {"s": "COMPLETED", "a": "SCHEDULED"}
