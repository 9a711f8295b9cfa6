"""Starts, results and polls in bulk, and bulk jobs, against a served node; hostile ones too."""

import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.served import Server, serving

Json = dict[str, Any]
MIB = 1024 * 1024
UNKNOWN_WORKFLOW = "01970000-0000-8000-8000-000000100000"
UNKNOWN_TASK = "01970000-0000-8000-8000-000000100001"
START, UPDATE, EXCHANGE = (
    "/api/workflow/bulk/start",
    "/api/tasks/bulk/update",
    "/api/tasks/exchange",
)
POLL, JOBS = "/api/tasks/poll/batch", "/api/workflow/bulk/jobs"
NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("bulk")) as running:
        yield running
        assert [line for line in running.log if "Traceback" in line or '"error"' in line] == []


def register(server: Server, name: str, *task_types: str) -> None:
    tasks = [
        {"name": task_type, "taskReferenceName": f"r{number}", "type": "SIMPLE"}
        for number, task_type in enumerate(task_types)
    ]
    server.json("PUT", "/api/metadata/workflow", json=[{"name": name, "tasks": tasks}])


def started(server: Server, name: str, count: int) -> list[str]:
    found = server.json("POST", START, json=[{"name": name}] * count)["results"]
    assert [one["status"] for one in found] == [200] * count
    return [one["id"] for one in found]


def polled(server: Server, *types: str, **query: Any) -> list[Json]:
    params = [("type", one) for one in types] + list(({"timeout": 1000} | query).items())
    found: list[Json] = server.json("GET", POLL, params=params)
    return found


def result(task: Json, status: str = "COMPLETED", **fields: Any) -> Json:
    return {
        "workflowInstanceId": task["workflowInstanceId"],
        "taskId": task["taskId"],
        "status": status,
    } | fields


def status(server: Server, workflow_id: str) -> str:
    return str(server.json("GET", f"/api/workflow/{workflow_id}/status")["status"])


def ended(server: Server, job: Json) -> Json:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found: Json = server.json("GET", f"{JOBS}/{job['id']}")
        if found["state"] not in ("QUEUED", "RUNNING"):
            return found
        time.sleep(0.05)
    raise AssertionError(f"the job did not end: {found}")


# -- starts


def test_a_thousand_starts_in_one_request_all_run(server: Server) -> None:
    register(server, "thousand", "th")
    bodies = [
        {"name": "thousand", "input": {"n": n}, "correlationId": f"c{n}"} for n in range(1000)
    ]
    found = server.json("POST", START, json=bodies)["results"]
    assert [one["index"] for one in found] == list(range(1000))
    assert {one["status"] for one in found} == {200}
    tasks = polled(server, "th", count=1000)
    assert {task["workflowInstanceId"] for task in tasks} == {one["id"] for one in found}
    results = server.json("POST", UPDATE, json=[result(task) for task in tasks])["results"]
    assert [(one["index"], one["status"]) for one in results] == [(n, 200) for n in range(1000)]
    shown = server.json("GET", f"/api/workflow/{found[7]['id']}")
    assert (shown["status"], shown["input"], shown["correlationId"]) == (
        "COMPLETED",
        {"n": 7},
        "c7",
    )
    assert Counter(status(server, one["id"]) for one in found[::50]) == {"COMPLETED": 20}


def test_a_start_is_what_the_single_one_is(server: Server) -> None:
    register(server, "alike", "al")
    body = {
        "name": "alike",
        "version": 1,
        "input": {"a": [1, {"b": None}]},
        "correlationId": "c",
        "priority": 7,
        "taskToDomain": {"al": "d"},
        "idempotencyKey": "alike-1",
    }
    single = server.call("POST", "/api/workflow", json=body).text
    [one] = server.json("POST", START, json=[body | {"idempotencyKey": "alike-2"}])["results"]
    [same] = server.json("POST", START, json=[body])["results"]
    assert same["id"] == single, "the key of a single start holds here too"
    shown = [server.json("GET", f"/api/workflow/{key}") for key in (single, one["id"])]
    for run in shown:
        for field in ("workflowId", "createTime", "updateTime", "startTime", "idempotencyKey"):
            run.pop(field)
        for task in run["tasks"]:
            for field in ("workflowInstanceId", "taskId", "scheduledTime", "updateTime"):
                task.pop(field)
    assert shown[0] == shown[1]


