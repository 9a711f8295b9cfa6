"""The page of a live node has everything that dashboards and alerts ask for."""

from pathlib import Path

from tests.support.promql import expressions, missing_from
from tests.support.served import serving

TASK = {"name": "live", "taskReferenceName": "a", "type": "SIMPLE"}


def test_dashboards_and_alerts_name_nothing_that_a_live_node_does_not_have(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.json("POST", "/api/metadata/taskdefs", json=[{"name": "live"}])
        server.json("POST", "/api/metadata/workflow", json={"name": "live", "tasks": [TASK]})
        server.call("POST", "/api/workflow/live", json={})
        (task,) = server.json("GET", "/api/tasks/poll/batch/live?timeout=5000")
        done = {"workflowInstanceId": task["workflowInstanceId"], "taskId": task["taskId"]}
        server.call("POST", "/api/tasks", json={**done, "status": "COMPLETED"})
        page = server.call("GET", "/metrics").text
    assert missing_from(page) == []
    assert len({name for one in expressions() for name, _ in one.metrics()}) > 40
    # Not only declared: what one workflow touches has been fed.
    fed = {
        line.partition("{")[0].partition(" ")[0] for line in page.splitlines() if line[:1] != "#"
    }
    for name in (
        *("http_requests_total", "workflow_start_success_total", "task_execution_seconds_count"),
        *("workflow_decision_seconds_count", "commit_log_append_seconds_count", "shard_owned"),
    ):
        assert name in fed, name
    zero = {line.split()[0] for line in page.splitlines() if line.endswith(" 0.0")}
    assert "commit_log_entries_total" not in zero
    assert {"stuck_workflows", "quarantined_workflows"} <= zero
