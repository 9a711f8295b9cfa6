"""An execution as rows: small headers, payloads in rows of their own, and the way back."""

from typing import Any

import msgspec
import pytest

from cluster.engine import payloads, views
from cluster.engine.events import Paused, Restarted, TaskPolled
from cluster.engine.model import REASON_CHARS_MAX, Header, Task
from cluster.engine.rows import (
    HEADER_ROW,
    changed_rows,
    decode_header,
    load,
    state_rows,
    task_rows,
)
from tests.support.engine import Json, Runs, plan_of, step


def changes(runs: Runs, run: Any, event: Any) -> dict[int, bytes]:
    """The rows that one event writes."""
    from cluster.engine.decider import decide

    decide(run, event, runs.surroundings)
    rows = changed_rows(run)
    runs.rows[run.id].update(rows)
    return dict(rows)


def test_a_poll_writes_two_small_rows() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("a")]))
    rows = changes(runs, run, TaskPolled(runs.now_ms, 1, "w", 1))
    assert sorted(rows) == [0, 20]
    assert sum(map(len, rows.values())) < 400


def test_a_large_payload_is_written_once() -> None:
    runs = Runs()
    large = {"x": "y" * 5_000}
    run = runs.start(plan_of([step("a", inputParameters={"all": "${workflow.input}"})]), large)
    assert len(runs.rows[run.id][21]) > 5_000
    rows = changes(runs, run, TaskPolled(runs.now_ms, 1, "w", 1))
    assert sorted(rows) == [0, 20]
    assert len(rows[20]) < 300
    runs.update(run, "a", output=large)
    assert runs.rows[run.id][22] == run.by_ref["a"].output
    loaded = load(run.id, runs.rows[run.id].items(), lambda _: run.plan)
    assert loaded.task_input(loaded.tasks[1]) == {"all": large}
    assert loaded.task_output(loaded.tasks[1]) == large


def test_a_copy_for_another_node_holds_all_and_changes_nothing() -> None:
    runs = Runs()
    large = {"x": "y" * 5_000}
    definition = plan_of([step("a", inputParameters={"all": "${workflow.input}"}), step("b")])
    run = runs.start(definition, large)
    runs.work(run, "a", output=large)
    tasks = list(run.tasks.values())
    rows = state_rows(run) + task_rows(tasks)
    stored = {number: data for number, data in runs.rows[run.id].items() if data}
    assert dict(rows) == stored
    copy = load(run.id, rows, lambda _: run.plan)
    assert copy.task_output(copy.tasks[1]) == run.task_output(run.tasks[1]) == large
    assert (run.parts, run.changed) == (0, {})


def test_a_payload_that_was_large_and_is_small_now() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("a")]))
    runs.poll(run, "a")
    runs.update(run, "a", "IN_PROGRESS", {"x": "y" * 5_000})
    runs.update(run, "a", "IN_PROGRESS", {"x": 1})
    loaded = load(run.id, runs.rows[run.id].items(), lambda _: run.plan)
    assert loaded.task_output(loaded.tasks[1]) == {"x": 1}


def test_a_removed_task_leaves_no_row() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("a", inputParameters={"n": "x" * 3_000})]))
    runs.work(run, "a", output={"x": "y" * 3_000})
    runs.apply(run, Restarted(runs.now_ms))
    kept = [number for number, data in runs.rows[run.id].items() if data and number >= 16]
    assert sorted(kept) == [24, 25]


def test_a_pause_alone_is_saved() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("a")]))
    runs.apply(run, Paused(runs.now_ms))
    assert decode_header(runs.rows[run.id][HEADER_ROW]).status == "PAUSED"


def test_the_header_stays_small_however_long_the_reasons_are() -> None:
    tasks: list[Json] = [step("s", "SUB_WORKFLOW", subWorkflowParam={"name": "c0", "version": 1})]
    definitions = {"c9": plan_of([step("a")], name="c9")}
    for level in range(9):
        inner = step("s", "SUB_WORKFLOW", subWorkflowParam={"name": f"c{level + 1}", "version": 1})
        definitions[f"c{level}"] = plan_of([inner], name=f"c{level}")
    runs = Runs(definitions=definitions)
    run = runs.start(plan_of(tasks))
    leaf = next(each for each in runs.executions.values() if each.header.name == "c9")
    runs.work(leaf, "a", "FAILED_WITH_TERMINAL_ERROR", reason="why " * 10_000)
    assert run.header.status == "FAILED"
    assert len(leaf.by_ref["a"].reason) == REASON_CHARS_MAX
    assert run.header.reason.startswith("Task ")
    for each in runs.executions.values():
        assert len(runs.rows[each.id][HEADER_ROW]) < 2_048


def test_the_header_of_a_wide_run_stays_small() -> None:
    runs = Runs()
    fork = [
        step("f", "FORK_JOIN", forkTasks=[[step(f"n{i}", "NOOP")] for i in range(600)]),
        step("j", "JOIN", joinOn=["n0"]),
    ]
    sizes = []
    decide = runs._decide

    def watched(run: Any, event: Any) -> None:
        decide(run, event)
        sizes.append(len(runs.rows[run.id][HEADER_ROW]))

    runs._decide = watched  # type: ignore[method-assign, assignment]
    run = runs.start(plan_of(fork))
    assert run.header.status == "COMPLETED"
    assert len(sizes) > 3
    assert max(sizes) < 6_000


