"""Effects on their way out while shards come and go."""

import asyncio

from tests.support.lives import Life, Scripts, new_stores
from tests.support.virtual_time import run_virtual

SCRIPT = "(function () { for (;;) return $.v })()"
ASKS = {
    "name": "asks",
    "version": 1,
    "tasks": [
        {
            "name": "i",
            "taskReferenceName": "i",
            "type": "INLINE",
            "inputParameters": {"expression": SCRIPT, "v": 1},
        },
        {"name": "a", "taskReferenceName": "a", "type": "SIMPLE"},
    ],
}


def test_an_answer_for_a_shard_that_was_given_up_is_left_to_its_next_owner() -> None:
    async def main() -> None:
        scripts = Scripts()
        scripts.answers[SCRIPT] = lambda value: value["v"]
        async with Life(await new_stores(), scripts=scripts, audit_interval_ms=1 << 40) as life:
            await life.register([ASKS])
            await life.recovered()
            scripts.free.clear()
            started = asyncio.create_task(life.start("asks"))
            await life.until(lambda: scripts.asked == 1)
            workflow_id = await started
            assert life.parts.dispatcher.is_under_way(workflow_id)
            life.parts.shards.give_up(tuple(life.parts.shards.epochs))
            scripts.free.set()
            await asyncio.sleep(0.01)
            # What is written down now says to the next owner that something is unfinished.
            assert life.parts.dispatcher.is_under_way(workflow_id)
            await asyncio.sleep(60)
            life.parts.dispatcher.forget_unheard()
            assert not life.parts.dispatcher.is_under_way(workflow_id)

    run_virtual(main())
