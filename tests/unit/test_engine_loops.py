"""DO_WHILE: rounds, conditions, lists, what is kept of them, and loops within loops."""

from typing import Any

import pytest

from cluster.engine import views
from cluster.engine.events import Paused, Resumed, Retried, Terminated
from cluster.engine.model import Execution
from cluster.engine.rows import load
from cluster.engine.step import Surroundings
from tests.support.engine import Json, Runs, input_of, output_of, plan_of, statuses, step


def loop(*body: Json, ref: str = "l", rounds: int = 3, **fields: Any) -> Json:
    condition = {"loopCondition": f"$.{ref}['iteration'] < {rounds}", **fields}
    return step(ref, "DO_WHILE", loopOver=list(body), **condition)


def never(*names: str) -> list[Json]:
    return [{"name": name, "retryCount": 0} for name in names]


def test_rounds_until_the_condition_fails() -> None:
    runs = Runs()
    run = runs.start(plan_of([loop(step("a"), step("b")), step("z")]))
    assert statuses(run) == {"l": "IN_PROGRESS", "a__1": "SCHEDULED"}
    for number in (1, 2, 3):
        assert (run.by_ref["l"].rounds, run.by_ref[f"a__{number}"].iteration) == (number, number)
        runs.work(run, f"a__{number}", output={"n": number})
        runs.work(run, f"b__{number}")
    assert output_of(run, "l") == {
        "iteration": 3,
        "1": {"b": {}, "a": {"n": 1}},
        "2": {"b": {}, "a": {"n": 2}},
        "3": {"b": {}, "a": {"n": 3}},
    }
    assert statuses(run)["z"] == "SCHEDULED"


def test_the_output_while_it_runs_has_the_rounds_that_are_over() -> None:
    runs = Runs()
    run = runs.start(plan_of([loop(step("a"))]))
    runs.work(run, "a__1", output={"n": 1})
    shown = views.output_value(run, run.by_ref["l"])
    assert shown == {"iteration": 2, "1": {"a": {"n": 1}}}


def test_names_without_a_suffix_mean_the_latest_round() -> None:
    runs = Runs()
    body = [step("a"), step("b", inputParameters={"n": "${a.output.n}", "it": "${a.iteration}"})]
    run = runs.start(plan_of([loop(*body)]))
    runs.work(run, "a__1", output={"n": 1})
    runs.work(run, "b__1")
    runs.work(run, "a__2", output={"n": 2})
    assert input_of(run, "b__2") == {"n": 2, "it": 2}


@pytest.mark.parametrize(
    ("value", "another"),
    [(True, True), (False, False), (2, True), (0.5, True), (0, False), (-1, False)]
    + [(value, False) for value in (None, "true", "x", {"a": 1}, [1])],
)
def test_what_a_condition_may_yield(value: Any, another: bool) -> None:
    runs = Runs(scripts=lambda *_: value)
    run = runs.start(plan_of([loop(step("a"), loopCondition="f($)")]))
    runs.work(run, "a__1")
    assert ("a__2" in run.by_ref) is another


def test_what_a_condition_sees() -> None:
    seen: list[Json] = []

    def script(language: str, source: str, value: Json) -> Any:
        seen.append(value)
        return False

    runs = Runs(scripts=script)
    given = {"x": "${workflow.variables.n}"}
    condition = "f($.a, $.x, $.l)"
    plan = plan_of(
        [loop(step("a"), loopCondition=condition, inputParameters=given)], variables={"n": 1}
    )
    run = runs.start(plan)
    run.set_variables(b'{"n":2}')
    runs.work(run, "a__1", output={"n": 5})
    assert seen == [{"x": 2, "l": {"iteration": 1, "1": {"a": {"n": 5}}}, "a": {"n": 5}}]
    assert input_of(run, "l") == {"x": 1}


def test_a_condition_that_asks_for_the_number_of_rounds_is_not_sent_them_all() -> None:
    seen: list[Json] = []

    def script(language: str, source: str, value: Json) -> Any:
        seen.append(value["l"])
        return value["l"]["iteration"] < 2

    runs = Runs(scripts=script)
    run = runs.start(plan_of([loop(step("a"), loopCondition="f($['l']['iteration']) < 2")]))
    runs.work_all()
    assert seen == [{"iteration": 1}, {"iteration": 2}]
    assert run.header.status == "COMPLETED"


