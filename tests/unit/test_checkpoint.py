"""Write-behind: what reaches the stores, when the log is truncated, and what a fault leaves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cluster.clock import SystemClock
from cluster.errors import Fenced, StoreFault
from cluster.ids import ShardId, WorkflowId
from cluster.metrics import Metrics
from cluster.sharding.checkpoint import Checkpoint, Described, MergedRows, write_merged
from cluster.store.memory import open_memory
from cluster.store.ports import SEGMENT_POSITIONS, OpenEntry, Row, Stores, revision_of
from tests.support.failing import Faults, lose_every_second_answer
from tests.support.process import CLOCK, SHARD_COUNT, Process, contents, describe, expected
from tests.support.rows import log_id, workflow_id

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def process(stores: Stores | None = None) -> AsyncIterator[Process]:
    stores = stores or open_memory(shard_count=SHARD_COUNT)
    await stores.shards.create(SHARD_COUNT)
    own = log_id()
    await stores.logs.create(own)
    running = Process(stores, own, await stores.shards.claim(await stores.shards.rows(), own))
    try:
        yield running
    finally:
        await running.kill()


async def test_only_committed_rows_are_written() -> None:
    one = workflow_id()
    async with process() as node:
        node.put(one, {0: b"open -"})
        await node.checkpoint.flush()
        assert node.written == []
        await node.log.drain()
        await node.checkpoint.flush()
        assert node.written == [([one], 1)]
        assert await contents(node.stores, [one]) == expected({one: {0: b"open -"}})


async def test_the_last_of_each_row_is_written_with_its_hints() -> None:
    a, b, removed = (workflow_id() for _ in range(3))
    async with process() as node:
        # The first two are one entry, so they have the same revision.
        node.put(a, {0: b"open -", 1: b"input"})
        node.put(a, {0: b"open 50", 2: b"task"})
        node.put(removed, {0: b"open 1", 1: b"input"})
        await node.commit(b, {0: b"open 7"})
        await node.checkpoint.flush()
        first = {a: {0: b"open 50", 1: b"input", 2: b"task"}, b: {0: b"open 7"}}
        both = [a, b, removed]
        assert await contents(node.stores, both) == expected(
            {**first, removed: {0: b"open 1", 1: b"input"}}
        )
        await node.commit(a, {2: b""})
        await node.commit(b, {0: b"ended", 1: b"output"})
        await node.commit(removed, {0: b"", 2: b"too late"})
        await node.checkpoint.flush()
        assert await contents(node.stores, both) == expected(
            {
                a: {0: b"open 50", 1: b"input", 2: b""},
                b: {0: b"ended", 1: b"output"},
                removed: {0: b""},
            }
        )


async def test_one_that_starts_and_ends_in_between_never_enters_the_open_set() -> None:
    asked: list[str] = []
    stores = Faults(before=asked.append).wrapped(open_memory(shard_count=SHARD_COUNT))
    merged = MergedRows()
    merged.add(1, [(ShardId(0), 1, [Row(workflow_id(), 0, b"ended")])], 10)

    def short_lived(one: WorkflowId, header: bytes) -> Described:
        told = describe(one, header)
        return Described(open=told.open, summary=told.summary, was_open=False)

    await write_merged(merged, stores, short_lived, clock=CLOCK, deadline_ms=None)
    assert asked == ["write", "write"]


async def test_many_rows_go_in_bounded_batches() -> None:
    ids = [workflow_id() for _ in range(2_500)]
    rows = {0: b"open -", 1: b"x" * 100, 2: b"y" * 500}
    async with process() as node:
        for one in ids:
            node.put(one, rows)
        await node.log.drain()
        await node.checkpoint.flush()
        sizes = [len(written) for written, _ in node.written]
        assert sum(sizes) == len(ids)
        assert max(sizes) <= 700
        assert await contents(node.stores, ids) == expected(dict.fromkeys(ids, rows))


async def test_the_event_loop_gets_its_turn_while_much_is_described() -> None:
    class Moved(SystemClock):
        at_ms = 0

        def monotonic_ms(self) -> int:
            return self.at_ms

    clock = Moved()

    def slow(one: WorkflowId, header: bytes) -> Described:
        clock.at_ms += 1
        return describe(one, header)

    async def longest_turn_ms() -> int:
        longest = before = clock.at_ms
        while clock.at_ms < 100:
            await asyncio.sleep(0)
            longest, before = max(longest, clock.at_ms - before), clock.at_ms
        return longest

    merged = MergedRows()
    for position in range(100):
        merged.add(position, [(ShardId(0), 1, [Row(workflow_id(), 0, b"open -")])], 10)
    watcher = asyncio.create_task(longest_turn_ms())
    stores = open_memory(shard_count=SHARD_COUNT)
    await write_merged(merged, stores, slow, clock=clock, deadline_ms=None)
    assert 0 < await watcher <= 3


async def test_the_log_is_truncated_by_whole_segments_once_written() -> None:
    one = workflow_id()
    async with process() as node:
        for number in range(SEGMENT_POSITIONS + 1):
            await node.commit(one, {0: b"open %d" % number})
        fence = await node.stores.logs.fence(node.own)
        assert fence is not None
        assert fence.first_segment == 0
        await node.checkpoint.flush()
        fence = await node.stores.logs.fence(node.own)
        assert fence is not None
        assert fence.first_segment == 1
        left = await node.stores.logs.read(node.own, after=0, upto=9_999, bytes_max=1 << 20)
        assert [p for p, _ in left] == [SEGMENT_POSITIONS, SEGMENT_POSITIONS + 1]


async def test_nothing_is_truncated_before_the_stores_have_it() -> None:
    broken = True

    def fail(name: str) -> None:
        if broken and name == "write":
            raise StoreFault("no space left")

    stores = open_memory(shard_count=SHARD_COUNT)
    one = workflow_id()
    async with process(Faults(before=fail).wrapped(stores)) as node:
        for number in range(SEGMENT_POSITIONS + 1):
            await node.commit(one, {0: b"open %d" % number})
        flush = asyncio.create_task(node.checkpoint.flush())
        await asyncio.sleep(0.05)
        assert not flush.done()
        assert node.checkpoint.pending_bytes > 0
        flush.cancel()
        await asyncio.gather(flush, return_exceptions=True)
        fence = await stores.logs.fence(node.own)
        assert fence is not None
        assert fence.first_segment == 0
        assert node.written == []
        # Given up half-way, it is all still there for the next one, under what came since.
        await node.commit(one, {1: b"input"})
        broken = False
        await node.checkpoint.flush()
        assert node.checkpoint.pending_bytes == 0
        last = {0: b"open %d" % SEGMENT_POSITIONS, 1: b"input"}
        assert await contents(stores, [one]) == expected({one: last})
        fence = await stores.logs.fence(node.own)
        assert fence is not None
        assert fence.first_segment == 1


async def test_lost_answers_change_nothing() -> None:
    stores = open_memory(shard_count=SHARD_COUNT)
    one, other = workflow_id(), workflow_id()
    async with process(stores) as node:
        unsure = lose_every_second_answer().wrapped(stores)
        checkpoint = Checkpoint(
            unsure,
            node.own,
            describe,
            clock=CLOCK,
            metrics=Metrics(),
            on_written=lambda *_: None,
            on_lost=node.lost.append,
        )
        for number in range(1, SEGMENT_POSITIONS + 1):
            row = Row(one, 0, b"open %d" % number)
            checkpoint.add(number, [(ShardId(0), 1, [row, Row(other, 0, b"ended")])], 50)
        await checkpoint.flush()
        last = {one: {0: b"open %d" % SEGMENT_POSITIONS}, other: {0: b"ended"}}
        assert await contents(stores, [one, other]) == expected(last)
        fence = await stores.logs.fence(node.own)
        assert fence is not None
        assert fence.first_segment == 1


async def test_run_writes_as_soon_as_enough_waits_and_ends_when_the_log_is_sealed() -> None:
    stores = open_memory(shard_count=SHARD_COUNT)
    own = log_id()
    await stores.logs.create(own)
    written, lost = asyncio.Event(), asyncio.Event()
    checkpoint = Checkpoint(
        stores,
        own,
        describe,
        clock=CLOCK,
        metrics=Metrics(),
        on_written=lambda *_: written.set(),
        on_lost=lambda _: lost.set(),
        interval_ms=3_600_000,
        bytes_max=1_000,
    )
    run = asyncio.create_task(checkpoint.run())
    one = workflow_id()
    checkpoint.add(1, [(ShardId(0), 1, [Row(one, 0, b"open -")])], 999)
    await asyncio.sleep(0.01)
    assert not written.is_set()
    checkpoint.add(2, [(ShardId(0), 1, [Row(one, 1, b"input")])], 1)
    async with asyncio.timeout(5):
        await written.wait()
        await stores.logs.seal(own)
        position = SEGMENT_POSITIONS + 1
        checkpoint.add(position, [(ShardId(0), 1, [Row(one, 2, b"task")])], 1_000)
        await lost.wait()
        await run


async def test_a_late_checkpoint_of_an_old_owner_is_not_seen() -> None:
    stores = open_memory(shard_count=SHARD_COUNT)
    one = workflow_id()
    async with process(stores) as old:
        await old.commit(one, {0: b"ended", 1: b"old"})
        await stores.executions.write([(Row(one, 0, b"open 9"), revision_of(2, 1))])
        await stores.open_set.put([(OpenEntry(one, 9, False), revision_of(2, 1))])
        await old.checkpoint.flush()
        found = await contents(stores, [one])
        assert found.rows == {one: {0: b"open 9", 1: b"old"}}
        assert found.open == {one: 9}


async def test_a_flush_of_a_sealed_log_says_so() -> None:
    async with process() as node:
        one = workflow_id()
        for number in range(SEGMENT_POSITIONS):
            await node.commit(one, {0: b"open %d" % number})
        await node.stores.logs.seal(node.own)
        with pytest.raises(Fenced):
            await node.checkpoint.flush()