def test_what_is_no_header_is_refused() -> None:
    with pytest.raises(ValueError):
        decode_header(b"\x01")


def test_rows_of_an_older_version_are_read() -> None:
    """Fields are added at the end only: a row without them has their defaults."""
    runs = Runs()
    run = runs.start(plan_of([step("a")]))
    header = msgspec.msgpack.decode(runs.rows[run.id][HEADER_ROW])
    old = msgspec.msgpack.encode(header[:5])
    assert msgspec.msgpack.decode(old, type=Header).next_number == 1
    task = msgspec.msgpack.decode(runs.rows[run.id][20])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(task[:7]), type=Task).ref == "a"


@pytest.mark.parametrize("value", [{}, {"a": [1, 2.5, None, True, "ä"]}, {"n": 2**70}])
def test_payloads_come_back(value: Json) -> None:
    assert payloads.load(payloads.dump(value)) == value
    assert payloads.load(payloads.dump_map(value)) == value


def test_payloads_at_the_edges() -> None:
    assert payloads.load(b"") == {}
    assert payloads.dump_map({}) is payloads.EMPTY
    with pytest.raises(ValueError):
        payloads.load(b"{")


# -- what can be seen of an execution


def test_expressions_see_every_field_there_is() -> None:
    runs = Runs()
    names = (
        "taskType status referenceTaskName retryCount correlationId pollCount taskDefName "
        "scheduledTime startTime endTime workflowInstanceId taskId reasonForIncompletion "
        "callbackAfterSeconds workerId iteration nothing"
    ).split()
    workflow = (
        "status workflowId workflowType version correlationId parentWorkflowId "
        "parentWorkflowTaskId reasonForIncompletion schemaVersion nothing"
    ).split()
    outputs = {name: f"${{a.{name}}}" for name in names}
    outputs |= {f"w_{name}": f"${{workflow.{name}}}" for name in workflow}
    outputs |= {
        "input": "${a.input.x}",
        "output": "${a.output.y}",
        "v": "${workflow.variables.n}",
        "i": "${workflow.input.i}",
        "o": "${workflow.output}",
        "env": "${workflow.env.HOME_PAGE}",
        "absent": "${nobody.output}",
        "all": "${a}",
        "every": "${$..y}",
        "whole": "${workflow}",
    }
    plan = plan_of(
        [step("a", inputParameters={"x": 1})], outputParameters=outputs, variables={"n": 2}
    )
    from cluster.engine.step import Surroundings

    runs = Runs(surroundings=Surroundings(environment={"HOME_PAGE": "here"}))
    run = runs.start(plan, {"i": 3}, correlation_id="corr", parent_id=None)
    runs.work(run, "a", output={"y": 4}, worker_id="w")
    seen = run.workflow_output()
    assert [seen[name] for name in names] == [
        "a", "COMPLETED", "a", 0, "corr", 1, "a", runs.now_ms, runs.now_ms, runs.now_ms,
        run.id, run.task_id(1), None, 0, "w", 0, None,
    ]  # fmt: skip
    assert [seen[f"w_{name}"] for name in workflow] == [
        "RUNNING", run.id, "w", 1, "corr", None, None, None, 2, None,
    ]  # fmt: skip
    assert (seen["input"], seen["output"], seen["v"], seen["i"]) == (1, 4, 2, 3)
    assert (seen["o"], seen["env"], seen["absent"]) == ({}, "here", None)
    assert seen["all"]["output"] == {"y": 4}
    assert 4 in seen["every"]
    assert seen["whole"]["variables"] == {"n": 2}


def test_a_child_names_the_task_of_its_parent() -> None:
    child = plan_of([step("a")], outputParameters={"p": "${workflow.parentWorkflowTaskId}"})
    runs = Runs(definitions={"c": child})
    sub = step("s", "SUB_WORKFLOW", subWorkflowParam={"name": "c", "version": 1})
    run = runs.start(plan_of([sub]))
    runs.work(runs.child_of(run, "s"), "a")
    assert run.task_output(run.by_ref["s"])["p"] == run.task_id(1)


def test_the_names_of_failed_tasks() -> None:
    runs = Runs()
    definition = {"name": "a", "retryCount": 1, "retryDelaySeconds": 0}
    run = runs.start(plan_of([step("x", name="a"), step("b")], task_defs=[definition]))
    runs.work(run, "x", "FAILED")
    assert views.failed_names(run) == ([], [])
    runs.work(run, "x", "FAILED")
    assert views.failed_names(run) == (["x"], ["a"])


def test_what_an_open_join_and_loop_show() -> None:
    runs = Runs()
    fork = [
        step("f", "FORK_JOIN", forkTasks=[[step("a")], [step("b")]]),
        step("j", "JOIN", joinOn=["a", "b"]),
    ]
    run = runs.start(plan_of(fork))
    runs.work(run, "a", output={"n": 1})
    assert views.output_of(run, run.by_ref["j"]) == b'{"a":{"n":1}}'
    assert views.output_of(run, run.by_ref["a"]) == b'{"n":1}'