def test_a_condition_that_cannot_be_evaluated_fails_the_loop() -> None:
    def script(*_: Any) -> Any:
        raise ValueError("boom")

    runs = Runs(scripts=script)
    run = runs.start(plan_of([loop(step("a"), loopCondition="f()")]))
    runs.work(run, "a__1", output={"n": 1})
    task = run.by_ref["l"]
    assert task.status == "FAILED_WITH_TERMINAL_ERROR"
    assert task.reason == "Unable to evaluate condition f(), exception boom"
    assert output_of(run, "l") == {"iteration": 1, "1": {"a": {"n": 1}}}


def test_a_loop_without_a_condition_runs_once() -> None:
    runs = Runs()
    run = runs.start(plan_of([loop(step("a"), loopCondition=" ")]))
    runs.work(run, "a__1")
    assert run.header.status == "COMPLETED"


# -- lists


@pytest.mark.parametrize("how", ["items", "_items"])
def test_one_round_for_each_item(how: str) -> None:
    runs = Runs()
    given: Json = {"items": "${workflow.input.list}"}
    if how == "_items":
        given = {"inputParameters": {"_items": "${workflow.input.list}"}}
    body = step("a", inputParameters={"item": "${l.output.loopItem}", "i": "${l.output.loopIndex}"})
    run = runs.start(plan_of([loop(body, loopCondition="", **given)]), {"list": ["x", "y"]})
    assert input_of(run, "a__1") == {"item": "x", "i": 0}
    runs.work(run, "a__1")
    assert input_of(run, "a__2") == {"item": "y", "i": 1}
    runs.work(run, "a__2")
    assert output_of(run, "l") == {
        "iteration": 2,
        "loopIndex": 1,
        "loopItem": "y",
        "1": {"a": {}},
        "2": {"a": {}},
    }


@pytest.mark.parametrize("items", [[], None])
def test_an_empty_list_has_no_rounds(items: Any) -> None:
    run = Runs().start(plan_of([loop(step("a"), items="${workflow.input.list}")]), {"list": items})
    assert output_of(run, "l") == {"iteration": 0}
    assert statuses(run) == {"l": "COMPLETED"}


def test_what_is_no_list_is_one_item() -> None:
    runs = Runs()
    given = {"_items": {"a": 1}}
    run = runs.start(
        plan_of([loop(step("a"), rounds=9, items="${workflow.input.m}")]), {"m": given}
    )
    runs.work(run, "a__1")
    assert output_of(run, "l")["loopItem"] == given
    assert run.header.status == "COMPLETED"


def test_a_condition_ends_a_list_early() -> None:
    runs = Runs()
    given = {"_items": [1, 2, 3]}
    run = runs.start(plan_of([loop(step("a"), rounds=2, inputParameters=given)]))
    runs.work_all()
    assert output_of(run, "l")["iteration"] == 2


def test_a_list_that_shrinks_while_it_is_gone_through() -> None:
    runs = Runs()
    plan = plan_of(
        [loop(step("a"), rounds=5, items="${workflow.variables.list}")],
        variables={"list": [1, 2, 3]},
    )
    run = runs.start(plan)
    run.set_variables(b'{"list":[1]}')
    runs.work(run, "a__1")
    assert run.header.status == "COMPLETED"


def test_an_input_named_items_that_is_no_list_is_an_input() -> None:
    runs = Runs()
    run = runs.start(plan_of([loop(step("a"), rounds=1, inputParameters={"_items": 5})]))
    runs.work(run, "a__1")
    assert output_of(run, "l") == {"iteration": 1, "1": {"a": {}}}


# -- what is kept


def test_only_the_last_rounds_are_kept() -> None:
    runs = Runs()
    plan = plan_of([loop(step("a"), step("b"), rounds=5, inputParameters={"keepLastN": 2})])
    run = runs.start(plan)
    for number in (1, 2, 3):
        runs.work(run, f"a__{number}", output={"n": number})
        runs.work(run, f"b__{number}")
    assert list(run.by_ref) == ["l", "a__3", "b__3", "a__4"]
    assert list(views.output_value(run, run.by_ref["l"])) == ["iteration", "2", "3"]
    for number in (4, 5):
        runs.work(run, f"a__{number}", output={"n": number})
        runs.work(run, f"b__{number}")
    assert list(run.by_ref) == ["l", "a__4", "b__4", "a__5", "b__5"]
    assert list(output_of(run, "l")) == ["iteration", "4", "5"]


