"""Two nodes whose queues, leases and membership are a real Redis, which is flushed and killed."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest

from cluster.clock import SystemClock, SystemRandom
from cluster.node.app import Node
from cluster.node.executors.scripts import check_javascript
from cluster.settings import Settings
from cluster.store.memory import open_memory
from cluster.store.redis import open_redis
from ops.redis_up import Servers
from tests.support import redis
from tests.support.client import Client, Json, simple, until
from tests.support.lives import Scripts
from tests.support.several import QUICK, SHARDS, TOKEN

CLOCK, RANDOM = SystemClock(), SystemRandom()
SLOTS = 3


class Workers:
    """Polls at both nodes and reports; keeps an account of who had what."""

    def __init__(self, clients: list[Client]) -> None:
        self.done: Counter[str] = Counter()
        self.at_work: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._clients = clients
        self._is_over = False

    async def work(self, task_type: str, number: int) -> None:
        client = self._clients[number % len(self._clients)]
        while not self._is_over:
            tasks: list[Json] = []
            with suppress(aiohttp.ClientError, AssertionError):
                tasks = await client.poll(task_type, count=2, timeout_ms=500)
            self.at_work[task_type] += len(tasks)
            self.most[task_type] = max(self.most[task_type], self.at_work[task_type])
            await asyncio.sleep(0.02)
            for task in tasks:
                await client.report(task)
                # The slot is free when the result is acknowledged, at the earliest.
                self.at_work[task_type] -= 1
                self.done[task["workflowInstanceId"]] += 1

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(self.work(task_type, number))
            for task_type in ("free", "limited")
            for number in range(6)
        ]
        try:
            yield
        finally:
            self._is_over = True
            await asyncio.gather(*tasks)


@asynccontextmanager
async def two_nodes(servers: Servers) -> AsyncIterator[list[Client]]:
    stores = open_memory(shard_count=SHARDS)
    await stores.shards.create(SHARDS)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        nodes = []
        for name in ("a", "b"):
            at = await stack.enter_async_context(
                open_redis(servers.url, shard_count=SHARDS, clock=CLOCK, random=RANDOM)
            )
            quick: dict[str, Any] = QUICK | {"lease_ttl_ms": 3000}
            node = Node(
                Settings(
                    port=0,
                    node_id=name,
                    store_url="memory://",
                    shard_count=SHARDS,
                    link_token=TOKEN,
                    **quick,
                ),
                stores,
                at.queues,
                at.leases,
                at.membership,
                is_alone=False,
                scripts=Scripts(),
                check_javascript=check_javascript,
                clock=CLOCK,
                random=RANDOM,
            )
            await stack.enter_async_context(served(node))
            nodes.append(node)

        async def is_settled() -> bool:
            homes = [node.home.incarnation for node in nodes]
            shares = [0 if home is None else len(home.shards.epochs) for home in homes]
            return sum(shares) == SHARDS and all(node.services.is_ready() for node in nodes)

        await until(is_settled)
        yield [Client(node.url, session) for node in nodes]


@asynccontextmanager
async def served(node: Node) -> AsyncIterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with node.serving(listening):
            yield


async def flush(servers: Servers) -> None:
    for server in servers.data:
        await asyncio.to_thread(server.command, "FLUSHALL")


async def kill_and_restart(servers: Servers) -> None:
    server = servers.data[0]
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(1)
    await asyncio.to_thread(server.start)


Fault = Callable[[Servers], Any]


@pytest.mark.parametrize("kind", ["standalone", "cluster"])
@pytest.mark.parametrize("fault", [flush, kill_and_restart])
@pytest.mark.asyncio
async def test_every_workflow_ends_whatever_becomes_of_redis(kind: str, fault: Fault) -> None:
    servers = redis.start_servers(kind)
    try:
        async with two_nodes(servers) as clients:
            a = clients[0]
            await a.task_def("limited", concurrentExecLimit=SLOTS)
            await a.register("free", simple("t", "free"), simple("u", "free"))
            await a.register("limited", simple("t", "limited"))
            await asyncio.sleep(0.5)
            workers = Workers(clients)
            started: list[tuple[str, int]] = []

            async def start(number: int) -> None:
                name, tasks = ("limited", 1) if number % 3 == 0 else ("free", 2)
                started.append((await clients[number % 2].start(name), tasks))

            for number in range(40):
                await start(number)
            async with workers.busy():
                for number in range(120):
                    if number in (40, 80):
                        await fault(servers)
                    await start(number)
                    await asyncio.sleep(0.01)
                for workflow_id, _ in started:
                    await a.ended(workflow_id, deadline_s=60)
            for workflow_id, tasks in started:
                assert await a.status(workflow_id) == "COMPLETED"
                run = await a.run(workflow_id)
                assert [task["status"] for task in run["tasks"]] == ["COMPLETED"] * tasks
            assert workers.most["limited"] <= SLOTS
    finally:
        servers.stop()
