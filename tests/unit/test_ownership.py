"""Nodes that come, go, die and wake: every shard finds an owner, nothing acknowledged is lost."""

import asyncio
from typing import Any

import pytest

from cluster.errors import ClusterError, StoreFault
from cluster.ids import WorkflowId
from cluster.store.memory.log import MemoryLogStore
from cluster.store.ports import LogId
from tests.support.peers import (
    SHARD_COUNT,
    Ground,
    Peer,
    are_all_served,
    new_ground,
    owner_of,
    until,
)
from tests.support.virtual_time import VirtualClock, run_virtual


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


def test_what_a_killed_node_could_not_put_into_a_queue_any_more_is_put_there_by_the_next() -> None:
    async def main() -> None:
        ground = await new_ground()
        killed, *left = await three(ground)
        # The queues were told everything that there was before.
        await asyncio.sleep(3)
        killed.queue_line.hold()
        started = [await killed.start() for _ in range(10)]
        await asyncio.sleep(2)
        started += [await killed.start() for _ in range(10)]
        killed.kill()
        await until(lambda: are_all_served(left))
        await asyncio.sleep(1)
        polled = {task["workflowInstanceId"] for task in await left[0].poll("t_one")}
        assert polled == set(started)
        await killed.bury()
        await drain(left)

    run_virtual(main())


def test_shards_move_to_a_node_that_joins_and_only_about_its_share() -> None:
    async def main() -> None:
        ground = await new_ground()
        peers = [await Peer(ground, name).begin() for name in ("one", "two")]
        await until(lambda: are_all_served(peers) and all(len(peer.served) == 8 for peer in peers))
        started = [await peer.start() for peer in peers for _ in range(20)]
        await asyncio.sleep(3)
        before = {row.shard: row for row in await ground.rows()}
        third = await Peer(ground, "three").begin()
        peers.append(third)
        await until(lambda: are_all_served(peers) and bool(third.served), timeout_s=10)
        await asyncio.sleep(5)
        assert are_all_served(peers)
        assert {len(peer.served) for peer in peers} <= {4, 5, 6}
        # The queues know what waits: nothing of it had to be loaded and pushed again.
        assert third.incarnation.is_recovered
        assert not third.incarnation.residents.executions
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


async def three(ground: Ground) -> list[Peer]:
    """Three nodes that share the shards."""
    peers = [await Peer(ground, name).begin() for name in ("one", "two", "three")]
    await until(lambda: are_all_served(peers) and min(len(peer.served) for peer in peers) >= 4)
    return peers


async def drain(peers: list[Peer]) -> None:
    for peer in peers:
        await peer.drain()


async def keep_starting(peer: Peer, started: list[WorkflowId]) -> None:
    """Start runs on one node until cancelled; `started` are those that it acknowledged."""
    while True:
        try:
            started.append(await peer.start())
        except ClusterError:
            pass
        await asyncio.sleep(0.05)


async def all_run(started: list[WorkflowId], peers: list[Peer]) -> None:
    for workflow_id in started:
        assert await owner_of(workflow_id, peers).status(workflow_id) == "RUNNING"


def test_a_node_that_stood_still_too_long_loses_its_shards_and_comes_back_with_a_new_log() -> None:
    async def main() -> None:
        ground = await new_ground()
        peers = await three(ground)
        paused, *left = peers
        started: list[WorkflowId] = []
        load = [asyncio.create_task(keep_starting(peer, started)) for peer in peers]
        await asyncio.sleep(2)
        own = paused.incarnation.own
        paused.hold()
        await until(lambda: are_all_served(left))
        await asyncio.sleep(3)
        # It still thinks that it owns its shards; what it decided meanwhile is on its way.
        assert paused.served
        paused.go_on()
        await until(lambda: are_all_served(peers) and len(paused.served) >= 4, timeout_s=30)
        assert paused.incarnation.own != own
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)
        assert len(started) > 200
        await all_run(started, peers)
        await drain(peers)

    run_virtual(main())


