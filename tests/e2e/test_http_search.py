"""Searches over HTTP: every path, and that nobody is shown a state that is over."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.served import Server, serving

Json = dict[str, Any]
ORDERS = 12


def simple(name: str, ref: str) -> Json:
    return {"name": name, "taskReferenceName": ref, "type": "SIMPLE"}


def work(server: Server, task_type: str, status: str, count: int, **result: Any) -> None:
    """Report so many tasks of a type."""
    for _ in range(count):
        [task] = server.json("GET", f"/api/tasks/poll/batch/{task_type}?count=1&timeout=5000")
        body = {
            "workflowInstanceId": task["workflowInstanceId"],
            "taskId": task["taskId"],
            "status": status,
            **result,
        }
        server.call("POST", "/api/tasks", json=body).raise_for_status()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as data, serving(Path(data)) as running:
        running.json(
            "PUT",
            "/api/metadata/workflow",
            json=[
                {"name": "s_order", "version": 1, "tasks": [simple("s_pay", "pay")]},
                {"name": "s_other", "version": 1, "tasks": [simple("s_idle", "idle")]},
            ],
        )
        running.json("POST", "/api/metadata/taskdefs", json=[{"name": "s_pay", "retryCount": 0}])
        for number in range(ORDERS):
            body = {
                "name": "s_order",
                "version": 1,
                "correlationId": f"k{number % 3}",
                "input": {"customerId": f"c{number % 4}", "amount": number * 1.5},
            }
            running.call("POST", "/api/workflow", json=body).raise_for_status()
        work(running, "s_pay", "FAILED", 4, reasonForIncompletion="no card left")
        work(running, "s_pay", "COMPLETED", 4, outputData={"receipt": "r1"})
        running.call("POST", "/api/workflow/s_other", json={}).raise_for_status()
        yield running
        assert [line for line in running.log if "Traceback" in line] == []


def search(server: Server, query: str = "", path: str = "workflow/search", **asked: Any) -> Json:
    found: Json = server.json("GET", f"/api/{path}", params={"query": query, **asked})
    return found


def total(server: Server, query: str, **asked: Any) -> int:
    found = search(server, query, **asked)
    assert len(found["results"]) == found["totalHits"]
    return int(found["totalHits"])


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 13),
        ("workflowType = 's_order'", 12),
        ('status = "FAILED" AND workflowType = s_order', 4),
        ("status IN (FAILED, COMPLETED)", 8),
        ("workflowType=s_order AND status NOT IN ('FAILED','COMPLETED')", 4),
        ("workflowType = 's_*' AND NOT status", 400),
        ("workflowType STARTS_WITH 's_o'", 13),
        ("(status = FAILED OR status = COMPLETED) AND correlationId = 'k0'", 3),
        ("input.customerId = 'c1'", 3),
        ("input.customerId = 'c1' AND workflowType = s_order AND status != FAILED", 2),
        ("input.amount >= 15", 2),
        ("input.amount = 1.50", 1),
        ("input.nothing IS NOT NULL", 0),
        ("correlationId IS NULL", 1),
        ("failedReferenceTaskNames = pay", 4),
        ("reasonForIncompletion = '*no card left*'", 4),
        ("startTime > '2020-01-01' AND startTime < 4102444800000", 13),
        ("endTime IS NULL", 5),
        ("priority = 0 AND version = 1", 13),
        ("workflowId = 'none'", 0),
        ("status = DONE", 400),
        ("colour = red", 400),
    ],
)
def test_queries(server: Server, query: str, count: int) -> None:
    if count == 400:
        message = server.refused("GET", "/api/workflow/search", 400, params={"query": query})
        assert "character" in message
    else:
        assert total(server, query) == count


@pytest.mark.parametrize(
    ("free_text", "count"), [("*", 13), ("", 13), ("c1", 3), ("card", 4), ("s_ord*", 12), ("zz", 0)]
)
def test_free_text(server: Server, free_text: str, count: int) -> None:
    assert total(server, "", freeText=free_text) == count


def test_a_summary_is_conductors(server: Server) -> None:
    [one] = search(server, "status = FAILED AND input.customerId = c0")["results"]
    run = server.json("GET", f"/api/workflow/{one['workflowId']}")
    assert one["workflowType"] == "s_order"
    assert one["input"] == "{customerId=c0, amount=0.0}"
    assert one["inputSize"] == len(one["input"])
    assert one["startTime"].endswith("Z")
    assert len(one["startTime"]) == len("2026-11-21T20:00:00.000Z")
    assert one["executionTime"] == run["endTime"] - run["startTime"]
    assert one["failedReferenceTaskNames"] == "pay"
    assert one["reasonForIncompletion"] == run["reasonForIncompletion"]
    assert (one["parentWorkflowId"], one["classifier"]) == ("", "workflow")


def test_pages_and_sorts(server: Server) -> None:
    whole = [one["workflowId"] for one in search(server)["results"]]
    pages = [search(server, start=start, size=5) for start in (0, 5, 10)]
    assert [one["workflowId"] for page in pages for one in page["results"]] == whole
    assert {page["totalHits"] for page in pages} == {13}
    starts = [one["startTime"] for one in search(server)["results"]]
    assert starts == sorted(starts, reverse=True)
    upwards = search(server, sort="status:DESC|startTime:ASC")["results"]
    assert [one["status"] for one in upwards] == ["RUNNING"] * 5 + ["FAILED"] * 4 + [
        "COMPLETED"
    ] * 4
    running = [one["startTime"] for one in upwards[:5]]
    assert running == sorted(running)
    for params in ({"size": 5001}, {"start": 10_000}, {"start": -1}, {"sort": "input:ASC"}):
        server.refused("GET", "/api/workflow/search", 400, params=params)


def test_top_level_and_classifier(server: Server) -> None:
    assert total(server, "", topLevelOnly=True) == 13
    assert total(server, "", classifier="workflow") == 13
    assert total(server, "", classifier="agent") == 0


def test_whole_runs(server: Server) -> None:
    found = search(server, "status = COMPLETED", "workflow/search-v2", size=2)
    assert found["totalHits"] == 4
    assert [(run["status"], run["tasks"]) for run in found["results"]] == [("COMPLETED", [])] * 2


def test_tasks(server: Server) -> None:
    failed = search(server, "taskDefName = s_pay AND status = FAILED", "tasks/search")
    assert failed["totalHits"] == len(failed["results"]) == 4
    assert {one["reasonForIncompletion"] for one in failed["results"]} == {"no card left"}
    assert {one["workflowType"] for one in failed["results"]} == {"s_order"}
    waiting = search(server, "status IN (SCHEDULED, IN_PROGRESS)", "tasks/search-v2", size=3)
    assert waiting["totalHits"] == 5
    assert [task["status"] for task in waiting["results"]] == ["SCHEDULED"] * 3
    [one] = search(server, f"taskId = {failed['results'][0]['taskId']}", "tasks/search")["results"]
    assert one == failed["results"][0] | {"queueWaitTime": one["queueWaitTime"]}
    receipts = search(server, "", "tasks/search", freeText="r1")
    assert receipts["totalHits"] == 4
    server.refused("GET", "/api/tasks/search", 400, params={"query": "version = 1"})


def test_workflows_by_their_tasks(server: Server) -> None:
    found = search(server, "taskType = s_pay AND status = FAILED", "workflow/search-by-tasks")
    assert found["totalHits"] == 4
    assert {one["status"] for one in found["results"]} == {"FAILED"}
    whole = search(server, "taskType = s_idle", "workflow/search-by-tasks-v2")
    assert [run["workflowName"] for run in whole["results"]] == ["s_other"]


def test_bulk_search(server: Server) -> None:
    ids = [one["workflowId"] for one in search(server, size=2)["results"]]
    answer = server.json("POST", "/api/workflow/bulk/search", json=[*ids, "x"])
    assert [run["workflowId"] for run in answer["bulkSuccessfulResults"]] == ids
    assert [len(run["tasks"]) for run in answer["bulkSuccessfulResults"]] == [1, 1]
    assert answer["bulkErrorResults"] == {"x": "No such workflow found by id: x"}


def test_what_was_answered_is_found_at_once_and_in_its_new_state(server: Server) -> None:
    started = server.call(
        "POST", "/api/workflow", json={"name": "s_other", "input": {"customerId": "at once"}}
    )
    query = "input.customerId = 'at once' AND status = "
    for status, method, path in (
        ("RUNNING", "PUT", "pause"),
        ("PAUSED", "PUT", "resume"),
        ("RUNNING", "DELETE", ""),
        ("TERMINATED", "DELETE", "remove"),
    ):
        [one] = search(server, query + status)["results"]
        assert (one["workflowId"], one["status"]) == (started.text, status)
        change = f"/api/workflow/{started.text}/{path}".rstrip("/")
        server.call(method, change, params={"archiveWorkflow": False}).raise_for_status()
        assert search(server, query + status)["totalHits"] == 0
    assert search(server, "input.customerId = 'at once'")["totalHits"] == 0
