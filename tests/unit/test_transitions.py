"""No event makes a transition that holds up everybody else, however much follows from it."""

import asyncio
from typing import Any

import orjson
import pytest

from cluster.ids import WorkflowId
from cluster.sharding.commit_log import decode_entry
from tests.support.client import Json, dynamic_fork, inline, join, loop, simple
from tests.support.lives import Life, Scripts, new_stores
from tests.support.virtual_time import run_virtual

TASKS_MAX = 200
ROWS_MAX = 4 * TASKS_MAX
"""A task may change, another may follow it, and children have rows of their own."""


def step(ref: str, task_type: str, **inputs: Any) -> Json:
    return {"name": ref, "taskReferenceName": ref, "type": task_type, "inputParameters": inputs}


def child(ref: str, name: str) -> Json:
    param = {"name": name, "version": 1}
    return step(ref, "SUB_WORKFLOW") | {"subWorkflowParam": param}


def definition(name: str, *tasks: Json) -> Json:
    body = {"name": name, "version": 1, "schemaVersion": 2, "tasks": tasks}
    found: Json = orjson.loads(orjson.dumps(body))
    return found


def branches(count: int, task: Json) -> Json:
    tasks = [task | {"taskReferenceName": f"b{n}"} for n in range(count)]
    return {"tasks": tasks, "inputs": {}}


ROUNDS = "if ($.l.iteration < 1500) { true } else { false }"
QUICK = definition("quick", step("z", "NOOP"))
CASES: dict[str, tuple[Json, Json]] = {
    "branches": (
        definition("w", dynamic_fork("f"), join("j")),
        branches(1000, step("b", "NOOP")),
    ),
    "branches that wait": (
        definition("w", dynamic_fork("f"), join("j")),
        branches(1000, simple("b", "t")),
    ),
    "children at once": (
        definition("w", dynamic_fork("f"), join("j")),
        branches(1000, child("b", "quick")),
    ),
    "children on the same shard": (
        definition("w", *(child(f"c{n}", "quick") for n in range(500))),
        {},
    ),
    "rounds": (definition("w", loop("l", ROUNDS, step("z", "NOOP"))), {}),
    "rounds of children": (definition("w", loop("l", ROUNDS, child("c", "quick"))), {}),
    "rounds of scripts": (definition("w", loop("l", ROUNDS, inline("i", "work"))), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_transition_is_small(case: str) -> None:
    body, given = CASES[case]

    async def scenario() -> list[int]:
        stores = await new_stores()
        scripts = Scripts()
        scripts.answers = {"work": lambda value: 1}
        async with Life(stores, scripts=scripts) as life:
            await life.recovered()
            await life.register([QUICK, body])
            workflow_id = await life.start("w", given)
            if case == "branches that wait":
                done = 0
                while done < 1000:
                    tasks = await life.poll("t", count=500, timeout_ms=1000)
                    await asyncio.gather(*(life.report(task) for task in tasks))
                    done += len(tasks)
            await ended(life, workflow_id)
            log = (await stores.logs.logs())[-1]
            entries = await stores.logs.read(log, after=-1, upto=1 << 30, bytes_max=1 << 40)
        return [len(rows) for _, entry in entries for _, _, rows in decode_entry(entry)]

    sizes = run_virtual(scenario())
    assert sum(sizes) > ROWS_MAX, "there was something to cut"
    assert max(sizes) <= ROWS_MAX


async def ended(life: Life, workflow_id: WorkflowId) -> None:
    assert await life.router.wait_until(
        workflow_id, lambda execution: execution.is_terminal, 3_600_000
    )
    assert (await life.show(workflow_id))["status"] == "COMPLETED"


def test_no_turn_of_the_loop_takes_a_whole_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event of a workflow with a continuation could go on with it: a crowd of them, all."""
    # Time stands still while every turn is looked at: no append may wait for it to pass.
    monkeypatch.setattr("cluster.sharding.commit_log._GATHERING_S_MAX", 0.0)
    monkeypatch.setattr("cluster.sharding.commit_log._UNASKED_S", 0.0)
    count = 2000

    async def scenario() -> int:
        async with Life(await new_stores()) as life:
            await life.recovered()
            await life.register([QUICK, definition("w", dynamic_fork("f"), join("j"))])
            starting = asyncio.create_task(life.start("w", branches(count, child("b", "quick"))))
            most = before = 0
            while not starting.done():
                await asyncio.sleep(0)
                made = sum(len(run.tasks) for run in life.parts.residents.executions.values())
                most, before = max(most, made - before), made
            await ended(life, await starting)
            assert before > count / 2, "most of it was seen"
        return most

    # The children that were started on other shards are decided in the same turn.
    assert run_virtual(scenario()) <= 3 * TASKS_MAX