def test_good_starts_among_bad_ones(server: Server) -> None:
    register(server, "mixed", "mx")
    bodies: list[Any] = [
        {"name": "mixed"},
        {"name": "nobody has defined this"},
        {"name": "mixed", "version": "x"},
        {"name": "mixed", "version": 9},
        {"name": "mixed", "input": [1]},
        {"name": "mixed", "input": None},
        {"name": "mixed", "priority": 100},
        {"name": "mixed", "idempotencyStrategy": "MAYBE"},
        {"name": "mixed", "externalInputPayloadStoragePath": "s3://x"},
        {},
        None,
        17,
        [],
        {"name": "mixed", "idempotencyKey": "k"},
        {"name": "mixed", "idempotencyKey": "k"},
        {"name": "mixed", "idempotencyKey": "k", "idempotencyStrategy": "FAIL"},
        {"name": "inline", "workflowDef": {"name": "inline", "version": 1, "tasks": []}},
        {"name": "mixed"},
    ]
    found = server.json("POST", START, json=bodies)["results"]
    assert [one["index"] for one in found] == list(range(len(bodies)))
    statuses = [one["status"] for one in found]
    assert statuses[:9] == [200, 404, 400, 404, 400, 400, 400, 400, 501]
    assert statuses[9:13] == [400] * 4
    assert statuses[13:16] == [200, 200, 409]
    assert statuses[17] == 200
    assert found[13]["id"] == found[14]["id"]
    for one in found:
        assert ("id" in one) == (one["status"] == 200)
        assert ("message" in one) != ("id" in one)
    assert len(polled(server, "mx", count=100)) == 3


def test_lines_with_a_broken_one_among_them(server: Server) -> None:
    register(server, "lines", "ln")
    body = (
        b'{"name":"lines"}\n{"name":\n\n{"name":"lines"}\r\n"x"\n{"name":"\xff"}\n{"name":"lines"}'
    )
    found = server.json("POST", START, content=body, headers=NDJSON)["results"]
    assert [one["status"] for one in found] == [200, 400, 200, 400, 400, 200]
    assert len(polled(server, "ln", count=100)) == 3
    charset = {"Content-Type": "application/x-ndjson; charset=utf-8"}
    found = server.json("POST", START, content=b'{"name":"lines"}\n', headers=charset)["results"]
    assert [one["status"] for one in found] == [200]


# -- hostile bodies

NO_ARRAYS = [
    b"",
    b"   ",
    b"{",
    b"{}",
    b'{"name":"mixed"}',
    b'"mixed"',
    b"17",
    b"null",
    b"[",
    b"[{]",
    b'[{"name":"mixed"}',
    b'[{"name":"mixed"}]]',
    b"[\xff]",
    b"[" * 200_000,
    b"\x00" * 100,
]


