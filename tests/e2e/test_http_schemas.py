"""JSON Schemas over HTTP: every way in which a run starts, every place where a value is checked."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.served import Server, serving

Json = dict[str, Any]

NUMBER = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
FAULT = 'input.n: "one" is not of type "number"'


def schema(data: Json) -> Json:
    return {"name": "numbers", "version": 1, "type": "JSON", "data": data}


def simple(name: str, **fields: Any) -> Json:
    return {"name": name, "taskReferenceName": name, "type": "SIMPLE", **fields}


def register(server: Server, name: str, *steps: Json, **fields: Any) -> None:
    body = {"name": name, "version": 1, "tasks": list(steps), **fields}
    server.json("PUT", "/api/metadata/workflow", json=[body])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as data, serving(Path(data)) as running:
        register(running, "numbers", simple("schema_a"), inputSchema=schema(NUMBER))
        yield running
        assert [line for line in running.log if "Traceback" in line] == []


def run_of(server: Server, workflow_id: str) -> Json:
    return dict(server.json("GET", f"/api/workflow/{workflow_id}"))


def start(server: Server, name: str, value: Json) -> Json:
    return run_of(server, server.call("POST", f"/api/workflow/{name}", json=value).text)


def test_a_start_is_refused_with_the_path_and_what_was_expected(server: Server) -> None:
    bad: Json = {"n": "one"}
    definition = {"name": "inline", "tasks": [simple("schema_a")], "inputSchema": schema(NUMBER)}
    for path, body in (
        ("/api/workflow/numbers", bad),
        ("/api/workflow", {"name": "numbers", "input": bad}),
        ("/api/workflow", {"name": "inline", "input": bad, "workflowDef": definition}),
        ("/api/workflow/execute/numbers/1", {"name": "numbers", "input": bad}),
    ):
        assert FAULT in server.refused("POST", path, 400, json=body)
    assert '"n" is a required property' in server.refused("POST", "/api/workflow/numbers", 400)
    assert start(server, "numbers", {"n": 1})["status"] == "RUNNING"


def test_the_input_template_counts_before_the_schema(server: Server) -> None:
    register(
        server,
        "filled",
        simple("schema_a"),
        inputSchema=schema(NUMBER),
        inputTemplate={"n": 5},
    )
    assert start(server, "filled", {"other": True})["input"]["n"] == 5


def test_a_schema_that_is_not_to_be_enforced_is_not(server: Server) -> None:
    register(server, "lenient", simple("schema_a"), inputSchema=schema(NUMBER), enforceSchema=False)
    assert start(server, "lenient", {"n": "one"})["status"] == "RUNNING"


@pytest.mark.parametrize("inline", [False, True])
def test_a_child_that_may_not_start_fails_its_task(server: Server, inline: bool) -> None:
    params: Json = {"name": "numbers"}
    if inline:
        params["workflowDefinition"] = {
            "name": "numbers",
            "tasks": [simple("schema_a")],
            "inputSchema": schema(NUMBER),
        }
    sub = {
        "name": "sub",
        "taskReferenceName": "sub",
        "type": "SUB_WORKFLOW",
        "subWorkflowParam": params,
        "inputParameters": {"n": "${workflow.input.n}"},
    }
    register(server, "parent", sub)
    run = start(server, "parent", {"n": "one"})
    assert (run["status"], run["tasks"][0]["status"]) == ("FAILED", "FAILED")
    assert FAULT in run["tasks"][0]["reasonForIncompletion"]
    assert "subWorkflowId" not in run["tasks"][0]
    good = start(server, "parent", {"n": 1})
    assert good["tasks"][0]["status"] == "IN_PROGRESS"


def test_a_workflow_that_a_task_may_not_start_fails_the_task(server: Server) -> None:
    launch = {
        "name": "launch",
        "taskReferenceName": "launch",
        "type": "START_WORKFLOW",
        "inputParameters": {"startWorkflow": {"name": "numbers", "input": {"n": "one"}}},
    }
    register(server, "launcher", launch)
    body = {"name": "launcher", "input": {}}
    run_id = server.json("POST", "/api/workflow/execute/launcher/1?waitForSeconds=10", json=body)[
        "workflowId"
    ]
    run = run_of(server, run_id)
    assert run["tasks"][0]["status"] == "FAILED"
    assert FAULT in run["tasks"][0]["reasonForIncompletion"]


def test_a_rerun_may_not_bring_an_input_that_a_start_could_not(server: Server) -> None:
    run_id = start(server, "numbers", {"n": 1})["workflowId"]
    server.call("DELETE", f"/api/workflow/{run_id}")
    again = {"reRunFromWorkflowId": run_id, "workflowInput": {"n": "one"}}
    assert FAULT in server.refused("POST", f"/api/workflow/{run_id}/rerun", 400, json=again)
    assert run_of(server, run_id)["input"] == {"n": 1}


def test_a_restart_with_the_latest_definition_has_to_fit_it(server: Server) -> None:
    register(server, "grown", simple("schema_a"))
    run_id = start(server, "grown", {"n": "one"})["workflowId"]
    server.call("DELETE", f"/api/workflow/{run_id}")
    register(server, "grown", simple("schema_a"), inputSchema=schema(NUMBER))
    path = f"/api/workflow/{run_id}/restart"
    assert FAULT in server.refused("POST", f"{path}?useLatestDefinitions=true", 400)
    server.json("POST", path)
    assert run_of(server, run_id)["status"] == "RUNNING"


def test_results_of_workers_and_outputs_of_runs_are_held_against_their_schemas(
    server: Server,
) -> None:
    task = {"name": "schema_b", "retryCount": 0, "enforceSchema": True, "ownerEmail": "a@b.c"}
    server.json("POST", "/api/metadata/taskdefs", json=[{**task, "outputSchema": schema(NUMBER)}])
    register(
        server,
        "results",
        simple("schema_b"),
        outputParameters={"n": "${workflow.input.n}"},
        outputSchema=schema(NUMBER),
    )

    def work(value: Any, result: Json) -> Json:
        run = start(server, "results", {"n": value})
        task = server.json("GET", "/api/tasks/poll/schema_b")
        body = {
            "workflowInstanceId": run["workflowId"],
            "taskId": task["taskId"],
            "status": "COMPLETED",
            "outputData": result,
        }
        assert server.call("POST", "/api/tasks", json=body).status_code == 200
        return run_of(server, run["workflowId"])

    assert work(1, {"n": 1})["status"] == "COMPLETED"
    refused = work(1, {"n": "one"})
    assert refused["status"] == "FAILED"
    assert refused["tasks"][0]["status"] == "FAILED_WITH_TERMINAL_ERROR"
    assert refused["tasks"][0]["outputData"] == {"n": "one"}
    assert "output.n" in refused["tasks"][0]["reasonForIncompletion"]
    ended = work("one", {"n": 1})
    assert (ended["status"], ended["output"]) == ("FAILED", {"n": "one"})
    assert "Workflow output does not fit" in ended["reasonForIncompletion"]


def test_a_definition_with_a_schema_that_is_none_is_refused(server: Server) -> None:
    broken = schema({"type": "objekt"})
    body: Json = {"name": "broken", "tasks": [simple("a")], "inputSchema": broken}
    for method, sent in (("POST", body), ("PUT", [body])):
        response = server.call(method, "/api/metadata/workflow", json=sent)
        assert response.status_code == 400
        assert "inputSchema is not a valid JSON Schema" in response.text
    task: Json = {"name": "broken", "outputSchema": broken, "ownerEmail": "a@b.c"}
    assert server.call("POST", "/api/metadata/taskdefs", json=[task]).status_code == 400
    remote: Json = {**body, "inputSchema": schema({"$ref": "http://127.0.0.1:9/x.json"})}
    assert server.call("POST", "/api/metadata/workflow", json=remote).status_code == 400
