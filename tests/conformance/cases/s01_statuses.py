"""Section 1: status sets (rules 1-5), and section 2: what a decide does (rules 8-26)."""

from __future__ import annotations

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
    workflow,
)

REPORTS = ("COMPLETED", "FAILED", "FAILED_WITH_TERMINAL_ERROR", "CANCELED")


@rule(1, 25)
def each_reported_status_ends_task_and_workflow(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0), workflow([simple("a")]))
    seen = {}
    for status in REPORTS:
        run_id = server.start()
        task = server.work("~a", status=status)
        run = server.ended(run_id)
        late = server.update(task, "COMPLETED", {"late": True})
        assert server.task(run_id, "a")["status"] == status
        seen[status] = [run["status"], statuses(run), late.status]
    assert [seen[status][0] for status in REPORTS] == [
        "COMPLETED",
        "FAILED",
        "FAILED",
        "TERMINATED",
    ]
    return seen


@rule(1, 82)
def an_optional_task_ends_completed_with_errors(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([simple("a", optional=True), simple("b")])
    server.work("~a", {"n": 1}, "FAILED", reasonForIncompletion="first")
    server.work("~a", {"n": 2}, "FAILED", reasonForIncompletion="second")
    server.work("~b")
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    assert last_task(run, "a")["status"] == "COMPLETED_WITH_ERRORS"
    return summary(run)


@rule(1, 12)
def a_skipped_step_is_jumped_over(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b"), simple("c")])
    ok(server.put(f"/workflow/{run_id}/skiptask/b"))
    server.work("~a")
    server.work("~c")
    run = server.ended(run_id)
    assert statuses(run) == {"a": "COMPLETED", "b": "SKIPPED", "c": "COMPLETED"}
    return [run["status"], statuses(run)]


@rule(3, 70, 80, 81)
def canceled_and_terminal_errors_are_not_retried(server: Server) -> Json:
    server.register(task_def("~a", retryCount=3, retryDelaySeconds=0), workflow([simple("a")]))
    seen = {}
    for status in ("CANCELED", "FAILED_WITH_TERMINAL_ERROR"):
        run_id = server.start()
        server.work("~a", status=status)
        seen[status] = summary(server.ended(run_id))
        assert len(seen[status]["tasks"]) == 1
    run_id = server.start()
    server.work("~a", status="FAILED")
    server.work("~a")
    seen["FAILED"] = summary(server.ended(run_id))
    assert [task["status"] for task in seen["FAILED"]["tasks"]] == ["FAILED", "COMPLETED"]
    return seen


@rule(4)
def ended_workflows_refuse_pause_and_live_ones_do_not(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0), workflow([simple("a")]))
    seen: dict[str, Json] = {}
    for status in ("COMPLETED", "FAILED", "CANCELED"):
        run_id = server.start()
        server.work("~a", status=status)
        ended = server.ended(run_id)["status"]
        seen[ended] = server.put(f"/workflow/{run_id}/pause")
        assert seen[ended].status == 409
    run_id = server.start()
    assert server.run(run_id)["status"] == "RUNNING"
    seen["RUNNING"] = server.put(f"/workflow/{run_id}/pause")
    assert server.run(run_id)["status"] == "PAUSED"
    seen["PAUSED"] = server.put(f"/workflow/{run_id}/pause")
    ok(server.delete(f"/workflow/{run_id}"))
    return {**seen, "at last": server.run(run_id)["status"]}


@rule(5, difference="a status a worker may not report is the client's error: 400, not 500")
def a_worker_may_report_five_statuses_only(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    task = server.take("~a")
    seen = {}
    for status in ("SCHEDULED", "TIMED_OUT", "SKIPPED", "COMPLETED_WITH_ERRORS", "DONE"):
        result = {"taskId": task["taskId"], "workflowInstanceId": run_id, "status": status}
        seen[status] = server.post("/tasks", result).status
        assert seen[status] == (400 if server.is_ours else 500)
    kept = server.task(run_id, "a")
    assert kept["status"] == "IN_PROGRESS"
    return seen


@rule(8)
def deciding_an_ended_workflow_changes_nothing(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    run_id = server.launch([simple("a"), simple("b")])
    server.work("~a", status="FAILED", reasonForIncompletion="bad")
    before = server.ended(run_id)
    answer = server.put(f"/workflow/decide/{run_id}")
    after = server.run(run_id)
    assert before == after
    return [answer, summary(after)]


@rule(11)
def executed_and_retried_tell_what_was_done_with_a_task(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([simple("a"), simple("b")])
    fields = ("referenceTaskName", "retryCount", "status", "retried", "executed")
    seen = [[pick(task, *fields) for task in server.run(run_id)["tasks"]]]
    for status in ("FAILED", "COMPLETED"):
        server.work("~a", status=status)
        seen.append([pick(task, *fields) for task in server.run(run_id)["tasks"]])
    assert [task["retried"] for task in seen[2]] == [True, False, False]
    return seen


@rule(12, 21)
def steps_come_one_after_the_other(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b"), simple("c")])
    seen = [statuses(server.run(run_id))]
    for name in ("a", "b", "c"):
        server.work(f"~{name}", {"by": name})
        run = server.run(run_id)
        seen.append([run["status"], run["output"], statuses(run)])
    assert seen[0] == {"a": "SCHEDULED"}
    assert seen[3][0] == "COMPLETED"
    return seen


@rule(13)
def a_run_without_tasks_is_completed(server: Server) -> Json:
    child = {"name": "~c", "version": 1, "workflowDefinition": "${workflow.input.d}"}
    run_id = server.launch(
        [step("SUB_WORKFLOW", "s", {}, subWorkflowParam=child)],
        {"d": {"name": "~c", "version": 1, "tasks": []}},
    )
    run = server.ended(run_id)
    child_run = server.run(last_task(run, "s")["subWorkflowId"])
    assert child_run["status"] == "COMPLETED"
    return [summary(child_run), run["status"]]


@rule(14, 15)
def a_step_is_not_scheduled_twice(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b")])
    first = server.work("~a")
    for _ in range(5):
        server.update(first)
        ok(server.put(f"/workflow/decide/{run_id}"))
    run = server.run(run_id)
    assert [task["referenceTaskName"] for task in run["tasks"]] == ["a", "b"]
    return summary(run)


@rule(16, recorded=True)
def seq_counts_every_scheduled_task(server: Server) -> Json:
    # Retried is a task that the JOIN does not wait for: the real server's JOIN may take the failure
    # of one that it waits for as final before the retry exists.
    server.register(task_def("~c", retryCount=1, retryDelaySeconds=0))
    fork = step("FORK_JOIN", "f", forkTasks=[[simple("b")], [simple("c"), simple("d")]])
    run_id = server.launch([simple("a"), fork, step("JOIN", "j", joinOn=["b", "d"]), simple("e")])
    server.work("~a")
    server.work("~c", status="FAILED")
    server.work("~c")
    server.work("~b")
    server.work("~d")
    server.work("~e")
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    return [[task["referenceTaskName"], task["retryCount"], task["seq"]] for task in run["tasks"]]


@rule(21)
def a_workflow_goes_on_until_every_branch_has_ended(server: Server) -> Json:
    fork = step("FORK_JOIN", "f", forkTasks=[[simple("a")], [simple("b"), simple("c")]])
    run_id = server.launch([fork, step("JOIN", "j", joinOn=["a"])])
    server.work("~a")
    server.task_when(run_id, "j", "COMPLETED")
    seen = [server.run(run_id)["status"]]
    server.work("~b")
    seen.append(server.run(run_id)["status"])
    assert seen == ["RUNNING", "RUNNING"]
    server.work("~c")
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    return [*seen, run["status"], statuses(run)]


@rule(21, 22)
def terminate_in_a_branch_cancels_the_others(server: Server) -> Json:
    end = {"terminationStatus": "COMPLETED", "workflowOutput": {"x": 1}}
    branches = [[simple("a"), step("TERMINATE", "t", end)], [simple("b")]]
    fork = step("FORK_JOIN", "f", forkTasks=branches)
    run_id = server.launch([fork, step("JOIN", "j", joinOn=["t", "b"]), simple("c")])
    server.work("~a")
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    assert statuses(run)["b"] == "CANCELED"
    assert server.poll("~b") is None
    return [run["status"], run["output"], statuses(run)]


@rule(23, 83)
def permissive_failures_fail_the_run_at_its_end(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0), task_def("~b", retryCount=0))
    run_id = server.launch(
        [simple("a", permissive=True), simple("b", permissive=True), simple("c")]
    )
    server.work("~a", {"n": 1}, "FAILED", reasonForIncompletion="one")
    server.work("~b", {"n": 2}, "FAILED_WITH_TERMINAL_ERROR", reasonForIncompletion="two")
    assert server.run(run_id)["status"] == "RUNNING"
    server.work("~c", {"n": 3})
    run = server.ended(run_id)
    assert run["status"] == "FAILED"
    return [summary(run), sorted(run["failedReferenceTaskNames"])]


@rule(24, 26)
def the_reason_of_a_failed_run_names_the_task(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0), workflow([simple("a")]))
    seen = []
    for reason in ("no stock", None):
        run_id = server.start()
        server.work("~a", status="FAILED", reasonForIncompletion=reason)
        run = server.ended(run_id)
        seen.append([summary(run), run["failedReferenceTaskNames"], run["failedTaskNames"]])
    assert "no stock" in seen[0][0]["reasonForIncompletion"]
    return seen


@rule(25)
def a_canceled_task_terminates_the_workflow(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    server.work("~a", status="CANCELED", reasonForIncompletion="no more")
    run = server.ended(run_id)
    assert run["status"] == "TERMINATED"
    return [summary(run), run["failedReferenceTaskNames"], run["failedTaskNames"]]


@rule(26)
def failed_names_are_collected_on_completed_runs_too(server: Server) -> Json:
    server.register(task_def("~a", retryCount=1, retryDelaySeconds=0))
    run_id = server.launch([simple("a"), simple("b", optional=True, retryCount=0), simple("c")])
    server.work("~a", status="FAILED")
    server.work("~a")
    server.work("~b", status="FAILED_WITH_TERMINAL_ERROR")
    server.work("~c")
    run = server.ended(run_id)
    assert run["status"] == "COMPLETED"
    names = (run["failedReferenceTaskNames"], run["failedTaskNames"])
    return [summary(run), *map(sorted, names)]


@rule(26)
def a_terminal_error_is_among_the_failed_names(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b")])
    server.work("~a")
    server.work("~b", status="FAILED_WITH_TERMINAL_ERROR")
    run = server.ended(run_id)
    names = pick(run, "failedReferenceTaskNames", "failedTaskNames")
    assert names == {"failedReferenceTaskNames": ["b"], "failedTaskNames": ["~b"]}
    return names