def test_a_paused_owner_does_not_answer_from_memory_once_others_may_have_taken_over() -> None:
    async def main() -> None:
        ground = await new_ground()
        paused, *left = await three(ground)
        workflow_id = await paused.start()
        paused.lease_line.hold()
        # Its appends and reads go on, only its lease runs out: it is sealed by the others.
        await until(lambda: not set(paused.served) & {s for peer in left for s in peer.served})
        await until(lambda: are_all_served(left))
        with pytest.raises(ClusterError):
            await paused.node.home.shards.view(workflow_id)
        assert await owner_of(workflow_id, left).status(workflow_id) == "RUNNING"
        await paused.bury()
        await drain(left)

    run_virtual(main())


def test_a_half_dead_node_lets_go_and_is_given_shards_again_when_its_store_is_back() -> None:
    async def main() -> None:
        ground = await new_ground()
        peers = await three(ground)
        half_dead, *left = peers
        started = [await half_dead.start() for _ in range(30)]
        half_dead.store_line.cut()
        assert await until(lambda: are_all_served(left)) < 13
        await all_run(started, left)
        half_dead.store_line.mend()
        await until(lambda: are_all_served(peers) and len(half_dead.served) >= 4, timeout_s=40)
        await all_run(started, peers)
        await drain(peers)

    run_virtual(main())


def test_while_redis_is_away_owners_go_on_and_nobody_takes_over() -> None:
    async def main() -> None:
        ground = await new_ground()
        peers = await three(ground)
        before = await ground.rows()
        for peer in peers:
            peer.lease_line.cut()
        started: list[WorkflowId] = []
        load = [asyncio.create_task(keep_starting(peer, started)) for peer in peers]
        await asyncio.sleep(60)
        await all_run(started, peers)
        assert len(started) > 2_000
        for peer in peers:
            peer.lease_line.mend()
        await asyncio.sleep(20)
        assert await ground.rows() == before
        for task in load:
            task.cancel()
        await drain(peers)

    run_virtual(main())


def test_a_flushed_redis_moves_nothing() -> None:
    async def main() -> None:
        ground = await new_ground()
        peers = await three(ground)
        before = await ground.rows()
        for _ in range(5):
            ground.leases.lose()
            ground.membership.lose()
            await asyncio.sleep(3)
        await asyncio.sleep(20)
        assert await ground.rows() == before
        assert are_all_served(peers)
        await drain(peers)

    run_virtual(main())


class OffClock(VirtualClock):
    """Two seconds ahead of everybody's."""

    def __init__(self) -> None:
        self.off_ms = 2_000

    def now_ms(self) -> int:
        return super().now_ms() + self.off_ms


def test_a_node_whose_clock_is_off_is_not_ready_and_claims_nothing() -> None:
    async def main() -> None:
        ground = await new_ground()
        clock = OffClock()
        one = await Peer(ground, "one", clock=clock).begin()
        await asyncio.sleep(10)
        assert not one.served
        assert not one.node.services.is_ready()
        assert (await ground.membership.read()).members["one"].state == "joining"
        clock.off_ms = 900
        await until(lambda: are_all_served([one]), timeout_s=4)
        assert one.node.services.is_ready()
        await one.drain()

    run_virtual(main())


def test_a_process_that_starts_again_takes_over_from_its_predecessor_at_once() -> None:
    async def main() -> None:
        ground = await new_ground()
        killed, *left = await three(ground)
        had = set(killed.served)
        started = [await killed.start() for _ in range(30)]
        await killed.bury()
        again = await Peer(ground, "one", holds_folder=True).begin()
        assert set(again.served) == had
        peers = [again, *left]
        await all_run(started, peers)
        await asyncio.sleep(15)
        # Nobody had noticed, so nothing moved.
        assert set(again.served) == had
        await drain(peers)

    run_virtual(main())


