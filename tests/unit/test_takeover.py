"""Takeover: whatever was acknowledged is there, at whichever step a process ends."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster.errors import Fenced, StoreFault
from cluster.ids import ShardId, WorkflowId, shard_of
from cluster.sharding.takeover import delete_unnamed_logs, restart, take_over
from cluster.store.memory import open_memory
from cluster.store.memory.log import MemoryLogStore
from cluster.store.ports import SEGMENT_POSITIONS, LogId, ShardRow, Stores
from tests.support.failing import Crash, Faults, crash_at, lose_every_second_answer
from tests.support.process import CLOCK, SHARD_COUNT, Process, contents, describe, expected
from tests.support.rows import log_id, workflow_id

pytestmark = pytest.mark.asyncio

Model = dict[WorkflowId, dict[int, bytes]]


async def new_cluster() -> Stores:
    stores = open_memory(shard_count=SHARD_COUNT)
    await stores.shards.create(SHARD_COUNT)
    return stores


async def begin(stores: Stores, own: LogId) -> Sequence[ShardRow]:
    return await restart(
        stores,
        own,
        is_predecessor=lambda _: True,
        takes_unowned=True,
        describe=describe,
        clock=CLOCK,
        deadline_ms=1_000,
    )


async def started(stores: Stores) -> Process:
    own = log_id()
    return Process(stores, own, await begin(stores, own))


async def busy_process() -> tuple[Process, Model]:
    """A process that was killed in its work, and what it acknowledged.

    Part of it is in the stores and truncated, part is in the stores, part only in the log.
    """
    node = await started(await new_cluster())
    ids = [workflow_id(slot=slot << 14) for slot in (0, 1, 2, 3, 0, 1)]
    model: Model = {one: {} for one in ids}

    async def commit(one: WorkflowId, rows: dict[int, bytes]) -> None:
        await node.commit(one, rows)
        model[one].update(rows)

    for number in range(SEGMENT_POSITIONS + 10):
        await commit(ids[number % 5], {0: b"open %d" % number, number: b"task %d" % number})
        if number == SEGMENT_POSITIONS + 5:
            await node.checkpoint.flush()
    await commit(ids[0], {0: b"ended", 1: b""})
    await commit(ids[1], {0: b""})
    await commit(ids[5], {0: b"open 7", 1: b"never checkpointed"})
    await node.kill()
    fence = await node.stores.logs.fence(node.own)
    assert fence is not None
    assert fence.first_segment == 1
    return node, model


async def test_a_new_cluster_is_claimed_whole() -> None:
    stores = await new_cluster()
    own = log_id()
    rows = await begin(stores, own)
    assert [(row.shard, row.owner, row.epoch) for row in rows] == [
        (shard, own, 1) for shard in range(SHARD_COUNT)
    ]
    await stores.logs.append(own, 1, b"entry")


async def test_a_restart_brings_back_what_was_acknowledged() -> None:
    node, model = await busy_process()
    stores = node.stores
    own = log_id()
    rows = await begin(stores, own)
    assert await contents(stores, list(model)) == expected(model)
    assert {(row.owner, row.epoch) for row in rows} == {(own, 2)}
    assert list(await stores.shards.rows()) == list(rows)
    assert list(await stores.logs.logs()) == [own]
    # The next process goes on from there, and its rows count as later.
    late = Process(stores, own, rows)
    one = next(iter(model))
    await late.commit(one, {0: b"open 1"})
    await late.checkpoint.flush()
    found = await contents(stores, [one])
    assert found.rows[one] == {n: data for n, data in {**model[one], 0: b"open 1"}.items() if data}
    assert found.open[one] == 1
    await late.kill()


@pytest.mark.parametrize("is_applied", [False, True], ids=["before", "after"])
async def test_a_crash_at_any_step_loses_nothing(is_applied: bool) -> None:
    for step in range(1_000):
        node, model = await busy_process()
        stores = node.stores
        try:
            await begin(crash_at(step, is_applied=is_applied).wrapped(stores), log_id())
        except Crash:
            is_complete = False
        else:
            is_complete = True
        own = log_id()
        rows = await begin(stores, own)
        assert await contents(stores, list(model)) == expected(model), f"step {step}"
        assert [row.owner for row in rows] == [own] * SHARD_COUNT
        assert all(row.epoch >= 2 for row in rows)
        assert list(await stores.logs.logs()) == [own]
        if is_complete:
            break
    assert step > 10, "the crashes must reach into the takeover"


async def test_a_late_append_of_the_old_process_is_refused() -> None:
    stores = await new_cluster()
    old = await started(stores)
    one = workflow_id()
    await old.commit(one, {0: b"open 1"})
    new = await started(stores)
    with pytest.raises(Fenced):
        await old.commit(one, {0: b"ended"})
    assert old.lost
    assert await contents(stores, [one]) == expected({one: {0: b"open 1"}})
    # Its checkpoint comes late too: an entry with a lower epoch than what is there by now.
    await new.commit(one, {0: b"open 2"})
    await new.checkpoint.flush()
    await old.checkpoint.flush()
    assert await contents(stores, [one]) == expected({one: {0: b"open 2"}})
    await asyncio.gather(old.kill(), new.kill())


async def test_an_entry_beyond_a_gap_was_never_acknowledged_and_does_not_count() -> None:
    stores = await new_cluster()
    node = await started(stores)
    one, other = workflow_id(), workflow_id()
    await node.commit(one, {0: b"open 1"})
    await node.kill()
    ((_, entry),) = await stores.logs.read(node.own, after=0, upto=9, bytes_max=1)
    await stores.logs.append(node.own, 3, entry.replace(one.encode(), other.encode()))
    await begin(stores, log_id())
    assert await contents(stores, [one, other]) == expected({one: {0: b"open 1"}, other: {}})


async def test_two_nodes_replay_at_once_and_one_of_them_owns_each_shard() -> None:
    node, model = await busy_process()
    stores = node.stores
    owns = [log_id(), log_id()]
    wanted = [row for row in await stores.shards.rows() if row.shard != 3]
    for own in owns:
        await stores.logs.create(own)
    won = await asyncio.gather(
        *(take_over(stores, wanted, own, describe=describe, clock=CLOCK) for own in owns)
    )
    claimed = [row.shard for rows in won for row in rows]
    assert sorted(claimed) == [0, 1, 2]
    # Shard 3 still has its old owner, whose log therefore stays.
    await delete_unnamed_logs(stores, clock=CLOCK)
    assert node.own in await stores.logs.logs()
    rest = [row for row in await stores.shards.rows() if row.shard == 3]
    await take_over(stores, rest, owns[0], describe=describe, clock=CLOCK)
    await delete_unnamed_logs(stores, clock=CLOCK)
    assert node.own not in await stores.logs.logs()
    assert await contents(stores, list(model)) == expected(model)


async def test_a_second_replay_after_the_new_owner_went_on_changes_nothing() -> None:
    node, model = await busy_process()
    stores = node.stores
    seen = await stores.shards.rows()
    second = log_id()
    await stores.logs.create(second)
    rows = await take_over(stores, seen, second, describe=describe, clock=CLOCK)
    new = Process(stores, second, rows)
    one, other = list(model)[4:6]
    for changed, header in ((one, b"ended"), (other, b"open 99")):
        await new.commit(changed, {0: header})
        model[changed][0] = header
    await new.checkpoint.flush()
    # A slow node still works on the takeover that the second one finished long ago.
    late = await take_over(stores, seen, log_id(), describe=describe, clock=CLOCK)
    assert late == []
    found = await contents(stores, list(model))
    wanted = expected(model)
    assert found.rows == wanted.rows
    assert found.search == wanted.search
    # A hint that stands too long is allowed; one that is missing or behind is not.
    assert {**found.open, **wanted.open} == found.open
    assert set(found.open) - set(wanted.open) <= {one}
    await new.kill()


async def test_only_rows_of_the_epoch_that_the_shard_row_names_are_replayed() -> None:
    """A shard goes from A to B and back to A: A's log holds rows of two of its epochs."""
    stores = await new_cluster()
    a = await started(stores)
    one, other = workflow_id(), workflow_id(slot=1 << 14)
    assert shard_of(one, shard_count=SHARD_COUNT) == 0
    await a.commit(one, {0: b"open 1", 1: b"first time"})
    await a.commit(other, {0: b"open 1"})
    await a.checkpoint.flush()
    await stores.shards.release([row for row in await stores.shards.rows() if row.shard == 0])
    b_log = log_id()
    await stores.logs.create(b_log)
    (row,) = [row for row in await stores.shards.rows() if row.shard == 0]
    b = Process(
        stores, b_log, await take_over(stores, [row], b_log, describe=describe, clock=CLOCK)
    )
    await b.commit(one, {0: b"", 1: b""})
    await b.checkpoint.flush()
    await b.kill()
    (row,) = [row for row in await stores.shards.rows() if row.shard == 0]
    (back,) = await take_over(stores, [row], a.own, describe=describe, clock=CLOCK)
    assert (back.owner, back.epoch) == (a.own, 3)
    asked: list[str] = []
    a.epochs[ShardId(0)] = back.epoch
    new = workflow_id()
    await a.commit(new, {0: b"open 5"})
    await a.kill()
    rows = await begin(Faults(before=asked.append).wrapped(stores), log_id())
    assert [row.epoch for row in rows] == [4, 2, 2, 2]
    assert await contents(stores, [one, other, new]) == expected(
        {one: {0: b""}, other: {0: b"open 1"}, new: {0: b"open 5"}}
    )


