"""Hostile and broken requests to a served node: a 4xx that says why, and nothing changed."""

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest

from tests.support.served import Server, serving

UUID_OF_OTHERS = "9c2fe0a8-8cf5-44e0-8ac6-cda6a9a9b1a1"
UNKNOWN_WORKFLOW = "01970000-0000-8000-8000-000000100000"
UNKNOWN_TASK = "01970000-0000-8000-8000-000000100001"
MIB = 1024 * 1024

# Ids that are no ids, some of them dangerous to whoever pastes them into a path or a query.
NO_IDS = [
    "x",
    UUID_OF_OTHERS,
    UNKNOWN_TASK.replace("8000-8", "4000-8", 1),
    "01970000-0000-8000-8000-00000010000g",
    "' OR 1=1 --",
    "..%2F..%2Fetc%2Fpasswd",
    "%00",
    "%FF%FE",
    "\N{SNOWMAN}" * 36,
    "a" * 2000,
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as data, serving(Path(data)) as running:
        steps = [
            {"name": "hostile_a", "taskReferenceName": "a", "type": "SIMPLE"},
            {"name": "wait", "taskReferenceName": "w", "type": "WAIT"},
        ]
        running.json("POST", "/api/metadata/workflow", json={"name": "hostile", "tasks": steps})
        yield running
        assert [line for line in running.log if "Traceback" in line or '"error"' in line] == []


def start(server: Server) -> str:
    response = server.call("POST", "/api/workflow/hostile", json={"k": 1})
    assert response.status_code == 200
    return response.text


def a_task(server: Server) -> dict[str, Any]:
    """A task in a worker's hands."""
    workflow_id = start(server)
    polled = server.json("GET", "/api/tasks/poll/batch/hostile_a?count=1000&timeout=2000")
    return next(dict(task) for task in polled if task["workflowInstanceId"] == workflow_id)


def without_times(run: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if key != "updateTime"}


# -- ids


@pytest.mark.parametrize("no_id", NO_IDS)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/workflow/{}"),
        ("GET", "/api/workflow/{}/status"),
        ("GET", "/api/workflow/{}/tasks"),
        ("PUT", "/api/workflow/decide/{}"),
        ("PUT", "/api/workflow/{}/pause"),
        ("PUT", "/api/workflow/{}/resume"),
        ("PUT", "/api/workflow/{}/skiptask/a"),
        ("POST", "/api/workflow/{}/rerun"),
        ("POST", "/api/workflow/{}/restart"),
        ("POST", "/api/workflow/{}/retry"),
        ("POST", "/api/workflow/{}/resetcallbacks"),
        ("DELETE", "/api/workflow/{}"),
        ("DELETE", "/api/workflow/{}/remove"),
        ("DELETE", "/api/workflow/{}/terminate-remove"),
        ("GET", "/api/tasks/{}"),
        ("GET", "/api/tasks/{}/log"),
        ("POST", "/api/tasks/{}/log"),
        ("POST", "/api/tasks/{}/a/COMPLETED/sync"),
        ("POST", "/api/tasks/{}/COMPLETED/signal"),
        ("POST", "/api/tasks/{}/COMPLETED/signal/sync"),
    ],
)
def test_what_is_no_id_is_not_found(server: Server, method: str, path: str, no_id: str) -> None:
    server.refused(method, path.format(no_id), 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/api/workflow/{UNKNOWN_WORKFLOW}"),
        ("PUT", f"/api/workflow/{UNKNOWN_WORKFLOW}/pause"),
        ("DELETE", f"/api/workflow/{UNKNOWN_WORKFLOW}"),
        ("POST", f"/api/workflow/{UNKNOWN_WORKFLOW}/retry"),
        ("GET", f"/api/tasks/{UNKNOWN_TASK}"),
        ("POST", f"/api/tasks/{UNKNOWN_TASK}/log"),
        ("POST", f"/api/tasks/{UNKNOWN_WORKFLOW}/COMPLETED/signal"),
    ],
)
def test_an_unknown_id_is_not_found(server: Server, method: str, path: str) -> None:
    server.refused(method, path, 404)


