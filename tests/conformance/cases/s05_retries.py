"""Section 5: retries (rules 70-84)."""

from __future__ import annotations

import time

from tests.conformance.cases.s06_timeouts import short
from tests.conformance.harness import (
    Json,
    Server,
    last_task,
    pick,
    rule,
    simple,
    statuses,
    step,
    summary,
    task_def,
    workflow,
)


def fail(server: Server, run_id: str, reference: str, **result: Json) -> Json:
    """Fail the newest attempt without polling it, so without waiting for its delay; the retry."""
    server.update(server.task(run_id, reference), "FAILED", **result)
    return server.task(run_id, reference)


def delays(server: Server, attempts: int, **definition: Json) -> Json:
    """The delays that the retries of a task show, and the end of the run."""
    server.register(task_def("~a", retryCount=attempts, **definition))
    run_id = server.launch([simple("a")])
    seen = []
    for number in range(1, attempts + 1):
        retry = fail(server, run_id, "a")
        assert retry["retryCount"] == number
        seen.append([retry["callbackAfterSeconds"], retry["startDelayInSeconds"]])
    fail(server, run_id, "a")
    return [seen, server.ended(run_id)["status"]]


@rule(70, 71)
def a_worker_task_is_retried_as_often_as_allowed(server: Server) -> Json:
    server.register(
        task_def("~a", retryCount=2, retryDelaySeconds=0),
        task_def("~zero", retryCount=0),
    )
    seen = {}
    steps: dict[str, dict[str, Json]] = {
        "by definition": {"name": "~a"},
        "by step": {"name": "~a", "retryCount": 1},
        "none by step": {"name": "~a", "retryCount": 0},
        "none by definition": {"name": "~zero"},
        "by step over none": {"name": "~zero", "retryCount": 1},
    }
    for name, fields in steps.items():
        run_id = server.launch([simple("t", **fields)])
        while server.run(run_id)["status"] == "RUNNING":
            fail(server, run_id, "t")
        seen[name] = [task["retryCount"] for task in server.run(run_id)["tasks"]]
    assert [len(tries) for tries in seen.values()] == [3, 2, 1, 1, 2]
    return seen


