"""WAIT, HUMAN, and the tasks that compute: INLINE, LAMBDA, JSON_JQ_TRANSFORM."""

from typing import Any

import pytest

from cluster.engine.events import ScriptEvaluated, TasksRequeued
from tests.support.engine import Json, Runs, output_of, plan_of, statuses, step


def wait(**value: Any) -> Json:
    return step("w", "WAIT", inputParameters=value)


def test_a_wait_ends_when_its_time_has_come() -> None:
    runs = Runs()
    run = runs.start(plan_of([wait(duration="1m 5s")]))
    task = run.by_ref["w"]
    assert (task.status, task.callback_after_s, task.start_ms) == ("IN_PROGRESS", 65, 1_000_000)
    runs.advance(64_999)
    assert task.status == "IN_PROGRESS"
    runs.advance(1)
    assert (task.status, task.output, task.callback_after_s) == ("COMPLETED", b"{}", 65)
    assert run.header.status == "COMPLETED"


def test_a_wait_until() -> None:
    runs = Runs()
    run = runs.start(plan_of([wait(until="1970-01-01 00:17 UTC")]))
    assert run.by_ref["w"].callback_after_s == 20
    runs.advance(20_000)
    assert run.header.status == "COMPLETED"
    run = runs.start(plan_of([wait(until="1970-01-01")]))
    assert run.by_ref["w"].callback_after_s == 0
    runs.advance(0)
    assert run.header.status == "COMPLETED"


@pytest.mark.parametrize("value", [{}, {"duration": None}, {"duration": ""}, {"until": None}])
def test_a_wait_without_a_time_waits_for_somebody(value: Json) -> None:
    runs = Runs()
    run = runs.start(plan_of([wait(**value)]))
    assert run.by_ref["w"].callback_after_s == 2**31 - 1
    assert run.header.due_ms == 0
    runs.update(run, "w", output={"said": 1})
    assert run.workflow_output() == {"said": 1}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"duration": "abc"}, "Not valid duration: abc"),
        ({"until": "abc"}, "Invalid/Unsupported Wait Until format.  Provided: abc"),
        (
            {"duration": "1s", "until": "2030-01-01"},
            "Both 'duration' and 'until' specified. Please provide only one input",
        ),
    ],
)
def test_a_time_that_cannot_be_read(value: Json, reason: str) -> None:
    run = Runs().start(plan_of([wait(**value)]))
    assert (statuses(run)["w"], run.by_ref["w"].reason) == ("FAILED_WITH_TERMINAL_ERROR", reason)
    assert run.header.status == "FAILED"


def test_a_wait_may_be_ended_early_and_its_timer_means_nothing_then() -> None:
    runs = Runs()
    run = runs.start(plan_of([wait(duration="10s"), step("z")]))
    runs.update(run, "w")
    runs.advance(60_000)
    assert statuses(run) == {"w": "COMPLETED", "z": "SCHEDULED"}


def test_human_waits_for_somebody() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("h", "HUMAN", inputParameters={"form": 1})]))
    assert statuses(run) == {"h": "IN_PROGRESS"}
    runs.update(run, "h", "IN_PROGRESS", {"half": 1})
    assert (statuses(run)["h"], output_of(run, "h")) == ("IN_PROGRESS", {"half": 1})
    runs.update(run, "h", output={"done": 1}, merge=True)
    assert output_of(run, "h") == {"half": 1, "done": 1}
    assert run.header.status == "COMPLETED"


def test_a_failed_human_task_is_not_retried() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("h", "HUMAN")]))
    runs.update(run, "h", "FAILED", reason="no")
    assert run.header.status == "FAILED"
    assert len(run.tasks) == 1


# -- scripts


def inline(**value: Any) -> Json:
    return step("i", "INLINE", inputParameters=value)


def test_a_simple_expression_needs_nobody() -> None:
    run = Runs().start(plan_of([inline(expression="$.n", n="${workflow.input.n}")]), {"n": 4})
    assert run.workflow_output() == {"result": 4}


