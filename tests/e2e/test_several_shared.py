"""What all nodes of a cluster know: definitions, limits, polls of domains, each other."""

import asyncio
import json
import subprocess
from typing import Any

import pytest

from cluster.node import metadata as node_metadata
from tests.support.client import Client, Json, simple, until
from tests.support.served import PODIUM
from tests.support.several import several

pytestmark = pytest.mark.asyncio


def inline_sub(name: str) -> Json:
    return {
        "name": "s",
        "taskReferenceName": "s",
        "type": "SUB_WORKFLOW",
        "subWorkflowParam": {"name": name},
    }


async def first_task(client: Client, workflow_id: str) -> str:
    return str((await client.run(workflow_id))["tasks"][0]["taskType"])


async def test_a_definition_is_used_by_every_start_after_it_was_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing but the starts themselves may find out.
    monkeypatch.setattr(node_metadata, "_CATCH_UP_EVERY_S", 3600)
    async with several("a", "b") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        await a.register("d", simple("t", "v0"))
        stop = asyncio.Event()
        wrong: list[Any] = []
        current = 0
        count = 0

        async def keep_starting(client: Client) -> None:
            nonlocal count
            while not stop.is_set():
                least = current
                found = await first_task(client, await client.start("d"))
                count += 1
                if int(found[1:]) < least:
                    wrong.append((found, least))

        starters = [asyncio.create_task(keep_starting(client)) for client in (a, b) * 4]
        for number in range(1, 40):
            await (a, b)[number % 2].register("d", simple("t", f"v{number}"))
            current = number
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*starters)
        assert wrong == []
        assert count > 100


async def test_task_definitions_and_children_are_as_current(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_metadata, "_CATCH_UP_EVERY_S", 3600)
    async with several("a", "b") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        await a.register("child", simple("t", "v0"))
        await a.register("parent", inline_sub("child"))
        await a.task_def("v0", retryCount=1)
        for number in range(1, 8):
            one, other = ((a, b), (b, a))[number % 2]
            await one.task_def("v0", retryCount=number)
            await other.start("parent")
            run = await other.run(await other.start("child"))
            assert run["tasks"][0]["taskDefinition"]["retryCount"] == number
        for number in range(1, 8):
            one, other = ((a, b), (b, a))[number % 2]
            await one.register("child", simple("t", f"v{number}"))
            parent = await other.run(await other.start("parent"))
            assert await first_task(other, parent["tasks"][0]["subWorkflowId"]) == f"v{number}"
        await a.ok("DELETE", "/metadata/workflow/child/1")
        assert (await b.call("POST", "/workflow", {"name": "child"}))[0] == 404


async def test_starts_share_the_look_at_what_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with several("a", "b") as cluster:
        a = cluster.client("a")
        await a.register("d", simple("t", "work"))
        await a.start("d")
        store = cluster.stores.metadata
        reads = 0
        get = store.get

        async def counted(*args: Any) -> Any:
            nonlocal reads
            reads += 1
            await asyncio.sleep(0.005)
            return await get(*args)

        monkeypatch.setattr(store, "get", counted)
        await asyncio.gather(*(a.start("d") for _ in range(200)))
        assert reads < 100


async def test_a_limit_holds_on_every_node() -> None:
    async with several("a", "b") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        await a.task_def("limited", concurrentExecLimit=2)
        await a.register("d", simple("t", "limited"))
        for client in (a, b) * 3:
            await client.start("d")
        # Within a second the other node knows of the limit, though nobody started anything there.
        await asyncio.sleep(1.2)
        held = await b.poll("limited", count=5, timeout_ms=100)
        held += await a.poll("limited", count=5, timeout_ms=100)
        assert len(held) == 2
        await a.report(held[0])
        assert len(await b.poll("limited", count=5, timeout_ms=500)) == 1


async def test_a_domain_that_is_polled_on_one_node_is_served_for_all() -> None:
    async with several("a", "b") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        await a.register("d", simple("t", "work"))
        await b.poll("work", domain="blue", timeout_ms=50)
        await asyncio.sleep(1.2)
        workflow_id = await a.start("d", {}, taskToDomain={"work": "blue,NO_DOMAIN"})
        assert (await a.run(workflow_id))["tasks"][0]["domain"] == "blue"
        (task,) = await b.poll("work", domain="blue", timeout_ms=1000)
        await b.report(task)

        async def is_shown() -> bool:
            found = await a.ok("GET", "/tasks/queue/polldata", taskType="work")
            return [one.get("domain") for one in found] == ["blue"]

        await until(is_shown)


async def test_the_cluster_shows_itself() -> None:
    async with several("a", "b", "c") as cluster:
        links = {name: life.node.link for name, life in cluster.nodes.items()}
        url = cluster.nodes["b"].node.url
        session = cluster.client("a")._session
        async with session.get(f"{url}/cluster/targets") as response:
            targets = await response.json()
        assert targets == [
            {"targets": [links[name]], "labels": {"node": name}} for name in ("a", "b", "c")
        ]
        # Prometheus and probes come to the address of the links.
        for path in ("/metrics", "/health/live", "/health/ready", "/cluster/targets"):
            async with session.get(f"http://{links['c']}{path}") as response:
                assert response.status == 200, path
        async with session.get(f"http://{links['c']}/api/workflow/x") as response:
            assert response.status == 404

        table = await command("status", "--url", url)
        assert [line.split()[:2] for line in table[1:4]] == [
            [name, "serving"] for name in ("a", "b", "c")
        ]
        assert sum(int(line.split()[2]) for line in table[1:4]) == 8
        assert table[-1] == "8 shards, seen by b"
        rows = (await command("shards", "--url", url))[1:]
        assert len(rows) == 8
        owners = {int(row.split()[0]): row.split()[1] for row in rows}
        for name, life in cluster.nodes.items():
            assert {shard for shard, owner in owners.items() if owner == name} == life.shards
        told = await command("drain", "c", "--url", url)
        assert told == ["c hands its shards over; see `podium cluster status`"]

        async def is_empty() -> bool:
            return any(
                line.split()[:3] == ["c", "draining", "0"]
                for line in await command("status", "--url", url)
            )

        await until(is_empty)
        refused = await podium("drain", "nobody", "--url", url)
        assert refused == (2, "", "podium: There is no node nobody in this cluster\n")


async def command(*arguments: str) -> list[str]:
    status, told, errors = await podium(*arguments)
    assert status == 0, errors
    return told.splitlines()


async def podium(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        str(PODIUM), "cluster", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    told, errors = await process.communicate()
    return process.returncode, told.decode(), errors.decode()


async def test_a_shard_without_a_node_is_shown_as_such() -> None:
    async with several("a", "b") as cluster:
        lost = len(cluster.nodes["a"].shards)
        url = cluster.nodes["b"].node.url
        await cluster.kill("a")
        async with cluster.client("b")._session.get(f"{url}/cluster/status") as response:
            status = json.loads(await response.read())
        # Its heartbeat may be listed still, or somebody may have been quick.
        assert status["shardsWithoutNode"] <= lost
        await cluster.settled()
        async with cluster.client("b")._session.get(f"{url}/cluster/status") as response:
            assert json.loads(await response.read())["shardsWithoutNode"] == 0
