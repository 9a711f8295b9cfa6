"""Attempts, back-off, forgiveness, and every kind of timeout (rules 70-95)."""

from typing import Any

import pytest

from cluster.engine.events import (
    LeaseExtended,
    Paused,
    Resumed,
    Retried,
    TaskHandedBack,
    TaskPolled,
    TimerFired,
)
from cluster.engine.model import Execution
from cluster.engine.retries import rebuild_timers
from cluster.engine.rows import load
from tests.support.engine import Json, Runs, input_of, plan_of, statuses, step

HOUR_MS = 3_600_000


def one_task(definition: Json, **fields: Any) -> tuple[Runs, Execution]:
    """A run of step `a` whose task definition is given; a second step follows."""
    runs = Runs()
    plan = plan_of([step("a", **fields), step("z")], task_defs=[{"name": "a", **definition}])
    return runs, runs.start(plan)


def delays(runs: Runs, run: Execution, attempts: int) -> list[int]:
    """Seconds of delay that each attempt after a failure shows."""
    seen = []
    for _ in range(attempts):
        runs.now_ms = max(runs.now_ms, run.by_ref["a"].visible_ms)
        runs.work(run, "a", "FAILED")
        task = run.by_ref["a"]
        assert task.callback_after_s == task.start_delay_s
        seen.append(task.start_delay_s)
    return seen


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ({"retryDelaySeconds": 5}, [5, 5, 5]),
        ({"retryLogic": "LINEAR_BACKOFF", "retryDelaySeconds": 2}, [2, 4, 6]),
        (
            {"retryLogic": "LINEAR_BACKOFF", "retryDelaySeconds": 2, "backoffScaleFactor": 3},
            [6, 12, 18],
        ),
        ({"retryLogic": "EXPONENTIAL_BACKOFF", "retryDelaySeconds": 3}, [3, 6, 12]),
        (
            {
                "retryLogic": "EXPONENTIAL_BACKOFF",
                "retryDelaySeconds": 3,
                "maxRetryDelaySeconds": 5,
            },
            [3, 5, 5],
        ),
        (
            {"retryLogic": "EXPONENTIAL_BACKOFF", "retryDelaySeconds": 1_500_000_000},
            [1_500_000_000, 2**31 - 1, 2**31 - 1],
        ),
    ],
)
def test_the_delay_before_each_retry(definition: Json, expected: list[int]) -> None:
    runs, run = one_task({"retryCount": 9, **definition})
    assert delays(runs, run, 3) == expected


def test_a_retry_is_a_task_of_its_own() -> None:
    runs, run = one_task({"retryCount": 1, "retryDelaySeconds": 3})
    first = run.by_ref["a"]
    runs.work(run, "a", "FAILED", {"out": 1}, reason="no luck", worker_id="w")
    second = run.by_ref["a"]
    assert (first.retried, first.executed, first.status) == (True, False, "FAILED")
    assert (second.number, second.retried_number, second.retry_count) == (2, 1, 1)
    assert (second.reason, second.worker_id, second.output) == ("no luck", "", b"{}")
    assert (second.start_ms, second.poll_count, second.seq) == (0, 0, 2)
    assert second.first_scheduled_ms == first.scheduled_ms
    assert second.visible_ms == runs.now_ms + 3_000
    runs.advance(3_000)
    runs.work(run, "a")
    assert statuses(run) == {"a": "COMPLETED", "z": "SCHEDULED"}
    assert second.reason == ""


def test_jitter_delays_the_queue_only_and_is_always_the_same() -> None:
    definition = {"retryCount": 1, "retryDelaySeconds": 1, "backoffJitterMs": 5_000}
    visible = set()
    for _ in range(2):
        runs, run = one_task(definition)
        runs.work(run, "a", "FAILED")
        task = run.by_ref["a"]
        assert task.start_delay_s == 1
        assert 1_000 <= task.visible_ms - runs.now_ms <= 6_000
        visible.add(task.visible_ms)
    assert len(visible) == 1
    assert visible != {runs.now_ms + 1_000}