def test_another_script_goes_outside() -> None:
    seen: list[Any] = []

    def script(language: str, source: str, value: Json) -> Any:
        seen.append((language, source, value["n"]))
        return [1]

    run = Runs(scripts=script).start(plan_of([inline(expression="f($)", n=4)]))
    assert seen == [("javascript", "f($)", 4)]
    assert run.workflow_output() == {"result": [1]}


def test_inline_by_value() -> None:
    run = Runs().start(plan_of([inline(evaluatorType="value-param", expression="n", n=4)]))
    assert run.workflow_output() == {"result": 4}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "Empty 'expression' in Inline task's input parameters. A non-empty String value"),
        ({"expression": " "}, "Empty 'expression' in Inline task's input parameters."),
        (
            {"expression": "1", "evaluatorType": "magic"},
            "Unknown evaluator 'magic' in INLINE task.",
        ),
    ],
)
def test_an_inline_task_that_cannot_be_evaluated(value: Json, reason: str) -> None:
    run = Runs().start(plan_of([inline(**value)]))
    task = run.by_ref["i"]
    assert task.status == "FAILED_WITH_TERMINAL_ERROR"
    assert task.reason.startswith(reason)
    assert output_of(run, "i") == {"error": task.reason}


def failing(error: Exception) -> Any:
    def script(*_: Any) -> Any:
        raise error

    return script


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("boom"), "FAILED_WITH_TERMINAL_ERROR"), (TimeoutError("slow"), "FAILED")],
)
def test_an_inline_script_that_fails(error: Exception, status: str) -> None:
    run = Runs(scripts=failing(error)).start(plan_of([inline(expression="f()")]))
    assert (run.by_ref["i"].status, run.by_ref["i"].reason) == (status, str(error))
    assert output_of(run, "i") == {"error": str(error)}


@pytest.mark.parametrize(
    ("type", "key", "language"),
    [("LAMBDA", "scriptExpression", "function"), ("JSON_JQ_TRANSFORM", "queryExpression", "jq")],
)
def test_lambda_and_jq(type: str, key: str, language: str) -> None:
    asked: list[str] = []

    def script(language: str, source: str, value: Json) -> Any:
        asked.append(language)
        return [value["n"], 2]

    plan = plan_of([step("t", type, inputParameters={key: "f", "n": 1})])
    run = Runs(scripts=script).start(plan)
    assert asked == [language]
    expected = {"result": [1, 2]} if type == "LAMBDA" else {"result": 1, "resultList": [1, 2]}
    assert run.workflow_output() == expected
    run = Runs(scripts=failing(ValueError("boom"))).start(plan)
    assert (statuses(run)["t"], output_of(run, "t")) == ("FAILED", {"error": "boom"})
    run = Runs().start(plan_of([step("t", type)]))
    assert (statuses(run)["t"], output_of(run, "t")) == ("FAILED", {})
    assert key in run.by_ref["t"].reason


def test_jq_without_a_result() -> None:
    plan = plan_of([step("t", "JSON_JQ_TRANSFORM", inputParameters={"queryExpression": "empty"})])
    run = Runs(scripts=lambda *_: []).start(plan)
    assert run.workflow_output() == {"result": None, "resultList": []}


def test_an_answer_that_was_not_asked_for_is_ignored() -> None:
    runs = Runs(scripts=lambda *_: 1)
    runs.settle = lambda: None  # type: ignore[method-assign]
    run = runs.start(plan_of([inline(expression="f()"), step("z")]))
    for event in (
        ScriptEvaluated(runs.now_ms, 1, 99, b"1"),
        ScriptEvaluated(runs.now_ms, 2, 1, b"1"),
    ):
        runs.apply(run, event)
    assert statuses(run) == {"i": "IN_PROGRESS"}
    runs.apply(run, ScriptEvaluated(runs.now_ms, 1, 1, None))
    assert output_of(run, "i") == {"result": None}
    rows = dict(runs.rows[run.id])
    runs.apply(run, ScriptEvaluated(runs.now_ms, 1, 1, b"2"))
    assert runs.rows[run.id] == rows


def test_only_work_for_workers_is_put_back_into_queues() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("h", "HUMAN")]))
    runs.apply(run, TasksRequeued(runs.now_ms, "HUMAN"))
    assert statuses(run) == {"h": "IN_PROGRESS"}
