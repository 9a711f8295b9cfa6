"""Large workflows: they neither overflow nor stall others."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.client import (
    Client,
    Json,
    bystander,
    connected,
    dynamic_fork,
    inline,
    join,
    loop,
    simple,
)
from tests.support.served import Server, serving

pytestmark = pytest.mark.asyncio
MANY = 10_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("sizes")) as running:
        yield running
        assert [line for line in running.log if "Traceback" in line or '"error"' in line] == []


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connected(server.url) as client:
        yield client


def step(ref: str, task_type: str, **inputs: Any) -> Json:
    return {"name": ref, "taskReferenceName": ref, "type": task_type, "inputParameters": inputs}


ROUNDS = "if ($.l.iteration < $.n) { true } else { false }"
LOOPS: dict[str, tuple[Json, ...]] = {
    "noop": (step("b", "NOOP"),),
    "set variable": (step("b", "SET_VARIABLE", round="${l.output.iteration}"),),
    "inline": (inline("b", "$.n + 1"),),
    "inline that needs an engine": (inline("b", "[$.n].map(n => n + 1)[0]"),),
}


@pytest.mark.parametrize("kind", LOOPS)
async def test_a_loop_of_ten_thousand_rounds(client: Client, kind: str) -> None:
    name = f"rounds_{kind}"
    await client.register(name, loop("l", ROUNDS, *LOOPS[kind]))
    async with bystander(client) as seen:
        workflow_id = await client.start(name, {"n": MANY})
        run = await client.ended(workflow_id, deadline_s=90)
    assert run["status"] == "COMPLETED"
    looped, *rounds = run["tasks"]
    assert [task["iteration"] for task in rounds] == list(range(1, MANY + 1))
    output = looped["outputData"]
    assert set(output) == {"iteration", *(str(n) for n in range(1, MANY + 1))}
    assert output["iteration"] == MANY
    seen.check()


async def test_a_loop_that_keeps_its_last_rounds_stays_small(client: Client) -> None:
    body = loop("l", ROUNDS, inline("b", "$.n + 1"))
    body["inputParameters"]["keepLastN"] = 3
    await client.register("keeps_last", body)
    run = await client.ended(await client.start("keeps_last", {"n": 2000}))
    assert run["status"] == "COMPLETED"
    looped, *rounds = run["tasks"]
    assert set(looped["outputData"]) == {"iteration", "1998", "1999", "2000"}
    assert [task["referenceTaskName"] for task in rounds] == ["b__1998", "b__1999", "b__2000"]


def branches(count: int, task: Json) -> Json:
    tasks = [task | {"taskReferenceName": f"b{n}"} for n in range(count)]
    return {"tasks": tasks, "inputs": {f"b{n}": {"n": n} for n in range(count)}}


async def work_off(client: Client, task_type: str, count: int) -> None:
    """Poll and complete that many tasks, by a few workers in batches."""
    left = count

    async def work() -> None:
        nonlocal left
        while left > 0:
            tasks = await client.poll(task_type, count=100, timeout_ms=500)
            left -= len(tasks)
            for task in tasks:
                await client.report(task, outputData={"n": task["inputData"]["n"]})

    await asyncio.gather(*(work() for _ in range(8)))


async def test_a_fork_of_ten_thousand_dynamic_branches(client: Client) -> None:
    await client.register("wide", dynamic_fork("f"), join("j"))
    async with bystander(client) as seen:
        workflow_id = await client.start("wide", branches(MANY, simple("b", "wide")))
        await work_off(client, "wide", MANY)
        run = await client.ended(workflow_id, deadline_s=30)
    assert run["status"] == "COMPLETED"
    joined = next(task for task in run["tasks"] if task["referenceTaskName"] == "j")
    assert joined["outputData"] == {f"b{n}": {"n": n} for n in range(MANY)}
    assert len(run["tasks"]) == MANY + 2
    assert {task["status"] for task in run["tasks"]} == {"COMPLETED"}
    seen.check()


async def test_a_fork_of_thousands_of_branches_that_fails_is_cancelled(client: Client) -> None:
    await client.task_def("wide_lost")
    await client.register("wide_lost", dynamic_fork("f"), join("j"))
    async with bystander(client) as seen:
        workflow_id = await client.start("wide_lost", branches(5000, simple("b", "wide_lost")))
        [task] = await client.poll("wide_lost")
        await client.report(task, "FAILED", reasonForIncompletion="no more")
        run = await client.ended(workflow_id, deadline_s=30)

        async def is_empty() -> bool:
            return bool(await client.ok("GET", "/tasks/queue/size", taskType="wide_lost") == 0)

        deadline = time.monotonic() + 20
        while not await is_empty():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
    assert run["status"] == "FAILED"
    statuses = [task["status"] for task in (await client.run(workflow_id))["tasks"]]
    assert statuses.count("CANCELED") == 5000, "all branches but one, and the join"
    seen.check()


async def test_a_large_output_is_stored_once_however_often_it_is_passed_on(client: Client) -> None:
    text = "x" * 1_000_000
    steps = [inline(f"s{n}", "1", big="${workflow.input.text}") for n in range(3)]
    await client.register("passes_on", *steps)
    run = await client.ended(await client.start("passes_on", {"text": text}))
    assert run["status"] == "COMPLETED"
    assert {len(task["inputData"]["big"]) for task in run["tasks"]} == {1_000_000}


# -- children


def child(ref: str, name: str, **fields: Any) -> Json:
    return {
        "name": ref,
        "taskReferenceName": ref,
        "type": "SUB_WORKFLOW",
        "subWorkflowParam": {"name": name, "version": 1},
        "inputParameters": {"n": "${workflow.input.n}"},
    } | fields


async def test_a_child_that_ends_before_its_parent_has_recorded_it(client: Client) -> None:
    """Its first step is its last: start, end and the parent's next step fall together."""
    await client.register("quick_child", inline("i", "$.n + 1", n="${workflow.input.n}"))
    await client.register("empty_child", step("z", "NOOP"))
    await client.register(
        "quick_parent",
        child("c1", "empty_child"),
        child("c2", "quick_child"),
        loop("l", "$.l.iteration < 20", child("c3", "quick_child")),
        child("c4", "empty_child"),
    )
    run = await client.ended(await client.start("quick_parent", {"n": 1}))
    assert run["status"] == "COMPLETED"
    children = [task for task in run["tasks"] if task["taskType"] == "SUB_WORKFLOW"]
    assert len(children) == 23
    for task in children:
        shown = await client.run(task["subWorkflowId"])
        assert (shown["status"], shown["parentWorkflowTaskId"]) == ("COMPLETED", task["taskId"])
        assert task["endTime"] >= shown["endTime"]


