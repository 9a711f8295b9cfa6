"""FORK_JOIN, JOIN and EXCLUSIVE_JOIN; and that a wide fork goes in small steps."""

from typing import Any

import pytest

from cluster.engine.decider import decide
from cluster.engine.events import Paused, Resumed, Retried, TaskUpdated
from cluster.engine.rows import changed_rows
from cluster.engine.step import Surroundings
from cluster.engine.transitions import TaskStatus
from tests.support.engine import Json, Runs, input_of, output_of, plan_of, statuses, step


def fork(*branches: list[Json], on: list[str] | None = None, **join: Any) -> list[Json]:
    joined = on if on is not None else [branch[-1]["taskReferenceName"] for branch in branches]
    return [
        step("f", "FORK_JOIN", forkTasks=list(branches)),
        step("j", "JOIN", joinOn=joined, **join),
    ]


def never(*names: str) -> list[Json]:
    """Task definitions without retries."""
    return [{"name": name, "retryCount": 0} for name in names]


def test_branches_begin_together_and_the_join_ends_with_the_last() -> None:
    runs = Runs()
    run = runs.start(plan_of([*fork([step("a")], [step("b"), step("c")]), step("z")]))
    assert [(task.ref, task.type) for task in run.tasks.values()] == [
        ("f", "FORK"),
        ("a", "a"),
        ("b", "b"),
        ("j", "JOIN"),
    ]
    assert input_of(run, "j") == {"joinOn": ["a", "c"]}
    runs.work(run, "a", output={"n": 1})
    runs.work(run, "b", output={"n": 2})
    assert statuses(run)["j"] == "IN_PROGRESS"
    runs.work(run, "c", output={"n": 3})
    assert output_of(run, "j") == {"a": {"n": 1}, "c": {"n": 3}}
    assert statuses(run)["z"] == "SCHEDULED"


def test_what_can_run_at_once_runs_in_all_branches() -> None:
    run = Runs().start(plan_of(fork([step("a", "NOOP")], [step("b", "NOOP")])))
    assert run.header.status == "COMPLETED"
    assert run.workflow_output() == {}


def test_a_branch_that_nobody_joins_holds_the_run() -> None:
    runs = Runs()
    run = runs.start(plan_of(fork([step("a")], [step("b")], on=["a"])))
    runs.work(run, "a")
    assert (statuses(run)["j"], run.header.status) == ("COMPLETED", "RUNNING")
    runs.work(run, "b")
    assert run.header.status == "COMPLETED"


def test_a_join_on_nothing_is_over_at_once() -> None:
    runs = Runs()
    run = runs.start(plan_of([*fork([step("a")], on=[]), step("z")]))
    assert statuses(run) == {
        "f": "COMPLETED",
        "a": "SCHEDULED",
        "j": "COMPLETED",
        "z": "SCHEDULED",
    }


def test_a_fork_needs_its_join() -> None:
    run = Runs().start(plan_of([step("f", "FORK_JOIN", forkTasks=[[step("a")]]), step("z")]))
    assert run.header.status == "FAILED"
    assert run.header.reason.startswith("Fork task definition is not followed by a join task.")
    assert not run.tasks


def test_a_failed_branch_ends_the_run_and_cancels_the_others() -> None:
    runs = Runs()
    run = runs.start(plan_of(fork([step("a")], [step("b")]), task_defs=never("a")))
    runs.poll(run, "b")
    runs.work(run, "a", "FAILED", reason="mine")
    assert statuses(run) == {"f": "COMPLETED", "a": "FAILED", "b": "CANCELED", "j": "CANCELED"}
    assert run.by_ref["j"].reason == ""
    assert not runs.queue[run.id]
    runs.update(run, "b", "COMPLETED")
    assert statuses(run)["b"] == "CANCELED"