def test_ids_of_other_workflows_tasks_update_nothing(server: Server) -> None:
    one, other = a_task(server), a_task(server)
    result = {
        "workflowInstanceId": one["workflowInstanceId"],
        "taskId": other["taskId"],
        "status": "COMPLETED",
    }
    message = server.refused("POST", "/api/tasks", 404, json=result)
    assert message == f"No such task found by id: {other['taskId']}"
    assert server.json("GET", f"/api/tasks/{other['taskId']}")["status"] == "IN_PROGRESS"


def test_ids_in_capitals_are_the_same_ids(server: Server) -> None:
    workflow_id = start(server)
    shown = server.json("GET", f"/api/workflow/{workflow_id.upper()}")
    assert shown["workflowId"] == workflow_id


# -- bodies

MALFORMED = [
    b"{",
    b"nope",
    b'{"name": "hostile",}',
    b'{"name": "hostile"}{}',
    b"\xff\xfe",
    b'{"name": "\xff"}',
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b"\x00" * 100,
    b'"just a string"',
    b"17",
]


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:20]))
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/workflow"),
        ("POST", "/api/workflow/hostile"),
        ("POST", "/api/workflow/execute/hostile/1"),
        ("POST", "/api/tasks"),
        ("POST", "/api/tasks/update-v2"),
        ("POST", "/api/metadata/workflow"),
        ("PUT", "/api/metadata/workflow"),
        ("POST", "/api/metadata/workflow/validate"),
        ("POST", "/api/metadata/taskdefs"),
        ("PUT", "/api/metadata/taskdefs"),
        ("PUT", "/api/workflow/bulk/pause"),
        ("POST", "/api/workflow/bulk/terminate"),
        ("POST", "/api/workflow/hostile/correlated"),
        ("POST", f"/api/workflow/{UNKNOWN_WORKFLOW}/rerun"),
        ("PUT", f"/api/workflow/{UNKNOWN_WORKFLOW}/skiptask/a"),
        ("POST", f"/api/tasks/{UNKNOWN_WORKFLOW}/a/COMPLETED"),
        ("POST", f"/api/tasks/{UNKNOWN_WORKFLOW}/COMPLETED/signal/sync"),
    ],
)
def test_malformed_bodies_are_refused(server: Server, method: str, path: str, body: bytes) -> None:
    message = server.refused(
        method, path, 400, content=body, headers={"Content-Type": "application/json"}
    )
    assert message


def test_a_refused_start_leaves_no_run(server: Server) -> None:
    before = server.json("GET", "/api/workflow/running/hostile")
    for input in (None, [1], "x", 1, True):
        server.refused("POST", "/api/workflow", 400, json={"name": "hostile", "input": input})
    server.refused("POST", "/api/workflow", 400, json={"name": "hostile", "priority": 100})
    server.refused("POST", "/api/workflow", 400, json={"name": "hostile", "version": "x"})
    server.refused("POST", "/api/workflow", 400, json={"name": "hostile", "taskToDomain": [1]})
    server.refused("POST", "/api/workflow", 404, json={"name": "hostile", "version": 99})
    server.refused("POST", "/api/workflow/hostile?priority=-1", 400, json={})
    server.refused("POST", "/api/workflow/hostile?version=99", 404, json={})
    assert server.json("GET", "/api/workflow/running/hostile") == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": None},
        {"status": "SCHEDULED"},
        {"status": "completed"},
        {"status": 5},
        {"outputData": [1]},
        {"outputData": "text"},
        {"callbackAfterSeconds": "soon"},
        {"logs": {"a": 1}},
        {"logs": [5]},
        {"taskId": None},
        {"taskId": ""},
        {"workflowInstanceId": ""},
    ],
    ids=str,
)
def test_a_wrong_result_changes_nothing(server: Server, wrong: dict[str, Any]) -> None:
    task = a_task(server)
    before = server.json("GET", f"/api/workflow/{task['workflowInstanceId']}")
    result = {
        "workflowInstanceId": task["workflowInstanceId"],
        "taskId": task["taskId"],
        "status": "COMPLETED",
        "outputData": {},
    }
    server.refused("POST", "/api/tasks", 400, json=result | wrong)
    server.refused("POST", "/api/tasks/update-v2", 400, json=result | wrong)
    after = server.json("GET", f"/api/workflow/{task['workflowInstanceId']}")
    assert without_times(after) == without_times(before)


