"""Producers and a worker fleet, by `cluster.client`, on a served node that is killed under them."""

import asyncio
import contextlib
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.client import Client, Fleet, InProgress, Start, Task, TaskFailed, Worker, worker
from tests.support.client import until
from tests.support.served import Server, serving

pytestmark = pytest.mark.asyncio
Json = dict[str, Any]
ENDED = ("COMPLETED", "FAILED", "TERMINATED", "TIMED_OUT")


def register(server: Server, name: str, *task_types: str, **definition: Any) -> None:
    defs = [
        {"name": one, "retryCount": 3, "retryDelaySeconds": 0, "ownerEmail": "a@b.c"} | definition
        for one in task_types
    ]
    server.json("POST", "/api/metadata/taskdefs", json=defs)
    tasks = [
        {
            "name": one,
            "taskReferenceName": f"r{number}",
            "type": "SIMPLE",
            "inputParameters": {"n": "${workflow.input.n}"},
        }
        for number, one in enumerate(task_types)
    ]
    server.json("PUT", "/api/metadata/workflow", json=[{"name": name, "tasks": tasks}])


async def statuses(client: Client, ids: list[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for one in ids:
        found[(await client.workflow(one, include_tasks=False))["status"]] += 1
    return found


async def all_ended(client: Client, ids: list[str]) -> Counter[str]:
    """How the runs ended, once all have."""
    left = list(ids)

    async def have_ended() -> bool:
        while left:
            if (await client.workflow(left[-1], include_tasks=False))["status"] not in ENDED:
                return False
            left.pop()
        return True

    await until(have_ended)
    return await statuses(client, ids)


@contextlib.asynccontextmanager
async def working(client: Client, *workers: Worker) -> Any:
    stop = asyncio.Event()
    running = asyncio.ensure_future(Fleet(client, workers).run(stop, grace_s=20))
    try:
        yield stop
    finally:
        stop.set()
        await running


async def test_a_fleet_works_off_what_producers_start(tmp_path: Path) -> None:
    attempts: Counter[str] = Counter()

    @worker("fl_a", concurrency=50, poll_timeout_ms=500)
    async def first(task: Task) -> Json:
        attempts[task.workflow_instance_id] += 1
        if task.input_data["n"] % 10 == 3 and task.retry_count == 0:
            raise ValueError("not at once")
        return {"n": task.input_data["n"]}

    @worker("fl_b", concurrency=8, batch=4, poll_timeout_ms=500)
    def second(task: Task) -> Json | InProgress:
        n = task.input_data["n"]
        if n % 10 == 5:
            raise TaskFailed("never", terminal=True)
        if n % 10 == 7 and task.poll_count == 1:
            return InProgress(1)
        return {"n": n}

    with serving(tmp_path) as server:
        register(server, "fleet", "fl_a", "fl_b")
        async with Client(server.url) as client, working(client, first, second):
            found = await client.bulk_start(Start("fleet", {"n": n}) for n in range(1200))
            assert all(one.is_taken for one in found)
            ids = [str(one.id) for one in found]
            ended = await all_ended(client, ids)
        assert ended == {"COMPLETED": 1080, "FAILED": 120}
        assert Counter(attempts.values()) == {1: 1080, 2: 120}
        failed = server.json("GET", f"/api/workflow/{ids[5]}")
        assert "never" in failed["reasonForIncompletion"]


async def test_a_long_task_is_done_once_and_a_fleet_stops_in_order(tmp_path: Path) -> None:
    begun: list[str] = []

    @worker("long", concurrency=5, poll_timeout_ms=500)
    async def long(task: Task) -> Json:
        begun.append(task.task_id)
        await asyncio.sleep(2.5)
        return {}

    with serving(tmp_path) as server:
        register(server, "long", "long", responseTimeoutSeconds=1)
        async with Client(server.url) as client:
            async with working(client, long):
                found = await client.bulk_start([Start("long", {"n": 1})] * 12)
                ids = [str(one.id) for one in found]

                async def have_begun() -> bool:
                    return len(begun) == 5

                await until(have_begun)
            # It has stopped in the middle: what it had begun is done, the rest waits untouched.
            assert len(begun) == len(set(begun)) == 5
            assert await statuses(client, ids) == {"COMPLETED": 5, "RUNNING": 7}
            for one in ids:
                [task] = (await client.workflow(one))["tasks"]
                assert task["retryCount"] == 0
                assert task["status"] in ("COMPLETED", "SCHEDULED")


async def test_a_server_that_is_killed_costs_a_fleet_nothing_but_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    done: Counter[str] = Counter()

    @worker("killed", concurrency=20, poll_timeout_ms=500)
    async def work(task: Task) -> Json:
        await asyncio.sleep(0.005)
        done[task.workflow_instance_id] += 1
        return {}

    server = Server(tmp_path, "--port", port)
    register(server, "killed", "killed")
    async with Client(server.url) as client, working(client, work):
        producing = asyncio.ensure_future(produce(client))
        for _ in range(2):
            await asyncio.sleep(1)
            server.stop(kill=True)
            await asyncio.sleep(0.3)
            server = Server(tmp_path, "--port", port)
        ids = await producing
        began = time.monotonic()
        ended = await all_ended(client, ids)
        assert ended == {"COMPLETED": len(ids)}
        assert time.monotonic() - began < 60
    assert server.stop() == 0
    assert len(ids) == len(set(ids)) == 3000, "a key started two workflows, or none"


async def produce(client: Client) -> list[str]:
    ids: list[str] = []
    for part in range(30):
        starts = [Start("killed", {"n": n}, idempotency_key=f"{part}-{n}") for n in range(100)]
        found = await client.bulk_start(starts)
        assert {one.status for one in found} == {200}
        ids += [str(one.id) for one in found]
        await asyncio.sleep(0.05)
    return ids