def test_a_retry_resolves_its_input_anew_over_the_old_one() -> None:
    runs = Runs()
    fields = {"id": "${CPEWF_TASK_ID}", "n": "${workflow.variables.n}"}
    plan = plan_of(
        [step("a", inputParameters=fields)],
        task_defs=[{"name": "a", "retryCount": 1, "retryDelaySeconds": 0}],
        variables={"n": 1},
    )
    run = runs.start(plan)
    assert input_of(run, "a") == {"id": run.task_id(1), "n": 1}
    run.set_variables(b'{"n":2}')
    runs.work(run, "a", "FAILED")
    assert input_of(run, "a") == {"id": run.task_id(2), "n": 2}


def test_the_step_says_how_often_before_the_definition_does() -> None:
    runs, run = one_task({"retryCount": 5, "retryDelaySeconds": 0}, retryCount=1)
    runs.work(run, "a", "FAILED")
    runs.work(run, "a", "FAILED", reason="again")
    assert run.header.status == "FAILED"
    assert run.header.reason == (
        f"Task {run.task_id(2)} failed with status: FAILED and reason: 'again'"
    )
    assert run.header.failed_number == 2


@pytest.mark.parametrize(
    ("status", "ended"), [("FAILED_WITH_TERMINAL_ERROR", "FAILED"), ("CANCELED", "TERMINATED")]
)
def test_what_is_not_retried(status: str, ended: str) -> None:
    runs, run = one_task({"retryCount": 5})
    runs.work(run, "a", status)
    assert run.header.status == ended
    assert run.header.reason.endswith("and reason: 'null'")
    assert len(run.tasks) == 1


@pytest.mark.parametrize("status", ["FAILED", "FAILED_WITH_TERMINAL_ERROR", "CANCELED"])
def test_an_optional_failure_is_forgiven(status: str) -> None:
    runs, run = one_task({"retryCount": 0}, optional=True, permissive=True)
    runs.work(run, "a", status)
    assert statuses(run) == {"a": "COMPLETED_WITH_ERRORS", "z": "SCHEDULED"}
    runs.work(run, "z")
    assert run.header.status == "COMPLETED"


def test_a_permissive_failure_fails_the_run_at_its_end() -> None:
    runs, run = one_task({"retryCount": 0}, permissive=True)
    runs.work(run, "a", "CANCELED", reason="no")
    assert statuses(run) == {"a": "CANCELED", "z": "SCHEDULED"}
    runs.work(run, "z")
    assert run.header.status == "FAILED"
    assert run.header.reason == (
        f"Task {run.task_id(1)} failed with status: CANCELED and reason: 'no'"
    )


def test_several_permissive_failures_are_all_named() -> None:
    runs = Runs()
    plan = plan_of(
        [step("a", permissive=True), step("b", permissive=True), step("z")],
        task_defs=[{"name": ref, "retryCount": 0} for ref in "ab"],
    )
    run = runs.start(plan)
    for ref in "ab":
        runs.work(run, ref, "FAILED", reason=ref)
    runs.work(run, "z")
    first, second = run.header.reason.split(". ")
    assert first == f"Task {run.task_id(1)} failed with status: FAILED and reason: 'a'"
    assert second.endswith("'b'")


def test_a_start_delay_holds_back_the_first_attempt_only() -> None:
    runs, run = one_task({"retryCount": 1, "retryDelaySeconds": 0}, startDelay=7)
    task = run.by_ref["a"]
    assert (task.callback_after_s, task.start_delay_s) == (7, 7)
    assert task.visible_ms == runs.now_ms + 7_000
    runs.advance(7_000)
    runs.work(run, "a", "FAILED")
    assert run.by_ref["a"].visible_ms == runs.now_ms


# -- timeouts of tasks


def test_response_timeout() -> None:
    runs, run = one_task({"retryCount": 1, "retryDelaySeconds": 0, "responseTimeoutSeconds": 5})
    runs.poll(run, "a")
    runs.advance(4_999)
    assert run.by_ref["a"].status == "IN_PROGRESS"
    runs.advance(1)
    assert run.tasks[1].status == "TIMED_OUT"
    assert run.tasks[1].reason == (
        f"responseTimeout: 5 exceeded for the taskId: {run.task_id(1)} with Task Definition: a"
    )
    assert run.by_ref["a"].number == 2
    runs.poll(run, "a")
    runs.advance(5_000)
    assert run.header.status == "TIMED_OUT"
    assert run.header.reason.startswith(f"Task {run.task_id(2)} failed with status: TIMED_OUT")


