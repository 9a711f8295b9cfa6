"""Schedules over HTTP, on an embedded node: what clients see, and a node that is killed."""

import time
from pathlib import Path
from typing import Any

import pytest
from conductor.client.configuration.configuration import Configuration
from conductor.client.http.models.save_schedule_request import SaveScheduleRequest
from conductor.client.http.models.start_workflow_request import StartWorkflowRequest
from conductor.client.orkes.models.metadata_tag import MetadataTag
from conductor.client.orkes.orkes_scheduler_client import OrkesSchedulerClient

from tests.support.served import Server, serving

# The SDK calls what it has itself marked as deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
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
        assert saved["nextRunTime"] > saved["createTime"] > 0
        assert saved["paused"] is False
        before = until_started(server, "each", 3)
        assert before[0] == saved["createTime"] // 1000 * 1000 + 1000
    finally:
        server.stop(kill=True)
    time.sleep(2)
    with serving(tmp_path) as server:
        found = until_started(server, "each", len(before) + 5)
        assert found[0] == before[0]
        assert are_all_there(found)
        assert server.call("DELETE", "/api/scheduler/schedules/each").status_code == 204
        server.refused("GET", "/api/scheduler/schedules/each", 404)
        assert server.json("GET", "/api/scheduler/schedules") == []


def test_what_is_wrong_is_refused_by_field(tmp_path: Path) -> None:
    def faults(body: dict[str, Any]) -> dict[str, str]:
        response = server.call("POST", "/api/scheduler/schedules", json=body)
        assert response.status_code == 400, response.text
        found = response.json()["validationErrors"]
        return {
            one["path"].removeprefix("createOrUpdateSchedule.arg0."): one["message"]
            for one in found
        }

    with serving(tmp_path) as server:
        assert "6" in faults(schedule("a", "* * * * *"))["cronExpression"]
        assert "hour" in faults(schedule("a", "0 0 25 * * *"))["cronExpression"]
        assert "never" in faults(schedule("a", "0 0 0 31 2 *"))["cronExpression"]
        assert "zone" in faults(schedule("a", zoneId="Moon/Base"))["zoneId"]
        crons = [{"cronExpression": "@daily"}, {"cronExpression": "x", "zoneId": "y"}]
        found = faults(schedule("a", cronSchedules=crons))
        assert set(found) == {"cronSchedules[1].cronExpression", "cronSchedules[1].zoneId"}
        assert set(faults({})) == {"startWorkflowRequest"}
        assert set(faults({"startWorkflowRequest": {}})) == {
            "name",
            "cronExpression",
            "startWorkflowRequest.name",
        }
        bounds: dict[str, Any] = {"scheduleStartTime": 2_000, "scheduleEndTime": 1_000}
        assert set(faults(schedule("a", **bounds))) == {"scheduleEndTime"}
        assert set(faults(schedule("a\n"))) == {"name"}
        server.refused("POST", "/api/scheduler/schedules", 400, content=b"[]")
        server.refused("POST", "/api/scheduler/schedules", 400, content=b"{")
        large = schedule("a", description="x" * 300_000)
        assert server.call("POST", "/api/scheduler/schedules", json=large).status_code == 413
        assert server.json("GET", "/api/scheduler/schedules") == []
        path = "/api/scheduler/nextFewSchedules"
        assert "hour" in server.refused("GET", path, 400, params={"cronExpression": "0 0 99 * * *"})
        server.refused("GET", path, 400)


