"""Routes: the copy of the routing table, and who reads it again."""

import asyncio

from msgspec.structs import replace

from cluster.errors import StoreFault
from cluster.ids import ShardId
from cluster.sharding.routes import Routes
from cluster.store.lease_ports import Member
from cluster.store.memory.leases import MemoryMembership
from cluster.store.memory.shards import MemoryShardTable
from cluster.store.ports import LogId, ShardRow
from tests.support.virtual_time import VirtualClock, run_virtual

ONE = Member("one", LogId("one/1"), "127.0.0.1:1", "serving", 4, "0", 0)
OTHER = Member("other", LogId("other/1"), "127.0.0.1:2", "serving", 4, "0", 0)


async def known(*members: Member) -> tuple[Routes, MemoryShardTable, MemoryMembership]:
    table, membership = MemoryShardTable(), MemoryMembership(VirtualClock())
    await table.create(4)
    rows = await table.rows()
    await table.claim(rows[:2], ONE.log)
    await table.claim(rows[2:3], OTHER.log)
    for member in members:
        await membership.beat(member, ttl_ms=5_000)
    routes = Routes(table, membership)
    await routes.refresh()
    return routes, table, membership


def owners(routes: Routes) -> list[Member | None]:
    return [routes.owner_of(ShardId(shard)) for shard in range(4)]


def test_a_shard_leads_to_the_member_whose_log_its_row_names() -> None:
    async def main() -> None:
        routes, _, _ = await known(ONE, OTHER)
        assert owners(routes) == [ONE, ONE, OTHER, None]

    run_virtual(main())


def test_a_member_that_is_gone_or_opened_another_log_owns_nothing() -> None:
    async def main() -> None:
        routes, _, membership = await known(ONE)
        assert owners(routes) == [ONE, ONE, None, None]
        await membership.beat(replace(ONE, log=LogId("one/2")), ttl_ms=5_000)
        await routes.refresh()
        assert owners(routes) == [None, None, None, None]

    run_virtual(main())


def test_one_reading_serves_all_who_ask() -> None:
    async def main() -> None:
        routes, table, _ = await known(ONE)
        asked = 0

        async def rows() -> list[ShardRow]:
            nonlocal asked
            asked += 1
            await asyncio.sleep(1)
            raise StoreFault("away")

        table.rows = rows  # type: ignore[method-assign]
        answers = await asyncio.gather(
            *(routes.refresh() for _ in range(9)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [StoreFault] * 9
        assert asked == 1
        assert owners(routes) == [ONE, ONE, None, None]
        del table.rows
        await routes.refresh()

    run_virtual(main())


def test_who_gives_up_does_not_stop_the_reading_for_others() -> None:
    async def main() -> None:
        routes, table, _ = await known(ONE)
        found = await table.rows()

        async def rows() -> list[ShardRow]:
            await asyncio.sleep(1)
            return list(found)[:1]

        table.rows = rows  # type: ignore[method-assign]
        first = asyncio.ensure_future(routes.refresh())
        second = asyncio.ensure_future(routes.refresh())
        await asyncio.sleep(0.5)
        first.cancel()
        await second
        assert owners(routes) == [ONE, None, None, None]

    run_virtual(main())


def test_who_waits_for_a_shard_goes_on_when_its_owner_says_that_it_serves_it() -> None:
    async def main() -> None:
        routes, _, _ = await known(ONE, OTHER)
        shard = ShardId(2)
        waiting = asyncio.ensure_future(routes.moved(shard, routes.heard_of(shard), wait_ms=60_000))
        await asyncio.sleep(0)
        routes.learn_moved([ShardRow(ShardId(1), OTHER.log, 2)])
        await asyncio.sleep(1)
        assert not waiting.done()
        routes.learn_moved([ShardRow(shard, ONE.log, 2)])
        assert await waiting
        assert (routes.owner_of(shard), routes.epoch_of(shard)) == (ONE, 2)

    run_virtual(main())


def test_what_was_heard_during_a_call_is_not_waited_for_again() -> None:
    async def main() -> None:
        routes, _, _ = await known(ONE, OTHER)
        shard = ShardId(2)
        before = routes.heard_of(shard)
        routes.learn_moved([ShardRow(shard, ONE.log, 2)])
        assert await routes.moved(shard, before, wait_ms=60_000)
        assert not await routes.moved(shard, routes.heard_of(shard), wait_ms=10)

    run_virtual(main())


def test_old_news_of_a_shard_does_not_replace_what_is_known() -> None:
    async def main() -> None:
        routes, _, _ = await known(ONE, OTHER)
        routes.learn_moved([ShardRow(ShardId(2), ONE.log, 0)])
        assert routes.owner_of(ShardId(2)) == OTHER

    run_virtual(main())


def test_a_reading_that_began_before_the_news_does_not_undo_them() -> None:
    async def main() -> None:
        routes, _, _ = await known(ONE, OTHER)
        shard = ShardId(2)
        routes.learn_moved([ShardRow(shard, ONE.log, 2)])
        routes.learn_rows([ShardRow(shard, OTHER.log, 1)])
        assert (routes.owner_of(shard), routes.epoch_of(shard)) == (ONE, 2)
        routes.learn_rows([ShardRow(shard, None, 2)])
        assert routes.owner_of(shard) is None

    run_virtual(main())