def read_again(runs: Runs, run: Execution) -> Execution:
    """Thrown out of memory and loaded from its rows."""
    loaded = runs.executions[run.id] = load(run.id, runs.rows[run.id].items(), lambda _: run.plan)
    return loaded


def test_kept_rounds_look_the_same_to_a_step_after_the_run_was_read_again() -> None:
    seen = []
    for reads_again in (False, True):
        runs = Runs()
        body = step("a", inputParameters={"all": "${l.output}"})
        run = runs.start(plan_of([loop(body, step("b"), inputParameters={"keepLastN": 1})]))
        for ref in ("a__1", "b__1", "a__2"):
            runs.work(run, ref, output={"of": ref})
        if reads_again:
            run = read_again(runs, run)
        assert list(views.output_value(run, run.by_ref["l"])) == ["iteration", "1"]
        runs.work_all(lambda _, task: {"of": task.ref})
        assert "2" in input_of(run, "a__3")["all"]
        seen.append(runs.rows[run.id])
    assert seen[0] == seen[1]


def test_what_is_still_open_in_a_forgotten_round_leaves_its_queue() -> None:
    runs = Runs()
    inner = loop(step("a"), ref="m", rounds=2)
    run = runs.start(plan_of([loop(inner, rounds=2, inputParameters={"keepLastN": 1})]))
    runs.update(run, "m__1")
    # Nothing of round 1 is left, not even what a worker could have taken.
    assert list(run.by_ref) == ["l", "m__2", "a__2__1"]
    assert list(runs.queue[run.id]) == [run.by_ref["a__2__1"].number]
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_a_round_may_be_forgotten_in_the_middle_of_a_continuation() -> None:
    runs = Runs(surroundings=Surroundings(tasks_per_step_max=5))
    body = [
        step("g", "FORK_JOIN", forkTasks=[[step(f"b{i}")] for i in range(30)]),
        step("k", "JOIN", joinOn=["b0"]),
    ]
    inner = loop(*body, ref="m", rounds=1)
    settle, runs.settle = runs.settle, lambda: None  # type: ignore[method-assign]
    run = runs.start(plan_of([loop(inner, rounds=2, inputParameters={"keepLastN": 1})]))
    assert "resume" in {kind for kind, _, _ in run.header.work}
    runs.update(run, "m__1")
    runs.settle = settle  # type: ignore[method-assign]
    runs.settle()
    assert not [ref for ref in run.by_ref if ref.endswith("__1__1")]
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_a_loop_that_was_cancelled_before_it_began_begins_at_retry() -> None:
    runs = Runs(surroundings=Surroundings(tasks_per_step_max=3))
    settle, runs.settle = runs.settle, lambda: None  # type: ignore[method-assign]
    fork = [
        step("f", "FORK_JOIN", forkTasks=[[step("x")], [loop(step("a"), rounds=2)]]),
        step("j", "JOIN", joinOn=["l"]),
    ]
    run = runs.start(plan_of(fork))
    assert run.header.work == [("begin", 3, 0)]
    runs.apply(run, Terminated(runs.now_ms, "enough"))
    assert (statuses(run)["l"], run.by_ref["l"].rounds) == ("CANCELED", 0)
    runs.settle = settle  # type: ignore[method-assign]
    runs.apply(run, Retried(runs.now_ms))
    runs.work_all()
    assert run.header.status == "COMPLETED"
    assert list(output_of(run, "l")) == ["iteration", "1", "2"]