def test_an_optional_branch_shows_in_the_join() -> None:
    runs = Runs()
    run = runs.start(
        plan_of(fork([step("a", optional=True)], [step("b", optional=True)], [step("c")]),
                task_defs=never("a", "b"))
    )  # fmt: skip
    runs.work(run, "a", "FAILED", {"e": 1}, reason="mine")
    runs.work(run, "b", "FAILED")
    runs.work(run, "c")
    join = run.by_ref["j"]
    assert join.status == "COMPLETED_WITH_ERRORS"
    assert join.reason == f"a/{run.task_id(2)} b/{run.task_id(3)} completed with errors"
    assert output_of(run, "j") == {"a": {"e": 1}}
    assert run.header.status == "COMPLETED"


def test_a_permissive_branch_fails_the_join_when_all_have_ended() -> None:
    runs = Runs()
    branches = [[step(ref, permissive=True)] for ref in "ab"]
    run = runs.start(plan_of([*fork(*branches, [step("c")]), step("z")], task_defs=never("a", "b")))
    runs.work(run, "a", "FAILED", {"a": 1}, reason="one")
    assert statuses(run)["j"] == "IN_PROGRESS"
    runs.work(run, "b", "FAILED", {"b": 1}, reason="two")
    runs.work(run, "c", output={"c": 1})
    assert (statuses(run)["j"], run.by_ref["j"].reason) == ("FAILED", "one two")
    assert output_of(run, "j") == {"a": {"a": 1}}
    assert "z" not in run.by_ref
    assert run.header.reason == (
        f"Task {run.task_id(5)} failed with status: FAILED and reason: 'one two'"
    )


def test_a_join_of_cancelled_branches_is_cancelled() -> None:
    runs = Runs()
    run = runs.start(plan_of(fork([step("a", permissive=True)])))
    runs.work(run, "a", "CANCELED", reason="no")
    assert statuses(run)["j"] == "CANCELED"
    assert run.header.status == "TERMINATED"


@pytest.mark.parametrize(
    ("how", "shown"), [("optional", "COMPLETED_WITH_ERRORS"), ("permissive", "FAILED")]
)
def test_a_join_may_be_forgiven_itself(how: str, shown: str) -> None:
    runs = Runs()
    forgiven: Json = {how: True}
    tasks = [*fork([step("a", permissive=True)], **forgiven), step("z")]
    run = runs.start(plan_of(tasks, task_defs=never("a")))
    runs.work(run, "a", "FAILED", reason="one")
    assert (statuses(run)["j"], statuses(run)["z"]) == (shown, "SCHEDULED")
    runs.work(run, "z")
    assert run.header.status == "FAILED"
    assert (f"Task {run.task_id(3)} failed" in run.header.reason) == (how == "permissive")


def test_a_permissive_step_within_a_branch_does_not_touch_the_join() -> None:
    runs = Runs()
    run = runs.start(plan_of(fork([step("a", permissive=True), step("b")]), task_defs=never("a")))
    runs.work(run, "a", "FAILED", reason="one")
    runs.work(run, "b")
    assert statuses(run)["j"] == "COMPLETED"
    assert run.header.status == "FAILED"


def test_a_branch_is_retried_while_the_join_waits() -> None:
    runs = Runs()
    run = runs.start(
        plan_of(fork([step("a")], [step("b")]), task_defs=[{"name": "a", "retryDelaySeconds": 0}])
    )
    runs.work(run, "b")
    runs.work(run, "a", "FAILED")
    assert statuses(run)["j"] == "IN_PROGRESS"
    runs.work(run, "a", output={"n": 2})
    assert output_of(run, "j") == {"a": {"n": 2}}
    assert run.header.status == "COMPLETED"


def test_forks_within_forks() -> None:
    runs = Runs()
    inner = [
        step("g", "FORK_JOIN", forkTasks=[[step("c")], [step("d")]]),
        step("k", "JOIN", joinOn=["c", "d"]),
    ]
    run = runs.start(plan_of(fork([step("a")], inner)))
    # As in Conductor the inner group stands whole between its neighbours.
    assert [task.ref for task in run.tasks.values()] == ["f", "a", "g", "c", "d", "k", "j"]
    for ref in "acd":
        runs.work(run, ref, output={"n": ref})
    assert output_of(run, "j")["k"] == {"c": {"n": "c"}, "d": {"n": "d"}}
    assert run.header.status == "COMPLETED"


