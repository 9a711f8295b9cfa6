"""A served node from start to stop: what it says, what it keeps, what it refuses to share."""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.served import PODIUM, Server, serving

STEPS = [{"name": "life_a", "taskReferenceName": "a", "type": "SIMPLE"}]


def start(server: Server) -> str:
    server.json("PUT", "/api/metadata/workflow", json=[{"name": "life", "tasks": STEPS}])
    started = server.call("POST", "/api/workflow/life", json={"k": 1})
    assert started.status_code == 200
    return started.text


def finish(server: Server, workflow_id: str) -> None:
    """Work off the one task and see the run end."""
    [task] = server.json("GET", "/api/tasks/poll/batch/life_a?count=9&timeout=5000")
    assert task["workflowInstanceId"] == workflow_id
    result = {
        "workflowInstanceId": workflow_id,
        "taskId": task["taskId"],
        "status": "COMPLETED",
        "outputData": {"done": True},
    }
    server.call("POST", "/api/tasks", json=result).raise_for_status()
    shown = server.json("GET", f"/api/workflow/{workflow_id}")
    assert (shown["status"], shown["output"]) == ("COMPLETED", {"done": True})


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + 20
    while server.call("GET", "/health/ready").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path, kill: bool) -> None:
    server = Server(tmp_path)
    try:
        workflow_id = start(server)
        before = server.json("GET", f"/api/workflow/{workflow_id}")
    finally:
        server.stop(kill=kill)
    with serving(tmp_path) as again:
        wait_until_ready(again)
        after = again.json("GET", f"/api/workflow/{workflow_id}")
        # Its task was put into its queue again.
        assert after | {"updateTime": 0} == before | {"updateTime": 0}
        assert again.json("GET", "/api/workflow/running/life") == [workflow_id]
        finish(again, workflow_id)
    with serving(tmp_path) as last:
        shown = last.json("GET", f"/api/workflow/{workflow_id}")
        assert shown["status"] == "COMPLETED"
        assert last.json("GET", "/api/workflow/running/life") == []
        assert last.json("GET", "/api/tasks/queue/all") == {}


def test_a_task_in_a_workers_hands_can_be_reported_after_a_restart(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        workflow_id = start(server)
        [task] = server.json("GET", "/api/tasks/poll/batch/life_a?count=9&timeout=5000")
    finally:
        server.stop()
    with serving(tmp_path) as again:
        wait_until_ready(again)
        assert again.json("GET", "/api/tasks/poll/batch/life_a?timeout=50") == []
        result = {
            "workflowInstanceId": workflow_id,
            "taskId": task["taskId"],
            "status": "COMPLETED",
        }
        again.call("POST", "/api/tasks", json=result).raise_for_status()
        assert again.json("GET", f"/api/workflow/{workflow_id}/status")["status"] == "COMPLETED"


def test_parked_polls_are_answered_when_the_node_stops(tmp_path: Path) -> None:
    with serving(tmp_path) as server, ThreadPoolExecutor(4) as threads:
        path = "/api/tasks/poll/batch/life_none?timeout=5000"
        polls = [threads.submit(server.json, "GET", path) for _ in range(4)]
        deadline = time.monotonic() + 10
        while "polls_parked 4.0" not in server.call("GET", "/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        asked = time.monotonic()
        server.process.terminate()
        assert [poll.result(10) for poll in polls] == [[], [], [], []]
        assert time.monotonic() - asked < 3


def test_a_data_folder_is_not_shared(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        second = subprocess.run(
            [str(PODIUM), "serve", "--port", "0", "--data", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 2
        assert "is in use by process" in second.stderr
        assert "Traceback" not in second.stderr
        finish(server, start(server))


def test_health_version_and_metrics(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        wait_until_ready(server)
        finish(server, start(server))
        healthy = {"healthResults": [], "suppressedHealthResults": [], "healthy": True}
        assert server.json("GET", "/health") == healthy
        assert server.json("GET", "/api/health") == healthy
        assert server.call("GET", "/health/live").status_code == 200
        version = server.call("GET", "/api/version")
        assert version.headers["Content-Type"].startswith("text/plain")
        assert version.text.count(".") == 2
        metrics = server.call("GET", "/metrics")
        assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        for line in (
            'task_poll_total{taskType="life_a"} 1.0',
            'workflow_start_success_total{ownerApp="",version="",workflowName="life"} 1.0',
            'workflow_execution_seconds_count{ownerApp="",workflowName="life"} 1.0',
            'task_poll_count_total{domain="null",taskType="life_a"} 1.0',
            'http_requests_total{method="POST",route="/api/tasks",status="200"} 1.0',
            "shard_owned 256.0",
            "quarantined_workflows 0.0",
        ):
            assert line in metrics.text