@pytest.mark.parametrize("path", [START, UPDATE])
@pytest.mark.parametrize("body", NO_ARRAYS, ids=lambda body: repr(body[:20]))
def test_what_is_no_array_is_refused(server: Server, path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert server.refused("POST", path, 400, content=body, headers=headers)


@pytest.mark.parametrize("path", [START, UPDATE])
@pytest.mark.parametrize("item", [{"name": "thousand"}, 1, {}])
def test_too_many_items_are_refused(server: Server, path: str, item: Any) -> None:
    register(server, "many", "ma")
    message = server.refused("POST", path, 400, json=[item] * 1001)
    assert "1000" in message
    lines = b"\n".join([orjson.dumps(item)] * 1001)
    assert "1000" in server.refused("POST", path, 400, content=lines, headers=NDJSON)
    assert polled(server, "ma", timeout=0, count=10) == []


@pytest.mark.parametrize("path", [START, UPDATE, EXCHANGE])
def test_too_large_a_body_is_refused(server: Server, path: str) -> None:
    body = orjson.dumps([{"name": "many", "input": {"x": "y" * (8 * MIB)}}])
    server.refused("POST", path, 413, content=body)
    server.refused("POST", path, 413, content=b" " * (11 * MIB))


def test_a_million_empty_items_do_not_hold_others_up(server: Server) -> None:
    body = b"[" + b",".join([b"{}"] * 2_000_000) + b"]"
    began = time.monotonic()
    server.refused("POST", START, 400, content=body)
    assert time.monotonic() - began < 10


# -- results


def test_good_results_among_bad_ones(server: Server) -> None:
    register(server, "results", "rs")
    ids = started(server, "results", 5)
    tasks = {task["workflowInstanceId"]: task for task in polled(server, "rs", count=5)}
    one, other, third, fourth, fifth = (tasks[key] for key in ids)
    foreign = result(third, "COMPLETED") | {"taskId": fourth["taskId"]}
    bodies: list[Any] = [
        result(one, outputData={"n": 1}, logs=[{"log": "l1", "createdTime": 1}]),
        result(one, "FAILED"),
        result(other, "IN_PROGRESS", callbackAfterSeconds=60),
        result(third, "DONE"),
        result(third, "TIMED_OUT"),
        result(third, outputData=[1]),
        foreign,
        {"taskId": third["taskId"], "status": "COMPLETED"},
        {"taskId": UNKNOWN_TASK, "workflowInstanceId": UNKNOWN_WORKFLOW, "status": "COMPLETED"},
        {"taskId": "x", "workflowInstanceId": "y", "status": "COMPLETED"},
        None,
        {"logs": 5},
        {"taskId": fifth["taskId"], "workflowInstanceId": ids[4], "extendLease": True},
        result(fourth, "FAILED_WITH_TERMINAL_ERROR", reasonForIncompletion="no"),
    ]
    found = server.json("POST", UPDATE, json=bodies)["results"]
    assert [one["status"] for one in found] == [
        *(200, 200, 200, 400, 400, 400, 404, 400, 404, 404, 400, 400, 200, 200),
    ]
    assert found[0]["id"] == one["taskId"]
    assert [status(server, key) for key in ids] == [
        *("COMPLETED", "RUNNING", "RUNNING", "FAILED", "RUNNING"),
    ]
    assert server.json("GET", f"/api/tasks/{one['taskId']}")["outputData"] == {"n": 1}
    assert server.json("GET", f"/api/tasks/{one['taskId']}/log")[0]["log"] == "l1"
    assert server.json("GET", f"/api/tasks/{third['taskId']}")["status"] == "IN_PROGRESS"


# -- polls of several types


def test_types_share_a_poll(server: Server) -> None:
    for letter in "abc":
        register(server, f"share_{letter}", f"share_{letter}")
    for letter in "ab":
        started(server, f"share_{letter}", 20)
    types = ("share_a", "share_b", "share_c")
    found = Counter(task["taskType"] for task in polled(server, *types, count=12, workerid="w"))
    assert found.total() == 12
    assert min(found["share_a"], found["share_b"]) >= 4
    rest = polled(server, *types, *types, count=100)
    assert len(rest) == 28
    assert {task["status"] for task in rest} == {"IN_PROGRESS"}
    assert polled(server, *types, timeout=0) == []


def test_a_poll_of_several_types_is_woken_by_any(server: Server) -> None:
    for letter in "abc":
        register(server, f"wake_{letter}", f"wake_{letter}")
    host, port = server.url.removeprefix("http://").split(":")
    for letter in "abc":
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            query = "type=wake_a&type=wake_b&type=wake_c&timeout=5000&count=5"
            connection.sendall(f"GET {POLL}?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            time.sleep(0.1)
            began = time.monotonic()
            [workflow_id] = started(server, f"wake_{letter}", 1)
            assert workflow_id.encode() in connection.recv(65536)
            assert time.monotonic() - began < 2


def test_a_domain_is_one_of_all_types(server: Server) -> None:
    register(server, "domains", "dom_a")
    [one] = server.json("POST", START, json=[{"name": "domains", "taskToDomain": {"*": "d"}}])[
        "results"
    ]
    assert one["status"] == 200
    polled(server, "dom_a", "dom_b", domain="d", timeout=0)
    [two] = server.json("POST", START, json=[{"name": "domains", "taskToDomain": {"dom_a": "d"}}])[
        "results"
    ]
    found = polled(server, "dom_a", "dom_b", domain="d", count=5)
    assert two["id"] in {task["workflowInstanceId"] for task in found}


def test_a_client_that_goes_takes_no_task_with_it(server: Server) -> None:
    for letter in "ab":
        register(server, f"gone_{letter}", f"gone_{letter}")
    host, port = server.url.removeprefix("http://").split(":")
    asked = orjson.dumps({"poll": {"types": ["gone_a", "gone_b"], "count": 9, "timeout": 5000}})
    requests = [
        f"GET {POLL}?type=gone_a&type=gone_b&timeout=5000&count=9 HTTP/1.1\r\nHost: x\r\n\r\n",
        f"POST {EXCHANGE} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(asked)}\r\n\r\n"
        + asked.decode(),
    ]
    for request in requests * 3:
        connection = socket.create_connection((host, int(port)), timeout=10)
        connection.sendall(request.encode())
        time.sleep(0.05)
        connection.close()
        time.sleep(0.05)
        ids = {*started(server, "gone_a", 2), *started(server, "gone_b", 2)}
        found: list[Json] = []
        deadline = time.monotonic() + 5
        while len(found) < 4 and time.monotonic() < deadline:
            found += polled(server, "gone_a", "gone_b", count=9, timeout=200)
        assert {task["workflowInstanceId"] for task in found} == ids


@pytest.mark.parametrize(
    "query",
    [
        "type=a&timeout=5001",
        "type=a&timeout=x",
        "type=a&count=x",
        "type=a&type=",
        "&".join(f"type=t{number}" for number in range(101)),
    ],
)
def test_a_poll_that_asks_too_much_is_refused(server: Server, query: str) -> None:
    server.refused("GET", f"{POLL}?{query}", 400)


def test_conductors_paths_are_what_they_were(server: Server) -> None:
    register(server, "a batch", "batch")
    [one] = started(server, "a batch", 1)
    found = server.json("GET", POLL, params={"workerid": "w"})
    assert found["workflowInstanceId"] == one, "Conductor's poll of a type that is called batch"
    assert server.call("GET", POLL).status_code == 204
    [two] = started(server, "a batch", 1)
    [found] = server.json("GET", f"{POLL}/batch", params={"count": 5})
    assert found["workflowInstanceId"] == two


# -- exchange


def test_an_exchange_takes_results_and_brings_what_is_next(server: Server) -> None:
    register(server, "chain", "ch_a", "ch_b")
    ids = started(server, "chain", 10)
    wanted = {"types": ["ch_a", "ch_b"], "count": 20, "timeout": 1000, "workerId": "w"}
    first = server.json("POST", EXCHANGE, json={"poll": wanted})
    assert first["results"] == []
    assert len(first["tasks"]) == 10
    bodies = [result(task) for task in first["tasks"]]
    bodies[3]["status"] = "OOPS"
    found: list[Json] = []
    answer = server.json("POST", EXCHANGE, json={"results": bodies, "poll": wanted})
    assert [one["status"] for one in answer["results"]] == [200] * 3 + [400] + [200] * 6
    found += answer["tasks"]
    while len(found) < 9:
        found += server.json("POST", EXCHANGE, json={"poll": wanted})["tasks"]
    assert {task["taskType"] for task in found} == {"ch_b"}
    answer = server.json("POST", EXCHANGE, json={"results": [result(task) for task in found]})
    assert answer["tasks"] == []
    assert Counter(status(server, one) for one in ids) == {"COMPLETED": 9, "RUNNING": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"poll": {}},
        {"poll": {"types": []}},
        {"poll": {"types": "ex"}},
        {"poll": {"types": ["ex"], "timeout": 5001}},
        {"poll": {"types": ["ex"], "count": "many"}},
        {"poll": {"types": [""]}},
        {"poll": {"types": ["ex"] * 101}},
        {"poll": 7},
        {"results": {}},
        {"results": [{}] * 1001},
    ],
    ids=lambda wrong: repr(wrong)[:60],
)
def test_an_exchange_that_is_refused_has_changed_nothing(server: Server, wrong: Json) -> None:
    register(server, "exchanged", "ex")
    [one] = started(server, "exchanged", 1)
    [task] = [task for task in polled(server, "ex", count=99) if task["workflowInstanceId"] == one]
    server.refused("POST", EXCHANGE, 400, json={"results": [result(task)]} | wrong)
    assert status(server, one) == "RUNNING"
    answer = server.json("POST", EXCHANGE, json={"results": [result(task)], "poll": None})
    assert answer == {"results": [{"index": 0, "status": 200, "id": task["taskId"]}], "tasks": []}


