"""Five small cases that show how one is written."""

from __future__ import annotations

from tests.conformance.harness import (
    Json,
    Server,
    pick,
    rule,
    simple,
    statuses,
    step,
    summary,
    task_def,
    workflow,
)


@rule(25)
def a_canceled_task_terminates_the_workflow(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    server.work("~a", status="CANCELED", reasonForIncompletion="no more")
    run = server.ended(run_id)
    assert run["status"] == "TERMINATED"
    return summary(run)


@rule(35)
def an_unknown_workflow_is_404(server: Server) -> Json:
    return {
        "body": server.post("/workflow", {"name": "~unknown"}),
        "body, version": server.post("/workflow", {"name": "~unknown", "version": 3}),
        "path": server.post("/workflow/~unknown", {}),
        "path, version": server.post("/workflow/~unknown", {}, version=3),
    }


@rule(44)
def leading_system_tasks_have_ended_when_start_returns(server: Server) -> Json:
    run_id = server.launch([step("SET_VARIABLE", "v", {"x": 1}), simple("a")])
    run = server.run(run_id)
    assert statuses(run) == {"v": "COMPLETED", "a": "SCHEDULED"}
    return [summary(run), run["variables"]]


@rule(103)
def updates_of_unknown_and_ended_tasks(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b")])
    done = server.work("~a", {"n": 1})
    late = server.update(done, "FAILED", {"n": 2})
    unknown = {**done, "taskId": "00000000-0000-4000-8000-000000000000"}
    result = {"taskId": unknown["taskId"], "workflowInstanceId": run_id, "status": "COMPLETED"}
    kept = server.task(run_id, "a")
    assert (kept["status"], kept["outputData"]) == ("COMPLETED", {"n": 1})
    return [late.status, server.post("/tasks", result).status, pick(kept, "status", "outputData")]


@rule(37)
def a_definition_in_the_start_request_is_used(server: Server) -> Json:
    server.register(task_def("~a", retryCount=0))
    answer = server.post("/workflow", {"name": "~w", "workflowDef": workflow([simple("a")])})
    server.work("~a", {"n": 1})
    run = server.ended(str(answer.body))
    assert run["status"] == "COMPLETED"
    return [run["workflowName"], summary(run), server.get("/metadata/workflow/~w").status]
