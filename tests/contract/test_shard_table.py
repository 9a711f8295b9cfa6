"""The contract of ShardTable."""

import asyncio

import pytest

from cluster.errors import Conflict
from cluster.ids import ShardId
from cluster.store.ports import ShardRow, Stores
from tests.support.rows import log_id

pytestmark = pytest.mark.asyncio


async def test_a_new_cluster_has_unowned_shards(stores: Stores) -> None:
    rows = await stores.shards.rows()
    assert list(rows) == [ShardRow(shard=ShardId(n), owner=None, epoch=0) for n in range(4)]


async def test_the_shard_count_is_fixed(stores: Stores) -> None:
    rows = await stores.shards.rows()
    await stores.shards.claim(rows[:1], log_id())
    await stores.shards.create(4)
    with pytest.raises(Conflict, match="4 shards, not 8"):
        await stores.shards.create(8)
    assert len(await stores.shards.rows()) == 4
    assert (await stores.shards.rows())[0].epoch == 1


async def test_a_claim_takes_rows_that_stand_as_seen(stores: Stores) -> None:
    shards, first, second = stores.shards, log_id(), log_id()
    seen = await shards.rows()
    won = await shards.claim(seen[:2], first)
    assert [(row.shard, row.owner, row.epoch) for row in won] == [(0, first, 1), (1, first, 1)]
    # The second claimer saw what the first one saw: two are lost, two are won.
    stands = await shards.claim(seen, second)
    assert [(row.owner, row.epoch) for row in stands] == [
        (first, 1),
        (first, 1),
        (second, 1),
        (second, 1),
    ]
    assert list(await shards.rows()) == list(stands)
    again = await shards.claim(stands[:1], second)
    assert (again[0].owner, again[0].epoch) == (second, 2)


async def test_a_claim_on_an_earlier_epoch_of_the_same_owner_is_lost(stores: Stores) -> None:
    shards, a, b, c = stores.shards, log_id(), log_id(), log_id()
    first = await shards.claim((await shards.rows())[:1], a)
    second = await shards.claim(first, b)
    third = await shards.claim(second, a)
    assert await shards.claim(first, c) == third
    await shards.release(first)
    assert (await shards.rows())[0] == third[0]


async def test_a_repeated_claim_is_seen_as_won(stores: Stores) -> None:
    own = log_id()
    seen = await stores.shards.rows()
    assert await stores.shards.claim(seen, own) == await stores.shards.claim(seen, own)
    assert {row.epoch for row in await stores.shards.rows()} == {1}


async def test_of_many_claimers_one_wins(stores: Stores) -> None:
    seen = await stores.shards.rows()
    claimers = [log_id() for _ in range(8)]
    answers = await asyncio.gather(*(stores.shards.claim(seen, own) for own in claimers))
    for number, row in enumerate(await stores.shards.rows()):
        assert row.epoch == 1
        assert all(answer[number] == row for answer in answers)


async def test_a_release_keeps_the_epoch(stores: Stores) -> None:
    shards, own = stores.shards, log_id()
    won = await shards.claim((await shards.rows())[:1], own)
    await shards.release(won)
    assert (await shards.rows())[0] == ShardRow(shard=ShardId(0), owner=None, epoch=1)
    next_owner = log_id()
    await shards.claim((await shards.rows())[:1], next_owner)
    await shards.release(won)
    assert (await shards.rows())[0] == ShardRow(shard=ShardId(0), owner=next_owner, epoch=2)