def test_a_response_timeout_comes_in_time_behind_a_longer_poll_timeout() -> None:
    runs, run = one_task({"retryCount": 0, "responseTimeoutSeconds": 2, "pollTimeoutSeconds": 600})
    assert run.header.due_ms == runs.now_ms + 600_000
    runs.poll(run, "a")
    assert run.header.due_ms == runs.now_ms + 2_000
    runs.advance(2_000)
    assert run.tasks[1].status == "TIMED_OUT"


def test_a_heartbeat_puts_the_response_timeout_off() -> None:
    runs, run = one_task({"retryCount": 0, "responseTimeoutSeconds": 5})
    runs.poll(run, "a")
    runs.advance(4_000)
    runs.apply(run, LeaseExtended(runs.now_ms, 1))
    runs.advance(4_999)
    assert run.by_ref["a"].status == "IN_PROGRESS"
    runs.advance(1)
    assert run.header.status == "TIMED_OUT"
    runs.apply(run, LeaseExtended(runs.now_ms, 1))
    assert run.header.status == "TIMED_OUT"


def test_an_update_in_progress_puts_the_task_back_and_its_callback_counts() -> None:
    runs, run = one_task({"retryCount": 0, "responseTimeoutSeconds": 5})
    runs.poll(run, "a")
    runs.update(run, "a", "IN_PROGRESS", {"half": 1}, callback_after_s=30, worker_id="v")
    task = run.by_ref["a"]
    assert (task.status, task.callback_after_s, task.poll_count) == ("SCHEDULED", 30, 1)
    assert (task.worker_id, task.output, task.delivery) == ("v", b'{"half":1}', 2)
    runs.advance(29_000)
    assert task.status == "SCHEDULED"
    runs.advance(1_000)
    runs.poll(run, "a")
    assert (task.callback_after_s, task.poll_count, task.start_ms) == (0, 2, 1_000_000)


def test_poll_timeout_counts_the_delay_in() -> None:
    definition = {"retryCount": 1, "pollTimeoutSeconds": 4, "timeoutPolicy": "RETRY"}
    runs, run = one_task({**definition, "retryDelaySeconds": 0}, startDelay=3)
    runs.advance(3_000 + 3_000 + 3_999)
    assert run.by_ref["a"].number == 1
    runs.advance(1)
    assert run.tasks[1].reason == (
        "Task poll timed out after 7 seconds. Poll timeout configured as 4 seconds. "
        "Timeout policy configured to RETRY"
    )
    assert run.by_ref["a"].number == 2


@pytest.mark.parametrize(
    ("policy", "status"), [("RETRY", "SCHEDULED"), ("TIME_OUT_WF", "TIMED_OUT")]
)
def test_the_timeout_of_a_task_counts_from_its_start(policy: str, status: str) -> None:
    definition = {"retryCount": 1, "timeoutSeconds": 10, "timeoutPolicy": policy}
    runs, run = one_task({**definition, "retryDelaySeconds": 0, "responseTimeoutSeconds": 10})
    runs.advance(HOUR_MS)
    runs.poll(run, "a")
    runs.advance(9_000)
    runs.apply(run, LeaseExtended(runs.now_ms, 1))
    runs.advance(1_000)
    assert run.by_ref["a"].status == status
    reason = (
        "Task timed out after 10 seconds. Timeout configured as 10 seconds. "
        f"Timeout policy configured to {policy}"
    )
    assert run.tasks[1].reason == reason
    if policy == "TIME_OUT_WF":
        assert (run.header.status, run.header.reason) == ("TIMED_OUT", reason)
        assert run.header.failed_number == 1