def test_what_clients_ask_for(tmp_path: Path) -> None:
    base = "/api/scheduler"
    with serving(tmp_path) as server:
        server.json("PUT", "/api/metadata/workflow", json=[WORKFLOW])
        yearly = "0 0 0 1 1 *"
        for name in ("b", "a", "c/d é"):
            server.json("POST", f"{base}/schedules", json=schedule(name, yearly))
        names = [one["name"] for one in server.json("GET", f"{base}/schedules")]
        assert names == ["a", "b", "c/d é"]
        assert server.json("GET", f"{base}/schedules", params={"workflowName": "other"}) == []
        shown = server.json("GET", f"{base}/schedules/a")
        assert shown["zoneId"] == "UTC"
        assert shown["startWorkflowRequest"]["correlationId"] == "a"
        assert shown["nextRunTime"] > time.time() * 1000

        # Paused and resumed by either verb.
        for verb in ("PUT", "GET"):
            server.json(verb, f"{base}/schedules/a/pause", params={"reason": "so"})
            shown = server.json("GET", f"{base}/schedules/a")
            assert (shown["paused"], shown["pausedReason"]) == (True, "so")
            found = server.json("GET", f"{base}/schedules/search", params={"paused": "true"})
            assert (found["totalHits"], found["results"][0]["name"]) == (1, "a")
            server.json(verb, f"{base}/schedules/a/resume")
            server.refused(verb, f"{base}/schedules/a/resume", 404)
            server.refused(verb, f"{base}/schedules/none/pause", 404)
        bulk = server.json("PUT", f"{base}/bulk/pause", json=["a", "b", "none"])
        assert bulk["bulkSuccessfulResults"] == ["a", "b"]
        assert set(bulk["bulkErrorResults"]) == {"none"}
        bulk = server.json("PUT", f"{base}/bulk/resume", json=["a", "b"])
        assert bulk["bulkSuccessfulResults"] == ["a", "b"]

        search = {"sort": "name:DESC", "start": "1", "size": "1", "workflowName": "tick"}
        found = server.json("GET", f"{base}/schedules/search", params=search)
        assert (found["totalHits"], [one["name"] for one in found["results"]]) == (3, ["b"])

        tags = [{"key": "team", "value": "x"}, {"key": "tier", "value": "1"}]
        server.json("PUT", f"{base}/schedules/a/tags", json=tags)
        server.json("DELETE", f"{base}/schedules/a/tags", json=tags[:1])
        server.json("POST", f"{base}/schedules", json=schedule("a", yearly))
        assert server.json("GET", f"{base}/schedules/a/tags") == tags[1:]

        few = server.json("GET", f"{base}/nextFewSchedules", params={"cronExpression": "@hourly"})
        assert [at - few[0] for at in few] == [3_600_000 * n for n in range(5)]
        bounds = {"scheduleStartTime": "4000000000000", "scheduleEndTime": "4000000002000"}
        few = server.json(
            "GET",
            f"{base}/nextFewSchedules",
            params={"cronExpression": "* * * * * *", "limit": "2", **bounds},
        )
        assert few == [4_000_000_000_000, 4_000_000_001_000]
        assert server.call("DELETE", f"{base}/schedules/none").status_code == 204

        # What was started, and what could not be.
        server.json("POST", f"{base}/schedules", json=schedule("each"))
        wrong = schedule("wrong")
        wrong["startWorkflowRequest"]["name"] = "nobody"
        server.json("POST", f"{base}/schedules", json=wrong)
        until_started(server, "each", 2)
        deadline = time.monotonic() + WAIT_S
        while True:
            failed = server.json(
                "GET", f"{base}/search/executions", params={"query": "state IN (FAILED)"}
            )
            if failed["totalHits"] >= 2 or time.monotonic() > deadline:
                break
        assert {one["scheduleName"] for one in failed["results"]} == {"wrong"}
        assert "nobody" in failed["results"][0]["reason"]
        query = "scheduleName IN (each,none) AND scheduledTime>1700000000000 AND state=EXECUTED"
        found = server.json(
            "GET", f"{base}/search/executions", params={"query": query, "size": "1"}
        )
        assert found["totalHits"] >= 1
        (one,) = found["results"]
        run = server.json("GET", f"/api/workflow/{one['workflowId']}")
        assert run["input"]["_executionId"] == one["executionId"]
        assert run["correlationId"] == "each"
        found = server.json("GET", f"{base}/search/executions", params={"freeText": "NOBODY"})
        assert found["totalHits"] >= 2
        server.refused("GET", f"{base}/search/executions", 400, params={"query": "colour = red"})

        for order in ("pause", "resume"):
            assert server.json("GET", f"{base}/admin/{order}") == {"status": "done"}
        assert server.json("GET", f"{base}/admin/requeue")["recordIds.size"] == 0
        metrics = server.call("GET", "/metrics").text
        assert 'schedule_starts_total{state="EXECUTED"}' in metrics
        assert 'schedule_starts_total{state="FAILED"}' in metrics
        assert "schedule_lateness_seconds_count" in metrics


def test_the_official_client(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.json("PUT", "/api/metadata/workflow", json=[WORKFLOW])
        client = OrkesSchedulerClient(Configuration(server_api_url=f"{server.url}/api"))
        start = StartWorkflowRequest(name="tick", version=1, input={"a": 1}, correlation_id="sdk")
        client.save_schedule(
            SaveScheduleRequest(
                name="sdk", cron_expression="* * * * * *", start_workflow_request=start
            )
        )
        saved = client.get_schedule("sdk")
        assert saved is not None
        assert saved.name == "sdk"
        assert saved.start_workflow_request.name == "tick"
        assert [one.name for one in client.get_all_schedules("tick")] == ["sdk"]
        found = until_started(server, "sdk", 2)
        assert are_all_there(found)
        executions = client.search_schedule_executions(size=10, sort="scheduledTime:DESC")
        assert executions.total_hits >= 1
        assert executions.results[0].schedule_name == "sdk"
        assert executions.results[0].state == "EXECUTED"
        client.pause_schedule("sdk", reason="enough")
        assert client.get_schedule("sdk").paused
        client.resume_schedule("sdk")
        assert not client.get_schedule("sdk").paused
        assert len(client.get_next_few_schedule_execution_times("0 0 0 * * *", limit=3)) == 3
        client.pause_all_schedules()
        client.resume_all_schedules()
        client.requeue_all_execution_records()
        client.set_scheduler_tags([MetadataTag("team", "x")], "sdk")
        tags = client.get_scheduler_tags("sdk")
        assert [(tag.key, tag.value) for tag in tags] == [("team", "x")]
        client.delete_scheduler_tags([MetadataTag("team", "x")], "sdk")
        assert client.get_scheduler_tags("sdk") == []
        client.delete_schedule("sdk")
        server.refused("GET", "/api/scheduler/schedules/sdk", 404)
