"""Nodes that come, go and die under load: their clients elsewhere see latency, and no errors."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from cluster.clock import SystemClock
from cluster.errors import NotOwner, OutcomeUnknown
from cluster.ids import WorkflowId, shard_of
from cluster.node.link import LinkCall
from cluster.node.router import StartWorkflow
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


# -- answers that get lost on their way


class Lost:
    """Loses the answer to the first call of an operation that a node makes, after `meanwhile`."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        cluster: Several,
        name: str,
        operation: str,
        meanwhile: Callable[[], Awaitable[object]],
    ) -> None:
        self.count = 0
        links = cluster.nodes[name].node._links
        call = links.call

        async def lossy(address: str, asked: str, arguments: bytes, **options: Any) -> bytes:
            answer = await call(address, asked, arguments, **options)
            if asked == operation and not self.count:
                self.count += 1
                await meanwhile()
                raise OutcomeUnknown("the answer was lost")
            return answer

        monkeypatch.setattr(links, "call", lossy)


async def moment() -> None:
    await asyncio.sleep(0.05)


async def without_shards(cluster: Several, name: str) -> None:
    other = cluster.other_than(name)
    await post(cluster.client(other), f"/cluster/drain/{name}")
    await until_true(lambda: len(cluster.nodes[other].shards) == 8)


async def test_a_start_whose_answer_was_lost_happens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with several("a", "b") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        await a.register("order", simple("t", "step"))
        await without_shards(cluster, "a")
        # Before it is asked for again it has even ended, and is out of memory.

        async def end_it() -> None:
            (task,) = await b.poll("step")
            await b.report(task)
            await cluster.nodes["b"].node.services.catch_up()

        lost = Lost(monkeypatch, cluster, "a", "start", end_it)
        workflow_id = await a.start("order")
        assert lost.count == 1
        assert await b.status(workflow_id) == "COMPLETED"
        assert await b.poll("step", timeout_ms=100) == []


async def test_a_start_with_a_key_whose_answer_was_lost_is_no_conflict_with_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with several("a", "b") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        await a.register("order", simple("t", "step"))
        await without_shards(cluster, "a")
        lost = Lost(monkeypatch, cluster, "a", "start_once", moment)
        fields = {"idempotencyKey": "k", "idempotencyStrategy": "FAIL"}
        await a.start("order", {}, **fields)
        assert lost.count == 1
        assert len(await b.poll("step", count=5, timeout_ms=200)) == 1
        assert (await a.call("POST", "/workflow", {"name": "order"} | fields))[0] == 409


@pytest.mark.parametrize("off_ms", [-2_000, 2_000], ids=["held up", "clock ahead"])
async def test_a_call_that_was_held_up_is_taken_for_a_repetition(off_ms: int) -> None:
    async with several("a") as cluster:
        a = cluster.client("a")
        await a.register("order", simple("t", "step"))
        life = cluster.nodes["a"]
        workflow_id = await a.start("order")
        (task,) = await a.poll("step")
        await a.report(task)
        await life.node.services.catch_up()
        incarnation = life.node.home.incarnation
        assert incarnation is not None
        assert incarnation.shards.resident(WorkflowId(workflow_id)) is None
        shard = shard_of(WorkflowId(workflow_id), shard_count=8)
        arguments = msgspec.msgpack.encode((workflow_id, StartWorkflow("order"), False))
        late = LinkCall(
            1,
            "start",
            5_000,
            shard,
            incarnation.shards.epochs[shard],
            msgspec.Raw(arguments),
            sent_ms=SystemClock().now_ms() + off_ms,
        )
        await life.node.services.router.serve(late)
        assert await a.status(workflow_id) == "COMPLETED"
        with pytest.raises(NotOwner):
            await life.node.services.router.serve(
                msgspec.structs.replace(late, epoch=late.epoch + 1)
            )


async def test_children_elsewhere_start_once_though_answers_get_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with several("a", "b") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        await a.register("child", simple("t", "step"))
        spread = {"name": "child", "version": 1, "placement": "spread"}
        children = [
            {
                "name": f"s{n}",
                "taskReferenceName": f"s{n}",
                "type": "SUB_WORKFLOW",
                "subWorkflowParam": spread,
            }
            for n in range(8)
        ]
        fork = {
            "name": "f",
            "taskReferenceName": "f",
            "type": "FORK_JOIN",
            "forkTasks": [[child] for child in children],
        }
        join = {
            "name": "j",
            "taskReferenceName": "j",
            "type": "JOIN",
            "joinOn": [child["name"] for child in children],
        }
        await a.register("parent", fork, join)
        done = 0

        async def work() -> bool:
            nonlocal done
            for task in await b.poll("step", count=8, timeout_ms=500):
                await b.report(task, outputData={"r": 1})
                done += 1
            return done >= 8

        async def end_those_there() -> None:
            await work()
            incarnation = cluster.nodes["b"].node.home.incarnation
            assert incarnation is not None
            executions = incarnation.residents.executions
            ended = [one for one, execution in executions.items() if execution.is_terminal]
            assert ended

            async def are_out_of_memory() -> bool:
                await cluster.nodes["b"].node.services.catch_up()
                return executions.keys().isdisjoint(ended)

            await until(are_out_of_memory)

        Lost(monkeypatch, cluster, "a", "start_child", end_those_there)
        workflow_id = await a.start("parent")
        await until(work)
        run = await b.ended(workflow_id)
        assert run["status"] == "COMPLETED"
        owners = {cluster.owner_of(task["subWorkflowId"]) for task in run["tasks"][1:-1]}
        assert owners == {"a", "b"}
        assert await b.poll("step", count=8, timeout_ms=200) == []
        assert done == 8
