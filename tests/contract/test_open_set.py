"""The contract of OpenSet."""

import pytest

from cluster.ids import ShardId, WorkflowId, shard_of
from cluster.store.ports import OpenEntry, Stores
from tests.support.rows import workflow_id

pytestmark = pytest.mark.asyncio

SLOT_OF_SHARD_2 = 2 << 14


def entry(owner: WorkflowId, due_ms: int | None = None, *, unfinished: bool = False) -> OpenEntry:
    return OpenEntry(owner, due_ms, unfinished)


async def scanned(stores: Stores, shard: int = 0) -> list[OpenEntry]:
    return list(await stores.open_set.scan(ShardId(shard), after=None, limit=1_000))


async def test_a_scan_pages_through_one_shard_by_id(stores: Stores) -> None:
    mine = [workflow_id() for _ in range(5)]
    other = workflow_id(slot=SLOT_OF_SHARD_2)
    assert shard_of(other, shard_count=4) == 2
    await stores.open_set.put([(entry(one), 1) for one in [*reversed(mine), other]])
    page = await stores.open_set.scan(ShardId(0), after=None, limit=3)
    assert [found.workflow_id for found in page] == mine[:3]
    page = await stores.open_set.scan(ShardId(0), after=mine[2], limit=3)
    assert [found.workflow_id for found in page] == mine[3:]
    assert await scanned(stores, 2) == [entry(other)]
    assert await scanned(stores, 1) == []


async def test_an_entry_yields_to_a_higher_revision_only(stores: Stores) -> None:
    one = workflow_id()
    await stores.open_set.put([(entry(one, 50, unfinished=True), 5)])
    await stores.open_set.put([(entry(one, 50, unfinished=True), 5), (entry(workflow_id()), 1)])
    await stores.open_set.put([(entry(one, 40), 4)])
    assert (await scanned(stores))[0] == entry(one, 50, unfinished=True)
    await stores.open_set.put([(entry(one), 6)])
    assert (await scanned(stores))[0] == entry(one)


async def test_a_late_removal_spares_a_later_entry(stores: Stores) -> None:
    one, other = workflow_id(), workflow_id()
    await stores.open_set.put([(entry(one), 5), (entry(other), 5)])
    await stores.open_set.remove([(one, 4), (other, 5), (workflow_id(), 9)])
    assert await scanned(stores) == [entry(one)]
    await stores.open_set.remove([(one, 6), (one, 6)])
    assert await scanned(stores) == []


async def test_due_ones_come_earliest_first(stores: Stores) -> None:
    ids = [workflow_id() for _ in range(5)]
    due_ms = [30, 10, None, 20, 10]
    await stores.open_set.put([(entry(one, due), 1) for one, due in zip(ids, due_ms, strict=True)])
    await stores.open_set.put([(entry(workflow_id(slot=SLOT_OF_SHARD_2), 5), 1)])
    found = await stores.open_set.due(ShardId(0), before_ms=30, limit=10)
    assert [one.workflow_id for one in found] == [ids[1], ids[4], ids[3]]
    found = await stores.open_set.due(ShardId(0), before_ms=31, limit=2)
    assert [one.workflow_id for one in found] == [ids[1], ids[4]]
    await stores.open_set.put([(entry(ids[1], 90), 2), (entry(ids[4]), 2)])
    found = await stores.open_set.due(ShardId(0), before_ms=31, limit=10)
    assert [one.next_due_ms for one in found] == [20, 30]


async def test_many_at_once(stores: Stores) -> None:
    ids = [workflow_id() for _ in range(700)]
    await stores.open_set.put([(entry(one, number), 1) for number, one in enumerate(ids)])
    await stores.open_set.remove([(one, 1) for one in ids[100:]])
    assert [found.workflow_id for found in await scanned(stores)] == ids[:100]
    await stores.open_set.put([])
    await stores.open_set.remove([])
