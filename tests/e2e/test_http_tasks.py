"""HTTP tasks of a served node against a real HTTP service."""

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.http_service import HttpService, as_json, http_service
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
