"""A workflow that begins and ends between two checkpoints leaves no trace in the open set, and its
rows may be kept as one."""

from collections.abc import Sequence
from dataclasses import replace

import orjson

from cluster.engine.events import TaskUpdated
from cluster.engine.rows import state_rows
from cluster.engine.transitions import TaskStatus
from cluster.ids import TaskId, WorkflowId, number_of
from cluster.store.memory.open_set import MemoryOpenSet
from cluster.store.ports import OpenEntry
from tests.support.peers import Ground, Peer, are_all_served, new_ground, until
from tests.support.virtual_time import run_virtual


class Watched(MemoryOpenSet):
    """Notes who was put and removed."""

    def __init__(self, shard_count: int) -> None:
        super().__init__(shard_count=shard_count)
        self.put_ids: list[WorkflowId] = []
        self.removed_ids: list[WorkflowId] = []

    async def put(self, entries: Sequence[tuple[OpenEntry, int]]) -> None:
        self.put_ids += [entry.workflow_id for entry, _ in entries]
        await super().put(entries)

    async def remove(self, removed: Sequence[tuple[WorkflowId, int]]) -> None:
        self.removed_ids += [workflow_id for workflow_id, _ in removed]
        await super().remove(removed)


async def watched_ground() -> tuple[Ground, Watched]:
    ground = await new_ground()
    open_set = Watched(16)
    ground.stores = replace(ground.stores, open_set=open_set)
    return ground, open_set


async def complete(peer: Peer, workflow_id: WorkflowId) -> None:
    (task,) = await peer.poll("t_one")
    event = TaskUpdated(
        peer.ground.clock.now_ms(),
        number_of(TaskId(task["taskId"])),
        TaskStatus.COMPLETED,
        output=orjson.dumps({}),
    )
    await peer.node.services.router.submit(workflow_id, event)
    assert await peer.status(workflow_id) == "COMPLETED"


def test_one_that_is_short_lived_never_comes_near_the_open_set() -> None:
    async def main() -> None:
        ground, open_set = await watched_ground()
        peer = await Peer(ground, "one", checkpoint_interval_ms=3_600_000).begin()
        await until(lambda: are_all_served([peer]))
        workflow_id = await peer.start()
        await complete(peer, workflow_id)
        await peer.incarnation.checkpoint.flush()
        assert not open_set.put_ids
        assert not open_set.removed_ids
        assert not peer.incarnation.residents.never_written
        await peer.drain()

    run_virtual(main())


def test_one_that_a_checkpoint_saw_open_is_taken_out_at_its_end() -> None:
    async def main() -> None:
        ground, open_set = await watched_ground()
        peer = await Peer(ground, "one", checkpoint_interval_ms=3_600_000).begin()
        await until(lambda: are_all_served([peer]))
        workflow_id = await peer.start()
        await peer.incarnation.checkpoint.flush()
        await complete(peer, workflow_id)
        await peer.incarnation.checkpoint.flush()
        assert open_set.put_ids == open_set.removed_ids == [workflow_id]
        await peer.drain()

    run_virtual(main())


def test_one_that_was_put_by_a_write_that_was_cut_short_is_taken_out_too() -> None:
    async def main() -> None:
        ground, open_set = await watched_ground()
        peer = await Peer(ground, "one", checkpoint_interval_ms=3_600_000).begin()
        await until(lambda: are_all_served([peer]))
        workflow_id = await peer.start()
        checkpoint, residents = peer.incarnation.checkpoint, peer.incarnation.residents
        header = state_rows(residents.executions[workflow_id])[0][1]
        assert workflow_id in residents.never_written
        # Described as open: from here on it may be in the store, whatever becomes of the write.
        described = peer.incarnation._describe(workflow_id, header)
        assert described.open is not None
        await complete(peer, workflow_id)
        await checkpoint.flush()
        assert open_set.removed_ids == [workflow_id]
        await peer.drain()

    run_virtual(main())


def test_rows_may_be_kept_as_one_while_it_is_in_memory_from_its_start_on() -> None:
    """Each number once: who loads a workflow does not know which bundles there are."""

    async def main() -> None:
        ground, _ = await watched_ground()
        peer = await Peer(ground, "one", checkpoint_interval_ms=3_600_000).begin()
        await until(lambda: are_all_served([peer]))
        workflow_id = await peer.start()
        checkpoint, residents = peer.incarnation.checkpoint, peer.incarnation.residents
        assert residents.next_bundle(workflow_id) == 0
        await checkpoint.flush()
        assert residents.next_bundle(workflow_id) == 1
        residents.drop(residents.executions[workflow_id])
        assert residents.next_bundle(workflow_id) is None
        await residents.get(workflow_id)
        assert residents.next_bundle(workflow_id) is None
        await complete(peer, workflow_id)
        await checkpoint.flush()
        await peer.drain()

    run_virtual(main())