def test_a_round_does_not_end_before_the_scan_has_seen_all_that_ended_in_a_pause() -> None:
    runs = Runs(surroundings=Surroundings(tasks_per_step_max=5))
    body = [
        step("g", "FORK_JOIN", forkTasks=[[step("a"), step("b")], [step("c")]]),
        step("k", "JOIN", joinOn=["c"]),
    ]
    branches = [[step(f"p{i}"), step(f"q{i}")] for i in range(30)]
    tasks = [
        step("f", "FORK_JOIN", forkTasks=[*branches, [loop(*body, rounds=1)]]),
        step("j", "JOIN", joinOn=["l"]),
    ]
    run = runs.start(plan_of(tasks))
    runs.apply(run, Paused(runs.now_ms))
    for ref in (*(f"p{i}" for i in range(30)), "a__1"):
        runs.work(run, ref)
    runs.poll(run, "c__1")
    settle, runs.settle = runs.settle, lambda: None  # type: ignore[method-assign]
    runs.apply(run, Resumed(runs.now_ms))
    runs.update(run, "c__1")
    assert "q29" not in run.by_ref
    runs.settle = settle  # type: ignore[method-assign]
    runs.settle()
    assert statuses(run)["b__1"] == "SCHEDULED"
    assert statuses(run)["l"] == "IN_PROGRESS"
    runs.work_all()
    assert set(output_of(run, "l")["1"]) == {"g", "a", "b", "c", "k"}


@pytest.mark.parametrize("keep", [0, -3])
def test_none_is_kept(keep: int) -> None:
    runs = Runs()
    run = runs.start(plan_of([loop(step("a"), inputParameters={"keepLastN": keep})]))
    runs.work_all()
    assert output_of(run, "l") == {"iteration": 3}
    assert list(run.by_ref) == ["l", "a__3"]


@pytest.mark.parametrize("keep", ["2", True, 1.5])
def test_a_keep_that_is_no_number_keeps_all(keep: Any) -> None:
    runs = Runs()
    run = runs.start(plan_of([loop(step("a"), inputParameters={"keepLastN": keep})]))
    runs.work_all()
    assert list(run.by_ref) == ["l", "a__1", "a__2", "a__3"]


def test_loops_within_loops_forget_what_is_inside_of_what_they_forget() -> None:
    runs = Runs()
    inner = loop(step("a"), ref="m", rounds=2)
    run = runs.start(plan_of([loop(inner, inputParameters={"keepLastN": 1})]))
    runs.work(run, "a__1__1")
    runs.work(run, "a__1__2")
    assert list(run.by_ref) == ["l", "m__2", "a__2__1"]
    runs.work_all()
    assert list(run.by_ref) == ["l", "m__3", "a__3__1", "a__3__2"]
    assert list(output_of(run, "l")) == ["iteration", "3"]
    assert run.header.status == "COMPLETED"


# -- failures


def test_a_failure_inside_ends_the_run_and_the_loop_is_cancelled() -> None:
    runs = Runs()
    run = runs.start(plan_of([loop(step("a"))], task_defs=never("a")))
    runs.work(run, "a__1", output={"n": 1})
    runs.work(run, "a__2", "FAILED", reason="no")
    assert statuses(run) == {"l": "CANCELED", "a__1": "COMPLETED", "a__2": "FAILED"}
    assert output_of(run, "l") == {"iteration": 2, "1": {"a": {"n": 1}}}
    assert run.header.reason.startswith(f"Task {run.task_id(3)} failed with status: FAILED")


@pytest.mark.parametrize("around", [False, True])
def test_a_permissive_failure_inside_fails_the_loop(around: bool) -> None:
    runs = Runs()
    body = [step("a", permissive=True), step("b")]
    if around:
        body = [
            step("f", "FORK_JOIN", forkTasks=[[step("a", permissive=True)], [step("c")]]),
            step("j", "JOIN", joinOn=["a", "c"]),
        ]
    run = runs.start(plan_of([loop(*body), step("z")], task_defs=never("a")))
    runs.work(run, "a__1", "FAILED", {"n": 1}, reason="one")
    task = run.by_ref["l"]
    assert (task.status, task.reason) == ("FAILED", "one ")
    assert output_of(run, "l")["1"]["a"] == {"n": 1}
    assert run.header.status == "FAILED"
    assert "z" not in run.by_ref


def test_an_optional_failure_inside_is_forgiven() -> None:
    runs = Runs()
    run = runs.start(plan_of([loop(step("a", optional=True), rounds=2)], task_defs=never("a")))
    runs.work(run, "a__1", "FAILED")
    runs.work(run, "a__2")
    assert statuses(run)["a__1"] == "COMPLETED_WITH_ERRORS"
    assert run.header.status == "COMPLETED"