def test_alert_only_lets_a_task_be_and_its_response_timeout_still_comes() -> None:
    definition = {"timeoutSeconds": 10, "pollTimeoutSeconds": 3, "totalTimeoutSeconds": 12}
    runs, run = one_task(
        {
            "retryCount": 0,
            **definition,
            "timeoutPolicy": "ALERT_ONLY",
            "responseTimeoutSeconds": 8,
        }
    )
    runs.advance(5_000)
    runs.poll(run, "a")
    for _ in range(4):
        runs.advance(7_000)
        runs.apply(run, LeaseExtended(runs.now_ms, 1))
    assert run.by_ref["a"].status == "IN_PROGRESS"
    runs.advance(8_000)
    assert run.tasks[1].status == "TIMED_OUT"


def test_the_total_timeout_ends_all_attempts() -> None:
    definition = {"retryCount": 9, "retryDelaySeconds": 4, "totalTimeoutSeconds": 6}
    runs, run = one_task({**definition, "timeoutPolicy": "RETRY"})
    runs.work(run, "a", "FAILED")
    runs.advance(6_000)
    assert run.tasks[2].status == "TIMED_OUT"
    assert run.tasks[2].reason == (
        f"Task a/{run.task_id(2)} exceeded total timeout of 6 seconds (elapsed 6 seconds across "
        "all attempts including retry delays). Timeout policy: RETRY"
    )
    assert run.header.status == "TIMED_OUT"
    assert run.header.reason == (
        f"Task {run.task_id(2)}/a exceeded total timeout of 6 seconds (elapsed 6 seconds across "
        "all attempts). No further retries will be attempted."
    )


def test_the_total_timeout_counts_anew_after_a_retry_by_hand() -> None:
    definition = {"retryCount": 0, "totalTimeoutSeconds": 6, "timeoutPolicy": "RETRY"}
    runs, run = one_task(definition)
    runs.advance(6_000)
    assert run.header.status == "TIMED_OUT"
    runs.apply(run, Retried(runs.now_ms))
    runs.advance(5_999)
    assert run.by_ref["a"].status == "SCHEDULED"
    runs.advance(1)
    assert run.header.status == "TIMED_OUT"


def test_a_failure_behind_the_total_timeout_fails_the_run() -> None:
    definition = {"retryCount": 9, "totalTimeoutSeconds": 6, "timeoutPolicy": "ALERT_ONLY"}
    runs, run = one_task(definition)
    runs.poll(run, "a")
    runs.now_ms += 7_000
    runs.update(run, "a", "FAILED")
    assert run.header.status == "FAILED"
    assert "No further retries will be attempted." in run.header.reason


def test_async_complete_waits_for_its_answer_without_end() -> None:
    runs, run = one_task({"retryCount": 0, "responseTimeoutSeconds": 2}, asyncComplete=True)
    runs.poll(run, "a")
    runs.advance(HOUR_MS)
    assert run.by_ref["a"].status == "IN_PROGRESS"


def test_a_delayed_retry_of_a_system_task_begins_when_its_time_has_come() -> None:
    answers = iter((ValueError("first"), 5))

    def script(*_: Any) -> Any:
        answer = next(answers)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    runs = Runs(scripts=script)
    plan = plan_of(
        [step("l", "LAMBDA", inputParameters={"scriptExpression": "f()"}, retryCount=1)],
        task_defs=[{"name": "l", "retryDelaySeconds": 9}],
    )
    run = runs.start(plan)
    task = run.by_ref["l"]
    assert (task.number, task.status, task.wake_ms) == (2, "SCHEDULED", runs.now_ms + 9_000)
    runs.advance(9_000)
    assert statuses(run) == {"l": "COMPLETED"}


# -- polls


def test_a_poll_counts_once() -> None:
    runs, run = one_task({})
    for _ in range(2):
        runs.apply(run, TaskPolled(runs.now_ms, 1, "w", 1))
    assert run.by_ref["a"].poll_count == 1
    runs.apply(run, TaskPolled(runs.now_ms, 1, "other", 2))
    assert run.by_ref["a"].worker_id == "w"


