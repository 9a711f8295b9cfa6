"""Section 12: retry of a run without children (rules 229-231).

Those with a JOIN are recorded: now and then the real server evaluates the JOIN while the retry is
half done, and ends the run again.
"""

from __future__ import annotations

import time

from tests.conformance.cases.families import fail, report, seen, settled
from tests.conformance.harness import (
    Json,
    Server,
    last_task,
    ok,
    pick,
    rule,
    simple,
    statuses,
    step,
    summary,
    task_def,
)

UNKNOWN = "00000000-0000-0000-0000-00000000abcd"


def retry(server: Server, run_id: str, **query: Json) -> Json:
    return ok(server.post(f"/workflow/{run_id}/retry", **query))


@rule(229)
def retry_of_runs_that_cannot_be_retried(server: Server) -> Json:
    running = server.launch([simple("a")])
    answers = {"running": server.post(f"/workflow/{running}/retry")}
    ok(server.put(f"/workflow/{running}/pause"))
    answers["paused"] = server.post(f"/workflow/{running}/retry")
    completed = server.launch([step("NOOP", "n")], name="~noop")
    answers["completed"] = server.post(f"/workflow/{completed}/retry")
    # A fork without JOIN ends its run before any task is made.
    no_join = [step("FORK_JOIN_DYNAMIC", "f", {"t": [], "i": {}}, dynamicForkTasksParam="t")]
    no_join[0]["dynamicForkTasksInputParamName"] = "i"
    empty = server.launch(no_join, name="~empty")
    assert server.run(empty)["tasks"] == []
    assert server.ended(empty)["status"] == "FAILED"
    answers["no tasks"] = server.post(f"/workflow/{empty}/retry")
    answers["unknown"] = server.post(f"/workflow/{UNKNOWN}/retry")
    assert [answer.status for answer in answers.values()] == [404, 404, 409, 409, 404]
    return [answers, server.run(completed)["status"], server.run(empty)["status"]]


@rule(229, difference="where there is nothing to retry it says so: 409, not 204")
def retry_with_sub_workflows_of_a_completed_run(server: Server) -> Json:
    run_id = server.launch([step("NOOP", "n")])
    answer = server.post(f"/workflow/{run_id}/retry", resumeSubworkflowTasks=True)
    assert answer.status == (409 if server.is_ours else 204)
    assert server.run(run_id)["status"] == "COMPLETED"
    return answer.status


@rule(230, 231)
def retry_gives_the_failed_task_another_attempt(server: Server) -> Json:
    inputs = {"n": "${first.output.n}", "v": "${workflow.variables.v}", "id": "${CPEWF_TASK_ID}"}
    run_id = server.launch(
        [simple("first"), step("SET_VARIABLE", "set", {"v": 1}), simple("a", inputs)],
        outputParameters={"n": "${a.output.n}"},
    )
    report(server, run_id, "first", output={"n": 7})
    fail(server, run_id, "a", outputData={"n": "old"}, workerId="~me", callbackAfterSeconds=9)
    failed = settled(server, run_id)
    assert failed["status"] == "FAILED"
    answer = server.post(f"/workflow/{run_id}/retry")
    assert answer.status == 204
    running = server.run(run_id)
    attempt = server.task_when(run_id, "a", "SCHEDULED")
    assert attempt["inputData"] == {"n": 7, "v": 1, "id": attempt["taskId"]}
    assert attempt["outputData"] == {}
    assert running["lastRetriedTime"] > 0
    polled = server.take("~a")
    assert polled["taskId"] == attempt["taskId"]
    server.update(polled, output={"n": "new"})
    ended = server.ended(run_id)
    assert ended["status"] == "COMPLETED"
    times = ("createTime", "startTime", "endTime", "lastRetriedTime")
    fields = ("inputData", "outputData", "callbackAfterSeconds", "startDelayInSeconds", "workerId")
    return [
        answer,
        seen(failed),
        seen(running),
        pick(attempt, *fields, "pollCount", "startTime", "endTime", "scheduledTime"),
        attempt.get("reasonForIncompletion"),
        [pick(run, *times, "output", "variables") for run in (failed, running, ended)],
        [[task["executed"] for task in run["tasks"]] for run in (failed, running, ended)],
        seen(ended),
    ]


