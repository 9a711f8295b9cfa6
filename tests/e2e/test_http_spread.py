"""Parents with many children on other shards: all of them once, whatever happens in between."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.clock import SystemClock, SystemRandom
from cluster.engine.effects import Post
from cluster.ids import WorkflowId, slot_of
from cluster.node.app import Node
from cluster.node.executors.scripts import check_javascript
from cluster.settings import Settings
from cluster.sharding.mail import Mail
from cluster.store.memory import open_memory
from cluster.store.memory.leases import MemoryLeases, MemoryMembership
from cluster.store.memory.queues import MemoryTaskQueues
from cluster.store.ports import Stores
from cluster.store.sql import open_sqlite
from tests.support.served import Server, serving

Json = dict[str, Any]

SHARDS = 16
DEADLINE_S = 120

CHILD = {
    "name": "spread_child",
    "tasks": [{"name": "spread_work", "taskReferenceName": "work", "type": "SIMPLE"}],
    "outputParameters": {"n": "${workflow.input.__index}"},
}
IDLE_CHILD = {
    "name": "spread_idle_child",
    "tasks": [{"name": "n", "taskReferenceName": "n", "type": "NOOP"}],
    "outputParameters": {"n": "${workflow.input.__index}"},
}


def parent_of(child: str) -> Json:
    fork = {
        "name": "fork",
        "taskReferenceName": "fork",
        "type": "FORK_JOIN_DYNAMIC",
        "inputParameters": {
            "forkTaskWorkflow": child,
            "forkTaskInputs": "${workflow.input.items}",
        },
    }
    join = {"name": "join", "taskReferenceName": "join", "type": "JOIN"}
    return {"name": f"parent_of_{child}", "tasks": [fork, join]}


def children_of(run: Json) -> list[Json]:
    return [task for task in run["tasks"] if task["taskType"] == "SUB_WORKFLOW"]


def check_spread(run: Json, count: int) -> list[str]:
    """The ids of the children; they live all over the shards."""
    ids = [task["subWorkflowId"] for task in children_of(run)]
    assert len(set(ids)) == len(ids) == count
    per_shard = Counter(slot_of(one) >> 12 for one in ids)
    assert len(per_shard) > 8
    assert max(per_shard.values()) < count / 16 * 3 + 10
    return ids


def check_completed(run: Json, count: int) -> None:
    """Every child has ended once, and its end has reached the JOIN."""
    assert run["status"] == "COMPLETED"
    check_spread(run, count)
    assert {task["status"] for task in children_of(run)} == {"COMPLETED"}
    found = sorted(one["n"] for one in run["output"].values())
    assert found == list(range(count))


# -- a node of its own, as a process that may be killed


def register(server: Server) -> None:
    bodies = [CHILD, IDLE_CHILD, parent_of("spread_child"), parent_of("spread_idle_child")]
    server.json("PUT", "/api/metadata/workflow", json=bodies)


def ended(server: Server, run_id: str) -> Json:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        path = f"/api/workflow/{run_id}"
        if server.json("GET", f"{path}/status")["status"] != "RUNNING":
            return dict(server.json("GET", path))
        time.sleep(0.1)
    raise AssertionError("no end")


def start(server: Server, child: str, count: int) -> str:
    items: Json = {"items": [{} for _ in range(count)]}
    response = server.call("POST", f"/api/workflow/parent_of_{child}", json=items)
    assert response.status_code == 200
    return response.text


def test_four_thousand_children_and_a_kill_in_between(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        register(server)
        run_id = start(server, "spread_idle_child", 4_000)
        # The start is durable, and most of what follows from it is not done yet.
        server.stop(kill=True)
        server = Server(tmp_path)
        for _ in range(2):
            time.sleep(0.7)
            server.stop(kill=True)
            server = Server(tmp_path)
        run = ended(server, run_id)
        check_completed(run, 4_000)
        assert [line for line in server.log if "Traceback" in line] == []
    finally:
        server.stop()
    assert asyncio.run(count_in(tmp_path)) == 4_000


async def count_in(data: Path) -> int:
    async with open_sqlite(data / "podium.db", shard_count=256) as stores:
        return await count_children(stores)


async def count_children(stores: Stores) -> int:
    """How many idle children were ever started."""
    found = await stores.search.by_definition(
        "spread_idle_child",
        version=None,
        statuses=(),
        start_ms=0,
        end_ms=1 << 62,
        after=None,
        limit=100_000,
    )
    return len(found)


def test_children_elsewhere_are_terminated_and_revived_with_their_parent(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        register(server)
        run_id = start(server, "spread_child", 150)
        ids = check_spread(server.json("GET", f"/api/workflow/{run_id}"), 150)
        wait_for(server, ids, "RUNNING")
        server.call("DELETE", f"/api/workflow/{run_id}?reason=enough")
        wait_for(server, ids, "TERMINATED")
        child = server.json("GET", f"/api/workflow/{ids[7]}")
        assert child["reasonForIncompletion"] == (
            "Parent workflow has been terminated with reason: enough"
        )
        # One child goes on, by an operator: its parent and all siblings go on with it.
        server.json("POST", f"/api/workflow/{ids[7]}/retry")
        wait_for(server, [run_id, *ids], "RUNNING")
        work(server, 150)
        run = ended(server, run_id)
        check_completed(run, 150)
        assert check_spread(run, 150) == ids


def wait_for(server: Server, ids: list[str], status: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    left = list(ids)
    while left:
        assert time.monotonic() < deadline, f"{len(left)} of {len(ids)} are not {status}"
        path = f"/api/workflow/{left[-1]}/status"
        answer = server.call("GET", path)
        if answer.status_code == 200 and answer.json()["status"] == status:
            left.pop()
        else:
            time.sleep(0.02)


def work(server: Server, count: int) -> None:
    done = 0
    while done < count:
        polled = server.json("GET", "/api/tasks/poll/batch/spread_work?count=100&timeout=2000")
        assert polled, f"{done} of {count}"
        for task in polled:
            body = {
                "workflowInstanceId": task["workflowInstanceId"],
                "taskId": task["taskId"],
                "status": "COMPLETED",
            }
            assert server.call("POST", "/api/tasks", json=body).status_code == 200
            done += 1


# -- a node in this process, whose memory is lost


class _NoScripts:
    async def evaluate(self, language: str, source: str, input_json: bytes) -> bytes:
        raise AssertionError("nothing here needs a script")


@asynccontextmanager
async def node_over(stores: Stores, session: aiohttp.ClientSession) -> AsyncIterator[Node]:
    """A node on stores that outlive it; it is the only one, so it takes over all shards."""
    clock, random = SystemClock(), SystemRandom()
    node = Node(
        Settings(store_url="memory://", shard_count=SHARDS, port=0),
        stores,
        MemoryTaskQueues(),
        MemoryLeases(),
        MemoryMembership(clock),
        is_alone=True,
        scripts=_NoScripts(),
        check_javascript=check_javascript,
        clock=clock,
        random=random,
    )
    listening = socket.create_server(("127.0.0.1", 0))
    with listening:
        async with node.serving(listening):
            yield node


async def fetch(session: aiohttp.ClientSession, node: Node, path: str) -> Json:
    async with session.get(f"{node.url}/api/workflow/{path}") as response:
        return dict(await response.json())


async def when_ended(session: aiohttp.ClientSession, node: Node, run_id: str) -> Json:
    deadline = time.monotonic() + DEADLINE_S
    while (await fetch(session, node, f"{run_id}/status"))["status"] == "RUNNING":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    return await fetch(session, node, run_id)


async def begin(session: aiohttp.ClientSession, node: Node, count: int) -> str:
    bodies = [IDLE_CHILD, parent_of("spread_idle_child")]
    async with session.put(f"{node.url}/api/metadata/workflow", json=bodies) as response:
        assert response.status == 200
    items: Json = {"items": [{} for _ in range(count)]}
    url = f"{node.url}/api/workflow/parent_of_spread_idle_child"
    async with session.post(url, json=items) as response:
        assert response.status == 200
        return await response.text()


async def new_stores() -> Stores:
    stores = open_memory(shard_count=SHARDS)
    await stores.shards.create(SHARDS)
    return stores


@pytest.mark.asyncio
@pytest.mark.parametrize("count", [150, 4_000])
async def test_many_children_on_other_shards(count: int) -> None:
    stores = await new_stores()
    async with aiohttp.ClientSession() as session, node_over(stores, session) as node:
        run_id = await begin(session, node, count)
        check_completed(await when_ended(session, node, run_id), count)


@pytest.mark.asyncio
@pytest.mark.parametrize("lost", ["start", "end"])
@pytest.mark.parametrize("count", [150, 1_000])
async def test_orders_that_were_lost_are_sent_again_by_the_next_owner(
    monkeypatch: pytest.MonkeyPatch, lost: str, count: int
) -> None:
    stores = await new_stores()
    deliver = Mail.send
    dropped = 0
    enough_seen = asyncio.Event()

    def drop_every_second(mail: Mail, sender: WorkflowId, order: Post) -> None:
        nonlocal dropped
        if (order.start is not None) is (lost == "start"):
            dropped += 1
            # Now and then a child draws the slot of its parent, and needs no order.
            if dropped >= count - 20:
                enough_seen.set()
            if dropped % 2:
                return
        deliver(mail, sender, order)

    async with aiohttp.ClientSession() as session:
        monkeypatch.setattr(Mail, "send", drop_every_second)
        async with node_over(stores, session) as node:
            run_id = await begin(session, node, count)
            async with asyncio.timeout(DEADLINE_S):
                await enough_seen.wait()
            assert (await fetch(session, node, f"{run_id}/status"))["status"] == "RUNNING"
        monkeypatch.undo()
        async with node_over(stores, session) as node:
            check_completed(await when_ended(session, node, run_id), count)
        assert await count_children(stores) == count