@rule(70)
def a_custom_type_is_retried_and_a_system_task_is_not(server: Server) -> Json:
    server.register(task_def("~c", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([step("~type", "c", name="~c")])
    fail(server, run_id, "c", reasonForIncompletion="one")
    fail(server, run_id, "c", reasonForIncompletion="two")
    custom = server.ended(run_id)
    assert [task["retryCount"] for task in custom["tasks"]] == [0, 1]
    server.register(task_def("~s", retryCount=1, retryDelaySeconds=0))
    switch = step(
        "SWITCH",
        "s",
        {},
        name="~s",
        evaluatorType="javascript",
        expression="nothing.at.all",
        decisionCases={"x": [simple("x")]},
    )
    run_id = server.launch([simple("b"), switch])
    server.work("~b")
    ended = server.ended(run_id)
    assert len(ended["tasks"]) == 2
    return [summary(custom), ended["status"], statuses(ended)]


@rule(72, 73)
def a_retry_is_a_new_task_with_the_old_input(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    parameters = {"v": "${workflow.variables.v}", "x": "${workflow.input.x}"}
    branches = [[simple("a", parameters)], [simple("b"), step("SET_VARIABLE", "v", {"v": 2})]]
    fork = step("FORK_JOIN", "f", forkTasks=branches)
    run_id = server.launch([fork, step("JOIN", "j", joinOn=["v"])], {"x": "in"}, variables={"v": 1})
    server.work("~b")
    old = server.work("~a", {"out": 1}, "FAILED", reasonForIncompletion="why", workerId="~w")
    retry = server.task(run_id, "a")
    assert retry["retriedTaskId"] == old["taskId"] != retry["taskId"]
    assert (retry["status"], retry["retryCount"], retry["inputData"]["v"]) == ("SCHEDULED", 1, 2)
    first = next(task for task in server.run(run_id)["tasks"] if task["taskId"] == old["taskId"])
    fields = [
        "referenceTaskName",
        "status",
        "retryCount",
        "retried",
        "retriedTaskId",
        "taskId",
        "inputData",
        "outputData",
        "workerId",
        "startTime",
        "endTime",
        "pollCount",
        "scheduledTime",
        "reasonForIncompletion",
        "callbackAfterSeconds",
        "startDelayInSeconds",
        "responseTimeoutSeconds",
    ]
    return [pick(first, *fields), pick(retry, *fields)]


@rule(73)
def a_retry_is_polled_like_a_new_task(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    server.launch([simple("a", {"x": 1})])
    server.work("~a", {"out": 1}, "FAILED", reasonForIncompletion="why")
    return pick(
        server.take("~a"), "retryCount", "inputData", "outputData", "pollCount", "status", "seq"
    )


@rule(74, 78)
def fixed_delays(server: Server) -> Json:
    seen = delays(server, 3, retryLogic="FIXED", retryDelaySeconds=7, backoffScaleFactor=3)
    assert seen[0] == [[7, 7]] * 3
    return seen


@rule(75, 78)
def linear_delays(server: Server) -> Json:
    seen = delays(server, 3, retryLogic="LINEAR_BACKOFF", retryDelaySeconds=5, backoffScaleFactor=2)
    assert [delay for delay, _ in seen[0]] == [10, 20, 30]
    return seen


@rule(76, 78)
def exponential_delays(server: Server) -> Json:
    seen = delays(
        server, 4, retryLogic="EXPONENTIAL_BACKOFF", retryDelaySeconds=5, backoffScaleFactor=2
    )
    assert [delay for delay, _ in seen[0]] == [5, 10, 20, 40]
    return seen


@rule(76)
def an_exponential_delay_that_overflows_is_the_largest_integer(server: Server) -> Json:
    seen = delays(server, 2, retryLogic="EXPONENTIAL_BACKOFF", retryDelaySeconds=1_500_000_000)
    assert seen[0][1] == [2**31 - 1] * 2
    return seen


@rule(77, 78)
def delays_are_capped(server: Server) -> Json:
    seen = {
        logic: delays(server, 3, retryLogic=logic, retryDelaySeconds=5, maxRetryDelaySeconds=8)
        for logic in ("FIXED", "LINEAR_BACKOFF", "EXPONENTIAL_BACKOFF")
    }
    assert [delay for delay, _ in seen["EXPONENTIAL_BACKOFF"][0]] == [5, 8, 8]
    return seen


@rule(77, 78)
def jitter_does_not_show_in_the_delay(server: Server) -> Json:
    seen = delays(server, 3, retryLogic="FIXED", retryDelaySeconds=3, backoffJitterMs=60_000)
    assert seen[0] == [[3, 3]] * 3
    return seen


@rule(74)
def a_retry_waits_for_its_delay(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=1))
    server.launch([simple("a")])
    server.work("~a", status="FAILED")
    failed = time.monotonic()
    at_once = server.poll("~a")
    retry = server.take("~a")
    waited = time.monotonic() - failed
    assert at_once is None
    assert waited > 0.8
    return pick(retry, "retryCount", "callbackAfterSeconds", "startDelayInSeconds")


@rule(79, recorded=True)
def the_total_timeout_ends_the_retries(server: Server) -> Json:
    run = failed_too_late(server, timeoutPolicy="ALERT_ONLY")
    assert run["status"] == "FAILED"
    assert "exceeded total timeout of 1 seconds" in run["reasonForIncompletion"]
    return short(run)


@rule(
    79,
    90,
    recorded=True,
    difference="a task is timed out when its time is up, not when somebody looks at it",
)
def the_total_timeout_ends_a_task_in_a_workers_hands(server: Server) -> Json:
    run = failed_too_late(server)
    ended = ("TIMED_OUT", "TIMED_OUT") if server.is_ours else ("FAILED", "FAILED")
    assert (run["status"], run["tasks"][1]["status"]) == ended
    assert "exceeded total timeout of 1 seconds" in run["reasonForIncompletion"]
    return short(run)


def failed_too_late(server: Server, **fields: Json) -> Json:
    """The end of a run whose second attempt fails when the time for all attempts is over."""
    server.register(
        task_def("~a", retryCount=5, retryDelaySeconds=0, totalTimeoutSeconds=1, **fields),
        workflow([simple("a")]),
    )
    run_id = server.start()
    server.work("~a", status="FAILED", reasonForIncompletion="early")
    task = server.take("~a")
    time.sleep(1.1)
    server.update(task, "FAILED", reasonForIncompletion="late")
    run = server.ended(run_id)
    assert len(run["tasks"]) == 2
    return run


@rule(80, 82, 83)
def a_terminal_error_of_optional_and_permissive_tasks(server: Server) -> Json:
    seen = {}
    for field in ("optional", "permissive"):
        run_id = server.launch([simple("a", **{field: True}), simple("b")])
        server.work("~a", status="FAILED_WITH_TERMINAL_ERROR", reasonForIncompletion="no")
        server.work("~b")
        seen[field] = summary(server.ended(run_id))
    assert [run["status"] for run in seen.values()] == ["COMPLETED", "FAILED"]
    return seen


@rule(81, 82, 83)
def a_cancel_of_optional_and_permissive_tasks(server: Server) -> Json:
    seen = {}
    for field in ("optional", "permissive"):
        run_id = server.launch([simple("a", **{field: True}), simple("b")])
        server.work("~a", status="CANCELED", reasonForIncompletion="no")
        server.work("~b")
        seen[field] = summary(server.ended(run_id))
    assert len(seen["optional"]["tasks"]) == 2
    return seen


@rule(82)
def an_optional_task_keeps_its_output_and_the_flow_goes_on(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    run_id = server.launch(
        [simple("a", optional=True), simple("b", {"s": "${a.status}", "o": "${a.output.n}"})]
    )
    server.work("~a", {"n": 1}, "FAILED", reasonForIncompletion="why")
    seen = server.take("~b")["inputData"]
    failed = server.task(run_id, "a")
    assert failed["status"] == "COMPLETED_WITH_ERRORS"
    return [seen, pick(failed, "status", "reasonForIncompletion", "outputData", "retried")]


@rule(83)
def a_join_waits_for_all_branches_of_a_permissive_failure(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    fork = step("FORK_JOIN", "f", forkTasks=[[simple("a", permissive=True)], [simple("b")]])
    run_id = server.launch([fork, step("JOIN", "j", joinOn=["a", "b"]), simple("c")])
    server.work("~a", status="FAILED", reasonForIncompletion="why")
    during = server.run(run_id)
    assert (during["status"], last_task(during, "j")["status"]) == ("RUNNING", "IN_PROGRESS")
    server.work("~b", {"n": 2})
    run = server.ended(run_id)
    assert run["status"] == "FAILED"
    return summary(run)


@rule(83)
def a_permissive_task_is_retried_first(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([simple("a", permissive=True), simple("b")])
    server.work("~a", status="FAILED")
    server.work("~a", status="FAILED", reasonForIncompletion="again")
    server.work("~b")
    return summary(server.ended(run_id))


@rule(84)
def optional_wins_over_permissive(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    run_id = server.launch([simple("a", optional=True, permissive=True), simple("b")])
    server.work("~a", status="FAILED", reasonForIncompletion="why")
    server.work("~b")
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    return summary(run)
