"""Owners that steal shards from each other on the real Cassandra, and a count of what got lost.

    python -m tests.support.fence_race [--takeovers 3000] [--nodes 1|3] [--without-fence-read]

Each owner seals whatever logs stand in its way, replays them, claims a few shards and commits
records until it is robbed in turn, by the shipped takeover and commit log. Between the insert of an
entry and the read of the fence it pauses at random. In the end every acknowledged record must be in
the executions table.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from cluster.errors import Fenced, StoreFault
from cluster.ids import WorkflowId
from cluster.logs import set_up_logs
from cluster.sharding.takeover import take_over
from cluster.store.ports import LogId, ShardRow, Stores
from tests.support import cassandra
from tests.support.process import CLOCK, SHARD_COUNT, Process, describe
from tests.support.rows import log_id, workflow_id

T = TypeVar("T")

OWNERS = 16
PAUSE_S = 0.02
_WRITES_S = 0.5
"""An owner that nobody robs falls silent after this, its log still open."""


class PausingLogs:
    """A log store that pauses between the two halves of an append, or leaves out the second."""

    def __init__(self, logs: Any, *, reads_fence: bool, chance: random.Random) -> None:
        self._logs = logs
        self._reads_fence = reads_fence
        self._chance = chance
        self._check_open = logs.check_open
        logs.check_open = self._pause_and_check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logs, name)

    async def _pause_and_check(self, log: LogId) -> None:
        await asyncio.sleep(self._chance.choice((0, 0, PAUSE_S * self._chance.random())))
        if self._reads_fence:
            await self._check_open(log)


@dataclass
class Outcome:
    takeovers: int = 0
    fenced: int = 0
    faults: int = 0
    acknowledged: dict[WorkflowId, set[int]] = field(default_factory=dict)
    missing: int = 0
    seconds: float = 0.0

    @property
    def count(self) -> int:
        return sum(len(numbers) for numbers in self.acknowledged.values())

    def __str__(self) -> str:
        return (
            f"{self.takeovers} takeovers, {self.count} records acknowledged, {self.missing} of them"
            f" missing; {self.fenced} owners fenced, {self.faults} faults of the store,"
            f" {self.seconds:.0f} s"
        )


async def race(stores: Stores, *, takeovers: int, reads_fence: bool, seed: int) -> Outcome:
    """Let owners fight until there were that many takeovers, then count."""
    chance = random.Random(seed)
    logs: Any = PausingLogs(stores.logs, reads_fence=reads_fence, chance=chance)
    stores = replace(stores, logs=logs)
    outcome = Outcome()
    began = time.monotonic()
    await asyncio.gather(*(own(stores, outcome, takeovers, chance) for _ in range(OWNERS)))
    await until_done(lambda: take(stores, outcome, every_shard=True, chance=chance))
    outcome.missing = await missing(stores, outcome.acknowledged)
    outcome.seconds = time.monotonic() - began
    return outcome


async def own(stores: Stores, outcome: Outcome, takeovers: int, chance: random.Random) -> None:
    while outcome.takeovers < takeovers:
        await asyncio.sleep(PAUSE_S * chance.random())
        try:
            log, won = await take(stores, outcome, every_shard=False, chance=chance)
        except StoreFault:
            outcome.faults += 1
            continue
        if won:
            await write(stores, outcome, log, won)


async def take(
    stores: Stores, outcome: Outcome, *, every_shard: bool, chance: random.Random
) -> tuple[LogId, Sequence[ShardRow]]:
    log = log_id("race")
    await stores.logs.create(log)
    rows = await stores.shards.rows()
    wanted = rows if every_shard else chance.sample(list(rows), chance.choice((1, 1, 2)))
    won = await take_over(stores, wanted, log, describe=describe, clock=CLOCK)
    outcome.takeovers += len(won)
    return log, won


async def write(stores: Stores, outcome: Outcome, log: LogId, won: Sequence[ShardRow]) -> None:
    """Commit records until somebody takes the log away."""
    process = Process(stores, log, won)
    places = {row.shard: workflow_id(slot=row.shard * 65_536 // SHARD_COUNT) for row in won}

    async def records(one: WorkflowId) -> None:
        number = 0
        while True:
            number += 1
            await process.commit(one, {number: b"record %d of %s" % (number, one.encode())})
            outcome.acknowledged.setdefault(one, set()).add(number)

    try:
        async with asyncio.timeout(_WRITES_S):
            await asyncio.gather(*(records(one) for one in places.values()))
    except Fenced:
        outcome.fenced += 1
    except TimeoutError:
        pass
    finally:
        await process.kill()


async def missing(stores: Stores, acknowledged: dict[WorkflowId, set[int]]) -> int:
    lost: Counter[WorkflowId] = Counter()
    for one, numbers in acknowledged.items():
        rows = await until_done(lambda: stores.executions.read(one))  # noqa: B023
        lost[one] = len(numbers - {row.number for row in rows})
    return lost.total()


async def until_done(call: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await call()
        except StoreFault:
            await asyncio.sleep(0.1)


async def main(takeovers: int, nodes: int, seed: int, *, reads_fence: bool) -> Outcome:
    ring = cassandra.start_ring(nodes)
    url = cassandra.url_of(ring, "race")
    await cassandra.set_up_empty(url)
    async with cassandra.opened(url, shard_count=SHARD_COUNT) as stores:
        return await race(stores, takeovers=takeovers, reads_fence=reads_fence, seed=seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--takeovers", type=int, default=3_000)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-fence-read", action="store_true")
    asked = parser.parse_args()
    set_up_logs(node_id="race", level="warning")
    found = asyncio.run(
        main(asked.takeovers, asked.nodes, asked.seed, reads_fence=not asked.without_fence_read)
    )
    kind = "without" if asked.without_fence_read else "with"
    sys.stdout.write(f"{asked.nodes} Cassandra node(s), {kind} fence read: {found}\n")
    raise SystemExit(bool(found.missing) != asked.without_fence_read)
