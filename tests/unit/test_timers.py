"""Due times: of which shards they have been read, so that nobody misses a timer too early."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from cluster.errors import StoreFault
from cluster.ids import ShardId
from cluster.metrics import Metrics
from cluster.sharding.timers import Timers
from tests.support.virtual_time import VirtualClock, run_virtual

SHARDS = [ShardId(number) for number in range(3)]


class SlowOpenSet:
    """A shard takes a second to be read, and the first `faults` times it comes to nothing."""

    def __init__(self, faults: int) -> None:
        self.faults = faults

    async def due(self, shard: ShardId, *, before_ms: int, limit: int) -> Sequence[Any]:
        await asyncio.sleep(1)
        if self.faults:
            self.faults -= 1
            raise StoreFault("away")
        return []


def has_read(at_s: float, *, faults: int = 0, again: bool = False) -> list[bool]:
    """Which of three shards have been read so long after they were served at once."""

    async def run() -> list[bool]:
        open_set: Any = SlowOpenSet(faults)
        timers = Timers(open_set, VirtualClock(), Metrics())
        running = asyncio.create_task(timers.run())
        await asyncio.sleep(0.5)
        timers.serve(SHARDS)
        await asyncio.sleep(at_s)
        if again:
            timers.give_up(SHARDS, lambda workflow_id: True)
            timers.serve(SHARDS[:1])
        seen = [timers.has_read(shard) for shard in SHARDS]
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        return seen

    return run_virtual(run())


def test_shards_are_read_one_after_the_other() -> None:
    assert has_read(0) == [False, False, False]
    assert sorted(has_read(1.5)) == [False, False, True]
    assert has_read(3.5) == [True, True, True]


def test_what_could_not_be_read_is_read_again_soon() -> None:
    assert sorted(has_read(3.5, faults=2)) == [False, False, True]
    assert has_read(8, faults=2) == [True, True, True]


def test_a_shard_that_was_away_is_read_anew() -> None:
    assert has_read(10, again=True) == [False, False, False]
