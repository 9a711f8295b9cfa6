"""Schedules on a node that lives, dies and lives again, on virtual time."""

import asyncio
from typing import Any

from cluster.engine import payloads
from cluster.engine.schedules import shown
from tests.support.lives import Json, Life, new_stores
from tests.support.virtual_time import START_MS, VirtualClock, run_virtual

NAME = "ticks"
WORKFLOW = {
    "name": "tick",
    "version": 1,
    "tasks": [{"name": "do", "taskReferenceName": "do", "type": "SIMPLE"}],
}


def now_ms() -> int:
    return VirtualClock().now_ms()


async def save(life: Life, name: str = NAME, cron: str = "* * * * * *", **fields: Any) -> Json:
    saved = {
        "name": name,
        "cronExpression": cron,
        "zoneId": "UTC",
        "startWorkflowRequest": {"name": "tick", "version": 1, "input": {"mine": 1}},
        **fields,
    }
    return shown(await life.router.save_schedule(name, payloads.dump(saved)))


async def started(life: Life) -> list[int]:
    """The instants for which workflows were started, in order, with repetitions."""
    instants = []
    for workflow_id in await life.ids(["tick"]):
        run = await life.show(workflow_id)
        instants.append(run["input"]["_scheduledTime"])
    return sorted(instants)


def seconds(first: int, count: int) -> list[int]:
    return [START_MS + (first + place) * 1000 for place in range(count)]


async def reach(at_ms: int) -> None:
    """Wait until a moment in virtual time."""
    await asyncio.sleep((at_ms - now_ms()) / 1000)


def test_a_schedule_starts_a_workflow_at_each_instant() -> None:
    async def run() -> None:
        async with Life(await new_stores()) as life:
            await life.register([WORKFLOW])
            await life.recovered()
            began_ms = now_ms()
            saved = await save(life)
            assert saved["nextRunTime"] % 1000 == 0
            await reach(saved["nextRunTime"] + 9_500)
            assert await started(life) == [saved["nextRunTime"] + n * 1000 for n in range(10)]
            run = await life.show((await life.ids(["tick"]))[0])
            assert run["input"]["mine"] == 1
            assert run["input"]["_startedByScheduler"] == NAME
            assert run["input"]["_schedulerCron"] == "* * * * * * UTC"
            assert began_ms < run["input"]["_executedTime"]

    run_virtual(run())


def test_it_goes_on_after_a_restart() -> None:
    async def run() -> None:
        stores = await new_stores()
        async with Life(stores) as life:
            await life.register([WORKFLOW])
            first_ms = (await save(life))["nextRunTime"]
            await reach(first_ms + 3_500)
        await asyncio.sleep(5)
        async with Life(stores) as life:
            await life.recovered()
            await reach(first_ms + 19_500)
            assert await started(life) == [first_ms + n * 1000 for n in range(20)]

    run_virtual(run())
