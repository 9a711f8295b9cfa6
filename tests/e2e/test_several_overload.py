"""A node without room for more, among others: it refuses what clients want to start,
whichever way that comes, and takes what was promised before."""

from collections import Counter
from typing import Any

import pytest

from tests.support.client import simple, until
from tests.support.several import Several, several

pytestmark = pytest.mark.asyncio
Json = dict[str, Any]
COUNT = 24


def fill_the_log(cluster: Several, name: str) -> None:
    incarnation = cluster.nodes[name].node.home.incarnation
    assert incarnation is not None
    incarnation.commit_log.pending_transitions += 1_000_000


def refused(cluster: Several, name: str, kind: str) -> float:
    return cluster.nodes[name].node.metrics.requests_refused.of(kind, "backlog").value


async def test_an_owner_refuses_starts_that_come_over_a_link() -> None:
    async with several("a", "b") as cluster:
        client = cluster.client("a")
        await client.register("order", simple("one", "step"))
        fill_the_log(cluster, "b")
        found = [
            await client.call(
                "POST", "/workflow", {"name": "order", "input": {}, "idempotencyKey": f"k{number}"}
            )
            for number in range(COUNT)
        ]
        statuses = Counter(status for status, _ in found)
        assert set(statuses) == {200, 429}
        assert refused(cluster, "b", "start") == statuses[429]
        assert refused(cluster, "a", "start") == 0
        for status, answer in found:
            if status == 200:
                assert cluster.owner_of(answer) == "a"
            else:
                assert answer["retryable"] is True
                assert answer["retryAfterMs"] == 1_000
        bodies = [
            {"name": "order", "input": {}, "idempotencyKey": f"m{number}"}
            for number in range(COUNT)
        ]
        results = (await client.ok("POST", "/workflow/bulk/start", bodies))["results"]
        assert {one["status"] for one in results} == {200, 429}
        # Its own door is shut too, and it says so at once.
        status, _ = await cluster.client("b").call("POST", "/workflow/order", {})
        assert status == 429


async def test_what_was_acknowledged_goes_on_where_nothing_new_may_start() -> None:
    async with several("a", "b") as cluster:
        await cluster.client("a").register("order", simple("one", "step"))
        ids = [await cluster.client(name).start("order") for name in "ab" for _ in range(4)]
        assert {cluster.owner_of(one) for one in ids} == {"a", "b"}
        await cluster.client("a").register(
            "child", {"name": "n", "taskReferenceName": "n", "type": "NOOP"}
        )
        spread = [
            {
                "name": f"s{number}",
                "taskReferenceName": f"s{number}",
                "type": "SUB_WORKFLOW",
                "subWorkflowParam": {"name": "child", "version": 1, "placement": "spread"},
            }
            for number in range(COUNT)
        ]
        join = {
            "name": "join",
            "taskReferenceName": "join",
            "type": "JOIN",
            "joinOn": [one["name"] for one in spread],
        }
        started = {
            "name": "started",
            "taskReferenceName": "started",
            "type": "START_WORKFLOW",
            "inputParameters": {"startWorkflow": {"name": "child", "version": 1}},
        }
        fork = {
            "name": "fork",
            "taskReferenceName": "fork",
            "type": "FORK_JOIN",
            "forkTasks": [[one] for one in spread],
        }
        await cluster.client("a").register("parent", fork, join, started)
        fill_the_log(cluster, "b")
        client = cluster.client("a")
        parents = [await client.start("parent") for _ in range(4)]

        async def have_ended() -> bool:
            return all([await client.status(one) == "COMPLETED" for one in parents])

        await until(have_ended)
        run = await client.ok("GET", f"/workflow/{parents[0]}")
        children = [
            one["subWorkflowId"] for one in run["tasks"] if one["taskType"] == "SUB_WORKFLOW"
        ]
        assert len(children) == COUNT
        assert {cluster.owner_of(one) for one in children} == {"a", "b"}
        # Workers of the full node find nothing; what the others hand out is completed.
        assert (
            await cluster.client("b").ok("GET", "/tasks/poll/batch/step?count=50&timeout=0") == []
        )
        assert refused(cluster, "b", "poll") > 0
        tasks = await client.ok("GET", "/tasks/poll/batch/step?count=50&timeout=0")
        assert {one["workflowInstanceId"] for one in tasks} == set(ids)
        for task in tasks:
            result = {
                "workflowInstanceId": task["workflowInstanceId"],
                "taskId": task["taskId"],
                "status": "COMPLETED",
            }
            await cluster.client("b").ok("POST", "/tasks", result)
        assert {await client.status(one) for one in ids} == {"COMPLETED"}