# -- jobs


def test_a_job_over_http(server: Server) -> None:
    register(server, "job", "jb")
    ids = started(server, "job", 120)
    query = {"name": "job", "version": 1, "statuses": ["RUNNING"], "startTimeFrom": 0}
    dry = {"operation": "terminate", "query": query, "dryRun": True}
    job = ended(server, server.json("POST", JOBS, json=dry))
    assert (job["state"], job["matched"], job["succeeded"]) == ("COMPLETED", 120, 0)
    assert set(job["sample"]) < set(ids)
    slow = {"operation": "pause", "query": query, "ratePerSecond": 10}
    job = server.json("POST", JOBS, json=slow)
    server.json("DELETE", f"{JOBS}/{job['id']}")
    job = ended(server, job)
    assert (job["state"], job["matched"] < 30) == ("CANCELLED", True)
    real = {"operation": "terminate", "query": {"name": "job"}, "reason": "enough"}
    job = ended(server, server.json("POST", JOBS, json=real))
    assert (job["state"], job["succeeded"]) == ("COMPLETED", 120)
    assert Counter(status(server, one) for one in ids) == {"TERMINATED": 120}
    assert server.json("GET", JOBS)[0]["id"] == job["id"]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        [],
        {"operation": "terminate"},
        {"operation": "delete", "query": {"name": "job"}},
        {"operation": "terminate", "query": {}},
        {"operation": "terminate", "query": {"name": "job", "statuses": ["COMPLETED"]}},
        {"operation": "terminate", "query": {"name": "job", "status": "RUNNING"}},
        {"operation": "terminate", "query": {"name": "job", "statuses": "RUNNING"}},
        {"operation": "terminate", "query": {"name": "job"}, "ratePerSecond": 0},
        {"operation": "terminate", "query": {"name": "job"}, "dryrun": True},
    ],
    ids=lambda wrong: repr(wrong)[:60],
)
def test_a_job_that_makes_no_sense_is_refused(server: Server, wrong: Any) -> None:
    server.refused("POST", JOBS, 400, json=wrong)


def test_an_unknown_job_is_not_found(server: Server) -> None:
    for method in ("GET", "DELETE"):
        server.refused(method, f"{JOBS}/x", 404)


# -- after a kill


def test_what_was_acknowledged_in_bulk_survives_a_kill(tmp_path: Path) -> None:
    server = Server(tmp_path)
    register(server, "kept", "kp")
    ids = started(server, "kept", 1000)
    tasks = polled(server, "kp", count=300)
    answer = server.json("POST", EXCHANGE, json={"results": [result(task) for task in tasks]})
    assert {one["status"] for one in answer["results"]} == {200}
    pause = {"operation": "pause", "query": {"name": "kept"}, "ratePerSecond": 300}
    job = server.json("POST", JOBS, json=pause)
    while server.json("GET", f"{JOBS}/{job['id']}")["matched"] < 100:
        time.sleep(0.02)
    server.stop(kill=True)
    with serving(tmp_path) as again:
        job = ended(again, job)
        assert job["state"] == "COMPLETED"
        assert job["failed"] == 0
        found = Counter(status(again, one) for one in ids)
        assert found == {"COMPLETED": 300, "PAUSED": 700}
