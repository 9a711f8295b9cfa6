"""Sections 6 and 7: timeouts of tasks and workflows (rules 85-95).

The real server notices a timeout when it decides the workflow, so the cases ask for that until it
has happened. Ours notices by itself.
"""

from __future__ import annotations

import re
import time

from tests.conformance.harness import (
    TERMINAL,
    Json,
    Server,
    last_task,
    ok,
    pick,
    rule,
    simple,
    summary,
    task_def,
    workflow,
)

MEASURED = re.compile(r"(after|elapsed) \d+ seconds")


def decide(server: Server, run_id: str) -> Json:
    """The run after a decide was asked for."""
    ok(server.put(f"/workflow/decide/{run_id}"))
    return server.run(run_id)


def timed_out(server: Server, run_id: str) -> Json:
    """The run once a task or the run itself has timed out."""

    def look() -> Json:
        run = decide(server, run_id)
        over = run["status"] in TERMINAL or any(
            task["status"] == "TIMED_OUT" for task in run["tasks"]
        )
        return run if over else None

    return server.until(look)


def short(run: Json) -> Json:
    """The summary of a run; without the seconds in reasons that each server measured."""
    seen = summary(run)
    for part in (seen, *seen["tasks"]):
        if "reasonForIncompletion" in part:
            text = part["reasonForIncompletion"]
            part["reasonForIncompletion"] = MEASURED.sub(r"\1 N seconds", text)
    return seen


@rule(1, 25, 86, 89)
def a_task_timeout_times_out_the_workflow_by_default(server: Server) -> Json:
    server.register(task_def("~a", retryCount=3, timeoutSeconds=1, responseTimeoutSeconds=1))
    run_id = server.launch([simple("a")])
    server.take("~a")
    run = timed_out(server, run_id)
    assert (run["status"], last_task(run, "a")["status"]) == ("TIMED_OUT", "TIMED_OUT")
    return short(run)


@rule(3, 86, 89)
def policy_retry_makes_another_attempt(server: Server) -> Json:
    server.register(
        task_def(
            "~a",
            retryCount=1,
            retryDelaySeconds=0,
            timeoutSeconds=1,
            responseTimeoutSeconds=1,
            timeoutPolicy="RETRY",
        )
    )
    run_id = server.launch([simple("a")])
    server.take("~a")
    during = timed_out(server, run_id)
    assert [task["status"] for task in during["tasks"]] == ["TIMED_OUT", "SCHEDULED"]
    server.work("~a", {"n": 2})
    return [short(during), short(server.ended(run_id))]


@rule(25, 89, recorded=True)
def policy_retry_without_attempts_left_ends_the_workflow(server: Server) -> Json:
    server.register(
        task_def(
            "~a", retryCount=0, timeoutSeconds=1, responseTimeoutSeconds=1, timeoutPolicy="RETRY"
        )
    )
    run_id = server.launch([simple("a")])
    server.take("~a")
    run = timed_out(server, run_id)
    assert run["status"] == "TIMED_OUT"
    return short(run)


@rule(89)
def policy_alert_only_lets_the_task_go_on(server: Server) -> Json:
    server.register(task_def("~a", pollTimeoutSeconds=1, timeoutPolicy="ALERT_ONLY", retryCount=0))
    run_id = server.launch([simple("a")])
    time.sleep(1.3)
    during = decide(server, run_id)
    assert last_task(during, "a")["status"] == "SCHEDULED"
    server.work("~a")
    return [short(during), short(server.ended(run_id))]


@rule(86, recorded=True)
def the_timeout_counts_from_the_first_poll(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0, timeoutSeconds=2, responseTimeoutSeconds=2))
    run_id = server.launch([simple("a")])
    time.sleep(2.3)
    before = decide(server, run_id)
    assert last_task(before, "a")["status"] == "SCHEDULED"
    task = server.take("~a")
    time.sleep(0.3)
    polled = decide(server, run_id)
    assert last_task(polled, "a")["status"] == "IN_PROGRESS"
    server.update(task)
    return [short(before), short(polled), short(server.ended(run_id))]


@rule(87, 89)
def a_task_that_nobody_polls_times_out(server: Server) -> Json:
    seen = {}
    for policy in ("TIME_OUT_WF", "RETRY"):
        server.register(
            task_def(
                "~a",
                retryCount=1,
                retryDelaySeconds=0,
                pollTimeoutSeconds=1,
                timeoutPolicy=policy,
            )
        )
        seen[policy] = timed_out(server, server.launch([simple("a")]))
    assert [run["status"] for run in seen.values()] == ["TIMED_OUT", "RUNNING"]
    return [short(run) for run in seen.values()]


@rule(87, recorded=True)
def the_delay_of_a_retry_counts_twice_for_its_poll_timeout(server: Server) -> Json:
    definition = task_def(
        "~a", retryCount=1, retryDelaySeconds=2, pollTimeoutSeconds=1, timeoutPolicy="TIME_OUT_WF"
    )
    server.register(definition)
    run_id = server.launch([simple("a")])
    server.work("~a", status="FAILED")
    time.sleep(4.3)
    before = decide(server, run_id)
    after = server.until(
        lambda: run if (run := decide(server, run_id))["status"] in TERMINAL else None
    )
    waited = after["endTime"] - after["tasks"][1]["scheduledTime"]
    assert 4800 < waited < 8000
    return [short(before), short(after)]