def test_a_retry_inside_counts_in_its_round() -> None:
    runs = Runs()
    definition = {"name": "a", "retryCount": 1, "retryDelaySeconds": 0}
    run = runs.start(plan_of([loop(step("a"), rounds=1)], task_defs=[definition]))
    runs.work(run, "a__1", "FAILED", {"n": 1})
    assert (run.by_ref["a__1"].number, run.by_ref["a__1"].iteration) == (3, 1)
    runs.work(run, "a__1", output={"n": 2})
    assert output_of(run, "l") == {"iteration": 1, "1": {"a": {"n": 2}}}


def test_terminate_inside_ends_all() -> None:
    ends = step("t", "TERMINATE", inputParameters={"terminationStatus": "COMPLETED"})
    runs = Runs()
    run = runs.start(plan_of([loop(step("a"), ends)]))
    runs.work(run, "a__1")
    assert statuses(run) == {"l": "CANCELED", "a__1": "COMPLETED", "t__1": "COMPLETED"}
    assert run.header.status == "COMPLETED"


# -- bodies


def test_forks_and_switches_inside() -> None:
    runs = Runs()
    body = [
        step("f", "FORK_JOIN", forkTasks=[[step("a"), step("b")], [step("c")]]),
        step("j", "JOIN", joinOn=["b", "c"]),
        step(
            "s",
            "SWITCH",
            evaluatorType="value-param",
            expression="v",
            inputParameters={"v": "x"},
            decisionCases={"x": [step("d")], "y": [step("e")]},
        ),
    ]
    run = runs.start(plan_of([loop(*body, rounds=2)]))
    assert input_of(run, "j__1") == {"joinOn": ["b", "c"]}
    runs.work_all(lambda run, task: {"ref": task.ref})
    assert output_of(run, "j__2") == {"b__2": {"ref": "b__2"}, "c__2": {"ref": "c__2"}}
    assert set(output_of(run, "l")["2"]) == {"f", "a", "b", "c", "j", "s", "d"}
    assert run.header.status == "COMPLETED"


def test_a_branch_that_nobody_joins_holds_the_round() -> None:
    runs = Runs()
    body = [
        step("f", "FORK_JOIN", forkTasks=[[step("a")], [step("b")]]),
        step("j", "JOIN", joinOn=["a"]),
    ]
    run = runs.start(plan_of([loop(*body, rounds=2)]))
    runs.work(run, "a__1")
    assert "f__2" not in run.by_ref
    runs.work(run, "b__1")
    assert "f__2" in run.by_ref


def test_loops_within_loops() -> None:
    runs = Runs()
    inner = loop(step("a"), ref="m", rounds=2)
    run = runs.start(plan_of([loop(inner, step("b"), rounds=2)]))
    assert runs.work_all() == 6
    assert output_of(run, "l")["2"]["m"]["iteration"] == 2
    assert {"m__1", "a__1__1", "a__1__2", "b__1", "a__2__2", "b__2"} <= run.by_ref.keys()
    assert run.header.status == "COMPLETED"


def test_a_loop_over_scripts_that_answer_from_outside() -> None:
    runs = Runs(
        scripts=lambda language, source, value: source == "n()" or value["l"]["iteration"] < 3
    )
    body = step("i", "INLINE", inputParameters={"expression": "n()"})
    run = runs.start(plan_of([loop(body, loopCondition="f($.l['iteration'])")]))
    assert run.header.status == "COMPLETED"
    assert output_of(run, "l")["3"] == {"i": {"result": True}}


def test_ten_thousand_empty_rounds_go_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is checked after each step (Runs._decide) would cost more than all steps.
    monkeypatch.setattr("tests.support.engine.assert_same", lambda *_: None)
    runs = Runs()
    body = step("n", "NOOP")
    run = runs.start(plan_of([loop(body, rounds=10_000, inputParameters={"keepLastN": 5})]))
    assert run.header.status == "COMPLETED"
    assert run.by_ref["l"].rounds == 10_000
    assert len(run.tasks) == 6
    assert 10_000 / 200 <= runs.transitions <= 10_000 / 200 + 5


def test_rounds_in_small_steps() -> None:
    runs = Runs(surroundings=Surroundings(tasks_per_step_max=3))
    body = [step("n", "NOOP"), step("o", "NOOP")]
    run = runs.start(plan_of([loop(*body, rounds=40)]))
    assert run.header.status == "COMPLETED"
    assert runs.transitions >= 80 / 3