def test_a_poll_that_was_never_received_is_undone() -> None:
    runs, run = one_task({"pollTimeoutSeconds": 5, "timeoutPolicy": "RETRY", "retryCount": 0})
    runs.apply(run, TaskHandedBack(runs.now_ms, 1, 1))
    assert run.by_ref["a"].status == "SCHEDULED"
    runs.poll(run, "a")
    runs.apply(run, TaskHandedBack(runs.now_ms, 1, 9))
    assert run.by_ref["a"].status == "IN_PROGRESS"
    runs.apply(run, TaskHandedBack(runs.now_ms, 1, 1))
    task = run.by_ref["a"]
    assert (task.status, task.poll_count, task.start_ms) == ("SCHEDULED", 0, 0)
    runs.advance(5_000)
    assert run.header.status == "TIMED_OUT"


# -- the workflow's own timeout


@pytest.mark.parametrize("policy", ["TIME_OUT_WF", "ALERT_ONLY"])
def test_the_timeout_of_a_workflow(policy: str) -> None:
    runs = Runs()
    run = runs.start(plan_of([step("a")], timeoutSeconds=20, timeoutPolicy=policy))
    runs.advance(19_999)
    assert run.header.status == "RUNNING"
    runs.advance(1)
    if policy == "ALERT_ONLY":
        assert run.header.status == "RUNNING"
        return
    assert run.header.status == "TIMED_OUT"
    assert run.header.reason == (
        "Workflow timed out after 20 seconds. Timeout configured as 20 seconds. "
        "Timeout policy configured to TIME_OUT_WF"
    )
    assert statuses(run) == {"a": "CANCELED"}
    assert run.by_ref["a"].reason == ""


def test_a_paused_workflow_times_out_while_its_tasks_do_not() -> None:
    runs = Runs()
    plan = plan_of(
        [step("a")],
        task_defs=[{"name": "a", "retryCount": 0, "responseTimeoutSeconds": 5}],
        timeoutSeconds=20,
        timeoutPolicy="TIME_OUT_WF",
    )
    run = runs.start(plan)
    runs.poll(run, "a")
    runs.apply(run, Paused(runs.now_ms))
    runs.advance(19_000)
    assert run.by_ref["a"].status == "IN_PROGRESS"
    runs.advance(1_000)
    assert run.header.status == "TIMED_OUT"


def test_resume_arms_the_timers_of_tasks_again() -> None:
    runs, run = one_task({"retryCount": 0, "responseTimeoutSeconds": 5})
    runs.poll(run, "a")
    runs.apply(run, Paused(runs.now_ms))
    runs.advance(60_000)
    runs.apply(run, Resumed(runs.now_ms))
    runs.advance(0)
    assert run.header.status == "TIMED_OUT"


def test_the_timeout_counts_anew_from_resume() -> None:
    runs = Runs()
    run = runs.start(plan_of([step("a")], timeoutSeconds=20, timeoutPolicy="TIME_OUT_WF"))
    runs.advance(15_000)
    runs.apply(run, Paused(runs.now_ms))
    runs.apply(run, Resumed(runs.now_ms))
    runs.advance(19_999)
    assert run.header.status == "RUNNING"
    runs.advance(1)
    assert run.header.status == "TIMED_OUT"


def test_a_timer_that_fires_early_or_for_nothing_changes_nothing() -> None:
    runs, run = one_task({"retryCount": 0, "responseTimeoutSeconds": 5})
    runs.poll(run, "a")
    rows = dict(runs.rows[run.id])
    runs.apply(run, TimerFired(runs.now_ms + 4_999))
    assert run.by_ref["a"].status == "IN_PROGRESS"
    assert {n: row for n, row in runs.rows[run.id].items() if n} == {
        n: row for n, row in rows.items() if n
    }
    runs.update(run, "a")
    runs.work(run, "z")
    runs.apply(run, TimerFired(runs.now_ms + HOUR_MS))
    assert run.header.status == "COMPLETED"


def test_timers_built_from_rows_are_those_that_were_armed() -> None:
    runs, run = one_task({"retryCount": 0, "responseTimeoutSeconds": 5, "timeoutSeconds": 50})
    runs.poll(run, "a")
    loaded = load(run.id, runs.rows[run.id].items(), lambda _: run.plan)
    rebuild_timers(loaded)
    assert min(loaded.timers)[0] == run.header.due_ms
    runs.update(run, "a", "FAILED")
    loaded = load(run.id, runs.rows[run.id].items(), lambda _: run.plan)
    rebuild_timers(loaded)
    assert not loaded.timers