@rule(87)
def a_polled_task_has_no_poll_timeout(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0, pollTimeoutSeconds=1))
    run_id = server.launch([simple("a")])
    task = server.take("~a")
    time.sleep(1.3)
    during = decide(server, run_id)
    assert last_task(during, "a")["status"] == "IN_PROGRESS"
    server.update(task)
    return short(server.ended(run_id))


@rule(88)
def a_task_without_response_is_retried_whatever_the_policy(server: Server) -> Json:
    server.register(
        task_def(
            "~a",
            retryCount=1,
            retryDelaySeconds=0,
            responseTimeoutSeconds=1,
            timeoutPolicy="TIME_OUT_WF",
        )
    )
    run_id = server.launch([simple("a")])
    lost = server.take("~a")
    during = timed_out(server, run_id)
    assert [task["status"] for task in during["tasks"]] == ["TIMED_OUT", "SCHEDULED"]
    # A late result of the lost attempt changes nothing.
    late = server.update(lost, "COMPLETED", {"late": True})
    server.work("~a", {"n": 2})
    run = server.ended(run_id)
    assert run["output"] == {"n": 2}
    return [short(during), late.status, short(run)]


@rule(25, 88)
def a_last_attempt_without_response_times_out_the_workflow(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0, responseTimeoutSeconds=1))
    run_id = server.launch([simple("a")])
    server.take("~a")
    run = timed_out(server, run_id)
    assert run["status"] == "TIMED_OUT"
    return [short(run), run["failedReferenceTaskNames"]]


@rule(85)
def the_timeout_comes_before_the_response_timeout(server: Server) -> Json:
    # Both have passed when the run is decided; the policy is that of timeoutSeconds only.
    server.register(
        task_def("~a", retryCount=0, timeoutSeconds=1, responseTimeoutSeconds=1),
        workflow([simple("a")]),
    )
    run_id = server.start()
    server.take("~a")
    time.sleep(1.3)
    return short(timed_out(server, run_id))


@rule(79, 85)
def the_total_timeout_comes_before_every_policy(server: Server) -> Json:
    server.register(
        task_def(
            "~a",
            retryCount=5,
            retryDelaySeconds=0,
            responseTimeoutSeconds=1,
            totalTimeoutSeconds=1,
            timeoutPolicy="RETRY",
        )
    )
    run_id = server.launch([simple("a")])
    server.take("~a")
    run = timed_out(server, run_id)
    return short(run)


@rule(92)
def a_heartbeat_only_extends_the_lease(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0, responseTimeoutSeconds=1))
    run_id = server.launch([simple("a")])
    task = server.take("~a")
    for _ in range(3):
        time.sleep(0.6)
        server.update(task, "COMPLETED", {"ignored": 1}, extendLease=True, workerId="~other")
        decide(server, run_id)
    kept = server.task(run_id, "a")
    assert kept["status"] == "IN_PROGRESS"
    unknown = {**task, "taskId": "00000000-0000-4000-8000-000000000000"}
    beat = {"taskId": unknown["taskId"], "workflowInstanceId": run_id, "extendLease": True}
    refused = server.post("/tasks", {**beat, "status": "IN_PROGRESS"})
    assert refused.status == 404
    server.update(task, output={"n": 1})
    late = server.update(task, "IN_PROGRESS", extendLease=True)
    return [
        pick(kept, "status", "outputData", "workerId"),
        refused.status,
        late.status,
        short(server.ended(run_id)),
    ]


@rule(1, 4, 93, 94)
def a_workflow_times_out(server: Server) -> Json:
    run_id = server.launch(
        [simple("a")], timeoutSeconds=1, timeoutPolicy="TIME_OUT_WF", failureWorkflow="~none"
    )
    server.take("~a")
    run = timed_out(server, run_id)
    assert run["status"] == "TIMED_OUT"
    assert last_task(run, "a")["status"] == "CANCELED"
    return [short(run), server.put(f"/workflow/{run_id}/pause").status]


@rule(94)
def alert_only_lets_a_workflow_go_on(server: Server) -> Json:
    run_id = server.launch([simple("a")], timeoutSeconds=1, timeoutPolicy="ALERT_ONLY")
    time.sleep(1.3)
    assert decide(server, run_id)["status"] == "RUNNING"
    server.work("~a")
    return short(server.ended(run_id))


@rule(93)
def no_workflow_timeout_by_default(server: Server) -> Json:
    run_id = server.launch([simple("a")], timeoutSeconds=0, timeoutPolicy="TIME_OUT_WF")
    time.sleep(0.3)
    run = decide(server, run_id)
    assert run["status"] == "RUNNING"
    return short(run)


@rule(93, recorded=True)
def a_retried_workflow_has_its_whole_timeout_again(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    run_id = server.launch([simple("a")], timeoutSeconds=1, timeoutPolicy="TIME_OUT_WF")
    assert timed_out(server, run_id)["status"] == "TIMED_OUT"
    ok(server.post(f"/workflow/{run_id}/retry"))
    server.work("~a", {"n": 1})
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    return short(run)


@rule(95)
def a_paused_workflow_times_out_when_decided(server: Server) -> Json:
    run_id = server.launch([simple("a")], timeoutSeconds=1, timeoutPolicy="TIME_OUT_WF")
    ok(server.put(f"/workflow/{run_id}/pause"))
    run = timed_out(server, run_id)
    assert run["status"] == "TIMED_OUT"
    return [run["status"], [task["status"] for task in run["tasks"]]]
