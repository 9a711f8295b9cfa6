"""Schedules in a cluster: nodes come, go and die, and each instant is started once."""

import asyncio
from typing import Any

import pytest

from cluster.ids import schedule_id
from tests.support.client import Client, simple, until
from tests.support.several import Several, several

pytestmark = pytest.mark.asyncio
NAMES = [f"schedule {number}" for number in range(16)]


def schedule(name: str, cron: str = "* * * * * *") -> dict[str, Any]:
    start = {"name": "tick", "version": 1, "correlationId": name}
    return {"name": name, "cronExpression": cron, "startWorkflowRequest": start}


async def save_all(client: Client) -> dict[str, int]:
    """Many schedules; returns the first instant of each."""
    await client.register("tick", simple("t", "step"))
    first = {}
    for name in NAMES:
        saved = await client.ok("POST", "/scheduler/schedules", schedule(name))
        first[name] = saved["createTime"] // 1000 * 1000 + 1000
    return first


async def instants(client: Client, name: str) -> list[int]:
    path = f"/workflow/tick/correlated/{name}"
    found = await client.ok("GET", path, includeClosed="true")
    return sorted(run["input"]["_scheduledTime"] for run in found)


async def reached(client: Client, name: str, at_least: int) -> list[int]:
    """The instants of a schedule, once there are so many."""

    async def are_enough() -> bool:
        return len(await instants(client, name)) >= at_least

    await until(are_enough)
    return await instants(client, name)


async def check(client: Client, first: dict[str, int], at_least: int) -> None:
    """Each second from the first on, for each schedule, once."""
    for name, first_ms in first.items():
        found = await reached(client, name, at_least)
        assert found == list(range(first_ms, found[-1] + 1, 1000)), name


async def test_an_owner_that_dies_loses_no_instant_and_repeats_none() -> None:
    async with several("a", "b") as cluster:
        first = await save_all(cluster.client("a"))
        owners = {cluster.owner_of(schedule_id(name)) for name in NAMES}
        assert owners == {"a", "b"}
        await check(cluster.client("a"), first, 2)
        await cluster.kill("a")
        await cluster.settled()
        await check(cluster.client("b"), first, 8)
        await cluster.start("c")
        await cluster.stop("b")
        await check(cluster.client("c"), first, 12)


async def starts_hang(cluster: Several, node: str, method: str) -> None:
    """What a node does from now on becomes durable, and nobody hears of it."""
    cluster.nodes[node].hold_after(method)
    await asyncio.sleep(1.5)


@pytest.mark.parametrize("method", ["append", "put"])
async def test_an_owner_that_dies_between_a_decision_and_a_start(method: str) -> None:
    async with several("a", "b") as cluster:
        first = await save_all(cluster.client("b"))
        await check(cluster.client("b"), first, 1)
        await starts_hang(cluster, "a", method)
        await cluster.kill("a")
        await cluster.settled()
        await check(cluster.client("b"), first, 6)


async def test_any_node_answers_for_any_schedule() -> None:
    async with several("a", "b") as cluster:
        a, b = cluster.client("a"), cluster.client("b")
        first = await save_all(a)
        for client in (a, b):
            listed = await client.ok("GET", "/scheduler/schedules")
            assert [one["name"] for one in listed] == sorted(NAMES)
            for name in NAMES:
                await client.ok("PUT", f"/scheduler/schedules/{name}/pause", reason="r")
                other = b if client is a else a
                shown = await other.ok("GET", f"/scheduler/schedules/{name}")
                assert shown["pausedReason"] == "r"
                await other.ok("PUT", f"/scheduler/schedules/{name}/resume")
        await a.ok("GET", "/scheduler/admin/pause")
        await asyncio.sleep(3)
        before = [await instants(b, name) for name in NAMES]
        await asyncio.sleep(2)
        assert [await instants(a, name) for name in NAMES] == before
        await b.ok("GET", "/scheduler/admin/resume")
        for name in NAMES:
            found = await instants(a, name)
            found = await reached(a, name, len(found) + 1)
            assert first[name] == found[0]
            await a.ok("DELETE", f"/scheduler/schedules/{name}")
        assert await b.ok("GET", "/scheduler/schedules") == []
