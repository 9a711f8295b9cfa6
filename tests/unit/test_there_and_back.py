"""A shard that goes away and comes back between a look into the store and what follows from it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from cluster.clock import SystemRandom
from cluster.engine.effects import StartChild
from cluster.errors import NotOwner
from cluster.ids import ShardId, WorkflowId, new_workflow_id, shard_of, slot_of_key
from cluster.node.incarnation import Incarnation
from cluster.node.owner import Owner, StartWorkflow
from cluster.store.ports import Row
from tests.support.peers import SHARD_COUNT, Ground, Peer, are_all_served, new_ground, until
from tests.support.virtual_time import run_virtual

FIRST, AGAIN = b'{"n":1}', b'{"n":2}'
PARENT = WorkflowId("01a3185c-be91-8b7c-bad5-000000000000")


class OtherOwner:
    """Starts something while the shard is its own: the store shows it from then on."""

    def __init__(self, incarnation: Incarnation, workflow_id: WorkflowId) -> None:
        self.shard = ShardId(shard_of(workflow_id, shard_count=SHARD_COUNT))
        self.times = 0
        self._shards = incarnation.shards
        residents: Any = incarnation.residents
        keys: Any = incarnation.keys
        self._read: Callable[[WorkflowId], Awaitable[Sequence[Row]]] = residents._store.read
        residents._store = keys._store = self

    async def read(self, workflow_id: WorkflowId) -> Sequence[Row]:
        """As the port does; what the other has started is there once the other had its turn."""
        return await self._read(workflow_id) if self.times else ()

    def takes_its_turn(self) -> None:
        """The shard goes to it and comes back."""
        if not self.times:
            epoch = self._shards.epochs[self.shard]
            self._shards.give_up([self.shard])
            self._shards.serve({self.shard: epoch + 2})
        self.times += 1

    # It has its turn when the owner makes sure that it still is the owner.
    is_fresh = False

    async def confirm(self) -> None:
        self.takes_its_turn()


class ReadByTheOther(OtherOwner):
    """It has its turn while a read is on its way back."""

    async def read(self, workflow_id: WorkflowId) -> Sequence[Row]:
        found = await super().read(workflow_id)
        self.takes_its_turn()
        return found


async def started(ground: Ground) -> tuple[Peer, WorkflowId, str]:
    """A node that has started a workflow by a key; its id, and the hash of its definition."""
    peer = await Peer(ground, "one").begin()
    await until(lambda: are_all_served([peer]))
    request = StartWorkflow("one", 1, input=FIRST, idempotency_key="k")
    workflow_id = await peer.node.services.router.start(request)
    execution = await peer.incarnation.shards.view(workflow_id)
    snapshot = execution.plan.hash
    await peer.incarnation.finish()
    shard = ShardId(shard_of(workflow_id, shard_count=SHARD_COUNT))
    await peer.incarnation.residents.forget([shard])
    keys: Any = peer.incarnation.keys
    keys._recent.clear()
    return peer, workflow_id, snapshot


async def start(owner: Owner, workflow_id: WorkflowId, snapshot: str) -> None:
    await owner.start(workflow_id, StartWorkflow("one", 1, input=AGAIN), repeated=True)


async def start_child(owner: Owner, workflow_id: WorkflowId, snapshot: str) -> None:
    child = StartChild(workflow_id, snapshot, "one", 1, AGAIN, None, 0, None, 0)
    await owner.start_child(PARENT, child, repeated=True)


async def start_once(owner: Owner, workflow_id: WorkflowId, snapshot: str) -> None:
    request = StartWorkflow("one", 1, input=AGAIN, idempotency_key="k")
    drawn = new_workflow_id(at_ms=1, slot=slot_of_key("one", "k"), random=SystemRandom())
    assert await owner.start_once(drawn, request, "k") == workflow_id


@pytest.mark.parametrize(
    ("other", "ask"),
    [
        (OtherOwner, start),
        (ReadByTheOther, start),
        (ReadByTheOther, start_child),
        (ReadByTheOther, start_once),
    ],
)
def test_what_another_owner_started_meanwhile_is_seen(
    other: type[OtherOwner], ask: Callable[..., Awaitable[None]]
) -> None:
    async def main() -> None:
        peer, workflow_id, snapshot = await started(await new_ground())
        shards: Any = peer.incarnation.shards
        elsewhere = other(peer.incarnation, workflow_id)
        shards._authority = elsewhere
        for _ in range(2):
            try:
                await ask(peer.node.services.router.owner, workflow_id, snapshot)
                break
            except NotOwner:
                pass  # The router asks again.
        assert elsewhere.times
        assert (await shards.view(workflow_id)).input == FIRST
        await peer.bury()

    run_virtual(main())