def test_odd_but_valid_payloads_come_back_as_they_were(server: Server) -> None:
    payload = {
        "": "empty key",
        "null": None,
        "unicode": "\N{SNOWMAN}\U0001f600\x00\x7f\u2028",
        "big": 123456789012345678901234567890,
        "tiny": 5e-324,
        "deep": orjson.loads(b"[" * 200 + b"]" * 200),
        "${workflow.input.k}": "${not.a.reference",
        "__proto__": {"constructor": "x"},
        "long": "x" * 100_000,
    }
    workflow_id = server.call("POST", "/api/workflow/hostile", json=payload).text
    shown = server.call("GET", f"/api/workflow/{workflow_id}").json()
    assert shown["input"] == payload
    task = next(
        task
        for task in server.json("GET", "/api/tasks/poll/batch/hostile_a?count=1000&timeout=2000")
        if task["workflowInstanceId"] == workflow_id
    )
    result = {
        "workflowInstanceId": workflow_id,
        "taskId": task["taskId"],
        "status": "COMPLETED",
        "outputData": payload,
    }
    server.call("POST", "/api/tasks", json=result).raise_for_status()
    assert server.call("GET", f"/api/tasks/{task['taskId']}").json()["outputData"] == payload


# -- sizes


def test_a_body_over_10_mib_is_refused(server: Server) -> None:
    body = b'{"a":"' + b"x" * (10 * MIB) + b'"}'
    message = server.refused("POST", "/api/workflow/hostile", 413, content=body)
    assert message == f"The body is larger than {10 * MIB} bytes"


def test_a_body_that_inflates_over_10_mib_is_refused(server: Server) -> None:
    body = gzip.compress(b'{"a":"' + b"x" * (50 * MIB) + b'"}')
    assert len(body) < MIB
    headers = {"Content-Encoding": "gzip"}
    response = server.call("POST", "/api/workflow/hostile", content=body, headers=headers)
    assert response.status_code in (400, 413)


def test_an_input_over_5_mib_is_refused(server: Server) -> None:
    body = {"a": "x" * (5 * MIB)}
    message = server.refused("POST", "/api/workflow/hostile", 413, json=body)
    assert "at most 5242880 are taken" in message


def test_an_output_over_3_mib_fails_the_task_and_says_so(server: Server) -> None:
    task = a_task(server)
    result = {
        "workflowInstanceId": task["workflowInstanceId"],
        "taskId": task["taskId"],
        "status": "COMPLETED",
        "outputData": {"a": "x" * (3 * MIB)},
    }
    assert server.call("POST", "/api/tasks", json=result).status_code == 200
    shown = server.json("GET", f"/api/tasks/{task['taskId']}")
    assert shown["status"] == "FAILED_WITH_TERMINAL_ERROR"
    assert shown["outputData"] == {}
    assert "bytes" in shown["reasonForIncompletion"]


def test_bulk_calls_take_a_thousand_ids_and_no_more(server: Server) -> None:
    ids = [f"id{n}" for n in range(1001)]
    server.refused("PUT", "/api/workflow/bulk/pause", 400, json=ids)
    server.refused("PUT", "/api/workflow/bulk/pause", 400, json=[])
    server.refused("PUT", "/api/workflow/bulk/pause", 400, json=[None])
    answer = server.json("PUT", "/api/workflow/bulk/pause", json=ids[:1000])
    assert len(answer["bulkErrorResults"]) == 1000
    assert answer["bulkSuccessfulResults"] == []


# -- polls and queries


