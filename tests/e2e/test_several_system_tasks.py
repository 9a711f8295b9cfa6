"""System tasks in a cluster: spread over the nodes, and done again when one of them dies."""

import asyncio
from collections import Counter

import pytest

from cluster.system_tasks import Done, SystemTask, Work
from tests.support.several import several, until

pytestmark = pytest.mark.asyncio

STEP = {"name": "shout", "taskReferenceName": "shout", "type": "SHOUT"}


class Shout(SystemTask):
    """Is carried out once it may be; notes which task it was asked for, how often."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.may_end = asyncio.Event()

    async def execute(self, work: Work) -> Done:
        self.begun[work.task_id] += 1
        await self.may_end.wait()
        return Done({"count": self.begun[work.task_id]})


async def test_tasks_of_a_node_that_dies_are_done_by_another_one() -> None:
    shout = Shout()
    async with several(
        *"ab", system_tasks={"SHOUT": shout}, system_task_lease_ms=1500, system_task_concurrency=5
    ) as cluster:
        client = cluster.client("a")
        await client.register("w", STEP)
        ids = [await client.start("w", {}) for _ in range(10)]
        # Neither node alone may have so many.
        await until(lambda: len(shout.begun) == 10)
        assert set(shout.begun.values()) == {1}
        await cluster.kill("b")
        await cluster.settled()
        shout.may_end.set()
        client = cluster.client("a")
        for workflow_id in ids:
            await client.ended(workflow_id)
        counts = Counter(shout.begun.values())
        assert counts == {1: 5, 2: 5}, "what the dead node had was done again, and nothing else"