def test_nothing_acknowledged_is_lost_while_nodes_join_leave_and_die() -> None:
    async def main() -> None:
        ground = await new_ground()
        peers = await three(ground)
        started: list[WorkflowId] = []
        load = {peer.node_id: asyncio.create_task(keep_starting(peer, started)) for peer in peers}
        for number in range(6):
            fresh = await Peer(ground, f"fresh-{number}").begin()
            peers.append(fresh)
            load[fresh.node_id] = asyncio.create_task(keep_starting(fresh, started))
            await asyncio.sleep(7)
            gone = peers.pop(0)
            if number % 2:
                await gone.drain()
            else:
                gone.kill()
                await asyncio.sleep(4)
                await gone.bury()
            load[gone.node_id].cancel()
            await asyncio.sleep(3)
        await until(lambda: are_all_served(peers))
        for task in load.values():
            task.cancel()
        await asyncio.gather(*load.values(), return_exceptions=True)
        assert len(started) > 2_000
        await all_run(started, peers)
        tasks = await peers[0].poll("t_one", 1_000)
        polled = {task["workflowInstanceId"] for task in tasks}
        while tasks := await peers[0].poll("t_one", 1_000):
            polled |= {task["workflowInstanceId"] for task in tasks}
        assert polled >= set(started)
        await drain(peers)

    run_virtual(main())


def test_two_that_are_called_the_same_by_mistake_do_not_seal_each_other_for_ever() -> None:
    async def main() -> None:
        ground = await new_ground()
        one = await Peer(ground, "one", holds_folder=True).begin()
        await until(lambda: are_all_served([one]))
        other = await Peer(ground, "one", holds_folder=True).begin()
        await asyncio.sleep(10)
        logs = {one.incarnation.own, other.incarnation.own}
        await asyncio.sleep(60)
        assert {one.incarnation.own, other.incarnation.own} == logs
        assert are_all_served([one, other])
        await drain([one, other])

    run_virtual(main())


def test_a_log_that_another_node_has_sealed_is_taken_over_without_a_wait_of_ones_own() -> None:
    async def main() -> None:
        ground = await new_ground()
        killed, *left = await three(ground)
        own = killed.incarnation.own
        killed.kill()
        await ground.leases.drop(own)
        await ground.stores.logs.seal(own)
        assert await until(lambda: are_all_served(left)) < 3
        await asyncio.sleep(2)
        assert are_all_served(left), "nothing is given to one that is listed, but gone"
        await killed.bury()
        await drain(left)

    run_virtual(main())


def test_the_open_log_of_a_process_that_never_claimed_anything_is_removed_some_day() -> None:
    async def main() -> None:
        ground = await new_ground()
        one = await Peer(ground, "one").begin()
        stray = LogId("gone/1")
        await ground.stores.logs.create(stray)
        await asyncio.sleep(70)
        assert stray in await ground.stores.logs.logs()
        await asyncio.sleep(150)
        assert await ground.stores.logs.logs() == [one.incarnation.own]
        await drain([one])

    run_virtual(main())


def test_a_log_that_cannot_be_read_keeps_nobody_else_from_being_taken_over() -> None:
    async def main() -> None:
        ground = await new_ground()
        peers = await three(ground)
        ground_logs = ground.stores.logs
        damaged, killed, left = peers
        began, lost = set(damaged.served), damaged.incarnation.own
        await damaged.start()

        async def read(log: LogId, **options: Any) -> Any:
            if log == lost:
                raise StoreFault("a disk is broken")
            return await MemoryLogStore.read(ground_logs, log, **options)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ground_logs, "read", read)
            damaged.kill()
            killed.kill()
            await until(lambda: len(left.served) == SHARD_COUNT - len(began), timeout_s=150)
        await until(lambda: are_all_served([left]), timeout_s=150)
        await damaged.bury()
        await killed.bury()
        await left.drain()

    run_virtual(main())