async def test_lost_answers_do_not_keep_a_process_from_starting() -> None:
    node, model = await busy_process()
    own = log_id()
    rows = await begin(lose_every_second_answer().wrapped(node.stores), own)
    assert [(row.owner, row.epoch) for row in rows] == [(own, 2)] * SHARD_COUNT
    assert await contents(node.stores, list(model)) == expected(model)


async def test_nothing_is_claimed_while_the_log_cannot_be_read() -> None:
    node, _ = await busy_process()

    def fail(name: str) -> None:
        if name == "read":
            raise StoreFault("unreadable")

    with pytest.raises(StoreFault):
        await begin(Faults(before=fail).wrapped(node.stores), log_id())
    assert {row.owner for row in await node.stores.shards.rows()} == {node.own}


@pytest.mark.parametrize("lacking", [{2}, {3}, {1, 2, 3}])
async def test_nothing_is_claimed_from_a_log_with_a_hole(lacking: set[int]) -> None:
    """As when somebody who finished the same takeover deletes the log while we read it."""

    class HoledLogStore(MemoryLogStore):
        async def read(
            self, log: LogId, *, after: int, upto: int, bytes_max: int
        ) -> Sequence[tuple[int, bytes]]:
            found = await super().read(log, after=after, upto=upto, bytes_max=bytes_max)
            return [(position, entry) for position, entry in found if position not in lacking]

    stores = replace(await new_cluster(), logs=HoledLogStore())
    node = await started(stores)
    for number in range(3):
        await node.commit(workflow_id(), {0: b"open %d" % number})
    await node.kill()
    with pytest.raises(StoreFault, match=r"lacks position|ends at"):
        await begin(stores, log_id())
    assert {row.owner for row in await stores.shards.rows()} == {node.own}


async def test_an_open_log_that_no_shard_names_is_left_to_its_process() -> None:
    stores = await new_cluster()
    starting = log_id("other node")
    await stores.logs.create(starting)
    await started(stores)
    assert starting not in await stores.logs.logs()
    await stores.logs.create(starting)
    await delete_unnamed_logs(stores, clock=CLOCK)
    assert starting in await stores.logs.logs()


async def test_shards_of_other_nodes_are_left_alone() -> None:
    stores = await new_cluster()
    other = log_id("other")
    await stores.logs.create(other)
    await stores.shards.claim((await stores.shards.rows())[:2], other)
    mine = log_id("mine")
    rows = await restart(
        stores,
        mine,
        is_predecessor=lambda log: log.startswith("mine/"),
        takes_unowned=False,
        describe=describe,
        clock=CLOCK,
    )
    assert rows == []
    await stores.logs.append(other, 1, b"entry")
    assert [row.owner for row in await stores.shards.rows()] == [other, other, None, None]
