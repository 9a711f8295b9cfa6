"""Schedules over HTTP, on an embedded node: what clients see, and a node that is killed."""

import time
from pathlib import Path
from typing import Any

from tests.support.served import Server, serving

WAIT_S = 60
WORKFLOW = {
    "name": "tick",
    "version": 1,
    "ownerEmail": "a@b.c",
    "tasks": [{"name": "do", "taskReferenceName": "do", "type": "SIMPLE"}],
}


def schedule(name: str, cron: str = "* * * * * *", **fields: Any) -> dict[str, Any]:
    start = {"name": "tick", "version": 1, "input": {"mine": name}, "correlationId": name}
    return {"name": name, "cronExpression": cron, "startWorkflowRequest": start, **fields}


def instants(server: Server, name: str) -> list[int]:
    """For which instants workflows of a schedule were started, with repetitions."""
    path = "/api/workflow/tick/correlated/" + name
    runs = server.json("GET", path, params={"includeClosed": "true"})
    return sorted(run["input"]["_scheduledTime"] for run in runs)


def until_started(server: Server, name: str, count: int) -> list[int]:
    deadline = time.monotonic() + WAIT_S
    while True:
        found = instants(server, name)
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def are_all_there(found: list[int]) -> bool:
    """Every second from the first to the last, once."""
    return found == list(range(found[0], found[-1] + 1, 1000))


def test_a_schedule_starts_each_second_and_survives_a_kill(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        server.json("PUT", "/api/metadata/workflow", json=[WORKFLOW])
        saved = server.json("POST", "/api/scheduler/schedules", json=schedule("each"))
        assert saved["nextRunTime"] > saved["createTime"]
        assert saved["paused"] is False
        before = until_started(server, "each", 3)
        assert before[0] == saved["nextRunTime"]
    finally:
        server.stop(kill=True)
    time.sleep(2)
    with serving(tmp_path) as server:
        found = until_started(server, "each", len(before) + 5)
        assert found[0] == saved["nextRunTime"]
        assert are_all_there(found)
        assert server.call("DELETE", "/api/scheduler/schedules/each").status_code == 204
        server.refused("GET", "/api/scheduler/schedules/each", 404)
        assert server.json("GET", "/api/scheduler/schedules") == []
