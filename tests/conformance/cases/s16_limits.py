"""Section 16: payload limits (rule 275)."""

from __future__ import annotations

from tests.conformance.harness import Json, Server, pick, rule, simple, workflow

MIB = 2**20


@rule(275, difference="payloads over the limit are refused; nothing is stored outside yet")
def a_task_output_over_the_limit(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b")])
    server.update(server.task(run_id, "a"), output={"big": "x" * 4 * MIB})
    run = server.run(run_id)
    task = run["tasks"][0]
    # Neither keeps it in the run.
    assert task["outputData"] == {}
    if server.is_ours:
        assert [run["status"], task["status"]] == ["FAILED", "FAILED_WITH_TERMINAL_ERROR"]
        assert "limit" in run["reasonForIncompletion"]
    else:
        assert [run["status"], task["status"]] == ["RUNNING", "COMPLETED"]
        assert task["externalOutputPayloadStoragePath"]
    return [run["status"], task["status"]]


@rule(275)
def a_task_output_below_the_limit(server: Server) -> Json:
    run_id = server.launch([simple("a"), simple("b", {"n": "${a.output.n}"})])
    server.update(server.task(run_id, "a"), output={"big": "x" * 2 * MIB, "n": 1})
    run = server.run(run_id)
    assert run["status"] == "RUNNING"
    assert len(run["tasks"][0]["outputData"]["big"]) == 2 * MIB
    return [pick(task, "status", "inputData") for task in run["tasks"]]


@rule(275, difference="an input over 5 MiB is refused with 413; the real one stores it outside")
def a_workflow_input_over_the_limit(server: Server) -> Json:
    server.register(workflow([simple("a")]))
    answers = [
        server.post("/workflow", {"name": "~w", "correlationId": "~c", "input": {"b": "x" * size}})
        for size in (4 * MIB, 6 * MIB, 11 * MIB)
    ]
    started = server.get("/workflow/~w/correlated/~c", includeClosed=True).body
    found = [answer.status for answer in answers]
    assert found == ([200, 413, 413] if server.is_ours else [200, 200, 500])
    assert len(started) == found.count(200)
    for run in started:
        server.delete(f"/workflow/{run['workflowId']}")
    return found


@rule(275, difference="a body over 10 MiB is refused and changes nothing; the real task fails")
def a_body_over_the_limit(server: Server) -> Json:
    run_id = server.launch([simple("a")])
    task = server.task(run_id, "a")
    result = {
        **pick(task, "taskId", "workflowInstanceId"),
        "status": "COMPLETED",
        "outputData": {"big": "x" * 11 * MIB},
    }
    answer = server.post("/tasks", result)
    run = server.run(run_id)
    if server.is_ours:
        assert [answer.status, run["status"]] == [413, "RUNNING"]
        assert sorted(answer.body) == ["instance", "message", "retryable", "status"]
    else:
        assert [answer.status, run["status"]] == [200, "FAILED"]
    return [answer.status, run["status"]]
