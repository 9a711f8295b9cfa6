"""HTTP tasks of a served node against a real HTTP service."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.http_service import Answer, HttpService, as_json, http_service
from tests.support.served import Server, serving

ENV = {
    **os.environ,
    "PODIUM_HTTP_LOOPBACK_ADDRESSES": "true",
    "PODIUM_SYSTEM_TASK_LEASE_MS": "900",
    "PODIUM_HTTP_RESPONSE_BYTES_MAX": "100000",
    "CONDUCTOR_SECRET_TOKEN": "hush",
}

Json = dict[str, Any]


@pytest.fixture(scope="module")
def service() -> Iterator[HttpService]:
    with http_service() as service:
        yield service


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data"), env=ENV) as server:
        yield server


def step(request: Json | None, **fields: Any) -> Json:
    value = {} if request is None else {"http_request": request}
    return {
        "name": "call",
        "taskReferenceName": "call",
        "type": "HTTP",
        "inputParameters": value,
        **fields,
    }


def begin(server: Server, *steps: Json, value: Json | None = None) -> str:
    """Start a workflow of these steps; returns its id."""
    body = {
        "name": "calls",
        "version": 1,
        "input": value or {},
        "workflowDef": {"name": "calls", "version": 1, "tasks": list(steps)},
    }
    response = server.call("POST", "/api/workflow", json=body)
    assert response.status_code == 200, response.text
    return response.text


def ended(server: Server, workflow_id: str, *, within_s: float = 60) -> Json:
    deadline = time.monotonic() + within_s
    while True:
        shown: Json = server.json("GET", f"/api/workflow/{workflow_id}")
        if shown["status"] != "RUNNING":
            return shown
        assert time.monotonic() < deadline, shown
        time.sleep(0.02)


def call(server: Server, request: Json | None, **fields: Any) -> Json:
    """The task of a workflow of one HTTP step, when that has ended."""
    shown = ended(server, begin(server, step(request, **fields)))
    task: Json = shown["tasks"][-1]
    return task


def test_a_get_gives_status_headers_and_body(server: Server, service: HttpService) -> None:
    service.answer("/things", as_json({"id": 7, "names": ["a"]}))
    task = call(server, {"uri": f"{service.url}/things?x=1", "method": "GET"})
    assert task["status"] == "COMPLETED"
    response = task["outputData"]["response"]
    assert response["statusCode"] == 200
    assert response["reasonPhrase"] == "OK"
    assert response["body"] == {"id": 7, "names": ["a"]}
    assert response["headers"]["Content-Type"] == ["application/json"]
    [request] = service.got("/things")
    assert request.headers["accept"] == request.headers["content-type"] == "application/json"
    assert request.headers["idempotency-key"] == task["taskId"]
    assert task["pollCount"] == 1
    assert task["inputData"]["asyncComplete"] is False


def test_a_post_sends_the_body_and_secrets_but_shows_none(
    server: Server, service: HttpService
) -> None:
    service.answer("/make", as_json({"made": True}, status=201))
    request = {
        "uri": f"{service.url}/make",
        "method": "POST",
        "headers": {"Authorization": "Bearer ${workflow.secrets.TOKEN}"},
        "body": {"name": "${workflow.input.name}"},
    }
    shown = ended(server, begin(server, step(request), value={"name": "x"}))
    [task] = shown["tasks"]
    assert task["outputData"]["response"]["statusCode"] == 201
    [got] = service.got("/make")
    assert (got.method, got.body) == ("POST", b'{"name":"x"}')
    assert got.headers["authorization"] == "Bearer hush"
    assert "hush" not in str(shown)


def test_an_error_fails_the_task_and_the_workflow(server: Server, service: HttpService) -> None:
    service.answer("/gone", Answer(404, b"no such thing"))
    shown = ended(server, begin(server, step({"uri": f"{service.url}/gone", "method": "GET"})))
    [task] = shown["tasks"]
    assert (shown["status"], task["status"]) == ("FAILED", "FAILED")
    text = f'404 Not Found on GET request for "{service.url}/gone": "no such thing"'
    assert task["reasonForIncompletion"] == f"Failed to invoke HTTP task due to: {text}"
    assert task["outputData"] == {"response": text}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"http_request": {"method": "GET"}}, "Missing HTTP URI."),
        ({"http_request": {"uri": "http://127.0.0.1"}}, "No HTTP method specified"),
    ],
)
def test_what_makes_no_request_fails(server: Server, value: Json, reason: str) -> None:
    given = {"inputParameters": value}
    [task] = ended(server, begin(server, step(None, **given)))["tasks"]
    assert task["status"] == "FAILED"
    assert task["reasonForIncompletion"].startswith(reason)


def test_retries_are_those_of_the_task_definition(server: Server, service: HttpService) -> None:
    service.answer("/flaky", Answer(503), Answer(503), Answer())
    definition = {"name": "flaky", "retryCount": 5, "retryDelaySeconds": 0}
    server.call("POST", "/api/metadata/taskdefs", json=[definition]).raise_for_status()
    request = {"uri": f"{service.url}/flaky", "method": "GET"}
    shown = ended(server, begin(server, step(request, name="flaky")))
    statuses = [task["status"] for task in shown["tasks"]]
    assert statuses == ["FAILED", "FAILED", "COMPLETED"]
    keys = [request.headers["idempotency-key"] for request in service.got("/flaky", 3)]
    assert keys == [task["taskId"] for task in shown["tasks"]]


def test_async_complete_waits_for_somebody(server: Server, service: HttpService) -> None:
    request = {"uri": f"{service.url}/later", "method": "GET"}
    workflow_id = begin(server, step(request, asyncComplete=True))
    service.got("/later")
    deadline = time.monotonic() + 60
    while True:
        shown = server.json("GET", f"/api/workflow/{workflow_id}")
        [task] = shown["tasks"]
        if task["outputData"]:
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert task["status"] == "IN_PROGRESS"
    assert task["outputData"]["response"]["statusCode"] == 200
    result = {
        "workflowInstanceId": workflow_id,
        "taskId": task["taskId"],
        "status": "COMPLETED",
        "outputData": {"told": True},
    }
    server.call("POST", "/api/tasks", json=result).raise_for_status()
    assert ended(server, workflow_id)["tasks"][0]["outputData"] == {"told": True}
    assert len(service.got("/later")) == 1


def test_a_call_is_repeated_until_its_condition_holds(server: Server, service: HttpService) -> None:
    service.answer("/job", as_json({"state": "busy"}), as_json({"state": "done"}))
    request = {
        "uri": f"{service.url}/job",
        "method": "GET",
        "terminationCondition": "$.output.response.body.state === 'done'",
        "pollingInterval": 1,
    }
    task = call(server, request, type="HTTP_POLL")
    assert task["outputData"]["response"]["body"] == {"state": "done"}
    assert task["pollCount"] == 2
    keys = {request.headers["idempotency-key"] for request in service.got("/job", 2)}
    assert keys == {task["taskId"]}


def test_no_worker_gets_one(server: Server, service: HttpService) -> None:
    held = threading.Event()
    service.answer("/held", Answer(wait=held))
    workflow_id = begin(server, step({"uri": f"{service.url}/held", "method": "GET"}))
    service.got("/held")
    polls = ("/api/tasks/poll/batch/HTTP?count=9&timeout=300", "/api/tasks/poll/HTTP")
    assert not any(server.json("GET", path) for path in polls)
    assert server.json("GET", "/api/tasks/poll/batch?type=HTTP&type=x&timeout=300") == []
    held.set()
    assert ended(server, workflow_id)["status"] == "COMPLETED"


def test_a_call_that_outlives_its_lease_goes_on(server: Server, service: HttpService) -> None:
    held = threading.Event()
    service.answer("/slow", Answer(wait=held))
    request = {"uri": f"{service.url}/slow", "method": "GET", "readTimeOut": 60_000}
    workflow_id = begin(server, step(request))
    service.got("/slow")
    time.sleep(3)  # Three leases.
    held.set()
    [task] = ended(server, workflow_id)["tasks"]
    assert (task["status"], task["pollCount"]) == ("COMPLETED", 1)
    assert len(service.got("/slow")) == 1


def test_a_call_of_a_workflow_that_has_ended_is_cut_short(
    server: Server, service: HttpService
) -> None:
    held = threading.Event()
    service.answer("/endless", Answer(wait=held))
    request = {"uri": f"{service.url}/endless", "method": "GET", "readTimeOut": 60_000}
    workflow_id = begin(server, step(request))
    service.got("/endless")
    server.call("DELETE", f"/api/workflow/{workflow_id}").raise_for_status()
    line = 'system_task_seconds_count{outcome="dropped",task_type="HTTP"}'
    deadline = time.monotonic() + 60
    while line not in server.call("GET", "/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    held.set()
    [task] = server.json("GET", f"/api/workflow/{workflow_id}")["tasks"]
    assert task["status"] == "CANCELED"


def test_a_killed_node_does_it_again_with_the_same_key(
    tmp_path: Path, service: HttpService
) -> None:
    held = threading.Event()
    service.answer("/charge", Answer(wait=held), Answer())
    server = Server(tmp_path, env=ENV)
    try:
        request = {"uri": f"{service.url}/charge", "method": "POST", "readTimeOut": 60_000}
        workflow_id = begin(server, step(request))
        service.got("/charge")
        # The note of the hand-over is durable.
        server.json("GET", f"/api/workflow/{workflow_id}")
    finally:
        server.stop(kill=True)
    held.set()
    with serving(tmp_path, env=ENV) as again:
        shown = ended(again, workflow_id)
    [task] = shown["tasks"]
    assert (shown["status"], task["retryCount"]) == ("COMPLETED", 0)
    first, second = service.got("/charge", 2)
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] == task["taskId"]


def test_a_stopped_node_lets_its_calls_end(tmp_path: Path, service: HttpService) -> None:
    held = threading.Event()
    service.answer("/last", Answer(wait=held))
    server = Server(tmp_path, env=ENV)
    workflow_id = begin(
        server, step({"uri": f"{service.url}/last", "method": "GET", "readTimeOut": 60_000})
    )
    service.got("/last")
    threading.Timer(1, held.set).start()
    assert server.stop() == 0
    with serving(tmp_path, env=ENV) as again:
        [task] = ended(again, workflow_id)["tasks"]
    assert (task["status"], task["pollCount"]) == ("COMPLETED", 1)
    assert len(service.got("/last")) == 1


def test_loopback_addresses_are_refused_by_default(tmp_path: Path, service: HttpService) -> None:
    with serving(tmp_path, env={**ENV, "PODIUM_HTTP_LOOPBACK_ADDRESSES": "false"}) as server:
        task = call(server, {"uri": f"{service.url}/secret", "method": "GET"})
    assert task["status"] == "FAILED"
    assert "http_loopback_addresses" in task["reasonForIncompletion"]
    assert not [request for request in service.requests if request.path == "/secret"]
