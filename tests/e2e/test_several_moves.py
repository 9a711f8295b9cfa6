"""Nodes that come, go and die under load: their clients elsewhere see latency, and no errors."""

import asyncio
import itertools
from typing import Any

import pytest

from tests.support.client import Client, simple, until
from tests.support.several import Several, several

pytestmark = pytest.mark.asyncio


class Load:
    """Clients that start, poll and report without pause, and note what was acknowledged."""

    def __init__(self, cluster: Several, nodes: tuple[str, ...]) -> None:
        self.started: list[str] = []
        self.reported: set[str] = set()
        self.errors: list[Any] = []
        self._clients = [cluster.client(name) for name in nodes]
        self._stop = asyncio.Event()
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Load":
        await self._clients[0].register("order", simple("t", "step"), simple("u", "step"))
        for client in self._clients:
            for work in (self._start, self._start_once, self._work, self._work, self._look):
                self._tasks.append(asyncio.create_task(self._run(work, client)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _run(self, work: Any, client: Client) -> None:
        while not self._stop.is_set():
            try:
                await work(client)
            except Exception as error:  # noqa: BLE001 - whatever a client sees is noted
                self.errors.append((work.__name__, repr(error)[:300]))
            await asyncio.sleep(0.01)

    async def _start(self, client: Client) -> None:
        self.started.append(await client.start("order", {"n": next(self._numbers)}))

    async def _start_once(self, client: Client) -> None:
        key = f"key {next(self._numbers)}"
        workflow_id = await client.start("order", {}, idempotencyKey=key)
        self.started.append(workflow_id)
        assert await client.start("order", {}, idempotencyKey=key) == workflow_id

    async def _work(self, client: Client) -> None:
        for task in await client.poll("step", count=5, timeout_ms=100):
            await client.report(task)
            self.reported.add(task["taskId"])

    async def _look(self, client: Client) -> None:
        if self.started:
            await client.run(self.started[-1])

    async def check(self, cluster: Several, nodes: tuple[str, ...]) -> None:
        """Everything acknowledged is there, once, and goes on to its end."""
        assert self.errors == []
        assert len(set(self.started)) == len(self.started)
        clients = [cluster.client(name) for name in nodes]
        left = list(self.started)

        async def all_ended() -> bool:
            for client in clients:
                await self._work(client)
            while left and await clients[len(left) % len(clients)].status(left[-1]) == "COMPLETED":
                left.pop()
            return not left

        await until(all_ended)
        done = {
            task["taskId"]
            for workflow_id in self.started
            for task in (await clients[0].run(workflow_id))["tasks"]
            if task["status"] == "COMPLETED"
        }
        assert self.reported <= done


async def test_nodes_come_and_go_and_nobody_sees_an_error() -> None:
    async with several("a", "b", "c") as cluster:
        async with Load(cluster, ("b", "c")) as load:
            await asyncio.sleep(0.3)
            await cluster.start("d")
            assert len(cluster.nodes["d"].shards) >= 1
            await cluster.stop("a")
            await cluster.settled()
            await cluster.start("a")
            await cluster.stop("d")
            await cluster.settled()
        assert len(load.started) > 100
        await load.check(cluster, ("a", "b", "c"))


async def test_a_node_is_drained_by_command() -> None:
    async with several("a", "b") as cluster:
        async with Load(cluster, ("a", "b")) as load:
            await asyncio.sleep(0.2)
            assert await post(cluster.client("b"), "/cluster/drain/a") == (200, {"draining": True})
            await until_true(lambda: len(cluster.nodes["b"].shards) == 8)
            assert not cluster.nodes["a"].shards
            # It still answers, by way of the other.
            await asyncio.sleep(0.3)
            assert not cluster.nodes["a"].node.services.is_ready()
        await load.check(cluster, ("a", "b"))
        # The last one cannot be drained, nor one that is not there.
        assert (await post(cluster.client("a"), "/cluster/drain/b"))[0] == 409
        assert (await post(cluster.client("a"), "/cluster/drain/x"))[0] == 404


async def test_the_owner_dies_and_requests_elsewhere_wait_for_its_successor() -> None:
    async with several("a", "b", "c") as cluster:
        a = cluster.client("a")
        async with Load(cluster, ("b", "c")) as load:
            await a.register("slow", simple("t", "nobody_polls"))
            ids = [await a.start("slow", {"n": n}) for n in range(20)]
            await asyncio.sleep(0.3)
            began = asyncio.get_running_loop().time()
            await cluster.kill("a")
            b, c = cluster.client("b"), cluster.client("c")
            asked: list[Any] = [
                *(b.run(one) for one in ids[:10]),
                *(c.ok("PUT", f"/workflow/{one}/pause") for one in ids[10:]),
                *(b.start("order", {}, idempotencyKey=f"after {n}") for n in range(20)),
            ]
            answers = await asyncio.gather(*asked)
            took_s = asyncio.get_running_loop().time() - began
            assert took_s < 10
            load.started += answers[20:]
            await cluster.settled()
            assert {(await c.run(one))["status"] for one in ids[10:]} == {"PAUSED"}
            for one in ids[10:]:
                await b.ok("PUT", f"/workflow/{one}/resume")
        await load.check(cluster, ("b", "c"))


async def test_a_request_in_flight_at_the_death_of_the_owner_is_done_once() -> None:
    async with several("a", "b") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        await a.register("order", simple("t", "step"))
        ids = [await a.start("order") for _ in range(30)]
        tasks = await a.poll("step", count=30)
        assert len(tasks) == 30
        # Its log takes no more from here on: what is asked of it is decided, never answered.
        cluster.nodes["a"].hold("append")
        reports = [asyncio.ensure_future(b.report(task, outputData={"r": 1})) for task in tasks]
        await asyncio.sleep(0.2)
        assert not any(report.done() for report in reports)
        await cluster.kill("a")
        await asyncio.gather(*reports)
        for one in ids:
            run = await b.run(one)
            assert run["status"] == "COMPLETED"
            assert [task["outputData"] for task in run["tasks"]] == [{"r": 1}]


async def test_commands_in_flight_at_the_death_of_the_owner_are_no_errors() -> None:
    async with several("a", "b") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        await a.register("order", simple("t", "step"))
        ended = [await a.start("order") for _ in range(3)]
        for one in ended:
            await a.ok("DELETE", f"/workflow/{one}")
        running = [await a.start("order") for _ in range(4)]
        cluster.nodes["a"].hold_after("append")
        asked = [
            asyncio.ensure_future(b.ok(method, path.format(one), body))
            for one, (method, path, body) in zip(
                [*ended, *running],
                [
                    ("POST", "/workflow/{}/restart", None),
                    ("POST", "/workflow/{}/rerun", {}),
                    ("POST", "/workflow/{}/retry", None),
                    ("DELETE", "/workflow/{}", None),
                    ("PUT", "/workflow/{}/pause", None),
                    ("DELETE", "/workflow/{}/remove?archiveWorkflow=false", None),
                    ("POST", "/tasks/{}/t/COMPLETED", {"r": 1}),
                ],
                strict=True,
            )
        ]
        await asyncio.sleep(0.3)
        assert not any(one.done() for one in asked)
        await cluster.kill("a")
        await asyncio.gather(*asked)
        states = [await b.call("GET", f"/workflow/{one}") for one in [*ended, *running]]
        assert [run.get("status") for _, run in states] == [
            *("RUNNING", "RUNNING", "RUNNING", "TERMINATED", "PAUSED", 404, "COMPLETED"),
        ]


async def post(client: Client, path: str) -> tuple[int, Any]:
    url, client.url = client.url, client.url.removesuffix("/api")
    try:
        return await client.call("POST", path)
    finally:
        client.url = url


async def until_true(condition: Any) -> None:
    async def is_true() -> bool:
        return bool(condition())

    await until(is_true)