@pytest.mark.parametrize(
    "query",
    ["timeout=5001", "timeout=x", "count=x", "count=1e3", "count=99999999999999999999"],
)
def test_bad_polls_are_refused(server: Server, query: str) -> None:
    server.refused("GET", f"/api/tasks/poll/batch/hostile_none?{query}", 400)


@pytest.mark.parametrize("query", ["count=0", "count=-5", "timeout=-1", "timeout=0", "workerid="])
def test_polls_for_nothing_get_nothing(server: Server, query: str) -> None:
    assert server.json("GET", f"/api/tasks/poll/batch/hostile_none?{query}") == []


def test_a_worker_id_that_is_not_plain_text_does_not_break_the_answer(server: Server) -> None:
    start(server)
    worker = 'a"},{"b\\\n\x00\N{SNOWMAN}'
    polled = server.json(
        "GET",
        "/api/tasks/poll/batch/hostile_a",
        params={"workerid": worker, "count": 1, "timeout": 2000},
    )
    assert [task["workerId"] for task in polled] == [worker]


def test_names_that_need_escapes_work_everywhere(server: Server) -> None:
    name = 'odd /?#%&+"\\ \N{SNOWMAN}'
    step = {"name": name, "taskReferenceName": "s", "type": "SIMPLE"}
    server.json("POST", "/api/metadata/workflow", json={"name": name, "tasks": [step]})
    quoted = quote(name, safe="")
    assert server.json("GET", f"/api/metadata/workflow/{quoted}")["name"] == name
    started = server.call("POST", f"/api/workflow/{quoted}", json={})
    assert started.status_code == 200, started.text
    polled = server.json("GET", f"/api/tasks/poll/batch/{quoted}?timeout=2000")
    assert [task["workflowType"] for task in polled] == [name]
    assert server.json("GET", f"/api/workflow/running/{quoted}") == [started.text]


# -- what is hardly HTTP


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /api/health HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET /api/health HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/tasks HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n{}",
        b"POST /api/tasks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
    ],
    ids=lambda request: repr(request[:30]),
)
def test_what_is_no_http_is_answered_and_hung_up_on(server: Server, request_bytes: bytes) -> None:
    answer = server.raw(request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b" ", 2)[1] == b"400"
    assert orjson.loads(body)["message"].startswith("This is not HTTP as it should be: ")


def test_a_body_that_breaks_off_changes_nothing(server: Server) -> None:
    before = server.json("GET", "/api/workflow/running/hostile")
    server.raw(
        b"POST /api/workflow/hostile HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{}",
        hang_up=True,
    )
    assert server.json("GET", "/api/workflow/running/hostile") == before


def test_a_second_request_cannot_be_smuggled_in(server: Server) -> None:
    answer = server.raw(
        b"POST /api/health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /api/version HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    assert answer.split(b" ", 2)[1] == b"400"
    assert answer.count(b"HTTP/1.") == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nowhere", 404),
        ("GET", "/api/../etc/passwd", 404),
        ("GET", "//api/health", 404),
        ("PATCH", "/api/workflow", 405),
        ("TRACE", "/api/health", 405),
        ("PUT", f"/api/workflow/{UNKNOWN_WORKFLOW}", 405),
        ("POST", f"/api/workflow/{UNKNOWN_WORKFLOW}/variables", 404),
        ("POST", "/api/token", 404),
        ("POST", "/api/workflow/test", 501),
        ("GET", "/api/event", 501),
        ("GET", "/api/scheduler/schedules/none", 404),
    ],
)
def test_paths_that_are_not_served(server: Server, method: str, path: str, status: int) -> None:
    response = server.call(method, path)
    assert response.status_code == status
    assert response.json()["status"] == status


# -- after all this


def test_the_node_still_serves(server: Server) -> None:
    task = a_task(server)
    result = {
        "workflowInstanceId": task["workflowInstanceId"],
        "taskId": task["taskId"],
        "status": "COMPLETED",
        "outputData": {"fine": True},
    }
    assert server.call("POST", "/api/tasks", json=result).text == task["taskId"]
    assert server.call("GET", "/health/ready").status_code == 200
