"""While the stores take nothing, starts are refused before memory runs out; results are taken."""

import asyncio
from contextlib import suppress

import pytest

from cluster.errors import Overloaded
from tests.support.lives import Death, Json, Life, new_stores
from tests.support.virtual_time import run_virtual

DEFINITION: Json = {
    "name": "one",
    "version": 1,
    "tasks": [{"name": "t_a", "taskReferenceName": "a", "type": "SIMPLE"}],
}
PAYLOAD = {"text": "x" * 10_000}
MIB = 1 << 20


def test_starts_wait_outside_until_the_stores_have_taken_what_there_is() -> None:
    async def run() -> None:
        death = Death()
        async with Life(await new_stores(), death=death, checkpoint_backlog_bytes=MIB) as life:
            await life.register([DEFINITION])
            await life.recovered()
            death.hold("write")
            started = 0
            with suppress(Overloaded):
                while started < 1_000:
                    await life.start("one", PAYLOAD)
                    started += 1
            assert 50 < started <= MIB // 10_000
            [task] = await life.poll("t_a", 1)
            await life.report(task)
            assert (await life.show(task["workflowInstanceId"]))["status"] == "COMPLETED"
            with pytest.raises(Overloaded, match="waits to be written"):
                await life.start("one", PAYLOAD)
            death.let_go("write")
            await asyncio.sleep(3)
            await life.start("one", PAYLOAD)
            assert len(await life.poll("t_a", 1_000)) == started

    run_virtual(run())