async def test_a_loop_whose_rounds_are_children_that_end_at_once(client: Client) -> None:
    """Neither may one transition hold all its rounds."""
    await client.register("round_child", step("z", "NOOP"))
    await client.register("round_parent", loop("l", ROUNDS, child("c", "round_child")))
    async with bystander(client) as seen:
        run = await client.ended(await client.start("round_parent", {"n": 2000}))
    assert run["status"] == "COMPLETED"
    assert len({task["subWorkflowId"] for task in run["tasks"][1:]}) == 2000
    seen.check()


async def test_a_child_that_fails_at_once_fails_its_parent(client: Client) -> None:
    failing = step("t", "TERMINATE", terminationStatus="FAILED", terminationReason="no")
    await client.register("failing_child", failing)
    await client.register("failed_parent", child("c", "failing_child"))
    run = await client.ended(await client.start("failed_parent"))
    assert (run["status"], run["tasks"][0]["status"]) == ("FAILED", "FAILED")


async def test_fifty_parents_at_once(client: Client) -> None:
    parents, each = 50, 8
    await client.register("busy_child", simple("a", "busy_a"), inline("i", "$.n", n="${a.output}"))
    await client.register("busy_parent", dynamic_fork("f"), join("j"))
    step = child("b", "busy_child")
    given = branches(each, step)
    async with bystander(client) as seen:
        ids = await asyncio.gather(*(client.start("busy_parent", given) for _ in range(parents)))
        await work_off_any(client, "busy_a", parents * each)
        runs = [await client.ended(workflow_id) for workflow_id in ids]
    for run in runs:
        assert run["status"] == "COMPLETED"
        started = {task["subWorkflowId"] for task in run["tasks"] if task.get("subWorkflowId")}
        assert len(started) == each
    seen.check()


async def work_off_any(client: Client, task_type: str, count: int) -> None:
    left = count

    async def work() -> None:
        nonlocal left
        while left > 0:
            tasks = await client.poll(task_type, count=50, timeout_ms=500)
            left -= len(tasks)
            for task in tasks:
                await client.report(task, outputData={"done": True})

    await asyncio.gather(*(work() for _ in range(8)))


@pytest.mark.parametrize("kind", ["at once", "by workers"])
async def test_thousands_of_children_under_one_parent(client: Client, kind: str) -> None:
    count = 4000 if kind == "at once" else 1000
    body = step("z", "NOOP") if kind == "at once" else simple("a", "many_a")
    name = f"many_{kind}"
    await client.register(f"{name}_child", body)
    await client.register(name, dynamic_fork("f"), join("j"))
    async with bystander(client) as seen:
        workflow_id = await client.start(name, branches(count, child("b", f"{name}_child")))
        if kind == "by workers":
            await work_off_any(client, "many_a", count)
        run = await client.ended(workflow_id, deadline_s=60)
    assert run["status"] == "COMPLETED"
    children = [task["subWorkflowId"] for task in run["tasks"] if task.get("subWorkflowId")]
    assert len(set(children)) == count
    for workflow_id in children[:: count // 10]:
        assert await client.status(workflow_id) == "COMPLETED"
    seen.check()


async def test_ending_a_parent_ends_its_many_children(client: Client) -> None:
    count = 1000
    await client.register("held_child", simple("a", "held_a"))
    await client.register("holder", dynamic_fork("f"), join("j"))
    workflow_id = await client.start("holder", branches(count, child("b", "held_child")))
    run = await client.run(workflow_id)
    deadline = time.monotonic() + 30
    while sum(1 for task in run["tasks"] if task.get("subWorkflowId")) < count:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
        run = await client.run(workflow_id)
    async with bystander(client) as seen:
        await client.ok("DELETE", f"/workflow/{workflow_id}", reason="enough")
        for task in run["tasks"]:
            if task.get("subWorkflowId"):
                shown = await client.ended(task["subWorkflowId"])
                assert shown["status"] == "TERMINATED"
        assert await client.ok("GET", "/tasks/queue/size", taskType="held_a") == 0
    seen.check()