@rule(231)
def a_run_is_retried_more_often_than_the_task_allows(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([simple("a")])
    for _ in range(2):
        report(server, run_id, "a", "FAILED", reasonForIncompletion="no")
    ended = [seen(settled(server, run_id))]
    retry(server, run_id)
    first = server.task_when(run_id, "a", "SCHEDULED")
    assert first["retryCount"] == 2
    # There are no automatic attempts left.
    report(server, run_id, "a", "FAILED", reasonForIncompletion="again")
    ended.append(seen(settled(server, run_id)))
    retry(server, run_id)
    report(server, run_id, "a")
    ended.append(seen(server.ended(run_id)))
    assert [run["status"] for run in ended] == ["FAILED", "FAILED", "COMPLETED"]
    return ended


@rule(230, recorded=True)
def retry_in_a_fork_brings_siblings_back_and_reopens_the_join(server: Server) -> Json:
    branches = [[simple("a")], [simple("b1"), simple("b2")], [simple("c")], [step("HUMAN", "h")]]
    fork = step("FORK_JOIN", "f", forkTasks=branches)
    join = step("JOIN", "j", joinOn=["a", "b2", "c", "h"])
    run_id = server.launch([fork, join, simple("after")])
    report(server, run_id, "b1", output={"b": 1})
    report(server, run_id, "c", output={"c": 1})
    server.task_when(run_id, "b2", "SCHEDULED")
    fail(server, run_id, "a")
    failed = settled(server, run_id)
    assert statuses(failed)["j"] == "CANCELED"
    retry(server, run_id)
    running = server.run(run_id)
    for reference in ("a", "b2", "h", "after"):
        report(server, run_id, reference)
    ended = server.ended(run_id)
    assert ended["status"] == "COMPLETED"
    # What had ended well is left alone, the JOIN goes on under its own id.
    assert len([t for t in ended["tasks"] if t["referenceTaskName"] in "c b1 j"]) == 3
    return [seen(failed), seen(running), seen(ended), last_task(ended, "j")["outputData"]]


@rule(230, recorded=True)
def retry_in_a_loop_goes_on_in_its_round(server: Server) -> Json:
    body = [simple("a"), simple("b")]
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 3", loopOver=body)
    run_id = server.launch([loop, simple("after")])
    for number in (1, 2):
        report(server, run_id, f"a__{number}", output={"n": number})
        if number == 1:
            report(server, run_id, "b__1")
    fail(server, run_id, "b__2")
    failed = settled(server, run_id)
    retry(server, run_id)
    running = server.run(run_id)
    for reference in ("b__2", "a__3", "b__3", "after"):
        report(server, run_id, reference)
    ended = server.ended(run_id)
    assert ended["status"] == "COMPLETED"
    return [seen(failed), seen(running), seen(ended), last_task(ended, "l")["outputData"]]


@rule(230, recorded=True)
def retry_in_a_dynamic_fork_keeps_its_branches(server: Server) -> Json:
    branches = [
        {"name": f"~{name}", "taskReferenceName": name, "type": "SIMPLE"} for name in ("x", "y")
    ]
    fork = step(
        "FORK_JOIN_DYNAMIC",
        "f",
        {"t": branches, "i": {"x": {"n": 1}, "y": {"n": 2}}},
        dynamicForkTasksParam="t",
        dynamicForkTasksInputParamName="i",
    )
    run_id = server.launch([fork, step("JOIN", "j"), simple("after")])
    fail(server, run_id, "x")
    failed = settled(server, run_id)
    retry(server, run_id)
    running = server.run(run_id)
    inputs = {ref: last_task(running, ref)["inputData"] for ref in "xy"}
    for reference in ("x", "y", "after"):
        report(server, run_id, reference)
    ended = server.ended(run_id)
    assert ended["status"] == "COMPLETED"
    return [seen(failed), seen(running), inputs, seen(ended)]


@rule(230, recorded=True)
def retry_of_a_permissive_failure_reopens_its_join(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    fork = step("FORK_JOIN", "f", forkTasks=[[simple("a", permissive=True)], [simple("b")]])
    run_id = server.launch([fork, step("JOIN", "j", joinOn=["a", "b"])])
    report(server, run_id, "a", "FAILED", reasonForIncompletion="no")
    report(server, run_id, "b")
    failed = settled(server, run_id)
    assert statuses(failed)["j"] == "FAILED"
    retry(server, run_id)
    report(server, run_id, "a")
    ended = server.ended(run_id)
    assert ended["status"] == "COMPLETED"
    return [seen(failed, joins=True), seen(ended)]


@rule(230)
def optional_failures_are_not_retried(server: Server) -> Json:
    server.register(task_def("~o", retryCount=0))
    run_id = server.launch([simple("o", optional=True), simple("a")])
    report(server, run_id, "o", "FAILED", reasonForIncompletion="may be")
    fail(server, run_id, "a")
    settled(server, run_id)
    retry(server, run_id)
    run = server.run(run_id)
    assert len(run["tasks"]) == 3
    return seen(run)


@rule(230)
def retry_of_failed_system_tasks(server: Server) -> Json:
    bad = "if ($.fail) { throw 'no' } ; 1"
    inline = {"evaluatorType": "javascript", "expression": bad, "fail": "${workflow.variables.no}"}
    query = {"queryExpression": ".a | error"}
    seen_runs = {}
    for name, made in {
        "inline": step("INLINE", "i", inline),
        "jq": step("JSON_JQ_TRANSFORM", "q", query | {"a": 1}),
    }.items():
        run_id = server.launch([made], name=f"~{name}", variables={"no": True})
        failed = settled(server, run_id)
        assert failed["status"] == "FAILED"
        retry(server, run_id)
        again = server.run_when(run_id, lambda run: len(run["tasks"]) == 2)
        again = settled(server, run_id)
        seen_runs[name] = [
            again["status"],
            [pick(task, "status", "retryCount", "retried") for task in again["tasks"]],
        ]
    return seen_runs


@rule(229, 230, recorded=True)
def retry_of_a_terminated_run_brings_back_what_was_cancelled(server: Server) -> Json:
    loop = step("DO_WHILE", "l", loopCondition="$.l.iteration < 1", loopOver=[simple("x")])
    wait = step("WAIT", "w", {"duration": "1h"})
    fork = step("FORK_JOIN", "f", forkTasks=[[simple("a")], [loop], [wait], [step("HUMAN", "h")]])
    join = step("JOIN", "j", joinOn=["a", "l", "w", "h"])
    run_id = server.launch([fork, join])
    server.task_when(run_id, "x__1", "SCHEDULED")
    report(server, run_id, "h", "IN_PROGRESS", {"half": 1})
    ok(server.delete(f"/workflow/{run_id}", reason="why not"))
    terminated = settled(server, run_id)
    retry(server, run_id)
    running = server.run_when(run_id, lambda run: statuses(run)["w"] == "IN_PROGRESS")
    for reference in ("a", "x__1", "w", "h"):
        report(server, run_id, reference)
    ended = server.ended(run_id)
    assert ended["status"] == "COMPLETED"
    return [seen(terminated), statuses(running), seen(ended)]


@rule(229, recorded=True)
def a_timed_out_run_is_retried_without_a_failed_task_a_terminated_one_is_not(
    server: Server,
) -> Json:
    fork = step("FORK_JOIN", "f", forkTasks=[[simple("a")], [simple("b")]])
    # Only the JOIN is open, for ever: a cancelled JOIN is nothing to retry.
    tasks = [fork, step("JOIN", "j", joinOn=["a", "never"])]
    run_id = server.launch(tasks, timeoutSeconds=1, timeoutPolicy="TIME_OUT_WF")
    report(server, run_id, "a")
    report(server, run_id, "b")
    time.sleep(1.1)
    server.put(f"/workflow/decide/{run_id}")
    timed_out = settled(server, run_id)
    assert timed_out["status"] == "TIMED_OUT"
    answers = [server.post(f"/workflow/{run_id}/retry")]
    running = server.run(run_id)
    assert running["status"] == "RUNNING"
    ok(server.delete(f"/workflow/{run_id}"))
    settled(server, run_id)
    answers.append(server.post(f"/workflow/{run_id}/retry"))
    assert [answer.status for answer in answers] == [204, 409]
    return [answers, seen(timed_out), seen(running), server.run(run_id)["status"]]


@rule(229, 230, recorded=True)
def a_task_that_timed_out_is_retried(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0, timeoutSeconds=1, responseTimeoutSeconds=1))
    run_id = server.launch([simple("a")])
    server.take("~a")
    time.sleep(1.1)
    server.put(f"/workflow/decide/{run_id}")
    timed_out = settled(server, run_id)
    assert timed_out["status"] == "TIMED_OUT"
    retry(server, run_id)
    report(server, run_id, "a")
    ended = server.ended(run_id)
    assert ended["status"] == "COMPLETED"
    return [seen(timed_out), seen(ended)]


@rule(230)
def retry_after_a_terminate_task(server: Server) -> Json:
    end = {"terminationStatus": "FAILED", "terminationReason": "enough"}
    branches = [[simple("go"), step("TERMINATE", "t", end)], [simple("b")]]
    fork = step("FORK_JOIN", "f", forkTasks=branches)
    run_id = server.launch([fork, step("JOIN", "j", joinOn=["b"])])
    report(server, run_id, "go")
    failed = settled(server, run_id)
    assert failed["status"] == "FAILED"
    answer = server.post(f"/workflow/{run_id}/retry")
    ended = settled(server, run_id)
    # The TERMINATE task ends it again. By then the JOIN of the real server may have seen that
    # the new attempt is cancelled: whether it is FAILED or TERMINATED is chance there.
    assert ended["status"] in ("FAILED", "TERMINATED")
    return [seen(failed), answer, seen(ended)["tasks"]]


@rule(231)
def a_retried_run_may_fail_again(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    run_id = server.launch([simple("a"), simple("b")])
    for reason in ("one", "two"):
        report(server, run_id, "a", "FAILED", reasonForIncompletion=reason)
        settled(server, run_id)
        retry(server, run_id)
    report(server, run_id, "a")
    fail(server, run_id, "b", "three")
    run = settled(server, run_id)
    assert run["status"] == "FAILED"
    return [seen(run), summary(run)["output"]]


@rule(231)
def retry_counts_the_workflow_timeout_anew(server: Server) -> Json:
    run_id = server.launch([simple("a")], timeoutSeconds=3600, timeoutPolicy="TIME_OUT_WF")
    fail(server, run_id, "a")
    failed = settled(server, run_id)
    retry(server, run_id)
    running = server.run(run_id)
    assert running["createTime"] == failed["createTime"]
    assert running["lastRetriedTime"] > running["createTime"]
    fields = ("status", "createTime", "lastRetriedTime", "endTime", "reasonForIncompletion")
    return [pick(run, *fields) for run in (failed, running)]


@rule(239, difference="a run with a skipped step can be retried; the real server answers 500")
def a_run_with_a_skipped_step_is_retried(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b"), simple("c")])
    ok(server.put(f"/workflow/{run_id}/skiptask/b"))
    fail(server, run_id, "a")
    settled(server, run_id)
    answer = server.post(f"/workflow/{run_id}/retry")
    if server.is_ours:
        assert answer.status == 204
        report(server, run_id, "a")
        report(server, run_id, "c")
        assert server.ended(run_id)["status"] == "COMPLETED"
    else:
        assert answer.status == 500
    return answer.status