def test_terminate_in_a_branch_cancels_the_others() -> None:
    ends = step("t", "TERMINATE", inputParameters={"terminationStatus": "COMPLETED"})
    run = Runs().start(plan_of(fork([ends], [step("n", "NOOP")], [step("a")], on=["a"])))
    assert run.header.status == "COMPLETED"
    assert statuses(run) == {
        "f": "COMPLETED",
        "t": "COMPLETED",
        "n": "COMPLETED",
        "a": "CANCELED",
        "j": "CANCELED",
    }


# -- EXCLUSIVE_JOIN


def exclusive(choice: str, *, default: list[str] | None = None) -> list[Json]:
    cases = {"a": [step("a")], "b": [step("b")], "c": [step("c")]}
    return [
        step(
            "s",
            "SWITCH",
            evaluatorType="value-param",
            expression="v",
            inputParameters={"v": choice},
            decisionCases=cases,
        ),
        step("x", "EXCLUSIVE_JOIN", joinOn=["a", "b"], defaultExclusiveJoinTask=default or []),
    ]


@pytest.mark.parametrize("choice", ["a", "b"])
def test_an_exclusive_join_takes_the_branch_that_was_run(choice: str) -> None:
    runs = Runs()
    run = runs.start(plan_of(exclusive(choice)))
    runs.work(run, choice, output={"n": 1})
    assert output_of(run, "x") == {"n": 1}
    assert input_of(run, "x") == {"joinOn": ["a", "b"], "defaultExclusiveJoinTask": []}
    assert run.header.status == "COMPLETED"


def test_an_exclusive_join_falls_back_to_its_default() -> None:
    runs = Runs()
    run = runs.start(plan_of(exclusive("c", default=["c"])))
    runs.work(run, "c", output={"n": 2})
    assert (output_of(run, "x"), run.header.status) == ({"n": 2}, "COMPLETED")


def test_an_exclusive_join_without_anything_waits() -> None:
    run = Runs().start(plan_of(exclusive("none")))
    assert (statuses(run)["x"], run.header.status) == ("IN_PROGRESS", "RUNNING")


@pytest.mark.parametrize("status", ["FAILED", "CANCELED"])
def test_an_exclusive_join_of_a_failure(status: str) -> None:
    runs = Runs()
    tasks = [*fork([step("a", permissive=True)], [step("b")], on=["b"])]
    tasks.append(step("x", "EXCLUSIVE_JOIN", joinOn=["a"]))
    run = runs.start(plan_of(tasks, task_defs=never("a")))
    runs.work(run, "a", status, reason="bad")
    runs.work(run, "b")
    assert (statuses(run)["x"], run.by_ref["x"].reason) == (status, "bad")
    assert run.header.status == ("FAILED" if status == "FAILED" else "TERMINATED")


def test_an_exclusive_join_waits_for_the_first_that_is_there() -> None:
    runs = Runs()
    tasks = [
        step("f", "FORK_JOIN", forkTasks=[[step("a")], [step("b")]]),
        step("j", "JOIN", joinOn=[]),
        step("x", "EXCLUSIVE_JOIN", joinOn=["a", "b"]),
    ]
    run = runs.start(plan_of(tasks))
    runs.work(run, "b", output={"n": "b"})
    assert statuses(run)["x"] == "IN_PROGRESS"
    runs.work(run, "a", output={"n": "a"})
    assert output_of(run, "x") == {"n": "a"}


# -- wide forks


def wide(count: int, type: str = "SIMPLE") -> list[Json]:
    return fork(*([step(f"b{i}", type)] for i in range(count)))


