"""Nodes that come, go, die and wake: every shard finds an owner, nothing acknowledged is lost."""

import asyncio

from tests.support.peers import SHARD_COUNT, Peer, are_all_served, new_ground, owner_of, until
from tests.support.virtual_time import run_virtual


async def longest_stall_s(peers: list[Peer]) -> float:
    """How long at most, until cancelled, a shard was served by none of some nodes."""
    loop = asyncio.get_running_loop()
    seen = [loop.time()] * SHARD_COUNT
    longest = 0.0
    try:
        while True:
            for shard in {shard for peer in peers for shard in peer.served}:
                longest = max(longest, loop.time() - seen[shard])
                seen[shard] = loop.time()
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        return longest


def test_a_node_on_its_own_claims_every_shard() -> None:
    async def main() -> None:
        ground = await new_ground()
        one = await Peer(ground, "one").begin()
        assert await until(lambda: are_all_served([one])) < 3
        assert one.node.services.is_ready()
        assert {row.owner for row in await ground.rows()} == {one.incarnation.own}
        await one.drain()

    run_virtual(main())


def test_the_others_take_over_from_a_node_that_was_killed() -> None:
    async def main() -> None:
        ground = await new_ground()
        peers = [await Peer(ground, name).begin() for name in ("one", "two", "three")]
        await until(lambda: are_all_served(peers) and all(peer.served for peer in peers))
        started = [await peer.start() for peer in peers for _ in range(20)]
        killed, *left = peers
        assert killed.served
        killed.kill()
        took_s = await until(lambda: are_all_served(left))
        assert 3 < took_s < 8
        for workflow_id in started:
            assert await owner_of(workflow_id, left).status(workflow_id) == "RUNNING"
        tasks = await left[0].poll("t_one")
        assert {task["workflowInstanceId"] for task in tasks} == set(started)
        assert len(tasks) == len(started)
        await killed.bury()
        for peer in left:
            await peer.drain()

    run_virtual(main())


def test_shards_move_to_a_node_that_joins_and_only_about_its_share() -> None:
    async def main() -> None:
        ground = await new_ground()
        peers = [await Peer(ground, name).begin() for name in ("one", "two")]
        await until(lambda: are_all_served(peers) and all(len(peer.served) == 8 for peer in peers))
        started = [await peer.start() for peer in peers for _ in range(20)]
        before = {row.shard: row for row in await ground.rows()}
        third = await Peer(ground, "three").begin()
        peers.append(third)
        await until(lambda: are_all_served(peers) and bool(third.served), timeout_s=10)
        await asyncio.sleep(5)
        assert are_all_served(peers)
        assert {len(peer.served) for peer in peers} <= {4, 5, 6}
        after = {row.shard: row for row in await ground.rows()}
        moved = [shard for shard in after if after[shard] != before[shard]]
        assert len(moved) <= SHARD_COUNT * 2 // 3
        assert all(after[shard].epoch == before[shard].epoch + 1 for shard in moved)
        for workflow_id in started:
            assert await owner_of(workflow_id, peers).status(workflow_id) == "RUNNING"
        for peer in peers:
            await peer.drain()

    run_virtual(main())


def test_a_drained_node_hands_everything_over_within_a_moment_and_leaves_nothing_behind() -> None:
    async def main() -> None:
        ground = await new_ground()
        peers = [await Peer(ground, name).begin() for name in ("one", "two", "three")]
        await until(lambda: are_all_served(peers) and all(peer.served for peer in peers))
        started = [await peer.start() for peer in peers for _ in range(20)]
        leaving, *left = peers
        own = leaving.incarnation.own
        stalls = asyncio.create_task(longest_stall_s(peers))
        await leaving.drain()
        assert await until(lambda: are_all_served(left)) < 1
        stalls.cancel()
        assert await stalls < 0.5
        assert own not in await ground.stores.logs.logs()
        assert own not in (await ground.leases.read()).counters
        assert "one" not in (await ground.membership.read()).members
        for workflow_id in started:
            assert await owner_of(workflow_id, left).status(workflow_id) == "RUNNING"
        for peer in left:
            await peer.drain()
        assert {row.owner for row in await ground.rows()} == {None}
        assert await ground.stores.logs.logs() == []

    run_virtual(main())
