"""The bulk endpoints on several nodes: any node takes what others own, while they come and go."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from cluster.errors import ClusterError, NotOwner, NotSupported, OutcomeUnknown, Unreached
from cluster.node.elsewhere import Elsewhere
from cluster.node.remote import Operation
from cluster.store.lease_ports import Member
from tests.support.client import Client, simple, until
from tests.support.several import Several, several

pytestmark = pytest.mark.asyncio
Json = dict[str, Any]


@pytest.fixture
def failures() -> dict[str, ClusterError]:
    """What a call of an operation comes to instead."""
    return {}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, failures: dict[str, ClusterError]) -> Counter[str]:
    """How often each operation was asked of another node."""
    counts: Counter[str] = Counter()
    call = Elsewhere.call

    async def counted(
        self: Elsewhere, member: Member, operation: Operation, *rest: Any, **options: Any
    ) -> Any:
        counts[operation.name] += 1
        if operation.name in failures:
            raise failures[operation.name]
        return await call(self, member, operation, *rest, **options)

    monkeypatch.setattr(Elsewhere, "call", counted)
    return counts


async def bulk_start(client: Client, count: int, **fields: Any) -> list[str]:
    """Half of them with keys, whose shards are anywhere."""
    bodies: list[Json] = [{"name": "order"} | fields for _ in range(count)]
    for number, body in enumerate(bodies[::2]):
        body["idempotencyKey"] = f"{fields.get('correlationId')}-{number}"
    results = (await client.ok("POST", "/workflow/bulk/start", bodies))["results"]
    assert Counter(one["status"] for one in results) == {200: count}, results
    return [one["id"] for one in results]


async def exchange(client: Client, tasks: list[Json], *, count: int = 50) -> list[Json]:
    """Complete tasks, get the next ones."""
    results = [
        {
            "workflowInstanceId": task["workflowInstanceId"],
            "taskId": task["taskId"],
            "status": "COMPLETED",
        }
        for task in tasks
    ]
    poll = {"types": ["step", "other"], "count": count, "timeout": 200}
    answer = await client.ok("POST", "/tasks/exchange", {"results": results, "poll": poll})
    assert all(one["status"] == 200 for one in answer["results"]), answer["results"]
    found: list[Json] = answer["tasks"]
    return found


async def statuses(client: Client, ids: list[str]) -> Counter[str]:
    return Counter(await asyncio.gather(*(client.status(one) for one in ids)))


async def job_ended(client: Client, job: Json) -> Json:
    async def has_ended() -> bool:
        found = await client.ok("GET", f"/workflow/bulk/jobs/{job['id']}")
        return bool(found["endedTime"])

    await until(has_ended)
    found: Json = await client.ok("GET", f"/workflow/bulk/jobs/{job['id']}")
    return found


def owners(cluster: Several, ids: list[str]) -> set[str]:
    return {cluster.owner_of(one) for one in ids}


async def test_any_node_takes_starts_and_results_of_all() -> None:
    async with several("a", "b", "c") as cluster:
        a, b, c = (cluster.client(name) for name in "abc")
        await a.register("order", simple("t", "step"), simple("u", "other"))
        ids = await bulk_start(a, 300, correlationId="x")
        assert owners(cluster, ids) == {"a", "b", "c"}
        again = await bulk_start(b, 300, correlationId="x")
        assert again[::2] == ids[::2], "a key is known on all nodes"
        assert not set(again[1::2]) & set(ids)
        tasks: list[Json] = []
        clients = [b, c]
        for turn in range(100):
            tasks = await exchange(clients[turn % 2], tasks)
            if not tasks:
                break
        assert await statuses(c, ids + again) == {"COMPLETED": 600}


async def open_tasks(client: Client, count: int) -> list[Json]:
    """So many tasks of new workflows, whose owners are anywhere."""
    await bulk_start(client, count, correlationId="x")
    tasks: list[Json] = []
    while len(tasks) < count:
        tasks += await exchange(client, [], count=count)
    return tasks


async def test_results_go_to_each_owner_in_one_call(calls: Counter[str]) -> None:
    async with several("a", "b", "c") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        await a.register("order", simple("t", "step"), simple("u", "other"))
        tasks = await open_tasks(a, 300)
        assert owners(cluster, [task["workflowInstanceId"] for task in tasks]) == {"a", "b", "c"}
        unknown = [task | {"taskId": task["taskId"][:-4] + "ffff"} for task in tasks[:30]]
        results = [
            {key: task[key] for key in ("workflowInstanceId", "taskId")} | {"status": "COMPLETED"}
            for task in [*unknown, *tasks]
        ]
        calls.clear()
        answers = (await b.ok("POST", "/tasks/bulk/update", results))["results"]
        assert [one["status"] for one in answers] == [404] * 30 + [200] * 300
        assert (calls["submit_many"], calls["submit"]) == (2, 0)


@pytest.mark.parametrize(
    "failure",
    [NotSupported("an older node"), NotOwner("moved"), Unreached("gone"), OutcomeUnknown("cut")],
)
async def test_what_an_owner_does_not_take_together_it_takes_one_by_one(
    failure: ClusterError, calls: Counter[str], failures: dict[str, ClusterError]
) -> None:
    async with several("a", "b") as cluster:
        a = cluster.client("a")
        await a.register("order", simple("t", "step"))
        tasks = await open_tasks(a, 60)
        ids = [task["workflowInstanceId"] for task in tasks]
        assert owners(cluster, ids) == {"a", "b"}
        calls.clear()
        failures["submit_many"] = failure
        await exchange(a, tasks, count=1)
        assert calls["submit_many"] == 1
        assert calls["submit"] == sum(cluster.owner_of(one) == "b" for one in ids)
        assert await statuses(a, ids) == {"COMPLETED": 60}


async def test_a_node_that_leaves_costs_bulk_clients_no_error() -> None:
    async with several("a", "b", "c") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        await a.register("order", simple("t", "step"), simple("u", "other"))
        ids: list[str] = []
        stop = asyncio.Event()

        async def produce(client: Client, name: str) -> None:
            part = 0
            while not stop.is_set():
                part += 1
                ids.extend(await bulk_start(client, 40, correlationId=f"{name}{part}"))
                await asyncio.sleep(0.05)

        async def work(client: Client) -> None:
            tasks: list[Json] = []
            idle = 0
            while idle < 5:
                tasks = await exchange(client, tasks, count=200)
                idle = 0 if tasks or not stop.is_set() else idle + 1

        running = [asyncio.ensure_future(one) for one in (produce(a, "a"), produce(b, "b"))]
        running += [asyncio.ensure_future(work(client)) for client in (a, b, a, b)]
        await asyncio.sleep(1)
        await cluster.stop("c")
        await asyncio.sleep(1)
        await cluster.start("c")
        await asyncio.sleep(1)
        stop.set()
        await asyncio.gather(*running)
        assert len(ids) == len(set(ids)) > 300

        async def all_completed() -> bool:
            return await statuses(a, ids) == {"COMPLETED": len(ids)}

        await until(all_completed)


async def test_a_job_reaches_workflows_of_all_nodes_and_is_cancelled_from_any() -> None:
    async with several("a", "b") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        await a.register("order", simple("t", "step"))
        ids = await bulk_start(a, 100)
        assert owners(cluster, ids) == {"a", "b"}
        order: Json = {"operation": "pause", "query": {"name": "order"}}
        job = await job_ended(b, await a.ok("POST", "/workflow/bulk/jobs", order))
        assert (job["state"], job["succeeded"], job["node"]) == ("COMPLETED", 100, "a")
        assert await statuses(b, ids) == {"PAUSED": 100}
        order = {"operation": "resume", "query": {"name": "order"}, "ratePerSecond": 20}
        job = await a.ok("POST", "/workflow/bulk/jobs", order)
        await b.ok("DELETE", f"/workflow/bulk/jobs/{job['id']}")
        job = await job_ended(b, job)
        assert job["state"] == "CANCELLED"
        assert (await b.ok("GET", "/workflow/bulk/jobs"))[0]["id"] == job["id"]


async def test_a_job_goes_on_when_its_node_is_back() -> None:
    async with several("a", "b") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        await a.register("order", simple("t", "step"))
        ids = await bulk_start(a, 100)
        order = {"operation": "terminate", "query": {"name": "order"}, "ratePerSecond": 40}
        job = await a.ok("POST", "/workflow/bulk/jobs", order)
        await asyncio.sleep(0.5)
        await cluster.kill("a")
        await cluster.settled()
        assert not (await b.ok("GET", f"/workflow/bulk/jobs/{job['id']}"))["endedTime"]
        await cluster.start("a")
        job = await job_ended(b, job)
        assert (job["state"], job["failed"]) == ("COMPLETED", 0)
        assert await statuses(b, ids) == {"TERMINATED": 100}