@pytest.mark.parametrize("type", ["SIMPLE", "NOOP"])
def test_a_fork_of_ten_thousand_goes_in_steps(type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is checked after each step (Runs._decide) would cost more than all steps.
    monkeypatch.setattr("tests.support.engine.assert_same", lambda *_: None)
    runs = Runs()
    run = runs.start(plan_of(wide(10_000, type)))
    assert len(run.tasks) == 10_002
    # 200 new tasks each, which Runs asserts; a NOOP takes no more than to begin and to end.
    assert runs.transitions <= 1 + 10_002 / 200 * (1 if type == "SIMPLE" else 3)
    if type == "NOOP":
        assert run.header.status == "COMPLETED"
        return
    before = runs.transitions
    runs.work(run, "b77")
    assert runs.transitions == before + 2
    assert run.waiting == {10_002: 9_999}


def test_a_step_costs_the_same_in_a_wide_fork_as_in_a_narrow_one() -> None:
    written = []
    for count in (10, 1_000):
        runs = Runs()
        run = runs.start(plan_of(wide(count)))
        runs.poll(run, "b5")
        decide(run, _completed(runs, run.by_ref["b5"].number))
        rows = changed_rows(run)
        written.append((len(rows), sum(len(data) for _, data in rows) // 50))
    assert written[0] == written[1]


def small_steps() -> Runs:
    return Runs(surroundings=Surroundings(tasks_per_step_max=20))


def test_a_wide_fork_ends_and_is_retried_in_steps() -> None:
    runs = small_steps()
    run = runs.start(plan_of(wide(100), task_defs=never(*(f"b{i}" for i in range(100)))))
    runs.work(run, "b50", output={"n": 50})
    before = runs.transitions
    runs.work(run, "b51", "FAILED")
    assert run.header.status == "FAILED"
    assert not run.open
    assert runs.transitions - before >= 5
    before = runs.transitions
    runs.apply(run, Retried(runs.now_ms))
    assert runs.transitions - before >= 5
    assert len(run.tasks) == 102 + 99
    runs.work_all()
    assert run.header.status == "COMPLETED"
    assert len(output_of(run, "j")) == 100


def test_a_failure_in_the_middle_of_a_continuation() -> None:
    runs = small_steps()
    run = runs.start(plan_of([step("a"), *wide(100)]))
    first = run.by_ref["a"]
    runs.poll(run, "a")
    runs._decide(run, _completed(runs, first.number))
    assert run.header.work
    number = run.by_ref["b0"].number
    runs._decide(run, _completed(runs, number, "FAILED_WITH_TERMINAL_ERROR"))
    runs.settle()
    assert run.header.status == "FAILED"
    assert "j" not in run.by_ref
    runs.apply(run, Retried(runs.now_ms))
    runs.work_all()
    assert run.header.status == "COMPLETED"
    assert len(output_of(run, "j")) == 100


def test_a_pause_in_the_middle_of_a_continuation() -> None:
    runs = small_steps()
    run = runs.start(plan_of([step("a"), *wide(100)]))
    runs.poll(run, "a")
    runs._decide(run, _completed(runs, 1))
    runs._decide(run, Paused(runs.now_ms))
    runs.settle()
    scheduled = len(run.tasks)
    assert run.header.work
    runs.work_all()
    assert len(run.tasks) == scheduled < 100
    runs.apply(run, Resumed(runs.now_ms))
    runs.work_all()
    assert run.header.status == "COMPLETED"


def test_what_ends_while_paused_does_not_swell_the_header() -> None:
    runs = small_steps()
    run = runs.start(plan_of([*wide(100), step("z")]))
    runs.apply(run, Paused(runs.now_ms))
    runs.work_all()
    assert run.header.work == []
    assert len(runs.rows[run.id][0]) < 1_024
    runs.apply(run, Resumed(runs.now_ms))
    assert statuses(run)["j"] == "COMPLETED"
    assert statuses(run)["z"] == "SCHEDULED"


def _completed(runs: Runs, number: int, status: str = "COMPLETED") -> TaskUpdated:
    return TaskUpdated(runs.now_ms, number, TaskStatus(status), output=b'{"n":1}')
